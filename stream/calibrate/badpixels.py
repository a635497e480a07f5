"""Bad pixels from a night's frames: dead, low and high response from flats, hot and noisy from biases and darks.

Thresholds follow from the noise of the combined frames, so that few frames give as few false pixels as many do: what
few frames cannot tell from noise is not flagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stream.calibrate.combine import trimmed_scatter
from stream.calibrate.overscan import clipped_rms
from stream.core.cells import cell_medians, filled, spread_cells
from stream.core.flags import Mask
from stream.core.records import F32, U16

# Responses are relative to the surroundings, so that vignetting is none. Pixel-to-pixel scatter of these sensors is
# below 1 %; 10 % off is a defect (corrected by the flat, but what makes it may change), below 20 % of response nothing
# can be corrected.
LOW_RESPONSE, HIGH_RESPONSE, DEAD_RESPONSE = 0.9, 1.1, 0.2
SURROUNDINGS = 32  # px
# A hot pixel stands so many of its sigma and so many DN above its surroundings. 6 sigma: none of 10^7 by chance.
HOT_SIGMA, HOT_DN = 6.0, 4.0
# Share of good pixels whose scatter is called noisy by chance: a fifth of what a mask may cost.
NOISY_CHANCE = 2e-5
NOISY_FACTOR = 2.0  # at least: a pixel of 1.5 times the noise is as good as its weight says
_TRIALS = 200_000


@dataclass(frozen=True, slots=True)
class Scatter:
    """Scatter of every pixel between ``n`` frames (``combine.trimmed_scatter``)."""

    values: F32
    n: int


def flat_defects(flat: F32) -> U16:
    """``DEAD``, ``LOW_RESPONSE`` and ``HIGH_RESPONSE`` of a flat (median 1, NaN allowed)."""
    smooth = cell_medians(flat, SURROUNDINGS)
    smooth = np.where(smooth > 0, smooth, np.float32(1))  # a dead cell: judged against the frame's median
    response = flat / spread_cells(smooth, SURROUNDINGS, (flat.shape[0], flat.shape[1]))
    bad = np.zeros(flat.shape, np.uint16)
    bad[(response < LOW_RESPONSE) & (response >= DEAD_RESPONSE)] |= np.uint16(Mask.LOW_RESPONSE)
    bad[response > HIGH_RESPONSE] |= np.uint16(Mask.HIGH_RESPONSE)
    bad[~(response >= DEAD_RESPONSE)] |= np.uint16(Mask.DEAD)
    return bad


def hot_pixels(data: F32, unc: F32) -> U16:
    """``NOISY`` where a bias or dark (DN) stands out of its surroundings: charge that comes with time.

    Below them stands a pixel that jumps between two states and was caught mostly in the lower one. The pattern of whole
    columns is none: each column's own median along the frame is taken out first, unless most of the column is hot.
    """
    columns = np.nanmedian(data[::4], axis=0)
    smooth = cell_medians(columns[None, :], SURROUNDINGS)
    trend = spread_cells(filled(smooth), SURROUNDINGS, (1, data.shape[1]))[0]
    pattern = columns - trend
    pattern[np.abs(pattern) > HOT_DN] = 0
    flat = data - (trend + pattern)[None, :]
    flat -= spread_cells(filled(cell_medians(flat, SURROUNDINGS)), SURROUNDINGS, (data.shape[0], data.shape[1]))
    typical = np.float32(np.nanmedian(unc[::8, ::8]))
    bad = np.zeros(data.shape, np.uint16)
    # A hot pixel's own uncertainty is its leak's shot noise; one that is only noisy is found by its scatter.
    bad[np.abs(flat) > max(HOT_SIGMA * float(typical), HOT_DN)] |= np.uint16(Mask.NOISY)
    return bad


def noisy_pixels(scatters: Sequence[Scatter]) -> U16:
    """``NOISY`` where the scatter between frames, of all sorts together, is more than noise can be."""
    if not scatters:
        raise ValueError("no frames")
    power = np.zeros(scatters[0].values.shape, np.float32)
    for scatter in scatters:
        typical = clipped_rms(scatter.values[::8, ::8])  # no percentile: values are whole DN
        power += np.square(scatter.values / np.float32(max(typical, 1e-3))) * np.float32(scatter.n - 1)
    limit = noisy_limit(tuple(scatter.n for scatter in scatters))
    return np.where(power > limit, np.uint16(Mask.NOISY), np.uint16(0))


@lru_cache(maxsize=32)
def noisy_limit(numbers: tuple[int, ...]) -> float:
    """The sum over sorts of (n - 1) (scatter / typical scatter)^2 that a good pixel exceeds in 2 of 10^5 cases.

    By drawing: 200,000 pixels of Gaussian noise through the same arithmetic, the tail beyond their last dozen by the
    exponential that it is.
    """
    rng = np.random.default_rng(20170101)
    power = np.zeros(_TRIALS, np.float32)
    for n in numbers:
        values = rng.standard_normal((n, _TRIALS), dtype=np.float32)
        scatter = trimmed_scatter(values - np.median(values, axis=0).astype(np.float32))
        power += np.square(scatter / np.float32(clipped_rms(scatter))) * np.float32(n - 1)
    high, higher = np.quantile(power, [0.999, 0.9999])
    slope = (higher - high) / np.log(10.0)
    chance = float(higher + slope * np.log(1e-4 / NOISY_CHANCE))
    return max(chance, NOISY_FACTOR**2 * float(np.mean(power)))
