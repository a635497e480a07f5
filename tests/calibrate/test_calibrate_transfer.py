"""Gain, read noise and saturation from frames whose amplifier is known."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))
from rawframes import GAIN, READNOISE, Detector

from stream.calibrate.linearity import linearity_coefficients
from stream.calibrate.transfer import build_instrument, disagreements, measure_channel, raw_histogram, saturation_level
from stream.core.errors import CalibrationError
from stream.core.records import ChannelFacts, RawQuadrant

SHAPE = (512, 640)


@pytest.fixture(scope="module")
def frames() -> tuple[list[RawQuadrant], list[RawQuadrant]]:
    detector = Detector(SHAPE, seed=7)
    hits = np.zeros(SHAPE)
    hits[100:103, 50:90] = 2000.0
    biases = [detector.raw(0.0, 10 + i, "bias", number=i, hits=hits * (i == 1)) for i in range(4)]
    flats = [
        detector.raw(level, 30 + i, "flat", number=i, hits=hits * (i == 0))
        for i, level in enumerate((18_000.0, 21_000.0, 20_000.0, 20_500.0))
    ]
    return flats, biases


def test_gain_and_read_noise_of_a_nights_frames(frames: tuple[list[RawQuadrant], list[RawQuadrant]]) -> None:
    facts = measure_channel(*frames)
    assert facts.gain == pytest.approx(GAIN, rel=0.01)
    assert facts.readnoise == pytest.approx(READNOISE, rel=0.03)
    assert abs(facts.gain - GAIN) < 4 * facts.gain_unc < 0.04 * GAIN
    assert np.isnan(facts.saturate)


def test_nonlinearity_would_show_in_the_gain(frames: tuple[list[RawQuadrant], list[RawQuadrant]]) -> None:
    """The same frames of an amplifier of another epoch's curve: the slope enters, so linearising is no luxury."""
    flats, biases = frames
    facts = measure_channel(flats, biases)
    raw = flats[0]
    wrong = [replace(f, quadrant=replace(f.quadrant, exposure=replace(f.quadrant.exposure, ccdid=10))) for f in flats]
    assert raw.quadrant.exposure.ccdid == 3
    with pytest.raises(CalibrationError, match="sort them"):
        measure_channel(wrong, biases)
    assert measure_channel(wrong, []).gain != pytest.approx(facts.gain, rel=2e-4)


def test_charge_shared_between_neighbours_is_counted() -> None:
    """Brighter-fatter smooths the noise: without the covariances the gain would be 6 % high."""
    rng = np.random.default_rng(3)
    detector = Detector(SHAPE, seed=7)
    flats = []
    for i in range(2):
        raw = detector.raw(20_000.0, 50 + i, "flat", number=i)
        electrons = rng.poisson(20_000.0 * GAIN, SHAPE).astype(float)
        kernel = np.array([[0, 1, 0], [1, 96, 1], [0, 1, 0]]) / 100
        smooth = ndimage.convolve(electrons - 20_000 * GAIN, kernel) / GAIN + 20_000
        smooth = detector._bend(smooth, *linearity_coefficients(3, 2, raw.quadrant.exposure.jd))
        flats.append(replace(raw, image=np.rint(smooth + 1000).astype(np.uint16),
                             overscan=np.full((SHAPE[0], 30), 1000, np.uint16)))  # fmt: skip
    assert measure_channel(flats, []).gain == pytest.approx(GAIN, rel=0.015)


def test_few_frames_leave_figures_unknown(frames: tuple[list[RawQuadrant], list[RawQuadrant]]) -> None:
    flats, biases = frames
    nothing = measure_channel(flats[:1], biases[:1])
    assert np.isnan([nothing.gain, nothing.readnoise, nothing.gain_unc]).all()
    unequal = [flats[0], Detector(SHAPE, seed=7).raw(40_000.0, 90, "flat", number=9)]
    assert np.isnan(measure_channel(unequal, []).gain)


def test_headers_are_checked_not_believed() -> None:
    facts = ChannelFacts(gain=6.5, gain_unc=0.01, readnoise=10.1, readnoise_unc=0.02)
    assert disagreements(facts, 6.45, 10.3) == []
    (found,) = disagreements(facts, 6.2, 10.3)
    assert "GAIN 6.2 in the header, 6.500" in found
    assert disagreements(ChannelFacts(), 6.2, 10.0) == []


def pile(full: float, n: int, seed: int) -> RawQuadrant:
    """Stars up to the full well, of which ``n`` pixels pile up."""
    rng = np.random.default_rng(seed)
    detector = Detector(SHAPE, seed=7)
    raw = detector.raw(300.0, seed)
    image = raw.image.astype(float)
    flat = image.reshape(-1)
    flat[:4000] = 10 ** rng.uniform(3, np.log10(full), 4000)
    flat[5000 : 5000 + n] = full + rng.normal(0, 2.0, n)
    drift = np.array(raw.overscan[:, 20:].mean(axis=1) - 1000.0)
    image += drift[:, None]
    return replace(raw, image=np.clip(np.rint(image), 0, 65535).astype(np.uint16))


def test_saturation_is_where_values_pile_up() -> None:
    found = saturation_level([raw_histogram(pile(54_321.0, 400, seed)) for seed in range(3)])
    assert found is not None
    level, unc = found
    assert 54_321 - 40 < level < 54_321
    assert unc < 5
    assert saturation_level([raw_histogram(pile(54_321.0, 0, 5))]) is None
    assert saturation_level([]) is None


def test_one_record_of_a_ccd(frames: tuple[list[RawQuadrant], list[RawQuadrant]]) -> None:
    flats, _ = frames
    facts = ChannelFacts(gain=7.0, gain_unc=0.01)
    model = build_instrument([ChannelFacts(), facts, ChannelFacts(), ChannelFacts()], [], flats)
    assert (model.ccdid, model.n_frames, model.night) == (3, 4, flats[0].quadrant.exposure.night)
    assert np.isnan(model.crosstalk).all()
    assert list(model.qa["header_disagrees"]) == ["2"]
    assert model.qa["jd_end"] == max(raw.quadrant.exposure.jd for raw in flats)
