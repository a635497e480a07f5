"""The archive worker: a subscriber of every nightly alert topic that keeps what was sent, byte for byte.

It reads the public topics themselves, by pattern, which Faust cannot subscribe to; what it keeps is therefore what a
broker got, not what we meant to send. A batch is written and then its offsets are committed; a repeat after a crash
is recognised by candid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
from confluent_kafka import TopicPartition

from stream.archive import PacketArchive, ProductStore
from stream.core.errors import Retriable
from stream.engine import metrics
from stream.engine.config import Settings
from stream.engine.kafka import RawMessage, make_consumer, raw_message, translated

log = structlog.get_logger(__name__)

ALERT_TOPICS = r"^ztf_\d{8}_programid[0-3]$"
BATCH = 500
WAIT_SECONDS = 1.0  # a batch is closed after this long, so that an alert is in the archive a second after it left


def next_offsets(messages: Sequence[RawMessage]) -> list[TopicPartition]:
    """Where each partition of these messages goes on: one behind the last of them."""
    last: dict[tuple[str, int], int] = {}
    for message in messages:
        place = message.topic, message.partition
        last[place] = max(last.get(place, -1), message.offset)
    return [TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in sorted(last.items())]


class ArchiveWorker:
    """Consumes nightly topics into a ``PacketArchive``."""

    def __init__(self, settings: Settings) -> None:
        self._archive = PacketArchive(ProductStore(settings.store))
        self._consumer = make_consumer(
            settings,
            f"{settings.group_prefix}-archive",
            "archive",
            instance_id=f"{settings.group_prefix}-archive-0",
            # A night's topic appears with its first alert: look for new ones often.
            topic_metadata_refresh_interval_ms=2_000,
        )
        self._consumer.subscribe([ALERT_TOPICS])

    def step(self) -> int:
        """Take one batch: write it, then commit. Returns how many packets it held."""
        with translated("reading alerts"):
            messages = self._consumer.consume(BATCH, WAIT_SECONDS)
        read: list[RawMessage] = [raw_message(message) for message in messages]
        if not read:
            return 0
        self._archive.add([message.value for message in read])
        with translated("committing the archive's offsets"):
            self._consumer.commit(offsets=next_offsets(read), asynchronous=False)
        metrics.MESSAGES.labels("archive", "ok").inc(len(read))
        return len(read)

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
