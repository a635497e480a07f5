"""What moves while the shutter is open, painted: asteroids, near-Earth objects with their trails, comets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core import identity
from stream.simulate import painter
from stream.simulate.air import passed, seen_at, zeropoint
from stream.simulate.movers import Mover, movers_near
from stream.simulate.optics import PsfField, Wcs, quadrant_place
from stream.simulate.plan import NightPlan, SimExposure, seeded
from stream.simulate.truth import Columns

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BEYOND = 200.0  # px outside the quadrant from which a trail may reach in
NUCLEUS = 0.1  # share of a comet's light that is a point
COMA_EXTENT = 4.0  # radii of the coma, out to which it is painted
WOBBLE = 0.25  # px r.m.s. amplitude of the telescope's swing in an exposure
WOBBLE_PERIOD = (5.0, 20.0)  # s
TRAIL_STAMP = 31  # px


def who(exposure: SimExposure, rcid: int) -> Columns:
    """The columns that say of which quadrant of which exposure a truth row is."""
    name = exposure.name(identity.ccd_qid_of(rcid)[0])
    return {"role": exposure.role, "exposure": name, "rcid": rcid, "jd_mid": exposure.jd_mid}


@dataclass(frozen=True, slots=True)
class Swing:
    """How the telescope swings about its track in an exposure: amplitude (px) along x and y, period (s), phase.

    Stars hold it in their width; a trail shows it.
    """

    x: float
    y: float
    period: float
    phase: float

    @property
    def size(self) -> float:
        """Amplitude, px."""
        return math.hypot(self.x, self.y)

    def at(self, seconds: F64) -> tuple[F64, F64]:
        """Offset (px) at times after the shutter's opening."""
        wave = np.sin(2 * np.pi * (seconds / self.period + self.phase))
        return self.x * wave, self.y * wave


def swing_of(plan: NightPlan, exposure: SimExposure) -> Swing:
    """The swing of an exposure."""
    rng = seeded(plan.seed, "wobble", exposure.expid)
    x, y = rng.normal(0, WOBBLE / math.sqrt(2), 2)
    return Swing(x, y, rng.uniform(*WOBBLE_PERIOD), rng.uniform())


def paint_movers(plan: NightPlan, exposure: SimExposure, rcid: int, image: F32, wcs: Wcs, psf: PsfField) -> Columns:
    """Movers of any quadrant that are here now, trailed as far as they move; returns their truth."""
    rows: list[Columns] = []
    if exposure.role == "sci":
        ra, dec = (float(value) for value in wcs.wcs.wcs.crval)
        side = max(plan.camera.nx, plan.camera.ny) * plan.camera.pixel_scale / 3600.0
        for mover in movers_near(plan, ra, dec, max(0.79 * side, 0.19), exposure.jd_mid):
            row = _paint_mover(plan, exposure, rcid, image, (wcs, psf), mover)
            rows += [row] if row is not None else []
    columns: Columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {"truth_id": 0})}
    return {**columns, **who(exposure, rcid)}


def _paint_mover(
    plan: NightPlan, exposure: SimExposure, rcid: int, image: F32, light: tuple[Wcs, PsfField], mover: Mover
) -> Columns | None:
    """Paint one mover; None if it is too far outside."""
    wcs, psf = light
    ny, nx = image.shape
    half = 0.5 * exposure.exptime / 86_400.0
    ra, dec, mags = mover.at(exposure.jd_mid)
    ends = [mover.at(exposure.jd_mid + side * half)[:2] for side in (-1, 0, 1)]
    xs, ys = wcs.to_pixel([end[0] for end in ends], [end[1] for end in ends])
    if not (-BEYOND < xs[1] < nx + BEYOND and -BEYOND < ys[1] < ny + BEYOND):
        return None
    mag = float(mags[exposure.fid - 1])
    colour = float(mags[0] - mags[1] if exposure.fid in (1, 2) else mags[1] - mags[2])
    magzp, clrcoeff = zeropoint(plan, exposure, rcid)
    place = quadrant_place(plan, exposure, rcid)
    flux = 10 ** (0.4 * (magzp + clrcoeff * colour - mag)) * float(passed(plan, exposure, place, xs[1], ys[1]))
    xs, ys = seen_at(plan, exposure, place, xs, ys, colour)
    streak, swing = mover.kind == "streak", swing_of(plan, exposure)
    if mover.kind == "comet":
        radius = mover.coma / plan.camera.pixel_scale
        paint_coma(image, (float(xs[1]), float(ys[1])), (1 - NUCLEUS) * flux, radius, exposure.seeing)
        painter.paint_stars(image, xs[1:2], ys[1:2], np.array([NUCLEUS * flux]), psf)
    elif streak:
        paint_streak(image, (xs[0], ys[0], xs[2], ys[2]), flux, psf, (mover.slope, swing, exposure.exptime))
    else:
        painter.paint_trail(image, (xs[0], ys[0], xs[2], ys[2]), flux, psf)
    return {
        "truth_id": mover.truth_id, "kind": mover.kind, "variety": mover.family, "designation": mover.designation,
        "x": float(xs[1]), "y": float(ys[1]), "ra": ra, "dec": dec, "mag": mag, "colour": colour, "flux": flux,
        "in_quadrant": bool(-0.5 < xs[1] < nx - 0.5 and -0.5 < ys[1] < ny - 0.5),
        "x1": float(xs[0]) if streak else None, "y1": float(ys[0]) if streak else None,
        "x2": float(xs[2]) if streak else None, "y2": float(ys[2]) if streak else None,
        "slope": mover.slope if streak else None, "wobble": swing.size if streak else None,
    }  # fmt: skip


def paint_streak(
    image: F32,
    ends: tuple[float, float, float, float],
    flux: float,
    psf: PsfField,
    how: tuple[float, Swing, float],
) -> None:
    """Add a trail from (x1, y1) to (x2, y2): a star every third of a pixel, brighter along it by its slope.

    ``how`` is the slope of the light, the telescope's swing and the exposure's seconds.
    """
    x1, y1, x2, y2 = ends
    slope, swing, exptime = how
    steps = max(1, math.ceil(3 * math.hypot(x2 - x1, y2 - y1)))
    t = (np.arange(steps) + 0.5) / steps
    dx, dy = swing.at(t * exptime)
    light = flux * (1.0 + slope * (2.0 * t - 1.0)) / steps
    painter.paint_stars_of_size(image, x1 + t * (x2 - x1) + dx, y1 + t * (y2 - y1) + dy, light, psf, TRAIL_STAMP)


def paint_coma(image: F32, place: tuple[float, float], flux: float, radius: float, fwhm: float) -> None:
    """Add a comet's coma: dust that flows out evenly, light as 1 / distance, gone after some radii (px).

    ``flux`` is all of its light.
    """
    x, y = place
    ny, nx = image.shape
    reach = math.ceil(COMA_EXTENT * radius)
    columns = np.arange(round(x) - reach, round(x) + reach + 1)
    rows = np.arange(round(y) - reach, round(y) + reach + 1)
    distance = np.hypot(rows[:, None] - y, columns[None, :] - x)
    light = np.exp(-distance / radius) / np.hypot(distance, 0.4 * fwhm)
    light *= np.clip(COMA_EXTENT * radius - distance, 0, 1)  # ends smoothly
    light *= flux / light.sum()
    on_x, on_y = (columns >= 0) & (columns < nx), (rows >= 0) & (rows < ny)
    if on_x.any() and on_y.any():
        image[rows[on_y][0] : rows[on_y][-1] + 1, columns[on_x][0] : columns[on_x][-1] + 1] += light[
            np.ix_(on_y, on_x)
        ].astype(np.float32)
