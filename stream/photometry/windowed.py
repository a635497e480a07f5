"""Windowed centroids (SExtractor's XWIN, YWIN) of all sources at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.records import F32

F64 = NDArray[np.float64]

SIDE = 9  # px: four sigma of the detection filter to each side
# A step corrects the centroid fully where window and star are equally wide and by two thirds to four thirds else.
STEPS = 5
MAX_MOVE = 1.0  # px; beyond lies another source


def windowed_centroids(image: F32, x: F64, y: F64, sigma: float) -> tuple[F64, F64]:
    """Centroids under a Gaussian window that follows them.

    Parameters
    ----------
    image : ndarray, (ny, nx), float32
        Sky off, 0 where unusable.
    x, y : ndarray, (n,)
        First places, px.
    sigma : float
        Of the window, px.

    Returns
    -------
    x, y : ndarray, (n,)
        The first places where the centroid strays by a pixel or there is no light in the window.
    """
    out_x, out_y = x.astype(float), y.astype(float)
    _follow(np.ascontiguousarray(image), out_x, out_y, sigma)
    return out_x, out_y


@inner
def _window(offset: float, sigma: float, out: F64) -> None:
    """The Gaussian around ``offset`` at the pixels of one axis: from one to the next by factors that fall evenly."""
    d = -SIDE // 2 + 1 - offset
    value, square = math.exp(-0.5 * d * d / (sigma * sigma)), 1 / (sigma * sigma)
    factor, fall = math.exp(-(d + 0.5) * square), math.exp(-square)
    for i in range(SIDE):
        out[i] = value
        value *= factor
        factor *= fall


@compiled
def _follow(image: F32, x: F64, y: F64, sigma: float) -> None:
    """``STEPS`` steps of every centroid, in place."""
    ny, nx = image.shape
    across, down = np.empty(SIDE), np.empty(SIDE)
    for s in range(len(x)):
        ix, iy = int(np.rint(x[s])), int(np.rint(y[s]))
        dx, dy = x[s] - ix, y[s] - iy
        left, right = max(SIDE // 2 - ix, 0), min(SIDE, nx - ix + SIDE // 2)
        lost = False
        for _ in range(STEPS):
            _window(dx, sigma, across)
            _window(dy, sigma, down)
            light = shift_x = shift_y = 0.0
            for j in range(max(SIDE // 2 - iy, 0), min(SIDE, ny - iy + SIDE // 2)):
                line = image[iy + j - SIDE // 2]
                row = slope = 0.0
                for i in range(left, right):
                    value = line[ix + i - SIDE // 2] * across[i]
                    row += value
                    slope += value * (i - SIDE // 2 - dx)
                light += row * down[j]
                shift_x += slope * down[j]
                shift_y += row * down[j] * (j - SIDE // 2 - dy)
            if not light > 0:
                lost = True
                break
            dx, dy = dx + 2 * shift_x / light, dy + 2 * shift_y / light
            if math.hypot(ix + dx - x[s], iy + dy - y[s]) >= MAX_MOVE:
                lost = True
                break
        if not lost:
            x[s], y[s] = ix + dx, iy + dy
