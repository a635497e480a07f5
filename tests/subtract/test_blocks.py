"""Single passes over memory against numpy's many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from stream.subtract import blocks


@pytest.mark.parametrize(("y0", "x0"), [(-30, -12), (10, 20), (44, 60), (-8, 70)])
def test_windows_go_on_as_mirror_images(y0: int, x0: int) -> None:
    image = np.random.default_rng(1).normal(0, 1, (70, 90)).astype(np.float32)
    wide = np.pad(image, 60, mode="symmetric")
    expected = wide[y0 + 60 : y0 + 108, x0 + 60 : x0 + 108]
    out = np.empty((48, 48), np.float32)
    blocks.window(image, y0, x0, out)
    assert (out == expected).all()
    small = np.empty((24, 24), np.float32)
    blocks.pairs(image, y0, x0, small)
    assert np.allclose(small, expected.reshape(24, 2, 24, 2).mean(axis=(1, 3)), atol=1e-6)


def test_sums_of_a_block() -> None:
    rng = np.random.default_rng(2)
    parts, kernels = (rng.normal(0, 1, (3, 130, 11)) + 1j * rng.normal(0, 1, (3, 130, 11)) for _ in range(2))
    matched = rng.normal(0, 1, (130, 11)) + 1j * rng.normal(0, 1, (130, 11))
    out, *others = (np.asarray(v, np.complex64) for v in (parts, kernels, matched))
    blocks.combine(out, *others)
    difference = (parts * kernels).sum(axis=0)
    assert np.allclose(out[0], difference, rtol=1e-5, atol=1e-5)
    assert np.allclose(out[1], difference * matched, rtol=1e-5, atol=1e-5)
    part, surface = rng.normal(0, 1, (20, 30)).astype(np.float32), np.empty((20, 30), np.float32)
    c, u = rng.normal(0, 1, (20, 4)).astype(np.float32), np.linspace(-1, 1, 30).astype(np.float32)
    blocks.modulate(part, c, u, surface)
    assert np.allclose(surface, part * (c @ np.vander(u, 4, increasing=True).T), atol=1e-5)


def test_noise_of_the_score() -> None:
    rng = np.random.default_rng(3)
    slopes, errors = rng.normal(0, 1, (3, 16, 16)), rng.uniform(0, 1, (2, 5, 40))
    variance, rows = rng.uniform(0.5, 9, (16, 16)), np.linspace(1.3, 4, 16)
    low = np.minimum(rows.astype(int), 3)
    on_rows = errors[:, low] + (rows - low)[:, None] * (errors[:, low + 1] - errors[:, low])
    expected = np.maximum(variance, 1.0) + ((slopes[:2] * on_rows[:, :, 7:23]) ** 2).sum(axis=0) + 0.01 * slopes[2] ** 2
    seen = variance.astype(np.float32)
    arrays = slopes.astype(np.float32), errors.astype(np.float32), rows.astype(np.float32)
    blocks.add_errors(seen, 1.0, *arrays, 7, 0.1)
    assert np.allclose(seen, expected, rtol=1e-5)
    images = rng.normal(0, 3, (2, 32, 32)).astype(np.float32)
    place = (np.arange(32) - 0.5) / 2
    fine = ndimage.map_coordinates(expected, np.meshgrid(place, place, indexing="ij"), order=1, mode="nearest")
    data, score, scorr = np.zeros((3, 50, 50), np.float32)
    blocks.place(images, seen, (7, 15), (10, 30, 20, 40), data, score, scorr)
    inner, box = np.s_[3:23, 5:25], np.s_[10:30, 20:40]
    assert (data[box] == images[0][inner]).all()
    assert (score[box] == images[1][inner]).all()
    assert np.allclose(scorr[box], (images[1] / np.sqrt(fine))[inner], rtol=1e-5)
    assert not data[:10].any()  # beside the box nothing is touched
    assert not scorr[:, 40:].any()


def test_science_pixels_and_noise() -> None:
    rng = np.random.default_rng(4)
    data, level = rng.normal(500, 30, (30, 40)).astype(np.float32), np.full((30, 40), 500, np.float32)
    rms = rng.uniform(9, 11, (30, 40)).astype(np.float32)
    data[3, 4], rms[5, 6] = np.nan, np.nan
    new, variance, sigma = (np.empty((30, 40), np.float32) for _ in range(3))
    blocks.science_pixels(data, level, rms, 6.2, 100.0, new, variance)
    assert np.array_equal(new, data - level, equal_nan=True)
    expected = rms**2 + np.where(new > 2 * rms, new / 6.2, 0)
    assert np.allclose(variance, np.where(np.isfinite(expected + new), expected, 100), rtol=1e-5)
    blocks.noise_of(variance, 2 * variance, 0.7, 0.1, sigma)
    assert np.allclose(sigma, np.sqrt(0.9 * variance), rtol=1e-5)


def test_a_level_of_the_score_is_the_same_level_in_all_images() -> None:
    rng = np.random.default_rng(5)
    score, scorr = rng.normal(0, 3, (2, 30, 40)).astype(np.float32)
    scorr[2, 3], score[4, 5] = 0, np.nan
    level, width = rng.normal(0, 0.1, (30, 40)).astype(np.float32), rng.uniform(0.9, 1.1, (30, 40)).astype(np.float32)
    data, sigma = rng.normal(0, 5, (30, 40)).astype(np.float32), np.ones((30, 40), np.float32)
    images = [v.copy() for v in (data, sigma, score, scorr)]
    blocks.level_off(level, width, 0.25, *images)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = score / scorr
    in_score = np.where(np.isfinite(root), root * level, 0)
    expected = data - 0.25 * in_score, width, score - in_score, (scorr - level) / width
    for seen, wanted in zip(images, expected, strict=True):
        assert np.allclose(seen, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
