"""How the zero point varies over a quadrant: a low-order surface that belongs to one image.

Cloud, an error of the flat and light that the PSF model misses in a corner all change the zero point smoothly by a few
mmag to some hundredths. The surface is a sum of products of Legendre polynomials P_i(u) P_j(v), i + j up to the
degree, with u and v from -1 to 1 across the image; they are nearly orthogonal for stars that lie anywhere, so that
their errors are nearly independent and one number each describes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.legendre import legvander
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def terms(degree: int) -> list[tuple[int, int]]:
    """Orders (i, j) of a surface of some degree, in the order of their coefficients; the constant comes first."""
    return [(total - j, j) for total in range(degree + 1) for j in range(total + 1)]


def basis(x: ArrayLike, y: ArrayLike, shape: tuple[int, int], degree: int) -> F64:
    """The polynomials at places (px) of an image of that shape: (n places, n terms)."""
    ny, nx = shape
    u = 2 * np.asarray(x, float).ravel() / max(nx - 1, 1) - 1
    v = 2 * np.asarray(y, float).ravel() / max(ny - 1, 1) - 1
    # A source just beyond the edge is no reason to extrapolate a cubic.
    of_x, of_y = (legvander(np.clip(place, -1.02, 1.02), degree) for place in (u, v))
    return np.stack([of_x[:, i] * of_y[:, j] for i, j in terms(degree)], axis=1)


@dataclass(frozen=True, slots=True)
class ZeroPointMap:
    """What to add to MAGZP at a place: ``magzp + map.offset(x, y) - 2.5 log10 flux`` (+ colour term).

    ``coefficients`` and their 1-sigma errors ``sigmas`` (mag) are in the order of ``terms``; the surface's median
    over the image is zero, so that MAGZP alone is the zero point of the quadrant. ``rms`` (mag) is the r.m.s. of the
    well measured calibrators about zero point and map (``MAGZPRMS`` is that about the zero point alone).
    """

    degree: int
    shape: tuple[int, int]
    coefficients: tuple[float, ...]
    sigmas: tuple[float, ...]
    rms: float = float("nan")

    def offset(self, x: ArrayLike, y: ArrayLike) -> F64:
        """Mag to add to MAGZP at places (px, first pixel is 0), in the shape of ``x``; NaN where a place is."""
        out: F64 = basis(x, y, self.shape, self.degree) @ np.array(self.coefficients)
        return out.reshape(np.shape(x))

    def sigma(self, x: ArrayLike, y: ArrayLike) -> F64:
        """1-sigma error of ``offset`` (mag)."""
        variance: F64 = basis(x, y, self.shape, self.degree) ** 2 @ np.array(self.sigmas) ** 2
        return np.sqrt(variance).reshape(np.shape(x))

    def expand(self, step: int = 1) -> F32:
        """``offset`` on every ``step``-th pixel of the image, rows and columns from the first."""
        ny, nx = self.shape
        u, v = (2 * np.arange(0, n, step) / max(n - 1, 1) - 1 for n in (nx, ny))
        grid = np.zeros((self.degree + 1, self.degree + 1))
        for (i, j), value in zip(terms(self.degree), self.coefficients, strict=True):
            grid[j, i] = value
        out = legvander(v, self.degree) @ grid @ legvander(u, self.degree).T
        return np.ascontiguousarray(out, np.float32)


def map_cards(found: ZeroPointMap | None) -> dict[str, tuple[float, str] | tuple[int, str]]:
    """Header cards of a map; ZPMDEG 0 where there is none."""
    if found is None:
        return {"ZPMDEG": (0, "degree of the zero-point map; 0: none")}
    cards: dict[str, tuple[float, str] | tuple[int, str]] = {
        "ZPMDEG": (found.degree, "degree of the zero-point map"),
        "ZPMNX": (found.shape[1], "u = 2 (x-1) / (ZPMNX-1) - 1, x from 1"),
        "ZPMNY": (found.shape[0], "v = 2 (y-1) / (ZPMNY-1) - 1, y from 1"),
        "ZPMRMS": (found.rms, "r.m.s. about zero point and map [mag]"),
    }
    for (i, j), value, sigma in zip(terms(found.degree), found.coefficients, found.sigmas, strict=True):
        cards[f"ZPM{i}{j}"] = (value, f"of Legendre P{i}(u) P{j}(v), adds to MAGZP [mag]")
        cards[f"ZPMU{i}{j}"] = (sigma, f"uncertainty of ZPM{i}{j} [mag]")
    return cards


def read_map(header: object) -> ZeroPointMap | None:
    """The map of a header (anything with ``get``); None where it names none or lacks a part of it."""
    get = header.get  # type: ignore[attr-defined]
    degree = int(get("ZPMDEG", 0))
    if degree < 1:
        return None
    values = [(get(f"ZPM{i}{j}"), get(f"ZPMU{i}{j}")) for i, j in terms(degree)]
    shape = get("ZPMNY"), get("ZPMNX")
    if any(value is None or sigma is None for value, sigma in values) or None in shape:
        return None
    coefficients, sigmas = zip(*((float(value), float(sigma)) for value, sigma in values), strict=True)
    return ZeroPointMap(degree, (int(shape[0]), int(shape[1])), coefficients, sigmas, float(get("ZPMRMS", np.nan)))
