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
INT32 = NDArray[np.int32]
BOOL = NDArray[np.bool_]

CHUNK = 64  # pixels of a row that are looked at together
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
    owner = np.empty(n, np.int64)
    _climb(pixel, np.ascontiguousarray(value, np.float32), nx, owner)
    peaks = _numbered(owner)
    merged = np.zeros(len(peaks), bool) if together is None else together[peaks]
    parent = _merge(pixel, value, nx, owner, peaks, least[peaks], np.float32(fraction), merged)
    kept = _numbered(parent)
    _renumber(owner, parent)
    return Basins(peaks[kept], owner)


@compiled
def _numbered(pointer: INT) -> INT:
    """The places that point to themselves; every place then holds the number of the one that it pointed to."""
    count = 0
    for i in range(len(pointer)):
        count += pointer[i] == i
    kept, number, count = np.empty(count, np.int64), np.empty(len(pointer), np.int64), 0
    for i in range(len(pointer)):
        number[i] = count
        if pointer[i] == i:
            kept[count] = i
            count += 1
    for i in range(len(pointer)):
        pointer[i] = number[pointer[i]]
    return kept


@compiled
def _renumber(owner: INT, number: INT) -> None:
    """Every owner by its number."""
    for i in range(len(owner)):
        owner[i] = number[owner[i]]


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
def _fill_row(pixel: INT, value: F32, number: INT, span: tuple[int, int, int], values: F32, numbers: INT32) -> int:
    """Value and number of the listed pixels of a row into ``values`` and ``numbers`` (nx + 2,), whose first column is
    beside the image. ``span``: the list's position to begin with, row, nx. Returns the next position."""
    i, shift, limit = span[0], span[1] * span[2] - 1, (span[1] + 1) * span[2]
    while i < len(pixel) and pixel[i] < limit:
        values[pixel[i] - shift], numbers[pixel[i] - shift] = value[i], number[i]
        i += 1
    return i


@inner
def _highest(values: tuple[F32, F32, F32], numbers: tuple[INT32, INT32, INT32], out: INT32) -> None:
    """The number of the highest among each pixel of the middle row and the eight around it, the later of equal ones."""
    top, middle, low = values
    of_top, of_middle, of_low = numbers
    for c in range(len(out)):
        best, which = top[c], of_top[c]
        value, number = top[c + 1], of_top[c + 1]
        better = value >= best
        best, which = value if better else best, number if better else which
        value, number = top[c + 2], of_top[c + 2]
        better = value >= best
        best, which = value if better else best, number if better else which
        value, number = middle[c], of_middle[c]
        better = value >= best
        best, which = value if better else best, number if better else which
        value, number = middle[c + 1], of_middle[c + 1]
        better = value >= best
        best, which = value if better else best, number if better else which
        value, number = middle[c + 2], of_middle[c + 2]
        better = value >= best
        best, which = value if better else best, number if better else which
        value, number = low[c], of_low[c]
        better = value >= best
        best, which = value if better else best, number if better else which
        value, number = low[c + 1], of_low[c + 1]
        better = value >= best
        best, which = value if better else best, number if better else which
        value, number = low[c + 2], of_low[c + 2]
        better = value >= best
        best, which = value if better else best, number if better else which
        out[c] = which


@compiled
def _climb(pixel: INT, value: F32, nx: int, best: INT) -> None:
    """Each pixel's peak, by its highest neighbour (the later of equal ones), into ``best``: a peak points to itself.

    A row a time, between the ones above and below, for all its pixels at once.
    """
    nothing, place = np.float32(-np.inf), np.arange(len(pixel))
    values, numbers = np.full((3, nx + 2), nothing), np.zeros((3, nx + 2), np.int32)
    highest = np.empty(nx, np.int32)
    top, middle, low = 0, 1, 2
    row = pixel[0] // nx
    begin = before = 0
    end = _fill_row(pixel, value, place, (0, row, nx), values[middle], numbers[middle])
    while begin < len(pixel):
        after = _fill_row(pixel, value, place, (end, row + 1, nx), values[low], numbers[low])
        if end > begin:
            _highest((values[top], values[middle], values[low]), (numbers[top], numbers[middle], numbers[low]), highest)
            for i in range(begin, end):
                best[i] = highest[pixel[i] - row * nx]
        for i in range(before, begin):
            values[top, pixel[i] - (row - 1) * nx + 1] = nothing
        before, begin, end = begin, end, after
        top, middle, low = middle, low, top
        row += 1
    _roots(best)


@inner
def _some_border(here: INT32, below: INT32) -> bool:
    """Whether a pixel of a stretch of a row (n + 2,), the first and last left out, touches another basin to the east or
    in the row below."""
    most = np.int32(0)
    for c in range(len(here) - 2):
        # Of two numbers the bits that differ are above 0 if neither is -1 and they are not the same.
        own = here[c + 1]
        east, south = np.int32(own ^ here[c + 2]), np.int32(own ^ below[c + 1])
        west_below, east_below = np.int32(own ^ below[c]), np.int32(own ^ below[c + 2])
        most = max(most, max(max(east, south), max(west_below, east_below)))
    return bool(most > 0)


@inner
def _row_borders(
    basin: tuple[INT32, INT32], value: tuple[F32, F32], span: tuple[int, int], count: int, out: tuple[INT, INT, F32]
) -> int:
    """As ``_borders`` for some columns of one row; ``count`` are known already."""
    here, below = basin
    for c in range(span[0] + 1, span[1] + 1):
        own = here[c]
        if own < 0:
            continue
        for q in range(4):
            other = here[c + 1] if q == 0 else below[c + q - 2]
            if other < 0 or other == own:
                continue
            if count < len(out[0]):
                height = value[0][c + 1] if q == 0 else value[1][c + q - 2]
                out[0][count], out[1][count], out[2][count] = own, other, min(value[0][c], height)
            count += 1
    return count


@compiled
def _borders(pixel: INT, value: F32, nx: int, owner: INT, out: tuple[INT, INT, F32]) -> int:
    """Pairs of basins that touch, and the lower pixel's value, into ``out`` as far as it goes; how many there are."""
    basins, values = np.full((2, nx + 2), np.int32(-1)), np.zeros((2, nx + 2), np.float32)
    here, below, count = 0, 1, 0
    row = pixel[0] // nx
    begin, end = 0, _fill_row(pixel, value, owner, (0, row, nx), values[here], basins[here])
    while begin < len(pixel):
        after = _fill_row(pixel, value, owner, (end, row + 1, nx), values[below], basins[below])
        for first in range(0, nx if end > begin else 0, CHUNK):
            span = (first, min(first + CHUNK, nx))
            if _some_border(basins[here, span[0] : span[1] + 2], basins[below, span[0] : span[1] + 2]):
                count = _row_borders((basins[here], basins[below]), (values[here], values[below]), span, count, out)
        for i in range(begin, end):
            basins[here, pixel[i] - row * nx + 1] = -1
        begin, end = end, after
        here, below = below, here
        row += 1
    return count


@compiled
def _merge(
    pixel: INT,
    value: F32,
    nx: int,
    owner: INT,
    peaks: INT,
    least: F32,
    fraction: np.float32,
    together: BOOL,
) -> INT:
    """Basin into which each basin goes, itself if its peak is significant."""
    n, most = len(peaks), 8 * len(peaks) + 1000
    borders = (np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float32))
    left = _borders(pixel, value, nx, owner, borders)
    if left > most:
        borders = (np.empty(left, np.int64), np.empty(left, np.int64), np.empty(left, np.float32))
        _borders(pixel, value, nx, owner, borders)
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
