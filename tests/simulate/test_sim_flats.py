"""How evenly the camera sees, part by part, and what a dome flat does not show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from stream.core.camera import FULL, SMALL
from stream.simulate import Effects, NightPlan, detector, fields, flats, paint_quadrant, schedule

PLAN = NightPlan(camera=SMALL, n_bias=0, n_flat=1, n_science=1, satellite=False, seed=11)
NIGHT = flats.night_of(PLAN.midnight)


def only(*names: str, **changes: object) -> NightPlan:
    return replace(PLAN, effects=Effects.only(*names), **changes)  # type: ignore[arg-type]


def test_the_response_has_median_one_and_its_defects():
    for rcid in (0, 5):
        flat = flats.response(PLAN, rcid, 2, NIGHT)
        assert np.median(flat) == pytest.approx(1.0, abs=2e-3)
        bad = detector.defects(PLAN.seed, SMALL, rcid)
        assert (flat.reshape(-1)[bad.dead] <= 0.05).all()
        clean = flats.response(replace(PLAN, effects=Effects().without("defects")), rcid, 2, NIGHT)
        low = np.setdiff1d(bad.low, bad.dead)
        ratio = flat.reshape(-1)[low] / clean.reshape(-1)[low]
        assert ((ratio > 0.25) & (ratio < 0.9)).all()
        assert 0.85 < clean.min() < 1.0 < clean.max() < 1.15


def test_pixels_are_the_same_in_every_filter_and_slopes_are_not():
    one, other = (flats.response(only("flat_small"), 3, fid, NIGHT) for fid in (1, 2))
    assert np.array_equal(one, other)
    assert one.std() == pytest.approx(flats.PIXEL_FLAT, rel=0.02)
    one, other = (flats.response(only("flat_large"), 3, fid, NIGHT) for fid in (1, 2))
    assert 0.005 < np.std(one / other) < 0.1
    assert np.abs(np.diff(one, axis=0)).max() < 1e-3


def test_without_effects_the_response_is_one():
    assert (flats.response(only(), 3, 2, NIGHT) == 1).all()
    assert (flats.lamp(only(), 3, 2) == 1).all()
    assert (flats.shutter(only(), schedule(PLAN)[1], 3) == 1).all()


def test_dust_settles_elsewhere_every_night():
    nights = [flats.dust(1, FULL, 0, NIGHT + k) for k in range(60)]
    step = np.array([[(r.x, r.y) for r in rings] for rings in nights])
    moved = np.hypot(*np.moveaxis(np.diff(step, axis=0), -1, 0))
    assert 0 < np.median(moved) < 6  # px
    jumps = (moved > 50).sum(axis=0)
    assert ((jumps >= 1) & (jumps <= 3)).all()  # a grain in twenty-five nights
    tonight, tomorrow = (flats.response(only("dust"), 0, 2, NIGHT + k) for k in (0, 1))
    assert tonight.min() < 0.993
    assert 0 < np.abs(tonight / tomorrow - 1).max() < 0.01


def test_the_lamp_differs_from_the_sky_by_a_percent_and_slowly():
    spans = [np.ptp(flats.lamp(replace(PLAN, camera=FULL), rcid, 2)) for rcid in range(0, 64, 5)]
    assert 0.004 < np.median(spans) < 0.03
    assert max(spans) < 0.06
    # It is in dome flats and not in the sky's light.
    flat_exposure, sky_exposure = schedule(PLAN)
    for exposure, shown in ((flat_exposure, True), (sky_exposure, False)):
        light = np.ones(SMALL.shape, np.float32)
        flats.expose(light, only("lamp"), exposure, 4, 2.0)
        expected = fields.spread(flats.lamp(PLAN, 4, 2), SMALL.shape).rows(0, SMALL.ny)
        assert np.allclose(light, 2.0 * (expected if shown else 1.0), rtol=1e-6)


def test_the_shutter_matters_for_short_exposures():
    exposure = schedule(PLAN)[1]
    short, long = (flats.shutter(only("shutter", camera=FULL), replace(exposure, exptime=t), 0) for t in (0.5, 30.0))
    assert np.ptp(short) == pytest.approx(60 * np.ptp(long), rel=1e-6)
    assert 5e-4 < np.abs(short - 1).max() < 0.02
    assert np.abs(long - 1).max() < 2e-4
    middle = flats.shutter(only("shutter", camera=FULL), replace(exposure, exptime=0.5), 22)
    assert middle.mean() > short.mean()  # open longer in the middle


def test_fringes_are_a_percent_of_the_sky_in_i_alone():
    plan = replace(only("fringes"), fid=3, star_density=0.0, transients=0, asteroids=0, streaks=0)
    exposure = next(e for e in schedule(plan) if e.role == "sci")
    pattern = flats.fringes(plan.seed, SMALL, 0)
    assert np.abs(pattern).max() <= 1.0
    assert pattern.std() == pytest.approx(0.7, abs=0.15)
    image = paint_quadrant(plan, exposure, 0)[0]
    smooth = paint_quadrant(replace(plan, effects=Effects.none()), exposure, 0)[0]
    assert np.allclose(image - smooth, exposure.sky * flats.FRINGE * pattern, rtol=1e-3, atol=0.01)
    red = replace(exposure, fid=2)
    both = [paint_quadrant(replace(plan, effects=e), red, 0)[0] for e in (Effects.only("fringes"), Effects.none())]
    assert np.array_equal(*both)
    assert np.array_equal(pattern, flats.fringes(plan.seed, SMALL, 0))
    # Waves, not noise: neighbours agree, and there are several of them.
    assert np.abs(np.diff(flats.fringes(1, FULL, 0), axis=1)).max() < 0.5
    signs = np.sign(ndimage.zoom(flats.fringes(1, FULL, 0), 0.05, order=1))
    assert (np.diff(signs, axis=1) != 0).sum(axis=1).mean() > 4


def test_a_coarse_grid_is_read_as_a_bilinear_surface():
    grid = np.random.default_rng(2).normal(size=(7, 7))
    surface = fields.spread(grid, (120, 90))
    expected = ndimage.map_coordinates(grid, np.meshgrid(np.linspace(0, 6, 120), np.linspace(0, 6, 90), indexing="ij"),
                                       order=1)  # fmt: skip
    assert np.allclose(surface.rows(0, 120), expected, atol=1e-5)
    assert np.allclose(surface.rows(33, 60), expected[33:60], atol=1e-5)
