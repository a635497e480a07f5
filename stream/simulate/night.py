"""A simulated night on disk: every packet is a pure function of the plan, packets are shared out to processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream.simulate.catalogs import write_catalogs
from stream.simulate.expose import Packet, simulate_packet
from stream.simulate.facts import instrument, static_artefacts
from stream.simulate.plan import NightPlan, SimExposure
from stream.simulate.scheduler import schedule
from stream.simulate.truth import TruthWriter

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class NightSummary:
    """What was written: paths of the packets by role in time order, catalogues and truth tables by name."""

    out: Path
    calibration: list[Path] = field(default_factory=list)
    reference: list[Path] = field(default_factory=list)
    science: list[Path] = field(default_factory=list)
    catalogs: dict[str, Path] = field(default_factory=dict)
    truth: dict[str, Path] = field(default_factory=dict)
    n_packets: int = 0
    n_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        paths = {name: [str(path) for path in getattr(self, name)] for name in ("calibration", "reference", "science")}
        tables = {name: {k: str(v) for k, v in getattr(self, name).items()} for name in ("catalogs", "truth")}
        return {"out": str(self.out), "n_packets": self.n_packets, "n_bytes": self.n_bytes, **paths, **tables}


def _packets(plan: NightPlan, out: Path, workers: int) -> Iterator[tuple[SimExposure, Packet]]:
    """All packets in the order of exposures and CCDs, whoever makes them."""
    jobs = [(exposure, ccd) for exposure in schedule(plan) for ccd in sorted(plan.ccds)]
    if workers == 1 or len(jobs) == 1:
        for exposure, ccd in jobs:
            yield exposure, simulate_packet(plan.of(exposure), exposure, ccd, out)
        return
    # Fresh interpreters: a fork of a process that holds threads (a broker client, TensorFlow) may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: list[tuple[SimExposure, Future[Packet]]] = []
        remaining = iter(jobs)
        for exposure, ccd in remaining:
            waiting.append((exposure, pool.submit(simulate_packet, plan.of(exposure), exposure, ccd, out)))
            if len(waiting) > 2 * workers:  # bounds what truth waits in memory
                first, future = waiting.pop(0)
                yield first, future.result()
        for exposure, future in waiting:
            yield exposure, future.result()


def simulate_night(out: Path, plan: NightPlan, progress: Progress | None = None, *, workers: int = 1) -> NightSummary:
    """Simulate a night into a folder.

    Writes ``raw/{cal,ref,sci}/`` packets, ``gaia.parquet``, ``ps1.parquet``, ``bright.parquet``, ``MPCORB.DAT``, and
    ``truth/{sources,quadrants,artefacts}.parquet``.

    Parameters
    ----------
    out : Path
        Folder; made if absent. Files of the same name are replaced.
    plan : NightPlan
    progress : callable, optional
        Called with (packets done, packets in all).
    workers : int
        Processes. The bytes written do not depend on it.

    Returns
    -------
    NightSummary
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    summary = NightSummary(out, catalogs=write_catalogs(plan, out))
    total = len(schedule(plan)) * len(plan.ccds)
    by_role = {"cal": summary.calibration, "ref": summary.reference, "sci": summary.science}
    with TruthWriter(out / "truth") as truth:
        truth.add({"artefacts": static_artefacts(plan), "instrument": instrument(plan)})
        for exposure, packet in _packets(plan, out, max(1, workers)):
            truth.add(packet.tables)
            by_role[exposure.role].append(packet.path)
            summary.n_packets += 1
            summary.n_bytes += packet.n_bytes
            if progress is not None:
                progress(summary.n_packets, total)
    summary.truth = truth.paths
    return summary
