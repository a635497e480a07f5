"""Models of the bright common stars, taken out of both images before anything is interpolated or convolved.

Stars of a sharp image are undersampled: what a convolution or an interpolation makes of them depends on where in its
pixel the star lies, which no kernel can know. A PSF model does. So a star of flux F in the reference loses F times the
reference's PSF there, and F times the science image's PSF (and the flux scale) here; what the two subtractions leave is
small, and is subtracted like everything else. Fluxes and places need not be right: the two models are one another's
difference-free counterpart whatever they are, as exactly as the PSFs are known, which proper subtraction needs anyway.
A star that brightened keeps its change.

What is left of a sharp image's brightest stars then is their place: the air moves stars a hundred pixels apart by
0.01 px against each other, which no smooth map knows, and that is four times the noise of a place at S/N 500. A star
says it itself (``own_places``).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.compiled import compiled
from stream.core.pixelmap import PixelMap
from stream.core.psf import STAMP, PsfModel
from stream.core.psfread import PsfTable, psf_table, psf_work, read_values
from stream.core.records import F32, Table
from stream.photometry import FADING, FADING_STEPS, STAR_BAD_BITS

F64 = NDArray[np.float64]

# Fainter stars leave less than their noise, however their PSFs are treated: in 1.6 px of seeing, sharper than nearly
# all images, stars of S/N 80 in the reference left 1.3 times their variance, those of S/N 50 1.1 times.
LEAST_SNR = 30.0
MOST = 40_000  # the brightest; each takes 4 us an image
_ALONE = 3.0  # px from a saturated star, which is fitted on its own
_SEEN = 30.0  # S/N in the science image from which a star's own place can matter
_SAME = 0.5  # px between a model's place and the source that it is
_STAR = 0.3  # |sharp| of what is a star: the place of a galaxy depends on the seeing
_ODD = 4.0  # sigma: a place that differs more has another reason than the air (a blend, something new beside the star)
_TURNS = 3  # of the inversion of a map; each takes a factor of the map's bend, some 1e-3


def modelled_stars(sources: Table, full: NDArray[np.bool_], saturated: F64) -> tuple[F64, float]:
    """Stars to be modelled, and what is left.

    Parameters
    ----------
    sources : Table
        Of the reference: places and PSF fluxes with errors.
    full : ndarray of bool, (ny, nx)
        Its plateaus.
    saturated : ndarray, (m, 3)
        Stars that have been taken out already.

    Returns
    -------
    stars : ndarray, (n, 4), float64
        x, y (px), flux (DN), S/N.
    snr : float
        Of the brightest star that is not among them for their number; ``LEAST_SNR`` if all brighter ones are.
    """
    if len(sources) == 0:
        return np.zeros((0, 4)), LEAST_SNR
    ny, nx = full.shape
    table = np.stack([np.asarray(sources[name], float) for name in ("x", "y", "flux", "sigflux")], axis=1)
    ok = np.isfinite(table).all(axis=1) & (table[:, 3] > 0)
    snr = np.where(ok, table[:, 2] / np.where(ok, table[:, 3], 1.0), 0.0)
    ok &= snr > LEAST_SNR
    x, y = (np.where(ok, table[:, k], 0.0) for k in (0, 1))
    ok &= (x > -0.5) & (y > -0.5) & (x < nx - 0.5) & (y < ny - 0.5)
    ix, iy = (np.clip(np.rint(v), 0, n - 1).astype(np.intp) for v, n in ((x, nx), (y, ny)))
    ok &= ~full[iy, ix]
    if len(saturated):
        ok &= cKDTree(saturated[:, :2]).query(np.stack([x, y], axis=1))[0] > _ALONE
    rows = np.flatnonzero(ok)
    rows = rows[np.argsort(-snr[rows], kind="stable")]
    left = float(snr[rows[MOST]]) if len(rows) > MOST else LEAST_SNR
    rows = rows[:MOST]
    return np.column_stack([table[rows, :3], snr[rows]]), left


def places_on(pixel_map: PixelMap, x: F64, y: F64) -> tuple[F64, F64]:
    """Target places (n,) whose source places are ``x``, ``y``; NaN where the map knows none."""
    if len(x) == 0 or not pixel_map.reaches:
        return np.full(len(x), np.nan), np.full(len(x), np.nan)
    gx, gy = (v.ravel() for v in np.meshgrid(pixel_map.xs, pixel_map.ys))
    there = np.stack([gx + pixel_map.shift_x.ravel(), gy + pixel_map.shift_y.ravel()], axis=1)
    # The straight part of the inverse; what bends is found step by step.
    terms = np.concatenate([there, np.ones((len(there), 1))], axis=1)
    straight = np.linalg.lstsq(terms, np.stack([gx, gy], axis=1), rcond=None)[0]
    wanted = np.stack([x, y], axis=1)
    place = wanted @ straight[:2] + straight[2]
    for _ in range(_TURNS):
        seen = np.stack(pixel_map.at(place[:, 0], place[:, 1]), axis=1)
        place = place + (wanted - seen) @ straight[:2]
    return place[:, 0], place[:, 1]


def own_places(
    here: tuple[F64, F64], errors: tuple[F32, ...], snr: F64, sources: Table, widths: tuple[float, float]
) -> tuple[F64, F64]:
    """Places of the modelled stars in the science image as the map and the stars themselves say them.

    Parameters
    ----------
    here : (n,), (n,)
        Their places by the map, px; NaN stays.
    errors : (n,), (n,)
        1-sigma error of the map there, px.
    snr : ndarray, (n,)
        Of the stars in the reference.
    sources : Table
        Of the science image.
    widths : (science, reference)
        FWHM, px.

    Returns
    -------
    x, y : ndarray, (n,)
        The mean of both by their errors, a place measured in photons alone: sigma of the PSF over S/N (King 1983).
    """
    x, y = here[0].copy(), here[1].copy()
    seen = sources["snr"] > _SEEN
    seen &= np.isfinite(sources["x"]) & np.isfinite(sources["y"])
    seen &= (sources["flags"] >= 0) & (sources["flags"] & STAR_BAD_BITS == 0) & ~(np.abs(sources["sharp"]) > _STAR)
    rows, known = sources[seen], np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(rows) == 0 or len(known) == 0:
        return x, y
    places, stars = np.stack([x[known], y[known]], axis=1), np.stack([rows["x"], rows["y"]], axis=1)
    nearest = cKDTree(stars).query(places, distance_upper_bound=_SAME)[1]
    back = cKDTree(places).query(stars)[1]
    found = np.flatnonzero(nearest < len(rows))
    found = found[back[nearest[found]] == found]
    k, j = known[found], nearest[found]
    photons = np.hypot(widths[0] / rows["snr"][j], widths[1] / snr[k]) / 2.355
    off = stars[j] - places[found]
    variance = np.stack([errors[0][k], errors[1][k]], axis=1).astype(float) ** 2
    total = variance + photons[:, None] ** 2
    usual = (off**2 < _ODD**2 * total).all(axis=1)
    off = off * (variance / total) * usual[:, None]
    x[k] += off[:, 0]
    y[k] += off[:, 1]
    return x, y


def paint(image: F32, psf: PsfModel, x: F64, y: F64, flux: F64, where: tuple[F64, F64] | None = None) -> None:
    """Add stars (n,), faded out at 12 px (``FADING``), in place.

    ``where``: in its own frame, the places at which the PSF is read.
    """
    ny, nx = image.shape
    reach = STAMP // 2 + 1
    inside = np.isfinite(x) & np.isfinite(y) & np.isfinite(flux)
    inside &= (np.nan_to_num(x) > -reach) & (np.nan_to_num(x) < nx + reach)
    inside &= (np.nan_to_num(y) > -reach) & (np.nan_to_num(y) < ny + reach)
    own_x, own_y = where or (x, y)
    psf_ny, psf_nx = psf.shape
    weights = psf.coefficients(np.clip(own_x[inside], 0, psf_nx - 1), np.clip(own_y[inside], 0, psf_ny - 1))
    weights = np.ascontiguousarray(weights * flux[inside, None], np.float32)
    _paint(
        image, weights, np.ascontiguousarray(x[inside]), np.ascontiguousarray(y[inside]), psf_table(psf, STAMP), FADING
    )


@compiled
def _paint(image: F32, weights: F32, xs: F64, ys: F64, table: PsfTable, fading: F32) -> None:
    """Add stars whose PSFs are ``weights`` (n, n_terms) of the table's terms."""
    ny, nx = image.shape
    half = STAMP // 2
    work, stamp = psf_work(table), np.empty((STAMP, STAMP), np.float32)
    for k in range(len(xs)):
        ix, iy = math.floor(xs[k] + 0.5), math.floor(ys[k] + 0.5)
        read_values(table, weights[k], xs[k] - ix, ys[k] - iy, work, stamp)
        left, right = max(ix - half, 0), min(ix + half + 1, nx)
        for y in range(max(iy - half, 0), min(iy + half + 1, ny)):
            target, light = image[y, left:right], stamp[y - iy + half, left - ix + half :]
            down, first = (y - ys[k]) ** 2, left - xs[k]
            for i in range(len(target)):
                target[i] += light[i] * fading[int(FADING_STEPS * (down + (first + i) ** 2))]
