"""A small process supervisor: starts the children of ``ztf-stream run``, restarts the dead, leaves nobody behind.

Children are tied to this process by the kernel (:mod:`stream.engine.processes`): however it ends, they end. They may
be killed at any time without harm, that is what the stages are built for; so the tie is SIGKILL.

A child whose start is long may have a stand-in: a process that has everything in memory and waits to be told whom to
replace. It takes the place of a dead one at once, and the next stand-in is started a little later.
"""

from __future__ import annotations

import contextlib
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
# Whoever was killed (an operator, a machine short of memory) did not die of a mistake that will be there again at once.
KILLED_LONGEST = 2.0
STAND_IN_AFTER = 6.0  # seconds that the others get to start, or the last stand-in to become its child
# A child that lived this long had started and worked (imports take some five): it starts again without delay.
HEALTHY = 10.0
GRACE = 30.0  # seconds a child gets to finish its quadrant before it is killed
_LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep alive: ``argv`` with the absolute program first, ``env`` added to ours.

    ``stand_in`` starts a process that becomes this child when it reads ``order``, one line, on its standard input, and
    leaves at the end of it. Children with the same ``stand_in`` (and ``env``) share one.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    stand_in: tuple[str, ...] = ()
    order: str = ""


@dataclass(slots=True)
class _State:
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    restart_at: float = 0.0


def restart_delay(deaths: int, lived: float, status: int = 1) -> float:
    """Seconds to wait before a child that died for the ``deaths``-th time in a row, after ``lived`` s, starts again.

    ``status`` is its exit status, negative the signal that ended it.
    """
    if lived >= HEALTHY:
        return 0.0
    longest = KILLED_LONGEST if status == -signal.SIGKILL else BACKOFF_LONGEST
    return float(min(BACKOFF_FIRST * 2.0 ** min(max(deaths - 1, 0), 16), longest))


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
    stand_in_after : float
        Seconds after the start, and after a stand-in was used, until the next one is started.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        grace: float = GRACE,
        watch: Callable[[], None] | None = None,
        stand_in_after: float = STAND_IN_AFTER,
    ) -> None:
        names = [child.name for child in children]
        if len(set(names)) != len(names):
            raise UsageError(f"two children of one name: {sorted(names)}")
        self.children = {child.name: child for child in children}
        self.grace = grace
        self._watch = watch
        self._states = {name: _State() for name in self.children}
        self._stand_in_after = stand_in_after
        # By the child whose command and environment it has: one for all that share them.
        first = {child.stand_in: child.name for child in reversed(children) if child.stand_in}
        self._stand_ins = {name: _State() for name in sorted(first.values())}
        self._stops = 0
        self._log = logs.get_logger()

    def stop(self, *_: object) -> None:
        """Stop all; the second time without grace."""
        self._stops += 1

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now, and of ``stand-in:NAME`` for those that wait for their turn."""
        states = {**self._states, **{f"stand-in:{name}": state for name, state in self._stand_ins.items()}}
        running = ((name, state.process) for name, state in states.items())
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
            for state in self._stand_ins.values():
                state.restart_at = time.monotonic() + self._stand_in_after
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
        state.process = self._replaced(child)
        if state.process is None:
            state.process = processes.spawn(child.argv, log=child.log, env=child.env, parent_death=signal.SIGKILL)
        state.started = time.monotonic()
        self._log.info("started", child=name, pid=state.process.pid)

    def _replaced(self, child: Child) -> subprocess.Popen[bytes] | None:
        """The stand-in, told to be that child; ``None`` where there is none."""
        waiting = [state for name, state in self._stand_ins.items() if self.children[name].stand_in == child.stand_in]
        if not waiting or waiting[0].process is None:
            return None
        process, waiting[0].process = waiting[0].process, None
        waiting[0].restart_at = time.monotonic() + self._stand_in_after
        assert process.stdin is not None
        with contextlib.suppress(OSError), process.stdin as orders:
            orders.write(f"{child.order}\n".encode())
        return process if process.poll() is None else None

    def _keep_stand_ins(self, now: float) -> None:
        """One that died while it waited was not needed: no hurry with the next."""
        for name, state in self._stand_ins.items():
            if state.process is not None and state.process.poll() is not None:
                processes.stop(state.process, 0.0)
                state.process, state.restart_at = None, now + BACKOFF_LONGEST
            if state.process is None and now >= state.restart_at:
                child = self.children[name]
                state.process = processes.spawn(
                    child.stand_in, log=child.log, env=child.env, parent_death=signal.SIGKILL, piped=True
                )

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
                delay = restart_delay(state.deaths, lived, status)
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
        self._keep_stand_ins(now)
        return restarts

    def _end(self) -> None:
        """SIGTERM to all at once, wait for the grace, SIGKILL to who is left."""
        states = [*self._states.values(), *self._stand_ins.values()]
        running = [state.process for state in states if state.process is not None]
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
        for state in states:
            state.process = None
