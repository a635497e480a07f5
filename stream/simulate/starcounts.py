"""How many stars and galaxies of which magnitude and colour a place of the sky has."""

from __future__ import annotations

import math
from functools import lru_cache

import erfa  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

STAR_BRIGHT, STAR_FAINT = 9.0, 22.0  # r; brighter ones are the bright stars, drawn apart
DETECTABLE = 20.6  # r, 5 sigma in 30 s
# Below this latitude (deg) the model's dust-free disc runs away; real counts flatten in the dust of the plane.
LOWEST_LATITUDE = 12.0
V_MINUS_R = 0.3  # of the mean star
GALAXY_BRIGHT, GALAXY_FAINT = 15.5, 21.8
GALAXY_SLOPE = 0.42  # d log10 N / d mag
GALAXIES = 2000.0  # a square degree brighter than 20.6


def galactic(ra: float, dec: float) -> tuple[float, float]:
    """Galactic longitude and latitude (deg)."""
    longitude, latitude = erfa.icrs2g(math.radians(ra), math.radians(dec))
    return math.degrees(longitude), math.degrees(latitude)


def stars_brighter(v: ArrayLike, longitude: float, latitude: float) -> F64:
    """Stars a square degree brighter than V, at a place in the Galaxy (deg).

    The fit of Bahcall & Soneira (1980, ApJS 44, 73, appendix B) to their model of disc and spheroid, good to 15 %
    between V 5 and 20 at latitudes above 20 deg, here used to 12 deg and held there.
    """
    m = np.asarray(v, float)
    b = math.radians(max(abs(latitude), LOWEST_LATITUDE))
    cos_l = math.cos(math.radians(longitude))
    sin_b, cos_b = math.sin(b), math.cos(b)
    middle = np.clip(m, 12.0, 20.0)
    mu = np.where(m < 20.0, 0.0075 * (middle - 12.0) + 0.03, 0.09)
    gamma = np.where(m < 20.0, 0.04 * (12.0 - middle) + 0.36, 0.04)
    sigma = 1.45 - 0.20 * cos_b * cos_l
    disc = 925.0 * 10 ** (0.035 * (m - 15.75)) / (1.0 + 10 ** (-0.132 * (m - 15.75))) ** 3.0
    disc /= (sin_b * (1.0 - mu * cos_b / sin_b * cos_l)) ** (3.0 - 5.0 * gamma)
    spheroid = 1050.0 * 10 ** (0.087 * (m - 17.5)) / (1.0 + 10 ** (-0.180 * (m - 17.5))) ** 2.5
    spheroid /= (1.0 - cos_b * cos_l) ** sigma
    return np.asarray(disc + spheroid)


@lru_cache(maxsize=512)
def _cumulative(longitude: int, latitude: int, faint: float) -> tuple[F64, F64]:
    """Magnitudes in r and the stars a square degree that are brighter, from the bright limit on."""
    r = np.arange(STAR_BRIGHT, faint + 0.025, 0.05)
    counts = stars_brighter(r + V_MINUS_R, float(longitude), float(latitude))
    return r, counts - counts[0]


def star_density(ra: float, dec: float, faint: float) -> float:
    """Stars a square degree with ``STAR_BRIGHT`` < r < ``faint`` at a place (deg)."""
    longitude, latitude = galactic(ra, dec)
    low, high = stars_brighter(np.array([STAR_BRIGHT, faint]) + V_MINUS_R, longitude, latitude)
    return float(high - low)


def star_magnitudes(rng: np.random.Generator, n: int, ra: float, dec: float, faint: float) -> F64:
    """Magnitudes in r as the counts at a place (deg) have them."""
    longitude, latitude = galactic(ra, dec)
    r, counts = _cumulative(round(longitude / 5) * 5, round(latitude / 2) * 2, faint)
    return np.asarray(np.interp(rng.uniform(0, counts[-1], n), counts, r))


def power_law_magnitudes(rng: np.random.Generator, n: int, bright: float, faint: float, slope: float) -> F64:
    """Magnitudes with counts that grow as 10^(slope m)."""
    low, high = 10 ** (slope * bright), 10 ** (slope * faint)
    return np.asarray(np.log10(rng.uniform(low, high, n)) / slope)


def star_colours(rng: np.random.Generator, r: F64) -> F64:
    """PS1 g, r, i, z of stars of magnitude r on the stellar locus: a blue turn-off and a red M-dwarf group.

    Widths and medians after the Pan-STARRS1 stars that are listed in the survey's own alert packets.
    """
    n = len(r)
    red = rng.uniform(size=n) < np.clip(0.25 + 0.06 * (r - 15), 0.15, 0.55)
    gr = np.where(red, rng.normal(1.18, 0.10, n), rng.normal(0.56, 0.19, n))
    # r-i follows g-r up to the M dwarfs, where g-r stands still (Covey et al. 2007, turned into PS1).
    blue_ri = 0.36 * gr + 0.02 + 0.25 * np.maximum(gr - 0.7, 0.0)
    ri = np.where(red, 0.45 + rng.gamma(2.2, 0.18, n), blue_ri) + rng.normal(0, 0.03, n)
    return np.stack([r + gr, r, r - ri, r - 1.5 * ri], axis=1)


def galaxy_density(faint: float) -> float:
    """Galaxies a square degree with ``GALAXY_BRIGHT`` < r < ``faint``."""
    low, high = (10 ** (GALAXY_SLOPE * (limit - DETECTABLE)) for limit in (GALAXY_BRIGHT, faint))
    return GALAXIES * (high - low)
