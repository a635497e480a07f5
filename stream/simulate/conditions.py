"""Under which conditions an exposure is taken: weather, seeing, moon, sky, guiding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr

from stream.core import identity
from stream.core.camera import deproject
from stream.simulate import almanac
from stream.simulate.plan import DARK_SKY, NAME_TICKS, NightPlan, SimExposure, field_centre, seeded
from stream.simulate.pointing import common_error

F64 = NDArray[np.float64]

GUIDING = 4.0 / 3600.0  # deg per axis, from exposure to exposure
MINUTE = 1.0 / 1440.0
# Weather by spells whose lengths are exponential (minutes); after a clear one, cloud is thin or closes the dome.
CLEAR_SPELL, THIN_SPELL, CLOSED_SPELL = 240.0, 40.0, 60.0
CLOSES = 0.2  # chance that a clear spell ends with a closed dome
SEEING_MEMORY = 45.0  # minutes over which seeing drifts
SEEING_AIRMASS = 0.6  # power of the airmass by which the disc grows (Kolmogorov turbulence)
SEEING_FILTER = {1: 1.05, 2: 1.0, 3: 0.96}  # wavelength to the power -1/5
HALF_QUADRANT = 0.43  # deg


def clock(midnight: float, seconds: float) -> tuple[float, str]:
    """Start on a tick of the packet name's clock (Julian date), and the name's time stamp."""
    ticks = round(seconds / 86_400.0 * NAME_TICKS)
    day, tick = divmod(ticks, NAME_TICKS)
    jd = midnight + day + tick / NAME_TICKS
    return jd, f"{identity.utc_of(midnight + day + 0.5):%Y%m%d}{tick:06d}"


def on_sky(plan: NightPlan, role: str, index: int, midnight: float, seconds: float) -> SimExposure:
    """One exposure of the plan's one field with seeing, sky, guiding and transparency of its own.

    A laboratory's night: the field is up whatever the date, and there is no moon.
    """
    jd, stamp = clock(midnight, seconds)
    rng = seeded(plan.seed, "exposure", identity.expid_of(jd))
    ra, dec = field_centre(plan.field)
    xi, eta, rotation = common_error(plan)
    guiding = rng.normal(0, GUIDING, 2)
    low, high = plan.seeing
    if role == "ref":
        high = 0.5 * (low + high)
    transparency = abs(rng.normal(0, 0.03))
    cloud = rng.uniform(0, plan.cloud) if role == "sci" else 0.0
    dark = (plan.sky if plan.sky is not None else DARK_SKY[plan.fid]) * plan.exptime / 30.0
    return SimExposure(
        role=role,
        imgtype="object",
        index=index,
        field=plan.field,
        fid=plan.fid,
        jd=jd,
        exptime=plan.exptime,
        programid=plan.programid,
        stamp=stamp,
        ra=ra,
        dec=dec,
        airmass=round(1.0 + rng.uniform(0.05, 0.5), 3),
        seeing=rng.uniform(low, high),
        transparency=transparency + cloud,
        sky=dark * rng.uniform(0.85, 1.2),
        gradient=(rng.normal(0, 0.02), rng.normal(0, 0.02)),
        error=(xi + guiding[0], eta + guiding[1]),
        rotation=rotation + rng.normal(0, 0.002),
        cloud=cloud,
        moon=_moon_from(ra, dec, jd),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Weather:
    """A night's weather minute by minute from ``start`` (Julian date).

    ``cloud`` is the light lost to cloud in mag, NaN with the dome closed; ``seeing`` the FWHM at the zenith in r, px;
    ``haze`` mag that the whole night loses.
    """

    start: float
    cloud: F64
    seeing: F64
    haze: float

    def at(self, jd: float) -> tuple[float, float]:
        """Cloud (mag, NaN: closed) and seeing at the zenith (px) at a time."""
        k = min(max(int((jd - self.start) / MINUTE), 0), len(self.cloud) - 1)
        return float(self.cloud[k]), float(self.seeing[k])


@lru_cache(maxsize=64)
def weather_of(plan: NightPlan, midnight: float) -> Weather:
    """The weather of the night of a UT date. Without ``plan.cloud`` it is clear."""
    rng = seeded(plan.seed, "weather", identity.nid_of(midnight + 0.3))
    evening, morning = almanac.dark_hours(midnight)
    n = math.ceil((morning - evening) / MINUTE) + 1
    low, high = plan.seeing
    drift = rng.normal(0, 0.7) + _wander(rng, n, SEEING_MEMORY)
    seeing = low * (high / low) ** ndtr(drift)
    cloud = np.zeros(n)
    minute, clear = 0, bool(rng.uniform() < 0.8)
    depth = plan.cloud * np.abs(_wander(rng, n, 10.0))
    while plan.cloud > 0 and minute < n:
        closed = not clear and rng.uniform() < CLOSES
        length = 1 + int(rng.exponential(CLEAR_SPELL if clear else CLOSED_SPELL if closed else THIN_SPELL))
        spell = slice(minute, minute + length)
        if not clear:
            cloud[spell] = math.nan if closed else depth[spell]
        minute, clear = minute + length, not clear
    return Weather(evening, cloud, seeing, abs(rng.normal(0, 0.02)))


def _wander(rng: np.random.Generator, n: int, memory: float) -> F64:
    """A smooth stationary random curve of unit variance that forgets over ``memory`` steps."""
    width = 0.5 * memory
    edge = math.ceil(4 * width)
    smooth = ndimage.gaussian_filter1d(rng.normal(size=n + 2 * edge), width)[edge : edge + n]
    return np.asarray(smooth * math.sqrt(2.0 * width * math.sqrt(math.pi)))


def under_the_sky(
    plan: NightPlan, role: str, index: int, jd: float, what: tuple[int, int, int], sky: tuple[float, float, float]
) -> SimExposure:
    """An exposure of a survey under the real sky of that moment: altitude, moon and airglow are those of Palomar.

    ``what`` is field, filter and programid; ``sky`` cloud (mag), haze (mag) and seeing at the zenith (px).
    """
    field, fid, programid = what
    cloud, haze, zenith_seeing = sky
    midnight = math.floor(jd - 0.5) + 0.5
    jd, stamp = clock(midnight, (jd - midnight) * 86_400.0)
    middle = jd + 0.5 * plan.exptime / 86_400.0
    rng = seeded(plan.seed, "exposure", identity.expid_of(jd))
    ra, dec = field_centre(field)
    xi, eta, rotation = common_error(plan_of_field(plan, field))
    guiding = rng.normal(0, GUIDING, 2)
    altitude = float(almanac.altitude(ra, dec, middle))
    airmass = float(almanac.airmass(altitude))
    dark = (plan.sky if plan.sky is not None else DARK_SKY[fid]) * plan.exptime / 30.0
    glow, moonlight, gradient = _sky_light(ra, dec, middle, fid)
    activity = rng.uniform(0.93, 1.1)  # airglow changes by the minute
    return SimExposure(
        role=role,
        imgtype="object",
        index=index,
        field=field,
        fid=fid,
        jd=jd,
        exptime=plan.exptime,
        programid=programid,
        stamp=stamp,
        ra=ra,
        dec=dec,
        airmass=round(airmass, 3),
        seeing=zenith_seeing * airmass**SEEING_AIRMASS * SEEING_FILTER[fid] * math.exp(rng.normal(0, 0.03)),
        transparency=haze + cloud,
        sky=dark * (glow * activity + moonlight),
        gradient=gradient,
        error=(xi + guiding[0], eta + guiding[1]),
        rotation=rotation + rng.normal(0, 0.002),
        cloud=cloud,
        moonlight=dark * moonlight,
        moon=_moon_from(ra, dec, middle),
    )


def plan_of_field(plan: NightPlan, field: int) -> NightPlan:
    """The plan with another field."""
    return plan if plan.field == field else replace(plan, field=field)


def _sky_light(ra: float, dec: float, jd: float, fid: int) -> tuple[float, float, tuple[float, float]]:
    """Airglow and moonlight at a field's centre in units of dark sky at the zenith, and the slope of their sum.

    The slope is relative, over half a quadrant towards +x (west) and +y (south).
    """
    offsets = ((0.0, 0.0), (-HALF_QUADRANT, 0.0), (HALF_QUADRANT, 0.0), (0.0, -HALF_QUADRANT), (0.0, HALF_QUADRANT))
    places = np.array([deproject(ra, dec, xi, eta) for xi, eta in offsets])
    glow = almanac.airglow(almanac.altitude(places[:, 0], places[:, 1], jd))
    moon = almanac.moonlight(places[:, 0], places[:, 1], jd, fid)
    total = glow + moon
    west, east, south, north = (float(value) for value in total[1:])
    centre = 2.0 * float(total[0])
    return float(glow[0]), float(moon[0]), ((west - east) / centre, (south - north) / centre)


def _moon_from(ra: float, dec: float, jd: float) -> tuple[float, float, float]:
    """Altitude of the moon (deg), its distance from a place (deg), its lit fraction."""
    moon = almanac.moon(jd)
    return moon.altitude, float(almanac.separation(ra, dec, moon.ra, moon.dec)), moon.lit
