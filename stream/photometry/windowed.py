"""Windowed centroids (SExtractor's XWIN, YWIN) of all sources at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.records import F32
from stream.photometry.stamps import nearest_pixels, window_index

F64 = NDArray[np.float64]

SIDE = 9  # px: four sigma of the detection filter to each side
# A step corrects the centroid fully where window and star are equally wide and by two thirds to four thirds else.
STEPS = 5
BLOCK = 1024  # windows that stay in the processor's cache
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
    for start in range(0, len(x), BLOCK):
        part = slice(start, start + BLOCK)
        out_x[part], out_y[part] = _follow(image, out_x[part], out_y[part], sigma)
    return out_x, out_y


def _follow(image: F32, x0: F64, y0: F64, sigma: float) -> tuple[F64, F64]:
    ix, iy = nearest_pixels(x0, y0)
    index, inside = window_index(ix, iy, SIDE, (image.shape[0], image.shape[1]))
    values = np.where(inside, image.reshape(-1)[index], np.float32(0))
    node = np.arange(SIDE) - SIDE // 2
    x, y = x0 - ix, y0 - iy
    lost = np.zeros(len(x), bool)
    for _ in range(STEPS):
        dx, dy = node - x[:, None], node - y[:, None]
        wx, wy = (np.exp(-0.5 * (d / sigma) ** 2) for d in (dx, dy))
        rows = np.einsum("nij,nj->ni", values, wx.astype(np.float32))
        slope = np.einsum("nij,nj->ni", values, (wx * dx).astype(np.float32))
        light = (rows * wy).sum(axis=1)
        lost |= ~(light > 0)
        safe = np.where(lost, 1.0, light)
        x = x + np.where(lost, 0.0, 2 * (slope * wy).sum(axis=1) / safe)
        y = y + np.where(lost, 0.0, 2 * (rows * wy * dy).sum(axis=1) / safe)
        lost |= np.hypot(x + ix - x0, y + iy - y0) >= MAX_MOVE
        x, y = np.where(lost, x0 - ix, x), np.where(lost, y0 - iy, y)
    return np.where(lost, x0, x + ix), np.where(lost, y0, y + iy)
