"""How evenly the camera sees: vignetting, slopes, pixels, dust, fringes, the dome's lamp, the shutter.

A quadrant's response has median 1; what its optics lose as a whole is in the zero point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.core.camera import Camera, quadrant_layout
from stream.simulate import fields
from stream.simulate.detector import defects
from stream.simulate.fields import RandomField
from stream.simulate.optics import RIM, Place, throughput, vignetting
from stream.simulate.plan import NightPlan, SimExposure, seeded

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

PIXEL_FLAT = 0.004  # r.m.s. of pixel-to-pixel sensitivity
FLAT_SLOPE = 0.02  # large-scale response of a detector beside vignetting: slopes over half a quadrant
LAMP_SLOPE = 0.004  # dome lamp over sky, slopes over half a quadrant: a percent from edge to edge
LAMP_CAMERA = 0.01  # and from the middle of the camera to its rim
FRINGE = 0.008  # amplitude of the fringes over the sky in i
RINGS = 4  # dust on the window, per full quadrant
RING_WANDER = 2.0  # px by which dust sits elsewhere on another night
RING_LIFE = 25  # nights until a grain is blown away and another one settles
# Exposure over the shutter's nominal time, s: the middle of the field is open longer than the rim.
SHUTTER = 0.006


@dataclass(frozen=True, slots=True)
class Ring:
    """A doughnut where dust on the window shades the beam: middle and radius in px, depth."""

    x: float
    y: float
    radius: float
    depth: float


def night_of(jd: float) -> int:
    """Number of the UT date."""
    return math.floor(jd - 0.5)


@lru_cache(maxsize=64)
def dust(seed: int, camera: Camera, rcid: int, night: int) -> tuple[Ring, ...]:
    """The dust of a night: grains stay for weeks, but settle a little differently every night."""
    rings = []
    for k in range(RINGS):
        phase = int(seeded(seed, "dust", rcid, k).integers(RING_LIFE))
        rng = seeded(seed, "grain", rcid, k, (night + phase) // RING_LIFE)
        x, y, radius = rng.uniform(0, camera.nx), rng.uniform(0, camera.ny), rng.uniform(0.02, 0.06) * camera.nx
        depth = rng.uniform(0.01, 0.025)
        dx, dy = seeded(seed, "settling", rcid, k, night).normal(0, RING_WANDER, 2)
        rings.append(Ring(x + dx, y + dy, radius, depth))
    return tuple(rings)


def shade(flat: F32, ring: Ring) -> None:
    """Multiply a flat by what a grain of dust lets through."""
    ny, nx = flat.shape
    low, high = max(0, int(ring.y - 2 * ring.radius)), min(ny, int(ring.y + 2 * ring.radius))
    left, right = max(0, int(ring.x - 2 * ring.radius)), min(nx, int(ring.x + 2 * ring.radius))
    r = np.hypot(np.arange(low, high)[:, None] - ring.y, np.arange(left, right)[None, :] - ring.x) / ring.radius
    flat[low:high, left:right] *= (1 - ring.depth * np.exp(-0.5 * ((r - 0.8) / 0.25) ** 2)).astype(np.float32)


def slopes(seed: int, name: str, rcid: int, fid: int, size: float, n: int = fields.NODES) -> F64:
    """A smooth response over a quadrant on a coarse grid (n, n): slopes, a twist, and a fall towards the edges."""
    c = size * seeded(seed, name, rcid, fid).normal(0, 1, 5)
    u, v = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n))
    return np.asarray(1.0 + c[0] * v - abs(c[1]) * v * v + c[2] * u - abs(c[3]) * u * u + c[4] * u * v)


@lru_cache(maxsize=4)
def response(plan: NightPlan, rcid: int, fid: int, night: int) -> F32:
    """Relative response of every pixel to the sky's light on a night, median 1. Read-only: it is kept.

    Kept for four quadrants, the ones of a packet: 38 MB each.
    """
    effects, camera = plan.effects, plan.camera
    ny, nx = camera.shape
    flat = np.ones((ny, nx), np.float32)
    if effects.flat_small:
        pixels = seeded(plan.seed, "pixels", rcid).standard_normal((ny, nx), dtype=np.float32)
        pixels *= np.float32(PIXEL_FLAT)
        flat += pixels
    smooth = np.ones((fields.NODES, fields.NODES))
    if effects.flat_large:
        smooth *= slopes(plan.seed, "flat", rcid, fid, FLAT_SLOPE)
    if effects.vignetting:
        smooth *= vignetting(*_nominal(plan, rcid).of_pixels(*fields.nodes(camera.shape))) / throughput(plan, rcid)
    if effects.flat_large or effects.vignetting:
        fields.multiply(flat, fields.spread(smooth, camera.shape))
    for ring in dust(plan.seed, camera, rcid, night) if effects.dust else ():
        shade(flat, ring)
    flat /= np.float32(np.median(flat[::3, ::3]))
    if effects.defects:
        bad = defects(plan.seed, camera, rcid)
        flat.reshape(-1)[bad.dead] = bad.response
        flat.reshape(-1)[bad.low] *= bad.low_response
    flat.flags.writeable = False
    return flat


def _nominal(plan: NightPlan, rcid: int) -> Place:
    """The quadrant's place in the camera, whichever way the telescope turns it."""
    xi, eta = quadrant_layout()[rcid]
    return Place(plan.camera, float(xi), float(eta), 0.0)


def lamp(plan: NightPlan, rcid: int, fid: int) -> F64:
    """The dome lamp's light over the sky's on a coarse grid of the quadrant: about 1, other by a percent."""
    if not plan.effects.lamp:
        return np.ones((fields.NODES, fields.NODES))
    xi, eta = _nominal(plan, rcid).of_pixels(*fields.nodes(plan.camera.shape))
    whole = RandomField.draw(seeded(plan.seed, "lamp", fid), 4.0, 15.0, 1.0, 8)
    return np.asarray(slopes(plan.seed, "lamp", rcid, fid, LAMP_SLOPE) * (1 + LAMP_CAMERA * whole.at(xi, eta)))


def shutter(plan: NightPlan, exposure: SimExposure, rcid: int) -> F64:
    """Open time of the shutter over the nominal one on a coarse grid of the quadrant."""
    if not plan.effects.shutter or exposure.exptime <= 0:
        return np.ones((fields.NODES, fields.NODES))
    xi, eta = _nominal(plan, rcid).of_pixels(*fields.nodes(plan.camera.shape))
    return np.asarray(1.0 + SHUTTER * (0.5 - (xi**2 + eta**2) / RIM**2) / exposure.exptime)


@lru_cache(maxsize=4)
def fringes(seed: int, camera: Camera, rcid: int) -> F32:
    """The fringe pattern of a channel, r.m.s. 1/sqrt(2): contour lines of the silicon's thickness. Read-only.

    Interference of the sky's emission lines: some twenty waves over a full quadrant.
    """
    rng = seeded(seed, "fringes", rcid)
    side = camera.nx / 3072
    thickness = RandomField.draw(rng, 0.35, 1.5, 1.0, 12)
    n = 129
    u, v = np.meshgrid(np.linspace(0, side, n), np.linspace(0, side, n))
    waves = 6.0 * thickness.at(u, v) + rng.normal(0, 4) * u + rng.normal(0, 4) * v
    field = fields.spread(waves, camera.shape)
    pattern = np.empty(camera.shape, np.float32)
    for band in fields.bands(camera.ny):
        phase = field.rows(band.start, band.stop)
        phase *= np.float32(2 * np.pi)
        pattern[band] = np.cos(phase)
    pattern.flags.writeable = False
    return pattern


def expose(light: F32, plan: NightPlan, exposure: SimExposure, rcid: int, gain: float) -> None:
    """Light (DN) to expected photoelectrons, in place: response, shutter, for dome flats the lamp, gain."""
    kept = response(plan, rcid, exposure.fid, night_of(exposure.jd))
    smooth = gain * shutter(plan, exposure, rcid)
    if exposure.imgtype == "flat":
        smooth = smooth * lamp(plan, rcid, exposure.fid)
    field = fields.spread(smooth, plan.camera.shape)
    for band in fields.bands(plan.camera.ny):
        light[band] *= kept[band]
        light[band] *= field.rows(band.start, band.stop)
