"""What moves on the sky: asteroids of several families, comets, and near-Earth objects that leave trails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.simulate import almanac
from stream.simulate.conditions import plan_of_field
from stream.simulate.events import snr_to_mag
from stream.simulate.optics import noise_area, true_wcs
from stream.simulate.orbits import (
    Elements,
    Orbit,
    Wanted,
    comet_designation,
    cometels_line,
    designation,
    elements_from,
    ephemerides,
    ephemeris,
    mpcorb_line,
    observer_heliocentric,
    orbit_through,
    packed_epoch,
    to_ecliptic,
)
from stream.simulate.plan import NightPlan, SimExposure, field_centre, seeded
from stream.simulate.scheduler import fields_of, science_of
from stream.simulate.sky import MOVER_ID, per_quadrant_id

F64 = NDArray[np.float64]

COLOURS_FROM_V = np.array([0.28, -0.18, -0.35, -0.40])  # PS1 g, r, i, z minus V of a mean asteroid
NEIGHBOURS = 12.0  # deg: objects of fields so near may be in this one
FIRST_STREAK, FIRST_COMET = 5_000, 9_000  # numbers within a quadrant's identifiers
TRAIL = (5.0, 200.0)  # arcsec in an exposure: shortest and longest trail of a near-Earth object
SMALL_TRAIL = 60.0  # px, longest on a camera smaller than the survey's
# Share, and ranges of size (AU), eccentricity and inclination (deg).
FAMILIES = {
    "main_belt": (0.68, (2.10, 3.30), (0.02, 0.25), (1.0, 18.0)),
    "hungaria": (0.12, (1.80, 2.00), (0.03, 0.11), (16.0, 32.0)),
    "trojan": (0.08, (5.08, 5.28), (0.02, 0.12), (2.0, 25.0)),
    "near_earth": (0.12, (1.10, 2.60), (0.25, 0.60), (2.0, 25.0)),
}
NEAR = (0.15, 0.6)  # AU, distance of near-Earth asteroids that leave no trail


@dataclass(frozen=True, slots=True)
class Mover:
    """A moving source.

    With an ``orbit`` it is an asteroid or a comet. Without, a near-Earth object at constant rate on the sky: ``ra``,
    ``dec`` (deg) at ``jd``, ``rate`` deg/day towards ``position_angle`` (deg east of north); ``mags`` are PS1 g, r,
    i, z. ``slope`` is that of a trail's light: 1 + slope (2 s - 1) with s from 0 at the shutter's opening to 1.
    ``coma`` is the radius (arcsec) over which a comet's light thins out.
    """

    truth_id: int
    rcid: int
    designation: str
    orbit: Orbit | None
    jd: float
    ra: float
    dec: float
    rate: float
    position_angle: float
    mags: tuple[float, float, float, float]
    family: str = ""
    slope: float = 0.0
    coma: float = 0.0
    packed: str = ""

    @property
    def kind(self) -> str:
        """Its kind in the truth tables."""
        return "streak" if self.orbit is None else "comet" if self.orbit.comet else "asteroid"

    def at(self, jd: float) -> tuple[float, float, F64]:
        """Sky position (deg) at a UTC Julian date, and the PS1 magnitudes then."""
        if self.orbit is not None:
            ra, dec, v = ephemeris(self.orbit, jd)
            return ra, dec, v + COLOURS_FROM_V
        angle, distance = math.radians(self.position_angle), math.radians(self.rate * (jd - self.jd))
        d0 = math.radians(self.dec)
        sin_dec = math.sin(d0) * math.cos(distance) + math.cos(d0) * math.sin(distance) * math.cos(angle)
        dec = math.asin(sin_dec)
        ra = math.radians(self.ra) + math.atan2(
            math.sin(angle) * math.sin(distance) * math.cos(d0), math.cos(distance) - math.sin(d0) * sin_dec
        )
        return math.degrees(ra) % 360.0, math.degrees(dec), np.array(self.mags)


def movers(plan: NightPlan) -> tuple[Mover, ...]:
    """Movers that may be in the plan's field: its own and, in a survey, those of neighbouring fields."""
    if plan.survey is None:
        return movers_of(plan)
    ra, dec = field_centre(plan.field)
    near = [f for f in fields_of(plan) if float(almanac.separation(ra, dec, *field_centre(f))) < NEIGHBOURS]
    return tuple(mover for field in near for mover in movers_of(plan_of_field(plan, field)))


@lru_cache(maxsize=64)
def movers_of(plan: NightPlan) -> tuple[Mover, ...]:
    """Asteroids, near-Earth objects and comets of all quadrants of the plan's own field, in the order of quadrants."""
    science = science_of(plan)
    if not science:
        return ()
    n_asteroids, n_streaks = plan.n_per_quadrant("asteroids"), plan.n_per_quadrant("streaks")
    turn = fields_of(plan).index(plan.field)
    out: list[Mover] = []
    for number, rcid in enumerate(plan.rcids):
        first = (turn * len(plan.rcids) + number) * n_asteroids
        out += [_asteroid(plan, science[0], rcid, k, designation(plan.night, first + k)) for k in range(n_asteroids)]
        out += [_near_earth(plan, science[(number + k) % len(science)], rcid, k) for k in range(n_streaks)]
    for number, ccd in enumerate(sorted(plan.ccds)):
        channels = [rcid for rcid in plan.rcids if rcid // 4 == ccd - 1]
        for k in range(plan.comets):
            order = (turn * len(plan.ccds) + number) * plan.comets + k
            out.append(_comet(plan, science[0], channels[k % len(channels)], k, comet_designation(plan.night, order)))
    return tuple(out)


@lru_cache(maxsize=8)
def _orbiting(plan: NightPlan) -> tuple[tuple[Mover, ...], Elements]:
    chosen = tuple(mover for mover in movers(plan) if mover.orbit is not None)
    return chosen, elements_from([mover.orbit for mover in chosen if mover.orbit is not None])


def movers_near(plan: NightPlan, ra: float, dec: float, radius: float, jd: float) -> list[Mover]:
    """Movers of the plan within ``radius`` deg of a place at a time, in the order of ``movers``."""
    chosen, elements = _orbiting(plan)
    near = set()
    if chosen:
        there = ephemerides(elements, jd)
        close = np.flatnonzero(almanac.separation(there[0], there[1], ra, dec) < radius)
        near = {chosen[k].truth_id for k in close}
    for mover in movers(plan):
        if mover.orbit is None and float(almanac.separation(*mover.at(jd)[:2], ra, dec)) < radius:
            near.add(mover.truth_id)
    return [mover for mover in movers(plan) if mover.truth_id in near]


def wanted_orbit(family: str, ra: float, dec: float, jd: float, rng: np.random.Generator) -> Wanted:
    """An orbit of a family that can be seen at a place (deg) at a time."""
    _, sizes, eccentricities, inclinations = FAMILIES[family]
    a, e = rng.uniform(*sizes), rng.uniform(*eccentricities)
    inclination = rng.uniform(*inclinations)
    outwards, northwards = (bool(side) for side in rng.uniform(size=2) < 0.5)
    r = rng.uniform(a * (1 - 0.9 * e), a * (1 + 0.9 * e))
    if family == "near_earth":
        distance = NEAR[0] * (NEAR[1] / NEAR[0]) ** rng.uniform()
        sight = to_ecliptic(almanac.direction(ra, dec))
        r = float(np.linalg.norm(observer_heliocentric(jd) + distance * sight))
        # Perihelion near the Earth's orbit, aphelion beyond where it is seen.
        q = min(rng.uniform(0.7, 1.25), 0.98 * r)
        a = max(a, 0.5 * (q + 1.05 * r))
        e = 1.0 - q / a
    return Wanted(a, e, inclination, r, outwards, northwards)


def _sighted(plan: NightPlan, exposure: SimExposure, rcid: int, rng: np.random.Generator) -> tuple[float, float]:
    """A place (deg) in the middle of a quadrant."""
    camera = plan.camera
    x, y = rng.uniform(0.15, 0.85, 1) * camera.nx, rng.uniform(0.15, 0.85, 1) * camera.ny
    ra, dec = true_wcs(plan, exposure, rcid).to_sky(x, y)
    return float(ra[0]), float(dec[0])


def _rate(orbit: Orbit, jd: float) -> tuple[float, float, float, float]:
    """Place (deg), rate (deg/day) and its position angle (deg) at a time."""
    ra0, dec0, _ = ephemeris(orbit, jd)
    ra1, dec1, _ = ephemeris(orbit, jd + 0.01)
    east = ((ra1 - ra0 + 180) % 360 - 180) * math.cos(math.radians(dec0))
    return ra0, dec0, math.hypot(east, dec1 - dec0) / 0.01, math.degrees(math.atan2(east, dec1 - dec0)) % 360


def _magnitudes(v: float) -> tuple[float, float, float, float]:
    g, r, i, z = (float(value) for value in v + COLOURS_FROM_V)
    return g, r, i, z


def _asteroid(plan: NightPlan, exposure: SimExposure, rcid: int, k: int, names: tuple[str, str]) -> Mover:
    rng = seeded(plan.seed, "asteroid", plan.field, rcid, k)
    ra, dec = _sighted(plan, exposure, rcid, rng)
    snr = np.array([math.exp(rng.uniform(math.log(12), math.log(200)))])
    v = float(snr_to_mag(plan, snr, fid=exposure.fid)[0] - COLOURS_FROM_V[exposure.fid - 1])
    family = str(rng.choice(list(FAMILIES), p=[share for share, *_ in FAMILIES.values()]))
    wanted = wanted_orbit(family, ra, dec, exposure.jd_mid, rng)
    orbit = orbit_through(ra, dec, exposure.jd_mid, v, plan.midnight, wanted)
    identifier = per_quadrant_id(MOVER_ID, plan.field, rcid, k)
    return Mover(
        identifier, rcid, names[0], orbit, exposure.jd_mid, *_rate(orbit, exposure.jd_mid), _magnitudes(v),
        family=family, packed=names[1],
    )  # fmt: skip


def _comet(plan: NightPlan, exposure: SimExposure, rcid: int, k: int, names: tuple[str, str]) -> Mover:
    """A comet near its perihelion, some magnitudes above the limit: its light is spread."""
    rng = seeded(plan.seed, "comet", plan.field, rcid, k)
    ra, dec = _sighted(plan, exposure, rcid, rng)
    v = rng.uniform(14.0, 17.0)
    q, e = rng.uniform(1.3, 2.5), rng.uniform(0.5, 0.95)
    wanted = Wanted(
        q / (1 - e), e, rng.uniform(5, 150), q * rng.uniform(1.02, 1.3), bool(rng.uniform() < 0.5),
        bool(rng.uniform() < 0.5), comet=True,
    )  # fmt: skip
    orbit = orbit_through(ra, dec, exposure.jd_mid, v, plan.midnight, wanted)
    return Mover(
        per_quadrant_id(MOVER_ID, plan.field, rcid, FIRST_COMET + k), rcid, names[0], orbit, exposure.jd_mid,
        *_rate(orbit, exposure.jd_mid), _magnitudes(v), family="comet", coma=rng.uniform(8.0, 30.0), packed=names[1],
    )  # fmt: skip


def _near_earth(plan: NightPlan, exposure: SimExposure, rcid: int, k: int) -> Mover:
    """A trail of 5 to 200 arcsec, S/N 15 to 100, fully inside its quadrant."""
    rng = seeded(plan.seed, "streak", plan.field, rcid, k)
    camera = plan.camera
    longest = TRAIL[1] / camera.pixel_scale if plan.is_full else SMALL_TRAIL
    length = math.exp(rng.uniform(math.log(TRAIL[0] / camera.pixel_scale), math.log(longest)))
    margin = 0.5 * length + 30
    x = rng.uniform(margin, camera.nx - margin, 1)
    y = rng.uniform(margin, camera.ny - margin, 1)
    ra, dec = true_wcs(plan, exposure, rcid).to_sky(x, y)
    rate = length * camera.pixel_scale / 3600.0 / (plan.exptime / 86_400.0)
    fwhm = 0.5 * (plan.seeing[0] + plan.seeing[1])
    area = noise_area(fwhm) + length * fwhm * 1.5
    snr = math.exp(rng.uniform(math.log(15), math.log(100)))
    v = float(snr_to_mag(plan, np.array([snr]), area=area, fid=exposure.fid)[0] - COLOURS_FROM_V[exposure.fid - 1])
    return Mover(
        per_quadrant_id(MOVER_ID, plan.field, rcid, FIRST_STREAK + k), rcid, f"NEO{plan.field:04d}{rcid:02d}{k:02d}",
        None, exposure.jd_mid, float(ra[0]), float(dec[0]), rate, rng.uniform(0, 360), _magnitudes(v),
        family="near_earth", slope=rng.uniform(-0.6, 0.6),
    )  # fmt: skip


def _of_all_fields(plan: NightPlan, kind: str) -> list[Mover]:
    every = (mover for field in fields_of(plan) for mover in movers_of(plan_of_field(plan, field)))
    return [mover for mover in every if mover.kind == kind]


def mpcorb(plan: NightPlan) -> str:
    """The text of MPCORB.DAT: a line for each asteroid."""
    epoch = packed_epoch(plan.night)
    asteroids = _of_all_fields(plan, "asteroid")
    lines = [mpcorb_line(m.orbit, m.designation, m.packed, epoch) for m in asteroids if m.orbit is not None]
    return "".join(f"{line}\n" for line in lines)


def cometels(plan: NightPlan) -> str:
    """The text of CometEls.txt: a line for each comet."""
    comets = _of_all_fields(plan, "comet")
    lines = [cometels_line(m.orbit, m.designation, m.packed) for m in comets if m.orbit is not None]
    return "".join(f"{line}\n" for line in lines)
