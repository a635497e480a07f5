"""Saturated stars, painted with known flux and clipped: what the flanks tell, and what is left without them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import add_noise, paint

from stream.core.flags import Mask
from stream.core.psf import PsfModel, gaussian_psf, moffat_psf
from stream.core.records import SOURCE_DTYPE
from stream.photometry import Star, add_stars, bright_stars, fit_stars, saturated_stars, subtract_stars

SHAPE = (200, 240)
FULL = 40_000.0
X, Y, FLUX = np.array([60.3, 150.7, 225.2]), np.array([100.4, 60.1, 190.8]), np.array([2e6, 6e5, 1e6])


@pytest.fixture(scope="module")
def psf() -> PsfModel:
    return gaussian_psf(2.4, SHAPE)


@pytest.fixture(scope="module")
def clipped(psf: PsfModel) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Image without sky, and its saturated pixels: a bled column among them."""
    image = add_noise(paint(SHAPE, X, Y, FLUX, psf), 300.0, 6.2, 10.0, 5) - np.float32(300)
    image[85:120, 60] = FULL
    bad = image >= FULL
    return np.minimum(image, np.float32(FULL)), bad


def test_flux_and_place_come_from_the_flanks(clipped, psf: PsfModel) -> None:  # type: ignore[no-untyped-def]
    image, bad = clipped
    stars = fit_stars(image, bad, psf, (np.rint(X), np.rint(Y) + 1), (50.0, 6.2))
    for star, x, y, flux in zip(stars, X, Y, FLUX, strict=True):
        assert star is not None
        assert star.flux == pytest.approx(flux, rel=0.02)
        assert np.hypot(star.x - x, star.y - y) < 0.05


def test_a_neighbour_is_not_taken_for_the_star(psf: PsfModel) -> None:
    """In crowds every saturated star has one, bright on the flanks as the star itself."""
    near = X + np.array([6.0, -4.5, 3.5]), Y + np.array([4.0, 6.0, -5.5])
    image = paint(SHAPE, np.append(X, near[0]), np.append(Y, near[1]), np.append(FLUX, 0.08 * FLUX), psf)
    image = add_noise(image, 300.0, 6.2, 10.0, 6) - np.float32(300)
    bad = image >= FULL
    stars = fit_stars(np.minimum(image, np.float32(FULL)), bad, psf, (np.rint(X), np.rint(Y)), (50.0, 6.2))
    for star, x, y, flux in zip(stars, X, Y, FLUX, strict=True):
        assert star is not None
        assert star.flux == pytest.approx(flux, rel=0.05)
        assert np.hypot(star.x - x, star.y - y) < 0.1


def test_nothing_is_left_beside_the_core_and_adding_undoes_subtracting(clipped, psf: PsfModel) -> None:  # type: ignore[no-untyped-def]
    image, bad = clipped
    stars = [s for s in fit_stars(image, bad, psf, (X, Y), (50.0, 6.2)) if s is not None]
    left = image.copy()
    subtract_stars(left, psf, stars)
    truth = paint(SHAPE, X, Y, FLUX, psf)
    bright = ~bad & (truth > 500)
    assert np.median(np.abs(left[bright]) / np.sqrt(50 + truth[bright] / 6.2)) < 1.5
    add_stars(left, psf, [(s.x, s.y) for s in stars], stars)
    assert np.allclose(left, image, atol=1e-3 * FULL / 100)


@pytest.mark.parametrize("fwhm", [1.6, 2.4, 3.4])
def test_a_plateau_that_leaves_no_flank_tells_no_flux(fwhm: float) -> None:
    """Ever wider plateaus in the light of a star and its far aureole: a flux is right to a third, or there is none.

    A Gaussian, which has no wings at all, once made 1e15 DN out of the aureole."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    r, flux = np.hypot(x - 110.2, y - 95.7), 3e7
    found: dict[str, list[float | None]] = {"wings": [], "none": []}
    for name, model in (("wings", moffat_psf(fwhm, SHAPE)), ("none", gaussian_psf(fwhm, SHAPE))):
        image = paint(SHAPE, np.array([110.2]), np.array([95.7]), np.array([flux]), model, 29)
        image += 7e-4 * flux / (r**2 + 225) * (1 - np.exp(-((r / 14) ** 4)))
        for radius in range(2, 17):
            [star] = fit_stars(np.float32(image), r < radius, model, (np.array([110.0]), np.array([96.0])), (50.0, 6.2))
            found[name].append(None if star is None else star.flux / flux)
    assert all(ratio is None or 0.67 < ratio < 1.5 for ratio in found["wings"])
    assert None not in found["wings"][:6]
    assert found["wings"][-1] is None
    assert all(ratio is None or ratio < 1.5 for ratio in found["none"])


def test_no_star_where_there_is_none(psf: PsfModel) -> None:
    dark = np.full(SHAPE, -50.0, np.float32)
    nothing = np.zeros(SHAPE, bool)
    at = np.array([100.0]), np.array([100.0])
    assert fit_stars(dark, nothing, psf, at, (50.0, 6.2)) == [None]
    assert fit_stars(-dark, ~nothing, psf, at, (50.0, 6.2)) == [None]
    outside = np.array([-300.0]), np.array([100.0])
    assert fit_stars(dark, nothing, psf, outside, (50.0, 6.2)) == [None]


def test_pieces_of_a_star_are_one(clipped) -> None:  # type: ignore[no-untyped-def]
    _, bad = clipped
    table = np.zeros(6, SOURCE_DTYPE)
    table["x"], table["y"] = [60, 60, 150.7, 20, np.nan, 225], [100, 110, 60.1, 20, 5, 191]
    table["ap_flux"][:, -1] = [9e5, 3e5, 4e5, 5e5, 1, np.nan]
    x, y = saturated_stars(table, bad)
    assert sorted(zip(x.tolist(), y.tolist(), strict=True)) == [(60.0, 100.0), (150.7, 60.1), (225.0, 191.0)]
    none = saturated_stars(table[:0], bad)
    assert len(none[0]) == len(none[1]) == 0


def test_a_faded_model_ends_without_a_step(psf: PsfModel) -> None:
    whole, faded = np.zeros((2, 61, 61), np.float32)
    star = [Star(30.3, 29.8, 1e6)]
    add_stars(whole, psf, [(30.3, 29.8)], star)
    add_stars(faded, psf, [(30.3, 29.8)], star, faded=True)
    r = np.hypot(np.arange(61) - 30.3, (np.arange(61) - 29.8)[:, None])
    np.testing.assert_array_equal(faded[r < 6.9], whole[r < 6.9])
    assert not faded[r > 12.1].any()
    assert whole[(r > 9) & (r < 10)].sum() == pytest.approx(2 * faded[(r > 9) & (r < 10)].sum(), rel=0.15)
    subtract_stars(faded, psf, star, faded=True)
    assert np.abs(faded).max() < 1e-6 * whole.max()


def test_bright_stars_are_clean_and_bright(psf: PsfModel) -> None:
    table = np.zeros(5, SOURCE_DTYPE)
    table["x"], table["y"] = [10, 20, 30, np.nan, 50], [10, 20, 30, 40, 50]
    table["flux"] = [1e4, 1e4, 10, 1e4, 2e4]
    table["flags"] = [0, int(Mask.DEAD), 0, 0, int(Mask.HALO)]  # a halo is smooth light: its stars are stars
    assert bright_stars(table, psf, 100.0) == [Star(10.0, 10.0, 1e4), Star(50.0, 50.0, 2e4)]
