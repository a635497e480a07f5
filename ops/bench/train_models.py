"""Make the shipped real-bogus classifiers from nothing: simulate nights, process them, train, evaluate.

    python ops/bench/train_models.py WORK [--only NAME ...] [--out FOLDER] [--packets FOLDER]

Each night is simulated into ``WORK/NAME`` with the catalogues, calibration and references made by the project's
own commands, then processed without scores; every finished step leaves a mark, so that a stopped run goes on where
it was. Last, ``ztf-stream models train`` learns from all nights but the held-out ones and writes the weights.

The nights differ in field, CCD, filter, seeing, sky, cloud and star density. They hold several times the usual number
of transients and asteroids, so that a night gives about as many real candidates as false ones. One core needs about
four minutes for the largest nights (four quadrants, six to eight reference and three science exposures), half an hour
for all, and 10 GB of disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stream.core.camera import SMALL
from stream.simulate import NightPlan, simulate_night

# Crowded enough that a night has both classes in thousands, thin enough that they do not touch each other.
FULL_NIGHT = NightPlan(n_science=3, n_reference=6, transients=160, asteroids=20, streaks=3)
HALF_NIGHT = replace(FULL_NIGHT, qids=(1, 3), n_science=4)  # the other two quadrants see no stars and fail
SMALL_NIGHT = NightPlan(camera=SMALL, n_science=4, n_reference=6, transients=25, asteroids=4, streaks=1)

TRAINING = {
    "r-dark": replace(FULL_NIGHT, seed=101, ccds=(6,), field=448, fid=2),
    "g-sharp": replace(
        FULL_NIGHT, seed=102, ccds=(11,), field=651, fid=1, night="20190612", n_reference=8, seeing=(1.5, 2.2)
    ),
    "r-crowded": replace(
        HALF_NIGHT, seed=103, ccds=(3,), field=535, fid=2, night="20210903", seeing=(1.7, 2.6),
        star_density=2.5, bright_stars=2,
    ),
    "i-moon": replace(
        HALF_NIGHT, seed=104, ccds=(14,), field=700, fid=3, night="20180821", seeing=(1.8, 2.8), sky=900.0
    ),
    "r-poor": replace(
        HALF_NIGHT, seed=105, ccds=(9,), field=500, fid=2, night="20220215", seeing=(2.4, 4.2), cloud=1.0
    ),
    "small-r": replace(SMALL_NIGHT, seed=107, ccds=(1, 8), field=448, fid=2),
    "small-g": replace(SMALL_NIGHT, seed=108, ccds=(5, 12), field=600, fid=1, night="20190101"),
}  # fmt: skip
# Never trained on: another sky, another night, another CCD.
HELD_OUT = {
    "held-r": replace(HALF_NIGHT, seed=201, ccds=(10,), field=680, fid=2, night="20210411", seeing=(1.6, 3.0)),
}
NIGHTS = TRAINING | HELD_OUT


def once(night: Path, name: str, step: Callable[[], object]) -> None:
    """Do a step of a night unless its mark says that it was done."""
    mark = night / "done" / name
    if mark.exists():
        return
    started = time.monotonic()
    step()
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    print(f"{night.name}: {name} {time.monotonic() - started:.0f} s", flush=True)


def command(*arguments: str | Path, may_fail: bool = False) -> None:
    """Run a ``ztf-stream`` command."""
    ended = subprocess.run([sys.executable, "-m", "stream.cli", *map(str, arguments)])
    if ended.returncode and not may_fail:
        raise SystemExit(f"ztf-stream {arguments[0]} ended with {ended.returncode}")


def prepare(night: Path, plan: NightPlan, workers: int) -> None:
    """Everything from the sky to unscored alert files for one night."""
    store, camera = night / "store", plan.camera.name
    here = ("--store", store, "--camera", camera, "--workers", str(workers))

    def catalogs() -> None:
        names = {"gaia": "gaia.parquet", "ps1": "ps1.parquet", "bright": "bright.parquet", "orbits": "MPCORB.DAT"}
        for kind, name in names.items():
            command("catalog", "import", kind, night / name, "--store", store)

    once(night, "simulate", lambda: simulate_night(night, plan, workers=workers))
    once(night, "catalogs", catalogs)
    once(night, "calibration", lambda: command("calibration", "build", night / "raw" / "cal", *here))
    # Quadrants without stars, and those that clouds made unusable, are part of a night; no alerts at all stop training.
    once(night, "references", lambda: command("reference", "build", night / "raw" / "ref", *here, may_fail=True))
    once(night, "process", lambda: command("process", night / "raw" / "sci", "--no-score", *here, may_fail=True))


def main() -> None:
    """Prepare the nights, then train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("work", type=Path, help="folder for the nights; what is there is used again")
    parser.add_argument("--only", nargs="*", choices=sorted(NIGHTS), help="prepare these nights and do not train")
    parser.add_argument("--out", type=Path, help="where weights go; the shipped ones are replaced by default")
    parser.add_argument("--packets", type=Path, help="folder of real scored packets to compare with")
    parser.add_argument("--workers", type=int, default=1, help="processes for the preparation")
    options = parser.parse_args()
    for name, plan in NIGHTS.items():
        if options.only is None or name in options.only:
            prepare(options.work / name, plan, options.workers)
    if options.only is not None:
        return
    arguments: list[str | Path] = ["models", "train", *(options.work / name for name in TRAINING)]
    for name in HELD_OUT:
        arguments += ["--held-out", options.work / name]
    if options.out:
        arguments += ["--out", options.out]
    if options.packets:
        arguments += ["--packets", options.packets]
    command(*arguments)


if __name__ == "__main__":
    main()
