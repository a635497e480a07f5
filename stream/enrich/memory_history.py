"""``History`` in this process's memory: for ``process`` and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stream.core.records import QuadrantReport, Row
from stream.enrich.history import (
    NEAR_RADIUS,
    OBJECT_CELL,
    Epoch,
    Event,
    Match,
    cell_of,
    cells_around,
    covers_nearly,
    first_free,
    is_stale,
    nearest_object,
    separation,
)

_Entry = tuple[float, float, float, float]  # ra, dec, first and last jd


class MemoryHistory:
    """See ``History``."""

    def __init__(self) -> None:
        self._epochs: dict[int, Epoch] = {}
        self._objects: dict[tuple[int, int], dict[str, _Entry]] = {}
        self._places: dict[str, tuple[float, float]] = {}  # of every name ever given
        self._names: dict[int, str] = {}  # candid -> object
        self._detections: dict[str, dict[int, Row]] = {}
        self._movers: dict[int, int] = {}
        self._public_movers: dict[int, int] = {}
        self._forced: dict[str, dict[int, Row | None]] = {}

    def add_epoch(self, report: QuadrantReport) -> None:
        """See ``History``."""
        if report.corners:
            self._epochs[report.pid] = Epoch.of(report)

    def match(self, events: Sequence[Event]) -> list[Match]:
        """See ``History``."""
        return [self._match(event) for event in events]

    def _match(self, event: Event) -> Match:
        near = dict(self._around(event))
        name = self._names.get(event.candid)
        if name is None and not event.moving:
            name = nearest_object(event.ra, event.dec, [(n, r, d) for n, (r, d, _, _) in near.items()])
        if name is None:
            name = first_free(event.jd, event.candid, self._places)
            self._places[name] = event.ra, event.dec
            if not event.moving:
                self._cell(event.ra, event.dec)[name] = event.ra, event.dec, event.jd, event.jd
        self._names[event.candid] = name
        self._extend(name, event.jd)
        close = [n for n, (r, d, _, _) in near.items() if separation(event.ra, event.dec, r, d) <= NEAR_RADIUS]
        return Match(name, *self._places[name], (name,) if event.moving else tuple(sorted({name, *close})))

    def _cell(self, ra: float, dec: float) -> dict[str, _Entry]:
        return self._objects.setdefault(cell_of(ra, dec, OBJECT_CELL), {})

    def _around(self, event: Event) -> Iterator[tuple[str, _Entry]]:
        for cell in cells_around(event.ra, event.dec, OBJECT_CELL):
            members = self._objects.get(cell, {})
            for name, entry in list(members.items()):
                if is_stale(entry[2], entry[3], event.jd):
                    del members[name]
                else:
                    yield name, entry

    def _extend(self, name: str, jd: float) -> None:
        """The object was seen at ``jd`` too."""
        members = self._cell(*self._places[name])
        if name in members:
            ra, dec, first, last = members[name]
            members[name] = ra, dec, min(first, jd), max(last, jd)

    def add_object(self, name: str, ra: float, dec: float, jd: float, candid: int, *, moving: bool = False) -> None:
        """See ``History``."""
        self._names[candid] = name
        place = self._places.setdefault(name, (ra, dec))
        if not moving:
            self._cell(*place).setdefault(name, (*place, jd, jd))
            self._extend(name, jd)

    def add_detections(self, rows: Sequence[tuple[str, Row]]) -> None:
        """See ``History``."""
        for name, row in rows:
            self._detections.setdefault(name, {})[row["candid"]] = row

    def detections(self, names: Sequence[str]) -> dict[str, list[Row]]:
        """See ``History``."""
        return {name: list(self._detections.get(name, {}).values()) for name in names}

    def epochs(self, ra: Sequence[float], dec: Sequence[float], jd: float) -> list[Epoch]:
        """See ``History``."""
        places = list(zip(ra, dec, strict=True))
        found = [
            e for e in self._epochs.values() if e.jd < jd and any(covers_nearly(e.corners, r, d) for r, d in places)
        ]
        return sorted(found, key=lambda e: (e.jd, e.pid))

    def add_movers(self, members: Mapping[int, int], night: str, *, public: bool = False) -> None:
        """See ``History``."""
        if public:
            self._public_movers |= members
            return
        self._movers |= members
        for candid in members:
            name = self._names.get(candid)
            if name is not None and self._movers.keys() >= self._detections.get(name, {}).keys():
                self._cell(*self._places[name]).pop(name, None)

    def movers(self, candids: Sequence[int], night: str, *, public: bool = False) -> dict[int, int]:
        """See ``History``."""
        known = self._public_movers if public else self._movers
        return {candid: known[candid] for candid in candids if candid in known}

    def forced(self, names: Sequence[str]) -> dict[str, dict[int, Row | None]]:
        """See ``History``."""
        return {name: dict(self._forced.get(name, {})) for name in names}

    def add_forced(self, points: Sequence[tuple[str, int, Row | None]]) -> list[Row | None]:
        """See ``History``."""
        return [self._forced.setdefault(name, {}).setdefault(pid, row) for name, pid, row in points]
