"""Fluxes in circular apertures, the overlap of circle and pixels exact, all sources and radii in one compiled loop.

The part of a pixel inside a circle around the origin follows from the area ``Q(x, y)`` that the circle shares with the
rectangle from the origin to each of its corners: ``x y`` where that lies inside, else ``h(x) + h(y) - pi r^2 / 4``,
with ``h(u)`` the circle's area between 0 and u in one quadrant. So the arcs cost once a row and once a column. Sources
are taken in blocks, and every loop runs over a block's sources, without a branch: the processor does sixteen at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.records import F32

F64 = NDArray[np.float64]
INT = NDArray[np.int64]
BOOL = NDArray[np.bool_]

# A circle of which less than this part is usable says nothing (rounding makes as much).
LEAST_SEEN = 1e-5
BLOCK, PAD = 64, 16  # sources: their pixels fill a tenth of the processor's second cache
# arc cosine of u over sqrt(1 - u) from 0 to 1, to 2e-8 (Abramowitz & Stegun 1972, 4.4.46).
ARC = tuple(
    np.float32(c)
    for c in (1.5707963050, -0.2145988016, 0.0889789874, -0.0501743046, 0.0308918810, -0.0170881256, 0.0066700901,
              -0.0012624911)
)  # fmt: skip


class _Windows(NamedTuple):
    """Pixels (side^2, BLOCK + PAD) of sources: DN (0 where not usable), 1 where in the image, 1 where usable too."""

    value: F32
    inside: F32
    good: F32


class _Edges(NamedTuple):
    """Of the pixels' edges (side + 1, BLOCK) along one axis, from a circle's centre: place cut to the circle, and h
    there with its sign."""

    place: F32
    area: F32


class _Sums(NamedTuple):
    """Of a circle (BLOCK,): light on usable pixels, area in the image, usable area."""

    light: F32
    area: F32
    seen: F32


def aperture_fluxes(image: F32, unusable: BOOL, x: F64, y: F64, radii: tuple[float, ...]) -> F64:
    """Sums of an image within circles.

    Parameters
    ----------
    image, unusable : ndarray, (ny, nx), float32 and bool
        Unusable pixels take the mean of the others in the circle. Beyond the image there is nothing.
    x, y : ndarray, (n,)
        Centres, px, finite.
    radii : tuple of float
        px, above 0.

    Returns
    -------
    ndarray, (n, n_radii)
        To 1e-6 of the circle's light; NaN where no pixel of a circle is usable.
    """
    out = np.full((len(x), len(radii)), np.nan)
    _sum_circles(image, unusable, np.asarray(x, np.float64), np.asarray(y, np.float64), np.array(radii, float), out)
    return out


@inner
def _gather(image: F32, unusable: BOOL, corner: tuple[int, int], side: int, k: int, out: _Windows) -> bool:
    """Source ``k``'s window, whose first pixel is ``corner`` (x, y); whether all of it is usable.

    ``inside`` and ``good``, 1 before, are only touched where it is not.
    """
    ny, nx = image.shape
    x0, y0 = corner
    whole = x0 >= 0 and y0 >= 0 and x0 + side <= nx and y0 + side <= ny
    if whole:
        spoiled = 0
        for j in range(side):
            line, bad = image[y0 + j, x0 : x0 + side], unusable[y0 + j, x0 : x0 + side]
            for i in range(side):
                out.value[j * side + i, k] = line[i]
                spoiled += bad[i]
        whole = spoiled == 0
    if not whole:
        for j in range(side):
            for i in range(side):
                inside = 0 <= y0 + j < ny and 0 <= x0 + i < nx
                good = inside and not unusable[y0 + j, x0 + i]
                out.value[j * side + i, k] = image[y0 + j, x0 + i] if good else np.float32(0)
                out.inside[j * side + i, k] = np.float32(1) if inside else np.float32(0)
                out.good[j * side + i, k] = np.float32(1) if good else np.float32(0)
    return whole


@inner
def _cut(first: F32, radius: np.float32, out: _Edges) -> None:
    """Edges at ``first`` (n,), ``first + 1``, ... px of n sources."""
    one, half, quarter, square = np.float32(1), np.float32(0.5), np.float32(0.25 * math.pi), radius * radius
    for e in range(len(out.place)):
        places, areas, offset = out.place[e], out.area[e], np.float32(e)
        for k in range(len(first)):
            place = min(max(first[k] + offset, -radius), radius)
            u = min(abs(place) / radius, one)
            arc = ARC[4] + u * (ARC[5] + u * (ARC[6] + u * ARC[7]))
            arc = ARC[0] + u * (ARC[1] + u * (ARC[2] + u * (ARC[3] + u * arc)))
            height = square * (quarter + half * (u * np.sqrt(one - u * u) - arc * np.sqrt(one - u)))
            places[k] = place
            areas[k] = height if place >= 0 else -height


@inner
def _corners(columns: _Edges, v: F32, hv: F32, radius: np.float32, out: F32) -> None:
    """Q, with the sign of u v, at the corners (side + 1, n) of a row's upper edges."""
    one, square, quarter = np.float32(1), radius * radius, np.float32(0.25 * math.pi) * radius * radius
    for e in range(len(out)):
        place, area, corner = columns.place[e], columns.area[e], out[e]
        for k in range(len(v)):
            across = one if place[k] >= 0 else -one
            up = one if v[k] >= 0 else -one
            outside = up * (area[k] + across * (abs(hv[k]) - quarter))
            within = place[k] * v[k]
            corner[k] = within if place[k] * place[k] + v[k] * v[k] <= square else outside


@inner
def _add_row(above: F32, row: F32, windows: _Windows, first: int, whole: bool, out: _Sums) -> None:
    """A row's pixels, the first of them ``first`` in the windows, into the sums; areas unless all are ``whole``."""
    for e in range(len(row) - 1):
        a, b, c, d = above[e], above[e + 1], row[e], row[e + 1]
        value = windows.value[first + e]
        if whole:
            for k in range(len(a)):
                out.light[k] += (d[k] - c[k] - b[k] + a[k]) * value[k]
        else:
            inside, good = windows.inside[first + e], windows.good[first + e]
            for k in range(len(a)):
                part = max(d[k] - c[k] - b[k] + a[k], np.float32(0))
                out.light[k] += part * value[k]
                out.area[k] += part * inside[k]
                out.seen[k] += part * good[k]


@compiled
def _edges(side: int) -> _Edges:
    return _Edges(np.empty((side + 1, BLOCK), np.float32), np.empty((side + 1, BLOCK), np.float32))


@compiled
def _sum_circles(image: F32, unusable: BOOL, x: F64, y: F64, radii: F64, out: F64) -> None:
    reach = math.ceil(radii.max())
    side = 2 * reach + 1
    # Rows a little longer than a block: one source's pixels would else all fall on the same places of the first cache.
    shape = (side * side, BLOCK + PAD)
    windows = _Windows(np.zeros(shape, np.float32), np.ones(shape, np.float32), np.ones(shape, np.float32))
    columns, rows = _edges(side), _edges(side)
    above, row = np.empty((side + 1, BLOCK), np.float32), np.empty((side + 1, BLOCK), np.float32)
    sums = _Sums(np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32))
    dx, dy = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
    spoiled = np.zeros(BLOCK, np.bool_)
    for start in range(0, len(x), BLOCK):
        n, whole = min(BLOCK, len(x) - start), True
        for k in range(n):
            ix, iy = int(np.rint(x[start + k])), int(np.rint(y[start + k]))
            dx[k], dy[k] = ix - x[start + k], iy - y[start + k]
            spoiled[k] = not _gather(image, unusable, (ix - reach, iy - reach), side, k, windows)
            whole = whole and not spoiled[k]
        for q in range(len(radii)):
            radius = np.float32(radii[q])
            m = math.ceil(radii[q])
            used = 2 * m + 2
            across, down = (
                _Edges(columns.place[:used], columns.area[:used]),
                _Edges(rows.place[:used], rows.area[:used]),
            )
            _cut(dx - np.float32(m + 0.5), radius, across)
            _cut(dy - np.float32(m + 0.5), radius, down)
            sums.light[:] = 0
            sums.area[:] = 0
            sums.seen[:] = 0
            _corners(across, down.place[0], down.area[0], radius, above[:used])
            for j in range(1, used):
                _corners(across, down.place[j], down.area[j], radius, row[:used])
                first = (reach - m + j - 1) * side + reach - m
                _add_row(above[:used], row[:used], windows, first, whole, sums)
                row, above = above, row
            for k in range(n):
                if whole:
                    out[start + k, q] = sums.light[k]
                elif sums.seen[k] > np.float32(LEAST_SEEN) * sums.area[k]:
                    out[start + k, q] = sums.light[k] * (sums.area[k] / sums.seen[k])
        for k in range(n):
            if spoiled[k]:
                windows.inside[:, k] = 1
                windows.good[:, k] = 1
