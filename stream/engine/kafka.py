"""Thin helpers over confluent-kafka: clients configured once, back-pressure, and its errors in our two families."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from stream.core.errors import BrokerUnavailable, MessageError, UsageError, ZtfError
from stream.engine.config import Settings

Headers = Sequence[tuple[str, bytes]]

# Errors of one message that no retry heals; everything else is the broker's or the network's.
_PERMANENT = frozenset(
    (
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError._VALUE_SERIALIZATION,
        KafkaError._KEY_SERIALIZATION,
        KafkaError._BAD_MSG,
    )
)
# The client itself is of no use any more: the process has to start again (and ask what already left).
_FENCED = frozenset(
    (
        KafkaError._FENCED,
        KafkaError._FATAL,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    )
)
REPORT = "report"  # header of a quadrant's first batch: its quality record
VERSION = "version"  # header: the version digits of a batch's candids
DELIVERY_TIMEOUT_MS = 120_000  # how long a message is tried before it counts as not delivered


class Fenced(ZtfError):
    """Another process has taken this worker's identity, or its client is beyond repair: leave, start again."""


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as it was read. ``headers`` keep their order; ``timestamp`` is in unix seconds, UTC."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: float = 0.0

    def header(self, name: str) -> str | None:
        """Text of the last header of that name, or ``None``."""
        value = self.raw_header(name)
        return None if value is None else value.decode("utf-8", "replace")

    def raw_header(self, name: str) -> bytes | None:
        """Bytes of the last header of that name, or ``None``."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


@dataclass(frozen=True, slots=True)
class OutMessage:
    """A message to be written. Without ``partition`` the key decides (murmur2, as the Java client does)."""

    topic: str
    key: bytes | None
    value: bytes | None  # None: what a compacted topic holds under this key is taken away
    headers: tuple[tuple[str, bytes], ...] = field(default=())
    partition: int = -1


def error_family(error: KafkaError, doing: str) -> ZtfError:
    """What a Kafka error means to us: ``MessageError`` (permanent), ``Fenced``, else ``BrokerUnavailable``."""
    text = f"Kafka, while {doing}: {error.str()} ({error.name()})"
    if error.code() in _PERMANENT:
        return MessageError(text, kafka_error=error.name())
    if error.code() in _FENCED or error.fatal():
        return Fenced(text)
    return BrokerUnavailable(text)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn a ``KafkaException`` raised inside into the error of our own that it means.

    The future of an administrator's request that got no answer in time raises ``TimeoutError``: ``BrokerUnavailable``.
    """
    try:
        yield
    except KafkaException as error:
        raise error_family(error.args[0], doing) from error
    except TimeoutError as error:
        raise BrokerUnavailable(f"Kafka, while {doing}: no answer in time") from error


def make_admin(settings: Settings) -> AdminClient:
    """A client for topics and groups."""
    return AdminClient({**settings.kafka(), "client.id": f"{settings.group_prefix}-admin", "log_level": 2})


def make_producer(settings: Settings, name: str, *, transactional_id: str = "", **extra: Any) -> Producer:
    """An idempotent producer: a message the broker took is never written twice by a retry of the client.

    Parameters
    ----------
    name : str
        For the client id, shown in the broker's logs and metrics.
    transactional_id : str
        Makes the producer transactional under this name.
    **extra
        librdkafka settings with ``_`` for ``.``.
    """
    conf: dict[str, Any] = {
        **settings.kafka(),
        "client.id": f"{settings.group_prefix}-{name}",
        "enable.idempotence": True,
        "acks": "all",
        "compression.type": "lz4",
        # Java's default partitioner, so that other people's clients find a key where ours put it.
        "partitioner": "murmur2_random",
        "linger.ms": 5,
        "message.max.bytes": 32 * 1024 * 1024,
        "queue.buffering.max.kbytes": 131_072,  # at most 128 MB wait in memory; then produce() is held back
        "queue.buffering.max.messages": 200_000,
        "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
        "log_level": 2,
    }
    if transactional_id:
        conf["transactional.id"] = transactional_id
        conf["transaction.timeout.ms"] = settings.transaction_timeout_ms
        conf["delivery.timeout.ms"] = settings.transaction_timeout_ms  # may not be longer than the transaction
        # Of a broker that was away the client would keep two handles, and a transaction's offsets would wait for the
        # one that is dead for ever (librdkafka #5511, #5456): what it knows of the cluster stays as it learnt it.
        conf["metadata.recovery.strategy"] = "none"
    conf.update({key.replace("_", "."): value for key, value in extra.items()})
    return Producer(conf)


def make_consumer(
    settings: Settings, group: str, name: str, *, instance_id: str = "", read_committed: bool = True, **extra: Any
) -> Consumer:
    """A consumer that commits only when told to, starts at the beginning of a topic that its group never read.

    ``instance_id`` makes its membership static: a restart takes the same partitions back without a rebalance.
    """
    conf: dict[str, Any] = {
        **settings.kafka(),
        "client.id": f"{settings.group_prefix}-{name}",
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed" if read_committed else "read_uncommitted",
        # Eager: all partitions are given out in one step. The cooperative protocol needs two, and a broker that died
        # between them left partitions with nobody, the group content, until somebody came or went.
        "partition.assignment.strategy": "range",
        "session.timeout.ms": settings.session_timeout_ms,
        "heartbeat.interval.ms": max(settings.session_timeout_ms // 4, 1000),
        "max.poll.interval.ms": settings.max_poll_interval_ms,
        "fetch.message.max.bytes": 17 * 1024 * 1024,
        "receive.message.max.bytes": 256 * 1024 * 1024,
        # A quadrant is 8 MB: some are read ahead, not a memory full of them.
        "queued.max.messages.kbytes": 65_536,
        "queued.min.messages": 100,
        "enable.partition.eof": False,
        "log_level": 2,
    }
    if instance_id:
        conf["group.instance.id"] = instance_id
    conf.update({key.replace("_", "."): value for key, value in extra.items()})
    return Consumer(conf)


def raw_message(message: Message) -> RawMessage:
    """A confluent message as our record (an error in it is raised, a missing value is empty bytes)."""
    error = message.error()
    if error is not None:
        raise error_family(error, f"reading {message.topic()}")
    headers = tuple((key, value or b"") for key, value in (message.headers() or ()))
    return RawMessage(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=message.key(),
        value=message.value() or b"",
        headers=headers,
        timestamp=message.timestamp()[1] / 1000.0,
    )


class Sender:
    """A producer with back-pressure whose delivery errors cannot be overlooked.

    :meth:`send` waits (up to ``patience`` seconds) while the client's buffer is full; an error of a message sent
    before is raised by the next :meth:`send` or by :meth:`flush`. After one, the outcome of everything that was
    unconfirmed is unknown: ask the broker what left before sending it again.
    """

    def __init__(self, producer: Producer, patience: float = 60.0) -> None:
        self.producer = producer
        self.patience = patience
        self._errors: list[KafkaError] = []
        self._watch: Callable[[Message], None] | None = None

    def on_delivered(self, watch: Callable[[Message], None] | None) -> None:
        """Have ``watch`` called with every message the broker confirmed (topic, partition, offset)."""
        self._watch = watch

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._errors.append(error)
        elif self._watch is not None:
            self._watch(message)

    def _raise_pending(self) -> None:
        if self._errors:
            first, count = self._errors[0], len(self._errors)
            self._errors.clear()
            raise error_family(first, f"delivering {count} message(s)")

    def send(self, out: OutMessage) -> None:
        """Hand one message to the client."""
        deadline = time.monotonic() + self.patience
        while True:
            self._raise_pending()
            try:
                with translated(f"writing to {out.topic}"):
                    self.producer.produce(
                        out.topic,
                        value=out.value,
                        key=out.key,
                        partition=out.partition,
                        headers=list(out.headers),
                        on_delivery=self._report,
                    )
            except BufferError:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"the broker took nothing for {self.patience:.0f} s; {len(self.producer)} messages are waiting"
                    ) from None
                self.producer.poll(0.1)
                continue
            self.producer.poll(0)
            return

    def flush(self, timeout: float = 130.0) -> None:
        """Wait until every message is confirmed."""
        left = self.producer.flush(timeout)
        self._raise_pending()
        if left:
            raise BrokerUnavailable(f"{left} message(s) not confirmed within {timeout:.0f} s")

    def forget(self) -> None:
        """Drop errors of messages that an aborted transaction has made void."""
        self._errors.clear()


def read_to_end(
    settings: Settings,
    starts: Mapping[str, Mapping[int, int]],
    name: str,
    *,
    read_committed: bool = True,
    stall: float = 30.0,
) -> Iterator[RawMessage]:
    """Every message of some topics from given offsets to the end as it is now; in no group, nothing is committed.

    Parameters
    ----------
    starts : mapping
        Topic to (partition to first offset); a partition that is not named is read from its beginning.
    stall : float
        Seconds without progress after which the broker counts as not answering.

    Raises
    ------
    UsageError
        A topic does not exist.
    BrokerUnavailable
        The broker does not answer.
    """
    left: dict[tuple[str, int], tuple[int, int]] | None = None  # partition -> offset to read next, end
    progress = time.monotonic()
    while left is None or left:
        consumer = make_consumer(
            settings,
            f"{settings.group_prefix}-{name}-reader",
            name,
            read_committed=read_committed,
            enable_partition_eof=True,
        )
        try:
            if left is None:
                left = _unread(consumer, starts)
            consumer.assign([TopicPartition(topic, p, begin) for (topic, p), (begin, _) in left.items()])
            for message in _read_while_it_flows(consumer, left):
                progress = time.monotonic()
                yield message
        finally:
            consumer.close()
        if left and time.monotonic() > progress + stall:
            raise BrokerUnavailable(f"nothing came from {', '.join(starts)} for {stall:.0f} s")


def _unread(consumer: Consumer, starts: Mapping[str, Mapping[int, int]]) -> dict[tuple[str, int], tuple[int, int]]:
    """Partitions with something between their start and their end as it is now: (start, end)."""
    left = {}
    for topic, offsets in starts.items():
        for partition, (low, high) in watermarks(consumer, topic).items():
            first = max(offsets.get(partition, low), low)
            if first < high:
                left[topic, partition] = first, high
    return left


def _read_while_it_flows(
    consumer: Consumer, left: dict[tuple[str, int], tuple[int, int]], patience: float = 5.0
) -> Iterator[RawMessage]:
    """Messages until ``left`` is read (it is brought up to date), or nothing has come for ``patience`` seconds.

    A client that was made while a broker restarted may wait for minutes on what it learnt then; a new one does not.
    """
    quiet = time.monotonic()
    while left and time.monotonic() < quiet + patience:
        message = consumer.poll(0.5)
        if message is None:
            continue
        error = message.error()
        place = (message.topic() or "", message.partition() or 0)
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            left.pop(place, None)
            continue
        try:
            found = raw_message(message)
        except BrokerUnavailable:
            continue
        quiet = time.monotonic()
        end = left[place][1] if place in left else 0
        if found.offset + 1 < end:
            left[place] = found.offset + 1, end
        else:
            left.pop(place, None)
        if found.offset < end:  # else written after we began
            yield found


def watermarks(consumer: Consumer, topic: str, timeout: float = 15.0) -> dict[int, tuple[int, int]]:
    """First offset and the one after the last, of every partition of a topic; ``UsageError`` if there is no topic.

    A partition without a leader (a topic made this instant, a broker restarting) is asked again until ``timeout``.
    """
    deadline = time.monotonic() + timeout
    with translated(f"looking at {topic}"):
        metadata = consumer.list_topics(topic, timeout=timeout).topics[topic]
    if metadata.error is not None:
        if metadata.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise UsageError(f"there is no topic {topic} on this broker: run 'ztf-stream topics apply'")
        raise error_family(metadata.error, f"looking at {topic}")
    found = {}
    for partition in sorted(metadata.partitions):
        while partition not in found:
            try:
                with translated(f"looking at {topic}"):
                    place = TopicPartition(topic, partition)
                    found[partition] = consumer.get_watermark_offsets(place, timeout=min(timeout, 3.0))
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
    return found


def ends_of(admin: AdminClient, topics: Sequence[str], timeout: float = 15.0) -> dict[str, dict[int, int]]:
    """Topic to (partition to the offset after its last message), of topics that exist, in one request a broker.

    For a process that reads at the same time: a consumer's own questions wait behind its fetches, half a second each.
    """
    with translated("looking at topics"):
        metadata = admin.list_topics(timeout=timeout).topics
    places = [(topic, p) for topic in topics if topic in metadata for p in sorted(metadata[topic].partitions)]
    ends: dict[str, dict[int, int]] = {topic: {} for topic, _ in places}
    deadline = time.monotonic() + timeout
    while places:
        asked = {TopicPartition(topic, p): OffsetSpec.latest() for topic, p in places}
        failed = []
        for place, future in admin.list_offsets(asked, request_timeout=timeout).items():
            try:
                with translated(f"looking at {place.topic}"):
                    ends[place.topic][place.partition] = future.result(timeout).offset
            except BrokerUnavailable:  # no leader yet: the topic was made this instant
                if time.monotonic() > deadline:
                    raise
                failed.append((place.topic, place.partition))
        places = failed
        if places:
            time.sleep(0.05)
    return {topic: dict(sorted(partitions.items())) for topic, partitions in ends.items()}


def encode_headers(pairs: Mapping[str, str | int | float | None]) -> tuple[tuple[str, bytes], ...]:
    """Headers of a message from plain values, ``None`` left out."""
    return tuple((key, str(value).encode()) for key, value in pairs.items() if value is not None)
