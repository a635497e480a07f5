"""Figures of the night in Redis: written by the monitor agent, read by ``status``. Every write is idempotent.

Keys under ``ztf:mon:<night>:``: a set of pids per outcome, hashes of the last quality records and failures and of
what became of the fakes; ``ztf:mon:nights`` names the nights, ``ztf:mon:last`` the last quadrant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from stream.core.identity import night_of
from stream.core.records import QuadrantReport, Status
from stream.monitor.completeness import added

KEEP_SECONDS = 8 * 86_400  # the survey's mirrors keep a week; so does what we know of it
_LAST_FAILURES = 20
_LEDGERS = "ztf:mon:ledgers"
_KEEP_LEDGERS = 3_600.0  # seconds; percentiles are taken over ten minutes


@dataclass(slots=True)
class NightCounts:
    """What the monitor knows of a night."""

    night: str
    quadrants: dict[str, int] = field(default_factory=dict)  # by status
    candidates: int = 0
    sources: int = 0
    dead_letters: int = 0
    events: dict[str, int] = field(default_factory=dict)  # messages by topic (streaks, tracklets)
    # Fakes [injected, found, sent]: all, then points by true S/N (``completeness.BINS``).
    fakes: list[list[int]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)  # arrival to subtracted, s
    failures: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None


class Monitor:
    """Counts in Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def quadrant(self, report: QuadrantReport, ledger: Mapping[str, float]) -> None:
        """Count a quadrant's outcome; a repeat replaces what was known of it."""
        night = night_of(report.jd)
        key = f"ztf:mon:{night}"
        row = {
            "name": report.name,
            "status": str(report.status),
            "stage": report.stage,
            "reason": report.reason,
            "n_candidates": report.n_candidates or 0,
            "n_sources": report.n_sources or 0,
            "seconds": round(sum(report.seconds.values()), 3),
            "latency": _latency(ledger),
            "at": max(ledger.values(), default=0.0),
        }
        pipe = self._redis.pipeline(transaction=False)
        pipe.sadd("ztf:mon:nights", night)
        pipe.hset(f"{key}:quadrants", str(report.pid), json.dumps(row))
        pipe.set("ztf:mon:last", json.dumps(row), ex=KEEP_SECONDS)
        pipe.expire(f"{key}:quadrants", KEEP_SECONDS)
        pipe.execute()

    def fakes(self, night: str, pid: int, tally: list[list[int]]) -> None:
        """Remember what became of a quadrant's fakes; a repeat replaces it."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(f"ztf:mon:{night}:fakes", str(pid), json.dumps(tally))
        pipe.expire(f"ztf:mon:{night}:fakes", KEEP_SECONDS)
        pipe.execute()

    def dead_letter(self, partition: int, offset: int, value: bytes) -> None:
        """Count a dead letter by its place in the topic."""
        try:
            letter = json.loads(value)
        except ValueError:
            letter = {}
        row = {name: letter.get(name) for name in ("time", "stage", "error", "reason", "what_to_do", "id")}
        self._redis.hset("ztf:mon:deadletters", f"{partition}-{offset}", json.dumps(row))
        self._redis.expire("ztf:mon:deadletters", KEEP_SECONDS)

    def event(self, topic: str, partition: int, offset: int) -> None:
        """Count a message of another topic by its place in it."""
        self._redis.sadd(f"ztf:mon:events:{topic}", f"{partition}-{offset}")
        self._redis.expire(f"ztf:mon:events:{topic}", KEEP_SECONDS)

    def published(self, name: str, times: Mapping[str, float]) -> None:
        """Remember the ledger of a batch of alerts that has left; a repeat (``pid:chunk``) replaces it."""
        row = json.dumps({"name": name, **times})
        pipe = self._redis.pipeline(transaction=False)
        pipe.zadd(_LEDGERS, {row: times["published"]})
        pipe.zremrangebyscore(_LEDGERS, "-inf", times["published"] - _KEEP_LEDGERS)
        pipe.execute()

    def ledgers(self, since: float) -> list[dict[str, float]]:
        """Ledgers of what was published after ``since`` (unix seconds), the last of each batch."""
        found: Any = self._redis.zrangebyscore(_LEDGERS, since, "+inf")
        rows = {row.pop("name"): row for row in map(json.loads, found)}
        return list(rows.values())

    def close(self, night: str, when: float) -> None:
        """Remember when a night was first closed: what is published after that is late."""
        self._redis.set(f"ztf:mon:{night}:closed", when, ex=KEEP_SECONDS, nx=True)

    def is_closed(self, night: str) -> bool:
        """Whether a night was closed."""
        return bool(self._redis.exists(f"ztf:mon:{night}:closed"))

    def quadrant_count(self, night: str) -> int:
        """Quadrants of a night that were counted."""
        return int(self._redis.hlen(f"ztf:mon:{night}:quadrants"))  # type: ignore[arg-type]

    def nights(self) -> list[str]:
        """Nights that were seen, oldest first."""
        members: Any = self._redis.smembers("ztf:mon:nights")
        return sorted(member.decode() for member in members)

    def counts(self, night: str) -> NightCounts:
        """Everything known of a night."""
        counts = NightCounts(night)
        rows: Any = self._redis.hvals(f"ztf:mon:{night}:quadrants")
        for row in map(json.loads, rows):
            counts.quadrants[row["status"]] = counts.quadrants.get(row["status"], 0) + 1
            counts.candidates += row["n_candidates"]
            counts.sources += row["n_sources"]
            if row["latency"] is not None:
                counts.latencies.append(row["latency"])
            if row["status"] == Status.FAILED:
                counts.failures.append(row)
        tallies: Any = self._redis.hvals(f"ztf:mon:{night}:fakes")
        counts.fakes = added([json.loads(tally) for tally in tallies])
        counts.failures = sorted(counts.failures, key=lambda row: -row["at"])[:_LAST_FAILURES]
        counts.dead_letters = int(self._redis.hlen("ztf:mon:deadletters"))  # type: ignore[arg-type]
        for topic in ("ztf.streaks", "ztf.tracklets"):
            counts.events[topic] = int(self._redis.scard(f"ztf:mon:events:{topic}"))  # type: ignore[arg-type]
        last: Any = self._redis.get("ztf:mon:last")
        counts.last = json.loads(last) if last else None
        return counts


def _latency(ledger: Mapping[str, float]) -> float | None:
    if "arrived" not in ledger or "subtracted" not in ledger:
        return None
    return round(ledger["subtracted"] - ledger["arrived"], 3)
