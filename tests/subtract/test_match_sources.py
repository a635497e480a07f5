"""Throughput, offsets and registration error from common stars whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pairs import reference_of, science_of, sky_wcs
from synthetic import star_field

from stream.core.errors import SubtractionError
from stream.core.flags import Mask
from stream.core.pixelmap import PixelMap
from stream.core.psf import gaussian_psf
from stream.core.records import Reference, ScienceImage
from stream.subtract import match_sources

SHAPE = (500, 520)


def pair(n: int = 150, ratio: float = 0.8) -> tuple[ScienceImage, Reference]:
    wcs = sky_wcs(SHAPE)
    x, y, flux = star_field(SHAPE, n, 1, (2000, 60_000))
    ra, dec = wcs.all_pix2world(x, y, 0)
    psf = gaussian_psf(2.2, SHAPE)
    science = science_of(SHAPE, ra, dec, ratio * flux, wcs, psf, magzp=26.0)
    reference = reference_of(SHAPE, ra, dec, flux, sky_wcs(SHAPE, dx=3.3, dy=-1.2, turn=0.1), psf, magzp=26.3)
    return science, reference


def map_of(science: ScienceImage, reference: Reference) -> PixelMap:
    return PixelMap.between(science.astrometry.wcs, science.data.shape, reference.wcs)


def test_throughput_within_its_error() -> None:
    science, reference = pair()
    match = match_sources(science, reference, map_of(science, reference))
    assert not match.from_zeropoints
    assert match.n_matched > 60
    assert abs(match.flux_scale - 0.8) < 4 * match.flux_scale_error < 0.02


def test_variables_do_not_pull_the_throughput() -> None:
    science, reference = pair()
    science.sources["flux"][::6] *= 1.5
    match = match_sources(science, reference, map_of(science, reference))
    assert match.flux_scale == pytest.approx(0.8, rel=0.01)


def test_throughput_from_place_to_place() -> None:
    science, reference = pair()
    flat = match_sources(science, reference, map_of(science, reference))
    s = science.sources
    u, v = s["x"] / 260 - 1, s["y"] / 250 - 1
    s["flux"] *= 1 + 0.04 * u - 0.02 * u * v
    pixel_map = map_of(science, reference)
    match = match_sources(science, reference, pixel_map)
    assert match.trend is not None
    x, y = np.array([20.0, 260.0, 500.0, 500.0]), np.array([20.0, 250.0, 20.0, 480.0])
    expected = 0.8 * (1 + 0.04 * (x / 260 - 1) - 0.02 * (x / 260 - 1) * (y / 250 - 1))
    assert match.scale_at(x, y, SHAPE) == pytest.approx(expected, rel=0.01)
    nodes = pixel_map.nodes()
    on_nodes = match.scale_on(nodes)
    assert isinstance(on_nodes, np.ndarray)
    columns, rows = (grid.ravel() for grid in np.meshgrid(np.arange(on_nodes.shape[1]) * 8, np.arange(SHAPE[0])))
    assert on_nodes.ravel() == pytest.approx(match.scale_at(columns, rows, SHAPE), rel=1e-6)
    # Where nothing shows it is one number; a variation that no telescope has is a mistake of something else.
    assert flat.trend is None
    assert flat.scale_on(nodes) == flat.flux_scale
    s["flux"] *= 1 + 0.5 * v
    assert match_sources(science, reference, pixel_map).trend is None


def test_few_stars_fall_back_on_the_zero_points() -> None:
    science, reference = pair(n=12)
    match = match_sources(science, reference, map_of(science, reference))
    assert match.from_zeropoints
    assert match.flux_scale == pytest.approx(10 ** (0.4 * (26.0 - 26.3)))
    blind = dataclasses.replace(reference, magzp=float("nan"))
    with pytest.raises(SubtractionError, match="throughput"):
        match_sources(science, blind, map_of(science, blind))


def test_an_empty_catalogue_is_no_crash() -> None:
    science, reference = pair()
    empty = dataclasses.replace(reference, sources=reference.sources[:0])
    match = match_sources(science, empty, map_of(science, empty))
    assert (match.n_matched, match.from_zeropoints) == (0, True)
    assert match.rms == (0.1, 0.1)


def test_a_common_offset_is_found_and_nothing_is_invented() -> None:
    science, reference = pair()
    good = match_sources(science, reference, map_of(science, reference))
    here = map_of(science, reference)
    assert np.abs(good.moved(here).shift_x - here.shift_x).max() < 0.02
    assert max(good.rms) < 0.02
    reference.sources["x"] += 0.30
    reference.sources["y"] -= 0.15
    match = match_sources(science, reference, map_of(science, reference))
    found = map_of(science, reference)
    before, after = (m.at([250.0], [240.0]) for m in (found, match.moved(found)))
    assert after[0] - before[0] == pytest.approx(0.30, abs=0.01)
    assert after[1] - before[1] == pytest.approx(-0.15, abs=0.01)


@pytest.mark.parametrize(("sx", "sy"), [(0.08, 0.05), (0.15, 0.15)])
def test_registration_error_is_measured_per_axis(sx: float, sy: float) -> None:
    science, reference = pair(n=400)
    rng = np.random.default_rng(8)
    reference.sources["x"] += rng.normal(0, sx, len(reference.sources))
    reference.sources["y"] += rng.normal(0, sy, len(reference.sources))
    match = match_sources(science, reference, map_of(science, reference))
    assert match.rms[0] == pytest.approx(sx, rel=0.35)
    assert match.rms[1] == pytest.approx(sy, rel=0.35)


def test_flagged_and_crowded_stars_are_left_out() -> None:
    science, reference = pair()
    before = match_sources(science, reference, map_of(science, reference)).n_matched
    science.sources["flags"][: len(science.sources) // 2] = 256
    after = match_sources(science, reference, map_of(science, reference)).n_matched
    assert after < 0.75 * before


def test_stars_in_a_halo_count() -> None:
    science, reference = pair()
    every = match_sources(science, reference, map_of(science, reference)).n_matched
    for table in (science.sources, reference.sources):
        table["flags"][: len(table) // 2] = int(Mask.HALO)
    assert match_sources(science, reference, map_of(science, reference)).n_matched == every
