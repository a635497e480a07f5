"""The solver against simulated fields of known truth, wrong skies, and a real catalogue."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from numpy.lib.recfunctions import drop_fields

from ops.bench.starfields import JD_MID, Field, gaia_cone, make_field, observe, plain_wcs
from stream.astrometry import pixel_positions, sky_positions, solve, wcs_cards
from stream.core.camera import FULL, SMALL, nominal_wcs
from stream.core.errors import AstrometryError
from stream.core.flags import Info, Mask
from stream.core.records import DETECTION_DTYPE, GAIA_DTYPE


def other_sky(seed, field, camera, density):
    radius = max(camera.shape) / 2 * camera.pixel_scale / 3600 * 1.02 + 0.1
    return gaia_cone(np.random.default_rng(seed), *field.guess.wcs.crval, radius, density)


@pytest.mark.parametrize(
    ("camera", "density", "seeds"),
    [(SMALL, 1500, 60), (SMALL, 3000, 60), (SMALL, 20_000, 20), (FULL, 100, 20), (FULL, 700, 20), (FULL, 5000, 10)],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_many_fields_are_solved_and_none_wrongly(camera, density, seeds):
    rich, solved = 0, 0
    for seed in range(seeds):
        field = make_field(seed, camera, density)
        try:
            solution = solve(*field.args)
        except AstrometryError:
            rich += field.n_seen >= 30
            continue
        rich += field.n_seen >= 30
        solved += field.n_seen >= 30
        errors = field.errors(solution.wcs)
        # Half an arcsec at the median is far from any wrong match (tens of px) and far above the noise, which for
        # n stars of 70 mas and a few coefficients is some 70 / sqrt(n) * 3 mas plus what too few stars cannot bend.
        assert np.median(errors) < 0.5, (seed, errors)
        # A fifth of what is offered are no stars at all, and sixty stars cannot follow a distortion of degree 4.
        assert not solution.infobits & Info.ASTROM_FRACTION
    assert solved >= 0.99 * rich
    assert rich > 0


def test_accuracy_of_a_rich_field_is_a_few_mas():
    field = make_field(3, FULL, 5000)
    solution = solve(*field.args)
    errors = field.errors(solution.wcs)
    assert np.median(errors) < 0.010
    assert errors.max() < 0.060  # the corners
    assert solution.infobits == 0
    # What was put in: 20 mas floor and 1 px / SNR, of the brightest stars of every part of the image.
    assert 0.018 < solution.rms_ra < 0.09
    assert solution.wcs.wcs.crpix.tolist() == [1536.5, 1540.5]
    again = solve(*field.args)
    assert wcs_cards(again) == wcs_cards(solution)


@pytest.mark.parametrize(("camera", "density"), [(SMALL, 1500), (SMALL, 8000), (FULL, 300)])
def test_wrong_skies_are_refused(camera, density):
    for seed in range(12):
        field = make_field(seed, camera, density)
        with pytest.raises(AstrometryError) as error:
            solve(field.detections, other_sky(seed + 99, field, camera, density), *field.args[2:])
        assert error.value.context["log_chance"] > -3
        assert set(error.value.context) == {"n_detections", "n_gaia", "n_matched", "log_chance"}


@pytest.mark.parametrize("dec", [84.5, 86.0, -80.0])
def test_near_the_pole_a_pointing_error_turns_the_camera(dec):
    """An equatorial telescope keeps its own meridian: 3.5 arcmin off in right ascension are 0.6 deg of rotation."""
    for seed, camera in enumerate((SMALL, FULL)):
        rng = np.random.default_rng(seed)
        guess = nominal_wcs(camera, 120.0, dec, 35)
        off = 3.5 / 60 / np.cos(np.radians(dec))
        truth = nominal_wcs(camera, 120.0 + off, dec, 35)
        ra, ra_t = guess.wcs.crval[0], truth.wcs.crval[0]
        assert abs((ra - ra_t + 180) % 360 - 180) * np.sin(np.radians(abs(dec))) > 0.3
        gaia = gaia_cone(rng, *guess.wcs.crval, max(camera.shape) / 2 * camera.pixel_scale / 3600 + 0.12, 2500)
        detections, _ = observe(rng, gaia, truth, camera.shape)
        field = Field(detections, gaia, guess, truth, camera.shape, 0)
        assert np.median(field.errors(solve(*field.args).wcs)) < 0.1


def test_a_dozen_stars_are_enough():
    solved = 0
    for seed in range(40):
        field = make_field(seed, SMALL, 900, limit=20.3, spurious=0.1, galaxies=0.0)
        if not 12 <= field.n_seen <= 16:
            continue
        solution = solve(*field.args)
        assert np.median(field.errors(solution.wcs)) < 0.3
        solved += 1
    assert solved >= 5


def test_beyond_the_reach_is_solved_or_refused_never_wrong():
    for seed in range(10):
        field = make_field(seed, SMALL, 3000)
        guess = plain_wcs(
            SMALL, float(field.guess.wcs.crval[0]), float(np.clip(field.guess.wcs.crval[1] + 0.1, -89, 89))
        )
        try:
            solution = solve(field.detections, field.gaia, guess, JD_MID, field.shape)
        except AstrometryError:
            continue
        assert np.median(field.errors(solution.wcs)) < 0.3


def test_junk_trails_and_missing_bright_stars():
    field = make_field(5, FULL, 1500, spurious=1.0)
    assert np.median(field.errors(solve(*field.args).wcs)) < 0.05
    # The 300 brightest "stars" lie on three columns.
    rng = np.random.default_rng(1)
    trail = np.zeros(300, DETECTION_DTYPE)
    trail["x"] = rng.choice([200.0, 1400.0, 2900.0], 300) + rng.normal(0, 1, 300)
    trail["y"] = rng.uniform(0, FULL.ny - 1, 300)
    trail["flux"], trail["snr"] = 1e7, 500
    with_trail = np.concatenate([field.detections, trail])
    assert np.median(field.errors(solve(with_trail, *field.args[1:]).wcs)) < 0.05
    faint = field.detections[(field.detections["flags"] & int(Mask.SATURATED)) == 0]
    faint = faint[faint["flux"] < np.quantile(faint["flux"], 0.7)]
    assert np.median(field.errors(solve(faint, *field.args[1:]).wcs)) < 0.05


def test_a_crowd_whose_bright_stars_are_all_saturated_is_solved():
    """What is fitted begins at rank 2,000: the catalogue is looked at as deep as that."""
    field = make_field(14, FULL, 40_000)
    detections = field.detections
    brightest = np.argsort(-detections["flux"])[:2000]
    detections["flags"][brightest] |= int(Mask.SATURATED)
    solution = solve(*field.args)
    assert field.errors(solution.wcs).max() < 0.1


def test_a_match_that_holds_only_in_a_cluster_core_is_refused():
    """Two different globular clusters laid on each other: hundreds of chance pairs, no solution."""
    rng = np.random.default_rng(8)
    fields, skies = [], []
    for seed in (0, 1):
        field = make_field(11, SMALL, 1500)
        centre = field.truth.all_pix2world([[255.0, 255.0]], 0)[0]
        crowd = gaia_cone(rng, 0.0, 0.0, 0.03, 600_000)[:1500]
        distance, angle = np.minimum(0.005 * np.abs(rng.standard_cauchy(1500)), 0.06), rng.uniform(0, 2 * np.pi, 1500)
        crowd["ra"] = centre[0] + distance * np.cos(angle) / np.cos(np.radians(centre[1]))
        crowd["dec"] = centre[1] + distance * np.sin(angle)
        crowd["source_id"] += 10**6 * (seed + 1)
        fields.append(field)
        skies.append(np.concatenate([field.gaia, crowd]) if seed == 0 else crowd)
    detections, _ = observe(rng, skies[0], fields[0].truth, SMALL.shape)
    assert np.median(fields[0].errors(solve(detections, skies[0], *fields[0].args[2:]).wcs)) < 0.1
    with pytest.raises(AstrometryError):
        solve(detections, skies[1], *fields[0].args[2:])


def test_empty_and_broken_input():
    field = make_field(2, SMALL, 3000)
    with pytest.raises(AstrometryError, match="catalog import gaia"):
        solve(field.detections, np.zeros(0, GAIA_DTYPE), field.guess, JD_MID, field.shape)
    for detections in (field.detections[:0], field.detections[:3]):
        with pytest.raises(AstrometryError) as error:
            solve(detections, *field.args[1:])
        assert error.value.context["n_matched"] == 0
    nan = field.detections.copy()
    nan["x"] = np.nan
    with pytest.raises(AstrometryError):
        solve(nan, *field.args[1:])
    with pytest.raises(AstrometryError, match="mid-exposure"):
        solve(field.detections, field.gaia, field.guess, float("nan"), field.shape)
    singular = plain_wcs(SMALL, 10.0, 10.0)
    singular.wcs.cd = [[1e-12, 0], [0, 1e-12]]
    with pytest.raises(AstrometryError, match="singular"):
        solve(field.detections, field.gaia, singular, JD_MID, field.shape)
    line = field.detections.copy()
    line["y"] = line["x"]
    with pytest.raises(AstrometryError, match="trustworthy"):  # stars on one line hold no plane
        solve(line, *field.args[1:])


def test_some_bad_rows_and_missing_columns_do_no_harm():
    field = make_field(4, SMALL, 3000)
    detections = field.detections.copy()
    detections["x"][:3], detections["flux"][3:5], detections["snr"][5] = np.nan, -1.0, np.nan
    gaia = field.gaia.copy()
    gaia["pmra"][:20], gaia["parallax"][:20], gaia["phot_g_mean_mag"][20:25] = np.nan, np.nan, np.nan
    gaia["ra"][30] = np.nan
    assert np.median(field.errors(solve(detections, gaia, *field.args[2:]).wcs)) < 0.1
    bare = drop_fields(field.detections, ["flux", "flags"])
    assert np.median(field.errors(solve(bare, *field.args[1:]).wcs)) < 0.1


def test_motion_of_the_stars_is_followed():
    """All stars drift alike by 500 mas/yr: a solver that ignored it would be off by 2 arcsec after four years."""
    field = make_field(6, SMALL, 3000)
    gaia = field.gaia.copy()
    gaia["pmdec"] += 500.0
    rng = np.random.default_rng(0)
    detections, _ = observe(rng, gaia, field.truth, field.shape)
    assert np.median(field.errors(solve(detections, gaia, *field.args[2:]).wcs)) < 0.06


def test_poles_and_the_zero_of_right_ascension():
    rng = np.random.default_rng(3)
    for ra, dec in ((0.01, 0.0), (359.99, 40.0), (120.0, 89.7), (10.0, -89.8)):
        truth = plain_wcs(SMALL, ra, dec, 0.003, 1.004)
        gaia = gaia_cone(rng, ra, dec, 0.2, 3000)
        detections, _ = observe(rng, gaia, truth, SMALL.shape)
        guess = plain_wcs(SMALL, ra, dec + 0.03)
        solution = solve(detections, gaia, guess, JD_MID, SMALL.shape)
        x, y = rng.uniform(0, 511, (2, 50))
        back = pixel_positions(truth, *sky_positions(solution.wcs, x, y))
        assert np.hypot(back[0] - x, back[1] - y).max() < 0.3
        assert 0 <= solution.wcs.wcs.crval[0] < 360


def test_infobits_of_a_small_quadrant():
    solution = solve(*make_field(9, SMALL, 2500).args)
    assert solution.n_matched < 100
    assert solution.infobits & Info.FEW_ASTROM_MATCHES
    assert not solution.infobits & (Info.ASTROM_FRACTION | Info.GRID_RESIDUAL | Info.NO_ASTROMETRY)


@pytest.mark.real
def test_real_reference_catalogue_gives_back_its_wcs(real_data):
    """Real places on the sky and on the reference's own grid (1.000 arcsec/px, x to the east, turned by 0.9 deg)."""
    d = fits.getdata(real_data / "catalogs" / "ztf_000202_zg_c10_q1_refpsfcat.fits")
    detections = np.zeros(len(d), DETECTION_DTYPE)
    detections["x"], detections["y"], detections["flux"], detections["snr"] = (
        d["xpos"] - 1,
        d["ypos"] - 1,
        d["flux"],
        d["snr"],
    )
    gaia = np.zeros(len(d), GAIA_DTYPE)
    gaia["source_id"], gaia["ra"], gaia["dec"], gaia["ref_epoch"] = d["sourceid"], d["ra"], d["dec"], 2016.0
    gaia["phot_g_mean_mag"], gaia["ra_error"], gaia["dec_error"] = d["mag"] + 26.325, 1.0, 1.0
    rng = np.random.default_rng(0)
    gaia = gaia[rng.random(len(gaia)) < 0.8]  # not the very same list
    shape = (3194, 3210)
    guess = WCS(naxis=2)
    guess.wcs.ctype, guess.wcs.cunit = ["RA---TAN", "DEC--TAN"], ["deg", "deg"]
    guess.wcs.crpix, guess.wcs.crval = [1605.0, 1597.0], [np.median(d["ra"]) + 0.04, np.median(d["dec"]) - 0.03]
    turn = np.radians(0.9 + 0.25)
    guess.wcs.cd = 1.005 / 3600 * np.array([[np.cos(turn), np.sin(turn)], [np.sin(turn), -np.cos(turn)]])
    solution = solve(detections, gaia, guess, 2458000.5, shape)
    ra, dec = sky_positions(solution.wcs, detections["x"], detections["y"])
    off = 3600e3 * np.hypot((ra - d["ra"]) * np.cos(np.radians(dec)), dec - d["dec"])
    assert np.percentile(off, 99) < 10.0  # mas, over the whole catalogue
    header = fits.Header()
    header.update(wcs_cards(solution))
    ra_read, dec_read = WCS(header).all_pix2world(detections["x"], detections["y"], 0)
    assert np.abs(ra_read - ra).max() < 1e-10
    assert np.abs(dec_read - dec).max() < 1e-10
