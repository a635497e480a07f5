"""``ztf-stream demo``: a small night from raw packets to alerts on this machine. What ``make run`` calls."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stream.engine.config import Settings
    from stream.engine.gather import Gathered
    from stream.monitor import Injected

# Longest wait for the stream to finish what was ingested, seconds a quadrant (a slow machine takes a tenth of it).
PATIENCE = 60.0


def demo(
    folder: Annotated[Path, typer.Option(help="Where the night, its store, broker and plots live.")] = Path("run"),
    seed: Annotated[int, typer.Option(help="Seed of the sky and its noise.")] = 7,
    references: Annotated[int, typer.Option(help="Exposures that references are made of.")] = 15,
    exposures: Annotated[int, typer.Option(help="Science exposures that are streamed.")] = 3,
    ccd: Annotated[int, typer.Option(help="CCD, 1 to 16.")] = 1,
    camera: Annotated[str, typer.Option(help="full or small.")] = "full",
    workers: Annotated[int | None, typer.Option(help="Processes; one a core by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Simulate a small night, build its calibration and references, stream it through Kafka, and sum it up.

    What is there from an earlier call is used again. Ctrl-C ends everything this started and nothing else.
    """
    from rich.console import Console

    from stream.cli.common import cores
    from stream.engine.config import load_settings
    from stream.engine.embedded import services

    console = Console(stderr=as_json)
    count = workers or cores()
    plan = DemoPlan(folder, seed, references, exposures, ccd, camera, count)
    settings = load_settings(
        store=str(plan.store), data_dir=plan.services, camera=camera, pixel_workers=count, log_format="json"
    )
    started = time.monotonic()
    prepare(plan, console)
    console.rule("[bold]streaming the night through Kafka")
    with services(settings) as located:
        gathered = stream_night(plan, located, console)
    summary = summarise(plan, gathered, time.monotonic() - started)
    if as_json:
        from stream.cli.common import print_json

        print_json(summary)
    else:
        show(summary, console)
    if summary["unfinished"]:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the demonstration does and where."""

    folder: Path
    seed: int
    references: int
    exposures: int
    ccd: int
    camera: str
    workers: int

    @property
    def night(self) -> Path:
        """Folder of the simulated night."""
        name = f"{self.camera}-c{self.ccd:02d}-s{self.seed}-r{self.references}-e{self.exposures}"
        return self.folder / "nights" / name

    @property
    def store(self) -> Path:
        """Product store of the night."""
        return self.night / "store"

    @property
    def services(self) -> Path:
        """Folder of the broker and Redis that carry this night."""
        return self.night / "services"


def prepare(plan: DemoPlan, console: Console) -> None:
    """Simulate, import catalogues, build calibration and references; each step is skipped where it was done."""
    from stream.core.camera import camera_named
    from stream.offline import Job
    from stream.offline_calibration import build_calibrations
    from stream.offline_reference import build_references
    from stream.simulate import NightPlan, simulate_night
    from stream.sky import import_catalog

    camera = camera_named(plan.camera)
    job = Job(str(plan.store), camera)
    out = plan.night

    def simulate(report: Any) -> None:
        night = NightPlan(
            seed=plan.seed, noise_seed=plan.seed, camera=camera, ccds=(plan.ccd,), n_science=plan.exposures,
            n_reference=plan.references,
        )  # fmt: skip
        simulate_night(out, night, lambda done, total: report(done, total, "packets"), workers=plan.workers)

    def catalogs(report: Any) -> None:
        names = {"gaia": "gaia.parquet", "ps1": "ps1.parquet", "bright": "bright.parquet", "orbits": "MPCORB.DAT"}
        for done, (kind, name) in enumerate(names.items(), 1):
            import_catalog(kind, [out / name], str(plan.store))
            report(done, len(names), "catalogues")

    def calibration(report: Any) -> None:
        _all_built(build_calibrations(sorted((out / "raw" / "cal").iterdir()), job, plan.workers, report))

    def references(report: Any) -> None:
        _all_built(build_references(sorted((out / "raw" / "ref").iterdir()), job, plan.workers, report))

    n = plan.references + plan.exposures
    steps = (
        (f"simulating {n} exposures of CCD {plan.ccd} (4 quadrants of {camera.nx} x {camera.ny} px)", simulate),
        ("importing the sky: Gaia, Pan-STARRS1, bright stars, orbits", catalogs),
        ("building bias and flats", calibration),
        (f"building 4 references of {plan.references} exposures", references),
    )
    for text, step in steps:
        _once(out, step.__name__, text, step, console)


def _all_built(result: tuple[list[Any], list[Any]]) -> None:
    from stream.core.errors import UsageError

    built, errors = result
    problems = [str(error) for error in errors] + [one.error for one in built if one.error]
    if problems:
        raise UsageError("; ".join(problems))


def _once(out: Path, name: str, text: str, step: Any, console: Console) -> None:
    """Do a step unless its mark says that it was done."""
    from stream.cli.common import progress_bar

    mark = out / "done" / name
    if mark.exists():
        console.print(f"[green]✓[/] {text} [dim](there already)[/]")
        return
    started = time.monotonic()
    with progress_bar(console) as report:
        step(report)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    console.print(f"[green]✓[/] {text} [dim]{time.monotonic() - started:.0f} s[/]")


def stream_night(plan: DemoPlan, settings: Settings, console: Console) -> Gathered:
    """Start the workers, ingest the science packets, read the alerts as a subscriber until all are there."""
    from stream.cli.common import progress_bar
    from stream.engine import logs
    from stream.engine.access import make_ready
    from stream.engine.gather import NightReader
    from stream.engine.rebuild import ensure_state
    from stream.engine.state import connect
    from stream.engine.supervise import Supervisor
    from stream.engine.workers import children

    logs.configure(settings.model_copy(update={"log_level": "error"}), worker="demo")
    make_ready(settings)
    ensure_state(settings, connect(settings))
    packets = sorted((plan.night / "raw" / "sci").iterdir())
    expected = 4 * len(packets)
    workers = children(settings)
    console.print(f"Kafka {settings.bootstrap}, Redis {settings.redis_url}, {len(workers)} workers")
    deadline = time.monotonic() + PATIENCE * expected
    with NightReader(settings) as reader, progress_bar(console) as report:
        feed = Feed(packets, settings, len(workers))

        def finished(gathered: Gathered) -> bool:
            report(len(gathered.reports), expected, "quadrants")
            report(gathered.n_alerts, max(gathered.n_expected, 1), "alerts")
            done = len(gathered.reports) + len(_ingest_letters(gathered)) >= expected
            return done and gathered.n_alerts >= gathered.n_expected

        def watch() -> None:
            feed.step()
            reader.poll(0.1)
            if finished(reader.gathered) or time.monotonic() > deadline:
                supervisor.stop()

        reader.until(lambda gathered: reader.idle, 5.0)
        if finished(reader.gathered):
            console.print("[green]✓[/] streamed [dim](there already)[/]")
            return reader.gathered
        supervisor = Supervisor(workers, watch=watch)
        supervisor.run()
        if not finished(reader.gathered) and time.monotonic() < deadline:
            raise KeyboardInterrupt  # somebody stopped the supervisor
        reader.poll(1.0)  # tracklets follow the alerts
        return reader.gathered


class Feed:
    """Puts the packets onto Kafka once all workers are there, so that the latencies are those of a running system."""

    # Workers that have not come by then will not; what works, works without them.
    LONGEST_WAIT = 90.0

    def __init__(self, packets: list[Path], settings: Settings, n_workers: int) -> None:
        self._packets = packets
        self._settings = settings
        self._n_workers = n_workers
        self._started = time.monotonic()
        self._thread: threading.Thread | None = None

    def step(self) -> None:
        """Start feeding if it is time; feeding goes on in a thread of its own."""
        from stream.engine.heartbeat import living
        from stream.engine.state import connect

        if self._thread is not None:
            return
        waited = time.monotonic() - self._started
        if waited > self.LONGEST_WAIT or len(living(connect(self._settings))) >= self._n_workers:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        from stream.engine.ingest_service import Ingestor
        from stream.engine.state import connect

        ingestor = Ingestor(self._settings, connect(self._settings))
        try:
            for _ in ingestor.files(self._packets):
                pass
        finally:
            ingestor.close()


def _ingest_letters(gathered: Gathered) -> list[Any]:
    return [letter for letter in gathered.letters.values() if letter.stage == "ingest"]


def summarise(plan: DemoPlan, gathered: Gathered, seconds: float) -> dict[str, Any]:
    """The summary as plain values, and its plots on disk."""
    from stream.alert import EXTENSION_FIELDS
    from stream.alert.sheet import stamps_sheet
    from stream.monitor import latency_report, percentiles, plot_night, recovery
    from stream.simulate import read_truth

    truth = read_truth(plan.night)
    packets = [packet for topic in sorted(gathered.alerts) for packet in gathered.alerts[topic]]
    candidates = [packet["candidate"] for packet in packets]
    ledgers = [{k: v for k, v in packet["zsds"].items() if v is not None} for packet in packets]
    ledgers = [{k: led[k] for k in led if k in EXTENSION_FIELDS and isinstance(led[k], float)} for led in ledgers]
    reports = list(gathered.reports.values())
    injected = recovery(truth, reports, candidates, usable_pixels(plan, reports))
    plots = plan.night / "plots"
    best = sorted(packets, key=lambda p: (-(p["candidate"]["drb"] or 0), -(p["candidate"]["scorr"] or 0)))[:12]
    files = [
        str(plot_night(plots / "night.png", injected, candidates, ledgers, f"simulated night, {len(packets)} alerts"))
    ]
    if best:
        stamps_sheet(best, plots / "stamps.png")
        files.append(str(plots / "stamps.png"))
    found, total = injected.completeness(10.0)
    summary = {
        "packets": len(sorted((plan.night / "raw" / "sci").iterdir())),
        "quadrants": _counts(str(report.status) for report in reports),
        "notes": _counts(note.partition(":")[0] for report in reports for note in report.notes),
        "sources": sum(report.n_sources or 0 for report in reports),
        "candidates": sum((report.n_candidates or 0) + (report.n_rejected or 0) for report in reports),
        "alerts": {topic: len(sent) for topic, sent in sorted(gathered.alerts.items())},
        "distinct": len({packet["candid"] for packet in packets}),
        "streaks": gathered.n_streaks,
        "tracklets": len(gathered.tracklets),
        "dead_letters": [letter.reason for letter in gathered.letters.values()],
        "unreadable": gathered.n_unreadable,
        "latency": percentiles(ledgers, "arrived", "published", (50.0, 95.0, 100.0)),
        "latency_by_stage": latency_report(ledgers)["stages"],
        "injected": {name: _of_kind(injected, name) for name in ("transient", "asteroid")},
        "found_snr10": [found, total],
        "cpu_seconds_a_quadrant": round(sum(sum(r.seconds.values()) for r in reports) / max(len(reports), 1), 2),
        "files": files,
        "store": str(plan.store),
        "logs": str(plan.services / "logs"),
        "show": str(best[0]["candid"]) if best else "",
        "seconds": round(seconds, 1),
        "unfinished": gathered.n_alerts < gathered.n_expected or not reports,
    }
    (plots.parent / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary


def usable_pixels(plan: DemoPlan, reports: list[Any]) -> dict[tuple[str, int], Any]:
    """Clean pixels of each searched quadrant, from its mask product."""
    from stream.archive import ProductStore, read_mask
    from stream.core.flags import BAD_BITS

    store = ProductStore(str(plan.store))
    searched = [report for report in reports if report.diffmaglim is not None]
    return {(r.name.rsplit("_q", 1)[0], r.rcid): (read_mask(store, r.name) & BAD_BITS) == 0 for r in searched}


def _of_kind(injected: Injected, kind: str) -> list[int]:
    chosen = injected.kind == kind
    return [int((chosen & injected.found).sum()), int(chosen.sum())]


def _counts(values: Any) -> dict[str, int]:
    from collections import Counter

    return dict(sorted(Counter(values).items()))


def show(summary: dict[str, Any], console: Console) -> None:
    """The summary for a person."""
    from rich.table import Table

    console.rule("[bold]the night")
    table = Table(show_header=False, box=None, padding=(0, 2))
    quadrants = ", ".join(f"{n} {status}" for status, n in summary["quadrants"].items())
    table.add_row("packets", f"{summary['packets']} CCD packets, {quadrants} quadrants")
    table.add_row(
        "measured",
        f"{summary['sources']} sources, {summary['candidates']} events, {summary['streaks']} quadrants with streaks",
    )
    if summary["notes"]:
        table.add_row("noted", ", ".join(f"{name} in {n} quadrants" for name, n in summary["notes"].items()))
    for topic, count in summary["alerts"].items():
        table.add_row("alerts", f"{count} on [cyan]{topic}[/], {summary['distinct']} distinct candids")
    table.add_row("tracklets", str(summary["tracklets"]))
    letters = summary["dead_letters"]
    table.add_row(
        "dead letters", f"{len(letters)}" + (f": {letters[0][:90]} (`ztf-stream deadletter list`)" if letters else "")
    )
    if summary["unreadable"]:
        table.add_row("unreadable", f"{summary['unreadable']} messages on the stream's topics are none of its records")
    latency = summary["latency"]
    if latency:
        table.add_row("arrival to alert", ", ".join(f"{int(p)} %: {s:.1f} s" for p, s in latency.items()))
    for name, stage in summary["latency_by_stage"].items():
        if name != "total":
            table.add_row(f"  until {name}", f"median {stage['median']:.1f} s, 95 % {stage['p95']:.1f} s")
    for kind, (found, total) in summary["injected"].items():
        table.add_row(f"injected {kind}s", f"{total} painted, {found} became alerts")
    found, total = summary["found_snr10"]
    if total:
        table.add_row("at S/N 10 and more", f"[bold]{found} of {total}[/] on clean pixels ({found / total:.1%})")
    table.add_row(
        "work", f"{summary['cpu_seconds_a_quadrant']} core-seconds a quadrant, {summary['seconds']:.0f} s in all"
    )
    console.print(table)
    console.rule("look further")
    for path in summary["files"]:
        console.print(f"  {path}")
    store = summary["store"]
    console.print(f"  products, alerts: {store}")
    if summary["show"]:
        console.print(f"  ztf-stream alerts show {summary['show']} --store {store}")
    if summary["unfinished"]:
        console.print(f"[red]the night did not finish:[/] the workers' logs are in {summary['logs']}")
