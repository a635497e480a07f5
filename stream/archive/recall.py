"""What the store remembers of the last two months, given back to a history that starts empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stream.alert.schema import PRV_FIELDS
from stream.archive import catalogs
from stream.archive.packets import archived_nights, iterate_alerts
from stream.archive.products import science_files
from stream.archive.store import ProductStore
from stream.core.identity import night_of
from stream.core.records import QuadrantReport, Row

KEEP_DAYS = 60  # what a packet counts reaches back (stream.enrich.history); its history half of it


class Remembers(Protocol):
    """The part of a history (``stream.enrich.MemoryHistory``) that is filled here."""

    def add_epoch(self, report: QuadrantReport) -> None:
        """Remember an epoch's footprint and depth."""
        ...

    def add_object(self, name: str, ra: float, dec: float, jd: float, candid: int, *, moving: bool = False) -> None:
        """Remember an object's name and place, or another detection of it."""
        ...

    def add_detections(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Remember detections: objectId and row each."""
        ...

    def add_forced(self, points: Sequence[tuple[str, int, Row | None]]) -> object:
        """Remember forced points: objectId, pid and row each."""
        ...


def recall_history(store: ProductStore, history: Remembers, jd: float) -> int:
    """Tell ``history`` the epochs and detections of the 60 days up to the night of ``jd``; how many detections.

    Objects are told in the order of their first detection, so that an object's place is that of the first one.
    """
    first, last = night_of(jd - KEEP_DAYS), night_of(jd)
    for _, path in science_files(store, "_qa.json", first, last):
        report = catalogs.read_quality(store.read(path))
        if report.corners:
            history.add_epoch(report)
    nights = [night for night in archived_nights(store) if first <= night <= last]
    found = []
    for night in nights:
        for record in iterate_alerts(store, night):
            candidate = record["candidate"]
            row = {name: candidate.get(name) for name in PRV_FIELDS}
            points = [(record["objectId"], point["pid"], point) for point in record["fp_hists"] or []]
            found.append((candidate["jd"], candidate["candid"], record["objectId"], row, points))
    for jd_seen, candid, name, row, points in sorted(found, key=lambda item: item[:2]):
        history.add_object(name, row["ra"], row["dec"], jd_seen, candid)
        history.add_detections([(name, row)])
        history.add_forced(points)
    return len(found)
