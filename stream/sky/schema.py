"""What a catalogue table has: its columns, their types on disk, its tiles and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream.core.errors import UsageError
from stream.core.records import BRIGHT_DTYPE, GAIA_DTYPE, PS1_DTYPE


@dataclass(frozen=True, slots=True)
class CatalogKind:
    """One kind of catalogue.

    ``order`` is the HEALPix order (nested) of its tiles; ``key`` the column that identifies a row; ``required``
    the columns without which a table is refused, ``optional`` those that are null where a table has none.
    """

    name: str
    dtype: np.dtype[np.void]
    order: int
    key: str
    ra: str
    dec: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of ours, in their order."""
        return self.dtype.names or ()


def _kind(name: str, dtype: np.dtype[np.void], order: int, place: tuple[str, str, str], optional: str) -> CatalogKind:
    names = dtype.names or ()
    left = tuple(optional.split())
    return CatalogKind(name, dtype, order, *place, tuple(n for n in names if n not in left), left)


# Order 5: 1.8 degrees across, so a quadrant's cone touches one to four. Bright stars are few: order 2, 15 degrees.
KINDS = {
    kind.name: kind
    for kind in (
        _kind("gaia", GAIA_DTYPE, 5, ("source_id", "ra", "dec"), "ra_error dec_error parallax bp_rp"),
        _kind("ps1", PS1_DTYPE, 5, ("objID", "raMean", "decMean"), "ps_score"),
        _kind("bright", BRIGHT_DTYPE, 2, ("name", "ra", "dec"), ""),
    )
}
ORBITS = "orbits"
ALL_KINDS = (*KINDS, ORBITS)
PS1_MISSING = -999.0  # the Pan-STARRS archive's own null


def kind_named(name: str) -> CatalogKind:
    """The kind of that name; ``UsageError`` names the known ones."""
    try:
        return KINDS[name]
    except KeyError:
        raise UsageError(f"no catalogue {name!r}: known are {', '.join(ALL_KINDS)}") from None


def folder(root: str, kind: str) -> str:
    """Where a kind's files lie under the store's root."""
    return f"{root.rstrip('/')}/catalogs/{kind}"


def tile_path(root: str, kind: CatalogKind, npix: int) -> str:
    """Path of one tile, in the naming of HATS and Hive partitions."""
    return f"{folder(root, kind.name)}/norder={kind.order}/npix={npix}.parquet"
