"""The refined solution against known fields: moving air, refraction, sparse stars with and without known optics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import erfa
import numpy as np
import pytest
from numpy.typing import NDArray

from ops.bench.starfields import JD_MID, Field, make_field
from stream.astrometry import (
    expected_refraction,
    own_colours,
    pixel_of,
    pixel_positions,
    position_sigma,
    propagate,
    refine,
    sky_of,
    sky_positions,
    solve,
)
from stream.astrometry.distortion import Solved, distortion_of, learn_distortion
from stream.astrometry.refine import FEW_STARS
from stream.astrometry.refraction import Refraction, colour_of
from stream.core.camera import FULL
from stream.core.errors import AstrometryError
from stream.core.flags import Info
from stream.core.records import MEAN_COLOUR, SOURCE_DTYPE, Astrometry, Distortion, Exposure
from stream.simulate.fields import RandomField

F64 = NDArray[np.float64]
PX = FULL.pixel_scale / 3600.0
FWHM = 2.0
FLOOR = 0.006  # px that no S/N buys


@dataclass
class Seen:
    """PSF sources of a field through the air: where they are, and where the air put them."""

    field: Field
    sources: np.ndarray
    east: RandomField
    north: RandomField
    size: float  # px

    def moved(self, x: F64, y: F64) -> tuple[F64, F64]:
        u, v = x * PX, y * PX
        return x + self.size * self.east.at(u, v), y + self.size * self.north.at(u, v)

    def refined(self, known: Distortion | None = None, refraction: Refraction | None = None) -> Astrometry:
        first = solve(*self.field.args)
        return refine(first, self.sources, self.field.gaia, JD_MID, self.field.shape, FWHM, known, refraction)

    def errors(self, solution: Astrometry, n: int = 2000) -> tuple[F64, F64, F64, F64]:
        """Errors (2n,) px of the map at places over the image, the stated ones, and the places."""
        rng = np.random.default_rng(5)
        ny, nx = self.field.shape
        x, y = rng.uniform(0, nx - 1, n), rng.uniform(0, ny - 1, n)
        # Truth: what is seen at the moved place is at the sky place of the unmoved one.
        bx, by = pixel_positions(self.field.truth, *sky_of(solution, *self.moved(x, y)))
        stated = np.concatenate(position_sigma(solution, x, y)) / FULL.pixel_scale
        return np.concatenate([bx - x, by - y]), stated, x, y


def look(seed: int, density: float, size: float = 0.02, lift: float = 0.0) -> Seen:
    """A field whose stars the air moved, blue ones lifted to the north by ``lift`` arcsec a mag."""
    field = make_field(seed, FULL, density)
    rng = np.random.default_rng(seed + 1000)
    east, north = (RandomField.draw(rng, 0.04, 1.5, 1 / 3) for _ in range(2))
    sources = np.zeros(len(field.detections), SOURCE_DTYPE)
    gaia = field.gaia
    ra, dec = propagate(gaia, JD_MID, parallax=True)
    lifted = dec + lift * (MEAN_COLOUR - gaia["bp_rp"]) / 3600.0
    plain, true = pixel_positions(field.truth, ra, dec), pixel_positions(field.truth, ra, lifted)
    seen = Seen(field, sources, east, north, size)
    # Every detection that is a star goes where it is, however its first centroid was.
    tree = _nearest(np.stack(plain, 1), np.stack([field.detections["x"], field.detections["y"]], 1))
    sources["x"], sources["y"] = field.detections["x"], field.detections["y"]
    star = tree >= 0
    x, y = seen.moved(true[0][tree[star]], true[1][tree[star]])
    snr = field.detections["snr"]
    own = np.hypot(FLOOR, 1.1 * 0.6 * FWHM / np.maximum(snr[star], 1))
    sources["x"][star], sources["y"][star] = x + rng.normal(0, own), y + rng.normal(0, own)
    sources["flux"], sources["snr"], sources["flags"] = field.detections["flux"], snr, field.detections["flags"]
    return replace(seen, sources=sources)


def _nearest(catalogue: F64, detections: F64) -> NDArray[np.int64]:
    """Index of the catalogue star within 4 px of a detection (a saturated one's first place is 1.5 px off), or -1."""
    from scipy.spatial import cKDTree

    known = np.where(np.isfinite(catalogue), catalogue, -1e6)
    distance, index = cKDTree(known).query(detections, distance_upper_bound=4.0)
    return np.where(np.isfinite(distance), index, -1)


@pytest.mark.parametrize("density", [1200, 5000])
def test_the_airs_displacement_is_taken_out_and_the_error_map_is_true(density: float) -> None:
    fields = [look(seed, density) for seed in range(3)]
    solutions = [f.refined() for f in fields]
    bare = [replace(s, displacement=None) for s in solutions]
    found = [f.errors(s)[:2] for f, s in zip(fields, solutions, strict=True)]
    errors, stated = (np.concatenate(v) for v in zip(*found, strict=True))
    plain = np.concatenate([f.errors(s)[0] for f, s in zip(fields, bare, strict=True)])
    assert np.std(errors) < 0.9 * np.std(plain)
    assert np.sqrt(np.mean((errors / stated) ** 2)) == pytest.approx(1.0, abs=0.2)
    for solution in solutions:
        at_one, floor = solution.centroid
        assert at_one == pytest.approx(1.1 * 0.6 * FWHM, rel=0.25)
        assert floor < 0.03


def test_places_go_there_and_back() -> None:
    seen = look(2, 1500)
    solution = seen.refined()
    assert solution.displacement is not None
    x, y = np.array([0.0, 1500.5, 3071.0]), np.array([3079.0, 900.25, 5.0])
    ra, dec = sky_of(solution, x, y)
    there = pixel_of(solution, ra, dec)
    np.testing.assert_allclose(there, [x, y], atol=1e-4)
    moved = np.hypot(*np.subtract(sky_positions(solution.wcs, x, y), (ra, dec))) * 3600
    assert 0.001 < moved.max() < 0.3
    assert np.isnan(sky_of(solution, [np.nan], [1.0])[0]).all()
    assert len(sky_of(solution, [], [])[0]) == 0
    # A faint source is less sure than the map, a bright one hardly.
    alone, faint = position_sigma(solution, x, y), position_sigma(solution, x, y, np.full(3, 5.0))
    assert (faint[0] > 3 * alone[0]).all()


def test_refraction_is_fitted_where_there_are_stars_and_believed_where_there_are_few() -> None:
    expected = Refraction((0.0, 1.0), 0.050, 0.025)
    rich = look(4, 5000, lift=0.080)
    assert rich.refined(refraction=expected).refraction == pytest.approx(0.080, abs=0.008)
    poor = look(5, 150, lift=0.050)
    assert poor.refined(refraction=expected).refraction == pytest.approx(0.050, abs=0.030)
    assert np.isnan(rich.refined().refraction)


def test_a_star_of_unknown_colour_is_less_sure_along_the_vertical() -> None:
    seen = look(4, 5000, lift=0.080)
    solution = seen.refined(refraction=Refraction((0.0, 1.0), 0.050, 0.025))
    # Truth: where stars of the catalogue's colours are on the image, through the map.
    gaia, (ny, nx) = seen.field.gaia, seen.field.shape
    known = gaia[np.isfinite(gaia["bp_rp"])]
    ra, dec = propagate(known, JD_MID, parallax=True)
    lifted = dec + 0.080 * (MEAN_COLOUR - known["bp_rp"]) / 3600.0
    x, y = pixel_positions(seen.field.truth, ra, lifted)
    on = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
    found = sky_of(solution, *seen.moved(x[on], y[on]))
    error = (found[0] - ra[on]) * np.cos(np.radians(dec[on])) * 3600, (found[1] - dec[on]) * 3600
    stated = position_sigma(solution, x[on], y[on])
    bare = position_sigma(replace(solution, colour_sigma=(0.0, 0.0)), x[on], y[on])
    assert np.sqrt(np.mean((error[1] / stated[1]) ** 2)) == pytest.approx(1.0, abs=0.1)
    assert abs(np.mean(error[1])) < 0.004  # of all stars, faint ones too, however blue the fitted ones are
    assert np.sqrt(np.mean((error[1] / bare[1]) ** 2)) > 2.0
    np.testing.assert_array_equal(stated[0], bare[0])  # the vertical is the north here


@pytest.mark.parametrize("density", [150, 400])
def test_a_good_fit_of_few_stars_is_not_told_to_have_become_worse(density: float) -> None:
    """Their solution is refined twice; from the first turn's map to the second's chi-square changes either way."""
    solutions = [look(seed, density).refined() for seed in range(6)]
    assert max(s.n_matched for s in solutions) < FEW_STARS
    assert [s.infobits & Info.CHI_CHANGE for s in solutions] == [0] * 6


def test_the_colour_of_an_image_is_that_of_its_stars() -> None:
    colours = np.append(np.random.default_rng(1).normal(1.5, 0.4, 500), [np.nan] * 30)
    mean, spread = colour_of(colours)
    assert (mean, spread) == pytest.approx((np.nanmean(colours), np.nanstd(colours)), abs=0.01)
    assert colour_of(colours[:10])[0] == colour_of(colours[-10:])[0] == MEAN_COLOUR


def test_a_star_of_known_colour_loses_its_refraction() -> None:
    seen = look(4, 5000, lift=0.080)
    up = Refraction((0.0, 1.0), 0.050, 0.025)
    solution = seen.refined(refraction=up)
    gaia = seen.field.gaia.copy()
    gaia["bp_rp"][::3] = np.nan
    ra, dec = propagate(gaia, JD_MID, parallax=True)
    lift = 0.080 * (MEAN_COLOUR - seen.field.gaia["bp_rp"]) / 3600.0
    x, y = pixel_positions(seen.field.truth, ra, dec + lift)
    on = (x > 0) & (x < seen.field.shape[1] - 1) & (y > 0) & (y < seen.field.shape[0] - 1)
    plain = sky_of(solution, *seen.moved(x[on], y[on]))
    found = own_colours(*plain, gaia, solution.refraction, up.zenith, solution.colour)
    known = np.isfinite(gaia["bp_rp"][on])
    before, after = ((p[1] - dec[on]) * 3600 for p in (plain, found))
    np.testing.assert_array_equal(after[~known], before[~known])
    np.testing.assert_allclose(found[0], plain[0], atol=1e-12)
    assert np.std(after[known]) < 0.4 * np.std(before[known])
    # What is small, or not measured, changes nothing; nor do places that are none.
    for shift in (0.005, np.nan):
        assert own_colours(*plain, gaia, shift, up.zenith, solution.colour)[1] is plain[1]
    assert np.isnan(own_colours(np.array([np.nan, 1.0]), np.array([2.0, 1.0]), gaia, 0.08, up.zenith, 1.1)[0][0])


def test_the_zenith_is_where_it_is() -> None:
    # Where sidereal time is the right ascension a star culminates: the zenith is due north of it, or south.
    exposure = Exposure("e", "object", 1, 1, 1, 1, JD_MID, JD_MID, 30.0, 0.0, 0.0)
    meridian = np.degrees(erfa.gmst82(JD_MID, 0.0)) - 116.86
    south = expected_refraction(exposure, meridian % 360, -6.64)  # 40 deg south of the zenith
    assert south is not None
    np.testing.assert_allclose(south.zenith, (0.0, 1.0), atol=2e-3)
    assert south.shift == pytest.approx(0.040 * np.tan(np.radians(40.0)), rel=1e-3)
    north = expected_refraction(exposure, meridian % 360, 73.36)
    assert north is not None
    np.testing.assert_allclose(north.zenith, (0.0, -1.0), atol=2e-3)
    west = expected_refraction(exposure, (meridian - 45) % 360, 0.0)
    assert west is not None
    assert west.zenith[0] > 0.5  # east of a star in the west
    assert expected_refraction(exposure, (meridian + 180) % 360, 0.0) is None


def test_known_optics_carry_a_sparse_field() -> None:
    with_it, without = [], []
    for seed in range(3):
        sparse = look(seed + 20, 90)
        truth = distortion_of(sparse.field.truth, sparse.field.shape)
        rng = np.random.default_rng(seed)
        sigma = np.full((15, 2), 0.02)
        sigma[:3] = np.inf
        off = np.where(np.arange(15)[:, None] > 2, rng.normal(0, 0.02, (15, 2)), 0.0)
        known = Distortion(0, 2, truth + off, sigma, 9, ("20200101", "20200102"))
        without.append(sparse.errors(sparse.refined())[0])
        errors, stated, *_ = sparse.errors(sparse.refined(known))
        with_it.append(errors)
        assert 0.5 < np.sqrt(np.mean((errors / stated) ** 2)) < 1.6
    assert np.std(with_it) < 0.5 * np.std(without)


def test_learning_wants_rich_solutions() -> None:
    field = make_field(1, FULL, 1500)
    solved = [Solved(field.truth, 1000, f"2020010{k}") for k in range(1, 6)]
    model = learn_distortion(3, 2, solved, field.shape)
    np.testing.assert_allclose(model.mean, distortion_of(field.truth, field.shape), atol=1e-9)
    assert np.isinf(model.sigma[:3]).all()
    assert (model.sigma[3:] > 0).all()
    with pytest.raises(AstrometryError, match="4 solutions"):
        learn_distortion(3, 2, [*solved[:4], Solved(field.truth, 40, "20200109")], field.shape)


def test_too_few_sources_leave_the_first_solution() -> None:
    seen = look(6, 1500)
    first = solve(*seen.field.args)
    assert refine(first, seen.sources[:10], seen.field.gaia, JD_MID, seen.field.shape, FWHM) is first
    assert refine(first, seen.sources[:0], seen.field.gaia, JD_MID, seen.field.shape, FWHM) is first
    assert refine(first, seen.sources, seen.field.gaia[:0], JD_MID, seen.field.shape, FWHM) is first
