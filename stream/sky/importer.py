"""Import of catalogue tables into sky tiles."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from astropy import units as u
from astropy_healpix import HEALPix

from stream.core.errors import UsageError
from stream.sky.files import Files
from stream.sky.orbits import import_orbits
from stream.sky.readers import read_table
from stream.sky.schema import ALL_KINDS, ORBITS, CatalogKind, folder, kind_named, tile_path

Progress = Callable[[int, int], None]  # (files done, files in all)


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What an import did. ``rows_read`` of the files, ``rows_new`` that were not there before (by their key)."""

    kind: str
    files: int
    rows_read: int
    rows_new: int
    tiles: int  # tiles (for orbits: files) written


@dataclass(frozen=True, slots=True)
class CatalogSummary:
    """What the store has of one kind: rows (for orbits: lines), tiles or files, bytes."""

    kind: str
    rows: int
    tiles: int
    size: int


def import_catalog(
    kind: str, files: Iterable[str | Path], root: str, progress: Progress | None = None
) -> ImportSummary:
    """Sort tables into the store's sky tiles.

    Rows are merged with what is there by ``source_id`` / ``objID`` / ``name``, the newer row winning: importing a
    file twice, or files in another order where they do not disagree, gives the same bytes.

    Parameters
    ----------
    kind : {"gaia", "ps1", "bright", "orbits"}
    files : paths
        Parquet, FITS, CSV or ECSV with the archives' own column names; MPCORB or CometEls lines for orbits.
    root : str
        fsspec URL of the store.
    progress : callable, optional
        Called with (files done, files in all).

    Raises
    ------
    UsageError
        Unknown kind, no files, a file that cannot be read or lacks columns. Files before it are imported.
    """
    paths = [Path(f) for f in files]
    if kind not in ALL_KINDS:
        raise UsageError(f"no catalogue {kind!r}: known are {', '.join(ALL_KINDS)}")
    if not paths:
        raise UsageError(f"no {kind} file given")
    store = Files(root)
    rows = new = 0
    tiles: set[str] = set()
    for done, path in enumerate(paths):
        if progress is not None:
            progress(done, len(paths))
        if kind == ORBITS:
            read, added, written = import_orbits(path, store)
            rows, new = rows + read, new + added
            tiles.update(written)
            continue
        what = kind_named(kind)
        for piece in read_table(path, what):
            rows += piece.num_rows
            for npix, part in _by_tile(piece, what, str(path)):
                tile = tile_path(store.root, what, npix)
                new += _merge(store, tile, part, what)
                tiles.add(tile)
    if progress is not None:
        progress(len(paths), len(paths))
    return ImportSummary(kind, len(paths), rows, new, len(tiles))


def _by_tile(table: pa.Table, kind: CatalogKind, where: str) -> Iterable[tuple[int, pa.Table]]:
    """The rows of each tile they touch, tiles ascending."""
    if table.num_rows == 0:
        return
    ra, dec = table[kind.ra].to_numpy(), table[kind.dec].to_numpy()
    if not (np.isfinite(ra).all() and (np.abs(dec) <= 90).all()):
        raise UsageError(f"{where}: {kind.dec} outside -90..90 or {kind.ra} not finite: are they degrees?")
    pixels = HEALPix(2**kind.order, order="nested").lonlat_to_healpix(ra * u.deg, dec * u.deg)
    order = np.argsort(pixels, kind="stable")
    ordered = table.take(pa.array(order))
    values, starts = np.unique(pixels[order], return_index=True)
    for npix, start, end in zip(values, starts, [*starts[1:], len(order)], strict=True):
        yield int(npix), ordered.slice(start, end - start)


def _merge(store: Files, path: str, part: pa.Table, kind: CatalogKind) -> int:
    """Write the tile with ``part`` merged in; the number of rows that are new."""
    before = 0
    tables = [part]
    if store.stamp(path) is not None:
        old = pyarrow.parquet.read_table(io.BytesIO(store.read(path)))
        before = old.num_rows
        tables = [old, part]
    try:
        merged = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UsageError(f"{path}: a column has another type in what was imported before: {error}") from error
    ours = list(kind.columns)
    merged = merged.select(ours + sorted(set(merged.column_names) - set(ours)))
    keys = merged[kind.key].to_numpy(zero_copy_only=False)
    # Stable by key, later rows after earlier ones: of each key the last is kept.
    order = np.argsort(keys, kind="stable")
    last = np.ones(len(order), bool)
    last[:-1] = keys[order][1:] != keys[order][:-1]
    merged = merged.take(pa.array(order[last])).combine_chunks()
    sink = io.BytesIO()
    pyarrow.parquet.write_table(merged, sink, compression="zstd", row_group_size=1 << 20)
    store.write(path, sink.getvalue())
    return int(merged.num_rows) - before


def list_catalogs(root: str) -> list[CatalogSummary]:
    """What the store has of every kind, empty ones too."""
    store = Files(root)
    found = []
    for kind in ALL_KINDS:
        rows = size = 0
        if kind == ORBITS:
            paths = store.names(folder(store.root, kind))
        else:
            paths = store.names(f"{folder(store.root, kind)}/norder={kind_named(kind).order}")
        for path in paths:
            data = store.read(path)
            size += len(data)
            if kind == ORBITS:
                rows += data.count(b"\n")
            else:
                rows += pyarrow.parquet.ParquetFile(io.BytesIO(data)).metadata.num_rows
        found.append(CatalogSummary(kind, rows, len(paths), size))
    return found
