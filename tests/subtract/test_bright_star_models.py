"""Models of bright stars against the PSF model itself; what they do for undersampled stars, judged by truth."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS
from pairs import reference_of, science_of, sky_wcs, varying_psf
from synthetic import star_field

from stream.core.pixelmap import PixelMap
from stream.core.psf import PsfModel, gaussian_psf
from stream.core.records import Reference, ScienceImage
from stream.photometry.stamps import add_stamps, nearest_pixels
from stream.subtract import cache as caching
from stream.subtract import make_cache, subtract
from stream.subtract.models import modelled_stars, paint, places_on

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
    add_stamps(expected, *nearest_pixels(x, y), psf.stamps(x, y) * flux[:, None, None])
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


def sharp_pair() -> tuple[ScienceImage, Reference, tuple[np.ndarray, ...]]:
    """Undersampled images: 2.0 px against 1.9, stars bright enough for it to matter."""
    wcs: WCS = sky_wcs(SHAPE)
    x, y, flux = star_field(SHAPE, 90, 5, (20_000, 150_000), edge=20)
    sky = wcs.all_pix2world(x, y, 0)
    science = science_of(SHAPE, *sky, np.append(1.3 * flux[:1], flux[1:]), wcs, varying_psf(2.0, SHAPE), seed=6)
    reference = reference_of(
        SHAPE, *sky, flux, sky_wcs(SHAPE, 0.41, -0.27, 0.05), varying_psf(1.9, SHAPE), frames=15, seed=7
    )
    return science, reference, (x, y, flux)


def test_undersampled_stars_leave_their_noise_only_and_changes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    science, reference, (x, y, flux) = sharp_pair()
    light = np.maximum(science.data - science.background.level, 0)

    def excess() -> tuple[float, float]:
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

    with_models, change = excess()
    monkeypatch.setattr(caching, "modelled_stars", lambda *a: (np.zeros((0, 3)), 1000.0))
    without, change_without = excess()
    assert with_models < 1.15
    assert without > with_models + 0.1
    # The stamp's phase is not the star's, which costs the fit some of the flux: of both alike.
    assert change == pytest.approx(0.3 * flux[0], rel=0.1)
    assert change == pytest.approx(change_without, rel=0.04)


def test_which_stars_are_modelled() -> None:
    _, reference, (_, _, flux) = sharp_pair()
    full = np.zeros(reference.data.shape, bool)
    stars, left = modelled_stars(reference.sources, full, np.zeros((0, 3)))
    assert len(stars) == len(flux)
    assert left == 50
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
