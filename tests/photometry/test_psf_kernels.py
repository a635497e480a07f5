"""The compiled loops of the PSF's making against matrices and against the truth."""

from __future__ import annotations

import numpy as np
import pytest

from stream.core.psf import STAMP, moffat_psf, read_gradients
from stream.core.psfread import psf_table
from stream.photometry.psfkernels import CLIP, Functions, Noise, Stars, Windows, fit_single_stars, star_rows

GAIN, SKY_NOISE, N = 6.0, 9.0, 12
MODEL = moffat_psf(2.6, (300, 300))


@pytest.fixture
def stars() -> tuple[Windows, Stars, Stars]:
    """Windows of noisy stars, their true places and fluxes, and guesses; some pixels are spoiled or unusable."""
    rng = np.random.default_rng(3)
    dx, dy, flux = rng.uniform(-0.5, 0.5, N), rng.uniform(-0.5, 0.5, N), rng.uniform(3e3, 9e4, N)
    coefficients = MODEL.coefficients(np.full(N, 150.0), np.full(N, 150.0))
    grids = MODEL.grids(np.full(N, 150.0), np.full(N, 150.0))
    light = read_gradients(grids, dx, dy, STAMP, MODEL.oversample)[0] * flux[:, None, None]
    variance = np.full(light.shape, SKY_NOISE**2, np.float32)
    values = (light + rng.normal(0, np.sqrt(variance + light / GAIN))).astype(np.float32)
    usable = rng.random(light.shape) > 0.05
    values[:, 20, 20] += 5000
    guess = Stars(dx + rng.normal(0, 0.1, N), dy + rng.normal(0, 0.1, N), flux * 1.1, coefficients)
    return Windows(values, usable, variance), Stars(dx, dy, flux, coefficients), guess


def test_single_stars_are_found_at_their_places(stars: tuple[Windows, Stars, Stars]) -> None:
    windows, truth, fit = stars
    misfit = np.zeros(N)
    fit_single_stars(windows, fit, psf_table(MODEL, 15), Noise(GAIN, 0.0, 1.0), 11, misfit)
    error = np.sqrt(SKY_NOISE**2 * 20 + truth.flux / GAIN)
    assert np.abs((fit.flux - truth.flux) / error).max() < 4
    assert np.abs(np.concatenate([fit.dx - truth.dx, fit.dy - truth.dy])).max() < 0.05
    assert 0.7 < np.median(misfit) < 1.3


def test_rows_are_the_functions_without_flux_and_place(stars: tuple[Windows, Stars, Stars]) -> None:
    windows, _, fit = stars
    node = np.arange(0, 20, 1 / 64)
    table = np.stack([np.exp(-(((node - c) / 1.5) ** 2)) for c in (0, 2, 1, 3, 1, 3, 2, 2)], axis=1).astype(np.float32)
    profile = 0.1 / (1 + node**2 / 3) ** 2.5
    shape = Functions(table, profile, 64.0, np.array([0, 2, 4, 6, 7, 8]))
    offset = np.arange(STAMP) - STAMP // 2
    disc = np.flatnonzero(np.hypot(offset[:, None], offset) < 8)
    noise = Noise(GAIN, 0.02, 0.3)
    rows, right = np.empty((N, len(disc), 8), np.float32), np.empty((N, len(disc)), np.float32)
    star_rows(windows, fit, psf_table(MODEL, STAMP + 4), noise, shape, disc, rows, right)

    grids = MODEL.grids(np.full(N, 150.0), np.full(N, 150.0))
    p, px, py = (
        a.reshape(N, -1)[:, disc].astype(float) for a in read_gradients(grids, fit.dx, fit.dy, STAMP, MODEL.oversample)
    )
    values, usable, variance = (a.reshape(N, -1)[:, disc] for a in windows)
    x, y = disc % STAMP - STAMP // 2 - fit.dx[:, None], disc // STAMP - STAMP // 2 - fit.dy[:, None]
    r, phi, flux, light = np.hypot(x, y), np.arctan2(y, x), fit.flux[:, None], np.maximum(p, 0)
    peak = light.max(axis=1, keepdims=True)
    sigma = np.sqrt((variance + flux * light / GAIN) / flux**2 + 0.02**2 * light * np.maximum(light, 0.3 * peak))
    residual = p + np.clip(values / flux - p, -CLIP * sigma, CLIP * sigma) - np.interp(r, node, profile)
    angle = np.stack([np.ones_like(phi), np.cos(phi), np.sin(phi), np.cos(2 * phi), np.sin(2 * phi)], axis=2)
    plain = table[np.rint(r * 64).astype(int)] * angle[:, :, [0, 0, 1, 1, 2, 2, 3, 4]]
    root = (usable / sigma)[:, :, None]
    basis, _ = np.linalg.qr(np.stack([p, px, py], axis=2) * root)
    for ours, weighted in ((rows, plain * root), (right[:, :, None], residual[:, :, None] * root)):
        wanted = weighted - basis @ (basis.transpose(0, 2, 1) @ weighted)
        assert np.abs(ours - wanted).max() < 2e-5 * np.abs(weighted).max()
