"""The truth about the instrument and an exposure's conditions, as rows of the truth tables."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from stream.core import identity
from stream.core.pocket import pocket_of
from stream.simulate import air, detector, electronics, fields, flats, ghosts
from stream.simulate.electronics import Amplifier
from stream.simulate.moving import who
from stream.simulate.optics import focus_of, parallactic_angle, psf_field, quadrant_place, throughput, true_wcs
from stream.simulate.plan import NightPlan, SimExposure
from stream.simulate.rays import Hit
from stream.simulate.truth import Columns


def hit_rows(hits: list[Hit]) -> list[Columns]:
    """Truth of the cosmic rays, one row each."""
    if not hits:
        return []
    return [{
        "kind": "cosmic_ray", "x": [hit.x for hit in hits], "y": [hit.y for hit in hits],
        "npix": [len(hit.pixels) for hit in hits], "pixels": [hit.pixels for hit in hits],
        "values": [hit.values for hit in hits], "strength": [float(hit.values.sum()) for hit in hits],
        "parameters": [json.dumps({"particle": hit.kind}) for hit in hits],
    }]  # fmt: skip


def conditions(plan: NightPlan, exposure: SimExposure, rcid: int, amp: Amplifier, n_saturated: int) -> Columns:
    """Under which conditions a quadrant was exposed: a row of the truth's ``quadrants``."""
    row: Columns = {
        **who(exposure, rcid), "fid": exposure.fid, "jd": exposure.jd, "gain": amp.gain,
        "readnoise": amp.readnoise if plan.effects.read_noise else 0.0,
        "bias": amp.bias, "saturate": amp.saturate, "linearity_a": amp.a, "linearity_b": amp.b,
        "n_saturated": n_saturated, "field": exposure.field, "exptime": exposure.exptime,
    }  # fmt: skip
    if exposure.imgtype != "object":
        return row
    magzp, clrcoeff = air.zeropoint(plan, exposure, rcid)
    sky = air.sky_level(plan, exposure, rcid, 3)
    psf = psf_field(plan, exposure, rcid)
    place = quadrant_place(plan, exposure, rcid)
    focus = focus_of(plan, exposure)
    parameters = {
        "xi": place.xi, "eta": place.eta, "focus_error": focus.error, "focus_tilt": focus.tilt,
        "guiding": focus.guiding, "decentre": focus.decentre,
        "cloud": float(air.cloud(plan, exposure, place.xi, place.eta)),
        "parallactic_angle": parallactic_angle(exposure.jd_mid, exposure.ra, exposure.dec),
        "refraction": air.refraction_scale(plan, exposure),
        "displacement": air.displacement_size(plan, exposure),
    }  # fmt: skip
    middle = (plan.camera.nx - 1) / 2, (plan.camera.ny - 1) / 2
    return row | {
        "wcs": true_wcs(plan, exposure, rcid).header, "magzp": magzp, "clrcoeff": clrcoeff, "sky": float(sky[1, 1]),
        "seeing": float(psf.fwhm(*middle)), "rotation": exposure.rotation, "airmass": exposure.airmass,
        "transparency": exposure.transparency, "moonlight": exposure.moonlight,
        "moon_altitude": exposure.moon[0], "moon_separation": exposure.moon[1], "moon_lit": exposure.moon[2],
        "pointing_error_xi": exposure.error[0],
        "pointing_error_eta": exposure.error[1], "gradient_x": float((sky[1, 2] - sky[1, 0]) / 2 / sky[1, 1]),
        "gradient_y": float((sky[2, 1] - sky[0, 1]) / 2 / sky[1, 1]), "psf": json.dumps(psf.as_dict()),
        "parameters": json.dumps(parameters),
    }  # fmt: skip


def static_artefacts(plan: NightPlan) -> list[Columns]:
    """Defects of the plan's CCDs, a row each."""
    parts: list[Columns] = []
    nx = plan.camera.nx
    channels = [identity.rcid_of(ccd, qid) for ccd in sorted(plan.ccds) for qid in (1, 2, 3, 4)]
    for rcid in channels if plan.effects.defects else []:
        bad = detector.defects(plan.seed, plan.camera, rcid)
        for kind in ("hot", "dead", "low", "noisy"):
            pixels, strength = bad.of_kind(kind)
            single = len(pixels) - sum((last - first + 1 for _, first, last, which in bad.columns if which == kind), 0)
            pixels, strength = pixels[:single], strength[:single]
            parts.append({
                "kind": f"{kind}_pixel", "rcid": rcid, "x": (pixels % nx).astype(float), "npix": [1] * single,
                "y": (pixels // nx).astype(float), "strength": strength, "pixels": [[pixel] for pixel in pixels],
            })  # fmt: skip
        for x, first, last, kind in bad.columns:
            parts.append({
                "kind": f"{kind}_column", "rcid": rcid, "x": float(x), "y": 0.5 * (first + last),
                "npix": last - first + 1, "pixels": [np.arange(first, last + 1) * nx + x],
            })  # fmt: skip
    return parts


def instrument(plan: NightPlan) -> list[Columns]:
    """What belongs to the camera: one row for every channel of the plan's CCDs, on the plan's night."""
    effects = plan.effects
    rows: list[Columns] = []
    for ccd in sorted(plan.ccds):
        matrix = electronics.crosstalk_matrix(plan.seed, ccd)
        for qid in (1, 2, 3, 4):
            rcid = identity.rcid_of(ccd, qid)
            amp = electronics.amplifier(plan.seed, rcid, plan.midnight, linear=not effects.nonlinearity)
            parameters = {
                "throughput": throughput(plan, rcid), "spillage_delay": detector.spillage_delay(plan.seed, rcid),
                "pocket": asdict(pocket_of(ccd, qid)), "fringe": flats.FRINGE, "shutter": flats.SHUTTER,
                "brighter_fatter": detector.BRIGHTER_FATTER, "far_light": ghosts.FAR_LIGHT,
                "halo_radius": ghosts.HALO_RADIUS, "halo_light": ghosts.HALO_LIGHT,
                "lamp": flats.lamp(plan, rcid, plan.fid)[:: fields.NODES // 4, :: fields.NODES // 4].tolist(),
                "dust": [asdict(ring) for ring in flats.dust(
                    plan.seed, plan.camera, rcid, flats.night_of(plan.midnight))],
            }  # fmt: skip
            rows.append({
                "rcid": rcid, "gain": amp.gain, "readnoise": amp.readnoise if effects.read_noise else 0.0,
                "bias": amp.bias, "full_well": amp.full_well, "saturate": amp.saturate, "linearity_a": amp.a,
                "linearity_b": amp.b, "crosstalk": [matrix[qid - 1] if effects.crosstalk else np.zeros(4)],
                "ghost": json.dumps(ghosts.true_geometry(plan.seed).as_dict()), "effects": json.dumps(effects.on()),
                "parameters": json.dumps(parameters),
            })  # fmt: skip
    return rows
