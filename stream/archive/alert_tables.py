"""The alerts of a night as Parquet, one row an alert, partitioned by night, program and HEALPix cell.

``alert_tables/night=YYYYMMDD/programid=N/norder=3/npix=K/alerts.parquet``: Hive names that DuckDB, polars and pyarrow
datasets read as columns. Cells are nested HEALPix of order 3 (7.3 deg, a field fits into a few), of the alert's own
place. Columns: ``objectId``, every field of the packet's ``candidate``, every field of ``zsds`` with the prefix
``zsds_``, and where it was published (``topic``, ``partition``, ``kafka_offset``, ``published``, ``sha256``). Made when
a night is closed, from the packets; the same packets make the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from astropy import units as u
from astropy_healpix import HEALPix

from stream.alert import CANDIDATE_FIELDS, EXTENSION_FIELDS, read_packet
from stream.alert.schema import field_types
from stream.archive import catalogs
from stream.archive.packets import NightShelf
from stream.archive.store import ProductStore
from stream.core.records import Row

NORDER = 3
FOLDER = "alert_tables"
_SENT = ("topic", "partition", "kafka_offset", "published", "sha256")
_TYPES = {
    "int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(), "string": pa.string(),
    "boolean": pa.bool_(),
}  # fmt: skip


def _columns(record: str, names: Iterable[str], prefix: str = "") -> list[tuple[str, pa.DataType]]:
    types = field_types(record)
    # What is no plain value (a map, an array) has no column.
    return [(prefix + n, _TYPES[types[n]]) for n in names if isinstance(types[n], str) and types[n] in _TYPES]


def table_schema() -> pa.Schema:
    """Columns of the tables, partition columns left out."""
    candidate = [c for c in _columns("ztf.alert.candidate", CANDIDATE_FIELDS) if c[0] != "programid"]
    sent = [("topic", pa.string()), ("partition", pa.int32()), ("kafka_offset", pa.int64())]
    more = [("published", pa.float64()), ("sha256", pa.string()), ("n_prv_candidates", pa.int32())]
    extension = _columns("ztf.alert.zsds", EXTENSION_FIELDS, "zsds_")
    return pa.schema([("objectId", pa.string()), *candidate, *extension, *sent, *more])


def flat_row(index: Row, alert: Row) -> Row:
    """One alert as a row of the tables."""
    extension = alert.get("zsds") or {}
    return {
        "objectId": alert["objectId"],
        **alert["candidate"],
        **{f"zsds_{name}": value for name, value in extension.items()},
        **{name: index.get(name) for name in _SENT},
        "n_prv_candidates": len(alert.get("prv_candidates") or ()),
    }


def write_alert_tables(store: ProductStore, night: str, programid: int) -> dict[int, int]:
    """Write the tables of a night and program from its archived packets; returns alerts by cell.

    Every file is written whole: doing it again, or after late alerts, replaces what is there.
    """
    schema = table_schema()
    grid = HEALPix(nside=2**NORDER, order="nested")
    rows: dict[int, list[Row]] = defaultdict(list)
    shelf = NightShelf(store, night, programid)
    for index in shelf.rows():
        alert = read_packet(shelf.packet(index["candid"]))
        place = alert["candidate"]
        pixel = grid.lonlat_to_healpix(np.array([place["ra"]]) * u.deg, np.array([place["dec"]]) * u.deg)
        rows[int(pixel[0])].append(flat_row(index, alert))
    for cell, found in sorted(rows.items()):
        chosen = [{name: row.get(name) for name in schema.names} for row in found]
        store.write(f"{table_folder(night, programid, cell)}/alerts.parquet", catalogs.parquet(chosen, schema))
    return {cell: len(found) for cell, found in sorted(rows.items())}


def table_folder(night: str, programid: int, cell: int) -> str:
    """Folder of one table."""
    return f"{FOLDER}/night={night}/programid={programid}/norder={NORDER}/npix={cell}"
