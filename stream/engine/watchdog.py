"""A limit for calls into a client library that should come back by themselves, and sometimes do not.

librdkafka's ``send_offsets_to_transaction`` waits for ever where its handle of the group's coordinator is dead, its
timeout notwithstanding (its issues 5456 and 5511); a commit has no timeout at all. A process that waits in such a call
is alive for everybody else: it keeps its partitions and nothing moves. It cannot be freed from inside; it can leave,
and whoever is started in its place takes over what it left open.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

# Beyond the call's own timeout: what is late by this is not coming.
MARGIN = 5.0
COMMIT_SECONDS = 30.0  # for a consumer's commit: a broker that restarts is back by then
HUNG = 75  # exit status, EX_TEMPFAIL: start it again
_LOOK = 0.5  # seconds between two looks

Leave = Callable[[str], None]


def leave(doing: str) -> None:
    """End this process as a SIGKILL would: nothing of it can be trusted to stop in order."""
    structlog.get_logger().error("hung: leaving, to be started again", doing=doing)
    os._exit(HUNG)


class Watchdog:
    """Watches one call at a time from a thread of its own.

    Parameters
    ----------
    leave : callable, optional
        Called with what was being done when a call is over its limit; without it nothing is watched.
    """

    def __init__(self, leave: Leave | None = None) -> None:
        self._leave = leave
        self._limit: tuple[float, str] | None = None
        if leave is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def limit(self, doing: str, seconds: float) -> Iterator[None]:
        """What happens inside has to end within ``seconds`` (and a margin)."""
        self._limit = time.monotonic() + seconds + MARGIN, doing
        try:
            yield
        finally:
            self._limit = None

    def _watch(self) -> None:
        while self._leave is not None:
            time.sleep(_LOOK)
            limit = self._limit
            if limit is not None and time.monotonic() > limit[0]:
                self._leave(limit[1])
                return
