"""Tables of the store: source catalogues and PSF as FITS, candidates and streaks as Parquet, the quality record.

Places are FITS pixels (the first is 1) in every table here; the records inside the rooms count from 0.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream.alert.packet import plain
from stream.alert.schema import field_types
from stream.archive import fitsio
from stream.core.errors import MessageError
from stream.core.psf import PsfModel
from stream.core.records import (
    APERTURE_DIAMETERS,
    SOURCE_DTYPE,
    Candidate,
    Quadrant,
    QuadrantReport,
    Row,
    Status,
    Streak,
    Table,
    ZeroPoint,
)

PSF_CATALOG, APERTURE_CATALOG, PSF_MODEL, PSF_ERROR = "PSF_CATALOG", "APERTURE_CATALOG", "PSF_MODEL", "PSF_ERROR"
_POGSON = 2.5 / math.log(10.0)


def psf_catalog(sources: Table, cards: fitsio.Cards, zeropoint: ZeroPoint | None = None) -> bytes:
    """The ``PSF_CATALOG`` extension: the survey's columns and units, ``mag`` instrumental.

    One column is ours: ``star``, 1 star, 0 galaxy, 0.5 where the image cannot say.
    ``mag`` and ``sigmag`` are NaN where the flux is not positive. Calibrated: mag + MAGZP + CLRCOEFF x colour. With a
    zero point there are two columns more: ``zpoff``, what the zero-point map adds at that place, and ``magcal`` =
    mag + MAGZP + zpoff, the magnitude at colour 0.
    """
    flux, sigma = sources["flux"], sources["sigflux"]
    positive = flux > 0
    mag = np.full(len(sources), np.nan, np.float32)
    sigmag = mag.copy()
    mag[positive] = -2.5 * np.log10(flux[positive])
    sigmag[positive] = _POGSON * sigma[positive] / flux[positive]
    columns = [
        ("sourceid", "", sources["sourceid"]),
        ("xpos", "pix", sources["x"] + 1.0),
        ("ypos", "pix", sources["y"] + 1.0),
        ("ra", "deg", sources["ra"]),
        ("dec", "deg", sources["dec"]),
        ("flux", "DN", flux),
        ("sigflux", "DN", sigma),
        ("mag", "mag", mag),
        ("sigmag", "mag", sigmag),
        ("snr", "", sources["snr"]),
        ("chi", "", sources["chi"]),
        ("sharp", "", sources["sharp"]),
        ("flags", "", sources["flags"]),
        ("star", "", sources["star"]),
    ]
    if zeropoint is not None:
        offset = zeropoint.at(sources["x"], sources["y"]) - zeropoint.magzp
        columns.append(("zpoff", "mag", offset.astype(np.float32)))
        columns.append(("magcal", "mag", (mag + zeropoint.magzp + offset).astype(np.float32)))
    return fitsio.table_hdu(columns, PSF_CATALOG, cards)


def aperture_catalog(sources: Table, cards: fitsio.Cards) -> bytes:
    """The ``APERTURE_CATALOG`` extension: fluxes (DN) in six apertures (``APDIAMn``, px) and the detection's shape."""
    diameters = {f"APDIAM{i}": (d, "aperture diameter [px]") for i, d in enumerate(APERTURE_DIAMETERS, 1)}
    columns = [
        ("sourceid", "", sources["sourceid"]),
        ("xpos", "pix", sources["x"] + 1.0),
        ("ypos", "pix", sources["y"] + 1.0),
        ("ra", "deg", sources["ra"]),
        ("dec", "deg", sources["dec"]),
        ("apflux", "DN", sources["ap_flux"]),
        ("sigapflux", "DN", sources["ap_err"]),
        ("fwhm", "pix", sources["fwhm"]),
        ("a", "pix", sources["a"]),
        ("b", "pix", sources["b"]),
        ("theta", "rad", sources["theta"]),
        ("flags", "", sources["flags"]),
    ]
    return fitsio.table_hdu(columns, APERTURE_CATALOG, {**cards, **diameters})


# Columns that every catalogue has; those of older software lack ``star``.
_FROM_PSF = ("sourceid", "ra", "dec", "flux", "sigflux", "snr", "chi", "sharp", "flags")
_FROM_APERTURE = {"apflux": "ap_flux", "sigapflux": "ap_err", "fwhm": "fwhm", "a": "a", "b": "b", "theta": "theta"}


def sources_of(psf: Table, aperture: Table | None = None) -> Table:
    """The sources (``SOURCE_DTYPE``) from the two catalogues of one image; without the second, apertures are zero."""
    if aperture is not None and (len(psf) != len(aperture) or np.any(psf["sourceid"] != aperture["sourceid"])):
        raise MessageError("the PSF and aperture catalogues are not of the same sources")
    out = np.zeros(len(psf), SOURCE_DTYPE)
    out["x"], out["y"] = psf["xpos"] - 1.0, psf["ypos"] - 1.0
    for name in _FROM_PSF:
        out[name] = psf[name]
    out["star"] = psf["star"] if "star" in (psf.dtype.names or ()) else np.nan
    if aperture is not None:
        for column, name in _FROM_APERTURE.items():
            out[name] = aperture[column]
    return out


def psf_model(psf: PsfModel) -> bytes:
    """The ``PSF_MODEL`` extension: the oversampled grids of ``stream.core.psf``, exact; and ``PSF_ERROR``, if known."""
    cards = {
        "OVERSAMP": (psf.oversample, "nodes per pixel"),
        "PSFDEG": (psf.degree, "degree of the polynomial in place"),
        "PSFNX": (psf.shape[1], "image that it belongs to [px]"),
        "PSFNY": (psf.shape[0], "image that it belongs to [px]"),
        "PSFFWHM": (float(psf.fwhm), "median FWHM [px]"),
        "PSFSTARS": (psf.n_stars, "stars it was made from"),
    }
    if math.isfinite(psf.flux_error):
        cards["PSFFLERR"] = (float(psf.flux_error), "relative error of fluxes by that of the model")
    model = fitsio.plain_hdu(psf.basis.astype(np.float32, copy=False), cards, PSF_MODEL)
    if psf.error_map is None:
        return model
    return model + fitsio.plain_hdu(psf.error_map.astype(np.float32, copy=False), {}, PSF_ERROR)


def read_psf_model(extensions: Mapping[str, fitsio.Extension]) -> PsfModel:
    """The PSF of a file's ``PSF_MODEL`` and ``PSF_ERROR`` extensions."""
    h = extensions[PSF_MODEL].header
    basis = np.asarray(extensions[PSF_MODEL].image(), np.float32)
    fwhm, error = (float(h.get(key, float("nan"))) for key in ("PSFFWHM", "PSFFLERR"))
    errors = np.asarray(extensions[PSF_ERROR].image(), np.float32) if PSF_ERROR in extensions else None
    return PsfModel(basis, h["OVERSAMP"], h["PSFDEG"], (h["PSFNY"], h["PSFNX"]), fwhm, h["PSFSTARS"], error, errors)


def by_name(data: bytes) -> dict[str, fitsio.Extension]:
    """The HDUs of a file by name."""
    return {extension.name: extension for extension in fitsio.read_hdus(data)}


_ARROW = {"int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(), "string": pa.string()}


@cache
def candidates_schema() -> pa.Schema:
    """Columns of ``candidates.parquet``: the packet's candidate record, our own, ``rejected``; every one nullable."""
    types = field_types("ztf.alert.candidate") | field_types("ztf.alert.zsds")
    return pa.schema(
        [pa.field(name, _ARROW[kind]) for name, kind in types.items()] + [pa.field("rejected", pa.string())]
    )


def parquet(rows: Sequence[Row], schema: pa.Schema) -> bytes:
    """Rows as one Parquet file of a fixed schema; what a row lacks is null."""
    columns = [pa.array([plain(row.get(name)) for row in rows], schema.field(name).type) for name in schema.names]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def read_rows(data: bytes, columns: Sequence[str] | None = None) -> list[Row]:
    """Rows of a Parquet file; ``MessageError`` where it is none."""
    try:
        rows: list[Row] = pq.read_table(io.BytesIO(data), columns=columns).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise MessageError(f"{len(data)} bytes are no readable Parquet file: {error}") from error
    return rows


def candidates_parquet(candidates: Iterable[Candidate]) -> bytes:
    """Every candidate, the rejected ones too (``rejected``: why; null: sent)."""
    rows = [{**c.fields, **c.extra, "rejected": c.rejected} for c in candidates]
    return parquet(rows, candidates_schema())


@cache
def streaks_schema() -> pa.Schema:
    """Columns of ``streaks.parquet``: those of ``stream.core.records.Streak``."""
    return pa.schema([(f.name, pa.int64() if f.name == "candid" else pa.float64()) for f in fields(Streak)])


def streaks_parquet(streaks: Iterable[Streak]) -> bytes:
    """Every streak of a quadrant."""
    return parquet([asdict(streak) for streak in streaks], streaks_schema())


_FAKE_ARROW = {"f": pa.float64(), "b": pa.bool_(), "U": pa.string()}


def fakes_parquet(quadrant: Quadrant, fakes: Table) -> bytes:
    """``fakes.parquet``: every fake of a quadrant and what became of it, with the quadrant's identity in each row."""
    e = quadrant.exposure
    names = fakes.dtype.names or ()
    who = {"pid": quadrant.pid, "field": e.field, "rcid": quadrant.rcid, "fid": e.fid, "jd": e.jd}
    kinds = [pa.int64(), pa.int32(), pa.int32(), pa.int32(), pa.float64()]
    schema = pa.schema(
        [*zip(who, kinds, strict=True), *((name, _FAKE_ARROW[fakes.dtype[name].kind]) for name in names)]
    )
    rows = [dict(zip(names, row, strict=True)) for row in fakes.tolist()]
    return parquet([who | row for row in rows], schema)


def quality_json(report: QuadrantReport) -> bytes:
    """``qa.json``: the quality record, keys sorted, without the seconds it took (a rerun writes the same bytes)."""
    return json_bytes({**asdict(report), "status": report.status.value}, leave_out=("seconds",))


def read_quality(data: bytes) -> QuadrantReport:
    """The quality record of a ``qa.json``."""
    row = read_json(data)
    try:
        row["status"] = Status(row["status"])
        return QuadrantReport(**row)
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"not a quality record: {error}") from error


def json_bytes(row: Row, leave_out: Sequence[str] = ()) -> bytes:
    """A flat record as JSON, keys sorted, NaN as null."""
    content = {key: _plain_tree(value) for key, value in row.items() if key not in leave_out}
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("utf-8")


def _plain_tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_tree(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain_tree(value.tolist())
    return plain(value)


def read_json(data: bytes) -> Row:
    """A JSON object; ``MessageError`` where it is none."""
    try:
        row = json.loads(data)
    except ValueError as error:
        raise MessageError(f"{len(data)} bytes are no JSON: {error}") from error
    if not isinstance(row, dict):
        raise MessageError("JSON, but no object")
    return row
