"""Bias and flat of a night against the structure the raw frames were made with."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from rawframes import GAIN, READNOISE, Detector

from stream.calibrate import build_bias, build_flat, calibrate
from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.records import CalibrationFrame, CalibrationSet, RawQuadrant

SHAPE = (256, 320)
STRIPES = (np.arange(SHAPE[0] * SHAPE[1]) % 13).astype(np.uint16).reshape(SHAPE)
READ_DN = float(np.hypot(READNOISE / GAIN, 1 / np.sqrt(12)))  # with the digit


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(SHAPE, seed=4)


def biases(detector: Detector, n: int = 9, **changes: object) -> list[RawQuadrant]:
    return [detector.raw(0.0, 100 + i, "bias", number=i, **changes) for i in range(n)]  # type: ignore[arg-type]


def flats(detector: Detector, levels: list[float], fid: int = 2) -> list[RawQuadrant]:
    return [detector.raw(level, 200 + i, "flat", number=i, fid=fid) for i, level in enumerate(levels)]


@pytest.fixture(scope="module")
def bias(detector: Detector) -> CalibrationFrame:
    return build_bias(biases(detector))


def test_bias_structure_and_its_uncertainty(detector: Detector, bias: CalibrationFrame) -> None:
    error = bias.data - detector.bias
    assert abs(error.mean()) < 0.1
    assert error.std() == pytest.approx(READ_DN / 3, rel=0.15)
    assert np.std(error / bias.unc) == pytest.approx(1.0, abs=0.12)
    assert bias.data.dtype == bias.unc.dtype == np.float32
    assert bias.badpix.dtype == np.uint16
    assert np.count_nonzero(bias.badpix) <= 5
    assert bias.qa["noise"] == pytest.approx(np.hypot(READ_DN, 0.3), rel=0.06)  # with the fixed pattern
    assert (bias.kind, bias.fid, bias.n_frames) == ("bias", 0, 9)


def test_identifiers_are_the_surveys(detector: Detector, bias: CalibrationFrame) -> None:
    exposure = detector.raw(0.0, 1, "bias").quadrant.exposure
    assert bias.calid == f"{exposure.nid}09002"  # ccd 3, q2 is channel 9; bias: filter 00, type 2
    flat = build_flat(flats(detector, [20_000.0] * 3, fid=3), bias)
    assert flat.calid == f"{exposure.nid}09034"
    assert (flat.night, flat.nid, flat.rcid, flat.fid) == (exposure.night, exposure.nid, 9, 3)


def test_flat_response_and_its_uncertainty(detector: Detector, bias: CalibrationFrame) -> None:
    flat = build_flat(flats(detector, [18_000.0, 20_000.0, 22_000.0, 25_000.0, 30_000.0]), bias)
    error = flat.data - detector.flat
    photon = 1 / np.sqrt(GAIN * (18 + 20 + 22 + 25 + 30) * 1e3)
    assert np.median(flat.data) == pytest.approx(1.0, abs=1e-6)
    assert abs(error.mean()) < 2e-4
    assert error.std() < 1.1 * photon
    assert np.std(error / flat.unc) == pytest.approx(1.0, abs=0.12)
    assert flat.qa["n_frames"] == 5
    assert flat.qa["gradient"] == pytest.approx(np.ptp([c.mean() for b in np.array_split(detector.flat, 8)
                                                        for c in np.array_split(b, 8, axis=1)]), abs=0.01)  # fmt: skip
    assert flat.qa["notes"] == []
    assert build_flat(flats(detector, [20_000.0] * 3), None).qa["notes"] == ["no_bias"]


def test_cosmic_rays_in_single_frames_leave_nothing(detector: Detector) -> None:
    rng = np.random.default_rng(8)
    raws, struck = [], np.zeros(SHAPE, bool)
    for i in range(7):
        hits = np.zeros(SHAPE)
        places = rng.integers(0, SHAPE[0], 200), rng.integers(0, SHAPE[1], 200)
        hits[places] = rng.uniform(50, 5000, 200)
        struck |= hits > 0
        raws.append(detector.raw(0.0, 300 + i, "bias", hits=hits, number=i))
    frame = build_bias(raws)
    error = frame.data - detector.bias
    assert np.abs(error[struck]).max() < 6 * READ_DN / np.sqrt(6)
    assert not frame.badpix[struck].any()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("level", lambda raw: replace(raw, image=raw.image + np.uint16(15))),
        ("light leak", lambda raw: replace(raw, image=raw.image + (np.arange(SHAPE[1]) // 20).astype(np.uint16))),
        ("constant", lambda raw: replace(raw, image=np.full_like(raw.image, 700))),
        ("noise", lambda raw: replace(raw, image=raw.image + STRIPES)),
    ],
)  # fmt: skip
def test_a_bad_bias_is_rejected_with_its_reason(detector: Detector, name: str, spoil) -> None:  # type: ignore[no-untyped-def]
    raws = biases(detector, 6)
    raws[2] = spoil(raws[2])
    frame = build_bias(raws)
    assert (frame.n_frames, frame.qa["n_rejected"]) == (5, 1)
    assert list(frame.qa["rejected"]) == [raws[2].quadrant.exposure.name]
    assert np.std(frame.data - detector.bias) == pytest.approx(READ_DN / np.sqrt(5), rel=0.15), name


def test_bad_flats_are_rejected(detector: Detector, bias: CalibrationFrame) -> None:
    raws = flats(detector, [20_000.0] * 5 + [900.0, 58_000.0])
    tilt = 1 + 0.1 * np.linspace(-1, 1, SHAPE[1])
    raws.append(detector.raw(20_000.0 * tilt * np.ones(SHAPE), 300, "flat", number=9))
    flat = build_flat(raws, bias)
    assert flat.n_frames == 5
    reasons = [flat.qa["rejected"][raw.quadrant.exposure.name] for raw in raws[5:]]
    assert "level" in reasons[0]
    assert "level" in reasons[1]
    assert "in a part" in reasons[2]


def test_bad_pixels_are_found_and_only_they(bias: CalibrationFrame) -> None:
    detector = Detector(SHAPE, seed=4)
    detector.flat[10, 10], detector.flat[20, 20:23], detector.flat[30, 30], detector.flat[40, 40] = 0.6, 0.1, 1.4, 0.0
    detector.flat[:, 200] *= 0.7
    flat = build_flat(flats(detector, [20_000.0] * 5), bias)
    expected = np.zeros(SHAPE, np.uint16)
    expected[:, 200] = expected[10, 10] = Mask.LOW_RESPONSE
    expected[20, 20:23] = expected[40, 40] = Mask.DEAD
    expected[30, 30] = Mask.HIGH_RESPONSE
    np.testing.assert_array_equal(flat.badpix, expected)
    assert np.isnan(flat.data[40, 40])
    assert flat.data[20, 21] == pytest.approx(0.1, rel=0.05)
    assert flat.qa["n_badpix"] == SHAPE[0] + 6
    # The low column is corrected, not only flagged.
    image = calibrate(detector.raw(3000.0, 6), CalibrationSet(bias, flat))
    assert np.median(image.data[:, 200]) == pytest.approx(3000, rel=0.01)
    assert image.mask[40, 40] & Mask.NAN


def test_noisy_and_hot_pixels_of_the_bias() -> None:
    detector = Detector(SHAPE, seed=4)
    detector.bias[50, 60] += 200.0  # hot
    rng = np.random.default_rng(3)
    raws = []
    for i in range(9):
        wander = np.zeros(SHAPE)
        wander[100, 100] = rng.normal(0, 20)  # telegraph noise
        clean = detector.bias
        detector.bias = clean + wander
        raws.append(detector.raw(0.0, 100 + i, "bias", number=i))
        detector.bias = clean
    frame = build_bias(raws)
    assert frame.badpix[50, 60] == Mask.NOISY
    assert frame.badpix[100, 100] == Mask.NOISY
    assert np.count_nonzero(frame.badpix) <= 5


def test_order_of_the_raw_frames_does_not_matter(detector: Detector) -> None:
    raws = biases(detector, 5)
    one, other = build_bias(raws), build_bias(raws[::-1])
    assert one.data.tobytes() == other.data.tobytes()
    assert one.qa == other.qa


def test_too_few_or_mixed_frames(detector: Detector, bias: CalibrationFrame) -> None:
    for raws in ([], biases(detector, 2)):
        with pytest.raises(CalibrationError, match="at least 3"):
            build_bias(raws)
    with pytest.raises(CalibrationError, match="sort them"):
        build_bias(biases(detector, 3) + flats(detector, [20_000.0]))
    with pytest.raises(CalibrationError, match="sort them"):
        build_flat(flats(detector, [20_000.0] * 3, 1) + flats(detector, [20_000.0] * 3, 2), bias)
    with pytest.raises(CalibrationError, match="sort them"):
        build_bias(biases(detector, 3) + biases(Detector(SHAPE, ccdid=5), 3))
    with pytest.raises(CalibrationError, match="is not for channel"):
        build_flat(flats(Detector(SHAPE, ccdid=5), [20_000.0] * 3), bias)
    with pytest.raises(CalibrationError, match="at least 3") as caught:
        build_flat(flats(detector, [900.0] * 4), bias)
    assert caught.value.context["n_good"] == 0
