"""Local limits: true where the noise differs, none where nothing can be seen, read back at a sky place."""

from __future__ import annotations

import extract_scene as scene
import numpy as np
import pytest

from stream.archive import ProductStore, StoreDepths, science_path
from stream.archive.depths import SUFFIX, decode_depth, encode_depth, pixel_in
from stream.core.depth import CELL
from stream.core.errors import MessageError
from stream.enrich.history import Epoch
from stream.extract import ExtractSettings, depth_map, extract

SHAPE = (500, 620)


def noisy():
    """A difference whose right half has three times the noise, with a hole at the top left."""
    signal = np.zeros(SHAPE)
    difference = scene.difference_of(signal, seed=3)
    difference.data[:, 320:] *= 3
    difference.sigma[:, 320:] *= 3
    difference.sigma[:70, :70] = np.nan
    return difference


@pytest.fixture(scope="module")
def depth():
    return depth_map(scene.science_of(SHAPE), noisy())


def test_the_limit_follows_the_noise_to_the_border_and_there_is_none_in_a_hole(depth):
    assert depth.limit.shape == (-(-SHAPE[0] // CELL), -(-SHAPE[1] // CELL))
    assert depth.at(100, 400) == pytest.approx(scene.limit_magnitude(), abs=1e-3)
    assert depth.at(500, 400) == pytest.approx(scene.limit_magnitude() - 2.5 * np.log10(3), abs=1e-3)
    assert depth.at(619.4, 499.4) == pytest.approx(depth.at(500, 400), abs=1e-6)
    assert np.isnan(depth.at([10.0, -3.0, 620.0, np.nan], [10.0, 9.0, 9.0, 9.0])).all()


def test_it_agrees_with_the_limits_of_the_candidates_there(depth):
    x, y = scene.grid_places(SHAPE, 45, 5)
    flux = np.full(len(x), 60 * scene.flux_error())
    difference = noisy()
    difference.data[:] += scene.point_sources(SHAPE, x, y, flux)
    difference.scorr[:] += scene.point_sources(SHAPE, x, y, np.full(len(x), 400.0))
    science = scene.science_of(SHAPE)
    found = extract(science, scene.reference_of(science), difference, ExtractSettings(threshold=20.0))
    own = [(c.fields["xpos"] - 1, c.fields["ypos"] - 1, c.extra["limmag"]) for c in found if c.rejected is None]
    assert len(own) > 50
    px, py, limit = np.array(own).T
    clear = np.abs(px - 320) > 15
    assert np.allclose(depth.at(px, py)[clear], limit[clear], atol=0.02)


def test_it_survives_its_file_to_a_millimagnitude(depth):
    back = decode_depth(encode_depth(depth))
    assert (back.shape, back.cell) == (depth.shape, depth.cell)
    assert np.array_equal(np.isnan(back.limit), np.isnan(depth.limit))
    assert np.nanmax(np.abs(back.limit - depth.limit)) < 6e-4
    with pytest.raises(MessageError, match="no readable FITS"):
        decode_depth(b"")


def test_an_epochs_depth_is_asked_for_by_sky_place(depth, tmp_path):
    science = scene.science_of(SHAPE)
    wcs = science.astrometry.wcs
    ny, nx = SHAPE
    ra, dec = wcs.all_pix2world([-0.5, nx - 0.5, nx - 0.5, -0.5], [-0.5, -0.5, ny - 0.5, ny - 0.5], 0)
    corners = tuple(float(v) for pair in zip(ra, dec, strict=True) for v in pair)
    px, py = np.array([100.0, 500.0, 30.0]), np.array([400.0, 90.0, 30.0])
    places = list(zip(*(v.tolist() for v in wcs.all_pix2world(px, py, 0)), strict=True))
    for place, x, y in zip(places, px, py, strict=True):
        assert pixel_in(corners, SHAPE, *place) == pytest.approx((x, y), abs=1.0)
    q = science.quadrant
    epoch = Epoch(q.name, q.pid, q.exposure.jd, 2, 651, 8, 1, 697, corners, 20.0)
    store = ProductStore(str(tmp_path))
    depths = StoreDepths(store)
    assert depths(epoch, *places[0]) == 20.0  # no map yet: the quadrant's own
    store.write(science_path(q.name, SUFFIX), encode_depth(depth))
    assert depths(epoch, *places[0]) == pytest.approx(float(depth.at(px[0], py[0])), abs=1e-3)
    assert depths(epoch, *places[1]) == pytest.approx(float(depth.at(px[1], py[1])), abs=1e-3)
    assert depths(epoch, *places[2]) is None
