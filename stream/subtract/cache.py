"""What a subtraction needs of a reference and is the same for every science image: made once, kept beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.core.records import F32, Reference
from stream.core.resample import bridged
from stream.photometry import Star, fit_stars, saturated_stars, subtract_stars
from stream.subtract.match import MatchConfig, clean_stars

# The reference's plateaus, a little below their limit: whatever measured it had noise.
PLATEAU = 0.98


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """A reference made ready; all images (ny, nx) on its own grid.

    ``version`` is the reference's. ``pixels`` float32 DN: without the saturated stars that could be fitted, plateaus 0,
    pixels without a value bridged (no NaN). ``empty`` bool: those pixels. ``full`` bool: plateaus, one pixel
    wider. ``sigma`` float32 DN: the noise of white pixels, no NaN. ``stars`` (n, 3) float64: x, y (px), flux (DN) of
    the stars taken out. ``clean`` (m,) int64: rows of ``sources`` to match with. ``typical`` DN: median noise.
    """

    version: str
    pixels: F32
    empty: NDArray[np.bool_]
    full: NDArray[np.bool_]
    sigma: F32
    stars: NDArray[np.float64]
    clean: NDArray[np.int64]
    typical: float


def make_cache(reference: Reference, config: MatchConfig | None = None) -> ReferenceCache:
    """The record of a reference; a pure function of it (0.3 core-seconds for a whole quadrant)."""
    empty = ~np.isfinite(reference.data)
    plateau = np.zeros(empty.shape, bool)
    if np.isfinite(reference.saturate):
        plateau = reference.data >= np.float32(PLATEAU * reference.saturate)  # False where NaN
    known = reference.unc[::8, ::8][np.isfinite(reference.unc[::8, ::8])]
    typical = float(np.median(known)) if known.size else 1.0
    sigma = reference.unc.copy()
    np.copyto(sigma, np.float32(typical), where=~np.isfinite(sigma))
    stars = _saturated(reference, plateau, empty, typical)
    pixels = reference.data.copy()
    subtract_stars(pixels, reference.psf, stars)
    pixels[plateau] = 0
    table = np.array([(s.x, s.y, s.flux) for s in stars], float).reshape(-1, 3)
    clean = clean_stars(reference.sources, reference.data.shape, config or MatchConfig())
    full = ndimage.binary_dilation(plateau, np.ones((3, 3), bool)) if plateau.any() else plateau
    return ReferenceCache(
        reference.version, bridged(pixels, empty), empty, full, sigma, table, clean.astype(np.int64), typical
    )


def reference_gain(reference: Reference, science_gain: float) -> float:
    """e-/DN of a reference: its own word, else that of so many averaged exposures."""
    return float(reference.qa.get("gain", science_gain * max(reference.n_frames, 1)))


def _saturated(
    reference: Reference, plateau: NDArray[np.bool_], empty: NDArray[np.bool_], typical: float
) -> list[Star]:
    """Stars on plateaus, as far as their flanks can be fitted."""
    if not plateau.any() or len(reference.sources) == 0:
        return []
    x, y = saturated_stars(reference.sources, plateau)
    noise = typical**2, reference_gain(reference, 6.2)
    return [s for s in fit_stars(reference.data, plateau | empty, reference.psf, (x, y), noise) if s is not None]
