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
STEP = 3  # px, a divisor of the cell: S_corr varies over the width of a PSF or more
# Robust scatter of pure noise in such a cell stays below this (4 sigma of its own error).
TOLERATED = 1.5
NEAR = 1.2  # the same beside a cell that exceeds it: what is there needs less proof
# Residuals have more wings than noise: a cell is as noisy as the wider of its median and this share of it say.
_WIDE = 0.8
# Medians, and that share, of |x| of a unit normal variate.
_NORMAL_MEDIAN, _NORMAL_WIDE = 0.6744898, 1.2815516


def excess_noise(sample: F32) -> NDArray[np.float32] | None:
    """Factor by which the scatter of S_corr exceeds 1, cell by cell.

    Parameters
    ----------
    sample : ndarray, (rows, columns), float32
        S_corr at every ``STEP``-th pixel, of unit variance where the propagated noise is all there is; NaN where
        unusable.

    Returns
    -------
    ndarray, (rows, columns), float32, or None
        For cells of ``CELL`` px; at least 1, exactly 1 where the excess is within what noise alone shows. None: 1
        everywhere.
    """
    ny, nx = sample.shape
    side = CELL // STEP
    rows, columns = -(-ny // side), -(-nx // side)
    # NaN counts as typical noise, so that it moves nothing.
    known = np.full((rows * side, columns * side), _NORMAL_MEDIAN, np.float32)
    np.copyto(known[:ny, :nx], np.abs(sample), where=np.isfinite(sample))
    cells = known.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(rows, columns, side * side)
    middle, far = side * side // 2, int(_WIDE * side * side)
    cells.partition((middle, far), axis=2)
    scatter = cells[:, :, middle] / np.float32(_NORMAL_MEDIAN)
    if not (scatter > TOLERATED).any():
        return None
    own = np.maximum(scatter, cells[:, :, far] / np.float32(_NORMAL_WIDE))
    one = np.float32(1)
    factor = np.where(scatter > TOLERATED, own, one)
    # A residual does not end at its cell's border, and is not more beyond it than is seen there.
    most = ndimage.maximum_filter(factor, 3)
    beside = np.where(scatter > NEAR, own, np.minimum(np.float32(0.5) * most, own))
    grown: NDArray[np.float32] = np.maximum(factor, np.where(most > 1, np.maximum(beside, one), one))
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
