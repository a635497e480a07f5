"""The sums of the Lanczos-5 interpolation, compiled; ``resample`` says why this kernel and puts them to use.

Two images of one field differ by a shift, a small rotation and a slow distortion. So the interpolation goes in two
passes, along rows and then along columns (Catmull & Smith 1980): for every source row, the places where the target's
columns cross it; between those, along the columns. In a segment of 16 or 32 px the sub-pixel phase changes by so
little that each tap's weight is a parabola through its values at both ends and the middle; so all loops run along rows.
From row to row it changes by even less: the weights are looked up on some rows only, and straight between.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.core.compiled import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
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
_ROWS, _COLUMNS, _SPARE = 128, 512, 40
_TILE = 32  # px
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
def parabolas(places: F64, node: int, base: int, scale: np.float32, table: F32, out: F32) -> None:
    """Weights of a segment's taps from the source pixel ``base`` on: that of tap k at fraction t is
    ``out[k] + t (out[11 + k] + t out[22 + k])``.

    ``places``: from entry ``node`` on the source places of the target pixels at t = 0, 1/2, 1; ``scale`` times the
    weights.
    """
    one, two = _WIDE, 2 * _WIDE
    for k in range(3 * _WIDE):
        out[k] = np.float32(0)
    for n in range(3):
        place = places[node + n]
        low = math.floor(place)
        row = math.floor((place - low) * PHASES + 0.5)
        first = n * _WIDE + min(max(int(low) - BEFORE - base, 0), 1)
        for k in range(TAPS):
            out[first + k] = table[row, k]
    for k in range(_WIDE):
        start, middle, end = out[k] * scale, out[one + k] * scale, out[two + k] * scale
        out[k] = start
        out[one + k] = np.float32(4) * middle - np.float32(3) * start - end
        out[two + k] = np.float32(2) * (start + end) - np.float32(4) * middle


@compiled
def first_tap(places: F64) -> int:
    """First source pixel that a segment needs between two rows, of its three places on each."""
    low = min(min(places[0], places[1], places[2]), min(places[3], places[4], places[5]))
    base: int = math.floor(low) - BEFORE
    return base


@compiled
def between(one: F32, other: F32, part: np.float32, out: F32) -> None:
    """Weights on a row between two."""
    for k in range(3 * _WIDE):
        out[k] = one[k] + part * (other[k] - one[k])


@compiled
def along(line: F32, base: int, taps: F32, fractions: F32, out: F32, start: int) -> None:
    """A segment's sums along a row, from pixel ``base`` of ``line``, into ``out`` from ``start`` on."""
    some, own = line[base:], out[start : start + len(fractions)]
    for i in range(len(own)):
        t = fractions[i]
        total = np.float32(0)
        for k in range(_WIDE):
            total += (taps[k] + t * (taps[_WIDE + k] + t * taps[2 * _WIDE + k])) * some[i + k]
        own[i] = total


@compiled
def down(rows: F32, base: int, taps: F32, fractions: F32, out: F32, start: int) -> None:
    """A segment's sums down the columns, from pixel ``base`` of ``rows`` (flat, ``_COLUMNS`` apart), into ``out`` from
    ``start`` to its end at most."""
    some, own = rows[base:], out[start : start + len(fractions)]
    for i in range(len(own)):
        t = fractions[i]
        total = np.float32(0)
        for k in range(_WIDE):
            total += (taps[k] + t * (taps[_WIDE + k] + t * taps[2 * _WIDE + k])) * some[i + k * _COLUMNS]
        own[i] = total


@compiled
def crossing(v: int, near: int, j: int, shift_y: F32, shift_x: F32) -> float:
    """Source minus target column where the target's node column ``j`` crosses source row ``v``, one step from a good
    guess; ``near``: a target row not far away."""
    ny = len(shift_y)
    y = v - shift_y[min(max(v - int(shift_y[near, j]), 0), ny - 1), j]
    row = min(max(math.floor(y), 0), ny - 2)
    t = min(max(y - row, -16.0), 16.0)
    moved: float = shift_x[row, j] + t * (shift_x[row + 1, j] - shift_x[row, j])
    return moved


@compiled
def interpolate(
    source: F32, shift_y: F32, shift_x: F32, area: F32, steps: tuple[int, int], table: F32, out: F32
) -> None:
    """``source`` at the places of a map, into ``out`` (ny, nx); beyond the source its edge goes on.

    ``shift_y``, ``shift_x``, ``area`` (ny, n_nodes): source minus target place and a factor at every ``NODE``-th
    column, finite. ``steps``: nodes to half a segment; rows (8 at most) from one whose weights are looked up to the
    next.
    """
    ny, nx = out.shape
    sny, snx = source.shape
    stride, step = steps
    length = 2 * NODE * stride
    rows = np.empty((_ROWS + _SPARE, _COLUMNS), np.float32)
    flat = rows.reshape(-1)
    line = np.empty(_COLUMNS + 2 * _SPARE, np.float32)
    before = np.empty((_COLUMNS // length, 3 * _WIDE), np.float32)
    after = np.empty((_COLUMNS // length, 3 * _WIDE), np.float32)
    bases = np.empty(_COLUMNS // length, np.int64)
    taps = np.empty(3 * _WIDE, np.float32)
    place = np.empty(6, np.float64)
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
                past = (v - v0) % step
                if past == 0:
                    for s in range(n_segments):
                        for node in range(3):
                            j = first + (2 * s + node) * stride
                            for k in range(2):
                                moved = crossing(v + k * step, y0, j, shift_y, shift_x)
                                place[3 * k + node] = x0 - u0 + s * length + moved
                        base = first_tap(place)
                        parabolas(place, 0, base, np.float32(1), table, before[s])
                        parabolas(place, 3, base, np.float32(1), table, after[s])
                        bases[s] = min(max(base, 0), len(line) - length - _WIDE)
                inside = source[min(max(v, 0), sny - 1)]
                if u0 >= 0 and u0 + len(line) <= snx:
                    for i in range(len(line)):
                        line[i] = inside[u0 + i]
                else:
                    for i in range(len(line)):
                        line[i] = inside[min(max(u0 + i, 0), snx - 1)]
                for s in range(n_segments):
                    between(before[s], after[s], np.float32(past) / np.float32(step), taps)
                    along(line, bases[s], taps, fractions, flat, (v - v0) * _COLUMNS + s * length)
            for y in range(y0, y1):
                past = (y - y0) % step
                if past == 0:
                    end = min(y + step, ny - 1)
                    ahead = np.float64(step) / max(end - y, 1)
                    for s in range(n_segments):
                        j = first + 2 * s * stride
                        for node in range(3):
                            here, there = shift_y[y, j + node * stride], shift_y[end, j + node * stride]
                            place[node] = y + np.float64(here)
                            place[node + 3] = place[node] + ahead * (np.float64(there) - here)
                        base = first_tap(place)
                        parabolas(place, 0, base, area[y, j + stride], table, before[s])
                        parabolas(place, 3, base, area[end, j + stride], table, after[s])
                        bases[s] = min(max(base - v0, 0), _ROWS + _SPARE - _WIDE - step)
                for s in range(n_segments):
                    between(before[s], after[s], np.float32(past) / np.float32(step), taps)
                    down(flat, (bases[s] + past) * _COLUMNS + s * length, taps, fractions, out[y], x0 + s * length)


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
def tiles_with(bad: U8) -> U8:
    """Which tiles of ``_TILE`` px have a ``bad`` pixel."""
    ny, nx = bad.shape
    out = np.zeros(((ny + _TILE - 1) // _TILE, (nx + _TILE - 1) // _TILE), np.uint8)
    for y in range(ny):
        line, tiles = bad[y], out[y // _TILE]
        for k in range(len(tiles)):
            some = np.uint8(0)
            for value in line[k * _TILE : (k + 1) * _TILE]:
                some |= value
            tiles[k] |= some
    return out


@compiled
def blank(bad: U8, shift_y: F32, shift_x: F32, out: F32) -> None:
    """NaN, in place, where a place of a map (every ``NODE``-th column) lies beyond the outer edges of the source's
    outermost pixels, or one of the four source pixels about it is ``bad``."""
    ny, nx = out.shape
    sny, snx = bad.shape
    step = np.float32(1) / np.float32(NODE)
    tiles = tiles_with(bad)
    for y0 in range(0, ny, NODE):
        y1 = min(y0 + NODE, ny)
        for s in range((nx + NODE - 1) // NODE):
            x0 = s * NODE
            ay, by, ax, bx = shift_y[y0, s], shift_y[y0, s + 1], shift_x[y0, s], shift_x[y0, s + 1]
            cy, dy, cx, dx = shift_y[y1 - 1, s], shift_y[y1 - 1, s + 1], shift_x[y1 - 1, s], shift_x[y1 - 1, s + 1]
            # A smooth map has its extremes at the corners of a cell; half a pixel more for what bends.
            top, bottom = y0 + min(ay, by, cy, dy) - 0.5, y1 + max(ay, by, cy, dy) + 0.5
            left, right = x0 + min(ax, bx, cx, dx) - 0.5, x0 + NODE + max(ax, bx, cx, dx) + 0.5
            # False where NaN, and where a cell is so large that tiles lie between its corners'.
            if (
                top >= 0
                and bottom < sny - 1
                and left >= 0
                and right < snx - 1
                and max(bottom - top, right - left) < _TILE - 2
            ):
                v0, v1 = int(top) // _TILE, (int(bottom) + 1) // _TILE
                u0, u1 = int(left) // _TILE, (int(right) + 1) // _TILE
                if tiles[v0, u0] | tiles[v0, u1] | tiles[v1, u0] | tiles[v1, u1] == 0:
                    continue
            for y in range(y0, y1):
                ay, by, ax, bx = shift_y[y, s], shift_y[y, s + 1], shift_x[y, s], shift_x[y, s + 1]
                for i in range(min(NODE, nx - x0)):
                    py = y + np.float64(ay + i * step * (by - ay))
                    px = x0 + i + np.float64(ax + i * step * (bx - ax))
                    if not (py >= -0.5 and py <= sny - 0.5 and px >= -0.5 and px <= snx - 0.5):
                        out[y, x0 + i] = np.float32(np.nan)
                        continue
                    v, u = max(math.floor(py), 0), max(math.floor(px), 0)
                    w, z = min(math.floor(py) + 1, sny - 1), min(math.floor(px) + 1, snx - 1)
                    if bad[v, u] | bad[v, z] | bad[w, u] | bad[w, z]:
                        out[y, x0 + i] = np.float32(np.nan)


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
