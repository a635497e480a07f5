"""How deep an image is, place by place: a coarse grid of 5-sigma limits of point sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

CELL = 32  # px: a large galaxy, the surroundings of a bright star; the map of a quadrant has 97 x 96 cells


@dataclass(frozen=True, slots=True)
class DepthMap:
    """The 5-sigma limit (mag) of an isolated point source in each ``cell`` x ``cell`` px of an image.

    ``limit`` (rows, columns) float32: that of the cell's typical pixel, NaN where more than half of a cell is unusable.
    ``shape`` is the image's.
    """

    limit: F32
    shape: tuple[int, int]
    cell: int = CELL

    def at(self, x: ArrayLike, y: ArrayLike) -> F64:
        """Limits (mag) at places (px, first is 0): of the cell that a place lies in; NaN outside and where there is
        none."""
        x, y = np.asarray(x, float) + 0.5, np.asarray(y, float) + 0.5
        column, row = np.floor(x / self.cell), np.floor(y / self.cell)
        inside = (x >= 0) & (x < self.shape[1]) & (y >= 0) & (y < self.shape[0])  # False for NaN
        index = np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)
        return np.where(inside, self.limit[index].astype(np.float64), np.nan)
