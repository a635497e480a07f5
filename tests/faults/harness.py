"""A running system under faults: processes killed and frozen, broker and Redis restarted, Redis emptied, disks full,
packets hurt; and the comparison of what it sent with the same packets through ``process``, which knows none of that.

One seed gives the same packets and the same faults in the same order; when each of them strikes depends on the machine.
``test_fault_set.py`` runs a short set, ``ops/torture.py`` a long one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import bad_packets as bad

from stream.alert import LEDGER, read_packet, write_packet
from stream.archive import ProductStore, alert_index, archived_nights, iterate_alerts, iterate_packets
from stream.core.errors import Retriable, UsageError, ZtfError
from stream.engine.access import make_ready
from stream.engine.archive_worker import ALERT_TOPICS
from stream.engine.config import Settings, load_settings
from stream.engine.deadletters import list_letters
from stream.engine.embedded_kafka import EmbeddedKafka
from stream.engine.embedded_redis import EmbeddedRedis
from stream.engine.gather import NightReader
from stream.engine.kafka import RawMessage, make_admin, read_to_end
from stream.engine.lag import lags, stage_work
from stream.engine.rebuild import ensure_state, rebuild_state
from stream.engine.state import connect
from stream.engine.supervise import Child, Supervisor
from stream.engine.topics import load_topics
from stream.engine.workers import children

KILLED = ("pixels", "score", "enrich", "link", "monitor", "emit", "archive", "nights", "ingest")
# How often each kind strikes in a long run. Workers most, since what they hold in hand is most of what may be lost.
WEIGHTS = {
    **{f"kill {role}": 8 for role in KILLED}, "kill pixels": 20, "kill emit": 14, "kill all": 3, "pause": 12,
    "slow": 4, "disk full": 6, "broker restart": 2, "broker kill": 3, "redis restart": 3, "redis kill": 4,
    "redis flush": 3,
}  # fmt: skip
WORST_BEGUN = 3  # kills of quadrant workers spare an input begun so often: five deaths are the input's own fault
EXPOSURE_SECONDS, NIGHT_EXPOSURES, NIGHTS_APART = 60.0, 40, 100.0 * 86_400.0
CORRUPT_EVERY = 6  # every so manieth packet is hurt
QUADRANTS = 4  # of a packet; each ends in a quality record, hurt ones too
ALERT_TOPIC = re.compile(ALERT_TOPICS)
# zsds.trackid says whether `link` was faster than `enrich`; all of LEDGER is wall clock. Nothing else may differ.
MAY_DIFFER = (*LEDGER, "trackid")


@dataclass(slots=True)
class Struck:
    """One fault: when it struck (unix seconds), what, whom, and how long the harness held it up."""

    number: int
    kind: str
    victim: str = ""
    at: float = 0.0
    lasted: float = 0.0
    recovery: float | None = None  # seconds from a quadrant worker's death to its next finished quadrant


@dataclass(slots=True)
class Verdict:
    """What the run has to be judged by."""

    seed: int
    faults: list[Struck]
    packets: int = 0
    expected: int = 0  # alerts of the clean run
    lost: list[int] = field(default_factory=list)  # candids, of every topic
    foreign: list[int] = field(default_factory=list)  # sent, but not by the clean run
    twice: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # isolation level -> topic -> candids
    differ: dict[int, list[str]] = field(default_factory=dict)  # candid -> fields
    products: list[str] = field(default_factory=list)  # paths whose bytes differ
    letters: list[str] = field(default_factory=list)  # dead letters that the clean run does not have
    archive: str = ""  # in what the archive is not what left, if anything
    restarts: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing lost, nothing twice, the same bytes."""
        wrong = (self.lost, self.foreign, self.differ, self.products, self.letters, self.archive)
        return not any(wrong) and not any(found for topics in self.twice.values() for found in topics.values())

    def recoveries(self) -> list[float]:
        """Seconds from the death of a quadrant worker to its next finished quadrant, sorted."""
        return sorted(fault.recovery for fault in self.faults if fault.recovery is not None)


class Packets:
    """The packets of the run: one science exposure again and again, a minute apart; every sixth one hurt."""

    def __init__(self, good: Path, folder: Path) -> None:
        self._good, self._folder = good, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.made: list[Path] = []
        self.corrupt = 0

    def next(self) -> Path:
        """Make one more."""
        k = len(self.made)
        seconds = EXPOSURE_SECONDS * (1 + k % NIGHT_EXPOSURES) + NIGHTS_APART * (k // NIGHT_EXPOSURES)
        kinds: list[tuple[Callable[[Path], Path], Any]] = [
            (lambda p: bad.cut(p, 3000), None),
            (lambda p: p, bad.hurt_pixels(2, with_sums=True)),
            (lambda p: bad.cut(p, p.stat().st_size // 2), None),
            (lambda p: p, bad.hurt_pixels(2, with_sums=False)),
        ]
        after, change = kinds[self.corrupt % 4] if k % CORRUPT_EVERY == CORRUPT_EVERY - 1 else (None, None)
        packet = bad.later(self._good, self._folder, seconds, change=change)
        if after is not None:
            packet = after(packet)
            self.corrupt += 1
        self.made.append(packet)
        return packet


class World:
    """Broker, Redis, workers and a folder that ingest watches."""

    def __init__(self, folder: Path, store: Path, camera: str = "small", **settings: Any) -> None:
        self.folder, self.inbox = folder, folder / "inbox"
        self.inbox.mkdir(parents=True)
        self.kafka, self.redis = EmbeddedKafka(folder), EmbeddedRedis(folder)
        self.redis.start()
        self.kafka.start()
        plain = load_settings(
            environ={}, data_dir=folder, store=str(store), camera=camera, log_format="json", redis_url=self.redis.url,
            metrics_port=-1,
            # `process` knows no overload: exposures have to come in their order to have its histories.
            overtake_public_seconds=1e6, **settings,
        )  # fmt: skip
        self.settings: Settings = self.kafka.signed_in(plain)
        make_ready(self.settings)
        self.client = connect(self.settings)
        ensure_state(self.settings, self.client)
        workers = children(self.settings)
        argv = (sys.executable, "-m", "stream.cli", "ingest", "--watch", str(self.inbox))
        self.children = [*workers, Child("ingest-0", argv, workers[0].env, folder / "logs" / "ingest-0.log")]

    def close(self) -> None:
        """Stop the services."""
        self.kafka.stop()
        self.redis.stop()


class Torture:
    """Feeds packets, strikes faults, waits until everything has come through."""

    def __init__(
        self, world: World, packets: Packets, plan: list[str], seed: int, *, pace: tuple[float, float] = (1.0, 3.0),
        patience: float = 180.0, tell: Callable[[str], None] = lambda text: None, until: float = float("inf"),
    ) -> None:  # fmt: skip
        self.world, self.packets, self.plan = world, packets, plan
        self.struck: list[Struck] = []
        self._random = random.Random(seed)
        self._pace, self._patience, self._tell, self._until = pace, patience, tell, until
        self._next = time.monotonic() + 1.0
        self._undo: list[tuple[float, Callable[[], None]]] = []  # what ends a fault that lasts
        self._done: Counter[Path] = Counter()
        self._seen: set[int] = set()
        self._progress = time.monotonic()
        self.stalled = ""
        self.supervisor = Supervisor(world.children, watch=self._watch)
        self._reader = NightReader(world.settings)

    def run(self) -> int:
        """Everything; how many times a child was restarted."""
        try:
            return self.supervisor.run()
        finally:
            self._reader.__exit__(None, None, None)

    # -- feeding -------------------------------------------------------------------------------------------------

    def _open(self) -> list[Path]:
        return [path for path in self.packets.made if self._done[path] < QUADRANTS]

    def _watch(self) -> None:
        now = time.monotonic()
        for item in [item for item in self._undo if item[0] <= now]:
            self._undo.remove(item)
            item[1]()
        self._read()
        striking = len(self.struck) < len(self.plan) and time.time() < self._until
        if striking and len(self._open()) < 2:
            packet = self.packets.next()
            scratch = self.world.inbox / f".{packet.name}"
            shutil.copyfile(packet, scratch)
            scratch.rename(self.world.inbox / packet.name)
        working = bool(self._seen)  # faults on a system that is only starting prove little
        if striking and working and now >= self._next and not self._undo:
            self._strike(self.plan[len(self.struck)])
            self._next = time.monotonic() + self._random.uniform(*self._pace)
        if not striking and not self._undo and not self._open() and self._published() and self._archived():
            self.supervisor.stop()
        if now - self._progress > self._patience:
            self.stalled = f"nothing came for {self._patience:.0f} s; open: {[p.name for p in self._open()]}, "
            self.stalled += f"all published: {self._published()}, all archived: {self._archived()}"
            self.supervisor.stop()

    def _read(self) -> None:
        with suppress(Retriable, ZtfError):
            if self._reader.poll(0.02):
                self._progress = time.monotonic()
        gathered = self._reader.gathered
        for pid in gathered.reports.keys() - self._seen:
            self._seen.add(pid)
            stem = gathered.reports[pid].name.rsplit("_q", 1)[0]
            for path in self.packets.made:
                if path.name.split(".")[0] == stem:
                    self._done[path] += 1
                    if self._done[path] >= QUADRANTS:
                        (self.world.inbox / path.name).unlink(missing_ok=True)

    def _published(self) -> bool:
        gathered = self._reader.gathered
        sent = {packet["candid"] for packets in gathered.alerts.values() for packet in packets}
        return len(sent) >= gathered.n_expected

    def _archived(self) -> bool:
        """Whether the archive worker has dealt with everything that left."""
        nightly = [name for name in self._reader.gathered.alerts if ALERT_TOPIC.match(name)]
        work = {"archive": stage_work(self.world.settings, nightly)["archive"]}
        try:
            return lags(self.world.settings, work)["archive"] == 0
        except Retriable:
            return False

    # -- faults --------------------------------------------------------------------------------------------------

    def _strike(self, kind: str) -> None:
        fault = Struck(len(self.struck) + 1, kind, at=time.time())
        self.struck.append(fault)
        started = time.monotonic()
        name, _, what = kind.partition(" ")
        try:
            if name == "kill":
                fault.victim = ", ".join(self._kill(what))
            elif name in ("pause", "slow"):
                fault.victim = self._freeze(name)
            elif kind == "disk full":
                fault.victim = self._fill()
            elif name == "broker":
                self._service(self.world.kafka, what)
            elif kind == "redis flush":
                self._flush()
            else:
                self._service(self.world.redis, what)
        finally:
            fault.lasted = round(time.monotonic() - started, 2)
        self._progress = time.monotonic()
        self._tell(f"{fault.number:4d} {kind} {fault.victim} ({len(self.packets.made)} packets)")

    def _alive(self, role: str = "") -> dict[str, int]:
        return {name: pid for name, pid in self.supervisor.pids().items() if name.startswith(role)}

    def _kill(self, role: str) -> list[str]:
        if role in ("pixels", "all") and self._worst_begun() >= WORST_BEGUN:
            role = "emit"
        alive = self._alive("" if role == "all" else role)
        names = sorted(alive) if role == "all" else [self._random.choice(sorted(alive))] if alive else []
        for name in names:
            with suppress(ProcessLookupError):
                os.kill(alive[name], signal.SIGKILL)
        return names

    def _worst_begun(self) -> int:
        try:
            keys = list(self.world.client.scan_iter("attempt:*", count=1000))
            return max((int(v) for v in (self.world.client.mget(keys) if keys else []) if v), default=0)
        except Exception:  # Redis is being restarted: nothing is known, spare them
            return WORST_BEGUN

    def _freeze(self, how: str) -> str:
        """Stop a process for a while, or (slow) half of the time for a while."""
        alive = self._alive()
        if not alive:
            return ""
        name = self._random.choice(sorted(alive))
        pid, seconds = alive[name], self._random.uniform(0.5, 12.0 if how == "pause" else 4.0)
        end = time.monotonic() + seconds

        def go_on() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        def stop() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            self._undo.append((min(end, time.monotonic() + 0.2) if how == "slow" else end, resume))

        def resume() -> None:
            go_on()
            if how == "slow" and time.monotonic() < end:
                self._undo.append((time.monotonic() + 0.1, stop))

        stop()
        return f"{name} {seconds:.1f} s"

    def _fill(self) -> str:
        """No process that writes products or the archive can make a file of more than nothing for a while."""
        victims = {name: pid for name, pid in self._alive().items() if name.startswith(("pixels", "archive"))}
        seconds = self._random.uniform(0.5, 5.0)
        before = {}
        for pid in victims.values():
            with suppress(ProcessLookupError):
                before[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[pid][1]))

        def empty() -> None:
            for pid, limits in before.items():
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

        self._undo.append((time.monotonic() + seconds, empty))
        return f"{len(victims)} processes {seconds:.1f} s"

    def _service(self, service: EmbeddedKafka | EmbeddedRedis, how: str) -> None:
        if how == "kill":
            service.kill()
            time.sleep(self._random.uniform(0.0, 2.0))
        else:
            service.stop()
        for _ in range(3):
            try:
                service.start()
                return
            except UsageError as error:  # a machine so busy that the broker does not answer in a minute
                self._tell(str(error).splitlines()[0])
        raise UsageError("the service did not come back in three tries")

    def _flush(self) -> None:
        """Empty Redis; the rebuild comes a moment later, as when somebody has to notice first."""
        self.world.client.flushall()

        def rebuild() -> None:
            try:
                rebuild_state(self.world.settings, self.world.client)
            except Retriable:
                self._undo.append((time.monotonic() + 1.0, rebuild))
            self._progress = time.monotonic()

        self._undo.append((time.monotonic() + self._random.uniform(0.2, 4.0), rebuild))


def fault_plan(number: int, seed: int) -> list[str]:
    """Kinds of faults in their order."""
    chosen = random.Random(f"plan {seed}")
    return chosen.choices(list(WEIGHTS), list(WEIGHTS.values()), k=number)


# -- the verdict ---------------------------------------------------------------------------------------------------


def comparable(record: dict[str, Any]) -> bytes:
    """A packet's bytes with what may differ taken out."""
    return write_packet({**record, "zsds": {**record["zsds"], **dict.fromkeys(MAY_DIFFER)}})


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Fields in which two packets differ beyond what may."""
    plain = [{**p, "zsds": {k: v for k, v in p["zsds"].items() if k not in MAY_DIFFER}} for p in (a, b)]
    fields = []
    for name in plain[0]:
        if isinstance(plain[0][name], dict) and isinstance(plain[1][name], dict):
            inner = plain[0][name].keys() | plain[1][name].keys()
            fields += [f"{name}.{k}" for k in inner if plain[0][name].get(k) != plain[1][name].get(k)]
        elif plain[0][name] != plain[1][name]:
            fields.append(name)
    return sorted(fields)


def judge(world: World, packets: Packets, clean: Path, verdict: Verdict) -> Verdict:
    """Compare what the world sent and stored with the store of the clean run."""
    wanted = {packet["candid"]: packet for packet in iterate_alerts(ProductStore(str(clean)))}
    verdict.packets, verdict.expected = len(packets.made), len(wanted)
    topics = load_topics(world.settings.topics_file)
    existing = sorted(make_admin(world.settings).list_topics(timeout=15).topics)
    kinds = {topic: spec for topic in existing if (spec := topics.spec_of(topic)) is not None and spec.carries_alerts}
    lost: set[int] = set()
    sent: dict[int, RawMessage] = {}  # by candid, of the nightly topics
    for level in ("read_committed", "read_uncommitted"):
        counts: dict[str, Counter[int]] = defaultdict(Counter)
        for topic, spec in kinds.items():
            group = spec.name
            for message in read_to_end(world.settings, {topic: {}}, "judge", read_committed=level == "read_committed"):
                record = read_packet(message.value)
                candid = record["candid"]
                counts[group][candid] += 1
                if spec.nightly:
                    sent[candid] = message
                compared = spec.nightly and level == "read_uncommitted" and candid in wanted
                if compared and comparable(record) != comparable(wanted[candid]):
                    verdict.differ[candid] = different(record, wanted[candid])
        verdict.twice[level] = {
            group: sorted(candid for candid, n in found.items() if n > 1) for group, found in sorted(counts.items())
        }
        public = {group: found for group, found in counts.items() if "programid1" in group}
        for found in public.values():
            lost |= wanted.keys() - found.keys()
            verdict.foreign = sorted(set(verdict.foreign) | (found.keys() - wanted.keys()))
        if not public and wanted:
            lost |= wanted.keys()
    verdict.lost = sorted(lost)
    verdict.products = _products(Path(world.settings.store), clean)
    verdict.letters = _letters(world)
    verdict.archive = _archive(ProductStore(str(world.settings.store)), sent)
    for i, fault in enumerate(verdict.faults):
        if fault.kind == "kill pixels" and fault.victim.startswith("pixels"):
            seconds = _recovery(world.folder / "logs" / f"{fault.victim}.log", fault.at)
            if seconds is not None and not _disturbed(fault, seconds, verdict.faults[i + 1 :]):
                fault.recovery = seconds
    return verdict


def _disturbed(fault: Struck, seconds: float, later: list[Struck]) -> bool:
    """Whether another fault that concerns the worker struck before it had recovered."""
    meanwhile = [other for other in later if other.at < fault.at + seconds]
    return any(fault.victim in other.victim or other.kind.startswith("broker") for other in meanwhile)


def _products(streamed: Path, clean: Path) -> list[str]:
    """Science products whose bytes are not those of the clean run."""
    wrong = []
    for path in sorted((clean / "sci").rglob("*")):
        if path.is_file():
            other = streamed / path.relative_to(clean)
            if not other.is_file() or _digest(other) != _digest(path):
                wrong.append(str(path.relative_to(clean)))
    return wrong


def _archive(store: ProductStore, sent: dict[int, RawMessage]) -> str:
    """In what the archive differs from the nightly topics: each packet once, byte for byte, and where it was."""
    kept = {candid: packet for night in archived_nights(store) for candid, packet in iterate_packets(store, night)}
    places = {
        row["candid"]: (row["topic"], row["partition"], row["kafka_offset"], row["sha256"])
        for night in archived_nights(store)
        for program in range(4)
        for row in alert_index(store, night, program)
    }
    wrong = {
        "missing": len(sent.keys() - kept.keys()),
        "never sent": len(kept.keys() - sent.keys()),
        "other bytes": sum(candid in sent and packet != sent[candid].value for candid, packet in kept.items()),
        "other place": sum(
            places[candid] != (m.topic, m.partition, m.offset, hashlib.sha256(m.value).hexdigest())
            for candid, m in sent.items()
            if candid in places
        ),
        "not in the index": len(sent.keys() - places.keys()),
    }
    return ", ".join(f"{count} {what}" for what, count in wrong.items() if count)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _letters(world: World) -> list[str]:
    """Dead letters that are not about hurt pixels or files."""
    return [f"{x.stage} {x.error}: {x.reason[:200]}" for x in list_letters(world.settings) if x.error != "PacketError"]


def _recovery(log: Path, since: float) -> float | None:
    for line in log.read_text().splitlines():
        with suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            if event["event"] == "done":
                at = datetime.fromisoformat(event["timestamp"]).timestamp()
                if at > since:
                    return round(at - since, 2)
    return None


@contextmanager
def world_on(folder: Path, store: Path, **settings: Any) -> Iterator[World]:
    """A world for the length of the block."""
    world = World(folder, store, **settings)
    try:
        yield world
    finally:
        world.close()
