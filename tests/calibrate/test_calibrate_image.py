"""Calibration judged by the truth that the raw frames were made from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from rawframes import GAIN, JD, READNOISE, Detector

from stream.calibrate import (
    build_bias,
    build_flat,
    calibrate,
    linearity_coefficients,
    overscan_level,
    saturated_fraction,
    saturation_infobits,
)
from stream.calibrate.linearity import linearise, linearised
from stream.core.errors import CalibrationError
from stream.core.flags import Info, Mask
from stream.core.records import CalibrationSet, RawQuadrant

SKY = 800.0


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


@pytest.fixture(scope="module")
def frames(detector: Detector) -> CalibrationSet:
    bias = build_bias([detector.raw(0.0, 100 + i, "bias", number=i) for i in range(9)])
    flat = build_flat([detector.raw(20_000.0, 200 + i, "flat", number=i) for i in range(7)], bias)
    return CalibrationSet(bias, flat)


def test_sky_and_noise_come_back(detector: Detector, frames: CalibrationSet) -> None:
    image = calibrate(detector.raw(SKY, 1), frames)
    residual = image.data - SKY
    expected = np.sqrt(SKY / GAIN / detector.flat + (READNOISE / GAIN / detector.flat) ** 2)
    assert image.data.dtype == np.float32
    assert image.mask.dtype == np.uint16
    assert abs(residual.mean()) < 0.1
    assert 0.98 < (residual / expected).std() < 1.03
    # Structure of the flat and bias is gone: block means scatter as their noise allows.
    blocks = residual.reshape(16, 32, 16, 32).mean(axis=(1, 3))
    assert blocks.std() < 1.5 * expected.mean() / 32
    assert image.notes == ()
    assert image.calids == (frames.bias.calid, frames.flat.calid)  # type: ignore[union-attr]
    assert np.count_nonzero(image.mask) < 20


def test_rows_keep_no_stripes(detector: Detector, frames: CalibrationSet) -> None:
    """A bias that drifts and jitters leaves rows as even as the jitter that no overscan can show."""
    image = calibrate(detector.raw(SKY, 2, drift=30.0, jitter=0.1), frames)
    rows = (image.data - SKY).mean(axis=1)
    pixel = np.sqrt(SKY / GAIN + (READNOISE / GAIN) ** 2)
    assert rows.std() < 1.25 * np.hypot(pixel / np.sqrt(512), 0.1)


def test_strong_jitter_is_followed_row_by_row(detector: Detector, frames: CalibrationSet) -> None:
    image = calibrate(detector.raw(SKY, 3, jitter=3.0), frames)
    pixel = np.sqrt(SKY / GAIN + (READNOISE / GAIN) ** 2)
    overscan_mean = READNOISE / GAIN / np.sqrt(10)
    assert (image.data - SKY).mean(axis=1).std() < 1.3 * np.hypot(pixel / np.sqrt(512), overscan_mean)


@pytest.mark.parametrize("level", [2_000.0, 30_000.0, 50_000.0])
def test_bright_light_is_linear(detector: Detector, frames: CalibrationSet, level: float) -> None:
    image = calibrate(detector.raw(level, 4), frames)
    assert np.median(image.data) == pytest.approx(level, rel=3e-4)
    # Not trivially so: the amplifier bends by more than that.
    a, b = linearity_coefficients(3, 2, JD)
    if level >= 30_000:
        assert abs(linearised(level, a, b) / level - 1) > 1e-3


@pytest.mark.parametrize("missing", ["bias", "flat", "both"])
def test_without_frames_there_is_still_an_image(detector: Detector, frames: CalibrationSet, missing: str) -> None:
    given = CalibrationSet(
        None if missing in ("bias", "both") else frames.bias, None if missing in ("flat", "both") else frames.flat
    )
    image = calibrate(detector.raw(SKY, 1), given)
    assert image.notes == {"bias": ("no_bias",), "flat": ("no_flat",), "both": ("no_bias", "no_flat")}[missing]
    assert np.median(image.data) == pytest.approx(SKY, abs=10)
    assert image.overscan_level == pytest.approx(1000, abs=8)


def test_saturation_bleeds_and_is_grown(detector: Detector, frames: CalibrationSet) -> None:
    hits = np.zeros(detector.shape)
    hits[100:140, 200] = 80_000.0
    hits[0, 0] = hits[511, 511] = 80_000.0
    image = calibrate(detector.raw(SKY, 5, hits=hits), frames)
    flagged = (image.mask & Mask.SATURATED) > 0
    expected = np.zeros(detector.shape, bool)
    expected[99:141, 199:202] = expected[98:142, 200] = True
    expected[:2, :2] = expected[:3, 0] = expected[-2:, -2:] = expected[-3:, -1] = True
    np.testing.assert_array_equal(flagged, expected)
    assert saturated_fraction(image.mask) == pytest.approx(expected.mean())
    assert saturation_infobits(image.mask) == 0
    assert not np.any(image.mask[flagged] & (Mask.SPIKE | Mask.COSMIC_RAY))
    # Where a pixel at the raw ceiling lands in the image's own DN.
    assert image.saturate == pytest.approx(linearised(60_000 - 1000, *linearity_coefficients(3, 2, JD)), abs=20)


def test_mostly_saturated_is_told_in_the_infobits(detector: Detector, frames: CalibrationSet) -> None:
    light = np.full(detector.shape, SKY)
    light[:300] = 90_000.0
    image = calibrate(detector.raw(light, 6), frames)
    assert saturation_infobits(image.mask) == Info.SATURATION


def test_defects_of_the_frames_reach_the_mask(detector: Detector, frames: CalibrationSet) -> None:
    assert frames.flat is not None
    assert frames.bias is not None
    badpix, data = frames.flat.badpix.copy(), frames.flat.data.copy()
    badpix[10, 20] |= Mask.DEAD
    badpix[11, 20] |= Mask.LOW_RESPONSE
    data[10, 20], data[50, 60], data[51, 60] = 0.0, np.nan, 0.0
    noisy = frames.bias.badpix.copy()
    noisy[12, 20] |= Mask.NOISY
    given = CalibrationSet(replace(frames.bias, badpix=noisy), replace(frames.flat, data=data, badpix=badpix))
    image = calibrate(detector.raw(SKY, 1), given)
    assert image.mask[11, 20] == Mask.LOW_RESPONSE
    assert image.mask[12, 20] == Mask.NOISY
    assert image.mask[10, 20] == Mask.DEAD | Mask.NAN
    assert image.mask[50, 60] == image.mask[51, 60] == Mask.NAN
    np.testing.assert_array_equal(np.isnan(image.data), (image.mask & Mask.NAN) > 0)


def test_same_input_same_bytes_and_inputs_untouched(detector: Detector, frames: CalibrationSet) -> None:
    raw = detector.raw(SKY, 7)
    before = raw.image.tobytes(), raw.overscan.tobytes()
    first, second = calibrate(raw, frames), calibrate(raw, frames)
    assert first.data.tobytes() == second.data.tobytes()
    assert first.mask.tobytes() == second.mask.tobytes()
    assert (raw.image.tobytes(), raw.overscan.tobytes()) == before


def changed(raw: RawQuadrant, **changes: object) -> RawQuadrant:
    return replace(raw, **changes)  # type: ignore[arg-type]


def test_hopeless_quadrants_are_refused_with_figures(detector: Detector, frames: CalibrationSet) -> None:
    raw = detector.raw(SKY, 1)
    nothing = CalibrationSet()
    with pytest.raises(CalibrationError, match="every pixel is 1000 DN") as caught:
        calibrate(changed(raw, image=np.full_like(raw.image, 1000)), frames)
    assert caught.value.context["value"] == 1000
    assert caught.value.context["rid"] == raw.quadrant.rid
    with pytest.raises(CalibrationError, match="saturated") as caught:
        calibrate(changed(raw, image=np.uint16(65535) - raw.image % 2), nothing)
    assert caught.value.context["saturated"] > 0.99
    assert frames.flat is not None
    empty = replace(frames.flat, data=np.full_like(frames.flat.data, np.nan))
    with pytest.raises(CalibrationError, match="have a value"):
        calibrate(raw, CalibrationSet(frames.bias, empty))
    with pytest.raises(CalibrationError, match="do not belong together"):
        calibrate(changed(raw, overscan=raw.overscan[:-1]), nothing)
    with pytest.raises(CalibrationError, match="do not belong together"):
        calibrate(changed(raw, image=raw.image[:0], overscan=raw.overscan[:0]), nothing)


@pytest.mark.parametrize("change", [{"rcid": 5}, {"fid": 1}, {"data": np.ones((3, 3), np.float32)}])
def test_a_frame_of_another_channel_is_refused(detector: Detector, frames: CalibrationSet, change: dict) -> None:
    assert frames.flat is not None
    with pytest.raises(CalibrationError, match="is not for channel"):
        calibrate(detector.raw(SKY, 1), CalibrationSet(frames.bias, replace(frames.flat, **change)))


# ---- overscan and linearity alone ----------------------------------------------------------------------


def test_overscan_ignores_trailed_charge_and_bled_rows() -> None:
    rng = np.random.default_rng(3)
    truth = 1000 + 20 * np.sin(np.arange(600) / 150)
    overscan = truth[:, None] + rng.normal(0, 1.6, (600, 30))
    overscan[:, :12] += 300 * np.exp(-np.arange(12) / 2)
    overscan[200:206] += 5000  # a star bled through
    overscan[300, 25] += 4000
    level = overscan_level(np.rint(overscan).astype(np.uint16))
    assert np.abs(level.rows - truth).max() < 0.5
    assert np.std(level.rows - truth) < 0.2  # a row's ten pixels alone give 0.5
    assert level.noise == pytest.approx(np.hypot(1.6, 1 / np.sqrt(12)), rel=0.03)
    assert level.level == pytest.approx(np.median(truth), abs=0.3)


@pytest.mark.parametrize(("ny", "columns"), [(8, 30), (40, 30), (512, 10), (1, 3)])
def test_overscan_of_any_size(ny: int, columns: int) -> None:
    rng = np.random.default_rng(ny)
    level = overscan_level(np.rint(rng.normal(700, 1.6, (ny, columns))).astype(np.uint16))
    assert level.rows.shape == (ny,)
    assert np.abs(level.rows - 700).max() < 3.5


def test_an_overscan_without_noise_is_taken_as_it_is() -> None:
    assert np.all(overscan_level(np.full((300, 30), 812, np.uint16)).rows == np.float32(812))


def test_linearity_follows_epochs_and_amplifiers(real_data: Path) -> None:
    names = {"201803": 2458200.5, "201910": 2458900.5, "202004": 2459100.5}
    for epoch, jd in names.items():
        lines = (real_data / "instrument" / f"linearity_coeffs_{epoch}.txt").read_text().splitlines()
        rows = [line.split() for line in lines if line.strip() and line.split()[0].isdigit()]
        ours = sorted(linearity_coefficients(ccd, qid, jd) for ccd in range(1, 17) for qid in range(1, 5))
        theirs = sorted((float(row[-2]), float(row[-1])) for row in rows)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    # The switch is at the published instant, and what is older takes the first table.
    before, after = 58779 + 2400000.5 - 1e-3, 58779 + 2400000.5 + 1e-3
    assert linearity_coefficients(4, 1, before) == linearity_coefficients(4, 1, 2450000.5)
    assert linearity_coefficients(4, 1, before) != linearity_coefficients(4, 1, after)


def test_linearise_is_the_formula() -> None:
    x = np.linspace(0, 60_000, 50, dtype=np.float32).reshape(5, 10)
    y = x.copy()
    linearise(y, -1.2e-11, 7e-7, np.empty_like(x))
    np.testing.assert_allclose(y, [[linearised(float(v), -1.2e-11, 7e-7) for v in row] for row in x], rtol=1e-6)
