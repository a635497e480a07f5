"""Sun, moon and twilight over Palomar against astropy's own ephemeris and frames."""

from __future__ import annotations

import datetime as dt
import math

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import AltAz, EarthLocation, SkyCoord, get_body, get_sun
from astropy.time import Time
from astropy.utils import iers

from stream.core.identity import jd_of
from stream.simulate import almanac

PALOMAR = EarthLocation(lon=-116.8597 * u.deg, lat=33.3573 * u.deg, height=1668 * u.m)
NIGHTS = [jd_of(dt.datetime(2020, 10, 5)), jd_of(dt.datetime(2019, 1, 21)), jd_of(dt.datetime(2018, 6, 20))]


@pytest.fixture(autouse=True)
def _no_downloads():
    with iers.conf.set_temp("auto_download", False):
        yield


@pytest.mark.parametrize("midnight", NIGHTS)
def test_the_moon_is_where_astropy_has_it(midnight):
    for hour in (3.0, 7.5, 12.0):
        jd = midnight + hour / 24
        when = Time(jd, format="jd")
        ours = almanac.moon(jd)
        theirs = get_body("moon", when, PALOMAR).transform_to(AltAz(obstime=when, location=PALOMAR))
        icrs = SkyCoord(theirs.az, theirs.alt, frame=AltAz(obstime=when, location=PALOMAR)).icrs
        assert SkyCoord(ours.ra * u.deg, ours.dec * u.deg).separation(icrs).deg < 0.02
        assert ours.altitude == pytest.approx(theirs.alt.deg, abs=0.02)
        elongation = get_sun(when).separation(get_body("moon", when, PALOMAR), origin_mismatch="ignore").rad
        assert ours.lit == pytest.approx((1 - math.cos(elongation)) / 2, abs=0.01)
        later = almanac.moon(jd + 0.5)
        assert ours.waxing == (later.lit > ours.lit) or ours.lit > 0.99 or ours.lit < 0.01


@pytest.mark.parametrize("midnight", NIGHTS)
def test_it_is_dark_when_astropys_sun_is_eighteen_degrees_down(midnight):
    for jd in almanac.dark_hours(midnight):
        when = Time(jd, format="jd")
        sun = get_sun(when).transform_to(AltAz(obstime=when, location=PALOMAR))
        assert sun.alt.deg == pytest.approx(-18.0, abs=0.02)
    evening, morning = almanac.dark_hours(midnight)
    assert midnight < evening < morning < midnight + 0.6


def test_altitudes_are_astropys():
    jd = NIGHTS[0] + 0.3
    when = Time(jd, format="jd")
    ra, dec = np.array([0.0, 50.0, 300.0]), np.array([-25.0, 30.0, 80.0])
    theirs = SkyCoord(ra * u.deg, dec * u.deg).transform_to(AltAz(obstime=when, location=PALOMAR))
    assert almanac.altitude(ra, dec, jd) == pytest.approx(theirs.alt.deg, abs=0.02)
    high = theirs.alt.deg > 25
    assert almanac.airmass(theirs.alt.deg)[high] == pytest.approx(theirs.secz.value[high], rel=0.01)
    assert np.isinf(almanac.airmass([-10.0, 1.0])).all()


def test_moonlight_is_strong_near_a_full_moon_and_absent_without_one():
    full = jd_of(dt.datetime(2020, 10, 2, 8))
    there = almanac.moon(full)
    assert there.lit > 0.98
    near, far = almanac.moonlight([there.ra, there.ra], [there.dec + 10, there.dec + 60], full, 1)
    assert near > 2 * far > 2
    assert almanac.moonlight(there.ra, there.dec + 60, full, 3) < far
    dark = jd_of(dt.datetime(2020, 10, 16, 8))
    assert almanac.moonlight(0.0, 30.0, dark, 1) == 0.0
