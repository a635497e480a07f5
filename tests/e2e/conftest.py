"""The night streamed: as it comes, with workers killed, with bad packets among the good, and with a sky unknown."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bad_packets as bad
import pytest
from nights import PATIENCE, PLAN, Said, System, wait, ztf_stream
from services import dump

from stream.core.camera import SMALL
from stream.engine.gather import Gathered
from stream.engine.heartbeat import living
from stream.engine.kafka import read_to_end
from stream.engine.lag import group_lag
from stream.engine.state import connect
from stream.simulate import NightPlan, simulate_night

ELSEWHERE = NightPlan(
    seed=PLAN.seed, noise_seed=6, camera=SMALL, field=500, night="20201007", qids=(1,), n_reference=3,
    n_science=1, n_bias=0, n_flat=0, satellite=False,
)  # fmt: skip


@dataclass
class Kill:
    """A moment at which all quadrant workers were killed."""

    begun: dict[str, int]  # messages that were being worked on, and how many times they had been begun
    pids: list[int]


@dataclass
class Flush:
    """Redis emptied in the middle of the night."""

    before: dict[str, Any]  # all that was in it
    held: int  # alerts that left between the loss and the rebuild
    shown: Said  # what `state show` said meanwhile
    rebuilt: Said
    after: dict[str, Any]


@dataclass
class Streamed:
    """The night's exposures streamed, Redis emptied between them, the second one under fire."""

    system: System
    ingested: list[Said]
    flush: Flush
    kills: list[Kill] = field(default_factory=list)


@pytest.fixture(scope="session")
def streamed(system: System) -> Streamed:
    """First exposure in peace; Redis emptied; second with all quadrant workers killed in the middle, twice."""
    first, second = system.night.science
    ingested = [system.call("ingest", first, "--json")]
    system.until("the first exposure", lambda g: len(g.reports) == 4)
    system.settled()
    wait_for_stages(system)
    client = connect(system.settings)
    before = dump(client, *PASSING)
    client.flushall()
    wait(lambda: [sign["role"] for sign in living(client)].count("pixels") == 2)  # the next beat
    ingested.append(system.call("ingest", second, "--json"))
    kills = [kill_in_the_middle(system, 1)]
    kills.append(kill_in_the_middle(system, 2, kills[0].pids))
    system.until("the second exposure", lambda g: len(g.reports) == 8)
    pids = {report.pid for report in reports_of(system.gathered, second).values()}
    wait(lambda: counted(system, "ztf.scored", pids) >= 4)
    time.sleep(1.0)
    system.reader.poll()
    held = system.gathered.n_alerts
    # Pause the stages, so that what they hold is not in the state when it is looked at.
    waiting = [sign["pid"] for sign in living(client) if sign["role"] in ("enrich", "link", "monitor", "emit")]
    shown = system.call("state", "show", "--json")
    for pid in waiting:
        os.kill(pid, signal.SIGSTOP)
    try:
        rebuilt = system.call("state", "rebuild", "--json")
        after = dump(client, *PASSING)
    finally:
        for pid in waiting:
            os.kill(pid, signal.SIGCONT)
    system.settled()
    return Streamed(system, ingested, Flush(before, held, shown, rebuilt, after), kills)


# What in Redis is of the moment: signs of life, inputs begun, files ingested, latencies of the last minutes.
PASSING = ("alive:", "attempt:", "ztf:ingested:", "ztf:generation", "ztf:mon:ledgers")


def wait_for_stages(system: System) -> None:
    """Wait until every stage has finished its topic; fails with those that have not."""
    deadline = time.monotonic() + PATIENCE
    while left := lagging(system):
        assert time.monotonic() < deadline, f"not finished within {PATIENCE:.0f} s: {left}"
        time.sleep(0.1)


def lagging(system: System) -> dict[str, int]:
    """Messages that groups have not finished, of those that have any."""
    topics = {"score": "ztf.candidates", "enrich": "ztf.scored", "link": "ztf.scored", "emit": "ztf.enriched",
              "monitor": "ztf.quadrants"}  # fmt: skip
    written = ("ztf.candidates", "ztf.quadrants")  # in transactions
    left = {
        name: group_lag(system.settings, f"ztf-{name}", topic, transactional=topic in written)
        for name, topic in topics.items()
    }
    return {name: count for name, count in left.items() if count}


def kill_in_the_middle(system: System, beginning: int, dead: Collection[int] = ()) -> Kill:
    """SIGKILL every quadrant worker as soon as one has begun a message for the ``beginning``-th time."""
    client = connect(system.settings)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        keys = sorted(client.scan_iter("attempt:ztf.raw-*", count=1000))
        begun = {k.decode(): int(v) for k, v in zip(keys, client.mget(keys) if keys else [], strict=True) if v}
        if any(count >= beginning for count in begun.values()):
            return Kill(begun, kill_quadrant_workers(system, dead, deadline))
        time.sleep(0.002)
    raise AssertionError(f"no quadrant was begun for the {beginning}-th time")


def kill_quadrant_workers(system: System, dead: Collection[int], deadline: float) -> list[int]:
    """SIGKILL all of them: who is there stands still until the others are, so that no quadrant is finished meanwhile.

    The last sign of life of one that is ``dead`` may still be there.
    """
    client, held = connect(system.settings), set[int]()
    while len(held) < system.settings.pixel_workers:
        assert time.monotonic() < deadline, f"only {len(held)} quadrant workers are there"
        for sign in living(client):
            pid = sign["pid"]
            if sign["role"] == "pixels" and pid not in held and pid not in dead:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    held.add(pid)
        time.sleep(0.005)
    for pid in held:
        os.kill(pid, signal.SIGKILL)
    return sorted(held)


@dataclass
class Faults:
    """Packets that a night brings among the good ones, and what became of them."""

    system: System
    packets: dict[str, Path]
    said: Said
    again: Said

    def outcome(self, name: str) -> dict[str, Any]:
        """The line that ingest said about a packet."""
        (row,) = [row for row in self.said.rows() if row["path"] == str(self.packets[name])]
        return row

    def reports(self, name: str) -> dict[int, Any]:
        """Quality records of a packet's quadrants by qid."""
        return reports_of(self.system.gathered, self.packets[name])

    def letters(self, name: str) -> list[Any]:
        """Dead letters about a packet or its quadrants."""
        stem = stem_of(self.packets[name])
        about = [
            (x, str(x.context.get("name") or x.context.get("file"))) for x in self.system.gathered.letters.values()
        ]
        return [letter for letter, subject in about if stem in subject]


def stem_of(packet: Path) -> str:
    """Name of an exposure's packet without its endings."""
    return packet.name.split(".")[0]


def reports_of(gathered: Gathered, packet: Path) -> dict[int, Any]:
    """Quality records of a packet's quadrants by qid."""
    return {r.qid: r for r in gathered.reports.values() if r.name.rsplit("_q", 1)[0] == stem_of(packet)}


@pytest.fixture(scope="session")
def faults(streamed: Streamed, tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """Hurt packets and good ones through the running system, in one go; then one packet a second time."""
    system = streamed.system
    good, folder = system.night.science[1], tmp_path_factory.mktemp("bad")
    truncated = bad.later(good, folder, 660)
    packets = {
        "cut": bad.cut(bad.later(good, folder, 600), 3000),
        "truncated": bad.cut(truncated, truncated.stat().st_size // 2),
        "sum": bad.later(good, folder, 720, change=bad.hurt_pixels(2, with_sums=True)),
        "rice": bad.later(good, folder, 780, change=bad.hurt_pixels(2, with_sums=False)),
        "flat": bad.flatten(bad.later(good, folder, 840), {2: 65535, 3: 1000}),
        "no reference": bad.later(good, folder, 900, field=449),
        "another ccd": bad.later(good, folder, 930, ccd=2),  # which the other exposures of the night lack
        "good": bad.later(good, folder, 960),
    }
    said = system.call("ingest", *packets.values(), good, "--json")
    # A quadrant that is hurt has its quality record too, beside its dead letter.
    system.until("the bad exposures", lambda g: all(len(reports_of(g, path)) == 4 for path in packets.values()))
    system.settled()
    again = system.call("ingest", "--again", packets["good"], "--json")
    pids = {report.pid for report in reports_of(system.gathered, packets["good"]).values()}
    system.until("the second time", lambda g: counted(system, "ztf.enriched", pids) == 8)
    system.until("the emitter", lambda g: group_lag(system.settings, "ztf-emit", "ztf.enriched") == 0)
    system.settled()
    return Faults(system, packets, said, again)


def counted(system: System, topic: str, pids: set[int]) -> int:
    """Messages about some quadrants on an internal topic, as a reader of committed ones counts."""
    found = read_to_end(system.settings, {topic: {}}, "test", read_committed=True)
    return sum(int(message.header("pid") or 0) in pids for message in found)


@dataclass
class Elsewhere:
    """A packet of a region whose Gaia tiles were not imported, before and after they were."""

    system: System
    packet: Path
    ingested: Said
    before: dict[int, Any]  # quality records by qid
    letters: list[dict[str, Any]]  # what `deadletter list` said
    shown: Said
    imported: Said
    retried: Said


@pytest.fixture(scope="session")
def elsewhere(faults: Faults, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Streamed without Gaia, given up, Gaia imported, sent again. Only its first quadrant has stars."""
    system, folder = faults.system, tmp_path_factory.mktemp("elsewhere")
    store = system.night.sibling(folder / "store", "cal")
    summary = simulate_night(folder, ELSEWHERE, workers=2)
    for kind in ("gaia", "ps1"):
        ztf_stream("catalog", "import", kind, folder / f"{kind}.parquet", "--store", store).ok()
    ztf_stream("reference", "build", *summary.reference, "--store", store, "--workers", 1)
    system.call("catalog", "import", "ps1", folder / "ps1.parquet").ok()
    shutil.copytree(store / "ref", Path(system.settings.store) / "ref", dirs_exist_ok=True)
    (packet,) = summary.science
    ingested = system.call("ingest", packet, "--json")
    system.until("the unknown sky", lambda g: len(reports_of(g, packet)) == 4)
    before = reports_of(system.gathered, packet)
    listed = system.call("deadletter", "list", "--stage", "astrometry", "--json").ok().rows()
    letters = [row for row in listed if stem_of(packet) in row["context"]["name"]]
    ours = [row["id"] for row in letters if row["context"]["name"] == before[1].name]
    shown = system.call("deadletter", "show", ours[0])
    imported = system.call("catalog", "import", "gaia", folder / "gaia.parquet", "--json")
    retried = system.call("deadletter", "retry", ours[0], "--json")
    system.until("the retried quadrant", lambda g: reports_of(g, packet)[1].status == "ok")
    system.settled()
    return Elsewhere(system, packet, ingested, before, letters, shown, imported, retried)
