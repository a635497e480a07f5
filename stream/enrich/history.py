"""What was known at a place: object identity, detections of the last 30 days, upper limits, coverage, movers.

The decisions are pure functions; where the memory lives is behind ``History``: ``RedisHistory`` (hot state of the
stream, shared by workers, every write idempotent) and ``MemoryHistory`` (``process`` and tests).

Rules as the survey's (``ztf-facts.md`` §6.3): an object is what lies within 1.5 arcsec of the place where it was
first seen; ``prv_candidates`` are the detections and non-detections of the last 30 days within 1.5 arcsec of the
event itself, whatever object they were given to, in time order.

Movers stay out of the registry of places:

- a candidate at a known solar-system object, or one that the linker has put into a tracklet before, gets a name of
  its own and is neither matched with what is there nor there for later ones to match;
- an object all of whose detections turn out to be of tracklets leaves the registry (its name stays taken);
- an object that was seen in one night only is forgotten ``PROVISIONAL_DAYS`` after it, when somebody looks there.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stream.core.identity import utc_of, version_digits
from stream.core.records import QuadrantReport, Row

MATCH_RADIUS = 1.5  # arcsec
HISTORY_DAYS = 30.0
# What is counted (ndethist, ncovhist, jdstarthist) reaches back so far from the exposure's own time: whatever a memory
# happens to hold beyond that, the same exposures give the same counts.
KEEP_DAYS = 2 * HISTORY_DAYS
# Objects whose detections may lie within the history's cone of an event: both scatter about the object's place.
NEAR_RADIUS = 2 * MATCH_RADIUS
# Object cells (deg) are a few match radii wide, so that a place and its eight neighbours hold all that may match.
OBJECT_CELL = 6.0 / 3600.0
# What was seen in a single night and never again within this time was a mover or a false one; a flare of a star that
# comes later gets a new name. Some 10^4 unlinked movers a night are a hundred bytes each: 100 MB at most.
PROVISIONAL_DAYS = 90.0
ONE_NIGHT = 0.5  # days
# A known solar-system object this near is the candidate: ephemerides of numbered asteroids are good to an arcsecond.
KNOWN_MOVER_RADIUS = 3.0  # arcsec
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_N_NAMES = 26**7
# An odd multiplier spreads consecutive candids over the 26^7 names of a year (Knuth's multiplicative hashing).
_SPREAD = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Event:
    """One detection that asks for its object; ``moving``: it must not be matched by place."""

    ra: float
    dec: float
    jd: float
    candid: int
    moving: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """The object of an event: its name, its place for good (deg, where it was first seen), and the names of all
    objects whose detections may lie within the history's cone of the event (itself among them)."""

    name: str
    ra: float
    dec: float
    near: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Epoch:
    """What is remembered of a quadrant: its footprint, its depth, and what a row of the history says of it."""

    name: str
    pid: int
    jd: float
    fid: int
    field: int
    rcid: int
    programid: int
    nid: int
    corners: tuple[float, ...]  # ra1, dec1 .. ra4, dec4 in order round it, deg
    diffmaglim: float | None = None  # None: no difference image was made
    magzp: float | None = None
    magzpunc: float | None = None
    magzprms: float | None = None
    clrcoeff: float | None = None
    clrcounc: float | None = None

    @classmethod
    def of(cls, report: QuadrantReport) -> Epoch:
        """The epoch of a quality record."""
        values = {name: getattr(report, name) for name in cls.__slots__ if name != "corners"}
        return cls(corners=tuple(report.corners), **values)


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
    """Angle between two near places (deg in, arcsec out; haversine).

    Operation by operation what the script in Redis does, so that a place at the rim of a radius is inside for both.
    """
    rad = math.pi / 180
    a = math.sin((dec2 - dec1) * rad / 2) ** 2
    a += math.cos(dec1 * rad) * math.cos(dec2 * rad) * math.sin((ra2 - ra1) * rad / 2) ** 2
    return 2 * math.asin(min(1.0, math.sqrt(a))) / rad * 3600.0


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


class Depth(Protocol):
    """The 5-sigma magnitude limit of an epoch at a place (deg); None: it reached no limit there."""

    def __call__(self, epoch: Epoch, ra: float, dec: float) -> float | None: ...


def quadrant_depth(epoch: Epoch, ra: float, dec: float) -> float | None:
    """The quadrant's own limit, the same everywhere in it (``archive.StoreDepths`` has maps of local depth)."""
    return epoch.diffmaglim


def limit_row(epoch: Epoch, limit: float) -> Row:
    """The non-detection row of ``prv_candidates`` that an epoch contributes."""
    return {
        "jd": epoch.jd,
        "fid": epoch.fid,
        "pid": epoch.pid,
        "programid": epoch.programid,
        "diffmaglim": limit,
        "nid": epoch.nid,
        "rcid": epoch.rcid,
        "field": epoch.field,
        "magzpsci": epoch.magzp,
        "magzpsciunc": epoch.magzpunc,
        "magzpscirms": epoch.magzprms,
        "clrcoeff": epoch.clrcoeff,
        "clrcounc": epoch.clrcounc,
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


def newest_versions(rows: Sequence[Row]) -> list[Row]:
    """Without the rows of a quadrant that was processed and sent again under higher version digits of its candids."""
    newest: dict[int, int] = {}
    for row in rows:
        newest[row["pid"]] = max(newest.get(row["pid"], 0), version_digits(row["candid"]))
    return [row for row in rows if version_digits(row["candid"]) == newest[row["pid"]]]


ALL_PROGRAMS = (1, 2, 3)


def visible_programs(programid: int) -> tuple[int, ...]:
    """Whose photometry a packet of this program may carry: public packets hold programid 1 only."""
    return (1,) if programid == 1 else ALL_PROGRAMS if programid == 3 else (1, 2)


def is_known_mover(candidate: Mapping[str, Any]) -> bool:
    """Whether a known solar-system object lies at the candidate."""
    distance = candidate.get("ssdistnr")
    return distance is not None and 0 <= distance <= KNOWN_MOVER_RADIUS


def is_stale(first: float, last: float, jd: float) -> bool:
    """Whether an object seen from ``first`` to ``last`` is to be forgotten at ``jd`` (days)."""
    return last - first < ONE_NIGHT and jd - last > PROVISIONAL_DAYS


class History(Protocol):
    """Memory of places. All writes are idempotent: a repeat of the same quadrant changes nothing."""

    def add_epoch(self, report: QuadrantReport) -> None:
        """Remember that an epoch covered its footprint, and how deep; nothing without a footprint."""
        ...

    def match(self, events: Sequence[Event]) -> list[Match]:
        """The objects of some events, in order, each found or made in one atomic step.

        An event that was matched before gets the object that it got then.
        """
        ...

    def add_object(self, name: str, ra: float, dec: float, jd: float, candid: int, *, moving: bool = False) -> None:
        """Remember an object that was named before (from the archive), or another detection of it: its place is
        that of the first call with this name. ``moving`` as in ``Event``: it gets no place in the registry."""
        ...

    def add_detections(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Remember detections: objectId and a row with the names of ``prv_candidate`` each."""
        ...

    def detections(self, names: Sequence[str]) -> dict[str, list[Row]]:
        """Remembered detections of objects."""
        ...

    def epochs(self, ra: Sequence[float], dec: Sequence[float], jd: float) -> list[Epoch]:
        """Remembered epochs before ``jd`` that may cover one of the places (deg), in time order."""
        ...

    def add_movers(self, members: Mapping[int, int], night: str, *, public: bool = False) -> None:
        """Remember candids (to tracklet) of a night as moving; objects that are nothing else leave the registry.

        ``public``: as members of a tracklet of public detections alone, whose number anybody may see. It says
        nothing new about what moves.
        """
        ...

    def movers(self, candids: Sequence[int], night: str, *, public: bool = False) -> dict[int, int]:
        """Which of these candids are known to move: candid to tracklet (``public``: of public detections alone)."""
        ...

    def forced(self, names: Sequence[str]) -> dict[str, dict[int, Row | None]]:
        """Forced points of objects by pid; None where the image gave none."""
        ...

    def add_forced(self, points: Sequence[tuple[str, int, Row | None]]) -> list[Row | None]:
        """Remember forced points (objectId, pid, row of ``fp_hist``); one that is there already stays.

        Returns what is remembered now, in the same order.
        """
        ...


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


def first_free(jd: float, candid: int, taken: Container[str]) -> str:
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
