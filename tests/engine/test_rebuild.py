"""The hot state made anew, from topics and a store that also hold what nobody can read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from confluent_kafka import TopicPartition

from stream.alert import encode_batch, encode_report
from stream.alert.synthetic import synthetic_batch
from stream.core.records import QuadrantReport
from stream.engine.kafka import OutMessage, Sender, ends_of, make_admin, make_consumer, make_producer
from stream.engine.rebuild import rebuild_state
from stream.engine.state import Generation

pytestmark = pytest.mark.services
JD = 2458889.75  # a night of its own: other tests publish on the same broker
SOURCES = ("ztf.quadrants", "ztf.scored", "ztf.tracklets", "ztf.enriched")


def report(number: int) -> QuadrantReport:
    """A quadrant's quality record with a footprint."""
    corners = (150.0, 20.0, 150.9, 20.0, 150.9, 20.9, 150.0, 20.9)
    return QuadrantReport(
        f"ztf_20200210_{number}", 1, 2, 1, 1, 0, 1, 1, 1, number, 990100 + number, JD, JD, 30.0, corners=corners
    )


def commit_everything(settings, group: str, topic: str) -> None:
    """As a worker that has dealt with all of a topic."""
    consumer = make_consumer(settings, f"{settings.group_prefix}-{group}", "test")
    ends = ends_of(make_admin(settings), [topic])[topic]
    consumer.commit(offsets=[TopicPartition(topic, p, end) for p, end in ends.items()], asynchronous=False)
    consumer.close()


def test_what_cannot_be_read_does_not_stop_a_rebuild(settings, client, make_topic, tmp_path):
    """One foreign message on an internal topic, or one damaged file, would otherwise hold a whole night."""
    mine = settings.model_copy(update={"store": str(tmp_path / "store")})
    for topic in SOURCES:
        make_topic(topic, 2)
    sender = Sender(make_producer(settings, "test"))
    batch = replace(synthetic_batch(3, jd=JD), pid=990103)
    for topic in SOURCES:
        sender.send(OutMessage(topic, b"?", b"not a record at all"))
    sender.send(OutMessage("ztf.quadrants", b"1", encode_report(report(1))))
    sender.send(OutMessage("ztf.scored", b"1", encode_batch(batch)))
    for topic in SOURCES:
        sender.send(OutMessage(topic, b"?", b""))
    sender.flush()
    for group, topic in (("link", "ztf.scored"), ("emit", "ztf.enriched")):
        commit_everything(settings, group, topic)

    done = rebuild_state(mine, client)

    assert done.counts["unreadable"] >= 2 * len(SOURCES)
    assert done.counts["epochs"] >= 1
    assert done.counts["link_batches"] >= 1
    assert done.newest_jd >= JD
    assert client.exists("ztf:generation")
    assert Generation(client).current()
    assert json.dumps(done.as_dict())
