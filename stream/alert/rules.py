"""What brokers' own code accepts and refuses, as a check of one packet.

Every rule was found by running real and altered packets through what brokers run, or holds in every real packet
(the numbers in the messages are the record's own). A packet that breaks one is never sent.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from stream.alert.schema import (
    SCHEMA_VERSION,
    field_names,
    field_types,
    required_fields,
)
from stream.alert.stamps import STAMP_SIDE, decode_stamp, stamp_names
from stream.core import identity
from stream.core.camera import CAMERAS
from stream.core.errors import MessageError
from stream.core.records import Row

OBJECT_ID = re.compile(r"ZTF(1[7-9]|2[0-9]|3[0-2])[a-z]{7}")  # years that AMPEL's code knows
HISTORY_DAYS = 30.0
HISTORY_RADIUS = 1.5  # arcsec
PUBLIC = 1
TOP_FIELDS = field_names("ztf.alert")
# Of a history row: all of them in a detection, none in a non-detection (boom drops the row otherwise).
DETECTION_FIELDS = ("candid", "isdiffpos", "ra", "dec", "magpsf", "sigmapsf")
_detection = operator.itemgetter(*DETECTION_FIELDS)
# A forced point without one of these breaks ALeRCE or kowalski.
FORCED_FIELDS = ("forcediffimflux", "forcediffimfluxunc", "magzpsci")
_measured = operator.itemgetter(*FORCED_FIELDS)
# Fields are float32: a magnitude carries 2e-6, a difference of two some 4e-6, a ratio a relative 2e-7.
_ABSOLUTE, _RELATIVE = 2e-5, 2e-5


def packet_problems(record: Mapping[str, Any], *, stamps: bool = True, rows: bool = True) -> list[str]:
    """Every rule a packet breaks, one sentence each; empty: brokers will take it.

    Parameters
    ----------
    record : mapping
        A packet's record in 4.02 form, ours or the survey's (without ``zsds``).
    stamps : bool
        Also decode the stamps (0.3 ms) and check what is in them.
    rows : bool
        Also check that rows of the histories have exactly the schema's fields, none null that must not be: the writer
        finds that out by itself.
    """
    missing = [name for name in TOP_FIELDS if name not in record and name != "zsds"]
    if missing:
        return [f"top record lacks {', '.join(missing)}"]
    candidate = record["candidate"]
    problems = list(_shape(record, candidate, rows))
    if problems:  # the rest would stumble over it
        return problems
    problems += _numbers(record)
    problems += _identity(record, candidate)
    problems += _arithmetic(candidate)
    problems += _neighbours(candidate)
    problems += _history(candidate, record["prv_candidates"] or [])
    problems += _forced(candidate, record["fp_hists"] or [])
    problems += _stamps(record, candidate, stamps)
    return problems


def _shape(record: Mapping[str, Any], candidate: Row, rows: bool) -> Iterator[str]:
    unknown = record.keys() - set(TOP_FIELDS)
    if unknown:
        yield f"top record has unknown {', '.join(sorted(unknown))}"
    if record["schemavsn"] != SCHEMA_VERSION:
        yield f"schemavsn is {record['schemavsn']!r}, brokers expect {SCHEMA_VERSION!r}"
    yield from _fields("candidate", [candidate], "ztf.alert.candidate")
    if rows:
        yield from _fields("prv_candidates", record["prv_candidates"] or [], "ztf.alert.prv_candidate")
        yield from _fields("fp_hists", record["fp_hists"] or [], "ztf.alert.fp_hist")
    if record.get("zsds") is not None:
        yield from _fields("zsds", [record["zsds"]], "ztf.alert.zsds")


def _fields(what: str, rows: list[Row], schema: str) -> Iterator[str]:
    names, required = frozenset(field_names(schema)), required_fields(schema)
    for i, row in enumerate(rows):
        if row.keys() != names:
            yield f"{what}[{i}] has not the schema's fields: {', '.join(sorted(row.keys() ^ names))}"
        elif None in map(row.__getitem__, required):
            yield f"{what}[{i}]: {', '.join(name for name in required if row[name] is None)} may not be null"


@cache
def _reals(schema: str) -> operator.itemgetter[Any]:
    return operator.itemgetter(*(n for n, t in field_types(schema).items() if t in ("float", "double")))


def _numbers(record: Mapping[str, Any]) -> Iterator[str]:
    groups = (
        ([record["candidate"]], "ztf.alert.candidate"),
        (record["prv_candidates"] or [], "ztf.alert.prv_candidate"),
        (record["fp_hists"] or [], "ztf.alert.fp_hist"),
        ([record["zsds"]] if record.get("zsds") is not None else [], "ztf.alert.zsds"),
    )
    for rows, schema in groups:
        # One sum over what is not null finds a NaN or an infinity; only then is it worth asking where.
        if math.isfinite(sum(filter(None, chain.from_iterable(map(_reals(schema), rows))))):
            continue
        for row in rows:
            names = [n for n, v in row.items() if isinstance(v, float | np.floating) and not math.isfinite(v)]
            if names:
                yield f"not finite (null is meant): {', '.join(names)} at jd {row.get('jd')}"
    if record["candidate"]["diffmaglim"] is None:
        yield "candidate.diffmaglim is null: kowalski drops the point"


def _identity(record: Mapping[str, Any], candidate: Row) -> Iterator[str]:
    object_id = record["objectId"]
    if not (isinstance(object_id, str) and OBJECT_ID.fullmatch(object_id)):
        yield f"objectId {object_id!r} is not ZTF, a year 17 to 32, seven lower-case letters"
    if record["candid"] != candidate["candid"]:
        yield f"candid {record['candid']} at the top, {candidate['candid']} in the candidate"
    if candidate["fid"] not in identity.FILTER_CODES:
        yield f"fid {candidate['fid']} is not 1 to 3"
    if candidate["programid"] not in (0, 1, 2, 3):
        yield f"programid {candidate['programid']} is not 0 to 3"
    if candidate["isdiffpos"] not in ("t", "f"):
        yield f"isdiffpos {candidate['isdiffpos']!r} is neither t nor f"
        return
    pid, rcid, jd = candidate["pid"], candidate["rcid"], candidate["jd"]
    if rcid is not None:
        wanted = identity.pid_of(identity.rid_of(identity.expid_of(jd), rcid))
        # The survey rounds the last digit of the day fraction differently once in a few hundred exposures.
        if abs(pid - wanted) not in (0, 10_000):
            yield f"pid {pid} does not follow from jd {jd} and rcid {rcid}: {wanted}"
    if candidate["nid"] is not None and candidate["nid"] != identity.nid_of(jd):
        yield f"nid {candidate['nid']} is not the night of jd {jd}"
    tblid, candid = candidate["tblid"], candidate["candid"]
    if identity.pid_of_candid(candid) != pid:
        yield f"candid {candid} is not of pid {pid}"
    elif tblid is not None:
        version = identity.version_digits(candid)
        if not 0 <= tblid <= identity.MAX_TBLID:
            yield f"tblid {tblid} outside 0 to {identity.MAX_TBLID}"
        elif candid != identity.candid_of(pid, candidate["isdiffpos"] == "t", tblid, version):
            yield f"candid {candid} does not follow from sign {candidate['isdiffpos']} and tblid {tblid}"


def _arithmetic(c: Row) -> Iterator[str]:
    def differs(name: str, operands: tuple[Any, ...], compute: Any) -> bool:
        if c[name] is None or None in operands:
            return False
        try:
            wanted = compute(*operands)
        except ZeroDivisionError:
            return False
        scale = max([abs(wanted), *(abs(v) for v in operands)])
        return bool(abs(c[name] - wanted) > _ABSOLUTE + _RELATIVE * scale)

    checks = (
        ("magdiff", ("magap", "magpsf"), lambda a, b: a - b),
        ("magfromlim", ("diffmaglim", "magap"), lambda a, b: a - b),
        ("elong", ("aimage", "bimage"), lambda a, b: a / b),
        ("aimagerat", ("aimage", "fwhm"), lambda a, b: a / b),
        ("bimagerat", ("bimage", "fwhm"), lambda a, b: a / b),
        ("dsdiff", ("dsnrms", "ssnrms"), lambda a, b: a - b),
    )
    for name, operands, compute in checks:
        values = tuple(c[operand] for operand in operands)
        # The survey's own -999 stands for null in packets that were converted.
        if -999.0 not in (c[name], *values) and differs(name, values, compute):
            yield f"{name} {c[name]} does not follow from {', '.join(map('{} {}'.format, operands, values))}"
    # One real packet ends 80 s after its own exposure: the next one had been processed before it.
    if c["jdendhist"] is not None and not 0 <= c["jdendhist"] - c["jd"] < 1:
        yield f"jdendhist {c['jdendhist']} is not this exposure's jd {c['jd']}"
    x, y, edge = c["xpos"], c["ypos"], c["mindtoedge"]
    if None not in (x, y, edge):
        wanted = [min(x, y, cam.nx + 0.5 - x, cam.ny + 0.5 - y) for cam in CAMERAS.values()]
        if all(abs(edge - w) > 1e-2 for w in wanted):
            yield f"mindtoedge {edge} is not the nearest edge's distance of ({x}, {y})"


def _neighbours(c: Row) -> Iterator[str]:
    distances = [c[f"distpsnr{i}"] for i in (1, 2, 3)]
    there = [d is not None and d >= 0 for d in distances]
    found = [d for d, ok in zip(distances, there, strict=True) if ok]
    if len(found) != min(3, c["nmtchps"]) or there != sorted(there, reverse=True):
        yield f"{len(found)} Pan-STARRS neighbours in the record, nmtchps {c['nmtchps']}"
    if found != sorted(found):
        yield f"Pan-STARRS distances do not ascend: {found}"
    for i in (1, 2, 3):
        score = c[f"sgscore{i}"]
        if score is not None and score != -999.0 and not 0 <= score <= 1:
            yield f"sgscore{i} {score} outside 0 to 1"


def offset_arcsec(row: Row, candidate: Row, cos_dec: float) -> float:
    """Distance of a history row from the alert (flat sky: it is about arcseconds)."""
    east = ((row["ra"] - candidate["ra"] + 180.0) % 360.0 - 180.0) * cos_dec
    return math.hypot(east, row["dec"] - candidate["dec"]) * 3600.0


def _history(candidate: Row, rows: list[Row]) -> Iterator[str]:
    jd = candidate["jd"]
    times = [row["jd"] for row in rows]
    if times != sorted(times):
        yield "prv_candidates are not in time order"
    candids = [row["candid"] for row in rows if row["candid"] is not None]
    if len(set(candids)) != len(candids):
        yield "prv_candidates hold a candid twice"
    if candidate["candid"] in candids:
        yield "prv_candidates hold the alert itself"
    if rows and (times[-1] > jd or jd - times[0] >= HISTORY_DAYS):
        yield f"prv_candidates reach from {times[0]} to {times[-1]}, not the {HISTORY_DAYS:g} days before {jd}"
    cos_dec = math.cos(math.radians(candidate["dec"]))
    for i, row in enumerate(rows):
        if candidate["programid"] == PUBLIC and row["programid"] != PUBLIC:
            yield f"prv_candidates[{i}] is of programid {row['programid']} in a public packet"
        missing = _detection(row).count(None)
        if missing == len(DETECTION_FIELDS):
            if row["diffmaglim"] is None:
                yield f"prv_candidates[{i}] is a non-detection without diffmaglim"
            continue
        if missing:
            yield f"prv_candidates[{i}] is neither a detection nor a non-detection"
            continue
        offset = offset_arcsec(row, candidate, cos_dec)
        if offset > HISTORY_RADIUS + 0.01:  # positions are written to 1e-7 deg, the match is made before
            yield f"prv_candidates[{i}] is {offset:.2f} arcsec away"


def _forced(candidate: Row, rows: list[Row]) -> Iterator[str]:
    if len({row["jd"] for row in rows}) != len(rows):
        yield "fp_hists hold a jd twice"
    for i, row in enumerate(rows):
        if None in _measured(row):
            empty = [name for name in FORCED_FIELDS if row[name] is None]
            yield f"fp_hists[{i}]: {', '.join(empty)} null: leave such a point out"
        if candidate["programid"] == PUBLIC and row["programid"] != PUBLIC:
            yield f"fp_hists[{i}] is of programid {row['programid']} in a public packet"


def _stamps(record: Mapping[str, Any], candidate: Row, decode: bool) -> Iterator[str]:
    names = stamp_names(candidate["candid"], candidate["pid"], candidate["isdiffpos"] == "t")
    for key, name in zip(("cutoutScience", "cutoutTemplate", "cutoutDifference"), names, strict=True):
        cutout = record[key]
        if cutout is None or not cutout["stampData"]:
            yield f"{key} is missing"
            continue
        if cutout["fileName"] != name:
            yield f"{key} is called {cutout['fileName']!r}, not {name!r}"
        if not decode:
            continue
        try:
            image = decode_stamp(cutout["stampData"])
        except MessageError as error:
            yield f"{key}: {error}"
            continue
        if max(image.shape) > STAMP_SIDE:
            yield f"{key} is {image.shape[1]} x {image.shape[0]}, more than {STAMP_SIDE} px"
        if not np.any(np.nan_to_num(image)):
            yield f"{key} holds nothing but zeros or NaN"
        if key == "cutoutDifference" and image.shape == (STAMP_SIDE, STAMP_SIDE) and candidate["nneg"] is not None:
            nneg = int(np.sum(image[29:34, 29:34] < 0))
            if nneg != candidate["nneg"]:
                yield f"nneg {candidate['nneg']}, but {nneg} negative pixels in the stamp's middle 5 x 5"
