"""Catalogue positions at the time of an exposure: proper motion, and parallax where asked for."""

from __future__ import annotations

import erfa  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from stream.core.records import Table

F64 = NDArray[np.float64]

J2000_JD = 2451545.0
JULIAN_YEAR = 365.25  # days
_MAS = np.pi / 180.0 / 3600e3  # rad


def propagate(gaia: Table, jd: float, parallax: bool = False) -> tuple[F64, F64]:
    """Place of catalogue stars at another time.

    The star moves along a straight line in the tangent plane of its catalogue place (the standard model of
    space motion, Hipparcos Catalogue vol. 1 §1.2.8, without radial velocity); the direction is then normalised.

    Parameters
    ----------
    gaia : structured array
        Needs ``ra``, ``dec`` (deg, ICRS at ``ref_epoch``), ``pmra`` (mas/yr, with cos dec), ``pmdec``,
        ``parallax`` (mas) and ``ref_epoch`` (Julian year). NaN motion or parallax counts as 0, a NaN epoch
        leaves the star where it is.
    jd : float
        UTC Julian date; that UTC is not TDB moves no star by a microarcsecond.
    parallax : bool
        Also shift by the annual parallax as seen from the Earth's centre.

    Returns
    -------
    ra, dec : ndarray, float64
        Degrees, ra in 0..360.
    """
    ra, dec = np.radians(gaia["ra"].astype(float)), np.radians(gaia["dec"].astype(float))
    years = np.nan_to_num((jd - J2000_JD) / JULIAN_YEAR - (gaia["ref_epoch"].astype(float) - 2000.0))
    east = np.nan_to_num(gaia["pmra"].astype(float)) * _MAS * years
    north = np.nan_to_num(gaia["pmdec"].astype(float)) * _MAS * years
    sin_ra, cos_ra, sin_dec, cos_dec = np.sin(ra), np.cos(ra), np.sin(dec), np.cos(dec)
    x = cos_dec * cos_ra - east * sin_ra - north * sin_dec * cos_ra
    y = cos_dec * sin_ra + east * cos_ra - north * sin_dec * sin_ra
    z = sin_dec + north * cos_dec
    if parallax:
        earth = erfa.epv00(jd, 0.0)[1]["p"]  # barycentric, au
        angle = np.nan_to_num(gaia["parallax"].astype(float)) * _MAS
        x, y, z = x - angle * earth[0], y - angle * earth[1], z - angle * earth[2]
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


def position_errors(gaia: Table, jd: float) -> F64:
    """Expected error (arcsec, per axis) of the propagated places.

    The catalogue's own position error, and for stars without a measured motion the motion they may have: two
    thirds of the faint ones move by less than about 5 mas/yr.
    """
    with np.errstate(invalid="ignore"):
        place = np.hypot(np.nan_to_num(gaia["ra_error"]), np.nan_to_num(gaia["dec_error"])) / np.sqrt(2.0)
    years = np.nan_to_num((jd - J2000_JD) / JULIAN_YEAR - (gaia["ref_epoch"].astype(float) - 2000.0))
    unknown = np.isnan(gaia["pmra"]) | np.isnan(gaia["pmdec"])
    return np.asarray(np.hypot(place, np.where(unknown, 5.0 * np.abs(years), 0.0)) / 1000.0, float)
