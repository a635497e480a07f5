"""Populations, catalogues and their agreement with what is painted."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Distance, SkyCoord, get_body_barycentric, solar_system_ephemeris
from astropy.time import Time

from stream.core.camera import FULL, SMALL, quadrant_centre
from stream.core.errors import UsageError
from stream.core.records import BRIGHT_DTYPE, GAIA_DTYPE, PS1_DTYPE
from stream.simulate import NightPlan, epoch_positions, paint_quadrant, schedule, true_wcs
from stream.simulate.catalogs import bright_table, gaia_table, ps1_table
from stream.simulate.plan import common_error, field_centre, project, zeropoint
from stream.simulate.sky import (
    CATALOG_REACH,
    GALAXY,
    STAR,
    TRANSIENT,
    VARIABLE,
    bright_stars,
    magnitudes_at,
    sky_of,
    snr_to_mag,
    steady_sky,
    transients,
)


def small(**how) -> NightPlan:
    return NightPlan(**{"camera": SMALL, "n_bias": 0, "n_flat": 0, "n_science": 1, **how})


@pytest.fixture(scope="module")
def plan() -> NightPlan:
    return small(seed=2, qids=(1, 2))


@pytest.fixture(scope="module")
def sky(plan):
    return steady_sky(plan, plan.rcids, CATALOG_REACH)


def test_each_source_once_whatever_quadrants_are_asked_for(plan, sky):
    assert len(np.unique(sky["truth_id"])) == len(sky)
    one = steady_sky(plan, plan.rcids[:1], CATALOG_REACH)
    assert np.isin(one["truth_id"], sky["truth_id"]).all()
    both = sky[np.isin(sky["truth_id"], one["truth_id"])]
    assert np.array_equal(both, one)


def test_counts_are_those_of_moderate_latitude():
    plan = NightPlan(camera=FULL, qids=(3,), n_science=1)
    exposure = schedule(plan)[-1]
    table = sky_of(plan, exposure, 2)
    x, y = true_wcs(plan, exposure, 2).to_pixel(table["ra"], table["dec"])
    inside = (x > 0) & (x < 3072) & (y > 0) & (y < 3080) & (table["mags"][:, 1] < 20.6)
    stars = inside & np.isin(table["kind"], (STAR, VARIABLE))
    assert 4500 < stars.sum() < 5500
    assert 1200 < (inside & (table["kind"] == GALAXY)).sum() < 1800
    assert 20 < (inside & (table["kind"] == VARIABLE)).sum() < 120


@pytest.mark.parametrize("seed", range(3))
def test_a_small_quadrant_has_its_gaia_stars(seed):
    plan = small(seed=seed, qids=(1,))
    gaia = gaia_table(plan, steady_sky(plan, plan.rcids, CATALOG_REACH))
    exposure = schedule(plan)[-1]
    wcs = true_wcs(plan, exposure, 0)
    near = wcs.is_near(gaia["ra"], gaia["dec"])
    x, y = wcs.to_pixel(gaia["ra"][near], gaia["dec"][near])
    bright = gaia["phot_g_mean_mag"][near] < 20
    assert ((x > 0) & (x < 512) & (y > 0) & (y < 512) & bright).sum() >= 60


def test_catalogues_cover_the_nominal_footprint(plan, sky):
    """Whatever the pointing error, stars lie all over the nominal quadrant and four arcminutes around it."""
    exposure = schedule(plan)[-1]
    ra0, dec0 = quadrant_centre(exposure.ra, exposure.dec, 0)
    east = (sky["ra"] - ra0) * np.cos(np.radians(dec0)) * 60
    north = (sky["dec"] - dec0) * 60
    half = 256 * 1.0125 / 60 + 3.0
    for sx in (-1, 1):
        for sy in (-1, 1):
            assert ((np.abs(east - sx * half) < 1.5) & (np.abs(north - sy * half) < 1.5)).any()


def test_gaia_has_the_contracts_columns_and_honest_errors(plan, sky):
    gaia = gaia_table(plan, sky)
    assert gaia.dtype == GAIA_DTYPE
    assert len(np.unique(gaia["source_id"])) == len(gaia)
    stars = {int(row["truth_id"]): row for row in sky}
    truth = np.array([stars[int(i) - 2_500_000_000_000_000_000] for i in gaia["source_id"]])
    cosine = np.cos(np.radians(truth["dec"]))
    pull_ra = (gaia["ra"] - truth["ra"]) * cosine * 3.6e6 / gaia["ra_error"]
    pull_dec = (gaia["dec"] - truth["dec"]) * 3.6e6 / gaia["dec_error"]
    n = len(gaia)
    for pull in (pull_ra, pull_dec):
        assert pull.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * n) + 0.01)
        assert abs(pull.mean()) < 5 / np.sqrt(n)
    assert (gaia["ref_epoch"] == 2016.0).all()
    assert np.median(gaia["dec_error"][gaia["phot_g_mean_mag"] < 16]) < 0.06
    assert np.hypot(gaia["pmra"], gaia["pmdec"]).max() > 30


def test_places_at_the_epoch_agree_with_astropy(plan, sky):
    stars = sky[sky["kind"] != GALAXY]
    order = np.argsort(-stars["parallax"])
    stars = stars[np.concatenate([order[:40], order[-10:]])]
    jd = 2459127.73
    ra, dec = epoch_positions(stars, jd)
    start = SkyCoord(
        stars["ra"] * u.deg, stars["dec"] * u.deg, pm_ra_cosdec=stars["pmra"] * u.mas / u.yr,
        pm_dec=stars["pmdec"] * u.mas / u.yr, distance=Distance(parallax=stars["parallax"] * u.mas),
        obstime=Time(2016.0, format="jyear", scale="tcb"),
    )  # fmt: skip
    when = Time(jd, format="jd", scale="utc")
    moved = start.apply_space_motion(when).cartesian.xyz.to_value(u.au)
    with solar_system_ephemeris.set("builtin"):
        earth = get_body_barycentric("earth", when).xyz.to_value(u.au)
    seen = SkyCoord(*(moved - earth[:, None]), representation_type="cartesian")
    seen.representation_type = "unitspherical"
    separation = SkyCoord(ra * u.deg, dec * u.deg).separation(SkyCoord(seen.ra, seen.dec)).to_value(u.mas)
    assert separation.max() < 0.5  # second-order motion of the nearest stars; parallaxes here reach tens of mas
    assert stars["parallax"].max() > 5


def test_ps1_colour_terms_hold_for_the_painted_flux(plan, sky):
    """m_PS1 - m_inst = MAGZP + CLRCOEFF x colour, from the catalogue's own measured columns."""
    exposure = schedule(plan)[-1]
    _, sources, _ = paint_quadrant(plan, exposure, 0)
    rows = sources[0]
    ps1 = ps1_table(plan, sky)
    assert ps1.dtype == PS1_DTYPE
    by_id = {int(row["objID"]) - 110_000_000_000_000_000: row for row in ps1}
    magzp, clrcoeff = zeropoint(plan, exposure, 0)
    residuals = []
    for k in np.flatnonzero(rows["mag"] < 18):
        if rows["kind"][k] == "star" and int(rows["truth_id"][k]) in by_id:
            row = by_id[int(rows["truth_id"][k])]
            instrumental = -2.5 * np.log10(rows["flux"][k])
            colour = row["gMeanPSFMag"] - row["rMeanPSFMag"]
            residuals.append(row["rMeanPSFMag"] - instrumental - magzp - clrcoeff * colour)
    assert len(residuals) > 20
    assert abs(np.mean(residuals)) < 0.005
    assert np.std(residuals) < 0.02


def test_ps1_marks_what_is_too_faint_and_tells_stars_from_galaxies(plan, sky):
    ps1 = ps1_table(plan, sky)
    missing = ps1["zMeanPSFMag"] == -999
    assert missing.any()
    assert (ps1["zMeanPSFMagErr"][missing] == -999).all()
    galaxies = np.isin(ps1["objID"] - 110_000_000_000_000_000, sky["truth_id"][sky["kind"] == GALAXY])
    assert galaxies.any()
    assert (ps1["ps_score"][galaxies] < 0.5).all()
    assert (ps1["ps_score"][~galaxies] > 0.5).all()


def test_bright_table_lists_naked_eye_stars():
    plan = small(bright_stars=2, qids=(2,))
    table = bright_table(plan, bright_stars(plan))
    assert table.dtype == BRIGHT_DTYPE
    assert len(table) == 2
    assert (table["vmag"] < 6.5).all()
    exposure = schedule(plan)[-1]
    image, _, _ = paint_quadrant(plan, exposure, 1)
    plain, _, _ = paint_quadrant(small(qids=(2,)), exposure, 1)
    assert np.median(image - plain) > 1.0  # the halo's disc covers a small quadrant


def test_transients_are_on_the_chip_on_hosts_and_of_the_planned_signal():
    plan = NightPlan(camera=FULL, qids=(1,), n_science=1, n_reference=1)
    exposure = schedule(plan)[-1]
    table = transients(plan, 0)
    assert len(table) == 40
    assert (table["kind"] == TRANSIENT).all()
    x, y = true_wcs(plan, exposure, 0).to_pixel(table["ra"], table["dec"])
    assert ((x > 0) & (x < 3072) & (y > 0) & (y < 3080)).all()
    galaxies = {int(row["truth_id"]): row for row in sky_of(plan, exposure, 0) if row["kind"] == GALAXY}
    hosted = table[table["host_id"] >= 0]
    assert 0.5 < len(hosted) / 40 < 0.95
    for row in hosted:
        host = galaxies[int(row["host_id"])]
        east = (row["ra"] - host["ra"]) * np.cos(np.radians(host["dec"]))
        assert 3600 * np.hypot(east, row["dec"] - host["dec"]) < 4 * host["re"] + 0.5
    reference = next(e for e in schedule(plan) if e.role == "ref")
    assert not (sky_of(plan, reference, 0)["kind"] == TRANSIENT).any()
    # Signal to noise, from the flux and the noise of a matched filter computed anew.
    mag, colour = magnitudes_at(table, exposure.jd_mid, plan.fid)
    flux = 10 ** (0.4 * (26.2 + 0.10 * colour - mag))
    variance = (290 / 6.2 + (10 / 6.2) ** 2) * 20.0 + flux / 6.2
    snr = flux / np.sqrt(variance)
    assert snr.min() > 4
    assert snr.max() < 230
    assert (snr > 10).mean() > 0.6
    assert np.ptp(snr[snr > 10]) > 100


def test_depth_is_the_surveys():
    plan = NightPlan(seeing=(2.0, 2.0))
    assert float(snr_to_mag(plan, np.array([5.0]))[0]) == pytest.approx(20.7, abs=0.3)


def test_variables_vary_and_others_do_not(sky):
    variables = sky[sky["kind"] == VARIABLE]
    mags = np.array([magnitudes_at(variables, 2459127.0 + t, 2)[0] for t in np.linspace(0, 40, 200)])
    assert np.allclose(np.ptp(mags, axis=0), 2 * variables["amplitude"], rtol=0.1)
    stars = sky[sky["kind"] == STAR]
    assert np.array_equal(magnitudes_at(stars, 2459127.0, 2)[0], magnitudes_at(stars, 2459130.3, 2)[0])


def test_a_real_source_list_is_painted_where_it_lies(real_data):
    path = real_data / "catalogs" / "ztf_000202_zg_c10_q1_refpsfcat.fits"
    plan = NightPlan(field=202, ccds=(10,), qids=(1,), fid=1, n_science=1, n_bias=0, n_flat=0, source_list=path)
    exposure = schedule(plan)[-1]
    table = sky_of(plan, exposure, 36)
    stars = table[table["kind"] == STAR]
    assert len(stars) == 18_833
    x, y = true_wcs(plan, exposure, 36).to_pixel(stars["ra"], stars["dec"])
    assert ((x > -60) & (x < 3132) & (y > -60) & (y < 3140)).mean() > 0.99
    xi, eta, _ = common_error(plan)
    assert np.hypot(xi, eta) < 4 / 60
    for wrong in ({"fid": 2}, {"field": 203}, {"ccds": (11,)}, {"qids": (2,)}):
        how = {"field": 202, "ccds": (10,), "qids": (1,), "fid": 1, "source_list": path} | wrong
        with pytest.raises(UsageError, match="plan the same"):
            steady_sky(NightPlan(**how), (36,), 0.01)


def test_a_file_that_is_no_source_list_is_refused(tmp_path):
    path = tmp_path / "empty.fits"
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="not a reference PSF catalogue"):
        common_error(NightPlan(source_list=path))


def test_projection_undoes_deprojection():
    from stream.core.camera import deproject

    ra0, dec0 = field_centre(448)
    assert project(ra0, dec0, *deproject(ra0, dec0, 1.3, -2.2)) == pytest.approx((1.3, -2.2), abs=1e-10)
