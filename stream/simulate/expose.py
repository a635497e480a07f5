"""One packet: a quadrant is painted and exposed, the four of a CCD are read out together and written.

Everything here is a function of the plan, the exposure and the quadrant or CCD alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream.core import identity
from stream.simulate import detector, painter
from stream.simulate.events import sky_of
from stream.simulate.files import packet_path, primary_header, write_packet
from stream.simulate.lightcurves import VARIETIES, magnitudes_at
from stream.simulate.moving import paint_crossings, paint_movers, who
from stream.simulate.optics import PsfField, Wcs, psf_field, true_wcs
from stream.simulate.orbits import earth_barycentric
from stream.simulate.plan import NightPlan, SimExposure, seeded, zeropoint
from stream.simulate.sky import GALAXY, KINDS, REF_EPOCH, bright_stars
from stream.simulate.truth import Columns

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Table = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet that was written and the truth about it."""

    path: Path
    n_bytes: int
    tables: dict[str, list[Columns]]


def epoch_positions(table: Table, jd: float) -> tuple[F64, F64]:
    """Sky positions (deg) at a time: proper motion and parallax from 2016.0."""
    years = (jd - 2_451_545.0) / 365.25 + 2000.0 - REF_EPOCH
    x, y, z = earth_barycentric(jd)
    ra, dec = np.radians(table["ra"]), np.radians(table["dec"])
    east = table["pmra"] * years + table["parallax"] * (x * np.sin(ra) - y * np.cos(ra))
    north = table["pmdec"] * years + table["parallax"] * (
        (x * np.cos(ra) + y * np.sin(ra)) * np.sin(dec) - z * np.cos(dec)
    )
    return (table["ra"] + east / 3.6e6 / np.cos(dec)) % 360.0, table["dec"] + north / 3.6e6


def paint_quadrant(plan: NightPlan, exposure: SimExposure, rcid: int) -> tuple[F32, list[Columns], list[Columns]]:
    """The noise-free light on a quadrant, DN before the flat field, with its sources' and artefacts' truth."""
    image = np.zeros(plan.camera.shape, np.float32)
    wcs, psf = true_wcs(plan, exposure, rcid), psf_field(plan, exposure, rcid)
    painter.paint_sky(image, exposure.sky, exposure.gradient)
    sources = [
        _paint_fixed(plan, exposure, rcid, image, wcs, psf),
        paint_movers(plan, exposure, rcid, image, wcs, psf),
    ]
    return image, sources, paint_crossings(plan, exposure, rcid, image)


def _paint_fixed(plan: NightPlan, exposure: SimExposure, rcid: int, image: F32, wcs: Wcs, psf: PsfField) -> Columns:
    """Stars, galaxies, variables, transients and naked-eye stars with halos."""
    table = np.concatenate([sky_of(plan, exposure, rcid), bright_stars(plan)])
    table = table[wcs.is_near(table["ra"], table["dec"])]
    mag, colour = magnitudes_at(table, exposure.jd_mid, exposure.fid)
    magzp, clrcoeff = zeropoint(plan, exposure, rcid)
    flux = 10 ** (0.4 * (magzp + clrcoeff * colour - mag))
    ra, dec = epoch_positions(table, exposure.jd_mid)
    x, y = wcs.to_pixel(ra, dec)
    ny, nx = image.shape
    # As far as the light of any stamp reaches, and farther for the halos.
    reach = np.where(mag < 6.6, painter.HALO_RADIUS / plan.camera.pixel_scale, painter.STAMP_SIZES[-1] // 2)
    near = (x > -reach) & (x < nx + reach) & (y > -reach) & (y < ny + reach)
    galaxy = table["kind"] == GALAXY
    points = near & ~galaxy
    painter.paint_stars(image, x[points], y[points], flux[points], psf)
    for k in np.flatnonzero(near & (mag < 6.6)) if plan.effects.halos else []:
        painter.paint_halo(image, float(x[k]), float(y[k]), float(flux[k]), plan.camera.pixel_scale)
    g = near & galaxy
    # Position angle is east of north; on the chip x runs west and y south.
    angle = np.pi / 2 - np.radians(table["pa"][g])
    shape = (table["re"][g] / plan.camera.pixel_scale, table["axis_ratio"][g], angle, table["bulge"][g])
    painter.paint_galaxies(image, x[g], y[g], flux[g], shape, psf)
    on_chip = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    shown = (x > -30) & (x < nx + 30) & (y > -30) & (y < ny + 30)
    return {
        "truth_id": table["truth_id"][shown],
        "kind": [KINDS[k] for k in table["kind"][shown]],
        "variety": [VARIETIES[k] or None for k in table["variety"][shown]],
        "host_id": [None if host < 0 else host for host in table["host_id"][shown].tolist()],
        **who(exposure, rcid),
        "x": x[shown], "y": y[shown], "ra": ra[shown], "dec": dec[shown],
        "mag": mag[shown], "colour": colour[shown], "flux": flux[shown], "in_quadrant": on_chip[shown],
    }  # fmt: skip


def expose_quadrant(plan: NightPlan, exposure: SimExposure, rcid: int) -> tuple[F32, dict[str, list[Columns]]]:
    """A quadrant up to the measured DN without bias: light, flat field, noise, cosmic rays, full well, electronics."""
    amp = detector.amplifier(plan.seed, rcid, exposure.jd)
    bad = detector.defects(plan.seed, plan.camera, rcid)
    rng = seeded(plan.noise_seed, "photons", exposure.expid, rcid)
    tables: dict[str, list[Columns]] = {"sources": [], "quadrants": [], "artefacts": []}
    name = who(exposure, rcid)["exposure"]
    if exposure.imgtype == "object" and rcid in plan.rcids:
        electrons, tables["sources"], tables["artefacts"] = paint_quadrant(plan, exposure, rcid)
    else:
        electrons = np.full(plan.camera.shape, exposure.sky + exposure.level, np.float32)
    if exposure.imgtype != "bias":
        electrons *= detector.flat_field(plan.seed, plan.camera, rcid, exposure.fid)
        electrons *= np.float32(amp.gain)
    effects = plan.effects
    if effects.defects:
        detector.leak_charge(electrons, bad, exposure.exptime)
    if effects.photon_noise:
        detector.photon_noise(rng, electrons)
    hits = detector.cosmic_rays(rng, electrons, exposure.exptime) if effects.cosmic_rays else []
    n_saturated = detector.bleed(electrons, amp.full_well, identity.ccd_qid_of(rcid)[1]) if effects.bleeding else 0
    detector.to_measured(electrons, amp)
    tables["artefacts"].append({
        "kind": "cosmic_ray", "rcid": rcid, "exposure": name,
        "x": [hit[0] for hit in hits], "y": [hit[1] for hit in hits], "npix": [hit[2] for hit in hits],
    })  # fmt: skip
    tables["quadrants"].append(_conditions(plan, exposure, rcid, amp, n_saturated))
    return electrons, tables


def _conditions(
    plan: NightPlan, exposure: SimExposure, rcid: int, amp: detector.Amplifier, n_saturated: int
) -> Columns:
    row: Columns = {
        **who(exposure, rcid), "fid": exposure.fid, "jd": exposure.jd,
        "exptime": exposure.exptime, "gain": amp.gain, "readnoise": amp.readnoise,
        "bias": amp.bias, "saturate": amp.saturate, "linearity_a": amp.a, "linearity_b": amp.b,
        "n_saturated": n_saturated,
    }  # fmt: skip
    if exposure.imgtype == "object":
        magzp, clrcoeff = zeropoint(plan, exposure, rcid)
        row |= {
            "wcs": true_wcs(plan, exposure, rcid).header, "magzp": magzp, "clrcoeff": clrcoeff, "sky": exposure.sky,
            "seeing": exposure.seeing, "rotation": exposure.rotation,
            "pointing_error_xi": exposure.error[0], "pointing_error_eta": exposure.error[1],
            "field": exposure.field, "airmass": exposure.airmass, "transparency": exposure.transparency,
            "moonlight": exposure.moonlight, "gradient_x": exposure.gradient[0], "gradient_y": exposure.gradient[1],
            "moon_altitude": exposure.moon[0], "moon_separation": exposure.moon[1], "moon_lit": exposure.moon[2],
        }  # fmt: skip
    return row


def simulate_packet(plan: NightPlan, exposure: SimExposure, ccdid: int, out: Path) -> Packet:
    """Make and write one packet: four quadrants, which share cross-talk. Depends on its arguments alone."""
    channels = [identity.rcid_of(ccdid, qid) for qid in (1, 2, 3, 4)]
    tables: dict[str, list[Columns]] = {"sources": [], "quadrants": [], "artefacts": []}
    measured = []
    for rcid in channels:
        image, quadrant_tables = expose_quadrant(plan, exposure, rcid)
        measured.append(image)
        for name, parts in quadrant_tables.items():
            tables[name] += parts
    if plan.effects.crosstalk:
        detector.crosstalk(measured, detector.crosstalk_matrix(plan.seed, ccdid))
    images, overscans, amps = [], [], []
    for rcid in channels:
        amp = detector.amplifier(plan.seed, rcid, exposure.jd)
        pattern = detector.bias_structure(plan.seed, plan.camera, rcid)
        rng = seeded(plan.noise_seed, "readout", exposure.expid, rcid)
        image_dn, overscan = detector.read_out(rng, measured.pop(0), amp, pattern, plan.camera)
        images.append(image_dn)
        overscans.append(overscan)
        amps.append(amp)
    path = packet_path(out, plan, exposure, ccdid)
    write_packet(path, primary_header(plan, exposure, ccdid), amps, images, overscans)
    return Packet(path, path.stat().st_size, tables)


def static_artefacts(plan: NightPlan) -> list[Columns]:
    """Hot and dead pixels and columns of the plan's CCDs."""
    parts: list[Columns] = []
    nx = plan.camera.nx
    for ccd in sorted(plan.ccds):
        for rcid in (identity.rcid_of(ccd, qid) for qid in (1, 2, 3, 4)):
            bad = detector.defects(plan.seed, plan.camera, rcid)
            for kind, pixels, strength in (("hot", bad.hot, bad.leak), ("dead", bad.dead, bad.response)):
                in_column = sum((last - first + 1 for _, first, last, which in bad.columns if which == kind), 0)
                single = len(pixels) - in_column
                parts.append({
                    "kind": f"{kind}_pixel", "rcid": rcid, "x": (pixels[:single] % nx).astype(float),
                    "y": (pixels[:single] // nx).astype(float), "npix": [1] * single, "strength": strength[:single],
                })  # fmt: skip
            for x, first, last, kind in bad.columns:
                parts.append({
                    "kind": f"{kind}_column", "rcid": rcid, "x": float(x), "y": 0.5 * (first + last),
                    "npix": last - first + 1, "pixels": [np.arange(first, last + 1) * nx + x],
                })  # fmt: skip
    return parts
