"""What the science asks of the outside, answered from the store: calibration, catalogues, references."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import numpy as np

from stream.archive.learned import LearnedShelf
from stream.archive.paths import reference_path
from stream.archive.shelf import CalibrationShelf, Product, Version
from stream.archive.store import ProductStore
from stream.core.errors import MessageError, StoreUnavailable
from stream.core.records import (
    CalibrationFrame,
    CalibrationSet,
    InstrumentModel,
    PixelMask,
    Quadrant,
    Reference,
    Table,
)

# A full-size frame with its bad pixels takes 57 MB (one channel needs bias, flat, low-frequency flat and pixel mask:
# 170 MB), a reference 95 MB. A worker is to stay under 1.5 GB with the 0.6 GB that one quadrant takes.
CALIBRATION_BYTES = 570 << 20
REFERENCE_BYTES = 285 << 20
PREPARED_BYTES = 110 << 20  # what subtraction makes of one

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


def _size(product: Product) -> int:
    """Bytes that a product takes in memory."""
    if isinstance(product, CalibrationFrame):
        return int(product.data.nbytes + product.badpix.nbytes)
    return int(product.mask.nbytes) if isinstance(product, PixelMask) else 4096


def _array_bytes(record: object) -> int:
    """Bytes of the arrays in a record."""
    if not dataclasses.is_dataclass(record):
        return int(getattr(record, "nbytes", 0))
    values = (getattr(record, f.name) for f in dataclasses.fields(record))
    return sum(int(value.nbytes) for value in values if isinstance(value, np.ndarray))


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
        self._shelf = CalibrationShelf(store)
        self._learned = LearnedShelf(store)
        self._products: BoundedCache[Product] = BoundedCache(calibration_bytes, _size)
        self._references: BoundedCache[Reference] = BoundedCache(
            reference_bytes, lambda r: int(r.data.nbytes + r.unc.nbytes + r.coverage.nbytes)
        )

        self._prepared: BoundedCache[object] = BoundedCache(PREPARED_BYTES, _array_bytes)

    def calibration(self, quadrant: Quadrant) -> CalibrationSet:
        """The newest products valid for the exposure (``archive.shelf`` says which are); None where there is none.

        Frames come without their uncertainties (NaN): calibrating an image does not use them.
        """
        fid, rcid = quadrant.exposure.fid, quadrant.rcid
        frames = {
            kind: self._frame(quadrant, kind, fid if by_filter else 0, rcid)
            for kind, by_filter in (
                ("bias", False), ("hifreqflat", True), ("loflat", True), ("fringe", True), ("shutter", False),
            )
        }  # fmt: skip
        mask = self._newest(quadrant, "pmask", fid, rcid) or self._newest(quadrant, "pmask", 0, rcid)
        model = self._newest(quadrant, "instrument", 0, rcid - rcid % 4)
        learned = self._learned.of(rcid)
        return CalibrationSet(
            bias=frames["bias"],
            flat=frames["hifreqflat"],
            loflat=frames["loflat"],
            fringe=frames["fringe"],
            shutter=frames["shutter"],
            pixelmask=mask if isinstance(mask, PixelMask) else None,
            instrument=model if isinstance(model, InstrumentModel) else None,
            persistent=learned.persistent,
            ghosts=learned.ghosts,
            distortion=learned.distortion.get(fid),
        )

    def _frame(self, quadrant: Quadrant, kind: str, fid: int, rcid: int) -> CalibrationFrame | None:
        found = self._newest(quadrant, kind, fid, rcid)
        return found if isinstance(found, CalibrationFrame) else None

    def _newest(self, quadrant: Quadrant, kind: str, fid: int, rcid: int) -> Product | None:
        return self._shelf.newest(kind, fid, rcid, quadrant.exposure.night, quadrant.exposure.jd, self._load)

    def _load(self, version: Version) -> Product:
        def load() -> Product:
            product = self._shelf.read(version)
            if product is None:
                raise StoreUnavailable(f"{version.path} was there a moment ago")
            return product

        return self._products.get(version.path, version.stamp, load)

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

    def prepared(self, reference: Reference, make: Callable[[Reference], V]) -> V:
        """What ``make`` makes of a reference, remembered by its version."""
        key = reference.rfid, reference.version, make
        made: V = self._prepared.get(key, "", lambda: make(reference))  # type: ignore[assignment]
        return made

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
