"""Faults by the hundred on a running system, and what it sent against a clean run: ``make torture N=1000 SEED=1``.

``python ops/torture.py --faults N --seed S [--only KIND] [--minutes M] [--folder DIR] [--out report.json]``

A small simulated night is prepared once in the folder. One of its science packets, a minute later each time and every
sixth time hurt, is fed to a whole system (embedded broker and Redis, two quadrant workers and one of every other kind,
ingest on a watched folder), while a fault strikes every one to three seconds. Then the same packets go through
``process``, which knows no broker, and the two are compared: alerts on every topic at both isolation levels, packets
byte for byte but for the latency ledger, products byte for byte. The exit status is 1 if anything was lost, came twice
or differs. ``--only "kill pixels" --faults 20 --pace 15 20`` measures how soon a killed quadrant worker is back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / room) for room in ("faults", "e2e"))]

from harness import WEIGHTS, Packets, Struck, Torture, Verdict, fault_plan, judge, world_on  # noqa: E402

from stream.core.camera import SMALL  # noqa: E402
from stream.engine import logs  # noqa: E402
from stream.engine.config import load_settings  # noqa: E402
from stream.simulate import NightPlan, simulate_night  # noqa: E402

PLAN = NightPlan(seed=5, noise_seed=5, camera=SMALL, n_reference=6, n_science=1, satellite=False)


def ztf_stream(*args: object, check: bool = True) -> None:
    """A command of ours in a process of its own."""
    env = {**os.environ, "ZTF_CAMERA": "small", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "stream.cli", *map(str, args)]
    subprocess.run(argv, env=env, check=check, stdout=subprocess.DEVNULL)


def prepared(folder: Path) -> Path:
    """The night in the folder, made if it is not there: raw packets beside a store with catalogues and frames."""
    night = folder / "night"
    if not (night / "ready").exists():
        simulate_night(night, PLAN, workers=2)
        where = "--store", night / "store"
        tables = {"gaia": "gaia.parquet", "ps1": "ps1.parquet", "bright": "bright.parquet", "orbits": "MPCORB.DAT"}
        for kind, name in tables.items():
            ztf_stream("catalog", "import", kind, night / name, *where)
        ztf_stream("calibration", "build", night / "raw" / "cal", *where)
        ztf_stream("reference", "build", night / "raw" / "ref", *where)
        (night / "ready").touch()
    return night


def sibling(night: Path, folder: Path) -> Path:
    """A new store that shares catalogues, calibration and references with the night's."""
    folder.mkdir(parents=True)
    for name in ("catalogs", "cal", "ref"):
        (folder / name).symlink_to((night / "store" / name).resolve(), target_is_directory=True)
    return folder


def table(faults: list[Struck]) -> list[str]:
    """Faults by kind: how many, and recovery of quadrant workers."""
    kinds: dict[str, list[Struck]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    lines = [f"{'fault':16} {'struck':>6}   recovery of a worker that was left alone, s (number, median, worst)"]
    for kind, found in sorted(kinds.items()):
        seconds = [fault.recovery for fault in found if fault.recovery is not None]
        told = f"{len(seconds)}, {statistics.median(seconds):.1f}, {max(seconds):.1f}" if seconds else ""
        lines.append(f"{kind:16} {len(found):6d}   {told}")
    return lines


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="how many faults strike")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and when they strike")
    parser.add_argument("--only", choices=sorted(WEIGHTS), help="nothing but this kind of fault")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop striking after so long")
    parser.add_argument("--pace", type=float, nargs=2, default=(1.0, 3.0), help="seconds between faults, from to")
    parser.add_argument("--folder", type=Path, default=Path("run/torture"), help="where everything lives")
    parser.add_argument("--out", type=Path, help="the report as JSON")
    options = parser.parse_args()
    folder = options.folder.resolve()
    night = prepared(folder)
    run = folder / f"seed{options.seed}-{int(time.time())}"
    logs.configure(load_settings(environ={}, log_level="error"), "torture")
    store = sibling(night, run / "store")
    (good,) = sorted((night / "raw" / "sci").iterdir())
    packets = Packets(good, run / "packets")
    started = time.monotonic()
    until = time.time() + 60.0 * options.minutes
    with world_on(run / "world", store, pixel_workers=2) as world:
        plan = [options.only] * options.faults if options.only else fault_plan(options.faults, options.seed)
        torture = Torture(world, packets, plan, options.seed, pace=options.pace, until=until,
                          tell=lambda text: print(text, flush=True))  # fmt: skip
        restarts = torture.run()
        print(torture.stalled or f"all through after {time.monotonic() - started:.0f} s; the clean run", flush=True)
        clean = sibling(night, run / "clean")
        ztf_stream("process", *packets.made, "--store", clean, "--json", check=False)  # hurt packets: status 1
        verdict = Verdict(options.seed, torture.struck, restarts=restarts, seconds=time.monotonic() - started)
        judge(world, packets, clean, verdict)
    print("\n".join(table(verdict.faults)))
    twice = {level: sum(map(len, topics.values())) for level, topics in verdict.twice.items()}
    print(
        f"seed {verdict.seed}: {len(verdict.faults)} faults, {restarts} restarts, {packets.corrupt} of "
        f"{verdict.packets} packets hurt, {verdict.expected} alerts expected: {len(verdict.lost)} lost, {twice} twice, "
        f"{len(verdict.foreign)} foreign, {len(verdict.differ)} packets and {len(verdict.products)} products differ, "
        f"{len(verdict.letters)} dead letters of ours; {verdict.seconds:.0f} s"
    )
    if options.out:
        report = {**asdict(verdict), "ok": verdict.ok, "stalled": torture.stalled, "folder": str(run)}
        options.out.write_text(json.dumps(report, indent=1, default=str))
    return 0 if verdict.ok and not torture.stalled else 1


if __name__ == "__main__":
    sys.exit(main())
