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
from stream.simulate import NightPlan, epoch_positions, lightcurves, paint_quadrant, schedule, starcounts, true_wcs
from stream.simulate.air import zeropoint
from stream.simulate.catalogs import bright_table, gaia_table, ps1_table
from stream.simulate.events import eruptive, faders, sky_of, snr_to_mag, transients
from stream.simulate.lightcurves import magnitudes_at
from stream.simulate.plan import field_centre
from stream.simulate.pointing import common_error, project
from stream.simulate.sky import (
    CATALOG_REACH,
    CELL,
    GALAXY,
    STAR,
    TRANSIENT,
    VARIABLE,
    bright_cell,
    bright_stars,
    cell_box,
    cells_around,
    columns_of,
    star_cell,
    steady_sky,
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


def test_counts_of_a_quadrant_are_those_of_its_place_in_the_galaxy():
    plan = NightPlan(camera=FULL, qids=(3,), n_science=1)
    exposure = schedule(plan)[-1]
    table = sky_of(plan, exposure, 2)
    x, y = true_wcs(plan, exposure, 2).to_pixel(table["ra"], table["dec"])
    inside = (x > 0) & (x < 3072) & (y > 0) & (y < 3080) & (table["mags"][:, 1] < 20.6)
    area = 3072 * 3080 * (1.0125 / 3600) ** 2
    ra, dec = field_centre(plan.field)
    expected = area * starcounts.star_density(ra, dec, 20.6)
    stars = inside & np.isin(table["kind"], (STAR, VARIABLE)) & (table["truth_id"] > 10_000_000_000)
    assert stars.sum() == pytest.approx(expected, rel=0.12)
    assert 1200 < (inside & (table["kind"] == GALAXY)).sum() < 1800
    assert 5 < (inside & (table["kind"] == VARIABLE)).sum() < 60


def test_the_model_of_star_counts_has_the_published_values():
    """Bahcall & Soneira (1980), fig. 3: some 80 stars a square degree brighter than V 15 at the pole, ten times as
    many at 20; the whole sky has 9,000 naked-eye stars."""
    assert float(starcounts.stars_brighter(15.0, 0.0, 90.0)) == pytest.approx(95, rel=0.25)
    assert float(starcounts.stars_brighter(20.0, 0.0, 90.0)) == pytest.approx(1450, rel=0.25)
    latitudes = np.degrees(np.arcsin(np.linspace(-0.99, 0.99, 40)))
    naked = np.mean([float(starcounts.stars_brighter(6.5, lon, b)) for b in latitudes for lon in range(0, 360, 45)])
    assert naked * 41_253 == pytest.approx(9000, rel=0.35)
    assert starcounts.star_density(*field_centre(448), 20.6) < starcounts.star_density(90.0, 10.0, 20.6)


@pytest.mark.real
def test_counts_follow_two_real_quadrants_near_the_galactic_pole(real_data):
    """Sources brighter than g 19.5 of a reference catalogue and of a release's light curves, by half magnitudes."""
    import pyarrow.parquet as pq
    from astropy.io import fits

    with fits.open(real_data / "catalogs" / "ztf_000202_zg_c10_q1_refpsfcat.fits") as hdus:
        rows = hdus["PSF_CATALOG"].data
        places = [(rows["ra"], rows["dec"], rows["mag"] + hdus[0].header["MAGZP"])]
    curves = pq.read_table(real_data / "catalogs" / "ztf_000250_zg_c01_q1_dr5.parquet")
    medians = np.array([np.median(m) if len(m) else np.nan for m in curves["mag"].to_pylist()])
    places.append((np.array(curves["objra"]), np.array(curves["objdec"]), medians))
    edges = np.arange(14.0, 19.6, 0.5)
    for ra, dec, g in places:
        real = np.histogram(g, edges)[0]
        area = np.ptp(ra) * np.cos(np.radians(np.median(dec))) * np.ptp(dec)
        ours = _expected_g(float(np.median(ra)), float(np.median(dec)), edges) * area
        assert ours.sum() == pytest.approx(real.sum(), rel=0.30)
        pull = (real - ours) / np.hypot(np.sqrt(ours + 1), 0.35 * ours)
        assert np.abs(pull).max() < 3
        assert np.corrcoef(np.log(real + 1), np.log(ours + 1))[0, 1] > 0.95


def _expected_g(ra: float, dec: float, edges) -> np.ndarray:
    """Stars and galaxies a square degree by PSF magnitude in g, from the simulator's own sky around a place."""
    plan = NightPlan(camera=FULL, star_density=None)
    row = int((dec + 90) / CELL)
    cells = [(row + j, int(ra / 360 * columns_of(row + j)) + i) for i in range(-6, 6) for j in range(-6, 6)]
    stars = np.concatenate([star_cell(plan, cell) for cell in cells])
    area = sum(
        (e - w) * np.degrees(np.sin(np.radians(n)) - np.sin(np.radians(s))) for w, e, s, n in map(cell_box, cells)
    )
    density = starcounts.galaxy_density(21.8)
    r = starcounts.power_law_magnitudes(np.random.default_rng(1), 20_000, 15.5, 21.8, starcounts.GALAXY_SLOPE)
    # A PSF magnitude of a galaxy of that size misses some of its light, and the mean galaxy has g - r of 0.7.
    psf = r + 0.7 + 1.2 * np.log10(1.0 + 3.0 * 10 ** (-0.11 * (r - 16)) / 0.8)
    galaxies = np.histogram(psf, edges)[0] * density / len(r)
    return np.histogram(stars["mags"][:, 0], edges)[0] / area + galaxies


@pytest.mark.real
def test_colours_follow_the_stars_in_real_packets(real_data):
    """The stellar locus: median r-i and i-z by g-r of the Pan-STARRS1 stars that real packets list."""
    import fastavro

    listed = []
    for path in sorted((real_data / "alerts").rglob("*.avro")):
        with path.open("rb") as file:
            for packet in fastavro.reader(file):
                row = packet["candidate"]
                for k in "123":
                    star = [row.get(name + k) for name in ("sgmag", "srmag", "simag", "szmag", "sgscore")]
                    if None not in star and min(star) > 0 and star[4] > 0.8:
                        listed.append(star[:4])
    real = np.array(listed)
    assert len(real) > 200
    ours = starcounts.star_colours(np.random.default_rng(2), np.random.default_rng(3).choice(real[:, 1], 20_000))
    for low in (0.3, 0.5, 0.7, 1.1):
        medians = []
        for mags in (real, ours):
            gr = mags[:, 0] - mags[:, 1]
            some = mags[(gr > low) & (gr < low + 0.2)]
            medians.append([np.median(some[:, 1] - some[:, 2]), np.median(some[:, 2] - some[:, 3])])
        assert np.abs(np.subtract(*medians)).max() < 0.12
    assert np.median(ours[:, 0] - ours[:, 1]) == pytest.approx(np.median(real[:, 0] - real[:, 1]), abs=0.15)


def test_a_cell_is_the_same_for_neighbouring_fields():
    """Two fields see one sky: the stars in their overlap are the same sources."""
    first, second = NightPlan(camera=FULL, field=448), NightPlan(camera=FULL, field=449)
    cells = [{cell for rcid in range(64) for cell in cells_around(plan, rcid, 0.02)} for plan in (first, second)]
    shared = cells[0] & cells[1]
    assert 0 < len(shared) < 0.2 * len(cells[0])
    cell = min(shared)
    assert np.array_equal(star_cell(first, cell), star_cell(second, cell))
    west, east, south, north = cell_box(cell)
    table = star_cell(first, cell)
    assert ((table["ra"] >= west) & (table["ra"] < east) & (table["dec"] >= south) & (table["dec"] < north)).all()


@pytest.mark.parametrize("field", [448, 1895, 879])
def test_cells_cover_a_quadrant_wherever_the_field_is(field):
    plan = NightPlan(camera=FULL, field=field, n_science=1)
    cells = set(cells_around(plan, 17, 0.02))
    exposure = schedule(plan)[-1]
    x, y = np.random.default_rng(1).uniform(-60, 3140, (2, 400))
    for ra, dec in zip(*true_wcs(plan, exposure, 17).to_sky(x, y), strict=True):
        row = int((dec + 90) / CELL)
        assert (row, int(ra / 360 * columns_of(row))) in cells
    assert len(cells) < 220


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
    stars = bright_stars(plan)
    table = bright_table(plan, stars)
    assert table.dtype == BRIGHT_DTYPE
    assert len(np.unique(table["name"])) == len(table) == len(stars)
    exposure = schedule(plan)[-1]
    image, _, _ = paint_quadrant(plan, exposure, 1)
    plain, _, _ = paint_quadrant(small(qids=(2,)), exposure, 1)
    assert np.median(image - plain) > 1.0  # the halo's disc covers a small quadrant


def test_bright_stars_cover_the_focal_plane_as_densely_as_the_sky():
    numbers = []
    for field in (448, 450, 600, 700):
        plan = NightPlan(field=field)
        stars = bright_stars(plan)
        ra0, dec0 = field_centre(field)
        east = ((stars["ra"] - ra0 + 180) % 360 - 180) * np.cos(np.radians(stars["dec"]))
        north = stars["dec"] - dec0
        for sign in (-1, 1):
            assert (east * sign > 2.5).any()
            assert (north * sign > 2.5).any()
        numbers.append((stars["mags"][:, 1] < 6.5).sum() / 55)
        assert (stars["mags"][:, 1] <= starcounts.STAR_BRIGHT).all()
        assert stars["truth_id"].min() > 9_000_000_000_000
    assert 0.05 < np.mean(numbers) < 0.5
    assert len(bright_stars(NightPlan(star_density=0))) == 0
    assert np.array_equal(bright_cell(NightPlan(), (94, 10)), bright_cell(NightPlan(field=449), (94, 10)))


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
    assert set(table["variety"].tolist()) == set(lightcurves.TRANSIENTS)
    assert ((table["host_id"] < 0) == (table["variety"] == lightcurves.HOSTLESS)).all()
    assert 0.5 < len(hosted) / 40 < 0.95
    for row in hosted:
        host = galaxies[int(row["host_id"])]
        east = (row["ra"] - host["ra"]) * np.cos(np.radians(host["dec"]))
        offset = 3600 * np.hypot(east, row["dec"] - host["dec"])
        assert offset < (0.9 if row["variety"] == lightcurves.NUCLEAR else 4 * host["re"])
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


def test_variables_vary_with_their_period_and_others_do_not(sky):
    variables = sky[sky["kind"] == VARIABLE]
    assert set(variables["variety"].tolist()) <= set(lightcurves.PERIODIC)
    assert len(variables) > 3
    for k in range(min(len(variables), 12)):
        one = variables[k : k + 1]
        cycle = np.linspace(0, 1, 400)
        mags = np.array([magnitudes_at(one, 2459127.0 + t * float(one["period"][0]), 2)[0][0] for t in cycle])
        assert np.ptp(mags) == pytest.approx(2 * one["amplitude"][0], rel=0.02)
        again = magnitudes_at(one, 2459127.0 + 3 * float(one["period"][0]), 2)[0][0]
        assert again == pytest.approx(mags[0], abs=0.01)
        if one["variety"][0] == lightcurves.ECLIPSING:
            assert np.median(mags) == pytest.approx(float(one["mags"][0, 1]), abs=0.01)
    stars = sky[sky["kind"] == STAR]
    assert np.array_equal(magnitudes_at(stars, 2459127.0, 2)[0], magnitudes_at(stars, 2459130.3, 2)[0])
    assert not (steady_sky(small(seed=2, qids=(1, 2), variables=0.0), (0, 1), 0.05)["kind"] == VARIABLE).any()


def test_transients_rise_and_fall():
    plan = NightPlan(camera=FULL, qids=(1,), n_science=1)
    table = transients(plan, 0)
    anchor = schedule(plan)[-1].jd_mid
    days = np.arange(-60, 200, 0.25)
    mags = np.array([magnitudes_at(table, anchor + day, 2)[0] for day in days])
    now = magnitudes_at(table, anchor, 2)[0]
    assert now == pytest.approx(table["mags"][:, 1], abs=1e-5)
    peak = np.argmin(mags, axis=0)
    assert ((days[peak] > -40) & (days[peak] < 20)).all()
    # In linear light: up faster than down, each within a factor of its time scale.
    for k in range(len(table)):
        light = 10 ** (-0.4 * (mags[:, k] - mags[peak[k], k]))
        above = np.flatnonzero(light > 0.5)
        up, down = (peak[k] - above[0]) * 0.25, (above[-1] - peak[k]) * 0.25
        assert up < down + 0.5
        assert down < 2.0 * table["fall"][k] + 2 * table["rise"][k] + 0.5
    change = np.abs(magnitudes_at(table, anchor + 5, 2)[0] - now)
    assert (change > 0.05).mean() > 0.7  # over some nights most are seen to change
    assert np.abs(magnitudes_at(table, anchor + 0.05, 2)[0] - now).max() < 0.35


def test_eruptive_stars_erupt_while_science_is_taken():
    plan = NightPlan(camera=FULL, qids=(1,), n_science=3, eruptive=60)
    table = eruptive(plan, 0)
    first, last = schedule(plan)[-3].jd_mid, schedule(plan)[-1].jd_mid
    flare = table["variety"] == lightcurves.FLARE
    assert 10 < flare.sum() < 50
    times = np.linspace(first - 5, last + 1, 3000)
    brightest = np.min([magnitudes_at(table, jd, 2)[0] for jd in times], axis=0)
    assert (table["mags"][:, 1] - brightest)[~flare] == pytest.approx(table["amplitude"][~flare], abs=0.1)
    assert ((table["mags"][:, 1] - brightest)[flare] > 0.3).all()
    assert magnitudes_at(table, first - 6.0, 2)[0][flare] == pytest.approx(table["mags"][flare, 1])


def test_faders_leave_a_hole():
    plan = NightPlan(camera=FULL, qids=(1,), n_science=2, n_reference=5, faders=30)
    table, exposures = faders(plan, 0), schedule(plan)
    bright = [magnitudes_at(table, e.jd_mid, 2)[0] for e in exposures if e.role == "ref"]
    faint = [magnitudes_at(table, e.jd_mid, 2)[0] for e in exposures if e.role == "sci"]
    assert np.max(bright, axis=0) == pytest.approx(table["mags"][:, 1], abs=0.02)
    # The wing of the fading curve still shines a little where the fader is nearly gone.
    assert (np.min(faint, axis=0) - np.max(bright, axis=0) > 0.8 * table["amplitude"] - 0.1).all()


@pytest.mark.parametrize("what", ["transients", "eruptive", "faders"])
def test_populations_can_be_switched_off(what):
    plan = small(**{what: 0}, n_reference=1)
    assert len({"transients": transients, "eruptive": eruptive, "faders": faders}[what](plan, 0)) == 0
    empty = small(star_density=0, galaxy_density=0, transients=0, eruptive=0, faders=0)
    assert len(sky_of(empty, schedule(empty)[-1], 0)) == 0


def test_a_million_stars_a_square_degree():
    plan = NightPlan(camera=FULL, star_density=150.0)
    cell = cells_around(plan, 0, 0.0)[0]
    stars = star_cell(plan, cell)
    west, east, south, north = cell_box(cell)
    area = (east - west) * np.degrees(np.sin(np.radians(north)) - np.sin(np.radians(south)))
    assert (stars["mags"][:, 1] < 20.6).sum() / area == pytest.approx(1e6, rel=0.05)
    # A whole quadrant's sky fits into memory: a hundred megabytes.
    assert stars.nbytes * 110 < 250e6


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
