"""Where pixels go and what they carry: against astropy point by point, against tap-by-tap sums, against truth."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS
from numpy.typing import NDArray
from pairs import sky_wcs
from scipy import ndimage
from synthetic import paint

from stream.core import resample as module
from stream.core.lanczos import lanczos_weights
from stream.core.pixelmap import MapNodes, PixelMap, pixel_map, world_to_pixel
from stream.core.psf import gaussian_psf
from stream.core.resample import (
    bridged,
    carry,
    noise_left,
    noise_transfer,
    resample,
    resample_bridged,
    resample_nearest,
)

SHAPE = (300, 340)


def tpv(shape: tuple[int, int]) -> WCS:
    """A distorted solution: up to 3" at the corners of a whole quadrant."""
    header = sky_wcs(shape).to_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    for name, value in {"PV1_1": 1, "PV2_1": 1, "PV1_4": 3e-4, "PV1_7": 2e-3, "PV2_5": -4e-4, "PV2_12": 1e-3}.items():
        header[name] = float(value)
    return WCS(header)


@pytest.mark.parametrize("turn", [0.05, 2.0, 180.0])
def test_map_agrees_with_the_wcs_everywhere(turn: float) -> None:
    shape = (1030, 1500)
    target, source = tpv(shape), sky_wcs(shape, dx=11.3, dy=-4.7, turn=turn)
    map_y, map_x = pixel_map(target, shape, source)
    rng = np.random.default_rng(1)
    y, x = rng.integers(0, shape[0], 500), rng.integers(0, shape[1], 500)
    sx, sy = source.all_world2pix(*target.all_pix2world(x, y, 0), 0)
    assert map_y.dtype == map_x.dtype == np.float32
    assert np.abs(map_x[y, x] - sx).max() < 1e-3
    assert np.abs(map_y[y, x] - sy).max() < 1e-3


def test_map_to_the_other_side_of_the_sky_is_nan() -> None:
    map_y, map_x = pixel_map(sky_wcs(SHAPE), SHAPE, sky_wcs(SHAPE, ra=330.0, dec=-30.0))
    assert np.isnan(map_y).all()
    assert np.isnan(map_x).all()


def test_world_to_pixel_undoes_a_distorted_solution() -> None:
    wcs = tpv((3080, 3072))
    x, y = world_to_pixel(wcs, *wcs.all_pix2world([0.0, 1500.0, 3071.0], [3079.0, 1500.0, 0.0], 0))
    assert np.allclose(x, [0, 1500, 3071], atol=1e-4)
    assert np.allclose(y, [3079, 1500, 0], atol=1e-4)


def sums_over_taps(image: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lanczos-5 written out in double precision at places (n, 2) y, x."""
    low = np.floor(places).astype(int)
    weights = lanczos_weights(places - low).astype(float)
    index = low[:, :, None] + np.arange(-4, 6)
    y, x = (np.clip(index[:, axis], 0, image.shape[axis] - 1) for axis in (0, 1))
    return np.einsum("nj,ni,nji->n", weights[:, 0], weights[:, 1], image[y[:, :, None], x[:, None, :]].astype(float))


@pytest.mark.parametrize(("turn", "stride"), [(0.0, 2), (0.1, 2), (0.4, 1), (3.0, 0), (180.0, 0)])
@pytest.mark.parametrize("shape", [SHAPE, (70, 1111)])
def test_passes_along_rows_and_columns_agree_with_the_sum_over_taps(
    turn: float, stride: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(3)
    image = ndimage.gaussian_filter(rng.normal(0, 1, shape), 0.9).astype(np.float32)
    map_y, map_x = pixel_map(sky_wcs(shape), shape, sky_wcs(shape, dx=0.31, dy=-2.77, turn=turn))
    assert module._steps(MapNodes.of(map_y, map_x))[0] == stride
    fast = resample(image, map_y, map_x)
    y, x = (v.ravel() for v in np.mgrid[8 : shape[0] - 8, 8 : shape[1] - 8])
    known = np.isfinite(fast[y, x])
    assert known.mean() > 0.3
    y, x = y[known], x[known]
    slow = sums_over_taps(image, np.stack([map_y[y, x], map_x[y, x]], axis=1).astype(float))
    # What lies across a pass is a little off where grids turn: taps far away have small weights.
    assert np.abs(fast[y, x] - slow).max() < (3e-3 if stride else 1e-3) * image.std() * 4


def test_nodes_of_a_map_say_the_same_as_the_full_map() -> None:
    shape = (130, 333)
    both = PixelMap.between(tpv(shape), shape, sky_wcs(shape, dx=11.3, dy=-4.7, turn=0.2))
    map_y, map_x = both.full()
    for nodes in (both.nodes(), MapNodes.of(map_y, map_x)):
        again_y, again_x = nodes.full()
        assert np.abs(again_y - map_y).max() < 3e-4
        assert np.abs(again_x - map_x).max() < 3e-4
        assert np.abs(nodes.area()[:, :-4] - 1).max() < 2e-3


def test_variance_and_flags_come_along_with_the_image() -> None:
    rng = np.random.default_rng(9)
    image = rng.normal(0, 1, SHAPE).astype(np.float32)
    image[40, 50] = np.nan
    bad = np.isnan(image)
    sigma = rng.uniform(1, 2, SHAPE).astype(np.float32)
    flags = rng.random(SHAPE) < 0.01
    nodes = PixelMap.between(sky_wcs(SHAPE), SHAPE, sky_wcs(SHAPE, dx=20.4, dy=0.3, turn=0.1)).nodes()
    moved = resample_bridged(bridged(image, bad), bad, nodes, 2.0)
    variance, seen = carry(sigma, 1.5, flags, nodes, 2.0)
    map_y, map_x = nodes.full()
    expected = 2 * resample(image, map_y, map_x)
    assert np.array_equal(np.isnan(moved), np.isnan(expected))
    assert np.nanmax(np.abs(moved - expected)) < 5e-3  # maps in full are rounded
    near_y, near_x = np.rint(map_y).astype(int), np.rint(map_x).astype(int)
    beyond = (near_y < -1) | (near_y > SHAPE[0]) | (near_x < -1) | (near_x > SHAPE[1])
    assert beyond.any()
    assert np.allclose(variance[beyond], 9.0)
    assert not seen[beyond].any()
    outside = (near_y < 0) | (near_y >= SHAPE[0]) | (near_x < 0) | (near_x >= SHAPE[1])
    y, x = np.clip(near_y, 0, SHAPE[0] - 1), np.clip(near_x, 0, SHAPE[1] - 1)
    same = (variance == (2 * sigma[y, x]) ** 2) & (seen == flags[y, x])
    assert same[~outside].mean() > 0.9
    wide = ndimage.binary_dilation(flags, np.ones((3, 3)))
    assert wide[y, x][seen & ~outside].all()


@pytest.mark.parametrize("turn", [0.1, 3.0])
def test_a_factor_may_change_from_place_to_place(turn: float) -> None:
    image = np.random.default_rng(10).normal(100, 1, SHAPE).astype(np.float32)
    bad = np.zeros(SHAPE, bool)
    nodes = PixelMap.between(sky_wcs(SHAPE), SHAPE, sky_wcs(SHAPE, turn=turn)).nodes()
    factor = (1 + 0.001 * np.arange(nodes.shift_y.shape[1]) + np.zeros(nodes.shift_y.shape)).astype(np.float32)
    ratio = resample_bridged(image, bad, nodes, factor) / resample_bridged(image, bad, nodes)
    expected = np.broadcast_to(1 + 0.001 * np.arange(SHAPE[1]) / 8, SHAPE)
    assert np.nanmax(np.abs(ratio - expected)) < 3e-3  # a segment has the factor of its middle
    assert abs(np.nanmean(ratio - expected)) < 2e-4


@pytest.mark.parametrize(("fwhm", "allowed"), [(2.0, 0.04), (2.5, 0.008)])
def test_a_star_keeps_its_flux_place_and_shape(fwhm: float, allowed: float) -> None:
    rng = np.random.default_rng(4)
    source, target = sky_wcs(SHAPE, dx=0.4, dy=0.2, turn=0.2), sky_wcs(SHAPE)
    y, x = (v.ravel().astype(float) for v in np.mgrid[30:270:40, 30:310:40])
    x, y = x + rng.uniform(-0.5, 0.5, x.size), y + rng.uniform(-0.5, 0.5, x.size)
    flux = np.full(x.size, 10_000.0)
    psf = gaussian_psf(fwhm, SHAPE)
    sx, sy = world_to_pixel(source, *target.all_pix2world(x, y, 0))
    seen = paint(SHAPE, sx, sy, flux, psf).astype(np.float32)
    moved = resample(seen, *pixel_map(target, SHAPE, source))
    truth = paint(SHAPE, x, y, flux, psf)
    # Twice what the kernel's table in the module says for one axis.
    assert np.nanmax(np.abs(moved - truth)) < allowed * truth.max()
    for xi, yi in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
        box = np.s_[yi - 12 : yi + 13, xi - 12 : xi + 13]
        assert moved[box].sum() == pytest.approx(10_000, rel=2e-3)
        xx = np.mgrid[box][1]
        assert (moved[box] * xx).sum() / moved[box].sum() == pytest.approx((truth[box] * xx).sum() / 1e4, abs=0.02)


def test_area_ratio_conserves_flux_between_scales() -> None:
    coarse = sky_wcs(SHAPE)
    coarse.wcs.cd = coarse.wcs.cd * 1.02
    coarse.wcs.set()
    flat = np.full(SHAPE, 100.0, np.float32)
    maps = pixel_map(coarse, SHAPE, sky_wcs(SHAPE))
    assert np.nanmedian(resample(flat, *maps)) == pytest.approx(100 * 1.02**2, rel=1e-4)
    assert np.nanmedian(resample(flat, *maps, conserve_flux=False)) == pytest.approx(100, rel=1e-5)


def test_outside_and_bad_pixels_are_nan_and_grow_by_one_at_most() -> None:
    image = np.full(SHAPE, 50.0, np.float32)
    image[100, 120] = np.nan
    invalid = np.zeros(SHAPE, bool)
    invalid[200:203, 50:60] = True
    image[invalid] = 1e6
    map_y, map_x = pixel_map(sky_wcs(SHAPE), SHAPE, sky_wcs(SHAPE, dx=20.4, dy=0.3))
    out = resample(image, map_y, map_x, invalid=invalid)
    outside = (map_x < -0.5) | (map_x > SHAPE[1] - 0.5) | (map_y < -0.5) | (map_y > SHAPE[0] - 0.5)
    assert outside.any()
    assert np.isnan(out[outside]).all()
    bad = np.isnan(image) | invalid
    touched = np.asarray(resample_nearest(ndimage.binary_dilation(bad, np.ones((3, 3))), map_y, map_x, 0), bool)
    assert np.isnan(out[np.asarray(resample_nearest(bad, map_y, map_x, 0), bool)]).all()
    good = ~outside & ~touched
    assert np.isfinite(out[good]).all()
    assert np.abs(out[good] - 50).max() < 0.01  # what was bad has reached nobody


def test_a_mask_moves_by_nearest_pixel() -> None:
    mask = np.arange(SHAPE[0] * SHAPE[1], dtype=np.int32).reshape(SHAPE)
    y, x = (v.astype(np.float32) for v in np.mgrid[: SHAPE[0], : SHAPE[1]])
    out = resample_nearest(mask, y + np.float32(3.4), x - np.float32(0.4), -1)
    assert out.dtype == mask.dtype
    assert (out[:-3] == mask[3:]).all()
    assert (out[-3:] == -1).all()


def test_weights_keep_a_constant_and_noise_figures_follow_from_them() -> None:
    phase = np.linspace(0, 1, 11)
    assert np.allclose(lanczos_weights(phase).sum(axis=1), 1)
    assert noise_transfer(np.zeros(1))[0] == pytest.approx(1)
    # Parseval: the mean power over all frequencies is the share of variance that is left.
    frequencies = np.arange(64) / 64
    assert noise_transfer(frequencies).mean() ** 2 == pytest.approx(noise_left(), rel=1e-5)
    noise = np.random.default_rng(5).normal(0, 1, (400, 400)).astype(np.float32)
    map_y, map_x = pixel_map(sky_wcs((400, 400)), (400, 400), sky_wcs((400, 400), dx=0.3, turn=0.6))
    measured = np.nanvar(resample(noise, map_y, map_x))
    assert measured == pytest.approx(noise_left(map_y, map_x), rel=0.03)
    whole = np.zeros((9, 9), np.float32)
    assert noise_left(whole, whole) == pytest.approx(1)
    assert noise_left(whole, whole * np.nan) == 1
