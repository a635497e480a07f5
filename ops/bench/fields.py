"""Three simulated fields on which measurement and subtraction are judged: made once, full size, everything switched on.

``dense`` has 40,000 stars brighter than 20.6 on its quadrant, ``normal`` 5,000, ``sparse`` is the pole of the Galaxy as
it is, all in r; ``normal-g`` and ``normal-i`` are the same sky in another filter. Each has reference exposures of a
good month and science exposures in seeing from 1.5 to 3.5 px. A folder holds
``FIELD/{raw,truth}``, the catalogues, and ``FIELD/store`` with calibration (and references, where asked for) made by
the project's own code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stream.core.camera import FULL, Camera
from stream.simulate import NightPlan, simulate_night
from stream.simulate.scheduler import schedule

Progress = Callable[[str], None]
N_REFERENCE = 20
N_SCIENCE = 10
# The fringe frame is made of exposures of earlier nights, so many of each of the fields beside: of one field it would
# hold the faint light of that field's stars, and take it from them.
FRINGED, FRINGE_FIELDS, N_FRINGE = 3, (-2, -1, 1, 2), 2
FILTERS = {"": 2, "r": 2, "g": 1, "i": 3}
SEEING = (1.5, 3.5)  # px; references take the better half
CCD, QID = 10, 2
# Field, night near its opposition and new moon, star density (None: what the sky has there).
FIELDS: dict[str, tuple[int, str, float | None]] = {
    "normal": (448, "20201016", 1.0),
    "dense": (448, "20201016", 8.0),
    "sparse": (626, "20200422", None),
}


def plan_of(name: str, camera: Camera = FULL, references: int | None = None, science: int = N_SCIENCE) -> NightPlan:
    """The plan of one of ``FIELDS``, in r or as ``NAME-g``, ``NAME-i`` in another filter: one quadrant of one CCD.

    Of the other filters no reference is made.
    """
    name, _, band = name.partition("-")
    fid = FILTERS[band]
    if references is None:
        references = N_REFERENCE if fid == FILTERS["r"] else 0
    field, night, density = FIELDS[name]
    seed = 31 + list(FIELDS).index(name)
    return NightPlan(
        seed=seed, noise_seed=seed, camera=camera, fid=fid, ccds=(CCD,), qids=(QID,), field=field, night=night,
        n_bias=5, n_flat=5, n_dark=3, n_reference=references, n_science=science, seeing=SEEING, cadence=1200.0,
        star_density=density, satellites=1.0, bright_stars=1,
    )  # fmt: skip


def plans_of_fringes(plan: NightPlan) -> dict[int, NightPlan]:
    """Exposures for the fringe frame of a plan in i, by field; of other filters none."""
    if plan.fid != FRINGED:
        return {}
    bare = replace(plan, n_bias=0, n_flat=0, n_dark=0, n_reference=N_FRINGE, n_science=0)
    fields = [plan.field + step for step in FRINGE_FIELDS]
    return {field: replace(bare, field=field, noise_seed=plan.noise_seed + field) for field in fields}


def flats_of_nights(plan: NightPlan) -> dict[str, NightPlan]:
    """Dome flats of every night of the reference exposures but the first, which has its own, by night (YYYYMMDD).

    Dust settles elsewhere every night: with the flats of the first only, its rings would be in every later exposure.
    """
    nights = sorted({e.stamp[:8] for e in schedule(plan) if e.role == "ref"})
    first = min(e.stamp[:8] for e in schedule(plan))
    bare = replace(plan, n_bias=0, n_dark=0, n_reference=0, n_science=0)
    return {night: replace(bare, night=night) for night in nights if night != first}


def simulate(folder: Path, plan: NightPlan, say: Progress, workers: int = 1) -> None:
    """A plan's frames in ``folder``, made once: a mark with the plan's hash says that they are whole."""
    mark = folder / f".whole-{hashlib.sha256(repr(plan).encode()).hexdigest()[:16]}"
    if mark.exists():
        return

    def report(done: int, total: int) -> None:
        say(f"simulating {folder.name}: packet {done} of {total}")

    simulate_night(folder, plan, report, workers=workers)
    mark.touch()
