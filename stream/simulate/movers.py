"""What moves: asteroids on Keplerian orbits, near-Earth objects that leave trails, and their MPCORB lines.

Two bodies are enough: elements are given for the night itself. Places are astrometric and topocentric (light time
and the observer's place are in, aberration is not, as for the stars). Vectors are ecliptic J2000, AU and days.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import erfa  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from stream.simulate.optics import noise_area, true_wcs
from stream.simulate.plan import NightPlan, SimExposure, schedule, seeded
from stream.simulate.sky import MOVER_ID, snr_to_mag

F64 = NDArray[np.float64]

GM_SUN = 0.01720209895**2  # Gauss' constant, AU^3 / day^2
LIGHT_DAY = 173.144632674  # AU
OBLIQUITY = math.radians(84381.448 / 3600.0)  # J2000, as the Minor Planet Center's elements take it
SLOPE_G = 0.15
SITE = (math.radians(-116.8597), math.radians(33.3573), 1668.0)  # Palomar 48-inch, MPC code I41
_HALF_MONTHS = "ABCDEFGHJKLMNOPQRSTUVWXY"
_LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"
_PACKED = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
COLOURS_FROM_V = np.array([0.28, -0.18, -0.35, -0.40])  # PS1 g, r, i, z minus V of a mean asteroid


@dataclass(frozen=True, slots=True)
class Orbit:
    """Osculating elements: degrees, AU; ``epoch`` is a TT Julian date; ``h`` the absolute magnitude in V."""

    epoch: float
    a: float
    e: float
    inclination: float
    node: float
    peri: float
    mean_anomaly: float
    h: float


@dataclass(frozen=True, slots=True)
class Mover:
    """A moving source.

    With an ``orbit`` it is an asteroid. Without, a near-Earth object at constant rate on the sky: ``ra``, ``dec``
    (deg) at ``jd``, ``rate`` deg/day towards ``position_angle`` (deg east of north); ``mags`` are PS1 g, r, i, z.
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


def tt_of(jd_utc: float) -> float:
    """Terrestrial Time of a UTC Julian date."""
    day = math.floor(jd_utc - 0.5) + 0.5
    tai1, tai2 = erfa.utctai(day, jd_utc - day)
    tt1, tt2 = erfa.taitt(tai1, tai2)
    return float(tt1 + tt2)


def _to_ecliptic(vector: F64) -> F64:
    c, s = math.cos(OBLIQUITY), math.sin(OBLIQUITY)
    x, y, z = vector
    return np.array([x, c * y + s * z, -s * y + c * z])


def _to_equatorial(vector: F64) -> F64:
    c, s = math.cos(OBLIQUITY), math.sin(OBLIQUITY)
    x, y, z = vector
    return np.array([x, c * y - s * z, s * y + c * z])


def earth_barycentric(jd: float) -> F64:
    """Barycentric position of the Earth, equatorial, AU."""
    position: F64 = np.asarray(erfa.epv00(tt_of(jd), 0.0)[1]["p"], float)
    return position


@lru_cache(maxsize=256)
def _observer(jd: float) -> tuple[float, float, float]:
    tt = tt_of(jd)
    centre = np.asarray(erfa.epv00(tt, 0.0)[0]["p"], float)
    # UT1 is taken as UTC: under a second, below a milliarcsecond for anything a tenth of an AU away.
    to_terrestrial = erfa.c2t06a(tt, 0.0, jd, 0.0, 0.0, 0.0)
    place = to_terrestrial.T @ np.asarray(erfa.gd2gc(1, *SITE), float) / erfa.DAU
    x, y, z = _to_ecliptic(centre + place)
    return float(x), float(y), float(z)


def observer_heliocentric(jd: float) -> F64:
    """Heliocentric place of the telescope, ecliptic, AU."""
    return np.array(_observer(jd))


def orbit_position(orbit: Orbit, tt: float) -> F64:
    """Heliocentric ecliptic position, AU."""
    motion = math.sqrt(GM_SUN / orbit.a**3)
    mean = (math.radians(orbit.mean_anomaly) + motion * (tt - orbit.epoch)) % (2 * math.pi)
    anomaly = mean
    for _ in range(50):  # Newton; converges in a handful of steps for e < 0.5
        step = (anomaly - orbit.e * math.sin(anomaly) - mean) / (1 - orbit.e * math.cos(anomaly))
        anomaly -= step
        if abs(step) < 1e-14:
            break
    x = orbit.a * (math.cos(anomaly) - orbit.e)
    y = orbit.a * math.sqrt(1 - orbit.e**2) * math.sin(anomaly)
    w, o, i = math.radians(orbit.peri), math.radians(orbit.node), math.radians(orbit.inclination)
    p = np.array([math.cos(w) * math.cos(o) - math.sin(w) * math.sin(o) * math.cos(i),
                  math.cos(w) * math.sin(o) + math.sin(w) * math.cos(o) * math.cos(i),
                  math.sin(w) * math.sin(i)])  # fmt: skip
    q = np.array([-math.sin(w) * math.cos(o) - math.cos(w) * math.sin(o) * math.cos(i),
                  -math.sin(w) * math.sin(o) + math.cos(w) * math.cos(o) * math.cos(i),
                  math.cos(w) * math.sin(i)])  # fmt: skip
    return x * p + y * q


def ephemeris(orbit: Orbit, jd: float) -> tuple[float, float, float]:
    """Right ascension, declination (deg, ICRS) and V magnitude at a UTC Julian date, as seen from Palomar."""
    observer, tt = observer_heliocentric(jd), tt_of(jd)
    light = 0.0
    for _ in range(4):
        sun = orbit_position(orbit, tt - light)
        line = sun - observer
        light = float(np.linalg.norm(line)) / LIGHT_DAY
    x, y, z = _to_equatorial(line)
    distance, r, big_r = (float(np.linalg.norm(vector)) for vector in (line, sun, observer))
    cosine = (r**2 + distance**2 - big_r**2) / (2 * r * distance)
    phase = math.acos(min(1.0, max(-1.0, cosine)))
    phi1, phi2 = math.exp(-3.33 * math.tan(phase / 2) ** 0.63), math.exp(-1.87 * math.tan(phase / 2) ** 1.22)
    v = orbit.h + 5 * math.log10(r * distance) - 2.5 * math.log10((1 - SLOPE_G) * phi1 + SLOPE_G * phi2)
    return math.degrees(math.atan2(y, x)) % 360.0, math.degrees(math.asin(z / distance)), v


def elements_of(position: F64, velocity: F64, epoch: float, h: float) -> Orbit:
    """Elements of a bound orbit from a heliocentric ecliptic state, AU and AU/day."""
    r = float(np.linalg.norm(position))
    a = 1.0 / (2.0 / r - float(velocity @ velocity) / GM_SUN)
    momentum = np.cross(position, velocity)
    ecc = np.cross(velocity, momentum) / GM_SUN - position / r
    e = float(np.linalg.norm(ecc))
    inclination = math.atan2(math.hypot(momentum[0], momentum[1]), momentum[2])
    node = math.atan2(momentum[0], -momentum[1])
    along = np.array([math.cos(node), math.sin(node), 0.0])
    across = np.cross(momentum / np.linalg.norm(momentum), along)
    peri = math.atan2(float(ecc @ across), float(ecc @ along))
    true = math.atan2(float(position @ across), float(position @ along)) - peri
    anomaly = 2 * math.atan2(math.sqrt(1 - e) * math.sin(true / 2), math.sqrt(1 + e) * math.cos(true / 2))
    mean = anomaly - e * math.sin(anomaly)
    i, o, w, m = (math.degrees(angle) % 360.0 for angle in (inclination, node, peri, mean))
    return Orbit(epoch, a, e, i, o, w, m, h)


def _rounded(orbit: Orbit) -> Orbit:
    """The orbit as its MPCORB line prints it, which is what the sky is then painted from."""
    return Orbit(
        epoch=orbit.epoch,
        a=round(orbit.a, 7),
        e=round(orbit.e, 7),
        inclination=round(orbit.inclination, 5),
        node=round(orbit.node, 5),
        peri=round(orbit.peri, 5),
        mean_anomaly=round(orbit.mean_anomaly, 5),
        h=round(orbit.h, 2),
    )


def main_belt_orbit(ra: float, dec: float, jd: float, v: float, epoch: float, rng: np.random.Generator) -> Orbit:
    """An orbit of main-belt size that is seen at a place (deg) at a UTC Julian date with magnitude ``v``."""
    observer = observer_heliocentric(jd)
    a, d = math.radians(ra), math.radians(dec)
    sight = _to_ecliptic(np.array([math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)]))
    size = rng.uniform(2.1, 3.2)
    toward = float(observer @ sight)
    distance = -toward + math.sqrt(toward**2 - float(observer @ observer) + size**2)
    position = observer + distance * sight
    east = np.cross([0.0, 0.0, 1.0], position)
    east /= np.linalg.norm(east)
    north = np.cross(position, east) / size
    tilt, climb = math.radians(rng.normal(0, 5)), rng.normal(0, 0.04)
    direction = math.cos(tilt) * east + math.sin(tilt) * north + climb * position / size
    velocity = direction * math.sqrt(GM_SUN / size) * (1 + rng.normal(0, 0.03))
    state_epoch = tt_of(jd) - distance / LIGHT_DAY
    orbit = elements_of(position, velocity, state_epoch, 0.0)
    motion = math.degrees(math.sqrt(GM_SUN / round(orbit.a, 7) ** 3))
    mean = (orbit.mean_anomaly + motion * (epoch - state_epoch)) % 360.0
    moved = Orbit(epoch, orbit.a, orbit.e, orbit.inclination, orbit.node, orbit.peri, mean, 0.0)
    h = v - ephemeris(_rounded(moved), jd)[2]
    return _rounded(Orbit(epoch, orbit.a, orbit.e, orbit.inclination, orbit.node, orbit.peri, mean, h))


def designations(plan: NightPlan, count: int) -> list[tuple[str, str]]:
    """Readable and packed provisional designations of the night's half month, e.g. 2020 TA1 and K20T01A."""
    year, month, day = int(plan.night[:4]), int(plan.night[4:6]), int(plan.night[6:])
    half = _HALF_MONTHS[2 * (month - 1) + (day > 15)]
    century = chr(ord("A") + year // 100 - 10)
    out = []
    for k in range(count):
        cycle, letter = 1 + k // 25, _LETTERS[k % 25]
        tens = str(cycle // 10) if cycle < 100 else chr(ord("A") + cycle // 10 - 10)
        out.append((f"{year} {half}{letter}{cycle}", f"{century}{year % 100:02d}{half}{tens}{cycle % 10}{letter}"))
    return out


def packed_epoch(plan: NightPlan) -> str:
    """Packed date of the night, the epoch of all elements, e.g. K20A5."""
    year, month, day = int(plan.night[:4]), int(plan.night[4:6]), int(plan.night[6:])
    return f"{chr(ord('A') + year // 100 - 10)}{year % 100:02d}{_PACKED[month]}{_PACKED[day]}"


def mpcorb_line(orbit: Orbit, readable: str, packed: str, epoch: str) -> str:
    """One line of MPCORB.DAT, 202 columns."""
    motion = math.degrees(math.sqrt(GM_SUN / orbit.a**3))
    return (
        f"{packed:<7s} {orbit.h:5.2f} {SLOPE_G:5.2f} {epoch:5s} {orbit.mean_anomaly:9.5f}  {orbit.peri:9.5f}  "
        f"{orbit.node:9.5f}  {orbit.inclination:9.5f}  {orbit.e:9.7f} {motion:11.8f} {orbit.a:11.7f}  "
        f"0 {'SIMULATED':<9s} {100:5d} {5:3d} {'2010-2020':9s} {0.30:4.2f} {'M-v':3s} {'30h':3s} {'Simulator':<10s} "
        f"0000 {readable:<28s}{'20200101':8s}"
    )


@lru_cache(maxsize=4)
def movers(plan: NightPlan) -> tuple[Mover, ...]:
    """Asteroids and near-Earth objects of all quadrants of the plan, in the order of quadrants."""
    science = [exposure for exposure in schedule(plan) if exposure.role == "sci"]
    if not science:
        return ()
    n_asteroids, n_streaks = plan.n_per_quadrant("asteroids"), plan.n_per_quadrant("streaks")
    names = designations(plan, n_asteroids * len(plan.rcids))
    out: list[Mover] = []
    for number, rcid in enumerate(plan.rcids):
        for k in range(n_asteroids):
            readable = names[number * n_asteroids + k][0]
            out.append(_asteroid(plan, science[0], rcid, k, readable))
        for k in range(n_streaks):
            out.append(_near_earth(plan, science[(number + k) % len(science)], rcid, k))
    return tuple(out)


def _asteroid(plan: NightPlan, exposure: SimExposure, rcid: int, k: int, readable: str) -> Mover:
    rng = seeded(plan.seed, "asteroid", rcid, k)
    ra, dec = true_wcs(plan, exposure, rcid).to_sky(
        rng.uniform(0.15, 0.85, 1) * plan.camera.nx, rng.uniform(0.15, 0.85, 1) * plan.camera.ny
    )
    m = float(snr_to_mag(plan, np.array([math.exp(rng.uniform(math.log(12), math.log(200)))]))[0])
    v = m - COLOURS_FROM_V[plan.fid - 1]
    orbit = main_belt_orbit(float(ra[0]), float(dec[0]), exposure.jd_mid, v, plan.midnight, rng)
    ra0, dec0, _ = ephemeris(orbit, exposure.jd_mid)
    ra1, dec1, _ = ephemeris(orbit, exposure.jd_mid + 0.01)
    east = (ra1 - ra0 + 180) % 360 - 180
    east *= math.cos(math.radians(dec0))
    rate = math.hypot(east, dec1 - dec0) / 0.01
    angle = math.degrees(math.atan2(east, dec1 - dec0)) % 360
    mags = v + COLOURS_FROM_V
    identifier = MOVER_ID + rcid * 10_000 + k
    return Mover(
        identifier, rcid, readable, orbit, exposure.jd_mid, ra0, dec0, rate, angle,
        (float(mags[0]), float(mags[1]), float(mags[2]), float(mags[3])),
    )  # fmt: skip


def _near_earth(plan: NightPlan, exposure: SimExposure, rcid: int, k: int) -> Mover:
    """A trail of 15 to 150 px (60 on a small quadrant), S/N 15 to 100, fully inside its quadrant."""
    rng = seeded(plan.seed, "streak", rcid, k)
    camera = plan.camera
    length = math.exp(rng.uniform(math.log(15), math.log(150 if plan.is_full else 60)))
    margin = 0.5 * length + 30
    x = rng.uniform(margin, camera.nx - margin, 1)
    y = rng.uniform(margin, camera.ny - margin, 1)
    ra, dec = true_wcs(plan, exposure, rcid).to_sky(x, y)
    rate = length * camera.pixel_scale / 3600.0 / (plan.exptime / 86_400.0)
    fwhm = 0.5 * (plan.seeing[0] + plan.seeing[1])
    area = noise_area(fwhm) + length * fwhm * 1.5
    snr = math.exp(rng.uniform(math.log(15), math.log(100)))
    m = float(snr_to_mag(plan, np.array([snr]), area=area)[0])
    mags = m + COLOURS_FROM_V - COLOURS_FROM_V[plan.fid - 1]
    return Mover(
        MOVER_ID + rcid * 10_000 + 5_000 + k, rcid, f"NEO{rcid:02d}{k:02d}", None, exposure.jd_mid,
        float(ra[0]), float(dec[0]), rate, rng.uniform(0, 360),
        (float(mags[0]), float(mags[1]), float(mags[2]), float(mags[3])),
    )  # fmt: skip


def mpcorb(plan: NightPlan) -> str:
    """The text of MPCORB.DAT: a line for each asteroid."""
    asteroids = [mover for mover in movers(plan) if mover.orbit is not None]
    names = designations(plan, len(asteroids))
    epoch = packed_epoch(plan)
    lines = [
        mpcorb_line(mover.orbit, mover.designation, packed, epoch)
        for mover, (_, packed) in zip(asteroids, names, strict=True)
        if mover.orbit is not None
    ]
    return "".join(f"{line}\n" for line in lines)
