"""Consume-process-produce in a transaction: nothing lost, nothing twice, whatever dies when."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from confluent_kafka import OFFSET_BEGINNING, ConsumerGroupState, TopicPartition
from engine_helpers import SCRIPT, in_thread, send, values_of, wait
from engine_process import quadrant

from stream.core.errors import StoreUnavailable, UsageError
from stream.engine.deadletters import list_letters
from stream.engine.embedded_kafka import EmbeddedKafka
from stream.engine.heartbeat import Heartbeat, living
from stream.engine.kafka import Fenced, make_admin, make_consumer
from stream.engine.pixel_worker import BACKOFF_LONGEST, MAX_DEATHS, PixelWorker, backoff
from stream.engine.processes import spawn, stop, tail
from stream.engine.state import Attempts, connect
from stream.engine.topics import Changes, Topic, apply_changes

pytestmark = pytest.mark.services


def test_killed_at_every_step_the_result_is_the_same(settings, prefix, make_topic, launch, tmp_path):
    source, target = make_topic(f"{prefix}.in", 2), make_topic(f"{prefix}.out", 2)
    inputs = [f"q{i}" for i in range(14)]
    send(settings, source, inputs, 2)
    for step in ("consumed", "processed", "begun", "produced", "offsets", "committed"):
        assert launch("pixels", source, target, step, 2).wait(30) == -9, tail(tmp_path / "worker.log")
    started = time.monotonic()
    launch("pixels", source, target)
    expected = Counter(f"{text}.{i}" for text in inputs for i in range(2))
    wait(lambda: len(values_of(settings, target)) >= len(expected), tmp_path / "worker.log")
    assert time.monotonic() - started < 10.0, "a restarted worker takes its partitions back at once"
    assert Counter(values_of(settings, target)) == expected


def test_what_was_paused_is_read_after_a_rebalance(settings, prefix, make_topic):
    source = make_topic(f"{prefix}.in")
    send(settings, source, ["a"])
    worker = PixelWorker(settings, quadrant(f"{prefix}.out"), source=source)
    consumer = make_consumer(settings, f"{prefix}-group", "test")
    places = [TopicPartition(source, 0, OFFSET_BEGINNING)]
    try:
        worker._on_assign(consumer, places)
        assert consumer.poll(20.0) is not None
        consumer.pause(places)  # a message is held ...
        worker._on_revoke(consumer, places)  # ... its partition taken away, the hold ends, and it comes back
        worker._on_assign(consumer, places)
        assert consumer.poll(20.0) is not None, "still paused"
    finally:
        consumer.close()


def test_bad_input_becomes_dead_letters_and_the_rest_goes_on(settings, prefix, make_topic, redis_url):
    make_topic("ztf.deadletters", 4)
    source, target = make_topic(f"{prefix}.in"), make_topic(f"{prefix}.out", 1, 10_000)
    send(settings, source, ["a", "broken", "defect", "huge", "later", "b"])
    client = connect(settings)
    with Heartbeat(client, prefix, "pixels") as heartbeat:
        worker = PixelWorker(settings, quadrant(target), source=source, attempts=Attempts(client), heartbeat=heartbeat)
        with in_thread(worker):
            wait(lambda: "b.1" in values_of(settings, target))
        (sign,) = [s for s in (heartbeat.beat() and living(client)) if s["name"] == prefix]
        assert sign["done"] == 6
    assert Counter(values_of(settings, target)) == Counter(f"{t}.{i}" for t in ("a", "later", "b") for i in (0, 1))
    letters = {x.context["name"]: x for x in list_letters(settings) if x.topic == source}
    assert set(letters) == {"broken", "defect", "huge"}
    broken = letters["broken"]
    assert (broken.stage, broken.error, broken.offset) == ("ingest", "PacketError", 1)
    assert broken.context == {"rid": 17, "odd": None, "name": "broken"}
    assert "raise PacketError" in broken.traceback
    assert (letters["defect"].stage, letters["defect"].error) == ("unknown", "ZeroDivisionError")
    assert letters["huge"].error == "MessageError"


def test_a_store_that_fails_for_long_kills_nobody(settings, prefix, make_topic, monkeypatch):
    make_topic("ztf.deadletters", 4)
    source, target = make_topic(f"{prefix}.in"), make_topic(f"{prefix}.out")
    send(settings, source, ["a"])
    monkeypatch.setattr("stream.engine.pixel_worker.backoff", lambda attempt: 0.01)
    tried: list[None] = []

    def process(message):
        tried.append(None)
        if len(tried) <= MAX_DEATHS + 3:
            raise StoreUnavailable("the disk is full")
        return quadrant(target)(message)

    client = connect(settings)
    with in_thread(PixelWorker(settings, process, source=source, attempts=Attempts(client))):
        wait(lambda: values_of(settings, target) == ["a.0", "a.1"])
    assert not [x for x in list_letters(settings) if x.topic == source]
    assert not list(client.scan_iter(f"attempt:{source}-*")), "nobody died"


def test_an_input_that_kills_the_process_is_given_up_in_the_end(settings, prefix, make_topic, launch, tmp_path):
    make_topic("ztf.deadletters", 4)
    source, target = make_topic(f"{prefix}.in"), make_topic(f"{prefix}.out")
    send(settings, source, ["killer", "after"])
    for _ in range(MAX_DEATHS):
        assert launch("pixels", source, target).wait(30) == -9
    launch("pixels", source, target)
    wait(lambda: values_of(settings, target) == ["after.0", "after.1"], tmp_path / "worker.log")
    (letter,) = [x for x in list_letters(settings) if x.topic == source]
    assert (letter.stage, letter.context["deaths"]) == ("crash", MAX_DEATHS)


def test_sigterm_finishes_the_quadrant_and_leaves(settings, prefix, make_topic, launch, tmp_path):
    source, target = make_topic(f"{prefix}.in"), make_topic(f"{prefix}.out")
    send(settings, source, ["a"])
    worker = launch("pixels", source, target)
    wait(lambda: len(values_of(settings, target)) == 2, tmp_path / "worker.log")
    worker.terminate()
    assert worker.wait(10) == 0, tail(tmp_path / "worker.log")


class Restarted:
    """A worker that starts again when it finds itself fenced, as the supervisor would have it."""

    def __init__(self, make: Callable[[], PixelWorker]) -> None:
        self.make = make
        self.worker = make()
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            try:
                self.worker.run()
            except Fenced:
                self.worker = self.make()

    def stop(self) -> None:
        self.stopping = True
        self.worker.stop()


def test_a_broker_that_dies_in_the_middle_of_a_rebalance_costs_nothing(settings, tmp_path):
    """The first worker stands still in a transaction, so that the second one's joining cannot end."""
    broker = EmbeddedKafka(tmp_path).start()
    try:
        mine = broker.signed_in(settings).as_admin()
        first, second = (mine.model_copy(update={"instance": name}) for name in ("one", "two"))
        admin, group = make_admin(mine), mine.group("pixels")
        apply_changes(admin, Changes(create=tuple(Topic(name, 4, 1, {}) for name in ("in", "out"))))
        inputs = [f"q{i}" for i in range(16)]
        send(mine, "in", inputs, 4)
        open_transaction, back = threading.Event(), threading.Event()

        def hook(step: str) -> None:
            if step == "produced" and not back.is_set():
                open_transaction.set()
                back.wait(60)

        def state() -> ConsumerGroupState:
            return admin.describe_consumer_groups([group])[group].result(15).state

        with in_thread(Restarted(lambda: PixelWorker(first, quadrant("out"), source="in", hook=hook))):
            assert open_transaction.wait(30)
            with in_thread(Restarted(lambda: PixelWorker(second, quadrant("out"), source="in"))):
                wait(lambda: state() == ConsumerGroupState.PREPARING_REBALANCING)
                broker.kill()
                broker.start()
                back.set()
                wait(lambda: len(values_of(mine, "out")) >= 32, seconds=60)
        assert Counter(values_of(mine, "out")) == Counter(f"{text}.{i}" for text in inputs for i in range(2))
    finally:
        broker.stop()


def test_two_workers_share_the_partitions_without_overlap(settings, prefix, make_topic, launch, tmp_path):
    source, target = make_topic(f"{prefix}.in", 4), make_topic(f"{prefix}.out")
    first = settings.model_copy(update={"instance": "one"})
    second = settings.model_copy(update={"instance": "two"})
    inputs = [f"q{i}" for i in range(40)]
    argv = [sys.executable, SCRIPT, "pixels", source, target, "", "1"]
    workers = [spawn(argv, env=s.environment(), log=tmp_path / "worker.log") for s in (first, second)]
    try:
        time.sleep(2.0)
        send(settings, source, inputs, 4)
        wait(lambda: len(values_of(settings, target)) >= 80, tmp_path / "worker.log")
    finally:
        for worker in workers:
            stop(worker, 5.0)
    assert Counter(values_of(settings, target)) == Counter(f"{text}.{i}" for text in inputs for i in range(2))


def test_retries_wait_longer_and_longer_but_not_for_ever():
    pauses = [backoff(attempt) for attempt in range(40)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1.0
    assert pauses[-1] == BACKOFF_LONGEST


def test_reading_a_topic_that_is_not_there_says_what_to_do(settings):
    with pytest.raises(UsageError, match="topics apply"):
        values_of(settings, "no.such.topic")
