"""The science of one quadrant, as a table of contents: raw pixels in, everything we know about them out.

Pure: pixels, calibration frames, catalogues and the reference come in as arrays and records through
``QuadrantInputs``; no file, topic or clock is touched but the CPU clock that fills ``report.seconds``. The
stream, the offline ``process`` command, the tests and a notebook call the same function.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from stream.astrometry import expected_refraction, own_colours, refine, solve, wcs_cards
from stream.calibrate import (
    CalibrateSettings,
    calibrate,
    find_tracks,
    focal_plane,
    ghost_stars,
    halo_limit,
    mask_ghosts,
    mask_halos,
    mask_spillage,
    mask_tracks,
)
from stream.core.camera import FULL, Camera, nominal_wcs
from stream.core.errors import Permanent, PhotometryError, Retriable
from stream.core.flags import BAD_BITS, MASK_BITS, SOURCE_BITS, Info, Mask, status_of
from stream.core.ghosts import FIELD_RADIUS, GhostGeometry
from stream.core.identity import CANDID_VERSION
from stream.core.psf import moffat_psf
from stream.core.records import (
    U16,
    Astrometry,
    Background,
    CalibratedImage,
    CalibrationSet,
    Quadrant,
    QuadrantInputs,
    QuadrantReport,
    QuadrantResult,
    RawQuadrant,
    ScienceImage,
    Status,
    Table,
    Track,
    ZeroPoint,
    new_report,
)
from stream.enrich import match_catalogs
from stream.extract import ExtractSettings, depth_map, extract, find_streaks
from stream.fakes import FakeSettings, is_due, run_fakes
from stream.photometry import (
    CLEAR,
    box_flags,
    build_psf,
    catalog_maglim,
    cloud_verdict,
    detect,
    estimate_background,
    fit_zeropoint,
    maglim,
    mark_sources,
    measure_sources,
    photometric_infobits,
)
from stream.subtract import make_cache, subtract, subtract_by_kernel

# Catalogue cones reach this far beyond the quadrant's half diagonal (deg): the pointing may be off by four
# arcminutes, a halo star may stand 367 arcsec outside, alerts look for neighbours within 90 arcsec.
CONE_MARGIN = 0.12
# Gaia stars fainter than what a 30 s exposure shows only feed chance matches.
GAIA_FAINT_LIMIT = 20.5


@dataclass(frozen=True, slots=True)
class ScienceSettings:
    """What the science may be asked to do differently."""

    camera: Camera = FULL
    detection_sigma: float = 4.5  # matched-filter S/N: at 4.0 a quadrant has hundreds of noise peaks
    # Cuts before packaging: the survey's of 2018 lose half of what lies at S/N 6 and all that is no point; ours leave
    # shapes to the classifiers.
    profile: str = "inclusive"
    fakes: FakeSettings | None = None  # sources injected into a copy, to know what is found; None: none
    candid_version: int = CANDID_VERSION  # other digits where nights are processed again with other software
    subtract: bool = True  # False: science products only, as for reference building
    method: str = "proper"  # of the subtraction; kernel: a fitted one, to compare with, never in the stream
    calibrate: CalibrateSettings = field(default_factory=CalibrateSettings)


class Stopwatch:
    """CPU seconds of this process by named step, and when (wall seconds since the start) each step ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.elapsed: dict[str, float] = {}
        self._started = time.perf_counter()
        self.current = "start"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block; the name survives in ``current`` if it raises."""
        self.current = name
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.process_time() - start, 4)
            self.elapsed[name] = round(time.perf_counter() - self._started, 4)


def process_quadrant(
    raw: RawQuadrant, inputs: QuadrantInputs, settings: ScienceSettings | None = None
) -> QuadrantResult:
    """Calibrate, measure, subtract and search one raw quadrant.

    Returns
    -------
    QuadrantResult
        Never raises for the input's sake: a permanent failure is in ``report`` (status, stage, reason) and
        ``traceback``, with what was made before it. ``Retriable`` errors of ``inputs`` pass through.
    """
    settings = settings or ScienceSettings()
    watch = Stopwatch()
    result = QuadrantResult(report=new_report(raw.quadrant), quadrant=raw.quadrant)
    with _outcome(result, watch):
        with watch.step("calibrate"):
            frames = inputs.calibration(raw.quadrant)
            image = calibrate(raw, frames, settings.calibrate)
        result.report.calids, result.report.notes = list(image.calids), list(image.notes)
        result.science = make_science(image, inputs, settings, watch, frames)
        report_science(result.report, result.science)
        if settings.subtract:
            search(result, inputs, settings, watch)
    return result


def process_science(
    make: Callable[[], ScienceImage],
    quadrant: Quadrant,
    inputs: QuadrantInputs,
    watch: Stopwatch | None = None,
    settings: ScienceSettings | None = None,
) -> QuadrantResult:
    """Subtract and search an image that came calibrated; ``make`` measures it (its failures end in the report)."""
    watch = watch or Stopwatch()
    result = QuadrantResult(report=new_report(quadrant), quadrant=quadrant)
    with _outcome(result, watch):
        result.science = make()
        report_science(result.report, result.science)
        search(result, inputs, settings or ScienceSettings(), watch)
    return result


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What is known of an image before its place on the sky."""

    background: Background
    tracks: tuple[Track, ...]
    detections: Table


def first_look(image: CalibratedImage, threshold: float, watch: Stopwatch) -> tuple[CalibratedImage, FirstLook]:
    """Sky, masks of what is found on the image itself, and a first list of sources; the image with those masks.

    Tracks come before the sources (``stream.calibrate`` says why).
    """
    q = image.quadrant
    with watch.step("background"):
        background = estimate_background(image.data, image.mask)
    with watch.step("tracks"):
        mask = mask_spillage(image.data, background, image.mask, q.qid, q.exposure.jd - 2_400_000.5)
        tracks = find_tracks(image.data, background, mask)
        image = replace(image, mask=mask_tracks(mask, tracks))
    with watch.step("detect"):
        detections = detect(image.data, background, image.mask, threshold, gain=image.gain)
    return image, FirstLook(background, tracks, detections)


def make_science(
    image: CalibratedImage,
    inputs: QuadrantInputs,
    settings: ScienceSettings,
    watch: Stopwatch,
    frames: CalibrationSet | None = None,
) -> ScienceImage:
    """From calibrated pixels to a science image: sky, WCS, PSF, sources, zero point, masks, quality word.

    ``frames`` tells the geometry of the channel's ghosts (without it the nominal one, and the notes say so) and what
    is known of its distortion.
    """
    exposure = image.quadrant.exposure
    guess = nominal_wcs(settings.camera, exposure.ra, exposure.dec, image.quadrant.rcid)
    radius = 0.5 * np.hypot(*image.data.shape) * settings.camera.pixel_scale / 3600.0 + CONE_MARGIN
    ra0, dec0 = (float(v) for v in guess.wcs.crval)
    image, look = first_look(image, settings.detection_sigma, watch)
    with watch.step("astrometry"):
        gaia = inputs.gaia(ra0, dec0, radius)
        gaia = gaia[gaia["phot_g_mean_mag"] < GAIA_FAINT_LIMIT]
        astrometry = solve(look.detections, gaia, guess, exposure.jd_mid, image.data.shape)
    return measure_science(image, look, astrometry, inputs, (ra0, dec0, radius), watch, frames, gaia)


def science_from_calibrated(
    image: CalibratedImage,
    astrometry: Astrometry,
    zeropoint: ZeroPoint | None,
    inputs: QuadrantInputs,
    watch: Stopwatch | None = None,
    seeing: float | None = None,
) -> ScienceImage:
    """A science image from pixels that came calibrated and with a WCS, a cut-out for example.

    ``zeropoint`` is the header's; None fits one against Pan-STARRS1. ``seeing`` (px), where known, stands in with a
    Moffat profile when the image has too few stars to measure a PSF; the notes and INFOBITS say so.
    """
    watch = watch or Stopwatch()
    image, look = first_look(image, ScienceSettings().detection_sigma, watch)
    cone = footprint_cone(astrometry, image.data.shape)
    return measure_science(image, look, astrometry, inputs, cone, watch, None, None, zeropoint, seeing)


def footprint_cone(astrometry: Astrometry, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Centre and radius (deg) of the cone of catalogue sources that concern an image."""
    ny, nx = shape
    ra, dec = (float(v) for v in astrometry.wcs.all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0))
    return ra, dec, 0.5 * float(np.hypot(nx, ny)) * FULL.pixel_scale / 3600.0 + CONE_MARGIN


def measure_science(
    image: CalibratedImage,
    look: FirstLook,
    astrometry: Astrometry,
    inputs: QuadrantInputs,
    cone: tuple[float, float, float],
    watch: Stopwatch,
    frames: CalibrationSet | None = None,
    gaia: Table | None = None,
    zeropoint: ZeroPoint | None = None,
    seeing: float | None = None,
) -> ScienceImage:
    """PSF, sources, zero point (unless given) and masks of an image whose WCS is known.

    With ``gaia`` the WCS is a first one: it is fitted anew from the sources' places.
    """
    frames = frames or CalibrationSet()
    background, detections = look.background, look.detections
    noise = image.gain, image.readnoise
    notes, e = image.notes, image.quadrant.exposure
    infobits = 0
    with watch.step("psf"):
        try:
            psf = build_psf(image.data, background, detections, image.mask, *noise, image.saturate)
        except PhotometryError:
            if seeing is None:
                raise
            ny, nx = image.data.shape
            psf = moffat_psf(seeing, (ny, nx))
            notes, infobits = (*notes, "psf_from_header"), infobits | Info.NO_PSF
    with watch.step("photometry"):
        sources, apertures = measure_sources(image.data, background, psf, detections, image.mask, *noise)
    with watch.step("astrometry"):
        if gaia is not None:
            lifted = expected_refraction(e, cone[0], cone[1])
            shape = image.data.shape
            astrometry = refine(astrometry, sources, gaia, e.jd_mid, shape, psf.fwhm, frames.distortion, lifted)
        places = astrometry.sky_of(sources["x"], sources["y"])
        if gaia is not None and lifted is not None:
            places = own_colours(*places, gaia, astrometry.refraction, lifted.zenith, astrometry.colour)
        sources["ra"], sources["dec"] = places
    infobits |= astrometry.infobits
    # The cloud rules count the calibrators of a whole quadrant; a header's number is of one, ours of what we see.
    share = 1.0 if zeropoint is not None else image.data.size / (FULL.nx * FULL.ny)
    with watch.step("zeropoint"):
        zeropoint = zeropoint or fit_zeropoint(sources, inputs.ps1(*cone), e.fid, image.data.shape)
    with watch.step("mask"):
        depths = zeropoint.magzp, background.sigma
        mask, ghost_note = _mask_reflections(image, astrometry, inputs, cone, depths, frames.ghosts)
        notes += ghost_note
        mask = mark_sources(mask, sources)
        sources["flags"] = box_flags(mask & np.uint16(~SOURCE_BITS & 0xFFFF), sources["x"], sources["y"])
    depth = maglim(psf, background, zeropoint)
    infobits |= photometric_infobits(
        background, psf, sources, len(detections), zeropoint, depth,
        saturated=masked_share(image.mask, Mask.SATURATED), tracks=masked_share(image.mask, Mask.TRACK),
    )  # fmt: skip
    cloud = cloud_verdict(zeropoint, e.fid, image.quadrant.rcid, e.airmass, e.exptime, share=share)
    infobits |= 0 if cloud == CLEAR else Info.BAD_QUALITY
    return ScienceImage(
        image.quadrant, image.data, mask, *noise, image.saturate, background, psf, astrometry, zeropoint, sources,
        depth, int(infobits), apertures.values, apertures.uncertainties, image.calids, notes,
        image.age, cloud, look.tracks, catalog_maglim(sources, zeropoint),
    )  # fmt: skip


def _mask_reflections(
    image: CalibratedImage,
    astrometry: Astrometry,
    inputs: QuadrantInputs,
    cone: tuple[float, float, float],
    depths: tuple[float, float],
    ghosts: GhostGeometry | None,
) -> tuple[U16, tuple[str, ...]]:
    """The mask with halos and ghosts of bright stars, and a note where a ghost was placed by nominal geometry.

    ``depths`` are the zero point and the sky's noise (DN) a pixel.
    """
    magzp, sigma = depths
    exposure, wcs, scale = image.quadrant.exposure, astrometry.wcs, FULL.pixel_scale
    mask = mask_halos(image.mask, wcs, inputs.bright(*cone), scale, halo_limit(magzp, sigma))
    plane = focal_plane(wcs, image.quadrant.rcid, image.data.shape, (exposure.ra, exposure.dec))
    stars = ghost_stars(inputs.bright(*plane.boresight, FIELD_RADIUS), plane, magzp)
    masked = mask_ghosts(mask, plane, stars, ghosts or GhostGeometry(), sigma, scale)
    nominal = ghosts is None and masked is not mask
    return masked, (("nominal_ghosts",) if nominal else ())


def search(result: QuadrantResult, inputs: QuadrantInputs, settings: ScienceSettings, watch: Stopwatch) -> None:
    """Subtract the reference and fill ``result`` with the difference, its candidates and streaks."""
    science, report = result.science, result.report
    if science is None:
        raise ValueError("search needs a science image")
    reference = inputs.reference(science.quadrant)
    if reference is None:
        report.status = Status.NO_REFERENCE
        report.reason = (
            f"no reference for field {report.field}, rcid {report.rcid}, filter {report.fid}: science products made, "
            "no candidates; make one with `ztf-stream reference build`"
        )
        return
    result.reference = reference
    with watch.step("subtract"):
        ready = inputs.prepared(reference, make_cache)
        make = subtract_by_kernel if settings.method == "kernel" else subtract
        result.difference = make(science, reference, cache=ready)
    with watch.step("extract"):
        how = ExtractSettings(profile=settings.profile, version=settings.candid_version)
        result.candidates = extract(science, reference, result.difference, how)
        result.depth = depth_map(science, result.difference)
    with watch.step("streaks"):
        result.streaks = find_streaks(science, result.difference)
    with watch.step("catalogs"):
        cone = footprint_cone(science.astrometry, science.data.shape)
        ps1 = inputs.ps1(*cone)
        match_catalogs(result.candidates, ps1, inputs.gaia(*cone))
    if settings.fakes is not None and is_due(report.pid, settings.fakes.share):
        with watch.step("fakes"):
            result.fakes = _fakes(result, ps1, how, settings.fakes)
    _report_search(result)


def _fakes(result: QuadrantResult, ps1: Table, how: ExtractSettings, settings: FakeSettings) -> Table | None:
    """What became of the quadrant's fakes. A defect here is noted and costs the quadrant nothing."""
    assert result.science is not None
    assert result.reference is not None
    assert result.depth is not None
    try:
        return run_fakes(result.science, result.reference, result.depth, ps1, how, settings)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        result.report.notes.append(f"no_fakes: {type(error).__name__}: {error}"[:200])
        return None


@contextmanager
def _outcome(result: QuadrantResult, watch: Stopwatch) -> Iterator[None]:
    """Turn whatever the input provokes into a status with stage and reason; let retriable errors pass."""
    try:
        yield
    except Retriable:
        raise
    except Permanent as error:
        _fail(result, error.stage, str(error), watch.current)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a defect of ours met by this input: the worker must survive it and say so
        _fail(result, watch.current, f"{type(error).__name__}: {error}")
    finally:
        result.report.seconds, result.elapsed = watch.seconds, watch.elapsed


# What INFOBITS says of an image that ended at a step of this pipeline.
_FATAL_AT = {"astrometry": Info.NO_ASTROMETRY, "psf": Info.NO_PSF, "zeropoint": Info.NO_ZEROPOINT}


def _fail(result: QuadrantResult, stage: str, reason: str, step: str = "") -> None:
    result.report.status, result.report.stage, result.report.reason = Status.FAILED, stage, reason
    result.report.procstatus = 0
    if step in _FATAL_AT:
        result.report.infobits = (result.report.infobits or 0) | int(_FATAL_AT[step])
    result.traceback = traceback.format_exc()
    result.candidates, result.streaks = [], []


def masked_share(mask: U16, bits: int) -> float:
    """Share (0..1) of the pixels with any of these bits."""
    return float(np.count_nonzero(mask & np.uint16(bits))) / max(mask.size, 1)


def masked_shares(mask: U16) -> dict[str, float]:
    """Share of the pixels with each bit that is set at all, by its name in lower case, and with any defect's."""
    counts = np.bincount(mask[mask != 0])  # of words: most pixels have no bit, and few words occur
    words = np.flatnonzero(counts)
    of = counts[words] / max(mask.size, 1)
    shares = {bit.name.lower(): float(of[(words >> bit.bit & 1) == 1].sum()) for bit in MASK_BITS}
    shares["bad"] = float(of[(words & BAD_BITS) != 0].sum())
    return {name: round(share, 9) for name, share in shares.items() if share > 0}


def report_science(report: QuadrantReport, science: ScienceImage) -> None:
    """Fill the science figures of a quality record."""
    zp, astrometry = science.zeropoint, science.astrometry
    ny, nx = science.data.shape
    ra, dec = astrometry.wcs.all_pix2world([-0.5, nx - 0.5, nx - 0.5, -0.5], [-0.5, -0.5, ny - 0.5, ny - 0.5], 0)
    cards = wcs_cards(astrometry)
    report.infobits, report.seeing, report.maglim = science.infobits, science.seeing, science.maglim
    report.magzp, report.magzpunc, report.magzprms = zp.magzp, zp.magzpunc, zp.magzprms
    report.clrcoeff, report.clrcounc = zp.clrcoeff, zp.clrcounc
    report.astrrms1, report.astrrms2 = float(cards["ASTRRMS1"]), float(cards["ASTRRMS2"])
    report.astromn = astrometry.n_matched
    report.scibckgnd, report.scisigpix = science.background.median, science.background.sigma
    report.n_sources = len(science.sources)
    report.procstatus, report.cloud = status_of(science.infobits), science.cloud or None
    report.nmatches, report.zpclrcov, report.zpmed = zp.n_matches, zp.zpclrcov, zp.zpmed
    report.clrmed, report.clrrms = zp.clrmed, zp.clrrms
    report.zpmap, report.zpmaprms = (list(zp.map.coefficients), zp.map.rms) if zp.map else ([], None)
    report.maglimcat = science.maglimcat
    report.astchi2, report.n_catalog = astrometry.chi_square, astrometry.n_catalog
    report.airmass, report.cal_age = science.quadrant.exposure.airmass, science.cal_age
    report.n_tracks, report.tracks = len(science.tracks), [track.kind for track in science.tracks]
    report.masked = masked_shares(science.mask)
    report.corners = [float(v) for pair in zip(ra, dec, strict=True) for v in pair]
    report.calids, report.notes = list(science.calids), list(science.notes)


def _report_search(result: QuadrantResult) -> None:
    report, reference, difference = result.report, result.reference, result.difference
    assert reference is not None
    assert difference is not None
    report.rfid, report.reference_version = reference.rfid, reference.version
    report.diffmaglim = difference.diffmaglim
    reasons = [c.rejected for c in result.candidates if c.rejected is not None]
    report.rejected = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    report.n_rejected, report.n_candidates = len(reasons), len(result.candidates) - len(reasons)
    report.n_streaks = len(result.streaks)
