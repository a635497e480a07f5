"""The nights worker: topics before the night, a heartbeat during it, a manifest after it, figures all the time.

One process of the whole system, the only one with the administrator's rights: it makes tonight's and tomorrow's topics
by the UT date, gives users their rights on every nightly topic that appears (an old night that is replayed, too),
says every half minute on ``ztf.heartbeat`` that the system lives and on ``ztf.metrics`` how fast it is, closes
nights that are over, and then has child processes learn from the night (the distortion, artefacts that return) and
renew references where its exposures are worth it. A second one by mistake does no harm: everything it writes replaces
itself or repeats.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import redis
import structlog
from confluent_kafka import KafkaException

from stream.archive import ProductStore, read_manifest
from stream.archive.manifest import iso
from stream.core.errors import Retriable
from stream.core.records import Row
from stream.engine import closing, processes
from stream.engine.access import apply_access
from stream.engine.config import Settings
from stream.engine.heartbeat import Heartbeat
from stream.engine.kafka import OutMessage, Sender, ends_of, make_admin, make_producer, translated
from stream.engine.state import translated as redis_translated
from stream.engine.topics import NIGHT, TopicsFile, ensure_night, load_topics
from stream.monitor import Monitor, latency_report

log = structlog.get_logger(__name__)

BEAT = 30.0  # seconds between heartbeats, as subscribers are told
LOOK = 2.0  # how often new nightly topics are looked for: until then nobody else may read them
WINDOW = 600.0  # seconds over which latency percentiles are taken
# What is done after a night was closed, by a child process: the command, whose --night is that night.
CHORES = {
    "learn": ("calibration", "learn", "--json"),
    "renew": ("reference", "update", "--workers", "1", "--json"),
}
HEARTBEAT, METRICS = "ztf.heartbeat", "ztf.metrics"

Clock = Callable[[], float]


class NightsWorker:
    """Keeps nights in order. ``step`` does what is due; ``run`` calls it until told to stop."""

    def __init__(
        self, settings: Settings, client: redis.Redis, heartbeat: Heartbeat | None = None, clock: Clock = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._heartbeat = heartbeat
        self._file: TopicsFile = load_topics(settings.topics_file)
        self._store = ProductStore(settings.store)
        self._monitor = Monitor(client)
        self._admin = make_admin(settings.as_admin())
        self._sender = Sender(make_producer(settings, "nights"))
        self._known: set[str] = set()  # nightly topics whose rights are given
        self._made: tuple[str, ...] = ()  # nights whose topics are made
        self._beat_at = 0.0
        self._published: dict[str, int] = {}  # ends of the nightly topics at the last beat
        self._last_alert: float | None = None
        self._bases: dict[str, tuple[str, float]] = {}  # night -> basis, since when
        self._closed: dict[str, str] = {}  # night -> basis that was stated
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="closing")
        self._chores: list[tuple[str, str]] = []  # what is to be done after closed nights, and which night
        self.chore: subprocess.Popen[bytes] | None = None  # the one at work
        self._at_work: tuple[str, str, float, Future[tuple[Row, bool]]] | None = None  # night, its basis, since when

    def run(self, stopped: Callable[[], bool]) -> None:
        """Work until told to stop; outside failures are waited out."""
        while not stopped():
            try:
                self.step()
            except (Retriable, KafkaException) as error:  # an administrator's calls raise Kafka's own
                log.warning("retrying", stage="nights", error=str(error))
                time.sleep(2.0)
            time.sleep(LOOK)

    def step(self) -> None:
        """Whatever is due now."""
        now = self._clock()
        wanted = closing.nights_wanted(now)
        if wanted != self._made:
            for night in wanted:
                ensure_night(self._admin, self._file, self._settings.profile, night)
            self._made = wanted
        self._give_rights()
        self._finish_closing()
        self._do_chores()
        if now >= self._beat_at:
            self._beat_at = now + BEAT
            self._beat(now, wanted[0])

    def _nightly(self) -> list[str]:
        with translated("listing topics"):
            names = self._admin.list_topics(timeout=15.0).topics
        return sorted(n for n in names if (spec := self._file.spec_of(n)) is not None and spec.nightly)

    def _give_rights(self) -> None:
        """Rights on nightly topics that have appeared; their names are all that a rule can go by."""
        found = set(self._nightly())
        if found - self._known:
            apply_access(self._settings.as_admin(), self._file)
            self._known = found
            log.info("rights given", topics=len(found))

    def _beat(self, now: float, tonight: str) -> None:
        topics = self._nightly()
        ends = {topic: sum(parts.values()) for topic, parts in ends_of(self._admin, topics).items()}
        waiting = closing.waiting(self._settings.as_admin(), self._file)
        new = sum(ends.values()) - sum(self._published.values()) if self._published else 0
        if new > 0:
            self._last_alert = now
        self._published = ends
        with redis_translated("reading ledgers"):
            report = latency_report(self._monitor.ledgers(now - WINDOW))
        state = closing.heartbeat_state(waiting, new)
        said: dict[str, Any] = {
            "time": iso(now),
            "night": tonight,
            "state": state,
            "next_within": BEAT,
            "waiting": waiting,
            "alerts": {name: ends[name] for name in topics if self._is_public(name) and tonight in name},
            "last_alert": None if self._last_alert is None else iso(self._last_alert),
            "slow": report["slow"],
        }
        self._send(HEARTBEAT, tonight, said)
        self._send(METRICS, tonight, {"time": iso(now), "window": WINDOW, "waiting": waiting, **report})
        self._sender.flush()
        if self._heartbeat is not None:
            self._heartbeat.note(state, done=1)
        self._close_what_is_over(now, ends, sum(waiting.values()))

    def _is_public(self, topic: str) -> bool:
        spec = self._file.spec_of(topic)
        return spec is not None and spec.access == "public"

    def _send(self, topic: str, night: str, said: dict[str, Any]) -> None:
        self._sender.send(OutMessage(topic, night.encode(), json.dumps(said).encode()))

    def _close_what_is_over(self, now: float, ends: dict[str, int], waiting: int) -> None:
        for night in sorted({found.group() for name in ends if (found := NIGHT.search(name))}):
            seen = self._seen(night, now, ends, waiting)
            verdict = closing.decide(seen, now, self._settings.night_quiet_seconds)
            if verdict in ("close", "again") and self._at_work is None:
                # A night's tables take minutes: the heart goes on beating meanwhile.
                future = self._thread.submit(closing.close_night, self._settings, night, now)
                self._at_work = night, seen.basis, now, future

    def _finish_closing(self) -> None:
        """Take note of a night that was closed; a failure of store or broker is tried again at the next beat."""
        if self._at_work is None or not self._at_work[3].done():
            return
        night, basis, when, future = self._at_work
        self._at_work = None
        manifest, new = future.result()
        self._closed[night] = basis
        with redis_translated("remembering a closed night"):
            self._monitor.close(night, when)
        log.info("night closed", new=new, **closing.summary(manifest))
        if new:
            chosen = {"learn": self._settings.learn_camera, "renew": self._settings.renew_references}
            self._chores += [(c, night) for c, on in chosen.items() if on and (c, night) not in self._chores]

    def _do_chores(self) -> None:
        """One at a time; whoever ends in the middle leaves every product as it was or as it will be."""
        if self.chore is not None and (status := self.chore.poll()) is None:
            return
        if self.chore is not None and status:
            log.warning("a chore failed, the next closed night tries again", status=status)
        self.chore = None
        if not self._chores:
            return
        what, night = self._chores.pop(0)
        env = {"ZTF_STORE": self._settings.store, "ZTF_CAMERA": self._settings.camera}
        self.chore = processes.spawn([sys.executable, "-m", "stream.cli", *CHORES[what], "--night", night], env=env)
        log.info("after a closed night", chore=what, night=night)

    def _seen(self, night: str, now: float, ends: dict[str, int], waiting: int) -> closing.NightSeen:
        alerts = sum(end for name, end in ends.items() if night in name)
        with redis_translated("counting quadrants"):
            basis = f"{alerts} alerts, {self._monitor.quadrant_count(night)} quadrants"
        known, since = self._bases.get(night, ("", now))
        if known != basis:
            since = now
            self._bases[night] = basis, since
        if night not in self._closed and read_manifest(self._store, night) is None:
            return closing.NightSeen(night, basis, now - since, waiting)
        # After a restart a night that was closed before is stated again if it has changed, else it is left alone.
        return closing.NightSeen(night, basis, now - since, waiting, self._closed.get(night, ""))
