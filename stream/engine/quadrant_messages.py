"""The pixel worker's function: a message of ``ztf.raw`` to the messages that one quadrant makes.

A quadrant whose headers can be read ends in one quality record on ``ztf.quadrants``; if it has a place on the sky in
one message on ``ztf.candidates`` (more only beyond the topic's size limit); with streaks in one on ``ztf.streaks``;
with fakes in one on ``ztf.fakes``; with a sample of its rejected candidates in one on ``ztf.rejected``; and where the
science failed in a dead letter that can be retried.

``ztf.candidates`` and what follows from it is keyed by readout channel, and the first message of a quadrant carries its
quality record: a channel's exposures come to ``enrich`` in the order in which they were ingested, each with its
coverage, also those that found nothing. So a history does not depend on which of two messages was faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from stream.alert import (
    FakeBatch,
    StreakBatch,
    encode_batch,
    encode_fakes,
    encode_report,
    encode_streaks,
    split_batch,
)
from stream.core.errors import PacketError, Permanent
from stream.core.records import QuadrantResult, Status, Table
from stream.engine import deadletters, ledger
from stream.engine.config import Settings
from stream.engine.kafka import REPORT, OutMessage, RawMessage, encode_headers
from stream.engine.topics import load_topics
from stream.fakes import fake_rows
from stream.quadrants import QuadrantTask, batch_of, rejected_of

# Room for headers and framing within a topic's largest message.
_FRAMING = 65_536
# The steps whose ends the ledger records, and the ledger's names for them.
_PASSED = {"calibrate": "calibrated", "catalogs": "subtracted"}


class QuadrantProcess:
    """Callable for ``PixelWorker`` number ``index`` of this machine: does the quadrant, returns its messages."""

    def __init__(
        self, task: QuadrantTask, settings: Settings, index: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self._task = task
        self._settings = settings
        self._worker = settings.identity("pixels", index)
        self._clock = clock
        spec = load_topics(settings.topics_file).spec_of("ztf.candidates")
        if spec is None:
            raise PacketError("topics.yaml has no ztf.candidates: restore it")
        self._limit = spec.max_message_bytes - _FRAMING

    def __call__(self, message: RawMessage) -> list[OutMessage]:
        """All messages of one quadrant; ``PacketError`` where not even its headers can be read."""
        started = self._clock()
        result = self._task.run(message.value)
        times = {_PASSED[step]: started + at for step, at in result.elapsed.items() if step in _PASSED}
        if "subtracted" not in times:  # no reference, or a failure: the quadrant is done now
            times["subtracted"] = self._clock()
        return [*self._records(message, result, times), *self._letter(message, result)]

    def _records(self, message: RawMessage, result: QuadrantResult, times: Mapping[str, float]) -> list[OutMessage]:
        key, channel = str(result.report.pid).encode(), str(result.report.rcid).encode()
        about: dict[str, str | int | float | None] = {
            "name": result.report.name,
            "rid": result.report.rid,
            "pid": result.report.pid,
        }
        passed = ledger.encode(ledger.in_order({**ledger.read(message.headers), **times}))
        headers = (*encode_headers(about), *passed)
        report = encode_report(result.report)
        out = [OutMessage("ztf.quadrants", key, report, headers)]
        about["version"] = self._task.settings.candid_version
        batch = batch_of(result)
        for part in split_batch(batch, self._limit) if batch.items or result.report.corners else []:
            counted = encode_headers({**about, "chunk": part.chunk, "chunks": part.n_chunks})
            coverage = () if part.chunk else ((REPORT, report),)
            out.append(OutMessage("ztf.candidates", channel, encode_batch(part), (*counted, *coverage, *passed)))
        if result.streaks:
            out.append(OutMessage("ztf.streaks", key, encode_streaks(_streaks(result)), headers))
        if result.fakes is not None:
            out.append(OutMessage("ztf.fakes", key, encode_fakes(_fakes(result, result.fakes)), headers))
        rejected = rejected_of(result, self._settings.rejected_share)
        for part in split_batch(rejected, self._limit) if rejected.items else []:
            counted = encode_headers({**about, "chunk": part.chunk, "chunks": part.n_chunks})
            out.append(OutMessage("ztf.rejected", channel, encode_batch(part), (*counted, *passed)))
        return out

    def _letter(self, message: RawMessage, result: QuadrantResult) -> list[OutMessage]:
        """A dead letter where the science failed; none otherwise."""
        report = result.report
        if report.status is not Status.FAILED:
            return []
        family = PacketError if report.stage == PacketError.stage else Permanent
        error = family(report.reason or "failed without a reason", name=report.name, rid=report.rid)
        letter = deadletters.letter_of_message(
            message, error, worker=self._worker, now=self._clock(), limit=self._settings.deadletter_value_bytes,
            stage=report.stage or "unknown",
        )  # fmt: skip
        return [deadletters.encode(replace(letter, traceback=result.traceback or ""))]


def _fakes(result: QuadrantResult, fakes: Table) -> FakeBatch:
    report = result.report
    return FakeBatch(
        report.name, report.pid, report.field, report.fid, report.rcid, report.programid, report.jd, report.jd_mid,
        report.exptime, fake_rows(fakes),
    )  # fmt: skip


def _streaks(result: QuadrantResult) -> StreakBatch:
    report = result.report
    return StreakBatch(
        report.name, report.pid, report.field, report.fid, report.rcid, report.programid, report.jd, report.jd_mid,
        report.exptime, list(result.streaks),
    )  # fmt: skip
