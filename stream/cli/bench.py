"""``ztf-stream bench``: the design's figures on this machine, as whole processes."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stream.cli.demo import DemoPlan

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The figures of the design, as whole processes.")

Folder = Annotated[Path, typer.Option(help="Where the simulated night lives; made once, used again.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
# A reference of six exposures costs the same to subtract as one of forty; it is only quicker to make.
BENCH_REFERENCES = 6


def _night(folder: Path, camera: str) -> DemoPlan:
    from rich.console import Console

    from stream.cli.common import cores
    from stream.cli.demo import DemoPlan, prepare

    plan = DemoPlan(folder, 11, BENCH_REFERENCES, 2, 1, camera, cores())
    prepare(plan, Console(stderr=True))
    return plan


@app.command()
def quadrant(
    folder: Folder = Path("run"),
    camera: Annotated[str, typer.Option(help="full or small.")] = "full",
    repeats: Annotated[int, typer.Option(help="Quadrants that are timed, after one that warms the caches.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Core-seconds of one quadrant from packet to candidates, step by step, in one single-threaded process."""
    from stream.cli.common import print_json

    plan = _night(folder, camera)
    # A process of its own, so that memory and caches are the worker's and nobody else's.
    command = [sys.executable, "-m", "stream.cli.bench", str(plan.night), camera, str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    import json

    figures = json.loads(done.stdout.splitlines()[-1])
    if as_json:
        print_json(figures)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "core-seconds (median)", title=f"one {camera} quadrant")
    for step, seconds in figures["steps"].items():
        table.add_row(step, f"{seconds:.3f}")
    table.add_row("[bold]packet to candidates", f"[bold]{figures['packet_to_candidates']:.3f}")
    Console().print(table)
    print(f"peak memory {figures['peak_rss_mb']:.0f} MB; target 1.4 core-seconds, under 1500 MB")


def time_quadrants(night: Path, camera: str, repeats: int) -> dict[str, Any]:
    """Median CPU seconds by step over repeats of one science quadrant; the first run is not counted."""
    import statistics

    from threadpoolctl import threadpool_limits

    from stream.archive import ProductStore, StoreInputs
    from stream.core.camera import camera_named
    from stream.ingest import read_packet
    from stream.pipeline import ScienceSettings
    from stream.quadrants import QuadrantTask, batch_of

    threadpool_limits(1)
    store = ProductStore(str(night / "store"))
    task = QuadrantTask(store, StoreInputs(store), ScienceSettings(camera=camera_named(camera)))
    packet = read_packet(sorted((night / "raw" / "sci").iterdir())[0], camera_named(camera))
    runs = []
    for _ in range(repeats + 1):
        result = task.run(packet.quadrants[0].payload)
        started = time.process_time()
        batch = batch_of(result)
        runs.append({**result.report.seconds, "stamps_and_records": time.process_time() - started})
    counted = runs[1:]
    steps = {step: round(statistics.median(run[step] for run in counted), 4) for step in counted[0]}
    return {
        "status": str(result.report.status),
        "steps": steps,
        "packet_to_candidates": round(sum(s for step, s in steps.items() if step != "products"), 4),
        "with_products": round(sum(steps.values()), 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "n_sources": result.report.n_sources,
        "n_candidates": result.report.n_candidates,
        "n_alert_records": len(batch.items),
        "repeats": repeats,
    }


@app.command()
def camera(
    folder: Folder = Path("run"),
    camera: Annotated[str, typer.Option(help="full or small.")] = "full",
    quadrants: Annotated[int, typer.Option(help="How many quadrants are done.")] = 8,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Quadrants a second that this machine sustains, against the 64 in 45 s of the camera."""
    from stream.cli.common import cores, print_json
    from stream.core.camera import camera_named
    from stream.offline import Job, parallel, process_one_quadrant

    plan = _night(folder, camera)
    count = workers or cores()
    paths = sorted((plan.night / "raw" / "sci").iterdir())
    units = [(paths[i // 4 % len(paths)], i % 4, camera_named(camera)) for i in range(quadrants)]
    warm = [(paths[0], i % 4, camera_named(camera)) for i in range(count)]
    job = Job(str(plan.store), camera_named(camera))
    finished: list[float] = []
    for _ in parallel(process_one_quadrant, [*warm, *units], job, count):
        finished.append(time.monotonic())
    seconds = finished[-1] - finished[count - 1]
    rate = quadrants / seconds
    figures = {
        "workers": count,
        "quadrants": quadrants,
        "seconds": round(seconds, 2),
        "quadrants_per_second": round(rate, 3),
        "needed_per_second": round(64 / 45, 3),
        "cameras": round(rate * 45 / 64, 3),
    }
    if as_json:
        print_json(figures)
    else:
        print(
            f"{rate:.2f} quadrants/s by {count} processes; the camera makes {64 / 45:.2f}: {figures['cameras']} cameras"
        )


@app.command()
def alerts(
    number: Annotated[int, typer.Option(help="Packets to write and publish.")] = 8000,
    processes: Annotated[int, typer.Option(help="Writers, a process each.")] = 2,
    every_topic: Annotated[
        bool, typer.Option(help="Also the permanent and the light topic, as the emitter does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Alerts a minute from pixels of stamps to the broker: encoded, checked, written, published and confirmed.

    A real broker is started for it (or that of ZTF_BOOTSTRAP is used); its processor time is counted too where it
    runs on this machine.
    """
    from stream.cli.bench_alerts import published
    from stream.cli.common import print_json

    figures = published(number, processes, every_topic)
    if as_json:
        print_json(figures)
        return
    print(
        f"{figures['per_minute']} alerts a minute by {processes} processes on a machine of {figures['cores']} cores; "
        f"{figures['cpu_us_per_alert']} us of processor time each, so {figures['per_minute_two_cores']} a minute where "
        f"two cores are free; {figures['bytes_per_alert']} bytes each"
    )


if __name__ == "__main__":
    from stream.cli.common import print_json as _print

    _print(time_quadrants(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
