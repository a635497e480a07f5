"""Astrometry, PSF, photometry and zero points against the simulator's truth, beside other programs, by one command.

    python -m ops.bench.measurement --out DIR [--fields normal,dense,sparse] [--exposures 10] [--workers 2]
        [--docs docs] [--real ../shared/data] [--peers 10] [--without photutils] [--json]

DIR holds the fields of ``ops.bench.fields``; what is missing is simulated and calibrated first (some minutes a field).
Each exposure goes through ``make_science``; the first ``--peers`` of them also through source-extractor with PSFEx and
SCAMP, sep, and one through photutils, as far as they are installed. With ``--docs`` the table (Markdown) and the plots
are written there; with ``--real`` the survey's own cut-outs and reference catalogue have their tables too. Exit status
1 where a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from threadpoolctl import threadpool_limits

from ops.bench.fields import FIELDS, plan_of, plans_of_fringes, simulate
from ops.bench.measured import Frame, Unit, measure
from ops.bench.measured_rows import OURS, Line, lines, overall, summary
from ops.bench.peers import available
from stream.core.camera import FULL
from stream.offline import Job
from stream.offline_calibration import build_calibrations, build_skies
from stream.simulate import NightPlan
from stream.sky import import_catalog

SLOW = {"photutils": 1}  # exposures of a field that a slow program gets


def prepare(folder: Path, name: str, workers: int, console: Console, plan: NightPlan | None = None) -> Path:
    """A field's frames, calibration and catalogues; made where they are missing. In i the fringe frame comes from other
    fields of earlier nights, as the survey's does."""
    field, plan = folder / name, plan or plan_of(name)
    simulate(field, plan, console.print, workers)
    store = str(field / "store")
    if not (field / "store" / "cal").is_dir():
        console.print(f"{name}: calibration")
        build_calibrations(sorted((field / "raw" / "cal").rglob("*.fits*")), Job(store, FULL), workers)
        packets: list[Path] = []
        for number, beside in plans_of_fringes(plan).items():
            simulate(field / "fringes" / str(number), beside, console.print, workers)
            packets += sorted((field / "fringes" / str(number) / "raw").rglob("*_o.fits*"))
        if packets:
            build_skies(packets, "fringe", Job(store, FULL), workers)
    if not (field / "store" / "catalogs").is_dir():
        for kind in ("gaia", "ps1", "bright"):
            import_catalog(kind, [field / f"{kind}.parquet"], store)
    return field


def units(field: Path, exposures: int, peers: int, cache: Path | None, without: Sequence[str] = ()) -> list[Unit]:
    """The exposures of a field, spread over its seeing, and who else measures each."""
    paths = sorted((field / "raw" / "sci").rglob("*_o.fits*"))[:exposures]
    work = []
    for k, path in enumerate(paths):
        with_it = tuple(
            peer
            for name, peer in available().items()
            if peer and k < min(peers, SLOW.get(name, peers)) and name not in without
        )
        work.append(Unit(field, path, with_it, cache))
    return work


def _start() -> None:
    threadpool_limits(1)


def measure_field(work: list[Unit], workers: int, console: Console) -> list[Frame]:
    """All exposures of a field, in processes of their own."""
    frames: list[Frame] = []
    field = work[0].folder
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start) as pool:
        for frame in pool.map(measure, work):
            frames.append(frame)
            said = frame.failure or f"seeing {frame.seeing:.2f} px, {len(frame.catalogues['ours'].x)} sources"
            console.print(f"{field.name}: {len(frames)} of {len(work)}, {frame.name}: {said}")
    return frames


def markdown(found: Sequence[Line], names: Sequence[str]) -> str:
    """The table: a row a figure, a column a program."""
    missing = [name for name, peer in available().items() if peer is None]
    head = ["field", "what", "asked", "ours", "holds", *names, "how"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in found:
        row = line.row
        holds = {True: "yes", False: "**no**", None: ""}[row.ok]
        cells = [line.field_name, row.name, row.target, row.value, holds]
        cells += [line.peers.get(name, "") for name in names] + [row.detail]
        rows.append("| " + " | ".join(cells) + " |")
    if missing:
        rows.append(f"\nNot installed: {', '.join(missing)}.")
    return "\n".join(rows) + "\n"


def _others(frames: Sequence[Frame]) -> str:
    """Who else measured how many of the exposures."""
    counts = Counter(name for frame in frames for name in frame.catalogues if name != OURS)
    return ", ".join(f"{name} ({n})" for name, n in counts.items()) or "nobody else"


def write_page(docs: Path, by_field: dict[str, list[Frame]], found: list[Line], names: list[str], real: str) -> None:
    """``docs/measurement.md`` and its plots."""
    from ops.bench.measured_plots import draw

    docs.mkdir(parents=True, exist_ok=True)
    text = ["# Measurement against truth", "", (
        "Made by `python -m ops.bench.measurement --out DIR --docs docs`: simulated full-size exposures with every "
        "effect on, measured by `make_science` and, on the same calibrated pixels with the same masks, by other "
        "programs (photutils in a crowd the 8,000 sources of its middle). Columns of peers are empty where a program "
        "gives no such figure. Where the time goes: "
        "[photometry-time.md](photometry-time.md)."
    ), ""]  # fmt: skip
    for name, frames in by_field.items():
        s = summary(frames)
        text.append(
            f"- **{name}**: {s['exposures']} exposures, seeing {min(s['seeing'])} to {max(s['seeing'])} px, "
            f"{min(s['sources'])} to {max(s['sources'])} sources found, MAGLIM {min(s['maglim'])} to {max(s['maglim'])}"
            f"; also measured by {_others(frames)}" + (f"; failed: {'; '.join(s['failed'])}" if s["failed"] else "")
        )
    missed = [line for line in found if line.row.ok is False]
    held = sum(line.row.ok is True for line in found)
    text += ["", f"{held} figures hold, {len(missed)} do not" + (":" if missed else "."), ""]
    text += [f"- {m.field_name}, {m.row.name}: {m.row.value}, asked {m.row.target}" for m in missed]
    text += ["", markdown(found, names)]
    for title, file in draw(by_field, docs):
        text += ["", f"![{title}]({file})", "", title]
    (docs / "measurement.md").write_text("\n".join(text) + "\n" + real)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder of the simulated fields, used again")
    parser.add_argument("--fields", default=",".join(FIELDS), help="which, with commas; normal-g, normal-i: in g, in i")
    parser.add_argument("--exposures", type=int, default=10, help="of each field")
    parser.add_argument("--peers", type=int, default=10, help="exposures of each field that other programs measure")
    parser.add_argument("--without", default="", help="peers that are not to measure, with commas")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--docs", type=Path, help="folder for the page and its plots")
    parser.add_argument("--real", type=Path, help="folder of the survey's real data")
    parser.add_argument("--keep", type=Path, help="folder of what was measured: read where it is, else written")
    parser.add_argument("--peer-cache", type=Path, help="folder of what peers found, taken from there if it is")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    args = parser.parse_args()
    console = Console(stderr=True)
    by_field: dict[str, list[Frame]] = {}
    found: list[Line] = []
    for name in args.fields.split(","):
        kept = args.keep / f"{name}.pickle" if args.keep else None
        if kept and kept.exists():
            frames = pickle.loads(kept.read_bytes())
        else:
            field = prepare(args.out, name, args.workers, console)
            work = units(field, args.exposures, args.peers, args.peer_cache, args.without.split(","))
            frames = measure_field(work, args.workers, console)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(pickle.dumps(frames))
        by_field[name] = frames
        found += lines(name, frames)
    found += overall(by_field)
    names = [n for n in available() if any(n in line.peers for line in found)]
    real = ""
    if args.real:
        from ops.bench.real_images import report

        real = report(args.real, args.out / "listed", console)
    if args.docs:
        write_page(args.docs, by_field, found, names, real)
    if args.json:
        for line in found:
            print(json.dumps({"field": line.field_name, **asdict(line.row), "peers": line.peers}))
    else:
        print(markdown(found, names) + real)
    return int(any(line.row.ok is False for line in found))


if __name__ == "__main__":
    raise SystemExit(main())
