"""Painted light against its truth: places, fluxes, shapes, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stream.core.camera import SMALL
from stream.simulate import NightPlan, paint_quadrant, schedule
from stream.simulate.optics import PsfField
from stream.simulate.painter import (
    STAMP_SIZES,
    paint_galaxies,
    paint_stars,
    paint_trail,
    psf_weights,
    stamp_sizes,
)

PSF = PsfField((201, 201), (1.8, 0.05, -0.03, 0.02, 0.0, 0.01), (0.03, *[0.0] * 5), (0.02, *[0.0] * 5))


def blank(n: int = 201) -> np.ndarray:
    return np.zeros((n, n), np.float32)


def centroid(image: np.ndarray) -> tuple[float, float]:
    y, x = np.indices(image.shape)
    total = image.sum(dtype=float)
    return float((x * image).sum(dtype=float) / total), float((y * image).sum(dtype=float) / total)


@pytest.mark.parametrize(("x", "y"), [(100.0, 100.0), (90.31, 107.77), (100.5, 99.5)])
def test_a_star_lies_where_it_should_with_its_flux(x, y):
    image = blank()
    paint_stars(image, np.array([x]), np.array([y]), np.array([1e5]), PSF)
    cx, cy = centroid(image)
    assert (cx, cy) == pytest.approx((x, y), abs=0.005)
    yy, xx = np.indices(image.shape)
    core = (abs(xx - x) < 12.5) & (abs(yy - y) < 12.5)
    assert image[core].sum(dtype=float) == pytest.approx(1e5, rel=2e-3)
    assert image.sum(dtype=float) > image[core].sum(dtype=float)  # wings beyond


def test_many_stars_add_up_as_single_ones_do():
    rng = np.random.default_rng(1)
    x, y, flux = rng.uniform(-5, 205, 60), rng.uniform(-5, 205, 60), np.exp(rng.uniform(4, 13, 60))
    together, single = blank(), blank()
    paint_stars(together, x, y, flux, PSF)
    for k in range(60):
        paint_stars(single, x[k : k + 1], y[k : k + 1], flux[k : k + 1], PSF)
    assert np.allclose(together, single, rtol=1e-4, atol=1e-2)


def test_bright_stars_get_larger_stamps():
    sizes = stamp_sizes(np.array([50.0, 1e3, 1e5, 1e7, 1e12]), np.full(5, 1.8))
    assert (np.diff(sizes) >= 0).all()
    assert sizes[0] == STAMP_SIZES[0]
    assert sizes[-1] == STAMP_SIZES[-1]


def test_nothing_to_paint_is_no_error():
    image, none = blank(), np.zeros(0)
    paint_stars(image, none, none, none, PSF)
    paint_galaxies(image, none, none, none, (none, none, none, none), PSF)
    assert not image.any()


def test_a_point_like_galaxy_is_a_star():
    star, galaxy = blank(), blank()
    place, flux = (np.array([100.3]), np.array([99.6])), np.array([1e4])
    paint_stars(star, *place, flux, PSF)
    paint_galaxies(galaxy, *place, flux, (np.array([1e-3]), np.array([0.7]), np.array([0.3]), np.array([0.0])), PSF)
    assert np.abs(star - galaxy).max() < 0.01 * star.max()
    assert psf_weights().sum() == pytest.approx(1.0)


def test_a_galaxy_has_its_flux_place_and_shape():
    image = blank()
    angle, ratio, radius = 0.6, 0.5, 8.0
    shape = (np.array([radius]), np.array([ratio]), np.array([angle]), np.array([0.0]))
    paint_galaxies(image, np.array([100.2]), np.array([99.7]), np.array([1e5]), shape, PSF)
    # Truth convention: the flux counts as a star's does, so all the light is more by what lies beyond a core.
    total = 1e5 / float(PSF.core_fraction(100.2, 99.7))
    assert image.sum(dtype=float) == pytest.approx(total, rel=0.01)
    cx, cy = centroid(image)
    assert (cx, cy) == pytest.approx((100.2, 99.7), abs=0.02)
    y, x = np.indices(image.shape)
    u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
    v = -(x - cx) * math.sin(angle) + (y - cy) * math.cos(angle)
    along = math.sqrt((image * u * u).sum() / image.sum())
    across = math.sqrt((image * v * v).sum() / image.sum())
    assert across < 0.65 * along
    half_light = image[np.hypot(u, v / ratio) < radius].sum() / image.sum()
    assert half_light == pytest.approx(0.5, abs=0.06)  # smeared a little by the PSF


def test_a_bulge_is_more_concentrated_than_a_disc():
    peaks = []
    for bulge in (0.0, 1.0):
        image = blank()
        shape = (np.array([8.0]), np.array([1.0]), np.array([0.0]), np.array([bulge]))
        paint_galaxies(image, np.array([100.0]), np.array([100.0]), np.array([1e5]), shape, PSF)
        peaks.append(image.max())
    assert peaks[1] > 1.5 * peaks[0]


def test_a_trail_has_its_flux_middle_and_length():
    image = blank()
    paint_trail(image, (60.0, 80.0, 140.0, 110.0), 5e4, PSF)
    assert centroid(image) == pytest.approx((100.0, 95.0), abs=0.05)
    assert image.sum(dtype=float) == pytest.approx(5e4, rel=0.01)
    y, x = np.indices(image.shape)
    length = math.hypot(80, 30)
    u = ((x - 100) * 80 + (y - 95) * 30) / length
    spread = math.sqrt((image * u * u).sum() / image.sum())
    width = PSF.at(100, 95)[0]
    assert spread == pytest.approx(math.sqrt(length**2 / 12 + width**2), rel=0.03)


def test_truth_places_and_fluxes_hold_on_the_painted_quadrant():
    """Isolated bright stars of a whole painted sky: centroid and core sum against the truth rows."""
    plan = NightPlan(camera=SMALL, n_bias=0, n_flat=0, n_science=1, satellite=False, seed=4)
    exposure = schedule(plan)[0]
    image, sources, _ = paint_quadrant(plan, exposure, 1)
    rows = sources[0]
    x, y, flux = rows["x"], rows["y"], rows["flux"]
    checked = 0
    for k in np.flatnonzero((flux > 2e4) & (flux < 1e6) & (x > 30) & (x < 480) & (y > 30) & (y < 480)):
        near = np.hypot(x - x[k], y - y[k]) < 25
        if flux[near].sum() > 1.01 * flux[k] or rows["kind"][k] == "galaxy":
            continue
        cx, cy = round(float(x[k])), round(float(y[k]))
        stamp = image[cy - 12 : cy + 13, cx - 12 : cx + 13].astype(float)
        ring = np.concatenate([stamp[0], stamp[-1], stamp[:, 0], stamp[:, -1]])
        stamp -= np.median(ring)
        assert stamp.sum() == pytest.approx(flux[k], rel=0.03)
        assert np.add(centroid(stamp[6:19, 6:19]), (cx - 6, cy - 6)) == pytest.approx((x[k], y[k]), abs=0.06)
        checked += 1
    assert checked >= 3
