"""Cosmic rays are found, stars are left alone: both judged by what was painted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sep
from astropy.io import fits
from numpy.typing import NDArray
from synthetic import add_noise, paint, star_field

sys.path.insert(0, str(Path(__file__).parent))
from rawframes import GAIN, READNOISE

from stream.calibrate import flag_spikes
from stream.calibrate.sharpness import CENTRE, WIDTHS, filters, star
from stream.core.flags import Mask
from stream.core.psf import PsfModel, gaussian_psf
from stream.simulate.optics import PsfField
from stream.simulate.painter import paint_stars
from stream.simulate.rays import cosmic_rays

SHAPE = (700, 700)
SKY = 300.0
HIT_BITS = int(Mask.SPIKE | Mask.COSMIC_RAY)


def moffat_psf(fwhm: float, shape: tuple[int, int], elongation: float = 1.0) -> PsfModel:
    """A Moffat PSF (beta 2.5) whose width along x is ``fwhm``, along y ``elongation`` times that."""
    oversample, radius = 3, 14
    n = 2 * radius * oversample + 1
    r = (np.arange(n) - n // 2) / oversample
    alpha = fwhm / 2 / np.sqrt(2**0.4 - 1)
    grid = (1 + (r[None, :] ** 2 + (r[:, None] / elongation) ** 2) / alpha**2) ** -2.5
    return PsfModel(grid[None].astype(np.float32), oversample, 0, shape, fwhm)


def gaussian(fwhm: float) -> PsfModel:
    return gaussian_psf(fwhm, SHAPE, oversample=4)


def particle_hits(shape: tuple[int, int], n: int, seed: int) -> tuple[NDArray[np.float64], list[dict]]:
    """Charge (DN) of straight tracks of any direction and up to 18 px, and each track's pixels."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    tracks = []
    for _ in range(n):
        length = min(rng.exponential(6.0), 18.0)
        angle = rng.uniform(0, np.pi)
        x0, y0 = rng.uniform(20, shape[1] - 20), rng.uniform(20, shape[0] - 20)
        per_px = np.exp(rng.uniform(np.log(60), np.log(3000)))
        track: dict[tuple[int, int], float] = {}
        if length < 0.5:
            track[int(y0), int(x0)] = per_px
        else:
            for t in np.arange(0, length, 0.05):
                place = int(y0 + t * np.sin(angle)), int(x0 + t * np.cos(angle))
                track[place] = track.get(place, 0.0) + 0.05 * per_px
        for place, charge in track.items():
            image[place] += charge
        tracks.append(track)
    return image, tracks


def scene(psf: PsfModel, n_stars: int, n_hits: int, seed: int = 1) -> tuple:
    """Image, mask with saturation, flagged pixels, true hits, tracks, expected noise, star places."""
    x, y, flux = star_field(SHAPE, n_stars, seed, (300.0, 200_000.0), edge=5.0)
    stars = paint(SHAPE, x, y, flux, psf, size=41)
    hits, tracks = particle_hits(SHAPE, n_hits, seed + 1)
    data = add_noise(stars, SKY, GAIN, READNOISE, seed + 2) + hits.astype(np.float32)
    data = np.minimum(data, 60_000.0)
    mask = np.where(data >= 60_000.0, Mask.SATURATED, 0).astype(np.uint16)
    count = flag_spikes(data, mask, GAIN, READNOISE)
    flagged = (mask & HIT_BITS) > 0
    assert count == flagged.sum()
    noise = np.sqrt((stars + SKY) / GAIN + (READNOISE / GAIN) ** 2)
    return flagged, hits, tracks, noise, (np.rint(y).astype(int), np.rint(x).astype(int)), mask


def grown(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(pixels, 1)
    ny, nx = pixels.shape
    return np.logical_or.reduce([padded[dy : dy + ny, dx : dx + nx] for dy in range(3) for dx in range(3)])


PSFS: list[Callable[[], PsfModel]] = [
    lambda: gaussian(1.6),
    lambda: gaussian(1.7),
    lambda: gaussian(2.0),
    lambda: moffat_psf(1.7, SHAPE),
    lambda: moffat_psf(1.7, SHAPE, 1.3),
    lambda: moffat_psf(2.2, SHAPE, 1.2),
    lambda: moffat_psf(3.0, SHAPE),
    lambda: moffat_psf(4.0, SHAPE),
]


@pytest.mark.parametrize("psf", PSFS)
@pytest.mark.parametrize("n_stars", [700, 3000])
def test_no_star_is_harmed(psf: Callable[[], PsfModel], n_stars: int) -> None:
    """Up to 60,000 stars a full quadrant, from 1 DN over the noise to far beyond saturation."""
    flagged, _, _, _, peaks, _ = scene(psf(), n_stars, 0)
    assert flagged[peaks].mean() < 1e-3
    # Nor their flanks, to one false pixel in ten thousand.
    assert flagged.mean() < 1e-4


@pytest.mark.parametrize("psf", PSFS)
def test_hits_are_found_at_any_seeing(psf: Callable[[], PsfModel]) -> None:
    flagged, hits, tracks, noise, _, mask = scene(psf(), 700, 120)
    strong = hits > 10 * noise
    usable = (mask & Mask.SATURATED) == 0
    assert flagged[strong & usable].mean() > 0.94
    for snr, found in ((10, 0.93), (20, 0.97)):
        bright = [track for track in tracks if max(charge / noise[place] for place, charge in track.items()) > snr]
        assert len(bright) > 50
        assert np.mean([any(flagged[place] for place in track) for track in bright]) > found
    # Beyond the hits and their rims: less than one pixel a hit.
    assert np.count_nonzero(flagged & ~grown(hits > 0)) < len(tracks)


@pytest.mark.parametrize(("seeing", "recall"), [(1.5, 0.8), (2.0, 0.95), (3.0, 0.95)])
def test_particles_of_the_simulator_above_five_sigma(seeing: float, recall: float) -> None:
    """Muons, worms and spots among stars of a PSF that is drawn out and changes over the image; no star is harmed.

    At 1.5 px no test that knows the stars' and the particle's shape exactly finds more than 96 %.
    """
    n, sky, rng = 1024, SKY * GAIN, np.random.default_rng(31)
    alpha = 0.83 * seeing  # nearly: the pixel's own width comes on top
    psf = PsfField((n, n), (alpha, 0.03 * alpha, 0, 0, 0, 0), (0.06, 0, 0, 0, 0, 0), (0.03, 0, 0, 0, 0, 0))
    x, y = rng.uniform(10, n - 10, (2, 2000))
    flux = np.append(np.minimum(100 * (rng.pareto(0.8, 1200) + 1), 1e5), 10 ** rng.uniform(3.3, 4.8, 800))
    stars = np.zeros((n, n), np.float32)
    paint_stars(stars, x, y, flux, psf)
    electrons = rng.poisson(stars * GAIN + sky).astype(np.float32)
    charge = np.zeros(n * n, np.float32)
    for hit in cosmic_rays(rng, electrons, 700.0):
        charge[hit.pixels] += hit.values
    data = ((electrons + rng.normal(0, READNOISE, (n, n))) / GAIN).astype(np.float32)
    mask = np.where(data > 50_000, Mask.SATURATED, 0).astype(np.uint16)
    usable = mask == 0
    flag_spikes(data, mask, GAIN, READNOISE)
    flagged = (mask & HIT_BITS) > 0
    charge = charge.reshape(n, n)
    strong = (charge > 5 * np.sqrt(sky + READNOISE**2)) & usable
    assert strong.sum() > 300
    assert flagged[strong].mean() > recall
    at = np.rint(y).astype(int), np.rint(x).astype(int)
    alone = ~grown(grown(grown(charge > 0)))  # a track that leads up to a star may go on over it
    assert flagged[at][usable[at] & alone[at]].mean() < 1e-3
    assert np.count_nonzero(flagged & ~grown(charge > 0)) < 1e-4 * n * n


def test_nothing_is_said_beside_saturation_and_columns_that_are_low() -> None:
    """A cut-off core has edges sharper than any star, a dark column makes its neighbours look sharp."""
    data = add_noise(np.zeros(SHAPE), SKY, GAIN, READNOISE, 12)
    data[200:230, 300:304] = 60_000
    data[199, 301] = data[230, 302] = 30_000
    data[:, 500] -= 60
    mask = np.where(data >= 60_000, Mask.SATURATED, 0).astype(np.uint16)
    flag_spikes(data, mask, GAIN, READNOISE)
    assert np.count_nonzero(mask & HIT_BITS) < 5


@pytest.mark.parametrize("width", [WIDTHS[0], WIDTHS[8]])
def test_no_scene_of_stars_excites_a_filter(width: float) -> None:
    """Sums of stars anywhere, as narrow as the filters' or wider, on any sky; a lone pixel excites them."""
    bank, thin = filters(width)
    rng = np.random.default_rng(3)
    for _ in range(300):
        scene = np.full(25, rng.uniform(0, 2))
        for _ in range(rng.integers(1, 5)):
            y, x = rng.uniform(-3, 3, 2)
            scene = scene + rng.exponential(1.0) * star(y, x, width * rng.uniform(1, 2))
        assert (bank @ scene).max() < 0.01 * scene.max()
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-5)
    assert 0 < thin < len(bank)
    assert bank[:, CENTRE].max() > 0.3


def test_a_hit_on_a_stars_wing_is_found() -> None:
    flagged = 0
    for k in range(10):
        stars = paint(SHAPE, np.array([350.3]), np.array([349.8]), np.array([3e5]), moffat_psf(2.5, SHAPE), size=41)
        data = add_noise(stars, SKY, GAIN, READNOISE, 40 + k)
        data[356, 345] += 1500
        mask = np.where(data >= 60_000, Mask.SATURATED, 0).astype(np.uint16)
        flag_spikes(data, mask, GAIN, READNOISE)
        flagged += bool(mask[356, 345] & HIT_BITS)
        assert not mask[350, 350] & HIT_BITS
    assert flagged >= 9


def test_a_single_pixel_is_a_spike_a_track_a_cosmic_ray() -> None:
    data = add_noise(np.zeros(SHAPE), SKY, GAIN, READNOISE, 5)
    data[50, 60] += 500
    data[100:108, 200] += 500
    data[300, 300:320] += 500
    data[[400, 401, 402, 403], [400, 401, 402, 403]] += 500
    mask = np.zeros(SHAPE, np.uint16)
    flag_spikes(data, mask, GAIN, READNOISE)
    assert mask[50, 60] == Mask.SPIKE
    for y, x in ((104, 200), (300, 310), (401, 401), (402, 402)):
        assert mask[y, x] == Mask.COSMIC_RAY
    assert 1 + 8 + 20 + 4 <= np.count_nonzero(mask) < 1 + 8 + 20 + 4 + 15


def test_trails_as_wide_as_the_psf_are_left_for_the_streak_search() -> None:
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    trail = 2000 * np.exp(-0.5 * (((x - 100) * 0.6 - (y - 100) * 0.8) / (1.7 / 2.3548)) ** 2)
    data = add_noise(trail, SKY, GAIN, READNOISE, 6)
    mask = np.zeros(SHAPE, np.uint16)
    flag_spikes(data, mask, GAIN, READNOISE)
    assert np.count_nonzero(mask) < 5


def test_empty_sky_is_clean_also_where_the_flat_is_low() -> None:
    flat = np.ones(SHAPE, np.float32)
    flat[:, 350:] = 0.5
    rng = np.random.default_rng(7)
    electrons = rng.poisson(SKY * GAIN * flat) + rng.normal(0, READNOISE, SHAPE)
    data = (electrons / GAIN / flat).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint16)
    flag_spikes(data, mask, GAIN, READNOISE, flat)
    assert np.count_nonzero(mask) <= 2


def test_defects_neither_hide_nor_make_hits() -> None:
    data = add_noise(np.zeros(SHAPE), SKY, GAIN, READNOISE, 8)
    mask = np.zeros(SHAPE, np.uint16)
    data[100, 100] += 5000
    mask[100, 100] = Mask.NOISY
    data[200:210, 200:210] = np.nan
    mask[200:210, 200:210] = Mask.NAN
    data[205, 220] += 1000
    data[300, 300] += 1000
    data[300, 301] = np.nan
    before = mask.copy()
    flag_spikes(data, mask, GAIN, READNOISE)
    new = (mask & HIT_BITS) > 0
    assert not (new & (before > 0)).any()
    assert new[205, 220]
    assert new[300, 300]  # the other direction tells
    assert new.sum() < 6


def test_a_hot_column_is_noisy_not_a_cosmic_ray() -> None:
    data = add_noise(np.zeros(SHAPE), SKY, GAIN, READNOISE, 11)
    data[200:, 333] += 80
    data[600:640, 100] += 500  # a long track is still one
    mask = np.zeros(SHAPE, np.uint16)
    flag_spikes(data, mask, GAIN, READNOISE)
    column = mask[:, 333] == Mask.NOISY
    assert column[210:690].all()
    assert not column[:200].any()
    assert not (mask[:, 332:335] & HIT_BITS).any()
    assert np.all(mask[600:640, 100] == Mask.COSMIC_RAY)


@pytest.mark.parametrize(
    "data",
    [np.full((50, 50), np.nan), np.zeros((50, 50)), np.zeros((5, 5)), np.zeros((0, 30)), np.full((50, 50), -500.0)],
)
def test_images_with_nothing_in_them(data: NDArray[np.float64]) -> None:
    mask = np.zeros(data.shape, np.uint16)
    assert flag_spikes(data.astype(np.float32), mask, GAIN, READNOISE) == 0
    assert not mask.any()


def test_edges_can_carry_hits_without_a_crash() -> None:
    data = add_noise(np.zeros((64, 48)), SKY, GAIN, READNOISE, 9)
    for y, x in ((0, 0), (0, 47), (63, 0), (63, 47), (1, 20), (3, 3), (60, 44), (62, 20)):
        data[y, x] += 5000
    mask = np.zeros(data.shape, np.uint16)
    flag_spikes(data, mask, GAIN, READNOISE)
    assert mask[3, 3]
    assert mask[60, 44]


def test_stars_of_real_images_stay(real_data: Path) -> None:
    for path in sorted((real_data / "images").glob("*sciimg.fits")):
        data, header = fits.getdata(path, header=True)
        data = np.ascontiguousarray(data, np.float32)
        mask = np.where(np.isfinite(data), 0, Mask.NAN).astype(np.uint16)
        mask[data >= header["SATURATE"]] |= np.uint16(Mask.SATURATED)
        count = flag_spikes(data, mask, header["GAIN"], header["READNOI"])
        sky_off = np.nan_to_num(data - np.nanmedian(data))
        sources = sep.extract(sky_off, 5.0, err=sep.Background(sky_off).globalrms, minarea=6)
        flagged = (mask & HIT_BITS) > 0
        assert not flagged[np.rint(sources["y"]).astype(int), np.rint(sources["x"]).astype(int)].any()
        # A 30 s exposure has hits on a few pixels in 10^5.
        assert count < 1e-4 * data.size
