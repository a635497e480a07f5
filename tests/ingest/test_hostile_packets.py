"""Two hundred hostile packets through the functions of ingest and processing: none crashes, each has its reason."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import mutants
import packets as made
import pytest

from stream.archive import ProductStore, StoreInputs
from stream.core.errors import PacketError
from stream.core.records import Status
from stream.ingest import parse_packet
from stream.pipeline import ScienceSettings
from stream.quadrants import QuadrantTask

NUMBER = 200
# The rooms whose errors say what to do. A defect of ours ends in the report too, but not as one of these.
STAGES = {"ingest", "calibrate", "astrometry", "photometry", "reference", "subtract"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> QuadrantTask:
    store = ProductStore(str(tmp_path_factory.mktemp("hostile")))
    return QuadrantTask(store, StoreInputs(store), ScienceSettings(camera=made.TINY))


def reason_of(error: PacketError) -> str:
    """Its text, which must be a sentence."""
    assert len(str(error)) > 20
    return str(error)


def endings(task: QuadrantTask, data: bytes, name: str) -> dict[int, tuple[str, str]]:
    """Stage and reason by quadrant (0: the whole packet), as ingest and the worker would have them.

    Anything else that is raised, and any reason that is a defect's, is the test's failure.
    """
    try:
        packet = parse_packet(data, name, made.TINY)
    except PacketError as error:
        return {0: (error.stage, reason_of(error))}
    ends: dict[int, tuple[str, str]] = {}
    for failure in packet.failures:
        assert failure.context["file"] in str(failure)
        assert f"quadrant {failure.context['qid']}" in str(failure)
        ends[failure.context["qid"]] = failure.stage, str(failure)
    for payload in packet.quadrants:
        assert len(payload.payload) < 3 * len(data)
        result = task.run(payload.payload)
        report = result.report
        assert report.qid == payload.quadrant.qid
        assert report.status is Status.FAILED  # the sky of these tests has no stars to place it by
        assert report.stage in STAGES, (report.stage, report.reason, result.traceback)
        assert "stream.core.errors." in (result.traceback or "").strip().splitlines()[-1], result.traceback
        assert report.reason
        json.dumps(report.reason)
        ends[report.qid] = report.stage or "", report.reason
    assert set(ends) == {1, 2, 3, 4}
    return ends


def test_two_hundred_hostile_packets_have_their_reasons(task: QuadrantTask) -> None:
    harmless = endings(task, made.make_packet(checksum=False), made.NAME)
    assert {stage for stage, _ in harmless.values()} == {"astrometry"}, "as far as a sky without Gaia goes"
    kept = refused = partly = 0
    seen = set()
    for mutant in mutants.mutants(NUMBER):
        try:
            ends = endings(task, mutant.data, mutant.name)
        except Exception as error:
            error.add_note(f"mutant: {mutant.how}")
            raise
        seen.add(mutant.how)
        reached = sum(stage != "ingest" for stage, _ in ends.values())
        kept += reached == 4
        refused += reached == 0
        partly += 0 < reached < 4
    assert len(seen) == NUMBER
    # The generator is worth its name: every kind of ending occurs often.
    assert min(kept, refused, partly) > NUMBER // 20


def test_quadrants_that_are_not_hurt_are_what_they_were(task: QuadrantTask) -> None:
    """Damage to one extension's pixels costs that quadrant and changes nothing for the others."""
    rng = np.random.default_rng(5)
    sound = made.make_packet(checksum=True)
    before = endings(task, sound, made.NAME)
    parts = mutants._extensions(sound)
    for qid in (1, 2, 3, 4):
        damaged = parts.copy()
        damaged[qid] = mutants.overwritten(damaged[qid], rng)
        after = endings(task, b"".join(damaged), made.NAME)
        if 0 in after:
            continue
        hurt = {q for q in after if after[q] != before[q]}
        assert hurt <= {qid}


def test_giant_promises_take_no_memory(task: QuadrantTask) -> None:
    rng = np.random.default_rng(6)
    sound = made.make_packet(checksum=False)
    tracemalloc.start()
    for _ in range(8):
        endings(task, mutants.huge(sound, rng), made.NAME)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000
