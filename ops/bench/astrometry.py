"""Whether astrometry knows when it is wrong: many hard simulated fields, none of which may be solved wrongly.

    python ops/bench/astrometry.py [--fields 1000] [--seed 0] [--json]

Lists of stars (``ops.bench.starfields``) from the pole of the Galaxy under cloud to its plane, pointings off by up to
4 arcmin, 0.3 deg and 1 %, with trails, halos, clusters, a fifth of spurious detections, stars missing, and for a tenth
of the fields a catalogue of another place. It fails if a wrong solution was accepted or fewer than 99.5 % of the fields
with 30 or more Gaia stars among the detections were solved. The same seed gives the same fields.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from ops.bench.rows import Row
from ops.bench.starfields import Hardship, hard_field
from stream.astrometry import solve
from stream.core.camera import FULL, Camera
from stream.core.errors import AstrometryError

Progress = Callable[[int, int, str], None]

ENOUGH = 30  # Gaia stars among the detections from which a field is to be solved
SOLVED_SHARE = 0.995
# A wrong match is off by tens of arcsec; a true one by what too few stars cannot bend in the corners.
WRONG = 1.0  # arcsec, at the median over the image


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one field: ``error`` (arcsec) at the median and at the worst place, NaN where it was refused."""

    seed: int
    how: Hardship
    n_seen: int
    solved: bool
    error: float
    worst: float
    log_chance: float
    seconds: float

    @property
    def wrong(self) -> bool:
        """Accepted, and not the sky that it is."""
        return self.solved and (self.how.wrong_sky or not self.error < WRONG)


def try_field(seed: int, camera: Camera = FULL) -> Outcome:
    """Make a field and solve it."""
    field, how = hard_field(seed, camera)
    start = time.process_time()
    try:
        solution = solve(*field.args)
    except AstrometryError as refused:
        seconds, nan = time.process_time() - start, float("nan")
        best = float(refused.context.get("log_chance", 0.0))
        return Outcome(seed, how, field.n_seen, False, nan, nan, best, seconds)
    seconds = time.process_time() - start
    errors = field.errors(solution.wcs)
    middle, worst = float(np.median(errors)), float(errors.max())
    return Outcome(seed, how, field.n_seen, True, middle, worst, solution.log_chance, seconds)


def try_fields(n: int, first: int = 0, camera: Camera = FULL, progress: Progress | None = None) -> list[Outcome]:
    """Fields of ``n`` seeds from ``first`` on."""
    outcomes = []
    for k in range(n):
        outcomes.append(try_field(first + k, camera))
        if progress is not None:
            progress(k + 1, n, "fields")
    return outcomes


def rows_of(outcomes: list[Outcome]) -> list[Row]:
    """The figures of many outcomes."""
    right = [o for o in outcomes if not o.how.wrong_sky]
    rich = [o for o in right if o.n_seen >= ENOUGH]
    wrong = [o for o in outcomes if o.wrong]
    elsewhere = [o for o in outcomes if o.how.wrong_sky]
    share = sum(o.solved for o in rich) / max(len(rich), 1)
    lost = ", ".join(str(o.seed) for o in rich if not o.solved)
    poor = [o for o in right if o.n_seen < ENOUGH]
    rows = [
        Row("wrong solutions accepted", "0", str(len(wrong)), not wrong,
            f"of {len(outcomes)} fields" + "".join(f", seed {o.seed}" for o in wrong)),
        Row(f"solved with {ENOUGH} or more Gaia stars", f">= {SOLVED_SHARE:.1%}", f"{share:.2%}", share >= SOLVED_SHARE,
            f"of {len(rich)} fields" + (f"; not seeds {lost}" if lost else "")),
        Row("solved with fewer", "", f"{sum(o.solved for o in poor)} of {len(poor)}", None),
        Row("other skies refused", "all", f"{sum(not o.solved for o in elsewhere)} of {len(elsewhere)}",
            not any(o.solved for o in elsewhere),
            "least chance that one of them reached: 1e" f"{min((o.log_chance for o in elsewhere), default=0.0):.1f}"),
    ]  # fmt: skip
    solved = [o for o in right if o.solved]
    if solved:
        chance = max(o.log_chance for o in solved)
        seconds = [o.seconds for o in solved]
        rows += [
            Row("largest chance of an accepted one", "< 1e-9", f"1e{chance:.1f}", chance < -9.0),
            Row("error at the median place", "", f"{1e3 * np.median([o.error for o in solved]):.0f} mas", None,
                f"largest {max(o.error for o in solved):.2f} arcsec"),
            Row("CPU a field", "", f"{np.median(seconds):.3f} s", None, f"largest {max(seconds):.2f} s"),
        ]  # fmt: skip
    return rows


def main() -> int:
    """Try the fields and say what came out."""
    from stream.cli.common import progress_bar

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--json", action="store_true", help="one JSON line a figure, then one a field")
    arguments = parser.parse_args()
    with progress_bar() as report:
        outcomes = try_fields(arguments.fields, arguments.seed, FULL, report)
    rows = rows_of(outcomes)
    if arguments.json:
        for record in (*rows, *outcomes):
            print(json.dumps(asdict(record)))
    else:
        print("| figure | target | value | | how |\n|---|---|---|---|---|")
        for row in rows:
            mark = {True: "yes", False: "NO", None: ""}[row.ok]
            print(f"| {row.name} | {row.target} | {row.value} | {mark} | {row.detail} |")
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
