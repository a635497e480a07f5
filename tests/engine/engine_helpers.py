"""What several of the engine's tests do with a real broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


class in_thread:  # noqa: N801 - reads as words
    """Runs a worker of this process in a thread while the block lasts; its error, if any, is raised at the end."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.worker.stop()
        self.thread.join(40)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


def wait(until: Callable[[], bool], log: Path = Path("no log"), seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"not within {seconds} s; the worker said: {tail(log)}"
        time.sleep(0.1)
