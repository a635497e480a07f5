"""Which reference images a store has, version by version, and a person's word which one is to be used.

The reference in use has the survey's path. What was in use before lies beside it under ``versions/VERSION``, whole and
for good: every alert and every difference image names the version it was made with. A pin is a small JSON file: it
says which version, who said so and why, and holds off automatic rebuilding (``stream.reference.update``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from stream.archive import catalogs
from stream.archive.paths import VERSIONS, reference_folder
from stream.archive.store import ProductStore
from stream.core.errors import MessageError, UsageError
from stream.core.identity import FILTER_IDS
from stream.core.records import Row

Where = tuple[int, int, int]  # field, fid, rcid


@dataclass(frozen=True, slots=True)
class ReferenceVersion:
    """One version of one reference; ``log`` is its ``reflog.json``."""

    field: int
    fid: int
    rcid: int
    version: str
    in_use: bool
    pinned: bool
    log: Row


@dataclass(frozen=True, slots=True)
class ReferencePin:
    """A person's word."""

    version: str
    who: str
    why: str


class ReferenceShelf:
    """The references of a store."""

    def __init__(self, store: ProductStore) -> None:
        self._store = store

    def places(self, field: int | None = None, fid: int | None = None, rcid: int | None = None) -> Iterator[Where]:
        """Fields, filters and channels that have a reference, in order."""
        for group in self._store.names("ref"):
            for folder in self._store.names(f"ref/{group}"):
                number = folder.removeprefix("field")
                if not number.isdigit() or field not in (None, int(number)):
                    continue
                yield from self._of_field(f"ref/{group}/{folder}", int(number), fid, rcid)

    def _of_field(self, folder: str, field: int, fid: int | None, rcid: int | None) -> Iterator[Where]:
        for code in self._store.names(folder):
            if code not in FILTER_IDS or fid not in (None, FILTER_IDS[code]):
                continue
            for ccd in self._store.names(f"{folder}/{code}"):
                for q in self._store.names(f"{folder}/{code}/{ccd}"):
                    channel = 4 * (int(ccd.removeprefix("ccd")) - 1) + int(q.removeprefix("q")) - 1
                    where = field, FILTER_IDS[code], channel
                    if rcid in (None, channel) and self._store.reference_log(*where) is not None:
                        yield where

    def versions(self, where: Where) -> list[ReferenceVersion]:
        """The version in use, then the others by the time of their last exposure, newest first."""
        current, pin = self._store.reference_log(*where), self.pinned(where)
        if current is None:
            return []
        logs = [current]
        names = self._store.names(f"{reference_folder(*where)}/{VERSIONS}")
        kept = [self._store.reference_log(*where, name) for name in names if name != current["version"]]
        logs += sorted((log for log in kept if log is not None), key=_last_exposure, reverse=True)
        return [
            ReferenceVersion(
                *where, str(log["version"]), k == 0, pin is not None and pin.version == log["version"], log
            )
            for k, log in enumerate(logs)
        ]  # fmt: skip

    def use(self, where: Where, version: str) -> None:
        """Put a version in use again.

        Raises
        ------
        UsageError
            There is no such version.
        """
        current = self._store.reference_log(*where)
        if current is not None and current["version"] == version:
            return
        files = self._store.reference_files(*where, version)
        if files is None:
            known = ", ".join(v.version for v in self.versions(where)) or "there is none"
            raise UsageError(f"field {where[0]}, rcid {where[2]} has no reference of version {version}: {known}")
        self._store.replace_reference(*where, version, files)

    def pin(self, where: Where, pin: ReferencePin) -> None:
        """Put a version in use and hold it there."""
        self.use(where, pin.version)
        self._store.write(_pin_path(where), catalogs.json_bytes(asdict(pin)))

    def unpin(self, where: Where) -> None:
        """Let it be replaced again; one that nobody pinned is no error."""
        self._store.remove(_pin_path(where))

    def pinned(self, where: Where) -> ReferencePin | None:
        """The pin; None where a person said nothing."""
        data = self._store.find(_pin_path(where))
        if data is None:
            return None
        try:
            return ReferencePin(**catalogs.read_json(data))
        except TypeError as error:
            raise MessageError(f"{_pin_path(where)} is no pin of ours ({error}): remove it") from error


def _pin_path(where: Where) -> str:
    return f"{reference_folder(*where)}/pin.json"


def _last_exposure(log: Row) -> tuple[str, str]:
    # Names of exposures begin with their time.
    return max(log["inputs"], default=""), str(log["version"])
