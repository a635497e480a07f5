"""A Faust agent on the real broker: poison becomes a dead letter, the aborted is not seen, a kill loses nothing."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from engine_helpers import send, values_of, wait

from stream.engine.deadletters import list_letters
from stream.engine.kafka import OutMessage, Sender, make_producer
from stream.engine.lag import group_lag
from stream.engine.processes import spawn, stop, tail
from stream.engine.watchdog import HUNG

pytestmark = pytest.mark.services

SCRIPT = str(Path(__file__).with_name("agent_process.py"))


@pytest.fixture
def agent(settings, tmp_path):
    """Starts the copying agent; all are gone at the end."""
    started = []

    def start(source: str, target: str):
        argv = [sys.executable, SCRIPT, source, target]
        started.append(spawn(argv, env=settings.environment(), log=tmp_path / "agent.log"))
        return started[-1]

    yield start
    for process in started:
        stop(process, 5.0)


def transaction(settings, topic: str, texts: list[str], *, commit: bool) -> None:
    producer = make_producer(settings, "test", transactional_id=f"{settings.group_prefix}-test")
    sender = Sender(producer)
    producer.init_transactions(30)
    producer.begin_transaction()
    for text in texts:
        sender.send(OutMessage(topic, text.encode(), text.encode(), (), 0))
    sender.flush()
    producer.commit_transaction(30) if commit else producer.abort_transaction(30)


def test_poison_aborted_and_held_messages(settings, prefix, make_topic, agent, tmp_path):
    make_topic("ztf.deadletters", 4)
    source, target = make_topic(f"{prefix}.in"), make_topic(f"{prefix}.out")
    transaction(settings, source, ["ghost"], commit=False)
    send(settings, source, ["a", "poison", "defect", "later"])
    transaction(settings, source, ["b"], commit=True)
    process = agent(source, target)
    wait(lambda: "b" in values_of(settings, target), tmp_path / "agent.log", 90)
    assert values_of(settings, target) == ["a", "later", "b"]
    assert "ghost" in values_of(settings, source, read_committed=False)
    letters = {x.error: x for x in list_letters(settings) if x.topic == source}
    assert set(letters) == {"MessageError", "ZeroDivisionError"}
    poison = letters["MessageError"]
    assert (poison.stage, poison.worker, poison.reason) == ("copy", "copy", "this cannot be read")
    assert poison.context == {"bytes": 6, "name": "poison"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM), tail(tmp_path / "agent.log")


def test_killed_it_goes_on_where_it_stopped(settings, prefix, make_topic, agent, tmp_path):
    source, target = make_topic(f"{prefix}.in", 2), make_topic(f"{prefix}.out")
    log = tmp_path / "agent.log"
    send(settings, source, [f"m{i}" for i in range(20)], 2)
    first = agent(source, target)
    wait(lambda: len(values_of(settings, target)) >= 20, log, 90)
    first.kill()
    first.wait(10)
    send(settings, source, [f"n{i}" for i in range(20)], 2)
    agent(source, target)
    wait(lambda: {f"n{i}" for i in range(20)} <= set(values_of(settings, target)), log, 90)
    counts = Counter(values_of(settings, target))
    assert set(counts) == {f"{c}{i}" for c in "mn" for i in range(20)}
    assert max(counts.values()) <= 2  # at least once
    wait(lambda: group_lag(settings, settings.group("copy"), source) == 0, log, 30)
    send(settings, source, ["poison"])  # nobody reads it until the commit below
    assert group_lag(settings, settings.group("nobody"), source) == 41
    assert group_lag(settings, settings.group("copy"), f"{prefix}.none") == 0


def test_an_aborted_transaction_behind_the_first_message_does_not_stop_the_commits(
    settings, prefix, make_topic, agent, tmp_path
):
    """Faust itself takes the offsets between the first message (0) and the next (4) for messages still in hand."""
    source, target = make_topic(f"{prefix}.in"), make_topic(f"{prefix}.out")
    group, log = settings.group("copy"), tmp_path / "agent.log"
    transaction(settings, source, ["a"], commit=True)
    agent(source, target)
    wait(lambda: group_lag(settings, group, source, transactional=True) == 0, log, 90)
    transaction(settings, source, ["ghost"], commit=False)
    for text in ("b", "c"):
        transaction(settings, source, [text], commit=True)
        wait(lambda: group_lag(settings, group, source, transactional=True) == 0, log, 30)
    assert values_of(settings, target) == ["a", "b", "c"]


def test_a_topic_that_a_client_does_not_know_yet_is_no_reason_to_be_idle(settings, prefix, make_topic, agent, tmp_path):
    """Faust would hand out no partition of it, and look again after five minutes."""
    source, target = f"{prefix}.in", make_topic(f"{prefix}.out")
    log = tmp_path / "agent.log"
    assert agent(source, target).wait(90) == HUNG, tail(log)
    assert source in tail(log, 1)
    make_topic(source)
    send(settings, source, ["a"])
    agent(source, target)
    wait(lambda: values_of(settings, target) == ["a"], log, 90)
