"""Neighbours of candidates in Pan-STARRS1 and Gaia: the catalogue fields of the packet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.records import Candidate, Table
from stream.core.sphere import chord, unit_vectors

F64 = NDArray[np.float64]

PS1_RADIUS = 30.0  # arcsec, the schema's
GAIA_RADIUS = 90.0  # arcsec
GAIA_BRIGHT = 14.0  # mag: ``neargaiabright`` is of stars brighter than this
N_NEAREST = 3
# Field of the packet and column of the table it comes from.
_PS1_MAGNITUDES = {"sgmag": "gMeanPSFMag", "srmag": "rMeanPSFMag", "simag": "iMeanPSFMag", "szmag": "zMeanPSFMag"}


def match_catalogs(candidates: Sequence[Candidate], ps1: Table, gaia: Table) -> None:
    """Fill in the catalogue fields of candidates, in place.

    Parameters
    ----------
    candidates : sequence of Candidate
        With ``ra``, ``dec`` (deg) in ``fields``. Those without a place get no neighbours.
    ps1 : Table
        ``PS1_DTYPE``, covering 30 arcsec around all of them; may be empty. NaN and the archive's -999 mean
        missing and become None.
    gaia : Table
        ``GAIA_DTYPE``, covering 90 arcsec; places are used as they are (their proper motion since
        ``ref_epoch`` is far below what these distances are for); may be empty.

    Notes
    -----
    Sets, for k = 1..3 in order of distance, ``objectidpsK``, ``sgmagK``, ``srmagK``, ``simagK``, ``szmagK``,
    ``sgscoreK`` (0 galaxy .. 1 star) and ``distpsnrK`` (arcsec), ``nmtchps`` (all within 30 arcsec), and
    ``neargaia``, ``maggaia``, ``neargaiabright``, ``maggaiabright``; None where there is no such neighbour.
    Numbers are rounded to float32, as in the packet. Of equally near objects the one that comes first in
    the table wins.
    """
    if not candidates:
        return
    ra = np.array([_number(c.fields.get("ra")) for c in candidates])
    dec = np.array([_number(c.fields.get("dec")) for c in candidates])
    columns = _ps1_columns(ra, dec, ps1)
    columns |= _gaia_columns(ra, dec, gaia, "")
    bright = gaia[gaia["phot_g_mean_mag"] < GAIA_BRIGHT] if len(gaia) else gaia
    columns |= _gaia_columns(ra, dec, bright, "bright")
    for i, candidate in enumerate(candidates):
        for name, values in columns.items():
            candidate.fields[name] = values[i]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def nearest(ra: F64, dec: F64, table_ra: F64, table_dec: F64, radius: float, k: int) -> tuple[F64, NDArray[np.int64]]:
    """The ``k`` nearest table rows within ``radius`` arcsec of each place.

    Returns
    -------
    distance : ndarray, (n, k)
        Arcsec, ascending; inf where there are fewer.
    index : ndarray, (n, k)
        Row in the table; its length where there is none.
    """
    n = len(ra)
    distance, index = np.full((n, k), np.inf), np.full((n, k), len(table_ra), np.int64)
    placed = np.isfinite(ra) & np.isfinite(dec)
    usable = np.flatnonzero(np.isfinite(table_ra) & np.isfinite(table_dec))
    if not len(usable) or not placed.any():
        return distance, index
    tree = cKDTree(unit_vectors(table_ra[usable], table_dec[usable]))
    places = unit_vectors(ra[placed], dec[placed])
    # One chord beyond, so that rounding loses nothing at the rim; the exact limit is applied to the arc below.
    chords, found = tree.query(places, k=np.arange(1, k + 1), distance_upper_bound=chord(radius) * (1 + 1e-6))
    arc = np.degrees(2 * np.arcsin(np.clip(np.where(np.isfinite(chords), chords, 0.0) / 2, 0, 1))) * 3600.0
    hit = np.isfinite(chords) & (arc <= radius)
    distance[placed] = np.where(hit, arc, np.inf)
    index[placed] = np.where(hit, np.append(usable, len(table_ra))[found], len(table_ra))
    return distance, index


def count_within(ra: F64, dec: F64, table_ra: F64, table_dec: F64, radius: float) -> list[int]:
    """How many table rows lie within ``radius`` arcsec of each place; 0 for places that are not finite."""
    counts = np.zeros(len(ra), int)
    placed = np.isfinite(ra) & np.isfinite(dec)
    usable = np.isfinite(table_ra) & np.isfinite(table_dec)
    if placed.any() and usable.any():
        tree = cKDTree(unit_vectors(table_ra[usable], table_dec[usable]))
        counts[placed] = tree.query_ball_point(unit_vectors(ra[placed], dec[placed]), chord(radius), return_length=True)
    result: list[int] = counts.tolist()
    return result


def _floats(values: F64, present: NDArray[np.bool_]) -> list[float | None]:
    """Python floats as float32 holds them; None where absent, not finite or the archives' -999."""
    rounded = np.asarray(values).astype(np.float32)
    good = present & np.isfinite(rounded) & (rounded > -900)
    return [v if ok else None for v, ok in zip(rounded.tolist(), good.tolist(), strict=True)]


def _ps1_columns(ra: F64, dec: F64, ps1: Table) -> dict[str, list[Any]]:
    distance, index = nearest(ra, dec, ps1["raMean"], ps1["decMean"], PS1_RADIUS, N_NEAREST)
    columns: dict[str, list[Any]] = {"nmtchps": count_within(ra, dec, ps1["raMean"], ps1["decMean"], PS1_RADIUS)}
    padded = np.append(ps1, np.zeros(1, ps1.dtype))  # the row of those that are not there
    for k in range(N_NEAREST):
        present = np.isfinite(distance[:, k])
        rows = padded[index[:, k]]
        ids = rows["objID"].tolist()
        columns[f"objectidps{k + 1}"] = [v if ok else None for v, ok in zip(ids, present.tolist(), strict=True)]
        for name, column in _PS1_MAGNITUDES.items():
            columns[f"{name}{k + 1}"] = _floats(rows[column], present)
        score = rows["ps_score"]
        columns[f"sgscore{k + 1}"] = _floats(score, present & (score >= 0) & (score <= 1))
        columns[f"distpsnr{k + 1}"] = _floats(distance[:, k], present)
    return columns


def _gaia_columns(ra: F64, dec: F64, gaia: Table, suffix: str) -> dict[str, list[Any]]:
    distance, index = nearest(ra, dec, gaia["ra"], gaia["dec"], GAIA_RADIUS, 1)
    present = np.isfinite(distance[:, 0])
    magnitude = np.append(gaia["phot_g_mean_mag"], np.float32(np.nan))[index[:, 0]]
    return {
        f"neargaia{suffix}": _floats(distance[:, 0], present),
        f"maggaia{suffix}": _floats(magnitude, present),
    }
