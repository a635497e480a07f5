"""The empty sky of a difference: its slow background, its noise, and the sizes of things that grow.

Both are read off S_corr, not off D: S_corr has averaged over the PSF already, so every third pixel says all, and
sources that did not change are gone from it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from stream.core.records import F32
from stream.subtract import blocks
from stream.subtract.floor import CELL, STEP, excess_noise

F64 = NDArray[np.float64]

NOISE_CELLS = 0.7  # background cells; Gaussian width over which the noise is averaged: its map varies more slowly
_ROUGH_CELLS = 5  # cells a side whose median says what is usual about a cell
_UNUSUAL = 0.08  # of noise beside that: wings of a bright star, not the noise of all
TRUST = 0.7, 1.4  # the propagated noise is corrected by no more than this
_MIN_SHARE = 0.25  # of a cell's pixels that must be usable


def settle(
    data: F32, sigma: F32, score: F32, scorr: F32, blank: NDArray[np.bool_], psf_sum: float, cell: int = 128
) -> F32 | None:
    """Take the slow background out, scale the noise to that of the empty sky, blank what cannot be trusted; in place.

    What is left around bright sources is no noise of the sky; returned is its factor (``excess_noise``), not applied.

    Parameters
    ----------
    data, sigma, score, scorr : ndarray, (ny, nx), float32
        D and its noise (DN), S and S_corr.
    blank : ndarray of bool, (ny, nx)
        Becomes NaN in all four.
    psf_sum : float
        Sum of P_D: a level of 1 DN in D is so much in S.
    cell : int
        Side (px) of the cells in which the level is measured; far wider than any source.
    """
    level, scatter, excess = sky_of(scorr, blank, cell)
    to_rows, to_columns = _matrices(scorr.shape, level.shape)
    by_column = [np.asarray(v, np.float32) @ to_columns.T for v in (level, scatter)]
    for start in range(0, len(data), 64):
        rows = slice(start, start + 64)
        offset, width = (to_rows[rows] @ v for v in by_column)
        blocks.level_off(offset, width, 1.0 / psf_sum, data[rows], sigma[rows], score[rows], scorr[rows])
    flat = np.flatnonzero(blank)
    for image in (data, sigma, score, scorr):
        image.reshape(-1)[flat] = np.nan
    return excess


def sky_of(scorr: F32, blank: NDArray[np.bool_], cell: int) -> tuple[F64, F64, F32 | None]:
    """Level and scatter of S_corr's empty sky in cells, (n_y, n_x) each, and what exceeds it (``excess_noise``).

    Clipped medians, clipped deviations; the latter after what exceeds a first estimate of them was scaled to it, so
    that residuals of bright stars are counted once. Cells without enough usable pixels lie on the plane through the
    others; without any: 0 and 1.
    """
    cells = max(1, round(scorr.shape[0] / cell)), max(1, round(scorr.shape[1] / cell))
    sample = scorr[::STEP, ::STEP].copy()
    sample[blank[::STEP, ::STEP]] = np.nan
    level, scatter = _in_cells(sample, cells)
    if not np.isfinite(level).any():
        return np.zeros(cells), np.ones(cells), None
    level, rough = _fill(level), np.clip(_usual(_fill(scatter)), *TRUST)
    to_rows, to_columns = (m[::STEP] for m in _matrices(scorr.shape, cells))
    off, width = (to_rows @ (np.asarray(v, np.float32) @ to_columns.T) for v in (level, rough))
    sample -= off
    excess = excess_noise(np.asarray(sample / width, np.float32))
    if excess is not None:
        side = CELL // STEP
        ny, nx = sample.shape
        factor = np.repeat(np.repeat(excess, side, axis=0), side, axis=1)[:ny, :nx]
        sample /= factor
        again = _in_cells(sample, cells, factor > 1)[1]
        scatter = np.where(np.isfinite(again), again, scatter)
    return level, np.clip(_smoothed(_fill(scatter)), *TRUST), excess


def _in_cells(sample: F32, cells: tuple[int, int], wanted: NDArray[np.bool_] | None = None) -> tuple[F64, F64]:
    """Level and scatter in so many cells; NaN in those without enough values, or without a ``wanted`` one."""
    level, scatter = np.full(cells, np.nan), np.full(cells, np.nan)
    edges_y, edges_x = (np.linspace(0, n, k + 1).astype(int) for n, k in zip(sample.shape, cells, strict=True))
    for j in range(cells[0]):
        for i in range(cells[1]):
            cell = np.s_[edges_y[j] : edges_y[j + 1], edges_x[i] : edges_x[i + 1]]
            if wanted is not None and not wanted[cell].any():
                continue
            values = sample[cell].ravel()
            known = np.sort(values[np.isfinite(values)])
            if len(known) >= max(_MIN_SHARE * values.size, 12):
                level[j, i], scatter[j, i] = _clipped(known)
    return level, scatter


def _clipped(ordered: F32) -> tuple[float, float]:
    """Middle and spread of ordered values, those of sources and defects left out."""
    low, middle, high = (float(v) for v in ordered[(np.array([0.1587, 0.5, 0.8413]) * (len(ordered) - 1)).astype(int)])
    spread = 0.5 * (high - low)
    kept = ordered[np.searchsorted(ordered, middle - 3 * spread) : np.searchsorted(ordered, middle + 3 * spread)]
    if len(kept) < 3 or spread == 0:
        return middle, spread
    # A normal variate cut at 3 sigma has 0.9866 of its standard deviation.
    return float(kept.mean(dtype=np.float64)), float(kept.std(dtype=np.float64)) / 0.9866


def _usual(cells: F64) -> F64:
    return np.asarray(ndimage.median_filter(cells, _ROUGH_CELLS, mode="nearest"), float)


def _smoothed(cells: F64) -> F64:
    """Weighted means of neighbouring cells; a bright star's wings in one of them are not the noise of all."""
    usual = _usual(cells)
    weight = (np.abs(cells - usual) < _UNUSUAL).astype(float)
    total, known = (ndimage.gaussian_filter(v, NOISE_CELLS, mode="nearest") for v in (weight * cells, weight))
    return np.where(known > 0.05, total / np.maximum(known, 0.05), usual)


def _matrices(shape: tuple[int, ...], cells: tuple[int, ...]) -> list[F32]:
    """What makes an image's rows, and columns, of values in cells."""
    sizes = zip(shape, cells, strict=True)
    return [np.asarray(_interpolation(_middles(n, k), n), np.float32) for n, k in sizes]


def _middles(n: int, cells: int) -> F64:
    edges = np.linspace(0, n, cells + 1)
    return np.asarray((edges[1:] + edges[:-1]) / 2 - 0.5, float)


def _fill(level: F64) -> F64:
    """Cells without a value from the plane (of few cells: the median) of those that have one."""
    known = np.isfinite(level)
    if known.all():
        return level
    if known.sum() < 6:
        return np.where(known, level, np.median(level[known]))
    j, i = np.indices(level.shape)
    terms = np.stack([np.ones(level.shape), i, j], axis=-1)
    plane = terms @ np.linalg.lstsq(terms[known], level[known], rcond=None)[0]
    return np.where(known, level, plane)


def _interpolation(knots: F64, n: int) -> F64:
    """(n, n_knots) matrix of a cubic or linear interpolating spline, straight beyond the outermost knots."""
    if len(knots) == 1:
        return np.ones((n, 1))
    spline = make_interp_spline(knots, np.eye(len(knots)), k=1 if len(knots) < 4 else 3)
    place = np.arange(n)
    inside = np.clip(place, knots[0], knots[-1])
    beyond = place - inside
    slope = spline.derivative()
    matrix: F64 = spline(inside) + beyond[:, None] * slope(inside)
    return matrix


def grow(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """The mask widened by ``radius`` px in a square; work goes with the number of pixels set."""
    out = mask.copy()
    ny, nx = mask.shape
    place = np.flatnonzero(mask)
    x, y = place % nx, place // nx
    flat = out.reshape(-1)
    columns = [np.clip(x + dx, 0, nx - 1) for dx in range(-radius, radius + 1)]
    for dy in range(-radius, radius + 1):
        rows = np.clip(y + dy, 0, ny - 1) * nx
        for column in columns:
            flat[rows + column] = True
    return out
