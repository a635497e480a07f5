"""Latency figures from ledgers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np


def percentiles(
    ledgers: Iterable[Mapping[str, float]], start: str, end: str, at: tuple[float, ...] = (50.0, 95.0, 100.0)
) -> dict[float, float]:
    """Percentiles (seconds) of the time from one stage to another over many ledgers; empty where none has both."""
    times = [ledger[end] - ledger[start] for ledger in ledgers if start in ledger and end in ledger]
    if not times:
        return {}
    return {p: float(v) for p, v in zip(at, np.percentile(times, at), strict=True)}
