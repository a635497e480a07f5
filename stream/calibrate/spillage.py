"""Ghosts of charge spillage (mask bit 6): what full pixels lost is read some pixels later in the same row.

Only until 2019-10-23, when the readout was changed. How many pixels later belongs to the amplifier and is in no header:
each image with full pixels tells it itself, because the places so far behind all of them are brighter together than
those before and after.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.camera import read_order
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import F32, U16, Background

LAST_MJD = 58779.0
DELAYS = (40, 200)  # px; nearer lie the wings of the saturated star itself
MIN_PIXELS = 12  # full pixels, to tell anything
MAX_PIXELS = 20_000  # an even sample of more is enough
AROUND = 12  # px of delay to each side that a peak is compared with: the star's wings are smooth
MIN_CONTRAST = 8.0  # of the scatter from delay to delay
MIN_LIGHT = 1.0  # sigma of a pixel: less does no harm


def spillage_delay(data: F32, background: Background, mask: U16, qid: int) -> int | None:
    """Pixels between full pixels and what they spilt, in read direction; None where nothing was spilt."""
    nx = mask.shape[1]
    full = np.flatnonzero(mask & np.uint16(Mask.SATURATED))
    if len(full) < MIN_PIXELS or nx <= DELAYS[0] + 3 * AROUND or not background.sigma > 0:
        return None
    full = full[:: -(-len(full) // MAX_PIXELS)]
    x, first = full % nx, full - full % nx
    sign = -1 if read_order(qid)[0] else 1
    values, level, bits = data.reshape(-1), background.level.reshape(-1), mask.reshape(-1)
    delays = np.arange(DELAYS[0] - AROUND, min(DELAYS[1], nx - 1 - AROUND) + AROUND)
    light = np.zeros(len(delays))
    for k, delay in enumerate(delays):
        there = x + sign * delay
        at = (first + there)[(there >= 0) & (there < nx)]
        at = at[(bits[at] & np.uint16(BAD_BITS)) == 0]
        excess = (values[at] - level[at]) / background.sigma
        # The median: another star so far behind one of them is no light behind most of them.
        light[k] = float(np.nanmedian(excess)) if len(at) >= MIN_PIXELS else 0.0
    contrast = (light - _smooth(light))[AROUND:-AROUND]
    scatter = 1.4826 * float(np.median(np.abs(contrast))) + 1e-3
    peak = int(contrast.argmax())
    if contrast[peak] < max(MIN_CONTRAST * scatter, MIN_LIGHT):
        return None
    return int(delays[peak + AROUND])


def mask_spillage(data: F32, background: Background, mask: U16, qid: int, mjd: float) -> U16:
    """The mask with bit 6 on what full pixels spilt; the same array after 2019-10-23 and where nothing was spilt."""
    if not mjd <= LAST_MJD:
        return mask
    delay = spillage_delay(data, background, mask, qid)
    if delay is None:
        return mask
    nx = mask.shape[1]
    full = np.flatnonzero(mask & np.uint16(Mask.SATURATED))
    x = full % nx + (-delay if read_order(qid)[0] else delay)
    out = mask.copy()
    inside = (x >= 0) & (x < nx)
    out.reshape(-1)[(full - full % nx + x)[inside]] |= np.uint16(Mask.SPILLAGE)
    return out


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running median over the delays around, the middle three left out."""
    padded = np.pad(values, AROUND, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1)  # the ends are not used
    around = np.concatenate([windows[:, : AROUND - 1], windows[:, AROUND + 2 :]], axis=1)
    return np.asarray(np.median(around, axis=1), np.float64)
