"""Catalogue neighbours against astropy's own separations, and the packet's rules about them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from stream.core.records import GAIA_DTYPE, PS1_DTYPE, Candidate
from stream.enrich import match_catalogs
from stream.enrich.catalogs import nearest


def sky(n: int, seed: int, ra0: float, dec0: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ra = (ra0 + rng.uniform(-width, width, n) / np.cos(np.radians(dec0))) % 360.0
    return ra, np.clip(dec0 + rng.uniform(-width, width, n), -89.999, 89.999)


def ps1_table(n: int, seed: int, ra0: float, dec0: float) -> np.ndarray:
    table = np.zeros(n, PS1_DTYPE)
    table["raMean"], table["decMean"] = sky(n, seed, ra0, dec0, 0.1)
    rng = np.random.default_rng(seed + 1)
    table["objID"] = 10**17 + rng.permutation(n)
    for band in "griz":
        table[f"{band}MeanPSFMag"] = rng.uniform(15, 22, n)
    table["gMeanPSFMag"][::5] = -999.0
    table["rMeanPSFMag"][::7] = np.nan
    table["ps_score"] = rng.uniform(0, 1, n)
    table["ps_score"][::3] = np.nan
    return table


def gaia_table(n: int, seed: int, ra0: float, dec0: float) -> np.ndarray:
    table = np.zeros(n, GAIA_DTYPE)
    table["ra"], table["dec"] = sky(n, seed, ra0, dec0, 0.1)
    table["phot_g_mean_mag"] = np.random.default_rng(seed + 1).uniform(10, 20, n)
    return table


def candidates_at(ra, dec) -> list[Candidate]:
    return [Candidate({"ra": float(a), "dec": float(d)}, {}) for a, d in zip(ra, dec, strict=True)]


@pytest.mark.parametrize(("ra0", "dec0"), [(150.0, 20.0), (0.0, -5.0), (80.0, 88.0)])
def test_neighbours_are_those_of_astropy(ra0, dec0):
    ps1, gaia = ps1_table(600, 1, ra0, dec0), gaia_table(200, 5, ra0, dec0)
    ra, dec = sky(60, 9, ra0, dec0, 0.1)
    candidates = candidates_at(ra, dec)
    match_catalogs(candidates, ps1, gaia)
    here = SkyCoord(ra * u.deg, dec * u.deg)
    to_ps1 = here[:, None].separation(SkyCoord(ps1["raMean"] * u.deg, ps1["decMean"] * u.deg)[None]).arcsec
    to_gaia = here[:, None].separation(SkyCoord(gaia["ra"] * u.deg, gaia["dec"] * u.deg)[None]).arcsec
    for candidate, d, g in zip(candidates, to_ps1, to_gaia, strict=True):
        f = candidate.fields
        order = np.argsort(d)[:3]
        order = order[d[order] <= 30]
        assert f["nmtchps"] == np.sum(d <= 30)
        assert [f[f"objectidps{k}"] for k in (1, 2, 3) if f[f"objectidps{k}"] is not None] == ps1["objID"][
            order
        ].tolist()
        for k, i in enumerate(order, 1):
            assert f[f"distpsnr{k}"] == pytest.approx(d[i], abs=1e-4)
            g_mag = ps1["gMeanPSFMag"][i]
            assert f[f"sgmag{k}"] == (None if g_mag < 0 else float(g_mag))
            assert (f[f"srmag{k}"] is None) == np.isnan(ps1["rMeanPSFMag"][i])
            assert (f[f"sgscore{k}"] is None) == np.isnan(ps1["ps_score"][i])
        for suffix, rows in (("", slice(None)), ("bright", gaia["phot_g_mean_mag"] < 14)):
            near = g[rows].min()
            if near <= 90:
                assert f[f"neargaia{suffix}"] == pytest.approx(near, abs=1e-4)
                assert f[f"maggaia{suffix}"] == float(gaia["phot_g_mean_mag"][rows][np.argmin(g[rows])])
            else:
                assert f[f"neargaia{suffix}"] is None
                assert f[f"maggaia{suffix}"] is None


def test_distances_ascend_and_match_the_count():
    candidates = candidates_at(*sky(200, 3, 150.0, 20.0, 0.1))
    match_catalogs(candidates, ps1_table(800, 1, 150.0, 20.0), gaia_table(10, 2, 150.0, 20.0))
    for f in (c.fields for c in candidates):
        distances = [f[f"distpsnr{k}"] for k in (1, 2, 3) if f[f"distpsnr{k}"] is not None]
        assert distances == sorted(distances)
        assert len(distances) == min(3, f["nmtchps"])


def test_empty_catalogues_and_missing_places_give_nulls():
    candidates = [Candidate({"ra": None, "dec": None}, {}), Candidate({"ra": 150.0, "dec": 20.0}, {})]
    match_catalogs(candidates, np.zeros(0, PS1_DTYPE), np.zeros(0, GAIA_DTYPE))
    for f in (c.fields for c in candidates):
        assert f["nmtchps"] == 0
        assert all(f[name] is None for name in ("objectidps1", "sgmag3", "distpsnr2", "neargaia", "maggaiabright"))
    ps1, gaia = ps1_table(50, 1, 150.0, 20.0), gaia_table(50, 1, 150.0, 20.0)
    ps1["raMean"][0] = np.nan
    match_catalogs(candidates, ps1, gaia)
    assert candidates[0].fields["nmtchps"] == 0
    match_catalogs([], ps1, gaia)  # nothing to do is not an error


def test_a_neighbour_just_inside_counts_and_just_outside_does_not():
    ra = np.array([150.0, 150.0])
    dec = 20.0 + np.array([29.9999, 30.0001]) / 3600
    distance, index = nearest(np.array([150.0]), np.array([20.0]), ra, dec, 30.0, 3)
    assert index[0].tolist() == [0, 2, 2]
    assert np.isinf(distance[0, 1:]).all()


def test_scores_outside_their_range_are_missing():
    ps1 = ps1_table(1, 1, 150.0, 20.0)
    ps1["ps_score"] = -999.0
    candidates = candidates_at(ps1["raMean"], ps1["decMean"])
    match_catalogs(candidates, ps1, np.zeros(0, GAIA_DTYPE))
    assert candidates[0].fields["sgscore1"] is None
    assert candidates[0].fields["distpsnr1"] == 0.0
