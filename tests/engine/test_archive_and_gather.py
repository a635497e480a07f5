"""Subscribers of the public topics: the archive keeps what was sent, the reader gathers a night.

The broker is shared: other tests' nights are archived and gathered too, so each test looks at its own packets.
"""

from __future__ import annotations

import base64
import sys
import threading
import time

import pytest
from engine_helpers import wait

from stream.alert import emit_packet, encode_report
from stream.alert.synthetic import synthetic_batch
from stream.archive import ProductStore, iterate_packets
from stream.core.errors import StoreUnavailable
from stream.core.records import QuadrantReport
from stream.engine.archive_worker import ArchiveWorker, archive_lag, next_offsets
from stream.engine.deadletters import list_letters
from stream.engine.gather import NightReader
from stream.engine.kafka import OutMessage, RawMessage, Sender, make_producer
from stream.engine.lag import group_lag
from stream.engine.processes import spawn

pytestmark = pytest.mark.services
JD = 2458473.02384  # a night of its own: other tests publish on the same broker


def packets(first: int, last: int) -> dict[int, bytes]:
    """Packets of some rows of one batch by candid: other rows, other candids."""
    batch = synthetic_batch(last, jd=JD)
    return {item.candidate["candid"]: emit_packet(item, batch, {}) for item in batch.items[first:]}


def publish(settings, topic: str, values: list[bytes]) -> None:
    sender = Sender(make_producer(settings, "test"))
    for value in values:
        sender.send(OutMessage(topic, b"key", value, ()))
    sender.flush()


def test_offsets_are_one_behind_the_last_of_each_partition():
    read = [RawMessage("t", p, o, None, b"") for p, o in ((0, 3), (1, 9), (0, 5), (1, 8))]
    assert [(x.topic, x.partition, x.offset) for x in next_offsets(read)] == [("t", 0, 6), ("t", 1, 10)]


@pytest.fixture
def worker(settings, tmp_path, make_topic):
    """An archive worker with a store of its own, and a way to run it until something holds."""
    make_topic("ztf.deadletters", 4)
    mine = settings.model_copy(update={"store": str(tmp_path / "store")})
    made = ArchiveWorker(mine)

    def run(until) -> None:
        stopped = threading.Event()
        thread = threading.Thread(target=made.run, args=(stopped.is_set,), daemon=True)
        thread.start()
        try:
            wait(until, seconds=60)
        finally:
            stopped.set()
            thread.join(30)
        assert not thread.is_alive()

    made.run_until = run
    return made


def test_what_was_sent_is_kept_once_and_poison_is_no_obstacle(settings, worker, make_topic, tmp_path, prefix):
    topic = make_topic("ztf_20170811_programid1", 2)
    make_topic(f"ztf_{prefix}_programid1")  # no night: not ours
    store = ProductStore(str(tmp_path / "store"))
    wanted = packets(0, 30)
    good = list(wanted.values())
    publish(settings, topic, [*good[:20], b"poison", *good[:5], *good[20:]])
    publish(settings, f"ztf_{prefix}_programid1", [b"not an alert"])
    worker.run_until(lambda: group_lag(settings, f"{settings.group_prefix}-archive", topic) == 0)
    kept = [(candid, packet) for candid, packet in iterate_packets(store) if candid in wanted]
    assert sorted(kept) == sorted(wanted.items())
    letters = [x for x in list_letters(settings) if x.worker == "archive"]
    (poison,) = [x for x in letters if x.topic == topic]
    assert (poison.stage, base64.b64decode(poison.value)) == ("message", b"poison")
    assert not [x for x in letters if prefix in x.topic]


def test_a_client_that_reads_nothing_while_alerts_wait_is_left(settings, worker, make_topic, monkeypatch):
    topic = make_topic("ztf_20170814_programid1")
    monkeypatch.setattr("stream.engine.archive_worker.SILENCE_SECONDS", 0.0)
    deadline = time.monotonic() + 60
    while archive_lag(worker._settings) and time.monotonic() < deadline:  # other tests' topics
        worker.step()
    left: list[str] = []
    worker._leave = left.append
    for _ in range(3):
        worker.step()
    assert left == [], "silence alone is no reason"
    worker._consumer.unsubscribe()  # as deaf as one that hangs
    publish(settings, topic, list(packets(0, 3).values()))
    worker.step()
    assert left == [], "what came this instant is no reason"
    worker.step()
    assert left == ["reading alerts: nothing came, 3 are waiting"], "and the supervisor starts another"


def test_an_archive_that_was_killed_reads_the_nights_that_are_new_since(settings, make_topic, tmp_path):
    """A broker hands a static member that comes back its old assignment, at every start: the archive is none."""
    make_topic("ztf.deadletters", 4)
    mine = settings.model_copy(update={"store": str(tmp_path / "store")})
    store = ProductStore(mine.store)
    argv = [sys.executable, "-m", "stream.cli", "worker", "archive"]

    def archived(topic: str, wanted: dict[int, bytes]) -> dict[int, bytes]:
        worker = spawn(argv, env=mine.environment(), log=tmp_path / "archive.log")
        try:
            publish(settings, topic, list(wanted.values()))
            wait(lambda: wanted.keys() <= dict(iterate_packets(store)).keys(), tmp_path / "archive.log", 60.0)
        finally:
            worker.kill()  # says nothing to its group
            worker.wait()
        return dict(iterate_packets(store))

    before, since = packets(60, 63), packets(63, 66)
    archived(make_topic("ztf_20170815_programid1"), before)
    kept = archived(make_topic("ztf_20170816_programid1"), since)
    assert {candid: kept[candid] for candid in (*before, *since)} == {**before, **since}


def test_a_store_that_fails_costs_no_alert(settings, worker, make_topic, tmp_path, monkeypatch):
    topic = make_topic("ztf_20170812_programid1", 2)
    add, failures = worker._archive.add, []

    def failing(values):
        if len(failures) < 2:
            failures.append(len(list(values)))
            raise StoreUnavailable("the disk is full")
        return add(values)

    monkeypatch.setattr(worker._archive, "add", failing)
    monkeypatch.setattr("stream.engine.archive_worker.time.sleep", lambda seconds: None)
    wanted = packets(30, 40)
    publish(settings, topic, list(wanted.values()))
    store = ProductStore(str(tmp_path / "store"))
    worker.run_until(lambda: len(failures) == 2 and wanted.keys() <= dict(iterate_packets(store)).keys())
    kept = dict(iterate_packets(store))
    assert {candid: kept[candid] for candid in wanted} == wanted


def test_a_night_is_gathered_as_it_comes(settings, make_topic):
    """Messages of other tests are on the same topics: only ours are looked at."""
    make_topic("ztf.quadrants", 2)
    jd = 2457900.25
    reports = [
        QuadrantReport(f"q{i}", 1, 2, 1, 1, 0, 1, 1, 1, i, 990000 + i, jd, jd, 30.0, n_candidates=i) for i in (1, 2)
    ]
    with NightReader(settings) as reader:
        for report in [*reports, reports[0]]:
            sender = Sender(make_producer(settings, "test"))
            sender.send(OutMessage("ztf.quadrants", b"k", encode_report(report), (("t.arrived", b"12.5"),)))
            sender.flush()
        assert reader.until(lambda g: {990001, 990002} <= g.reports.keys(), 60)
        topic = make_topic("ztf_20170606_programid1")  # appears while we read
        publish(settings, topic, list(packets(40, 43).values()))
        assert reader.until(lambda g: len(g.alerts.get(topic, [])) == 3, 60)
        assert not reader.until(lambda g: len(g.alerts.get(topic, [])) == 4, 1.0)
        gathered = reader.gathered
        assert gathered.reports[990002].name == "q2"
        assert gathered.ledgers[990001] == {"arrived": 12.5}
        assert gathered.n_alerts >= 3
        assert gathered.n_expected >= 3


def test_what_is_no_record_hides_nothing_of_a_night(settings, make_topic):
    """A foreign message on any topic is counted, and what follows it is read."""
    report = QuadrantReport("after", 1, 2, 1, 1, 0, 1, 1, 1, 1, 990003, 2457900.25, 2457900.25, 30.0, n_candidates=0)
    topics = ("ztf.deadletters", "ztf.tracklets", "ztf.quadrants", "ztf_20170607_programid1")
    sender = Sender(make_producer(settings, "test"))
    with NightReader(settings) as reader:
        for topic in topics:
            make_topic(topic)
            sender.send(OutMessage(topic, b"?", b"no record at all"))
        sender.send(OutMessage("ztf.quadrants", b"?", encode_report(report)))
        sender.flush()
        assert reader.until(lambda g: g.n_unreadable >= len(topics) and 990003 in g.reports, 60)
