"""Calibration frames of a night: raw biases and dome flats combined, with uncertainty and bad pixels.

Frames are combined in blocks of rows, so that beside the raw frames themselves (uint16) only some tens of MB are
in memory at any time, however many frames there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.linearity import linearise, linearity_coefficients
from stream.calibrate.overscan import clipped_rms, overscan_level
from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.records import F32, U16, CalibrationFrame, RawQuadrant, Row

BIAS_TYPE, FLAT_TYPE = 2, 4  # last digit of a calibration id (ztf-facts §2.1)
MIN_FRAMES = 3  # with two, nobody can say which of them was hit
CLIP = 5.0  # sigma; a hit is far above, and of ten frames of a quadrant 50 good pixels are lost
_ROWS = 64
_GRID = 8  # cells a side in which a frame's shape is judged
# A bias that stands off its fellows by more than this (DN) in level or in any cell, or differs in noise by this
# factor, came from an unsettled read-out or had light in it. Good ones agree to some tenths of a DN.
BIAS_TOLERANCE, NOISE_FACTOR = 2.0, 1.4
# A flat is good between these levels (DN): photon noise below 0.6 % a frame, and linear within the table's reach.
FLAT_MIN, FLAT_MAX_OF_SATURATE = 5_000.0, 0.85
FLAT_TOLERANCE = 0.03  # relative, cell by cell: a lamp that flickered, a dome that moved, daylight
# Bad pixels. Responses are relative to the surroundings (32 px), so that vignetting is none. Pixel-to-pixel
# scatter of these sensors is about 1 %; 20 % off is a defect, below 20 % of response nothing can be corrected.
LOW_RESPONSE, HIGH_RESPONSE, DEAD_RESPONSE = 0.8, 1.2, 0.2
VALUELESS_RESPONSE = 0.05  # NaN: dividing by it would only make numbers up
SURROUNDINGS = 32
NOISY_FACTOR = 3.0  # of the typical pixel's scatter between frames, in variance nine-fold
HOT_SIGMA = 30.0  # a bias pixel that far above its surroundings carries charge that varies with temperature


@dataclass(frozen=True, slots=True)
class _Frame:
    """One raw frame and what its reduction needs; ``grid`` are the medians of cells, DN."""

    raw: RawQuadrant
    rows: NDArray[np.float32]
    coefficients: tuple[float, float]
    bias: F32 | None
    level: float
    noise: float
    grid: NDArray[np.float64]

    def block(self, rows: slice) -> F32:
        """Reduced pixels of some rows."""
        return _reduced(self.raw, self.rows, self.coefficients, self.bias, rows)


def build_bias(raws: Sequence[RawQuadrant]) -> CalibrationFrame:
    """The bias structure of one channel from raw biases of a night.

    Parameters
    ----------
    raws : sequence of RawQuadrant
        At least three biases of the same channel and shape.

    Returns
    -------
    CalibrationFrame
        ``data`` DN over the overscan level, linearised as the images are; ``unc`` its 1-sigma uncertainty;
        ``badpix`` has ``NOISY`` where a pixel scatters three times as much as its fellows (five frames or more)
        or stands 30 sigma out of its surroundings. ``qa``: ``level``, ``noise`` (DN a frame), ``gradient`` (DN,
        largest difference between cells), ``n_frames``, ``n_rejected``, ``rejected`` (name to reason),
        ``n_badpix``.

    Raises
    ------
    CalibrationError
        Mixed channels, shapes or types, or fewer than three good frames.
    """
    frames, rejected = _select(raws, "bias", None, _bias_outliers)
    typical = float(np.median([frame.noise for frame in frames]))
    sigma = np.full(len(frames), typical)
    data, unc, scatter = _combine(frames, np.ones(len(frames)), sigma, photons=False)
    badpix = np.zeros(data.shape, np.uint16)
    noise = float(np.median(scatter[::8, ::8]))
    badpix[_stands_out(data, HOT_SIGMA * max(typical, 0.1))] |= np.uint16(Mask.NOISY)
    if len(frames) >= 5 and noise > 0:
        badpix[scatter > NOISY_FACTOR * noise] |= np.uint16(Mask.NOISY)
    return _frame("bias", frames, rejected, data, unc, badpix)


def build_flat(raws: Sequence[RawQuadrant], bias: CalibrationFrame | None) -> CalibrationFrame:
    """The flat field of one channel and filter from raw dome flats of a night.

    Parameters
    ----------
    raws : sequence of RawQuadrant
        At least three flats of the same channel, filter and shape; levels may differ.
    bias : CalibrationFrame or None
        Bias of the channel; ``None`` leaves its structure in (``qa['notes']`` says so).

    Returns
    -------
    CalibrationFrame
        ``data`` has median 1 and is NaN below 5 % of response; ``badpix`` has ``DEAD``, ``LOW_RESPONSE`` and
        ``HIGH_RESPONSE`` relative to the surroundings. ``qa`` as for a bias, ``gradient`` relative.

    Raises
    ------
    CalibrationError
        Mixed channels, filters, shapes or types, or fewer than three good frames.
    """
    frames, rejected = _select(raws, "flat", bias, _flat_outliers)
    levels = np.array([frame.level for frame in frames])
    gain, readnoise = frames[0].raw.gain, frames[0].raw.readnoise
    sigma = np.sqrt(levels / gain + (readnoise / gain) ** 2) / levels
    data, unc, _ = _combine(frames, levels, sigma, photons=True)
    median = float(np.nanmedian(data))
    data /= np.float32(median)
    unc /= np.float32(median)
    response = data / _surroundings(data)
    badpix = np.zeros(data.shape, np.uint16)
    badpix[(response < LOW_RESPONSE) & (response >= DEAD_RESPONSE)] |= np.uint16(Mask.LOW_RESPONSE)
    badpix[response > HIGH_RESPONSE] |= np.uint16(Mask.HIGH_RESPONSE)
    badpix[~(response >= DEAD_RESPONSE)] |= np.uint16(Mask.DEAD)
    data[~(data >= VALUELESS_RESPONSE)] = np.nan
    return _frame("hifreqflat", frames, rejected, data, unc, badpix, () if bias is not None else ("no_bias",))


Outliers = Callable[[list[_Frame]], dict[int, str]]


def _select(
    raws: Sequence[RawQuadrant], imgtype: str, bias: CalibrationFrame | None, outliers: Outliers
) -> tuple[list[_Frame], dict[str, str]]:
    """Measured frames without the bad ones, in order of time, and why the others were left out."""
    raws = sorted(raws, key=lambda raw: (raw.quadrant.exposure.jd, raw.quadrant.exposure.name))
    _refuse_mixture(raws, imgtype, bias)
    rejected: dict[str, str] = {}
    frames: list[_Frame] = []
    for raw in raws:
        if int(raw.image.min()) == int(raw.image.max()):
            rejected[raw.quadrant.exposure.name] = "constant"
        else:
            frames.append(_measured(raw, bias.data if bias is not None else None))
    reasons = outliers(frames) if len(frames) >= MIN_FRAMES else {}
    rejected |= {frames[i].raw.quadrant.exposure.name: reason for i, reason in reasons.items()}
    good = [frame for i, frame in enumerate(frames) if i not in reasons]
    if len(good) < MIN_FRAMES:
        channel = raws[0].quadrant.rcid if raws else None
        raise CalibrationError(
            f"{imgtype} of channel {channel}: {len(good)} good frames of {len(raws)}, at least {MIN_FRAMES} needed; "
            f"rejected: {rejected or 'none'}: take more",
            rcid=channel, n_frames=len(raws), n_good=len(good),
        )  # fmt: skip
    return good, rejected


def _refuse_mixture(raws: Sequence[RawQuadrant], imgtype: str, bias: CalibrationFrame | None) -> None:
    kinds = {
        (raw.quadrant.exposure.imgtype, raw.quadrant.rcid, raw.image.shape,
         raw.quadrant.exposure.fid if imgtype == "flat" else 0)
        for raw in raws
    }  # fmt: skip
    if len(kinds) > 1 or any(kind[0] != imgtype for kind in kinds):
        raise CalibrationError(
            f"a {imgtype} is made of {imgtype} frames of one channel, filter and shape, got {sorted(kinds)}: sort them",
            n_kinds=len(kinds),
        )
    for _, rcid, shape, _ in kinds:
        if bias is not None and (bias.rcid != rcid or bias.data.shape != shape):
            raise CalibrationError(
                f"bias {bias.calid} of channel {bias.rcid}, shape {bias.data.shape} is not for channel {rcid}, {shape}",
                rcid=rcid,
            )


def _reduced(
    raw: RawQuadrant,
    levels: NDArray[np.float32],
    coefficients: tuple[float, float],
    bias: F32 | None,
    rows: slice,
) -> F32:
    """Overscan, linearity and bias of some rows."""
    block = raw.image[rows].astype(np.float32)
    block -= levels[rows, None]
    linearise(block, *coefficients, np.empty_like(block))
    if bias is not None:
        block -= bias[rows]
    return block


def _measured(raw: RawQuadrant, bias: F32 | None) -> _Frame:
    """A frame with its level, noise and shape, from every eighth row."""
    quadrant = raw.quadrant
    coefficients = linearity_coefficients(quadrant.exposure.ccdid, quadrant.qid, quadrant.exposure.jd)
    levels = overscan_level(raw.overscan).rows
    sample = _reduced(raw, levels, coefficients, bias, slice(0, None, 8))
    noise = clipped_rms(np.diff(sample, axis=1)) / math.sqrt(2)
    ny, nx = sample.shape
    grid = np.array(
        [
            [np.nanmedian(cell) for cell in np.array_split(band, min(_GRID, nx), axis=1)]
            for band in np.array_split(sample, min(_GRID, ny))
        ],
        dtype=np.float64,
    )
    return _Frame(raw, levels, coefficients, bias, float(np.nanmedian(sample)), noise, grid)


def _bias_outliers(frames: list[_Frame]) -> dict[int, str]:
    """Biases that differ from their fellows: index to reason."""
    grid = np.median([frame.grid for frame in frames], axis=0)
    noise = float(np.median([frame.noise for frame in frames]))
    reasons = {}
    for i, frame in enumerate(frames):
        offset = float(np.abs(frame.grid - grid).max())
        if offset > BIAS_TOLERANCE:
            reasons[i] = f"off by {offset:.1f} DN in a part of it"
        elif frame.noise > NOISE_FACTOR * noise or frame.noise * NOISE_FACTOR < noise:
            reasons[i] = f"noise {frame.noise:.2f} DN, the others {noise:.2f}"
    return reasons


def _flat_outliers(frames: list[_Frame]) -> dict[int, str]:
    """Flats of a wrong level, or another shape than their fellows: index to reason."""
    reasons = {}
    for i, frame in enumerate(frames):
        ceiling = FLAT_MAX_OF_SATURATE * frame.raw.saturate
        if not FLAT_MIN <= frame.level <= ceiling:
            reasons[i] = f"level {frame.level:.0f} DN outside {FLAT_MIN:.0f} .. {ceiling:.0f}"
    good = [i for i in range(len(frames)) if i not in reasons]
    if good:
        shape = np.median([frames[i].grid / frames[i].level for i in good], axis=0)
        for i in good:
            offset = float(np.abs(frames[i].grid / frames[i].level / shape - 1).max())
            if not offset <= FLAT_TOLERANCE:
                reasons[i] = f"off by {offset:.1%} in a part of it"
    return reasons


def _combine(
    frames: list[_Frame], scales: NDArray[np.float64], sigma: NDArray[np.float64], *, photons: bool
) -> tuple[F32, F32, F32]:
    """Clipped weighted mean of ``frame / scale``, its uncertainty, and the scatter of a pixel between frames.

    Outliers are those beyond 5 sigma of the median of the frames (``sigma``, one a frame, after scaling).
    Weights are inverse variances. A pixel's variance is that of its few accepted values, shrunk towards the expected
    one with the weight of five frames: alone, the variance of five values is uncertain by 70 %.
    """
    shape = frames[0].raw.image.shape
    data, unc, scatter = (np.empty(shape, np.float32) for _ in range(3))
    weights = (1 / np.maximum(sigma, 1e-6) ** 2).astype(np.float32)
    weights /= weights.sum()
    limits = (CLIP * np.maximum(sigma, 1e-6)).astype(np.float32)[:, None, None]
    expected = float(np.mean(sigma**2))
    for first in range(0, shape[0], _ROWS):
        rows = slice(first, min(first + _ROWS, shape[0]))
        stack = np.stack([frame.block(rows) / np.float32(scale) for frame, scale in zip(frames, scales, strict=True)])
        centre = np.median(stack, axis=0)
        # A flat's noise grows with the root of the response.
        reach = limits * np.sqrt(np.maximum(centre, 1)) if photons else limits
        keep = np.abs(stack - centre) <= reach
        kept = keep * weights[:, None, None]
        total = kept.sum(axis=0)
        mean = np.where(total > 0, (stack * kept).sum(axis=0) / np.where(total > 0, total, 1), centre)
        count = keep.sum(axis=0)
        squares = (np.square(stack - mean) * keep).sum(axis=0)
        data[rows] = mean
        scatter[rows] = np.sqrt(squares / np.maximum(count - 1, 1))
        variance = (squares + 5 * expected) / (count + 4)
        unc[rows] = np.sqrt(variance / np.maximum(count, 1))
    return data, unc, scatter


def _stands_out(data: F32, limit: float) -> NDArray[np.bool_]:
    """Pixels that differ from each of their four neighbours by more than ``limit``, all in the same sense."""
    padded = np.pad(data, 1, mode="reflect") if min(data.shape) > 1 else np.pad(data, 1, mode="edge")
    neighbours = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
    above = data - np.maximum.reduce(neighbours)
    below = np.minimum.reduce(neighbours) - data
    return np.asarray(np.maximum(above, below) > limit)


def _surroundings(flat: F32) -> F32:
    """Medians of 32 x 32 px cells, interpolated between their centres."""
    ny, nx = flat.shape
    cells = max(ny // SURROUNDINGS, 1), max(nx // SURROUNDINGS, 1)
    medians = np.array(
        [
            [np.nanmedian(cell) for cell in np.array_split(band, cells[1], axis=1)]
            for band in np.array_split(flat, cells[0])
        ],
        dtype=np.float32,
    )
    medians = np.where(medians > 0, medians, np.float32(1))  # a dead cell: judged against the frame's median
    y = np.clip((np.arange(ny) + 0.5) / ny * cells[0] - 0.5, 0, cells[0] - 1)
    x = np.clip((np.arange(nx) + 0.5) / nx * cells[1] - 0.5, 0, cells[1] - 1)
    return _bilinear(medians, y, x)


def _bilinear(grid: F32, y: NDArray[np.float64], x: NDArray[np.float64]) -> F32:
    """A grid read at all combinations of fractional rows and columns."""
    along_y = _interpolate(grid, y)
    return np.ascontiguousarray(_interpolate(np.ascontiguousarray(along_y.T), x).T)


def _interpolate(grid: F32, place: NDArray[np.float64]) -> F32:
    base = np.minimum(np.floor(place).astype(int), max(len(grid) - 2, 0))
    fraction = (place - base).astype(np.float32)[:, None]
    after = np.minimum(base + 1, len(grid) - 1)
    return np.asarray(grid[base] * (1 - fraction) + grid[after] * fraction, dtype=np.float32)


def _frame(
    kind: str,
    frames: list[_Frame],
    rejected: dict[str, str],
    data: F32,
    unc: F32,
    badpix: U16,
    notes: tuple[str, ...] = (),
) -> CalibrationFrame:
    """The record, named after its newest raw frame's night."""
    newest = frames[-1].raw.quadrant
    fid = 0 if kind == "bias" else newest.exposure.fid
    last_digit = BIAS_TYPE if kind == "bias" else FLAT_TYPE
    grid = np.mean([frame.grid / (frame.level if kind != "bias" else 1) for frame in frames], axis=0)
    qa: Row = {
        "level": float(np.mean([frame.level for frame in frames])),
        "noise": float(np.median([frame.noise for frame in frames])),
        "gradient": float(grid.max() - grid.min()),
        "n_frames": len(frames),
        "n_rejected": len(rejected),
        "rejected": dict(sorted(rejected.items())),
        "n_badpix": int(np.count_nonzero(badpix)),
        "notes": list(notes),
    }
    return CalibrationFrame(
        kind=kind,
        rcid=newest.rcid,
        fid=fid,
        nid=newest.exposure.nid,
        night=newest.exposure.night,
        data=data,
        unc=unc,
        badpix=badpix,
        n_frames=len(frames),
        calid=f"{newest.exposure.nid}{newest.rcid:02d}{fid:02d}{last_digit}",
        qa=qa,
    )
