"""A Faust worker for the tests: reads one topic, writes what it read to another, chokes on ``poison``.

``agent_process.py SOURCE TARGET``; settings come by the environment. The third time that it sees ``later`` it works.
"""

from __future__ import annotations

import sys

from stream.core.errors import MessageError, StateUnavailable
from stream.engine import logs
from stream.engine.agents import run_stage
from stream.engine.config import load_settings
from stream.engine.heartbeat import Heartbeat
from stream.engine.kafka import OutMessage, RawMessage
from stream.engine.state import connect


class Copy:
    """A stage that copies."""

    name = "copy"
    passed = ""

    def __init__(self, source: str, target: str) -> None:
        self.sources = (source,)
        self.target = target
        self.tries = 0

    def handle(self, message: RawMessage) -> list[OutMessage]:
        text = message.value.decode()
        if text == "poison":
            raise MessageError("this cannot be read", bytes=len(message.value))
        if text == "defect":
            raise ZeroDivisionError("ours")
        if text == "later":
            self.tries += 1
            if self.tries < 3:
                raise StateUnavailable("not yet")
        return [OutMessage(self.target, message.key, message.value, message.headers)]


if __name__ == "__main__":
    settings = load_settings()
    logs.configure(settings, worker="copy-0")
    with Heartbeat(connect(settings), settings.identity("copy", 0), "copy") as heartbeat:
        run_stage(Copy(*sys.argv[1:3]), settings, heartbeat)
