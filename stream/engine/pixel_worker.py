"""The quadrant worker's engine: consume, process, produce, in one Kafka transaction with the offset.

What one message made and the fact that it is dealt with become visible together or not at all; a worker killed at
any point repeats at most the quadrant it was at, and the repetition's messages are the same (identifiers follow from
the data). The science comes from outside as a function, so that this module knows nothing of pixels.

A message ends in one of four ways: its results are committed; or it steps aside for newer ones, see
:mod:`stream.engine.lanes`; or it is given up and a dead letter is committed in their place; or a service failed, and
it is held, other partitions paused, until the service is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from confluent_kafka import Consumer, KafkaException, TopicPartition

from stream.core.errors import BrokerUnavailable, MessageError, Permanent, Retriable, StateUnavailable
from stream.engine import deadletters, ledger, logs, metrics
from stream.engine.config import Settings
from stream.engine.heartbeat import Heartbeat
from stream.engine.kafka import (
    Fenced,
    OutMessage,
    RawMessage,
    Sender,
    error_family,
    make_consumer,
    make_producer,
    raw_message,
    translated,
)
from stream.engine.lanes import Lanes
from stream.engine.state import Attempts
from stream.engine.watchdog import Leave, Watchdog

Process = Callable[[RawMessage], Sequence[OutMessage]]
Hook = Callable[[str], None]

# First and longest pause of a retry, seconds: a hiccup costs half a second, an outage one try every half minute.
BACKOFF_FIRST, BACKOFF_LONGEST = 0.5, 30.0
# A message whose processing killed the process this many times is given up. Once may be an operator or the
# machine; five times is the message.
MAX_DEATHS = 5
_API_TIMEOUT = 20.0
# Milliseconds as a rule. A client that hangs here (stream.engine.watchdog) keeps a quadrant waiting; one that leaves
# because the broker is away costs three seconds of processor time.
_OFFSETS_TIMEOUT = 10.0
_GLANCE = 0.05  # seconds
_LOOKS = 4  # of half a second


class CrashError(Permanent):
    """A message on which the worker's process died again and again."""

    stage = "crash"


def backoff(attempt: int) -> float:
    """Pause in seconds before try number ``attempt`` + 1 (the first failure is attempt 0)."""
    return float(min(BACKOFF_FIRST * 2.0 ** min(attempt, 16), BACKOFF_LONGEST))


class Lost(Exception):
    """The message's partition went to another worker, which will deal with it: drop what we have."""


class PixelWorker:
    """One worker process: reads one topic, one message at a time.

    Parameters
    ----------
    settings : Settings
        With the broker's address filled in.
    process : callable
        ``RawMessage`` to the messages that come of it. It also writes store products, deterministic names and bytes,
        before it returns. Raises ``Permanent`` for an input that will never work and ``Retriable`` for a service
        that failed; anything else it raises is a defect and makes a dead letter too.
    index : int
        Which worker of this machine this is: 0, 1, ... The identity made of it must not be used twice at a time.
    lanes : Lanes, optional
        The backlog for quadrants that newer ones overtake; without it everything is done in its order.
    source, role : str
        Topic that is read, and the name of the consumer group and in logs.
    attempts : Attempts, optional
        Counts beginnings in Redis, so that an input that kills the process is given up in the end.
    heartbeat : Heartbeat, optional
        Is told what the worker is at.
    leave : callable, optional
        Ends the process where the client hangs (``watchdog.leave``).
    hook : callable, optional
        Called with the name of every step (``consumed``, ``processed``, ``begun``, ``produced``, ``offsets``,
        ``committed``); the fault tests kill the process there.
    """

    def __init__(
        self,
        settings: Settings,
        process: Process,
        *,
        index: int = 0,
        source: str = "ztf.raw",
        role: str = "pixels",
        lanes: Lanes | None = None,
        attempts: Attempts | None = None,
        heartbeat: Heartbeat | None = None,
        leave: Leave | None = None,
        hook: Hook | None = None,
    ) -> None:
        self.settings = settings
        self._watchdog = Watchdog(leave)
        self.process = process
        self.source = source
        self.role = role
        self.name = settings.identity(role, index)
        self._attempts = attempts
        self._heartbeat = heartbeat
        self._hook: Hook = hook or (lambda step: None)
        self._log = logs.get_logger()
        self._stopping = False
        self._lanes = lanes if lanes is not None and lanes.usable else None
        self._draining = False  # whether the backlog is being read: its partitions are paused otherwise
        self._lost: set[tuple[str, int]] = set()
        self._holding = False
        self._glancing = False  # whether the message before came from the backlog
        self._looks = 0  # how often the other lane was looked into in vain since then

    def stop(self, *_: object) -> None:
        """Finish the message at hand, then return from :meth:`run`. May serve as a signal handler."""
        self._stopping = True

    def run(self) -> int:
        """Work until :meth:`stop`; returns how many messages were dealt with.

        Raises
        ------
        Fenced
            Another process works under this identity, or the client is beyond repair: leave and start again.
        """
        producer = make_producer(self.settings, self.name, transactional_id=self.name)
        # Before anything is read: aborts what a killed predecessor left open, whose offset may be in it.
        self._patiently(lambda: producer.init_transactions(_API_TIMEOUT), "taking over the transactional id")
        self._producer, self._sender = producer, Sender(producer)
        self._consumer = self._subscribe()
        self._log.info("ready", processor_seconds=round(time.process_time(), 2))
        done = 0
        try:
            while not self._stopping:
                self._note("waiting")
                message = self._next()
                if message is None:
                    continue
                with logs.about(message):
                    done += self._handle(message)
        finally:
            self._consumer.close()
            with suppress(KafkaException):  # of a client that is beyond repair: what it says is known already
                producer.flush(1.0)
        return done

    def _subscribe(self) -> Consumer:
        consumer = make_consumer(
            self.settings,
            self.settings.group(self.role),
            self.name,
            instance_id=self.name,
            # One message a poll is worked on for a second or more: little is read ahead of it.
            queued_max_messages_kbytes=49_152,
            queued_min_messages=1,
        )
        topics = [self.source, self._lanes.topic] if self._lanes is not None else [self.source]
        consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)
        return consumer

    def _on_assign(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        consumer.assign(places)
        self._log.info("assigned", partitions=len(places))
        # A partition that was paused when it was taken away is paused when it comes back, for ever, unless it is told:
        # a hold that ends between the two has nothing assigned to resume.
        paused = [p for p in places if self._holding or (self._is_backlog(p.topic) and not self._draining)]
        for change, some in ((consumer.pause, paused), (consumer.resume, [p for p in places if p not in paused])):
            if some:
                change(some)

    def _on_revoke(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        self._lost.update((place.topic, place.partition) for place in places)
        consumer.unassign()

    def _note(self, doing: str, done: int = 0) -> None:
        if self._heartbeat is not None:
            self._heartbeat.note(doing, done=done)

    def _next(self) -> RawMessage | None:
        self._lost.clear()
        # Between two quadrants of the backlog a short look for new ones is enough: they are fetched meanwhile.
        message = self._consumer.poll(_GLANCE if self._glancing else 0.5)
        if message is None:
            if self._lanes is not None and not self._draining:
                # The lane of the new ones seems empty. A client that is slow is given two more seconds; no more than
                # that: a marker at the end of the lane, which no client is shown, would look like a quadrant for ever.
                if self._looks < _LOOKS and not self._lane_empty(self._lanes):
                    self._looks, self._glancing = self._looks + 1, False
                else:
                    self._looks = 0
                    self._drain(True)
            return None
        self._looks = 0
        if message.error() is None and self._is_backlog(message.topic() or ""):
            if not self._draining:  # fetched before the pause took hold: give it back
                self._consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
                return None
            self._glancing = True
            self._drain(False)
        elif self._draining or self._glancing:
            self._glancing = False
            self._drain(False)
        try:
            return raw_message(message)
        except Fenced:
            raise
        except (Retriable, MessageError) as error:
            self._log.warning("cannot read", error=str(error))
            time.sleep(BACKOFF_FIRST)
            return None

    def _is_backlog(self, topic: str) -> bool:
        return self._lanes is not None and topic == self._lanes.topic

    def _lane_empty(self, lanes: Lanes) -> bool:
        mine = self._consumer.assignment()
        places = [TopicPartition(place.topic, place.partition) for place in mine if place.topic == self.source]
        try:
            return lanes.empty(places)
        except BrokerUnavailable:
            return True

    def _drain(self, now: bool) -> None:
        """Read the backlog, or leave it alone."""
        self._draining = now
        places = [place for place in self._consumer.assignment() if self._is_backlog(place.topic)]
        if places:
            with translated("changing lanes"):
                (self._consumer.resume if now else self._consumer.pause)(places)

    def _aside(self, message: RawMessage) -> OutMessage | None:
        """The message as it steps aside for newer ones, ``None`` if it does not."""
        if self._lanes is None or message.topic != self.source:
            return None
        # What the last fetch said: no question to the broker.
        place = TopicPartition(message.topic, message.partition)
        _, high = self._consumer.get_watermark_offsets(place, cached=True)
        try:
            return self._lanes.aside(message, high - message.offset - 1, time.time())
        except BrokerUnavailable as error:
            self._log.warning("backlog unknown", error=str(error))
            return None

    def _handle(self, message: RawMessage) -> int:
        """Bring one message to its end; 1 if it came to one here, 0 if another worker has it now."""
        started = time.perf_counter()
        self._hook("consumed")
        self._note(message.header("name") or f"{message.topic}-{message.partition}-{message.offset}")
        try:
            moved = self._aside(message)
            outs, outcome = self._results(message) if moved is None else ((moved,), "moved")
            self._hook("processed")
            outcome = self._commit(message, outs, outcome)
        except Lost:
            self._log.info("partition went to another worker")
            metrics.MESSAGES.labels(self.role, "lost").inc()
            return 0
        if outcome == "stopped":
            return 0
        if outcome == "deadletter":  # one that killed is counted until its letter is safe
            self._forget(message)
        seconds = time.perf_counter() - started
        metrics.WORK.labels(self.role).observe(seconds)
        metrics.MESSAGES.labels(self.role, outcome).inc()
        metrics.observe("arrived", ledger.read(message.headers))
        self._note("waiting", done=1)
        self._log.info("done", outcome=outcome, seconds=round(seconds, 3), messages=len(outs))
        return 1

    def _results(self, message: RawMessage) -> tuple[Sequence[OutMessage], str]:
        """What the message makes: its results, or a dead letter; tried again as long as a service fails."""
        attempt = 0
        while True:
            try:
                self._count(message)
            except CrashError as error:
                return (self._letter(message, error),), "deadletter"
            try:
                return self.process(message), "done"
            except Retriable as error:
                metrics.RETRIES.labels(self.role, type(error).__name__).inc()
                self._log.warning("held", error=str(error), attempt=attempt)
                self._hold(message, backoff(attempt))
                if self._stopping:
                    return (), "stopped"
                attempt += 1
            except Exception as error:  # a worker never dies of its input; what is no Permanent is a defect
                return (self._letter(message, error),), "deadletter"
            finally:
                self._forget(message)  # the process lives: neither a failing store nor what follows is a death

    def _letter(self, message: RawMessage, error: Exception) -> OutMessage:
        letter = deadletters.letter_of_message(
            message, error, worker=self.name, now=time.time(), limit=self.settings.deadletter_value_bytes
        )
        metrics.DEADLETTERS.labels(letter.stage, letter.error).inc()
        log = self._log.warning if isinstance(error, Permanent) else self._log.error
        log("dead letter", id=letter.id, stage=letter.stage, error=letter.error, reason=letter.reason)
        return deadletters.encode(letter)

    def _count(self, message: RawMessage) -> None:
        if self._attempts is None:
            return
        name = f"{message.topic}-{message.partition}-{message.offset}"
        try:
            deaths = self._attempts.begin(name) - 1
        except StateUnavailable as error:
            self._log.warning("attempts are not counted", error=str(error))
            return
        if deaths >= MAX_DEATHS:
            raise CrashError(f"the worker's process died {deaths} times on this message", deaths=deaths)

    def _forget(self, message: RawMessage) -> None:
        if self._attempts is not None:
            try:
                self._attempts.done(f"{message.topic}-{message.partition}-{message.offset}")
            except StateUnavailable as error:
                self._log.warning("attempts are not cleared", error=str(error))

    def _commit(self, message: RawMessage, outs: Sequence[OutMessage], outcome: str) -> str:
        """Results and offset in one transaction, tried until it holds; returns the outcome."""
        attempt = 0
        while outcome != "stopped":
            try:
                self._transaction(message, outs)
                return outcome
            except MessageError as error:  # a result that no broker takes: give the input up instead
                self._abort()
                if outcome == "deadletter":
                    raise
                outs, outcome = (self._letter(message, error),), "deadletter"
            except BrokerUnavailable as error:
                metrics.RETRIES.labels(self.role, type(error).__name__).inc()
                self._log.warning("transaction put back", error=str(error), attempt=attempt)
                self._abort()
                self._hold(message, backoff(attempt))
                if self._stopping:
                    return "stopped"
                attempt += 1
        return outcome

    def _transaction(self, message: RawMessage, outs: Sequence[OutMessage]) -> None:
        with translated("committing a transaction"):
            self._producer.begin_transaction()
            self._hook("begun")
            for out in outs:
                self._sender.send(out)
            self._sender.flush(self.settings.transaction_timeout_ms / 1000.0)
            self._hook("produced")
            offset = TopicPartition(message.topic, message.partition, message.offset + 1)
            with self._watchdog.limit("sending offsets to a transaction", _OFFSETS_TIMEOUT):
                group = self._consumer.consumer_group_metadata()
                self._producer.send_offsets_to_transaction([offset], group, _OFFSETS_TIMEOUT)
            self._hook("offsets")
            with self._watchdog.limit("committing a transaction", _API_TIMEOUT):
                self._producer.commit_transaction(_API_TIMEOUT)
        self._hook("committed")

    def _abort(self) -> None:
        """Make the open transaction void. The client's own verdict counts: what is fatal is not tried again."""
        try:
            with self._watchdog.limit("aborting a transaction", _API_TIMEOUT):
                self._producer.abort_transaction(_API_TIMEOUT)
        except KafkaException as error:
            family = error_family(error.args[0], "aborting a transaction")
            # The broker times the transaction out; a new client under the same id makes sure of it.
            raise Fenced(str(family)) from error
        finally:
            self._sender.forget()

    def _hold(self, message: RawMessage, seconds: float) -> None:
        """Wait with a message in hand and stay a member of the group.

        Raises
        ------
        Lost
            Its partition was taken away meanwhile.
        """
        consumer = self._consumer
        deadline = time.monotonic() + seconds
        self._holding = True
        self._note(f"held: {message.header('name') or message.offset}")
        try:
            consumer.pause(consumer.assignment())
            while time.monotonic() < deadline and not self._stopping:
                strayed = consumer.poll(0.2)
                if strayed is None:
                    continue
                error = strayed.error()
                if error is None:  # fetched before the pause took hold: give it back
                    consumer.seek(TopicPartition(strayed.topic(), strayed.partition(), strayed.offset()))
                elif isinstance(family := error_family(error, "holding a message"), Fenced):
                    raise family
            consumer.resume([p for p in consumer.assignment() if self._draining or not self._is_backlog(p.topic)])
        except KafkaException as error:
            raise error_family(error.args[0], "holding a message") from error
        finally:
            self._holding = False
        if (message.topic, message.partition) in self._lost:
            raise Lost

    def _patiently(self, call: Callable[[], None], doing: str) -> None:
        """Do ``call`` until the broker lets it happen."""
        attempt = 0
        while True:
            try:
                with translated(doing):
                    call()
                return
            except BrokerUnavailable as error:
                if self._stopping:
                    raise
                self._log.warning("broker does not answer", error=str(error), attempt=attempt)
                time.sleep(backoff(attempt))
                attempt += 1
