"""Cross-talk between the four amplifiers of a CCD: measured from bright stars, taken out pixel by pixel.

The four quadrants of a CCD are read at the same time, and a fixed share (of either sign, up to some 1e-4) of what one
amplifier measures appears in the others at the same read position: a saturated star and its bleed trail leave a ghost
of ten DN. The correction needs only the bright pixels of the other three, which travel with the raw quadrant
(``RawQuadrant.aggressors``); what sky leaves is a constant and goes with the background.

Signals are *measured* DN over the level without stars: cross-talk acts after the amplifier's non-linearity
(``interfaces.md`` §1), so it is taken off before that is undone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.overscan import clipped_rms, overscan_level
from stream.core.camera import read_order, read_position
from stream.core.cells import cell_medians, filled, spread_cells
from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.records import F32, U16, InstrumentModel, RawQuadrant

F64 = NDArray[np.float64]
# A pair of amplifiers that was not measured is not corrected; pixels that so large a coefficient would spoil are
# flagged. Measured ones are "up to some 1e-4".
UNMEASURED = 1e-4
# Bit 13 where what is left may be more than half a sigma of the pixel: less changes nothing that is measured there.
LEFT_SIGMA = 0.5
ADC_MAX = 65_535

# Measuring. Aggressor pixels are used from here on (DN over the sky): fainter ones say nothing and are full of stars'
# wings. As many pixels without any aggressor fix the zero, which faint stars in the victim lift.
FROM_DN = 2_000.0
MAX_SAMPLES = 200_000  # aggressor pixels an exposure and victim; a crowded field has no need of more
SKY_BELOW_DN = 1_000.0  # the victim's sky is taken where no aggressor is brighter
CELL = 32  # px of the victim's local sky
STAR_SIGMA = 4.0  # victim pixels that stand out by more are stars (with room for the cross-talk itself)
TUKEY = 4.685  # of the biweight: 95 % as good as a mean on clean data, blind to stars
MIN_EXPOSURES = 3


@dataclass(frozen=True, slots=True)
class Crosstalk:
    """What other amplifiers added to a quadrant: ``index`` (n,) stored flat index, ascending; ``signal`` (n,) float32
    measured DN; ``unc`` (n,) float32 its 1-sigma uncertainty, for unmeasured pairs what might be there."""

    index: NDArray[np.int64]
    signal: F32
    unc: F32


def crosstalk_of(raw: RawQuadrant, model: InstrumentModel | None) -> Crosstalk:
    """Cross-talk in a quadrant at the read positions of the other quadrants' bright pixels.

    Without a model every signal is 0 and ``unc`` says what an amplifier pair may leave.
    """
    victim = raw.quadrant.qid - 1
    places, signals, variances = [], [], []
    for one in raw.aggressors:
        share, unc = math.nan, UNMEASURED
        if model is not None:
            share, unc = float(model.crosstalk[victim, one.qid - 1]), float(model.crosstalk_unc[victim, one.qid - 1])
        if not (math.isfinite(share) and math.isfinite(unc)):
            share, unc = 0.0, UNMEASURED
        over = one.value.astype(np.float32) - np.float32(one.level)
        # At the converter's ceiling nobody knows how much there was; a third more is plausible.
        doubt = np.where(one.value >= ADC_MAX, np.float32(0.33 * abs(share)), np.float32(0)) + np.float32(unc)
        places.append(read_position(one.index, raw.quadrant.qid, (raw.image.shape[0], raw.image.shape[1])))
        signals.append(np.float32(share) * over)
        variances.append(np.square(doubt * over))
    if not places:
        return Crosstalk(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
    index, inverse = np.unique(np.concatenate(places), return_inverse=True)
    signal = np.bincount(inverse, np.concatenate(signals), len(index)).astype(np.float32)
    spread = np.sqrt(np.bincount(inverse, np.concatenate(variances), len(index))).astype(np.float32)
    return Crosstalk(index, signal, spread)


def flag_crosstalk(mask: U16, data: F32, found: Crosstalk, gain: float, readnoise: float) -> int:
    """Set bit 13 where what cross-talk left may exceed half a sigma of the pixel; returns the number of pixels.

    ``data`` is the calibrated image (DN, sky in), for the noise.
    """
    if not len(found.index):
        return 0
    values = np.maximum(np.nan_to_num(data.reshape(-1)[found.index], nan=0.0), 0)
    noise = np.sqrt(values / np.float32(gain) + np.float32((readnoise / gain) ** 2))
    left = found.index[found.unc > LEFT_SIGMA * noise]
    mask.reshape(-1)[left] |= np.uint16(Mask.CROSSTALK)
    return len(left)


@dataclass(frozen=True, slots=True)
class CrosstalkSample:
    """Victim pixels of one exposure and quadrant: ``residual`` (n,) DN over the local sky, ``signals`` (n, 3) measured
    DN over the sky of the other quadrants in order of qid, ``sigma`` noise of a sky pixel, DN."""

    victim: int  # qid
    residual: F32
    signals: F32
    sigma: float


def sample_crosstalk(raws: Sequence[RawQuadrant]) -> list[CrosstalkSample]:
    """What the four quadrants of one exposure of a CCD say about their cross-talk.

    Parameters
    ----------
    raws : sequence of RawQuadrant
        Two to four quadrants of the same packet.

    Returns
    -------
    list of CrosstalkSample
        One a quadrant; a quadrant that is missing leaves zeros in the others' ``signals``.
    """
    # In read order the same place is the same moment.
    views = {raw.quadrant.qid: _in_read_order(raw) for raw in raws}
    levels = {qid: float(np.median(view[::16, ::16])) for qid, view in views.items()}
    samples = []
    for victim, view in views.items():
        others = [qid for qid in (1, 2, 3, 4) if qid != victim]
        # The victim's sky must not know of the cross-talk: a bright star's would be its own surroundings.
        lit = np.zeros(view.shape, bool)
        for qid in others:
            if qid in views:
                lit |= views[qid] > levels[qid] + SKY_BELOW_DN
        sky = filled(cell_medians(np.where(lit, np.float32(np.nan), view), CELL))
        residual = (view - spread_cells(sky, CELL, (view.shape[0], view.shape[1]))).reshape(-1)
        sigma = clipped_rms(residual[::17])
        places = _places(lit.reshape(-1), residual, STAR_SIGMA * sigma + 2 * UNMEASURED * ADC_MAX)
        signals = np.zeros((len(places), 3), np.float32)
        for column, qid in enumerate(others):
            if qid in views:
                signals[:, column] = views[qid].reshape(-1)[places] - np.float32(levels[qid])
        samples.append(CrosstalkSample(victim, residual[places], signals, sigma))
    return samples


def _places(lit: NDArray[np.bool_], residual: F32, star: float) -> NDArray[np.int64]:
    """Pixels with a bright aggressor and as many without, those with a star of the victim's own left out."""
    chosen = np.flatnonzero(lit)
    chosen = chosen[:: max(1, len(chosen) // MAX_SAMPLES)]
    control = np.arange(7, len(residual), max(1, len(residual) // max(len(chosen), 1000)))
    places = np.union1d(chosen, control)
    return places[np.abs(residual[places]) < star]


def _in_read_order(raw: RawQuadrant) -> F32:
    """Overscan-subtracted DN with the first pixel read at [0, 0]."""
    flip_x, flip_y = read_order(raw.quadrant.qid)
    image = raw.image.astype(np.float32)
    image -= overscan_level(raw.overscan).rows[:, None]
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def measure_crosstalk(exposures: Sequence[Sequence[CrosstalkSample]]) -> tuple[F64, F64, dict[str, object]]:
    """The cross-talk matrix of a CCD from the samples of many exposures.

    Robust regression (Tukey's biweight) of the victims' pixels against the three aggressors at the same read
    position, each exposure with its own zero.

    Returns
    -------
    matrix, unc : ndarray, (4, 4), float64
        [to, from] by qid - 1; NaN where a pair could not be measured, 0 on the diagonal. ``unc`` is the larger of the
        regression's own and the jackknife's over exposures, which knows of what is common to an exposure.
    qa : dict
        ``n_exposures``, ``n_pixels`` (aggressor pixels used).

    Raises
    ------
    CalibrationError
        Fewer than three exposures.
    """
    if len(exposures) < MIN_EXPOSURES:
        raise CalibrationError(
            f"cross-talk from {len(exposures)} exposures: at least {MIN_EXPOSURES} are needed, 20 are good: take more",
            n_exposures=len(exposures),
        )
    matrix, unc = np.full((4, 4), np.nan), np.full((4, 4), np.nan)
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(unc, 0.0)
    n_pixels = 0
    for victim in (1, 2, 3, 4):
        mine = [sample for exposure in exposures for sample in exposure if sample.victim == victim]
        if len(mine) < MIN_EXPOSURES:
            continue
        share, error = _regress(mine)
        columns = [qid - 1 for qid in (1, 2, 3, 4) if qid != victim]
        matrix[victim - 1, columns], unc[victim - 1, columns] = share, error
        n_pixels += sum(int(np.count_nonzero((sample.signals > FROM_DN).any(axis=1))) for sample in mine)
    return matrix, unc, {"n_exposures": len(exposures), "n_pixels": n_pixels}


def _regress(samples: list[CrosstalkSample]) -> tuple[F64, F64]:
    """Coefficients (3,) and uncertainties (3,) of one victim; NaN for an aggressor without bright pixels."""
    share = np.zeros(3)
    for _ in range(8):
        parts = [_normal_equations(sample, share) for sample in samples]
        a, b = np.sum([part[0] for part in parts], axis=0), np.sum([part[1] for part in parts], axis=0)
        new = _solved(a, b)
        if np.nanmax(np.abs(np.nan_to_num(new) - share), initial=0.0) < 1e-8:
            break
        share = np.nan_to_num(new)
    formal = np.sqrt(np.where(np.diag(a) > 0, np.diag(np.linalg.pinv(a)), np.nan))
    left_out = np.array([_solved(a - part[0], b - part[1]) for part in parts])
    n = len(samples)
    jackknife = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))
    return np.where(np.isfinite(formal), new, np.nan), np.fmax(formal, jackknife)


def _solved(a: F64, b: F64) -> F64:
    """Least squares in the columns that have any signal; NaN in the others."""
    solution = np.full(3, np.nan)
    known = np.flatnonzero(np.diag(a) > 0)
    solution[known] = np.linalg.lstsq(a[np.ix_(known, known)], b[known], rcond=None)[0]
    return solution


def _normal_equations(sample: CrosstalkSample, share: F64) -> tuple[F64, F64]:
    """Weighted normal equations (3, 3) and (3,) of one exposure, its zero eliminated, in units of variance."""
    signals, residual = sample.signals.astype(np.float64), sample.residual.astype(np.float64)
    off = residual - signals @ share
    zero = float(np.median(off))
    scale = max(sample.sigma, 0.1)
    for _ in range(2):  # the zero under the weights that it gives
        weights = np.square(np.clip(1 - np.square((off - zero) / (TUKEY * scale)), 0, None))
        zero = float(np.average(off, weights=weights)) if weights.sum() > 0 else zero
    total = max(float(weights.sum()), 1e-12)
    mean_x, mean_y = weights @ signals / total, float(weights @ residual / total)
    centred = signals - mean_x
    a = (centred * weights[:, None]).T @ centred / scale**2
    b = (centred * weights[:, None]).T @ (residual - mean_y) / scale**2
    # A control pixel's own noise is no aggressor: without bright pixels there is nothing to measure.
    lit = (sample.signals > FROM_DN).any(axis=0)
    a[~lit], a[:, ~lit], b[~lit] = 0.0, 0.0, 0.0
    return a, b
