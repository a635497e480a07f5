"""How far consumer groups are behind the ends of their topics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from stream.core.errors import BrokerUnavailable
from stream.engine.config import Settings
from stream.engine.kafka import make_admin, make_consumer, read_to_end, translated

_TIMEOUT = 15.0
_PAUSE = 0.2  # seconds between two questions to a coordinator that is just being made
_MARKERS_AT_MOST = 32  # offsets in a row that may be markers of transactions only: as many as there are producers
_Ends = dict[tuple[str, int], tuple[int, int]]  # (topic, partition) -> first offset, the one after the last


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage works off: its group and topics, and which of these are written in transactions."""

    group: str
    topics: tuple[str, ...]
    transactional: bool = False


class GroupOffsets:
    """Where a consumer group stands, asked by a consumer that joins nothing.

    Not by an administrator: where the group's coordinator is just moving or being made (a broker that started this
    instant, a group nobody has used), its answer kills the process that asked (librdkafka's issue 5040).
    """

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings, self._group = settings, group
        self._consumer: Consumer | None = None

    def committed(self, places: Sequence[TopicPartition], timeout: float = _TIMEOUT) -> dict[tuple[str, int], int]:
        """Committed offset by (topic, partition); negative where there is none.

        Raises
        ------
        BrokerUnavailable
            No answer in time. The next question is asked by a new client.
        """
        deadline = time.monotonic() + timeout
        while places:
            if self._consumer is None:
                # Uncommitted: an open transaction is no reason to wait, what it changes is not done yet.
                self._consumer = make_consumer(self._settings, self._group, "lag", read_committed=False)
            try:
                with translated(f"asking where {self._group} stands"):
                    left = max(deadline - time.monotonic(), 0.01)
                    answer = self._consumer.committed(list(places), timeout=left)
                return {(p.topic, p.partition): p.offset for p in answer if p.error is None}
            except BrokerUnavailable:
                self.close()
                if time.monotonic() + _PAUSE > deadline:
                    raise
                time.sleep(_PAUSE)
        return {}

    def close(self) -> None:
        """Give the client back."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def stage_work(settings: Settings, nightly: Sequence[str] = ()) -> dict[str, Work]:
    """Every stage of the system; ``nightly`` are the alert topics that the archive reads."""
    return {
        "pixels": Work(settings.group("pixels"), ("ztf.raw",)),
        "backlog": Work(settings.group("pixels"), ("ztf.raw.backlog",), True),
        "score": Work(settings.group("score"), ("ztf.candidates",), True),
        "enrich": Work(settings.group("enrich"), ("ztf.scored",)),
        "emit": Work(settings.group("emit"), ("ztf.enriched",)),
        "link": Work(settings.group("link"), ("ztf.scored",)),
        "monitor": Work(settings.group("monitor"), ("ztf.quadrants", "ztf.fakes"), True),
        "archive": Work(settings.group("archive"), tuple(nightly)),
    }


def lags(settings: Settings, stages: Mapping[str, Work], admin: AdminClient | None = None) -> dict[str, int]:
    """Messages that each stage has not finished, in three rounds of questions; a topic that does not exist counts 0.

    A transaction ends with a marker that takes up an offset and is no message. Markers after the last message stay
    behind the group until more comes: one, or several where transactions of several producers overlapped or one was
    aborted. What could be markers only is therefore read; a long lag is counted as it is, but for the last marker.
    """
    admin = make_admin(settings) if admin is None else admin
    with translated("looking at topics"):
        metadata = admin.list_topics(timeout=_TIMEOUT).topics
    topics = sorted({topic for work in stages.values() for topic in work.topics if topic in metadata})
    places = [TopicPartition(topic, p) for topic in topics for p in sorted(metadata[topic].partitions)]
    ends = _ends(admin, places)
    found = {}
    for name, work in stages.items():
        offsets = GroupOffsets(settings, work.group)
        try:
            left = _behind(offsets, [p for p in places if p.topic in work.topics], ends)
        finally:
            offsets.close()
        found[name] = _messages(settings, left, ends) if work.transactional else sum(left.values())
    return found


def _messages(settings: Settings, left: Mapping[tuple[str, int], int], ends: _Ends) -> int:
    """Messages among so many last offsets of partitions written in transactions."""
    read: dict[str, dict[int, int]] = {}
    counted = 0
    for (topic, partition), count in left.items():
        short = 1 < count <= _MARKERS_AT_MOST
        read.setdefault(topic, {})[partition] = ends[topic, partition][1] - (count if short else 0)
        counted += 0 if short else max(0, count - 1)
    starts = {topic: begin for topic, begin in read.items() if any(ends[topic, p][1] > at for p, at in begin.items())}
    return counted + sum(1 for _ in read_to_end(settings, starts, "lag")) if starts else counted


def behind(admin: AdminClient, offsets: GroupOffsets, places: Sequence[TopicPartition]) -> dict[tuple[str, int], int]:
    """Offsets of each partition, by (topic, partition), that a group has not finished; markers count."""
    return _behind(offsets, places, _ends(admin, places))


def _behind(offsets: GroupOffsets, places: Sequence[TopicPartition], ends: _Ends) -> dict[tuple[str, int], int]:
    committed = offsets.committed(places)
    at = [(p.topic, p.partition) for p in places]
    return {place: max(0, ends[place][1] - max(committed.get(place, -1), ends[place][0])) for place in at}


def _ends(admin: AdminClient, places: Sequence[TopicPartition]) -> _Ends:
    low, high = _offsets(admin, places, OffsetSpec.earliest()), _offsets(admin, places, OffsetSpec.latest())
    return {place: (low[place], high[place]) for place in low}


def _offsets(admin: AdminClient, places: Sequence[TopicPartition], spec: OffsetSpec) -> dict[tuple[str, int], int]:
    if not places:
        return {}
    answers = admin.list_offsets(dict.fromkeys(places, spec), request_timeout=_TIMEOUT)
    with translated("looking at the ends of topics"):
        return {(p.topic, p.partition): future.result(_TIMEOUT).offset for p, future in answers.items()}


def group_lag(settings: Settings, group: str, topic: str, *, transactional: bool = False) -> int:
    """Messages of one topic that a group has not finished, see :func:`lags`."""
    return lags(settings, {group: Work(group, (topic,), transactional)})[group]
