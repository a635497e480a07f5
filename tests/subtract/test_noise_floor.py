"""The noise floor: leaves noise alone, tames residuals of bright stars, keeps transients beside them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.subtract.floor import CELL, STEP, apply_floor, excess_noise


def smooth_noise(shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    """Unit-variance noise with the correlation of a matched filter."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    return (noise / noise.std()).astype(np.float32)


def test_pure_noise_and_sparse_transients_stay_as_they_are() -> None:
    scorr = smooth_noise((480, 500), 1)
    scorr[100:104, 100:104] = 40.0
    scorr[200:240, 200:260] = np.nan
    assert excess_noise(scorr[::STEP, ::STEP]) is None


def test_a_ring_of_residuals_is_scaled_and_a_transient_in_it_survives() -> None:
    scorr = smooth_noise((480, 480), 2)
    y, x = np.mgrid[:480, :480]
    r = np.hypot(x - 200, y - 200)
    ring = np.exp(-r / 12) * 60 * np.cos(r)
    scorr += ring.astype(np.float32)
    scorr[196:205, 222:231] += 120.0 * np.exp(-((x - 226) ** 2 + (y - 200) ** 2) / 5)[196:205, 222:231].astype(
        np.float32
    )
    sigma = np.full(scorr.shape, 7.0, np.float32)
    before, far = scorr.copy(), np.hypot(x - 200, y - 200) > 120
    apply_floor(scorr, sigma, excess_noise(scorr[::STEP, ::STEP]))
    near = (r > 10) & (r < 40)
    assert (np.abs(scorr[near]) > 5).sum() < 0.3 * (np.abs(before[near]) > 5).sum()
    assert scorr[200, 226] > 5
    np.testing.assert_array_equal(scorr[far], before[far])
    assert (sigma[far] == 7.0).all()
    np.testing.assert_allclose(scorr * sigma, before * 7.0, rtol=1e-5)


def test_factor_is_at_least_one_and_covers_odd_shapes() -> None:
    scorr = smooth_noise((CELL * 3 + 5, CELL * 2 + 1), 3)
    scorr[-10:, -10:] *= 50
    scorr[:CELL, :CELL] *= 4
    factor = excess_noise(scorr[::STEP, ::STEP])
    assert factor is not None
    assert factor.shape == (4, 3)
    sigma = np.ones_like(scorr)
    apply_floor(scorr, sigma, factor)
    assert (sigma >= 1).all()
    assert np.median(np.abs(scorr[:CELL, :CELL])) < 1.0
