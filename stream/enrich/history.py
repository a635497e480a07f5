"""What was known at a place: object identity, detections of the last 30 days, upper limits, coverage.

The decisions are pure functions; where the memory lives is behind ``History``: ``RedisHistory`` (hot state of the
stream, shared by workers, every write idempotent) and ``MemoryHistory`` (``process`` and tests).

Rules as the survey's (``ztf-facts.md`` §6.3): an object is what lies within 1.5 arcsec; ``prv_candidates`` are
the detections and non-detections of the last 30 days at the place, in time order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from stream.core.identity import utc_of
from stream.core.records import CandidateBatch, QuadrantReport, Row

MATCH_RADIUS = 1.5  # arcsec
HISTORY_DAYS = 30.0
# Object cells (deg) are a few match radii wide, so that a place and its eight neighbours hold all that may match.
OBJECT_CELL = 6.0 / 3600.0
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_N_NAMES = 26**7
# An odd multiplier spreads consecutive candids over the 26^7 names of a year (Knuth's multiplicative hashing).
_SPREAD = 0x9E3779B97F4A7C15


def object_name(jd_year: int, candid: int, attempt: int = 0) -> str:
    """``ZTF`` + two digits of the year + seven letters, from the candid of the object's first event.

    Deterministic, so that a rerun of the same night names the same objects; where a name is taken by another
    object, the next ``attempt`` gives another.
    """
    number = ((candid + attempt * 7919) * _SPREAD % 2**64) % _N_NAMES
    letters = ""
    for _ in range(7):
        number, digit = divmod(number, 26)
        letters = _LETTERS[digit] + letters
    return f"ZTF{jd_year % 100:02d}{letters}"


def separation(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    """Angle between two near places (deg in, arcsec out; haversine)."""
    d1, d2 = math.radians(dec1), math.radians(dec2)
    a = math.sin((d2 - d1) / 2) ** 2
    a += math.cos(d1) * math.cos(d2) * math.sin(math.radians(ra2 - ra1) / 2) ** 2
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(a)))) * 3600.0


def nearest_object(ra: float, dec: float, known: Iterable[tuple[str, float, float]]) -> str | None:
    """Name of the nearest known object within ``MATCH_RADIUS``; ties go to the alphabetically first name."""
    best = min(((separation(ra, dec, r, d), name) for name, r, d in known), default=None)
    return best[1] if best is not None and best[0] <= MATCH_RADIUS else None


def covers(corners: Sequence[float], ra: float, dec: float) -> bool:
    """Whether a quadrant with these corners (ra1, dec1 .. ra4, dec4 in order round it) contains a place.

    Seen in the tangent plane at the place, where the edges are straight to well below a pixel.
    """
    points = []
    for r, d in zip(corners[0::2], corners[1::2], strict=True):
        dra = (r - ra + 180.0) % 360.0 - 180.0
        points.append((dra * math.cos(math.radians(d)), d - dec))
    signs = []
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        signs.append(x1 * y2 - x2 * y1)
    return all(s >= 0 for s in signs) or all(s <= 0 for s in signs)


def limit_row(report: QuadrantReport) -> Row | None:
    """The non-detection row of ``prv_candidates`` that an epoch contributes; None if it reached no limit."""
    if report.diffmaglim is None:
        return None
    return {
        "jd": report.jd,
        "fid": report.fid,
        "pid": report.pid,
        "programid": report.programid,
        "diffmaglim": report.diffmaglim,
        "nid": report.nid,
        "rcid": report.rcid,
        "field": report.field,
        "magzpsci": report.magzp,
        "magzpsciunc": report.magzpunc,
        "magzpscirms": report.magzprms,
        "clrcoeff": report.clrcoeff,
        "clrcounc": report.clrcounc,
        "rbversion": "",
    }


def assemble_history(
    detections: Iterable[Row], limits: Iterable[Row], jd: float, candid: int, programids: Sequence[int]
) -> list[Row]:
    """``prv_candidates`` of an event from everything remembered at its place.

    Rows of the last 30 days before ``jd``, in time order, no candid twice, the event itself not among them, an
    upper limit only for epochs without a detection (``consumers.md`` 14), and only of ``programids`` (15).
    """
    rows: dict[tuple[float, int], Row] = {}
    seen_pids = set()
    for row in detections:
        recent = 0 < jd - row["jd"] < HISTORY_DAYS
        if recent and row["candid"] != candid and row["programid"] in programids:
            rows[row["jd"], row["candid"]] = row
            seen_pids.add(row["pid"])
    for row in limits:
        recent = 0 < jd - row["jd"] < HISTORY_DAYS
        if recent and row["pid"] not in seen_pids and row["programid"] in programids:
            rows[row["jd"], row["pid"]] = row
    return [rows[key] for key in sorted(rows)]


def visible_programs(programid: int) -> tuple[int, ...]:
    """Whose photometry a packet of this program may carry: public packets hold programid 1 only."""
    return (1,) if programid == 1 else (1, 2, 3) if programid == 3 else (1, 2)


class History(Protocol):
    """Memory of places. All writes are idempotent: a repeat of the same quadrant changes nothing."""

    def add_epoch(self, report: QuadrantReport) -> None:
        """Remember that an epoch covered its footprint, and how deep."""
        ...

    def object_id(self, ra: float, dec: float, jd: float, candid: int) -> str:
        """Name of the object at a place, atomically made if there is none."""
        ...

    def add_detection(self, object_id: str, row: Row) -> None:
        """Remember a detection (a row with the names of ``prv_candidate``) of an object."""
        ...

    def detections(self, object_id: str) -> list[Row]:
        """Remembered detections of an object."""
        ...

    def epochs(self, ra: float, dec: float) -> list[QuadrantReport]:
        """Remembered epochs that cover a place, in time order."""
        ...


def enrich_batch(batch: CandidateBatch, history: History, prv_fields: Sequence[str]) -> None:
    """Give every item of a batch its objectId, history and counts, and remember it.

    Parameters
    ----------
    prv_fields : sequence of str
        Names of the packet's ``prv_candidate`` record, which the remembered rows take from the candidate.
    """
    programs = visible_programs(batch.programid)
    epochs_of_cell: dict[Any, list[QuadrantReport]] = {}
    for item in batch.items:
        row = item.candidate
        ra, dec = row["ra"], row["dec"]
        item.object_id = history.object_id(ra, dec, row["jd"], row["candid"])
        known = history.detections(item.object_id)
        cell = (round(ra, 2), round(dec, 2))
        if cell not in epochs_of_cell:
            epochs_of_cell[cell] = history.epochs(ra, dec)
        epochs = [e for e in epochs_of_cell[cell] if covers(e.corners, ra, dec) and e.jd < row["jd"]]
        limits = [dict.fromkeys(prv_fields) | limit for limit in map(limit_row, epochs) if limit is not None]
        item.prv_candidates = assemble_history(known, limits, row["jd"], row["candid"], programs) or None
        earlier = [k for k in known if k["jd"] < row["jd"]]
        same_channel = [k for k in earlier if k["field"] == row["field"] and k["rcid"] == row["rcid"]]
        row["ndethist"] = len(same_channel) + 1
        row["ncovhist"] = len(epochs) + 1
        row["jdstarthist"] = min([k["jd"] for k in same_channel], default=row["jd"])
        row["jdendhist"] = row["jd"]
        history.add_detection(item.object_id, {name: row.get(name) for name in prv_fields})


def cell_of(ra: float, dec: float, size: float) -> tuple[int, int]:
    """Index of the sky cell of a place: declination bands ``size`` deg high, cut into cells as wide at their middle."""
    band = math.floor((dec + 90.0) / size)
    return band, math.floor((ra % 360.0) / 360.0 * cells_in_band(band, size))


def cells_in_band(band: int, size: float) -> int:
    """Number of cells in a declination band: at least one, each at least ``size`` deg wide everywhere in it."""
    lowest, highest = band * size - 90.0, (band + 1) * size - 90.0
    widest = max(abs(lowest), abs(highest))
    width = math.cos(math.radians(min(widest, 90.0)))
    return max(1, math.floor(360.0 * width / size))


def cells_around(ra: float, dec: float, size: float) -> list[tuple[int, int]]:
    """Cells that may hold anything within ``size`` deg of a place: its own and its neighbours, sorted."""
    found: set[tuple[int, int]] = set()
    own, _ = cell_of(ra, dec, size)
    # Neighbours are counted from the place's own band: a declination on a border must not round past the next one.
    for band in range(max(own - 1, 0), own + 2):
        n = cells_in_band(band, size)
        middle = math.floor((ra % 360.0) / 360.0 * n)
        found.update((band, (middle + step) % n) for step in (-1, 0, 1))
    return sorted(found)


class MemoryHistory:
    """``History`` in this process's memory."""

    def __init__(self) -> None:
        self._epochs: dict[int, QuadrantReport] = {}
        self._objects: dict[tuple[int, int], dict[str, tuple[float, float]]] = {}
        self._names: set[str] = set()
        self._detections: dict[str, dict[int, Row]] = {}

    def add_epoch(self, report: QuadrantReport) -> None:
        """See ``History``."""
        if report.corners:
            self._epochs[report.pid] = report

    def object_id(self, ra: float, dec: float, jd: float, candid: int) -> str:
        """See ``History``."""
        size = OBJECT_CELL
        near = [c for cell in cells_around(ra, dec, size) for c in self._objects.get(cell, {}).items()]
        name = nearest_object(ra, dec, [(n, r, d) for n, (r, d) in near])
        if name is None:
            name = first_free(jd, candid, self._names)
            self.add_object(name, ra, dec)
        return name

    def add_object(self, name: str, ra: float, dec: float) -> None:
        """Remember an object that was named before (from the archive)."""
        self._names.add(name)
        self._objects.setdefault(cell_of(ra, dec, OBJECT_CELL), {}).setdefault(name, (ra, dec))

    def add_detection(self, object_id: str, row: Row) -> None:
        """See ``History``."""
        self._detections.setdefault(object_id, {})[row["candid"]] = row

    def detections(self, object_id: str) -> list[Row]:
        """See ``History``."""
        return list(self._detections.get(object_id, {}).values())

    def epochs(self, ra: float, dec: float) -> list[QuadrantReport]:
        """See ``History``."""
        found = [e for e in self._epochs.values() if covers_nearly(e.corners, ra, dec)]
        return sorted(found, key=lambda e: (e.jd, e.pid))


def first_free(jd: float, candid: int, taken: set[str]) -> str:
    """First name for a new object that is not taken."""
    year = year_of(jd)
    attempt = 0
    while (name := object_name(year, candid, attempt)) in taken:
        attempt += 1
    return name


def year_of(jd: float) -> int:
    """Calendar year of a Julian date (UT)."""
    return utc_of(jd).year


def covers_nearly(corners: Sequence[float], ra: float, dec: float, reach: float = 1.5) -> bool:
    """Whether a place is within ``reach`` deg of a footprint's first corner: a cheap test before ``covers``.

    A quadrant's diagonal is 1.25 deg, so nothing that ``covers`` accepts is lost.
    """
    return len(corners) > 1 and separation(ra, dec, corners[0], corners[1]) <= reach * 3600.0
