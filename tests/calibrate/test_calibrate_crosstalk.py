"""Cross-talk put into four amplifiers, measured, and taken out at the read position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream.calibrate import calibrate
from stream.calibrate.crosstalk import crosstalk_of, flag_crosstalk, measure_crosstalk, sample_crosstalk
from stream.core.camera import read_order
from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.records import CalibrationSet, ChannelFacts, Exposure, InstrumentModel, Quadrant, RawQuadrant
from stream.ingest.aggressors import find_aggressor

SHAPE = (256, 320)
SIGMA = 6.0
FULL_WELL = 55_000.0
MATRIX = np.array([[0, -9, 5, 1], [7, 0, -4, 2], [-2, 5, 0, -7], [8, -3, 6, 0]]) * 1e-5


def exposure(number: int) -> Exposure:
    return Exposure(
        name=f"ztf_20200531{200000 + number:06d}_000402_zr_c03_o", imgtype="object", field=402, fid=2, ccdid=3,
        programid=1, jd=2459000.7 + number * 1e-3, jd_mid=2459000.7 + number * 1e-3, exptime=30.0, ra=10.0, dec=20.0,
    )  # fmt: skip


def stars(rng: np.random.Generator) -> np.ndarray:
    """Light over the sky in stored order: Gaussian stars of all magnitudes, a few saturated with a bleed trail."""
    ny, nx = SHAPE
    y, x = np.mgrid[0:ny, 0:nx]
    light = np.zeros(SHAPE)
    for peak in [*(10 ** rng.uniform(1.5, 4.6, 60)), 3e5, 1e6]:
        x0, y0 = rng.uniform(5, nx - 5), rng.uniform(40, ny - 40)
        light += peak * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / 1.2**2)
        if peak > 1e5:
            light[int(y0) - 30 : int(y0) + 30, int(x0)] += FULL_WELL
    return np.minimum(light, FULL_WELL)


def in_read_order(image: np.ndarray, qid: int) -> np.ndarray:
    flip_x, flip_y = read_order(qid)
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def light_of(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng([5, number])
    return [stars(rng) + 300.0 for _ in range(4)]


def put_in(number: int) -> list[np.ndarray]:
    """What cross-talk adds to each of the four quadrants beyond what the sky's own adds (DN, stored order)."""
    view = [in_read_order(image - 300.0, qid) for qid, image in enumerate(light_of(number), 1)]
    return [in_read_order(sum(MATRIX[to, one] * view[one] for one in range(4)), to + 1) for to in range(4)]


def packet(number: int, *, clean: bool = False) -> list[RawQuadrant]:
    """Four quadrants of one exposure that share ``MATRIX``; each its own stars, bias level and noise."""
    rng = np.random.default_rng([6, number])
    raws = []
    for qid, light, added in zip((1, 2, 3, 4), light_of(number), put_in(number), strict=True):
        level = 900.0 + 100 * qid
        image = light + (0.0 if clean else added) + rng.normal(level, SIGMA, SHAPE)
        overscan = rng.normal(level, 1.6, (SHAPE[0], 30))
        pixels = [np.clip(np.rint(part), 0, 65535).astype(np.uint16) for part in (image, overscan)]
        raws.append(RawQuadrant(Quadrant(exposure(number), qid), pixels[0], pixels[1], 6.2, 10.0, 65_000.0))
    return raws


def with_aggressors(raws: list[RawQuadrant]) -> list[RawQuadrant]:
    found = [find_aggressor(raw.image, raw.quadrant.qid) for raw in raws]
    return [replace(raw, aggressors=tuple(a for a in found if a.qid != raw.quadrant.qid)) for raw in raws]


def model(matrix: np.ndarray, unc: float = 1e-7) -> InstrumentModel:
    facts = (ChannelFacts(),) * 4
    return InstrumentModel(3, 1246, "20200531", facts, matrix, np.full((4, 4), unc), 20)


@pytest.fixture(scope="module")
def measured() -> tuple[np.ndarray, np.ndarray]:
    matrix, unc, qa = measure_crosstalk([sample_crosstalk(packet(number)) for number in range(12)])
    assert qa["n_exposures"] == 12
    return matrix, unc


def test_the_matrix_is_measured_with_sign_and_size(measured: tuple[np.ndarray, np.ndarray]) -> None:
    matrix, unc = measured
    pairs = ~np.eye(4, dtype=bool)
    assert np.all(np.diag(matrix) == 0)
    off = (matrix - MATRIX)[pairs] / unc[pairs]
    assert np.sqrt(np.mean(off**2)) < 1.6  # as uncertain as it says, and that is a twentieth of what there is
    assert np.abs(off).max() < 4
    assert np.sqrt(np.mean(unc[pairs] ** 2)) < 0.06 * np.sqrt(np.mean(MATRIX[pairs] ** 2))


def test_what_was_put_in_comes_out_at_saturated_and_bled_pixels_too(measured: tuple[np.ndarray, np.ndarray]) -> None:
    for raw, without, added in zip(with_aggressors(packet(99)), packet(99, clean=True), put_in(99), strict=True):
        corrected = calibrate(raw, CalibrationSet(instrument=model(measured[0])))
        truth = calibrate(without, CalibrationSet())
        hit = np.abs(added) > 1.0
        left = corrected.data - truth.data
        assert hit.sum() > 60
        # Single values differ by the digit; the mean over all spoilt pixels, signed as what was put in, must vanish.
        assert abs(np.mean(left[hit] * np.sign(added[hit]))) < 0.05 * np.mean(np.abs(added[hit]))
        assert np.abs(left[hit]).max() < 1.2
        assert "no_crosstalk" not in corrected.notes


def test_notes_say_what_was_not_corrected() -> None:
    (raw, *_) = with_aggressors(packet(1))
    assert "no_crosstalk" in calibrate(raw, CalibrationSet()).notes
    assert "no_aggressors" in calibrate(replace(raw, aggressors=()), CalibrationSet(instrument=model(MATRIX))).notes


def test_an_unmeasured_matrix_flags_what_may_be_spoilt_and_a_good_one_nothing() -> None:
    (raw, *_) = with_aggressors(packet(2))
    image = calibrate(raw, CalibrationSet())
    flagged = (image.mask & Mask.CROSSTALK) > 0
    strongest = np.zeros(SHAPE)
    for one in (crosstalk_of(raw, None),):
        assert not one.signal.any()
        strongest.reshape(-1)[one.index] = one.unc
    noise = np.sqrt(np.maximum(image.data, 0) / 6.2 + (10 / 6.2) ** 2)
    np.testing.assert_array_equal(flagged, strongest > 0.5 * noise)
    assert flagged.sum() > 60
    mask = np.zeros(SHAPE, np.uint16)
    assert flag_crosstalk(mask, image.data, crosstalk_of(raw, model(MATRIX)), 6.2, 10.0) == 0
    pairs = MATRIX.copy()
    pairs[0, 1] = np.nan  # one pair unknown: its victims are flagged, nothing is subtracted for it
    found = crosstalk_of(raw, model(pairs))
    assert flag_crosstalk(mask, image.data, found, 6.2, 10.0) > 0
    only = replace(raw, aggressors=tuple(one for one in raw.aggressors if one.qid == 2))
    assert not crosstalk_of(only, model(pairs)).signal.any()


def test_few_exposures_are_refused_and_a_missing_quadrant_leaves_its_pairs_unknown() -> None:
    samples = [sample_crosstalk(packet(number)[:3]) for number in range(4)]
    with pytest.raises(CalibrationError, match="at least 3"):
        measure_crosstalk(samples[:2])
    matrix, unc, _ = measure_crosstalk(samples)
    assert np.isnan(matrix[3, :3]).all()
    assert np.isnan(matrix[:3, 3]).all()
    assert np.isfinite(matrix[:3, :3]).all()
    assert np.isfinite(unc[:3, :3]).all()
