"""The alert packet: an Avro object container with one record in one block, codec null.

The header, schema text and sync marker included, is the same bytes in every packet: boom decodes from a remembered
offset, and a shard of the archive is one header followed by the blocks of its packets. What is written must pass
``stream.alert.rules``; what is read may be any packet the survey ever sent.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import operator
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import fastavro
import numpy as np

from stream.alert.avro import compile_encoder, zigzag
from stream.alert.rules import FORCED_FIELDS, HISTORY_RADIUS, offset_arcsec, packet_problems
from stream.alert.schema import (
    CANDIDATE_FIELDS,
    EXTENSION_FIELDS,
    OURS,
    SCHEMA_VERSION,
    field_names,
    parse,
    writer_schema_text,
)
from stream.alert.stamps import encode_stamp, stamp_names
from stream.core.errors import AlertError, MessageError
from stream.core.records import BatchItem, Candidate, CandidateBatch, Quadrant, Row

PUBLISHER = "ZTF (www.ztf.caltech.edu)"
MAGIC = b"Obj\x01"
SYNC_SIZE = 16
LEDGER = ("shutter_closed", "arrived", "calibrated", "subtracted", "scored", "enriched", "published")
CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")


def plain(value: Any) -> Any:
    """A field's value as messages carry it: a Python scalar, None for NaN and infinity."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(values: Mapping[str, Any], names: tuple[str, ...], what: str) -> Row:
    unknown = values.keys() - set(names)
    if unknown:
        raise AlertError(f"{what} has no field {', '.join(sorted(unknown))}", candid=values.get("candid"))
    return {name: plain(values.get(name)) for name in names}


def from_candidate(candidate: Candidate) -> BatchItem:
    """A candidate as it travels: stamps encoded, ``extra`` as the extension record, NaN as None.

    Raises
    ------
    AlertError
        No stamps, or a field the schema does not know.
    """
    if candidate.stamps is None:
        raise AlertError("candidate without stamps cannot be sent", candid=candidate.fields.get("candid"))
    stamps = candidate.stamps
    return BatchItem(
        candidate=_row(candidate.fields, CANDIDATE_FIELDS, "ztf.alert.candidate"),
        extension=_row(candidate.extra, EXTENSION_FIELDS, "ztf.alert.zsds"),
        cutouts=(encode_stamp(stamps.science), encode_stamp(stamps.template), encode_stamp(stamps.difference)),
    )


def make_batch(quadrant: Quadrant, candidates: list[Candidate]) -> CandidateBatch:
    """The batch of one quadrant: the candidates that are sent, in their order; the rejected ones stay behind."""
    e = quadrant.exposure
    items = [from_candidate(c) for c in candidates if c.rejected is None]
    return CandidateBatch(
        quadrant.name, quadrant.pid, e.field, e.fid, quadrant.rcid, e.programid, e.jd, e.jd_mid, e.exptime, 0, 1, items
    )


def build_packet(item: BatchItem, batch: CandidateBatch, ledger: Mapping[str, float | None]) -> Row:
    """The whole record of one alert.

    Parameters
    ----------
    item : BatchItem
        Enriched: ``object_id`` set, histories looked up (empty or None: the packet's is null).
    batch : CandidateBatch
        The batch it came with.
    ledger : mapping
        Unix seconds at which the quadrant passed each of ``LEDGER``; where a name is missing or None, what the
        item's extension has stays.
    """
    candidate = _row(item.candidate, CANDIDATE_FIELDS, "ztf.alert.candidate")
    extension = _row(item.extension, EXTENSION_FIELDS, "ztf.alert.zsds")
    unknown = ledger.keys() - set(LEDGER)
    if unknown:
        raise AlertError(f"the latency ledger has no stage {', '.join(sorted(unknown))}")
    extension.update({stage: when for stage, when in ledger.items() if when is not None})
    if extension["jdmid"] is None:
        extension["jdmid"] = plain(batch.jd_mid)
    candid, pid = candidate["candid"], candidate["pid"]
    names = stamp_names(candid, pid, candidate["isdiffpos"] in ("t", "1"))
    stamps = [{"fileName": n, "stampData": s} if s else None for n, s in zip(names, item.cutouts, strict=True)]
    return {
        "schemavsn": SCHEMA_VERSION,
        "publisher": PUBLISHER,
        "objectId": item.object_id,
        "candid": candid,
        "candidate": candidate,
        "prv_candidates": _history(candidate, item.prv_candidates or []) or None,
        "fp_hists": _forced(item.fp_hists or []) or None,
        **dict(zip(CUTOUTS, stamps, strict=True)),
        "zsds": extension,
    }


def _history(candidate: Row, rows: list[Row]) -> list[Row]:
    """The history rows that belong to this alert: within 1.5 arcsec of *it*, not merely of the same object.

    An object's detections scatter about its place, so two of them may lie up to 3 arcsec apart; the survey's history
    is a cone around each trigger, and brokers rely on it.
    """
    if None in (candidate["ra"], candidate["dec"]):
        return rows  # the rules will say so
    cos_dec = math.cos(math.radians(candidate["dec"]))
    return [row for row in rows if row["ra"] is None or offset_arcsec(row, candidate, cos_dec) <= HISTORY_RADIUS]


def _forced(rows: list[Row]) -> list[Row]:
    """The forced points that brokers can read: one a jd, none without flux, error and zero point."""
    kept: dict[float, Row] = {}
    for row in rows:
        if None not in _measured(row):
            kept.setdefault(row["jd"], row)
    return list(kept.values())


_measured = operator.itemgetter(*FORCED_FIELDS)


@cache
def packet_header() -> bytes:
    """The first bytes of every packet: magic, metadata, sync marker."""
    return _container_header(writer_schema_text())


@cache
def _container_header(text: str) -> bytes:
    schema = text.encode("utf-8")
    entries = [(b"avro.schema", schema), (b"avro.codec", b"null")]
    metadata = b"".join(zigzag(len(k)) + k + zigzag(len(v)) + v for k, v in entries)
    # A sync marker must be unlikely in the data and, for us, the same every time: a hash of the schema is both.
    sync = hashlib.md5(schema, usedforsecurity=False).digest()
    return MAGIC + zigzag(len(entries)) + metadata + zigzag(0) + sync


def container(text: str, datum: bytes) -> bytes:
    """One encoded record as a container with its schema: the form of an alert, for any schema."""
    header = _container_header(text)
    return b"".join([header, zigzag(1), zigzag(len(datum)), datum, header[-SYNC_SIZE:]])


def write_packet(record: Mapping[str, Any]) -> bytes:
    """A packet's bytes. The record is encoded as it is; ``emit_packet`` also checks the rules.

    Raises
    ------
    AlertError
        The record does not fit the schema; the message names the field.
    """
    return _framed(_encoded(record))


def packet_pair(record: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A packet's bytes, and those of the light one: the same alert by the same schema, every cutout null.

    What both have is encoded once. Raises what ``write_packet`` does.
    """
    before, cutouts, after = (_encoded(record, fields) for fields in _parts())
    return _framed(b"".join([before, cutouts, after])), _framed(b"".join([before, _NO_CUTOUTS, after]))


_NO_CUTOUTS = bytes(len(CUTOUTS))  # branch 0 of each union


@cache
def _parts() -> tuple[tuple[str, ...], ...]:
    """The top record's fields: those before the cutouts, the cutouts, those behind them."""
    names = field_names("ztf.alert")
    first = names.index(CUTOUTS[0])
    return names[:first], names[first : first + len(CUTOUTS)], names[first + len(CUTOUTS) :]


def _encoded(record: Mapping[str, Any], fields: tuple[str, ...] | None = None) -> bytes:
    try:
        return compile_encoder(OURS, "ztf.alert", fields)(record)
    except MessageError as error:
        raise AlertError(str(error), candid=record.get("candid")) from error


def _framed(datum: bytes) -> bytes:
    header = packet_header()
    return b"".join([header, zigzag(1), zigzag(len(datum)), datum, header[-SYNC_SIZE:]])


def checked_packet(item: BatchItem, batch: CandidateBatch, ledger: Mapping[str, float | None]) -> Row:
    """Build and check the record of one alert.

    Raises
    ------
    AlertError
        It breaks a rule that brokers rely on; the message lists every one.
    """
    record = build_packet(item, batch, ledger)
    # Stamps were made by `encode_stamp`, which refuses bad ones; rows without a field do not get past the writer.
    problems = packet_problems(record, stamps=False, rows=False)
    if problems:
        raise AlertError("; ".join(problems), candid=record["candid"], problems=len(problems))
    return record


def emit_packet(item: BatchItem, batch: CandidateBatch, ledger: Mapping[str, float | None]) -> bytes:
    """Build, check and write one alert; raises what ``checked_packet`` and ``write_packet`` do."""
    return write_packet(checked_packet(item, batch, ledger))


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    """An Avro long and the place after it."""
    shift = value = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def split_header(data: bytes) -> tuple[dict[str, bytes], int]:
    """Metadata of a container and the place after its sync marker, where the first block starts.

    Raises
    ------
    MessageError
        Not an Avro container.
    """
    if data[:4] != MAGIC:
        raise MessageError(f"not an Avro container: starts with {data[:4]!r}")
    metadata: dict[str, bytes] = {}
    try:
        count, at = _read_long(data, 4)
        while count:
            if count < 0:  # followed by the size of the map block in bytes
                count, (_, at) = -count, _read_long(data, at)
            for _ in range(count):
                pair = []
                for _ in range(2):
                    length, at = _read_long(data, at)
                    if not 0 <= length <= len(data) - at:
                        raise ValueError("a length beyond the end")
                    pair.append(data[at : at + length])
                    at += length
                metadata[pair[0].decode("utf-8")] = pair[1]
            count, at = _read_long(data, at)
    except (IndexError, ValueError) as error:
        raise MessageError(f"Avro container with a broken header: {error}") from error
    if "avro.schema" not in metadata or at + SYNC_SIZE > len(data):
        raise MessageError("Avro container with a broken header: no schema or no sync marker")
    return metadata, at + SYNC_SIZE


def read_packets(data: bytes) -> Iterator[Row]:
    """Every record of an Avro container, read with the schema it was written with.

    Raises
    ------
    MessageError
        Not a container, cut short, or not decodable.
    """
    header = packet_header()
    try:
        if data.startswith(header):
            text, start, codec = writer_schema_text(), len(header), b"null"
        else:
            metadata, start = split_header(data)
            text, codec = metadata["avro.schema"].decode("utf-8"), metadata.get("avro.codec", b"null")
        if codec == b"null":
            yield from _read_blocks(data, start, parse(text))
        else:
            yield from fastavro.reader(io.BytesIO(data))
    except MessageError:
        raise
    except Exception as error:  # fastavro raises whatever a broken byte provokes
        raise MessageError(f"Avro container cannot be decoded: {type(error).__name__}: {error}") from error


def _read_blocks(data: bytes, at: int, schema: dict[str, Any]) -> Iterator[Row]:
    sync = data[at - SYNC_SIZE : at]
    while at < len(data):
        count, at = _read_long(data, at)
        size, at = _read_long(data, at)
        if size < 0 or data[at + size : at + size + SYNC_SIZE] != sync:
            raise MessageError("Avro container cut short or damaged: no sync marker where the block ends")
        block = io.BytesIO(data[at : at + size])
        for _ in range(count):
            yield fastavro.schemaless_reader(block, schema)
        at += size + SYNC_SIZE


def block_spans(data: bytes) -> Iterator[tuple[int, int]]:
    """First and last byte of every block of a container, its sync marker included.

    Raises
    ------
    MessageError
        Not a container, or damaged.
    """
    at = len(packet_header()) if data.startswith(packet_header()) else split_header(data)[1]
    sync = data[at - SYNC_SIZE : at]
    while at < len(data):
        try:
            _, size_at = _read_long(data, at)
            size, body = _read_long(data, size_at)
        except (IndexError, ValueError) as error:
            raise MessageError(f"Avro container cut short or damaged: {error}") from error
        end = body + size + SYNC_SIZE
        if size < 0 or data[end - SYNC_SIZE : end] != sync:
            raise MessageError("Avro container cut short or damaged: no sync marker where the block ends")
        yield at, end
        at = end


@cache
def _head_schema(text: str) -> dict[str, Any]:
    """The schema cut behind ``candidate``: a record's fields follow each other without framing, so a reader may
    stop where it has what it wants."""
    schema = json.loads(text)
    names = [f["name"] for f in schema["fields"]]
    return parse(json.dumps({**schema, "fields": schema["fields"][: names.index("candidate") + 1]}))


def read_head(data: bytes) -> Row:
    """The fields of a packet up to ``candidate``, in a tenth of the time of reading it all.

    Raises
    ------
    MessageError
        Not an alert packet, or damaged.
    """
    header = packet_header()
    if data.startswith(header):
        text, at = writer_schema_text(), len(header)
    else:
        metadata, at = split_header(data)
        text = metadata["avro.schema"].decode("utf-8")
    try:
        schema = _head_schema(text)
        _, at = _read_long(data, at)
        _, at = _read_long(data, at)
        head: Row = fastavro.schemaless_reader(io.BytesIO(data[at:]), schema)
    except Exception as error:  # fastavro raises whatever a broken byte provokes
        raise MessageError(f"not a readable alert packet: {type(error).__name__}: {error}") from error
    return head


def read_packet(data: bytes) -> Row:
    """The one record of a packet, of any schema version from 1.7 to ours.

    Fields are those the packet was written with; ``stream.alert.convert`` brings old ones into today's form.

    Raises
    ------
    MessageError
        Not an Avro container, damaged, or not exactly one record in it.
    """
    records = list(read_packets(data))
    if len(records) != 1:
        raise MessageError(f"want one alert in a packet, found {len(records)}")
    return records[0]
