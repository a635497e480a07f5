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
from stream.photometry.extended import block_excess, extended_blocks

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


def exponential(radius: float, magnitude: float) -> np.ndarray:
    """A galaxy of that half-light radius (px) at the middle, zero point 26.2."""
    galaxy = np.exp(-np.hypot(X - 448.0, Y - 320.0) * 1.678 / radius)
    return np.asarray(galaxy * 10 ** (0.4 * (26.2 - magnitude)) / galaxy.sum())


@pytest.mark.parametrize(
    ("radius", "magnitude"), [(10.0, 14.0), (20.0, 14.0), (30.0, 14.0), (10.0, 16.0), (20.0, 16.0)]
)
def test_a_galaxy_is_not_eaten(starry: np.ndarray, radius: float, magnitude: float) -> None:
    """An exponential galaxy with a half-light radius of up to a quarter of a mesh: what the sky under it takes of its
    flux within three such radii."""
    galaxy, mask = exponential(radius, magnitude), np.zeros(SHAPE, np.uint16)
    alone, under = (estimate_background(np.float32(starry + g), mask).level for g in (np.float32(0), galaxy))
    inside = np.hypot(X - 448.0, Y - 320.0) < 3 * radius
    assert (under - alone)[inside].sum() < 0.03 * galaxy[inside].sum()
    assert np.abs(under - alone).max() < 0.12 * SIGMA


def aureole(magnitude: float) -> np.ndarray:
    """Far light of a bright star at the middle, as in the survey's images: 7e-4 / (r^2 + 15^2) of its flux a pixel."""
    r2 = (X - 448.0) ** 2 + (Y - 320.0) ** 2
    return np.asarray(7e-4 * 10 ** (0.4 * (26.2 - magnitude)) / (r2 + 225.0))


@pytest.mark.parametrize(("magnitude", "beyond"), [(8.0, 110.0), (9.0, 80.0)])
def test_a_bright_star_s_aureole_is_sky_under_its_neighbours(
    starry: np.ndarray, magnitude: float, beyond: float
) -> None:
    light, mask = aureole(magnitude), np.zeros(SHAPE, np.uint16)
    r = np.hypot(X - 448.0, Y - 320.0)
    mask[r < 6] = int(Mask.SATURATED)
    alone, under = (estimate_background(np.float32(starry + g), mask).level for g in (np.float32(0), light))
    for ring in np.arange(beyond, 300.0, 10.0):
        there = np.abs(r - ring) < 5
        assert abs((under - alone - light)[there].mean()) < 0.1 * SIGMA


@pytest.mark.parametrize("what", ["galaxy", "ghost", "aureole", "nothing"])
def test_only_galaxies_are_left_out_of_the_sky(starry: np.ndarray, what: str) -> None:
    """A ghost's ring and a saturated star's aureole are light under their neighbours: they stay in the sky."""
    r, mask = np.hypot(X - 448.0, Y - 320.0), np.zeros(SHAPE, np.uint16)
    light = {
        "galaxy": exponential(20.0, 15.0), "ghost": 1.2 * SIGMA * ((r > 60) & (r < 180)), "aureole": aureole(8.5),
        "nothing": np.zeros(SHAPE),
    }[what]  # fmt: skip
    if what == "aureole":
        mask[r < 6] = int(Mask.SATURATED)
    samples = np.float32(starry - SKY + light)[None, None]
    samples = samples.reshape(5, 128, 7, 128).transpose(0, 2, 1, 3).copy()
    excess = block_excess(samples, np.zeros((40, 56), np.float32), np.full((5, 7), SIGMA, np.float32))
    found = extended_blocks(excess, mask)
    assert found[20, 28] == (what == "galaxy")
    assert found.mean() < 0.12
    assert found.any() == (what == "galaxy")


def test_a_block_s_excess_is_its_clipped_mean() -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(5, 2, (2, 3, 24, 20)).astype(np.float32)
    samples[1, 2, 4, 3] = np.nan
    samples[0, 1, :3, :2] = np.nan  # one block: 3 x 2 or 3 x 3 samples
    level, rms = rng.normal(5, 1, (16, 24)).astype(np.float32), rng.uniform(1, 3, (2, 3)).astype(np.float32)
    excess = block_excess(samples, level, rms)
    rows, columns = (np.linspace(0, k, 9).astype(int) for k in (24, 20))
    for i, j, a, b in ((0, 0, 3, 5), (1, 2, 1, 1), (1, 1, 7, 7), (0, 1, 0, 0)):
        part = samples[i, j, rows[a] : rows[a + 1], columns[b] : columns[b + 1]]
        pulls = np.clip((part - level[8 * i + a, 8 * j + b]) / rms[i, j], -2, 2)
        known = pulls[np.isfinite(pulls)]
        expected = known.mean() if len(known) else np.nan
        assert excess[8 * i + a, 8 * j + b] == pytest.approx(expected, abs=1e-5, nan_ok=True)


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
