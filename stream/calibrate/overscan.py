"""The floating bias level of every row, from the overscan columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline, make_lsq_spline

from stream.core.records import U16

# The overscan's first columns carry charge trailed from the last image pixels; 20 to 29 are clean and the
# choice of the survey's users (ztf-facts 1.5).
FIRST_COLUMN = 20
ROW_CLIP = 3.0  # sigma within a row: a hit or a bled star in the overscan
CURVE_CLIP = 4.0  # sigma of rows about the curve; looser, the curve has only a dozen parameters
# The drift with the row number is smooth. A cubic spline with a knot every 128 rows follows a drift of tens of
# DN over a read-out and keeps the level's error at 0.05 DN, against 0.5 DN of a single row's ten pixels.
KNOT_ROWS = 128
MIN_ROWS_FOR_CURVE = 32
# Row jitter beyond the read noise is put back only when its variance is this much above what noise alone gives;
# below, the estimate would be noise itself (0.1 DN of jitter against 0.5 DN of noise cannot be seen in one row).
MIN_JITTER_EXCESS = 0.2


@dataclass(frozen=True, slots=True)
class OverscanLevel:
    """``rows`` (ny,) float32 DN to take off each image row; ``level`` its median, ``noise`` DN a pixel."""

    rows: NDArray[np.float32]
    level: float
    noise: float


def overscan_level(overscan: U16) -> OverscanLevel:
    """Bias level of every row: clipped row means, a clipped cubic spline through them, and what jitter exceeds it.

    Parameters
    ----------
    overscan : ndarray, (ny, n_overscan), uint16
        Raw DN, column 0 read first, two columns at least. Columns from 20 on are used; of a narrower overscan the
        last two thirds.

    Returns
    -------
    OverscanLevel

    Notes
    -----
    After the survey's users' default (ztfimg: columns 20 to 30, median, 3-sigma clip, cubic along the rows). The
    row's own deviation from the curve is kept as far as it is more than noise: with measured variance V of the
    deviations and expected variance N of a row mean, a deviation d enters as d (V - N) / V.
    """
    first = FIRST_COLUMN if overscan.shape[1] > FIRST_COLUMN + 1 else overscan.shape[1] // 3
    values = overscan[:, first:].astype(np.float64)
    deviation = values - np.median(values, axis=1, keepdims=True)
    noise = clipped_rms(np.diff(values, axis=1)) / np.sqrt(2)  # neighbours: what is common to a row drops out
    keep = np.abs(deviation) <= max(ROW_CLIP * noise, 1.0)  # without noise there is still the digit
    counts = keep.sum(axis=1)
    rows = np.where(keep, values, 0.0).sum(axis=1) / np.maximum(counts, 1)
    curve = _curve(rows)
    residual = rows - curve
    expected = noise**2 / max(float(counts.mean()), 1.0)
    measured = clipped_rms(residual) ** 2
    if measured > (1 + MIN_JITTER_EXCESS) * expected > 0:
        weight = (measured - expected) / measured
        # A row far off is a bled star in its overscan, not jitter.
        believable = np.abs(residual) <= CURVE_CLIP * np.sqrt(measured)
        curve = curve + weight * np.where(believable, residual, 0.0)
    return OverscanLevel(curve.astype(np.float32), float(np.median(curve)), float(noise))


def clipped_rms(values: NDArray[np.floating]) -> float:
    """Standard deviation about zero of finite values, those beyond 5 sigma left out.

    Not a percentile: raw values are whole DN, and percentiles of them jump by tenths of the answer.
    """
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size:
        return float("nan")
    # A start that outliers cannot move, never below the digit's own scatter.
    sigma = max(1.4826 * float(np.median(np.abs(known))), 0.5)
    for _ in range(3):
        near = known[np.abs(known) <= 5 * sigma]
        sigma = float(np.sqrt(np.mean(near**2))) if near.size else sigma
        if sigma == 0:
            break
    return sigma


def _robust_sigma(values: NDArray[np.float64]) -> float:
    """Standard deviation from the central 68 % of values about zero's median."""
    low, high = np.percentile(values, [15.865, 84.135])
    return float(high - low) / 2


def _curve(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clipped cubic spline through the row levels; a constant where there are too few rows for a curve."""
    ny = len(rows)
    if ny < MIN_ROWS_FOR_CURVE:
        return np.full(ny, np.median(rows))
    place = np.arange(ny, dtype=np.float64)
    inner = np.linspace(0, ny - 1, max(ny // KNOT_ROWS, 1) + 1)[1:-1]
    knots = np.concatenate([np.zeros(4), inner, np.full(4, ny - 1.0)])
    weights = np.ones(ny)
    curve = np.full(ny, np.median(rows))
    for _ in range(3):
        # Beyond a start from the median, rows far off the last curve have no say.
        residual = rows - curve
        sigma = _robust_sigma(residual - np.median(residual))
        weights = np.where(np.abs(residual - np.median(residual)) <= CURVE_CLIP * max(sigma, 0.1), 1.0, 1e-6)
        spline: BSpline = make_lsq_spline(place, rows, knots, k=3, w=weights)
        curve = spline(place)
    return np.asarray(curve, dtype=np.float64)
