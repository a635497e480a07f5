"""Made-up false candidates: they are where they should be and look like what they are called."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models import artefacts
from models.artefacts import CENTRE, PEAKS, make_artefacts


def field(seed: int, star: float) -> NDArray[np.float32]:
    """A triplet of noise with one star 6 px from the centre, alike in science and reference."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-31:32, -31:32]
    light = star * np.exp(-((x - 6) ** 2 + (y + 3) ** 2) / (2 * 1.1**2))
    noise = rng.normal(0, 1, (63, 63, 3))
    noise[..., 0] += light
    noise[..., 1] += light
    return np.arcsinh(noise).astype(np.float32)


@pytest.mark.parametrize("star", [0.0, 300.0])
def test_an_artefact_is_at_the_centre_as_bright_as_planned(star: float) -> None:
    triplets = np.stack([field(seed, star) for seed in range(60)])
    made = make_artefacts(triplets, np.random.default_rng(1))
    assert made.shape == triplets.shape
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    peaks = np.sinh(made[:, CENTRE - 1 : CENTRE + 2, CENTRE - 1 : CENTRE + 2, 2]).max(axis=(1, 2))
    assert (peaks > 0.4 * PEAKS[0]).all()
    assert peaks.max() < 1.3 * PEAKS[1]
    assert np.median(peaks) > 10


def test_without_a_star_the_science_stamp_has_it_too_and_the_reference_has_not() -> None:
    triplets = np.stack([field(seed, 0.0) for seed in range(60)])
    made = np.sinh(make_artefacts(triplets, np.random.default_rng(2))[:, CENTRE, CENTRE])
    assert np.corrcoef(made[:, 0], made[:, 2])[0, 1] > 0.9
    assert np.abs(made[:, 1]).max() < 6


def test_on_a_star_the_residual_has_as_much_dark_as_bright() -> None:
    rng = np.random.default_rng(3)
    for seed in range(20):
        stamps = artefacts._centred(np.sinh(field(seed, 3000.0)), (CENTRE - 3, CENTRE + 6))
        before = stamps[..., 2].sum()
        after = artefacts._bad_subtraction(stamps, rng)
        inner = after[CENTRE - 9 : CENTRE + 10, CENTRE - 9 : CENTRE + 10, 2]
        assert inner.max() >= PEAKS[0] - 3
        assert inner.min() < -0.1 * inner.max()
        assert abs(after[..., 2].sum() - before) < 0.2 * np.abs(inner).sum()


def test_the_same_seed_makes_the_same() -> None:
    triplets = np.stack([field(seed, 100.0) for seed in range(10)]).astype(np.float16)
    one, other = (make_artefacts(triplets, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(one, other)
