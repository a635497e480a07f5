"""What each record stage does with one message: plain classes with a ``handle``, no Kafka client in sight.

``stream.engine.agents`` runs them as Faust agents; tests call them directly. Delivery is at least once, so every
``handle`` gives the same messages for the same input, and every write to Redis is idempotent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import redis

from stream.alert import (
    PRV_FIELDS,
    decode_batch,
    decode_report,
    encode_batch,
    encode_tracklet,
)
from stream.core.errors import MessageError
from stream.core.identity import night_of
from stream.core.records import CandidateBatch, Tracklet
from stream.engine import ledger
from stream.engine.kafka import OutMessage, RawMessage
from stream.enrich import ForcedSource, RedisHistory, enrich_batch
from stream.monitor import Monitor
from stream.score import load_scorer
from stream.solarsystem import LINK_DTYPE, link_tracklets

Clock = Callable[[], float]

# Candidates the network gives less than this are not worth linking: false ones pair up with everything.
LINK_MIN_SCORE = 0.3


class Stage(Protocol):
    """One record stage."""

    @property
    def name(self) -> str:
        """Of the stage, its group and its workers."""
        ...

    @property
    def sources(self) -> tuple[str, ...]:
        """Topics it reads."""
        ...

    @property
    def passed(self) -> str:
        """The ledger's entry that this stage adds; empty: none."""
        ...

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """Messages that follow from one message; raises our errors."""
        ...


def forward(topic: str, message: RawMessage, batch: CandidateBatch, **passed: float) -> OutMessage:
    """The batch on its way to the next topic, under the same key, its ledger extended."""
    return OutMessage(topic, message.key, encode_batch(batch), ledger.extend(message.headers, **passed))


class ScoreStage:
    """``ztf.candidates`` to ``ztf.scored``: both classifiers on a whole batch at once."""

    name = "score"
    sources = ("ztf.candidates",)
    passed = "scored"

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._scorer = load_scorer()

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """Score every item of a batch."""
        batch = decode_batch(message.value)
        self._scorer.score(batch.items)
        return [forward("ztf.scored", message, batch, scored=self._clock())]


class EnrichStage:
    """``ztf.scored`` to ``ztf.enriched``: object identity, history, forced photometry; ``ztf.quadrants`` feeds the
    coverage."""

    name = "enrich"
    sources = ("ztf.quadrants", "ztf.scored")
    passed = "enriched"

    def __init__(self, client: redis.Redis, forced: ForcedSource | None = None, clock: Clock = time.time) -> None:
        self._clock = clock
        self._history = RedisHistory(client)
        self._forced = forced

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """Remember an epoch, or enrich a batch."""
        if message.topic == "ztf.quadrants":
            self._history.add_epoch(decode_report(message.value))
            return []
        batch = decode_batch(message.value)
        enrich_batch(batch, self._history, PRV_FIELDS, self._forced)
        return [forward("ztf.enriched", message, batch, enriched=self._clock())]


class LinkStage:
    """``ztf.scored`` to ``ztf.tracklets``: what moves in a straight line within the night.

    The night's detections live in Redis (``ztf:link:<night>``, by candid), so a restart continues; a tracklet is
    sent when it is new or has changed, under its deterministic id, and its members leave the registry of places.
    """

    name = "link"
    sources = ("ztf.scored",)
    passed = ""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._history = RedisHistory(client)

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """Add a batch's detections and link the night again."""
        batch = decode_batch(message.value)
        night = night_of(batch.jd)
        rows: dict[Any, Any] = {str(row[0]): json.dumps(row) for row in link_rows(batch)}
        if not rows:
            return []
        key = f"ztf:link:{night}"
        self._redis.hset(key, mapping=rows)
        self._redis.expire(key, 3 * 86_400)
        stored: Any = self._redis.hvals(key)
        detections = np.array([tuple(json.loads(row)) for row in stored], LINK_DTYPE)
        tracklets = link_tracklets(detections, night)
        return [
            OutMessage("ztf.tracklets", str(t.trackid).encode(), encode_tracklet(t), ledger.extend(message.headers))
            for t in self._changed(night, tracklets)
        ]

    def _changed(self, night: str, tracklets: Iterable[Tracklet]) -> list[Tracklet]:
        key = f"ztf:tracklets:{night}"
        changed = []
        for tracklet in tracklets:
            text = json.dumps(asdict(tracklet), sort_keys=True)
            known: Any = self._redis.hget(key, str(tracklet.trackid))
            if known is None or known.decode() != text:
                self._history.add_movers(dict.fromkeys(tracklet.candids, tracklet.trackid), night)
                self._redis.hset(key, str(tracklet.trackid), text)
                changed.append(tracklet)
        self._redis.expire(key, 3 * 86_400)
        return changed


def link_rows(batch: CandidateBatch) -> list[tuple[int, float, float, float, float]]:
    """What linking needs of a batch, rows of ``LINK_DTYPE``: positive, plausible detections at mid-exposure."""
    rows = []
    for item in batch.items:
        c = item.candidate
        plausible = c.get("drb") is None or c["drb"] >= LINK_MIN_SCORE
        if c["isdiffpos"] == "t" and plausible:
            rows.append((c["candid"], batch.jd_mid, c["ra"], c["dec"], c["magpsf"]))
    return rows


class MonitorStage:
    """``ztf.quadrants``, ``ztf.deadletters``, ``ztf.streaks``, ``ztf.tracklets`` into the figures of ``status``."""

    name = "monitor"
    sources = ("ztf.quadrants", "ztf.deadletters", "ztf.streaks", "ztf.tracklets")
    passed = ""

    def __init__(self, client: redis.Redis) -> None:
        self._monitor = Monitor(client)

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """Count it."""
        if message.topic == "ztf.quadrants":
            self._monitor.quadrant(decode_report(message.value), ledger.read(message.headers))
        elif message.topic == "ztf.deadletters":
            self._monitor.dead_letter(message.partition, message.offset, message.value)
        else:
            self._monitor.event(message.topic, message.partition, message.offset)
        return []


def make_stage(name: str, client: redis.Redis, forced: ForcedSource | None = None) -> Stage:
    """The stage of that name; ``forced`` is for ``enrich``."""
    if name == "score":
        return ScoreStage()
    makers: dict[str, Callable[[redis.Redis], Stage]] = {
        "enrich": lambda client: EnrichStage(client, forced),
        "link": LinkStage,
        "monitor": MonitorStage,
    }
    if name not in makers:
        raise MessageError(f"no record stage {name!r}: known are score, {', '.join(makers)}")
    return makers[name](client)


RECORD_STAGES = ("score", "enrich", "link", "monitor")
