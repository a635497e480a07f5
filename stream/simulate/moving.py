"""What moves while the shutter is open, painted: asteroids, near-Earth objects, satellites."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream.core import identity
from stream.simulate import painter
from stream.simulate.air import passed, seen_at, zeropoint
from stream.simulate.movers import movers
from stream.simulate.optics import PsfField, Wcs, quadrant_place
from stream.simulate.plan import NightPlan, SimExposure, seeded
from stream.simulate.truth import Columns

F32 = NDArray[np.float32]

SATELLITE_LIGHT = 250.0  # DN per px of length: a peak some ten times the noise of dark sky


def who(exposure: SimExposure, rcid: int) -> Columns:
    """The columns that say of which quadrant of which exposure a truth row is."""
    name = exposure.name(identity.ccd_qid_of(rcid)[0])
    return {"role": exposure.role, "exposure": name, "rcid": rcid, "jd_mid": exposure.jd_mid}


def paint_movers(plan: NightPlan, exposure: SimExposure, rcid: int, image: F32, wcs: Wcs, psf: PsfField) -> Columns:
    """Asteroids and near-Earth objects of any quadrant that are here now, trailed as far as they move."""
    rows: list[Columns] = []
    if exposure.role == "sci":
        magzp, clrcoeff = zeropoint(plan, exposure, rcid)
        half = 0.5 * exposure.exptime / 86_400.0
        ny, nx = image.shape
        place = quadrant_place(plan, exposure, rcid)
        for mover in movers(plan):
            ra, dec, mags = mover.at(exposure.jd_mid)
            if not wcs.is_near(ra, dec):
                continue
            ends = [mover.at(exposure.jd_mid + side * half)[:2] for side in (-1, 0, 1)]
            xs, ys = wcs.to_pixel([end[0] for end in ends], [end[1] for end in ends])
            if not (-200 < xs[1] < nx + 200 and -200 < ys[1] < ny + 200):
                continue
            mag = float(mags[exposure.fid - 1])
            colour = float(mags[0] - mags[1] if exposure.fid in (1, 2) else mags[1] - mags[2])
            flux = 10 ** (0.4 * (magzp + clrcoeff * colour - mag)) * float(passed(plan, exposure, place, xs[1], ys[1]))
            xs, ys = seen_at(plan, exposure, place, xs, ys, colour)
            painter.paint_trail(image, (xs[0], ys[0], xs[2], ys[2]), flux, psf)
            streak = mover.orbit is None
            rows.append({
                "truth_id": mover.truth_id, "kind": "streak" if streak else "asteroid",
                "designation": mover.designation, "x": float(xs[1]), "y": float(ys[1]), "ra": ra, "dec": dec,
                "mag": mag, "colour": colour, "flux": flux,
                "in_quadrant": bool(-0.5 < xs[1] < nx - 0.5 and -0.5 < ys[1] < ny - 0.5),
                "x1": float(xs[0]) if streak else None, "y1": float(ys[0]) if streak else None,
                "x2": float(xs[2]) if streak else None, "y2": float(ys[2]) if streak else None,
            })  # fmt: skip
    columns: Columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {"truth_id": 0})}
    return {**columns, **who(exposure, rcid)}


def paint_crossings(plan: NightPlan, exposure: SimExposure, rcid: int, image: F32) -> list[Columns]:
    """One trail across the first quadrant of the middle science exposure."""
    middle = exposure.role == "sci" and exposure.index == plan.n_science // 2
    if not (plan.satellite and middle and rcid == plan.rcids[0]):
        return []
    rng = seeded(plan.seed, "satellite", exposure.expid)
    ny, nx = image.shape
    x, y, angle = rng.uniform(0.3, 0.7) * nx, rng.uniform(0.3, 0.7) * ny, rng.uniform(0.1, 1.4)
    npix = painter.paint_line(image, (x, y), angle, SATELLITE_LIGHT, exposure.seeing)
    return [{
        "kind": "satellite", "rcid": rcid, "exposure": who(exposure, rcid)["exposure"], "x": x, "y": y, "npix": npix,
        "angle": math.degrees(angle), "strength": SATELLITE_LIGHT,
    }]  # fmt: skip
