"""What PSF models leave of saturated stars: rings, longer one way than the other, go; transients, neighbours stay."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import paint

from stream.core.psf import gaussian_psf
from stream.photometry import Star
from stream.subtract.rings import remove_rings

SHAPE = (220, 240)
STAR = Star(100.3, 99.6, 1e7)


def wings(stretch: float, step: float) -> np.ndarray:
    """The light of a star from a radius on at which its model ends, in ellipses along a diagonal."""
    y, x = np.indices(SHAPE)
    u, v = (x - STAR.x + y - STAR.y) / np.sqrt(2), (y - STAR.y - x + STAR.x) / np.sqrt(2)
    light = 2000.0 / (1 + ((u / stretch) ** 2 + (v * stretch) ** 2) / 36) ** 1.5
    return np.where(np.hypot(x - STAR.x, y - STAR.y) > step, light, -0.2 * light).astype(np.float32)


@pytest.mark.parametrize("stretch", [1.0, 1.08])
def test_rings_go_and_what_is_no_ring_stays(stretch: float) -> None:
    psf, rng = gaussian_psf(2.4, SHAPE), np.random.default_rng(1)
    yy, xx = np.indices(SHAPE)
    r = np.hypot(xx - STAR.x, yy - STAR.y)
    both = paint(SHAPE, np.array([85.0, 130.0]), np.array([120.0, 96.0]), np.array([9000.0, 2e4]), psf)
    source = paint(SHAPE, np.array([118.0]), np.array([104.0]), np.array([3000.0]), psf).astype(np.float32)
    left = [wings(stretch, 10), 0.9 * wings(1.0, 10)]
    new = (left[0] + source + both + rng.normal(0, 2, SHAPE)).astype(np.float32)
    reference = (left[1] + both + rng.normal(0, 1, SHAPE)).astype(np.float32)
    remove_rings(new, reference, r < 6, [STAR])
    # Off the source (whose light is on a small part of its rings) little is left of some hundred DN in either.
    off = (r > 13) & (r < 44) & (source < 0.1) & (both < 0.1)
    assert np.abs(left[0][off]).max() > 120
    assert np.abs(reference[off]).max() < 25
    assert np.abs((new - reference)[off]).max() < 0.1 * np.abs(left[0][off]).max()
    assert np.std((new - reference)[off]) < 4
    near = np.hypot(xx - 118, yy - 104) < 4
    assert (new - reference)[near].sum() == pytest.approx(3000, rel=0.1)
    # Beyond the rings nothing is touched, and a star of both images is not made a difference.
    assert np.hypot(new - reference - left[0] + left[1], 0)[r > 70].std() < 3
    assert np.abs((new - reference)[both > 100]).mean() < 12


def test_what_cannot_be_known_is_left_alone() -> None:
    new, reference = np.ones((2, *SHAPE), np.float32)
    before = new.copy()
    remove_rings(new, reference, np.ones(SHAPE, bool), [STAR, Star(-90.0, 20.0, 1e6)])
    assert (new == before).all()
    assert (reference == before).all()
