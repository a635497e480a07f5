"""One raw quadrant to a calibrated image with its mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.crosstalk import Crosstalk, crosstalk_of, flag_crosstalk
from stream.calibrate.fringe import remove_fringe
from stream.calibrate.linearity import linearise, linearised, linearity_coefficients
from stream.calibrate.overscan import OverscanLevel, overscan_level
from stream.calibrate.spikes import flag_spikes
from stream.calibrate.transfer import GAIN_TOLERANCE, READNOISE_TOLERANCE
from stream.core import pocket
from stream.core.camera import read_order
from stream.core.errors import CalibrationError
from stream.core.flags import Info, Mask
from stream.core.records import (
    F32,
    U16,
    CalibratedImage,
    CalibrationFrame,
    CalibrationSet,
    ChannelFacts,
    PixelMask,
    Quadrant,
    RawQuadrant,
)

_ROWS = 64  # rows at a time: what is worked on stays in the second-level cache
# More than this without light or above the ceiling and there is no sky left to measure. INFOBITS 2 already says
# "more than half"; such an image is still made.
MAX_SATURATED = 0.95
MAX_UNUSABLE = 0.95
SATURATED_INFO_FRACTION = 0.5  # INFOBITS bit 2, as in real headers
# The shutter's map is applied where it changes any pixel by more than this: half a mmag.
SHUTTER_MATTERS = 5e-4
FRINGED_FILTER = 3  # i: the night sky's OH lines interfere in the sensor


@dataclass(frozen=True, slots=True)
class CalibrateSettings:
    """``pocket``: undo the pocket effect with the published parameters (0.8 s a quadrant; off, as the survey's own
    products are made without). ``max_age``: days after which a bias or flat is called old in the notes."""

    pocket: bool = False
    max_age: float = 3.0


def calibrate(raw: RawQuadrant, frames: CalibrationSet, settings: CalibrateSettings | None = None) -> CalibratedImage:
    """Take the instrument out of a quadrant, last effect first (``stream.calibrate``), then tag what is not to trust.

    Parameters
    ----------
    raw : RawQuadrant
    frames : CalibrationSet
        What is known of this channel; what is ``None`` is left out and named in ``notes``.
    settings : CalibrateSettings, optional

    Returns
    -------
    CalibratedImage
        ``data`` in DN with the sky in, NaN (and mask bit 10) where there is no value. ``saturate`` is the raw
        ceiling (the header's, or where pixels really pile up) on the way of a pixel of median bias and flat.
        ``gain`` and ``readnoise`` are the header's unless the channel's own frames contradict them. ``notes``:
        ``no_bias``, ``no_flat``, ``no_fringe`` (i), ``no_crosstalk`` (aggressors came, no matrix), ``no_aggressors``
        (the other way round), ``old_bias``, ``old_flat``, ``gain_from_frames``, ``readnoise_from_frames``, ``shutter``
        and ``pocket`` where these were corrected.

    Raises
    ------
    CalibrationError
        All pixels are equal, nearly all saturated, or nearly none has a value; or a frame does not belong to this
        channel.
    """
    settings = settings or CalibrateSettings()
    quadrant = raw.quadrant
    _check_frames(frames, raw)
    facts = ChannelFacts() if frames.instrument is None else frames.instrument.channels[quadrant.qid - 1]
    gain, readnoise, notes = _amplifier(raw, facts)
    ceiling = float(np.fmin(raw.saturate, facts.saturate))
    saturated = _refuse_hopeless(raw, ceiling)
    level = overscan_level(raw.overscan)
    a, b = linearity_coefficients(quadrant.exposure.ccdid, quadrant.qid, quadrant.exposure.jd)
    crosstalk = crosstalk_of(raw, frames.instrument)
    shutter = _shutter_factor(frames.shutter, quadrant.exposure.exptime)
    trap = pocket.pocket_of(quadrant.exposure.ccdid, quadrant.qid) if settings.pocket else None
    data, mask = _reduce(raw, _Steps(level, (a, b), crosstalk, frames, trap, gain, shutter))
    finite = 1.0 - np.count_nonzero(mask & Mask.NAN) / mask.size
    if finite < 1.0 - MAX_UNUSABLE:
        raise CalibrationError(
            f"{quadrant.name}: only {finite:.1%} of the pixels have a value after calibration: check the bias and flat",
            **_context(quadrant, finite=finite),
        )
    _grow_saturation(mask, saturated)
    if frames.fringe is not None:
        remove_fringe(data, mask, frames.fringe.data)
    flag_crosstalk(mask, data, crosstalk, gain, readnoise)
    flag_spikes(data, mask, gain, readnoise, frames.flat.data if frames.flat else None)
    top = linearised(ceiling - level.level, a, b)
    if frames.bias is not None:
        top -= float(np.nanmedian(frames.bias.data[::16, ::16]))
    notes += _missing(raw, frames) + (("shutter",) if shutter is not None else ()) + (("pocket",) if trap else ())
    ages = {frame.kind: age_of(frame, quadrant) for frame in (frames.bias, frames.flat) if frame is not None}
    old = {"bias": "old_bias", "hifreqflat": "old_flat"}
    notes += tuple(old[kind] for kind, age in ages.items() if age > settings.max_age)
    return CalibratedImage(
        quadrant=quadrant,
        data=data,
        mask=mask,
        gain=gain,
        readnoise=readnoise,
        saturate=top,
        overscan_level=level.level,
        calids=_calids(frames),
        notes=notes,
        age=max(ages.values(), default=float("nan")),
    )


def age_of(frame: CalibrationFrame, quadrant: Quadrant) -> float:
    """Days from the frame's newest exposure to this one; whole nights where the frame does not say when that was."""
    taken = frame.qa.get("jd_end")
    return float(quadrant.exposure.jd - taken if taken is not None else quadrant.exposure.nid - frame.nid)


def _calids(frames: CalibrationSet) -> tuple[str, ...]:
    """Identifiers of what was used, the survey's four first."""
    used = (frames.bias, frames.flat, frames.loflat, frames.pixelmask, frames.fringe, frames.shutter)
    return tuple(frame.calid for frame in used if frame is not None)


def _amplifier(raw: RawQuadrant, facts: ChannelFacts) -> tuple[float, float, tuple[str, ...]]:
    """Gain and read noise to use, and notes where they are not the header's."""
    notes: tuple[str, ...] = ()
    gain, readnoise = raw.gain, raw.readnoise
    if abs(facts.gain - gain) > max(GAIN_TOLERANCE * gain, 3 * facts.gain_unc):
        gain, notes = facts.gain, (*notes, "gain_from_frames")
    if abs(facts.readnoise - readnoise) > max(READNOISE_TOLERANCE * readnoise, 3 * facts.readnoise_unc):
        readnoise, notes = facts.readnoise, (*notes, "readnoise_from_frames")
    return gain, readnoise, notes


def _missing(raw: RawQuadrant, frames: CalibrationSet) -> tuple[str, ...]:
    """Notes on what could not be corrected."""
    known = frames.instrument is not None and bool(np.isfinite(frames.instrument.crosstalk).any())
    cases = (
        ("no_bias", frames.bias is None),
        ("no_flat", frames.flat is None),
        ("no_fringe", frames.fringe is None and raw.quadrant.exposure.fid == FRINGED_FILTER),
        ("no_crosstalk", bool(raw.aggressors) and not known),
        ("no_aggressors", known and not raw.aggressors),
    )
    return tuple(note for note, case in cases if case)


def _shutter_factor(frame: CalibrationFrame | None, exptime: float) -> F32 | None:
    """EXPTIME over a pixel's own exposure time; None where that changes nothing."""
    if frame is None or exptime <= 0:
        return None
    worst = float(np.nanmax(np.abs(frame.data[::8, ::8]))) / exptime
    if worst < SHUTTER_MATTERS:
        return None
    return (exptime / (exptime + frame.data)).astype(np.float32, copy=False)


def saturated_fraction(mask: U16) -> float:
    """Fraction (0..1) of pixels with the saturation bit."""
    return float(np.count_nonzero(mask & np.uint16(Mask.SATURATED))) / mask.size


def saturation_infobits(mask: U16) -> int:
    """INFOBITS contribution of the mask: bit 2 where more than half of the pixels are saturated."""
    return int(Info.SATURATION) if saturated_fraction(mask) > SATURATED_INFO_FRACTION else 0


def _context(quadrant: Quadrant, **figures: float) -> dict[str, object]:
    return {"rid": quadrant.rid, "rcid": quadrant.rcid, "field": quadrant.exposure.field, **figures}


def _check_frames(frames: CalibrationSet, raw: RawQuadrant) -> None:
    """Refuse a frame that is not of this channel, size and (a flat) filter."""
    quadrant = raw.quadrant
    parts: list[tuple[CalibrationFrame | PixelMask, NDArray[np.generic], str]] = [
        (frame, frame.data, frame.kind)
        for frame in (frames.bias, frames.flat, frames.loflat, frames.fringe, frames.shutter)
        if frame is not None
    ]
    if frames.pixelmask is not None:
        parts.append((frames.pixelmask, frames.pixelmask.mask, "pixel mask"))
    for frame, pixels, kind in parts:
        fits_filter = frame.fid in (0, quadrant.exposure.fid) or quadrant.exposure.imgtype != "object"
        if frame.rcid != quadrant.rcid or pixels.shape != raw.image.shape or not fits_filter:
            raise CalibrationError(
                f"{quadrant.name}: {kind} {frame.calid} (channel {frame.rcid}, filter {frame.fid}, shape "
                f"{pixels.shape}) is not for channel {quadrant.rcid}, filter {quadrant.exposure.fid}, shape "
                f"{raw.image.shape}: look up the frame again",
                **_context(quadrant, frame_rcid=frame.rcid),
            )
    if frames.instrument is not None and frames.instrument.ccdid != quadrant.exposure.ccdid:
        raise CalibrationError(
            f"{quadrant.name}: instrument model of CCD {frames.instrument.ccdid} is not for this CCD",
            **_context(quadrant, ccdid=frames.instrument.ccdid),
        )
    if frames.persistent is not None and frames.persistent.shape != raw.image.shape:
        raise CalibrationError(
            f"{quadrant.name}: persistent artefacts of shape {frames.persistent.shape}, the image is {raw.image.shape}",
            **_context(quadrant),
        )


def _refuse_hopeless(raw: RawQuadrant, ceiling_dn: float) -> NDArray[np.intp]:
    """Flat indices of saturated pixels; raises where no image could come of it."""
    quadrant, image = raw.quadrant, raw.image
    if image.size == 0 or raw.overscan.shape[0] != image.shape[0] or raw.overscan.shape[1] < 3:
        raise CalibrationError(
            f"{quadrant.name}: image {image.shape} and overscan {raw.overscan.shape} do not belong together",
            **_context(quadrant),
        )
    low, high = int(image.min()), int(image.max())
    if low == high:
        raise CalibrationError(
            f"{quadrant.name}: every pixel is {low} DN: the amplifier was not read, check the detector",
            **_context(quadrant, value=low),
        )
    ceiling = np.uint16(min(np.ceil(ceiling_dn), 65_535))
    saturated = np.flatnonzero(image.ravel() >= ceiling) if high >= ceiling else np.empty(0, np.intp)
    fraction = len(saturated) / image.size
    if fraction > MAX_SATURATED:
        raise CalibrationError(
            f"{quadrant.name}: {fraction:.1%} of the pixels are saturated (>= {ceiling} DN): twilight or a lamp?",
            **_context(quadrant, saturated=fraction),
        )
    return saturated


@dataclass(frozen=True, slots=True)
class _Steps:
    """What the pixels go through."""

    level: OverscanLevel
    coefficients: tuple[float, float]
    crosstalk: Crosstalk
    frames: CalibrationSet
    trap: pocket.Pocket | None
    gain: float
    shutter: F32 | None


def _reduce(raw: RawQuadrant, steps: _Steps) -> tuple[F32, U16]:
    """Pixels in one pass over memory, a few rows at a time, and the mask of the frames' defects and NaN."""
    ny, nx = raw.image.shape
    data = np.empty((ny, nx), np.float32)
    mask = np.zeros((ny, nx), np.uint16)
    scratch = np.empty((_ROWS, nx), np.float32)
    frames, found = steps.frames, steps.crosstalk
    bounds = np.searchsorted(found.index, np.arange(0, ny + _ROWS, _ROWS) * nx)
    divisors = [frame.data for frame in (frames.flat, frames.loflat) if frame is not None]
    defects = [frame.badpix for frame in (frames.bias, frames.flat, frames.loflat) if frame is not None]
    defects += [] if frames.pixelmask is None else [frames.pixelmask.mask]
    defects += [] if frames.persistent is None else [frames.persistent]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for number, first in enumerate(range(0, ny, _ROWS)):
            rows = slice(first, min(first + _ROWS, ny))
            block = data[rows]
            np.subtract(raw.image[rows], steps.level.rows[rows, None], out=block, dtype=np.float32)
            of_block = slice(bounds[number], bounds[number + 1])
            block.reshape(-1)[found.index[of_block] - first * nx] -= found.signal[of_block]
            linearise(block, *steps.coefficients, scratch[: len(block)])
            if frames.bias is not None:
                block -= frames.bias.data[rows]
            if steps.trap is not None:
                _without_pocket(block, steps.trap, steps.gain, raw.quadrant.qid)
            for divisor in divisors:
                block /= divisor[rows]
            if steps.shutter is not None:
                block *= steps.shutter[rows]
            for bits in defects:
                mask[rows] |= bits[rows]
            finite = np.isfinite(block)
            if not finite.all():
                block[~finite] = np.nan
                mask[rows][~finite] |= np.uint16(Mask.NAN)
    return data, mask


def _without_pocket(block: F32, trap: pocket.Pocket, gain: float, qid: int) -> None:
    """Undo the pocket effect of some rows in place; pockets act on electrons, along the row as it is read."""
    order = slice(None, None, -1) if read_order(qid)[0] else slice(None)
    block[:, order] = pocket.restore(block[:, order] * np.float32(gain), trap) / np.float32(gain)


def _grow_saturation(mask: U16, saturated: NDArray[np.intp]) -> None:
    """Set bit 8 on saturated pixels, the ring of one pixel about them, and one more along the column.

    Charge over full well runs along the column, and the last pixel of the run is filled only in part: it reads
    below the ceiling and is still wrong. Sideways, the next pixel took trailed and spilt charge.
    """
    if not len(saturated):
        return
    ny, nx = mask.shape
    bits = mask.reshape(-1)
    y, x = np.divmod(saturated, nx)
    for dy in (-2, -1, 0, 1, 2):
        for dx in (-1, 0, 1) if abs(dy) < 2 else (0,):
            inside = (y + dy >= 0) & (y + dy < ny) & (x + dx >= 0) & (x + dx < nx)
            bits[saturated[inside] + (dy * nx + dx)] |= np.uint16(Mask.SATURATED)
