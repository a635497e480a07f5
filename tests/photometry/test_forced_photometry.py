"""Forced fluxes: unbiased at given places, true errors, every way a place can be unusable."""

from __future__ import annotations

import numpy as np
import pytest
from photometry_truth import true_psf
from scipy.optimize import curve_fit
from synthetic import paint

from stream.core.errors import PhotometryError
from stream.core.psf import gaussian_psf
from stream.photometry import forced_fluxes

SHAPE = (300, 320)
SIGMA = 5.0


def scene(psf: object, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = (g.ravel() for g in np.meshgrid(np.arange(25.0, 300, 20), np.arange(25.0, 280, 20)))
    x, y = x + rng.uniform(-0.5, 0.5, len(x)), y + rng.uniform(-0.5, 0.5, len(y))
    flux = rng.choice([-2000.0, 0.0, 150.0, 3000.0], len(x))
    data = paint(SHAPE, x, y, flux, psf, 25) + rng.normal(0, SIGMA, SHAPE)  # type: ignore[arg-type]
    return data.astype(np.float32), x, y, flux


def test_fluxes_of_both_signs_and_their_errors() -> None:
    psf = true_psf(2.2, SHAPE)
    data, x, y, flux = scene(psf)
    found, error, chi = forced_fluxes(data, SIGMA, psf, x, y)
    pull = (found - flux) / error
    assert abs(pull.mean()) < 4 / np.sqrt(len(pull))
    assert pull.std() == pytest.approx(1, abs=0.2)
    assert chi.mean() == pytest.approx(1, abs=0.03)
    area = 1 / (psf.stamps(x, y, 11).astype(float) ** 2).sum(axis=(1, 2))
    assert error == pytest.approx(SIGMA * np.sqrt(area), rel=1e-4)


def test_agrees_with_scipy_on_uneven_noise_and_holes() -> None:
    psf = true_psf(2.6, SHAPE)
    data, x, y, _ = scene(psf, 2)
    sigma = np.full(SHAPE, SIGMA, np.float32)
    sigma[:, ::3] = 15
    data[::7, ::5] = np.nan
    sigma[100] = 0
    found, error, _ = forced_fluxes(data, sigma, psf, x, y, 9)
    for k in range(0, len(x), 17):
        ix, iy = round(x[k]), round(y[k])
        window = slice(iy - 4, iy + 5), slice(ix - 4, ix + 5)
        model = psf.stamps([x[k]], [y[k]], 9)[0]
        good = np.isfinite(data[window]) & (sigma[window] > 0)
        value, covariance = curve_fit(
            lambda p, f: f * p, model[good].astype(float), data[window][good], 1.0, sigma[window][good], True
        )
        assert found[k] == pytest.approx(value[0], rel=1e-3, abs=0.05)
        assert error[k] == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-3)


def test_one_stamp_stands_for_the_whole_image() -> None:
    psf = gaussian_psf(2.6, SHAPE)
    data, x, y, _ = scene(psf, 3)
    whole = forced_fluxes(data, SIGMA, psf, x, y)
    stamp = forced_fluxes(data, SIGMA, psf.stamp(160, 150, 25), x, y)
    assert np.abs(stamp[0] - whole[0]).max() < 0.01 * 3000
    assert stamp[1] == pytest.approx(whole[1], rel=0.01)


@pytest.mark.parametrize(("x", "y"), [(np.nan, 50.0), (50.0, np.inf), (-3.0, 50.0), (50.0, 1e6), (200.0, 200.0)])
def test_unusable_places_are_nan(x: float, y: float) -> None:
    data = np.ones(SHAPE, np.float32)
    data[190:211, 190:211] = np.nan
    flux, error, chi = forced_fluxes(data, SIGMA, gaussian_psf(2.2, SHAPE), [x, 100.0], [y, 100.0])
    assert np.isnan([flux[0], error[0], chi[0]]).all()
    assert np.isfinite([flux[1], error[1], chi[1]]).all()


def test_edge_is_measured_from_what_is_there() -> None:
    psf = gaussian_psf(2.2, SHAPE)
    x, y = np.array([0.3]), np.array([120.4])
    data = paint(SHAPE, x, y, np.array([1000.0]), psf).astype(np.float32)
    flux, error, _ = forced_fluxes(data, SIGMA, psf, x, y)
    inner = forced_fluxes(data, SIGMA, psf, x + 100, y)[1]
    assert flux[0] == pytest.approx(1000, rel=1e-3)
    assert error[0] > inner[0]


def test_nothing_asked_nothing_said() -> None:
    assert [len(v) for v in forced_fluxes(np.zeros(SHAPE, np.float32), 1.0, gaussian_psf(2, SHAPE), [], [])] == [
        0,
        0,
        0,
    ]


def test_wrong_input_is_refused() -> None:
    data = np.zeros(SHAPE, np.float32)
    with pytest.raises(PhotometryError, match="odd"):
        forced_fluxes(data, 1.0, gaussian_psf(2, SHAPE), [5.0], [5.0], size=10)
    with pytest.raises(PhotometryError, match="shape"):
        forced_fluxes(data, np.ones((3, 3), np.float32), gaussian_psf(2, SHAPE), [5.0], [5.0])
    with pytest.raises(PhotometryError, match="square"):
        forced_fluxes(data, 1.0, np.ones((4, 4), np.float32), [5.0], [5.0])
