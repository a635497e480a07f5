"""Every kind of worker by name: how a process becomes one, and the commands that make a whole system."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from stream.alert import frame_messages
from stream.core.camera import camera_named
from stream.core.errors import UsageError
from stream.engine import logs, metrics
from stream.engine.config import Settings
from stream.engine.heartbeat import Heartbeat
from stream.engine.state import Attempts, connect
from stream.engine.supervise import Child
from stream.engine.watchdog import leave

if TYPE_CHECKING:
    from stream.quadrants import QuadrantTask

RECORD_WORKERS = ("score", "enrich", "link", "monitor")
WORKERS = ("pixels", *RECORD_WORKERS, "emit", "archive", "nights")
# Numerics are single-threaded within a worker; workers scale by process.
_SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# A quadrant takes and frees some hundreds of megabytes in large pieces; given back to the system and taken anew each
# time, the page faults cost up to 0.8 s a quadrant. A worker keeps them instead.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


def work(kind: str, index: int, settings: Settings) -> int:
    """Be one worker until SIGTERM or SIGINT; the exit status.

    Raises
    ------
    UsageError
        No such kind.
    """
    runners: dict[str, Callable[[int, Settings, Heartbeat], None]] = {
        "pixels": _pixels,
        "emit": _emit,
        "archive": _archive,
        "nights": _nights,
        **dict.fromkeys(RECORD_WORKERS, lambda index, settings, beat: _records(kind, index, settings, beat)),
    }
    if kind not in runners:
        raise UsageError(f"no worker {kind!r}: known are {', '.join(WORKERS)}")
    logs.configure(settings, worker=f"{kind}-{index}")
    frame_messages(settings.schema_framing == "confluent")
    port = metrics.serve(settings)
    threadpool_limits(1)
    heartbeat = Heartbeat(connect(settings), settings.identity(kind, index), kind, metrics=port)
    runners[kind](index, settings, heartbeat)
    return 0


def stand_by(kind: str, settings: Settings) -> int:
    """Have in memory what a worker of this kind needs, wait for an order on standard input, be that worker.

    The order is a line of JSON with ``index`` and ``log``, the file that everything said from then on is added to. At
    the end of the input without one the process leaves. Returns the exit status.
    """
    if kind != "pixels":
        raise UsageError(f"no stand-in for {kind!r}: only quadrant workers have one")
    _quadrant_task(settings)
    _warm(lambda: bool(select.select([sys.stdin], [], [], 0.0)[0]))
    line = sys.stdin.readline()
    if not line.strip():
        return 0
    order = json.loads(line)
    with open(order["log"], "ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    return work(kind, order["index"], settings)


def children(settings: Settings) -> list[Child]:
    """The worker processes of a whole system on this machine, for a ``Supervisor``; each logs to a file of its own."""
    counts = {"pixels": settings.pixel_workers, "emit": settings.emit_workers, "archive": 1, "nights": 1}
    folder = settings.data_dir.expanduser() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    more = {**_SINGLE_THREADED, **_KEEP_MEMORY}
    plain, admin = {**settings.without_admin().environment(), **more}, {**settings.environment(), **more}
    found = []
    for kind in WORKERS:
        for index in range(counts.get(kind, settings.record_workers)):
            argv = (sys.executable, "-m", "stream.cli", "worker", kind, "--index", str(index))
            env, name = admin if kind == "nights" else plain, f"{kind}-{index}"
            child = Child(name, argv, env, folder / f"{name}.log")
            if kind == "pixels":
                order = json.dumps({"index": index, "log": str(child.log)})
                child = replace(child, stand_in=(*argv[:5], "--stand-in"), order=order)
            found.append(child)
    return found


def _until_told(stop: Callable[[], None]) -> None:
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop())


def _quadrant_task(settings: Settings) -> QuadrantTask:
    """The science of a quadrant worker, with everything imported."""
    from stream.archive import ProductStore, StoreInputs
    from stream.calibrate import CalibrateSettings
    from stream.engine import lanes, pixel_worker, quadrant_messages  # noqa: F401
    from stream.fakes import FakeSettings
    from stream.pipeline import ScienceSettings
    from stream.quadrants import QuadrantTask

    store = ProductStore(settings.store)
    how = CalibrateSettings(pocket=settings.pocket_correction, max_age=settings.old_calibration_days)
    science = ScienceSettings(
        camera=camera_named(settings.camera), profile=settings.cut_profile, candid_version=settings.candid_version,
        fakes=FakeSettings(share=settings.fakes_share) if settings.fakes_share > 0 else None, calibrate=how,
    )  # fmt: skip
    return QuadrantTask(store, StoreInputs(store), science)


def _warm(wanted: Callable[[], bool]) -> None:
    """Load and compute what a process's first quadrant would have to, 0.8 s of its 1.6; until it is ``wanted``."""
    import pyarrow.dataset  # noqa: F401  # reading a table imports it

    from stream.calibrate.sharpness import WIDTHS, filters

    for width in WIDTHS:
        if wanted():
            return
        filters(width)


def _pixels(index: int, settings: Settings, heartbeat: Heartbeat) -> None:
    from stream.engine.lanes import Lanes
    from stream.engine.pixel_worker import PixelWorker
    from stream.engine.quadrant_messages import QuadrantProcess

    task = _quadrant_task(settings)
    attempts = Attempts(connect(settings))
    with heartbeat:
        lanes = Lanes(settings, settings.group("pixels"))
        process = QuadrantProcess(task, settings, index)
        worker = PixelWorker(
            settings, process, index=index, lanes=lanes, attempts=attempts, heartbeat=heartbeat, leave=leave
        )
        _until_told(worker.stop)
        worker.run()


def _emit(index: int, settings: Settings, heartbeat: Heartbeat) -> None:
    from stream.engine.alert_messages import LateNights, MakeAlerts, refusals
    from stream.engine.emit import Emitter
    from stream.engine.kafka import Sender, make_producer
    from stream.monitor import Monitor

    client = connect(settings)
    monitor = Monitor(client)
    make_alerts = MakeAlerts(
        refusals(Sender(make_producer(settings, "emit-letters")), settings), late=LateNights(monitor.is_closed)
    )
    with heartbeat:
        emitter = Emitter(
            settings, make_alerts, client, index=index, heartbeat=heartbeat, published=monitor.published, leave=leave
        )
        _until_told(emitter.stop)
        emitter.run()


def _archive(index: int, settings: Settings, heartbeat: Heartbeat) -> None:
    from stream.engine.archive_worker import ArchiveWorker

    stop = threading.Event()
    with heartbeat:
        worker = ArchiveWorker(settings, heartbeat, leave)
        _until_told(stop.set)
        worker.run(stop.is_set)


def _nights(index: int, settings: Settings, heartbeat: Heartbeat) -> None:
    from stream.engine.nights import NightsWorker

    stop = threading.Event()
    with heartbeat:
        worker = NightsWorker(settings, connect(settings), heartbeat)
        _until_told(stop.set)
        worker.run(stop.is_set)


def _records(kind: str, index: int, settings: Settings, heartbeat: Heartbeat) -> None:
    from stream.archive import ProductStore, StoreDepths
    from stream.engine.agents import run_stage
    from stream.engine.stages import make_stage
    from stream.forced import StoreForced

    store = ProductStore(settings.store)
    forced = StoreForced(store) if kind == "enrich" else None
    # Models are loaded before we say that we are there.
    stage = make_stage(kind, connect(settings), forced, StoreDepths(store), resend=settings.reprocess_alerts)
    with heartbeat:
        heartbeat.note("waiting")
        run_stage(stage, settings, heartbeat, index)
