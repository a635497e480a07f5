"""Throughput and registration of a science image against its reference, from the stars that both contain.

The matching follows the survey's heritage code (``ztf-facts.md`` §5.1): clean, isolated stars within 1 px of each
other, at least 20 of them, and their flux ratio. What is left of their places is a displacement field (the air moved
both images, ``core.displacement``); its own uncertainty, from place to place, is the astrometric noise of S_corr.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.displacement import Displacement, fit_displacement
from stream.core.errors import SubtractionError
from stream.core.lanczos import NODE
from stream.core.pixelmap import MapNodes, PixelMap
from stream.core.psf import polynomial_terms
from stream.core.records import Reference, ScienceImage, Table
from stream.photometry import STAR_BAD_BITS

TREND_DEGREE = 2  # of the throughput in place


@dataclass(frozen=True, slots=True)
class MatchConfig:
    """How stars are chosen and matched."""

    radius: float = 1.0  # px, final match radius
    search: float = 3.0  # px, first match, before the common offset is taken out
    isolation: float = 10.5  # px to the next source of the same list, the heritage box
    min_snr: float = 20.0
    min_matches: int = 20  # below it the zero points give the throughput
    min_affine: int = 40  # below it only a shift is fitted to the offsets
    ratio_floor: float = 0.01  # relative flux error that no star beats (flat field, PSF model)
    min_trend: int = 60  # below it the throughput is one number
    most_trend: float = 0.1  # relative; no flat field, cloud or PSF model is off by more across a quadrant
    rms_floor: float = 0.005  # px; no two images are tied to each other better
    rms_default: float = 0.1  # px, where too few stars tell it: the survey's 65 mas and a bit


@dataclass(frozen=True, slots=True)
class Match:
    """What the common stars say.

    ``flux_scale``: reference DN times this is science DN, in the mean; ``trend``: and times this from place to place
    (coefficients of a parabola, ``polynomial_terms``; flat fields, clouds and PSF models differ by a per cent across a
    quadrant), None: the same everywhere. ``displacement``: what to add to the map, in reference px; None where too few
    stars tell it: then ``offset_x``, ``offset_y`` (coefficients of ``polynomial_terms``). ``rms``: scatter of the stars
    per axis (x, y), px, after that, photon noise taken out.
    """

    flux_scale: float
    flux_scale_error: float
    n_matched: int
    offset_x: NDArray[np.float64]
    offset_y: NDArray[np.float64]
    rms: tuple[float, float]
    from_zeropoints: bool
    displacement: Displacement | None = None
    trend: NDArray[np.float64] | None = None

    def scale_at(self, x: NDArray[np.float64], y: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
        """Reference DN times this (n,) is science DN at places of a science image of ``shape``."""
        if self.trend is None:
            return np.full(np.shape(x), self.flux_scale)
        return np.asarray(self.flux_scale * (polynomial_terms(x, y, shape, TREND_DEGREE) @ self.trend))

    def scale_on(self, nodes: MapNodes) -> float | NDArray[np.float32]:
        """The same at the nodes of a map, (ny, n_nodes) float32, or one number."""
        if self.trend is None:
            return self.flux_scale
        ny, n = nodes.shift_y.shape
        # A parabola between so few columns and rows is the product of its rows' and columns' splines.
        columns, rows = np.arange(n) * NODE, np.arange(ny)
        some = [np.linspace(0, v[-1], TREND_DEGREE + 1) for v in (rows, columns)]
        x, y = (v.ravel() for v in np.meshgrid(some[1], some[0]))
        grid = self.scale_at(x, y, nodes.shape).reshape(TREND_DEGREE + 1, TREND_DEGREE + 1)
        down, across = (_lagrange(v, at) for v, at in zip((rows, columns), some, strict=True))
        return (down @ grid @ across.T).astype(np.float32)

    def moved(self, pixel_map: PixelMap) -> PixelMap:
        """A map put right by the stars."""
        x, y = (v.ravel() for v in np.meshgrid(pixel_map.xs, pixel_map.ys))
        if self.displacement is not None:
            dx, dy = self.displacement.at(x, y)[:2]
        else:
            degree = 1 if len(self.offset_x) > 1 or len(self.offset_y) > 1 else 0
            terms = polynomial_terms(x, y, pixel_map.shape, degree)
            dx, dy = (terms[:, : len(c)] @ c for c in (self.offset_x, self.offset_y))
        grid = pixel_map.shift_x.shape
        return pixel_map.moved(dx.reshape(grid), dy.reshape(grid))

    def error_at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float32], ...]:
        """Registration error (px, x and y) on the grid of columns ``x`` and rows ``y``, (n_y, n_x) float32 each."""
        xx, yy = (v.ravel() for v in np.meshgrid(x, y))
        return tuple(e.reshape(len(y), len(x)) for e in self.error_of(xx, yy))

    def error_of(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float32], ...]:
        """The same at places (n,)."""
        if self.displacement is None:
            return tuple(np.full(len(x), rms, np.float32) for rms in self.rms)
        field_error = self.displacement.at(x, y)[2:]
        return tuple(np.hypot(e, rms).astype(np.float32) for e, rms in zip(field_error, self.rms, strict=True))


def _lagrange(x: NDArray[np.intp], nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, n_nodes) values at ``x`` of the polynomials that are 1 at one node and 0 at the others."""
    out = np.ones((len(x), len(nodes)))
    for k, node in enumerate(nodes):
        for other in np.delete(nodes, k):
            out[:, k] *= (x - other) / (node - other)
    return out


def clean_stars(table: Table, shape: tuple[int, int], config: MatchConfig) -> NDArray[np.intp]:
    """Rows of a source table that are bright, clean, star-like, isolated and away from the edge.

    Those in halos too: a halo is 10 DN of smooth light over 700 px, in which nothing else tells where the images lie.
    """
    if len(table) == 0:
        return np.zeros(0, np.intp)
    ny, nx = shape
    x, y = table["x"], table["y"]
    ok = np.isfinite(x) & np.isfinite(y) & np.isfinite(table["flux"]) & (table["sigflux"] > 0)
    if not ok.any():
        return np.zeros(0, np.intp)
    distance = np.full(len(table), np.inf)
    tree = cKDTree(np.stack([x[ok], y[ok]], axis=1))
    if ok.sum() > 1:
        distance[ok] = tree.query(tree.data, k=2)[0][:, 1]
    flags = table["flags"]
    ok &= (flags >= 0) & (flags & STAR_BAD_BITS == 0) & (distance > config.isolation)
    ok &= table["flux"] > config.min_snr * table["sigflux"]
    ok &= (x > 12) & (x < nx - 13) & (y > 12) & (y < ny - 13)
    # Unknown shapes (NaN) pass: a table without them is still a table of stars.
    ok &= ~(np.abs(table["sharp"]) > 0.7)
    return np.flatnonzero(ok)


def match_sources(
    science: ScienceImage,
    reference: Reference,
    pixel_map: PixelMap,
    config: MatchConfig | None = None,
    clean: NDArray[np.int64] | None = None,
) -> Match:
    """Flux ratio, residual offset and registration error between the two images.

    Parameters
    ----------
    science, reference
        With their source tables. The reference's may be empty.
    pixel_map : PixelMap
        Reference pixel of each science pixel.
    clean : ndarray of int, optional
        ``clean_stars`` of the reference, where known.

    Raises
    ------
    SubtractionError
        Fewer than ``min_matches`` stars and no finite zero points to fall back on.
    """
    config = config or MatchConfig()
    s = science.sources[clean_stars(science.sources, science.data.shape, config)]
    rows = clean_stars(reference.sources, reference.data.shape, config) if clean is None else clean
    r = reference.sources[rows]
    si, ri, dx, dy = _pairs(s, r, pixel_map, config)
    s, r = s[si], r[ri]
    scale, error = _flux_ratio(s, r, config)
    from_zeropoints = len(s) < config.min_matches
    if from_zeropoints:
        scale, error = 10 ** (0.4 * (science.zeropoint.magzp - reference.magzp)), float("nan")
        if not np.isfinite(scale):
            raise SubtractionError(
                f"only {len(s)} common stars and no zero points: the throughput of science and reference is unknown",
                n_matched=len(s),
            )
    trend = None if from_zeropoints else _trend(s, r, scale, science.data.shape, config)
    photon = _centroid_errors(s, r, science, reference)
    displacement = fit_displacement(s["x"], s["y"], dx, dy, photon, science.data.shape)
    if displacement is not None:
        fx, fy = displacement.at(s["x"], s["y"])[:2]
        rms = _intrinsic_rms(dx - fx, photon, config), _intrinsic_rms(dy - fy, photon, config)
        none = np.zeros(1)
        return Match(float(scale), float(error), len(s), none, none, rms, from_zeropoints, displacement, trend)
    offset_x, offset_y, rms = _registration(s, (dx, dy), photon, science, config)
    return Match(float(scale), float(error), len(s), offset_x, offset_y, rms, from_zeropoints, None, trend)


def _centroid_errors(s: Table, r: Table, science: ScienceImage, reference: Reference) -> NDArray[np.float64]:
    """Photon noise (px, one axis) of the difference of two places: sigma_PSF over S/N (King 1983), both images."""
    parts = science.seeing * s["sigflux"] / s["flux"], reference.psf.fwhm * r["sigflux"] / r["flux"]
    return np.asarray(np.hypot(*parts) / 2.355, float)


def _pairs(
    s: Table, r: Table, pixel_map: PixelMap, config: MatchConfig
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Mutual nearest neighbours in reference pixels, and reference minus mapped science place."""
    none = np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0), np.zeros(0)
    if len(s) == 0 or len(r) == 0:
        return none
    place = np.stack(pixel_map.at(s["x"], s["y"]), axis=1)
    star = np.stack([r["x"], r["y"]], axis=1)
    shift = np.zeros(2)
    for radius in (config.search, config.radius):
        distance, j = cKDTree(star).query(place + shift, distance_upper_bound=radius)
        i = np.flatnonzero(np.isfinite(distance))
        if len(i) == 0:
            return none
        back = cKDTree(place + shift).query(star[j[i]])[1]
        i = i[back == i]
        offset = star[j[i]] - place[i]
        shift = np.median(offset, axis=0)
    return i, j[i], offset[:, 0], offset[:, 1]


def _flux_ratio(s: Table, r: Table, config: MatchConfig) -> tuple[float, float]:
    """Robust weighted mean of science over reference flux, and its error; variables and blends clipped."""
    ok = r["flux"] > 0
    if not ok.any():
        return float("nan"), float("nan")
    ratio = s["flux"][ok] / r["flux"][ok]
    relative = np.hypot(s["sigflux"][ok] / s["flux"][ok], r["sigflux"][ok] / r["flux"][ok])
    weight = 1.0 / (relative**2 + config.ratio_floor**2)
    centre = float(np.median(ratio))
    keep = np.ones(len(ratio), bool)
    for _ in range(5):
        spread = 1.4826 * float(np.median(np.abs(ratio[keep] - centre)))
        expected = centre * np.sqrt(1 / weight)
        keep = np.abs(ratio - centre) < 3.0 * np.maximum(spread, expected) + 1e-12
        if not keep.any():
            return float(np.median(ratio)), float("nan")
        centre = float(np.sum(weight[keep] * ratio[keep]) / np.sum(weight[keep]))
    return centre, float(centre / np.sqrt(weight[keep].sum()))


def _trend(s: Table, r: Table, scale: float, shape: tuple[int, int], config: MatchConfig) -> NDArray[np.float64] | None:
    """Coefficients of the ratio of fluxes over ``scale``; None where stars are too few or show nothing."""
    ok = np.flatnonzero(r["flux"] > 0)
    if len(ok) < config.min_trend:
        return None
    relative = np.hypot(s["sigflux"][ok] / s["flux"][ok], r["sigflux"][ok] / r["flux"][ok])
    terms = polynomial_terms(s["x"][ok], s["y"][ok], shape, TREND_DEGREE)
    values = s["flux"][ok] / r["flux"][ok] / scale - 1
    solution, left = _robust_fit(terms, values, np.hypot(relative, config.ratio_floor), 0.0)
    model = terms @ solution
    scatter = 1.4826 * float(np.median(np.abs(left - np.median(left))))
    shown = float(np.sqrt(np.mean(model**2))) > 3 * scatter * np.sqrt(len(solution) / len(ok))
    if not shown or float(np.abs(model).max()) > config.most_trend:
        return None
    solution[0] += 1
    return solution


def _registration(
    s: Table,
    offsets: tuple[NDArray[np.float64], NDArray[np.float64]],
    photon: NDArray[np.float64],
    science: ScienceImage,
    config: MatchConfig,
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Coefficients of the significant residual offset and the r.m.s. left over, photon noise taken out."""
    if len(s) < 10:
        return np.zeros(1), np.zeros(1), (config.rms_default, config.rms_default)
    degree = 1 if len(s) >= config.min_affine else 0
    terms = polynomial_terms(s["x"], s["y"], science.data.shape, degree)
    coefficients, rms = [], []
    for offset in offsets:
        solution, left = _robust_fit(terms, offset, photon)
        model = terms @ solution
        scatter = 1.4826 * float(np.median(np.abs(left - np.median(left))))
        # The fit itself has an error of about scatter sqrt(n_terms / n): below three of it there is nothing to correct.
        if float(np.sqrt(np.mean(model**2))) < 3 * scatter * np.sqrt(terms.shape[1] / len(s)):
            solution, left = np.zeros(1), offset
        coefficients.append(solution)
        rms.append(_intrinsic_rms(left, photon, config))
    return coefficients[0], coefficients[1], (rms[0], rms[1])


def _robust_fit(
    terms: NDArray[np.float64], values: NDArray[np.float64], sigma: NDArray[np.float64], floor: float = 0.02
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted least squares, outliers clipped; the solution and all residuals."""
    weight = 1.0 / np.hypot(sigma, floor)
    keep = np.ones(len(values), bool)
    solution, left = np.zeros(terms.shape[1]), values
    for _ in range(4):
        a = terms[keep] * weight[keep, None]
        solution = np.asarray(np.linalg.lstsq(a, values[keep] * weight[keep], rcond=None)[0], float)
        left = values - terms @ solution
        pull = left * weight
        spread = max(1.4826 * float(np.median(np.abs(pull[keep]))), 0.3)
        keep = np.abs(pull) < 3.5 * spread
        if keep.sum() < 2 * terms.shape[1]:
            break
    return solution, left


def _intrinsic_rms(left: NDArray[np.float64], photon: NDArray[np.float64], config: MatchConfig) -> float:
    """Robust r.m.s. of the best-measured half of the stars with their photon noise subtracted."""
    best = np.argsort(photon, kind="stable")[: max(10, len(left) // 2)]
    scatter = 1.4826 * float(np.median(np.abs(left[best] - np.median(left[best]))))
    return float(np.sqrt(max(scatter**2 - float(np.median(photon[best] ** 2)), config.rms_floor**2)))
