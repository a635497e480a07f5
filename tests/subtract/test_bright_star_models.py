"""Models of bright stars against the PSF model itself; what they do for undersampled stars, judged by truth."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS
from pairs import reference_of, science_of, sky_wcs, varying_psf
from synthetic import star_field

from stream.core.flags import Mask
from stream.core.pixelmap import PixelMap
from stream.core.psf import PsfModel, gaussian_psf
from stream.core.records import SOURCE_DTYPE, Reference, ScienceImage
from stream.photometry.stamps import add_stamps, nearest_pixels
from stream.subtract import cache as caching
from stream.subtract import make_cache, subtract
from stream.subtract import prepare as preparing
from stream.subtract.models import LEAST_SNR, modelled_stars, own_places, paint, places_on

SHAPE = (500, 520)


@pytest.mark.parametrize("psf", [varying_psf(1.9, SHAPE), gaussian_psf(2.4, SHAPE, oversample=3, radius=9)])
def test_painted_stars_are_those_of_the_psf_model(psf: PsfModel) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-14, SHAPE[1] + 13, 200), rng.uniform(-14, SHAPE[0] + 13, 200)
    flux = rng.uniform(-1e4, 1e5, 200)
    seen, expected = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    paint(seen, psf, np.append(x, np.nan), np.append(y, 5.0), np.append(flux, 1e9))
    inside = (x > 0) & (y > 0) & (x < SHAPE[1] - 1) & (y < SHAPE[0] - 1)
    x, y, flux = x[inside], y[inside], flux[inside].astype(np.float32)
    ix, iy = nearest_pixels(x, y)
    step = np.arange(-12, 13)
    r = np.hypot(step[None, :] - (x - ix)[:, None, None], step[:, None] - (y - iy)[:, None, None])
    fading = np.cos(0.5 * np.pi * np.clip((r - 7) / 5, 0, 1)) ** 2
    add_stamps(expected, ix, iy, (psf.stamps(x, y) * flux[:, None, None] * fading).astype(np.float32))
    inner = np.s_[14:-14, 14:-14]  # stars beyond the image, whose PSF is that of its edge, reach this far
    assert np.abs(seen - expected)[inner].max() < 1e-5 * 1e5 * psf.stamp(100, 100).max()
    assert seen[0].any()


@pytest.mark.parametrize("turn", [0.1, 90.0, 180.0])
def test_places_on_a_map_are_its_inverse(turn: float) -> None:
    forward = PixelMap.between(sky_wcs(SHAPE), SHAPE, sky_wcs(SHAPE, dx=7.3, dy=-2.2, turn=turn))
    rng = np.random.default_rng(2)
    x, y = rng.uniform(20, 480, 50), rng.uniform(20, 480, 50)
    there = forward.at(x, y)
    back = places_on(forward, *there)
    assert np.abs(np.stack(back) - [x, y]).max() < 1e-4
    nowhere = PixelMap.between(sky_wcs(SHAPE), SHAPE, sky_wcs(SHAPE, ra=330.0, dec=-30.0))
    assert np.isnan(places_on(nowhere, x, y)).all()


def sharp_pair(air: float = 0.0) -> tuple[ScienceImage, Reference, tuple[np.ndarray, ...]]:
    """Undersampled images: 2.0 px against 1.9, stars bright enough for it to matter, each moved by ``air`` px r.m.s."""
    wcs: WCS = sky_wcs(SHAPE)
    x, y, flux = star_field(SHAPE, 90, 5, (20_000, 150_000), edge=20)
    sky = wcs.all_pix2world(x, y, 0)
    moved = wcs.all_pix2world(*(np.stack([x, y]) + np.random.default_rng(8).normal(0, air, (2, len(x)))), 0)
    science = science_of(SHAPE, *moved, np.append(1.3 * flux[:1], flux[1:]), wcs, varying_psf(2.0, SHAPE), seed=6)
    reference = reference_of(
        SHAPE, *sky, flux, sky_wcs(SHAPE, 0.41, -0.27, 0.05), varying_psf(1.9, SHAPE), frames=15, seed=7
    )
    return science, reference, (x, y, flux)


def excess(science: ScienceImage, reference: Reference, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Median r.m.s. of all stars but the first over their noise, and the flux that the first has in the difference."""
    light = np.maximum(science.data - science.background.level, 0)
    d = subtract(science, reference)
    quiet = 1.4826 * np.nanmedian(np.abs(d.data))
    chi = []
    for a, b in zip(np.rint(x[1:]).astype(int), np.rint(y[1:]).astype(int), strict=True):
        box = np.s_[b - 3 : b + 4, a - 3 : a + 4]
        noise = quiet**2 + light[box] * (1 / science.gain + 1 / float(reference.qa.get("gain", 15 * science.gain)))
        chi.append(float(np.sqrt(np.mean(d.data[box] ** 2 / noise))))
    a, b = round(float(x[0])), round(float(y[0]))
    box, p = np.s_[b - 12 : b + 13, a - 12 : a + 13], d.psf.stamp(x[0], y[0])
    core = p > 0.05 * p.max()
    return float(np.nanmedian(chi)), float((d.data[box] * p)[core].sum() / (p * p)[core].sum())


def test_undersampled_stars_leave_their_noise_only_and_changes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    science, reference, (x, y, flux) = sharp_pair()
    with_models, change = excess(science, reference, x, y)
    monkeypatch.setattr(caching, "modelled_stars", lambda *a: (np.zeros((0, 4)), 1000.0))
    without, change_without = excess(science, reference, x, y)
    assert with_models < 1.15
    assert without > with_models + 0.1
    # The stamp's phase is not the star's, which costs the fit some of the flux: of both alike.
    assert change == pytest.approx(0.3 * flux[0], rel=0.1)
    assert change == pytest.approx(change_without, rel=0.04)


def test_what_the_air_moves_star_by_star_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    science, reference, (x, y, flux) = sharp_pair(air=0.02)
    seen, change = excess(science, reference, x, y)
    monkeypatch.setattr(preparing, "own_places", lambda here, *a: here)
    by_map, _ = excess(science, reference, x, y)
    assert seen < 1.15
    assert by_map > seen + 0.15
    assert change == pytest.approx(0.3 * flux[0], rel=0.1)


def test_a_place_is_the_mean_of_map_and_star() -> None:
    rng = np.random.default_rng(11)
    n, error = 400, 0.02
    x, y = (v.ravel().astype(float) for v in np.meshgrid(np.arange(20) * 25.0, np.arange(20) * 25.0))
    here = x + rng.normal(0, error, n), y + rng.normal(0, error, n)
    table = np.zeros(n, SOURCE_DTYPE)
    table["snr"] = np.geomspace(10, 2000, n)
    photons = 2.0 / 2.355 / table["snr"]
    table["x"], table["y"] = x + rng.normal(0, 1, n) * photons, y + rng.normal(0, 1, n) * photons
    table["flags"][::50] = int(Mask.HALO)
    table["flags"][1::50] = int(Mask.SATURATED)
    table["sharp"][2::50] = 0.9
    table["x"][3::50] += 0.4
    odd = np.arange(n) % 50
    errors = np.full(n, error, np.float32), np.full(n, error, np.float32)
    there = own_places(here, errors, np.full(n, 1e5), table, (2.0, 2.0))
    off = np.hypot(there[0] - x, there[1] - y)
    by_map = np.hypot(here[0] - x, here[1] - y)
    stays = (odd == 1) | (odd == 2) | (odd == 3) | (table["snr"] < 30)
    assert (there[0][stays] == here[0][stays]).all()
    expected = np.sqrt(2 / (1 / photons**2 + 1 / error**2))
    assert np.sqrt(np.mean((off[~stays] / expected[~stays]) ** 2)) == pytest.approx(1, abs=0.1)
    bright = ~stays & (table["snr"] > 300)
    assert np.median(off[bright]) < 0.2 * np.median(by_map[bright])
    assert (there[0][(odd == 0) & ~stays] != here[0][(odd == 0) & ~stays]).all()
    empty = own_places(here, errors, np.full(n, 1e5), table[:0], (2.0, 2.0))
    assert (empty[0] == here[0]).all()
    nowhere = own_places((np.full(n, np.nan), here[1]), errors, np.full(n, 1e5), table, (2.0, 2.0))
    assert np.isnan(nowhere[0]).all()


def test_which_stars_are_modelled() -> None:
    _, reference, (_, _, flux) = sharp_pair()
    full = np.zeros(reference.data.shape, bool)
    stars, left = modelled_stars(reference.sources, full, np.zeros((0, 3)))
    assert len(stars) == len(flux)
    assert left == LEAST_SNR
    row = stars[3]
    full[round(row[1]), round(row[0])] = True
    fewer, _ = modelled_stars(reference.sources, full, stars[5:6])
    assert len(fewer) == len(stars) - 2
    assert len(modelled_stars(reference.sources[:0], full, stars)[0]) == 0


def test_a_cache_gives_its_stars_back() -> None:
    _, reference, _ = sharp_pair()
    cache = make_cache(reference)
    assert len(cache.models)
    whole = cache.with_stars(reference.psf)
    assert len(whole.models) == 0
    good = ~cache.empty & ~cache.full
    assert np.abs(whole.pixels - reference.data)[good].max() < 1e-3 * np.nanmax(reference.data)
