"""The sky that is observed: stars and galaxies on a fixed grid of cells over the whole sphere.

A cell is 0.1 x 0.1 deg and is drawn from its own seed, so that the same sky appears whichever fields, quadrants,
exposures or processes ask for it. What happens on this sky is in ``events``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.core import identity
from stream.core.camera import deproject
from stream.simulate import lightcurves, starcounts
from stream.simulate.optics import quadrant_tangent
from stream.simulate.plan import NightPlan, field_centre, seeded
from stream.simulate.pointing import common_error, read_source_list

F64 = NDArray[np.float64]
Table = NDArray[np.void]
Cell = tuple[int, int]  # row from the south pole, column in right ascension

CELL = 0.1  # deg
REACH = 0.02  # deg beyond a quadrant's edge from which light or guiding may bring a source in
CATALOG_REACH = 0.08  # deg beyond the nominal footprint that catalogues cover: more than the pointing error
UNIT_DENSITY = 6700.0  # stars a square degree brighter than 20.6 for a star density of 1: 5,000 on a full quadrant
SMALL_DENSITY = 2.0  # default of cameras smaller than the survey's
DENSE, DENSE_FAINT = 20.0, 21.0  # from this star density on, the sky ends at this magnitude: what is fainter is lost
REF_EPOCH = 2016.0

BRIGHT_CELL = 1.0  # deg
BRIGHTEST = 2.5  # r of the brightest star that is drawn
FOCAL_HALF = 3.75  # deg: bright stars cover the whole focal plane

KINDS = ("star", "galaxy", "transient", "variable", "asteroid", "streak", "comet")
STAR, GALAXY, TRANSIENT, VARIABLE, ASTEROID, STREAK, COMET = range(len(KINDS))
# Identifiers: what is drawn a quadrant has its field, quadrant and number added to these; cells come above them all.
TRANSIENT_ID, MOVER_ID, LISTED_ID, CROSSING_ID = 1_000_000_000, 4_000_000_000, 7_000_000_000, 8_000_000_000
CELL_ID, BRIGHT_ID = 10_000_000_000, 10_000_000_000_000

SKY_DTYPE = np.dtype(
    [
        ("truth_id", "i8"), ("kind", "u1"), ("variety", "u1"), ("host_id", "i8"),  # host_id -1: none
        ("ra", "f8"), ("dec", "f8"),  # deg at 2016.0
        ("pmra", "f4"), ("pmdec", "f4"), ("parallax", "f4"),  # mas/yr with cos dec, mas
        ("mags", "f4", (4,)),  # PS1 g, r, i, z
        ("amplitude", "f4"), ("period", "f4"), ("phase", "f4"),  # of light curves: mag, days, cycles
        ("t0", "f8"), ("anchor", "f8"), ("rise", "f4"), ("fall", "f4"),  # Julian dates and days
        ("re", "f4"), ("axis_ratio", "f4"), ("pa", "f4"), ("bulge", "f4"),  # galaxies: arcsec, deg, share of light
    ]
)  # fmt: skip


def empty_sky(n: int = 0) -> Table:
    """``n`` sources with nothing set but no host."""
    table = np.zeros(n, SKY_DTYPE)
    table["host_id"] = -1
    return table


def per_quadrant_id(base: int, field: int, rcid: int, k: int = 0) -> int:
    """Identifier of the k-th source of a sort that is drawn quadrant by quadrant."""
    return base + field * 1_000_000 + rcid * 10_000 + k


# -- the grid


def columns_of(row: int, size: float = CELL) -> int:
    """Number of cells in a row."""
    return max(1, round(360.0 * math.cos(math.radians((row + 0.5) * size - 90.0)) / size))


def cell_box(cell: Cell, size: float = CELL) -> tuple[float, float, float, float]:
    """Edges of a cell: right ascension and declination (deg), low and high."""
    row, column = cell
    n = columns_of(row, size)
    return 360.0 * column / n, 360.0 * (column + 1) / n, row * size - 90.0, (row + 1) * size - 90.0


def cells_near(ra: float, dec: float, half_x: float, half_y: float, turn: float, size: float = CELL) -> list[Cell]:
    """Cells that a rectangle may touch: half sides (deg) along the tangent plane's axes, turned by ``turn`` rad."""
    c, s = abs(math.cos(turn)), abs(math.sin(turn))
    pad = 0.75 * size  # a cell's half diagonal, and a little for what is not flat
    half_x, half_y = c * half_x + s * half_y + pad, s * half_x + c * half_y + pad
    reach = math.hypot(half_x, half_y)
    out = []
    for row in range(max(0, math.floor((dec - reach + 90) / size)), math.floor((dec + reach + 90) / size) + 1):
        if row * size >= 180.0:
            break
        n = columns_of(row, size)
        middle = (row + 0.5) * size - 90.0
        width = min(180.0, reach / max(math.cos(math.radians(middle)), 1e-3))
        first = math.floor((ra - width) / 360.0 * n)
        columns = np.arange(first, min(math.floor((ra + width) / 360.0 * n), first + n - 1) + 1)
        xi, eta = sky_to_tangent(ra, dec, (columns + 0.5) * 360.0 / n, np.full(len(columns), middle))
        near = (np.abs(xi) < half_x) & (np.abs(eta) < half_y)
        out += [(row, int(column) % n) for column in columns[near]]
    return out


def cells_around(plan: NightPlan, rcid: int, reach: float) -> list[Cell]:
    """Cells within ``reach`` deg of a quadrant's footprint."""
    camera = plan.camera
    xi_error, eta_error, rotation = common_error(plan)
    xi, eta = quadrant_tangent(plan, rcid, (xi_error, eta_error), rotation)
    ra0, dec0 = field_centre(plan.field)
    ra, dec = deproject(ra0, dec0, xi, eta)
    north = deproject(ra0, dec0, xi, eta + 0.01)
    turn = math.atan2((north[0] - ra + 180) % 360 - 180, (north[1] - dec) / math.cos(math.radians(dec)))
    half_x = camera.nx / 2 * camera.pixel_scale / 3600 + reach
    half_y = camera.ny / 2 * camera.pixel_scale / 3600 + reach
    return cells_near(ra, dec, half_x, half_y, turn + math.radians(rotation))


def tangent_to_sky(ra0: float, dec0: float, xi: F64, eta: F64) -> tuple[F64, F64]:
    """Sky positions (deg) of gnomonic offsets (deg): ``camera.deproject`` for arrays."""
    x, y = np.radians(xi), np.radians(eta)
    d0 = math.radians(dec0)
    denominator = math.cos(d0) - y * math.sin(d0)
    ra = (ra0 + np.degrees(np.arctan2(x, denominator))) % 360.0
    dec = np.degrees(np.arctan2(math.sin(d0) + y * math.cos(d0), np.hypot(x, denominator)))
    return ra, dec


def sky_to_tangent(ra0: float, dec0: float, ra: F64, dec: F64) -> tuple[F64, F64]:
    """Gnomonic offsets (deg) of sky positions (deg); infinite for the far half of the sky."""
    d0, d, dra = math.radians(dec0), np.radians(dec), np.radians(ra - ra0)
    cosine = math.sin(d0) * np.sin(d) + math.cos(d0) * np.cos(d) * np.cos(dra)
    safe = np.where(cosine > 1e-3, cosine, np.nan)
    xi = np.degrees(np.cos(d) * np.sin(dra) / safe)
    eta = np.degrees((math.cos(d0) * np.sin(d) - math.sin(d0) * np.cos(d) * np.cos(dra)) / safe)
    return np.nan_to_num(xi, nan=np.inf), np.nan_to_num(eta, nan=np.inf)


def _place(table: Table, rng: np.random.Generator, cell: Cell, size: float = CELL) -> None:
    """Uniform places in the cell, and identifiers that no other cell has."""
    n = len(table)
    west, east, south, north = cell_box(cell, size)
    low, high = math.sin(math.radians(south)), math.sin(math.radians(north))
    table["ra"] = rng.uniform(west, east, n)
    table["dec"] = np.degrees(np.arcsin(rng.uniform(low, high, n)))
    table["truth_id"] = CELL_ID + (cell[0] * 3600 + cell[1]) * 1_000_000 + np.arange(n)


def _area(cell: Cell, size: float = CELL) -> tuple[float, float, float]:
    """Middle of a cell (deg) and its area (square degrees)."""
    west, east, south, north = cell_box(cell, size)
    area = (east - west) * math.degrees(math.sin(math.radians(north)) - math.sin(math.radians(south)))
    return 0.5 * (west + east), 0.5 * (south + north), area


# -- what is in a cell


def star_scale(plan: NightPlan, ra: float, dec: float) -> float:
    """The plan's star density over that of the real sky at a place (deg)."""
    density = plan.star_density
    if density is None and plan.is_full:
        return 1.0
    density = SMALL_DENSITY if density is None else density
    return density * UNIT_DENSITY / starcounts.star_density(ra, dec, starcounts.DETECTABLE)


def faint_limit(plan: NightPlan) -> float:
    """Magnitude in r at which the plan's stars end."""
    return DENSE_FAINT if (plan.star_density or 0.0) >= DENSE else starcounts.STAR_FAINT


def star_cell(plan: NightPlan, cell: Cell) -> Table:
    """Stars of one cell, some of them variable."""
    rng = seeded(plan.seed, "stars", *cell)
    ra, dec, area = _area(cell)
    faint = faint_limit(plan)
    table = empty_sky(int(rng.poisson(starcounts.star_density(ra, dec, faint) * star_scale(plan, ra, dec) * area)))
    _place(table, rng, cell)
    r = starcounts.star_magnitudes(rng, len(table), ra, dec, faint)
    table["mags"] = starcounts.star_colours(rng, r)
    _kinematics(table, rng)
    _vary(table, rng, plan.variables)
    return table


def galaxy_cell(plan: NightPlan, cell: Cell) -> Table:
    """Galaxies of one cell."""
    rng = seeded(plan.seed, "galaxies", *cell)
    _, _, area = _area(cell)
    n = int(rng.poisson(starcounts.galaxy_density(starcounts.GALAXY_FAINT) * plan.galaxy_density * area))
    table = empty_sky(n)
    _place(table, rng, cell)
    table["truth_id"] += 500_000
    table["kind"] = GALAXY
    limits = (starcounts.GALAXY_BRIGHT, starcounts.GALAXY_FAINT)
    r = starcounts.power_law_magnitudes(rng, n, *limits, starcounts.GALAXY_SLOPE)
    gr = rng.uniform(0.3, 1.1, n)
    ri = 0.45 * gr + rng.normal(0, 0.04, n)
    table["mags"] = np.stack([r + gr, r, r - ri, r - 1.5 * ri], axis=1)
    # Half-light radii fall with magnitude as in deep counts: 3" at 16, under 1" at 21, with a wide scatter.
    table["re"] = np.clip(3.0 * 10 ** (-0.11 * (r - 16)) * np.exp(rng.normal(0, 0.3, n)), 0.25, 8.0)
    table["axis_ratio"] = rng.uniform(0.35, 1.0, n)
    table["pa"] = rng.uniform(0, 180, n)
    table["bulge"] = np.where(rng.uniform(size=n) < 0.35, rng.uniform(0.6, 1.0, n), rng.uniform(0, 0.3, n))
    return table


def _kinematics(table: Table, rng: np.random.Generator) -> None:
    """Distances from magnitudes with a wide scatter, and proper motions from a 45 km/s velocity dispersion."""
    n = len(table)
    distance = 10 ** (0.2 * (table["mags"][:, 1] - 5.5 + 5 + rng.normal(0, 1.5, n)) - 0.4)  # pc
    distance = np.clip(distance, 15.0, 3.0e4)
    table["parallax"] = 1000.0 / distance
    speed = 45.0 / 4.74047 * 1000.0 / distance  # mas/yr
    table["pmra"] = np.clip(speed * rng.normal(size=n), -900, 900)
    table["pmdec"] = np.clip(speed * rng.normal(size=n), -900, 900)


def _vary(table: Table, rng: np.random.Generator, share: float) -> None:
    """Some stars of medium brightness are periodic variables."""
    n = len(table)
    r = table["mags"][:, 1]
    chosen = (rng.uniform(size=n) < share) & (r > 14.5) & (r < 20.2)
    sort = rng.choice(lightcurves.PERIODIC, size=n, p=(0.45, 0.25, 0.3))
    # An RR Lyrae star turns round in half a day, eclipses in half a day to a few, pulsations in hours to weeks.
    longest = np.select([sort == lightcurves.RR_LYRAE, sort == lightcurves.ECLIPSING], [0.9, 5.0], 30.0)
    shortest = np.select([sort == lightcurves.RR_LYRAE, sort == lightcurves.ECLIPSING], [0.4, 0.3], 0.15)
    period = shortest * (longest / shortest) ** rng.uniform(size=n)
    table["kind"][chosen] = VARIABLE
    table["variety"][chosen] = sort[chosen]
    table["amplitude"] = np.where(chosen, rng.uniform(0.15, 0.8, n), 0.0)
    table["period"] = np.where(chosen, period, 1.0)
    table["phase"] = np.where(chosen, rng.uniform(size=n), 0.0)


@lru_cache(maxsize=2)
def listed_sky(plan: NightPlan) -> Table:
    """Stars of a survey reference catalogue, with colours and motions drawn for them."""
    listed = read_source_list(plan)
    mag = listed.mag
    table = empty_sky(len(mag))
    rng = seeded(plan.seed, "listed", plan.field)
    mags = starcounts.star_colours(rng, mag)
    table["mags"] = mags + (mag - mags[:, plan.fid - 1])[:, None]  # the list's filter as listed
    table["truth_id"] = LISTED_ID + np.arange(len(mag))
    table["ra"], table["dec"] = listed.ra, listed.dec
    _kinematics(table, rng)
    return table


# -- what a quadrant or a catalogue asks for


def _drawn(plan: NightPlan, cells: list[Cell]) -> Table:
    stars = [star_cell(plan, cell) for cell in cells] if plan.source_list is None else [listed_sky(plan)]
    return np.concatenate([empty_sky(), *stars, *(galaxy_cell(plan, cell) for cell in cells)])


@lru_cache(maxsize=4)
def _kept(plan: NightPlan, rcid: int, reach: float) -> Table:
    return _drawn(plan, cells_around(plan, rcid, reach))


def steady_quadrant(plan: NightPlan, rcid: int, reach: float = REACH) -> Table:
    """Stars and galaxies around a quadrant; kept for the next exposure unless there are very many."""
    if (plan.star_density or 0.0) >= DENSE:
        return _drawn(plan, cells_around(plan, rcid, reach))
    return _kept(plan, rcid, reach)


def steady_sky(plan: NightPlan, rcids: tuple[int, ...], reach: float, known: set[Cell] | None = None) -> Table:
    """All stars and galaxies around some quadrants, each once, in order of their identifiers.

    Cells that are ``known`` are left out, and those that are not become so.
    """
    cells = {cell for rcid in rcids for cell in cells_around(plan, rcid, reach)}
    if known is not None:
        cells -= known
        known |= cells
    table = _drawn(plan, sorted(cells))
    return table[np.argsort(table["truth_id"], kind="stable")]


def bright_cell(plan: NightPlan, cell: Cell) -> Table:
    """Stars brighter than r 9 of one large cell."""
    rng = seeded(plan.seed, "bright", *cell)
    ra, dec, area = _area(cell, BRIGHT_CELL)
    longitude, latitude = starcounts.galactic(ra, dec)
    r = np.arange(BRIGHTEST, starcounts.STAR_BRIGHT + 0.05, 0.1)
    counts = starcounts.stars_brighter(r + starcounts.V_MINUS_R, longitude, latitude)
    shown = 0.0 if plan.star_density == 0 else 1.0
    table = empty_sky(int(rng.poisson(shown * counts[-1] * area)))
    _place(table, rng, cell, BRIGHT_CELL)
    table["truth_id"] += BRIGHT_ID
    magnitudes = np.interp(rng.uniform(0, counts[-1], len(table)), counts, r)
    table["mags"] = starcounts.star_colours(rng, magnitudes)
    _kinematics(table, rng)
    return table


@lru_cache(maxsize=8)
def bright_stars(plan: NightPlan) -> Table:
    """Stars brighter than r 9 over the whole focal plane, and ``plan.bright_stars`` naked-eye ones more a CCD."""
    ra0, dec0 = field_centre(plan.field)
    cells = cells_near(ra0, dec0, FOCAL_HALF, FOCAL_HALF, 0.0, BRIGHT_CELL)
    # A source list holds the stars of its own sky.
    drawn = [bright_cell(plan, cell) for cell in sorted(cells)] if plan.source_list is None else []
    return np.concatenate([empty_sky(), *drawn, *(_extra_bright(plan, ccd) for ccd in sorted(plan.ccds))])


def _extra_bright(plan: NightPlan, ccd: int) -> Table:
    """Naked-eye stars in quadrants of a CCD."""
    table = empty_sky(plan.bright_stars)
    xi_error, eta_error, rotation = common_error(plan)
    rng = seeded(plan.seed, "extra bright", plan.field, ccd)
    half = plan.camera.nx / 2 * plan.camera.pixel_scale / 3600.0
    for k, row in enumerate(table):
        qid = sorted(set(plan.qids))[int(rng.integers(len(set(plan.qids))))]
        xi, eta = quadrant_tangent(plan, identity.rcid_of(ccd, qid), (xi_error, eta_error), rotation)
        offset = xi + half * rng.uniform(-0.8, 0.8), eta + half * rng.uniform(-0.8, 0.8)
        row["truth_id"] = per_quadrant_id(BRIGHT_ID - 10_000_000_000, plan.field, ccd, k)
        row["ra"], row["dec"] = deproject(*field_centre(plan.field), *offset)
        row["mags"] = rng.uniform(4.8, 6.4) + np.array([0.2, -0.15, -0.3, -0.35])
    return table
