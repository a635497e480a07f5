"""Detection: completeness, purity, places, flags, and images that are no star fields."""

from __future__ import annotations

import numpy as np
import pytest
from photometry_truth import GAIN, READNOISE, SKY, Truth, make_truth
from scipy.spatial import cKDTree
from synthetic import add_noise

from stream.core.errors import PhotometryError
from stream.core.flags import Mask
from stream.core.records import DETECTION_DTYPE, Background
from stream.photometry import detect, estimate_background


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make_truth(2.2, n=160, flux=(150.0, 40_000.0))


def true_snr(truth: Truth) -> np.ndarray:
    area = 1 / (truth.psf.stamp(256, 256, 25).astype(float) ** 2).sum()
    return truth.flux / np.sqrt(area * (SKY / GAIN + (READNOISE / GAIN) ** 2))


def test_complete_and_pure(truth: Truth) -> None:
    found = truth.detections
    stars = cKDTree(np.stack([truth.x, truth.y], axis=1))
    distance, _ = stars.query(np.stack([found["x"], found["y"]], axis=1))
    assert (distance > 2).sum() <= 2  # noise peaks beyond 4.5 sigma: 0.6 expected in this image
    alone = np.array([len(near) == 1 for near in stars.query_ball_point(stars.data, 8.0)])
    back, _ = cKDTree(np.stack([found["x"], found["y"]], axis=1)).query(stars.data)
    snr = true_snr(truth)
    assert (back[alone & (snr > 8)] < 1.5).all()
    assert (back[alone & (snr > 4.5) & (snr < 8)] < 1.5).mean() > 0.7


def test_places_of_bright_stars(truth: Truth) -> None:
    found = truth.detections[truth.detections["snr"] > 100]
    stars = cKDTree(np.stack([truth.x, truth.y], axis=1))
    alone = np.array([len(near) == 1 for near in stars.query_ball_point(np.stack([found["x"], found["y"]], 1), 10)])
    _, star = stars.query(np.stack([found["x"], found["y"]], axis=1)[alone])
    assert alone.sum() > 20
    assert np.abs(found["x"][alone] - truth.x[star]).max() < 0.06
    assert np.abs(found["y"][alone] - truth.y[star]).max() < 0.06


def test_order_type_and_repeatability(truth: Truth) -> None:
    found = truth.detections
    assert found.dtype == DETECTION_DTYPE
    assert (np.diff(found["y"]) >= 0).all()
    again = detect(truth.data, truth.background, truth.mask)
    assert again.tobytes() == found.tobytes()


def test_flags_are_the_or_of_the_box(truth: Truth) -> None:
    star = truth.detections[np.argmax(truth.detections["flux"])]
    x, y = round(float(star["x"])), round(float(star["y"]))
    mask = truth.mask.copy()
    mask[y + 2, x + 2] = int(Mask.GHOST)
    mask[y - 2, x] = int(Mask.LOW_RESPONSE)
    mask[y, x + 3] = int(Mask.HALO)  # outside
    found = detect(truth.data, truth.background, mask)
    nearest = found[np.argmin(np.hypot(found["x"] - x, found["y"] - y))]
    assert nearest["flags"] == int(Mask.GHOST | Mask.LOW_RESPONSE)


def test_masked_defects_are_not_detected() -> None:
    data = add_noise(np.zeros((256, 256)), SKY, GAIN, READNOISE, 3)
    mask = np.zeros(data.shape, np.uint16)
    data[50, 60] = 30_000
    data[100, 100:140] = np.nan
    data[:, 200] += 500
    mask[50, 60] = int(Mask.COSMIC_RAY)
    mask[:, 200] = int(Mask.NOISY)
    found = detect(data, estimate_background(data, mask), mask)
    assert len(found) <= 1


def test_empty_sky_gives_an_empty_table() -> None:
    data = np.full((128, 128), 100, np.float32)
    background = Background(data.copy(), np.full_like(data, 5), 100.0, 5.0)
    found = detect(data, background, np.zeros(data.shape, np.uint16))
    assert len(found) == 0
    assert found.dtype == DETECTION_DTYPE


def test_garbage_is_an_error_not_a_crash() -> None:
    # Alternating rows far above a claimed noise: more active pixels than any star field has.
    data = np.zeros((2400, 2400), np.float32)
    data[:, ::2] = np.random.default_rng(0).uniform(500, 1000, (2400, 1200))
    background = Background(np.zeros_like(data), np.ones_like(data), 0.0, 1.0)
    with pytest.raises(PhotometryError, match="no star field"):
        detect(data, background, np.zeros(data.shape, np.uint16))


def test_wrong_input_is_refused(truth: Truth) -> None:
    with pytest.raises(PhotometryError, match="equal"):
        detect(truth.data[:-1], truth.background, truth.mask)
    silent = Background(truth.background.level, truth.background.rms * 0, 0.0, 0.0)
    with pytest.raises(PhotometryError, match="noise above 0"):
        detect(truth.data, silent, truth.mask)
