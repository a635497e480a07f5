"""Fringes in i: light of the night sky's OH lines interferes in the thin sensor and makes a pattern of fixed shape.

The pattern stays, its strength follows the sky's lines, not its brightness: every image has its own amplitude, fitted
where there are no stars. The pattern is learned from many exposures of different fields (``build_fringe``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.cells import cell_means, cell_medians, filled, spread_cells
from stream.core.errors import CalibrationError
from stream.core.flags import BAD_BITS
from stream.core.instrument import calid_of
from stream.core.records import F32, U16, CalibratedImage, CalibrationFrame, Exposure, Row

F64 = NDArray[np.float64]
CELL = 16  # px: fringes are broader, and medians of cells do not see stars
DEGREE = 2  # of the sky's polynomial over a quadrant; fringes may be as long as 500 px, so no finer sky is taken out
STAR_SIGMA = 3.0
MIN_CELLS = 200
# A fitted amplitude below so many of its own sigma is noise.
SIGNIFICANT = 3.0
# Learning: fringes are some ten px wide at least; with cells of 4 px a hundred exposures fit into memory.
BIN = 4
MIN_EXPOSURES = 5
# What every exposure of one field shares is its stars' light too: a frame of one field moved zero points by 17 mmag.
MIN_FIELDS = 3
OUTLIER_SIGMA = 4.0


def fringe_amplitude(data: F32, mask: U16, fringe: F32) -> tuple[float, float]:
    """Amplitude of a fringe pattern in an image and its uncertainty.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        Calibrated image (DN, sky in).
    mask : ndarray, (ny, nx), uint16
        Bad pixels have no say.
    fringe : ndarray, (ny, nx), float32
        Pattern.

    Returns
    -------
    amplitude, unc : float
        DN per unit of the pattern; NaN where there are too few clean pixels.
    """
    cells = cell_medians(np.where((mask & BAD_BITS) == 0, data, np.float32(np.nan)), CELL)
    shape = cell_means(fringe, CELL)
    use = np.isfinite(cells) & np.isfinite(shape)
    if np.count_nonzero(use) < MIN_CELLS:
        return math.nan, math.nan
    design = np.column_stack([_polynomial(cells.shape)[use.ravel()], shape[use].astype(np.float64)])
    solution, sigma, kept = _clipped_fit(design, cells[use].astype(np.float64))
    normal = design[kept].T @ design[kept]
    if np.linalg.matrix_rank(normal) < normal.shape[0]:  # no pattern, or one that is all sky
        return math.nan, math.nan
    return float(solution[-1]), sigma * math.sqrt(float(np.linalg.inv(normal)[-1, -1]))


def _polynomial(shape: tuple[int, ...]) -> F64:
    """Terms of the sky's polynomial (n, terms) at the places of a grid."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    terms = [(x**i * y**j).ravel() for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    return np.stack(terms, axis=1)


def _clipped_fit(design: F64, values: F64) -> tuple[F64, float, NDArray[np.bool_]]:
    """Least squares without outliers: solution, scatter, and which values it is of."""
    keep = np.ones(len(values), bool)
    for _ in range(5):
        solution = np.asarray(np.linalg.lstsq(design[keep], values[keep], rcond=None)[0], np.float64)
        off = values - design @ solution
        sigma = 1.4826 * float(np.median(np.abs(off[keep])))
        keep = np.abs(off) <= STAR_SIGMA * max(sigma, 1e-6)
    return solution, sigma, keep


def remove_fringe(data: F32, mask: U16, fringe: F32) -> float:
    """Take the fitted pattern off an image, in place; returns the amplitude (DN), 0 where it is not significant."""
    amplitude, unc = fringe_amplitude(data, mask, fringe)
    if not amplitude > SIGNIFICANT * unc:
        return 0.0
    scratch = np.empty((64, data.shape[1]), np.float32)
    for first in range(0, len(data), 64):
        rows = slice(first, first + 64)
        part = np.multiply(fringe[rows], np.float32(amplitude), out=scratch[: len(data[rows])])
        np.nan_to_num(part, copy=False)
        data[rows] -= part
    return amplitude


def fringe_residual(data: F32, mask: U16) -> F32:
    """An image without its sky and sources, for learning the pattern: (ny, nx) float32 DN, NaN on sources and bad
    pixels."""
    clean = np.where((mask & BAD_BITS) == 0, data, np.float32(np.nan))
    cells = filled(cell_medians(clean, CELL))
    design = _polynomial(cells.shape)
    solution = _clipped_fit(design, cells.ravel().astype(np.float64))[0]
    shape = data.shape[0], data.shape[1]
    over = clean - spread_cells(cells, CELL, shape)  # stars stand out of their cell, fringes do not
    sigma = 1.4826 * float(np.nanmedian(np.abs(over[::5, ::5])))
    clean[~(np.abs(over) <= STAR_SIGMA * sigma)] = np.nan
    clean -= spread_cells((design @ solution).reshape(cells.shape).astype(np.float32), CELL, shape)
    return _without_neighbours(clean)


def _without_neighbours(image: F32) -> F32:
    """NaN grown by one pixel: a star's rim stays below the threshold that its core exceeds."""
    known = np.isnan(image)
    grown: NDArray[np.bool_] = known.copy()
    grown[1:] |= known[:-1]
    grown[:-1] |= known[1:]
    grown[:, 1:] |= known[:, :-1]
    grown[:, :-1] |= known[:, 1:]
    image[grown] = np.nan
    return image


@dataclass(frozen=True, slots=True)
class FringeSample:
    """What one exposure in i shows of the fringes: ``pattern`` (cells of 4 px, NaN on sources) in DN."""

    exposure: Exposure
    rcid: int
    shape: tuple[int, int]
    pattern: F32


def fringe_sample(image: CalibratedImage) -> FringeSample:
    """The fringes of one calibrated exposure, its sky and sources taken out."""
    residual = fringe_residual(image.data, image.mask)
    shape = image.data.shape[0], image.data.shape[1]
    return FringeSample(image.quadrant.exposure, image.quadrant.rcid, shape, cell_means(residual, BIN))


def build_fringe(samples: Sequence[FringeSample]) -> CalibrationFrame:
    """The fringe pattern of one channel from many exposures.

    The strongest pattern that all exposures share, each with its own amplitude (a decomposition of rank one, found by
    alternation, values off by 4 sigma left out). Exposures of different fields are what tells fringes from stars.

    Parameters
    ----------
    samples : sequence of FringeSample
        Five at least of three fields or more, of one channel, calibrated without a fringe frame.

    Returns
    -------
    CalibrationFrame
        ``data`` of r.m.s. 1; ``qa``: ``amplitudes`` (name to DN), ``noise`` (DN of an exposure per cell), ``cell``.

    Raises
    ------
    CalibrationError
        Too few exposures or fields, or several channels.
    """
    n_fields = len({one.exposure.field for one in samples})
    if len(samples) < MIN_EXPOSURES or len({(one.rcid, one.exposure.fid) for one in samples}) > 1:
        raise CalibrationError(
            f"a fringe frame is made of {MIN_EXPOSURES} or more exposures of one channel and filter, "
            f"got {len(samples)}: take more",
            n_frames=len(samples),
        )
    if n_fields < MIN_FIELDS:
        raise CalibrationError(
            f"a fringe frame needs exposures of {MIN_FIELDS} fields or more, got {n_fields}: the stars of one field "
            "would stay in it; name exposures of other fields",
            n_frames=len(samples),
        )
    samples = sorted(samples, key=lambda one: (one.exposure.jd, one.exposure.name))
    stack = np.stack([one.pattern for one in samples])
    known = ~np.isnan(stack)
    stack = np.where(known, stack, np.float32(0))
    amplitudes = np.ones(len(stack), np.float32)
    keep = known.copy()
    for _ in range(6):
        weight = np.einsum("kyx,k->yx", keep, amplitudes**2)
        pattern = np.einsum("kyx,kyx,k->yx", stack, keep, amplitudes) / np.maximum(weight, 1e-12)
        pattern /= max(float(np.sqrt(np.mean(pattern**2))), 1e-12)
        power = np.einsum("kyx,yx->k", keep, pattern**2)
        amplitudes = (np.einsum("kyx,kyx,yx->k", stack, keep, pattern) / np.maximum(power, 1e-12)).astype(np.float32)
        off = stack - amplitudes[:, None, None] * pattern
        noise = 1.4826 * float(np.median(np.abs(off[known])))
        keep = known & (np.abs(off) <= OUTLIER_SIGMA * noise)
    newest, shape = samples[-1], samples[-1].shape
    unc = noise / np.sqrt(np.maximum(np.einsum("kyx,k->yx", keep, amplitudes**2), 1e-12))
    exposure = newest.exposure
    qa: Row = {
        "cell": BIN,
        "noise": noise,
        "amplitudes": {one.exposure.name: float(a) for one, a in zip(samples, amplitudes, strict=True)},
        "n_fields": n_fields,
        "jd_start": samples[0].exposure.jd,
        "jd_end": exposure.jd,
    }
    return CalibrationFrame(
        "fringe", newest.rcid, exposure.fid, exposure.nid, exposure.night,
        spread_cells(pattern.astype(np.float32), BIN, shape), spread_cells(unc.astype(np.float32), BIN, shape),
        np.zeros(shape, np.uint16), len(samples), calid_of("fringe", exposure.nid, newest.rcid, exposure.fid), qa,
    )  # fmt: skip
