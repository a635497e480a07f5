"""Small pieces of images around many places at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.records import F32, Stamps

STAMP_SIZE = 63  # px, the survey's cutouts
I64 = NDArray[np.int64]


def gather(image: NDArray[Any], x: I64, y: I64, half: int, fill: float = np.nan) -> NDArray[Any]:
    """Square stamps centred on pixels.

    Parameters
    ----------
    image : ndarray, (ny, nx)
    x, y : ndarray, (n,), int
        Centre pixels, first is 0; may lie outside.
    half : int
        Side is ``2 half + 1``.
    fill : float
        What pixels beyond the image read.

    Returns
    -------
    ndarray, (n, side, side)
        A copy, of the image's dtype.
    """
    ny, nx = image.shape
    side, offsets = 2 * half + 1, np.arange(-half, half + 1)
    inside = (x >= half) & (y >= half) & (x < nx - half) & (y < ny - half)
    if not inside.any():
        return gather_at(image, x[:, None, None] + offsets, y[:, None, None] + offsets[:, None], fill)
    # Row by row, where pixel by pixel would ask of each whether it is inside.
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    stamps = windows[np.where(inside, y - half, 0), np.where(inside, x - half, 0)]
    for k in np.flatnonzero(~inside).tolist():
        stamps[k] = gather_at(image, x[k] + offsets, y[k] + offsets[:, None], fill)
    return stamps


def gather_at(image: NDArray[Any], x: I64, y: I64, fill: float = np.nan) -> NDArray[Any]:
    """Pixels at integer places of any (broadcast) shape; ``fill`` beyond the image."""
    ny, nx = image.shape
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    values = image[np.clip(y, 0, ny - 1), np.clip(x, 0, nx - 1)]
    if not inside.all():
        values[~inside] = fill
    return values


def cut_stamps(
    science: F32, template: F32, difference: F32, x: I64, y: I64, sign: Sequence[int], size: int = STAMP_SIZE
) -> list[Stamps]:
    """The three cutouts of each candidate, float32, smaller where they leave the image.

    ``x``, ``y`` are centre pixels (first is 0). The difference is multiplied by ``sign``, so that the
    candidate is positive in it. NaN pixels are kept.
    """
    half = size // 2
    result = []
    for cx, cy, s in zip(x.tolist(), y.tolist(), sign, strict=True):
        box = np.s_[max(cy - half, 0) : cy + half + 1, max(cx - half, 0) : cx + half + 1]
        turned = np.array(difference[box], np.float32)
        if s < 0:
            np.negative(turned, out=turned)
        result.append(Stamps(np.array(science[box], np.float32), np.array(template[box], np.float32), turned))
    return result
