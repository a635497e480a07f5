"""Latency by stage: what each took, which one is slow, and that nothing is blamed for what another did."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.engine.ledger import STAGES
from stream.monitor.latency import A_DAY, BUDGETS, START, StageLatency, latency_report, slow_stage, stage_latencies

SPANS = st.fixed_dictionaries({name: st.floats(0, 500) for name in STAGES[1:]})


def ledger(spans: dict[str, float], start: float = 1e9) -> dict[str, float]:
    times = {START: start}
    for name in STAGES[1:]:
        times[name] = start = start + spans[name]
    return times


def test_budgets_are_of_the_ledger_s_stages_and_add_up_to_the_design_s_median():
    assert (START, *(b.stage for b in BUDGETS)) == STAGES
    assert sum(b.seconds for b in BUDGETS if b.stage != "arrived") == 15.0
    assert len({b.owner for b in BUDGETS}) == len(BUDGETS)


@given(st.lists(SPANS, min_size=1, max_size=30))
def test_percentiles_are_numpy_s_of_each_stage_alone(spans):
    found = stage_latencies([ledger(s) for s in spans])
    for name in STAGES[1:]:
        taken = [s[name] for s in spans]
        assert found[name].n == len(spans)
        assert found[name].median == pytest.approx(np.median(taken), abs=2e-3)
        assert found[name].p95 == pytest.approx(np.percentile(taken, 95), abs=2e-3)
        assert found[name].longest == pytest.approx(max(taken), abs=2e-3)
    totals = [sum(v for k, v in s.items() if k != "arrived") for s in spans]
    assert found["total"].median == pytest.approx(np.median(totals), abs=2e-3)


@given(SPANS, st.sampled_from(STAGES[1:]))
def test_a_missing_stage_is_blamed_on_nobody(spans, missing):
    times = ledger(spans)
    del times[missing]
    found = stage_latencies([times])
    following = STAGES[STAGES.index(missing) + 1 :][:1]
    assert found.keys() == set(STAGES[1:]) - {missing, *following} | (
        {"total"} if {"arrived", "published"} <= times.keys() else set()
    )


@pytest.mark.parametrize(
    ("medians", "slow"),
    [
        ({}, None),
        ({"arrived": 14.9, "calibrated": 4.0, "subtracted": 5.0}, None),
        ({"arrived": 16.0, "calibrated": 4.0}, "arrived"),
        ({"arrived": 16.0, "calibrated": 40.0}, "calibrated"),
        ({"calibrated": 8.1, "scored": 4.0}, "calibrated"),
        ({"calibrated": 8.0, "scored": 4.1}, "scored"),
        ({"published": 3.0, "total": 900.0}, "published"),
    ],
)
def test_the_slow_stage_is_the_one_most_over_its_own_budget(medians, slow):
    found = slow_stage({name: StageLatency(1, median, median, median) for name, median in medians.items()})
    assert (found.stage if found else None) == slow


def test_an_old_night_does_not_make_the_camera_slow():
    times = ledger(dict.fromkeys(STAGES[1:], 1.0))
    times[START] -= A_DAY + 1
    report = latency_report([times])
    assert "arrived" not in report["stages"]
    assert report["slow"] is None
    assert report["stages"]["total"]["median"] == 5.0


def test_nothing_published_is_no_report():
    assert latency_report([]) == {"stages": {}, "slow": None}
