"""Fringes in i: light of the night sky's OH lines interferes in the thin sensor and makes a pattern of fixed shape.

The pattern stays, its strength follows the sky's lines, not its brightness: every image has its own amplitude, fitted
where there are no stars. The pattern is learned from many exposures of different fields (``build_fringe``).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream.core.cells import cell_medians, filled, spread_cells
from stream.core.flags import BAD_BITS
from stream.core.records import F32, U16

CELL = 128  # px: fringes are tens of px wide, the sky they ride on is smooth over this
_STEP = 4  # one pixel of so many each way for the fit: 600,000 of a full quadrant, error 0.2 % of the pixel noise
STAR_SIGMA = 3.0
MIN_PIXELS = 500
# A fitted amplitude below so many of its own sigma is noise.
SIGNIFICANT = 3.0


def fringe_amplitude(data: F32, mask: U16, fringe: F32) -> tuple[float, float]:
    """Amplitude of a fringe pattern in an image and its uncertainty.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        Calibrated image (DN, sky in).
    mask : ndarray, (ny, nx), uint16
        Bad pixels have no say.
    fringe : ndarray, (ny, nx), float32
        Pattern with zero mean over some hundred px.

    Returns
    -------
    amplitude, unc : float
        DN per unit of the pattern; NaN where there are too few clean pixels.
    """
    image, pattern = data[::_STEP, ::_STEP], fringe[::_STEP, ::_STEP]
    sky = image - spread_cells(
        filled(cell_medians(image, CELL // _STEP)), CELL // _STEP, (image.shape[0], image.shape[1])
    )
    use = np.isfinite(sky) & np.isfinite(pattern) & ((mask[::_STEP, ::_STEP] & BAD_BITS) == 0)
    values, shape = sky[use].astype(np.float64), pattern[use].astype(np.float64)
    amplitude, sigma = 0.0, math.nan
    for _ in range(4):  # stars are clipped about the model as it stands
        if len(values) < MIN_PIXELS:
            return math.nan, math.nan
        off = values - amplitude * shape
        centre = float(np.median(off))
        sigma = 1.4826 * float(np.median(np.abs(off - centre)))
        near = np.abs(off - centre) <= STAR_SIGMA * sigma
        values, shape = values[near], shape[near]
        about = shape - shape.mean()
        power = float(about @ about)
        if power <= 0:
            return math.nan, math.nan
        amplitude = float(about @ values) / power
    return amplitude, sigma / math.sqrt(power)


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


def fringe_residual(data: F32, mask: U16) -> tuple[F32, float]:
    """An image without its sky and sources, for learning the pattern: (ny, nx) float32 DN with NaN on sources and
    bad pixels, and its noise a pixel (DN)."""
    clean = np.where((mask & BAD_BITS) == 0, data, np.float32(np.nan))
    sky = clean - spread_cells(filled(cell_medians(clean, CELL)), CELL, (data.shape[0], data.shape[1]))
    sample = sky[::5, ::5]
    sigma = 1.4826 * float(np.nanmedian(np.abs(sample - np.nanmedian(sample))))
    sky[~(np.abs(sky) <= STAR_SIGMA * sigma)] = np.nan
    return _without_neighbours(sky), sigma


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
