"""What several of the engine's tests do with a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stream.engine.config import Settings
from stream.engine.kafka import OutMessage, Sender, make_producer, read_to_end
from stream.engine.processes import tail

SCRIPT = str(Path(__file__).with_name("engine_process.py"))


def send(settings: Settings, topic: str, values: Sequence[str], partitions: int = 1) -> None:
    sender = Sender(make_producer(settings, "test"))
    for number, value in enumerate(values):
        sender.send(OutMessage(topic, value.encode(), value.encode(), (("name", value.encode()),), number % partitions))
    sender.flush()


def values_of(settings: Settings, topic: str, *, read_committed: bool = True) -> list[str]:
    messages = read_to_end(settings, {topic: {}}, "test", read_committed=read_committed)
    return [message.value.decode() for message in messages]


def wait(until: Callable[[], bool], log: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"not within {seconds} s; the worker said: {tail(log)}"
        time.sleep(0.1)
