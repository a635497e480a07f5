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
from scipy.spatial import cKDTree

from stream.core.records import MEAN_COLOUR, Exposure, Table
from stream.core.sphere import chord, unit_vectors

F64 = NDArray[np.float64]

# Palomar, deg: the zenith is wanted to a degree.
LATITUDE, LONGITUDE = 33.36, -116.86
# Shift (arcsec) towards the zenith per mag of bluer BP-RP and tan z, by filter: refractivity of 0.82 atm of air (Edlen
# 1966; Filippenko 1982) at 4.8, 6.4 and 7.9 thousand Angstrom times the 8, 4 and 2 nm by which a mag of BP-RP moves the
# band's effective wavelength.
SHIFT = {1: 0.040, 2: 0.008, 3: 0.003}
UNCERTAINTY = 0.5  # of that, relative: spectra are no function of one colour
COLOUR_SPREAD = 0.6  # r.m.s. of stars' BP-RP about it
MIN_COLOURS = 20  # entries on an image whose mean colour is its own, to 0.1 mag: 3 mas in g
MATCH_RADIUS = 1.0  # arcsec: a catalogue star's motion since 2016 and a faint source's error; crowds are farther apart
LEAST_SHIFT = 0.012  # arcsec a mag: below it stars' colours move their places by 5 mas at most, which nobody pays for
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


def bluer(colour: F64, than: float) -> F64:
    """Magnitudes of BP-RP by which stars are bluer; 0 where the colour is not known."""
    return np.asarray(np.nan_to_num(than - np.clip(colour.astype(float), *COLOURS), nan=0.0))


def colour_of(colours: F64) -> tuple[float, float]:
    """Colour (BP-RP) to which an image's WCS belongs, and the r.m.s. of its stars about it.

    ``colours`` are those of every catalogue entry on the image, not of the stars that are bright enough to be fitted:
    bright ones are bluer, so that the places of all others would be off by 5 to 10 mas in g. NaN: not known.
    """
    known = np.clip(colours[np.isfinite(colours)].astype(float), *COLOURS)
    if len(known) < MIN_COLOURS:
        return MEAN_COLOUR, COLOUR_SPREAD
    return float(known.mean()), float(known.std())


def fit_shift(along: F64, sigma: F64, blue: F64, expected: Refraction) -> float:
    """Shift (arcsec a mag bluer) from residuals along the zenith (arcsec, seen minus catalogue), prior included."""
    weight = 1.0 / sigma**2
    mean = np.sum(weight * blue) / np.sum(weight)
    lever = blue - mean  # the polynomial takes the mean
    prior = 1.0 / expected.uncertainty**2
    top = float(np.sum(weight * lever * along)) + prior * expected.shift
    return top / (float(np.sum(weight * lever**2)) + prior)


def own_colours(
    ra: F64, dec: F64, gaia: Table, shift: float, zenith: tuple[float, float], colour: float
) -> tuple[F64, F64]:
    """Sky places (deg) of sources with the refraction of their own colours taken off, as far as Gaia knows them.

    Parameters
    ----------
    ra, dec : ndarray, (n,)
        As for a star of ``colour`` (deg); NaN stays.
    gaia : structured array, GAIA_DTYPE
    shift : float
        arcsec a mag bluer; not finite or less than ``LEAST_SHIFT``: the places come back as they are.
    zenith : (east, north)
    colour : float
        BP-RP to which the places belong.

    Returns
    -------
    ra, dec : ndarray, (n,)
        Sources without an entry within 1 arcsec, or of unknown colour there, stay.
    """
    known = np.flatnonzero(np.isfinite(gaia["bp_rp"]))
    here = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if not abs(shift) >= LEAST_SHIFT or not len(known) or not len(here):
        return ra, dec
    margin = 2 * MATCH_RADIUS / 3600
    low, high = float(dec[here].min()) - margin, float(dec[here].max()) + margin
    known = known[(gaia["dec"][known] > low) & (gaia["dec"][known] < high)]
    if not len(known):
        return ra, dec
    tree = cKDTree(unit_vectors(gaia["ra"][known], gaia["dec"][known]), balanced_tree=False, compact_nodes=False)
    distance, row = tree.query(unit_vectors(ra[here], dec[here]), distance_upper_bound=chord(MATCH_RADIUS))
    found = np.isfinite(distance)
    moved = here[found]
    lift = shift / 3600.0 * bluer(gaia["bp_rp"][known[row[found]]], colour)
    out_ra, out_dec = ra.copy(), dec.copy()
    out_dec[moved] -= lift * zenith[1]
    out_ra[moved] -= lift * zenith[0] / np.cos(np.radians(dec[moved]))
    return out_ra % 360.0, out_dec
