"""Forced fluxes: unbiased at given places, true errors, neighbours told apart, every way a place can be unusable."""

from __future__ import annotations

import numpy as np
import pytest
from photometry_truth import true_psf
from scipy.optimize import curve_fit
from synthetic import paint

from stream.core.psf import PsfModel, gaussian_psf
from stream.core.records import Background
from stream.photometry import Scene, forced_fluxes

SHAPE = (300, 320)
SIGMA = 5.0


def scene_of(data: np.ndarray, psf: PsfModel, unusable: np.ndarray | None = None) -> Scene:
    """An image without sky whose noise is the sky's alone."""
    sky = Background(np.zeros(SHAPE, np.float32), np.full(SHAPE, SIGMA, np.float32), 0.0, SIGMA)
    bad = np.zeros(SHAPE, bool) if unusable is None else unusable
    return Scene(np.where(bad, 0, data).astype(np.float32), bad, sky, psf, 1e9, 0.0)


def painted(psf: PsfModel, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = (g.ravel() for g in np.meshgrid(np.arange(25.0, 300, 20), np.arange(25.0, 280, 20)))
    x, y = x + rng.uniform(-0.5, 0.5, len(x)), y + rng.uniform(-0.5, 0.5, len(y))
    flux = rng.choice([-2000.0, 0.0, 150.0, 3000.0], len(x))
    data = paint(SHAPE, x, y, flux, psf, 25) + rng.normal(0, SIGMA, SHAPE)
    return data.astype(np.float32), x, y, flux


def test_fluxes_of_both_signs_and_their_errors() -> None:
    psf = true_psf(2.2, SHAPE)
    data, x, y, flux = painted(psf)
    found, error, chi = forced_fluxes(scene_of(data, psf), x, y)
    pull = (found - flux) / error
    assert abs(pull.mean()) < 4 / np.sqrt(len(pull))
    assert pull.std() == pytest.approx(1, abs=0.2)
    assert chi.mean() == pytest.approx(1, abs=0.03)
    faint = flux == 0  # where the response's own error is nothing
    area = 1 / (psf.stamps(x, y, 9).astype(float) ** 2).sum(axis=(1, 2))
    assert error[faint] == pytest.approx(SIGMA * np.sqrt(area[faint]), rel=5e-3)
    assert (error >= 0.999 * SIGMA * np.sqrt(area)).all()


def test_agrees_with_scipy_on_an_image_with_holes() -> None:
    psf = true_psf(2.6, SHAPE)
    data, x, y, flux = painted(psf, 2)
    unusable = np.zeros(SHAPE, bool)
    unusable[::7, ::5] = True
    unusable[100] = True
    found, error, _ = forced_fluxes(scene_of(data, psf, unusable), x, y)
    for k in range(0, len(x), 17):
        ix, iy = round(x[k]), round(y[k])
        window = slice(iy - 5, iy + 6), slice(ix - 5, ix + 6)
        model, good = psf.stamps([x[k]], [y[k]], 11)[0], ~unusable[window]
        noise = np.full(good.sum(), SIGMA)
        value, covariance = curve_fit(
            lambda p, f: f * p, model[good].astype(float), data[window][good], 1.0, noise, absolute_sigma=True
        )
        assert found[k] == pytest.approx(value[0], rel=1e-3, abs=0.05)
        # A bright source's has the response's own error in it, 1 mmag.
        response = 1e-3 * abs(flux[k])
        assert error[k] == pytest.approx(np.hypot(np.sqrt(covariance[0, 0]), response), rel=2e-3)


@pytest.mark.parametrize("apart", [1.0, 2.0, 6.0])
def test_a_place_does_not_get_its_neighbour_s_light(apart: float) -> None:
    """A faint source so many FWHM beside a bright one, given both places; alone it would be taken for much more."""
    psf = true_psf(2.4, SHAPE, 0.0)
    gx, gy = (g.ravel() for g in np.meshgrid(np.arange(30.0, 300, 35), np.arange(30.0, 280, 35)))
    rng, n = np.random.default_rng(5), len(gx)
    x = np.concatenate([gx, gx + 2.4 * apart]) + rng.uniform(-0.5, 0.5, 2 * n)
    y = np.concatenate([gy, gy]) + rng.uniform(-0.5, 0.5, 2 * n)
    flux = np.repeat([5000.0, 200.0], n)
    scene = scene_of(paint(SHAPE, x, y, flux, psf, 25) + rng.normal(0, SIGMA, SHAPE), psf)
    found, error, _ = forced_fluxes(scene, x, y)
    pull = ((found - flux) / error)[n:]
    assert abs(pull.mean()) < 4 / np.sqrt(n)
    assert 0.75 < pull.std() < 1.3
    alone = np.array([forced_fluxes(scene, x[k], y[k])[0][0] for k in range(n, 2 * n)])
    assert np.median(alone) > 200 + 3 * np.median(error[n:]) or apart > 5


@pytest.mark.parametrize(("x", "y"), [(np.nan, 50.0), (50.0, np.inf), (-3.0, 50.0), (50.0, 1e6), (200.0, 200.0)])
def test_unusable_places_are_nan(x: float, y: float) -> None:
    bad = np.zeros(SHAPE, bool)
    bad[190:211, 190:211] = True
    scene = scene_of(np.ones(SHAPE), gaussian_psf(2.2, SHAPE), bad)
    flux, error, chi = forced_fluxes(scene, [x, 100.0], [y, 100.0])
    assert np.isnan([flux[0], error[0], chi[0]]).all()
    assert np.isfinite([flux[1], error[1], chi[1]]).all()


def test_edge_is_measured_from_what_is_there() -> None:
    psf = gaussian_psf(2.2, SHAPE)
    x, y = np.array([0.3]), np.array([120.4])
    scene = scene_of(paint(SHAPE, x, y, np.array([1000.0]), psf), psf)
    flux, error, _ = forced_fluxes(scene, x, y)
    inner = forced_fluxes(scene, x + 100, y)[1]
    assert flux[0] == pytest.approx(1000, rel=1e-3)
    assert error[0] > inner[0]


def test_nothing_asked_nothing_said() -> None:
    assert [len(v) for v in forced_fluxes(scene_of(np.zeros(SHAPE), gaussian_psf(2, SHAPE)), [], [])] == [0, 0, 0]
