"""Tracklets: detections of one night that lie on one line at constant speed.

What limits such a linker is chance: unrelated detections that happen to line up. Three things keep it down:
what was seen twice at one place is taken out first, the members' places must agree to a fraction of an
arcsecond, and each detection belongs to one tracklet only, the best one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.errors import UsageError
from stream.core.records import Table, Tracklet
from stream.core.sphere import unit_vectors

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LINK_DTYPE = np.dtype(
    [
        ("candid", "i8"),
        ("jd", "f8"),  # mid-exposure, UTC
        ("ra", "f8"), ("dec", "f8"),  # deg
        ("mag", "f4"),  # NaN: not compared
    ]
)  # fmt: skip

_SAME_EXPOSURE = 10.0 / 86_400.0  # days: exposures follow each other by 40 s


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Limits of a tracklet.

    - ``min_rate``, ``max_rate`` (deg/day): 0.05 is 1.9 arcsec in a quarter of an hour, the slowest that leaves a
      star's place between two visits (the outer main belt at its stationary points is slower and is lost); at 5 an
      exposure of 30 s trails over 6 px and the object is found as a streak.
    - ``stationary`` (arcsec): a place seen again within this radius, when even ``min_rate`` would have left it,
      is not a mover; nor is one seen again within half of it when the line's own speed would have left it.
    - ``max_span`` (days): over 3 hours the observer's own motion around the Earth's axis bends a main-belt
      object's path by less than the residual limit.
    - ``max_rms`` (arcsec): of the straight fit; known asteroids have 0.09 in the median, chance triples 0.25.
    - ``max_dmag``: colour between filters (up to 0.9) and rotation.
    - ``min_detections``: 3 by default. Pairs (2) are chance as often as not in a crowded night.
    """

    min_rate: float = 0.05
    max_rate: float = 5.0
    stationary: float = 1.5
    max_span: float = 3.0 / 24.0
    max_rms: float = 0.5
    max_dmag: float = 1.5
    min_detections: int = 3


class _Line(NamedTuple):
    """A proposed tracklet: members (rows, by time) and its straight fit."""

    members: tuple[int, ...]
    rms: float  # arcsec
    place: tuple[float, float]  # tangent plane at the first member, deg
    velocity: tuple[float, float]  # deg/day east, north


def link_tracklets(detections: Table, night: str, settings: LinkSettings | None = None) -> list[Tracklet]:
    """Link the detections of one night.

    Parameters
    ----------
    detections : Table
        Structured array with at least the columns of ``LINK_DTYPE``, in any order of rows; rows without a finite
        place or time are left out. Positive detections of any quality: what belongs to a known static object
        should be left out by the caller where it is known.
    night : str
        YYYYMMDD, copied to the result.
    settings : LinkSettings, optional

    Returns
    -------
    list of Tracklet
        By ``trackid``; no detection is in two. The same detections in another order give the same list.

    Raises
    ------
    UsageError
        If columns are missing or fewer than 2 detections are asked for.
    """
    settings = settings or LinkSettings()
    missing = set(LINK_DTYPE.names or ()) - set(detections.dtype.names or ())
    if missing:
        raise UsageError(f"detections lack the columns {sorted(missing)}")
    if settings.min_detections < 2:
        raise UsageError("a tracklet has at least two detections")
    usable = np.isfinite(detections["ra"]) & np.isfinite(detections["dec"]) & np.isfinite(detections["jd"])
    rows = detections[usable]
    rows = rows[np.lexsort((rows["candid"], rows["jd"]))]
    if len(rows):
        rows = rows[~repeated_places(rows, settings)]
    if len(rows) < settings.min_detections:
        return []
    lines = _moving(rows, list(_propose(rows, settings)), settings)
    chosen = _choose(lines, rows["candid"])
    return sorted((_tracklet(rows, line, night) for line in chosen), key=lambda t: t.trackid)


def _chord(degrees: float) -> float:
    return float(2 * np.sin(np.radians(min(degrees, 180.0)) / 2))


def repeated_places(rows: Table, settings: LinkSettings) -> NDArray[np.bool_]:
    """Detections whose place was seen again when even the slowest mover would have left it."""
    tree = cKDTree(unit_vectors(rows["ra"], rows["dec"]))
    pairs = tree.query_pairs(_chord(settings.stationary / 3600.0), output_type="ndarray")
    apart = np.abs(rows["jd"][pairs[:, 0]] - rows["jd"][pairs[:, 1]])
    static = pairs[apart > settings.stationary / 3600.0 / settings.min_rate]
    flags = np.zeros(len(rows), bool)
    flags[static.reshape(-1)] = True
    return flags


def _partners(rows: Table, settings: LinkSettings) -> tuple[I64, I64]:
    """Pairs (earlier, later) whose rate, time and magnitudes are possible, sorted."""
    reach = _chord(settings.max_rate * settings.max_span)
    xyz = unit_vectors(rows["ra"], rows["dec"])
    pairs = cKDTree(xyz).query_pairs(reach, output_type="ndarray")
    first, second = pairs.min(axis=1), pairs.max(axis=1)  # rows are in order of time
    dt = rows["jd"][second] - rows["jd"][first]
    chord = np.linalg.norm(xyz[first] - xyz[second], axis=1)
    separation = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
    dmag = np.abs(rows["mag"][first] - rows["mag"][second])
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = separation / dt
    good = (dt > _SAME_EXPOSURE) & (dt <= settings.max_span) & ~(dmag > settings.max_dmag)
    good &= (rate >= settings.min_rate) & (rate <= settings.max_rate)
    first, second = first[good], second[good]
    order = np.lexsort((second, first))
    return first[order], second[order]


def _propose(rows: Table, settings: LinkSettings) -> Iterator[_Line]:
    """Every line from an earliest detection to a latest one, with all that lies on it in between."""
    first, second = _partners(rows, settings)
    starts = np.searchsorted(first, np.arange(len(rows) + 1))
    for i in np.unique(first).tolist():
        partners = second[starts[i] : starts[i + 1]]
        x, y = _tangent(rows, partners, i)
        t = rows["jd"][partners] - rows["jd"][i]
        if settings.min_detections == 2:
            yield from (line for k in partners.tolist() if (line := _fit(rows, (i, k), settings)))
        if len(partners) < 2:
            continue
        # Partner j at the time between i and k, against the straight way from i to k.
        fraction = t[None, :] / t[:, None]
        off = np.hypot(x[None, :] - fraction * x[:, None], y[None, :] - fraction * y[:, None]) * 3600.0
        between = (t[None, :] > _SAME_EXPOSURE) & (t[None, :] < t[:, None] - _SAME_EXPOSURE)
        # Three equal errors give a middle point this much more than their r.m.s.
        on_line = between & (off <= 2.0 * settings.max_rms)
        for k in np.flatnonzero(on_line.any(axis=1)).tolist():
            middle = _one_each(np.flatnonzero(on_line[k]), off[k], t)
            line = _fit(rows, (i, *partners[middle].tolist(), int(partners[k])), settings)
            if line is not None and len(line.members) >= settings.min_detections:
                yield line


def _tangent(rows: Table, which: I64, centre: int) -> tuple[F64, F64]:
    """Gnomonic places (deg) about one detection: great circles are straight."""
    a = np.radians(rows["ra"][which] - rows["ra"][centre])
    d, d0 = np.radians(rows["dec"][which]), np.radians(rows["dec"][centre])
    cosine = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    x = np.cos(d) * np.sin(a) / cosine
    y = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / cosine
    return np.degrees(x), np.degrees(y)


def _one_each(middle: I64, off: F64, t: F64) -> list[int]:
    """Of several detections in one exposure the one nearest to the line, in order of time."""
    best: dict[int, int] = {}
    for j in middle.tolist():
        exposure = round(float(t[j]) / _SAME_EXPOSURE)
        if exposure not in best or off[j] < off[best[exposure]]:
            best[exposure] = j
    return [best[exposure] for exposure in sorted(best)]


def _fit(rows: Table, members: tuple[int, ...], settings: LinkSettings) -> _Line | None:
    """Straight fit of the members; the worst one between the ends is left out while the residual is too large."""
    while True:
        index = np.array(members)
        x, y = _tangent(rows, index, members[0])
        t = rows["jd"][index] - rows["jd"][members[0]]
        basis = np.stack([np.ones_like(t), t], axis=1)
        solution, *_ = np.linalg.lstsq(basis, np.stack([x, y], axis=1), rcond=None)
        residual = np.hypot(*(np.stack([x, y], axis=1) - basis @ solution).T) * 3600.0
        rms = float(np.sqrt(np.mean(residual**2)))
        if rms <= settings.max_rms:
            break
        if len(members) <= 3:
            return None
        worst = 1 + int(np.argmax(residual[1:-1]))
        members = members[:worst] + members[worst + 1 :]
    magnitudes = rows["mag"][index]
    if np.isfinite(magnitudes).any() and np.nanmax(magnitudes) - np.nanmin(magnitudes) > settings.max_dmag:
        return None
    place, velocity = solution.tolist()
    return _Line(members, rms, tuple(place), tuple(velocity))


def _moving(rows: Table, lines: list[_Line], settings: LinkSettings) -> list[_Line]:
    """Those lines that leave their first place, and none of whose members stayed where it was.

    Exposures that follow each other within minutes see a variable star too soon for ``repeated_places``: two of them
    some arcseconds apart give lines from one to the other. The line's own speed says sooner what should be gone.
    """
    if not lines:
        return []
    members = np.unique(np.concatenate([line.members for line in lines]))
    xyz = unit_vectors(rows["ra"], rows["dec"])
    near = cKDTree(xyz).query_ball_point(xyz[members], _chord(0.5 * settings.stationary / 3600.0))
    # How long each member's place was occupied, by anything, at most: days from its own time.
    jd = rows["jd"]
    stayed = {int(m): float(np.abs(jd[there] - jd[m]).max()) for m, there in zip(members, near, strict=True)}
    leaving = settings.stationary / 3600.0
    found = []
    for line in lines:
        speed = float(np.hypot(*line.velocity))
        went = speed * (jd[line.members[-1]] - jd[line.members[0]])
        if went > leaving and speed * max(stayed[m] for m in line.members) <= leaving:
            found.append(line)
    return found


def _choose(lines: list[_Line], candids: NDArray[np.int64]) -> list[_Line]:
    """Longest tracklets first, then the straightest; none that shares a detection with a better one."""
    ids = candids.tolist()
    lines = sorted(lines, key=lambda line: (-len(line.members), line.rms, tuple(ids[m] for m in line.members)))
    taken: set[int] = set()
    chosen = []
    for line in lines:
        if taken.isdisjoint(line.members):
            taken.update(line.members)
            chosen.append(line)
    return chosen


def _tracklet(rows: Table, line: _Line, night: str) -> Tracklet:
    index = np.array(line.members)
    start = rows[index[0]]
    candids = tuple(int(c) for c in rows["candid"][index])
    vx, vy = line.velocity
    dec0 = np.radians(start["dec"])
    # Back from the tangent plane; the fit's first place is within its residual of the first member.
    x, y = np.radians(line.place[0]), np.radians(line.place[1])
    down = np.cos(dec0) - y * np.sin(dec0)
    ra = start["ra"] + np.degrees(np.arctan2(x, down))
    dec = np.degrees(np.arctan2(np.sin(dec0) + y * np.cos(dec0), np.hypot(x, down)))
    magnitudes = rows["mag"][index].astype(float)
    magnitude = float(np.median(magnitudes[np.isfinite(magnitudes)])) if np.isfinite(magnitudes).any() else float("nan")
    return Tracklet(
        min(candids), candids, float(start["jd"]), float(ra % 360.0), float(dec), float(np.hypot(vx, vy)),
        float(np.degrees(np.arctan2(vx, vy)) % 360.0), line.rms, magnitude, night,
    )  # fmt: skip
