"""Saturated stars: a PSF fitted to what is left of them, so that they can be taken out of an image and put back.

A saturated core is a plateau with a cliff around it. Interpolate it, and the kernel rings five pixels far with some
thousand DN; fill it from another image, and the convolutions of a subtraction carry the step at its rim around. A
star's unsaturated flanks tell its flux and place well enough (1 per cent) to take the star away first: what is
left has no step anywhere, and its model can be added again wherever the PSF is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.flags import BAD_BITS
from stream.core.psf import PsfModel, read_gradients, read_grids
from stream.core.records import F32, Table
from stream.photometry.stamps import add_stamps, nearest_pixels

F64 = NDArray[np.float64]
B1 = NDArray[np.bool_]

FIT_SIZE = 29  # px, side of the window that is fitted: the PSF models end 14 px from their centre
REACH = 48  # px; the wings of a star of magnitude 8 are at 1 DN a pixel here, further out the background sees them
# Share of the model's light by which any PSF model is wrong somewhere.
MODEL_ERROR = 0.02
PIECES = 12.0  # px; detections nearer than this to a brighter saturated star are pieces of it
MIN_PIXELS = 60  # usable ones in the window; fewer carry no fit of three unknowns
MAX_STARS = 500  # a field of the galactic centre must not cost seconds
MAX_SHIFT = 3.0  # px from the detection: a bled column pulls centroids along it
_STEPS = 6
_BLOCK = 256  # stars whose PSF grids stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Star:
    """A fitted star: place (px, first is 0) and flux (DN)."""

    x: float
    y: float
    flux: float


def saturated_stars(sources: Table, saturated: B1) -> tuple[F64, F64]:
    """Places (px) of detections on saturated pixels, brightest first, pieces of one star left out.

    Parameters
    ----------
    sources : ndarray of SOURCE_DTYPE
    saturated : ndarray of bool, (ny, nx)

    Returns
    -------
    x, y : ndarray, (n,)
        At most ``MAX_STARS``.
    """
    ny, nx = saturated.shape
    x, y = sources["x"].astype(float), sources["y"].astype(float)
    ok = (x > -0.5) & (y > -0.5) & (x < nx - 0.5) & (y < ny - 0.5)  # False where NaN
    x, y, light = x[ok], y[ok], np.nan_to_num(sources["ap_flux"][ok, -1].astype(float))
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    touched = np.zeros(len(x), bool)
    for dy in (-2, 0, 2):
        for dx in (-2, 0, 2):
            touched |= saturated[np.clip(iy + dy, 0, ny - 1), np.clip(ix + dx, 0, nx - 1)]
    rows = np.flatnonzero(touched)
    rows = rows[np.lexsort((rows, -light[rows]))][:MAX_STARS]
    kept: list[int] = []
    for row in rows.tolist():
        if all((x[row] - x[k]) ** 2 + (y[row] - y[k]) ** 2 > PIECES**2 for k in kept):
            kept.append(row)
    return x[kept], y[kept]


def bright_stars(sources: Table, psf: PsfModel, least_peak: float) -> list[Star]:
    """Clean stars, as photometry has them, whose peak is at least so many DN."""
    ny, nx = psf.shape
    peak = float(psf.stamp((nx - 1) / 2, (ny - 1) / 2).max())
    good = (sources["flags"] & BAD_BITS) == 0
    good &= (sources["flux"] * peak >= least_peak) & np.isfinite(sources["x"]) & np.isfinite(sources["y"])
    return [Star(*values) for values in sources[good][["x", "y", "flux"]].tolist()]


def fit_stars(
    image: F32, bad: B1, psf: PsfModel, places: tuple[F64, F64], noise: tuple[float, float]
) -> list[Star | None]:
    """Fit stars to their usable flanks.

    Parameters
    ----------
    image : ndarray, (ny, nx), float32
        DN, sky off; values of ``bad`` pixels do not count.
    bad : ndarray of bool, (ny, nx)
        Saturated and other pixels without a value; their neighbours are not fitted either.
    psf : PsfModel
        Of this image.
    places : (x, y)
        First guesses, px.
    noise : (sky variance DN^2, gain e-/DN)

    Returns
    -------
    list of Star or None
        None for what could not be fitted.
    """
    return [_fit(image, bad, psf, place, noise) for place in zip(*(v.tolist() for v in places), strict=True)]


def subtract_stars(image: F32, psf: PsfModel, stars: Sequence[Star]) -> None:
    """Subtract models of stars, in place; the PSF is read at each star's own place."""
    _add(image, psf, [(star.x, star.y) for star in stars], stars, -1.0)


def add_stars(image: F32, psf: PsfModel, places: Sequence[tuple[float, float]], stars: Sequence[Star]) -> None:
    """Add models of stars, in place; ``places`` say where in its own frame the PSF of each is read."""
    _add(image, psf, places, stars, 1.0)


def _add(image: F32, psf: PsfModel, places: Sequence[tuple[float, float]], stars: Sequence[Star], sign: float) -> None:
    for start in range(0, len(stars), _BLOCK):
        some = stars[start : start + _BLOCK]
        x, y, flux = np.array([(star.x, star.y, star.flux) for star in some]).T
        ix, iy = nearest_pixels(x, y)
        stamps = read_grids(_grids(psf, places[start : start + _BLOCK]), x - ix, y - iy, FIT_SIZE, psf.oversample)
        add_stamps(image, ix, iy, stamps * (sign * flux).astype(np.float32)[:, None, None])


def _window(shape: tuple[int, int], x: float, y: float) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The fitted window's part of the image, and the same part of the window."""
    (ny, nx), (cx, cy), half = shape, (round(x), round(y)), FIT_SIZE // 2
    y0, y1 = max(cy - half, 0), max(min(cy + half + 1, ny), 0)
    x0, x1 = max(cx - half, 0), max(min(cx + half + 1, nx), 0)
    top, left = half - cy, half - cx
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 + top, y1 + top), slice(x0 + left, x1 + left))


def _grids(psf: PsfModel, places: Sequence[tuple[float, float]]) -> F32:
    ny, nx = psf.shape
    x, y = np.array(places, float).T
    return psf.grids(np.clip(x, 0, nx - 1), np.clip(y, 0, ny - 1), FIT_SIZE)


def _fit(image: F32, bad: B1, psf: PsfModel, start: tuple[float, float], noise: tuple[float, float]) -> Star | None:
    """Gauss-Newton in flux and place; None where too little is usable or nothing positive is there."""
    outer, inner = _window((image.shape[0], image.shape[1]), *start)
    values, usable = np.zeros((FIT_SIZE, FIT_SIZE)), np.zeros((FIT_SIZE, FIT_SIZE), bool)
    values[inner], usable[inner] = image[outer], ~_with_rim(bad, outer)
    if int(usable.sum()) < MIN_PIXELS:
        return None
    values[~usable] = 0.0
    grids = _grids(psf, [start])
    cx, cy = round(start[0]), round(start[1])
    dx, dy, flux = start[0] - cx, start[1] - cy, 0.0
    for turn in range(_STEPS):
        shifts = np.array([dx]), np.array([dy])
        p, px, py = (a[0].astype(float) for a in read_gradients(grids, *shifts, FIT_SIZE, psf.oversample))
        light = max(flux, 0.0) * np.maximum(p, 0.0)
        weight = usable / (noise[0] + light / noise[1] + (MODEL_ERROR * light) ** 2)
        if turn == 0:
            flux = float((weight * p * values).sum() / max(float((weight * p * p).sum()), 1e-30))
            continue
        design = np.stack([p, flux * px, flux * py]).reshape(3, -1)
        weighted = design * weight.ravel()
        normal = weighted @ design.T + np.diag([1e-30, 1.0, 1.0])  # a prior of one px
        step = np.linalg.solve(normal, weighted @ (values - flux * p).ravel())
        flux += float(step[0])
        if not flux > 0:
            return None
        dx, dy = (float(d + np.clip(s, -0.5, 0.5)) for d, s in ((dx, step[1]), (dy, step[2])))
        if max(abs(cx + dx - start[0]), abs(cy + dy - start[1])) > MAX_SHIFT:
            return None
    return Star(cx + dx, cy + dy, flux)


def _with_rim(bad: B1, window: tuple[slice, slice]) -> B1:
    """Bad pixels of a window and their neighbours."""
    rows, columns = window
    y0, x0 = max(rows.start - 1, 0), max(columns.start - 1, 0)
    wide = bad[y0 : rows.stop + 1, x0 : columns.stop + 1]
    tall = wide.copy()
    tall[1:] |= wide[:-1]
    tall[:-1] |= wide[1:]
    out = tall.copy()
    out[:, 1:] |= tall[:, :-1]
    out[:, :-1] |= tall[:, 1:]
    return out[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]


def remove_rings(image: F32, bad: B1, stars: Sequence[Star]) -> None:
    """Subtract the medians of 1 px wide rings about stars, less the outermost ones' level, in place.

    What PSF models leave: the wings beyond their end. A transient is no ring and stays.
    """
    ny, nx = image.shape
    for star in stars:
        y0, y1 = max(int(star.y) - REACH, 0), min(int(star.y) + REACH + 1, ny)
        x0, x1 = max(int(star.x) - REACH, 0), min(int(star.x) + REACH + 1, nx)
        if y0 >= y1 or x0 >= x1:
            continue
        r = np.hypot(np.arange(x0, x1) - star.x, (np.arange(y0, y1) - star.y)[:, None])
        box = image[y0:y1, x0:x1]
        good = ~bad[y0:y1, x0:x1] & (r < REACH)
        ring, values = r[good].astype(np.intp), box[good]
        order = np.lexsort((values, ring))
        values, ring = values[order], ring[order]
        first = np.searchsorted(ring, np.arange(REACH))
        count = np.diff(np.append(first, len(ring)))
        known = count >= 6
        if known.sum() < 8:
            continue
        medians = values[(first + count // 2)[known]].astype(float)
        level = float(np.median(medians[-6:]))
        box -= np.interp(r, np.flatnonzero(known) + 0.5, medians - level, right=0.0).astype(np.float32)
