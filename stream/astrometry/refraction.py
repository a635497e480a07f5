"""Differential chromatic refraction: the air lifts blue stars to the zenith by more than red ones.

Without it the stars of a g image taken at airmass 2 are spread by some 30 mas along the vertical. The size is fitted
from the image's own stars, with physics as the prior for images that have few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import erfa  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from stream.core.records import Exposure

F64 = NDArray[np.float64]

# Palomar, deg: the zenith is wanted to a degree.
LATITUDE, LONGITUDE = 33.36, -116.86
# Shift (arcsec) towards the zenith per mag of bluer BP-RP and tan z, by filter: refractivity of 0.82 atm of air (Edlen
# 1966; Filippenko 1982) at 4.8, 6.4 and 7.9 thousand Angstrom times the 8, 4 and 2 nm by which a mag of BP-RP moves the
# band's effective wavelength.
SHIFT = {1: 0.040, 2: 0.008, 3: 0.003}
UNCERTAINTY = 0.5  # of that, relative: spectra are no function of one colour
# The stars' colour to which a WCS belongs: BP-RP of a star of g-r 0.6, the middle of most fields.
MEAN_COLOUR = 1.1
COLOUR_SPREAD = 0.6  # r.m.s. of stars' BP-RP about it, where no star's colour tells
COLOURS = (-0.5, 3.5)  # beyond, a colour is counted as at the end: so red a star is no straight line
LOWEST_ALTITUDE = math.radians(15.0)  # nobody observes lower; a nonsensical time or place does


@dataclass(frozen=True, slots=True)
class Refraction:
    """What is expected: unit vector to the zenith (east, north), shift (arcsec a mag bluer) and its uncertainty."""

    zenith: tuple[float, float]
    shift: float
    uncertainty: float


def expected_refraction(exposure: Exposure, ra: float, dec: float) -> Refraction | None:
    """Differential refraction at a sky place (deg); None where the place was not up: its time or site are not ours."""
    if not math.isfinite(exposure.jd_mid) or exposure.fid not in SHIFT:
        return None
    sidereal = math.degrees(float(erfa.gmst82(exposure.jd_mid, 0.0))) + LONGITUDE
    hour, d, latitude = math.radians(sidereal - ra), math.radians(dec), math.radians(LATITUDE)
    up = math.sin(latitude) * math.sin(d) + math.cos(latitude) * math.cos(d) * math.cos(hour)
    if not up > math.sin(LOWEST_ALTITUDE):
        return None
    east = math.cos(latitude) * math.sin(hour)
    north = math.sin(latitude) * math.cos(d) - math.cos(latitude) * math.sin(d) * math.cos(hour)
    horizontal = math.hypot(east, north)
    if horizontal < 1e-6:
        return Refraction((0.0, 1.0), 0.0, 1e-6)
    shift = SHIFT[exposure.fid] * horizontal / up
    return Refraction((east / horizontal, north / horizontal), shift, UNCERTAINTY * shift)


def bluer(colour: F64) -> F64:
    """Magnitudes by which stars are bluer than ``MEAN_COLOUR``; 0 where the colour is not known."""
    return np.asarray(np.nan_to_num(MEAN_COLOUR - np.clip(colour.astype(float), *COLOURS), nan=0.0))


def colour_sigma(colour: F64, shift: float, zenith: tuple[float, float]) -> tuple[float, float]:
    """Error (arcsec, along east and north) that refraction makes in the place of a star of unknown colour.

    The r.m.s. of the image's stars (``colour``, BP-RP, NaN: not known) about ``MEAN_COLOUR``, not about their own mean:
    to that colour the WCS belongs. ``shift`` is arcsec a mag bluer.
    """
    known = colour[np.isfinite(colour)]
    spread = math.sqrt(float(np.mean(bluer(known) ** 2))) if len(known) else COLOUR_SPREAD
    return abs(shift * zenith[0]) * spread, abs(shift * zenith[1]) * spread


def fit_shift(along: F64, sigma: F64, blue: F64, expected: Refraction) -> float:
    """Shift (arcsec a mag bluer) from residuals along the zenith (arcsec, seen minus catalogue), prior included."""
    weight = 1.0 / sigma**2
    mean = np.sum(weight * blue) / np.sum(weight)
    lever = blue - mean  # the polynomial takes the mean
    prior = 1.0 / expected.uncertainty**2
    top = float(np.sum(weight * lever * along)) + prior * expected.shift
    return top / (float(np.sum(weight * lever**2)) + prior)
