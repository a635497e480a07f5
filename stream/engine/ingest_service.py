"""Ingest: CCD packets onto ``ztf.raw``, one message a quadrant, each packet once.

A packet that went through is remembered in Redis by name and content, after the broker has confirmed all of it; a
crash before that sends it again, and identifiers that follow from the data make the repetition harmless downstream.
What cannot be used becomes a dead letter, the rest of the packet goes on.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import TopicPartition

from stream.alert import encode_report
from stream.core.camera import Camera, camera_named
from stream.core.errors import PacketError, Retriable
from stream.core.records import Exposure, Quadrant, failed_report
from stream.engine import deadletters, ledger, logs, metrics
from stream.engine.config import Settings
from stream.engine.kafka import OutMessage, Sender, encode_headers, make_consumer, make_producer, translated, watermarks
from stream.engine.pixel_worker import backoff
from stream.engine.state import Marks
from stream.ingest import Packet, QuadrantPayload, parse_packet, watch_folder
from stream.ingest.packet import MAX_PACKET_BYTES

TOPIC = "ztf.raw"
SEEN_TTL = 40 * 86_400  # seconds; a packet that comes again after that is another night's mistake
POLL_SECONDS, SETTLE_SECONDS = 0.5, 1.0  # how often a watched folder is looked at; how long a file must be quiet

Parse = Callable[[bytes, str, Camera], Packet]


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What became of one file: ``sent``, ``partial`` (some quadrants failed), ``failed`` (all of it) or ``seen``."""

    path: str
    outcome: str
    quadrants: int
    failures: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def partition_of(rcid: int, partitions: int) -> int:
    """Where a readout channel's quadrants go: always the same partition, neighbours of a CCD far apart.

    Consumers get partitions in blocks, so the four quadrants of a CCD, which arrive together, go to different workers.
    """
    return (16 * (rcid % 4) + rcid // 4) % partitions


def quadrant_message(item: QuadrantPayload, partitions: int, arrived: float) -> OutMessage:
    """One quadrant as a message: keyed by and put where its readout channel belongs."""
    quadrant = item.quadrant
    exposure = quadrant.exposure
    headers = encode_headers(
        {
            "name": quadrant.name,
            "imgtype": exposure.imgtype,
            "rid": quadrant.rid,
            "pid": quadrant.pid,
            "rcid": quadrant.rcid,
            "programid": exposure.programid,
            "sha256": item.sha256,
        }
    )
    # OBSJD is the shutter's opening; jd_mid lies half an opening later, so the closing is as far beyond it.
    closed = ledger.unix_of_jd(2.0 * exposure.jd_mid - exposure.jd)
    times = ledger.encode({"shutter_closed": closed, "arrived": arrived})
    key = str(quadrant.rcid).encode()
    return OutMessage(TOPIC, key, item.payload, (*headers, *times), partition_of(quadrant.rcid, partitions))


class Ingestor:
    """Puts packets onto Kafka.

    Parameters
    ----------
    settings : Settings
        With the broker's address filled in; ``raw_backlog`` says when to wait for the workers.
    client : redis.Redis
        Remembers what was sent.
    again : bool
        Send also what was sent before.
    parse : callable
        Takes a packet apart; the ingest room's by default.
    waiting : callable, optional
        Told how many quadrants wait when ingest has to wait for the workers.
    """

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        *,
        again: bool = False,
        parse: Parse = parse_packet,
        clock: Callable[[], float] = time.time,
        waiting: Callable[[int], None] | None = None,
    ) -> None:
        self.settings = settings
        self.again = again
        self.stopping = threading.Event()
        self._parse = parse
        self._clock = clock
        self._waiting = waiting
        self._camera = camera_named(settings.camera)
        self._marks = Marks(client, f"{settings.group_prefix}:ingested", SEEN_TTL)
        self._log = logs.get_logger()
        self._sender = Sender(make_producer(settings, "ingest"))
        # Never subscribes: only asks how far the workers' group has come.
        self._workers = make_consumer(settings, settings.group("pixels"), "ingest-lag")
        self._partitions = len(watermarks(self._workers, TOPIC))

    def close(self) -> None:
        """Confirm what is on its way and leave."""
        self._sender.flush()
        self._workers.close()

    def files(self, paths: Iterable[Path]) -> Iterator[FileOutcome]:
        """Ingest files in their order."""
        for path in paths:
            if self.stopping.is_set():
                return
            yield self.file(path)

    def watch(self, folder: Path) -> Iterator[FileOutcome]:
        """Ingest what is in a folder and what comes into it, until ``stopping`` is set."""
        yield from self.files(watch_folder(folder, POLL_SECONDS, SETTLE_SECONDS, self.stopping))

    def file(self, path: Path) -> FileOutcome:
        """Ingest one file; a service that fails is waited for.

        Raises
        ------
        Retriable
            A service failed and ``stopping`` is set.
        """
        attempt = 0
        while True:
            try:
                return self._file(path)
            except Retriable as error:
                if self.stopping.is_set():
                    raise
                metrics.RETRIES.labels("ingest", type(error).__name__).inc()
                self._log.warning("held", file=path.name, error=str(error), attempt=attempt)
                self.stopping.wait(backoff(attempt))
                attempt += 1

    def _file(self, path: Path) -> FileOutcome:
        started = time.perf_counter()
        arrived = self._clock()
        failures: list[PacketError] = []
        sent = 0
        sha256 = ""
        exposure = None
        try:
            data = self._read(path)
            sha256 = hashlib.sha256(data).hexdigest()
            mark = f"{path.name}:{sha256}"
            if not self.again and self._marks.get(mark) is not None:
                return self._outcome(path, "seen", 0, [], started)
            packet = self._parse(data, path.name, self._camera)
            failures.extend(packet.failures)
            exposure = packet.exposure
            messages = [quadrant_message(item, self._partitions, arrived) for item in packet.quadrants]
            self._wait_for_workers(messages)
            for message in messages:
                self._sender.send(message)
            sent = len(messages)
        except PacketError as error:
            failures.append(error)
            mark = f"{path.name}:{sha256}"
        for number, failure in enumerate(failures):
            self._give_up(path, sha256, failure, number)
            if exposure is not None:
                self._record(exposure, failure, arrived)
        self._sender.flush()
        outcome = "sent" if not failures else "partial" if sent else "failed"
        if sha256:
            self._marks.mark([mark], outcome)
        return self._outcome(path, outcome, sent, failures, started)

    def _read(self, path: Path) -> bytes:
        try:
            if path.stat().st_size > MAX_PACKET_BYTES:
                raise PacketError(f"{path.name}: {path.stat().st_size} bytes is no CCD packet", file=path.name)
            return path.read_bytes()
        except OSError as error:
            raise PacketError(f"{path.name}: cannot be read ({error.strerror})", file=path.name) from error

    def _give_up(self, path: Path, sha256: str, failure: PacketError, number: int) -> None:
        letter = deadletters.letter_of_file(
            path.name, str(path), sha256, failure, worker="ingest", now=self._clock(), number=number
        )
        metrics.DEADLETTERS.labels(letter.stage, letter.error).inc()
        self._log.warning("dead letter", id=letter.id, file=path.name, reason=letter.reason)
        self._sender.send(deadletters.encode(letter))

    def _record(self, exposure: Exposure, failure: PacketError, arrived: float) -> None:
        """The quality record of a quadrant that went no farther than here, so that nobody waits for it."""
        qid = failure.context.get("qid")
        if exposure.imgtype != "object" or qid not in (1, 2, 3, 4):
            return
        report = failed_report(Quadrant(exposure, int(qid)), failure)
        about = encode_headers({"name": report.name, "rid": report.rid, "pid": report.pid})
        times = ledger.encode({"arrived": arrived})
        self._sender.send(
            OutMessage("ztf.quadrants", str(report.pid).encode(), encode_report(report), (*about, *times))
        )

    def _outcome(self, path: Path, outcome: str, sent: int, failures: list[PacketError], started: float) -> FileOutcome:
        metrics.FILES.labels(outcome).inc()
        seconds = round(time.perf_counter() - started, 3)
        return FileOutcome(str(path), outcome, sent, tuple(str(failure) for failure in failures), seconds)

    def _wait_for_workers(self, messages: list[OutMessage]) -> None:
        """Hold back while a partition that these messages go to has too much unprocessed in it."""
        if not self.settings.raw_backlog:
            return
        targets = sorted({message.partition for message in messages})
        told = False
        while not self.stopping.is_set():
            waiting = self._outstanding(targets)
            metrics.BACKLOG.set(waiting)
            if waiting < self.settings.raw_backlog:
                return
            if not told:
                self._log.info("waiting for the quadrant workers", quadrants_in_a_channel=waiting)
                told = True
            if self._waiting is not None:
                self._waiting(waiting)
            self._sender.producer.poll(0)
            self.stopping.wait(1.0)

    def _outstanding(self, partitions: list[int]) -> int:
        """Most messages that one of these partitions holds and the workers have not committed."""
        places = [TopicPartition(TOPIC, partition) for partition in partitions]
        most = 0
        with translated("asking how far the workers are"):
            for place in self._workers.committed(places, timeout=15.0):
                low, high = self._workers.get_watermark_offsets(place, timeout=15.0)
                done = place.offset if place.offset >= 0 else low
                most = max(most, high - done)
        return most
