"""The sky that is observed: stars, galaxies and variables on a fixed grid of cells, transients by quadrant.

A cell is 0.1 x 0.1 deg of the field's tangent plane and is drawn from its own seed, so that the same sky appears
whichever quadrants, exposures or processes ask for it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.core import identity
from stream.core.camera import deproject
from stream.simulate.optics import noise_area, quadrant_tangent, true_wcs
from stream.simulate.plan import (
    BASE_ZEROPOINT,
    COLOUR_TERM,
    DARK_SKY,
    NightPlan,
    SimExposure,
    common_error,
    field_centre,
    read_source_list,
    schedule,
    seeded,
)

F64 = NDArray[np.float64]
Table = NDArray[np.void]

CELL = 0.1  # deg
REACH = 0.02  # deg beyond a quadrant's edge from which light or guiding may bring a source in
CATALOG_REACH = 0.08  # deg beyond the nominal footprint that catalogues cover: more than the pointing error
STARS_PER_CELL = 67.0  # brighter than 20.6: 5,000 on a full quadrant, as at |b| of 30 to 60 deg
STAR_SLOPE = 0.20  # d log10 N / d mag between 14 and 21 at such latitudes
STAR_BRIGHT, STAR_FAINT = 9.0, 22.0
DETECTABLE = 20.6
GALAXIES_PER_CELL = 20.0  # brighter than 20.6: 1,500 on a full quadrant
GALAXY_SLOPE = 0.42
GALAXY_BRIGHT, GALAXY_FAINT = 15.5, 21.8
VARIABLE_FRACTION = 0.012
REF_EPOCH = 2016.0

KINDS = ("star", "galaxy", "transient", "variable", "asteroid", "streak")
STAR, GALAXY, TRANSIENT, VARIABLE, ASTEROID, STREAK = range(len(KINDS))
TRANSIENT_ID = 7_000_000_000
MOVER_ID = 8_000_000_000

SKY_DTYPE = np.dtype(
    [
        ("truth_id", "i8"), ("kind", "u1"), ("host_id", "i8"),  # host_id -1: none
        ("ra", "f8"), ("dec", "f8"),  # deg at 2016.0
        ("pmra", "f8"), ("pmdec", "f8"), ("parallax", "f8"),  # mas/yr with cos dec, mas
        ("mags", "f8", (4,)),  # PS1 g, r, i, z
        ("amplitude", "f8"), ("period", "f8"), ("phase", "f8"),  # variables: mag, days, cycles
        ("re", "f8"), ("axis_ratio", "f8"), ("pa", "f8"), ("bulge", "f8"),  # galaxies: arcsec, deg, share of light
    ]
)  # fmt: skip


def empty_sky(n: int = 0) -> Table:
    """``n`` sources with nothing set but no host."""
    table = np.zeros(n, SKY_DTYPE)
    table["host_id"] = -1
    return table


def cells_around(plan: NightPlan, rcid: int, reach: float) -> list[tuple[int, int]]:
    """Cells of the field's tangent plane within ``reach`` deg of a quadrant's footprint."""
    camera = plan.camera
    xi_error, eta_error, rotation = common_error(plan)
    xi, eta = quadrant_tangent(plan, rcid, (xi_error, eta_error), rotation)
    turn = 1.0 + math.radians(plan.rotation)  # a turned square is a little wider
    half_x = camera.nx / 2 * camera.pixel_scale / 3600 * turn + reach
    half_y = camera.ny / 2 * camera.pixel_scale / 3600 * turn + reach
    columns = range(math.floor((xi - half_x) / CELL), math.floor((xi + half_x) / CELL) + 1)
    rows = range(math.floor((eta - half_y) / CELL), math.floor((eta + half_y) / CELL) + 1)
    return [(i, j) for j in rows for i in columns]


def _magnitudes(rng: np.random.Generator, n: int, bright: float, faint: float, slope: float) -> F64:
    """Magnitudes with counts that grow as 10^(slope m)."""
    low, high = 10 ** (slope * bright), 10 ** (slope * faint)
    result: F64 = np.log10(rng.uniform(low, high, n)) / slope
    return result


def _star_colours(rng: np.random.Generator, r: F64) -> F64:
    """PS1 g, r, i, z of stars of magnitude r on the stellar locus: a blue turn-off and a red M-dwarf group."""
    red = rng.uniform(size=len(r)) < np.clip(0.15 + 0.08 * (r - 15), 0.1, 0.6)
    gr = np.where(red, rng.normal(1.18, 0.08, len(r)), rng.normal(0.52, 0.17, len(r)))
    # r-i follows g-r up to the M dwarfs, where g-r stands still (Covey et al. 2007, turned into PS1).
    ri = np.where(red, rng.gamma(4.0, 0.2, len(r)) + 0.3, 0.36 * gr + 0.01) + rng.normal(0, 0.02, len(r))
    return np.stack([r + gr, r, r - ri, r - 1.5 * ri], axis=1)


def star_cell(plan: NightPlan, i: int, j: int) -> Table:
    """Stars of one cell, some of them variable."""
    rng = seeded(plan.seed, "stars", plan.field, i + 1000, j + 1000)
    brighter = 10 ** (STAR_SLOPE * (STAR_FAINT - DETECTABLE))
    n = int(rng.poisson(STARS_PER_CELL * brighter * plan.density))
    table = empty_sky(n)
    _place(plan, table, rng, i, j)
    table["mags"] = _star_colours(rng, _magnitudes(rng, n, STAR_BRIGHT, STAR_FAINT, STAR_SLOPE))
    _kinematics(table, rng)
    _vary(table, rng)
    return table


def galaxy_cell(plan: NightPlan, i: int, j: int) -> Table:
    """Galaxies of one cell."""
    rng = seeded(plan.seed, "galaxies", plan.field, i + 1000, j + 1000)
    n = int(rng.poisson(GALAXIES_PER_CELL * 10 ** (GALAXY_SLOPE * (GALAXY_FAINT - DETECTABLE))))
    table = empty_sky(n)
    _place(plan, table, rng, i, j)
    table["truth_id"] += 500_000
    table["kind"] = GALAXY
    r = _magnitudes(rng, n, GALAXY_BRIGHT, GALAXY_FAINT, GALAXY_SLOPE)
    gr = rng.uniform(0.3, 1.1, n)
    ri = 0.45 * gr + rng.normal(0, 0.04, n)
    table["mags"] = np.stack([r + gr, r, r - ri, r - 1.5 * ri], axis=1)
    # Half-light radii fall with magnitude as in deep counts: 3" at 16, under 1" at 21, with a wide scatter.
    table["re"] = np.clip(3.0 * 10 ** (-0.11 * (r - 16)) * np.exp(rng.normal(0, 0.3, n)), 0.25, 8.0)
    table["axis_ratio"] = rng.uniform(0.35, 1.0, n)
    table["pa"] = rng.uniform(0, 180, n)
    table["bulge"] = np.where(rng.uniform(size=n) < 0.35, rng.uniform(0.6, 1.0, n), rng.uniform(0, 0.3, n))
    return table


def _place(plan: NightPlan, table: Table, rng: np.random.Generator, i: int, j: int) -> None:
    """Uniform places in the cell, and identifiers that no other cell has."""
    n = len(table)
    xi = (i + rng.uniform(size=n)) * CELL
    eta = (j + rng.uniform(size=n)) * CELL
    ra0, dec0 = field_centre(plan.field)
    table["ra"], table["dec"] = tangent_to_sky(ra0, dec0, xi, eta)
    table["truth_id"] = ((i + 100) * 200 + (j + 100)) * 1_000_000 + np.arange(n)


def tangent_to_sky(ra0: float, dec0: float, xi: F64, eta: F64) -> tuple[F64, F64]:
    """Sky positions (deg) of gnomonic offsets (deg): ``camera.deproject`` for arrays."""
    x, y = np.radians(xi), np.radians(eta)
    d0 = math.radians(dec0)
    denominator = math.cos(d0) - y * math.sin(d0)
    ra = (ra0 + np.degrees(np.arctan2(x, denominator))) % 360.0
    dec = np.degrees(np.arctan2(math.sin(d0) + y * math.cos(d0), np.hypot(x, denominator)))
    return ra, dec


def _kinematics(table: Table, rng: np.random.Generator) -> None:
    """Distances from magnitudes with a wide scatter, and proper motions from a 45 km/s velocity dispersion."""
    n = len(table)
    distance = 10 ** (0.2 * (table["mags"][:, 1] - 5.5 + 5 + rng.normal(0, 1.5, n)) - 0.4)  # pc
    distance = np.clip(distance, 15.0, 3.0e4)
    table["parallax"] = 1000.0 / distance
    speed = 45.0 / 4.74047 * 1000.0 / distance  # mas/yr
    table["pmra"] = np.clip(speed * rng.normal(size=n), -900, 900)
    table["pmdec"] = np.clip(speed * rng.normal(size=n), -900, 900)


def _vary(table: Table, rng: np.random.Generator) -> None:
    """Some stars of medium brightness are periodic variables."""
    n = len(table)
    chosen = (rng.uniform(size=n) < VARIABLE_FRACTION) & (table["mags"][:, 1] > 14.5) & (table["mags"][:, 1] < 20.2)
    table["kind"][chosen] = VARIABLE
    table["amplitude"] = np.where(chosen, rng.uniform(0.15, 0.8, n), 0.0)
    table["period"] = np.where(chosen, np.exp(rng.uniform(np.log(0.15), np.log(30.0), n)), 1.0)
    table["phase"] = np.where(chosen, rng.uniform(size=n), 0.0)


@lru_cache(maxsize=2)
def listed_sky(plan: NightPlan) -> Table:
    """Stars of a survey reference catalogue, with colours and motions drawn for them."""
    listed = read_source_list(plan)
    mag = listed.mag
    table = empty_sky(len(mag))
    rng = seeded(plan.seed, "listed", plan.field)
    mags = _star_colours(rng, mag)
    table["mags"] = mags + (mag - mags[:, plan.fid - 1])[:, None]  # the list's filter as listed
    table["truth_id"] = 6_000_000_000 + np.arange(len(mag))
    table["ra"], table["dec"] = listed.ra, listed.dec
    _kinematics(table, rng)
    return table


@lru_cache(maxsize=4)
def _steady(plan: NightPlan, rcid: int, reach: float) -> Table:
    """Stars and galaxies around a quadrant."""
    cells = cells_around(plan, rcid, reach)
    stars = [star_cell(plan, i, j) for i, j in cells] if plan.source_list is None else [listed_sky(plan)]
    return np.concatenate([*stars, *(galaxy_cell(plan, i, j) for i, j in cells)])


def steady_sky(plan: NightPlan, rcids: tuple[int, ...], reach: float) -> Table:
    """All stars and galaxies around some quadrants, each once, in order of their identifiers."""
    cells = sorted({cell for rcid in rcids for cell in cells_around(plan, rcid, reach)})
    stars = [star_cell(plan, i, j) for i, j in cells] if plan.source_list is None else [listed_sky(plan)]
    table = np.concatenate([*stars, *(galaxy_cell(plan, i, j) for i, j in cells)])
    return table[np.argsort(table["truth_id"], kind="stable")]


@lru_cache(maxsize=8)
def transients(plan: NightPlan, rcid: int) -> Table:
    """Transients of a quadrant: most on or near a galaxy, a quarter without a host.

    Four in five have a signal-to-noise ratio spread evenly over 10 to 200 at the depth of a median science
    exposure, the others over 5 to 10.
    """
    n = plan.n_per_quadrant("transients")
    table = empty_sky(n)
    if n == 0 or plan.n_science == 0:
        return table[:0]
    rng = seeded(plan.seed, "transients", plan.field, rcid)
    camera = plan.camera
    exposure = next(e for e in schedule(plan) if e.role == "sci")
    wcs = true_wcs(plan, exposure, rcid)
    margin = 40.0  # px: guiding does not carry them over the edge
    x = rng.uniform(margin, camera.nx - margin, n)
    y = rng.uniform(margin, camera.ny - margin, n)
    ra, dec = wcs.to_sky(x, y)
    galaxies = _steady(plan, rcid, REACH)
    galaxies = galaxies[(galaxies["kind"] == GALAXY) & (galaxies["mags"][:, 1] < 21.3)]
    gx, gy = wcs.to_pixel(galaxies["ra"], galaxies["dec"])
    inside = (gx > margin) & (gx < camera.nx - margin) & (gy > margin) & (gy < camera.ny - margin)
    hosts = rng.permutation(galaxies[inside])
    hosted = np.flatnonzero(rng.uniform(size=n) < 0.75)[: len(hosts)]
    chosen = hosts[: len(hosted)]
    nuclear = rng.uniform(size=len(hosted)) < 0.2
    radius = np.where(nuclear, 0.2, chosen["re"]) * np.abs(rng.normal(0, 0.9, len(hosted))) / 3600.0
    angle = rng.uniform(0, 2 * math.pi, len(hosted))
    ra[hosted] = chosen["ra"] + radius * np.cos(angle) / np.cos(np.radians(chosen["dec"]))
    dec[hosted] = chosen["dec"] + radius * np.sin(angle)
    table["host_id"][hosted] = chosen["truth_id"]
    table["ra"], table["dec"] = ra % 360.0, dec
    table["truth_id"] = TRANSIENT_ID + rcid * 10_000 + np.arange(n)
    table["kind"] = TRANSIENT
    snr = np.where(rng.uniform(size=n) < 0.8, rng.uniform(10, 200, n), rng.uniform(5, 10, n))
    gr = rng.uniform(-0.2, 0.5, n)
    m = snr_to_mag(plan, snr, COLOUR_TERM[plan.fid] * gr)
    colours = np.stack([gr, np.zeros(n), -0.5 * gr, -0.7 * gr], axis=1)
    table["mags"] = m[:, None] + colours - colours[:, plan.fid - 1 : plan.fid]
    return table


def snr_to_mag(plan: NightPlan, snr: F64, term: F64 | float = 0.0, area: float | None = None) -> F64:
    """PS1 magnitude of a point source of that signal-to-noise ratio at the middle seeing and the planned sky.

    ``term`` is the colour term in mag, ``area`` the noise-equivalent area (px) if not that of the PSF. The
    source's own noise is counted.
    """
    sky = (plan.sky if plan.sky is not None else DARK_SKY[plan.fid]) * plan.exptime / 30.0
    gain, readnoise = 6.2, 10.0
    area = noise_area(0.5 * (plan.seeing[0] + plan.seeing[1])) if area is None else area
    variance = (sky / gain + (readnoise / gain) ** 2) * area
    flux = 0.5 * (snr**2 / gain + np.sqrt((snr**2 / gain) ** 2 + 4 * snr**2 * variance))
    zero = BASE_ZEROPOINT[plan.fid] + 2.5 * math.log10(plan.exptime / 30.0)
    result: F64 = zero + term - 2.5 * np.log10(flux)
    return result


def sky_of(plan: NightPlan, exposure: SimExposure, rcid: int) -> Table:
    """All sources but movers that may put light on a quadrant in an exposure; places of 2016.0.

    Transients are of the science night: references do not have them.
    """
    table = _steady(plan, rcid, REACH)
    if exposure.role == "sci":
        table = np.concatenate([table, transients(plan, rcid)])
    return table


def magnitudes_at(table: Table, jd: float, fid: int) -> tuple[F64, F64]:
    """PS1 magnitude in the filter at a time, and the colour that the zero point's colour term takes."""
    mags = table["mags"]
    cycle = (jd - 2_458_000.0) / np.where(table["period"] > 0, table["period"], 1.0) + table["phase"]
    m = mags[:, fid - 1] + table["amplitude"] * np.sin(2 * np.pi * cycle)
    colour = mags[:, 0] - mags[:, 1] if fid in (1, 2) else mags[:, 1] - mags[:, 2]
    return m, colour


def bright_stars(plan: NightPlan) -> Table:
    """Naked-eye stars with a halo: ``plan.bright_stars`` for each CCD of the plan, in one of its quadrants."""
    rows = []
    ra0, dec0 = field_centre(plan.field)
    xi_error, eta_error, rotation = common_error(plan)
    for ccd in sorted(plan.ccds):
        rng = seeded(plan.seed, "bright", plan.field, ccd)
        for k in range(plan.bright_stars):
            qid = sorted(set(plan.qids))[int(rng.integers(len(set(plan.qids))))]
            rcid = identity.rcid_of(ccd, qid)
            xi, eta = quadrant_tangent(plan, rcid, (xi_error, eta_error), rotation)
            half = plan.camera.nx / 2 * plan.camera.pixel_scale / 3600.0
            place = deproject(ra0, dec0, xi + half * rng.uniform(-0.8, 0.8), eta + half * rng.uniform(-0.8, 0.8))
            row = empty_sky(1)
            row["truth_id"] = 9_000_000_000 + ccd * 100 + k
            row["ra"], row["dec"] = place
            v = rng.uniform(4.8, 6.4)
            row["mags"] = v + np.array([0.2, -0.15, -0.3, -0.35])
            rows.append(row)
    return np.concatenate(rows) if rows else empty_sky()
