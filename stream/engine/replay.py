"""The past again: archived alerts onto a topic, byte for byte, at a speed of one's own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stream.archive import NightShelf, ProductStore, archived_nights
from stream.archive.manifest import PROGRAMS
from stream.core.errors import UsageError
from stream.core.records import Row
from stream.engine.config import Settings
from stream.engine.emit import CANDID
from stream.engine.kafka import OutMessage, Sender, encode_headers, make_admin, make_producer, translated
from stream.engine.ledger import unix_of_jd
from stream.engine.topics import PUBLIC_ALERTS, TopicsFile

TOPIC = "ztf.replay"
_RATE = re.compile(r"(?:x(?P<speed>\d+(?:\.\d+)?)|(?P<count>\d+(?:\.\d+)?)(?:/s)?)")
LONGEST_GAP = 3_600.0  # seconds: the day between two nights is not waited out


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast: ``speed`` times as it was, or ``count`` alerts a second; neither: as fast as the broker takes them."""

    speed: float | None = None
    count: float | None = None

    @classmethod
    def parse(cls, text: str) -> Rate:
        """``x10`` (ten times as it was), ``200`` or ``200/s`` (alerts a second), ``max``."""
        if text == "max":
            return cls()
        found = _RATE.fullmatch(text)
        values = {k: float(v) for k, v in found.groupdict().items() if v is not None} if found else {}
        if not values or min(values.values()) <= 0:
            raise UsageError(f"{text!r} is no rate: x10 is ten times as it was, 200 alerts a second, max all at once")
        return cls(**values)

    def schedule(self, published: Sequence[float]) -> Iterator[float]:
        """When each alert is due, seconds from the start; ``published`` in ascending order."""
        due = 0.0
        for k, when in enumerate(published):
            if self.speed is not None and k:
                due += min(when - published[k - 1], LONGEST_GAP) / self.speed
            elif self.count is not None:
                due = k / self.count
            yield due


def refuse(topic: str, existing: set[str], file: TopicsFile, force: bool) -> None:
    """Complain about a topic that must not be replayed to.

    Raises
    ------
    UsageError
        It does not exist; or subscribers would take the past for the present (a public or nightly topic of ours) or a
        stage would work on it, and ``force`` is not given.
    """
    spec = file.spec_of(topic)
    if topic not in existing:
        raise UsageError(f"there is no topic {topic} on this broker")
    taken = PUBLIC_ALERTS.match(topic) or (spec is not None and topic != TOPIC)
    if taken and not force:
        raise UsageError(
            f"{topic} is read by subscribers or stages, who would take the past for the present: replay to {TOPIC} or "
            "to a topic of your own, or --force it"
        )


@dataclass(frozen=True, slots=True)
class Archived:
    """An alert in the archive: its index row, and the shelf that has its bytes."""

    row: Row
    shelf: NightShelf

    @property
    def published(self) -> float:
        """When it was sent, unix seconds; what was never on a topic counts with the time of its exposure."""
        when = self.row.get("published")
        return unix_of_jd(self.row["jd"]) if when is None else float(when)


def archived(store: ProductStore, first: str, last: str, programs: Sequence[int] = PROGRAMS) -> list[Archived]:
    """The alerts of some nights (YYYYMMDD, both included) in the order in which they were published."""
    nights = [night for night in archived_nights(store) if first <= night <= last]
    shelves = [NightShelf(store, night, program) for night in nights for program in sorted(set(programs))]
    alerts = [Archived(row, shelf) for shelf in shelves for row in shelf.rows()]

    def place(alert: Archived) -> tuple[float, str, int, int]:
        row = alert.row
        return alert.published, row.get("topic") or "", row.get("kafka_offset") or 0, row["candid"]

    return sorted(alerts, key=place)


def message_of(alert: Archived, topic: str) -> OutMessage:
    """An archived alert as a message: the bytes and key it had, where and when it was in its headers."""
    row = alert.row
    origin = {
        CANDID: row["candid"],
        "origin.topic": row.get("topic"),
        "origin.partition": row.get("partition"),
        "origin.offset": row.get("kafka_offset"),
        "origin.timestamp": round(alert.published * 1000),
    }
    packet = alert.shelf.packet(row["candid"])
    return OutMessage(topic, str(row["candid"]).encode(), packet, encode_headers(origin))


def replay(
    settings: Settings,
    file: TopicsFile,
    alerts: Sequence[Archived],
    rate: Rate,
    topic: str = TOPIC,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda n: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Send archived alerts to a topic; returns how many were sent.

    Raises
    ------
    UsageError
        See :func:`refuse`.
    """
    admin = make_admin(settings)
    with translated("looking for the topic"):
        existing = set(admin.list_topics(timeout=15.0).topics)
    refuse(topic, existing, file, force)
    sender = Sender(make_producer(settings, "replay"))
    started = clock()
    for done, (alert, due) in enumerate(zip(alerts, rate.schedule([a.published for a in alerts]), strict=True), 1):
        wait = started + due - clock()
        if wait > 0:
            sleep(wait)
        sender.send(message_of(alert, topic))
        progress(done)
    sender.flush()
    return len(alerts)
