"""Peaks of a filtered image and the pixels that belong to each: a watershed on the few pixels above a threshold.

Every pixel points to its highest neighbour; following the pointers ends in a peak, and all pixels that end in one are
its basin. A peak that does not stand out of the saddle towards a higher one by more than the noise there explains is
part of that one (the prominence takes the place of SExtractor's contrast between deblending levels: it knows the
photon noise of a bright star's wings, where a fixed contrast lets noise through beside faint stars and hides faint
stars beside bright ones).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.records import F32

INT = NDArray[np.int64]
BOOL = NDArray[np.bool_]

MERGE_ROUNDS = 12  # chains of insignificant peaks; each round halves them at least


@dataclass(frozen=True, slots=True)
class Basins:
    """``peak`` (n,): position in the list of pixels of each basin's highest one; ``owner``: basin of each pixel."""

    peak: INT
    owner: INT


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
        return Basins(np.zeros(0, np.int64), np.zeros(0, np.int64))
    pixel = np.ascontiguousarray(pixel, np.int64)
    best, below = np.arange(n), np.empty(n, np.int64)
    _climb(pixel, value, nx, best, below)
    peaks, owner = _numbered(best)
    merged = np.zeros(len(peaks), bool) if together is None else together[peaks]
    parent = _merge(pixel, value, nx, below, owner, peaks, least[peaks], np.float32(fraction), merged)
    kept, renumbered = _numbered(parent)
    return Basins(peaks[kept], renumbered[owner])


def _numbered(pointer: INT) -> tuple[INT, INT]:
    """The places that point to themselves, and for each place the number of the one that it points to."""
    kept = np.flatnonzero(pointer == np.arange(len(pointer)))
    number = np.zeros(len(pointer), np.int64)
    number[kept] = np.arange(len(kept))
    return kept, number[pointer]


@compiled
def _roots(pointer: INT) -> None:
    """Everything points to the end of its chain, in place."""
    for i in range(len(pointer)):
        root = i
        while pointer[root] != root:
            root = pointer[root]
        here = i
        while pointer[here] != root:
            pointer[here], here = root, pointer[here]


@inner
def _touching(pixel: INT, nx: int, here: int, column: int, k: int) -> bool:
    """Whether the pixel ``here``, in a column, and that at the list's position ``k`` (maybe beyond its end), a later
    one, are neighbours: eastern or one row below."""
    if k >= len(pixel):
        return False
    step = pixel[k] - here
    if step == 1 and column < nx - 1:
        return True
    offset = step - nx
    return bool(-1 <= offset <= 1 and 0 <= column + offset < nx)


@compiled
def _climb(pixel: INT, value: F32, nx: int, best: INT, below: INT) -> None:
    """Each pixel's peak, by its highest neighbour (the later of equal ones), into ``best``, which points to itself.

    ``below`` becomes each one's first list position at or behind the south-western neighbour.
    """
    n, first = len(pixel), 0
    for i in range(n):
        while first < n and pixel[first] < pixel[i] + nx - 1:
            first += 1
        below[i] = first
        here, column = pixel[i], pixel[i] % nx
        for q in range(4):
            k = i + 1 if q == 0 else first + q - 1
            if k == i or not _touching(pixel, nx, here, column, k):
                continue
            if value[k] >= value[best[i]] and (value[k] > value[best[i]] or k > best[i]):
                best[i] = k
            if value[i] >= value[best[k]] and (value[i] > value[best[k]] or i > best[k]):
                best[k] = i
    _roots(best)


@inner
def _borders(pixel: INT, value: F32, nx: int, below: INT, owner: INT, out: tuple[INT, INT, F32]) -> int:
    """Pairs of basins that touch, and the lower pixel's value, into ``out`` as far as it goes; how many there are."""
    count = 0
    for i in range(len(pixel)):
        here, column = pixel[i], pixel[i] % nx
        for q in range(4):
            k = i + 1 if q == 0 else below[i] + q - 1
            if k == i or not _touching(pixel, nx, here, column, k) or owner[i] == owner[k]:
                continue
            if count < len(out[0]):
                out[0][count], out[1][count], out[2][count] = owner[i], owner[k], min(value[i], value[k])
            count += 1
    return count


@compiled
def _merge(
    pixel: INT,
    value: F32,
    nx: int,
    below: INT,
    owner: INT,
    peaks: INT,
    least: F32,
    fraction: np.float32,
    together: BOOL,
) -> INT:
    """Basin into which each basin goes, itself if its peak is significant."""
    n, most = len(peaks), 8 * len(peaks) + 1000
    borders = (np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float32))
    left = _borders(pixel, value, nx, below, owner, borders)
    if left > most:
        borders = (np.empty(left, np.int64), np.empty(left, np.int64), np.empty(left, np.float32))
        _borders(pixel, value, nx, below, owner, borders)
    first, second, saddle = borders
    parent, step, target, level = np.arange(n), np.arange(n), np.empty(n, np.int64), np.empty(n, np.float32)
    for _ in range(MERGE_ROUNDS):
        target[:] = -1
        count = 0
        for q in range(left):
            low, high, height = parent[first[q]], parent[second[q]], saddle[q]
            if low == high:
                continue
            first[count], second[count], saddle[count] = low, high, height
            count += 1
            if _higher(value, peaks, low, high):
                low, high = high, low
            # The highest saddle, and of equal ones that to the highest peak.
            better = target[low] < 0 or height > level[low]
            if better or (height == level[low] and _higher(value, peaks, high, target[low])):
                target[low], level[low] = high, height
        left, merged = count, False
        for low in range(n):
            step[low] = low
            if target[low] >= 0:
                prominence = value[peaks[low]] - level[low]
                if together[low] or prominence < max(least[low], fraction * level[low]):
                    step[low], merged = target[low], True
        if not merged:
            break
        _roots(step)
        for k in range(n):
            parent[k] = step[parent[k]]
    return parent


@inner
def _higher(value: F32, peaks: INT, a: int, b: int) -> bool:
    """Whether basin a's peak is above b's; of equal ones the later, as pixels point."""
    one, other = value[peaks[a]], value[peaks[b]]
    return bool(one > other or (one == other and a > b))
