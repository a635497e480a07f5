"""Low-order match of the background of a difference, and the sizes of things that grow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from stream.core.records import F32


def mesh_level(image: F32, ignore: NDArray[np.bool_], cell: int = 256, min_pixels: int = 500) -> F32:
    """Slowly varying level of an image: clipped medians of square cells, splined back to every pixel.

    Parameters
    ----------
    image : ndarray, (ny, nx), float32
        May hold NaN.
    ignore : ndarray of bool, (ny, nx)
        Pixels that say nothing about the level: sources, defects.
    cell : int
        Side of the cells, px. 256 is far wider than any source and follows the residual moonlight gradients.
    min_pixels : int
        A cell with fewer usable sampled pixels (one in nine is looked at) lies on the plane through the others.

    Returns
    -------
    ndarray, (ny, nx), float32
        Zero where nothing at all could be measured.
    """
    ny, nx = image.shape
    edges_y = np.linspace(0, ny, max(1, round(ny / cell)) + 1).astype(int)
    edges_x = np.linspace(0, nx, max(1, round(nx / cell)) + 1).astype(int)
    level = np.full((len(edges_y) - 1, len(edges_x) - 1), np.nan)
    min_pixels = min(min_pixels, (ny // (len(edges_y) - 1)) * (nx // (len(edges_x) - 1)) // 20)
    for j in range(level.shape[0]):
        for i in range(level.shape[1]):
            box = np.s_[edges_y[j] : edges_y[j + 1] : 3, edges_x[i] : edges_x[i + 1] : 3]
            values = image[box][~ignore[box]]
            values = values[np.isfinite(values)]
            if len(values) > min_pixels:
                level[j, i] = _clipped_median(values)
    if not np.isfinite(level).any():
        return np.zeros(image.shape, np.float32)
    level = _fill(level)
    fine_y = _interpolation((edges_y[1:] + edges_y[:-1]) / 2 - 0.5, ny)
    fine_x = _interpolation((edges_x[1:] + edges_x[:-1]) / 2 - 0.5, nx)
    out: F32 = (fine_y @ level).astype(np.float32) @ fine_x.T.astype(np.float32)
    return out


def _fill(level: NDArray[np.float64]) -> NDArray[np.float64]:
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


def _clipped_median(values: F32) -> float:
    centre = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - centre)))
    kept = values[np.abs(values - centre) <= 3 * spread]
    return float(np.median(kept)) if len(kept) else centre


def _interpolation(knots: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """(n, n_knots) matrix of a cubic or linear interpolating spline, straight beyond the outermost knots."""
    if len(knots) == 1:
        return np.ones((n, 1))
    spline = make_interp_spline(knots, np.eye(len(knots)), k=1 if len(knots) < 4 else 3)
    place = np.arange(n)
    inside = np.clip(place, knots[0], knots[-1])
    beyond = place - inside
    slope = spline.derivative()
    matrix: NDArray[np.float64] = spline(inside) + beyond[:, None] * slope(inside)
    return matrix


def grow(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """The mask widened by ``radius`` px in a square; work goes with the number of pixels set."""
    out = mask.copy()
    y, x = np.nonzero(mask)
    ny, nx = mask.shape
    flat = out.reshape(-1)
    columns = [np.clip(x + dx, 0, nx - 1) for dx in range(-radius, radius + 1)]
    for dy in range(-radius, radius + 1):
        rows = np.clip(y + dy, 0, ny - 1) * nx
        for column in columns:
            flat[rows + column] = True
    return out
