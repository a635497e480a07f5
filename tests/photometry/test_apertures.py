"""Sums in circles against the exact overlaps of an independent program."""

from __future__ import annotations

import numpy as np
import pytest
import sep

from stream.photometry.apertures import aperture_fluxes

RADII = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)


def sums(image: np.ndarray, unusable: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    columns = []
    for radius in RADII:
        flux, _, flag = sep.sum_circle(image, x, y, radius, mask=unusable, subpix=0)
        columns.append(np.where((flag & sep.APER_ALLMASKED) != 0, np.nan, flux))
    return np.stack(columns, axis=1)


def test_sums_are_exact_at_any_phase_over_edges_and_around_masked_pixels() -> None:
    rng = np.random.default_rng(4)
    image = rng.normal(100, 30, (60, 80)).astype(np.float32)
    unusable = rng.random((60, 80)) < 0.1
    unusable[20:40, 30:50] = True
    x, y = rng.uniform(-0.5, 79.5, 400), rng.uniform(-0.5, 59.5, 400)
    x[:6], y[:6] = [10.0, 10.5, 20.0, 0.0, 79.0, 40.0], [12.0, 12.5, 8.5, 0.0, 59.0, 30.0]
    ours, theirs = aperture_fluxes(image, unusable, x, y, RADII), sums(image, unusable, x, y)
    assert np.isnan(theirs).any()
    assert ours == pytest.approx(theirs, rel=1e-4, abs=0.5, nan_ok=True)


def test_area_of_a_flat_image() -> None:
    flat, none = np.ones((40, 40), np.float32), np.zeros((40, 40), bool)
    x = np.linspace(19.5, 20.5, 11)
    area = aperture_fluxes(flat, none, x, x[::-1].copy(), RADII)
    assert area == pytest.approx(np.tile(np.pi * np.square(RADII), (11, 1)), rel=1e-6)


def test_no_source_and_a_place_off_the_image() -> None:
    flat, none = np.ones((40, 40), np.float32), np.zeros((40, 40), bool)
    assert aperture_fluxes(flat, none, np.zeros(0), np.zeros(0), RADII).shape == (0, 6)
    assert np.isnan(aperture_fluxes(flat, none, np.array([100.0]), np.array([5.0]), RADII)).all()
