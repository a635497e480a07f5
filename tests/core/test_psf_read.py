"""The compiled reader of PSFs against the matrix products that do the same."""

from __future__ import annotations

import numpy as np
import pytest

from stream.core.psf import PsfModel, gaussian_psf, moffat_psf, read_gradients
from stream.core.psfread import psf_table, read_many

SHAPE = (400, 500)


def varying(oversample: int, radius: int, degree: int) -> PsfModel:
    """A Gaussian whose width and shape change over the image."""
    n = 2 * radius * oversample + 1
    node = (np.arange(n) - n // 2) / oversample
    r2 = node[:, None] ** 2 + node[None, :] ** 2
    core = np.exp(-r2 / 3)
    rng = np.random.default_rng(3)
    terms = [core] + [
        rng.normal(0, 0.1) * core * r2 + rng.normal(0, 0.1) * core * node
        for _ in range((degree + 1) * (degree + 2) // 2 - 1)
    ]
    return PsfModel(np.array(terms, np.float32), oversample, degree, SHAPE, 2.9)


@pytest.mark.parametrize(
    "psf",
    [
        gaussian_psf(1.7, SHAPE, oversample=3, radius=5),  # a grid smaller than the stamps
        moffat_psf(2.5, SHAPE),
        varying(2, 13, 1),
        varying(2, 13, 2),
        varying(3, 13, 2),
    ],
)
@pytest.mark.parametrize("size", [9, 15, 25])
def test_values_and_slopes_are_those_of_the_model(psf: PsfModel, size: int) -> None:
    rng = np.random.default_rng(1)
    # Half way between pixels rint goes to the even one: the star lies at either edge of the middle pixel.
    x = np.append(rng.uniform(20, 480, 60), [50.5, 49.5, 50.0, 51.0])
    y = np.append(rng.uniform(20, 380, 60), [50.5, 50.5, 49.5, 77.0])
    dx, dy = x - np.rint(x), y - np.rint(y)
    out = np.empty((len(x), 3, size, size), np.float32)
    read_many(psf_table(psf, size), psf.coefficients(x, y), dx, dy, out)
    for ours, plain in zip(
        out.transpose(1, 0, 2, 3), read_gradients(psf.grids(x, y, size), dx, dy, size, psf.oversample), strict=True
    ):
        assert np.abs(ours - plain).max() < 3e-6 * np.abs(plain).max()


def test_a_large_table_serves_small_stamps() -> None:
    psf = varying(2, 13, 2)
    place = np.array([100.3]), np.array([200.4])
    offset = np.array([0.3]), np.array([0.4])
    out = np.empty((1, 3, 11, 11), np.float32)
    read_many(psf_table(psf, 17), psf.coefficients(*place), *offset, out)
    plain = read_gradients(psf.grids(*place, 11), *offset, 11, 2)
    assert np.abs(out[0] - np.concatenate(plain)).max() < 3e-6 * plain[0].max()
