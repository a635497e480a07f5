"""Truth tables beside the packets: what was painted, under which conditions, and what is not sky."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream.core.errors import UsageError

SOURCES = pa.schema(
    [
        pa.field("truth_id", pa.int64()),
        pa.field("kind", pa.string()),  # star, galaxy, transient, variable, asteroid, streak
        pa.field("host_id", pa.int64()),  # truth_id of a transient's galaxy; null: none
        pa.field("designation", pa.string()),  # movers
        pa.field("role", pa.string()),  # ref or sci
        pa.field("exposure", pa.string()),  # packet name without extension
        pa.field("rcid", pa.int16()),
        pa.field("jd_mid", pa.float64()),
        pa.field("x", pa.float64()),  # px, first is 0; a streak's middle
        pa.field("y", pa.float64()),
        pa.field("ra", pa.float64()),  # deg, place at jd_mid
        pa.field("dec", pa.float64()),
        pa.field("mag", pa.float64()),  # PS1 system, in the exposure's filter
        pa.field("colour", pa.float64()),  # PS1, as the zero point's colour term takes it
        pa.field("flux", pa.float64()),  # DN in the calibrated image, 25 x 25 px convention of core.psf
        pa.field("in_quadrant", pa.bool_()),  # the place lies on a pixel
        pa.field("x1", pa.float64()),  # ends of a streak, px; null for others
        pa.field("y1", pa.float64()),
        pa.field("x2", pa.float64()),
        pa.field("y2", pa.float64()),
    ]
)

QUADRANTS = pa.schema(
    [
        pa.field("exposure", pa.string()),
        pa.field("role", pa.string()),
        pa.field("rcid", pa.int16()),
        pa.field("fid", pa.int16()),
        pa.field("jd", pa.float64()),
        pa.field("jd_mid", pa.float64()),
        pa.field("wcs", pa.string()),  # JSON object of header cards, TPV
        pa.field("magzp", pa.float64()),
        pa.field("clrcoeff", pa.float64()),
        pa.field("sky", pa.float64()),  # DN per px at the centre
        pa.field("seeing", pa.float64()),  # FWHM at the centre, px, pixel included
        pa.field("gain", pa.float64()),
        pa.field("readnoise", pa.float64()),  # e-
        pa.field("bias", pa.float64()),  # DN
        pa.field("saturate", pa.float64()),  # raw DN
        pa.field("linearity_a", pa.float64()),
        pa.field("linearity_b", pa.float64()),
        pa.field("pointing_error_xi", pa.float64()),  # deg
        pa.field("pointing_error_eta", pa.float64()),
        pa.field("rotation", pa.float64()),  # deg
        pa.field("n_saturated", pa.int64()),  # pixels at full well
    ]
)

ARTEFACTS = pa.schema(
    [
        pa.field("kind", pa.string()),  # cosmic_ray, hot_pixel, dead_pixel, hot_column, dead_column, satellite
        pa.field("rcid", pa.int16()),
        pa.field("exposure", pa.string()),  # null: in all
        pa.field("x", pa.float64()),  # px, first is 0
        pa.field("y", pa.float64()),
        pa.field("npix", pa.int64()),
        pa.field("angle", pa.float64()),  # deg from x towards y, satellites
        pa.field("strength", pa.float64()),  # hot: e-/s; dead: response; satellite: DN per px of length
    ]
)

TABLES = {"sources": SOURCES, "quadrants": QUADRANTS, "artefacts": ARTEFACTS}
Columns = dict[str, Any]


class TruthWriter:
    """Writes the three tables packet by packet, so that no night needs to fit into memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = {name: folder / f"{name}.parquet" for name in TABLES}
        self._writers = {name: pq.ParquetWriter(self.paths[name], schema) for name, schema in TABLES.items()}

    def add(self, tables: dict[str, list[Columns]]) -> None:
        """Append parts, each a dict of equally long columns; what a part lacks becomes null."""
        for name, parts in tables.items():
            batches = [as_table(part, TABLES[name]) for part in parts]
            batches = [batch for batch in batches if batch.num_rows]
            if batches:
                self._writers[name].write_table(pa.concat_tables(batches))

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_table(columns: Columns, schema: pa.Schema) -> pa.Table:
    """A table of the schema from a dict of columns (arrays, lists, or scalars repeated over all rows)."""
    lengths = [len(value) for value in columns.values() if hasattr(value, "__len__") and not isinstance(value, str)]
    n = lengths[0] if lengths else 1
    arrays = []
    for column in schema:
        value = columns.get(column.name)
        if value is None or isinstance(value, str | int | float | bool):
            value = [value] * n
        arrays.append(pa.array(value, column.type, from_pandas=column.name != "exposure"))
    return pa.Table.from_arrays(arrays, schema=schema)


def read_truth(out: Path, table: str = "sources") -> dict[str, NDArray[Any]]:
    """A truth table of a simulated night as numpy columns; null is NaN, or None in columns of text.

    Parameters
    ----------
    out : Path
        Folder of the night.
    table : str
        sources, quadrants or artefacts.

    Raises
    ------
    UsageError
        There is no such table.
    """
    path = Path(out) / "truth" / f"{table}.parquet"
    if table not in TABLES or not path.is_file():
        raise UsageError(f"{path} is not there: make it with `ztf-stream simulate --out {out}`")
    columns = pq.read_table(path)
    return {name: np.asarray(columns[name].to_numpy()) for name in columns.column_names}
