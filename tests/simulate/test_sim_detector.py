"""Each effect of the detector against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.camera import SMALL, read_order
from stream.core.identity import jd_of, rcid_of
from stream.simulate import detector
from stream.simulate.plan import seeded

JD = 2459127.7


@given(
    true=st.floats(0, 62_000),
    a=st.floats(-1.6e-11, -4e-12),
    b=st.floats(3e-8, 1.1e-6),
)
def test_measured_dn_invert_the_survey_formula(true, a, b):
    x = float(detector.measured_of_true(np.array([true]), a, b)[0])
    assert x / (a * x * x + b * x + 1) == pytest.approx(true, rel=1e-9, abs=1e-9)


def test_linearity_follows_the_epoch_and_the_amplifier():
    import datetime as dt

    early, late = jd_of(dt.datetime(2018, 5, 1)), jd_of(dt.datetime(2020, 10, 5))
    assert detector.linearity(rcid_of(3, 3), early) == (-1.32e-11, 8.07e-7)  # the public table's CCD 3, amp_id 2
    assert detector.linearity(rcid_of(6, 4), late) == (-6.8e-12, 2.13e-7)
    assert detector.linearity(rcid_of(3, 3), 2457000.0) == detector.linearity(rcid_of(3, 3), early)


@pytest.mark.parametrize("rcid", [0, 13, 62])
def test_saturation_of_the_header_lies_just_below_full_well(rcid):
    amp = detector.amplifier(1, rcid, JD)
    full = np.full((2, 3), amp.full_well, np.float32)
    detector.to_measured(full, amp)
    raw = full[0, 0] + amp.bias
    assert 0.98 * raw < amp.saturate < raw < detector.ADC_MAX


@pytest.mark.parametrize("level", [3.0, 20.0, 29.0, 31.0, 900.0, 2e5])
def test_photon_noise_has_the_mean_and_variance_of_photons(level):
    image = np.full((300, 300), level, np.float32)
    detector.photon_noise(np.random.default_rng(2), image)
    n = image.size
    assert image.mean(dtype=float) == pytest.approx(level, abs=5 * np.sqrt(level / n))
    assert image.var(dtype=float) == pytest.approx(level, rel=5 * np.sqrt(2 / n) + 0.01)
    if level < detector.POISSON_BELOW:
        assert np.array_equal(image, np.rint(image))
        assert image.min() >= 0


def test_negative_light_is_no_crash():
    image = np.full((10, 10), -3.0, np.float32)
    detector.photon_noise(np.random.default_rng(2), image)
    assert not image.any()


@pytest.mark.parametrize("qid", [1, 2, 3, 4])
def test_bleeding_keeps_the_charge_in_its_column(qid):
    image = np.full((200, 40), 100.0, np.float32)
    image[98:103, 20] = 5000.0
    total = image.sum(axis=0, dtype=float)
    n = detector.bleed(image, 1000.0, qid)
    assert np.allclose(image.sum(axis=0, dtype=float), total, rtol=1e-6)
    assert image.max() == 1000.0
    full = np.flatnonzero(image[:, 20] >= 1000.0)
    assert n == len(full)
    assert np.array_equal(full, np.arange(full[0], full[-1] + 1))
    # More of it away from the amplifier, where rows are read later.
    later, earlier = full[-1] - 102, 98 - full[0]
    if read_order(qid)[1]:
        later, earlier = earlier, later
    assert later > 1.5 * earlier > 0


def test_bleeding_ends_at_the_edge_and_in_neighbouring_runs():
    image = np.zeros((50, 3), np.float32)
    image[:, 1] = 0
    image[5, 1] = image[9, 1] = 1e6
    detector.bleed(image, 1000.0, 1)
    assert (image[:, 1] == 1000.0).all()
    assert not image[:, [0, 2]].any()


def test_no_saturation_nothing_changes():
    image = np.full((10, 10), 5.0, np.float32)
    assert detector.bleed(image, 10.0, 1) == 0
    assert (image == 5.0).all()


def test_crosstalk_lands_at_the_same_read_position():
    images = [np.zeros((300, 40), np.float32) for _ in range(4)]
    images[0][7, 3] = 50_000.0  # qid 1: read from x = 0, y = 0
    matrix = np.zeros((4, 4))
    matrix[1:, 0] = [1e-4, -5e-5, 2e-5]
    detector.crosstalk(images, matrix)
    assert images[1][7, 36] == pytest.approx(5.0)  # qid 2 reads x from the far end
    assert images[2][292, 36] == pytest.approx(-2.5)  # qid 3 both
    assert images[3][292, 3] == pytest.approx(1.0)  # qid 4 only y
    assert [np.count_nonzero(image) for image in images] == [1, 1, 1, 1]


def test_crosstalk_matrix_is_small_and_has_no_diagonal():
    matrix = detector.crosstalk_matrix(3, 5)
    assert np.abs(matrix).max() <= 1e-4
    assert not matrix.diagonal().any()
    assert (matrix > 0).any()
    assert (matrix < 0).any()


def test_flat_field_has_median_one_and_its_defects():
    for rcid in (0, 5):
        flat = detector.flat_field(1, SMALL, rcid, 2)
        assert np.median(flat) == pytest.approx(1.0, abs=2e-3)
        bad = detector.defects(1, SMALL, rcid)
        assert (flat.reshape(-1)[bad.dead] < 0.5).all()
        good = np.ones(flat.size, bool)
        good[bad.dead] = False
        assert 0.7 < flat.reshape(-1)[good].min() < 1.0 < flat.max() < 1.3
        for x, first, last, kind in bad.columns:
            if kind == "dead":
                assert (flat[first : last + 1, x] < 0.5).all()
    small = detector.flat_field(1, SMALL, 0, 2) / detector.flat_field(1, SMALL, 0, 1)
    assert np.std(small[:50, :50]) < detector.PIXEL_FLAT  # the same pixels in every filter


def test_cosmic_rays_are_where_they_say():
    image = np.zeros((400, 400), np.float32)
    hits = detector.cosmic_rays(seeded(1, "test"), image, 600.0)
    assert len(hits) > 5
    covered = np.zeros_like(image, bool)
    for x, y, npix in hits:
        cx, cy = round(x), round(y)
        half = npix + 2
        covered[max(0, cy - half) : cy + half + 1, max(0, cx - half) : cx + half + 1] = True
        assert npix >= 1
    assert image.max() > 500
    assert not image[~covered].any()


@pytest.mark.parametrize("qid", [1, 2, 3, 4])
def test_overscan_sees_the_level_of_its_row_and_the_last_pixels_charge(qid):
    amp = detector.amplifier(1, rcid_of(1, qid), JD)
    measured = np.zeros(SMALL.shape, np.float32)
    measured[:, 0 if qid in (2, 3) else -1] = 40_000.0  # the pixel read last
    pattern = detector.bias_structure(1, SMALL, amp.rcid)
    image, overscan = detector.read_out(np.random.default_rng(3), measured, amp, pattern, SMALL)
    assert image.dtype == overscan.dtype == np.uint16
    assert overscan.shape == (SMALL.ny, SMALL.n_overscan)
    columns = overscan.mean(axis=0)
    level = columns[15:].mean()
    assert columns[0] - level == pytest.approx(40_000 * detector.TRAIL[0], rel=0.05)
    assert np.argmax(columns) == 0
    assert (np.diff(columns[:4]) < 0).all()
    # Row by row the image's level is the overscan's, but for the pattern along the row.
    inside = image[:, 200:300].astype(float) - pattern[0][200:300]
    difference = inside.mean(axis=1) - overscan[:, 15:].mean(axis=1)
    noise = amp.readnoise / amp.gain * np.sqrt(1 / 100 + 1 / 15)
    assert np.std(difference) == pytest.approx(noise, rel=0.15)
    assert abs(difference.mean()) < 0.1
    drift = overscan[:, 15:].mean(axis=1)
    assert np.ptp(drift) > 4 * noise  # the level does float
    assert overscan[:, 15:].std(axis=1).mean() == pytest.approx(amp.readnoise / amp.gain, rel=0.06)


def test_side_glow_is_at_the_amplifier():
    for qid in (1, 2, 3, 4):
        row, column = detector.bias_structure(1, SMALL, rcid_of(2, qid))
        first_x = row[::-1] if read_order(qid)[0] else row
        assert first_x[:30].mean() > first_x[-100:].mean() + 1
        first_y = column[::-1] if read_order(qid)[1] else column
        assert first_y[0] > 2 * first_y[-1]


def test_digitising_rounds_and_clips():
    dn = np.array([-5.0, 0.4, 0.6, 70_000.0], np.float32)
    assert detector.digitise(dn).tolist() == [0, 0, 1, 65535]


def test_hot_pixels_leak_with_time():
    bad = detector.defects(1, SMALL, 0)
    short, long = np.zeros(SMALL.shape, np.float32), np.zeros(SMALL.shape, np.float32)
    detector.leak_charge(short, bad, 0.0)
    detector.leak_charge(long, bad, 30.0)
    assert (long.reshape(-1)[bad.hot] > 5 * short.reshape(-1)[bad.hot]).all()
    assert np.count_nonzero(long) == len(np.unique(bad.hot))
