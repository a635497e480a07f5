"""Two inputs of very different seeing: a star keeps the light of both, in its core and in its wings."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import add_noise, paint

from stream.core.psf import gaussian_psf
from stream.reference.combine import InputNoise, combine, seeing_changes


def test_a_star_seen_sharp_and_blurred_loses_no_light():
    shape, flux = (120, 120), 20_000.0
    x, y = np.array([30.0, 80.3, 55.5]), np.array([40.0, 90.6, 20.2])
    psfs = [gaussian_psf(fwhm, shape) for fwhm in (1.9, 3.0)]
    stack = np.stack(
        [add_noise(paint(shape, x, y, np.full(3, flux), p), 200.0, 6.0, 10.0, k) - 200 for k, p in enumerate(psfs)]
    )
    noise = InputNoise(np.full(2, np.sqrt(200 / 6 + 100 / 36)), np.full(2, 1 / 6), seeing_changes(psfs))
    made = combine(stack, noise)
    for cx, cy in zip(x, y, strict=True):
        box = np.s_[round(cy) - 8 : round(cy) + 9, round(cx) - 8 : round(cx) + 9]
        assert made.data[box].sum() == pytest.approx(flux, rel=0.03)
    assert made.rejected < 0.01
