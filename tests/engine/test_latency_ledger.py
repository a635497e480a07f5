"""The latency ledger in message headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.identity import jd_of
from stream.engine import ledger

TIMES = st.dictionaries(st.sampled_from(ledger.STAGES), st.floats(0, 4e9).map(lambda x: round(x, 3)))


@given(TIMES)
def test_what_is_written_is_read(times):
    assert ledger.read(ledger.encode(times)) == pytest.approx(times)


@given(TIMES, TIMES)
def test_extending_keeps_other_headers_and_replaces_stages(first, second):
    headers = (("name", b"q"), *ledger.encode(first), ("pid", b"7"))
    extended = ledger.extend(headers, **second)
    assert ledger.read(extended) == pytest.approx(ledger.in_order({**first, **second}))
    assert [h for h in extended if not h[0].startswith("t.")] == [("name", b"q"), ("pid", b"7")]


def test_stages_come_in_their_order_and_garbage_is_left_out():
    headers = [
        ("t.published", b"30"), ("t.arrived", b"10"), ("t.scored", b"nan"), ("t.enriched", b"\xff"),
        ("t.nonsense", b"1"), ("t.calibrated", b"later"), ("t.subtracted", b"-5"),
    ]  # fmt: skip
    assert list(ledger.read(headers).items()) == [("arrived", 10.0), ("published", 30.0)]


@pytest.mark.parametrize(
    ("times", "ordered"),
    [
        ({"arrived": 10.0, "calibrated": 12.0}, {"arrived": 10.0, "calibrated": 12.0}),
        ({"arrived": 10.0, "calibrated": 4.0, "scored": 11.0}, {"arrived": 10.0, "calibrated": 10.0, "scored": 11.0}),
        ({"arrived": 10.0, "calibrated": 14.0, "scored": 11.0}, {"arrived": 10.0, "calibrated": 14.0, "scored": 14.0}),
        # The camera's clock, or a simulated night in the future: no reason to bend ours.
        ({"shutter_closed": 99.0, "arrived": 10.0}, {"shutter_closed": 99.0, "arrived": 10.0}),
        ({}, {}),
    ],
)
def test_a_clock_set_back_makes_no_stage_negative(times, ordered):
    assert ledger.in_order(times) == ordered


@given(TIMES)
def test_no_stage_takes_less_than_no_time(times):
    ordered = list(ledger.in_order(times).values())[1 if ledger.STAGES[0] in times else 0 :]
    assert ordered == sorted(ordered)
    assert ledger.seconds_between({"arrived": 7.0, "scored": 3.0}, "arrived", "scored") == 0.0


def test_unknown_stage_is_a_mistake():
    with pytest.raises(ValueError, match="arived"):
        ledger.extend((), arived=1.0)


def test_times_are_unix_seconds_of_utc():
    import datetime as dt

    moment = dt.datetime(2018, 11, 29, 6, 3, 12, tzinfo=dt.UTC)
    assert ledger.unix_of_jd(jd_of(moment)) == pytest.approx(moment.timestamp(), abs=1e-3)


def test_seconds_between_stages():
    times = {"arrived": 10.0, "published": 25.5}
    assert ledger.seconds_between(times, "arrived", "published") == 15.5
    assert ledger.seconds_between(times, "shutter_closed", "published") is None
