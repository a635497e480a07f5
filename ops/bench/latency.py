"""From arrival to alert, by stage, while a system streams quadrants as fast as this machine sustains.

``python ops/bench/latency.py [--night DIR] [--camera small|full] [--exposures N] [--workers N] [--json]``

The night is a folder with ``raw/sci`` and a ``store`` that has its calibration, catalogues and references; without one
a small night is made, or one CCD of the full camera (a quarter of an hour; ``--exposures 0`` makes it and no more). One
of its packets, a minute later each time, is fed to a whole system (broker, Redis, every kind of worker): the next one
whenever no more quadrants are open than there are workers for them, so that nobody waits for work and no queue builds
up. The first exposures, which fill the caches, do not count. Times are those of the ledgers in the published packets,
one a quadrant.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "ops"), *(str(ROOT / "tests" / room) for room in ("faults", "e2e"))]

import bad_packets  # noqa: E402
from harness import World, world_on  # noqa: E402
from torture import PLAN, prepared, sibling  # noqa: E402

from stream.alert import LEDGER  # noqa: E402
from stream.core.camera import FULL  # noqa: E402
from stream.engine import logs  # noqa: E402
from stream.engine.config import load_settings  # noqa: E402
from stream.engine.gather import NightReader  # noqa: E402
from stream.engine.supervise import Supervisor  # noqa: E402
from stream.monitor.latency import latency_report  # noqa: E402
from stream.simulate import NightPlan  # noqa: E402

# One CCD, four quadrants, with a reference of a few good exposures: enough for times.
FULL_PLAN = NightPlan(
    seed=5, noise_seed=5, camera=FULL, ccds=(10,), n_bias=3, n_flat=3, n_reference=4, n_science=1, satellite=False,
)  # fmt: skip
WARMING = 2  # exposures that fill the caches
PATIENCE = 300.0  # seconds without anything new after which the run counts as stuck
QUADRANTS = 4  # of a packet


class Feeder:
    """Puts packets into the system's inbox as fast as it finishes quadrants."""

    def __init__(self, world: World, good: Path, folder: Path, exposures: int) -> None:
        self.world, self._good, self._folder = world, good, folder
        self._left = exposures + WARMING
        self._fed: list[tuple[str, float]] = []  # name, when
        self.done: dict[int, tuple[str, float]] = {}  # pid -> exposure, when its record was there
        self.reader = NightReader(world.settings, read_committed=False)
        self._progress = time.monotonic()
        self.supervisor = Supervisor(world.children, watch=self._watch)
        folder.mkdir(parents=True, exist_ok=True)

    def _watch(self) -> None:
        if self.reader.poll(0.02):
            self._progress = time.monotonic()
        gathered = self.reader.gathered
        for pid in gathered.reports.keys() - self.done.keys():
            self.done[pid] = gathered.reports[pid].name.rsplit("_q", 1)[0], time.time()
        still = QUADRANTS * len(self._fed) - len(self.done)
        if self._left and still <= self.world.settings.pixel_workers:
            self._feed()
        elif not self._left and not still and gathered.n_alerts >= gathered.n_expected:
            self.supervisor.stop()
        if time.monotonic() > self._progress + PATIENCE:
            self.supervisor.stop()

    def _feed(self) -> None:
        self._left -= 1
        packet = bad_packets.later(self._good, self._folder, 60.0 * (1 + len(self._fed)))
        scratch = self.world.inbox / f".{packet.name}"
        shutil.move(packet, scratch)
        scratch.rename(self.world.inbox / packet.name)
        self._fed.append((packet.name.split(".")[0], time.time()))

    def figures(self) -> dict[str, object]:
        """Rate and latencies of what came after the warming."""
        counted = {name for name, _ in self._fed[WARMING:]}
        ledgers = {}
        for packets in self.reader.gathered.alerts.values():
            for packet in packets:
                if packet["candidate"]["pdiffimfilename"].split("_q")[0] in counted:
                    times = {stage: packet["zsds"][stage] for stage in LEDGER if packet["zsds"][stage] is not None}
                    ledgers[packet["candidate"]["pid"]] = times
        ends = [at for name, at in self.done.values() if name in counted]
        seconds = max(ends) - self._fed[WARMING][1] if ends else float("nan")
        return {
            "camera": self.world.settings.camera,
            "workers": self.world.settings.pixel_workers,
            "quadrants": len(ends),
            "quadrants_with_alerts": len(ledgers),
            "quadrants_per_second": round(len(ends) / seconds, 3),
            **latency_report(list(ledgers.values())),
        }


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--night", type=Path, help="folder with raw/sci and store; a small one is made without")
    parser.add_argument("--camera", choices=("small", "full"), default="small", help="the night's camera")
    parser.add_argument("--exposures", type=int, default=20, help="packets of four quadrants that count")
    parser.add_argument("--workers", type=int, default=2, help="quadrant workers")
    parser.add_argument("--folder", type=Path, default=Path("run/latency"), help="where everything lives")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object")
    options = parser.parse_args()
    folder = options.folder.resolve()
    plan = FULL_PLAN if options.camera == "full" else PLAN
    night = options.night.resolve() if options.night else prepared(folder, plan)
    if not options.exposures:
        return 0
    run = folder / f"run-{int(time.time())}"
    logs.configure(load_settings(environ={}, log_level="error"), "latency")
    good = min((night / "raw" / "sci").iterdir())
    with world_on(run / "world", sibling(night, run / "store"), camera=options.camera,
                  pixel_workers=options.workers) as world:  # fmt: skip
        feeder = Feeder(world, good, run / "packets", options.exposures)
        feeder.supervisor.run()
        figures = feeder.figures()
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"{figures['quadrants']} quadrants, {figures['quadrants_per_second']} a second, camera {options.camera}")
        print(f"{'stage':12} {'median':>8} {'95 %':>8} {'longest':>8}   s")
        for stage, found in figures["stages"].items():  # type: ignore[attr-defined]
            print(f"{stage:12} {found['median']:8.2f} {found['p95']:8.2f} {found['longest']:8.2f}")
    return 0 if figures["quadrants"] == QUADRANTS * options.exposures else 1


if __name__ == "__main__":
    sys.exit(main())
