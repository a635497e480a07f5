"""Faust agents: the record stages as stream processors on the aiokafka driver.

One Faust app a stage, so that a stage scales, restarts and lags by itself. The event loop is never blocked: a
stage's ``handle`` runs in its own thread, one message at a time. Delivery is at least once: a message is
acknowledged after everything that follows from it is confirmed by the broker; deterministic identifiers make a
repeat harmless. Faust's own exactly-once mode is known not to work and is not used.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faust
import structlog
from faust.assignor.partition_assignor import PartitionAssignor
from faust.transport.drivers import aiokafka as driver

from stream.core.errors import Retriable, StateLost
from stream.engine import deadletters, ledger, metrics
from stream.engine.config import Settings
from stream.engine.heartbeat import Heartbeat
from stream.engine.kafka import OutMessage, RawMessage
from stream.engine.stages import Stage
from stream.engine.state import LOST_BACKOFF
from stream.engine.watchdog import leave

log = structlog.get_logger(__name__)

# A retriable failure is tried again after 1, 2, 4 ... 30 s for as long as it takes: nothing is lost, and lag shows it.
_LONGEST_BACKOFF = 30.0


class CommittedThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # Faust has no types
    """Faust's consumer thread, reading committed messages only.

    Pixel workers write in transactions, and Faust asks for ``read_committed`` only in its exactly-once mode. The level
    is read when the consumer starts, which is after it is made here.
    """

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        return consumer


class CommittedConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer with that thread, committing past what is no message.

    Faust commits up to the first offset that was not acknowledged, and knows that offsets may be missing (markers of
    transactions, messages of aborted ones) unless they follow offset 0: then it waits for them, and commits nothing of
    that partition any more. A stage handles a partition's messages one after another, so all up to the last
    acknowledged one are done.
    """

    def _new_offset(self, tp: Any) -> int | None:
        acked: list[int] = self._acked[tp]
        if not acked:
            return None
        last = max(acked)
        acked.clear()
        self._acked_index[tp].clear()
        self._gap[tp].chop(0, last + 1)
        return last + 1

    def _new_consumer_thread(self) -> Any:
        return CommittedThread(self, loop=self.loop, beacon=self.beacon)


class WholeAssignor(PartitionAssignor):  # type: ignore[misc]
    """Faust's assignor, which does not settle for a part of the topics.

    A client that learnt the topics while the broker came up, or just before they were made, may lack one. Faust then
    hands out nothing of it until its metadata are five minutes old. Who leaves is started again, and asks anew.
    """

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        topics = {topic for member in member_metadata.values() for topic in member.subscription}
        missing = sorted(topic for topic in topics if not cluster.partitions_for_topic(topic))
        if missing:
            leave(f"handing out partitions: the broker's metadata lack {', '.join(missing)}")
        return super()._perform_assignment(cluster, member_metadata)


def credentials(settings: Settings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """How a Faust app signs in, as ``Settings.kafka`` has the other clients do."""
    context = ssl.create_default_context(cafile=settings.tls_ca or None) if settings.tls else None
    if settings.sasl_username:
        return faust.SASLCredentials(
            username=settings.sasl_username, password=settings.sasl_password.get_secret_value(),
            mechanism=settings.sasl_mechanism, ssl_context=context,
        )  # fmt: skip
    return faust.SSLCredentials(context) if context is not None else None


def make_app(stage: Stage, settings: Settings, index: int = 0, heartbeat: Heartbeat | None = None) -> faust.App:
    """The Faust app of one stage: reads its sources, writes what ``handle`` returns."""
    # Faust wants a folder, which stays empty, and makes one only where its parent is there: on a new machine it is not.
    datadir = settings.data_dir.expanduser() / "faust"
    datadir.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        settings.group(stage.name),
        broker=[f"kafka://{address}" for address in settings.bootstrap.split(",")],
        broker_credentials=credentials(settings),
        store="memory://",
        datadir=str(datadir),
        web_enabled=False,
        topic_disable_leader=True,
        # Static membership: a restarted worker takes its partitions back without waiting for a session to expire.
        consumer_group_instance_id=settings.identity(stage.name, index),
        consumer_auto_offset_reset="earliest",
        PartitionAssignor=WholeAssignor,
        stream_wait_empty=False,
        broker_commit_every=1,
        broker_commit_interval=1.0,
        broker_max_poll_records=16,
        broker_session_timeout=settings.session_timeout_ms / 1000.0,
        broker_heartbeat_interval=2.0,
        consumer_max_fetch_size=17 * 1024 * 1024,
        producer_max_request_size=32 * 1024 * 1024,
        # Stamps are packed already: gzip spends 1.1 ms an alert on them, zstd 0.05. What `link` writes others read too,
        # and not every client knows zstd.
        producer_compression_type="gzip" if stage.name == "link" else "zstd",
    )
    app.transport.Consumer = CommittedConsumer
    raw = {"key_serializer": "raw", "value_serializer": "raw", "internal": False, "allow_empty": True}
    topics = {name: app.topic(name, key_type=bytes, value_type=bytes, **raw) for name in stage.sources}
    outputs: dict[str, Any] = {}
    executor = ThreadPoolExecutor(1, thread_name_prefix=stage.name)

    async def send(out: OutMessage) -> None:
        topic = outputs.setdefault(out.topic, app.topic(out.topic, key_type=bytes, value_type=bytes, **raw))
        confirmed = await topic.send(key=out.key, value=out.value, headers=list(out.headers))
        await confirmed

    for name, topic in topics.items():

        @app.agent(topic, name=f"{stage.name}-{name}")  # type: ignore[untyped-decorator]
        async def run(stream: Any) -> None:
            async for event in stream.events():
                message = _incoming(event)
                if heartbeat is not None:
                    heartbeat.note(message.header("name") or message.topic)
                await _one(stage, message, executor, send, settings)
                if heartbeat is not None:
                    heartbeat.note("waiting", done=1)

    return app


def _incoming(event: Any) -> RawMessage:
    message = event.message
    headers = message.headers or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return RawMessage(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value or b"",
        headers=tuple((str(k), bytes(v or b"")) for k, v in pairs),
        timestamp=message.timestamp or 0.0,
    )


async def _one(stage: Stage, message: RawMessage, executor: Any, send: Any, settings: Settings) -> None:
    """Handle one message to its end: its results confirmed, or its dead letter confirmed."""
    loop = asyncio.get_running_loop()
    where = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
    backoff = 1.0
    while True:
        started = time.perf_counter()
        try:
            results = await loop.run_in_executor(executor, stage.handle, message)
            for out in results:
                await send(out)
        except Retriable as error:
            log.warning("retrying", stage=stage.name, error=str(error), seconds=backoff, **where)
            metrics.RETRIES.labels(stage.name, type(error).__name__).inc()
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LOST_BACKOFF if isinstance(error, StateLost) else _LONGEST_BACKOFF)
            continue
        except Exception as error:  # permanent, or a defect of ours that this input met: the agent must live on
            log.error("dead letter", stage=stage.name, error=str(error), **where)
            letter = deadletters.letter_of_message(
                message, error, worker=stage.name, now=time.time(), limit=settings.deadletter_value_bytes,
                stage=stage.name,
            )  # fmt: skip
            await send(deadletters.encode(letter))
            metrics.DEADLETTERS.labels(stage.name, type(error).__name__).inc()
            metrics.MESSAGES.labels(stage.name, "failed").inc()
        else:
            metrics.WORK.labels(stage.name).observe(time.perf_counter() - started)
            metrics.MESSAGES.labels(stage.name, "ok").inc()
            for out in results:
                metrics.observe(stage.passed, ledger.read(out.headers))
        return


def run_stage(stage: Stage, settings: Settings, heartbeat: Heartbeat, index: int = 0) -> None:
    """Run a stage's app in this process until SIGTERM or SIGINT."""
    from mode import Worker

    app = make_app(stage, settings, index, heartbeat)
    Worker(app, loglevel="WARNING", override_logging=False, daemon=True).execute_from_commandline()
