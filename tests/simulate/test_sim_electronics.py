"""Each effect of the electronics against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.camera import SMALL, read_order
from stream.core.identity import jd_of, rcid_of
from stream.core.pocket import pocket_of
from stream.simulate import electronics
from stream.simulate.effects import Effects

JD = 2459127.7


@given(
    true=st.floats(0, 62_000),
    a=st.floats(-1.6e-11, -4e-12),
    b=st.floats(3e-8, 1.1e-6),
)
def test_measured_dn_invert_the_survey_formula(true, a, b):
    x = float(electronics.measured_of_true(np.array([true]), a, b)[0])
    assert x / (a * x * x + b * x + 1) == pytest.approx(true, rel=1e-9, abs=1e-9)


def test_linearity_follows_the_epoch_and_the_amplifier():
    import datetime as dt

    early, late = jd_of(dt.datetime(2018, 5, 1)), jd_of(dt.datetime(2020, 10, 5))
    assert electronics.linearity(rcid_of(3, 3), early) == (-1.32e-11, 8.07e-7)  # the public table's CCD 3, amp_id 2
    assert electronics.linearity(rcid_of(6, 4), late) == (-6.8e-12, 2.13e-7)
    assert electronics.linearity(rcid_of(3, 3), 2457000.0) == electronics.linearity(rcid_of(3, 3), early)


@pytest.mark.parametrize("rcid", [0, 13, 62])
def test_saturation_of_the_header_lies_just_below_full_well(rcid):
    amp = electronics.amplifier(1, rcid, JD)
    full = np.full((2, 3), amp.full_well, np.float32)
    electronics.to_measured(full, amp)
    raw = full[0, 0] + amp.bias
    assert 0.98 * raw < amp.saturate < raw < electronics.ADC_MAX


def test_crosstalk_lands_at_the_same_read_position():
    images = [np.zeros((300, 40), np.float32) for _ in range(4)]
    images[0][7, 3] = 50_000.0  # qid 1: read from x = 0, y = 0
    matrix = np.zeros((4, 4))
    matrix[1:, 0] = [1e-4, -5e-5, 2e-5]
    electronics.crosstalk(images, matrix)
    assert images[1][7, 36] == pytest.approx(5.0)  # qid 2 reads x from the far end
    assert images[2][292, 36] == pytest.approx(-2.5)  # qid 3 both
    assert images[3][292, 3] == pytest.approx(1.0)  # qid 4 only y
    assert [np.count_nonzero(image) for image in images] == [1, 1, 1, 1]


def test_crosstalk_matrix_is_small_and_has_no_diagonal():
    matrix = electronics.crosstalk_matrix(3, 5)
    assert np.abs(matrix).max() <= 1e-4
    assert not matrix.diagonal().any()
    assert (matrix > 0).any()
    assert (matrix < 0).any()


def test_digitising_rounds_and_clips():
    dn = np.array([-5.0, 0.4, 0.6, 70_000.0], np.float32)
    assert electronics.digitise(dn).tolist() == [0, 0, 1, 65535]


@pytest.mark.parametrize("qid", [1, 2, 3, 4])
def test_overscan_sees_the_level_of_its_row_and_the_last_pixels_charge(qid):
    amp = electronics.amplifier(1, rcid_of(1, qid), JD)
    measured = np.zeros(SMALL.shape, np.float32)
    measured[:, 0 if qid in (2, 3) else -1] = 40_000.0  # the pixel read last
    trail = electronics.trailed_charge(measured, SMALL.n_overscan, qid)
    bias = electronics.bias_of(np.random.default_rng(3), 1, SMALL, amp, 7, Effects())
    sigma = amp.readnoise / amp.gain
    image, overscan = electronics.read_out(np.random.default_rng(3), measured, trail, bias, sigma)
    assert image.dtype == overscan.dtype == np.uint16
    assert overscan.shape == (SMALL.ny, SMALL.n_overscan)
    columns = overscan.mean(axis=0)
    level = columns[15:].mean()
    assert columns[0] - level == pytest.approx(40_000 * electronics.TRAIL[0], rel=0.05)
    assert np.argmax(columns) == 0
    assert (np.diff(columns[:4]) < 0).all()
    # Row by row the image's level is the overscan's, but for the pattern along the row.
    inside = image[:, 200:300].astype(float) - bias.columns[200:300]
    difference = inside.mean(axis=1) - overscan[:, 15:].mean(axis=1)
    noise = sigma * np.sqrt(1 / 100 + 1 / 15)
    assert np.std(difference) == pytest.approx(noise, rel=0.15)
    assert abs(difference.mean()) < 0.1
    drift = overscan[:, 15:].mean(axis=1)
    assert np.ptp(drift) > 4 * noise  # the level does float
    assert overscan[:, 15:].std(axis=1).mean() == pytest.approx(sigma, rel=0.06)


def test_side_glow_is_at_the_amplifier_and_fades_within_300_columns():
    for qid in (1, 2, 3, 4):
        glow = electronics.side_glow(1, SMALL, rcid_of(2, qid), 5)
        first_x = glow[::-1] if read_order(qid)[0] else glow
        assert 1.5 < first_x[0] < 4.5
        assert (np.diff(first_x) <= 0).all()
        assert first_x[300] < 0.02 * first_x[0]
        again = electronics.side_glow(1, SMALL, rcid_of(2, qid), 6)
        assert again[0] / glow[0] == pytest.approx(1.0, abs=0.2)
        assert not np.array_equal(again, glow)
        _, column = electronics.bias_structure(1, SMALL, rcid_of(2, qid))
        first_y = column[::-1] if read_order(qid)[1] else column
        assert first_y[0] > 2 * first_y[-1]


def test_a_bias_without_its_effects_is_a_constant():
    amp = electronics.amplifier(1, 5, JD)
    bias = electronics.bias_of(np.random.default_rng(3), 1, SMALL, amp, 7, Effects.none())
    assert not bias.columns.any()
    assert np.ptp(bias.rows) == 0
    image, overscan = electronics.read_out(
        np.random.default_rng(3), np.zeros(SMALL.shape, np.float32), np.zeros((SMALL.ny, 30), np.float32), bias, 0.0
    )
    assert np.unique(image).tolist() == np.unique(overscan).tolist() == [round(amp.bias)]


@pytest.mark.parametrize("qid", [1, 2])
def test_the_pocket_delays_charge_and_keeps_it(qid):
    """Charge in is charge out, later; and the loss of a bright pixel is the model's, step by step."""
    pocket = pocket_of(1, qid)
    rows = np.full((3, 200), 1500.0, np.float32)
    spot = 100
    rows[1, spot] = 50_000.0
    before = rows.copy()
    overscan = electronics.pocket_effect(rows, 30, pocket, qid)
    # A straight transcription of the published recursion.
    line = before[1][::-1] if qid in (2, 3) else before[1]
    held, expected = 0.0, []
    for n in [*line.tolist(), *[0.0] * 30]:
        x = min(held / pocket.cmax, 1.0)
        change = pocket.cmax * (x**pocket.alpha - (1 - x) ** pocket.alpha * (n / pocket.nmax) ** pocket.beta)
        expected.append(n + change)
        held = max(held - change, 0.0)
    got = np.concatenate([rows[1][::-1] if qid in (2, 3) else rows[1], overscan[1]])
    assert np.allclose(got, expected, rtol=2e-4, atol=0.1)
    assert got.sum() + held == pytest.approx(before[1].sum(), rel=1e-5)
    after = spot + (-1 if qid in (2, 3) else 1)
    assert rows[1, spot] < before[1, spot] - 50
    assert rows[1, after] > rows[0, after] + 5  # what the bright pixel lost comes out behind it
    assert overscan[0, 0] > 10
    assert overscan[0, 29] < overscan[0, 0]
