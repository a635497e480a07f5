"""Fluxes in circular apertures, the overlap of circle and pixels exact, all sources and radii in one compiled loop.

The part of a pixel inside a circle around the origin follows from the area ``Q(x, y)`` that the circle shares with the
rectangle from the origin to each of its corners: ``x y`` where that lies inside, else ``h(x) + h(y) - pi r^2 / 4``,
with ``h(u)`` the circle's area between 0 and u in one quadrant. So the arcs cost once a row and once a column.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.records import F32

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]


# The unit circle's area between 0 and u at so many nodes from -1 to 1, straight between them: to 1e-6 of the circle's
# at the worst place (arc sines would take most of the time).
NODES = 4096
_U = np.linspace(-1.0, 1.0, NODES + 1)
AREA = 0.5 * (_U * np.sqrt(1 - _U**2) + np.arcsin(_U))
# A circle of which less than this part is usable says nothing (rounding makes as much).
LEAST_SEEN = 1e-6


class _Edges(NamedTuple):
    """Of the pixels' edges along one axis, from a circle's centre: place cut to the circle, and h there (signed)."""

    place: F64
    area: F64


def aperture_fluxes(image: F32, unusable: BOOL, x: F64, y: F64, radii: tuple[float, ...]) -> F64:
    """Sums of an image within circles.

    Parameters
    ----------
    image, unusable : ndarray, (ny, nx), float32 and bool
        Unusable pixels take the mean of the others in the circle. Beyond the image there is nothing.
    x, y : ndarray, (n,)
        Centres, px.
    radii : tuple of float
        px.

    Returns
    -------
    ndarray, (n, n_radii)
        NaN where no pixel of a circle is usable.
    """
    out = np.full((len(x), len(radii)), np.nan)
    _sum_circles(
        image, unusable, np.asarray(x, np.float64), np.asarray(y, np.float64), np.array(radii, float), AREA, out
    )
    return out


@inner
def _cut(first: float, n: int, radius: float, table: F64, out: _Edges) -> None:
    """Edges at ``first``, ``first + 1``, ..., n of them."""
    for k in range(n):
        u = min(max(first + k, -radius), radius)
        out.place[k] = u
        node = (u / radius + 1) * (0.5 * NODES)
        low = min(int(node), NODES - 1)
        out.area[k] = radius * radius * (table[low] + (node - low) * (table[low + 1] - table[low]))


@inner
def _corner(u: float, v: float, hu: float, hv: float, square: float) -> float:
    """Q at a corner, with the sign of u v."""
    if u * u + v * v <= square:
        return u * v
    quarter = 0.25 * math.pi * square
    if (u < 0) != (v < 0):
        return -(abs(hu) + abs(hv) - quarter)
    return abs(hu) + abs(hv) - quarter


@compiled
def _sum_circles(image: F32, unusable: BOOL, x: F64, y: F64, radii: F64, table: F64, out: F64) -> None:
    ny, nx = image.shape
    most = 2 * math.ceil(radii.max()) + 3
    columns, rows = _Edges(np.empty(most), np.empty(most)), _Edges(np.empty(most), np.empty(most))
    above = np.empty(most)
    for s in range(len(x)):
        for k in range(len(radii)):
            r = radii[k]
            x0, x1 = max(math.floor(x[s] - r + 0.5), 0), min(math.floor(x[s] + r + 0.5) + 1, nx)
            y0, y1 = max(math.floor(y[s] - r + 0.5), 0), min(math.floor(y[s] + r + 0.5) + 1, ny)
            if x1 <= x0 or y1 <= y0:
                continue
            _cut(x0 - 0.5 - x[s], x1 - x0 + 1, r, table, columns)
            _cut(y0 - 0.5 - y[s], y1 - y0 + 1, r, table, rows)
            for i in range(x1 - x0 + 1):
                above[i] = _corner(columns.place[i], rows.place[0], columns.area[i], rows.area[0], r * r)
            total = seen = whole = 0.0
            for j in range(y1 - y0):
                v, h = rows.place[j + 1], rows.area[j + 1]
                line, bad = image[y0 + j], unusable[y0 + j]
                left_above = above[0]
                left = above[0] = _corner(columns.place[0], v, columns.area[0], h, r * r)
                for i in range(x1 - x0):
                    right = _corner(columns.place[i + 1], v, columns.area[i + 1], h, r * r)
                    part = max(right - left - above[i + 1] + left_above, 0.0)
                    left_above, left, above[i + 1] = above[i + 1], right, right
                    whole += part
                    if not bad[x0 + i]:
                        seen += part
                        total += part * line[x0 + i]
            if seen > LEAST_SEEN * whole:
                out[s, k] = total * (whole / seen)
