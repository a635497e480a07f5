"""What the science asks of the outside, answered from the store: calibration, catalogues, references."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from stream.archive.paths import CALIBRATION_KINDS, calibration_path, reference_path
from stream.archive.store import ProductStore
from stream.core.errors import MessageError, StoreUnavailable
from stream.core.records import CalibrationFrame, CalibrationSet, Quadrant, Reference, Table

# A full-size frame with its bad pixels takes 57 MB, a reference 95 MB. A worker is to stay under 1.5 GB with the
# 0.6 GB that one quadrant takes: ten frames and three references stay.
CALIBRATION_BYTES = 570 << 20
REFERENCE_BYTES = 285 << 20

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """The most recently used values, as many as fit into ``limit`` bytes; each valid as long as its stamp."""

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self._limit = limit
        self._size = size
        self._values: OrderedDict[Hashable, tuple[str, V]] = OrderedDict()

    def get(self, key: Hashable, stamp: str, load: Callable[[], V]) -> V:
        """The value of ``key``, loaded where it is not there or its stamp is another."""
        known = self._values.pop(key, None)
        if known is None or known[0] != stamp:
            known = stamp, load()
        self._values[key] = known
        total = sum(self._size(value) for _, value in self._values.values())
        while total > self._limit and len(self._values) > 1:
            _, (_, oldest) = self._values.popitem(last=False)
            total -= self._size(oldest)
        return known[1]

    def __len__(self) -> int:
        return len(self._values)


class Catalogs(Protocol):
    """Cones of the reference catalogues (``stream.sky.CatalogTiles``)."""

    def gaia(self, ra: float, dec: float, radius: float) -> Table:
        """Gaia stars."""
        ...

    def ps1(self, ra: float, dec: float, radius: float) -> Table:
        """Pan-STARRS1 objects."""
        ...

    def bright(self, ra: float, dec: float, radius: float) -> Table:
        """Bright stars."""
        ...


class StoreInputs:
    """``QuadrantInputs`` from a product store.

    Parameters
    ----------
    store : ProductStore
        Where frames and references are.
    catalogs : optional
        Catalogue cones; by default the sky tiles of the same store.
    calibration_bytes, reference_bytes : int
        How much of each stays in memory. A worker of one readout channel needs two frames; one that serves more
        channels than fit reads them again, 0.1 s a frame.
    """

    def __init__(
        self,
        store: ProductStore,
        catalogs: Catalogs | None = None,
        *,
        calibration_bytes: int = CALIBRATION_BYTES,
        reference_bytes: int = REFERENCE_BYTES,
    ) -> None:
        self._store = store
        self._catalogs = catalogs
        self._frames: BoundedCache[CalibrationFrame] = BoundedCache(
            calibration_bytes, lambda frame: int(frame.data.nbytes + frame.badpix.nbytes)
        )
        self._references: BoundedCache[Reference] = BoundedCache(
            reference_bytes, lambda r: int(r.data.nbytes + r.unc.nbytes + r.coverage.nbytes)
        )

    def calibration(self, quadrant: Quadrant) -> CalibrationSet:
        """The newest bias and flat of the exposure's night or an earlier one; None where there is none.

        Frames come without their uncertainties (NaN): calibrating an image does not use them.
        """
        night, fid, rcid = quadrant.exposure.night, quadrant.exposure.fid, quadrant.rcid
        bias, flat = CALIBRATION_KINDS
        return CalibrationSet(self._newest(night, bias, 0, rcid), self._newest(night, flat, fid, rcid))

    def _newest(self, night: str, kind: str, fid: int, rcid: int) -> CalibrationFrame | None:
        for year in reversed(self._store.names("cal")):
            if year > night[:4]:
                continue
            for day in reversed(self._store.names(f"cal/{year}")):
                found = year + day
                if found > night:
                    continue
                stamp = self._store.stamp(calibration_path(found, kind, fid, rcid))
                if stamp is not None:
                    return self._frame(found, kind, fid, rcid, stamp)
        return None

    def _frame(self, night: str, kind: str, fid: int, rcid: int, stamp: str) -> CalibrationFrame:
        def load() -> CalibrationFrame:
            frame = self._store.read_calibration(night, kind, fid, rcid, unc=False)
            if frame is None:
                raise StoreUnavailable(f"{calibration_path(night, kind, fid, rcid)} was there a moment ago")
            return frame

        return self._frames.get((night, kind, fid, rcid), stamp, load)

    def reference(self, quadrant: Quadrant) -> Reference | None:
        """The current reference of the quadrant's field, filter and channel; None where there is none."""
        where = quadrant.exposure.field, quadrant.exposure.fid, quadrant.rcid
        stamp = self._store.stamp(reference_path(*where, "reflog.json"))
        if stamp is None:
            return None

        def load() -> Reference:
            try:
                reference = self._store.read_reference(*where)
            except MessageError as error:  # most often it is being replaced: the next try finds it whole
                raise StoreUnavailable(f"reference of field {where[0]}, rcid {where[2]}: {error}") from error
            if reference is None:
                raise StoreUnavailable(f"the reference of field {where[0]}, rcid {where[2]} is incomplete")
            return reference

        return self._references.get(where, stamp, load)

    def _tiles(self) -> Catalogs:
        if self._catalogs is None:
            from stream.sky import CatalogTiles

            self._catalogs = CatalogTiles(self._store.url)
        return self._catalogs

    def gaia(self, ra: float, dec: float, radius: float) -> Table:
        """Gaia stars (``GAIA_DTYPE``) within ``radius`` deg."""
        return self._tiles().gaia(ra, dec, radius)

    def ps1(self, ra: float, dec: float, radius: float) -> Table:
        """Pan-STARRS1 objects (``PS1_DTYPE``) within ``radius`` deg."""
        return self._tiles().ps1(ra, dec, radius)

    def bright(self, ra: float, dec: float, radius: float) -> Table:
        """Bright stars (``BRIGHT_DTYPE``) within ``radius`` deg."""
        return self._tiles().bright(ra, dec, radius)
