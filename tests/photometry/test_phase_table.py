"""The PSF by phases against the splines that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from photometry_truth import true_psf

from stream.core.psf import read_gradients
from stream.photometry.phases import PhaseTable


@pytest.mark.parametrize("fwhm", [1.6, 3.2])
def test_stamps_and_slopes_are_those_of_the_model(fwhm: float) -> None:
    psf = true_psf(fwhm, (400, 500))
    rng = np.random.default_rng(1)
    x, y = rng.uniform(20, 480, 300), rng.uniform(20, 380, 300)
    p, px, py = PhaseTable(psf, 15, 11).gradients(x, y)
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    q, qx, qy = read_gradients(psf.grids(x, y, 15), x - ix, y - iy, 15, psf.oversample)
    peak = float(q.max())
    assert np.abs(p - q).max() < 2e-3 * peak
    assert np.abs(p.sum(axis=(1, 2)) / q.sum(axis=(1, 2)) - 1).max() < 2e-4  # a flux does not see it
    assert np.abs(px - qx[:, 2:-2, 2:-2]).max() < 0.08 * np.abs(qx).max()
    assert np.abs(py - qy[:, 2:-2, 2:-2]).max() < 0.08 * np.abs(qy).max()


def test_half_way_between_pixels() -> None:
    psf = true_psf(2.2, (100, 100), vary=0.0)
    x, y = np.array([50.5, 49.5, 50.0]), np.array([50.5, 50.0, 49.5])  # rint goes to the even pixel
    p, _, _ = PhaseTable(psf, 15, 11).gradients(x, y)
    assert p == pytest.approx(psf.stamps(x, y, 15), abs=2e-3 * float(p.max()))
