"""Artefacts that come back at the same pixel (mask bit 15), learned from what was detected there night after night.

A star's pixel changes with the pointing; a defect's does not. A pixel is persistent if detections fell on it and its
eight neighbours (1) more often than chance would have it anywhere on the detector, (2) in several nights, and (3)
at several places on the sky, farther apart than a star can move: the pointing's own dither of some arcseconds between
visits of a field is enough, and what stays on the sky while the detector moves under it is never taken.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.records import U16, Sightings

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FALSE_PIXELS = 0.01  # expected in a whole quadrant, from chance coincidences
MIN_DETECTIONS, MIN_NIGHTS, MIN_PLACES = 4, 2, 3
SAME_PLACE = 3.0  # arcsec on the sky within which two detections may be one source
MIN_SHARE = 0.1  # of the exposures: what came back more rarely is no property of the pixel
MIN_EXPOSURES = 6
_NEAR = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


def learn_persistent(seen: Sightings, n_exposures: int, shape: tuple[int, int]) -> U16:
    """The map of artefacts that come back: (ny, nx) uint16 with ``Mask.PERSISTENT``.

    Parameters
    ----------
    seen : Sightings
        Of difference images best (few real sources); of catalogues too.
    n_exposures : int
        From which they are, those without a detection included.
    shape : (ny, nx)

    Raises
    ------
    CalibrationError
        Fewer than six exposures: nothing can be said to come back.
    """
    if n_exposures < MIN_EXPOSURES:
        raise CalibrationError(
            f"persistent artefacts need {MIN_EXPOSURES} exposures of a channel over several nights, there are "
            f"{n_exposures}: process more first",
            n_exposures=n_exposures,
        )
    ny, nx = shape
    out = np.zeros(shape, np.uint16)
    column, row = np.rint(seen.x).astype(np.int64), np.rint(seen.y).astype(np.int64)
    inside = np.flatnonzero((column >= 0) & (column < nx) & (row >= 0) & (row < ny))
    column, row = column[inside], row[inside]
    counts = np.bincount(row * nx + column, minlength=ny * nx).reshape(shape)
    need = _least_count(len(inside) / (ny * nx) * len(_NEAR), ny * nx, n_exposures)
    padded = np.pad(counts, 1)
    around = sum(padded[1 + dy : 1 + dy + ny, 1 + dx : 1 + dx + nx] for dy, dx in _NEAR)
    order = np.argsort(row * nx + column, kind="stable")
    flat = (row * nx + column)[order]
    for y, x in zip(*np.nonzero((around >= need) & (counts > 0)), strict=True):
        members = [
            inside[order[slice(*np.searchsorted(flat, (here, here + 1)))]]
            for here in ((y + dy) * nx + x + dx for dy, dx in _NEAR if 0 <= y + dy < ny and 0 <= x + dx < nx)
        ]
        if _comes_back(seen, np.concatenate(members), need):
            out[y, x] |= np.uint16(Mask.PERSISTENT)
    return out


def _least_count(expected: float, n_pixels: int, n_exposures: int) -> int:
    """Fewest detections about a pixel that chance does not explain, and that are often enough to matter."""
    from scipy.stats import poisson  # a sixth of a quadrant worker's start, and this is not done there

    chance = int(poisson.isf(FALSE_PIXELS / n_pixels, expected)) + 1
    return max(chance, MIN_DETECTIONS, math.ceil(MIN_SHARE * n_exposures))


def _comes_back(seen: Sightings, members: I64, need: int) -> bool:
    """Whether detections about a pixel are of enough exposures, nights and places on the sky."""
    _, once = np.unique(seen.exposure[members], return_index=True)
    members = members[once]
    if len(members) < need or len(np.unique(seen.night[members])) < MIN_NIGHTS:
        return False
    return _places(seen.ra[members], seen.dec[members]) >= MIN_PLACES


def _places(ra: F64, dec: F64) -> int:
    """Number of places on the sky that are farther than three arcseconds from one another, counted greedily."""
    a, d = np.radians(ra), np.radians(dec)
    vectors = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)
    limit = 2 * math.sin(math.radians(SAME_PLACE / 3600.0) / 2)
    kept: list[F64] = []
    for vector in vectors:
        if all(float(np.linalg.norm(vector - other)) > limit for other in kept):
            kept.append(vector)
            if len(kept) >= MIN_PLACES:
                break
    return len(kept)
