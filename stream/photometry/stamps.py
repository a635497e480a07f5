"""Little windows around many places at once: pixels out of an image, models into one, mask bits of a box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled
from stream.core.records import F32, U16

F64 = NDArray[np.float64]
INT = NDArray[np.intp]

FLAG_BOX = 5  # side of the box whose mask bits make a source's flags (Explanatory Supplement §10.6)
EDGE_FLAG = -1


def nearest_pixels(x: F64, y: F64) -> tuple[INT, INT]:
    """Pixel that a place falls into, as ``PsfModel.stamps`` rounds it."""
    return np.rint(x).astype(np.intp), np.rint(y).astype(np.intp)


def window_index(ix: INT, iy: INT, size: int, shape: tuple[int, int]) -> tuple[INT, NDArray[np.bool_]]:
    """Flat indices (n, size, size) of the windows around pixels, and which of them lie in the image.

    Outside the image the index is that of the nearest edge pixel.
    """
    ny, nx = shape
    reach = np.arange(size) - size // 2
    rows, columns = iy[:, None] + reach, ix[:, None] + reach
    row_in, column_in = (rows >= 0) & (rows < ny), (columns >= 0) & (columns < nx)
    index = np.clip(rows, 0, ny - 1)[:, :, None] * nx + np.clip(columns, 0, nx - 1)[:, None, :]
    return index, row_in[:, :, None] & column_in[:, None, :]


def add_stamps(image: F32, ix: INT, iy: INT, stamps: F32) -> None:
    """Add windows (n, size, size) around pixels into ``image`` in place; what falls outside is dropped."""
    ny, nx = image.shape
    size = stamps.shape[1]
    half = size // 2
    whole = (ix >= half) & (iy >= half) & (ix < nx - half) & (iy < ny - half)
    # One addition a stamp: faster than a scattered sum over all pixels.
    for k in np.flatnonzero(whole).tolist():
        y0, x0 = int(iy[k]) - half, int(ix[k]) - half
        image[y0 : y0 + size, x0 : x0 + size] += stamps[k]
    cut = np.flatnonzero(~whole)
    if len(cut):
        index, inside = window_index(ix[cut], iy[cut], size, (ny, nx))
        np.add.at(image.reshape(-1), index[inside], stamps[cut][inside])


def box_flags(mask: U16, x: F64, y: F64, *, edge: int | None = EDGE_FLAG) -> NDArray[np.int32]:
    """OR of the mask in the 5 x 5 box around places.

    ``edge`` where the box leaves the image; None: the OR of what is inside.
    """
    ix, iy = nearest_pixels(x, y)
    flags = np.empty(len(ix), np.int32)
    _gather_flags(np.ascontiguousarray(mask), ix, iy, edge is not None, edge or 0, flags)
    return flags


@compiled
def _gather_flags(mask: U16, ix: INT, iy: INT, mark: bool, edge: int, flags: NDArray[np.int32]) -> None:
    ny, nx = mask.shape
    half = FLAG_BOX // 2
    for k in range(len(ix)):
        bits = np.uint16(0)
        low, high, left, right = iy[k] - half, iy[k] + half, ix[k] - half, ix[k] + half
        for j in range(min(max(low, 0), ny - 1), min(max(high, 0), ny - 1) + 1):
            for i in range(min(max(left, 0), nx - 1), min(max(right, 0), nx - 1) + 1):
                bits |= mask[j, i]
        flags[k] = bits
        if mark and (low < 0 or left < 0 or high >= ny or right >= nx):
            flags[k] = edge
