"""The zero point against a known one: colour term, outliers, galaxies, few matches, missing values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from stream.core.errors import PhotometryError
from stream.core.flags import Mask
from stream.core.records import PS1_DTYPE, SOURCE_DTYPE, Table
from stream.core.zeropointmap import map_cards, read_map
from stream.photometry import fit_zeropoint, match_calibrators
from stream.photometry.zeropoint import ZEROPOINT_FLOOR

F64 = NDArray[np.float64]
ZP, CLR, RA, DEC = 26.2, {1: -0.055, 2: 0.115, 3: 0.19}, 151.0, 33.0


def tables(n: int, fid: int = 1, seed: int = 1, scatter: float = 0.01) -> tuple[Table, Table]:
    """Sources and catalogue of the same stars: zero point 26.2, a true colour term, an error of 10 DN and more."""
    rng = np.random.default_rng(seed)
    ps1, sources = np.zeros(n, PS1_DTYPE), np.zeros(n, SOURCE_DTYPE)
    ps1["objID"] = np.arange(n)
    # On a jittered grid: each star is surely its own nearest neighbour.
    side = int(np.ceil(np.sqrt(n)))
    k = rng.permutation(side * side)[:n]
    ps1["raMean"] = RA + ((k % side) + rng.uniform(0, 0.5, n)) * 0.8 / side / np.cos(np.radians(DEC))
    ps1["decMean"] = DEC + ((k // side) + rng.uniform(0, 0.5, n)) * 0.8 / side
    g = rng.uniform(14.5, 20, n)
    gr = np.clip(rng.normal(0.6, 0.25, n), 0.15, 1.1)
    ri = gr * 0.45
    for band, mag in (("g", g), ("r", g - gr), ("i", g - gr - ri), ("z", g - gr - 1.4 * ri)):
        ps1[f"{band}MeanPSFMag"], ps1[f"{band}MeanPSFMagErr"] = mag, 0.005
    ps1["ps_score"] = 1.0
    band, colour = {1: (g, gr), 2: (g - gr, gr), 3: (g - gr - ri, ri)}[fid]
    mag = band - ZP - CLR[fid] * colour + rng.normal(0, scatter, n)
    flux = 10 ** (-0.4 * mag)
    error = np.hypot(10, np.sqrt(flux / 6.2))
    sources["flux"], sources["sigflux"] = flux + rng.normal(0, 1, n) * error, error
    sources["snr"] = sources["flux"] / error
    sources["ra"] = ps1["raMean"] + rng.normal(0, 0.05, n) / 3600
    sources["dec"] = ps1["decMean"] + rng.normal(0, 0.05, n) / 3600
    return sources, ps1


@pytest.mark.parametrize("fid", [1, 2, 3])
def test_zero_point_and_colour_term_are_found(fid: int) -> None:
    sources, ps1 = tables(800, fid, seed=fid)
    zp = fit_zeropoint(sources, ps1, fid)
    assert abs(zp.magzp - ZP) < min(4 * zp.magzpunc, 0.01)
    assert abs(zp.clrcoeff - CLR[fid]) < min(4 * zp.clrcounc, 0.02)
    assert zp.n_matches > 400
    assert 0.008 < zp.magzprms < 0.04
    assert zp.pcolor == {1: "g - R", 2: "g - R", 3: "R - i"}[fid]
    assert zp.zpmed == pytest.approx(zp.magzp + zp.clrcoeff * zp.clrmed, abs=0.01)
    assert zp.zpavg == pytest.approx(zp.magzp + zp.clrcoeff * zp.clravg, abs=0.01)
    assert zp.zpclrcov < 0  # bluer zero point, steeper slope


@pytest.mark.parametrize(("n", "scatter"), [(150, 0.0), (150, 0.01), (500, 0.003)])
def test_errors_are_true(n: int, scatter: float) -> None:
    """Over many images, each with a catalogue of its own errors, the zero point scatters as its error without the floor
    says, whatever stars scatter beyond their errors."""
    pulls, clr_pulls = [], []
    for seed in range(120):
        sources, ps1 = tables(n, 1, seed=100 + seed, scatter=scatter)
        rng = np.random.default_rng(900 + seed)
        for band in "gri":
            ps1[f"{band}MeanPSFMag"] += ps1[f"{band}MeanPSFMagErr"] * rng.normal(size=n)
        zp = fit_zeropoint(sources, ps1, 1)
        pulls.append((zp.magzp - ZP) / np.sqrt(zp.magzpunc**2 - ZEROPOINT_FLOOR**2))
        clr_pulls.append((zp.clrcoeff - CLR[1]) / zp.clrcounc)
    assert 0.75 < np.sqrt(np.mean(np.square(pulls))) < 1.2
    assert 0.75 < np.sqrt(np.mean(np.square(clr_pulls))) < 1.2
    assert abs(np.mean(pulls)) < 0.3


def test_outliers_galaxies_and_defects_do_not_matter() -> None:
    sources, ps1 = tables(600, 2, seed=9)
    sources["flux"][:60] *= 0.5  # variable, clipped or blended
    ps1["ps_score"][60:160] = 0.0
    sources["flux"][60:160] *= 0.7
    sources["flags"][160:220] = int(Mask.SATURATED)
    sources["flux"][160:220] *= 0.8
    sources["flags"][220:230] = -1
    sources["flux"][220:230] = np.nan
    sources["sharp"][230:260] = 2.0
    sources["flux"][230:260] *= 0.6
    zp = fit_zeropoint(sources, ps1, 2)
    assert zp.magzp == pytest.approx(ZP, abs=0.01)
    assert zp.n_matches < 360


def test_missing_catalogue_values_are_left_out() -> None:
    sources, ps1 = tables(300, 1, seed=10)
    ps1["gMeanPSFMag"][:50] = -999
    ps1["rMeanPSFMag"][50:100] = np.nan
    ps1["gMeanPSFMagErr"][100:200] = np.nan  # error unknown: used
    ps1["ps_score"][200:] = np.nan  # class unknown: used
    matched = match_calibrators(sources, ps1, 1)
    assert matched.star.min() >= 100
    assert np.isfinite(matched.error).all()
    assert fit_zeropoint(sources, ps1, 1).magzp == pytest.approx(ZP, abs=0.015)


def test_matches_are_mutual_and_near() -> None:
    sources, ps1 = tables(50, 1, seed=11, scatter=0)
    far = ps1.copy()
    far["decMean"] += 2.0 / 3600
    assert len(match_calibrators(sources, far, 1).star) == 0
    # A second source beside a star, farther from it than the first: only the first is matched.
    double = np.concatenate([sources, sources])
    double["dec"][50:] += 0.8 / 3600
    matched = match_calibrators(double, ps1, 1)
    assert (matched.source < 50).all()
    assert (matched.source == matched.star).all()


def test_across_the_meridian() -> None:
    sources, ps1 = tables(100, 1, seed=12)
    for table, name in ((sources, "ra"), (ps1, "raMean")):
        table[name] = (table[name] - RA - 0.3) % 360
    assert fit_zeropoint(sources, ps1, 1).magzp == pytest.approx(ZP, abs=0.02)


def test_few_matches_keep_the_usual_colour_term() -> None:
    sources, ps1 = tables(7, 1, seed=13)
    ps1["rMeanPSFMag"] = ps1["gMeanPSFMag"] - 0.6  # one colour says nothing about the slope
    zp = fit_zeropoint(sources, ps1, 1)
    assert zp.clrcoeff == pytest.approx(CLR[1], abs=0.02)
    assert zp.clrcounc > 0.05


@pytest.mark.parametrize("n", [0, 4])
def test_too_few_matches_is_a_clear_error(n: int) -> None:
    sources, ps1 = tables(30, 1, seed=14)
    with pytest.raises(PhotometryError, match="needs 5") as caught:
        fit_zeropoint(sources[:n], ps1, 1)
    assert caught.value.context["n_matches"] <= n
    with pytest.raises(PhotometryError, match="needs 5"):
        fit_zeropoint(sources, ps1[:n], 1)


def test_sources_without_places_and_unknown_filter() -> None:
    sources, ps1 = tables(30, 1, seed=15)
    with pytest.raises(PhotometryError, match="filter 4"):
        fit_zeropoint(sources, ps1, 4)
    sources["ra"] = np.nan
    with pytest.raises(PhotometryError, match="0 matches"):
        fit_zeropoint(sources, ps1, 1)


def tilted(n: int, surface: Callable[[F64, F64], F64], seed: int) -> tuple[Table, Table]:
    """Tables of stars all over an image whose zero point is higher by ``surface(u, v)`` mag, u and v from -1 to 1."""
    sources, ps1 = tables(n, 1, seed)
    rng = np.random.default_rng(seed + 1000)
    sources["x"], sources["y"] = rng.uniform(0, SHAPE[1] - 1, n), rng.uniform(0, SHAPE[0] - 1, n)
    more = 10 ** (0.4 * surface(2 * sources["x"] / (SHAPE[1] - 1) - 1, 2 * sources["y"] / (SHAPE[0] - 1) - 1))
    for name in ("flux", "sigflux"):
        sources[name] *= more
    return sources, ps1


SHAPE = (3080, 3072)
X, Y = (g.ravel() for g in np.meshgrid(np.linspace(0, SHAPE[1] - 1, 9), np.linspace(0, SHAPE[0] - 1, 9)))
U, V = 2 * X / (SHAPE[1] - 1) - 1, 2 * Y / (SHAPE[0] - 1) - 1


@pytest.mark.parametrize(
    ("degree", "surface"),
    [
        (1, lambda u, v: 0.02 * u - 0.01 * v),
        (2, lambda u, v: 0.015 * u * v + 0.02 * u**2),
        (3, lambda u, v: 0.02 * u**3 - 0.02 * u * v**2),
    ],
)
def test_a_zero_point_that_varies_is_mapped(degree: int, surface: Callable[[F64, F64], F64]) -> None:
    zp = fit_zeropoint(*tilted(900, surface, 20 + degree), 1, SHAPE)
    assert zp.map is not None
    assert zp.map.degree == degree
    truth = ZP + surface(U, V)
    error = zp.at(X, Y) - truth
    allowed = np.hypot(zp.map.sigma(X, Y), zp.magzpunc)
    assert np.std(error / allowed) < 1.5
    assert np.abs(error).max() < 0.012
    assert np.median(zp.map.expand(16)) == pytest.approx(0, abs=2e-4)
    assert zp.map.rms < zp.magzprms
    assert zp.map.expand(384)[2, 3] == pytest.approx(float(zp.map.offset(3 * 384, 2 * 384)), abs=1e-6)


def test_no_map_where_nothing_varies_or_few_stars_tell() -> None:
    flat = [fit_zeropoint(*tilted(300, lambda u, v: 0 * u, 40 + k), 1, SHAPE).map for k in range(20)]
    assert sum(found is None for found in flat) >= 18
    steep = tilted(9, lambda u, v: 0.05 * u, 60)
    assert fit_zeropoint(*steep, 1, SHAPE).map is None
    assert fit_zeropoint(*steep, 1).map is None


def test_errors_of_the_map_are_true() -> None:
    pulls = []
    for seed in range(40):
        zp = fit_zeropoint(*tilted(200, lambda u, v: 0.03 * u - 0.02 * v, 70 + seed), 1, SHAPE)
        assert zp.map is not None
        pulls.append((zp.at(0.0, 0.0) - (ZP - 0.01)) / np.hypot(zp.magzpunc, zp.map.sigma(0.0, 0.0)))
    assert 0.75 < np.std(pulls) < 1.3
    assert abs(np.mean(pulls)) < 0.5


def test_a_map_survives_its_header() -> None:
    found = fit_zeropoint(*tilted(500, lambda u, v: 0.03 * u * v, 33), 1, SHAPE).map
    assert found is not None
    header = {key: value for key, (value, _) in map_cards(found).items()}
    assert read_map(header) == found
    assert read_map({key: value for key, (value, _) in map_cards(None).items()}) is None
    del header["ZPM11"]
    assert read_map(header) is None


@pytest.mark.parametrize("fid", [1, 2, 3])
def test_errors_of_the_catalogue_do_not_bend_the_slope(fid: int) -> None:
    """With 0.03 mag in every PS1 magnitude a plain line's slope would be off by 0.005 to 0.02, always to one side."""
    slopes, zeros = [], []
    for seed in range(40):
        sources, ps1 = tables(400, fid, seed=500 + seed)
        rng = np.random.default_rng(seed)
        for band in "gri":
            ps1[f"{band}MeanPSFMag"] += rng.normal(0, 0.03, len(ps1))
            ps1[f"{band}MeanPSFMagErr"] = 0.03
        zp = fit_zeropoint(sources, ps1, fid)
        slopes.append((zp.clrcoeff - CLR[fid]) / zp.clrcounc)
        zeros.append((zp.magzp - ZP) / zp.magzpunc)
    assert abs(np.mean(slopes)) < 0.5
    assert abs(np.mean(zeros)) < 0.5
    assert 0.7 < np.std(zeros) < 1.35
