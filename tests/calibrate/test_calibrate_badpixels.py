"""Hot, noisy, dead and low pixels of many and of few frames, against the pixels that were spoilt."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from rawframes import GAIN, Detector

from stream.calibrate.badpixels import noisy_limit
from stream.calibrate.combine import trimmed_scatter
from stream.calibrate.frames import build_bias, build_night
from stream.core.flags import Mask
from stream.core.records import RawQuadrant

SHAPE = (384, 448)
SIZE = SHAPE[0] * SHAPE[1]
COLUMN, FIRST_ROW = 333, 100


class Spoilt:
    """A detector with defects of every kind at known pixels."""

    def __init__(self) -> None:
        rng = np.random.default_rng(77)
        chosen = rng.choice(SIZE, 400, replace=False)
        self.hot, self.noisy, self.dead, self.low = np.split(chosen, 4)
        self.leak = np.exp(rng.uniform(np.log(15.0), np.log(2000.0), 100))  # e-/s
        self.jump = np.exp(rng.uniform(np.log(40.0), np.log(300.0), 100))  # e-
        self.detector = Detector(SHAPE, seed=9)
        flat = self.detector.flat.reshape(-1)
        flat[self.dead] = rng.uniform(0, 0.05, 100)
        flat[self.low] *= rng.uniform(0.3, 0.85, 100)
        self.column = np.arange(FIRST_ROW, SHAPE[0]) * SHAPE[1] + COLUMN

    def raw(self, imgtype: str, light: float, seconds: float, number: int) -> RawQuadrant:
        rng = np.random.default_rng([78, number])
        extra = np.zeros(SIZE)
        extra[self.hot] += self.leak * (seconds + 4)
        extra[self.column] += 40.0 * (seconds + 4)
        extra[self.noisy] += self.jump * (rng.integers(0, 2, 100) * 2 - 1.0)
        extra = rng.poisson(np.maximum(extra, 0)) + np.minimum(extra, 0)
        hits = rng.integers(0, SIZE, 3 if seconds else 1)  # cosmic rays
        extra[hits] += 3000.0
        raw = self.detector.raw(light, number, imgtype, hits=(extra / GAIN).reshape(SHAPE), number=number)
        exposure = replace(raw.quadrant.exposure, exptime=seconds)
        return replace(raw, quadrant=replace(raw.quadrant, exposure=exposure))


@pytest.fixture(scope="module")
def spoilt() -> Spoilt:
    return Spoilt()


@pytest.mark.parametrize(("n_bias", "n_dark", "n_flat"), [(9, 5, 7), (5, 3, 5), (3, 3, 3)])
def test_every_kind_is_found_and_hardly_anything_else(spoilt: Spoilt, n_bias: int, n_dark: int, n_flat: int) -> None:
    raws = [spoilt.raw("bias", 0.0, 0.0, 100 + i) for i in range(n_bias)]
    raws += [spoilt.raw("dark", 0.0, 30.0, 200 + i) for i in range(n_dark)]
    raws += [spoilt.raw("flat", 20_000.0, 10.0, 300 + i) for i in range(n_flat)]
    frames, (mask,), failures = build_night(raws)
    assert failures == {}
    assert [frame.kind for frame in frames] == ["bias", "hifreqflat"]
    bits = mask.mask.reshape(-1)
    for pixels, bit in ((spoilt.hot, Mask.NOISY), (spoilt.column, Mask.NOISY), (spoilt.noisy, Mask.NOISY),
                        (spoilt.dead, Mask.DEAD), (spoilt.low, Mask.LOW_RESPONSE)):  # fmt: skip
        assert np.mean((bits[pixels] & np.uint16(bit)) != 0) >= 0.98
    known = np.zeros(SIZE, bool)
    for pixels in (spoilt.hot, spoilt.noisy, spoilt.dead, spoilt.low, spoilt.column):
        known[pixels] = True
    assert np.count_nonzero((bits != 0) & ~known) <= 1e-4 * SIZE
    assert (mask.calid[-1], mask.fid, mask.n_frames) == ("1", 2, n_bias + n_dark + n_flat)


def test_what_fails_is_told_and_the_rest_goes_on(spoilt: Spoilt) -> None:
    raws = [spoilt.raw("bias", 0.0, 0.0, 100 + i) for i in range(3)]
    raws += [spoilt.raw("flat", 900.0, 10.0, 300 + i) for i in range(3)]
    frames, (mask,), failures = build_night(raws)
    assert [frame.kind for frame in frames] == ["bias"]
    assert "level" in failures["flat r"]
    assert (mask.fid, mask.calid[-3:]) == (0, "001")


def test_the_change_against_the_last_night_is_told() -> None:
    detector = Detector(SHAPE, seed=3)
    last = build_bias([detector.raw(0.0, 10 + i, "bias", number=i) for i in range(5)])
    assert "change" not in last.qa
    same = build_bias([detector.raw(0.0, 30 + i, "bias", number=i) for i in range(5)], last)
    assert same.qa["previous"] == last.calid
    assert same.qa["change"] < 0.05
    detector.bias[:192, :224] += 1.5  # a quarter of it rose
    other = build_bias([detector.raw(0.0, 50 + i, "bias", number=i) for i in range(5)], last)
    assert other.qa["change"] == pytest.approx(1.5 * np.sqrt(0.25), rel=0.1)
    assert other.qa["change_max"] == pytest.approx(1.5, abs=0.2)


@pytest.mark.parametrize("numbers", [(3,), (5, 3), (10,)])
def test_good_pixels_are_called_noisy_as_rarely_as_promised(numbers: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    power = np.zeros(500_000, np.float32)
    for n in numbers:
        values = rng.standard_normal((n, len(power)), dtype=np.float32)
        scatter = trimmed_scatter(values - np.median(values, axis=0))
        power += scatter**2 / np.mean(scatter**2) * (n - 1)
    assert np.count_nonzero(power > noisy_limit(numbers)) <= 40  # 10 expected
