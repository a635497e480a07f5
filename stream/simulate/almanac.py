"""Sun, Moon and sky over Palomar: where they are, when it is dark, how bright moonlight makes the sky.

Directions are ICRS; altitudes are geometric (no refraction). Good to a hundredth of a degree, which tests hold
against an independent ephemeris.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import erfa  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

LIGHT_DAY = 173.144632674  # AU
SITE = (math.radians(-116.8597), math.radians(33.3573), 1668.0)  # Palomar 48-inch, MPC code I41
ASTRONOMICAL_TWILIGHT = -18.0  # deg, altitude of the sun's centre
LOWER_CULMINATION = 7.79 / 24.0  # days after 0 h UT at which the sun is lowest, to a quarter of an hour
# Dark sky in V at the zenith: 79 nanolamberts are 21.6 mag/arcsec^2 (Krisciunas & Schaefer 1991).
DARK_NANOLAMBERT = 79.0
# Moonlight over dark sky in a filter, compared with V: the moon is as blue as the sun, dark sky is red with airglow.
MOON_COLOUR = {1: 1.4, 2: 0.7, 3: 0.4}
V_EXTINCTION = 0.172  # mag per airmass, as in the moonlight model


def tt_of(jd_utc: float) -> float:
    """Terrestrial Time of a UTC Julian date."""
    day = math.floor(jd_utc - 0.5) + 0.5
    tai1, tai2 = erfa.utctai(day, jd_utc - day)
    tt1, tt2 = erfa.taitt(tai1, tai2)
    return float(tt1 + tt2)


def direction(ra: ArrayLike, dec: ArrayLike) -> F64:
    """Unit vectors, (..., 3), of sky positions (deg)."""
    a, d = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def place(vector: F64) -> tuple[float, float]:
    """Right ascension and declination (deg) of a vector."""
    x, y, z = vector
    return math.degrees(math.atan2(y, x)) % 360.0, math.degrees(math.atan2(z, math.hypot(x, y)))


def separation(ra1: ArrayLike, dec1: ArrayLike, ra2: ArrayLike, dec2: ArrayLike) -> F64:
    """Angle (deg) between sky positions (deg)."""
    cosine = np.sum(direction(ra1, dec1) * direction(ra2, dec2), axis=-1)
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


@lru_cache(maxsize=4096)
def _rotation(jd: float) -> tuple[tuple[float, ...], ...]:
    """Matrix from celestial to terrestrial axes; UT1 is taken as UTC (under a second, 15 arcsec)."""
    return tuple(tuple(map(float, row)) for row in erfa.c2t06a(tt_of(jd), 0.0, jd, 0.0, 0.0, 0.0))


def site_vector(jd: float) -> F64:
    """Geocentric place of the telescope on celestial axes, AU."""
    return np.asarray(np.array(_rotation(jd)).T @ np.asarray(erfa.gd2gc(1, *SITE), float) / erfa.DAU)


def zenith(jd: float) -> F64:
    """Unit vector to the zenith on celestial axes."""
    lon, lat, _ = SITE
    up = np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])
    return np.asarray(np.array(_rotation(jd)).T @ up)


def altitude(ra: ArrayLike, dec: ArrayLike, jd: float) -> F64:
    """Altitude (deg) of sky positions (deg) at a UTC Julian date."""
    return np.degrees(np.arcsin(np.clip(direction(ra, dec) @ zenith(jd), -1.0, 1.0)))


def airmass(altitude_deg: ArrayLike) -> F64:
    """Hardie's airmass at an altitude (deg); infinite within three degrees of the horizon and below it."""
    high = np.asarray(altitude_deg, float) > 3.0
    s = 1.0 / np.sin(np.radians(np.where(high, altitude_deg, 90.0))) - 1.0
    value = s + 1.0 - 0.0018167 * s - 0.002875 * s**2 - 0.0008083 * s**3
    return np.where(high, value, np.inf)


def sun(jd: float) -> tuple[float, float]:
    """Right ascension and declination (deg) of the sun from the Earth's centre."""
    return place(-np.asarray(erfa.epv00(tt_of(jd), 0.0)[0]["p"], float))


@dataclass(frozen=True, slots=True)
class Moon:
    """The moon as seen from Palomar: place and altitude in deg, lit fraction, and whether it grows."""

    ra: float
    dec: float
    altitude: float
    lit: float
    waxing: bool

    @property
    def phase_angle(self) -> float:
        """Angle sun-moon-observer in deg: 0 at full moon."""
        return math.degrees(math.acos(max(-1.0, min(1.0, 2.0 * self.lit - 1.0))))


@lru_cache(maxsize=4096)
def moon(jd: float) -> Moon:
    """The moon at a UTC Julian date."""
    geocentric = np.asarray(erfa.moon98(tt_of(jd), 0.0)["p"], float)
    line = geocentric - site_vector(jd)
    to_sun = -np.asarray(erfa.epv00(tt_of(jd), 0.0)[0]["p"], float)
    ra, dec = place(line)
    back, onward = -line, to_sun - line
    cosine = float(back @ onward / np.linalg.norm(back) / np.linalg.norm(onward))
    moon_longitude, sun_longitude = (_ecliptic_longitude(vector) for vector in (geocentric, to_sun))
    waxing = (moon_longitude - sun_longitude) % 360.0 < 180.0
    return Moon(ra, dec, float(altitude(ra, dec, jd)), 0.5 * (1.0 + cosine), waxing)


def _ecliptic_longitude(vector: F64) -> float:
    tilt = math.radians(23.4393)
    x, y, z = vector
    return math.degrees(math.atan2(math.cos(tilt) * y + math.sin(tilt) * z, x))


@lru_cache(maxsize=64)
def dark_hours(midnight: float) -> tuple[float, float]:
    """Julian dates between which the sun is 18 deg below the horizon, in the night of the UT date that starts then.

    Palomar's night lies within one UT date.
    """
    middle = midnight + LOWER_CULMINATION

    def crossing(bright: float, dark: float) -> float:
        for _ in range(30):
            half = 0.5 * (bright + dark)
            if float(altitude(*sun(half), half)) > ASTRONOMICAL_TWILIGHT:
                bright = half
            else:
                dark = half
        return 0.5 * (bright + dark)

    return crossing(midnight, middle), crossing(midnight + 2 * LOWER_CULMINATION, middle)


def moonlight(ra: ArrayLike, dec: ArrayLike, jd: float, fid: int) -> F64:
    """Brightness that the moon adds to the sky at places (deg), in units of dark sky at the zenith in the filter.

    The model of Krisciunas & Schaefer (1991, PASP 103, 1033), eq. 3, 16, 18 to 21, good to a quarter; zero with the
    moon below the horizon.
    """
    there = moon(jd)
    high = altitude(ra, dec, jd)
    if there.altitude <= 0:
        return np.zeros(np.shape(high))
    phase = there.phase_angle
    illuminance = 10 ** (-0.4 * (3.84 + 0.026 * phase + 4e-9 * phase**4))
    rho = separation(ra, dec, there.ra, there.dec)
    scattering = 10**5.36 * (1.06 + np.cos(np.radians(rho)) ** 2) + 10 ** (6.15 - rho / 40.0)
    through_moon = 10 ** (-0.4 * V_EXTINCTION * _path(there.altitude))
    along_sight = 1.0 - 10 ** (-0.4 * V_EXTINCTION * _path(high))
    nanolambert = scattering * illuminance * through_moon * along_sight
    return np.asarray(MOON_COLOUR[fid] * nanolambert / DARK_NANOLAMBERT)


def _path(altitude_deg: ArrayLike) -> F64:
    """Length of the scattering path at an altitude (deg) over that at the zenith."""
    sine = np.sin(np.radians(np.maximum(np.asarray(altitude_deg, float), 0.0)))
    return np.asarray((1.0 - 0.96 * (1.0 - sine**2)) ** -0.5)


def airglow(altitude_deg: ArrayLike) -> F64:
    """Dark sky at an altitude (deg) over that at the zenith: a thin layer, dimmed on its way down."""
    path = _path(altitude_deg)
    return np.asarray(path * 10 ** (-0.4 * V_EXTINCTION * (path - 1.0)))
