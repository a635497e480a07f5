"""The sums of the Lanczos-5 interpolation, compiled; ``resample`` says why this kernel and puts them to use.

Two images of one field differ by a shift, a small rotation and a slow distortion. So the interpolation goes in two
passes, along rows and then along columns (Catmull & Smith 1980): for every source row, the places where the target's
columns cross it; between those, along the columns. In a segment of 16 or 32 px the sub-pixel phase changes by so
little that each tap's weight is a parabola through its values at both ends and the middle; so all loops run along rows.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.core.compiled import compiled

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

LOBES = 5  # of the kernel
TAPS = 2 * LOBES
BEFORE = LOBES - 1  # taps before the pixel at or below the place
PHASES = 8192  # phases tabulated per pixel: a rounding of 6e-5 px, far below any registration error
NODE = 8  # px between the columns at which a map is known
SEGMENT = 32  # px, the longest; the columns of a map reach to a whole number of them
_WIDE = TAPS + 1  # taps that all places of a segment need together
# Blocks of the target: what is made on the way stays in the processor's cache. The source rows of a block are
# those of the target and _SPARE more: the taps, and the turn over its columns.
_ROWS, _COLUMNS, _SPARE = 64, 512, 32
MOST_SLOPE = 16.0 / _COLUMNS  # px/px; beyond it the spare rows do not suffice


def lanczos_weights(phase: ArrayLike) -> F32:
    """Normalised Lanczos-5 weights, (..., 10), for taps -4..5 of a place ``phase`` (0..1) past tap 0."""
    t = np.asarray(phase, float)[..., None] - np.arange(-BEFORE, LOBES + 1)
    w = np.sinc(t) * np.sinc(t / LOBES)
    out: F32 = (w / w.sum(axis=-1, keepdims=True)).astype(np.float32)
    return out


@lru_cache(maxsize=1)
def weight_table() -> F32:
    """Weights (8193, 10) at all tabulated phases."""
    return lanczos_weights(np.arange(PHASES + 1) / PHASES)


@compiled
def parabolas(places: NDArray[np.float64], scale: np.float32, table: F32, out: F32) -> int:
    """Weights of a segment: tap k at fraction t is ``out[0, k] + t (out[1, k] + t out[2, k])``; its first source pixel.

    ``places`` (3,) source places of the target pixels at t = 0, 1/2, 1, float64, ``scale`` times the weights.
    """
    base: int = math.floor(min(places[0], places[1], places[2])) - BEFORE
    for k in range(_WIDE):
        out[0, k] = out[1, k] = out[2, k] = np.float32(0)
    for node in range(3):
        low = math.floor(places[node])
        row = math.floor((places[node] - low) * PHASES + 0.5)
        first = min(max(int(low) - BEFORE - base, 0), 1)
        for k in range(TAPS):
            out[node, first + k] = table[row, k]
    for k in range(_WIDE):
        start, middle, end = out[0, k] * scale, out[1, k] * scale, out[2, k] * scale
        out[0, k] = start
        out[1, k] = np.float32(4) * middle - np.float32(3) * start - end
        out[2, k] = np.float32(2) * (start + end) - np.float32(4) * middle
    return base


@compiled
def along(line: F32, taps: F32, fractions: F32, out: F32) -> None:
    """A segment's sums along a row: ``out`` (length,) of ``line`` (length + 10 or more,)."""
    for i in range(len(out)):
        t = fractions[i]
        total = np.float32(0)
        for k in range(_WIDE):
            total += (taps[0, k] + t * (taps[1, k] + t * taps[2, k])) * line[i + k]
        out[i] = total


@compiled
def down(rows: F32, taps: F32, fractions: F32, out: F32) -> None:
    """A segment's sums down the columns: ``out`` (length,) of the first 11 of ``rows``, flat, ``_COLUMNS`` apart."""
    for i in range(len(out)):
        t = fractions[i]
        total = np.float32(0)
        for k in range(_WIDE):
            total += (taps[0, k] + t * (taps[1, k] + t * taps[2, k])) * rows[i + k * _COLUMNS]
        out[i] = total


@compiled
def interpolate(source: F32, shift_y: F32, shift_x: F32, area: F32, stride: int, table: F32, out: F32) -> None:
    """``source`` at the places of a map, into ``out`` (ny, nx); beyond the source its edge goes on.

    ``shift_y``, ``shift_x``, ``area`` (ny, n_nodes): source minus target place and a factor at every ``NODE``-th
    column, finite; segments of 2 ``stride`` nodes.
    """
    ny, nx = out.shape
    sny, snx = source.shape
    length = 2 * NODE * stride
    rows = np.empty((_ROWS + _SPARE, _COLUMNS), np.float32)
    flat = rows.reshape(-1)
    line = np.empty(_COLUMNS + 2 * _SPARE, np.float32)
    taps = np.empty((3, _WIDE), np.float32)
    place = np.empty(3, np.float64)
    sums = np.empty(length, np.float32)
    fractions = (np.arange(length) / length).astype(np.float32)
    for y0 in range(0, ny, _ROWS):
        y1 = min(y0 + _ROWS, ny)
        for x0 in range(0, nx, _COLUMNS):
            n_segments = min((nx - x0 + length - 1) // length, _COLUMNS // length)
            first, last = x0 // NODE, x0 // NODE + 2 * stride * n_segments
            low, high, left = math.inf, -math.inf, math.inf
            for j in range(first, last + 1):  # a smooth map has its extremes on the border
                low = min(low, y0 + shift_y[y0, j], y1 - 1 + shift_y[y1 - 1, j])
                high = max(high, y0 + shift_y[y0, j], y1 - 1 + shift_y[y1 - 1, j])
            for y in range(y0, y1):
                left = min(left, x0 + shift_x[y, first])
            v0 = math.floor(low) - BEFORE - 1
            v1 = min(math.floor(high) + LOBES + 2, v0 + _ROWS + _SPARE)
            u0 = math.floor(left) - BEFORE - _SPARE // 2
            for v in range(v0, v1):
                inside = source[min(max(v, 0), sny - 1)]
                if u0 >= 0 and u0 + len(line) <= snx:
                    for i in range(len(line)):
                        line[i] = inside[u0 + i]
                else:
                    for i in range(len(line)):
                        line[i] = inside[min(max(u0 + i, 0), snx - 1)]
                for s in range(n_segments):
                    for node in range(3):
                        j = first + (2 * s + node) * stride
                        # The target row whose column j crosses source row v there, one step from a good guess.
                        y = v - shift_y[min(max(v - int(shift_y[y0, j]), 0), ny - 1), j]
                        row = min(max(math.floor(y), 0), ny - 2)
                        t = min(max(y - row, -8.0), 8.0)
                        moved = shift_x[row, j] + t * (shift_x[row + 1, j] - shift_x[row, j])
                        place[node] = x0 - u0 + s * length + moved
                    base = parabolas(place, np.float32(1), table, taps)
                    base = min(max(base, 0), len(line) - length - _WIDE)
                    part = rows[v - v0, s * length : (s + 1) * length]
                    along(line[base:], taps, fractions, part)
            for y in range(y0, y1):
                for s in range(n_segments):
                    j = first + 2 * s * stride
                    for node in range(3):
                        place[node] = y + np.float64(shift_y[y, j + node * stride])
                    base = parabolas(place, area[y, j + stride], table, taps) - v0
                    base = min(max(base, 0), _ROWS + _SPARE - _WIDE)
                    down(flat[base * _COLUMNS + s * length :], taps, fractions, sums)
                    x = x0 + s * length
                    for i in range(min(length, nx - x)):
                        out[y, x + i] = sums[i]


@compiled
def interpolate_anywhere(source: F32, map_y: F32, map_x: F32, table: F32, out: F32) -> None:
    """``source`` at places (ny, nx) of any map, tap by tap; 0 where the place is NaN."""
    ny, nx = source.shape
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            py, px = np.float64(map_y[y, x]), np.float64(map_x[y, x])
            total = np.float32(0)
            if math.isfinite(py) and math.isfinite(px):
                # Far away every tap is the edge's pixel.
                py, px = min(max(py, -TAPS), ny + TAPS), min(max(px, -TAPS), nx + TAPS)
                low_y, low_x = math.floor(py), math.floor(px)
                wy = table[math.floor((py - low_y) * PHASES + 0.5)]
                wx = table[math.floor((px - low_x) * PHASES + 0.5)]
                for j in range(TAPS):
                    row = source[min(max(low_y - BEFORE + j, 0), ny - 1)]
                    line = np.float32(0)
                    for i in range(TAPS):
                        line += wx[i] * row[min(max(low_x - BEFORE + i, 0), nx - 1)]
                    total += wy[j] * line
            out[y, x] = total


@compiled
def blank(bad: U8, shift_y: F32, shift_x: F32, out: F32) -> None:
    """NaN, in place, where a place of a map (every ``NODE``-th column) lies beyond the outer edges of the source's
    outermost pixels, or one of the four source pixels about it is ``bad``."""
    ny, nx = out.shape
    sny, snx = bad.shape
    step = np.float32(1) / np.float32(NODE)
    for y in range(ny):
        for s in range((nx + NODE - 1) // NODE):
            x = s * NODE
            ay, by = shift_y[y, s], shift_y[y, s + 1]
            ax, bx = shift_x[y, s], shift_x[y, s + 1]
            top, bottom = y + min(ay, by), y + max(ay, by)
            left, right = x + min(ax, bx), x + NODE + max(ax, bx)
            clear = top >= 0 and bottom < sny - 1 and left >= 0 and right < snx - 1  # False where NaN
            if clear:
                some = np.uint8(0)
                for v in range(int(top), int(bottom) + 2):
                    for u in range(int(left), int(right) + 2):
                        some |= bad[v, u]
                if some == 0:
                    continue
            for i in range(min(NODE, nx - x)):
                py = y + np.float64(ay + i * step * (by - ay))
                px = x + i + np.float64(ax + i * step * (bx - ax))
                if not (py >= -0.5 and py <= sny - 0.5 and px >= -0.5 and px <= snx - 0.5):
                    out[y, x + i] = np.float32(np.nan)
                    continue
                v0, u0 = max(math.floor(py), 0), max(math.floor(px), 0)
                v1, u1 = min(math.floor(py) + 1, sny - 1), min(math.floor(px) + 1, snx - 1)
                if bad[v0, u0] | bad[v0, u1] | bad[v1, u0] | bad[v1, u1]:
                    out[y, x + i] = np.float32(np.nan)


@compiled
def carry(sigma: F32, full: U8, shift_y: F32, shift_x: F32, factor: float, typical: float, flags: U8, out: F32) -> None:
    """Variance ``(factor sigma)^2`` into ``out`` and flags, each of the source pixel that a map meets.

    The source pixel is that of the middle of ``NODE`` columns, off by at most one. Outside: ``typical``, no flag.
    """
    ny, nx = out.shape
    sny, snx = sigma.shape
    scale = np.float32(factor)
    beyond = np.float32((factor * typical) ** 2)
    for y in range(ny):
        for s in range((nx + NODE - 1) // NODE):
            x = s * NODE
            my, mx = 0.5 * (shift_y[y, s] + shift_y[y, s + 1]), 0.5 * (shift_x[y, s] + shift_x[y, s + 1])
            n = min(NODE, nx - x)
            known = math.isfinite(my) and math.isfinite(mx)
            v = y + math.floor(my + 0.5) if known else -1
            u = x + math.floor(mx + 0.5) if known else -1
            if v >= 0 and v < sny and u >= 0 and u + n <= snx:
                for i in range(n):
                    value = scale * sigma[v, u + i]
                    out[y, x + i] = value * value
                    flags[y, x + i] = full[v, u + i]
                continue
            for i in range(n):
                inside = v >= 0 and v < sny and u + i >= 0 and u + i < snx
                value = scale * sigma[v, u + i] if inside else np.float32(0)
                out[y, x + i] = value * value if inside else beyond
                flags[y, x + i] = full[v, u + i] if inside else np.uint8(0)
