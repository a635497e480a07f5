"""``ztf-stream process``: packets (or calibrated images) to products and alert files, without a broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stream.core.records import CandidateBatch, QuadrantReport
    from stream.offline import Job, Outcome

Files = Annotated[list[str], typer.Argument(help="Raw packets or calibrated science images: files, globs or folders.")]


def process(
    files: Files,
    store: Annotated[str | None, typer.Option(help="Product store (folder or URL).", envvar="ZTF_STORE")] = None,
    camera: Annotated[str | None, typer.Option(help="full or small.", envvar="ZTF_CAMERA")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="For calibrated images: subtract this calibrated image as the reference.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="Of the subtraction: proper, or kernel (a fitted one, slow, to compare with).")
    ] = "proper",
    workers: Annotated[int | None, typer.Option(help="Processes; one a core by default.")] = None,
    score: Annotated[bool, typer.Option(help="Score the candidates and write alert files.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a quadrant.")] = False,
) -> None:
    """Run the stream's own science on files: products, candidates and alert files into the store, no broker.

    One line a quadrant says how it ended. The exit status is 1 if anything failed.
    """
    from stream.calibrate import CalibrateSettings
    from stream.cli.common import complain, cores
    from stream.core.camera import camera_named
    from stream.engine.config import load_settings
    from stream.ingest import expand_inputs
    from stream.offline import Job

    settings = load_settings(store=store, camera=camera)
    how = CalibrateSettings(pocket=settings.pocket_correction, max_age=settings.old_calibration_days)
    if method not in ("proper", "kernel"):
        raise typer.BadParameter(f"{method}: proper or kernel", param_hint="--method")
    job = Job(settings.store, camera_named(settings.camera), settings.candid_version, how, method)
    paths = expand_inputs(files)
    raw = [path for path in paths if _is_raw(path)]
    calibrated = [path for path in paths if not _is_raw(path)]
    emitter = _Emitter(job, score)
    failed = False
    for outcomes, hurt in _outcomes(raw, calibrated, reference, job, workers or cores()):
        complain(hurt)
        failed = failed or bool(hurt)
        for outcome in outcomes:
            written = emitter.emit(outcome.report, outcome.batch)
            _line(outcome.report, written, as_json)
            failed = failed or outcome.report.status == "failed"
    if failed:
        raise typer.Exit(1)


def _is_raw(path: Path) -> bool:
    from stream.ingest import is_packet_name

    return is_packet_name(path.name)


def _outcomes(
    raw: list[Path], calibrated: list[Path], reference: Path | None, job: Job, workers: int
) -> Iterator[tuple[list[Outcome], list[str]]]:
    from stream.cli.common import progress_bar
    from stream.offline import process_calibrated, process_packets

    with progress_bar() as report:
        if raw:
            yield from process_packets(raw, job, workers, report)
        if calibrated:
            yield from process_calibrated(calibrated, reference, job)


def _line(report: QuadrantReport, alerts: int, as_json: bool) -> None:
    from stream.cli.common import print_json

    if as_json:
        print_json({**_fields(report), "n_alerts": alerts})
        return
    seconds = sum(report.seconds.values())
    figures = ""
    if report.magzp is not None:
        figures = f"seeing {report.seeing:.2f} px, zero point {report.magzp:.3f}, limit {report.maglim:.2f}, "
        figures += f"{report.n_sources} sources, {report.n_candidates or 0} candidates, {alerts} alerts, "
    reason = f"  {report.stage + ': ' if report.stage else ''}{report.reason}" if report.reason else ""
    print(f"{report.name}  {report.status}  {figures}{seconds:.1f} s{reason}", flush=True)


def _fields(report: QuadrantReport) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)


class _Emitter:
    """Scores, enriches and writes alert files, quadrants in the order they come."""

    def __init__(self, job: Job, score: bool) -> None:
        from stream.archive import ProductStore, StoreDepths
        from stream.enrich import MemoryHistory
        from stream.forced import StoreForced

        self._store = ProductStore(job.store)
        self._history = MemoryHistory()
        self._forced = StoreForced(self._store)
        self._depth = StoreDepths(self._store)
        self._scorer: Any = None
        self._score = score
        self._loaded: set[str] = set()

    def emit(self, report: QuadrantReport, batch: CandidateBatch) -> int:
        """Write the alerts of one quadrant; how many."""
        from stream.alert import PRV_FIELDS, emit_packet
        from stream.archive import write_alert
        from stream.cli.common import complain
        from stream.core.errors import AlertError
        from stream.enrich import enrich_batch

        self._recall(report)
        self._history.add_epoch(report)
        if not batch.items:
            return 0
        if self._score:
            if self._scorer is None:
                from stream.score import load_scorer

                self._scorer = load_scorer()
            self._scorer.score(batch.items)
        enrich_batch(batch, self._history, PRV_FIELDS, self._forced, self._depth)
        written = 0
        for item in batch.items:
            try:
                write_alert(self._store, emit_packet(item, batch, {}))
            except AlertError as error:
                complain([f"candid {item.candidate['candid']}: {error}"])
                continue
            written += 1
        return written

    def _recall(self, report: QuadrantReport) -> None:
        """Bring back what the store knows of the thirty days before a night, once a night."""
        from stream.archive import recall_history
        from stream.core.identity import night_of

        night = night_of(report.jd)
        if night not in self._loaded:
            self._loaded.add(night)
            recall_history(self._store, self._history, report.jd)
