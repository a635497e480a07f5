"""One raw quadrant to a calibrated image with its mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.linearity import linearise, linearised, linearity_coefficients
from stream.calibrate.overscan import OverscanLevel, overscan_level
from stream.calibrate.spikes import flag_spikes
from stream.core.errors import CalibrationError
from stream.core.flags import Info, Mask
from stream.core.records import F32, U16, CalibratedImage, CalibrationFrame, CalibrationSet, Quadrant, RawQuadrant

_ROWS = 64  # rows at a time: what is worked on stays in the second-level cache
# More than this without light or above the ceiling and there is no sky left to measure. INFOBITS 2 already says
# "more than half"; such an image is still made.
MAX_SATURATED = 0.95
MAX_UNUSABLE = 0.95
SATURATED_INFO_FRACTION = 0.5  # INFOBITS bit 2, as in real headers


def calibrate(raw: RawQuadrant, frames: CalibrationSet) -> CalibratedImage:
    """Take the instrument out of a quadrant: overscan, linearity, bias, flat, then tag what cannot be trusted.

    Parameters
    ----------
    raw : RawQuadrant
    frames : CalibrationSet
        Bias and flat of this channel; what is ``None`` is left out and named in ``notes``.

    Returns
    -------
    CalibratedImage
        ``data`` in DN with the sky in, NaN (and mask bit 10) where there is no value. ``saturate`` is the raw
        ceiling on the way of a pixel of median bias and flat. ``notes``: ``no_bias``, ``no_flat``.

    Raises
    ------
    CalibrationError
        All pixels are equal, nearly all saturated, or nearly none has a value; or a frame does not belong to this
        channel.
    """
    quadrant = raw.quadrant
    bias, flat = _checked_frame(frames.bias, raw), _checked_frame(frames.flat, raw)
    saturated = _refuse_hopeless(raw)
    level = overscan_level(raw.overscan)
    a, b = linearity_coefficients(quadrant.exposure.ccdid, quadrant.qid, quadrant.exposure.jd)
    data, mask = _reduce(raw, level, (a, b), bias, flat)
    finite = 1.0 - np.count_nonzero(mask & Mask.NAN) / mask.size
    if finite < 1.0 - MAX_UNUSABLE:
        raise CalibrationError(
            f"{quadrant.name}: only {finite:.1%} of the pixels have a value after calibration: check the bias and flat",
            **_context(quadrant, finite=finite),
        )
    _grow_saturation(mask, saturated)
    flag_spikes(data, mask, raw.gain, raw.readnoise, flat.data if flat else None)
    ceiling = linearised(raw.saturate - level.level, a, b)
    if bias is not None:
        ceiling -= float(np.nanmedian(bias.data[::16, ::16]))
    return CalibratedImage(
        quadrant=quadrant,
        data=data,
        mask=mask,
        gain=raw.gain,
        readnoise=raw.readnoise,
        saturate=ceiling,
        overscan_level=level.level,
        calids=tuple(frame.calid for frame in (bias, flat) if frame is not None),
        notes=tuple(note for note, frame in (("no_bias", bias), ("no_flat", flat)) if frame is None),
    )


def saturated_fraction(mask: U16) -> float:
    """Fraction (0..1) of pixels with the saturation bit."""
    return float(np.count_nonzero(mask & np.uint16(Mask.SATURATED))) / mask.size


def saturation_infobits(mask: U16) -> int:
    """INFOBITS contribution of the mask: bit 2 where more than half of the pixels are saturated."""
    return int(Info.SATURATION) if saturated_fraction(mask) > SATURATED_INFO_FRACTION else 0


def _context(quadrant: Quadrant, **figures: float) -> dict[str, object]:
    return {"rid": quadrant.rid, "rcid": quadrant.rcid, "field": quadrant.exposure.field, **figures}


def _checked_frame(frame: CalibrationFrame | None, raw: RawQuadrant) -> CalibrationFrame | None:
    """The frame, if it is one of this channel, size and (a flat) filter."""
    if frame is None:
        return None
    quadrant = raw.quadrant
    fits_filter = frame.fid in (0, quadrant.exposure.fid) or quadrant.exposure.imgtype != "object"
    if frame.rcid != quadrant.rcid or frame.data.shape != raw.image.shape or not fits_filter:
        raise CalibrationError(
            f"{quadrant.name}: {frame.kind} {frame.calid} (channel {frame.rcid}, filter {frame.fid}, shape "
            f"{frame.data.shape}) is not for channel {quadrant.rcid}, filter {quadrant.exposure.fid}, shape "
            f"{raw.image.shape}: look up the frame again",
            **_context(quadrant, frame_rcid=frame.rcid),
        )
    return frame


def _refuse_hopeless(raw: RawQuadrant) -> NDArray[np.intp]:
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
    ceiling = np.uint16(min(np.ceil(raw.saturate), 65_535))
    saturated = np.flatnonzero(image.ravel() >= ceiling) if high >= ceiling else np.empty(0, np.intp)
    fraction = len(saturated) / image.size
    if fraction > MAX_SATURATED:
        raise CalibrationError(
            f"{quadrant.name}: {fraction:.1%} of the pixels are saturated (>= {ceiling} DN): twilight or a lamp?",
            **_context(quadrant, saturated=fraction),
        )
    return saturated


def _reduce(
    raw: RawQuadrant,
    level: OverscanLevel,
    coefficients: tuple[float, float],
    bias: CalibrationFrame | None,
    flat: CalibrationFrame | None,
) -> tuple[F32, U16]:
    """Pixels in one pass over memory, a few rows at a time, and the mask of the frames' defects and NaN."""
    ny, nx = raw.image.shape
    data = np.empty((ny, nx), np.float32)
    mask = np.zeros((ny, nx), np.uint16)
    scratch = np.empty((_ROWS, nx), np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for first in range(0, ny, _ROWS):
            rows = slice(first, min(first + _ROWS, ny))
            block = data[rows]
            block[...] = raw.image[rows]
            block -= level.rows[rows, None]
            linearise(block, *coefficients, scratch[: len(block)])
            if bias is not None:
                block -= bias.data[rows]
                mask[rows] |= bias.badpix[rows]
            if flat is not None:
                block /= flat.data[rows]
                mask[rows] |= flat.badpix[rows]
            finite = np.isfinite(block)
            if not finite.all():
                block[~finite] = np.nan
                mask[rows][~finite] |= np.uint16(Mask.NAN)
    return data, mask


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
