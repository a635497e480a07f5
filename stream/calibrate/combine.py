"""Raw calibration frames of one channel: measured, the bad ones left out, the others combined.

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
from stream.core.records import F32, CalibrationFrame, RawQuadrant

MIN_FRAMES = 3  # with two, nobody can say which of them was hit
CLIP = 5.0  # sigma; a hit is far above, and of ten frames of a quadrant 50 good pixels are lost
TRIM_FROM = 3  # frames from which on the highest third of a pixel's values has no say in its scatter
_ROWS = 64
_GRID = 8  # cells a side in which a frame's shape is judged
# A bias that stands off its fellows by more than this (DN) in level or in any cell, or differs in noise by this
# factor, came from an unsettled read-out or had light in it. Good ones agree to some tenths of a DN.
BIAS_TOLERANCE, NOISE_FACTOR = 2.0, 1.4
# A flat is good between these levels (DN): photon noise below 0.6 % a frame, and linear within the table's reach.
FLAT_MIN, FLAT_MAX_OF_SATURATE = 5_000.0, 0.85
FLAT_TOLERANCE = 0.03  # relative, cell by cell: a lamp that flickered, a dome that moved, daylight


@dataclass(frozen=True, slots=True)
class RawFrame:
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


Outliers = Callable[[list[RawFrame]], dict[int, str]]


def select(
    raws: Sequence[RawQuadrant], imgtype: str, bias: CalibrationFrame | None, outliers: Outliers
) -> tuple[list[RawFrame], dict[str, str]]:
    """Measured frames without the bad ones, in order of time, and why the others were left out."""
    raws = sorted(raws, key=lambda raw: (raw.quadrant.exposure.jd, raw.quadrant.exposure.name))
    _refuse_mixture(raws, imgtype, bias)
    rejected: dict[str, str] = {}
    frames: list[RawFrame] = []
    for raw in raws:
        if int(raw.image.min()) == int(raw.image.max()):
            rejected[raw.quadrant.exposure.name] = "constant"
        else:
            frames.append(measured(raw, bias.data if bias is not None else None))
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


def measured(raw: RawQuadrant, bias: F32 | None) -> RawFrame:
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
    return RawFrame(raw, levels, coefficients, bias, float(np.nanmedian(sample)), noise, grid)


def bias_outliers(frames: list[RawFrame]) -> dict[int, str]:
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


def dark_outliers(frames: list[RawFrame]) -> dict[int, str]:
    """Darks that differ from their fellows: index to reason. Cosmic rays are many in them, levels small."""
    return bias_outliers(frames)


def flat_outliers(frames: list[RawFrame]) -> dict[int, str]:
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


@dataclass(frozen=True, slots=True)
class Combined:
    """Frames made one: ``data``, ``unc`` (1 sigma), ``scatter`` of a pixel between the ``n`` frames (its highest third
    left out, where there are three or more), all (ny, nx) float32."""

    data: F32
    unc: F32
    scatter: F32
    n: int


def combine(
    frames: list[RawFrame], scales: NDArray[np.float64], sigma: NDArray[np.float64], *, photons: bool
) -> Combined:
    """Clipped weighted mean of ``frame / scale``, its uncertainty, and the scatter of a pixel between frames.

    Outliers are those beyond 5 sigma of the median of the frames (``sigma``, one a frame, after scaling).
    Weights are inverse variances. A pixel's variance is that of its few accepted values, shrunk towards the expected
    one with the weight of five frames: alone, the variance of five values is uncertain by 70 %. The scatter is of all
    values but the highest third: a particle strikes once or twice, a noisy pixel is noisy in every frame.
    """
    shape = frames[0].raw.image.shape
    data, unc, scatter = (np.empty(shape, np.float32) for _ in range(3))
    weights = (1 / np.maximum(sigma, 1e-6) ** 2).astype(np.float32)
    weights /= weights.sum()
    limits = (CLIP * np.maximum(sigma, 1e-6)).astype(np.float32)[:, None, None]
    expected = np.float32(np.mean(sigma**2))
    for first in range(0, shape[0], _ROWS):
        rows = slice(first, min(first + _ROWS, shape[0]))
        stack = np.stack([frame.block(rows) / np.float32(scale) for frame, scale in zip(frames, scales, strict=True)])
        centre = np.median(stack, axis=0)
        off = stack - centre
        # A flat's noise grows with the root of the response.
        reach = limits * np.sqrt(np.maximum(centre, 1)) if photons else limits
        keep = np.abs(off) <= reach
        kept = keep * weights[:, None, None]
        total = kept.sum(axis=0)
        mean = centre + (off * kept).sum(axis=0) / np.where(total > 0, total, 1)
        count = keep.sum(axis=0, dtype=np.float32)
        squares = (np.square(stack - mean) * keep).sum(axis=0)
        data[rows] = mean
        unc[rows] = np.sqrt((squares + 5 * expected) / (count + 4) / np.maximum(count, 1))
        scatter[rows] = trimmed_scatter(off)
    return Combined(data, unc, scatter, len(frames))


def trimmed_scatter(off: F32) -> F32:
    """Scatter along the first axis (n) of deviations from the median, the highest third left out of three or more."""
    n = len(off)
    if n >= TRIM_FROM:
        off = np.sort(off, axis=0)[: n - n // 3]
    squares: F32 = np.einsum("n...,n...->...", off, off) / np.float32(n - 1)
    return np.sqrt(squares, out=squares)
