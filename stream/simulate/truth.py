"""Truth tables beside the packets: what was painted, under which conditions, and what is not sky."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream.core.camera import FULL, Camera
from stream.core.errors import UsageError
from stream.simulate.optics import Wcs, wcs_of

SOURCES = pa.schema(
    [
        pa.field("truth_id", pa.int64()),
        pa.field("kind", pa.string()),  # star, galaxy, transient, variable, asteroid, comet, streak
        pa.field("variety", pa.string()),  # what of that kind: rr_lyrae, dwarf_nova, nuclear, trojan, ...; null: plain
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
        pa.field("slope", pa.float64()),  # of a streak's light along it: 1 + slope (2 s - 1), s from end 1 to end 2
        pa.field("wobble", pa.float64()),  # amplitude of a streak's swing about its line, px
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
        pa.field("field", pa.int32()),
        pa.field("exptime", pa.float64()),  # s
        pa.field("airmass", pa.float64()),
        pa.field("transparency", pa.float64()),  # mag lost to cloud and haze at the centre of the field
        pa.field("moonlight", pa.float64()),  # DN per px of the sky that is the moon's
        pa.field("gradient_x", pa.float64()),  # of the sky, relative over half a quadrant
        pa.field("gradient_y", pa.float64()),
        pa.field("moon_altitude", pa.float64()),  # deg
        pa.field("moon_separation", pa.float64()),  # deg from the field's centre
        pa.field("moon_lit", pa.float64()),  # illuminated fraction
        pa.field("psf", pa.string()),  # JSON object: the coefficients of the PSF's field
        pa.field("parameters", pa.string()),  # JSON object: what else an effect needs
    ]
)

ARTEFACTS = pa.schema(
    [
        # cosmic_ray, hot_pixel, dead_pixel, hot_column, dead_column, satellite, aircraft, ...
        pa.field("kind", pa.string()),
        pa.field("rcid", pa.int16()),
        pa.field("exposure", pa.string()),  # null: in all
        pa.field("x", pa.float64()),  # px, first is 0
        pa.field("y", pa.float64()),
        pa.field("npix", pa.int64()),
        pa.field("angle", pa.float64()),  # deg from x towards y, trails
        pa.field("strength", pa.float64()),  # hot: e-/s; dead: response; trail: DN per px of length
        pa.field("x1", pa.float64()),  # ends of a trail on this quadrant, px
        pa.field("y1", pa.float64()),
        pa.field("x2", pa.float64()),
        pa.field("y2", pa.float64()),
        pa.field("width", pa.float64()),  # FWHM of a trail across it, px
        pa.field("truth_id", pa.int64()),  # of the star whose halo, ghost or spikes these are; of the trail
        pa.field("parameters", pa.string()),  # JSON object: whatever else describes it
        pa.field("pixels", pa.list_(pa.int32())),  # flat indices y nx + x, where it is localised
        pa.field("values", pa.list_(pa.float32())),  # e- that it put there
    ]
)

INSTRUMENT = pa.schema(
    [
        pa.field("rcid", pa.int16()),
        pa.field("gain", pa.float64()),  # e-/DN
        pa.field("readnoise", pa.float64()),  # e-
        pa.field("bias", pa.float64()),  # DN
        pa.field("full_well", pa.float64()),  # e-
        pa.field("saturate", pa.float64()),  # raw DN
        pa.field("linearity_a", pa.float64()),
        pa.field("linearity_b", pa.float64()),
        pa.field("crosstalk", pa.list_(pa.float64())),  # share of qid 1 to 4 of its CCD that appears on this channel
        pa.field("ghost", pa.string()),  # JSON object of core.ghosts.GhostGeometry
        pa.field("effects", pa.string()),  # JSON list of the effects that are on
        pa.field("parameters", pa.string()),  # JSON object: dust, fringes, lamp, pocket, ...
    ]
)

TABLES = {"sources": SOURCES, "quadrants": QUADRANTS, "artefacts": ARTEFACTS, "instrument": INSTRUMENT}
Columns = dict[str, Any]


class TruthWriter:
    """Writes the tables packet by packet, so that no night needs to fit into memory."""

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
    """A table of the schema from a dict of columns (arrays, lists, or scalars repeated over all rows).

    A column of lists is a list of lists, also where there is one row.
    """
    columns = {name: value.item() if isinstance(value, np.generic) else value for name, value in columns.items()}
    lengths = [len(value) for value in columns.values() if hasattr(value, "__len__") and not isinstance(value, str)]
    n = lengths[0] if lengths else 1
    arrays = []
    for column in schema:
        value = columns.get(column.name)
        if value is None or isinstance(value, str | int | float | bool):
            value = [value] * n
        arrays.append(pa.array(value, column.type, from_pandas=column.name != "exposure"))
    return pa.Table.from_arrays(arrays, schema=schema)


def read_truth(
    out: Path,
    table: str = "sources",
    *,
    columns: Sequence[str] | None = None,
    **only: str | int | Sequence[str] | Sequence[int],
) -> dict[str, NDArray[Any]]:
    """A truth table of a simulated night, or the part of it that is asked for, as numpy columns.

    Parameters
    ----------
    out : Path
        Folder of the night.
    table : str
        sources, quadrants, artefacts or instrument.
    columns : sequence of str, optional
        Columns to read; all by default.
    only : value or sequence of values
        Keep the rows whose column is it, or among them: ``kind="transient"``, ``rcid=4``, ``role="sci"``,
        ``exposure=("...", "...")``. Rows that do not match are not held in memory.

    Returns
    -------
    dict of str to ndarray
        Null is NaN, or None in columns of text; lists are arrays in a column of objects.

    Raises
    ------
    UsageError
        There is no such table, or no such column.
    """
    path = Path(out) / "truth" / f"{table}.parquet"
    if table not in TABLES or not path.is_file():
        raise UsageError(f"{path} is not there: make it with `ztf-stream simulate --out {out}`")
    unknown = sorted({*only, *(columns or ())} - set(TABLES[table].names))
    if unknown:
        raise UsageError(f"truth table {table} has no column {', '.join(unknown)}")
    filters = [(name, "in", [value] if isinstance(value, str | int) else list(value)) for name, value in only.items()]
    read = pq.read_table(path, columns=list(columns) if columns else None, filters=filters or None)
    return {name: read[name].to_numpy() for name in read.column_names}


@dataclass(frozen=True, slots=True)
class QuadrantTruth:
    """Everything that was put into one quadrant of one exposure.

    ``sources`` are the rows of its sources, ``conditions`` its row of the table ``quadrants``, ``artefacts`` those of
    the exposure and those that every exposure has (bad pixels), ``shape`` (ny, nx).
    """

    exposure: str
    rcid: int
    shape: tuple[int, int]
    conditions: dict[str, Any]
    sources: dict[str, NDArray[Any]]
    artefacts: dict[str, NDArray[Any]]

    @property
    def wcs(self) -> Wcs:
        """The true WCS."""
        return wcs_of(json.loads(self.conditions["wcs"]))

    def of_kind(self, *kinds: str) -> dict[str, NDArray[Any]]:
        """Sources of these kinds whose place is on a pixel of the quadrant."""
        chosen = np.isin(self.sources["kind"].astype(str), kinds) & self.sources["in_quadrant"].astype(bool)
        return {name: column[chosen] for name, column in self.sources.items()}

    def mask(self, *kinds: str, above: float = 0.0) -> NDArray[np.bool_]:
        """Pixels (ny, nx) to which artefacts of these kinds gave more than ``above`` e-; bad pixels count always."""
        out = np.zeros(self.shape, bool)
        for k in np.flatnonzero(np.isin(self.artefacts["kind"].astype(str), kinds)):
            pixels = self.artefacts["pixels"][k]
            if pixels is None:
                x, y = round(float(self.artefacts["x"][k])), round(float(self.artefacts["y"][k]))
                pixels, strong = np.array([y * self.shape[1] + x]), np.ones(1, bool)
            else:
                values = self.artefacts["values"][k]
                strong = np.ones(len(pixels), bool) if values is None else np.asarray(values) > above
            out.reshape(-1)[np.asarray(pixels)[strong]] = True
        return out


def read_quadrant_truth(out: Path, exposure: str, rcid: int, camera: Camera = FULL) -> QuadrantTruth:
    """All that is true of one quadrant of one exposure (a packet's name without extension), in one call.

    Raises
    ------
    UsageError
        The night has no such quadrant.
    """
    rows = read_truth(out, "quadrants", exposure=exposure, rcid=rcid)
    if len(rows["rcid"]) == 0:
        raise UsageError(f"{out} holds no quadrant {rcid} of {exposure}")
    artefacts = read_truth(out, "artefacts", rcid=rcid)
    here = np.array([name is None or name == exposure for name in artefacts["exposure"]], bool)
    return QuadrantTruth(
        exposure,
        rcid,
        camera.shape,
        {name: column[0] for name, column in rows.items()},
        read_truth(out, "sources", exposure=exposure, rcid=rcid),
        {name: column[here] for name, column in artefacts.items()},
    )


def light_curve(out: Path, truth_id: int) -> dict[str, NDArray[Any]]:
    """Rows of one source in all exposures in which it lies on a pixel, in time order."""
    rows = read_truth(out, "sources", truth_id=truth_id)
    order = np.argsort(rows["jd_mid"], kind="stable")
    order = order[rows["in_quadrant"][order].astype(bool)]
    return {name: column[order] for name, column in rows.items()}
