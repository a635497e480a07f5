"""What each record stage does with one message: plain classes with a ``handle``, no Kafka client in sight.

``stream.engine.agents`` runs them as Faust agents; tests call them directly. Delivery is at least once, so every
``handle`` gives the same messages for the same input, and every write to Redis is idempotent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, Protocol

import numpy as np
import redis
import structlog

from stream.alert import (
    PRV_FIELDS,
    decode_batch,
    decode_fakes,
    decode_report,
    decode_streaks,
    encode_batch,
    encode_tracklet,
)
from stream.alert.public import PUBLIC_PROGRAM, mover_packet, streaks_packet
from stream.core.errors import MessageError
from stream.core.identity import CANDID_VERSION, night_of
from stream.core.records import CandidateBatch, Tracklet
from stream.engine import ledger, metrics
from stream.engine.kafka import REPORT, VERSION, OutMessage, RawMessage
from stream.engine.state import Generation, Versions, translated
from stream.enrich import Depth, ForcedSource, RedisHistory, enrich_batch, quadrant_depth
from stream.monitor import Monitor
from stream.monitor.completeness import tally
from stream.score import load_scorer
from stream.solarsystem import LINK_DTYPE, link_tracklets

Clock = Callable[[], float]

log = structlog.get_logger(__name__)

# Candidates the network gives less than this are not worth linking: false ones pair up with everything.
LINK_MIN_SCORE = 0.3
LINK_SECONDS = 3 * 86_400  # a night's detections outlive the night and a repeat of it


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
    """The batch on its way to the next topic, under the same key, its ledger extended.

    The quality record goes as far as ``enrich``, which it is for.
    """
    kept = [(k, v) for k, v in message.headers if k != REPORT or topic == "ztf.scored"]
    return OutMessage(topic, message.key, encode_batch(batch), ledger.extend(kept, **passed))


class Guarded:
    """A stage whose memory is Redis: what it did counts only if Redis was there and whole all the while."""

    def __init__(self, stage: Stage, generation: Generation) -> None:
        self.name, self.sources, self.passed = stage.name, stage.sources, stage.passed
        self._stage = stage
        self._generation = generation

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """As the stage; ``StateUnavailable`` (``StateLost``) where Redis failed (was emptied) meanwhile."""
        with translated(f"at {self.name}"), self._generation.steady():
            return self._stage.handle(message)


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
    """``ztf.scored`` to ``ztf.enriched``: coverage, object identity, history, forced photometry.

    A batch brings its quadrant's quality record, so that coverage and detections of a channel come in one order. A
    quadrant whose alerts are on their way under other version digits is held: its candidates are in the products, and
    nobody gets a second alert of one event unless ``resend`` asks for it.
    """

    name = "enrich"
    sources = ("ztf.scored",)
    passed = "enriched"

    def __init__(
        self,
        client: redis.Redis,
        forced: ForcedSource | None = None,
        clock: Clock = time.time,
        *,
        resend: bool = False,
        depth: Depth = quadrant_depth,
    ) -> None:
        self._clock = clock
        self._depth = depth
        self._history = RedisHistory(client)
        self._forced = forced
        self._versions = Versions(client)
        self._resend = resend

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """Remember the epoch, enrich its batch."""
        report = message.raw_header(REPORT)
        if report is not None:
            self._history.add_epoch(decode_report(report))
        batch = decode_batch(message.value)
        if not batch.items:
            return []
        version = version_of(message)
        if disposition(version, self._versions.sent(batch.pid), self._resend) == "held":
            metrics.ALERTS_HELD.inc(len(batch.items))
            log.info("held", name=batch.name, version=version, candidates=len(batch.items))
            return []
        enrich_batch(batch, self._history, PRV_FIELDS, self._forced, self._depth)
        self._versions.remember(batch.pid, version)
        return [forward("ztf.enriched", message, batch, enriched=self._clock())]


def version_of(message: RawMessage) -> int:
    """Version digits of the candids in a message of ours."""
    return int(message.header(VERSION) or CANDID_VERSION)


def disposition(version: int, sent: int | None, resend: bool) -> Literal["send", "held"]:
    """What becomes of a quadrant's candidates.

    Parameters
    ----------
    version : int
        Their version digits.
    sent : int or None
        Under which digits the quadrant's alerts left before; None: they never did.
    resend : bool
        Whether alerts of events that were sent before are asked for.
    """
    return "send" if resend or sent is None or sent == version else "held"


class LinkStage:
    """``ztf.scored`` to ``ztf.tracklets`` and ``ztf.movers``: what moves in a straight line within the night.

    The night's detections live in Redis (``ztf:link:<night>``, by quadrant and part), so a restart continues; a
    tracklet is sent when it is new or has changed, under its deterministic id, and its members leave the registry of
    places. A quadrant's first version digits count, unless ``resend`` asks for the later ones.
    For the public the night is linked once more from detections of program 1 alone: a tracklet that leans on a private
    exposure would tell that it was taken. Streaks of public exposures are passed on to ``ztf.streaks.public``.
    """

    name = "link"
    sources = ("ztf.scored", "ztf.streaks")
    passed = ""

    def __init__(self, client: redis.Redis, *, resend: bool = False) -> None:
        self._redis = client
        self._history = RedisHistory(client)
        self._resend = resend

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """Add a batch's detections and link the night again; or pass streaks on."""
        if message.topic == "ztf.streaks":
            packet = streaks_packet(decode_streaks(message.value))
            times = ledger.extend(message.headers)
            return [] if packet is None else [OutMessage("ztf.streaks.public", message.key, packet, times)]
        batch = decode_batch(message.value)
        if not self.remember(batch, version_of(message)):
            return []
        night, by = night_of(batch.jd), part_of(batch)
        headers = ledger.extend(message.headers)
        outs = [
            OutMessage("ztf.tracklets", str(t.trackid).encode(), encode_tracklet(t), headers)
            for t in self.linked(night)
            if self.remember_sent(t, by)
        ]
        if batch.programid == PUBLIC_PROGRAM:
            outs += [
                OutMessage("ztf.movers", str(t.trackid).encode(), mover_packet(t), headers)
                for t in self.linked(night, PUBLIC_PROGRAM)
                if self.remember_sent(t, by, "movers")
            ]
        return outs

    def linked(self, night: str, program: int | None = None) -> list[Tracklet]:
        """Tracklets of a night's detections; of those of one program where it is given."""
        stored: Any = self._redis.hvals(f"ztf:link:{night}")
        parts = [json.loads(text) for text in stored]
        rows = [tuple(row) for part in parts if program in (None, part.get("program")) for row in part["rows"]]
        return link_tracklets(np.array(rows, LINK_DTYPE), night)

    def remember(self, batch: CandidateBatch, version: int) -> bool:
        """Keep a batch's detections; False where it has none to link, or is held."""
        rows = link_rows(batch)
        if not rows:
            return False
        key, part = f"ztf:link:{night_of(batch.jd)}", part_of(batch)
        known: Any = self._redis.hget(key, part)
        if disposition(version, json.loads(known)["version"] if known else None, self._resend) == "held":
            return False
        kept = {"version": version, "program": batch.programid, "rows": rows}
        self._redis.hset(key, part, json.dumps(kept))
        self._redis.expire(key, LINK_SECONDS)
        return True

    def remember_sent(self, tracklet: Tracklet, by: str, kind: Literal["tracklets", "movers"] = "tracklets") -> bool:
        """Keep a tracklet as sent because of batch ``by`` (``pid:chunk``); whether it has to be sent.

        New and changed ones have to, and once more those that this very batch made before: it comes again because
        nobody knows whether they left.
        """
        key, text = f"ztf:sent:{kind}:{tracklet.night}", json.dumps(asdict(tracklet), sort_keys=True)
        known: Any = self._redis.hget(key, str(tracklet.trackid))
        if known is not None and json.loads(known)["tracklet"] == text:
            return bool(json.loads(known)["by"] == by)
        members = dict.fromkeys(tracklet.candids, tracklet.trackid)
        self._history.add_movers(members, tracklet.night, public=kind == "movers")
        self._redis.hset(key, str(tracklet.trackid), json.dumps({"by": by, "tracklet": text}))
        self._redis.expire(key, LINK_SECONDS)
        return True


def part_of(batch: CandidateBatch) -> str:
    """``pid:chunk``: a quadrant's batch, or its part."""
    return f"{batch.pid}:{batch.chunk}"


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
    """``ztf.quadrants``, ``ztf.fakes``, ``ztf.deadletters``, ``ztf.streaks``, ``ztf.tracklets`` into ``status``."""

    name = "monitor"
    sources = ("ztf.quadrants", "ztf.fakes", "ztf.deadletters", "ztf.streaks", "ztf.tracklets")
    passed = ""

    def __init__(self, client: redis.Redis) -> None:
        self._monitor = Monitor(client)

    def handle(self, message: RawMessage) -> list[OutMessage]:
        """Count it."""
        if message.topic == "ztf.quadrants":
            self._monitor.quadrant(decode_report(message.value), ledger.read(message.headers))
        elif message.topic == "ztf.fakes":
            fakes = decode_fakes(message.value)
            self._monitor.fakes(night_of(fakes.jd), fakes.pid, tally(fakes.fakes))
        elif message.topic == "ztf.deadletters":
            self._monitor.dead_letter(message.partition, message.offset, message.value)
        else:
            self._monitor.event(message.topic, message.partition, message.offset)
        return []


def make_stage(
    name: str,
    client: redis.Redis,
    forced: ForcedSource | None = None,
    depth: Depth = quadrant_depth,
    *,
    resend: bool = False,
) -> Stage:
    """The stage of that name.

    ``forced`` and ``depth`` are for ``enrich``; ``resend``: whether a quadrant's alerts may leave again under other
    version digits.
    """
    if name == "score":
        return ScoreStage()
    makers: dict[str, Callable[[], Stage]] = {
        "enrich": lambda: EnrichStage(client, forced, resend=resend, depth=depth),
        "link": lambda: LinkStage(client, resend=resend),
        "monitor": lambda: MonitorStage(client),
    }
    if name not in makers:
        raise MessageError(f"no record stage {name!r}: known are score, {', '.join(makers)}")
    return Guarded(makers[name](), Generation(client))


RECORD_STAGES = ("score", "enrich", "link", "monitor")
