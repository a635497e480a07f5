"""Calibration without a broker, in parallel processes: a night's frames, the sky's, and what is measured about CCDs.

As in ``stream.offline``, results come in the order of the units of work, whatever the number of processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stream.archive import ProductStore
from stream.archive.paths import parse_science_name
from stream.archive.products import read_calibration_sources, read_quality_record, science_files
from stream.archive.shelf import CalibrationShelf, product_path, version_of
from stream.calibrate import calibrate
from stream.calibrate.crosstalk import CrosstalkSample, sample_crosstalk
from stream.calibrate.frames import build_night
from stream.calibrate.fringe import FringeSample, build_fringe, fringe_sample
from stream.calibrate.shutter import build_shutter
from stream.calibrate.skyflat import SkySample, build_loflat, sky_sample
from stream.calibrate.starflat import StarSample, build_starflat
from stream.calibrate.transfer import build_instrument, measure_channel, raw_histogram
from stream.core.camera import Camera
from stream.core.errors import CalibrationError, PacketError, Permanent, UsageError
from stream.core.records import CalibratedImage, CalibrationFrame, Exposure, PixelMask, RawQuadrant
from stream.core.sphere import unit_vectors
from stream.ingest import read_packet, read_quadrant
from stream.offline import Built, Job, PacketHead, Progress, own_task, packet_heads, parallel, quiet, raw_of
from stream.photometry import CLEAR, calibrator_residuals

NIGHTLY = ("bias", "dark", "flat")
# Frames of a channel that photon transfer asks for: more pairs of nine million pixels tell nothing new.
MAX_TRANSFER_FRAMES = 6
# Exposures of a channel and filter that a star flat looks at, the newest: PS1's errors are averaged by then.
MAX_STAR_EXPOSURES = 400

Unit = tuple[int, int, tuple[PacketHead, ...], Camera]  # CCD, quadrant, packets


def _built(product: CalibrationFrame | PixelMask) -> Built:
    kind = "pmask" if isinstance(product, PixelMask) else product.kind
    figures = {**product.qa, "calid": product.calid}
    return Built(kind, 0, product.rcid, product.fid, product.night, product.n_frames, figures)


def _previous(rcid: int, night: str) -> list[CalibrationFrame]:
    """The newest bias and flats of a channel of an earlier night."""
    shelf = CalibrationShelf(own_task().store)
    found = []
    for kind, fid in (("bias", 0), *(("hifreqflat", fid) for fid in (1, 2, 3))):
        for earlier in shelf.nights():
            version = shelf.version(kind, earlier, fid, rcid) if earlier < night else None
            if version is not None and shelf.vetoed(version) is None:
                product = shelf.read(version)
                found += [product] if isinstance(product, CalibrationFrame) else []
                break
    return found


def _build_night(unit: Unit) -> list[Built]:
    """Bias, flats and pixel masks of one quadrant position of one night."""
    ccdid, qid, heads, camera = unit
    rcid = 4 * (ccdid - 1) + qid - 1
    store, night = own_task().store, heads[0].night
    try:
        raws = [raw for h in heads if (raw := raw_of(h.path, qid, camera, aggressors=False)) is not None]
        frames, masks, failures = build_night(raws, _previous(rcid, night))
    except Permanent as error:
        return [Built("night", 0, rcid, 0, night, len(heads), {}, str(error))]
    for frame in frames:
        store.write_calibration(frame)
    for mask in masks:
        store.write_pixelmask(mask)
    failed = [Built(kind, 0, rcid, 0, night, 0, {}, reason) for kind, reason in failures.items()]
    return [*map(_built, frames), *map(_built, masks), *failed]


def build_calibrations(
    paths: Sequence[Path], job: Job, workers: int, progress: Progress = quiet
) -> tuple[list[Built], list[PacketError]]:
    """Bias, flats and pixel masks of every quadrant position and night from raw `b`, `d` and `f` packets.

    Raises
    ------
    UsageError
        There is no calibration packet among the files.
    """
    heads, errors = packet_heads(paths, job.camera)
    chosen = [head for head in heads if head.imgtype in NIGHTLY]
    if not chosen:
        raise UsageError(f"none of {len(heads)} readable packets is a bias or a flat: name `_b` and `_f` packets")
    return _each(_build_night, _units(chosen, job.camera, by_night=True), job, workers, progress, "calibration"), errors


def build_skies(
    paths: Sequence[Path], kind: str, job: Job, workers: int, progress: Progress = quiet
) -> tuple[list[Built], list[PacketError]]:
    """Low-frequency flats (``loflat``) or fringe frames (``fringe``) from raw on-sky packets of one or more nights, or
    the shutter's map (``shutter``) from flats of two exposure times; one a channel and filter.

    Raises
    ------
    UsageError
        There is no packet of use among the files.
    """
    heads, errors = packet_heads(paths, job.camera)
    wanted = {"loflat": "object", "fringe": "object", "shutter": "flat"}[kind]
    chosen = [h for h in heads if h.imgtype == wanted and (kind != "fringe" or h.fid == 3)]
    if not chosen:
        sort = "a flat" if kind == "shutter" else "an exposure on sky" + (" in i" if kind == "fringe" else "")
        raise UsageError(f"none of {len(heads)} readable packets is {sort}: name others")
    work = {"loflat": _build_loflat, "fringe": _build_fringe, "shutter": _build_shutter}[kind]
    by_filter: list[Unit] = []
    for fid in (1, 2, 3):
        by_filter += _units([head for head in chosen if head.fid == fid], job.camera, by_night=False)
    return _each(work, by_filter, job, workers, progress, kind), errors


def _units(heads: Iterable[PacketHead], camera: Camera, *, by_night: bool) -> list[Unit]:
    """The packets of each quadrant position."""
    groups: dict[tuple[str, int, int], list[PacketHead]] = defaultdict(list)
    for head in heads:
        for qid in head.qids:
            groups[head.night if by_night else "", head.ccdid, qid].append(head)
    return [(ccd, qid, tuple(group), camera) for (_, ccd, qid), group in sorted(groups.items())]


def _each(
    work: Callable[[Unit], list[Built]], units: list[Unit], job: Job, workers: int, progress: Progress, what: str
) -> list[Built]:
    built: list[Built] = []
    for done, part in enumerate(parallel(work, units, job, workers), 1):
        built.extend(part)
        progress(done, len(units), what)
    return built


def _reduced(heads: Sequence[PacketHead], qid: int, camera: Camera, kind: str) -> Iterable[CalibratedImage]:
    """Exposures calibrated with all but the product that is to be built; those that fail are left out."""
    for head in heads:
        raw = raw_of(head.path, qid, camera)
        if raw is None:
            continue
        frames = replace(own_task().inputs.calibration(raw.quadrant), **{kind: None})
        try:
            yield calibrate(raw, frames)
        except Permanent:
            continue


def _build_sky(unit: Unit, kind: str, build: Callable[[Iterable[CalibratedImage]], CalibrationFrame]) -> list[Built]:
    ccdid, qid, heads, camera = unit
    try:
        frame = build(_reduced(heads, qid, camera, kind))
    except Permanent as error:
        rcid = 4 * (ccdid - 1) + qid - 1
        return [Built(kind, 0, rcid, heads[0].fid, heads[-1].night, len(heads), {}, str(error))]
    own_task().store.write_calibration(frame)
    return [_built(frame)]


def _build_loflat(unit: Unit) -> list[Built]:
    def build(images: Iterable[CalibratedImage]) -> CalibrationFrame:
        samples: list[SkySample] = [sky_sample(image) for image in images]
        return build_loflat(samples)

    return _build_sky(unit, "loflat", build)


def _build_fringe(unit: Unit) -> list[Built]:
    def build(images: Iterable[CalibratedImage]) -> CalibrationFrame:
        samples: list[FringeSample] = [fringe_sample(image) for image in images]
        return build_fringe(samples)

    return _build_sky(unit, "fringe", build)


def build_starflats(
    job: Job, workers: int, progress: Progress = quiet, *, rcid: int | None = None, fid: int | None = None
) -> list[Built]:
    """Star flats of every channel and filter (or one) from the PSF catalogues of the store's science images.

    Of each channel and filter the newest exposures count that were reduced with the same low-frequency flat as the
    newest of all.

    Raises
    ------
    UsageError
        There is no science image in the store.
    """
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, _ in science_files(ProductStore(job.store), "_psfcat.fits"):
        try:
            parts = parse_science_name(name)
        except UsageError:  # somebody else's file in our tree
            continue
        if rcid in (None, parts.rcid) and fid in (None, parts.fid):
            groups[parts.rcid, parts.fid].append(name)
    if not groups:
        raise UsageError(f"no science image in {job.store}: run `ztf-stream process` on exposures first")
    units = [(*key, tuple(names[-MAX_STAR_EXPOSURES:]), job.camera) for key, names in sorted(groups.items())]
    built = []
    for done, one in enumerate(parallel(_build_starflat, units, job, workers), 1):
        built.append(one)
        progress(done, len(units), "star flats")
    return built


def _build_starflat(unit: tuple[int, int, tuple[str, ...], Camera]) -> Built:
    rcid, fid, names, camera = unit
    store = own_task().store
    night = names[-1][4:12]
    try:
        samples = [sample for name in names if (sample := _star_sample(store, name)) is not None]
        wanted = samples[-1].loflat if samples else ""
        found = version_of(wanted)
        version = CalibrationShelf(store).version(*found) if found is not None else None
        base = CalibrationShelf(store).read(version) if version is not None else None
        if wanted and not isinstance(base, CalibrationFrame):
            raise CalibrationError(f"the low-frequency flat {wanted} of the newest exposures is gone from the store")
        frame = build_starflat(samples, base if isinstance(base, CalibrationFrame) else None, (camera.ny, camera.nx))
    except Permanent as error:
        return Built("loflat", 0, rcid, fid, night, len(names), {}, str(error))
    store.write_calibration(frame)
    return _built(frame)


def _star_sample(store: ProductStore, name: str) -> StarSample | None:
    """The calibrators of a stored image; None where it was cloudy or has none."""
    report = read_quality_record(store, name)
    if report.cloud not in (None, CLEAR) or not report.corners:
        return None
    sources, zeropoint = read_calibration_sources(store, name)
    ra, dec, radius = _cone(report.corners)
    columns = calibrator_residuals(sources, own_task().inputs.ps1(ra, dec, radius), report.fid, zeropoint)
    exposure = Exposure(
        name.rsplit("_q", 1)[0], "object", report.field, report.fid, report.ccdid, report.programid, report.jd,
        report.jd_mid, report.exptime, ra, dec,
    )  # fmt: skip
    return StarSample(exposure, report.rcid, *columns, calids=tuple(report.calids))


def _cone(corners: Sequence[float]) -> tuple[float, float, float]:
    """Centre and radius (deg) of the cone around an image's corners."""
    vectors = unit_vectors(corners[0::2], corners[1::2])
    middle = vectors.sum(axis=0)
    middle /= np.linalg.norm(middle)
    ra, dec = np.degrees(np.arctan2(middle[1], middle[0])) % 360, np.degrees(np.arcsin(middle[2]))
    return float(ra), float(dec), float(np.degrees(np.arccos(np.clip(vectors @ middle, -1, 1)).max()))


def _build_shutter(unit: Unit) -> list[Built]:
    ccdid, qid, heads, camera = unit
    rcid = 4 * (ccdid - 1) + qid - 1
    try:
        raws = [raw for h in heads if (raw := raw_of(h.path, qid, camera, aggressors=False)) is not None]
        frame = build_shutter(raws, own_task().inputs.calibration(raws[-1].quadrant).bias if raws else None)
    except Permanent as error:
        return [Built("shutter", 0, rcid, heads[0].fid, heads[-1].night, len(heads), {}, str(error))]
    own_task().store.write_calibration(frame)
    return [_built(frame)]


def measure_instruments(
    paths: Sequence[Path], job: Job, workers: int, progress: Progress = quiet
) -> tuple[list[Built], list[PacketError]]:
    """Gain, read noise, saturation and cross-talk of every CCD among raw packets: flats, biases, exposures on sky.

    Raises
    ------
    UsageError
        There is no readable packet among the files.
    """
    heads, errors = packet_heads(paths, job.camera)
    by_ccd: dict[int, list[PacketHead]] = defaultdict(list)
    for head in heads:
        if head.imgtype in ("bias", "flat", "object"):
            by_ccd[head.ccdid].append(head)
    if not by_ccd:
        raise UsageError("no readable bias, flat or exposure on sky among the files: name others")
    units: list[Unit] = [(ccd, 0, tuple(group), job.camera) for ccd, group in sorted(by_ccd.items())]
    return _each(_measure, units, job, workers, progress, "CCDs"), errors


def _measure(unit: Unit) -> list[Built]:
    """What the frames of one CCD say about it."""
    ccdid, _, heads, camera = unit
    by_type = {kind: [head for head in heads if head.imgtype == kind] for kind in ("bias", "flat", "object")}
    raws: list[RawQuadrant] = []
    histograms: dict[int, list[np.ndarray]] = defaultdict(list)
    samples: list[list[CrosstalkSample]] = []
    for head in by_type["object"]:
        exposed = _quadrants(head.path, camera)
        samples.append(sample_crosstalk(exposed))
        for raw in exposed:
            histograms[raw.quadrant.qid].append(raw_histogram(raw))
        raws += [replace(raw, image=raw.image[:0], overscan=raw.overscan[:0]) for raw in exposed]
    channels = []
    for qid in (1, 2, 3, 4):
        chosen = {kind: _some(by_type[kind], qid, camera) for kind in ("flat", "bias")}
        raws += [replace(raw, image=raw.image[:0], overscan=raw.overscan[:0]) for of in chosen.values() for raw in of]
        channels.append(measure_channel(chosen["flat"], chosen["bias"], histograms[qid]))
    model = build_instrument(channels, samples, raws)
    own_task().store.write_instrument(model)
    figures = {
        "gain": [one.gain for one in channels], "readnoise": [one.readnoise for one in channels],
        "saturate": [one.saturate for one in channels], "crosstalk": model.crosstalk.tolist(),
        "crosstalk_unc": model.crosstalk_unc.tolist(), **model.qa,
        "path": product_path("instrument", model.night, 0, 4 * (ccdid - 1)),
    }  # fmt: skip
    return [Built("instrument", 0, 4 * (ccdid - 1), 0, model.night, model.n_frames, figures)]


def _some(heads: Sequence[PacketHead], qid: int, camera: Camera) -> list[RawQuadrant]:
    """One quadrant of the first packets."""
    found = (raw_of(head.path, qid, camera, aggressors=False) for head in heads[:MAX_TRANSFER_FRAMES])
    return [raw for raw in found if raw is not None]


def _quadrants(path: Path, camera: Camera) -> list[RawQuadrant]:
    """The readable quadrants of a packet."""
    found = []
    for payload in read_packet(path, camera, aggressors=False).quadrants:
        try:
            found.append(read_quadrant(payload.payload, camera))
        except PacketError:
            continue
    return found
