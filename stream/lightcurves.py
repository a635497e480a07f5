"""Light curves of a field's stars out of the source catalogues in the store, absolute or relative.

Absolute: each exposure on its own zero point and map. Relative: the zero points' own errors, which all stars of an
exposure share, are solved from the stars that exposures have in common (``stream.photometry.solve_relative``) and taken
off; the mean of all exposures stays on Pan-STARRS1.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream.archive import ProductStore
from stream.archive.catalogs import PSF_CATALOG, by_name, sources_of
from stream.archive.learned import channel_products
from stream.archive.paths import ScienceName, parse_science_name, reference_path
from stream.archive.products import read_calibration_sources, read_quality_record
from stream.core.errors import MessageError, UsageError
from stream.core.flags import Info
from stream.core.identity import FILTER_CODES
from stream.core.records import Table, ZeroPoint
from stream.core.sphere import chord, unit_vectors
from stream.photometry import Observations, RelativePhotometry, observations, solve_relative

Progress = Callable[[int, int, str], None]
F64 = NDArray[np.float64]

# Stars whose repeatability is told: of photon errors (mag) below this, in three exposures at least.
BRIGHT, LEAST_POINTS = 0.004, 3
# A quadrant without its reference takes the stars of its deepest exposure; of either only those that exposures can see.
SEED_SNR = 5.0
POINT_DTYPE = np.dtype(
    [
        ("sourceid", "i4"), ("ra", "f8"), ("dec", "f8"),  # of the seed, deg
        ("jd", "f8"), ("exposure", "i4"),  # mid-exposure; row of ``LightCurves.exposures``
        ("mag", "f4"), ("sigmag", "f4"),  # at colour 0; error of the flux alone
        ("correction", "f4"),  # what was taken off an absolute magnitude; 0 where there is no relative solution
        ("x", "f4"), ("y", "f4"),  # px, first is 0
        ("variable", "?"),  # told by the relative solution
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exposures:
    """What is read of a field's exposures: names, mid-exposure (JD), catalogues and zero points; and what was not."""

    names: list[str]
    jd: list[float]
    catalogs: list[Table]
    zeropoints: list[ZeroPoint]
    maglim: list[float]
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LightCurves:
    """Points (``POINT_DTYPE``, by star, then time), the exposures' names, what was left out and why, and the solution
    of relative photometry (None: absolute)."""

    points: Table
    exposures: list[str]
    left_out: list[str]
    relative: RelativePhotometry | None = None

    @property
    def n_stars(self) -> int:
        """Stars with a point."""
        return len(np.unique(self.points["sourceid"]))

    def repeatability(self) -> tuple[float, int]:
        """Median over bright stars of a star's robust scatter (mag), and how many these are; NaN where there are
        none. What varies is left out where the solution names it."""
        rms = star_scatter(self.points[~self.points["variable"]])
        rms = rms[rms["sigma"] < BRIGHT]
        return (float(np.median(rms["rms"])), len(rms)) if len(rms) else (float("nan"), 0)


def light_curves(
    store: ProductStore,
    where: tuple[int, int, int],
    nights: tuple[str, str] = ("00000000", "99999999"),
    degree: int | None = None,
    progress: Progress | None = None,
) -> LightCurves:
    """Light curves of all stars of a field, filter and readout channel (``where``) in nights from first to last.

    ``degree`` None: absolute; else relative, with a surface of that degree for every exposure (0: a zero point only).
    Stars are those of the reference, or of the deepest exposure where there is none.

    Raises
    ------
    UsageError
        The store has no exposure of it.
    PhotometryError
        Relative, and the exposures have too few stars in common.
    """
    exposures = _read(store, where, nights, progress or (lambda done, total, what: None))
    seeds = _reference_sources(store, where)
    if seeds is None:
        seeds = exposures.catalogs[int(np.argmax(np.nan_to_num(exposures.maglim)))]
    seeds = seeds[np.isfinite(seeds["ra"]) & np.isfinite(seeds["dec"]) & (seeds["snr"] > SEED_SNR)]
    seen = observations(exposures.catalogs, exposures.zeropoints, seeds["ra"], seeds["dec"])
    shapes = [zp.map.shape for zp in exposures.zeropoints if zp.map is not None]
    solution = None
    if degree is not None:
        # Without any map the surface's unit is free: it only scales its coefficients.
        shape = shapes[0] if shapes else (int(seen.y.max(initial=1)) + 1, int(seen.x.max(initial=1)) + 1)
        solution = solve_relative(seen, shape, degree=degree)
    return LightCurves(_points(seen, seeds, exposures, solution), exposures.names, exposures.left_out, solution)


def _read(store: ProductStore, where: tuple[int, int, int], nights: tuple[str, str], progress: Progress) -> Exposures:
    """Catalogues of the exposures; those of bad quality or damaged are named in ``left_out``."""
    number, fid, rcid = where
    names = [
        name
        for name, _, _ in channel_products(store, rcid, "_psfcat.fits", *nights)
        if _is_of(parse_science_name(name), number, fid)
    ]
    found = Exposures([], [], [], [], [])
    for done, name in enumerate(names, 1):
        progress(done, len(names), "catalogues")
        try:
            report = read_quality_record(store, name)
            if (report.infobits or 0) & int(Info.BAD_QUALITY):
                found.left_out.append(f"{name}: of bad quality")
                continue
            table, zeropoint = read_calibration_sources(store, name)
        except (MessageError, UsageError) as error:
            found.left_out.append(f"{name}: {error}")
            continue
        found.names.append(name)
        found.jd.append(report.jd_mid)
        found.catalogs.append(table)
        found.zeropoints.append(zeropoint)
        found.maglim.append(report.maglim if report.maglim is not None else float("nan"))
    if not found.names:
        code = FILTER_CODES[fid]
        why = f" ({len(found.left_out)} left out, the first: {found.left_out[0]})" if found.left_out else ""
        raise UsageError(
            f"no source catalogues of field {number}, {code}, channel {rcid} from {nights[0]} to {nights[1]}{why}: "
            "run `ztf-stream process` first"
        )
    return found


def _is_of(name: ScienceName, number: int, fid: int) -> bool:
    return name.field == number and name.fid == fid


def _reference_sources(store: ProductStore, where: tuple[int, int, int]) -> Table | None:
    data = store.find(reference_path(*where, "refpsfcat.fits"))
    if data is None:
        return None
    try:
        return sources_of(by_name(data)[PSF_CATALOG].image())
    except KeyError as error:
        raise MessageError(f"reference of field {where[0]}, channel {where[2]} has no PSF catalogue") from error


def _points(seen: Observations, seeds: Table, exposures: Exposures, solution: RelativePhotometry | None) -> Table:
    """Flat table of points; those of an exposure that could not be corrected are left out."""
    out = np.zeros(len(seen.mag), POINT_DTYPE)
    for name in ("sourceid", "ra", "dec"):
        out[name] = seeds[name][seen.star]
    out["exposure"], out["jd"] = seen.epoch, np.asarray(exposures.jd)[seen.epoch]
    correction = solution.correction(seen.epoch, seen.x, seen.y) if solution is not None else np.zeros(len(out))
    out["correction"], out["mag"], out["sigmag"] = correction, seen.mag - correction, seen.sigma
    out["x"], out["y"] = seen.x, seen.y
    if solution is not None:
        out["variable"] = solution.variable[seen.star]
    out = out[np.isfinite(out["mag"])]
    order: NDArray[np.intp] = np.lexsort((out["jd"], out["sourceid"]))
    return np.take(out, order)


def star_scatter(points: Table) -> Table:
    """A row a star with three points or more: ``sourceid``, ``n``, mean ``mag``, median ``sigma``, robust ``rms``."""
    ids, first, count = np.unique(points["sourceid"], return_index=True, return_counts=True)
    out = np.zeros(
        int((count >= LEAST_POINTS).sum()),
        [("sourceid", "i4"), ("n", "i4"), ("mag", "f8"), ("sigma", "f8"), ("rms", "f8")],
    )
    for row, k in zip(out, np.flatnonzero(count >= LEAST_POINTS), strict=True):
        part = points[first[k] : first[k] + count[k]]
        mag = part["mag"].astype(float)
        # Few points lie nearer to their own median than to the truth.
        spread = 1.4826 * float(np.median(np.abs(mag - np.median(mag)))) * np.sqrt(len(mag) / (len(mag) - 1))
        row["sourceid"], row["n"], row["rms"] = ids[k], len(mag), spread
        row["mag"], row["sigma"] = float(np.median(mag)), float(np.median(part["sigmag"]))
    return out


def near(points: Table, ra: float, dec: float, radius: float) -> Table:
    """The points of the stars within ``radius`` arcsec of a place (deg)."""
    apart = np.linalg.norm(unit_vectors(points["ra"], points["dec"]) - unit_vectors(ra, dec), axis=1)
    return np.take(points, np.flatnonzero(apart <= chord(radius)))


def parquet(curves: LightCurves) -> bytes:
    """The points as a Parquet file, exposures by name, the figures of ``describe`` as metadata ``lightcurves``."""
    points = curves.points
    columns = {name: pa.array(points[name]) for name in POINT_DTYPE.names or () if name != "exposure"}
    columns["exposure"] = pa.array(np.asarray(curves.exposures, object)[points["exposure"]], pa.string())
    table = pa.table(columns).replace_schema_metadata({"lightcurves": json.dumps(describe(curves))})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def describe(curves: LightCurves) -> dict[str, Any]:
    """Figures of light curves for a report: counts, repeatability, and each exposure's correction."""
    repeat, bright = curves.repeatability()
    solution = curves.relative
    out: dict[str, Any] = {
        "exposures": len(curves.exposures), "stars": curves.n_stars, "points": len(curves.points),
        "repeatability": repeat, "bright_stars": bright, "relative": solution is not None,
        "left_out": curves.left_out,
    }  # fmt: skip
    if solution is not None:
        out["floor"] = solution.floor
        out["variable"] = int(solution.variable.sum())
        zeros = zip(curves.exposures, solution.zero.tolist(), solution.zero_sigma.tolist(), strict=True)
        out["corrections"] = [{"name": name, "zero": zero, "sigma": sigma} for name, zero, sigma in zeros]
    return out
