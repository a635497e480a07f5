"""The depth of a difference image, place by place, from its own noise and its own PSF."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.depth import CELL, DepthMap
from stream.core.records import F32, Difference, ScienceImage

F64 = NDArray[np.float64]

_EVERY = 4  # px between the pixels of a cell that are looked at: 64 of 1024
_PLACES = 5  # a side, where the PSF's sharpness is asked for; it changes by per cent over a quadrant
_SIGMAS = 5.0


def depth_map(science: ScienceImage, difference: Difference) -> DepthMap:
    """The 5-sigma limits of a quadrant on the science image's zero point, its map included.

    A point source of flux F has S/N F sqrt(sum P^2) / sigma; ``sigma`` is the cell's median, which knows of photon
    noise of hosts, of coverage and of the residuals around bright stars.
    """
    ny, nx = difference.data.shape
    noise = _cells(difference.sigma)
    rows, columns = noise.shape
    y, x = ((np.arange(n) + 0.5) * CELL - 0.5 for n in (rows, columns))
    sharpness = _sharpness(difference, np.minimum(x, nx - 1), np.minimum(y, ny - 1))
    xx, yy = np.meshgrid(np.minimum(x, nx - 1), np.minimum(y, ny - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        limit = science.zeropoint.at(xx, yy) - 2.5 * np.log10(_SIGMAS * noise / sharpness)
    return DepthMap(np.where(np.isfinite(limit), limit, np.nan).astype(np.float32), (ny, nx))


def _cells(sigma: F32) -> F32:
    """Median of each cell's pixels; NaN where most are."""
    ny, nx = sigma.shape
    rows, columns, side = -(-ny // CELL), -(-nx // CELL), CELL // _EVERY
    sample = np.full((rows * side, columns * side), np.inf, np.float32)
    some = sigma[::_EVERY, ::_EVERY]
    # Unusable pixels and those beyond the edge sort to the end; a cell of which most are has no median.
    sample[: some.shape[0], : some.shape[1]] = np.where(np.isfinite(some), some, np.float32(np.inf))
    cells = sample.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(rows, columns, side * side)
    counts = np.isfinite(cells).sum(axis=2)
    beyond = _inside(ny, rows)[:, None] * _inside(nx, columns)[None, :]
    ordered = np.sort(cells, axis=2)
    half = np.minimum(counts // 2, side * side - 1)
    middle = np.take_along_axis(ordered, half[:, :, None], axis=2)[:, :, 0]
    return np.where(2 * counts > beyond, middle, np.float32(np.nan)).astype(np.float32)


def _inside(n: int, cells: int) -> NDArray[np.int64]:
    """Sampled pixels of an axis of ``n`` px that lie in each cell."""
    return np.bincount(np.arange(0, n, _EVERY) // CELL, minlength=cells)


def _sharpness(difference: Difference, x: F64, y: F64) -> F64:
    """Root of the sum of the squared PSF at the cells' centres, (rows, columns)."""
    ny, nx = difference.data.shape
    px, py = (np.linspace(0, n - 1, 2 * _PLACES + 1)[1::2] for n in (nx, ny))
    few = np.array([[np.sqrt(np.sum(difference.psf.stamp(a, b).astype(float) ** 2)) for a in px] for b in py])
    along = np.stack([np.interp(x, px, row) for row in few])
    return np.stack([np.interp(y, py, column) for column in along.T], axis=1)
