"""The hot state made anew after Redis was lost: from the alerts that left, the internal topics and the store.

What Redis holds follows from what is kept elsewhere, so losing it costs time, not alerts:

=================================  ====================================================================================
objects, histories, forced points  the alerts: nightly topics, archive, batches that are enriched and not yet published
coverage and limits                ``ztf.quadrants``; quality records in the store for what its retention has deleted
detections to link, tracklets      ``ztf.scored`` as far as ``link`` has come; ``ztf.tracklets``
figures of ``status``              ``ztf.quadrants``, ``ztf.fakes``, ``ztf.deadletters``, ``ztf.streaks``,
                                   ``ztf.tracklets``
what was published, as what        ``ztf.enriched`` as far as ``emit`` has come; version digits of the alerts
=================================  ====================================================================================

From the loss to the end of the rebuild, ``enrich``, ``link``, ``monitor`` and ``emit`` hold what they have in hand
(:class:`stream.engine.state.Generation`); pixels and scores go on. A first start is a rebuild from nothing.

Not rebuilt: ingest's memory of packets (one that is ingested again is processed again, its alerts are not sent
again), and the count of deaths on an input.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import redis
from confluent_kafka import TopicPartition

from stream.alert import PRV_FIELDS, decode_batch, decode_report, decode_tracklet, read_packet
from stream.alert.public import PUBLIC_PROGRAM
from stream.archive import ProductStore, archived_nights, iterate_packets
from stream.archive.catalogs import read_quality
from stream.archive.manifest import read_manifest, unix_of
from stream.archive.products import science_files
from stream.core.errors import MessageError, StateLost
from stream.core.identity import night_of, pid_of_candid, version_digits
from stream.core.records import QuadrantReport, Row
from stream.engine.config import Settings
from stream.engine.emit import SOURCE, batch_name, emitted
from stream.engine.kafka import RawMessage, ends_of, make_admin, make_consumer, read_to_end, translated
from stream.engine.stages import LinkStage, MonitorStage, version_of
from stream.engine.state import Generation, Versions
from stream.engine.state import translated as redis_translated
from stream.engine.topics import load_topics
from stream.enrich import RedisHistory
from stream.enrich.history import KEEP_DAYS, is_known_mover, object_name, year_of
from stream.enrich.redis_history import NAME_ATTEMPTS, REPEAT_SECONDS
from stream.monitor import Monitor

# Everything that is made anew; what else is in Redis (signs of life, ingested packets) stays.
HOT = ("obj", "name", "ids", "det", "fp", "epoch", "cover", "movers", "link", "sent", "mon", "version")
PATIENCE = 60  # seconds; a rebuild that did not get on for so long was killed
_DAY = 86_400.0

Progress = Callable[[str, int], None]
Decoded = TypeVar("Decoded")


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild found: how many of each kind it wrote, and how long it took (wall seconds)."""

    counts: Counter[str] = field(default_factory=Counter)
    newest_jd: float = 0.0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        night = night_of(self.newest_jd) if self.newest_jd else None
        return {**dict(sorted(self.counts.items())), "newest_night": night, "seconds": round(self.seconds, 2)}


@dataclass(frozen=True, slots=True)
class Event:
    """One alert as the state needs it: whose it is, the row that histories show of it, its forced points."""

    object_id: str
    row: Row
    forced: tuple[Row, ...]

    @property
    def candid(self) -> int:
        """Candidate identifier."""
        return int(self.row["candid"])

    @property
    def jd(self) -> float:
        """Start of the exposure."""
        return float(self.row["jd"])

    @property
    def named_it(self) -> bool:
        """Whether the object was named after this event: then its place is the object's."""
        year = year_of(self.jd)
        return self.object_id in [object_name(year, self.candid, attempt) for attempt in range(NAME_ATTEMPTS)]


@dataclass(slots=True)
class _Object:
    """An object's events that matter: the one that named it (the earliest where that one is unknown), first, last."""

    creator: Event
    first: Event
    last: Event

    def meet(self, event: Event) -> None:
        """Take one more event into account."""
        self.creator = min(self.creator, event, key=lambda e: (not e.named_it, e.jd, e.candid))
        self.first = min(self.first, event, key=lambda e: (e.jd, e.candid))
        self.last = max(self.last, event, key=lambda e: (e.jd, e.candid))


def ensure_state(settings: Settings, client: redis.Redis, progress: Progress | None = None) -> Rebuilt | None:
    """Make the state if Redis has none, as at a first start; None where it is there already."""
    try:
        Generation(client).current()
    except StateLost:
        return rebuild_state(settings, client, progress)
    return None


def rebuild_state(settings: Settings, client: redis.Redis, progress: Progress | None = None) -> Rebuilt:
    """Empty the hot state and make it anew; workers hold meanwhile.

    Raises
    ------
    UsageError
        Another process is at it.
    StateLost
        Redis was emptied once more meanwhile: call again.
    Retriable
        Broker, store or Redis failed. Workers go on holding: call again.
    """
    started = time.monotonic()
    generation = Generation(client)
    name = generation.begin(PATIENCE)
    try:
        work = _Rebuild(settings, client, lambda: generation.keep(name, PATIENCE), progress or (lambda what, n: None))
        work.run()
        generation.finish(name)
    except BaseException:
        generation.give_up(name)
        raise
    work.done.seconds = time.monotonic() - started
    return work.done


class _Rebuild:
    """One rebuild: each method makes one row of the module's table."""

    def __init__(self, settings: Settings, client: redis.Redis, keep: Callable[[], None], progress: Progress) -> None:
        self.done = Rebuilt()
        self._settings = settings
        self._client = client
        self._keep = keep
        self._progress = progress
        self._kept = time.monotonic()
        self._store = ProductStore(settings.store)
        self._history = RedisHistory(client)
        self._versions = Versions(client)
        self._sent: dict[int, int] = {}  # pid -> version digits

    def run(self) -> None:
        """All of it, in an order in which each step may use what the ones before found."""
        with redis_translated("rebuilding it"):
            self._clear()
            self._alerts()
            self._coverage()
            self._links()
            self._figures()
            self._published()

    def _count(self, what: str) -> None:
        self.done.counts[what] += 1
        if time.monotonic() > self._kept + 1.0:
            self._kept = time.monotonic()
            self._keep()
            self._progress(what, self.done.counts[what])

    def _clear(self) -> None:
        patterns = [*(f"ztf:{name}:*" for name in HOT), f"{self._settings.group_prefix}:emitted:*"]
        for pattern in patterns:
            batch: list[bytes] = []
            for key in self._client.scan_iter(pattern, count=1000):
                batch.append(key)
                if len(batch) == 1000:
                    self._client.unlink(*batch)
                    self._keep()
                    batch = []
            if batch:
                self._client.unlink(*batch)

    # -- objects and histories -----------------------------------------------------------------------------------

    def _alerts(self) -> None:
        """Objects with their places, which candidate is whose, detections, forced points, versions sent."""
        objects: dict[str, _Object] = {}
        recent: list[Event] = []
        seen: set[int] = set()
        for event in self._events():
            if event.candid in seen:
                continue
            seen.add(event.candid)
            objects.setdefault(event.object_id, _Object(event, event, event)).meet(event)
            self._remember(event)
            if self.done.newest_jd - event.jd < REPEAT_SECONDS / _DAY:
                recent.append(event)
        for _, found in sorted(objects.items()):
            for event in (found.creator, found.first, found.last):
                self._object(event)
            self._count("objects")
        for event in recent:
            self._object(event)

    def _object(self, event: Event) -> None:
        ra, dec = event.row["ra"], event.row["dec"]
        self._history.add_object(event.object_id, ra, dec, event.jd, event.candid, moving=is_known_mover(event.row))

    def _remember(self, event: Event) -> None:
        self.done.newest_jd = max(self.done.newest_jd, event.jd)
        if self.done.newest_jd - event.jd < KEEP_DAYS:
            self._history.add_detections([(event.object_id, event.row)])
            self._history.add_forced([(event.object_id, point["pid"], _as_measured(point)) for point in event.forced])
            self._count("detections")
        version, pid = version_digits(event.candid), pid_of_candid(event.candid)
        if version > self._sent.get(pid, 0):
            self._sent[pid] = version
            self._versions.remember(pid, version)

    def _events(self) -> Iterator[Event]:
        """Every alert known, newest nights first; what was published counts before what is only enriched."""
        topics = load_topics(self._settings.topics_file)
        admin = make_admin(self._settings)
        with translated("looking for alert topics"):
            existing = sorted(admin.list_topics(timeout=15.0).topics, reverse=True)
        for topic in existing:
            spec = topics.spec_of(topic)
            if spec is not None and spec.nightly:
                for message in self._read(topic, committed_only=False):
                    yield from _packet_event(message.value)
        for night in sorted(archived_nights(self._store), reverse=True):
            for _, packet in iterate_packets(self._store, night):
                yield from _packet_event(packet)
        for _, batch in self._readable(self._read(SOURCE), decode_batch):
            for item in batch.items:
                if item.object_id is not None:
                    row = {name: item.candidate.get(name) for name in PRV_FIELDS}
                    yield Event(item.object_id, row, tuple(item.fp_hists or ()))

    def _read(self, topic: str, *, committed_only: bool = True) -> Iterator[RawMessage]:
        """A topic from its beginning to its end; nothing where it does not exist or is empty."""
        ends = ends_of(make_admin(self._settings), [topic]).get(topic, {})
        if any(ends.values()):
            yield from read_to_end(self._settings, {topic: {}}, "rebuild", read_committed=committed_only)

    def _readable(
        self, messages: Iterable[RawMessage], decode: Callable[[bytes], Decoded]
    ) -> Iterator[tuple[RawMessage, Decoded]]:
        """Messages and their records. What is no record was a dead letter once: one such must not stop a rebuild."""
        for message in messages:
            try:
                record = decode(message.value)
            except MessageError:
                self._count("unreadable")
                continue
            yield message, record

    def _read_done(self, topic: str, group: str) -> Iterator[RawMessage]:
        """What of a topic a group has dealt with and committed."""
        ends = ends_of(make_admin(self._settings), [topic]).get(topic, {})
        if not any(ends.values()):
            return
        consumer = make_consumer(self._settings, self._settings.group(group), "rebuild")
        try:
            with translated(f"asking where {group} stands"):
                places = consumer.committed([TopicPartition(topic, p) for p in sorted(ends)], timeout=15.0)
        finally:
            consumer.close()
        committed = {place.partition: place.offset for place in places}
        for message in self._read(topic):
            if message.offset < committed[message.partition]:
                yield message

    # -- the other memories ------------------------------------------------------------------------------------------

    def _coverage(self) -> None:
        """Epochs of the last two histories' length."""
        known: set[str] = set()
        for _, report in self._readable(self._read("ztf.quadrants"), decode_report):
            known.add(report.name)
            self._epoch(report)
        if not self.done.newest_jd:
            return
        first = night_of(self.done.newest_jd - KEEP_DAYS)
        for name, path in science_files(self._store, "_qa.json", first, night_of(self.done.newest_jd)):
            data = None if name in known else self._store.find(path)
            if data is not None:
                self._quality(data)

    def _quality(self, data: bytes) -> None:
        try:
            self._epoch(read_quality(data))
        except MessageError:  # damaged on disk: one epoch without its limit
            self._count("unreadable")

    def _epoch(self, report: QuadrantReport) -> None:
        if report.corners:
            self.done.newest_jd = max(self.done.newest_jd, report.jd)
            self._history.add_epoch(report)
            self._count("epochs")

    def _links(self) -> None:
        """What ``link`` has seen and sent."""
        stage, nights = LinkStage(self._client), set()
        for message, batch in self._readable(self._read_done("ztf.scored", "link"), decode_batch):
            if stage.remember(batch, version_of(message)):
                nights.add(night_of(batch.jd))
                self._count("link_batches")
        for message, tracklet in self._readable(self._read("ztf.tracklets"), decode_tracklet):
            by = f"{message.header('pid') or ''}:{message.header('chunk') or '0'}"
            if stage.remember_sent(tracklet, by):
                self._count("tracklets")
        for night in sorted(nights):  # what is committed was confirmed: these are with the public
            for tracklet in stage.linked(night, PUBLIC_PROGRAM):
                stage.remember_sent(tracklet, "", "movers")

    def _figures(self) -> None:
        """What ``status`` shows."""
        stage = MonitorStage(self._client)
        for topic in stage.sources:
            for message in self._read(topic):
                try:
                    stage.handle(message)
                except MessageError:  # it was a dead letter once, which is counted
                    continue
                self._count("monitored")
        for night in archived_nights(self._store):
            manifest = read_manifest(self._store, night)
            if manifest is not None:
                Monitor(self._client).close(night, unix_of(manifest["first_closed"]))

    def _published(self) -> None:
        """Batches that the emitter has finished. What left after its last commit its successor finds by itself."""
        marks = emitted(self._settings, self._client)
        for message in self._read_done(SOURCE, "emit"):
            marks.mark([batch_name(message)])
            self._count("published_batches")


def _packet_event(packet: bytes) -> Iterator[Event]:
    try:
        record = read_packet(packet)
    except MessageError:  # on an alert topic, but not ours
        return
    row = {name: record["candidate"].get(name) for name in PRV_FIELDS}
    yield Event(record["objectId"], row, tuple(record["fp_hists"] or ()))


def _as_measured(point: Row) -> Row:
    """A forced point of a packet as it was before it was packed: a float32 has nine digits, the rest is its own."""
    short = {k: float(f"{v:.9g}") for k, v in point.items() if isinstance(v, float) and float(np.float32(v)) == v}
    return {**point, **short}
