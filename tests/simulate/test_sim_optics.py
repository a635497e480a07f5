"""The WCS and the PSF under which the sky is painted, judged by their definitions."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS
from scipy import integrate

from stream.core.camera import FULL, SMALL, nominal_wcs
from stream.simulate import Effects, NightPlan, psf_field, schedule, true_wcs, wcs_of
from stream.simulate.optics import (
    BETA_CORE,
    WING_FRACTION,
    WING_SCALE,
    PsfField,
    dispersion,
    noise_area,
    parallactic_angle,
)
from stream.simulate.pointing import common_error


def plan_of(**how) -> NightPlan:
    return NightPlan(**{"camera": SMALL, "n_bias": 0, "n_flat": 0, "n_science": 1, **how})


def science(plan: NightPlan):
    return next(exposure for exposure in schedule(plan) if exposure.role == "sci")


@pytest.mark.parametrize(("camera", "seed"), [(FULL, 1), (FULL, 2), (SMALL, 3)])
def test_pixels_to_sky_and_back(camera, seed):
    plan = plan_of(camera=camera, seed=seed)
    wcs = true_wcs(plan, science(plan), 0)
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-20, camera.nx + 20, 200), rng.uniform(-20, camera.ny + 20, 200)
    x1, y1 = wcs.to_pixel(*wcs.to_sky(x, y))
    assert np.allclose(x1, x, atol=1e-5)
    assert np.allclose(y1, y, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_distortion_at_the_corners_is_of_the_size_promised(seed):
    plan = plan_of(camera=FULL, seed=seed)
    full = true_wcs(plan, science(plan), 0).wcs
    flat = WCS(naxis=2)
    flat.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    flat.wcs.crval, flat.wcs.crpix, flat.wcs.cd = full.wcs.crval, full.wcs.crpix, full.wcs.cd
    x, y = np.array([0, 3071, 3071, 0.0]), np.array([0, 0, 3079, 3079.0])
    ra1, dec1 = full.all_pix2world(x, y, 0)
    ra2, dec2 = flat.all_pix2world(x, y, 0)
    shift = 3600 * np.hypot((ra1 - ra2) * np.cos(np.radians(dec1)), dec1 - dec2)
    assert 1.2 < shift.max() < 3.3  # half to the whole of 3 arcsec, and a percent of drift in each term


@pytest.mark.parametrize("seed", range(6))
def test_pointing_and_rotation_are_what_a_solver_is_promised(seed):
    plan = plan_of(camera=FULL, seed=seed)
    exposure = science(plan)
    for rcid in (0, 17, 38, 63):
        nominal = nominal_wcs(FULL, exposure.ra, exposure.dec, rcid)
        true = true_wcs(plan, exposure, rcid).wcs
        ra, dec = nominal.all_pix2world(1535.5, 1539.5, 0)
        x, y = true.all_world2pix(ra, dec, 0)
        off = math.hypot(x - 1535.5, y - 1539.5) * FULL.pixel_scale / 60
        assert off < 4.0  # arcmin, interfaces.md
        turn = np.asarray(true.wcs.cd) @ np.linalg.inv(nominal.wcs.cd)
        angle = math.degrees(math.atan2(turn[1, 0], turn[0, 0]))
        assert 0.05 < abs(angle) < 0.2
    assert 0.5 * plan.pointing_error < math.hypot(*common_error(plan)[:2]) <= plan.pointing_error


def test_exposures_of_a_field_lie_on_one_another():
    plan = plan_of(n_science=4, n_reference=4)
    centres = [true_wcs(plan, e, 0).wcs.wcs.crval for e in schedule(plan)]
    spread = 3600 * np.ptp(np.array(centres), axis=0)
    assert spread.max() < 40  # arcsec: guiding, not the pointing error
    assert spread.max() > 0.5


def test_header_of_the_truth_table_gives_the_same_wcs():
    plan = plan_of()
    wcs = true_wcs(plan, science(plan), 2)
    again = wcs_of(json.loads(wcs.header))
    assert np.array_equal(wcs.to_sky([3.0, 400.0], [5.0, 100.0]), again.to_sky([3.0, 400.0], [5.0, 100.0]))
    assert json.loads(wcs.header)["CTYPE1"] == "RA---TPV"


def test_far_positions_are_not_near():
    plan = plan_of()
    wcs = true_wcs(plan, science(plan), 2)
    ra, dec = wcs.to_sky([256.0], [256.0])
    assert wcs.is_near(ra, dec).all()
    assert not wcs.is_near(ra, dec + 2).any()
    assert wcs.to_pixel([], [])[0].size == 0
    assert wcs.to_sky([], [])[0].size == 0


def profile(x: float, y: float, alpha: float) -> float:
    q = (x * x + y * y) / alpha**2
    core = (1 - WING_FRACTION) * (BETA_CORE - 1) / (math.pi * alpha**2) * (1 + q) ** -BETA_CORE
    return core + WING_FRACTION / (math.pi * (WING_SCALE * alpha) ** 2) * (1 + q / WING_SCALE**2) ** -2


@pytest.mark.parametrize("alpha", [1.4, 2.0, 3.0])
def test_pixel_values_are_the_profile_integrated_over_the_pixel(alpha):
    field = PsfField((64, 64), (alpha, *[0.0] * 5), (0.0,) * 6, (0.0,) * 6)
    stamp = field.stamps(np.array([30.3]), np.array([29.9]), 25)[0]
    fraction, _ = integrate.dblquad(lambda y, x: profile(x, y, alpha), -12.5, 12.5, -12.5, 12.5, epsabs=1e-7)
    for i, j in ((12, 12), (13, 12), (12, 15), (18, 10)):
        x0, y0 = i - 12 - 0.3, j - 12 + 0.1
        value, _ = integrate.dblquad(lambda y, x: profile(x, y, alpha), x0 - 0.5, x0 + 0.5, y0 - 0.5, y0 + 0.5)
        assert stamp[j, i] == pytest.approx(value / fraction, rel=2e-3)


def test_the_core_holds_the_flux_wherever_the_star_falls():
    field = PsfField((64, 64), (1.5, *[0.0] * 5), (0.05, *[0.0] * 5), (-0.03, *[0.0] * 5))
    rng = np.random.default_rng(5)
    x, y = rng.uniform(20, 40, 50), rng.uniform(20, 40, 50)
    assert np.allclose(field.stamps(x, y, 25).sum(axis=(1, 2)), 1.0, atol=2e-3)
    centred = field.stamps(np.array([30.0]), np.array([30.0]), 25).sum()
    assert centred == pytest.approx(1.0, abs=3e-4)


@pytest.mark.parametrize("seeing", [1.6, 2.3, 3.0])
def test_seeing_is_the_width_of_the_painted_star(seeing):
    plan = plan_of(seeing=(seeing, seeing), effects=Effects().without("psf_variation"))
    exposure = science(plan)
    field = psf_field(plan, exposure, 1)
    # A cut through the middle, sampled by stars at many fractions of a pixel.
    fractions = np.linspace(-0.5, 0.5, 41)[:-1]
    stamps = field.stamps(100 + fractions, np.full(40, 100.0), 15)
    offsets = (np.arange(-7, 8)[None, :] - fractions[:, None]).ravel()
    values = stamps[:, 7, :].ravel()
    order = np.argsort(np.abs(offsets))
    half = np.interp(-0.5 * values.max(), -values[order], np.abs(offsets)[order])
    assert 2 * half == pytest.approx(seeing, rel=0.01)
    assert float(field.fwhm(plan.camera.nx / 2 - 0.5, plan.camera.ny / 2 - 0.5)) == pytest.approx(seeing, rel=2e-3)


def test_psf_varies_by_percents_over_the_quadrant():
    plan = plan_of(camera=FULL)
    exposure = science(plan)
    x, y = np.meshgrid(np.linspace(0, 3071, 7), np.linspace(0, 3079, 7))
    fwhm = psf_field(plan, exposure, 5).fwhm(x, y)
    assert 0.01 < np.ptp(fwhm) / np.median(fwhm) < 0.25
    ellipticity = np.hypot(*psf_field(plan, exposure, 5).at(x, y)[1:])
    assert ellipticity.max() < 0.15


def test_noise_area_agrees_with_the_closed_form():
    """A Moffat disc has pi alpha^2 (2 beta - 1) / (beta - 1)^2; pixel and aureole change that by percents."""
    for fwhm in (2.5, 4.0):
        alpha = fwhm / (2 * math.sqrt(2 ** (1 / BETA_CORE) - 1))
        expected = math.pi * alpha**2 * (2 * BETA_CORE - 1) / (BETA_CORE - 1) ** 2
        assert noise_area(fwhm) == pytest.approx(expected, rel=0.1)


def test_coma_moves_neither_flux_nor_centroid():
    """A lopsided star against the same one without: as much light, at the same place, but skewed."""
    flat = (0.0,) * 5
    field = PsfField((201, 201), (2.0, *flat), (0.0,) * 6, (0.0,) * 6, (0.15, *flat), (-0.05, *flat))
    even = PsfField((201, 201), (2.0, *flat), (0.0,) * 6, (0.0,) * 6)
    x = y = np.array([100.0])
    stamp, plain = (part.stamps(x, y, 61)[0].astype(float) for part in (field, even))
    dy, dx = np.indices(stamp.shape) - 30.0
    assert stamp.min() > 0
    assert stamp.sum() == pytest.approx(plain.sum(), rel=1e-4)
    assert abs((stamp * dx).sum()) < 2e-3
    assert abs((stamp * dy).sum()) < 2e-3
    skew = (stamp * dx * (dx**2 + dy**2))[20:41, 20:41].sum()
    assert abs(skew) > 50 * abs((plain * dx * (dx**2 + dy**2))[20:41, 20:41].sum())
    assert np.abs(stamp - plain).max() > 0.01 * plain.max()


def test_defocus_widens_and_follows_the_focal_plane():
    """The camera's median is the exposure's seeing; quadrants differ by percents; without variation all are alike."""
    plan = plan_of(seeing=(2.2, 2.2))
    exposure = science(plan)
    middle = (plan.camera.nx - 1) / 2, (plan.camera.ny - 1) / 2
    widths = np.array([float(psf_field(plan, exposure, rcid).fwhm(*middle)) for rcid in range(64)])
    assert np.median(widths) == pytest.approx(2.2, rel=0.08)
    assert 0.01 < widths.std() / 2.2 < 0.12
    plain = plan_of(seeing=(2.2, 2.2), effects=Effects().without("psf_variation"))
    for rcid in (0, 30, 63):
        assert float(psf_field(plain, exposure, rcid).fwhm(*middle)) == pytest.approx(2.2, rel=2e-3)
    # Astigmatism turns with the side of the focus: at the rim ellipticities of two focus states differ.
    e = [np.hypot(*psf_field(plan, exposure, rcid).at(*middle)[1:]) for rcid in range(64)]
    assert 0.01 < np.median(e) < 0.12


def test_dispersion_draws_stars_out_towards_the_zenith():
    plan = plan_of(seeing=(2.2, 2.2), fid=1)
    low = replace(science(plan), airmass=2.2, fid=1)
    e1, e2 = dispersion(plan, low, 2.3)
    assert 0.03 < math.hypot(e1, e2) < 0.15
    assert dispersion(plan, replace(low, airmass=1.0), 2.3) == (0.0, 0.0)
    assert dispersion(plan_of(effects=Effects.none()), low, 2.3) == (0.0, 0.0)
    # The long axis, in pixels (x west, y south), is the way to the zenith.
    axis = 0.5 * math.atan2(e2, e1)
    q = parallactic_angle(low.jd_mid, low.ra, low.dec)
    assert abs(math.cos(axis) * -math.sin(q) + math.sin(axis) * -math.cos(q)) == pytest.approx(1.0, abs=1e-6)
