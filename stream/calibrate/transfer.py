"""What an amplifier is, told by its own frames: gain and read noise by photon transfer, and where it saturates.

*Gain.* Two flats of the same lamp differ by their noise alone: half of the variance of their difference is
``mean / gain + (readnoise / gain)^2`` in DN^2 (of unequal levels, after scaling both to their mean, each term has its
own factor). Pixel-to-pixel response drops out. The frames are linearised first: the
slope of the amplifier's curve would enter squared. Charge that pushes its neighbours' pixels apart (brighter-fatter)
moves variance into covariance with the neighbours, so the covariances of the eight nearest are added back (on a sensor
without it they add nothing but 0.1 % of noise).

*Read noise.* The same with two biases; the digit's own 1/12 DN^2 is not the amplifier's.

Means and variances are taken in cells over which the lamp is even, with hits clipped, and one channel's cells are
combined by their median, which does not see dust or bad columns.

*Saturation.* Charge over full well fills the next pixel of the column to the same value, so that raw values pile up
there, or at the converter's ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.crosstalk import CrosstalkSample, measure_crosstalk
from stream.calibrate.linearity import linearise, linearity_coefficients
from stream.calibrate.overscan import overscan_level
from stream.core.errors import CalibrationError
from stream.core.records import F32, ChannelFacts, InstrumentModel, RawQuadrant

F64 = NDArray[np.float64]
CELL = 64  # px
CLIP = 5.0  # sigma of a cell: what a Gaussian loses by it is 1e-5 of its variance
DIGIT = 1.0 / 12.0  # DN^2, variance of rounding
FLAT_LEVELS = 2_000.0, 45_000.0  # DN: photon noise far above read noise, linearity within the table's reach
LEVEL_STEP = 0.3  # two flats of a pair differ by less, relatively
# The header's figure is contradicted beyond these (and three sigma): twice what the measurement is to reach.
GAIN_TOLERANCE, READNOISE_TOLERANCE = 0.02, 0.06

PILE_FROM = 30_000  # raw DN; no full well of this camera is lower
PILE_BIN = 16  # DN
PILE_CONTRAST = 6.0  # times the typical bin of the 4,000 DN below
PILE_PIXELS = 200  # in the pile: a single saturated star with its bleed trail
PILE_SIGMA = 4.0  # what belongs to the pile lies within so many of its own sigma


@dataclass(frozen=True, slots=True)
class Noise:
    """Photon transfer of one pair: ``variance`` of a frame (DN^2), its ``error``, and what it is made of:
    ``light / gain + read x (readnoise / gain)^2``, ``light`` in DN."""

    variance: float
    error: float
    light: float = 0.0
    read: float = 1.0


def measure_channel(
    flats: Sequence[RawQuadrant], biases: Sequence[RawQuadrant], science: Sequence[NDArray[np.int64]] = ()
) -> ChannelFacts:
    """Gain, read noise and saturation of one channel.

    Parameters
    ----------
    flats, biases : sequence of RawQuadrant
        Of the channel, in any order; pairs are made of neighbours in time. Two of each at least for a figure.
    science : sequence of ndarray, int64
        ``raw_histogram`` of on-sky frames, for the saturation.

    Returns
    -------
    ChannelFacts
        NaN where the frames do not suffice.

    Raises
    ------
    CalibrationError
        Frames of several channels.
    """
    channels = {raw.quadrant.rcid for raw in (*flats, *biases)}
    if len(channels) > 1:
        raise CalibrationError(f"photon transfer of one channel, got frames of {sorted(channels)}: sort them")
    noise = [_bias_noise(a, b) for a, b in _pairs(biases)]
    read = float(np.median([one.variance for one in noise])) if noise else math.nan
    read_error = _combined_error([one.variance for one in noise], [one.error for one in noise])
    gains, errors = [], []
    for a, b in _pairs(flats):
        one = _flat_noise(a, b)
        if one is None:
            continue
        floor = one.read * (read if math.isfinite(read) else (a.readnoise / a.gain) ** 2 + DIGIT)
        gains.append(one.light / (one.variance - floor))
        errors.append(gains[-1] * math.hypot(one.error, read_error if noise else 0.0) / (one.variance - floor))
    facts = ChannelFacts()
    if gains:
        facts = replace(facts, gain=float(np.median(gains)), gain_unc=_combined_error(gains, errors))
    if noise and read > DIGIT:
        gain = facts.gain if gains else biases[0].gain
        value = gain * math.sqrt(read - DIGIT)
        share = math.hypot(0.5 * read_error / (read - DIGIT), facts.gain_unc / gain if gains else 0.0)
        facts = replace(facts, readnoise=value, readnoise_unc=value * share)
    pile = saturation_level(science)
    return facts if pile is None else replace(facts, saturate=pile[0], saturate_unc=pile[1])


def disagreements(facts: ChannelFacts, gain: float, readnoise: float) -> list[str]:
    """Which of a header's figures (e-/DN, e-) the frames contradict, in words."""
    found = []
    for name, measured, unc, header, tolerance in (
        ("GAIN", facts.gain, facts.gain_unc, gain, GAIN_TOLERANCE),
        ("READNOI", facts.readnoise, facts.readnoise_unc, readnoise, READNOISE_TOLERANCE),
    ):
        if abs(measured - header) > max(tolerance * header, 3 * unc):
            found.append(f"{name} {header:g} in the header, {measured:.3f} +- {unc:.3f} by the frames")
    return found


def _pairs(raws: Sequence[RawQuadrant]) -> list[tuple[RawQuadrant, RawQuadrant]]:
    """Disjoint pairs of neighbours in time and filter."""
    ordered = sorted(raws, key=lambda raw: (raw.quadrant.exposure.fid, raw.quadrant.exposure.jd))
    pairs = zip(ordered[::2], ordered[1::2], strict=False)
    return [(a, b) for a, b in pairs if a.quadrant.exposure.fid == b.quadrant.exposure.fid]


def _combined_error(values: Sequence[float], errors: Sequence[float]) -> float:
    """Uncertainty of the median of a few pairs: what their own errors say, or their scatter if that is more."""
    if not values:
        return math.nan
    n = len(values)
    own = float(np.mean(errors)) * (1.0 if n < 3 else 1.25) / math.sqrt(n)
    scatter = 1.25 * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 2 else 0.0
    return max(own, scatter)


def _reduced(raw: RawQuadrant) -> F32:
    image = raw.image.astype(np.float32)
    image -= overscan_level(raw.overscan).rows[:, None]
    quadrant = raw.quadrant
    coefficients = linearity_coefficients(quadrant.exposure.ccdid, quadrant.qid, quadrant.exposure.jd)
    linearise(image, *coefficients, np.empty_like(image))
    return image


def _bias_noise(first: RawQuadrant, second: RawQuadrant) -> Noise:
    """Noise of a frame from two biases."""
    difference, good = _clipped(_blocks(_reduced(first)) - _blocks(_reduced(second)))
    return _noise(0.5 * _auto(difference, good, 0, 0))


def _flat_noise(first: RawQuadrant, second: RawQuadrant) -> Noise | None:
    """Noise of a frame from two flats; None where their levels are unfit or too different."""
    a, b = (_blocks(_reduced(raw)) for raw in (first, second))
    levels = [float(np.median(frame[:, ::3, ::3])) for frame in (a, b)]
    mean = 0.5 * sum(levels)
    if not FLAT_LEVELS[0] <= mean <= FLAT_LEVELS[1] or abs(levels[0] - levels[1]) > LEVEL_STEP * mean:
        return None
    a *= np.float32(mean / levels[0])
    b *= np.float32(mean / levels[1])
    light = 0.5 * (np.median(a, axis=(1, 2)) + np.median(b, axis=(1, 2)))  # of each cell
    difference, good = _clipped(a - b)
    variance = _auto(difference, good, 0, 0)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        variance = variance + 2 * _auto(difference, good, dy, dx)
    noise = _noise(0.5 * variance * mean / np.maximum(light, 1.0))
    factors = [mean / level for level in levels]
    return replace(noise, light=mean * float(np.mean(factors)), read=float(np.mean(np.square(factors))))


def _clipped(difference: F32) -> tuple[F32, NDArray[np.bool_]]:
    """Cells about their own medians, hits set to zero, and which pixels are none."""
    difference -= np.median(difference, axis=(1, 2), keepdims=True)
    sigma = 1.4826 * np.median(np.abs(difference[:, ::2, ::2]), axis=(1, 2), keepdims=True)
    good = np.abs(difference) < CLIP * np.maximum(sigma, 0.5)
    difference *= good
    return difference, good


def _noise(per_cell: F64) -> Noise:
    value = float(np.median(per_cell))
    spread = 1.4826 * float(np.median(np.abs(per_cell - value)))
    return Noise(value, 1.25 * spread / math.sqrt(len(per_cell)))


def _blocks(image: F32) -> F32:
    """Whole cells, (n, CELL, CELL)."""
    ny, nx = image.shape
    cell = min(CELL, ny, nx)
    rows, columns = ny // cell, nx // cell
    blocks = image[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell).swapaxes(1, 2)
    return np.ascontiguousarray(blocks).reshape(-1, cell, cell)


def _auto(difference: F32, good: NDArray[np.bool_], dy: int, dx: int) -> F64:
    """Covariance of pixels ``dy``, ``dx`` apart in each cell, clipped pixels left out."""
    n = difference.shape[1]
    one = (slice(None), slice(0, n - dy), slice(max(-dx, 0), n - max(dx, 0)))
    other = (slice(None), slice(dy, n), slice(max(dx, 0), n + min(dx, 0)))
    products = np.einsum("nyx,nyx->n", difference[one], difference[other], dtype=np.float64)
    counts = np.einsum("nyx,nyx->n", good[one], good[other], dtype=np.float64)
    return np.asarray(products / np.maximum(counts, 1))


def raw_histogram(raw: RawQuadrant) -> NDArray[np.int64]:
    """Counts of raw values from 0 to 65535 (bias in), the floating level of the rows taken out."""
    level = overscan_level(raw.overscan)
    bright = np.flatnonzero(raw.image.reshape(-1) > PILE_FROM)
    off = level.rows[bright // raw.image.shape[1]] - np.float32(level.level)
    values = np.rint(raw.image.reshape(-1)[bright] - off).astype(np.int64)
    return np.bincount(np.clip(values, 0, 65_535), minlength=65_536)


def saturation_level(histograms: Sequence[NDArray[np.int64]]) -> tuple[float, float] | None:
    """Lower rim of the pile of raw values (DN, bias in) and its uncertainty; None where they do not pile up."""
    if not histograms:
        return None
    counts = np.sum(histograms, axis=0)[: 65_536 // PILE_BIN * PILE_BIN].reshape(-1, PILE_BIN)
    bins = counts.sum(axis=1)
    first = PILE_FROM // PILE_BIN + 4_000 // PILE_BIN
    peak = first + int(np.argmax(bins[first:]))
    below = bins[peak - 4_000 // PILE_BIN : peak - 6]
    around = slice(max((peak - 6) * PILE_BIN, 0), (peak + 7) * PILE_BIN)
    values = np.arange(around.start, min(around.stop, counts.size))
    pile = counts.reshape(-1)[values].astype(np.float64)
    total = float(pile.sum())
    if total < PILE_PIXELS or bins[peak] < PILE_CONTRAST * max(float(np.median(below)), 1.0):
        return None
    centre = float(values[np.argmax(np.convolve(pile, np.ones(5), "same"))])
    width = 4.0
    for _ in range(5):
        near = np.abs(values - centre) <= PILE_SIGMA * max(width, 1.0)
        weight = pile * near
        centre = float(np.average(values, weights=weight))
        width = float(np.sqrt(np.average((values - centre) ** 2, weights=weight)))
    return centre - PILE_SIGMA * max(width, 1.0), max(width, 0.5) / math.sqrt(total) * 3


def build_instrument(
    channels: Sequence[ChannelFacts], samples: Sequence[Sequence[CrosstalkSample]], raws: Sequence[RawQuadrant]
) -> InstrumentModel:
    """What was measured about one CCD as one record.

    Parameters
    ----------
    channels : sequence of ChannelFacts
        Four, by qid.
    samples : sequence of sequences of CrosstalkSample
        By exposure; too few leave the matrix unknown.
    raws : sequence of RawQuadrant
        At least one frame of each sort that was used: names the CCD, the headers' figures, and the newest exposure.
    """
    one, two, three, four = channels
    try:
        matrix, unc, qa = measure_crosstalk(samples)
    except CalibrationError as error:
        matrix, unc, qa = np.full((4, 4), np.nan), np.full((4, 4), np.nan), {"no_crosstalk": str(error)}
    newest = max((raw.quadrant.exposure for raw in raws), key=lambda exposure: exposure.jd)
    headers = {raw.quadrant.qid: (raw.gain, raw.readnoise) for raw in raws}
    disagree = {
        str(qid): found
        for qid, header in sorted(headers.items())
        if (found := disagreements(channels[qid - 1], *header))
    }
    qa |= {"jd_end": newest.jd, "header_disagrees": disagree}
    return InstrumentModel(newest.ccdid, newest.nid, newest.night, (one, two, three, four), matrix, unc, len(raws), qa)
