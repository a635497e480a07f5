"""Models of the bright common stars, taken out of both images before anything is interpolated or convolved.

Stars of a sharp image are undersampled: what a convolution or an interpolation makes of them depends on where in its
pixel the star lies, which no kernel can know. A PSF model does. So a star of flux F in the reference loses F times the
reference's PSF there, and F times the science image's PSF (and the flux scale) here; what the two subtractions leave is
small, and is subtracted like everything else. Fluxes and places need not be right: the two models are one another's
difference-free counterpart whatever they are, as exactly as the PSFs are known, which proper subtraction needs anyway.
A star that brightened keeps its change.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.compiled import compiled
from stream.core.pixelmap import PixelMap
from stream.core.psf import STAMP, PsfModel
from stream.core.records import F32, Table

F64 = NDArray[np.float64]

LEAST_SNR = 50.0  # fainter stars leave less than their noise, however their PSFs are treated
MOST = 5000  # the brightest; a crowd's faint ones would cost more than they leave
_ALONE = 3.0  # px from a saturated star, which is fitted on its own
_TURNS = 4  # of the inversion of a map; each takes a factor of the map's bend, some 1e-3


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
    stars : ndarray, (n, 3), float64
        x, y (px), flux (DN).
    snr : float
        Of the brightest star that is not among them for their number; ``LEAST_SNR`` if all brighter ones are.
    """
    if len(sources) == 0:
        return np.zeros((0, 3)), LEAST_SNR
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
    return np.ascontiguousarray(table[rows[:MOST], :3]), left


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


def paint(image: F32, psf: PsfModel, x: F64, y: F64, flux: F64, where: tuple[F64, F64] | None = None) -> None:
    """Add stars (n,), cut at 25 x 25 px, in place; ``where``: in its own frame, the places at which the PSF is read."""
    ny, nx = image.shape
    reach = STAMP // 2 + 1
    inside = np.isfinite(x) & np.isfinite(y) & np.isfinite(flux)
    inside &= (np.nan_to_num(x) > -reach) & (np.nan_to_num(x) < nx + reach)
    inside &= (np.nan_to_num(y) > -reach) & (np.nan_to_num(y) < ny + reach)
    own_x, own_y = where or (x, y)
    psf_ny, psf_nx = psf.shape
    weights = psf.coefficients(np.clip(own_x[inside], 0, psf_nx - 1), np.clip(own_y[inside], 0, psf_ny - 1))
    weights = np.ascontiguousarray(weights * flux[inside, None], np.float32)
    grids = np.ascontiguousarray(psf.term_grids(STAMP))
    _paint(image, grids, weights, np.ascontiguousarray(x[inside]), np.ascontiguousarray(y[inside]), psf.oversample)


@compiled
def _taps(t: float, out: F32) -> None:
    """The four cubic B-spline weights at a fraction."""
    out[0] = (1 - t) ** 3 / 6
    out[1] = (4 - 6 * t**2 + 3 * t**3) / 6
    out[2] = (4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3) / 6
    out[3] = t**3 / 6


@compiled
def _nodes(weights: F32, grids: F32, low_y: int, low_x: int, out: F32) -> None:
    """The nodes (k, k) of one star's PSF from (low_y, low_x) on: ``weights`` (n_terms,) of ``grids``; 0 beyond them."""
    m, span = grids.shape[1], out.shape[0]
    first, last = max(-low_x, 0), min(m - low_x, span)
    for j in range(span):
        line = out[j]
        line[:] = np.float32(0)
        if low_y + j < 0 or low_y + j >= m or first >= last:
            continue
        inner = line[first:last]
        for term in range(len(weights)):
            weight, part = weights[term], grids[term, low_y + j, low_x + first : low_x + last]
            for i in range(len(inner)):
                inner[i] += weight * part[i]


@compiled
def _paint(image: F32, grids: F32, weights: F32, xs: F64, ys: F64, oversample: int) -> None:
    """Add stars whose PSFs are ``weights`` (n, n_terms) of spline coefficients ``grids`` (n_terms, m, m)."""
    ny, nx = image.shape
    middle, half = grids.shape[1] // 2, STAMP // 2
    span = oversample * (STAMP - 1) + 4
    nodes = np.empty((span, span), np.float32)
    line, stamp = np.empty(span, np.float32), np.empty(STAMP, np.float32)
    across, along = np.empty(4, np.float32), np.empty(4, np.float32)
    for k in range(len(xs)):
        ix, iy = math.floor(xs[k] + 0.5), math.floor(ys[k] + 0.5)
        # Node position of the stamp's first pixel (``PsfModel``).
        first_x = (-half - (xs[k] - ix)) * oversample + middle
        first_y = (-half - (ys[k] - iy)) * oversample + middle
        low_x, low_y = math.floor(first_x), math.floor(first_y)
        _taps(first_x - low_x, across)
        _taps(first_y - low_y, along)
        _nodes(weights[k], grids, low_y - 1, low_x - 1, nodes)
        left, right = max(ix - half, 0), min(ix + half + 1, nx)
        for j in range(STAMP):
            y = iy - half + j
            if y < 0 or y >= ny or left >= right:
                continue
            n = j * oversample
            a, b, c, d = nodes[n], nodes[n + 1], nodes[n + 2], nodes[n + 3]
            for i in range(span):
                line[i] = (along[0] * a[i] + along[1] * b[i]) + (along[2] * c[i] + along[3] * d[i])
            for i in range(STAMP):
                n = i * oversample
                stamp[i] = (across[0] * line[n] + across[1] * line[n + 1]) + (
                    across[2] * line[n + 2] + across[3] * line[n + 3]
                )
            target, some = image[y, left:right], stamp[left - (ix - half) :]
            for i in range(len(target)):
                target[i] += some[i]
