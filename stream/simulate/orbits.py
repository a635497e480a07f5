"""Two-body motion about the sun, seen from Palomar, and the Minor Planet Center's lines of elements.

Two bodies are enough: elements are given for the night itself. Places are astrometric and topocentric (light time
and the observer's place are in, aberration is not, as for the stars). Vectors are ecliptic J2000, AU and days.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import erfa  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from stream.core import identity
from stream.simulate.almanac import LIGHT_DAY, site_vector, tt_of

F64 = NDArray[np.float64]

GM_SUN = 0.01720209895**2  # Gauss' constant, AU^3 / day^2
OBLIQUITY = math.radians(84381.448 / 3600.0)  # J2000, as the Minor Planet Center's elements take it
SLOPE_G = 0.15
COMET_SLOPE = 4.0  # total brightness of a comet falls with the heliocentric distance to the power 4
_HALF_MONTHS = "ABCDEFGHJKLMNOPQRSTUVWXY"
_LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"
_PACKED = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
_CYCLES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PER_HALF_MONTH = 25 * 620 - 25  # designations that the packed form can count


@dataclass(frozen=True, slots=True)
class Orbit:
    """Osculating elements: degrees, AU; ``epoch`` is a TT Julian date; ``h`` the absolute magnitude in V.

    A ``comet``'s ``h`` is its total magnitude at 1 AU from the sun and the Earth.
    """

    epoch: float
    a: float
    e: float
    inclination: float
    node: float
    peri: float
    mean_anomaly: float
    h: float
    comet: bool = False

    @property
    def motion(self) -> float:
        """Mean motion, rad/day."""
        return math.sqrt(GM_SUN / self.a**3)

    @property
    def perihelion_time(self) -> float:
        """The perihelion nearest to the epoch, TT Julian date."""
        return self.epoch - math.radians((self.mean_anomaly + 180.0) % 360.0 - 180.0) / self.motion


@dataclass(frozen=True, slots=True, eq=False)
class Elements:
    """Many orbits as arrays, with unit vectors ``p`` to the perihelion and ``q`` ahead of it in the orbit's plane."""

    epoch: F64
    a: F64
    e: F64
    mean: F64  # rad
    p: F64  # (n, 3)
    q: F64
    h: F64
    comet: NDArray[np.bool_]


def elements_from(orbits: Sequence[Orbit]) -> Elements:
    """Orbits as arrays."""
    numbers = np.array([[o.epoch, o.a, o.e, o.inclination, o.node, o.peri, o.mean_anomaly, o.h] for o in orbits])
    epoch, a, e, inclination, node, peri, mean, h = numbers.reshape(-1, 8).T
    i, o, w = np.radians(inclination), np.radians(node), np.radians(peri)
    p = np.stack([
        np.cos(w) * np.cos(o) - np.sin(w) * np.sin(o) * np.cos(i),
        np.cos(w) * np.sin(o) + np.sin(w) * np.cos(o) * np.cos(i),
        np.sin(w) * np.sin(i),
    ], axis=1)  # fmt: skip
    q = np.stack([
        -np.sin(w) * np.cos(o) - np.cos(w) * np.sin(o) * np.cos(i),
        -np.sin(w) * np.sin(o) + np.cos(w) * np.cos(o) * np.cos(i),
        np.cos(w) * np.sin(i),
    ], axis=1)  # fmt: skip
    return Elements(epoch, a, e, np.radians(mean), p, q, h, np.array([o.comet for o in orbits], bool))


def positions(elements: Elements, tt: F64) -> F64:
    """Heliocentric ecliptic positions, (n, 3) AU, each at its own time."""
    mean = (elements.mean + np.sqrt(GM_SUN / elements.a**3) * (tt - elements.epoch)) % (2 * np.pi)
    e = elements.e
    anomaly = np.where(e > 0.7, np.pi, mean + e * np.sin(mean))  # from pi Newton's steps converge for every e < 1
    for _ in range(60):
        step = (anomaly - e * np.sin(anomaly) - mean) / (1 - e * np.cos(anomaly))
        anomaly -= step
        if np.abs(step).max(initial=0.0) < 1e-14:
            break
    x = elements.a * (np.cos(anomaly) - e)
    y = elements.a * np.sqrt(1 - e**2) * np.sin(anomaly)
    return np.asarray(x[:, None] * elements.p + y[:, None] * elements.q)


def orbit_position(orbit: Orbit, tt: float) -> F64:
    """Heliocentric ecliptic position, AU."""
    return np.asarray(positions(elements_from([orbit]), np.array([tt]))[0])


def to_ecliptic(vector: F64) -> F64:
    """Equatorial vectors, (..., 3), on ecliptic axes."""
    c, s = math.cos(OBLIQUITY), math.sin(OBLIQUITY)
    return np.asarray(vector @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]))


def to_equatorial(vector: F64) -> F64:
    """Ecliptic vectors, (..., 3), on equatorial axes."""
    c, s = math.cos(OBLIQUITY), math.sin(OBLIQUITY)
    return np.asarray(vector @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]))


def earth_barycentric(jd: float) -> F64:
    """Barycentric position of the Earth, equatorial, AU."""
    return np.asarray(erfa.epv00(tt_of(jd), 0.0)[1]["p"], float)


@lru_cache(maxsize=1024)
def _observer(jd: float) -> tuple[float, ...]:
    centre = np.asarray(erfa.epv00(tt_of(jd), 0.0)[0]["p"], float)
    return tuple(float(value) for value in to_ecliptic(centre + site_vector(jd)))


def observer_heliocentric(jd: float) -> F64:
    """Heliocentric place of the telescope, ecliptic, AU."""
    return np.array(_observer(jd))


def ephemerides(elements: Elements, jd: float) -> tuple[F64, F64, F64]:
    """Right ascensions, declinations (deg, ICRS) and V magnitudes at a UTC Julian date, as seen from Palomar."""
    observer, tt = observer_heliocentric(jd), tt_of(jd)
    light = np.zeros(len(elements.a))
    for _ in range(4):
        sun = positions(elements, tt - light)
        line = sun - observer
        light = np.linalg.norm(line, axis=1) / LIGHT_DAY
    x, y, z = to_equatorial(line).T
    distance, r = np.linalg.norm(line, axis=1), np.linalg.norm(sun, axis=1)
    cosine = (r**2 + distance**2 - float(observer @ observer)) / (2 * r * distance)
    half = np.tan(np.arccos(np.clip(cosine, -1.0, 1.0)) / 2)
    phi1, phi2 = np.exp(-3.33 * half**0.63), np.exp(-1.87 * half**1.22)
    phase = -2.5 * np.log10(np.maximum((1 - SLOPE_G) * phi1 + SLOPE_G * phi2, 1e-12))
    law = np.where(elements.comet, (2.5 * COMET_SLOPE - 5.0) * np.log10(r), phase)
    v = elements.h + 5 * np.log10(r * distance) + law
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arcsin(z / distance)), v


def ephemeris(orbit: Orbit, jd: float) -> tuple[float, float, float]:
    """Right ascension, declination (deg, ICRS) and V magnitude of one orbit."""
    ra, dec, v = ephemerides(elements_from([orbit]), jd)
    return float(ra[0]), float(dec[0]), float(v[0])


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """An orbit that is looked for: size (AU), eccentricity, inclination (deg), and whether it moves outwards.

    ``r`` is the heliocentric distance (AU) at which the object is seen, between perihelion and aphelion.
    """

    a: float
    e: float
    inclination: float
    r: float
    outwards: bool
    northwards: bool
    comet: bool = False


def orbit_through(ra: float, dec: float, jd: float, v: float, epoch: float, wanted: Wanted) -> Orbit:
    """The wanted orbit, turned so that it is seen at a place (deg) at a UTC Julian date with magnitude ``v``.

    The inclination is at least the object's heliocentric latitude. The elements are those of ``epoch`` and as exact
    as their line prints them: the sky is painted from what is published.
    """
    observer = observer_heliocentric(jd)
    a, d = math.radians(ra), math.radians(dec)
    sight = to_ecliptic(np.array([math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)]))
    toward = float(observer @ sight)
    distance = -toward + math.sqrt(max(toward**2 - float(observer @ observer) + wanted.r**2, 0.0))
    position = observer + distance * sight
    r = float(np.linalg.norm(position))
    east = np.cross([0.0, 0.0, 1.0], position)
    east /= np.linalg.norm(east)
    north = np.cross(position, east) / r
    cosine = math.cos(math.radians(wanted.inclination)) / max(math.hypot(position[0], position[1]) / r, 1e-9)
    heading = math.acos(max(-1.0, min(1.0, cosine))) * (1.0 if wanted.northwards else -1.0)
    across = math.sqrt(GM_SUN * wanted.a * (1 - wanted.e**2)) / r
    along = math.sqrt(max(GM_SUN * (2.0 / r - 1.0 / wanted.a) - across**2, 0.0)) * (1.0 if wanted.outwards else -1.0)
    velocity = across * (math.cos(heading) * east + math.sin(heading) * north) + along * position / r
    seen = tt_of(jd) - distance / LIGHT_DAY
    orbit = elements_of(position, velocity, seen, 0.0)
    mean = (orbit.mean_anomaly + math.degrees(orbit.motion) * (epoch - seen)) % 360.0
    moved = as_printed(replace(orbit, epoch=epoch, mean_anomaly=mean, comet=wanted.comet))
    return replace(moved, h=round(v - ephemeris(moved, jd)[2], 2 if not wanted.comet else 1))


def as_printed(orbit: Orbit) -> Orbit:
    """The orbit as its line prints it."""
    if orbit.comet:  # perihelion distance and time stand for size and mean anomaly
        q, e = round(orbit.a * (1 - orbit.e), 6), round(orbit.e, 6)
        angles = {key: round(getattr(orbit, key), 4) for key in ("inclination", "node", "peri")}
        rounded = replace(orbit, a=q / (1 - e), e=e, **angles)
        passed = round(orbit.perihelion_time - 0.5, 4) + 0.5
        return replace(rounded, mean_anomaly=math.degrees(rounded.motion * (orbit.epoch - passed)) % 360.0)
    return replace(
        orbit,
        a=round(orbit.a, 7),
        e=round(orbit.e, 7),
        inclination=round(orbit.inclination, 5),
        node=round(orbit.node, 5),
        peri=round(orbit.peri, 5),
        mean_anomaly=round(orbit.mean_anomaly, 5),
    )


# -- the centre's lines


def designation(night: str, k: int) -> tuple[str, str]:
    """Readable and packed provisional designation of the k-th find in a night's half month: 2020 TA1 and K20T01A.

    What no packed form can count in one half month goes to the ones before.
    """
    year, month, day = int(night[:4]), int(night[4:6]), int(night[6:])
    number = 24 * year + 2 * (month - 1) + (day > 15) - k // PER_HALF_MONTH
    year, half = number // 24, _HALF_MONTHS[number % 24]
    cycle, letter = 1 + k % PER_HALF_MONTH // 25, _LETTERS[k % PER_HALF_MONTH % 25]
    packed = f"{_century(year)}{year % 100:02d}{half}{_CYCLES[cycle // 10]}{cycle % 10}{letter}"
    return f"{year} {half}{letter}{cycle}", packed


def comet_designation(night: str, k: int) -> tuple[str, str]:
    """Readable and packed designation of the k-th comet of a night's half month: C/2020 T1 and CK20T010."""
    year, month, day = int(night[:4]), int(night[4:6]), int(night[6:])
    half = _HALF_MONTHS[2 * (month - 1) + (day > 15)]
    order = k + 1
    return f"C/{year} {half}{order}", f"C{_century(year)}{year % 100:02d}{half}{_CYCLES[order // 10]}{order % 10}0"


def _century(year: int) -> str:
    return chr(ord("A") + year // 100 - 10)


def packed_epoch(night: str) -> str:
    """Packed date of a night, the epoch of all elements, e.g. K20A5."""
    year, month, day = int(night[:4]), int(night[4:6]), int(night[6:])
    return f"{_century(year)}{year % 100:02d}{_PACKED[month]}{_PACKED[day]}"


def mpcorb_line(orbit: Orbit, readable: str, packed: str, epoch: str) -> str:
    """One line of MPCORB.DAT, 202 columns."""
    return (
        f"{packed:<7s} {orbit.h:5.2f} {SLOPE_G:5.2f} {epoch:5s} {orbit.mean_anomaly:9.5f}  {orbit.peri:9.5f}  "
        f"{orbit.node:9.5f}  {orbit.inclination:9.5f}  {orbit.e:9.7f} {math.degrees(orbit.motion):11.8f} "
        f"{orbit.a:11.7f}  "
        f"0 {'SIMULATED':<9s} {100:5d} {5:3d} {'2010-2020':9s} {0.30:4.2f} {'M-v':3s} {'30h':3s} {'Simulator':<10s} "
        f"0000 {readable:<28s}{'20200101':8s}"
    )


def cometels_line(orbit: Orbit, readable: str, packed: str) -> str:
    """One line of CometEls.txt by the centre's column numbers."""
    passed = orbit.perihelion_time
    date = identity.utc_of(math.floor(passed - 0.5) + 0.5 + 0.25)  # the date that the day's fraction belongs to
    day = date.day + (passed - 0.5) % 1.0
    if round(day, 4) >= date.day + 1:  # rounded up over midnight
        date += dt.timedelta(days=1)
        day = float(date.day)
    epoch = identity.utc_of(orbit.epoch + 0.25)
    return (
        f"    {packed:<8s}  {date.year:04d} {date.month:02d} {day:07.4f} {orbit.a * (1 - orbit.e):9.6f}  "
        f"{orbit.e:8.6f}  {orbit.peri:8.4f}  {orbit.node:8.4f}  {orbit.inclination:8.4f}  "
        f"{epoch:%Y%m%d}  {orbit.h:4.1f} {COMET_SLOPE:4.1f}  {readable + ' (Simulator)':<56s} {'SIMULATED':<9s}"
    )
