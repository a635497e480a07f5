"""What Kafka's errors become: one of our families, whichever way they come."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream.core.errors import BrokerUnavailable, MessageError
from stream.engine.config import Settings
from stream.engine.kafka import Fenced, ends_of, translated
from stream.engine.lag import Work, lags


@pytest.mark.parametrize(
    ("code", "family"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, MessageError),
        (KafkaError.FENCED_INSTANCE_ID, Fenced),
        (KafkaError.PRODUCER_FENCED, Fenced),
        (KafkaError.COORDINATOR_NOT_AVAILABLE, BrokerUnavailable),
    ],
)
def test_errors_are_of_one_family(code, family):
    with pytest.raises(family, match="while reading"), translated("reading"):
        raise KafkaException(KafkaError(code))


def test_an_administrators_request_without_an_answer_is_an_unavailable_broker():
    with pytest.raises(BrokerUnavailable, match="while asking: no answer in time"), translated("asking"):
        Future().result(timeout=0.01)


class Silent:
    """An administrator whose requests are taken and never answered, as by a broker that is loading its logs."""

    def __init__(self, topics):
        self._topics = topics

    def list_topics(self, timeout):
        return self

    @property
    def topics(self):
        return dict.fromkeys(self._topics, self)

    @property
    def partitions(self):
        return {0: None}

    def list_offsets(self, asked, request_timeout):
        return {TopicPartition(place.topic, place.partition): Future() for place in asked}


def test_lag_without_an_answer_says_so(monkeypatch):
    monkeypatch.setattr("stream.engine.lag._TIMEOUT", 0.01)
    with pytest.raises(BrokerUnavailable, match="no answer in time"):
        lags(Settings(), {"stage": Work("group", ("t",))}, Silent(["t"]))
    with pytest.raises(BrokerUnavailable, match="no answer in time"):
        ends_of(Silent(["t"]), ["t"], timeout=0.01)
