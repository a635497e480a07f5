"""Smooth maps of images: medians of square cells, and cells spread over pixels again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def cell_medians(image: F32, cell: int) -> F32:
    """Medians (float32) of cells of ``cell`` x ``cell`` px from [0, 0] on, those at the far edges smaller.

    NaN has no say; a cell of nothing but NaN is NaN.
    """
    ny, nx = image.shape
    rows, columns = -(-ny // cell), -(-nx // cell)
    medians = np.empty((rows, columns), np.float32)
    band = np.full((cell, columns * cell), np.nan, np.float32)
    for i in range(rows):
        part = image[i * cell : (i + 1) * cell]
        band[: len(part), :nx] = part
        band[len(part) :] = np.nan
        values = np.sort(band.reshape(cell, columns, cell).swapaxes(0, 1).reshape(columns, -1), axis=1)  # NaN last
        known = np.count_nonzero(~np.isnan(values), axis=1)
        low, high = np.maximum((known - 1) // 2, 0), np.minimum(known // 2, values.shape[1] - 1)
        each = np.arange(columns)
        medians[i] = (values[each, low] + values[each, high]) / 2
    return medians


def cell_means(image: F32, cell: int) -> F32:
    """Means (float32) of the same cells; NaN has no say, a cell of nothing but NaN is NaN."""
    rows, columns = (np.arange(0, n, cell) for n in image.shape)
    known = ~np.isnan(image)
    sums, counts = (
        np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
        for values in (np.where(known, image, 0).astype(np.float64), known.astype(np.float64))
    )
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def cell_nodes(image: F32, cell: int) -> F32:
    """The cells (float32) that ``spread_cells`` would make this map of: its values at the cells' centres."""
    y, x = cell_centres(image.shape[0], cell), cell_centres(image.shape[1], cell)
    rows, columns = ((np.floor(place).astype(int), np.ceil(place).astype(int)) for place in (y, x))
    nodes = np.zeros((len(y), len(x)))
    for row in rows:
        for column in columns:
            nodes += image[np.ix_(row, column)]
    return (nodes / 4).astype(np.float32)


def filled(grid: F32) -> F32:
    """The grid with NaN cells replaced by the mean of their known neighbours, from the rim of a hole inwards.

    A grid that is all NaN stays so.
    """
    grid = grid.copy()
    while np.isnan(grid).any() and not np.isnan(grid).all():
        padded = np.pad(grid, 1, constant_values=np.nan)
        around = np.stack(
            [padded[1 + dy : 1 + dy + grid.shape[0], 1 + dx : 1 + dx + grid.shape[1]]
             for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        )  # fmt: skip
        counts = np.count_nonzero(~np.isnan(around), axis=0)
        means = np.nansum(around, axis=0) / np.maximum(counts, 1)
        grid = np.where(np.isnan(grid) & (counts > 0), means, grid).astype(np.float32)
    return grid


def spread_cells(grid: F32, cell: int, shape: tuple[int, int]) -> F32:
    """A map of cells read at every pixel: bilinear between the cells' centres, constant beyond the outermost."""
    along_y = _interpolate(grid, _places(shape[0], cell))
    return np.ascontiguousarray(_interpolate(np.ascontiguousarray(along_y.T), _places(shape[1], cell)).T)


def cell_centres(n: int, cell: int) -> NDArray[np.float64]:
    """Pixel place of the centre of every cell along an axis of ``n`` px."""
    starts = np.arange(0, n, cell)
    return np.asarray((starts + np.minimum(starts + cell, n) - 1) / 2, np.float64)


def _places(n: int, cell: int) -> NDArray[np.float64]:
    """Fractional cell number of every pixel, counted between the cells' centres."""
    centres = cell_centres(n, cell)
    return np.interp(np.arange(n), centres, np.arange(len(centres)))


def _interpolate(grid: F32, place: NDArray[np.float64]) -> F32:
    base = np.minimum(np.floor(place).astype(int), max(len(grid) - 2, 0))
    fraction = (place - base).astype(np.float32)[:, None]
    after = np.minimum(base + 1, len(grid) - 1)
    return np.asarray(grid[base] * (1 - fraction) + grid[after] * fraction, dtype=np.float32)
