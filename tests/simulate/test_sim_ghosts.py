"""Reflections and diffraction of bright stars: where they are, how bright, and that the truth says so."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from stream.core.camera import SMALL, Camera
from stream.core.ghosts import GhostGeometry
from stream.simulate import Effects, NightPlan, ghosts, paint_quadrant, schedule
from stream.simulate.optics import Place

WIDE = Camera("wide", 1400, 1400)


def star(x: float, y: float, place: Place, v: float = 5.0, flux: float = 3e8) -> dict[str, np.ndarray]:
    xi, eta = place.of_pixels(x, y)
    return {
        "truth_id": np.array([7]), "v": np.array([v]), "flux": np.array([flux]), "x": np.array([x]),
        "y": np.array([y]), "xi": np.array([float(xi)]), "eta": np.array([float(eta)]),
    }  # fmt: skip


def test_a_halo_is_a_disc_of_367_arcsec_around_its_star():
    place = Place(WIDE, 0.5, -1.0, 0.0)
    image = np.zeros(WIDE.shape, np.float32)
    rows = ghosts.paint_halos(image, star(700.0, 600.0, place), place)
    y, x = np.indices(image.shape)
    r = np.hypot(x - 700, y - 600) * WIDE.pixel_scale
    assert not image[r > 367 + 5].any()
    assert np.allclose(image[r < 367 - 5], 3e8 * ghosts.HALO_LIGHT, rtol=1e-5)
    assert image.max() > 5  # DN, near the noise of the sky
    assert rows[0]["npix"] == np.count_nonzero(image)
    assert json.loads(rows[0]["parameters"])["radius"] == pytest.approx(367 / WIDE.pixel_scale)


def test_a_ghost_moves_against_its_star():
    geometry = GhostGeometry(-0.97, 0.02, -0.03, 150.0, 50.0, 6e-8)
    place = Place(WIDE, 1.0, -2.0, math.radians(0.1))
    # A star on the other side of the boresight, so that its ghost falls here.
    xi, eta = (1.05 - 0.02) / -0.97, (-2.04 + 0.03) / -0.97
    stars = star(0.0, 0.0, place) | {"xi": np.array([xi]), "eta": np.array([eta])}
    image = np.zeros(WIDE.shape, np.float32)
    row = ghosts.paint_ghosts(image, stars, place, geometry)[0]
    x0, y0 = (float(value) for value in place.pixels_of(1.05, -2.04))
    assert (row["x"], row["y"]) == (pytest.approx(x0), pytest.approx(y0))
    y, x = np.indices(image.shape)
    assert np.average(x, weights=image) == pytest.approx(x0, abs=0.5)
    assert np.average(y, weights=image) == pytest.approx(y0, abs=0.5)
    r = np.hypot(x - x0, y - y0) * WIDE.pixel_scale
    ring = (r > 55) & (r < 145)
    assert np.allclose(image[ring], 3e8 * 6e-8, rtol=1e-5)
    assert not image[(r < 45) | (r > 155)].any()
    # The star moves west, the ghost east: by the scale.
    stars["xi"] = stars["xi"] - 0.1
    moved = ghosts.paint_ghosts(np.zeros_like(image), stars, place, geometry)[0]
    assert (x0 - moved["x"]) * WIDE.pixel_scale == pytest.approx(0.097 * 3600, rel=1e-3)


def test_faint_stars_and_far_away_ones_make_none():
    place = Place(SMALL, 0.0, 0.0, 0.0)
    image = np.zeros(SMALL.shape, np.float32)
    geometry = ghosts.true_geometry(1)
    assert not ghosts.paint_ghosts(image, star(100.0, 100.0, place, v=7.5), place, geometry)
    outside = star(100.0, 100.0, place) | {"xi": np.array([4.5])}
    assert not ghosts.paint_ghosts(image, outside, place, geometry)
    assert not ghosts.paint_halos(image, star(5000.0, 100.0, place), place)
    assert not image.any()


def test_the_true_geometry_is_near_the_nominal_and_not_it():
    nominal = GhostGeometry()
    for seed in range(5):
        true = ghosts.true_geometry(seed)
        assert true != nominal
        assert true.scale == pytest.approx(nominal.scale, rel=0.06)
        assert true.radius == pytest.approx(nominal.radius, rel=0.06)
        assert true.inner_radius == pytest.approx(nominal.inner_radius, rel=0.06)
        assert max(abs(true.xi0), abs(true.eta0)) < 0.06


@pytest.mark.parametrize("angle", [0.0, 0.05, -0.04])
def test_spikes_are_four_arms_whose_light_falls_with_the_square(angle):
    place = Place(WIDE, 0.0, 0.0, 0.0)
    image = np.zeros(WIDE.shape, np.float32)
    rows = ghosts.paint_spikes(image, star(700.0, 700.0, place), angle, 2.2)
    assert math.radians(rows[0]["angle"]) == pytest.approx(angle)
    for quarter in range(4):
        a = angle + quarter * math.pi / 2
        for r in (100, 300):
            x, y = 700 + r * math.cos(a), 700 + r * math.sin(a)
            # Across the arm, a slice one px long.
            if quarter % 2 == 0:
                light = image[round(y) - 8 : round(y) + 9, round(x)].sum()
            else:
                light = image[round(y), round(x) - 8 : round(x) + 9].sum()
            assert light * math.cos(angle) == pytest.approx(3e8 * ghosts.SPIKE_LIGHT / r**2, rel=0.05)
    assert image[600, 600] == 0
    faint = np.zeros_like(image)
    assert not ghosts.paint_spikes(faint, star(700.0, 700.0, place, flux=3e4), angle, 2.2)
    assert not faint.any()


def test_the_far_aureole_is_the_sum_over_stars():
    """The binned convolution against the formula, star by star."""
    image = np.zeros((600, 500), np.float32)
    x, y, flux = np.array([120.3, 333.0, -60.0]), np.array([400.0, 80.7, 300.0]), np.array([1e7, 3e6, 2e7])
    ghosts.paint_far_light(image, x, y, flux)
    py, px = np.mgrid[10:590:37, 10:490:31]
    expected = np.zeros(px.shape)
    for star_x, star_y, light in zip(x, y, flux, strict=True):
        r = np.hypot(px - star_x, py - star_y)
        fade = np.clip(1 - r / ghosts.FAR_REACH, 0, 1) * (1 - np.exp(-((r / 14) ** 4)))
        expected += light * ghosts.FAR_LIGHT * fade / (r**2 + ghosts.FAR_CORE**2)
    far = np.min([np.hypot(px - a, py - b) for a, b in zip(x, y, strict=True)], axis=0) > 30
    assert np.abs(image[py, px] / expected - 1)[far].max() < 0.05
    # Nothing within the PSF's own stamp, where the flux is counted.
    assert image[395:406, 115:126].sum() < 2e-4 * 1e7


def test_switched_off_they_leave_no_trace_and_the_truth_has_none():
    plan = NightPlan(camera=SMALL, n_bias=0, n_flat=0, n_science=1, bright_stars=1, satellite=False, qids=(1,), seed=3)
    exposure = schedule(plan)[0]
    names = ("halos", "ghosts", "spikes")
    bare = replace(plan, effects=Effects().without(*names))
    dark, _, rows = paint_quadrant(bare, exposure, 0)
    assert not {row["kind"] for row in rows} & {"halo", "ghost", "spikes"}
    halo, _, rows = paint_quadrant(replace(plan, effects=bare.effects.including("halos")), exposure, 0)
    assert {row["kind"] for row in rows} == {"halo"}
    added = halo - dark
    assert added.min() >= 0
    expected = sum(row["strength"] * row["npix"] for row in rows)
    assert added.sum(dtype=float) == pytest.approx(expected, rel=0.03)
