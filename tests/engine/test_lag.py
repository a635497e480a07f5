"""What a stage has not finished, where offsets are taken up by what is no message."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition

from stream.engine.kafka import OutMessage, Sender, make_consumer, make_producer
from stream.engine.lag import group_lag

pytestmark = pytest.mark.services


@pytest.fixture
def producers(settings):
    """Two transactional producers, as two quadrant workers have them."""
    made = [make_producer(settings, "test", transactional_id=f"{settings.group_prefix}-lag-test-{k}") for k in range(2)]
    for producer in made:
        producer.init_transactions(30)
    return made


def overlapping(producers, topic: str, *, commit: tuple[bool, bool] = (True, True)) -> None:
    """A message of each, then the end of each transaction: two markers in a row."""
    for producer in producers:
        producer.begin_transaction()
        sender = Sender(producer)
        sender.send(OutMessage(topic, b"k", b"v", (), 0))
        sender.flush()
    for producer, well in zip(producers, commit, strict=True):
        producer.commit_transaction(30) if well else producer.abort_transaction(30)


@pytest.mark.parametrize("commit", [(True, True), (False, True), (True, False)], ids=str)
def test_markers_after_the_last_message_are_not_lag_however_many(settings, prefix, make_topic, producers, commit):
    topic, group = make_topic(f"{prefix}.written"), settings.group("reader")

    def lag() -> int:
        return group_lag(settings, group, topic, transactional=True)

    overlapping(producers, topic, commit=commit)
    assert lag() == sum(commit)
    consumer = make_consumer(settings, group, "reader")
    # As a stage commits it: the offset after the last message that it was given.
    last = 1 if commit[1] else 0
    consumer.commit(offsets=[TopicPartition(topic, 0, last + 1)], asynchronous=False)
    assert lag() == 0
    overlapping(producers, topic)
    assert lag() == 2
    consumer.close()
