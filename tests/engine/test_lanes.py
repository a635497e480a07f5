"""Under overload the newest public quadrants go first, the others later, none not at all."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from engine_helpers import in_thread, send, values_of, wait
from hypothesis import given
from hypothesis import strategies as st

from stream.engine.kafka import OutMessage, RawMessage, Sender, make_producer, read_to_end
from stream.engine.lag import Work, lags
from stream.engine.lanes import MOVED, Lanes, Policy, steps_aside
from stream.engine.pixel_worker import PixelWorker
from stream.engine.processes import tail

POLICY = Policy(public_seconds=120.0, other_seconds=45.0, newer=2)


@pytest.mark.parametrize(
    ("waited", "newer", "public", "room", "aside"),
    [
        (0.0, 0, True, True, False),
        (1e6, 0, True, True, False),  # alone: however old, it is the newest
        (1e6, 1, True, True, False),
        (121.0, 2, True, True, True),
        (119.0, 9, True, True, False),  # not late enough to matter
        (119.0, 9, False, True, True),  # other programs let the public pass earlier
        (44.0, 9, False, True, False),
        (121.0, 2, True, False, False),  # the backlog is full: in its order then
        (1e6, 99, False, False, False),
    ],
)
def test_who_lets_newer_ones_pass(waited, newer, public, room, aside):
    assert steps_aside(waited, newer, public, room, POLICY) == aside


@given(st.integers(1, 40), st.floats(0, 600), st.integers(1, 5), st.booleans())
def test_the_newest_of_a_channel_are_always_done_in_their_turn(waiting, waited, newer, public):
    """However long everything has waited, so many of the newest stay, and the public stay where others do not go."""
    policy = Policy(120.0, 45.0, newer)
    stays = [k for k in range(waiting) if not steps_aside(waited, waiting - 1 - k, public, True, policy)]
    assert stays[-min(newer, waiting) :] == list(range(waiting))[-min(newer, waiting) :]
    for k in range(waiting):
        if steps_aside(waited, waiting - 1 - k, True, True, policy):
            assert steps_aside(waited, waiting - 1 - k, False, True, policy)


def raw(settings, topic: str, names: list[str], program: str = "1") -> None:
    sender = Sender(make_producer(settings, "test"))
    for name in names:
        sender.send(OutMessage(topic, b"0", name.encode(), (("name", name.encode()), ("programid", program.encode()))))
    sender.flush()


@pytest.fixture
def hasty(settings):
    """Settings with which everything that waits behind two newer ones is late."""
    changes = {"overtake_public_seconds": 0.0, "overtake_other_seconds": 0.0, "overtake_newer": 2}
    return settings.model_copy(update=changes)


@pytest.mark.services
def test_newest_first_then_the_backlog_oldest_first_and_new_ones_before_it(hasty, prefix, make_topic):
    source, backlog = make_topic(f"{prefix}.raw"), make_topic(f"{prefix}.backlog", 2)
    target = make_topic(f"{prefix}.out")
    raw(hasty, source, [f"q{k}" for k in range(8)])
    time.sleep(0.05)
    done: list[str] = []
    third_of_the_backlog = threading.Event()

    def process(message: RawMessage) -> list[OutMessage]:
        done.append(message.value.decode())
        if len(done) == 4:  # two new ones, then two of the backlog: now something newer comes
            raw(hasty, source, ["new"])
            third_of_the_backlog.set()
            time.sleep(0.5)
        return [OutMessage(target, message.key, message.value)]

    lanes = Lanes(hasty, hasty.group("pixels"), backlog)
    with in_thread(PixelWorker(hasty, process, source=source, lanes=lanes)):
        wait(lambda: len(values_of(hasty, target)) == 9, seconds=60)
    assert third_of_the_backlog.is_set()
    assert [name for name in done if name != "new"] == ["q6", "q7", "q0", "q1", "q2", "q3", "q4", "q5"]
    assert done.index("new") < done.index("q3"), "between two of the backlog a worker turns to what is new"
    assert Counter(values_of(hasty, target)) == Counter(done)
    moved = list(read_to_end(hasty, {backlog: {}}, "test"))
    assert [m.header(MOVED) for m in moved] == [f"{source}[0]@{k}" for k in range(6)]
    group = hasty.group("pixels")
    assert lags(hasty, {"raw": Work(group, (source,)), "backlog": Work(group, (backlog,), True)}) == {
        "raw": 0, "backlog": 0
    }  # fmt: skip


@pytest.mark.services
def test_a_full_backlog_holds_nobody_up(hasty, prefix, make_topic):
    source, backlog = make_topic(f"{prefix}.raw"), make_topic(f"{prefix}.backlog")
    target = make_topic(f"{prefix}.out")
    mine = hasty.model_copy(update={"raw_backlog": 2})
    raw(mine, source, [f"q{k}" for k in range(8)])
    time.sleep(0.05)
    done: list[str] = []

    def process(message: RawMessage) -> list[OutMessage]:
        done.append(message.value.decode())
        return [OutMessage(target, message.key, message.value)]

    lanes = Lanes(mine, mine.group("pixels"), backlog)
    with in_thread(PixelWorker(mine, process, source=source, lanes=lanes)):
        wait(lambda: len(values_of(mine, target)) == 8, seconds=60)
    assert done == ["q2", "q3", "q4", "q5", "q6", "q7", "q0", "q1"]


@pytest.mark.services
def test_without_a_backlog_topic_everything_goes_in_its_order(hasty, prefix, make_topic):
    source, target = make_topic(f"{prefix}.raw"), make_topic(f"{prefix}.out")
    send(hasty, source, [f"q{k}" for k in range(5)])
    lanes = Lanes(hasty, hasty.group("pixels"), f"{prefix}.nowhere")
    assert not lanes.usable

    def process(message: RawMessage) -> list[OutMessage]:
        return [OutMessage(target, message.key, message.value)]

    with in_thread(PixelWorker(hasty, process, source=source, lanes=lanes)):
        wait(lambda: values_of(hasty, target) == [f"q{k}" for k in range(5)], seconds=60)


@pytest.mark.services
@pytest.mark.parametrize(("step", "number"), [("produced", 2), ("offsets", 3), ("committed", 9)])
def test_killed_while_stepping_aside_nothing_is_lost_or_doubled(
    hasty, prefix, make_topic, launch, tmp_path, step, number
):
    source, target = make_topic(f"{prefix}.raw"), make_topic(f"{prefix}.out")
    make_topic(f"{prefix}.raw.backlog", 2)
    names = [f"q{k}" for k in range(10)]
    raw(hasty, source, names)
    log = tmp_path / "worker.log"
    assert launch("lanes", source, target, step, number, mine=hasty).wait(60) == -9, tail(log)
    launch("lanes", source, target, mine=hasty)
    expected = Counter(f"{name}.{i}" for name in names for i in range(2))
    wait(lambda: sum(Counter(values_of(hasty, target)).values()) >= len(expected), log, 90)
    time.sleep(0.5)
    assert Counter(values_of(hasty, target)) == expected
