"""Sky and noise against known truth and against sep."""

from __future__ import annotations

import numpy as np
import pytest
import sep
from photometry_truth import GAIN, READNOISE
from synthetic import add_noise, paint, star_field

from stream.core.errors import PhotometryError
from stream.core.flags import Mask
from stream.core.psf import gaussian_psf
from stream.photometry import estimate_background

SHAPE = (640, 896)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
SKY = 220 + 25 * X / SHAPE[1] - 6 * (Y / SHAPE[0] - 0.5) ** 2
SIGMA = float(np.sqrt(np.median(SKY) / GAIN + (READNOISE / GAIN) ** 2))


@pytest.fixture(scope="module")
def starry() -> np.ndarray:
    x, y, flux = star_field(SHAPE, 450, 5, (100, 60_000))
    stars = paint(SHAPE, x, y, flux, gaussian_psf(2.3, SHAPE), 25)
    return add_noise(stars + SKY - 200, 200, GAIN, READNOISE, 6)


def test_level_and_noise_among_stars(starry: np.ndarray) -> None:
    found = estimate_background(starry, np.zeros(SHAPE, np.uint16))
    error = found.level - SKY
    assert abs(error.mean()) < 0.04 * SIGMA
    assert error.std() < 0.05 * SIGMA
    assert found.sigma == pytest.approx(SIGMA, rel=0.03)
    assert found.median == pytest.approx(np.median(SKY), abs=0.1 * SIGMA)
    assert found.rms.dtype == found.level.dtype == np.float32


def test_no_worse_than_sep(starry: np.ndarray) -> None:
    found = estimate_background(starry, np.zeros(SHAPE, np.uint16))
    other = sep.Background(starry, bw=128, bh=128).back()
    assert (found.level - SKY).std() <= (other - SKY).std()
    assert np.abs(found.level - other).max() < 0.5 * SIGMA


def test_masked_and_nan_pixels_do_not_matter(starry: np.ndarray) -> None:
    broken, mask = starry.copy(), np.zeros(SHAPE, np.uint16)
    broken[::3] = np.nan
    broken[100:300, 200:400] = np.nan  # covers whole meshes
    broken[:, 700:720] = 60_000
    mask[:, 700:720] = int(Mask.SATURATED)
    found = estimate_background(broken, mask)
    assert np.isfinite(found.level).all()
    assert np.isfinite(found.rms).all()
    assert (found.rms > 0).all()
    assert (found.level - SKY).std() < 0.3 * SIGMA
    assert found.sigma == pytest.approx(SIGMA, rel=0.05)


def test_halo_light_is_part_of_the_sky(starry: np.ndarray) -> None:
    lit, mask = starry.copy(), np.zeros(SHAPE, np.uint16)
    lit[:, :448] += 50
    mask[:, :448] = int(Mask.HALO)
    found = estimate_background(lit, mask)
    assert found.level[:, :300].mean() == pytest.approx(SKY[:, :300].mean() + 50, abs=0.2 * SIGMA)


@pytest.mark.parametrize(("radius", "most"), [(10.0, 0.02), (20.0, 0.12), (30.0, 0.05)])
def test_a_galaxy_is_not_eaten(starry: np.ndarray, radius: float, most: float) -> None:
    """An exponential galaxy of magnitude 14 and a half-light radius of 10 to 30 px (a quarter of a mesh): what the sky
    under it takes of its flux within three such radii."""
    r = np.hypot(X - 448.0, Y - 320.0)
    galaxy = np.exp(-r * 1.678 / radius)
    galaxy *= 10 ** (0.4 * (26.2 - 14.0)) / galaxy.sum()
    mask = np.zeros(SHAPE, np.uint16)
    alone, under = (estimate_background(np.float32(starry + g), mask).level for g in (np.float32(0), galaxy))
    inside = r < 3 * radius
    assert (under - alone)[inside].sum() < most * galaxy[inside].sum()
    assert np.abs(under - alone).max() < 0.12 * SIGMA


def test_twilight_s_slope_is_no_noise() -> None:
    """A sky that climbs by four sigma across a mesh, as in a real cut-out: its noise is that of its pixels."""
    slope = 0.35 * X + 0.2 * Y
    data = add_noise(slope + 0 * X, 400, GAIN, READNOISE, 9)
    true = np.sqrt((400 + slope) / GAIN + (READNOISE / GAIN) ** 2)
    found = estimate_background(data, np.zeros(SHAPE, np.uint16))
    assert found.rms[64:-64, 64:-64] / true[64:-64, 64:-64] == pytest.approx(1, abs=0.06)
    assert np.abs(found.level - 400 - slope).max() < 0.3 * true.mean()


def test_small_image_is_one_mesh() -> None:
    data = add_noise(np.zeros((40, 50)), 100, GAIN, READNOISE, 1)
    found = estimate_background(data, np.zeros(data.shape, np.uint16))
    assert found.level.shape == (40, 50)
    assert found.level.mean() == pytest.approx(100, abs=1.0)


def test_constant_image() -> None:
    found = estimate_background(np.full((200, 200), 7.5, np.float32), np.zeros((200, 200), np.uint16))
    assert found.median == 7.5
    assert found.sigma == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_pixel_is_a_clear_error(value: float) -> None:
    with pytest.raises(PhotometryError, match="usable pixels"):
        estimate_background(np.full((200, 200), value, np.float32), np.zeros((200, 200), np.uint16))


def test_shapes_must_agree() -> None:
    with pytest.raises(PhotometryError, match="equal"):
        estimate_background(np.zeros((100, 100), np.float32), np.zeros((100, 99), np.uint16))
