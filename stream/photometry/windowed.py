"""Windowed centroids (SExtractor's XWIN, YWIN) of all sources at once.

Sources are taken in blocks, and the loops over pixels run over a block's sources, without a branch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.records import F32

F64 = NDArray[np.float64]

SIDE = 9  # px: four sigma of the detection filter to each side
# A step corrects the centroid fully where window and star are equally wide and by two thirds to four thirds else.
STEPS = 5
BLOCK, PAD = 64, 16  # sources
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


class _Block(NamedTuple):
    """Of ``BLOCK`` sources: pixels (SIDE^2, BLOCK + PAD), the Gaussian along both axes (SIDE, BLOCK), offsets from the
    middle pixel (2, BLOCK), and sums: light, its first moments, and a row's light and moment (5, BLOCK)."""

    value: F32
    across: F32
    down: F32
    place: F32
    sums: F32


@compiled
def _block() -> _Block:
    return _Block(
        # Rows a little longer than a block: one source's pixels would else all fall on the same places of the cache.
        np.zeros((SIDE * SIDE, BLOCK + PAD), np.float32),
        np.empty((SIDE, BLOCK), np.float32),
        np.empty((SIDE, BLOCK), np.float32),
        np.zeros((2, BLOCK), np.float32),
        np.empty((5, BLOCK), np.float32),
    )


@inner
def _window(offset: F32, sigma: float, out: F32) -> None:
    """The Gaussians around offsets (n,) at the pixels of one axis (SIDE, n): from one to the next by factors that fall
    evenly."""
    square = 1 / (sigma * sigma)
    fall = np.float32(math.exp(-square))
    value, factor = out[0], out[1]
    for k in range(len(offset)):
        d = -(SIDE // 2) - float(offset[k])
        value[k], factor[k] = math.exp(-0.5 * d * d * square), math.exp(-(d + 0.5) * square)
    for k in range(len(offset)):
        here, step = value[k], factor[k]
        for i in range(1, SIDE):
            here *= step
            step *= fall
            out[i, k] = here


@inner
def _gather(image: F32, ix: int, iy: int, k: int, value: F32) -> None:
    """The window around a pixel into column ``k``, 0 beyond the image."""
    ny, nx = image.shape
    half = SIDE // 2
    if ix >= half and iy >= half and ix < nx - half and iy < ny - half:
        for j in range(SIDE):
            line = image[iy - half + j, ix - half : ix + half + 1]
            for i in range(SIDE):
                value[j * SIDE + i, k] = line[i]
        return
    for j in range(SIDE):
        for i in range(SIDE):
            y, x = iy - half + j, ix - half + i
            value[j * SIDE + i, k] = image[y, x] if 0 <= y < ny and 0 <= x < nx else np.float32(0)


@inner
def _moments(block: _Block) -> None:
    """Light and its first moments under the windows, from the middle pixel, into ``block.sums``."""
    light, mx, my, row, slope = block.sums[0], block.sums[1], block.sums[2], block.sums[3], block.sums[4]
    block.sums[:] = 0
    for j in range(SIDE):
        row[:] = 0
        slope[:] = 0
        for i in range(SIDE):
            value, weight, x = block.value[j * SIDE + i], block.across[i], np.float32(i - SIDE // 2)
            for k in range(BLOCK):
                part = value[k] * weight[k]
                row[k] += part
                slope[k] += part * x
        weight, y = block.down[j], np.float32(j - SIDE // 2)
        for k in range(BLOCK):
            part = row[k] * weight[k]
            light[k] += part
            my[k] += part * y
            mx[k] += slope[k] * weight[k]


@compiled
def _follow(image: F32, x: F64, y: F64, sigma: float) -> None:
    """``STEPS`` steps of every centroid, in place."""
    block, lost = _block(), np.zeros(BLOCK, np.bool_)
    px, py, light, mx, my = block.place[0], block.place[1], block.sums[0], block.sums[1], block.sums[2]
    for start in range(0, len(x), BLOCK):
        n = min(BLOCK, len(x) - start)
        lost[:] = False
        for k in range(n):
            ix, iy = int(np.rint(x[start + k])), int(np.rint(y[start + k]))
            px[k], py[k] = x[start + k] - ix, y[start + k] - iy
            _gather(image, ix, iy, k, block.value)
        for _ in range(STEPS):
            _window(px, sigma, block.across)
            _window(py, sigma, block.down)
            _moments(block)
            for k in range(n):
                dx, dy = 2 * (mx[k] / light[k] - px[k]), 2 * (my[k] / light[k] - py[k])
                px[k], py[k] = px[k] + dx, py[k] + dy
                sx = px[k] + np.rint(x[start + k]) - x[start + k]
                sy = py[k] + np.rint(y[start + k]) - y[start + k]
                lost[k] = lost[k] or not (light[k] > 0 and math.hypot(sx, sy) < MAX_MOVE)
                if lost[k]:
                    px[k] = py[k] = 0
        for k in range(n):
            if not lost[k]:
                x[start + k], y[start + k] = np.rint(x[start + k]) + px[k], np.rint(y[start + k]) + py[k]
