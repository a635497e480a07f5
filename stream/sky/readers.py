"""Catalogue tables as people have them (Parquet, FITS, CSV, ECSV; plain or gzip) as Arrow tables with our columns."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from stream.core.errors import UsageError
from stream.sky.schema import PS1_MISSING, CatalogKind

# Rows that are held at a time: some 200 MB of a Gaia table.
BATCH_ROWS = 1_000_000
_SUFFIXES = {
    ".parquet": "parquet", ".pq": "parquet", ".fits": "fits", ".fit": "fits", ".csv": "csv", ".ecsv": "ecsv",
}  # fmt: skip


def read_table(path: str | Path, kind: CatalogKind) -> Iterator[pa.Table]:
    """The rows of a catalogue file, in pieces, with the columns of ``kind`` first and extra ones after them.

    Columns are found whatever their case (the Gaia archive has written ``SOURCE_ID``). Missing numbers become
    null, -999 in a Pan-STARRS table too; rows without a place are left out.

    Raises
    ------
    UsageError
        No such file, unknown format, damaged, or columns missing (named).
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    gzipped = file.suffix == ".gz"
    form = _SUFFIXES.get(Path(file.stem).suffix if gzipped else file.suffix.lower())
    if form is None:
        raise UsageError(f"{file}: unknown kind of table; known are {', '.join(_SUFFIXES)}, csv and fits also as .gz")
    try:
        for piece in _READERS[form](file, gzipped):
            yield conform(piece, kind, str(file))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UsageError(f"{file}: cannot be read as {form}: {error}") from error


def _parquet(file: Path, _: bool) -> Iterator[pa.Table]:
    with pyarrow.parquet.ParquetFile(file) as parquet:
        empty = True
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
            empty = False
            yield pa.Table.from_batches([batch])
        if empty:
            yield parquet.schema_arrow.empty_table()


def _csv(file: Path, gzipped: bool) -> Iterator[pa.Table]:
    with gzip.open(file) if gzipped else file.open("rb") as stream:
        yield pyarrow.csv.read_csv(
            stream,
            convert_options=pyarrow.csv.ConvertOptions(
                null_values=["", "null", "NULL", "nan", "NaN", "None", "--"], strings_can_be_null=True
            ),
        )


def _ecsv(file: Path, _: bool) -> Iterator[pa.Table]:
    from astropy.table import Table

    yield _from_astropy(Table.read(file, format="ascii.ecsv"))


def _fits(file: Path, _: bool) -> Iterator[pa.Table]:
    from astropy.table import Table

    yield _from_astropy(Table.read(file, format="fits"))


_READERS = {"parquet": _parquet, "csv": _csv, "ecsv": _ecsv, "fits": _fits}


def _from_astropy(table: Any) -> pa.Table:
    """An Arrow table of the one-dimensional columns; masked values are null."""
    columns = {}
    for name in table.colnames:
        column = table[name]
        if column.ndim != 1:
            continue
        mask = np.asarray(column.mask) if hasattr(column, "mask") else None
        values = np.asarray(column)
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        if values.dtype.kind in "US":
            values = np.char.strip(values).astype(object)
        elif not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        columns[name] = pa.array(values, mask=mask)
    return pa.table(columns)


def conform(table: pa.Table, kind: CatalogKind, where: str) -> pa.Table:
    """The table with our columns under our names and types first, then the others by name."""
    by_case = {name.lower(): name for name in reversed(table.column_names)}
    found = {name: name if name in table.column_names else by_case.get(name.lower()) for name in kind.columns}
    missing = [name for name in kind.required if found[name] is None]
    if missing:
        raise UsageError(
            f"{where}: a {kind.name} table needs the columns {', '.join(kind.required)}; missing: {', '.join(missing)}"
        )
    columns: dict[str, Any] = {}
    for name in kind.columns:
        source = found[name]
        typed = _arrow_type(kind, name)
        if source is None:
            columns[name] = pa.nulls(table.num_rows, typed)
            continue
        columns[name] = _cast(table[source], typed, f"{where}: column {source}")
        if pa.types.is_floating(typed):
            columns[name] = _nulls(columns[name], kind)
    taken = {source for source in found.values() if source is not None}
    for name in sorted(set(table.column_names) - taken):
        columns[name] = _plain(table[name])
    result = pa.table(columns)
    placed = pc.and_(pc.is_valid(result[kind.ra]), pc.is_valid(result[kind.dec]))
    return _named(result.filter(placed), kind).replace_schema_metadata(None)


def _plain(column: Any) -> Any:
    """A column without the encodings in which writers of the same table differ."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def _arrow_type(kind: CatalogKind, name: str) -> pa.DataType:
    dtype = kind.dtype[name]
    return pa.string() if dtype.kind == "U" else pa.from_numpy_dtype(dtype)


def _cast(column: Any, typed: pa.DataType, where: str) -> Any:
    column = _plain(column)
    try:
        if pa.types.is_floating(typed) and pa.types.is_integer(column.type):
            return column.cast(pa.float64()).cast(typed, safe=False)
        return column.cast(typed, safe=not pa.types.is_floating(typed))
    except pa.ArrowException as error:
        raise UsageError(f"{where} is {column.type}, cannot be read as {typed}: {error}") from error


def _nulls(column: Any, kind: CatalogKind) -> Any:
    """NaN as null, so that every reader sees the same; the archive's -999 likewise."""
    lost = pc.is_nan(column)
    if kind.name == "ps1":
        lost = pc.or_kleene(lost, pc.equal(column, pa.scalar(PS1_MISSING, column.type)))
    return pc.if_else(pc.fill_null(lost, True), pa.scalar(None, column.type), column)


def _named(table: pa.Table, kind: CatalogKind) -> pa.Table:
    """Rows without a key: refused where it is a number, named after their place where it is a name."""
    key = table[kind.key]
    if pa.types.is_string(key.type):
        trimmed = pc.utf8_trim_whitespace(pc.fill_null(key, ""))
        places = [
            f"J{ra:09.5f}{dec:+09.5f}"
            for ra, dec in zip(table[kind.ra].to_pylist(), table[kind.dec].to_pylist(), strict=True)
        ]
        named = pc.if_else(pc.equal(trimmed, ""), pa.array(places, pa.string()), trimmed)
        return table.set_column(table.column_names.index(kind.key), kind.key, named)
    if key.null_count:
        raise UsageError(f"{key.null_count} rows have no {kind.key}: a row cannot be told from another without")
    return table
