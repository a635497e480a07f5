"""Latency figures from ledgers: percentiles by stage, and whose fault a delay is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

A_DAY = 86_400.0  # a night that is simulated or replayed: its shutter closed long before it arrived


@dataclass(frozen=True, slots=True)
class Budget:
    """What a stage may take in the median, and who to ask if it takes more."""

    stage: str
    seconds: float
    owner: str


# The design's figure from arrival to alert is a median of 15 s; the budgets after `arrived` add up to it.
BUDGETS = (
    Budget("arrived", 15.0, "camera, archive computer and line to us"),
    Budget("calibrated", 4.0, "quadrant workers: too few of them, or behind"),
    Budget("subtracted", 5.0, "quadrant workers: astrometry to extraction"),
    Budget("scored", 2.0, "score worker"),
    Budget("enriched", 2.0, "enrich worker and Redis"),
    Budget("published", 2.0, "emitter and broker"),
)
START = "shutter_closed"


@dataclass(frozen=True, slots=True)
class StageLatency:
    """Seconds that a stage took, from the stage before it."""

    n: int
    median: float
    p95: float
    longest: float


def percentiles(
    ledgers: Iterable[Mapping[str, float]], start: str, end: str, at: tuple[float, ...] = (50.0, 95.0, 100.0)
) -> dict[float, float]:
    """Percentiles (seconds) of the time from one stage to another over many ledgers; empty where none has both."""
    times = [ledger[end] - ledger[start] for ledger in ledgers if start in ledger and end in ledger]
    if not times:
        return {}
    return {p: float(v) for p, v in zip(at, np.percentile(times, at), strict=True)}


def stage_latencies(ledgers: Sequence[Mapping[str, float]]) -> dict[str, StageLatency]:
    """What each stage took, and ``total`` from arrival to publication; stages that no ledger has are left out.

    A ledger that lacks a stage counts for the stages on both sides of the gap as little as for the missing one.
    """
    names = (START, *(budget.stage for budget in BUDGETS))
    spans = {end: (start, end) for start, end in itertools.pairwise(names)}
    spans["total"] = ("arrived", "published")
    found = {}
    for name, (start, end) in spans.items():
        times = [ledger[end] - ledger[start] for ledger in ledgers if start in ledger and end in ledger]
        times = [seconds for seconds in times if name != "arrived" or seconds < A_DAY]
        if times:
            median, p95, longest = (round(float(v), 3) for v in np.percentile(times, (50.0, 95.0, 100.0)))
            found[name] = StageLatency(len(times), median, p95, longest)
    return found


def slow_stage(latencies: Mapping[str, StageLatency]) -> Budget | None:
    """The stage that is over its budget by the largest factor, ``None`` where all keep theirs."""
    over = [(latencies[b.stage].median / b.seconds, b) for b in BUDGETS if b.stage in latencies]
    worst = max(over, key=lambda pair: pair[0], default=None)
    return worst[1] if worst is not None and worst[0] > 1.0 else None


def latency_report(ledgers: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Percentiles by stage and the slow one, as plain values."""
    latencies = stage_latencies(ledgers)
    slow = slow_stage(latencies)
    return {
        "stages": {name: asdict(latency) for name, latency in latencies.items()},
        "slow": None if slow is None else {**asdict(slow), "median": latencies[slow.stage].median},
    }
