"""A small process supervisor: starts the children of ``ztf-stream run``, restarts the dead, leaves nobody behind.

Children are tied to this process by the kernel (:mod:`stream.engine.processes`): however it ends, they end. They may
be killed at any time without harm, that is what the stages are built for; so the tie is SIGKILL.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from stream.core.errors import UsageError
from stream.engine import logs, processes

BACKOFF_FIRST, BACKOFF_LONGEST = 0.5, 30.0  # seconds between the deaths of a child and its restarts
# A child that lived this long had started and worked (imports take some five): it starts again without delay.
HEALTHY = 10.0
GRACE = 30.0  # seconds a child gets to finish its quadrant before it is killed
_LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep alive: ``argv`` with the absolute program first, ``env`` added to ours."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None


@dataclass(slots=True)
class _State:
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    restart_at: float = 0.0


def restart_delay(deaths: int, lived: float) -> float:
    """Seconds to wait before a child that died for the ``deaths``-th time in a row, after ``lived`` s, starts again."""
    if lived >= HEALTHY:
        return 0.0
    return float(min(BACKOFF_FIRST * 2.0 ** min(max(deaths - 1, 0), 16), BACKOFF_LONGEST))


class Supervisor:
    """Keeps children alive until told to stop.

    Parameters
    ----------
    children : sequence of Child
        In the order in which they are started; they are stopped together.
    grace : float
        Seconds between SIGTERM and SIGKILL at the end.
    watch : callable, optional
        Called about ten times a second with nothing; may call :meth:`stop`.
    """

    def __init__(
        self, children: Sequence[Child], *, grace: float = GRACE, watch: Callable[[], None] | None = None
    ) -> None:
        names = [child.name for child in children]
        if len(set(names)) != len(names):
            raise UsageError(f"two children of one name: {sorted(names)}")
        self.children = {child.name: child for child in children}
        self.grace = grace
        self._watch = watch
        self._states = {name: _State() for name in self.children}
        self._stops = 0
        self._log = logs.get_logger()

    def stop(self, *_: object) -> None:
        """Stop all; the second time without grace."""
        self._stops += 1

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now."""
        running = ((name, state.process) for name, state in self._states.items())
        return {name: process.pid for name, process in running if process is not None and process.poll() is None}

    def run(self) -> int:
        """Start the children and keep them alive until :meth:`stop`, SIGINT or SIGTERM; returns the restarts made.

        Has to run in the main thread, whose end the kernel ties the children to.
        """

        def handler(number: int, _: FrameType | None) -> None:
            self.stop()

        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        restarts = 0
        try:
            for name in self.children:
                if not self._stops:
                    self._start(name)
            while not self._stops:
                restarts += self._look()
                if self._watch is not None:
                    self._watch()
                time.sleep(_LOOK)
        finally:
            self._end()
            for number, old in before.items():
                signal.signal(number, old)
        return restarts

    def _start(self, name: str) -> None:
        child, state = self.children[name], self._states[name]
        state.process = processes.spawn(child.argv, log=child.log, env=child.env, parent_death=signal.SIGKILL)
        state.started = time.monotonic()
        self._log.info("started", child=name, pid=state.process.pid)

    def _look(self) -> int:
        """Notice deaths and start again whoever is due; how many were."""
        restarts = 0
        now = time.monotonic()
        for name, state in self._states.items():
            if state.process is not None:
                status = state.process.poll()
                if status is None:
                    continue
                lived = now - state.started
                state.deaths = 1 if lived >= HEALTHY else state.deaths + 1
                delay = restart_delay(state.deaths, lived)
                state.restart_at = now + delay
                processes.stop(state.process, 0.0)  # whatever it left in its process group
                state.process = None
                log = self.children[name].log
                self._log.error(
                    "died", child=name, status=status, lived=round(lived, 1), restart_in=delay,
                    said=processes.tail(log, 3) if log else None,
                )  # fmt: skip
            if state.process is None and now >= state.restart_at:
                self._start(name)
                restarts += 1
        return restarts

    def _end(self) -> None:
        """SIGTERM to all at once, wait for the grace, SIGKILL to who is left."""
        running = [state.process for state in self._states.values() if state.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + self.grace
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or self._stops > 1:
                break
            time.sleep(_LOOK / 2)
        for process in running:
            processes.stop(process, 0.0 if self._stops > 1 or process.poll() is not None else 0.1)
        for state in self._states.values():
            state.process = None
