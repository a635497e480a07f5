"""What happens on the sky: transients, eruptive stars and faders, drawn quadrant by quadrant."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.simulate import lightcurves
from stream.simulate.optics import noise_area, true_wcs
from stream.simulate.plan import BASE_ZEROPOINT, COLOUR_TERM, DARK_SKY, NightPlan, SimExposure, seeded
from stream.simulate.scheduler import schedule, science_of
from stream.simulate.sky import (
    GALAXY,
    TRANSIENT,
    TRANSIENT_ID,
    VARIABLE,
    Table,
    empty_sky,
    per_quadrant_id,
    steady_quadrant,
)

F64 = NDArray[np.float64]

MARGIN = 40.0  # px from the edge: guiding does not carry a source over it
HOST_LIMIT = 21.3  # r of the faintest galaxy that is a host
HOSTED, AT_NUCLEUS = 0.75, 0.2  # shares of transients on a galaxy, and of those at its nucleus
NUCLEUS = 0.2  # arcsec within which a nuclear transient lies
FAST = 0.15  # share of transients that come and go in days
# Numbers of a sort start here within a quadrant's identifiers.
FIRST_ERUPTIVE, FIRST_FADER = 3_000, 6_000


def snr_to_mag(plan: NightPlan, snr: F64, term: F64 | float = 0.0, area: float | None = None, fid: int = 0) -> F64:
    """PS1 magnitude of a point source of that signal-to-noise ratio at the middle seeing and the planned dark sky.

    ``term`` is the colour term in mag, ``area`` the noise-equivalent area (px) if not that of the PSF, ``fid`` the
    filter if not the plan's. The source's own noise is counted.
    """
    fid = fid or plan.fid
    sky = (plan.sky if plan.sky is not None else DARK_SKY[fid]) * plan.exptime / 30.0
    gain, readnoise = 6.2, 10.0
    area = noise_area(0.5 * (plan.seeing[0] + plan.seeing[1])) if area is None else area
    variance = (sky / gain + (readnoise / gain) ** 2) * area
    flux = 0.5 * (snr**2 / gain + np.sqrt((snr**2 / gain) ** 2 + 4 * snr**2 * variance))
    zero = BASE_ZEROPOINT[fid] + 2.5 * math.log10(plan.exptime / 30.0)
    result: F64 = zero + term - 2.5 * np.log10(flux)
    return result


def _places(plan: NightPlan, rcid: int, rng: np.random.Generator, n: int) -> tuple[F64, F64]:
    """Uniform sky positions (deg) well inside a quadrant of the field's first science exposure."""
    camera = plan.camera
    x = rng.uniform(MARGIN, camera.nx - MARGIN, n)
    y = rng.uniform(MARGIN, camera.ny - MARGIN, n)
    return true_wcs(plan, science_of(plan)[0], rcid).to_sky(x, y)


@lru_cache(maxsize=8)
def transients(plan: NightPlan, rcid: int) -> Table:
    """Transients of a quadrant: most on or near a galaxy, some at its nucleus, a quarter without a host.

    Four in five have a signal-to-noise ratio spread evenly over 10 to 200 in one science exposure of the field (the
    first; in a survey any) under a dark sky and median seeing, the others over 5 to 10. They rise and fall in days to
    weeks.
    """
    n, science = plan.n_per_quadrant("transients"), science_of(plan)
    if n == 0 or not science:
        return empty_sky()
    table = empty_sky(n)
    rng = seeded(plan.seed, "transients", plan.field, rcid)
    table["kind"], table["variety"] = TRANSIENT, lightcurves.HOSTLESS
    table["truth_id"] = per_quadrant_id(TRANSIENT_ID, plan.field, rcid) + np.arange(n)
    table["ra"], table["dec"] = _places(plan, rcid, rng, n)
    _choose_hosts(plan, rcid, rng, table)
    anchors = [science[0]] * n if plan.survey is None else [science[k] for k in rng.integers(0, len(science), n)]
    fids = np.array([exposure.fid for exposure in anchors])
    snr = np.where(rng.uniform(size=n) < 0.8, rng.uniform(10, 200, n), rng.uniform(5, 10, n))
    gr = rng.uniform(-0.2, 0.5, n)
    m = np.array([snr_to_mag(plan, snr[k], COLOUR_TERM[fid] * gr[k], fid=fid) for k, fid in enumerate(fids.tolist())])
    colours = np.stack([gr, np.zeros(n), -0.5 * gr, -0.7 * gr], axis=1)
    table["mags"] = m[:, None] + colours - colours[np.arange(n), fids - 1][:, None]
    fast = rng.uniform(size=n) < FAST
    table["anchor"] = [exposure.jd_mid for exposure in anchors]
    table["rise"] = np.where(fast, rng.uniform(0.2, 0.8, n), rng.uniform(2.0, 5.0, n))
    table["fall"] = np.where(fast, rng.uniform(1.0, 4.0, n), rng.uniform(12.0, 40.0, n))
    table["t0"] = table["anchor"] - rng.uniform(-1.0, 5.0, n) * table["rise"]
    return table


def _choose_hosts(plan: NightPlan, rcid: int, rng: np.random.Generator, table: Table) -> None:
    """Move transients onto galaxies: offsets follow the light, those at nuclei lie within a fraction of an arcsec."""
    camera, n = plan.camera, len(table)
    galaxies = steady_quadrant(plan, rcid)
    galaxies = galaxies[(galaxies["kind"] == GALAXY) & (galaxies["mags"][:, 1] < HOST_LIMIT)]
    wcs = true_wcs(plan, science_of(plan)[0], rcid)
    galaxies = galaxies[wcs.is_near(galaxies["ra"], galaxies["dec"])]
    gx, gy = wcs.to_pixel(galaxies["ra"], galaxies["dec"])
    inside = (gx > MARGIN) & (gx < camera.nx - MARGIN) & (gy > MARGIN) & (gy < camera.ny - MARGIN)
    hosts = rng.permutation(galaxies[inside])
    hosted = np.flatnonzero(rng.uniform(size=n) < HOSTED)[: len(hosts)]
    chosen = hosts[: len(hosted)]
    nuclear = rng.uniform(size=len(hosted)) < AT_NUCLEUS
    radius = np.where(nuclear, NUCLEUS, chosen["re"]) * np.abs(rng.normal(0, 0.9, len(hosted))) / 3600.0
    angle = rng.uniform(0, 2 * math.pi, len(hosted))
    east = radius * np.cos(angle) / np.cos(np.radians(chosen["dec"]))
    table["ra"][hosted] = (chosen["ra"] + east) % 360.0
    table["dec"][hosted] = chosen["dec"] + radius * np.sin(angle)
    table["host_id"][hosted] = chosen["truth_id"]
    table["variety"][hosted] = np.where(nuclear, lightcurves.NUCLEAR, lightcurves.SUPERNOVA)


@lru_cache(maxsize=8)
def eruptive(plan: NightPlan, rcid: int) -> Table:
    """Flare stars and dwarf novae of a quadrant that erupt while science is taken."""
    n, science = plan.n_per_quadrant("eruptive"), science_of(plan)
    if n == 0 or not science:
        return empty_sky()
    table = empty_sky(n)
    rng = seeded(plan.seed, "eruptive", plan.field, rcid)
    table["kind"] = VARIABLE
    table["truth_id"] = per_quadrant_id(TRANSIENT_ID, plan.field, rcid, FIRST_ERUPTIVE) + np.arange(n)
    table["ra"], table["dec"] = _places(plan, rcid, rng, n)
    flare = rng.uniform(size=n) < 0.4
    table["variety"] = np.where(flare, lightcurves.FLARE, lightcurves.DWARF_NOVA)
    quiet = np.where(flare, rng.uniform(17.5, 20.5, n), rng.uniform(20.0, 22.5, n))
    gr = np.where(flare, rng.normal(1.25, 0.08, n), rng.normal(0.1, 0.15, n))
    ri = np.where(flare, rng.uniform(0.8, 1.6, n), 0.4 * gr)
    table["mags"] = quiet[:, None] + np.stack([gr, np.zeros(n), -ri, -1.5 * ri], axis=1)
    table["amplitude"] = np.where(flare, rng.uniform(0.5, 2.5, n), rng.uniform(2.0, 5.0, n))
    begin, end = science[0].jd_mid, science[-1].jd_mid
    table["t0"] = np.where(flare, rng.uniform(begin - 0.02, end, n), rng.uniform(begin - 4.0, end, n))
    table["rise"] = np.where(flare, 0.0, rng.uniform(0.5, 1.2, n))
    table["fall"] = np.where(flare, np.exp(rng.uniform(np.log(0.01), np.log(0.1), n)), rng.uniform(4.0, 12.0, n))
    table["period"] = np.where(flare, 0.0, rng.uniform(25.0, 150.0, n))
    return table


@lru_cache(maxsize=8)
def faders(plan: NightPlan, rcid: int) -> Table:
    """Sources of a quadrant that shone in the references and have faded: they leave a hole in a difference image."""
    n, science = plan.n_per_quadrant("faders"), science_of(plan)
    if n == 0 or not science:
        return empty_sky()
    table = empty_sky(n)
    rng = seeded(plan.seed, "faders", plan.field, rcid)
    table["kind"], table["variety"] = VARIABLE, lightcurves.FADER
    table["truth_id"] = per_quadrant_id(TRANSIENT_ID, plan.field, rcid, FIRST_FADER) + np.arange(n)
    table["ra"], table["dec"] = _places(plan, rcid, rng, n)
    gr = rng.uniform(0.0, 1.0, n)
    table["mags"] = rng.uniform(16.5, 19.5, n)[:, None] + np.stack([gr, 0 * gr, -0.45 * gr, -0.7 * gr], axis=1)
    table["amplitude"] = rng.uniform(0.4, 4.0, n)
    before = [e.jd_mid for e in schedule(plan) if e.role == "ref" and e.field == plan.field]
    wait = science[0].jd_mid - (before[-1] if before else science[0].jd_mid - 1.0)
    table["t0"] = science[0].jd_mid - 0.5 * wait
    table["fall"] = 0.06 * wait
    return table


def sky_of(plan: NightPlan, exposure: SimExposure, rcid: int) -> Table:
    """All sources but movers that may put light on a quadrant in an exposure; places of 2016.0.

    Transients are of science exposures: references do not have them.
    """
    parts = [steady_quadrant(plan, rcid), eruptive(plan, rcid), faders(plan, rcid)]
    if exposure.role == "sci":
        parts.append(transients(plan, rcid))
    return np.concatenate(parts)
