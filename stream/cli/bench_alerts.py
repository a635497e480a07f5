"""``bench alerts``: what writing and publishing alerts costs, as whole processes against a real broker."""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream.core.errors import UsageError
from stream.engine.config import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stream.core.records import CandidateBatch
    from stream.engine.kafka import Sender

_BATCH = 200  # different alerts; the rest are these again
# Alerts of each writer that do not count, where the broker is our own and new: its virtual machine compiles what runs
# for the first time, which costs three times as much.
_WARMING = 3000
_FLUSH = 400  # alerts that are confirmed together, as the emitter confirms what a few quadrants gave


def published(number: int, processes: int, every_topic: bool) -> dict[str, Any]:
    """Write and publish ``number`` alerts by ``processes`` processes at once; the figures."""
    with _broker() as (settings, pid):
        from stream.alert.synthetic import synthetic_batch
        from stream.core.identity import alert_topic_of
        from stream.engine.alert_messages import LIGHT, PERMANENT
        from stream.engine.kafka import make_admin
        from stream.engine.topics import ensure_topics, load_topics

        topics = alert_topic_of(synthetic_batch(0).jd, 1), PERMANENT[1], LIGHT[1]
        ensure_topics(make_admin(settings), load_topics(settings.topics_file), settings.profile, topics)
        context = multiprocessing.get_context("spawn")
        gate = context.Barrier(processes + 1)
        results = context.Queue()
        share = -(-number // processes)
        warming = 0 if pid is None else _WARMING
        arguments = [(settings.environment(), warming, share, every_topic, gate, results) for _ in range(processes)]
        workers = [context.Process(target=_write, args=args) for args in arguments]
        for worker in workers:
            worker.start()
        gate.wait()
        before, started = _cpu_of(pid), time.perf_counter()
        done = [_result(results, workers) for _ in workers]
        seconds = time.perf_counter() - started
        broker = _cpu_of(pid) - before
        for worker in workers:
            worker.join()
    return _figures(share * processes, seconds, done, broker)


def _result(results: Any, workers: Sequence[BaseProcess]) -> Any:
    """What the next writer reports; a writer that died is an error, not a wait without end."""
    while True:
        try:
            return results.get(timeout=1.0)
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                raise UsageError("a writer failed: its message is above") from None


@contextmanager
def _broker() -> Iterator[tuple[Settings, int | None]]:
    """Settings for a broker, and its process where it is ours."""
    from stream.engine.config import load_settings
    from stream.engine.embedded_kafka import EmbeddedKafka

    if os.environ.get("ZTF_BOOTSTRAP"):
        yield load_settings(), None
        return
    with tempfile.TemporaryDirectory(prefix="ztf-bench-") as folder:
        broker = EmbeddedKafka(Path(folder))
        broker.start()
        try:
            yield broker.signed_in(load_settings(environ={})).as_admin(), broker.pid
        finally:
            broker.stop()


def _cpu_of(pid: int | None) -> float:
    """User and system seconds of a process so far; 0 where that is not known."""
    if pid is None:
        return 0.0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:  # not Linux
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _write(environment: dict[str, str], warming: int, number: int, every_topic: bool, gate: Any, results: Any) -> None:
    """One writer process: stamps from their pixels, packets, and the broker's word that it has them."""
    os.environ.update(environment)
    from stream.alert import decode_stamp
    from stream.alert.synthetic import synthetic_batch
    from stream.engine.config import load_settings
    from stream.engine.emit import LINGER
    from stream.engine.kafka import Sender, make_producer

    batch = synthetic_batch(_BATCH)
    pixels = [[decode_stamp(cutout) for cutout in item.cutouts] for item in batch.items]
    sender = Sender(make_producer(load_settings(), f"bench-{os.getpid()}", linger_ms=LINGER))
    _publish(sender, batch, pixels, warming, every_topic)
    gate.wait()
    results.put(_publish(sender, batch, pixels, number, every_topic))


def _publish(
    sender: Sender, batch: CandidateBatch, pixels: Sequence[Sequence[NDArray[np.float32]]], number: int,
    every_topic: bool,
) -> tuple[int, dict[str, float]]:  # fmt: skip
    """Alerts from the pixels of their stamps to the broker's word that it has them: bytes, processor time by step."""
    from stream.alert import LEDGER, checked_packet, encode_stamp, packet_pair
    from stream.core.identity import alert_topic_of
    from stream.engine.alert_messages import LIGHT, PERMANENT
    from stream.engine.kafka import OutMessage

    topic = alert_topic_of(batch.jd, batch.programid)
    times = dict.fromkeys(LEDGER, 1.6e9)
    spent = dict.fromkeys(("stamps", "packets", "publishing"), 0.0)
    size, now = 0, time.process_time()
    for i in range(number):
        item = batch.items[i % _BATCH]
        science, template, difference = (encode_stamp(stamp) for stamp in pixels[i % _BATCH])
        item.cutouts = science, template, difference
        stamped = time.process_time()
        record = checked_packet(item, batch, times)
        packet, light = packet_pair(record)
        written = time.process_time()
        key = str(record["candid"]).encode()
        sender.send(OutMessage(topic, key, packet, ()))
        if every_topic:
            sender.send(OutMessage(PERMANENT[1], key, packet, ()))
            sender.send(OutMessage(LIGHT[1], record["objectId"].encode(), light, ()))
        if i % _FLUSH == _FLUSH - 1:
            sender.flush()
        size += len(packet)
        end = time.process_time()
        spent["stamps"] += stamped - now
        spent["packets"] += written - stamped
        spent["publishing"] += end - written
        now = end
    sender.flush()
    spent["publishing"] += time.process_time() - now
    return size, spent


def _figures(number: int, seconds: float, done: list[tuple[int, dict[str, float]]], broker: float) -> dict[str, Any]:
    steps = {step: sum(spent[step] for _, spent in done) for step in done[0][1]} | {"broker": broker}
    micro = {step: round(value / number * 1e6) for step, value in steps.items()}
    total = sum(steps.values())
    return {
        "alerts": number,
        "processes": len(done),
        "cores": os.cpu_count(),
        "seconds": round(seconds, 2),
        "per_minute": round(number / seconds * 60),
        "cpu_us_per_alert": round(total / number * 1e6),
        "cpu_us": micro,
        "per_minute_two_cores": round(2 * 60 * number / total),
        "bytes_per_alert": sum(size for size, _ in done) // number,
        "survey_per_minute": 80_000,
    }
