"""The alert emitter: every alert reaches each of its topics exactly once, for readers of any isolation level.

One alert goes to several topics (the night's, the permanent one, the one without stamps): each of them is an
``AlertOut`` of its own, and "once" holds for every pair of topic and candid.

Community brokers read with ``read_uncommitted``, so a transaction that is written and then aborted would show them
alerts twice. The emitter is therefore not transactional but idempotent, and asks before it repeats (consumers.md 24):

a. a batch that is marked done in Redis (``pid:chunk:version``) is passed over: the stages before deliver at least
   once. While Redis is emptied and not rebuilt nothing leaves, since nobody knows what is done;
b. after a batch is confirmed by the broker it is marked done, and only then is its input offset committed, with
   the ends of the alert topics at that moment in the commit's metadata;
c. whoever gets a partition reads that metadata, scans the alert topics from there to their ends, and leaves out
   exactly the alerts that are there already. Until it is through with what the partition held then, its commits repeat
   the old ends: should it die as well, its successor must find what the first one sent.

So a kill at any point leaves either nothing, or alerts that the scan of the successor finds. A partition without
any commit gets one ("from here on") before its first alert leaves, so that no scan ever starts at the beginning of
a long topic.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import redis
from confluent_kafka import Consumer, Message, TopicPartition

from stream.core.errors import AlertError, BrokerUnavailable, Permanent, Retriable, StateLost
from stream.core.identity import CANDID_VERSION
from stream.engine import deadletters, ledger, logs, metrics
from stream.engine.config import Settings
from stream.engine.ends import Ends, decode_ends, encode_ends, positions_to_commit
from stream.engine.heartbeat import Heartbeat
from stream.engine.kafka import (
    VERSION,
    OutMessage,
    RawMessage,
    Sender,
    ends_of,
    error_family,
    make_admin,
    make_consumer,
    make_producer,
    raw_message,
    read_to_end,
    translated,
)
from stream.engine.pixel_worker import BACKOFF_FIRST, BACKOFF_LONGEST, Hook, backoff
from stream.engine.state import LOST_BACKOFF, Generation, Marks
from stream.engine.topics import NIGHT, TopicsFile, ensure_night, ensure_topics, load_topics
from stream.engine.watchdog import COMMIT_SECONDS, Leave, Watchdog

SOURCE = "ztf.enriched"
CANDID = "candid"  # header of an alert message
DONE_TTL = 8 * 86_400  # seconds; longer than any input message lives
HEADER_ROOM = 8_192  # bytes that key, headers and framing of one message may take
# A request that a killed predecessor had on the wire may reach the log after we look; loopback needs milliseconds.
SETTLE = 0.5

# Milliseconds. Nobody waits for it: the flush that ends a batch sends at once. Until then alerts gather to requests of
# up to a megabyte, which cost the broker a third less an alert than those of five milliseconds.
LINGER = 50
PAUSE_MARGIN = 2.0  # seconds before the session's end at which a process that stood still must not trust it any more


@dataclass(frozen=True, slots=True)
class AlertOut:
    """One alert packet ready to leave for one topic: an Avro container."""

    topic: str
    key: bytes
    value: bytes
    candid: int
    headers: tuple[tuple[str, bytes], ...] = field(default=())


Published = Callable[[str, Mapping[str, float]], None]  # name of a batch, its ledger
MakeAlerts = Callable[[RawMessage], Sequence[AlertOut]]


def batch_name(message: RawMessage) -> str:
    """``pid:chunk:version`` of a batch from its headers; its place where it has none."""
    pid = message.header("pid")
    if pid is None:
        return f"{message.topic}-{message.partition}-{message.offset}"
    return f"{pid}:{message.header('chunk') or '0'}:{message.header(VERSION) or CANDID_VERSION}"


def emitted(settings: Settings, client: redis.Redis) -> Marks:
    """The marks of batches whose alerts have left."""
    return Marks(client, f"{settings.group_prefix}:emitted", DONE_TTL)


class Emitter:
    """One emitter process.

    Parameters
    ----------
    settings : Settings
        With the broker's address filled in.
    make_alerts : callable
        A message of ``ztf.enriched`` to its alerts, one for each topic they go to; the same ones in the same order
        whenever it is asked.
    client : redis.Redis
        Holds the marks of what is done.
    index : int
        Which emitter of this machine this is.
    batch : int
        Most input messages that are confirmed together.
    published : callable, optional
        Told the name and the ledger of every batch that has left, for the latency figures.
    leave : callable, optional
        Ends the process where the client hangs (``watchdog.leave``).
    hook : callable, optional
        Called with the name of every step (``consumed``, ``sent``, ``flushed``, ``marked``, ``committed``).
    """

    def __init__(
        self,
        settings: Settings,
        make_alerts: MakeAlerts,
        client: redis.Redis,
        *,
        index: int = 0,
        batch: int = 16,
        source: str = SOURCE,
        topics: TopicsFile | None = None,
        heartbeat: Heartbeat | None = None,
        hook: Hook | None = None,
        published: Published | None = None,
        leave: Leave | None = None,
    ) -> None:
        self.settings = settings
        self.make_alerts = make_alerts
        self.name = settings.identity("emit", index)
        self.source = source
        self.batch = batch
        self._marks = emitted(settings, client)
        self._generation = Generation(client)
        self._topics = topics or load_topics(settings.topics_file)
        self._heartbeat = heartbeat
        self._published = published
        self._watchdog = Watchdog(leave)
        self._hook: Hook = hook or (lambda step: None)
        self._log = logs.get_logger()
        self._stopping = False
        self._recent: OrderedDict[str, None] = OrderedDict()  # batches done by this process, should Redis forget
        self._ready: set[str] = set()  # alert topics known to exist
        self._next: dict[int, int] = {}  # assigned partition -> offset after the last finished message
        self._goals: dict[int, int] = {}  # assigned partition -> its end when we got it
        self._bases: dict[int, Ends] = {}  # assigned partition -> ends in its last commit when we got it
        self._fresh: set[int] = set()  # assigned partitions nobody ever committed
        self._scanned: set[tuple[int, str]] = set()  # (assigned partition, alert topic) that are known
        self._looked: set[tuple[str, str]] = set()  # (alert topic, from where) read since the last assignment
        self._left: set[tuple[str, int]] = set()  # (topic, candid) that left before we came
        self._ends: Ends = {}  # ends of the alert topics as far as we know them, oldest use first
        self._assigned_at = 0.0
        self._polled = 0.0
        self._looked_at = 0.0

    def stop(self, *_: object) -> None:
        """Finish the batch at hand, then return from :meth:`run`. May serve as a signal handler."""
        self._stopping = True

    def run(self) -> int:
        """Work until :meth:`stop`; returns how many input messages were dealt with.

        Raises
        ------
        BrokerUnavailable, Fenced
            What has left cannot be known in this process any more: start again, the scan will tell.
        """
        self._sender = Sender(make_producer(self.settings, self.name, linger_ms=LINGER))
        self._sender.on_delivered(self._delivered)
        self._admin = make_admin(self.settings)
        self._consumer = make_consumer(
            self.settings, self.settings.group("emit"), self.name, instance_id=self.name, queued_min_messages=self.batch
        )
        self._consumer.subscribe(
            [self.source], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )
        done = 0
        try:
            while not self._stopping:
                self._note("waiting")
                messages = self._read()
                if messages:
                    done += self._emit(messages)
        finally:
            self._consumer.close()
        return done

    # -- partitions ------------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        if not places:
            return
        with translated("asking for committed offsets"):
            committed = consumer.committed(places, timeout=30.0)
        goals = ends_of(self._admin, [self.source]).get(self.source, {})
        starts = []
        for place in committed:
            if place.error is not None:
                # Not knowing is not the same as "never committed": that would forget what left.
                raise error_family(place.error, "asking for committed offsets")
            known = decode_ends(place.metadata) if place.offset >= 0 else None
            offset = place.offset
            if offset < 0:
                with translated("looking for the first batch"):
                    offset, _ = consumer.get_watermark_offsets(
                        TopicPartition(place.topic, place.partition), timeout=15.0
                    )
                self._fresh.add(place.partition)
            self._next[place.partition] = offset
            self._goals[place.partition] = goals.get(place.partition, offset)
            self._bases[place.partition] = known or {}
            # Older ends than now are valid ends: commits go on naming topics that this process has not used yet.
            self._ends = {**{t: dict(e) for t, e in (known or {}).items() if t not in self._ends}, **self._ends}
            starts.append(TopicPartition(place.topic, place.partition, offset))
        new = {place.partition for place in places}
        self._scanned = {pair for pair in self._scanned if pair[0] not in new}
        self._looked.clear()
        self._assigned_at = time.monotonic()
        consumer.assign(starts)

    def _on_revoke(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        for place in places:
            self._next.pop(place.partition, None)
            self._bases.pop(place.partition, None)
            self._goals.pop(place.partition, None)
            self._fresh.discard(place.partition)
        consumer.unassign()

    def _baseline(self) -> None:
        """Commit the start of partitions that nobody ever committed, with today's ends of the alert topics."""
        if not self._fresh:
            return
        with translated("looking for alert topics"):
            existing = sorted(self._admin.list_topics(timeout=15.0).topics)
        specs = [(topic, self._topics.spec_of(topic)) for topic in existing]
        alerts = [(spec.nightly, topic) for topic, spec in specs if spec is not None and spec.carries_alerts]
        found = ends_of(self._admin, [topic for _, topic in alerts])
        # Should the metadata be too small for all, past nights are forgotten first: permanent topics are long.
        ends = {topic: found[topic] for _, topic in sorted(alerts, key=lambda a: (not a[0], a[1])) if topic in found}
        fresh = sorted(self._fresh & set(self._next))
        # Has to hold before anything leaves: without it a successor would take today's ends for the beginning.
        self._commit({partition: (self._next[partition], ends) for partition in fresh})
        for partition in fresh:
            self._bases[partition] = decode_ends(encode_ends(ends)) or {}
        self._fresh.clear()

    def _scan(self, partition: int, topic: str) -> None:
        """Learn which alerts of ``partition`` are on ``topic`` already, once for each assignment."""
        if (partition, topic) in self._scanned:
            return
        base = self._bases.get(partition, {}).get(topic, {})
        look = topic, json.dumps(base)
        count = 0
        if look not in self._looked:
            time.sleep(max(0.0, self._assigned_at + SETTLE - time.monotonic()))
            # Ends as they are before the scan: what comes during it would be scanned again, never missed.
            found = ends_of(self._admin, [topic]).get(topic, {})
            later = any(end > base.get(number, 0) for number, end in found.items())
            unread = read_to_end(self.settings, {topic: base}, "emit", read_committed=False) if later else ()
            for message in unread:
                text = message.header(CANDID) or (message.key or b"").decode("ascii", "replace")
                if text.isdigit():
                    self._left.add((topic, int(text)))
                    count += 1
            ends = self._ends.setdefault(topic, {})
            for number, high in found.items():
                ends[number] = max(ends.get(number, 0), high)
            self._looked.add(look)
            self._looked_at = time.monotonic()  # reading took its time; that was no standstill
        self._scanned.add((partition, topic))
        if count:
            self._log.info("alerts found that had left already", topic=topic, alerts=count)

    # -- one batch -------------------------------------------------------------------------------------------------

    def _note(self, doing: str, done: int = 0) -> None:
        if self._heartbeat is not None:
            self._heartbeat.note(doing, done=done)

    def _read(self) -> list[RawMessage]:
        messages = []
        self._polled = time.monotonic()
        with translated("reading enriched batches"):
            for message in self._consumer.consume(num_messages=self.batch, timeout=0.1):
                try:
                    messages.append(raw_message(message))
                except Retriable as error:
                    self._log.warning("cannot read", error=str(error))
                    time.sleep(BACKOFF_FIRST)
        # A partition may have been taken away in that very call: its messages are somebody else's now.
        return [message for message in messages if message.partition in self._next]

    def _still_ours(self) -> None:
        """Leave rather than write for partitions that may belong to another emitter by now."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        # The client's heartbeats go on while this thread works; they stop with the process (SIGSTOP, a frozen machine).
        if before > self._polled and now - before > self.settings.session_timeout_ms / 1000.0 - PAUSE_MARGIN:
            raise BrokerUnavailable(f"this process stood still for {now - before:.0f} s: starting again")
        seconds = now - self._polled
        if seconds > self.settings.max_poll_interval_ms / 2000.0:
            raise BrokerUnavailable(f"one batch has been in hand for {seconds:.0f} s: starting again to see what left")

    def _pause(self, seconds: float) -> None:
        """Wait in small steps, so that standing still for the session's length is told from waiting."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stopping:
            time.sleep(min(0.5, max(deadline - time.monotonic(), 0.0)))
            self._still_ours()

    def _emit(self, messages: list[RawMessage]) -> int:
        """Publish what some messages hold and commit them; how many were dealt with."""
        started = time.perf_counter()
        self._hook("consumed")
        self._note(messages[0].header("name") or f"{len(messages)} batches")
        self._baseline()
        names = self._undone(messages)
        ready = [(message, self._made(message)) for message, name in zip(messages, names, strict=True) if name]
        if self._stopping and any(alerts is None for _, alerts in ready):
            return 0
        for message, alerts in ready:
            self._send(message, alerts or ())
        self._sender.flush()
        self._hook("flushed")
        done = [name for name in names if name]
        self._patiently(lambda: self._marks.mark(done))
        for name in done:
            self._recent[name] = None
        while len(self._recent) > 20_000:
            self._recent.popitem(last=False)
        self._hook("marked")
        for message, alerts in ready:
            if alerts:
                self._report(message)
        for message in messages:
            self._next[message.partition] = message.offset + 1
        try:
            self._commit(positions_to_commit(self._next, self._goals, self._bases, self._ends))
        except BrokerUnavailable as error:
            # Most often a rebalance: the next owner scans and finds what left. Nothing is lost or sent twice.
            self._log.warning("offsets not committed", error=str(error))
        self._hook("committed")
        seconds = time.perf_counter() - started
        metrics.WORK.labels("emit").observe(seconds / len(messages))
        metrics.MESSAGES.labels("emit", "done").inc(len(done))
        metrics.MESSAGES.labels("emit", "seen").inc(len(messages) - len(done))
        self._note("waiting", done=len(messages))
        return len(messages)

    def _undone(self, messages: Sequence[RawMessage]) -> list[str]:
        """The name of each message that has to be published, empty for one that was (also earlier in this batch)."""
        names = [batch_name(message) for message in messages]
        marked: set[str] = set()

        def ask() -> None:
            with self._generation.steady():
                marked.update(self._marks.known(names))

        self._patiently(ask)
        fresh = []
        for name in names:
            new = name not in marked and name not in self._recent
            marked.add(name)
            fresh.append(name if new else "")
        return fresh

    def _made(self, message: RawMessage) -> Sequence[AlertOut] | None:
        """A message's alerts; none and a dead letter where it cannot be; ``None`` when told to stop in between."""
        attempt = 0
        while True:
            try:
                with logs.about(message):
                    return self._publishable(self.make_alerts(message))
            except Retriable as error:
                metrics.RETRIES.labels("emit", type(error).__name__).inc()
                self._log.warning("held", error=str(error), attempt=attempt)
                self._pause(backoff(attempt))
                if self._stopping:
                    return None
                attempt += 1
            except Exception as error:  # an emitter never dies of its input; what is no Permanent is a defect
                self._give_up(message, error)
                return ()

    def _publishable(self, alerts: Sequence[AlertOut]) -> Sequence[AlertOut]:
        """The alerts, if every one has a topic of ours and fits into it: found out before any of them leaves."""
        for alert in alerts:
            spec = self._topics.spec_of(alert.topic)
            if spec is None or not spec.carries_alerts:
                raise AlertError(f"{alert.topic} is no alert topic of topics.yaml", candid=alert.candid)
            if len(alert.value) > spec.max_message_bytes - HEADER_ROOM:
                raise AlertError(
                    f"alert {alert.candid} has {len(alert.value)} bytes, {alert.topic} takes {spec.max_message_bytes}",
                    candid=alert.candid,
                    bytes=len(alert.value),
                )
        return alerts

    def _give_up(self, message: RawMessage, error: Exception) -> None:
        letter = deadletters.letter_of_message(
            message, error, worker=self.name, now=time.time(), limit=self.settings.deadletter_value_bytes
        )
        metrics.DEADLETTERS.labels(letter.stage, letter.error).inc()
        log = self._log.warning if isinstance(error, Permanent) else self._log.error
        log("dead letter", id=letter.id, stage=letter.stage, error=letter.error, reason=letter.reason)
        self._sender.send(deadletters.encode(letter))

    def _send(self, message: RawMessage, alerts: Sequence[AlertOut]) -> None:
        times = ledger.read(message.headers)
        self._still_ours()
        for alert in alerts:
            self._ensure(alert.topic)
            self._scan(message.partition, alert.topic)
            if (alert.topic, alert.candid) in self._left:
                metrics.ALERTS_SKIPPED.labels("scan").inc()
                continue
            times["published"] = time.time()
            headers = ((CANDID, str(alert.candid).encode()), *ledger.encode(times), *alert.headers)
            self._sender.send(OutMessage(alert.topic, alert.key, alert.value, headers))
            metrics.ALERTS.labels(alert.topic).inc()
            metrics.observe("published", times)
            self._hook("sent")

    def _report(self, message: RawMessage) -> None:
        """Tell the ledger of a batch that has left; these figures are not worth waiting for Redis."""
        if self._published is not None:
            try:
                self._published(batch_name(message), {**ledger.read(message.headers), "published": time.time()})
            except redis.RedisError as error:
                self._log.warning("latency not noted", error=str(error))

    def _ensure(self, topic: str) -> None:
        if topic in self._ready:
            return
        spec, night = self._topics.spec_of(topic), NIGHT.search(topic)
        if spec is not None and spec.nightly and night is not None:
            ensure_night(self._admin, self._topics, self.settings.profile, night.group())
        else:
            ensure_topics(self._admin, self._topics, self.settings.profile, [topic])
        self._ready.add(topic)

    def _delivered(self, message: Message) -> None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is not None and partition is not None and offset is not None and topic != deadletters.TOPIC:
            ends = self._ends.pop(topic, {})
            ends[partition] = max(ends.get(partition, 0), offset + 1)
            self._ends[topic] = ends  # to the end: most recently used

    def _commit(self, positions: Mapping[int, tuple[int, Ends]]) -> None:
        """Commit input offsets and ends of partitions, idle ones too, so that nobody's scan begins long ago."""
        places = [TopicPartition(self.source, p, at, encode_ends(ends)) for p, (at, ends) in sorted(positions.items())]
        if not places:
            return
        with translated("committing offsets"), self._watchdog.limit("committing offsets", COMMIT_SECONDS):
            for place in self._consumer.commit(offsets=places, asynchronous=False) or ():
                if place.error is not None:
                    raise error_family(place.error, "committing offsets")

    def _patiently(self, call: Callable[[], None]) -> None:
        """Do ``call`` until Redis lets it happen."""
        attempt = 0
        while True:
            try:
                call()
                return
            except Retriable as error:
                if self._stopping:
                    raise
                metrics.RETRIES.labels("emit", type(error).__name__).inc()
                self._log.warning("held", error=str(error), attempt=attempt)
                self._pause(min(backoff(attempt), LOST_BACKOFF if isinstance(error, StateLost) else BACKOFF_LONGEST))
                attempt += 1
