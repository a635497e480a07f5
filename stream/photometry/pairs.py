"""Pairs of places near each other: on a grid of cells as wide as the reach, a tree's overhead saved."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.core.compiled import compiled

F64 = NDArray[np.float64]
INT = NDArray[np.int64]

MOST_CELLS = 1000  # a side


def close_pairs(x: ArrayLike, y: ArrayLike, reach: float) -> tuple[INT, INT]:
    """Pairs i < j of places (n,), finite, at most ``reach`` apart, by i."""
    return _near(x, y, x, y, reach, same=True)


def cross_pairs(x: ArrayLike, y: ArrayLike, to_x: ArrayLike, to_y: ArrayLike, reach: float) -> tuple[INT, INT]:
    """Pairs (i, j) of a place (n,) and one of others (m,), all finite, at most ``reach`` apart, by i."""
    return _near(x, y, to_x, to_y, reach, same=False)


def _near(x: ArrayLike, y: ArrayLike, to_x: ArrayLike, to_y: ArrayLike, reach: float, *, same: bool) -> tuple[INT, INT]:
    places = np.ascontiguousarray(np.stack([x, y], axis=1), np.float64)
    others = places if same else np.ascontiguousarray(np.stack([to_x, to_y], axis=1), np.float64)
    none = np.zeros(0, np.int64)
    if not len(places) or not len(others):
        return none, none
    low, high = others.min(axis=0), others.max(axis=0)
    side = max(reach, float((high - low).max()) / MOST_CELLS, 1e-9)
    width, height = ((high - low) / side).astype(np.int64) + 1
    grid = (low[0], low[1], side, int(width), int(height))
    order, start = np.empty(len(others), np.int64), np.zeros(width * height + 1, np.int64)
    _sort(others, grid, order, start)
    first, second = np.empty(4 * len(places), np.int64), np.empty(4 * len(places), np.int64)
    n = _find(places, others, order, start, grid, (reach, same), first, second)
    if n > len(first):
        first, second = np.empty(n, np.int64), np.empty(n, np.int64)
        _find(places, others, order, start, grid, (reach, same), first, second)
    return first[:n], second[:n]


@compiled
def _sort(places: F64, grid: tuple[float, float, float, int, int], order: INT, start: INT) -> None:
    """Places (n,) by cell, in a cell as they come, into ``order``; those of cell c begin at ``start[c]`` (zeros)."""
    x0, y0, side, width, _ = grid
    n = len(places)
    cell = np.empty(n, np.int64)
    for i in range(n):
        cell[i] = int((places[i, 1] - y0) / side) * width + int((places[i, 0] - x0) / side)
        start[cell[i]] += 1
    total = 0
    for c in range(len(start)):
        total += start[c]
        start[c] = total
    # From the last one on each takes the last free place of its cell, which at the end is the first.
    for i in range(n - 1, -1, -1):
        start[cell[i]] -= 1
        order[start[cell[i]]] = i


@compiled
def _find(
    places: F64,
    others: F64,
    order: INT,
    start: INT,
    grid: tuple[float, float, float, int, int],
    wanted: tuple[float, bool],
    first: INT,
    second: INT,
) -> int:
    """How many pairs there are; as many as fit go into ``first`` and ``second``."""
    x0, y0, side, width, height = grid
    reach, same = wanted
    n = 0
    for i in range(len(places)):
        x, y = places[i, 0], places[i, 1]
        cx, cy = math.floor((x - x0) / side), math.floor((y - y0) / side)
        for row in range(max(cy - 1, 0), min(cy + 2, height)):
            left, right = min(max(cx - 1, 0), width), max(min(cx + 2, width), 0)
            for k in range(start[row * width + left], start[row * width + right]):
                j = order[k]
                dx, dy = others[j, 0] - x, others[j, 1] - y
                if dx * dx + dy * dy <= reach * reach and not (same and j <= i):
                    if n < len(first):
                        first[n], second[n] = i, j
                    n += 1
    return n
