"""Cone queries on the imported catalogues."""

from __future__ import annotations

import io
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from astropy import units as u
from astropy_healpix import HEALPix
from numpy.typing import NDArray

from stream.core.errors import StoreUnavailable, UsageError
from stream.core.records import Table
from stream.sky.files import Files
from stream.sky.schema import KINDS, CatalogKind, tile_path

F64 = NDArray[np.float64]

# Rows kept in memory over all tiles: 160 MB of Gaia rows. Four tiles of an ordinary field hold some 1e5.
CACHED_ROWS = 2_000_000


@dataclass(frozen=True, slots=True)
class _Tile:
    stamp: str
    rows: Table
    vectors: F64  # (3, n) unit vectors: no pole, no 24 h


class CatalogTiles:
    """The catalogues of a store, by cone. Tiles are read once, kept while there is room, reread when replaced.

    Parameters
    ----------
    root : str
        fsspec URL of the store.
    cached_rows : int
        Rows kept in memory; the tiles that were asked for longest ago go first.
    """

    def __init__(self, root: str, cached_rows: int = CACHED_ROWS) -> None:
        self._files = Files(root)
        self._cached_rows = cached_rows
        self._tiles: OrderedDict[str, _Tile] = OrderedDict()

    def gaia(self, ra: float, dec: float, radius: float) -> Table:
        """Gaia stars (``GAIA_DTYPE``) within ``radius`` deg of (ra, dec), ordered by tile and source_id.

        Empty where nothing is imported. Missing numbers are NaN.
        """
        return self._cone(KINDS["gaia"], ra, dec, radius)

    def ps1(self, ra: float, dec: float, radius: float) -> Table:
        """Pan-STARRS1 objects (``PS1_DTYPE``), likewise."""
        return self._cone(KINDS["ps1"], ra, dec, radius)

    def bright(self, ra: float, dec: float, radius: float) -> Table:
        """Bright stars (``BRIGHT_DTYPE``), likewise."""
        return self._cone(KINDS["bright"], ra, dec, radius)

    def _cone(self, kind: CatalogKind, ra: float, dec: float, radius: float) -> Table:
        if not (np.isfinite([ra, dec, radius]).all() and -90 <= dec <= 90 and radius >= 0):
            raise UsageError(f"no cone at ra {ra}, dec {dec} with radius {radius} (degrees)")
        a, d = np.radians(ra), np.radians(dec)
        centre = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
        # The chord, not the cosine: a cosine loses all digits for small cones.
        limit = 4.0 * np.sin(np.radians(min(radius, 180.0)) / 2) ** 2
        parts = []
        for npix in tiles_near(kind.order, centre, radius):
            tile = self._tile(kind, int(npix))
            if tile is None:
                continue
            inside = np.zeros(len(tile.rows))
            for axis in range(3):
                inside += (tile.vectors[axis] - centre[axis]) ** 2
            parts.append(tile.rows[inside <= limit])
        return np.concatenate(parts) if parts else np.zeros(0, kind.dtype)

    def _tile(self, kind: CatalogKind, npix: int) -> _Tile | None:
        path = tile_path(self._files.root, kind, npix)
        stamp = self._files.stamp(path)
        if stamp is None:
            self._tiles.pop(path, None)
            return None
        tile = self._tiles.get(path)
        if tile is None or tile.stamp != stamp:
            tile = self._read(kind, path, stamp)
            if tile is None:
                return None
            self._tiles[path] = tile
        self._tiles.move_to_end(path)
        while len(self._tiles) > 1 and sum(len(t.rows) for t in self._tiles.values()) > self._cached_rows:
            self._tiles.popitem(last=False)
        return tile

    def _read(self, kind: CatalogKind, path: str, stamp: str) -> _Tile | None:
        try:
            data = self._files.read(path)
            table = pyarrow.parquet.read_table(io.BytesIO(data), columns=list(kind.columns))
        except FileNotFoundError:  # removed since it was looked up
            return None
        except (pa.ArrowException, KeyError) as error:
            raise StoreUnavailable(f"{path}: damaged catalogue tile, import it again: {error}") from error
        rows = structured(table, kind)
        ra, dec = np.radians(rows[kind.ra]), np.radians(rows[kind.dec])
        vectors = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
        return _Tile(stamp, rows, vectors)


@lru_cache(maxsize=4)
def _tile_centres(order: int) -> tuple[F64, float]:
    """Unit vectors (n, 3) of the tiles' centres, and the largest distance (rad) of a tile's corner from its centre."""
    nside = 2**order
    lon, lat = HEALPix(nside, order="nested").healpix_to_lonlat(np.arange(12 * nside**2))
    a, d = lon.to_value(u.rad), lat.to_value(u.rad)
    # The pixel at the corner of the polar cap is the longest (Gorski et al. 2005, as in the HEALPix library).
    corner = _unit(2.0 / 3.0, np.pi / (4 * nside))
    middle = _unit(1.0 - (1.0 - 1.0 / nside) ** 2 / 3.0, 0.0)
    reach = float(np.arctan2(np.linalg.norm(np.cross(corner, middle)), corner @ middle))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1), reach


def _unit(z: float, phi: float) -> F64:
    rho = np.sqrt(1.0 - z * z)
    return np.array([rho * np.cos(phi), rho * np.sin(phi), z])


def tiles_near(order: int, centre: F64, radius: float) -> list[int]:
    """Tiles (nested, ascending) that a cone about a unit vector with ``radius`` deg may touch.

    By the distance of their centres, never too few: astropy-healpix's own cone search leaves tiles out near the
    poles (a cone of 0.5 deg at dec 87 loses a third of its stars).
    """
    centres, reach = _tile_centres(order)
    limit = min(np.radians(radius) + reach + 1e-9, np.pi)
    return [int(i) for i in np.flatnonzero(centres @ centre >= np.cos(limit))]


def structured(table: pa.Table, kind: CatalogKind) -> Table:
    """An Arrow table as the kind's structured array, null as NaN (an empty name as '')."""
    rows = np.zeros(table.num_rows, kind.dtype)
    for name in kind.columns:
        column = table[name]
        if kind.dtype[name].kind == "U":
            rows[name] = np.array([v or "" for v in column.to_pylist()], dtype=kind.dtype[name])
        else:
            rows[name] = column.to_numpy(zero_copy_only=False)
    return rows
