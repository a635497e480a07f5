"""A worker process for the fault tests: does something simple, and kills itself at a given step.

``engine_process.py pixels|lanes|emit SOURCE TARGET STEP N``: at the N-th time the worker reports STEP it dies by
SIGKILL; an empty STEP lets it live. Settings come by the environment, as in production. It stops on SIGTERM.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from stream.core.errors import PacketError, StoreUnavailable
from stream.engine import logs
from stream.engine.config import load_settings
from stream.engine.emit import AlertOut, Emitter
from stream.engine.kafka import OutMessage, RawMessage
from stream.engine.lanes import Lanes
from stream.engine.pixel_worker import PixelWorker
from stream.engine.state import Attempts, connect

ALERTS = 5  # alerts of one batch


def killer(step: str, number: int):
    """A hook that dies at the given step."""
    seen = 0

    def hook(now: str) -> None:
        nonlocal seen
        if now == step:
            seen += 1
            if seen == number:
                time.sleep(0.1)  # what was handed to the client before this step has left by now
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def quadrant(target: str):
    """Two messages from one, as a quadrant makes candidates and a record; some inputs are special."""
    failures = {"left": 2}

    def process(message: RawMessage) -> list[OutMessage]:
        text = message.value.decode()
        if text == "broken":
            raise PacketError("cannot be read", rid=17, odd=float("nan"))
        if text == "defect":
            raise ZeroDivisionError("ours")
        if text == "killer":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "huge":
            return [OutMessage(target, b"h", random.Random(1).randbytes(20_000))]
        if text == "later" and failures["left"]:
            failures["left"] -= 1
            raise StoreUnavailable("the store is away")
        return [OutMessage(target, message.key, f"{text}.{i}".encode()) for i in range(2)]

    return process


def alerts(topics: str):
    """A batch named ``<pid>`` makes alerts pid * 100 + i, each for every one of some topics (a,b,...)."""

    def make(message: RawMessage) -> list[AlertOut]:
        pid = int(message.value)
        if pid < 0:
            raise PacketError("no such batch")
        candids = [pid * 100 + i for i in range(ALERTS)]
        return [AlertOut(topic, str(c).encode(), b"alert", c) for c in candids for topic in topics.split(",")]

    return make


def main() -> None:
    kind, source, target, step, number = sys.argv[1:]
    settings = load_settings()
    logs.configure(settings, kind)
    client = connect(settings)
    hook = killer(step, int(number))
    worker: PixelWorker | Emitter
    if kind in ("pixels", "lanes"):
        lanes = Lanes(settings, settings.group("pixels"), f"{source}.backlog") if kind == "lanes" else None
        attempts = Attempts(client, settings.group_prefix)
        worker = PixelWorker(settings, quadrant(target), source=source, lanes=lanes, attempts=attempts, hook=hook)
    else:
        worker = Emitter(settings, alerts(target), client, source=source, batch=3, hook=hook)
    signal.signal(signal.SIGTERM, worker.stop)
    worker.run()


if __name__ == "__main__":
    main()
