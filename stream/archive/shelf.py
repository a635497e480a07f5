"""Which version of a calibration product is to be used: the newest valid one, unless a person said otherwise.

Versions are nights. One is valid for an exposure if none of the frames it is made of is newer than the exposure (those
of the same afternoon are not), and if no person vetoed it. A person may also pin a version: it is then used for every
exposure that it is valid for. A veto or pin is a small JSON file in the store, under ``cal/veto`` and ``cal/pin``, with
who said so and why; taking it back removes the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain

from stream.archive import catalogs, frames
from stream.archive.paths import (
    CALIBRATION_KINDS,
    INSTRUMENT,
    PINS,
    VETOES,
    calibration_code,
    calibration_path,
    instrument_path,
    pin_path,
    veto_path,
)
from stream.archive.store import ProductStore
from stream.core.errors import MessageError, UsageError
from stream.core.identity import FILTER_CODES
from stream.core.instrument import CALIBRATION_TYPES, calid_of, nid_of_night, night_of_nid
from stream.core.records import CalibrationFrame, InstrumentModel, PixelMask

Product = CalibrationFrame | PixelMask | InstrumentModel
KINDS = (*CALIBRATION_KINDS, INSTRUMENT)


@dataclass(frozen=True, slots=True)
class Version:
    """One night's product of a channel; an instrument model goes by the first channel of its CCD. ``stamp`` changes
    when the file does."""

    kind: str
    night: str
    fid: int
    rcid: int
    stamp: str

    @property
    def calid(self) -> str:
        """Calibration identifier."""
        return calid_of(self.kind, nid_of_night(self.night), self.rcid, self.fid)

    @property
    def path(self) -> str:
        """Where it lies in the store."""
        return product_path(self.kind, self.night, self.fid, self.rcid)


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's word about a version: ``action`` veto or pin."""

    action: str
    kind: str
    calid: str
    night: str
    fid: int
    rcid: int
    who: str
    why: str
    when: str  # ISO 8601 UTC


def product_path(kind: str, night: str, fid: int, rcid: int) -> str:
    """Path of any calibration product."""
    if kind == INSTRUMENT:
        return instrument_path(night, rcid // 4 + 1)
    return calibration_path(night, kind, fid, rcid)


def version_of(calid: str) -> tuple[str, str, int, int] | None:
    """Kind, night, filter and channel of a calibration identifier; None where it is none."""
    kinds = {str(number): kind for kind, number in CALIBRATION_TYPES.items()}
    if not (calid.isascii() and calid.isdigit() and 6 <= len(calid) <= 9) or calid[-1] not in kinds:
        return None
    nid, rcid, fid, kind = int(calid[:-5]), int(calid[-5:-3]), int(calid[-3:-1]), kinds[calid[-1]]
    if rcid > 63 or fid > 3 or kind not in KINDS:
        return None
    return kind, night_of_nid(nid), fid, rcid


class CalibrationShelf:
    """The calibration products of a store."""

    def __init__(self, store: ProductStore) -> None:
        self._store = store

    def nights(self) -> Iterator[str]:
        """Nights (YYYYMMDD) that have any product, newest first."""
        for year in reversed(self._store.names("cal")):
            if year.isdigit():
                for day in reversed(self._store.names(f"cal/{year}")):
                    yield year + day

    def newest(
        self,
        kind: str,
        fid: int,
        rcid: int,
        night: str,
        jd: float,
        load: Callable[[Version], Product],
    ) -> Product | None:
        """The product to use for an exposure of ``night`` (YYYYMMDD) that starts at ``jd``; None where none is valid.

        ``load`` reads (or remembers) a version; it is called for what may be used, no other.
        """
        vetoes = set(self._store.names(VETOES))
        pinned = self.pinned(kind, fid, rcid)
        candidates: Iterable[str] = (found for found in self.nights() if found <= night)
        if pinned is not None and pinned.night <= night:
            candidates = chain([pinned.night], candidates)
        for found in candidates:
            version = self.version(kind, found, fid, rcid)
            if version is None or veto_path(kind, version.calid).rpartition("/")[2] in vetoes:
                continue
            product = load(version)
            if float(product.qa.get("jd_end", 0.0)) <= jd:
                return product
        return None

    def version(self, kind: str, night: str, fid: int, rcid: int) -> Version | None:
        """One version; None where there is none of that night."""
        stamp = self._store.stamp(product_path(kind, night, fid, rcid))
        return None if stamp is None else Version(kind, night, fid, rcid, stamp)

    def read(self, version: Version) -> Product | None:
        """The product of a version, without uncertainties; None where it went away.

        Raises
        ------
        MessageError
            The file is damaged.
        """
        data = self._store.find(version.path)
        if data is None:
            return None
        if version.kind == INSTRUMENT:
            return frames.decode_instrument(data)
        return frames.decode_pixelmask(data) if version.kind == "pmask" else frames.decode_calibration(data)

    def versions(self, kind: str | None = None, rcid: int | None = None, night: str | None = None) -> Iterator[Version]:
        """All versions, newest night first, then by kind, filter and channel.

        Raises
        ------
        UsageError
            No such kind.
        """
        if kind is not None and kind not in KINDS:
            raise UsageError(f"no calibration product {kind!r}: known are {', '.join(KINDS)}")
        for found in self.nights():
            if night is not None and found != night:
                continue
            present = set(self._store.names(f"cal/{found[:4]}/{found[4:]}"))
            for one in KINDS:
                if one in present and kind in (None, one):
                    yield from self._of_night(one, found, rcid)

    def _of_night(self, kind: str, night: str, rcid: int | None) -> Iterator[Version]:
        folder = f"cal/{night[:4]}/{night[4:]}/{kind}"
        codes = set(self._store.names(folder))
        for fid in (0,) if kind == INSTRUMENT else (0, *FILTER_CODES):
            if kind != INSTRUMENT and ((kind == "bias" and fid) or calibration_code(kind, fid) not in codes):
                continue
            channels = range(0, 64, 4) if kind == INSTRUMENT else range(64)
            for channel in channels:
                if rcid is None or channel == (rcid - rcid % 4 if kind == INSTRUMENT else rcid):
                    version = self.version(kind, night, fid, channel)
                    if version is not None:
                        yield version

    def pinned(self, kind: str, fid: int, rcid: int) -> Decision | None:
        """The pin of a channel; None where a person said nothing."""
        return self._decision(pin_path(kind, fid, rcid))

    def vetoed(self, version: Version) -> Decision | None:
        """The veto of a version; None where a person said nothing."""
        return self._decision(veto_path(version.kind, version.calid))

    def decide(self, decision: Decision) -> str:
        """Keep a person's word; returns its path."""
        path = _decision_path(decision)
        self._store.write(path, catalogs.json_bytes(asdict(decision)))
        return path

    def take_back(self, decision: Decision) -> None:
        """Forget a person's word."""
        self._store.remove(_decision_path(decision))

    def decisions(self) -> list[Decision]:
        """All vetoes and pins."""
        paths = [f"{folder}/{name}" for folder in (VETOES, PINS) for name in self._store.names(folder)]
        found = [self._decision(path) for path in paths]
        return [decision for decision in found if decision is not None]

    def _decision(self, path: str) -> Decision | None:
        data = self._store.find(path)
        if data is None:
            return None
        try:
            return Decision(**catalogs.read_json(data))
        except TypeError as error:
            raise MessageError(f"{path} is no veto or pin of ours ({error}): remove it and say it again") from error


def _decision_path(decision: Decision) -> str:
    if decision.action == "veto":
        return veto_path(decision.kind, decision.calid)
    return pin_path(decision.kind, decision.fid, decision.rcid)
