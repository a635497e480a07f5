"""Messages of the internal topics: records to bare Avro bytes and back.

No container: which schema a topic carries is written in ``topics.yaml``, and both ends are ours. Public topics never
see these. Where others read the internal topics with a schema registry, ``frame_messages`` has every message carry its
schema's identifier (``stream.alert.wire``); both forms are always read, a framed one of an older version too.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import fastavro

from stream.alert.avro import compile_encoder
from stream.alert.packet import plain
from stream.alert.schema import CANDIDATE_FIELDS, EXTENSION_FIELDS, OURS, load_schema, parse
from stream.alert.wire import frame, unframe
from stream.core.errors import MessageError
from stream.core.records import BatchItem, CandidateBatch, QuadrantReport, Row, Status, Streak, Tracklet

_BATCH = "ztf.internal.candidate_batch"
_REPORT = "ztf.internal.quadrant"
_STREAKS = "ztf.internal.streak_batch"
_TRACKLET = "ztf.internal.tracklet"
_FAKES = "ztf.internal.fake_batch"
_CUTOUTS = ("cutout_science", "cutout_template", "cutout_difference")
_BATCH_SCALARS = ("name", "pid", "field", "fid", "rcid", "programid", "jd", "jd_mid", "exptime")


@dataclass(slots=True)
class StreakBatch:
    """The streaks of one quadrant on their way to the classifier.

    ``stamps`` are gzip FITS cutouts of the difference image, one a streak, or empty.
    """

    name: str
    pid: int
    field: int
    fid: int
    rcid: int
    programid: int
    jd: float
    jd_mid: float
    exptime: float
    streaks: list[Streak]
    stamps: list[bytes] = dataclasses.field(default_factory=list)


@dataclass(slots=True)
class FakeBatch:
    """The fakes of one quadrant as rows with the names of ``ztf.internal.fake``."""

    name: str
    pid: int
    field: int
    fid: int
    rcid: int
    programid: int
    jd: float
    jd_mid: float
    exptime: float
    fakes: list[Row]


_BROKEN = (
    EOFError, IndexError, ValueError, OverflowError, struct.error, TypeError, KeyError, MemoryError,
    fastavro.read.SchemaResolutionError,
)  # fmt: skip
_framing = False


def frame_messages(on: bool) -> None:
    """Whether this process writes messages in the Confluent wire format from now on."""
    global _framing
    _framing = on


def _encode(name: str, row: Row) -> bytes:
    data = compile_encoder(OURS, name)(row)
    return frame(name, data) if _framing else data


def _decode(name: str, data: bytes) -> Row:
    """One message; anything wrong with its bytes, leftovers included, is a ``MessageError``."""
    written, data = unframe(name, data)
    schema = load_schema(OURS, name)
    stream = io.BytesIO(data)
    try:
        row = fastavro.schemaless_reader(stream, schema if written is None else parse(written.text), schema)
    except _BROKEN as error:
        raise MessageError(f"{len(data)} bytes are no {name}: {type(error).__name__}: {error}", record=name) from error
    if stream.tell() != len(data):
        raise MessageError(f"{name}: {len(data) - stream.tell()} bytes left over", record=name)
    if not isinstance(row, dict):
        raise MessageError(f"{len(data)} bytes are no {name}", record=name)
    return row


def _full(row: Row, names: tuple[str, ...]) -> Row:
    return {name: plain(row.get(name)) for name in names}


def encode_batch(batch: CandidateBatch) -> bytes:
    """A batch of candidates, at whatever step: fields not known yet are null."""
    items = []
    for item in batch.items:
        row: Row = {
            "candidate": _full(item.candidate, CANDIDATE_FIELDS),
            "extension": _full(item.extension, EXTENSION_FIELDS),
            "object_id": item.object_id,
            "prv_candidates": item.prv_candidates,
            "fp_hists": item.fp_hists,
            "rejected": item.rejected,
        }
        row.update(zip(_CUTOUTS, item.cutouts, strict=True))
        items.append(row)
    scalars = {name: getattr(batch, name) for name in _BATCH_SCALARS}
    return _encode(_BATCH, scalars | {"chunk": batch.chunk, "n_chunks": batch.n_chunks, "items": items})


def decode_batch(data: bytes) -> CandidateBatch:
    """The batch of a message; ``MessageError`` where the bytes are no batch."""
    row = _decode(_BATCH, data)
    items = [
        BatchItem(
            item["candidate"], item["extension"], tuple(item[name] for name in _CUTOUTS),
            item["object_id"], item["prv_candidates"], item["fp_hists"], item["rejected"],
        )
        for item in row.pop("items")
    ]  # fmt: skip
    return CandidateBatch(**row, items=items)


def split_batch(batch: CandidateBatch, max_bytes: int) -> list[CandidateBatch]:
    """The batch as parts whose messages stay below ``max_bytes``, items in order, ``chunk`` and ``n_chunks`` set.

    An item that alone exceeds the limit travels alone: the broker's answer decides, nothing is dropped here.
    """
    empty = len(encode_batch(replace(batch, items=[], chunk=0, n_chunks=0))) + 16  # room for chunk numbers, counts
    groups: list[list[BatchItem]] = [[]]
    used = empty
    for item in batch.items:
        size = len(encode_batch(replace(batch, items=[item]))) - empty + 32
        if groups[-1] and used + size > max_bytes:
            groups.append([])
            used = empty
        groups[-1].append(item)
        used += size
    return [replace(batch, chunk=i, n_chunks=len(groups), items=group) for i, group in enumerate(groups)]


def encode_report(report: QuadrantReport) -> bytes:
    """A quality record, ``seconds`` included."""
    row = {f.name: plain(getattr(report, f.name)) for f in fields(report)}
    row["status"] = str(report.status.value)
    row["corners"] = [float(v) for v in report.corners]
    row["seconds"] = {k: float(v) for k, v in report.seconds.items()}
    return _encode(_REPORT, row)


def decode_report(data: bytes) -> QuadrantReport:
    """The quality record of a message."""
    row = _decode(_REPORT, data)
    try:
        row["status"] = Status(row["status"])
    except ValueError as error:
        raise MessageError(f"unknown status {row['status']!r}", record=_REPORT) from error
    return QuadrantReport(**row)


def encode_streaks(batch: StreakBatch) -> bytes:
    """The streaks of one quadrant."""
    row: Row = {name: getattr(batch, name) for name in _BATCH_SCALARS}
    row["streaks"] = [{f.name: plain(getattr(s, f.name)) for f in fields(s)} for s in batch.streaks]
    row["stamps"] = batch.stamps
    return _encode(_STREAKS, row)


def decode_streaks(data: bytes) -> StreakBatch:
    """The streaks of a message."""
    row = _decode(_STREAKS, data)
    streaks = [Streak(**_nan_for_null(streak)) for streak in row.pop("streaks")]
    return StreakBatch(**row, streaks=streaks)


def encode_fakes(batch: FakeBatch) -> bytes:
    """The fakes of one quadrant."""
    row: Row = {name: getattr(batch, name) for name in _BATCH_SCALARS}
    return _encode(_FAKES, row | {"fakes": [{k: plain(v) for k, v in fake.items()} for fake in batch.fakes]})


def decode_fakes(data: bytes) -> FakeBatch:
    """The fakes of a message."""
    return FakeBatch(**_decode(_FAKES, data))


def encode_tracklet(tracklet: Tracklet) -> bytes:
    """A tracklet."""
    row = {f.name: plain(getattr(tracklet, f.name)) for f in fields(tracklet)}
    row["candids"] = [int(candid) for candid in tracklet.candids]
    return _encode(_TRACKLET, row)


def decode_tracklet(data: bytes) -> Tracklet:
    """The tracklet of a message."""
    row = _nan_for_null(_decode(_TRACKLET, data))
    return Tracklet(**row | {"candids": tuple(row["candids"])})


def _nan_for_null(row: Row) -> Row:
    """Messages say null, records NaN: all nullable fields of streaks and tracklets are numbers."""
    return {name: float("nan") if value is None else value for name, value in row.items()}


Codec = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
CODECS: dict[str, Codec] = {
    "candidate_batch": (encode_batch, decode_batch),
    "quadrant": (encode_report, decode_report),
    "streak_batch": (encode_streaks, decode_streaks),
    "fake_batch": (encode_fakes, decode_fakes),
    "tracklet": (encode_tracklet, decode_tracklet),
}
