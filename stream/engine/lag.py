"""How far consumer groups are behind the ends of their topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from stream.engine.config import Settings
from stream.engine.kafka import make_admin, read_to_end, translated

_TIMEOUT = 15.0
_MARKERS_AT_MOST = 32  # offsets in a row that may be markers of transactions only: as many as there are producers
_Ends = dict[tuple[str, int], tuple[int, int]]  # (topic, partition) -> first offset, the one after the last


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage works off: its group and topics, and which of these are written in transactions."""

    group: str
    topics: tuple[str, ...]
    transactional: bool = False


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
        left = _behind(admin, work.group, [p for p in places if p.topic in work.topics], ends)
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


def behind(admin: AdminClient, group: str, places: Sequence[TopicPartition]) -> dict[tuple[str, int], int]:
    """Offsets of each partition, by (topic, partition), that a group has not finished; markers count."""
    return _behind(admin, group, places, _ends(admin, places))


def _behind(
    admin: AdminClient, group: str, places: Sequence[TopicPartition], ends: _Ends
) -> dict[tuple[str, int], int]:
    committed = _committed(admin, group, places)
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


def _committed(admin: AdminClient, group: str, places: Sequence[TopicPartition]) -> dict[tuple[str, int], int]:
    if not places:
        return {}
    asked = ConsumerGroupTopicPartitions(group, list(places))
    with translated(f"asking where {group} stands"):
        answer = admin.list_consumer_group_offsets([asked], request_timeout=_TIMEOUT)[group].result(_TIMEOUT)
    return {(p.topic, p.partition): p.offset for p in answer.topic_partitions if p.error is None}


def group_lag(settings: Settings, group: str, topic: str, *, transactional: bool = False) -> int:
    """Messages of one topic that a group has not finished, see :func:`lags`."""
    return lags(settings, {group: Work(group, (topic,), transactional)})[group]
