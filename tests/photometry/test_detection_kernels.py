"""The compiled loops of the sky and of the detection against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stream.photometry.filtered import RING_X, RING_Y, filter_taps, lifted, pixels_above
from stream.photometry.groups import MAX_GROUP, groups_of
from stream.photometry.meshes import CLIPPED_STD, clipped_moments, expand, mesh_samples
from stream.photometry.pairs import close_pairs
from stream.photometry.windowed import SIDE, STEPS, windowed_centroids


def clipped(values: np.ndarray) -> tuple[float, float, float]:
    """Median, mean - median and standard deviation of values clipped at 3 sigma, by sorting."""
    kept = np.sort(values[np.isfinite(values)].astype(float))
    std = np.median(kept) - kept[int(len(kept) * 0.1587)]
    for _ in range(6):
        middle = np.median(kept)
        kept = kept[np.abs(kept - middle) <= 3 * std]
        std = kept.std()
    return float(np.median(kept)), float(kept.mean() - np.median(kept)), float(std) / CLIPPED_STD


@pytest.mark.parametrize("crowded", [0.0, 0.15, 0.4])
def test_moments_of_a_histogram_are_those_of_sorted_pixels(crowded: float) -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(340, 9, (2, 3, 64, 64)).astype(np.float32)
    samples[rng.random(samples.shape) < 0.05] = np.nan
    stars = rng.random(samples.shape) < crowded
    samples[stars] += rng.exponential(60, int(stars.sum())).astype(np.float32)
    samples[0, 0, :2] = 6e4
    found = clipped_moments(samples)
    for k in np.ndindex(2, 3):
        median, skew, std = clipped(samples[k])
        assert found.median[k] == pytest.approx(median, abs=0.02 * 9)
        assert found.skew[k] == pytest.approx(skew, abs=0.02 * 9)
        assert found.std[k] == pytest.approx(std, rel=0.03 if crowded else 0.005)


def test_a_mesh_of_one_value_has_no_noise_and_one_of_nothing_no_level() -> None:
    samples = np.full((1, 3, 32, 32), 7.5, np.float32)
    samples[0, 1] = np.nan
    samples[0, 2].reshape(-1)[::9] = np.nan
    found = clipped_moments(samples)
    assert found.median[0].tolist() == pytest.approx([7.5, np.nan, 7.5], nan_ok=True)
    assert found.std[0].tolist() == pytest.approx([0, np.nan, 0], nan_ok=True)


def test_samples_are_the_usable_pixels_with_the_level_that_was_taken_off() -> None:
    rng = np.random.default_rng(4)
    data, level = (rng.normal(size=(40, 60)).astype(np.float32) for _ in range(2))
    mask = (rng.random(data.shape) < 0.1).astype(np.uint16) * 4
    data[3, 5], mask[3, 6] = np.inf, 2
    wanted = np.where((mask == 4) | ~np.isfinite(data), np.nan, data + level)
    samples = mesh_samples(data, mask, 20, 4, level)
    assert samples.shape == (2, 3, 20, 20)
    assert np.array_equal(samples.transpose(0, 2, 1, 3).reshape(40, 60), wanted.astype(np.float32), equal_nan=True)


def test_a_map_is_a_natural_spline_through_the_meshes_along_both_axes() -> None:
    rng = np.random.default_rng(5)
    grid, shape = 300 + rng.normal(0, 5, (5, 7)), (101, 150)
    found = expand(grid, shape)
    for axis, n in enumerate(shape):
        centres = (np.arange(grid.shape[axis]) + 0.5) * n / grid.shape[axis] - 0.5
        inside = np.clip(np.arange(n), centres[0], centres[-1])
        spline = CubicSpline(centres, grid, axis=axis, bc_type="natural")
        beyond = np.expand_dims(np.arange(n) - inside, 1 - axis)
        grid = spline(inside) + beyond * spline(inside, 1)
    assert found == pytest.approx(grid, abs=1e-3)
    assert expand(np.full((1, 1), 4.0), (3, 2)).tolist() == [[4, 4]] * 3
    assert expand(grid, grid.shape, least=300.0).min() >= 300


def test_pixels_above_are_those_of_the_filtered_image_over_the_noise_of_what_was_taken_off() -> None:
    rng = np.random.default_rng(6)
    image, taken = rng.normal(0, 3, (50, 200)).astype(np.float32), np.zeros((50, 200), np.float32)
    image[20, 70:140] += 30
    unusable, noise = rng.random(image.shape) < 0.05, rng.uniform(2, 3, image.shape).astype(np.float32)
    image[unusable] = 0
    taken[:, 100:] = image[:, 100:] + 400
    taps = filter_taps(2.5).astype(float)
    padded = np.pad(image.astype(float), len(taps) // 2)
    rows = np.apply_along_axis(lambda v: np.convolve(v, taps, "valid"), 0, padded)
    value = np.apply_along_axis(lambda v: np.convolve(v, taps, "valid"), 1, rows)
    off = np.where(np.arange(200) >= 100, 400.0, 0.0)
    local = np.sqrt(noise.astype(float) ** 2 + (0.03 * off) ** 2 + off / 5)
    for light_off, sigma in ((None, noise.astype(float)), (taken, local)):
        if light_off is not None:
            light_off = np.where(np.arange(200) >= 100, taken, image).astype(np.float32)
        found = pixels_above(image, noise, unusable, 2.5, 2.5, inverse_gain=1 / 5, taken=light_off, part=0.03)
        wanted = np.flatnonzero((value > 2.5 * sigma) & (value > 2.5 * noise) & ~unusable)
        assert found.index.tolist() == wanted.tolist()
        assert found.snr == pytest.approx((value / sigma).reshape(-1)[wanted], rel=1e-4)
        assert found.photons == pytest.approx(0.2 / sigma.reshape(-1)[wanted] ** 2, rel=1e-4)


def test_the_ring_s_median_is_compared_without_sorting() -> None:
    rng = np.random.default_rng(7)
    image = rng.normal(0, 1, (60, 70)).astype(np.float32)
    x, y = rng.integers(0, 70, 300), rng.integers(0, 60, 300)
    ring = image[np.clip(y[:, None] + RING_Y, 0, 59), np.clip(x[:, None] + RING_X, 0, 69)]
    level, high = rng.normal(0, 0.1, 300).astype(np.float32), np.empty(300, bool)
    lifted(image, x, y, (RING_X, RING_Y), level, high)
    assert high.tolist() == (np.sort(ring, axis=1)[:, len(RING_X) // 2] > level).tolist()


def test_groups_are_friends_of_friends() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.uniform(0, 240, (2, 600))
    groups = groups_of(x, y, np.arange(600), 4.0)
    one, other = close_pairs(x, y, 6.0)
    n, label = connected_components(coo_matrix((np.ones(len(one)), (one, other)), (600, 600)), directed=False)
    sizes = np.bincount(label)
    assert sizes.max() <= MAX_GROUP
    assert len(groups.start) - 1 == n
    for low, high in zip(groups.start[:-1], groups.start[1:], strict=True):
        members = groups.members[low:high]
        assert len(set(label[members])) == 1
        assert len(members) == sizes[label[members[0]]]
    assert (np.diff(groups.members[groups.start[:-1]]) > 0).all()  # in the order of their first members


def test_windowed_centroids_step_as_their_definition_says() -> None:
    rng = np.random.default_rng(9)
    image = rng.normal(5, 1, (50, 60)).astype(np.float32)
    gx, gy = np.meshgrid(np.arange(60.0), np.arange(50.0))
    x, y = rng.uniform(0, 59, 150), rng.uniform(0, 49, 150)
    for px, py in zip(x, y, strict=True):
        image += (200 * np.exp(-0.5 * ((gx - px) ** 2 + (gy - py) ** 2) / 1.2**2)).astype(np.float32)
    first = np.rint(x) + 0.2, np.rint(y) - 0.1
    found = windowed_centroids(image, *first, 1.1)
    for k in range(150):
        cx, cy = first[0][k], first[1][k]
        ix, iy = np.rint(cx), np.rint(cy)
        near = (np.abs(gx - ix) <= SIDE // 2) & (np.abs(gy - iy) <= SIDE // 2)
        for _ in range(STEPS):
            weight = image * near * np.exp(-0.5 * ((gx - cx) ** 2 + (gy - cy) ** 2) / 1.1**2)
            dx, dy = ((weight * (g - c)).sum() / weight.sum() for g, c in ((gx, cx), (gy, cy)))
            cx, cy = cx + 2 * dx, cy + 2 * dy
            if np.hypot(cx - first[0][k], cy - first[1][k]) >= 1:
                cx, cy = first[0][k], first[1][k]
                break
        assert (found[0][k], found[1][k]) == pytest.approx((cx, cy), abs=1e-4)
