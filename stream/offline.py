"""Work without a broker, in parallel processes: packets to products and candidates.

Each process does whole quadrants single-threaded, as the stream's workers do; results are gathered in the order of the
exposures, so that the number of processes changes nothing but the time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from threadpoolctl import threadpool_limits

from stream.archive import ProductStore, StoreInputs, write_products
from stream.calibrate import CalibrateSettings
from stream.core.camera import Camera
from stream.core.errors import PacketError, Permanent
from stream.core.identity import CANDID_VERSION
from stream.core.records import (
    CalibrationSet,
    CandidateBatch,
    Quadrant,
    QuadrantInputs,
    QuadrantReport,
    QuadrantResult,
    RawQuadrant,
    Reference,
    Table,
    failed_report,
)
from stream.ingest import parse_packet, read_packet, read_quadrant, read_science
from stream.pipeline import ScienceSettings, Stopwatch, process_science, science_from_calibrated
from stream.quadrants import QuadrantTask, batch_of
from stream.reference import build_reference

Progress = Callable[[int, int, str], None]
T = TypeVar("T")
R = TypeVar("R")


def quiet(done: int, total: int, what: str) -> None:
    """No progress display."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every process needs to know."""

    store: str
    camera: Camera
    candid_version: int = CANDID_VERSION
    calibrate: CalibrateSettings = field(default_factory=CalibrateSettings)
    method: str = "proper"

    def science(self) -> ScienceSettings:
        """Settings of the science."""
        return ScienceSettings(
            camera=self.camera, candid_version=self.candid_version, calibrate=self.calibrate, method=self.method
        )


_task: QuadrantTask | None = None


def _start(job: Job, settings: ScienceSettings) -> None:
    """Once a process: hold the numerics to one thread, open the store."""
    global _task
    threadpool_limits(1)
    store = ProductStore(job.store)
    _task = QuadrantTask(store, StoreInputs(store), settings)


def _start_child(job: Job, settings: ScienceSettings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _start(job, settings)


def _end_with_parent() -> None:
    """However the parent ends, nobody goes on working for it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def own_task() -> QuadrantTask:
    """The store, inputs and settings of this process; only where ``parallel`` calls."""
    if _task is None:
        raise RuntimeError("this process was not started by `parallel`")
    return _task


def parallel(
    work: Callable[[T], R], items: Sequence[T], job: Job, workers: int, settings: ScienceSettings | None = None
) -> Iterator[R]:
    """Apply ``work`` to each item in processes of their own; results in the order of the items."""
    settings = settings or job.science()
    if workers <= 1 or len(items) == 1:
        _start(job, settings)
        yield from map(work, items)
        return
    # Spawned, not forked: a fork would inherit the progress display's thread and its locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), context, initializer=_start_child, initargs=(job, settings))
    try:
        yield from pool.map(work, items)
    except BaseException:
        # Ctrl-C, or one item's failure: nobody waits for what is still being computed.
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class PacketHead:
    """Enough of a packet to sort it without its pixels."""

    path: Path
    imgtype: str
    field: int
    fid: int
    ccdid: int
    night: str
    jd: float
    qids: tuple[int, ...]


def packet_heads(paths: Iterable[Path], camera: Camera) -> tuple[list[PacketHead], list[PacketError]]:
    """Heads of readable packets in time order, and what is wrong with the others."""
    heads, errors = [], []
    for path in paths:
        try:
            packet = read_packet(path, camera, aggressors=False)
        except PacketError as error:
            errors.append(error)
            continue
        e = packet.exposure
        qids = tuple(q.quadrant.qid for q in packet.quadrants)
        heads.append(PacketHead(path, e.imgtype, e.field, e.fid, e.ccdid, e.night, e.jd, qids))
    return sorted(heads, key=lambda head: (head.jd, head.ccdid)), errors


def raw_of(path: Path, qid: int, camera: Camera, *, aggressors: bool = True) -> RawQuadrant | None:
    """One quadrant of a packet; None where it is hurt."""
    packet = read_packet(path, camera, aggressors=aggressors)
    for payload in packet.quadrants:
        if payload.quadrant.qid == qid:
            return read_quadrant(payload.payload, camera)
    return None


@dataclass(frozen=True, slots=True)
class Built:
    """One calibration frame or reference that was written, or why not."""

    kind: str
    field: int
    rcid: int
    fid: int
    night: str
    n_inputs: int
    figures: dict[str, object]
    error: str | None = None


@dataclass(slots=True)
class Outcome:
    """What `process` made of one quadrant: its quality record and the candidates that go on."""

    report: QuadrantReport
    batch: CandidateBatch


def _process_packet(unit: tuple[Path, Camera]) -> tuple[list[Outcome], list[str]]:
    """All quadrants of one packet; hurt ones as sentences."""
    path, camera = unit
    task = own_task()
    outcomes: list[Outcome] = []
    try:
        packet = parse_packet(path.read_bytes(), path.name, camera)
    except PacketError as error:
        return [], [f"{path.name}: {error}"]
    except OSError as error:
        return [], [f"{path}: cannot be read: {error.strerror}"]
    hurt = [f"{path.name}: {failure}" for failure in packet.failures]
    for failure in packet.failures:
        qid = failure.context.get("qid")
        if qid in (1, 2, 3, 4):
            quadrant = Quadrant(packet.exposure, int(qid))
            result = QuadrantResult(failed_report(quadrant, failure), quadrant)
            outcomes.append(Outcome(result.report, batch_of(result)))
    for payload in packet.quadrants:
        try:
            result = task.run(payload.payload)
        except PacketError as error:
            hurt.append(f"{path.name}: {error}")
            continue
        outcomes.append(Outcome(result.report, batch_of(result)))
    return outcomes, hurt


def process_packets(
    paths: Sequence[Path], job: Job, workers: int, progress: Progress = quiet
) -> Iterator[tuple[list[Outcome], list[str]]]:
    """Process raw packets to products; yields, a packet at a time in time order, its quadrants and what was hurt."""
    heads, errors = packet_heads(paths, job.camera)
    if errors:
        yield [], [str(error) for error in errors]
    units = [(head.path, job.camera) for head in heads if head.imgtype == "object"]
    if not units:
        return
    for done, result in enumerate(parallel(_process_packet, units, job, workers), 1):
        progress(done, len(units), "packets")
        yield result


def process_calibrated(
    paths: Sequence[Path], reference: Path | None, job: Job
) -> Iterator[tuple[list[Outcome], list[str]]]:
    """Measure, subtract and search calibrated images; ``reference`` replaces the store's reference where given."""
    _start(job, job.science())
    task = own_task()
    inputs: QuadrantInputs = task.inputs
    if reference is not None:
        try:
            inputs = WithReference(task.inputs, _reference_of(reference, task.inputs))
        except Permanent as error:
            yield [], [f"{reference.name}: {error}"]
            return
    for path in paths:
        try:
            result = process_image(path, inputs, job.science())
        except Permanent as error:
            yield [], [f"{path.name}: {error}"]
            continue
        write_products(task.store, result)
        yield [Outcome(result.report, batch_of(result))], []


def process_image(path: Path, inputs: QuadrantInputs, settings: ScienceSettings | None = None) -> QuadrantResult:
    """One calibrated image: science products, and candidates where ``inputs`` has a reference.

    Raises
    ------
    PacketError
        The file cannot be used. Failures of the science are in the result's report.
    """
    came = read_science(path)
    watch = Stopwatch()
    return process_science(
        lambda: science_from_calibrated(came.image, came.astrometry, came.zeropoint, inputs, watch, came.seeing),
        came.image.quadrant,
        inputs,
        watch,
        settings,
    )


def _reference_of(path: Path, inputs: QuadrantInputs) -> Reference:
    came = read_science(path)
    science = science_from_calibrated(came.image, came.astrometry, came.zeropoint, inputs, seeing=came.seeing)
    return build_reference([science])


@dataclass(frozen=True, slots=True)
class WithReference:
    """Inputs whose reference is a given one, whatever the quadrant."""

    inputs: QuadrantInputs
    given: Reference

    def reference(self, quadrant: Quadrant) -> Reference | None:
        """The given reference."""
        return self.given

    def prepared(self, reference: Reference, make: Callable[[Reference], T]) -> T:
        """As the inputs behind."""
        return self.inputs.prepared(reference, make)

    def calibration(self, quadrant: Quadrant) -> CalibrationSet:
        """As the inputs behind."""
        return self.inputs.calibration(quadrant)

    def gaia(self, ra: float, dec: float, radius: float) -> Table:
        """As the inputs behind."""
        return self.inputs.gaia(ra, dec, radius)

    def ps1(self, ra: float, dec: float, radius: float) -> Table:
        """As the inputs behind."""
        return self.inputs.ps1(ra, dec, radius)

    def bright(self, ra: float, dec: float, radius: float) -> Table:
        """As the inputs behind."""
        return self.inputs.bright(ra, dec, radius)


def process_one_quadrant(unit: tuple[Path, int, Camera]) -> QuadrantReport:
    """One quadrant (by its place in the packet) of one packet, to its products; for measurements."""
    path, place, camera = unit
    packet = read_packet(path, camera)
    return own_task().run(packet.quadrants[place].payload).report
