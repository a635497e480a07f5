"""The PSF model against direct spline evaluation, analytic widths and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from stream.core.psf import STAMP, PsfModel, gaussian_psf, polynomial_terms, read_gradients, read_grids

SHAPE = (400, 600)


def varying_model(oversample: int = 2) -> PsfModel:
    node = np.arange(-13 * oversample, 13 * oversample + 1) / oversample
    x, y = node[None, :], node[:, None]
    base = np.exp(-0.5 * (x**2 + y**2))
    wide = np.exp(-0.5 * (x**2 / 1.3 + y**2)) - base
    basis = np.stack([base, 0.3 * wide, 0.1 * x * base]).astype(np.float32)
    return PsfModel(basis, oversample, 1, SHAPE, 2.35)


@pytest.mark.parametrize("oversample", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 11, 25, 31])
def test_stamps_are_the_spline_through_the_grid(oversample: int, size: int) -> None:
    model = varying_model(oversample)
    x, y = 211.37, 90.81
    terms = polynomial_terms([x], [y], SHAPE, 1)[0]
    grid = np.tensordot(terms, model.basis.astype(float), axes=1)

    def sample(fx: float, fy: float, side: int) -> np.ndarray:
        offset = np.arange(side) - side // 2
        rows, columns = ((offset - f) * oversample + grid.shape[0] // 2 for f in (fy, fx))
        places = np.meshgrid(rows, columns, indexing="ij")
        return ndimage.map_coordinates(grid, places, order=3, mode="constant")

    norm = sample(0, 0, STAMP).sum()
    inner = slice(1, -1) if size > 25 else slice(None)  # map_coordinates cuts its spline at the grid's last node
    expected = sample(x - round(x), y - round(y), size) / norm
    assert model.stamps([x], [y], size)[0][inner, inner] == pytest.approx(expected[inner, inner], abs=2e-6)
    assert model.stamp(x, y, size)[inner, inner] == pytest.approx(sample(0, 0, size)[inner, inner] / norm, abs=2e-6)


def test_centred_core_sums_to_one_everywhere() -> None:
    model = varying_model()
    x, y = np.linspace(0, SHAPE[1] - 1, 7), np.linspace(0, SHAPE[0] - 1, 7)
    assert model.stamps(x, y, subpixel=False).sum(axis=(1, 2)) == pytest.approx(1, abs=1e-5)


def test_gradients_are_finite_differences() -> None:
    model = varying_model()
    x, y = np.array([10.2, 300.49]), np.array([200.1, 5.77])
    grids = model.grids(x, y, 11)
    fx, fy = x - np.rint(x), y - np.rint(y)
    p, px, py = read_gradients(grids, fx, fy, 11, 2)
    step = 1e-2
    for gradient, dx, dy in ((px, step, 0.0), (py, 0.0, step)):
        ahead, behind = (read_grids(grids, fx + s * dx, fy + s * dy, 11, 2) for s in (1, -1))
        assert gradient == pytest.approx((ahead - behind) / (2 * step), abs=2e-4 * float(np.abs(gradient).max()) + 1e-5)
    assert p == pytest.approx(model.stamps(x, y, 11), abs=1e-7)


@pytest.mark.parametrize("fwhm", [1.8, 2.35, 5.0])
def test_width_of_a_gaussian(fwhm: float) -> None:
    model = gaussian_psf(fwhm, SHAPE, oversample=3)
    assert model.widths([3.3, 500], [3.3, 100]) == pytest.approx(fwhm, rel=0.005)


@pytest.mark.parametrize("u", [-1, 1])
def test_width_follows_the_place(u: int) -> None:
    place = u * SHAPE[1] / 2 + (SHAPE[1] - 1) / 2
    fine = np.arange(-6, 6, 0.02)
    x, y = fine[None, :], fine[:, None]
    base = np.exp(-0.5 * (x**2 + y**2))
    profile = base + 0.3 * u * (np.exp(-0.5 * (x**2 / 1.3 + y**2)) - base)
    area = np.count_nonzero(profile > profile.max() / 2) * 0.02**2
    found = varying_model(4).widths([place], [(SHAPE[0] - 1) / 2])[0]
    assert found == pytest.approx(2 * math.sqrt(area / math.pi), rel=0.003)


def test_nothing_beyond_the_grid() -> None:
    stamp = gaussian_psf(8.0, SHAPE, radius=14).stamp(50, 50, 41)
    assert np.all(stamp[0] == 0)
    assert stamp[20, 20] == stamp.max()


def test_no_places_no_stamps() -> None:
    assert varying_model().stamps([], [], 9).shape == (0, 9, 9)


@pytest.mark.parametrize("shape", [(2, 9, 9), (1, 8, 8), (9, 9)])
def test_impossible_basis_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="PSF basis"):
        PsfModel(np.zeros(shape, np.float32), 2, 0, SHAPE, 2.0)


def test_polynomial_terms_order() -> None:
    u, v = 0.5, -0.25
    x, y = u * SHAPE[1] / 2 + (SHAPE[1] - 1) / 2, v * SHAPE[0] / 2 + (SHAPE[0] - 1) / 2
    assert polynomial_terms(x, y, SHAPE, 2)[0] == pytest.approx([1, u, v, u * u, u * v, v * v])
    assert math.isclose(float(polynomial_terms(x, y, SHAPE, 0)[0, 0]), 1.0)
