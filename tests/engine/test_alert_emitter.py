"""The emitter: every alert exactly once for a read_uncommitted reader, whatever dies when."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest
from engine_helpers import in_thread, send, wait
from engine_process import ALERTS
from hypothesis import given
from hypothesis import strategies as st
from services import whole_state

from stream.core.errors import StateUnavailable
from stream.engine import ledger
from stream.engine.deadletters import list_letters
from stream.engine.emit import (
    AlertOut,
    Emitter,
    batch_name,
)
from stream.engine.ends import METADATA_BYTES, decode_ends, encode_ends, positions_to_commit
from stream.engine.kafka import OutMessage, RawMessage, Sender, make_consumer, make_producer, read_to_end
from stream.engine.processes import tail
from stream.engine.state import connect


def published(settings, topic: str) -> list[RawMessage]:
    return list(read_to_end(settings, {topic: {}}, "subscriber", read_committed=False))


def candids(settings, topic: str) -> Counter[int]:
    try:
        return Counter(int(message.header("candid")) for message in published(settings, topic))
    except Exception as error:
        if "there is no topic" in str(error):
            return Counter()
        raise


def expected(pids) -> Counter[int]:
    return Counter(pid * 100 + i for pid in pids for i in range(ALERTS))


def send_batches(settings, topic: str, pids: list[int], partitions: int) -> None:
    sender = Sender(make_producer(settings, "test"))
    for number, pid in enumerate(pids):
        headers = (("pid", str(pid).encode()), ("chunk", b"0"), ("t.arrived", b"100.000"))
        sender.send(OutMessage(topic, str(pid).encode(), str(pid).encode(), headers, number % partitions))
    sender.flush()


@pytest.mark.services
def test_killed_at_every_step_each_alert_leaves_once(settings, prefix, make_topic, launch, tmp_path):
    source, target, permanent = make_topic(f"{prefix}.in", 2), "ztf_20170201_programid1", "ztf.alerts.programid3"
    both = f"{target},{permanent}"
    pids = list(range(1, 25))
    # The stages before deliver at least once: some batches come twice.
    send_batches(settings, source, [*pids, 3, 8, 20, 24], 2)
    log = tmp_path / "worker.log"
    deaths = [("consumed", 1), ("sent", 7), ("flushed", 1), ("sent", 13), ("marked", 1), ("committed", 1), ("sent", 1)]
    for step, number in deaths:
        assert launch("emit", source, both, step, number).wait(30) == -9, tail(log)
    launch("emit", source, both)
    wait(lambda: len(candids(settings, permanent)) == len(expected(pids)), log)
    time.sleep(1.0)  # were something to come twice, it would come now
    for topic in (target, permanent):
        assert candids(settings, topic) == expected(pids), log.read_text()
    message = published(settings, target)[0]
    times = ledger.read(message.headers)
    assert times["arrived"] == 100.0
    assert times["published"] > 1.5e9


def maker(topic: str):
    def make(message: RawMessage) -> list[AlertOut]:
        pid = int(message.value)
        return [AlertOut(topic, b"k", b"a", pid * 100 + i) for i in range(ALERTS)]

    return make


@pytest.mark.services
def test_redis_that_forgot_everything_makes_no_duplicates(settings, prefix, make_topic, launch, tmp_path):
    source, target = make_topic(f"{prefix}.in"), "ztf_20170202_programid1"
    log = tmp_path / "worker.log"
    send_batches(settings, source, [1, 2, 3, 4, 5], 1)
    assert launch("emit", source, target, "flushed", 1).wait(30) == -9, tail(log)
    connect(settings).flushdb()
    whole_state(connect(settings))
    with in_thread(Emitter(settings, maker(target), connect(settings), source=source)):
        wait(lambda: len(candids(settings, target)) == 5 * ALERTS, log)
        # The same process, the same batches again: remembered without Redis.
        connect(settings).flushdb()
        send_batches(settings, source, [4, 5, 6], 1)
        time.sleep(1.0)
        assert candids(settings, target) == expected(range(1, 6)), "until the state is whole again nothing leaves"
        whole_state(connect(settings))
        wait(lambda: len(candids(settings, target)) == 6 * ALERTS, log)
    assert candids(settings, target) == expected(range(1, 7))


@pytest.mark.services
def test_bad_batches_and_bad_alerts_become_dead_letters(settings, prefix, make_topic, tmp_path):
    make_topic("ztf.deadletters", 4)
    source, target = make_topic(f"{prefix}.in"), "ztf_20170203_programid3"

    def make(message: RawMessage) -> list[AlertOut]:
        pid = int(message.value)
        if pid == 2:
            raise ValueError("a defect")
        topic = "ztf.raw" if pid == 3 else target
        value = b"x" * (5_000_000 if pid == 4 else 10)
        return [AlertOut(topic, b"k", value, pid * 100)]

    send_batches(settings, source, [1, 2, 3, 4, 5], 1)
    with in_thread(Emitter(settings, make, connect(settings), source=source)):
        wait(lambda: len(candids(settings, target)) == 2)
        wait(lambda: len([x for x in list_letters(settings) if x.topic == source]) == 3)
    assert candids(settings, target) == Counter([100, 500])
    letters = {int(x.context["pid"]): x for x in list_letters(settings) if x.topic == source}
    assert {pid: x.stage for pid, x in letters.items()} == {2: "unknown", 3: "alert", 4: "alert"}


@pytest.mark.services
def test_a_service_that_fails_is_waited_for(settings, prefix, make_topic, tmp_path):
    source, target = make_topic(f"{prefix}.in"), "ztf_20170204_programid2"
    failures = iter([True, True, False])

    def make(message: RawMessage) -> list[AlertOut]:
        if next(failures, False):
            raise StateUnavailable("away")
        return maker(target)(message)

    send_batches(settings, source, [1], 1)
    with in_thread(Emitter(settings, make, connect(settings), source=source)):
        wait(lambda: candids(settings, target) == expected([1]))


@pytest.mark.services
def test_idle_partitions_are_committed_with_the_ends_too(settings, prefix, make_topic, tmp_path):
    source, target = make_topic(f"{prefix}.in", 3), "ztf_20170205_programid1"
    send_batches(settings, source, [1, 2], 1)  # both into partition 0
    with in_thread(Emitter(settings, maker(target), connect(settings), source=source)):
        wait(lambda: len(candids(settings, target)) == 2 * ALERTS)
    from confluent_kafka import TopicPartition

    consumer = make_consumer(settings, settings.group("emit"), "look")
    try:
        committed = consumer.committed([TopicPartition(source, p) for p in range(3)], timeout=10)
    finally:
        consumer.close()
    assert [place.offset for place in committed] == [2, 0, 0]
    for place in committed:
        assert sum(decode_ends(place.metadata)[target].values()) == 2 * ALERTS


@pytest.mark.services
def test_plain_messages_without_identity_are_told_apart_by_their_place(settings, prefix, make_topic, tmp_path):
    source, target = make_topic(f"{prefix}.in"), "ztf_20170206_programid1"
    send(settings, source, ["1", "2"])
    with in_thread(Emitter(settings, maker(target), connect(settings), source=source)):
        wait(lambda: candids(settings, target) == expected([1, 2]))


def test_name_of_a_batch():
    message = RawMessage("t", 3, 14, None, b"")
    assert batch_name(message) == "t-3-14"
    message = RawMessage("t", 3, 14, None, b"", (("pid", b"15"), ("chunk", b"2")))
    assert batch_name(message) == "15:2:1"


@pytest.mark.parametrize(
    ("positions", "goals", "commits"),
    [
        ({0: 3}, {0: 3}, {0: (3, "new")}),
        ({0: 2}, {0: 3}, {0: (2, "old0")}),  # the third may have left before us, and we may die before we know
        ({0: 9, 1: 0}, {0: 3, 1: 2}, {0: (9, "new"), 1: (0, "old1")}),  # others getting on is no news about this one
        ({0: 0, 1: 2}, {0: 0, 1: 2}, {0: (0, "new"), 1: (2, "new")}),
        ({}, {0: 1}, {}),
    ],
)
def test_ends_move_on_only_for_partitions_whose_past_is_dealt_with(positions, goals, commits):
    assert positions_to_commit(positions, goals, {0: "old0", 1: "old1"}, "new") == commits


ENDS = st.dictionaries(
    st.integers(0, 400).map(lambda n: f"ztf_2018{n:04d}_programid1"),
    st.lists(st.integers(0, 10**10), min_size=1, max_size=16).map(lambda ends: dict(enumerate(ends))),
)


@given(ENDS)
def test_ends_survive_the_metadata_newest_first_to_stay(ends):
    text = encode_ends(ends)
    assert len(text) <= METADATA_BYTES
    kept = decode_ends(text)
    assert kept == {topic: ends[topic] for topic in list(ends)[len(ends) - len(kept) :]}
    if len(kept) < len(ends):
        more = list(ends)[len(ends) - len(kept) - 1 :]
        whole = json.dumps({topic: list(ends[topic].values()) for topic in more}, separators=(",", ":"))
        assert len(whole) > METADATA_BYTES


@pytest.mark.parametrize("text", ["", None, "{", "[1]", '{"t": 5}', '{"t": ["x"]}', "7"])
def test_foreign_metadata_is_none_of_ours(text):
    assert decode_ends(text) is None
