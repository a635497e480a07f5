"""A short fixed set of faults on a running system; ``ops/torture.py`` strikes a thousand."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from nights import Night, ztf_stream

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))  # bad_packets.py
from harness import WEIGHTS, Packets, Torture, Verdict, fault_plan, judge, world_on

SEED = 4
FAULTS = [
    "kill emit", "redis kill", "kill pixels", "broker kill", "kill enrich", "disk full", "redis flush", "kill score",
]  # fmt: skip


@pytest.fixture(scope="session")
def verdict(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    """The faults struck, every packet through, and what came of it against ``process``."""
    folder = tmp_path_factory.mktemp("faults")
    store = night.sibling(folder / "store", "catalogs", "cal", "ref")
    packets = Packets(night.science[1], folder / "packets")
    started = time.monotonic()
    with world_on(folder / "world", store, pixel_workers=2) as world:
        torture = Torture(world, packets, FAULTS, SEED)
        restarts = torture.run()
        assert not torture.stalled, torture.stalled
        clean = night.sibling(folder / "clean", "catalogs", "cal", "ref")
        ztf_stream("process", *packets.made, "--store", clean, "--json", "--workers", 2)  # hurt packets: status 1
        return judge(world, packets, clean, Verdict(SEED, torture.struck, restarts=restarts,
                                                    seconds=time.monotonic() - started))  # fmt: skip


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_and_nothing_comes_twice(verdict):
    assert [fault.kind for fault in verdict.faults] == FAULTS
    assert verdict.expected > 20
    assert verdict.lost == []
    assert verdict.foreign == []
    assert all(found == [] for topics in verdict.twice.values() for found in topics.values()), verdict.twice
    assert verdict.restarts >= sum(kind.startswith("kill ") for kind in FAULTS), "whoever was killed was started again"


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_packets_and_products_are_those_of_a_clean_run(verdict):
    assert verdict.differ == {}
    assert verdict.products == []
    assert verdict.letters == []


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_archive_holds_what_left_byte_for_byte(verdict):
    assert verdict.archive == ""


def test_a_seed_gives_the_same_faults_of_every_kind():
    plan = fault_plan(1000, 1)
    assert plan == fault_plan(1000, 1) != fault_plan(1000, 2)
    assert set(plan) == set(WEIGHTS)
