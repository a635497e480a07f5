"""Signs of life: every worker says in Redis that it is there and what it is at; ``status`` reads it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import redis

from stream.engine import state

PREFIX = "alive"
TTL = 15  # seconds without a sign after which a worker is gone; three beats
BEAT = 5.0


class Heartbeat:
    """Writes ``alive:<name>`` every five seconds while the ``with`` block lasts, from a thread of its own.

    The thread says that the process lives; ``since`` and what :meth:`note` was given say whether it works:
    a worker that is ``busy`` with one quadrant for minutes is stuck. Redis failing is no reason to stop.
    """

    def __init__(
        self, client: redis.Redis, name: str, role: str, *, clock: Callable[[], float] = time.time, **fields: Any
    ) -> None:
        self.client = client
        self.name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._fields: dict[str, Any] = {
            "name": name,
            "role": role,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": clock(),
            "doing": "starting",
            "since": clock(),
            "done": 0,
            **fields,
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, doing: str, *, done: int = 0, **fields: Any) -> None:
        """What the worker is at now; ``done`` adds to its count of finished messages."""
        with self._lock:
            self._fields.update(fields, doing=doing, since=self._clock(), done=self._fields["done"] + done)

    def beat(self) -> bool:
        """Write one sign of life now; whether Redis took it."""
        with self._lock:
            text = json.dumps({**self._fields, "seen": self._clock()})
        try:
            self.client.set(f"{PREFIX}:{self.name}", text, ex=TTL)
        except redis.RedisError:
            return False
        return True

    def _run(self) -> None:
        while not self._stop.wait(BEAT):
            self.beat()

    def __enter__(self) -> Self:
        self.beat()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=BEAT)
        try:
            self.client.delete(f"{PREFIX}:{self.name}")
        except redis.RedisError:
            return


def living(client: redis.Redis) -> list[dict[str, Any]]:
    """The last sign of every worker that is there, by name.

    Raises
    ------
    StateUnavailable
        Redis does not answer.
    """
    with state.translated("looking who is alive"):
        keys = sorted(client.scan_iter(f"{PREFIX}:*", count=1000))
        values = client.mget(keys) if keys else []
    return [json.loads(value) for value in values if value is not None]
