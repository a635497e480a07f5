"""What a night was: the statement that closes it, made from what the archive and the quality records hold.

Pure. A manifest is a JSON document, kept as ``alerts/YYYYMMDD/manifest.json`` and sent (its public part) on
``ztf.nights``. Everything in it is deterministic but the times at which it was closed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stream.archive.packets import alert_index
from stream.archive.paths import manifest_path
from stream.archive.store import ProductStore
from stream.core.records import QuadrantReport, Row, Status

PROGRAMS = (0, 1, 2, 3)
PUBLIC = "1"
FORMAT = 1
_STATED_AT = ("version", "closed", "first_closed")  # what may differ between two statements of the same


def candid_hash(candids: Iterable[int]) -> str:
    """SHA-256 of the candids as decimal lines in ascending order: what ``sort -n | sha256sum`` gives."""
    return hashlib.sha256("".join(f"{candid}\n" for candid in sorted(candids)).encode()).hexdigest()


def packet_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the lines ``<candid> <SHA-256 of the packet>`` in ascending order of candids."""
    lines = sorted((row["candid"], row.get("sha256") or "") for row in rows)
    return hashlib.sha256("".join(f"{candid} {digest}\n" for candid, digest in lines).encode()).hexdigest()


def make_manifest(
    night: str,
    alerts: Mapping[int, Sequence[Row]],
    reports: Iterable[QuadrantReport],
    lost: Iterable[Row],
    closed: float,
    previous: Row | None = None,
) -> Row:
    """The statement about a night.

    Parameters
    ----------
    alerts : mapping
        Program to index rows of the archive (``alert_index``).
    reports : iterable of QuadrantReport
        Of the night; a later one of the same quadrant replaces an earlier.
    lost : iterable of mappings
        Quadrants (or whole packets) that became dead letters: ``name``, ``rid`` (None where unknown), ``programid``
        (None where unknown), ``stage``, ``reason``. Those that have a report are not lost.
    closed : float
        Now, unix seconds.
    previous : mapping, optional
        The manifest of this night so far: the new one is its next version, and alerts that were published after the
        first closing are late.
    """
    by_rid = {report.rid: report for report in reports}
    gone = [row for row in lost if row["rid"] is None or row["rid"] not in by_rid]
    first = previous["first_closed"] if previous else iso(closed)
    deadline = unix_of(first) if previous else closed
    seen = {r.programid for r in by_rid.values()} | {p for p, rows in alerts.items() if rows} | {1}
    programs = {
        str(program): {
            **_alerts(alerts.get(program, ()), deadline),
            **_quadrants([r for r in by_rid.values() if r.programid == program], _of(gone, program)),
        }
        for program in sorted(seen | {row["programid"] for row in gone if row["programid"] is not None})
    }
    return {
        "format": FORMAT,
        "night": night,
        "version": previous["version"] + 1 if previous else 1,
        "closed": iso(closed),
        "first_closed": first,
        "programs": programs,
        "unassigned": _plain(_of(gone, None)),
    }


def _of(rows: Iterable[Row], program: int | None) -> list[Row]:
    return [row for row in rows if row["programid"] == program]


def _alerts(rows: Sequence[Row], deadline: float) -> Row:
    candids = [row["candid"] for row in rows]
    topics: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("topic"):
            topics[row["topic"]].append(row)
    return {
        "alerts": len(candids),
        "late_alerts": sum((row.get("published") or 0.0) > deadline for row in rows),
        "first_candid": min(candids, default=None),
        "last_candid": max(candids, default=None),
        "sha256_candids": candid_hash(candids),
        "sha256_packets": packet_hash(rows),
        "topics": {topic: _offsets(found) for topic, found in sorted(topics.items())},
    }


def _offsets(rows: Sequence[Row]) -> Row:
    spans: dict[int, list[int]] = {}
    for row in rows:
        span = spans.setdefault(row["partition"], [row["kafka_offset"]] * 2)
        span[:] = min(span[0], row["kafka_offset"]), max(span[1], row["kafka_offset"])
    return {"alerts": len(rows), "offsets": {str(p): span for p, span in sorted(spans.items())}}


def _quadrants(reports: Sequence[QuadrantReport], gone: Sequence[Row]) -> Row:
    outcomes = Counter(report.status for report in reports)
    failed = [
        {"name": r.name, "stage": r.stage, "reason": r.reason} for r in reports if r.status is Status.FAILED
    ]  # fmt: skip
    channels: dict[int, set[int]] = defaultdict(set)
    for report in reports:
        channels[report.expid].add(report.rcid)
    for row in gone:
        if row["rid"] is not None:
            channels[row["rid"] // 100].add(row["rid"] % 100)
    every = set().union(*channels.values()) if channels else set()
    absent = {expid: sorted(every - found) for expid, found in sorted(channels.items()) if every - found}
    return {
        "exposures": len(channels),
        "quadrants": {
            "received": len(reports) + len(gone),
            "processed": outcomes[Status.OK],
            "no_reference": outcomes[Status.NO_REFERENCE],
            "failed": outcomes[Status.FAILED],
            "lost": len(gone),
            # Channels that other exposures of the night have and these lack: a CCD that never came.
            "never_came": sum(map(len, absent.values())),
        },
        "failed": sorted(failed, key=lambda row: str(row["name"])),
        "lost": _plain(gone),
        "never_came": {str(expid): rcids for expid, rcids in absent.items()},
    }


def _plain(rows: Iterable[Row]) -> list[Row]:
    plain = [{name: row[name] for name in ("name", "stage", "reason")} for row in rows]
    return sorted(plain, key=lambda row: (str(row["name"]), str(row["reason"])))


def same_statement(one: Row, other: Row) -> bool:
    """Whether two manifests say the same of the night, whenever they were made and whatever was late then."""
    return _content(one) == _content(other)


def _content(manifest: Row) -> Row:
    programs = {p: {**said, "late_alerts": None} for p, said in manifest["programs"].items()}
    return {**manifest, **dict.fromkeys(_STATED_AT), "programs": programs}


def public_part(manifest: Row) -> Row:
    """What everybody may know: program 1, and nothing of the others, not even how much they observed."""
    open_to_all = {p: said for p, said in manifest["programs"].items() if p == PUBLIC}
    return {**{k: v for k, v in manifest.items() if k != "unassigned"}, "programs": open_to_all}


def iso(seconds: float) -> str:
    """Unix seconds as ISO 8601 UTC, milliseconds kept."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix_of(text: str) -> float:
    """Unix seconds of an ISO 8601 time."""
    return dt.datetime.fromisoformat(text).timestamp()


def encode(manifest: Row) -> bytes:
    """A manifest's bytes."""
    return (json.dumps(manifest, indent=1, sort_keys=False) + "\n").encode()


def read_manifest(store: ProductStore, night: str) -> Row | None:
    """The manifest of a night, ``None`` where it was never closed."""
    data = store.find(manifest_path(night))
    if data is None:
        return None
    manifest: Row = json.loads(data)
    return manifest


def write_manifest(store: ProductStore, manifest: Row) -> str:
    """Keep a manifest; returns its path."""
    path = manifest_path(manifest["night"])
    store.write(path, encode(manifest))
    return path


def archived_alerts(store: ProductStore, night: str) -> dict[int, list[Row]]:
    """Index rows of a night's alerts by program."""
    return {program: alert_index(store, night, program) for program in PROGRAMS}
