"""Trails and comae as they are painted, and lines that go from one CCD to the next."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from stream.core.camera import FULL, SMALL
from stream.simulate import NightPlan, paint_quadrant, schedule, true_wcs
from stream.simulate.crossings import Crossing, crossings, paint_crossings, paint_track
from stream.simulate.moving import Swing, paint_coma, paint_streak, swing_of
from stream.simulate.optics import PsfField
from stream.simulate.pointing import telescope_pointing
from stream.simulate.sky import sky_to_tangent

PSF = PsfField((201, 201), (1.6, *[0.0] * 5), (0.0,) * 6, (0.0,) * 6)
STILL = Swing(0.0, 0.0, 10.0, 0.0)


def blank(n: int = 201) -> np.ndarray:
    return np.zeros((n, n), np.float32)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.6])
def test_a_streaks_light_grows_along_it_by_its_slope(slope):
    image = blank()
    paint_streak(image, (40.0, 60.0, 160.0, 140.0), 1e5, PSF, (slope, STILL, 30.0))
    assert image.sum(dtype=float) == pytest.approx(1e5, rel=0.01)
    y, x = np.indices(image.shape)
    length = math.hypot(120, 80)
    along = ((x - 40) * 120 + (y - 60) * 80) / length
    light = np.histogram(along, np.linspace(0.1, 0.9, 9) * length, weights=image)[0]
    fitted = np.polyfit(np.linspace(0.15, 0.85, 8) * 2 - 1, light / light.mean(), 1)
    assert fitted[0] / fitted[1] == pytest.approx(slope, abs=0.04)


def test_a_streak_swings_about_its_line_by_its_wobble():
    swing = Swing(0.0, 1.5, 10.0, 0.1)
    image = blank()
    paint_streak(image, (40.0, 100.0, 160.0, 100.0), 1e5, PSF, (0.0, swing, 30.0))
    rows = np.arange(201)[:, None]
    columns = np.arange(50, 150)
    centre = (image * rows).sum(axis=0)[columns] / image.sum(axis=0)[columns] - 100
    seconds = (columns - 40) / 120 * 30
    assert np.corrcoef(centre, swing.at(seconds)[1])[0, 1] > 0.98
    assert np.ptp(centre) == pytest.approx(2 * swing.size, rel=0.15)


def test_the_swing_of_an_exposure_is_a_fraction_of_a_pixel():
    plan = NightPlan(n_science=30, cadence=60)
    sizes = [swing_of(plan, e).size for e in schedule(plan) if e.role == "sci"]
    assert 0.05 < np.median(sizes) < 0.5
    assert max(sizes) < 1.5


def test_a_coma_thins_out_with_distance_and_has_its_light():
    image = blank()
    paint_coma(image, (100.3, 99.8), 5e4, 15.0, 2.0)
    assert image.sum(dtype=float) == pytest.approx(5e4, rel=1e-3)
    y, x = np.indices(image.shape)
    r = np.hypot(x - 100.3, y - 99.8)
    inner, outer = (image[np.abs(r - radius) < 0.7].mean() for radius in (5.0, 10.0))
    assert inner / outer == pytest.approx(2 * math.exp(5 / 15), rel=0.05)
    assert not image[r > 61].any()


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2, math.pi / 2, 2.0, 4.0])
def test_a_track_has_its_light_at_every_angle(angle):
    image = blank()
    t = np.arange(-150, 150, 0.5)
    x, y = 100.0 + t * math.cos(angle), 90.0 + t * math.sin(angle)
    pixels, values = paint_track(image, x, y, np.full(len(t), 200.0), 2.5)
    yy, xx = np.indices(image.shape)
    disc = np.hypot(xx - 100, yy - 90) < 60
    assert image[disc].sum() == pytest.approx(200.0 * 120, rel=0.03)
    across = np.abs((xx - 100) * math.sin(angle) - (yy - 90) * math.cos(angle))
    assert image[across > 8].max() < 0.01
    assert image.reshape(-1)[pixels] == pytest.approx(values, rel=1e-5)
    assert len(pixels) > 400
    assert image.reshape(-1)[pixels].min() >= 0.05 * values.max() * 0.9


def test_flashes_come_with_their_period():
    line = Crossing(1, "satellite", -5.0, 0.0, 5.0, 0.0, 100.0, period=2.0, phase=0.25, duty=0.2, floor=0.1)
    share = np.linspace(0, 1, 30_001)
    light = line.light_at(share, 30.0)
    assert light.max() == pytest.approx(100.0, rel=1e-3)
    assert light.min() == pytest.approx(10.0, rel=0.05)
    peaks = np.flatnonzero((light[1:-1] > light[:-2]) & (light[1:-1] >= light[2:]) & (light[1:-1] > 50))
    assert np.diff(peaks) * 30 / 30_000 == pytest.approx(np.full(14, 2.0), abs=0.01)
    assert (replace(line, period=0.0).light_at(share, 30.0) == 100.0).all()


@pytest.fixture(scope="module")
def busy() -> NightPlan:
    return NightPlan(
        camera=FULL, n_science=12, cadence=60, satellites=4.0, aircraft=0.5, satellite=False, star_density=0,
        galaxy_density=0, transients=0, eruptive=0, faders=0, asteroids=0, streaks=0, ccds=tuple(range(1, 17)),
    )  # fmt: skip


def test_their_number_is_the_plans_rate(busy):
    science = [e for e in schedule(busy) if e.role == "sci"]
    every = [line for e in science for line in crossings(busy, e)]
    satellites = sum(line.kind == "satellite" for line in every)
    assert abs(satellites - 48) < 4 * math.sqrt(48)
    aircraft = [line for line in every if line.kind == "aircraft"]
    assert len(aircraft) % 2 == 0
    for left, right in zip(aircraft[::2], aircraft[1::2], strict=True):
        assert left.truth_id == right.truth_id
        assert (left.xi2 - left.xi1, left.eta2 - left.eta1) == pytest.approx(
            (right.xi2 - right.xi1, right.eta2 - right.eta1)
        )
        assert 0.04 < math.hypot(left.xi1 - right.xi1, left.eta1 - right.eta1) < 0.21
    assert crossings(busy, schedule(replace(busy, n_reference=1))[10]) == ()
    assert crossings(replace(busy, satellites=0.0, aircraft=0.0), science[0]) == ()


def test_a_trail_goes_on_from_one_ccd_to_the_next(busy):
    """Ends of a trail's pieces on all quadrants, through their true WCS, lie on its one line in the focal plane."""
    exposure = next(e for e in schedule(busy) if any(abs(c.xi1 - c.xi2) > 5 for c in crossings(busy, e)))
    line = next(c for c in crossings(busy, exposure) if abs(c.xi1 - c.xi2) > 5)
    direction = np.array([line.xi2 - line.xi1, line.eta2 - line.eta1])
    direction /= np.hypot(*direction)
    seen = 0
    for rcid in range(0, 64, 3):
        image = np.zeros(FULL.shape, np.float32)
        for row in paint_crossings(busy, exposure, rcid, image, 6.2):
            if row["truth_id"] != line.truth_id:
                continue
            ra, dec = true_wcs(busy, exposure, rcid).to_sky([row["x1"], row["x2"]], [row["y1"], row["y2"]])
            xi, eta = sky_to_tangent(*telescope_pointing(exposure), ra, dec)
            off = (xi - line.xi1) * direction[1] - (eta - line.eta1) * direction[0]
            assert np.abs(off).max() * 3600 < 1.0
            pixels, values = row["pixels"][0], row["values"][0]
            assert len(pixels) == row["npix"] == len(values)
            if len(crossings(busy, exposure)) == 1:
                assert image.reshape(-1)[pixels] * 6.2 == pytest.approx(values, rel=1e-4)
            seen += 1
    assert seen >= 2


def test_the_plans_one_satellite_crosses_its_first_quadrant():
    plan = NightPlan(camera=SMALL, n_science=3, ccds=(6,), qids=(2, 3))
    science = [e for e in schedule(plan) if e.role == "sci"]
    for k, exposure in enumerate(science):
        _, _, artefacts = paint_quadrant(plan, exposure, plan.rcids[0])
        trails = [row for row in artefacts if row["kind"] == "satellite"]
        assert len(trails) == (1 if k == 1 else 0)
        for row in trails:
            assert row["npix"] > 1000
            assert row["strength"] == 250.0
    assert crossings(replace(plan, satellite=False), science[1]) == ()
