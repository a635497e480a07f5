"""TPV against astropy and the real headers; space motion and parallax against astropy."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord, get_body_barycentric
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from ops.bench.starfields import make_field
from stream.astrometry import pixel_positions, project, propagate, sky_positions, solve, tpv_wcs, wcs_cards
from stream.astrometry.epoch import position_errors
from stream.astrometry.fit import degree_allowed, fit_map
from stream.astrometry.quality import astrometric_infobits, chi_square, match_infobits
from stream.astrometry.tpv import PV_NUMBERS, n_terms, round_significant, swap_axes, terms
from stream.core.camera import SMALL, deproject
from stream.core.flags import Info
from stream.core.records import GAIA_DTYPE


def real_headers(real_data):
    return [fits.getheader(path) for path in sorted((real_data / "images").glob("*_sciimg.fits"))]


@pytest.mark.real
def test_our_polynomial_is_the_headers(real_data):
    """The formula of our docstring, evaluated by hand, and our built WCS give astropy's reading of real headers."""
    headers = real_headers(real_data)
    assert len(headers) == 8
    rng = np.random.default_rng(0)
    for header in headers:
        library = WCS(header)
        x, y = rng.uniform(-1500, 1500, (2, 200)) + np.array([header["CRPIX1"], header["CRPIX2"]])[:, None]
        ra, dec = library.all_pix2world(x, y, 0)
        pv1, pv2 = (np.array([header[f"PV{axis}_{m}"] for m in PV_NUMBERS]) for axis in (1, 2))
        cd = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
        q = np.stack([x + 1 - header["CRPIX1"], y + 1 - header["CRPIX2"]], axis=1) @ cd.T
        xi = terms(q[:, 0], q[:, 1], 4) @ pv1
        eta = terms(q[:, 1], q[:, 0], 4) @ pv2
        by_hand = np.array([deproject(header["CRVAL1"], header["CRVAL2"], a, b) for a, b in zip(xi, eta, strict=True)])
        np.testing.assert_allclose(by_hand, np.stack([ra, dec], 1), rtol=0, atol=1e-10)
        ours = tpv_wcs((header["CRVAL1"], header["CRVAL2"]), cd, pv1, pv2, (header["CRPIX1"], header["CRPIX2"]))
        np.testing.assert_allclose(sky_positions(ours, x, y), (ra, dec), rtol=0, atol=1e-10)
        back = pixel_positions(ours, ra, dec)
        np.testing.assert_allclose(back, (x, y), rtol=0, atol=1e-6)


@pytest.mark.real
def test_a_real_distortion_is_refitted_to_a_mas(real_data):
    """Stars laid out by a real solution are fitted back, through the gates that keep impossible cameras out."""
    for header in real_headers(real_data)[:3]:
        header = header.copy()
        header["CRPIX1"], header["CRPIX2"] = 1536.5, 1540.5
        truth = WCS(header)
        rng = np.random.default_rng(1)
        gaia = np.zeros(2500, GAIA_DTYPE)
        x, y = rng.uniform(0, 3071, 2500), rng.uniform(0, 3079, 2500)
        gaia["ra"], gaia["dec"] = truth.all_pix2world(x, y, 0)
        gaia["source_id"], gaia["ref_epoch"], gaia["phot_g_mean_mag"] = (
            np.arange(2500),
            2020.0,
            rng.uniform(14, 20, 2500),
        )
        detections = np.zeros(2500, [("x", "f8"), ("y", "f8"), ("flux", "f8"), ("snr", "f4")])
        detections["x"], detections["y"], detections["snr"] = x, y, 100.0
        detections["flux"] = 10 ** (-0.4 * gaia["phot_g_mean_mag"] + 10)
        guess = WCS(naxis=2)
        guess.wcs.ctype, guess.wcs.cunit = ["RA---TAN", "DEC--TAN"], ["deg", "deg"]
        guess.wcs.crval = [header["CRVAL1"], header["CRVAL2"] + 0.03]
        turn = np.radians(0.2)
        cd = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
        guess.wcs.crpix = [1536.5, 1540.5]
        guess.wcs.cd = 0.995 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ cd
        solution = solve(detections, gaia, guess, 2458849.5, (3080, 3072))
        ra, dec = sky_positions(solution.wcs, x, y)
        off = np.hypot((ra - gaia["ra"]) * np.cos(np.radians(dec)), dec - gaia["dec"]) * 3600e3
        assert np.max(off) < 2.0
        assert solution.infobits == 0


def test_cards_read_back_to_the_same_wcs():
    solution = solve(*make_field(1, SMALL, 5000).args)
    header = fits.Header()
    header.update(wcs_cards(solution))
    header = fits.Header.fromstring(header.tostring())
    assert header["CTYPE1"] == "RA---TPV"
    read = WCS(header)
    x, y = np.meshgrid(np.linspace(0, 511, 7), np.linspace(0, 511, 7))
    np.testing.assert_allclose(
        sky_positions(read, x.ravel(), y.ravel()), sky_positions(solution.wcs, x.ravel(), y.ravel()), rtol=0, atol=1e-11
    )
    sent = pickle.loads(pickle.dumps(solution)).wcs  # between processes, and through a memory copy
    for wcs in (sent, copy.deepcopy(solution.wcs)):
        np.testing.assert_array_equal(
            sky_positions(wcs, [0.0, 511.0], [0.0, 9.0]), sky_positions(solution.wcs, [0.0, 511.0], [0.0, 9.0])
        )
    assert header["ASTRRMS1"] == pytest.approx(solution.rms_ra / 3600, rel=1e-6)
    assert header["ASTROMN"] == solution.n_matched


def test_places_without_an_image_are_nan():
    wcs = tpv_wcs((10.0, 20.0), np.eye(2) * -2.8e-4, np.array([0.0, 1, 0]), np.array([0.0, 1, 0]), (256.5, 256.5))
    x, y = pixel_positions(wcs, [10.0, 190.0, np.nan, 60.0], [20.0, -20.0, 20.0, 20.0])
    assert x[0] == pytest.approx(255.5)
    assert np.isnan(x[1:]).all()
    assert np.isnan(y[1:]).all()
    assert pixel_positions(wcs, [190.0], [-20.0])[0].tolist() != [0.0]
    assert all(len(a) == 0 for a in (*pixel_positions(wcs, [], []), *sky_positions(wcs, [], [])))


@given(st.floats(0, 359.999), st.floats(-89.9, 89.9), st.floats(-2, 2), st.floats(-2, 2))
def test_projection_inverts_deprojection(ra0, dec0, xi, eta):
    ra, dec = deproject(ra0, dec0, xi, eta)
    # deproject takes tan-plane degrees; project gives them back
    back = project(np.array([ra]), np.array([dec]), ra0, dec0)
    np.testing.assert_allclose([back[0][0], back[1][0]], [xi, eta], rtol=0, atol=1e-9)


@given(st.integers(1, 4), st.integers(0, 1000))
def test_swapped_coefficients_are_the_same_polynomial(degree, seed):
    rng = np.random.default_rng(seed)
    c, x, y = rng.normal(size=n_terms(degree)), rng.normal(size=5), rng.normal(size=5)
    np.testing.assert_allclose(terms(x, y, degree) @ c, terms(y, x, degree) @ swap_axes(c), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(round_significant(c), c, rtol=1e-11)


def moving_stars(n=200, seed=0):
    rng = np.random.default_rng(seed)
    gaia = np.zeros(n, GAIA_DTYPE)
    gaia["ra"] = rng.uniform(0, 360, n)
    gaia["dec"] = np.degrees(np.arcsin(rng.uniform(-0.9999, 0.9999, n)))
    gaia["pmra"], gaia["pmdec"] = rng.normal(0, 800, (2, n))
    gaia["parallax"] = rng.uniform(1, 500, n)
    gaia["ref_epoch"] = 2016.0
    return gaia


@pytest.mark.filterwarnings("ignore")
def test_motion_agrees_with_astropy():
    gaia = moving_stars()
    jd = 2460676.5
    ra, dec = propagate(gaia, jd)
    stars = SkyCoord(
        gaia["ra"] * u.deg, gaia["dec"] * u.deg, pm_ra_cosdec=gaia["pmra"] * u.mas / u.yr,
        pm_dec=gaia["pmdec"] * u.mas / u.yr, distance=1 * u.kpc, radial_velocity=0 * u.km / u.s,
        obstime=Time(2016.0, format="jyear", scale="tdb"),
    )  # fmt: skip
    moved = stars.apply_space_motion(Time(jd, format="jd", scale="tdb"))
    apart = SkyCoord(ra * u.deg, dec * u.deg).separation(moved).to_value(u.mas)
    assert apart.max() < 0.1
    assert (ra >= 0).all()
    assert (ra < 360).all()


def test_parallax_agrees_with_vectors_of_astropy():
    gaia = moving_stars(50)
    gaia["pmra"] = gaia["pmdec"] = 0
    jd = 2459100.3
    ra, dec = propagate(gaia, jd, parallax=True)
    earth = get_body_barycentric("earth", Time(jd, format="jd", scale="tdb")).xyz.to_value(u.pc)
    place = SkyCoord(
        gaia["ra"] * u.deg, gaia["dec"] * u.deg, distance=1000 / gaia["parallax"] * u.pc
    ).cartesian.xyz.to_value(u.pc)
    seen = place - earth[:, None]
    want = SkyCoord(*seen, representation_type="cartesian").spherical
    apart = SkyCoord(ra * u.deg, dec * u.deg).separation(SkyCoord(want.lon, want.lat)).to_value(u.mas)
    assert apart.max() < 0.1


def test_unknown_motion_stays_and_costs_accuracy():
    gaia = moving_stars(3)
    gaia["pmra"][0] = gaia["pmdec"][0] = np.nan
    gaia["ref_epoch"][1] = np.nan
    ra, dec = propagate(gaia, 2460676.5)
    np.testing.assert_allclose([ra[:2], dec[:2]], [gaia["ra"][:2], gaia["dec"][:2]], rtol=0, atol=1e-12)
    assert ra[2] != gaia["ra"][2]
    errors = position_errors(gaia, 2460676.5)
    assert errors[0] == pytest.approx(0.045, abs=0.001)  # 5 mas/yr over nine years
    assert errors[2] == 0


def test_degree_follows_the_data():
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-1, 1, (2, 400))
    sigma = np.full(400, 0.01)
    for degree in (1, 2, 3, 4):
        c = np.zeros((15, 2))
        c[: n_terms(degree)] = rng.normal(size=(n_terms(degree), 2))
        target = terms(x, y, 4) @ c + rng.normal(0, 0.01, (400, 2))
        target[:20] += 1.0  # outliers
        fit = fit_map(x, y, target, sigma, 4, choose=True)
        assert fit.degree >= degree
        assert not fit.used[:20].any()
        assert fit.scale == pytest.approx(1.0, abs=0.15)
        grid = rng.uniform(-1, 1, (2, 50))
        assert np.abs(fit(*grid) - terms(*grid, 4) @ c).max() < 0.02
    assert degree_allowed(x, y) == 4
    assert degree_allowed(x[:30], y[:30]) == 2
    assert degree_allowed(x[:12], y[:12]) == 1
    assert degree_allowed(np.abs(x), y) == 2  # nothing in a third of the image
    with pytest.raises(np.linalg.LinAlgError):
        fit_map(x[:2], y[:2], target[:2], sigma[:2], 1)
    with pytest.raises(np.linalg.LinAlgError):
        fit_map(x, x, target, sigma, 1)


def test_infobits_by_their_thresholds():
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(-0.95, 0.95, 12), np.linspace(-0.95, 0.95, 12)))
    quiet = np.zeros((len(x), 2))
    assert astrometric_infobits(x, y, quiet, 200, 1.0125) == 0
    assert astrometric_infobits(x[:99], y[:99], quiet[:99], 100, 1.0125) & Info.FEW_ASTROM_MATCHES
    assert astrometric_infobits(x, y, quiet, 289, 1.0125) == Info.ASTROM_FRACTION
    assert astrometric_infobits(x, y, quiet, 144, 1.0125 * 0.9979) == Info.PIXEL_SCALE
    assert astrometric_infobits(x, y, quiet, 144, 1.0125 * 1.021) == Info.PIXEL_SCALE
    assert astrometric_infobits(x, y, quiet, 144, 1.0125 * 1.019) == 0
    loud = quiet.copy()
    loud[(x > 0.4) & (y > 0.4), 0] = 0.8
    assert astrometric_infobits(x, y, loud, 144, 1.0125) == Info.GRID_RESIDUAL
    keep = ~((x > 0.4) & (y > 0.4))
    assert astrometric_infobits(x[keep], y[keep], quiet[keep], 144, 1.0125) == Info.GRID_MATCHES


def test_infobits_of_the_match_by_their_thresholds():
    assert match_infobits(0.0, 2.0, 1.9) == 0
    assert match_infobits(40.0, 1.0, 1.001) == Info.CHI_CHANGE
    assert match_infobits(40.0, 60.0, 55.1) == Info.CHI_SQUARE
    assert match_infobits(-0.1, 1.0, 1.0) == Info.CATALOG_FRACTION
    assert match_infobits(40.0, float("nan"), float("nan")) == 0
    residuals = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    assert chi_square(residuals, np.ones(3), 1) == pytest.approx(25 / 4)
    assert np.isnan(chi_square(residuals, np.ones(3), 3))
