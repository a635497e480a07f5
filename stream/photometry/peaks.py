"""Peaks of a filtered image and the pixels that belong to each: a watershed on the few pixels above a threshold.

Every pixel points to its highest neighbour; following the pointers ends in a peak, and all pixels that end in one are
its basin. A peak that does not stand out of the saddle towards a higher one by more than the noise there explains is
part of that one (the prominence takes the place of SExtractor's contrast between deblending levels: it knows the
photon noise of a bright star's wings, where a fixed contrast lets noise through beside faint stars and hides faint
stars beside bright ones). All steps work on all pixels at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.records import F32

INT = NDArray[np.intp]
BOOL = NDArray[np.bool_]

MERGE_ROUNDS = 12  # chains of insignificant peaks; each round halves them at least


@dataclass(frozen=True, slots=True)
class Basins:
    """``peak`` (n,): position in the list of pixels of each basin's highest one; ``owner``: basin of each pixel."""

    peak: INT
    owner: INT


def _neighbours(pixel: INT, nx: int) -> list[tuple[INT, INT]]:
    """Pairs (i, j) of list positions that touch, each once: eastern, and the three below."""
    n = len(pixel)
    column = pixel % nx
    pairs = []
    east = np.flatnonzero((np.diff(pixel) == 1) & (column[:-1] < nx - 1))
    pairs.append((east, east + 1))
    first = np.searchsorted(pixel, pixel + (nx - 1))
    here = np.arange(n)
    for k in range(3):  # the first at or behind the south-western pixel, and the two behind that one
        other = np.minimum(first + k, n - 1)
        offset = pixel[other] - pixel - nx
        below = (np.abs(offset) <= 1) & (offset == column[other] - column)  # one row further, not two or the same
        touching = np.flatnonzero(below & (first + k < n))
        pairs.append((here[touching], other[touching]))
    return pairs


def find_basins(
    pixel: INT, value: F32, nx: int, least: F32, *, fraction: float = 0.0, together: BOOL | None = None
) -> Basins:
    """Divide pixels above a threshold among their significant peaks.

    Parameters
    ----------
    pixel : ndarray, (n,)
        Flat indices of the pixels, ascending.
    value : ndarray, (n,), float32
        Filtered image there.
    nx : int
        Image's width.
    least : ndarray, (n,), float32
        Prominence that a peak at each pixel needs at least, in units of ``value``.
    fraction : float
        ... and as part of the saddle's value.
    together : ndarray of bool, (n,), optional
        Peaks on such pixels (saturated ones) are merged into any higher one that they touch.

    Returns
    -------
    Basins
        In ascending order of their peaks' pixels.
    """
    n = len(pixel)
    if not n:
        return Basins(np.zeros(0, np.intp), np.zeros(0, np.intp))
    pairs = _neighbours(pixel, nx)
    best, height = np.arange(n), value.copy()
    for i, j in pairs:
        for low, high in ((i, j), (j, i)):
            better = (value[high] > height[low]) | ((value[high] == height[low]) & (high > best[low]))
            best[low[better]] = high[better]
            height[low[better]] = value[high[better]]
    best = _roots(best)
    peaks, owner = _numbered(best)
    parent = _merge(pairs, value, peaks, owner, least[peaks], fraction, None if together is None else together[peaks])
    kept, renumbered = _numbered(parent)
    return Basins(peaks[kept], renumbered[owner])


def _numbered(pointer: INT) -> tuple[INT, INT]:
    """The places that point to themselves, and for each place the number of the one that it points to."""
    kept = np.flatnonzero(pointer == np.arange(len(pointer)))
    number = np.zeros(len(pointer), np.intp)
    number[kept] = np.arange(len(kept))
    return kept, number[pointer]


def _roots(pointer: INT) -> INT:
    while True:
        further = pointer[pointer]
        if np.array_equal(further, pointer):
            return pointer
        pointer = further


def _merge(
    pairs: list[tuple[INT, INT]],
    value: F32,
    peaks: INT,
    owner: INT,
    least: F32,
    fraction: float,
    together: BOOL | None,
) -> INT:
    """Basin into which each basin goes, itself if its peak is significant."""
    n = len(peaks)
    parent = np.arange(n)
    borders = []
    for i, j in pairs:
        a, b = owner[i], owner[j]
        apart = np.flatnonzero(a != b)
        borders.append((a[apart], b[apart], np.minimum(value[i[apart]], value[j[apart]])))
    first, second, saddle = (np.concatenate(part) for part in zip(*borders, strict=True))
    height = value[peaks]
    # Higher peak first; of equal ones the later, as pixels point.
    rank = np.empty(n, np.intp)
    rank[np.lexsort((np.arange(n), height))] = np.arange(n)
    for _ in range(MERGE_ROUNDS):
        a, b = parent[first], parent[second]
        open_ = a != b
        first, second, saddle = first[open_], second[open_], saddle[open_]
        a, b = a[open_], b[open_]
        if not len(a):
            break
        low, high = np.where(rank[a] < rank[b], a, b), np.where(rank[a] < rank[b], b, a)
        order = np.lexsort((rank[high], saddle, low))  # the last of each: highest saddle, then highest peak
        last = np.append(np.flatnonzero(np.diff(low[order])), len(order) - 1)
        basin, target, level = low[order[last]], high[order[last]], saddle[order[last]]
        weak = height[basin] - level < np.maximum(least[basin], fraction * level)
        if together is not None:
            weak |= together[basin]
        if not weak.any():
            break
        step = np.arange(n)
        step[basin[weak]] = target[weak]
        parent = _roots(step)[parent]
    return parent
