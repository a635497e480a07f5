"""Satellites and aircraft that cross the camera while the shutter is open: straight lines in the focal plane.

Each is defined once an exposure, in degrees from where the telescope looks, and every quadrant paints its own part,
so that a trail goes on from one CCD to the next.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from stream.simulate.optics import true_wcs
from stream.simulate.plan import NightPlan, SimExposure, seeded
from stream.simulate.pointing import telescope_pointing
from stream.simulate.scheduler import schedule
from stream.simulate.sky import CROSSING_ID, sky_to_tangent, tangent_to_sky

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SATELLITE_LIGHT = 250.0  # DN per px of length: a peak some ten times the noise of dark sky
FIELD_RADIUS = 5.0  # deg: what passes further from the axis misses every detector
SPEED = {"satellite": (0.3, 1.2), "aircraft": (0.6, 1.5)}  # deg/s: low orbits; 250 m/s at 10 to 25 km
LIGHT = {"satellite": (40.0, 4000.0), "aircraft": (2000.0, 20_000.0)}  # DN per px of length
TUMBLING = 0.35  # share of satellites whose light comes in flashes
FLASH_PERIOD = (0.15, 2.5)  # s
STROBE_PERIOD = 1.1  # s between an aircraft's strobes
STROBE = 30.0  # strobe's light over that of a px of steady trail
DEFOCUS = (14.0, 30.0)  # px FWHM of what is only some kilometres away: the mirror's 1.2 m seen from there
WINGSPAN = (0.05, 0.2)  # deg between an aircraft's two lines
FAINTEST_SHARE = 0.05  # of the trail's peak, down to which a pixel counts as the trail's
NODES = 25  # points of a trail that are projected onto a quadrant


@dataclass(frozen=True, slots=True)
class Crossing:
    """One line of light across the focal plane.

    It runs from (``xi1``, ``eta1``) at the shutter's opening to (``xi2``, ``eta2``) at its closing (deg from where
    the telescope looks, beyond the camera too), with ``light`` DN per px of length and a ``width`` (px FWHM) that the
    seeing is added to. With a ``period`` (s) the light comes in flashes as long as ``duty`` of it from ``phase``
    (cycles) on; ``floor`` of it shines between them, and a flash is ``flash`` times as bright.
    """

    truth_id: int
    kind: str
    xi1: float
    eta1: float
    xi2: float
    eta2: float
    light: float
    width: float = 0.0
    period: float = 0.0
    phase: float = 0.0
    duty: float = 0.3
    floor: float = 1.0
    flash: float = 1.0

    def light_at(self, share: F64, exptime: float) -> F64:
        """Light (DN per px) at shares 0 to 1 of the exposure's time."""
        if self.period <= 0:
            return np.full(np.shape(share), self.light)
        phase = (np.asarray(share) * exptime / self.period + self.phase) % 1.0
        pulse = np.exp(-0.5 * ((phase - 0.5) / (0.4 * self.duty)) ** 2)
        return np.asarray(self.light * (self.floor + (self.flash - self.floor) * pulse))


def crossings(plan: NightPlan, exposure: SimExposure) -> tuple[Crossing, ...]:
    """Everything that crosses the focal plane in a science exposure."""
    if exposure.role != "sci":
        return ()
    out = list(_guaranteed(plan, exposure))
    for kind, rate in (("satellite", plan.satellites), ("aircraft", plan.aircraft)):
        rng = seeded(plan.seed, kind, exposure.expid)
        for _ in range(int(rng.poisson(rate))):
            identifier = CROSSING_ID + exposure.expid % 100_000_000 * 10 + len(out)
            line = _line(kind, identifier, exposure.exptime, rng)
            out += [line] if kind == "satellite" else _aircraft(line, rng)
    return tuple(out)


def _line(kind: str, identifier: int, exptime: float, rng: np.random.Generator) -> Crossing:
    """A line at any angle and distance from the axis; some begin or end within the exposure."""
    angle, miss = rng.uniform(0, 2 * math.pi), rng.uniform(-0.8, 0.8) * FIELD_RADIUS
    speed = math.exp(rng.uniform(*np.log(SPEED[kind])))
    middle = rng.uniform(-0.1, 1.1) * exptime  # s, when it is nearest to the axis
    c, s = math.cos(angle), math.sin(angle)
    start, end = -speed * middle, speed * (exptime - middle)
    line = Crossing(
        identifier, kind, start * c - miss * s, start * s + miss * c, end * c - miss * s, end * s + miss * c,
        math.exp(rng.uniform(*np.log(LIGHT[kind]))),
    )  # fmt: skip
    if kind == "satellite" and rng.uniform() < TUMBLING:
        period = math.exp(rng.uniform(*np.log(FLASH_PERIOD)))
        return replace(line, period=period, phase=rng.uniform(), duty=rng.uniform(0.1, 0.5), floor=rng.uniform(0, 0.3))
    return line


def _aircraft(line: Crossing, rng: np.random.Generator) -> list[Crossing]:
    """The two wing lights of an aircraft, out of focus, with strobes that flash together."""
    length = math.hypot(line.xi2 - line.xi1, line.eta2 - line.eta1)
    half, width = 0.5 * rng.uniform(*WINGSPAN), rng.uniform(*DEFOCUS)
    dx, dy = -(line.eta2 - line.eta1) / length * half, (line.xi2 - line.xi1) / length * half
    lit = replace(
        line, width=width, period=STROBE_PERIOD, phase=rng.uniform(), duty=0.02, flash=STROBE,
    )  # fmt: skip
    return [
        replace(lit, xi1=lit.xi1 + side * dx, eta1=lit.eta1 + side * dy, xi2=lit.xi2 + side * dx,
                eta2=lit.eta2 + side * dy, light=lit.light * rng.uniform(0.3, 1.0))
        for side in (-1, 1)
    ]  # fmt: skip


def _guaranteed(plan: NightPlan, exposure: SimExposure) -> list[Crossing]:
    """The plan's one satellite, through the first quadrant in the middle science exposure."""
    science = [e for e in schedule(plan) if e.role == "sci"]
    if not plan.satellite or exposure.expid != science[len(science) // 2].expid:
        return []
    rng = seeded(plan.seed, "satellite", exposure.expid, 1)
    camera = plan.camera
    x, y, angle = rng.uniform(0.3, 0.7) * camera.nx, rng.uniform(0.3, 0.7) * camera.ny, rng.uniform(0.1, 1.4)
    step = 0.2 * camera.nx
    ends = np.array([x, x + step * math.cos(angle)]), np.array([y, y + step * math.sin(angle)])
    ra, dec = true_wcs(plan, exposure, plan.rcids[0]).to_sky(*ends)
    xi, eta = sky_to_tangent(*telescope_pointing(exposure), ra, dec)
    length = math.hypot(xi[1] - xi[0], eta[1] - eta[0])
    c, s = (xi[1] - xi[0]) / length, (eta[1] - eta[0]) / length
    reach = 2 * FIELD_RADIUS
    return [Crossing(
        CROSSING_ID + exposure.expid % 100_000_000 * 10 + 9, "satellite", xi[0] - reach * c, eta[0] - reach * s,
        xi[0] + reach * c, eta[0] + reach * s, SATELLITE_LIGHT,
    )]  # fmt: skip


def paint_crossings(
    plan: NightPlan, exposure: SimExposure, rcid: int, image: F32, gain: float
) -> list[dict[str, object]]:
    """Add to a quadrant (DN) what crosses it; returns a truth row of each trail that touches it, values in e-."""
    rows: list[dict[str, object]] = []
    for crossing in crossings(plan, exposure):
        path = _path_on(plan, exposure, rcid, crossing)
        if path is None:
            continue
        fwhm = math.hypot(exposure.seeing, crossing.width)
        x, y, share = path
        light = crossing.light_at(share, exposure.exptime)
        if crossing.period > 0 and crossing.width > 0:
            light = _blurred(light, fwhm)
        pixels, values = paint_track(image, x, y, light, fwhm)
        if len(pixels) == 0:
            continue
        px, py = pixels % image.shape[1], pixels // image.shape[1]
        on = (x > -0.5) & (x < image.shape[1] - 0.5) & (y > -0.5) & (y < image.shape[0] - 0.5)
        ends = np.flatnonzero(on)[[0, -1]] if on.any() else np.array([0, -1])
        first, last = (int(end) for end in ends)
        rows.append({
            "kind": crossing.kind, "truth_id": crossing.truth_id, "x": float(px.mean()), "y": float(py.mean()),
            "npix": len(pixels), "angle": math.degrees(math.atan2(y[last] - y[first], x[last] - x[first])) % 180.0,
            "strength": crossing.light, "width": fwhm, "x1": float(x[first]), "y1": float(y[first]),
            "x2": float(x[last]), "y2": float(y[last]), "parameters": json.dumps(asdict(crossing)),
            "pixels": [pixels.astype(np.int32)], "values": [(values * gain).astype(np.float32)],
        })  # fmt: skip
    return rows


def _path_on(plan: NightPlan, exposure: SimExposure, rcid: int, crossing: Crossing) -> tuple[F64, F64, F64] | None:
    """The part of a line near a quadrant, a point every half pixel: x, y (px) and the share of the exposure's time.

    None if it passes too far away. Between some points that go through the true WCS it is smooth.
    """
    wcs = true_wcs(plan, exposure, rcid)
    ra0, dec0 = telescope_pointing(exposure)
    xi, eta = sky_to_tangent(ra0, dec0, *(np.array([float(v)]) for v in wcs.wcs.wcs.crval))
    start, along = (
        np.array([crossing.xi1, crossing.eta1]),
        np.array([crossing.xi2 - crossing.xi1, crossing.eta2 - crossing.eta1]),
    )
    length = float(np.hypot(*along))
    to_middle = np.array([xi[0], eta[0]]) - start
    nearest = float(to_middle @ along) / length**2
    camera = plan.camera
    half = 0.75 * max(camera.nx, camera.ny) * camera.pixel_scale / 3600.0
    width = (exposure.seeing + crossing.width) * 2 * camera.pixel_scale / 3600.0
    if float(np.hypot(*(to_middle - nearest * along))) > half + width:
        return None
    share = np.clip(nearest + np.linspace(-1, 1, NODES) * half / length, 0.0, 1.0)
    if share[0] == share[-1]:
        return None
    share = np.unique(share)
    ra, dec = tangent_to_sky(ra0, dec0, start[0] + share * along[0], start[1] + share * along[1])
    near = wcs.is_near(ra, dec)
    if near.sum() < 2:
        return None
    x, y = wcs.to_pixel(ra[near], dec[near])
    share = share[near]
    travelled = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    fine = np.arange(0.0, travelled[-1], 0.5)
    return np.interp(fine, travelled, x), np.interp(fine, travelled, y), np.interp(fine, travelled, share)


def _blurred(light: F64, fwhm: float) -> F64:
    """Light along a trail (a point every half pixel) as wide a blur makes it."""
    return np.asarray(gaussian_filter1d(light, 2 * fwhm / 2.355, mode="nearest"))


def paint_track(image: F32, x: F64, y: F64, light: F64, fwhm: float) -> tuple[NDArray[np.int64], F64]:
    """Add a line through points (px, dense, without turning back) whose light (DN per px of length) may change.

    Returns
    -------
    pixels, values
        Flat indices of the pixels that got more than ``FAINTEST_SHARE`` of the line's peak, and what they got.
    """
    sigma = fwhm / 2.355
    steep = abs(y[-1] - y[0]) > abs(x[-1] - x[0])
    target = image.T if steep else image
    run, rise = (y, x) if steep else (x, y)
    if run[0] > run[-1]:
        run, rise, light = run[::-1], rise[::-1], light[::-1]
    columns = np.arange(max(0, math.ceil(run[0])), min(target.shape[1] - 1, math.floor(run[-1])) + 1)
    if len(columns) == 0:
        return np.zeros(0, np.int64), np.zeros(0)
    centre, glow = np.interp(columns, run, rise), np.interp(columns, run, light)
    slant = math.cos(math.atan2(abs(rise[-1] - rise[0]), abs(run[-1] - run[0])))
    reach = math.ceil(5 * sigma / slant) + 1
    rows = np.rint(centre).astype(int)[None, :] + np.arange(-reach, reach + 1)[:, None]
    values = glow / (math.sqrt(2 * math.pi) * sigma) * np.exp(-0.5 * ((rows - centre) * slant / sigma) ** 2)
    inside = (rows >= 0) & (rows < target.shape[0])
    across = np.broadcast_to(columns[None, :], rows.shape)[inside]
    rows, values = rows[inside], values[inside]
    target[rows, across] += values.astype(np.float32)
    if len(values) == 0:
        return np.zeros(0, np.int64), values
    shown = values > FAINTEST_SHARE * float(light.max()) / (math.sqrt(2 * math.pi) * sigma)
    rows, across, values = rows[shown], across[shown], values[shown]
    return (across * image.shape[1] + rows if steep else rows * image.shape[1] + across), values
