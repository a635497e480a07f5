"""The noise that no propagation knows: what PSF wings, ghosts and flat-field errors leave around bright sources.

Photon and registration noise are propagated exactly, but the PSFs end 12 px from their centres, and the wings of a
saturated star differ from one exposure to the next far beyond that. Where the scatter of S_corr is larger than 1 over a
whole cell, the excess is such a residual, not a hundred transients; scores and errors there are scaled to it, so
that "5 sigma" means the same everywhere and a real transient beside a bright star still stands out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.core.records import F32

# A cell holds some 25 independent PSF areas: enough for a median, small against the wings of a bright star.
CELL = 24
# Robust scatter of pure noise in such a cell stays below this (4 sigma of its own error).
TOLERATED = 1.5
_STEP = 3  # px, a divisor of the cell
# Median of |x| of a unit normal variate.
_NORMAL_MEDIAN = 0.6744898


def excess_noise(scorr: F32, cell: int = CELL) -> NDArray[np.float32] | None:
    """Factor by which the scatter of S_corr exceeds 1, cell by cell.

    Parameters
    ----------
    scorr : ndarray, (ny, nx), float32
        Unit variance where the propagated noise is all there is; NaN where unusable.
    cell : int
        Side of a cell in px.

    Returns
    -------
    ndarray, (rows, columns), float32, or None
        At least 1; exactly 1 where the excess is within what noise alone shows. None: 1 everywhere.
    """
    ny, nx = scorr.shape
    rows, columns = -(-ny // cell), -(-nx // cell)
    # Every third pixel: S_corr is smooth over the PSF. NaN counts as typical noise, so that it moves nothing.
    side = cell // _STEP
    sample = np.full((rows * side, columns * side), _NORMAL_MEDIAN, np.float32)
    half = np.abs(scorr[::_STEP, ::_STEP])
    np.copyto(half, np.float32(_NORMAL_MEDIAN), where=~np.isfinite(half))
    sample[: half.shape[0], : half.shape[1]] = half
    cells = sample.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(rows, columns, side * side)
    middle = side * side // 2
    scatter = np.partition(cells, middle, axis=2)[:, :, middle] / np.float32(_NORMAL_MEDIAN)
    if not (scatter > TOLERATED).any():
        return None
    factor = np.where(scatter > TOLERATED, scatter, np.float32(1.0))
    # A residual does not end at its cell's border.
    grown: NDArray[np.float32] = np.maximum(factor, 0.5 * ndimage.maximum_filter(factor, 3)).astype(np.float32)
    return grown


def apply_floor(scorr: F32, sigma: F32, factor: NDArray[np.float32] | None, cell: int = CELL) -> None:
    """Divide ``scorr`` by and multiply ``sigma`` with the factor of each cell, in place; 1 leaves a cell untouched."""
    if factor is None:
        return
    factor = np.maximum(factor, np.float32(1.0))
    for row, column in zip(*np.nonzero(factor > 1.0), strict=True):
        block = np.s_[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        scorr[block] /= factor[row, column]
        sigma[block] *= factor[row, column]
