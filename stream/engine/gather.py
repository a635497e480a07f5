"""Everything a night put onto its topics, gathered as a subscriber: for summaries and tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from confluent_kafka import TopicPartition

from stream.alert import decode_report, decode_tracklet, read_packet
from stream.core.errors import BrokerUnavailable, MessageError
from stream.core.records import QuadrantReport, Row, Tracklet
from stream.engine import ledger
from stream.engine.config import Settings
from stream.engine.deadletters import DeadLetter, decode
from stream.engine.kafka import RawMessage, make_admin, make_consumer, raw_message, translated

STREAM_TOPICS = ("ztf.quadrants", "ztf.deadletters", "ztf.tracklets", "ztf.streaks")


@dataclass(slots=True)
class Gathered:
    """What was read so far. Repeats (by pid, letter id, track id) replace each other; alerts are kept as they came."""

    reports: dict[int, QuadrantReport] = field(default_factory=dict)
    ledgers: dict[int, dict[str, float]] = field(default_factory=dict)  # of quadrants, by pid
    letters: dict[str, DeadLetter] = field(default_factory=dict)
    tracklets: dict[int, Tracklet] = field(default_factory=dict)
    n_streaks: int = 0
    alerts: dict[str, list[Row]] = field(default_factory=dict)  # packets by topic
    packets: list[bytes] = field(default_factory=list)
    n_unreadable: int = 0  # messages that are not what their topic carries

    @property
    def n_alerts(self) -> int:
        """Alerts of all topics."""
        return sum(len(packets) for packets in self.alerts.values())

    @property
    def n_expected(self) -> int:
        """Alerts that the quality records announce."""
        return sum(report.n_candidates or 0 for report in self.reports.values())


class NightReader:
    """Reads the stream's topics and the nightly alert topics from their beginnings, without committing anything."""

    def __init__(self, settings: Settings, *, read_committed: bool = True) -> None:
        self._admin = make_admin(settings)
        self._consumer = make_consumer(
            settings, f"{settings.group_prefix}-night-reader", "night-reader", read_committed=read_committed
        )
        self._assigned: set[tuple[str, int]] = set()
        self.idle = False  # whether the last poll found nothing
        self.gathered = Gathered()

    def __enter__(self) -> NightReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def poll(self, seconds: float = 0.5) -> int:
        """Read what has come; how many messages."""
        self._assign()
        with translated("reading the night"):
            messages = self._consumer.consume(500, seconds)
        for message in messages:
            try:
                found = raw_message(message)
            except BrokerUnavailable:  # a notice between messages, as while the broker starts again
                continue
            self._take(found)
        self.idle = not messages
        return len(messages)

    def until(self, enough: Callable[[Gathered], bool], timeout: float) -> bool:
        """Read until ``enough`` says so; False if that did not happen within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not enough(self.gathered):
            self.poll()
            if time.monotonic() > deadline:
                return enough(self.gathered)
        return True

    def _assign(self) -> None:
        """Take up topics as they appear: a night's topic is made with its first alert."""
        with translated("listing topics"):
            topics = self._admin.list_topics(timeout=10).topics
        found = {
            (name, partition)
            for name, topic in topics.items()
            if name in STREAM_TOPICS or (name.startswith("ztf_") and "_programid" in name)
            for partition in topic.partitions
        }
        new = sorted(found - self._assigned)
        if new:
            self._consumer.incremental_assign([TopicPartition(name, partition, 0) for name, partition in new])
            self._assigned |= found

    def _take(self, message: RawMessage) -> None:
        """Keep what the message says. One that cannot be read is counted: it must not hide the rest of the night."""
        try:
            self._keep(message)
        except MessageError:
            self.gathered.n_unreadable += 1

    def _keep(self, message: RawMessage) -> None:
        g = self.gathered
        if message.topic == "ztf.quadrants":
            report = decode_report(message.value)
            g.reports[report.pid] = report
            g.ledgers[report.pid] = ledger.read(message.headers)
        elif message.topic == "ztf.deadletters":
            letter = decode(message.value)
            g.letters[letter.id] = letter
        elif message.topic == "ztf.tracklets":
            tracklet = decode_tracklet(message.value)
            g.tracklets[tracklet.trackid] = tracklet
        elif message.topic == "ztf.streaks":
            g.n_streaks += 1
        else:
            packet = read_packet(message.value)
            g.alerts.setdefault(message.topic, []).append(packet)
            g.packets.append(message.value)
