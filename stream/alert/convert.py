"""Packets of the survey's earlier schemas, and of today's, as our records.

Used to replay real nights through score, enrich and emit, and to prove that our writer loses nothing: a packet of
schema 2.0 to 4.x goes in, is written in 4.02 form and comes out with every field it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream.alert.packet import CUTOUTS, read_packet
from stream.alert.schema import (
    CANDIDATE_FIELDS,
    EXTENSION_FIELDS,
    FP_FIELDS,
    PRV_FIELDS,
    field_types,
    required_fields,
)
from stream.core import identity
from stream.core.errors import MessageError
from stream.core.records import BatchItem, CandidateBatch, Row

# What a field that 4.02 requires gets where an older schema lacks it: the survey's own words for "missing".
_MISSING: dict[str, Any] = {"int": -999, "long": -999, "float": -999.0, "double": -999.0, "string": "null"}


def _fit(row: Mapping[str, Any], names: tuple[str, ...], record: str) -> Row:
    """A row with exactly today's fields."""
    unknown = row.keys() - set(names)
    if unknown:
        raise MessageError(f"{record} has no field {', '.join(sorted(unknown))}", record=record)
    out = {name: row.get(name) for name in names}
    for name in required_fields(record):
        if out[name] is None:
            out[name] = _MISSING[field_types(record)[name]]
    return out


def _histories(record: Mapping[str, Any]) -> tuple[list[Row] | None, list[Row] | None]:
    """History and forced points. Schema 3.5, a trial, had the forced points in place of the history."""
    prv: list[Row] = record.get("prv_candidates") or []
    forced: list[Row] = record.get("fp_hists") or []
    if prv and "forcediffimflux" in prv[0]:
        prv, forced = [], prv + forced
    return (
        [_fit(row, PRV_FIELDS, "ztf.alert.prv_candidate") for row in prv] or None,
        [_fit(row, FP_FIELDS, "ztf.alert.fp_hist") for row in forced] or None,
    )


def convert_record(record: Mapping[str, Any]) -> BatchItem:
    """A packet's record, of schema 2.0 or later, as an enriched item.

    Fields that today's schema requires and the packet lacks get the survey's sentinels (-999, ``null``): what an
    old packet did not say must not look like a measurement. ``cutouts`` are the packet's own bytes.

    Raises
    ------
    MessageError
        A field that 4.02 does not know, or no candidate in the record.
    """
    try:
        candidate = _fit(record["candidate"], CANDIDATE_FIELDS, "ztf.alert.candidate")
        object_id = str(record["objectId"])
    except KeyError as error:
        raise MessageError(f"not an alert: field {error.args[0]!r} is missing") from error
    prv, forced = _histories(record)
    science, template, difference = ((record.get(k) or {}).get("stampData") or b"" for k in CUTOUTS)
    extension = record.get("zsds") or {}
    return BatchItem(
        candidate,
        {name: extension.get(name) for name in EXTENSION_FIELDS},
        (science, template, difference),
        object_id,
        prv,
        forced,
    )


def convert_packet(data: bytes) -> tuple[BatchItem, CandidateBatch]:
    """A packet's bytes as an item and the batch it would have come with (holding that one item)."""
    item = convert_record(read_packet(data))
    c = item.candidate
    rcid = c["rcid"] if c["rcid"] is not None else identity.pid_of_candid(c["candid"]) // 100 % 100
    exptime = c["exptime"] if c["exptime"] is not None else float("nan")
    field = c["field"] if c["field"] is not None else -999
    # The survey says nothing of the middle of its exposures: the ledger stays empty, jd_mid is unknown.
    batch = CandidateBatch(
        "", c["pid"], field, c["fid"], rcid, c["programid"], c["jd"], float("nan"), exptime, 0, 1, [item]
    )
    batch.name = (c["pdiffimfilename"] or "").removesuffix(".fz").removesuffix("_scimrefdiffimg.fits")
    return item, batch
