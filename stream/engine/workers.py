"""Every kind of worker by name: how a process becomes one, and the commands that make a whole system."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

from threadpoolctl import threadpool_limits

from stream.core.camera import camera_named
from stream.core.errors import UsageError
from stream.engine import logs, metrics
from stream.engine.config import Settings
from stream.engine.heartbeat import Heartbeat
from stream.engine.state import Attempts, connect

RECORD_WORKERS = ("score", "enrich", "link", "monitor")
WORKERS = ("pixels", *RECORD_WORKERS, "emit", "archive")


def work(kind: str, index: int, settings: Settings) -> int:
    """Be one worker until SIGTERM or SIGINT; the exit status.

    Raises
    ------
    UsageError
        No such kind.
    """
    runners: dict[str, Callable[[int, Settings], None]] = {
        "pixels": _pixels,
        "emit": _emit,
        "archive": _archive,
        **dict.fromkeys(RECORD_WORKERS, lambda index, settings: _records(kind, index, settings)),
    }
    if kind not in runners:
        raise UsageError(f"no worker {kind!r}: known are {', '.join(WORKERS)}")
    logs.configure(settings, worker=f"{kind}-{index}")
    metrics.serve(settings)
    threadpool_limits(1)
    runners[kind](index, settings)
    return 0


def commands(settings: Settings) -> dict[str, list[str]]:
    """Command lines of a whole system's workers on this machine, by name."""
    counts = {"pixels": settings.pixel_workers, "emit": settings.emit_workers, "archive": 1}
    program = [sys.executable, "-m", "stream.cli"]
    return {
        f"{kind}-{index}": [*program, "worker", kind, "--index", str(index)]
        for kind in WORKERS
        for index in range(counts.get(kind, settings.record_workers))
    }


def _until_told(stop: Callable[[], None]) -> None:
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop())


def _pixels(index: int, settings: Settings) -> None:
    from stream.archive import ProductStore, StoreInputs
    from stream.engine.pixel_worker import PixelWorker
    from stream.engine.quadrant_messages import QuadrantProcess
    from stream.pipeline import ScienceSettings
    from stream.quadrants import QuadrantTask

    store = ProductStore(settings.store)
    task = QuadrantTask(store, StoreInputs(store), ScienceSettings(camera=camera_named(settings.camera)))
    client = connect(settings)
    with Heartbeat(client, settings.identity("pixels", index)) as heartbeat:
        worker = PixelWorker(
            settings, QuadrantProcess(task, settings), index=index, attempts=Attempts(client), heartbeat=heartbeat
        )
        _until_told(worker.stop)
        worker.run()


def _emit(index: int, settings: Settings) -> None:
    from stream.engine.alert_messages import MakeAlerts
    from stream.engine.emit import Emitter

    client = connect(settings)
    with Heartbeat(client, settings.identity("emit", index)) as heartbeat:
        emitter = Emitter(settings, MakeAlerts(), client, index=index, heartbeat=heartbeat)
        _until_told(emitter.stop)
        emitter.run()


def _archive(index: int, settings: Settings) -> None:
    from stream.engine.archive_worker import ArchiveWorker

    stop = threading.Event()
    with Heartbeat(connect(settings), settings.identity("archive", index)):
        worker = ArchiveWorker(settings)
        _until_told(stop.set)
        worker.run(stop.is_set)


def _records(kind: str, index: int, settings: Settings) -> None:
    from stream.engine.agents import run_stage
    from stream.engine.stages import make_stage

    client = connect(settings)
    with Heartbeat(client, settings.identity(kind, index)):
        run_stage(make_stage(kind, client), settings, index)
