"""Directions on the celestial sphere."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def unit_vectors(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.float64]:
    """Unit vectors (n, 3) of sky places (deg): near places have near vectors, at the pole and across 0 h too."""
    a, d = np.radians(np.asarray(ra, float).ravel()), np.radians(np.asarray(dec, float).ravel())
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)


def chord(arcsec: float) -> float:
    """Length of the chord between unit vectors that far apart."""
    return float(2 * np.sin(np.radians(arcsec / 3600) / 2))
