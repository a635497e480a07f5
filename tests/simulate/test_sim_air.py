"""What the air does: where it moves stars, what it takes of their light, and how bright it is itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from stream.core.camera import FULL, SMALL
from stream.simulate import Effects, NightPlan, air, almanac, paint_quadrant, schedule, true_wcs
from stream.simulate.optics import quadrant_place, throughput, vignetting
from stream.simulate.plan import SimExposure

PLAN = NightPlan(camera=SMALL, n_bias=0, n_flat=0, n_science=3, satellite=False, seed=11, transients=0, asteroids=0)


def science(plan: NightPlan = PLAN, k: int = 0) -> SimExposure:
    return [exposure for exposure in schedule(plan) if exposure.role == "sci"][k]


def test_displacement_is_tens_of_mas_and_alike_over_arcminutes():
    exposure = science()
    rng = np.random.default_rng(4)
    xi, eta = rng.uniform(-3.5, 3.5, (2, 4000))
    east, north = air.displacement(PLAN, exposure, xi, eta)
    for component in (east, north):
        assert component.std() == pytest.approx(air.DISPLACEMENT / 1000, rel=0.35)
        assert np.abs(component).max() < 0.1

    def unlikeness(arcmin: float) -> float:
        angle = rng.uniform(0, 2 * np.pi, len(xi))
        dx, dy = arcmin / 60 * np.cos(angle), arcmin / 60 * np.sin(angle)
        there = air.displacement(PLAN, exposure, xi + dx, eta + dy)[0]
        return float(np.sqrt(np.mean((there - east) ** 2)) / (math.sqrt(2) * east.std()))

    assert unlikeness(0.3) < 0.15
    assert unlikeness(1) < unlikeness(5) < unlikeness(20)
    assert unlikeness(1) < 0.4
    assert unlikeness(60) > 0.6


def test_displacement_is_its_own_in_every_exposure_and_averages_with_time():
    xi, eta = np.random.default_rng(4).uniform(-3.5, 3.5, (2, 2000))
    first, second = (air.displacement(PLAN, science(k=k), xi, eta)[0] for k in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3
    long = replace(science(), exptime=300.0)
    assert air.displacement_size(PLAN, long) == pytest.approx(air.displacement_size(PLAN, science()) / math.sqrt(10))


def test_displacement_is_continuous_from_quadrant_to_quadrant():
    """The same place of the focal plane, reached from two quadrants' pixels, moves the same way on the sky."""
    plan = replace(PLAN, camera=FULL)
    exposure = science(plan)
    one, other = (quadrant_place(plan, exposure, rcid) for rcid in (0, 1))
    x, y = np.array([100.0, 1500.0]), np.array([3000.0, 40.0])
    xi, eta = one.of_pixels(x, y)
    x2, y2 = other.pixels_of(xi, eta)
    assert np.allclose(other.of_pixels(x2, y2), (xi, eta), atol=1e-9)
    moved = [np.array(air.seen_at(plan, exposure, place, *place.pixels_of(xi, eta), 0.6)) for place in (one, other)]
    start = [np.array(place.pixels_of(xi, eta)) for place in (one, other)]
    assert np.allclose(moved[0] - start[0], moved[1] - start[1], atol=1e-6)


def test_places_in_the_focal_plane_are_those_of_the_wcs():
    """Within the distortion, some arcsec, and the projection from another tangent point."""
    from stream.simulate.pointing import telescope_pointing
    from stream.simulate.sky import sky_to_tangent

    plan = replace(PLAN, camera=FULL)
    exposure = science(plan)
    for rcid in (0, 27, 63):
        wcs, place = true_wcs(plan, exposure, rcid), quadrant_place(plan, exposure, rcid)
        x, y = np.array([10.0, 3000.0, 1500.0]), np.array([20.0, 100.0, 2900.0])
        xi, eta = place.of_pixels(x, y)
        xi_sky, eta_sky = sky_to_tangent(*telescope_pointing(exposure), *wcs.to_sky(x, y))
        assert np.abs(3600 * (xi - xi_sky)).max() < 30
        assert np.abs(3600 * (eta - eta_sky)).max() < 30


def test_blue_stars_are_lifted_towards_the_zenith():
    exposure = replace(science(), airmass=1.5, fid=1)
    east, north = air.refraction(PLAN, exposure, np.array([0.1, 0.6, 1.1]))
    size = air.REFRACTION[1] / 1000 * math.sqrt(1.5**2 - 1) * 0.5
    assert np.hypot(east, north) == pytest.approx([size, 0, size])
    # A step towards where the blue star goes raises it.
    step = 600.0 / size
    ra = exposure.ra + east[0] * step / 3600 / math.cos(math.radians(exposure.dec))
    low = almanac.altitude(exposure.ra, exposure.dec, exposure.jd_mid)
    high = almanac.altitude(ra, exposure.dec + north[0] * step / 3600, exposure.jd_mid)
    assert high - low == pytest.approx(600 / 3600, rel=0.02)
    zenith = replace(exposure, airmass=1.0)
    assert not np.any(air.refraction(PLAN, zenith, np.array([0.1, 1.1])))


def test_refraction_agrees_with_a_standard_atmosphere():
    """ERFA's refraction at two wavelengths of a band, pressure of the site, against what we use per mag of colour."""
    import erfa

    for fid, wavelength, per_mag in ((1, 0.480, 9.0), (2, 0.640, 4.5), (3, 0.790, 3.0)):
        blue, red = (erfa.refco(830.0, 10.0, 0.2, wavelength + half * per_mag / 2000)[0] for half in (-1, 1))
        mas = (blue - red) * 206_264_806.0
        assert air.REFRACTION[fid] == pytest.approx(mas, rel=0.25)


def test_airmass_and_colour_take_light():
    plan = replace(PLAN, effects=Effects.only("extinction"))
    low, high = (air.zeropoint(plan, replace(science(), airmass=airmass), 5) for airmass in (2.0, 1.0))
    assert high[0] - low[0] == pytest.approx(0.15)  # r, mag per airmass
    assert low[1] - high[1] == pytest.approx(-air.EXTINCTION_COLOUR[2])
    off = replace(PLAN, effects=Effects.none())
    assert air.zeropoint(off, replace(science(), airmass=2.0), 5) == high


def test_clouds_have_relief_over_the_camera():
    exposure = replace(science(), transparency=0.55, cloud=0.5)
    xi, eta = np.random.default_rng(4).uniform(-3.5, 3.5, (2, 2000))
    lost = air.cloud(PLAN, exposure, xi, eta)
    assert lost.min() >= 0.05 - 1e-9  # haze is even
    assert 0.05 < lost.std() < 0.2
    assert lost.mean() == pytest.approx(0.55, abs=0.15)
    assert np.ptp(air.cloud(PLAN, replace(exposure, cloud=0.0), xi, eta)) == 0
    assert not air.cloud(replace(PLAN, effects=Effects().without("clouds")), exposure, xi, eta).any()
    # The zero point is the middle's; what a star gets beside it is in its flux.
    place = quadrant_place(PLAN, exposure, 9)
    x, y = np.array([0.0, 500.0]), np.array([0.0, 500.0])
    share = air.passed(PLAN, exposure, place, x, y)
    there = air.cloud(PLAN, exposure, *place.of_pixels(x, y)) - air.cloud(PLAN, exposure, place.xi, place.eta)
    assert -2.5 * np.log10(share) == pytest.approx(there)


def test_moonlight_grows_towards_the_moon():
    # 2020-10-05 8:30 UT: a moon three days past full, high up.
    exposure = replace(science(), jd=2459127.85, ra=20.0, dec=10.0, moonlight=500.0, sky=800.0)
    moon = almanac.moon(exposure.jd_mid)
    assert moon.altitude > 20
    xi, eta = np.array([-3.0, 0.0, 3.0]), np.zeros(3)
    level = air.sky_light(exposure, xi, eta)
    assert level[1] == pytest.approx(1.0)
    nearer = almanac.separation(exposure.ra + xi / math.cos(math.radians(10)), np.full(3, 10.0), moon.ra, moon.dec)
    assert level[np.argmin(nearer)] > 1.01 > 0.99 > level[np.argmax(nearer)]
    # Neighbouring quadrants see one sky: their levels agree where they meet.
    plan = replace(PLAN, camera=FULL, effects=Effects.only("moonlight"))
    left, right = air.sky_level(plan, exposure, 0, 9), air.sky_level(plan, exposure, 1, 9)
    assert max(abs(left.min() / right.max() - 1), abs(right.min() / left.max() - 1)) < 0.05
    assert np.ptp(left) > 1.0


def test_vignetting_dims_the_rim():
    assert float(vignetting(0, 0)) > 1.0 > float(vignetting(3.2, 3.3))
    assert np.mean([throughput(PLAN, rcid) for rcid in range(64)]) == pytest.approx(1.0, abs=0.002)
    corner, middle = (air.zeropoint(replace(PLAN, effects=Effects.only("vignetting")), science(), k) for k in (0, 22))
    none = replace(PLAN, effects=Effects.none())
    lost = corner[0] - air.zeropoint(none, science(), 0)[0] - (middle[0] - air.zeropoint(none, science(), 22)[0])
    assert -0.15 < lost < -0.05


def test_painted_stars_are_where_the_air_shows_them():
    """Centroids of bright stars against the truth, and against the WCS alone: the air's shift is in the pixels."""
    plan = replace(PLAN, fid=1, seeing=(2.0, 2.0), star_density=3.0)
    exposure = replace(science(plan), airmass=2.0)
    image, sources, _ = paint_quadrant(plan, exposure, 2)
    rows = sources[0]
    x, y = true_wcs(plan, exposure, 2).to_pixel(rows["ra"], rows["dec"])
    image -= np.median(image)
    bright = (rows["flux"] > 5e3) & (rows["x"] > 20) & (rows["x"] < 490) & (rows["y"] > 20) & (rows["y"] < 490)
    with_air, without = [], []
    for k in np.flatnonzero(bright):
        x0, y0 = round(float(rows["x"][k])), round(float(rows["y"][k]))
        others = np.hypot(rows["x"] - x0, rows["y"] - y0) < 14
        if rows["flux"][others].sum() > 1.005 * rows["flux"][k]:
            continue
        cy, cx = ndimage.center_of_mass(image[y0 - 5 : y0 + 6, x0 - 5 : x0 + 6])
        place = np.array([cx + x0 - 5, cy + y0 - 5])
        with_air.append(np.hypot(*(place - [rows["x"][k], rows["y"][k]])))
        without.append(np.hypot(*(place - [x[k], y[k]])))
    assert len(with_air) > 4
    assert np.median(with_air) < 0.015
    assert np.median(without) > 2 * np.median(with_air)
