"""Sums along all straight lines of an image at once: the fast discrete Radon transform.

After Götz & Druckmüller 1996 (Pattern Recognition 29, 711) and Brady 1998 (SIAM J. Comput. 27, 107): sums over a strip
of 2w columns are those of its two halves, shifted against each other, so that all lines of an n x n image cost
n^2 log n additions instead of n^3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled

F32 = NDArray[np.float32]
B8 = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line through an image: from (x1, y1) to (x2, y2), px, centre of the first pixel at 0."""

    x1: float
    y1: float
    x2: float
    y2: float


def radon(image: F32) -> F32:
    """Sums along lines, (slopes, 4, offsets).

    The four groups are lines that run nearly along x and rise, along x and fall, along y and rise, along y and fall;
    ``line_of`` tells which line an element is. Offsets are periodic, so that lines from beyond the image are in it.
    """
    ny, nx = image.shape
    side = max(ny, nx)
    period, strips = 2 * side, side + side % 2
    # Strips twice as wide have half the number, rounded up to an even one, of twice as many slopes.
    memory = [np.empty(4 * period * (strips + 4 * side), np.float32) for _ in range(2)]
    sums = memory[0][: 4 * strips * period].reshape(1, 4, strips, period)
    sums[:] = 0.0
    for group, turned in enumerate((image.T, image[::-1].T, image, image[:, ::-1])):
        sums[0, group, : turned.shape[0], : turned.shape[1]] = turned
    while strips > 1:
        memory.reverse()
        strips //= 2
        strips += strips % 2 if strips > 1 else 0
        slopes = 2 * sums.shape[0]
        joined = memory[0][: slopes * 4 * strips * period].reshape(slopes, 4, strips, period)
        _join(sums, joined)
        sums = joined
    return sums[:, :, 0]


@compiled
def _join(sums: F32, joined: F32) -> None:
    """Sums of strips (w, 4, s, period) to those of strips twice as wide (2 w, 4, s / 2, period): a line that rises by
    r over both halves rises by half of it over each, and meets the second one that much higher."""
    period = sums.shape[3]
    for rise in range(joined.shape[0]):
        half, shift = rise // 2, (rise + 1) // 2
        cut = period - shift
        for group in range(4):
            joined[rise, group, sums.shape[2] // 2 :] = 0.0  # beyond the last pair, where their number is made even
            for strip in range(sums.shape[2] // 2):
                left, right = sums[half, group, 2 * strip], sums[half, group, 2 * strip + 1]
                out = joined[rise, group, strip]
                for k in range(cut):
                    out[k] = left[k] + right[k + shift]
                for k in range(cut, period):
                    out[k] = left[k] + right[k - cut]


@compiled
def strongest(sums: F32, roots: F32, usable: B8, parallel: int) -> tuple[int, float]:
    """Which element (flat) of a transform stands out most against its parallels, and by how much.

    An element is divided by ``roots`` and compared with the mean of those ``parallel`` offsets to both sides. Those
    that are not ``usable`` do not count. (0, 0.0) where nothing stands out at all.
    """
    period = sums.shape[2]
    scaled = np.empty(period + 2 * parallel, np.float32)  # offsets are periodic
    contrast = np.empty(period, np.float32)
    best, place = np.float32(0.0), 0
    for slope in range(sums.shape[0]):
        for group in range(sums.shape[1]):
            line, root, use = sums[slope, group], roots[slope, group], usable[slope, group]
            for k in range(period):
                scaled[parallel + k] = line[k] / root[k]
            for k in range(parallel):
                scaled[k], scaled[parallel + period + k] = scaled[period + k], scaled[parallel + k]
            top = np.float32(0.0)
            for k in range(period):
                around = np.float32(0.5) * (scaled[k] + scaled[2 * parallel + k])
                contrast[k] = scaled[parallel + k] - around if use[k] else np.float32(0.0)
                top = max(top, contrast[k])
            if top > best:
                best, place = top, (slope * sums.shape[1] + group) * period + int(np.argmax(contrast))
    return place, float(best)


@lru_cache(maxsize=4)
def lengths(shape: tuple[int, int]) -> F32:
    """Number of pixels of an image of that shape on every line of ``radon``."""
    return radon(np.ones(shape, np.float32))


def line_of(place: tuple[int, int, int], shape: tuple[int, int], transform: tuple[int, ...]) -> Line:
    """The line that an element (slope, group, offset) of a transform of that shape stands for, end to end."""
    slope, group, offset = place
    ny, nx = shape
    run = nx if group < 2 else ny
    across = ny if group < 2 else nx
    first = float(offset if offset < across else offset - transform[2])
    last = first + slope * (run - 1) / max(transform[0] - 1, 1)
    if group in (1, 3):
        first, last = across - 1 - first, across - 1 - last
    ends = (0.0, first, run - 1.0, last)
    return Line(*ends) if group < 2 else Line(ends[1], ends[0], ends[3], ends[2])


def clipped(line: Line, shape: tuple[int, int]) -> Line | None:
    """The part of a line that lies on an image; None where there is none."""
    ny, nx = shape
    low, high = 0.0, 1.0
    for start, end, size in ((line.x1, line.x2, nx), (line.y1, line.y2, ny)):
        delta = end - start
        if delta == 0:
            if not -0.5 <= start <= size - 0.5:
                return None
            continue
        near, far = sorted(((-0.5 - start) / delta, (size - 0.5 - start) / delta))
        low, high = max(low, near), min(high, far)
    if low >= high:
        return None
    dx, dy = line.x2 - line.x1, line.y2 - line.y1
    return Line(line.x1 + low * dx, line.y1 + low * dy, line.x1 + high * dx, line.y1 + high * dy)


def extended(line: Line, shape: tuple[int, int]) -> Line | None:
    """The line prolonged to the image's edges; None for a point or a line that misses the image."""
    dx, dy = line.x2 - line.x1, line.y2 - line.y1
    length = float(np.hypot(dx, dy))
    if length == 0:
        return None
    reach = 2.0 * float(np.hypot(*shape)) / length
    return clipped(Line(line.x1 - reach * dx, line.y1 - reach * dy, line.x2 + reach * dx, line.y2 + reach * dy), shape)
