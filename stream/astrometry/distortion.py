"""A channel's optical distortion, learned from the solutions of its earlier images; a prior for sparse ones.

The camera turns with the sky, so what repeats is written in pixels along the pixel axes: the map from pixels to the
tangent plane, taken through the inverse of its own linear part. What is left of degrees 2 to 4 is the optics' (3 px at
the corners) and, changing from one exposure to the next by a hundredth of a pixel, the air's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from stream.astrometry.tpv import MAX_DEGREE, n_terms, project, sky_positions, terms
from stream.core.errors import AstrometryError
from stream.core.records import Distortion

F64 = NDArray[np.float64]

MIN_EXPOSURES = 5
MIN_STARS = 400  # of a solution to learn from: it must be the data's, not that of what was learned before
# Scatter of a coefficient that is believed at least (px): a few exposures can agree by luck.
MIN_SCATTER = 0.003
N_LINEAR = 3


@dataclass(frozen=True, slots=True)
class Solved:
    """The solution of one exposure, as its header tells it."""

    wcs: WCS
    n_matched: int
    night: str


def distortion_of(wcs: WCS, shape: tuple[int, int]) -> F64:
    """Coefficients (15, 2) px of a WCS over an image, linear part and constant taken out."""
    ny, nx = shape
    steps = np.linspace(-1.0, 1.0, 2 * MAX_DEGREE)
    x, y = (v.ravel() for v in np.meshgrid(steps, steps))
    xc, yc = (nx - 1) / 2, (ny - 1) / 2
    ra, dec = sky_positions(wcs, np.append(xc + x * nx / 2, xc), np.append(yc + y * ny / 2, yc))
    place = np.stack(project(ra[:-1], dec[:-1], float(ra[-1]), float(dec[-1])), axis=1)
    found = np.linalg.lstsq(terms(x, y, MAX_DEGREE), place, rcond=None)[0]
    linear = found[1:N_LINEAR].T / np.array([nx / 2, ny / 2])
    coefficients = found @ np.linalg.inv(linear).T
    coefficients[:N_LINEAR] = 0.0
    return np.asarray(coefficients)


def learn_distortion(rcid: int, fid: int, solved: Sequence[Solved], shape: tuple[int, int]) -> Distortion:
    """Mean and scatter of the coefficients over exposures of one channel and filter.

    Raises
    ------
    AstrometryError
        Fewer than ``MIN_EXPOSURES`` solutions with ``MIN_STARS`` stars.
    """
    used = [s for s in solved if s.n_matched >= MIN_STARS]
    if len(used) < MIN_EXPOSURES:
        raise AstrometryError(
            f"channel {rcid}, filter {fid}: {len(used)} solutions with {MIN_STARS} stars or more, {MIN_EXPOSURES} "
            "needed: process more images of rich fields"
        )
    all_of = np.stack([distortion_of(s.wcs, shape) for s in used])
    n = len(used)
    mean = np.median(all_of, axis=0)
    # Of the next exposure about this mean; few exposures do not know their scatter well.
    scatter = 1.4826 * np.median(np.abs(all_of - mean), axis=0) * np.sqrt(1.0 + np.pi / 2 / n) * (1.0 + 1.0 / n)
    sigma = np.maximum(scatter, MIN_SCATTER)
    sigma[:N_LINEAR] = np.inf
    nights = sorted(s.night for s in used)
    assert mean.shape == (n_terms(MAX_DEGREE), 2)
    return Distortion(rcid, fid, mean, sigma, n, (nights[0], nights[-1]))
