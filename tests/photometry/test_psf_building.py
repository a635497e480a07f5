"""The PSF against the one that painted the image: width, shape, flux at all sub-pixel phases, bad stars, few stars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photometry_truth import GAIN, READNOISE, SATURATE, SKY, make_truth, true_psf
from synthetic import add_noise, paint

from stream.archive import fitsio
from stream.archive.catalogs import psf_model
from stream.core.errors import PhotometryError
from stream.core.flags import Mask
from stream.core.psf import PsfModel, gaussian_psf
from stream.core.records import Background
from stream.photometry import Fit, Scene, build_psf, detect, estimate_background, fit_scene
from stream.simulate.optics import PsfField

SHAPE = (512, 512)


def build(data: np.ndarray, mask: np.ndarray | None = None, saturate: float = SATURATE) -> PsfModel:
    mask = np.zeros(data.shape, np.uint16) if mask is None else mask
    background = estimate_background(data, mask)
    found = detect(data, background, mask)
    return build_psf(data, background, found, mask, GAIN, READNOISE, saturate)


def phase_ratios(model: PsfModel, truth: PsfModel) -> np.ndarray:
    """Flux that the model measures on noise-free stars of the true PSF, at all phases of a pixel and over the image."""
    phase = np.linspace(-0.5, 0.5, 9)
    x, y = (
        g.ravel() for g in np.meshgrid(np.linspace(60, 450, 9).round() + phase, np.linspace(60, 450, 9).round() + phase)
    )
    image = paint(SHAPE, x, y, np.full(len(x), 1e4), truth, 31).astype(np.float32)
    rms = float(np.sqrt(SKY / GAIN))  # weights of a star of moderate S/N: sky and its own light
    sky = Background(np.full(SHAPE, SKY, np.float32), np.full(SHAPE, rms, np.float32), SKY, rms)
    fit = Fit.start(x, y, np.full(len(x), 1e4))
    fit_scene(Scene(image, np.zeros(SHAPE, bool), sky, model, GAIN, 0.0), fit, rounds=6)
    return np.asarray(fit.flux / 1e4)


@pytest.mark.parametrize("fwhm", [1.7, 2.2, 3.0])
def test_width_and_flux_at_every_phase(fwhm: float) -> None:
    truth = make_truth(fwhm, n=220, seed=11)
    model = build(truth.data)
    assert model.fwhm == pytest.approx(truth.psf.fwhm, rel=0.015)
    ratio = phase_ratios(model, truth.psf)
    assert abs(ratio.mean() - 1) < 0.005
    assert ratio.std() < 0.006
    assert np.abs(ratio - 1).max() < 0.02
    by_phase = ratio.reshape(9, 9)
    assert np.abs(by_phase.mean(axis=0) - 1).max() < 0.01  # columns share the phase in x
    assert np.abs(by_phase.mean(axis=1) - 1).max() < 0.01


def test_core_and_wings_have_the_true_shape() -> None:
    truth = make_truth(2.2, n=220, seed=12, vary=0.0)
    model = build(truth.data)
    found, expected = (psf.stamp(256, 256, 25).astype(float) for psf in (model, truth.psf))
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(found - expected).max() < 0.02 * expected.max()
    r = np.hypot(*(np.mgrid[:25, :25] - 12))
    for inner, outer in ((4, 7), (7, 12)):
        ring = (r >= inner) & (r < outer)
        assert found[ring].sum() == pytest.approx(expected[ring].sum(), rel=0.25, abs=0.0005)


def test_variation_over_the_image_is_followed() -> None:
    truth = make_truth(2.4, n=260, seed=13, vary=0.1)
    model = build(truth.data)
    assert model.degree >= 1
    places = np.array([40.0, 470.0]), np.array([256.0, 256.0])
    assert model.widths(*places) == pytest.approx(truth.psf.widths(*places), rel=0.025)


def test_galaxies_blends_and_cosmic_rays_stay_out() -> None:
    truth = make_truth(2.2, n=120, seed=14, vary=0.0)
    rng = np.random.default_rng(3)
    x, y = rng.uniform(20, 490, (2, 60))
    galaxies = paint(SHAPE, x, y, np.exp(rng.uniform(7.5, 10, 60)), gaussian_psf(4.0, SHAPE), 41)
    pairs = rng.uniform(20, 490, (2, 20))
    blends = sum(paint(SHAPE, pairs[0] + dx, pairs[1], np.full(20, 8000.0), truth.psf, 31) for dx in (0, 2.6))
    data = (truth.data + add_noise(galaxies + blends, 0, GAIN, 0, 5)).astype(np.float32)
    rows, columns = rng.integers(20, 490, (2, 40))
    data[rows, columns] += 4000
    model = build(data)
    assert model.fwhm == pytest.approx(truth.psf.fwhm, rel=0.025)
    assert phase_ratios(model, truth.psf).mean() == pytest.approx(1, abs=0.01)


def test_saturated_and_flagged_stars_stay_out() -> None:
    truth = make_truth(2.2, n=160, seed=15, flux=(2000.0, 60_000.0), vary=0.0)
    peak = 0.6 * float(truth.data.max())
    clipped, mask = np.minimum(truth.data, peak), truth.mask.copy()
    model = build(clipped, mask, saturate=peak)
    assert phase_ratios(model, truth.psf).mean() == pytest.approx(1, abs=0.006)
    mask[:, 250:] = int(Mask.NOISY)
    background = estimate_background(truth.data, truth.mask)
    half = build_psf(truth.data, background, truth.detections_with(mask), mask, GAIN, READNOISE, SATURATE)
    whole = build(truth.data)
    assert half.n_stars < 0.7 * whole.n_stars


def test_a_sharp_crowd_of_bright_stars_settles() -> None:
    """Where photons limit no star and the PSF varies, the core was 10 % too wide and fluxes 3 % too low."""
    truth = PsfField(
        SHAPE, (1.407, -0.043, 0.098, 0.044, -0.130, 0.133), (0.003, 0.007, 0.001, -0.001, 0.025, -0.016),
        (0.030, 0.010, -0.021, 0.001, -0.008, -0.008), (-0.037, 0.009, 0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip
    rng = np.random.default_rng(2)
    rows, columns = (g.ravel() for g in np.meshgrid(np.arange(20.0, 500, 30), np.arange(20.0, 500, 30)))
    bright = rng.uniform(90_000, 180_000, rows.size)
    x, y = (np.append(g + rng.uniform(-4, 4, g.size), rng.uniform(0, 511, 3000)) for g in (rows, columns))
    flux = np.append(bright, 50 + 50 * rng.pareto(1.0, 3000).clip(0, 200))
    size, image = 41, np.zeros((SHAPE[0] + 40, SHAPE[1] + 40))
    for cx, cy, light in zip(
        np.rint(x).astype(int), np.rint(y).astype(int), truth.stamps(x, y, size) * flux[:, None, None], strict=True
    ):
        image[cy : cy + size, cx : cx + size] += light
    model = build(add_noise(image[20:-20, 20:-20], SKY, GAIN, READNOISE, 2))
    gx, gy = (g.ravel() for g in np.meshgrid([60.0, 256.0, 450.0], [60.0, 256.0, 450.0]))
    bias = []
    for phase in (0.0, 0.25, 0.49):
        star, found = (psf.stamps(gx + phase, gy + phase, 25).astype(float) for psf in (truth, model))
        bias.append(float(((star * found).sum(axis=(1, 2)) / (found**2).sum(axis=(1, 2))).mean()) - 1)
    assert abs(np.mean(bias)) < 0.005
    assert max(np.abs(bias)) < 0.008


@pytest.mark.parametrize("fwhm", [1.7, 2.6])
def test_a_dozen_stars_suffice(fwhm: float) -> None:
    truth = make_truth(fwhm, n=16, seed=16, flux=(5000.0, 50_000.0), vary=0.0)
    model = build(truth.data)
    assert model.degree == 0
    assert 10 <= model.n_stars <= 16
    assert model.fwhm == pytest.approx(truth.psf.fwhm, rel=0.03)
    ratio = phase_ratios(model, truth.psf)
    assert abs(ratio.mean() - 1) < 0.012
    assert ratio.std() < 0.006


def test_too_few_stars_is_a_clear_error() -> None:
    truth = make_truth(2.2, n=8, seed=17, flux=(5000.0, 50_000.0))
    with pytest.raises(PhotometryError, match="needs 10") as caught:
        build(truth.data)
    assert caught.value.context["n_stars"] < 10


def test_no_detections_is_a_clear_error() -> None:
    data = add_noise(np.zeros(SHAPE), SKY, GAIN, READNOISE, 1)
    background = estimate_background(data, np.zeros(SHAPE, np.uint16))
    truth = make_truth(2.2, n=30, seed=18)
    with pytest.raises(PhotometryError, match="0 usable stars"):
        build_psf(data, background, truth.detections[:0], truth.mask, GAIN, READNOISE, SATURATE)


def test_same_input_same_bytes() -> None:
    truth = make_truth(2.2, n=120, seed=19)
    assert build(truth.data).basis.tobytes() == build(truth.data).basis.tobytes()


def test_unknown_saturation_is_no_limit() -> None:
    truth = make_truth(2.2, n=60, seed=20)
    assert build(truth.data, saturate=float("nan")).n_stars >= 10


def test_painted_truth_is_normalised() -> None:
    assert true_psf(2.2, SHAPE).stamp(100, 100, 25).sum() == pytest.approx(1, abs=1e-5)


def test_the_model_knows_its_own_flux_error() -> None:
    """More stars, smaller error; and what it says is what fluxes with the model really are off by."""
    off, said = [], []
    for seed in (61, 62, 63, 64):
        truth = make_truth(2.2, (420, 420), n=28, seed=seed, flux=(1500.0, 8000.0), vary=0.0)
        model = build_psf(truth.data, truth.background, truth.detections, truth.mask, GAIN, READNOISE, SATURATE)
        stamp, true = model.stamp(210, 210).astype(float), truth.psf.stamp(210, 210).astype(float)
        off.append((true * stamp).sum() / (stamp**2).sum() - 1)
        said.append(model.flux_error)
    assert (np.array(said) > 0).all()
    assert np.sqrt(np.mean(np.square(off))) < 3 * np.mean(said)
    rich = make_truth(2.2, (640, 640), n=300, seed=65, flux=(1500.0, 40_000.0), vary=0.0)
    args = rich.data, rich.background, rich.detections, rich.mask
    assert build_psf(*args, GAIN, READNOISE, SATURATE).flux_error < 0.5 * np.mean(said)


def test_the_error_is_larger_where_no_star_was() -> None:
    """Stars on the left only: on the right the model is a guess, and says so."""
    truth = make_truth(2.2, (420, 420), n=160, seed=67, flux=(3000.0, 20_000.0))
    left = truth.detections[truth.detections["x"] < 210]
    model = build_psf(truth.data, truth.background, left, truth.mask, GAIN, READNOISE, SATURATE)
    assert model.degree > 0
    near, far = model.flux_error_at([60, 415], [210, 210])
    assert far > 2 * near
    axis = np.linspace(3, 416, 60)
    everywhere = model.flux_error_at(*(g.ravel() for g in np.meshgrid(axis, axis)))
    assert np.sqrt((everywhere**2).mean()) == pytest.approx(model.flux_error, rel=0.1)


def test_the_documented_recipe_gives_the_same_stamp(tmp_path: Path) -> None:
    """docs/psf.md's reader, which needs nothing of ours, against the model."""
    page = (Path(__file__).parents[2] / "docs" / "psf.md").read_text()
    recipe = page.split("```python")[2].split("```")[0]
    names: dict[str, Any] = {}
    exec(recipe, names)
    psf = make_truth(2.2, (300, 260), n=10, seed=66).psf
    path = tmp_path / "psfcat.fits"
    path.write_bytes(fitsio.primary({}) + psf_model(psf))
    assert names["psf_stamp"](path, 40.0, 250.0) == pytest.approx(psf.stamp(40, 250), abs=1e-6)
