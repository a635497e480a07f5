"""The catalogues that the survey would have of the simulated sky: Gaia, Pan-STARRS1, bright stars, orbits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream.core.records import BRIGHT_DTYPE, GAIA_DTYPE, PS1_DTYPE
from stream.simulate.conditions import plan_of_field
from stream.simulate.movers import cometels, mpcorb
from stream.simulate.plan import NightPlan, seeded
from stream.simulate.scheduler import fields_of
from stream.simulate.sky import CATALOG_REACH, GALAXY, REF_EPOCH, Cell, bright_stars, steady_sky

Table = NDArray[np.void]

GAIA_LIMIT = 20.9
PS1_LIMITS = (22.8, 22.8, 22.5, 21.7)  # g, r, i, z of the mean catalogue
PS1_EPOCH = 2012.5
PS1_IDENTIFIERS = 110_000_000_000_000_000  # objID less truth_id
PS1_ASTROMETRY = 15.0  # mas, floor per axis
BRIGHT_LIMIT = 11.5  # V


def gaia_table(plan: NightPlan, sky: Table) -> Table:
    """Stars as Gaia lists them: measured places, proper motions and parallaxes at 2016.0 with their scatter."""
    stars = sky[sky["kind"] != GALAXY]
    g, r = stars["mags"][:, 0], stars["mags"][:, 1]
    gr = g - r
    magnitude = r + 0.02 - 0.12 * gr  # Gaia's G lies near PS1 r and is redder
    listed = magnitude < GAIA_LIMIT
    stars, magnitude, gr = stars[listed], magnitude[listed], gr[listed]
    rng = seeded(plan.seed, "gaia", plan.field)
    n = len(stars)
    # Gaia EDR3: 0.02 mas at G < 15, 0.1 at 18, 0.5 at 20, 1 mas at 20.7; motions and parallaxes alike per year.
    error = 0.02 + 0.5 * 10 ** (0.32 * (magnitude - 20.0))
    out = np.zeros(n, GAIA_DTYPE)
    out["source_id"] = stars["truth_id"] + 2_500_000_000_000_000_000
    out["dec_error"] = error * rng.uniform(0.8, 1.1, n)
    out["ra_error"] = error * rng.uniform(0.8, 1.2, n)
    cosine = np.cos(np.radians(stars["dec"]))
    out["ra"] = stars["ra"] + out["ra_error"] * rng.normal(size=n) / 3.6e6 / cosine
    out["dec"] = stars["dec"] + out["dec_error"] * rng.normal(size=n) / 3.6e6
    out["pmra"] = stars["pmra"] + error * rng.normal(size=n)
    out["pmdec"] = stars["pmdec"] + error * rng.normal(size=n)
    out["parallax"] = stars["parallax"] + 1.1 * error * rng.normal(size=n)
    out["ref_epoch"] = REF_EPOCH
    out["phot_g_mean_mag"] = magnitude + 0.002 * rng.normal(size=n)
    out["bp_rp"] = 0.35 + 1.25 * gr + 0.02 * rng.normal(size=n)
    return out


def ps1_table(plan: NightPlan, sky: Table) -> Table:
    """Stars and galaxies as Pan-STARRS1 lists them: mean PSF magnitudes with errors, -999 where too faint."""
    rng = seeded(plan.seed, "ps1", plan.field)
    mags = sky["mags"].copy()
    galaxy = sky["kind"] == GALAXY
    error = np.hypot(0.004, 0.2 * 10 ** (0.4 * (mags - np.array(PS1_LIMITS))))
    measured = mags + error * rng.normal(size=mags.shape)
    # A PSF magnitude of a galaxy misses the light beyond its 1.2 arcsec core.
    measured[galaxy] += 1.2 * np.log10(1.0 + sky["re"][galaxy] / 0.8)[:, None]
    seen = measured < np.array(PS1_LIMITS)
    kept = seen.sum(axis=1) >= 2
    sky, measured, error, seen, galaxy = sky[kept], measured[kept], error[kept], seen[kept], galaxy[kept]
    n = len(sky)
    out = np.zeros(n, PS1_DTYPE)
    out["objID"] = PS1_IDENTIFIERS + sky["truth_id"]
    years = PS1_EPOCH - REF_EPOCH
    scatter = np.hypot(PS1_ASTROMETRY, 300.0 * error[:, 1])  # mas
    cosine = np.cos(np.radians(sky["dec"]))
    out["raMean"] = sky["ra"] + (sky["pmra"] * years + scatter * rng.normal(size=n)) / 3.6e6 / cosine
    out["decMean"] = sky["dec"] + (sky["pmdec"] * years + scatter * rng.normal(size=n)) / 3.6e6
    for k, band in enumerate("griz"):
        out[f"{band}MeanPSFMag"] = np.where(seen[:, k], measured[:, k], -999.0)
        out[f"{band}MeanPSFMagErr"] = np.where(seen[:, k], error[:, k], -999.0)
    faint = np.clip((measured[:, 1] - 19.0) / 4.0, 0.0, 0.45)
    out["ps_score"] = np.where(galaxy, rng.uniform(0, 0.05 + faint, n), 1 - rng.uniform(0, 0.05 + faint, n))
    return out


def bright_table(plan: NightPlan, sky: Table) -> Table:
    """Stars brighter than V 11.5, named by their truth identifiers."""
    stars = sky[sky["kind"] != GALAXY]
    v = stars["mags"][:, 1] + 0.4 * (stars["mags"][:, 0] - stars["mags"][:, 1])
    stars, v = stars[v < BRIGHT_LIMIT], v[v < BRIGHT_LIMIT]
    out = np.zeros(len(stars), BRIGHT_DTYPE)
    out["name"] = [f"SIM {identifier}" for identifier in stars["truth_id"]]
    out["ra"], out["dec"], out["vmag"] = stars["ra"], stars["dec"], v
    return out


MAKERS = {"gaia": gaia_table, "ps1": ps1_table, "bright": bright_table}


def write_catalogs(plan: NightPlan, out: Path) -> dict[str, Path]:
    """Write gaia.parquet, ps1.parquet, bright.parquet, MPCORB.DAT and CometEls.txt; returns their paths.

    Field by field, so that no survey's sky needs to fit into memory; what two fields share is listed once.
    """
    known: set[Cell] = set()
    named: set[int] = set()
    paths = {name: out / f"{name}.parquet" for name in MAKERS}
    writers: dict[str, pq.ParquetWriter] = {}
    try:
        for field in fields_of(plan) or (plan.field,):
            part = plan_of_field(plan, field)
            bright = bright_stars(part)
            bright = bright[~np.isin(bright["truth_id"], list(named))]
            named |= set(bright["truth_id"].tolist())
            sky = np.concatenate([steady_sky(part, part.rcids, CATALOG_REACH, known), bright])
            for name, make in MAKERS.items():
                table = _arrow(make(part, sky))
                if name not in writers:
                    writers[name] = pq.ParquetWriter(paths[name], table.schema)
                writers[name].write_table(table)
    finally:
        for writer in writers.values():
            writer.close()
    for name, file, lines in (("orbits", "MPCORB.DAT", mpcorb(plan)), ("comets", "CometEls.txt", cometels(plan))):
        paths[name] = out / file
        paths[name].write_text(lines)
    return paths


def _arrow(table: Table) -> pa.Table:
    columns = {name: np.ascontiguousarray(table[name]) for name in table.dtype.names or ()}
    return pa.table({key: pa.array(v.tolist() if v.dtype.kind == "U" else v) for key, v in columns.items()})
