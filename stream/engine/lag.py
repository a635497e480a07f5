"""How far a consumer group is behind the end of a topic."""

from __future__ import annotations

from confluent_kafka import TopicPartition

from stream.core.errors import UsageError
from stream.engine.config import Settings
from stream.engine.kafka import make_consumer, translated, watermarks


def group_lag(settings: Settings, group: str, topic: str, *, transactional: bool = False) -> int:
    """Messages of ``topic`` that ``group`` has not finished; 0 for a topic that does not exist.

    ``transactional`` says that the topic is written in transactions: each ends with a marker that takes up an offset
    and is no message, and the last one stays behind the group until more comes.
    """
    consumer = make_consumer(settings, group, "lag")
    try:
        try:
            ends = watermarks(consumer, topic)
        except UsageError:
            return 0
        with translated(f"asking where {group} stands"):
            places = consumer.committed([TopicPartition(topic, partition) for partition in ends], timeout=15.0)
        return sum(
            max(0, ends[place.partition][1] - max(place.offset, ends[place.partition][0]) - transactional)
            for place in places
        )
    finally:
        consumer.close()
