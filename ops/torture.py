"""Faults by the hundred on a running system, and what it sent against a clean run: ``make torture N=1000 SEED=1``.

``python ops/torture.py --faults N --seed S [--round N] [--only KIND] [--minutes M] [--folder DIR] [--out report.json]``

A small simulated night is prepared once in the folder. One of its science packets, a minute later each time and every
sixth time hurt, is fed to a whole system (embedded broker and Redis, two quadrant workers and one of every other kind,
ingest on a watched folder), while a fault strikes every one to three seconds. Then the same packets go through
``process``, which knows no broker, and the two are compared: alerts on every topic at both isolation levels, packets
byte for byte but for the latency ledger, products byte for byte, and the archive with the topics. All that in rounds of
a hundred faults, each in a new world, and each judged before the next, so that a run that is cut off has its figures.
The exit status is 1 if anything was lost, came twice or differs. ``--only "kill pixels" --faults 20 --pace 15 20``
measures how soon a killed quadrant worker is back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / room) for room in ("faults", "e2e"))]

from harness import WEIGHTS, Packets, Torture, Verdict, fault_plan, judge, world_on  # noqa: E402

from stream.core.camera import SMALL  # noqa: E402
from stream.engine import logs  # noqa: E402
from stream.engine.config import load_settings  # noqa: E402
from stream.simulate import NightPlan, simulate_night  # noqa: E402

PLAN = NightPlan(seed=5, noise_seed=5, camera=SMALL, n_reference=6, n_science=1, satellite=False)


def ztf_stream(*args: object, check: bool = True, camera: str = "small") -> None:
    """A command of ours in a process of its own."""
    env = {**os.environ, "ZTF_CAMERA": camera, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "stream.cli", *map(str, args)]
    subprocess.run(argv, env=env, check=check, stdout=subprocess.DEVNULL)


def prepared(folder: Path, plan: NightPlan = PLAN) -> Path:
    """The night in the folder, made if it is not there: raw packets beside a store with catalogues and frames."""
    night, camera = folder / "night", plan.camera.name
    if not (night / "ready").exists():
        simulate_night(night, plan, workers=2)
        where = "--store", night / "store"
        tables = {"gaia": "gaia.parquet", "ps1": "ps1.parquet", "bright": "bright.parquet", "orbits": "MPCORB.DAT"}
        for kind, name in tables.items():
            ztf_stream("catalog", "import", kind, night / name, *where, camera=camera)
        ztf_stream("calibration", "build", night / "raw" / "cal", *where, camera=camera)
        ztf_stream("reference", "build", night / "raw" / "ref", *where, camera=camera)
        (night / "ready").touch()
    return night


def sibling(night: Path, folder: Path) -> Path:
    """A new store that shares catalogues, calibration and references with the night's."""
    folder.mkdir(parents=True)
    for name in ("catalogs", "cal", "ref"):
        (folder / name).symlink_to((night / "store" / name).resolve(), target_is_directory=True)
    return folder


def table(faults: list[dict[str, Any]]) -> list[str]:
    """Faults by kind: how many, and recovery of quadrant workers."""
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fault in faults:
        kinds[fault["kind"]].append(fault)
    lines = [f"{'fault':16} {'struck':>6}   recovery of a worker that was left alone, s (number, median, worst)"]
    for kind, found in sorted(kinds.items()):
        seconds = [fault["recovery"] for fault in found if fault["recovery"] is not None]
        told = f"{len(seconds)}, {statistics.median(seconds):.1f}, {max(seconds):.1f}" if seconds else ""
        lines.append(f"{kind:16} {len(found):6d}   {told}")
    return lines


def one_round(faults: int, seed: int, night: Path, run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A world of its own for some faults, and its verdict as a table; ``crashed`` if it had none."""
    plan = [options.only] * faults if options.only else fault_plan(faults, seed)
    store, packets = sibling(night, run / "store"), Packets(min((night / "raw" / "sci").iterdir()), run / "packets")
    started, until = time.monotonic(), options.started + 60.0 * options.minutes
    try:
        with world_on(run / "world", store, pixel_workers=2) as world:
            torture = Torture(world, packets, plan, seed, pace=options.pace, until=until, tell=tell)
            restarts = torture.run()
            tell(torture.stalled or f"all through after {time.monotonic() - started:.0f} s; the clean run")
            clean = sibling(night, run / "clean")
            ztf_stream("process", *packets.made, "--store", clean, "--json", check=False)  # hurt packets: status 1
            verdict = Verdict(seed, torture.struck, restarts=restarts, seconds=time.monotonic() - started)
            judge(world, packets, clean, verdict)
    except Exception as error:
        tell(traceback.format_exc())
        return {"folder": str(run), "ok": False, "crashed": f"{type(error).__name__}: {error}", "faults": []}
    twice = {level: sum(map(len, topics.values())) for level, topics in verdict.twice.items()}
    tell(
        f"seed {seed}: {len(verdict.faults)} faults, {restarts} restarts, {packets.corrupt} of "
        f"{verdict.packets} packets hurt, {verdict.expected} alerts expected: {len(verdict.lost)} lost, {twice} twice, "
        f"{len(verdict.foreign)} foreign, {len(verdict.differ)} packets and {len(verdict.products)} products differ, "
        f"archive: {verdict.archive or 'as sent'}, {len(verdict.letters)} dead letters of ours; {verdict.seconds:.0f} s"
    )
    ok = verdict.ok and not torture.stalled
    return {**asdict(verdict), "ok": ok, "stalled": torture.stalled, "crashed": "", "folder": str(run)}


def tell(text: str) -> None:
    """A line of the report, at once."""
    print(text, flush=True)


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds together: how many faults, alerts, and of each thing that must not be."""
    judged = [found for found in rounds if not found["crashed"]]
    twice = {
        level: sum(len(candids) for found in judged for candids in found["twice"][level].values())
        for level in ("read_committed", "read_uncommitted")
    }
    wrong = ("lost", "foreign", "differ", "products", "letters")
    return {
        "ok": all(found["ok"] for found in rounds),
        "faults": sum(len(found["faults"]) for found in judged),
        **{name: sum(found[name] for found in judged) for name in ("restarts", "packets", "expected")},
        **{name: sum(len(found[name]) for found in judged) for name in wrong},
        "archive": [found["archive"] for found in judged if found["archive"]],
        "twice": twice,
        "stalled": [found["stalled"] for found in judged if found["stalled"]],
        "crashed": [found["crashed"] for found in rounds if found["crashed"]],
        "minutes": round(sum(found["seconds"] for found in judged) / 60.0, 1),
    }


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="how many faults strike")
    parser.add_argument("--round", type=int, default=100, help="faults after which it is judged, in a new world each")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next has 1000 more")
    parser.add_argument("--only", choices=sorted(WEIGHTS), help="nothing but this kind of fault")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop striking after so long")
    parser.add_argument("--pace", type=float, nargs=2, default=(1.0, 3.0), help="seconds between faults, from to")
    parser.add_argument("--folder", type=Path, default=Path("run/torture"), help="where everything lives")
    parser.add_argument("--out", type=Path, help="the report as JSON, brought up to date after every round")
    options = parser.parse_args()
    options.started = time.time()
    folder = options.folder.resolve()
    night = prepared(folder)
    run = folder / f"run-{int(time.time())}"
    logs.configure(load_settings(environ={}, log_level="error"), "torture")
    rounds: list[dict[str, Any]] = []
    left = options.faults
    while left and time.time() < options.started + 60.0 * options.minutes:
        seed, faults = options.seed + 1000 * len(rounds), min(left, options.round)
        left -= faults
        rounds.append(one_round(faults, seed, night, run / f"seed{seed}", options))
        together = summary(rounds)
        tell(f"so far: {json.dumps(together)}")
        if options.out:
            report = {"seed": options.seed, **together, "rounds": rounds}
            options.out.write_text(json.dumps(report, indent=1, default=str))
    print("\n".join(table([fault for found in rounds for fault in found["faults"]])))
    return 0 if rounds and summary(rounds)["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
