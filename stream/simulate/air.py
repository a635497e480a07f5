"""The air above the telescope: extinction, clouds, where it moves stars to, and the light that it scatters.

Everything varies with the place in the focal plane, (xi, eta) in degrees from where the telescope looks, so that it
is continuous from one quadrant to the next. Each effect is one function and is zero (or one) when switched off.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.simulate import almanac
from stream.simulate.fields import RandomField, nodes
from stream.simulate.optics import Place, parallactic_angle, quadrant_place, throughput
from stream.simulate.plan import BASE_ZEROPOINT, COLOUR_TERM, EXTINCTION, NightPlan, SimExposure, seeded
from stream.simulate.sky import tangent_to_sky

F64 = NDArray[np.float64]

# Second-order extinction, mag per airmass and mag of colour: red stars lose less of a wide blue band.
EXTINCTION_COLOUR = {1: -0.03, 2: -0.006, 3: -0.002}
# Motion of a star's image by the air, mas r.m.s. an axis in 30 s: 0.8" theta^(1/3) T^(-1/2) (Lindegren 1980; Zacharias
# 1996) gives 20 at a separation theta of 10 arcmin. It averages with the square root of time.
DISPLACEMENT = 20.0
DISPLACEMENT_SCALES = (0.04, 1.5)  # deg: a few arcminutes to the size of the wind's path
# Differential refraction, mas per mag of colour and tan z: Edlen's air (0.82 atm) at 4.8, 6.4, 7.9 thousand Angstrom
# times the 9, 4.5, 3 nm by which a mag of colour (g-r; r-i in i) moves the band's effective wavelength.
REFRACTION = {1: 45.0, 2: 9.0, 3: 4.0}
MEAN_COLOUR = {1: 0.6, 2: 0.6, 3: 0.25}  # what the pointing and the astrometric solution refer to
CLOUD_RELIEF = 0.2  # r.m.s. of a cloud's optical depth over the focal plane, relative
CLOUD_SCALES = (0.7, 12.0)  # deg


def zeropoint(plan: NightPlan, exposure: SimExposure, rcid: int) -> tuple[float, float]:
    """True MAGZP and CLRCOEFF at the middle of a quadrant: m_PS1 - m_inst = MAGZP + CLRCOEFF x colour."""
    rng = seeded(plan.seed, "zeropoint", rcid, exposure.fid)
    magzp = BASE_ZEROPOINT[exposure.fid] + 2.5 * math.log10(exposure.exptime / 30.0) + rng.normal(0, 0.03)
    colour_term = COLOUR_TERM[exposure.fid] + rng.normal(0, 0.004)
    if plan.effects.extinction:
        magzp -= EXTINCTION[exposure.fid] * (exposure.airmass - 1.0)
        colour_term -= EXTINCTION_COLOUR[exposure.fid] * (exposure.airmass - 1.0)
    place = quadrant_place(plan, exposure, rcid)
    magzp -= float(cloud(plan, exposure, place.xi, place.eta))
    magzp += 2.5 * math.log10(throughput(plan, rcid))
    return magzp, colour_term


def cloud(plan: NightPlan, exposure: SimExposure, xi: ArrayLike, eta: ArrayLike) -> F64:
    """Light lost to haze and cloud (mag) at places of the focal plane; its mean is the exposure's transparency.

    Haze is even, cloud (``exposure.cloud``) has relief.
    """
    even = np.full(np.broadcast(np.asarray(xi), np.asarray(eta)).shape, exposure.transparency)
    if not plan.effects.clouds:
        return np.zeros(even.shape)
    if not exposure.cloud:
        return even
    relief = _field(plan.seed, "cloud", exposure.expid, *CLOUD_SCALES, 0.8)
    return even + exposure.cloud * np.maximum(CLOUD_RELIEF * relief.at(xi, eta), -1.0)


def passed(plan: NightPlan, exposure: SimExposure, place: Place, x: F64, y: F64) -> F64:
    """Light that clouds let through at pixels, over that at the middle of the quadrant."""
    here = cloud(plan, exposure, *place.of_pixels(x, y))
    return np.asarray(10 ** (-0.4 * (here - cloud(plan, exposure, place.xi, place.eta))))


def displacement_size(plan: NightPlan, exposure: SimExposure) -> float:
    """Motion of star images by the air, mas r.m.s. an axis."""
    return DISPLACEMENT * math.sqrt(30.0 / exposure.exptime) if plan.effects.displacement else 0.0


def displacement(plan: NightPlan, exposure: SimExposure, xi: ArrayLike, eta: ArrayLike) -> tuple[F64, F64]:
    """Where the air moves star images, arcsec to the east and north: tens of mas, alike over arcminutes."""
    size = displacement_size(plan, exposure) / 1000.0
    if not size:
        nothing = np.zeros(np.broadcast(np.asarray(xi), np.asarray(eta)).shape)
        return nothing, nothing
    east = _field(plan.seed, "displaced east", exposure.expid, *DISPLACEMENT_SCALES, 1 / 3)
    north = _field(plan.seed, "displaced north", exposure.expid, *DISPLACEMENT_SCALES, 1 / 3)
    return size * east.at(xi, eta), size * north.at(xi, eta)


@lru_cache(maxsize=16)
def _field(seed: int, name: str, expid: int, shortest: float, longest: float, slope: float) -> RandomField:
    return RandomField.draw(seeded(seed, name, expid), shortest, longest, slope)


def refraction_scale(plan: NightPlan, exposure: SimExposure) -> float:
    """Shift towards the zenith of a star bluer by a mag, mas."""
    tangent = math.sqrt(max(exposure.airmass, 1.0) ** 2 - 1.0)
    return REFRACTION[exposure.fid] * tangent if plan.effects.refraction else 0.0


def refraction(plan: NightPlan, exposure: SimExposure, colour: ArrayLike) -> tuple[F64, F64]:
    """Where differential refraction moves stars of a colour (mag), arcsec to the east and north.

    Blue stars are lifted to the zenith by more than a star of the mean colour.
    """
    to_zenith = refraction_scale(plan, exposure) / 1000.0 * (MEAN_COLOUR[exposure.fid] - np.asarray(colour, float))
    angle = parallactic_angle(exposure.jd_mid, exposure.ra, exposure.dec)
    return to_zenith * math.sin(angle), to_zenith * math.cos(angle)


def seen_at(plan: NightPlan, exposure: SimExposure, place: Place, x: F64, y: F64, colour: ArrayLike) -> tuple[F64, F64]:
    """Pixel places of stars through the air: those of the WCS moved by displacement and differential refraction."""
    if not (plan.effects.displacement or plan.effects.refraction) or np.size(x) == 0:
        return x, y
    xi, eta = place.of_pixels(x, y)
    east, north = displacement(plan, exposure, xi, eta)
    east_r, north_r = refraction(plan, exposure, colour)
    dx, dy = place.to_pixels(east + east_r, north + north_r)
    return x + dx, y + dy


def sky_light(exposure: SimExposure, xi: ArrayLike, eta: ArrayLike) -> F64:
    """The sky's brightness at places of the focal plane, relative to where the telescope looks.

    Airglow with its path through the air, and moonlight by the distance from the moon.
    """
    xi, eta = np.broadcast_arrays(np.asarray(xi, float), np.asarray(eta, float))
    ra, dec = tangent_to_sky(exposure.ra, exposure.dec, np.append(xi.ravel(), 0.0), np.append(eta.ravel(), 0.0))
    light = almanac.airglow(almanac.altitude(ra, dec, exposure.jd_mid))
    light = light + almanac.moonlight(ra, dec, exposure.jd_mid, exposure.fid)
    relative: F64 = (light[:-1] / light[-1]).reshape(xi.shape)
    return relative


def sky_level(plan: NightPlan, exposure: SimExposure, rcid: int, n: int) -> F64:
    """Sky (DN per px in the calibrated image) on a coarse grid (n, n) of a quadrant.

    Under a real moon (``exposure.moonlight``) it is that of the place, else the exposure's own slope.
    """
    place = quadrant_place(plan, exposure, rcid)
    level = exposure.sky * throughput(plan, rcid)
    if not plan.effects.moonlight:
        return np.full((n, n), level)
    if exposure.moonlight > 0:
        return level * sky_light(exposure, *place.of_pixels(*nodes(plan.camera.shape, n)))
    u, v = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n))
    return np.asarray(level * (1.0 + exposure.gradient[0] * u + exposure.gradient[1] * v))
