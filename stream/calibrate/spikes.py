"""Cosmic rays and pixel spikes, found because they are sharper than any star can be.

A point source of FWHM w falls, one pixel from *any* of its pixels and in *any* direction, on average to no less
than r = exp(-1 / (2 s^2)) of that pixel, s = w / 2.3548: for a Gaussian the mean of the two opposite neighbours is
r cosh(d / s^2) of the pixel, d the pixel's distance from the centre along that direction; wider-winged profiles
fall less. A pixel whose neighbour pair lies significantly below r is therefore no part of a star of that width or
wider, however the star lies on the grid. Tracks have bright neighbours along their way and dark ones across: one
direction is enough. (The idea is that of L.A.Cosmic, van Dokkum 2001, PASP 113, 1420, whose iteration of
convolutions and medians costs 16 s an image; here one pass with second differences picks the few per mille of
pixels that are looked at closely.)

How sharp a star can be is not taken from a header but from the image's own bright peaks, and never below 1.35 px, so
that stars are safe from there on and cosmic rays are found better as the seeing gets worse.

A particle's track is followed from its sharp pixels: beside a hit a star is unlikely (one hit in a hundred lies within
3 px of one), so that the pixel next to a hit, the hit thought away, needs less to count as sharp.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.flags import BAD_BITS, Mask
from stream.core.records import F32, U16

FLOOR_FWHM = 1.35  # px: where the seeing is 1.5 px at the middle, stars elsewhere in the quadrant are a tenth sharper
CEILING_FWHM = 2.2  # px; above, r would near that of the noise's own correlation and nothing is gained
# r is this part of what the sharpest of the image's own bright peaks show (their percentile): noise, and a little.
MARGIN, SHARPEST = 0.9, 10.0
MIN_PEAKS = 20  # bright peaks to trust a width; with fewer the floor is used
PEAK_SNR = 50.0
CANDIDATE_SIGMA = 4.5  # of a second difference: some 60 pixels of pure noise in a full quadrant are looked at
MIN_SNR = 5.0  # of a pixel over its surroundings
SHARPNESS_SIGMA = 3.2  # how far the pair must lie below r; a star's own noise does that in one of 10^3 pixels
GROW_RATIO = 0.45  # the most r that hits grow with, whatever the seeing: a chain must not run up a blend's flank
GROW_SIGMA = 1.0  # the same beside a hit, where a sharp pixel is expected
GROW_SNR = 3.0  # neighbours of a hit that carry its charge
MAX_STEP_UP = 2.5  # times as bright as the hits beside it: a track's charge varies so much, a star's flank more
MAX_STEPS = 40  # px that a track is followed from its last sharp pixel
_ROWS = 64  # rows at a time: 0.8 MB, which stays in the second-level cache
# Surroundings: eight pixels at 2.8 to 3 px. The level under a pixel is taken as their second smallest value: a level
# too high makes a star's flank look sharp (with the fourth, 0.2 % of the pixels of a crowded field were false),
# one a little low only costs the faintest hits. What a hit's neighbours stand above is their fourth smallest.
_RING = ((-3, 0), (3, 0), (0, -3), (0, 3), (-2, -2), (-2, 2), (2, -2), (2, 2))
_AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))
# A column with hits on a tenth of its rows (50 at least) is a defect of the column, no particle: it is flagged as
# noisy from its first to its last hit, so that what lies under the threshold between them goes too.
HOT_COLUMN_FRACTION, HOT_COLUMN_MIN = 0.1, 50
_MARGIN = 3  # px at the image's edge that cannot be judged

Index = NDArray[np.intp]


def flag_spikes(data: F32, mask: U16, gain: float, readnoise: float, flat: F32 | None = None) -> int:
    """Set ``SPIKE`` (single pixels) and ``COSMIC_RAY`` (groups) in ``mask``, in place; hot columns get ``NOISY``.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        Calibrated image in DN, sky in; NaN is never flagged, nor what has NaN on all sides.
    mask : ndarray, (ny, nx), uint16
        Defects known so far: such pixels are not looked at, they neither are nor betray a hit.
    gain, readnoise : float
        e-/DN and e-, for the noise of a pixel.
    flat : ndarray, (ny, nx), float32, optional
        What ``data`` was divided by: noise is larger where it is small.

    Returns
    -------
    int
        Number of pixels flagged as spikes and cosmic rays.
    """
    ny, nx = data.shape
    if min(ny, nx) <= 2 * _MARGIN:
        return 0
    sigma = _sky_noise(data, gain, readnoise)
    if not math.isfinite(sigma):
        return 0
    candidates = _second_difference_peaks(data, CANDIDATE_SIGMA * sigma)
    candidates = candidates[(mask.ravel()[candidates] & BAD_BITS) == 0]
    if not len(candidates):
        return 0
    noise = _Noise(gain, readnoise, sigma, None if flat is None else flat.ravel())
    pixels = _Pixels(data, candidates, noise)
    ratio = _narrowest_ratio(pixels)
    hits = candidates[pixels.sharper_than(ratio, SHARPNESS_SIGMA)]
    hits = _without_hot_columns(mask, hits)
    hits = _grown(data, mask, hits, noise, ratio)
    return _mark(mask, hits)


def _sky_noise(data: F32, gain: float, readnoise: float) -> float:
    """Noise of a sky pixel (DN): photons and read noise of the median, or what neighbours show if that is more."""
    rows = data[4::16]
    sky = float(np.nanmedian(rows[:, ::4])) if np.isfinite(rows).any() else float("nan")
    difference = rows[:, 1::8] - rows[:, :-1:8][:, : rows[:, 1::8].shape[1]]
    seen = 1.4826 * float(np.nanmedian(np.abs(difference))) / math.sqrt(2) if np.isfinite(difference).any() else 0.0
    return max(math.sqrt(max(sky, 0.0) / gain + (readnoise / gain) ** 2), seen)


def _second_difference_peaks(data: F32, threshold: float) -> Index:
    """Flat indices of pixels that stand out of their left and right, or upper and lower neighbours."""
    ny, nx = data.shape
    # 2c - a - b has sqrt(6) of a pixel's noise, as threshold x sqrt(6).
    limit = np.float32(threshold * math.sqrt(6))
    inner = slice(_MARGIN, nx - _MARGIN)
    found: list[Index] = []
    for first in range(_MARGIN, ny - _MARGIN, _ROWS):
        last = min(first + _ROWS, ny - _MARGIN)
        twice = data[first:last, inner] * np.float32(2)
        across = twice - data[first:last, _MARGIN - 1 : nx - _MARGIN - 1]
        across -= data[first:last, _MARGIN + 1 : nx - _MARGIN + 1]
        twice -= data[first - 1 : last - 1, inner]
        twice -= data[first + 1 : last + 1, inner]
        np.fmax(across, twice, out=across)
        y, x = np.divmod(np.flatnonzero(across > limit), nx - 2 * _MARGIN)
        found.append((y + first) * nx + x + _MARGIN)
    return np.concatenate(found)


class _Noise(NamedTuple):
    """What the noise of a pixel follows from; ``sigma`` (DN) is that of the sky as it was seen."""

    gain: float
    readnoise: float
    sigma: float
    flat: F32 | None  # flattened


class _Pixels:
    """Candidate pixels with their neighbours over the local level, and their noise.

    ``hit`` (flattened image) marks pixels known as hits: as neighbours they count as empty.
    """

    def __init__(self, data: F32, index: Index, noise: _Noise, hit: NDArray[np.bool_] | None = None) -> None:
        values, nx = data.ravel(), data.shape[1]
        ring = np.stack([values[index + (dy * nx + dx)] for dy, dx in _RING])
        level = np.partition(ring, 1, axis=0)[1]
        steps = (-1, 1, -nx, nx)
        around = [values[index + step] - level for step in steps]
        if hit is not None:
            around = [
                np.where(hit[index + step], np.minimum(value, 0), value)
                for step, value in zip(steps, around, strict=True)
            ]
        left, right, up, down = around
        self.signal = values[index] - level
        self.pairs = np.stack([(left + right) / 2, (up + down) / 2, (left + right + up + down) / 4])
        self.highest_neighbour = np.maximum(np.maximum(left, right), np.maximum(up, down))
        response = np.float32(1.0) if noise.flat is None else noise.flat[index]
        self._gain = noise.gain * response
        # Never below the sky's noise as it was seen: GAIN and READNOI may be wrong.
        own = (noise.readnoise / self._gain) ** 2 + np.maximum(level, 0) / self._gain
        self._floor = np.maximum(own, noise.sigma**2)
        self.snr = self.signal / np.sqrt(self._floor + np.maximum(self.signal, 0) / self._gain)

    def sharper_than(self, ratio: float, significance: float) -> NDArray[np.bool_]:
        """Which pixels have a neighbour pair significantly below ``ratio`` of themselves."""
        own = ratio**2 * (self._floor + np.maximum(self.signal, 0) / self._gain)
        sharp: NDArray[np.bool_] = np.zeros(len(self.signal), bool)
        for pair, count in zip(self.pairs, (2, 2, 4), strict=True):
            noise = np.sqrt(own + (self._floor + np.maximum(pair, 0) / self._gain) / count)
            sharp |= ratio * self.signal - pair > significance * noise
        sharp &= self.snr > MIN_SNR
        return sharp


def _narrowest_ratio(pixels: _Pixels) -> float:
    """r for the narrowest star of this image (module docstring)."""
    peaks = (pixels.snr > PEAK_SNR) & (pixels.signal > pixels.highest_neighbour)
    ratios = pixels.pairs[:, peaks].min(axis=0) / pixels.signal[peaks]
    ratios = ratios[ratios > _ratio_of(FLOOR_FWHM)]  # what is sharper is no star: particles do not make the width
    ratio = MARGIN * float(np.percentile(ratios, SHARPEST)) if len(ratios) >= MIN_PEAKS else 0.0
    return min(max(ratio, _ratio_of(FLOOR_FWHM)), _ratio_of(CEILING_FWHM))


def _ratio_of(fwhm: float) -> float:
    return math.exp(-0.5 * (2.3548 / fwhm) ** 2)


def _without_hot_columns(mask: U16, hits: Index) -> Index:
    """Hits outside columns that are defects; those columns are flagged in ``mask``."""
    ny, nx = mask.shape
    hot = np.flatnonzero(np.bincount(hits % nx, minlength=nx) > max(HOT_COLUMN_FRACTION * ny, HOT_COLUMN_MIN))
    for column in hot:
        rows = hits[hits % nx == column] // nx
        mask[rows.min() : rows.max() + 1, column] |= np.uint16(Mask.NOISY)
    return hits[~np.isin(hits % nx, hot)]


def _grown(data: F32, mask: U16, hits: Index, noise: _Noise, ratio: float) -> Index:
    """Hits and what hangs on them: pixels next to a hit that are sharp once the hit is thought away, and the faint
    rims that carry its charge. A track is followed that way from one sharp pixel to the next."""
    if not len(hits):
        return hits
    bits, nx = mask.reshape(-1), data.shape[1]
    steps = np.array([dy * nx + dx for dy, dx in _AROUND])
    hit = np.zeros(data.size, bool)
    hit[hits] = True
    fresh = hits
    for _ in range(MAX_STEPS):
        near = _inner(np.unique((fresh[:, None] + steps).ravel()), data.shape)
        near = near[~hit[near] & ((bits[near] & BAD_BITS) == 0)]
        pixels = _Pixels(data, near, noise, hit)
        touched = data.ravel()[near[:, None] + steps]
        brightest = np.where(hit[near[:, None] + steps], touched, -np.inf).max(axis=1)
        level = data.ravel()[near] - pixels.signal
        alike = pixels.signal < MAX_STEP_UP * (brightest - level)
        fresh = near[alike & pixels.sharper_than(min(ratio, GROW_RATIO), GROW_SIGMA)]
        if not len(fresh):
            break
        hit[fresh] = True
    found = np.flatnonzero(hit)
    rims = _inner(np.unique((found[:, None] + steps).ravel()), data.shape)
    rims = rims[~hit[rims] & ((bits[rims] & BAD_BITS) == 0)]
    values = data.ravel()
    # What a hit's neighbours stand above is their fourth smallest surrounding: a star's flank stays.
    ring = np.stack([values[rims + (dy * nx + dx)] for dy, dx in _RING])
    hit[rims[values[rims] > np.partition(ring, 3, axis=0)[3] + np.float32(GROW_SNR * noise.sigma)]] = True
    return np.flatnonzero(hit)


def _inner(index: Index, shape: tuple[int, ...]) -> Index:
    """Those far enough from the image's edge to be judged."""
    y, x = np.divmod(index, shape[1])
    inside = (y >= _MARGIN) & (y < shape[0] - _MARGIN) & (x >= _MARGIN) & (x < shape[1] - _MARGIN)
    return index[inside]


def _mark(mask: U16, hits: Index) -> int:
    """Flag hits: singles are spikes, groups cosmic rays."""
    bits, nx = mask.reshape(-1), mask.shape[1]
    hits = hits[(bits[hits] & BAD_BITS) == 0]
    if not len(hits):
        return 0
    # Hits lie inside the margin, so that no step leaves the image or wraps a row.
    hit = np.zeros(mask.size, bool)
    hit[hits] = True
    in_group = np.zeros(len(hits), bool)
    for dy, dx in _AROUND:
        in_group |= hit[hits + (dy * nx + dx)]
    bits[hits] |= np.where(in_group, np.uint16(Mask.COSMIC_RAY), np.uint16(Mask.SPIKE))
    return len(hits)
