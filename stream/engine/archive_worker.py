"""The archive worker: a subscriber of every nightly alert topic that keeps what was sent, byte for byte.

It reads the public topics themselves, by pattern, which Faust cannot subscribe to; what it keeps is therefore what a
broker got, not what we meant to send. A batch is written and then its offsets are committed; a repeat after a crash
is recognised by candid. A client that reads nothing while there is something to read does not come back by itself: the
worker asks after a silence, and leaves to be started again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

import structlog
from confluent_kafka import TopicPartition

from stream.archive import PacketArchive, ProductStore, Sent
from stream.core.errors import BrokerUnavailable, MessageError, Retriable
from stream.engine import deadletters, metrics
from stream.engine.config import Settings
from stream.engine.heartbeat import Heartbeat
from stream.engine.kafka import RawMessage, Sender, make_admin, make_consumer, make_producer, raw_message, translated
from stream.engine.lag import Work, lags
from stream.engine.watchdog import COMMIT_SECONDS, Leave, Watchdog

log = structlog.get_logger(__name__)

# librdkafka matches with POSIX extended expressions, which know no \d.
ALERT_TOPICS = "^ztf_[0-9]{8}_programid[0-3]$"
BATCH = 500
SILENCE_SECONDS = 15.0  # after which it is asked whether there is anything to read; twice in a row is no coincidence
WAIT_SECONDS = 1.0  # a batch is closed after this long, so that an alert is in the archive a second after it left


def next_offsets(messages: Sequence[RawMessage]) -> list[TopicPartition]:
    """Where each partition of these messages goes on: one behind the last of them."""
    last: dict[tuple[str, int], int] = {}
    for message in messages:
        place = message.topic, message.partition
        last[place] = max(last.get(place, -1), message.offset)
    return [TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in sorted(last.items())]


def archive_lag(settings: Settings) -> int:
    """Packets on the nightly topics that the archive has not dealt with."""
    admin = make_admin(settings)
    with translated("looking at topics"):
        nightly = [name for name in admin.list_topics(timeout=15.0).topics if re.match(ALERT_TOPICS, name)]
    return lags(settings, {"archive": Work(settings.group("archive"), tuple(nightly))}, admin)["archive"]


def _sent(message: RawMessage) -> Sent:
    return Sent(message.value, message.topic, message.partition, message.offset, message.timestamp)


class ArchiveWorker:
    """Consumes nightly topics into a ``PacketArchive``. What it has read it holds until it is written and committed."""

    def __init__(self, settings: Settings, heartbeat: Heartbeat | None = None, leave: Leave | None = None) -> None:
        self._heartbeat = heartbeat
        self._watchdog = Watchdog(leave)
        self._leave = leave
        self._silent_since, self._behind = time.monotonic(), 0
        self._settings = settings
        self._archive = PacketArchive(ProductStore(settings.store))
        self._letters = Sender(make_producer(settings, "archive-letters"))
        self._held: list[RawMessage] = []
        self._consumer = make_consumer(
            settings,
            f"{settings.group_prefix}-archive",
            "archive",
            # No static membership: a broker that died hands a static member that comes back its old assignment, without
            # the topics that are new since, however often it is started again.
            # A night's topic appears with its first alert: look for new ones often.
            topic_metadata_refresh_interval_ms=2_000,
        )
        self._consumer.subscribe([ALERT_TOPICS])

    def step(self) -> int:
        """Take one batch: write it, then commit. Returns how many packets it held.

        Raises
        ------
        Retriable
            The broker or the store failed: the next call goes on with the same batch.
        """
        if not self._held:
            self._held = self._read()
        if not self._held:
            self._after_silence()
            return 0
        self._silent_since, self._behind = time.monotonic(), 0
        self._keep(self._held)
        doing = "committing the archive's offsets"
        with translated(doing), self._watchdog.limit(doing, COMMIT_SECONDS):
            self._consumer.commit(offsets=next_offsets(self._held), asynchronous=False)
        done, self._held = len(self._held), []
        metrics.MESSAGES.labels("archive", "ok").inc(done)
        if self._heartbeat is not None:
            self._heartbeat.note("waiting", done=done)
        return done

    def _after_silence(self) -> None:
        """Leave if nothing has been read for two silences although there was something after each."""
        if self._leave is None or time.monotonic() < self._silent_since + SILENCE_SECONDS:
            return
        behind = archive_lag(self._settings)
        if behind and self._behind:
            self._leave(f"reading alerts: nothing came, {behind} are waiting")
        self._silent_since, self._behind = time.monotonic(), behind

    def _read(self) -> list[RawMessage]:
        with translated("reading alerts"):
            messages = self._consumer.consume(BATCH, WAIT_SECONDS)
        read = []
        for message in messages:
            try:
                read.append(raw_message(message))
            except BrokerUnavailable as error:  # a notice between messages; those beside it count all the same
                log.debug("notice", stage="archive", error=str(error))
        return read

    def _keep(self, messages: Sequence[RawMessage]) -> None:
        """Archive packets; what is no packet becomes a dead letter and does not hold back the others."""
        try:
            self._archive.add([_sent(message) for message in messages])
            return
        except MessageError:
            pass
        for message in messages:
            try:
                self._archive.add([_sent(message)])
            except MessageError as error:
                log.error("dead letter", stage="archive", topic=message.topic, error=str(error))
                letter = deadletters.letter_of_message(
                    message, error, worker="archive", now=time.time(), limit=self._settings.deadletter_value_bytes
                )
                self._letters.send(deadletters.encode(letter))
        self._letters.flush()

    def run(self, stopped: Callable[[], bool]) -> None:
        """Archive until told to stop; outside failures are waited out."""
        try:
            while not stopped():
                try:
                    self.step()
                except Retriable as error:
                    log.warning("retrying", stage="archive", error=str(error))
                    metrics.RETRIES.labels("archive", type(error).__name__).inc()
                    time.sleep(2.0)
        finally:
            self._consumer.close()
