"""The simulated night on which the camera's figures are measured: made once, full size, with everything that is known.

A folder holds ``main`` (one CCD: biases, darks, flats and twenty exposures of several fields), ``sky`` (exposures whose
quadrants 3 and 4 see nothing but sky) and ``store`` (calibration built by the project's own code from ``main``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from stream.core.camera import FULL, Camera
from stream.core.records import CalibrationSet, RawQuadrant
from stream.ingest import read_packet, read_quadrant
from stream.simulate import NightPlan, simulate_night
from stream.simulate.plan import Survey

Progress = Callable[[str], None]
CCD = 7
EXPOSURES = 20
NIGHT = "20201016"  # new moon
FIELDS = (448, 449, 450, 499, 500, 501, 552, 553, 602, 603)  # of the middle of the sky; two visits of each


@dataclass(frozen=True, slots=True)
class CameraNight:
    """Where the frames lie, what they were made from, and what calibrates them (by rcid)."""

    folder: Path
    plan: NightPlan
    sky_plan: NightPlan
    frames: dict[int, CalibrationSet]

    @property
    def camera(self) -> Camera:
        """The camera's geometry."""
        return self.plan.camera

    @property
    def main(self) -> Path:
        """The night with stars everywhere."""
        return self.folder / "main"

    @property
    def sky(self) -> Path:
        """The exposures with two empty quadrants."""
        return self.folder / "sky"

    @property
    def store(self) -> Path:
        """Product store with calibration and catalogues."""
        return self.folder / "store"

    @property
    def rcids(self) -> tuple[int, ...]:
        """Channels of the CCD."""
        return self.plan.rcids


def plans(camera: Camera = FULL, exposures: int = EXPOSURES) -> tuple[NightPlan, NightPlan]:
    """The two plans: same instrument, same night."""
    main = NightPlan(
        seed=21, noise_seed=21, camera=camera, ccds=(CCD,), n_bias=5, n_dark=3, n_flat=5, bright_stars=1,
        satellites=1.0, night=NIGHT,
        survey=Survey(fields=FIELDS[: max(exposures // 2, 1)], visits=2, filters=(2,), limit=exposures),
    )  # fmt: skip
    sky = replace(main, qids=(1, 2), survey=None, n_bias=0, n_dark=0, n_flat=0, n_science=2, satellites=0.0)
    return main, sky


def simulate(folder: Path, camera: Camera, exposures: int, say: Progress) -> tuple[NightPlan, NightPlan]:
    """Both nights on disk, each made once: a mark with the plan's hash says that it is whole."""
    made = plans(camera, exposures)
    for name, plan in zip(("main", "sky"), made, strict=True):
        mark = folder / name / f".whole-{hashlib.sha256(repr(plan).encode()).hexdigest()[:16]}"
        if mark.exists():
            continue

        def report(done: int, total: int, name: str = name) -> None:
            say(f"simulating {name}: packet {done} of {total}")

        simulate_night(folder / name, plan, report)
        mark.touch()
    return made


def quadrants_of(path: Path, camera: Camera, *, aggressors: bool = True) -> list[RawQuadrant]:
    """The four quadrants of a packet as a worker gets them."""
    packet = read_packet(path, camera, aggressors=aggressors)
    return [read_quadrant(one.payload, camera) for one in packet.quadrants]


def packets(folder: Path, role: str, letter: str = "") -> list[Path]:
    """Packets of a role (cal, sci), of one type (b, d, f, o) where a letter is given, in order of time."""
    return sorted(path for path in (folder / "raw" / role).iterdir() if letter in ("", path.name.split(".")[0][-1]))
