"""What PSF models leave of saturated stars: rings, longer one way than the other, go; transients, neighbours stay."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
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


def by_hand(new: NDArray, reference: NDArray, bad: NDArray, star: Star, reach: int) -> tuple[NDArray, NDArray]:
    """The same rings from sorted values and least squares, ring by ring in numpy: both images afterwards."""
    y, x = np.indices(new.shape)
    r, angle = np.hypot(x - star.x, y - star.y), np.arctan2(y - star.y, x - star.x)
    disc = r < reach
    rings = [np.flatnonzero((~bad & disc & (r.astype(int) == k)).ravel()) for k in range(reach)]
    known = [k for k, ring in enumerate(rings) if len(ring) >= 6]
    new, reference = new.ravel().astype(float), reference.ravel().astype(float)

    def profile(values: list[float]) -> NDArray:
        return np.where(disc, np.interp(r, np.array(known) + 0.5, values, right=0.0), 0.0).ravel()

    def medians(image: NDArray) -> NDArray:
        levels = np.array([np.sort(image[rings[k]])[len(rings[k]) // 2] for k in known])
        return profile(list(levels - np.median(levels[-6:])))

    common, more = medians(reference), medians(new - reference)
    new, reference = new - common - more, reference - common
    pairs = []
    for k in known:
        v, a = (new - reference)[rings[k]], angle.ravel()[rings[k]]
        ok = np.abs(v) < 3 * 1.4826 * np.sort(np.abs(v))[len(v) // 2]
        terms = np.stack([np.ones(ok.sum()), np.cos(2 * a[ok]), np.sin(2 * a[ok])], axis=1)
        pairs.append(np.linalg.solve(terms.T @ terms + np.eye(3), terms.T @ v[ok])[1:])
    for wave, amplitudes in zip((np.cos, np.sin), zip(*pairs, strict=True), strict=True):
        new = new - wave(2 * angle.ravel()) * profile(list(amplitudes))
    return new.reshape(r.shape), reference.reshape(r.shape)


def test_compiled_rings_are_those_made_by_hand() -> None:
    rng = np.random.default_rng(4)
    star = Star(37.3, 60.8, 3e5)  # its disc leaves the image on one side
    new, reference = (rng.normal(0, s, (130, 120)).astype(np.float32) for s in (2, 1))
    new += wings(1.08, 8)[:130, :120]
    y, x = np.indices(new.shape)
    # The innermost rings and one further out are unknown.
    bad = (np.hypot(x - star.x, y - star.y) < 7) | (np.hypot(x - star.x, y - star.y).astype(int) == 15)
    expected = by_hand(new, reference, bad, star, int(1.1 * star.flux**0.25))
    remove_rings(new, reference, bad, [star])
    for mine, theirs in zip((new, reference), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-3)
