"""One packet: a quadrant is painted and exposed, the four of a CCD are read out together and written.

Everything here is a function of the plan, the exposure and the quadrant or CCD alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream.core import identity
from stream.core.pocket import pocket_of
from stream.simulate import air, detector, electronics, fields, flats, ghosts, painter, rays
from stream.simulate.air import zeropoint
from stream.simulate.crossings import paint_crossings
from stream.simulate.electronics import Amplifier
from stream.simulate.events import sky_of
from stream.simulate.facts import conditions, hit_rows
from stream.simulate.files import packet_path, primary_header, write_packet
from stream.simulate.lightcurves import VARIETIES, magnitudes_at
from stream.simulate.moving import paint_movers, who
from stream.simulate.optics import PsfField, Wcs, psf_field, quadrant_place, true_wcs
from stream.simulate.orbits import earth_barycentric
from stream.simulate.plan import NightPlan, SimExposure, seeded
from stream.simulate.pointing import telescope_pointing
from stream.simulate.sky import GALAXY, KINDS, REF_EPOCH, bright_stars, sky_to_tangent
from stream.simulate.truth import Columns

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]
Table = NDArray[np.void]

SPIKE_MAG = 13.0  # r of the faintest star whose diffraction spikes could show


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet that was written and the truth about it."""

    path: Path
    n_bytes: int
    tables: dict[str, list[Columns]]


def v_magnitude(table: Table) -> F64:
    """Johnson V of stars from their PS1 g and r."""
    return np.asarray(table["mags"][:, 1] + 0.4 * (table["mags"][:, 0] - table["mags"][:, 1]))


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
    image = paint_sky(plan, exposure, rcid)
    wcs, psf = true_wcs(plan, exposure, rcid), psf_field(plan, exposure, rcid)
    sources = [
        _paint_fixed(plan, exposure, rcid, image, wcs, psf),
        paint_movers(plan, exposure, rcid, image, wcs, psf),
    ]
    artefacts = _paint_reflections(plan, exposure, rcid, image, wcs)
    trails = paint_crossings(plan, exposure, rcid, image, amplifier_of(plan, exposure, rcid).gain)
    frame = {"rcid": rcid, "exposure": who(exposure, rcid)["exposure"]}
    return image, sources, [*artefacts, *({**row, **frame} for row in trails)]


def paint_sky(plan: NightPlan, exposure: SimExposure, rcid: int) -> F32:
    """The light of the empty sky, DN: its level and slope, and in i the fringes that its emission lines make."""
    image = np.empty(plan.camera.shape, np.float32)
    level = fields.spread(air.sky_level(plan, exposure, rcid, fields.NODES), image.shape)
    fringed = plan.effects.fringes and exposure.fid == 3
    pattern = flats.fringes(plan.seed, plan.camera, rcid) if fringed else None
    for band in fields.bands(len(image)):
        image[band] = level.rows(band.start, band.stop)
        if pattern is not None:
            image[band] *= np.float32(1.0) + np.float32(flats.FRINGE) * pattern[band]
    return image


def _paint_fixed(plan: NightPlan, exposure: SimExposure, rcid: int, image: F32, wcs: Wcs, psf: PsfField) -> Columns:
    """Stars, galaxies, variables, transients and naked-eye stars, with their far light and spikes."""
    table = np.concatenate([sky_of(plan, exposure, rcid), bright_stars(plan)])
    table = table[wcs.is_near(table["ra"], table["dec"])]
    mag, colour = magnitudes_at(table, exposure.jd_mid, exposure.fid)
    magzp, clrcoeff = zeropoint(plan, exposure, rcid)
    flux = 10 ** (0.4 * (magzp + clrcoeff * colour - mag))
    ra, dec = epoch_positions(table, exposure.jd_mid)
    place = quadrant_place(plan, exposure, rcid)
    x, y = wcs.to_pixel(ra, dec)
    flux *= air.passed(plan, exposure, place, x, y)
    x, y = air.seen_at(plan, exposure, place, x, y, colour)
    ny, nx = image.shape
    reach = painter.STAMP_SIZES[-1] // 2
    near = (x > -reach) & (x < nx + reach) & (y > -reach) & (y < ny + reach)
    galaxy = table["kind"] == GALAXY
    points = near & ~galaxy
    painter.paint_stars(image, x[points], y[points], flux[points], psf)
    g = near & galaxy
    # Position angle is east of north; on the chip x runs west and y south.
    angle = np.pi / 2 - np.radians(table["pa"][g])
    shape = (table["re"][g] / plan.camera.pixel_scale, table["axis_ratio"][g], angle, table["bulge"][g])
    painter.paint_galaxies(image, x[g], y[g], flux[g], shape, psf)
    ghosts.paint_far_light(image, x, y, flux)
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


def _paint_reflections(plan: NightPlan, exposure: SimExposure, rcid: int, image: F32, wcs: Wcs) -> list[Columns]:
    """Halos, ghosts and diffraction spikes of bright stars anywhere in the camera, and their truth."""
    effects = plan.effects
    stars = _bright_places(plan, exposure, rcid, wcs)
    place = quadrant_place(plan, exposure, rcid)
    rows: list[Columns] = []
    if effects.halos:
        rows += ghosts.paint_halos(image, stars, place)
    if effects.ghosts:
        rows += ghosts.paint_ghosts(image, stars, place, ghosts.true_geometry(plan.seed))
    if effects.spikes:
        # The spider is fixed to the telescope, as the detectors are, but not quite along their columns.
        angle = float(seeded(plan.seed, "spider").normal(0, 0.03))
        rows += ghosts.paint_spikes(image, stars, angle, exposure.seeing)
    return [{**row, "rcid": rcid, "exposure": who(exposure, rcid)["exposure"]} for row in rows]


def _bright_places(plan: NightPlan, exposure: SimExposure, rcid: int, wcs: Wcs) -> Columns:
    """Stars that may put light elsewhere: truth_id, V, flux (DN), place in the focal plane (deg) and here (px).

    Those of the quadrant's own sky brighter than ``SPIKE_MAG``, and the naked-eye stars of the whole camera.
    """
    own = sky_of(plan, exposure, rcid)
    table = np.concatenate([own[own["mags"][:, 1] < SPIKE_MAG], bright_stars(plan)])
    mag, colour = magnitudes_at(table, exposure.jd_mid, exposure.fid)
    magzp, clrcoeff = zeropoint(plan, exposure, rcid)
    place = quadrant_place(plan, exposure, rcid)
    ra, dec = epoch_positions(table, exposure.jd_mid)
    ra0, dec0 = telescope_pointing(exposure)
    xi, eta = sky_to_tangent(ra0, dec0, ra, dec)
    x, y = place.pixels_of(xi, eta)
    near = np.flatnonzero(wcs.is_near(ra, dec))
    exact = np.stack(wcs.to_pixel(ra[near], dec[near]))
    found = np.isfinite(exact).all(axis=0)  # far outside a very small quadrant the distortion has no inverse
    x[near[found]], y[near[found]] = exact[:, found]
    return {
        "truth_id": table["truth_id"], "v": v_magnitude(table),
        "flux": 10 ** (0.4 * (magzp + clrcoeff * colour - mag)), "xi": xi, "eta": eta, "x": x, "y": y,
    }  # fmt: skip


def expose_quadrant(plan: NightPlan, exposure: SimExposure, rcid: int) -> tuple[F32, F32, dict[str, list[Columns]]]:
    """A quadrant up to the measured DN without bias: light, response, charge, gain.

    Returns the image (ny, nx), what its overscan got of its charge (ny, n_overscan), and the truth.
    """
    amp = amplifier_of(plan, exposure, rcid)
    ccd, qid = identity.ccd_qid_of(rcid)
    tables: dict[str, list[Columns]] = {"sources": [], "quadrants": [], "artefacts": []}
    if exposure.imgtype == "object" and rcid in plan.rcids:
        electrons, tables["sources"], tables["artefacts"] = paint_quadrant(plan, exposure, rcid)
    elif exposure.imgtype == "object":
        electrons = paint_sky(plan, exposure, rcid)
    else:
        electrons = np.full(plan.camera.shape, exposure.level, np.float32)
    if exposure.imgtype in ("object", "flat"):
        flats.expose(electrons, plan, exposure, rcid, amp.gain)
    full, artefacts = collect_charge(plan, exposure, rcid, electrons, amp)
    tables["artefacts"] += artefacts
    overscan = np.zeros((plan.camera.ny, plan.camera.n_overscan), np.float32)
    if plan.effects.pocket:
        overscan += electronics.pocket_effect(electrons, plan.camera.n_overscan, pocket_of(ccd, qid), qid)
    electronics.to_measured(electrons, amp)
    if plan.effects.pocket:
        electronics.to_measured(overscan, amp)
    if plan.effects.trailed_charge:
        overscan += electronics.trailed_charge(electrons, plan.camera.n_overscan, qid)
    tables["quadrants"].append(conditions(plan, exposure, rcid, amp, len(full)))
    return electrons, overscan, tables


def amplifier_of(plan: NightPlan, exposure: SimExposure, rcid: int) -> Amplifier:
    """The electronics of a channel in an exposure."""
    return electronics.amplifier(plan.seed, rcid, exposure.jd, linear=not plan.effects.nonlinearity)


def collect_charge(
    plan: NightPlan, exposure: SimExposure, rcid: int, electrons: F32, amp: Amplifier
) -> tuple[NDArray[np.int64], list[Columns]]:
    """Expected photoelectrons to the charge that is read: all that happens in the silicon, in place.

    Returns the flat indices of the pixels at full well, and the artefacts' truth. Every effect has a generator of its
    own, so that switching one off changes nothing else.
    """
    effects = plan.effects
    bad = detector.defects(plan.seed, plan.camera, rcid)
    qid = identity.ccd_qid_of(rcid)[1]
    seconds = exposure.exptime + detector.READOUT_SECONDS / 2
    frame = {"rcid": rcid, "exposure": who(exposure, rcid)["exposure"]}
    artefacts: list[Columns] = []

    def draws(what: str) -> np.random.Generator:
        return seeded(plan.noise_seed, what, exposure.expid, rcid)

    if effects.dark_current:
        detector.dark_current(electrons, seconds, qid)
    if effects.defects:
        detector.leak_charge(electrons, bad, seconds)
    if effects.photon_noise:
        detector.photon_noise(draws("photons"), electrons)
    if effects.cosmic_rays:
        artefacts += [{**frame, **hit} for hit in hit_rows(rays.cosmic_rays(draws("rays"), electrons, seconds))]
    if effects.brighter_fatter:
        detector.brighter_fatter(electrons)
    full = np.zeros(0, np.int64)
    if effects.bleeding:
        full = detector.bleed(electrons, amp.full_well, qid)
        if len(full):
            artefacts.append({**frame, "kind": "saturated", "npix": len(full), "pixels": [full]})
    if effects.spillage and len(full) and exposure.jd - 2_400_000.5 <= detector.SPILLAGE_UNTIL:
        delay = detector.spillage_delay(plan.seed, rcid)
        pixels, values = detector.spill(electrons, full, amp.full_well, delay, qid)
        artefacts.append({**frame, "kind": "spillage", "npix": len(pixels), "pixels": [pixels], "values": [values]})
    if effects.defects:
        detector.telegraph(draws("telegraph"), electrons, bad)
    return full, artefacts


def simulate_packet(plan: NightPlan, exposure: SimExposure, ccdid: int, out: Path) -> Packet:
    """Make and write one packet: four quadrants, which share cross-talk. Depends on its arguments alone."""
    images, overscans, amps, tables = expose_packet(plan, exposure, ccdid)
    path = packet_path(out, plan, exposure, ccdid)
    write_packet(path, primary_header(plan, exposure, ccdid), amps, images, overscans)
    return Packet(path, path.stat().st_size, tables)


def expose_packet(
    plan: NightPlan, exposure: SimExposure, ccdid: int
) -> tuple[list[U16], list[U16], list[Amplifier], dict[str, list[Columns]]]:
    """The four images and overscans of a CCD as they are read, their amplifiers, and the truth."""
    channels = [identity.rcid_of(ccdid, qid) for qid in (1, 2, 3, 4)]
    tables: dict[str, list[Columns]] = {"sources": [], "quadrants": [], "artefacts": []}
    measured, dripped = [], []
    for rcid in channels:
        image, overscan, quadrant_tables = expose_quadrant(plan, exposure, rcid)
        measured.append(image)
        dripped.append(overscan)
        for name, parts in quadrant_tables.items():
            tables[name] += parts
    if plan.effects.crosstalk:
        electronics.crosstalk(measured, electronics.crosstalk_matrix(plan.seed, ccdid))
    images, overscans, amps = [], [], []
    for rcid in channels:
        amp = amplifier_of(plan, exposure, rcid)
        rng = seeded(plan.noise_seed, "readout", exposure.expid, rcid)
        bias = electronics.bias_of(rng, plan.seed, plan.camera, amp, exposure.expid, plan.effects)
        sigma = amp.readnoise / amp.gain if plan.effects.read_noise else 0.0
        noise = seeded(plan.noise_seed, "read noise", exposure.expid, rcid)
        image_dn, overscan_dn = electronics.read_out(noise, measured.pop(0), dripped.pop(0), bias, sigma)
        images.append(image_dn)
        overscans.append(overscan_dn)
        amps.append(amp)
    return images, overscans, amps, tables
