"""Cosmic rays and pixel spikes, found because they are sharper than any picture of the sky can be.

Pixels that stand out of the sky (some ten thousand) are looked at closely: on the 5 x 5 px around each, a bank of
filters asks whether any sum of stars, none narrower than the image's own, can be what is seen (``sharpness``). A pixel
where one of them says no beyond its noise was hit by a particle, whether it lies on sky, a galaxy or a star's wing. The
whole neighbourhood counts, so that little charge is told from a star that is hardly wider. (The idea to use
sharpness is that of L.A.Cosmic, van Dokkum 2001, PASP 113, 1420, whose iteration of convolutions and medians costs
16 s an image.)

How sharp a star can be is not taken from a header but from the image's own bright peaks, place by place (``banks``).

From what is certain the charge is followed: down to the faint rims, and to peaks nearby with less evidence, for beside
a hit a star is unlikely (one hit in a hundred lies within 3 px of one).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.banks import Bank, Banks, own_banks
from stream.calibrate.sharpness import CENTRE, RADIUS
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import F32, U16

FLANK = 0.4  # of its brightest neighbour's height: what is less is looked at with that one
MIN_SNR = 4.5  # of a pixel over the sky, to be looked at: 30 pixels of pure noise in a full quadrant
# Evidence (sigma of a filter) that makes a hit, over what its bank asks: CERTAIN_FAINT / (S/N of the pixel). Stars are
# the more frequent the fainter they are, particles are not: at 5 sigma a star is 10^3 times as likely a priori, at 50
# sigma ten times.
CERTAIN_FAINT = 8.0
LOOK_AGAIN = 0.3  # evidence with too much noise, above which the noise is worked out pixel by pixel
BROAD = 0.5  # sigma more for a broad shape: they are many, and what they find is bright
MODEL_ERROR = 0.025  # of the brightest pixel of a window: how well the image's own width is known at any place
PEAK_SNR = 50.0  # of peaks that tell how sharp stars are
# Charge is followed through pixels that stand GROW_SNR above their surroundings: down from a peak, and over peaks that
# have their bank's evidence and are not MAX_STEP_UP times as bright as what led to them.
GROW_SNR, MAX_STEP_UP = 3.0, 4.0
MAX_STEPS = 60  # px that a track is followed
CELL, STRIDE = 128, (4, 8)  # px: the sky's level is the median of every 32nd pixel of a cell
# Surroundings of a pixel: the level under it is no higher than this part of the 24 pixels 3 px away, so that a level
# that is too high somewhere does not cut a star's wings off.
LEVEL_RANK = 15
_RING = tuple((dy, dx) for dy in range(-3, 4) for dx in range(-3, 4) if max(abs(dy), abs(dx)) == 3)
DEEPEST = -1.5  # sigma: a pixel that is lower is a defect's, and makes its neighbours no sharper
# What charge stands above when it is followed: the fourth smallest of eight pixels, so that a star's flank stays.
_NEAR_RING = ((-3, 0), (3, 0), (0, -3), (0, 3), (-2, -2), (-2, 2), (2, -2), (2, 2))
_AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))
_WINDOW = tuple((dy, dx) for dy in range(-RADIUS, RADIUS + 1) for dx in range(-RADIUS, RADIUS + 1))
# A column with hits on a tenth of its rows (50 at least) is a defect of the column, no particle: it is flagged as
# noisy from its first to its last hit, so that what lies under the threshold between them goes too.
HOT_COLUMN_FRACTION, HOT_COLUMN_MIN = 0.1, 50
_MARGIN = 3  # px at the image's edge that cannot be judged
_BATCH = 4096  # windows at a time: their answers to all filters stay in the second-level cache

Index = NDArray[np.intp]
Bool = NDArray[np.bool_]


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
    noise = _Noise(gain, readnoise, sigma, None if flat is None else flat.ravel())
    image = _Image(data, mask, _sky_level(data), noise)
    peaks = image.peaks(MIN_SNR * sigma)
    if not len(peaks):
        return 0
    windows = image.windows(peaks)
    banks = _own_banks(windows)
    hits = peaks[windows.certain(banks)]
    outside = _without_hot_columns(mask, hits)
    if len(outside) < len(hits):  # what is left may have been sharp for such a column beside it
        hits = outside[image.windows(outside).certain(banks)]
    if not len(hits):
        return 0
    return _mark(mask, _followed(image, hits, banks))


def _sky_noise(data: F32, gain: float, readnoise: float) -> float:
    """Noise of a sky pixel (DN): photons and read noise of the median, or what neighbours show if that is more."""
    rows = data[4::16]
    sky = float(np.nanmedian(rows[:, ::4])) if np.isfinite(rows).any() else float("nan")
    difference = rows[:, 1::8] - rows[:, :-1:8][:, : rows[:, 1::8].shape[1]]
    seen = 1.4826 * float(np.nanmedian(np.abs(difference))) / math.sqrt(2) if np.isfinite(difference).any() else 0.0
    return max(math.sqrt(max(sky, 0.0) / gain + (readnoise / gain) ** 2), seen)


def _sky_level(data: F32) -> F32:
    """Medians of cells of about ``CELL`` px, what is left over at the far edges going to the last ones; NaN of none."""
    ny, nx = data.shape
    rows, columns = max(ny // CELL, 1), max(nx // CELL, 1)
    high, wide = min(CELL, ny), min(CELL, nx)
    some = data[: rows * high, : columns * wide].reshape(rows, high, columns, wide)[:, :: STRIDE[0], :, :: STRIDE[1]]
    values = np.sort(some.transpose(0, 2, 1, 3).reshape(rows, columns, -1), axis=2)  # NaN goes to the end
    middle = np.maximum(np.count_nonzero(np.isfinite(values), axis=2) - 1, 0) // 2
    return np.take_along_axis(values, middle[..., None], axis=2)[..., 0]


class _Noise(NamedTuple):
    """What the noise of a pixel follows from; ``sigma`` (DN) is that of the sky as it was seen."""

    gain: float
    readnoise: float
    sigma: float
    flat: F32 | None  # flattened

    def floor(self, index: Index, level: F32) -> tuple[F32, F32]:
        """Variance (DN^2) without a source, never below the sky's as it was seen (GAIN may be wrong); e-/DN."""
        gain = np.float32(self.gain) * (np.ones(len(index), np.float32) if self.flat is None else self.flat[index])
        return np.maximum((self.readnoise / gain) ** 2 + np.maximum(level, 0) / gain, self.sigma**2), gain


class _Image(NamedTuple):
    """The image, its known defects, the sky's level by cells, and the noise."""

    data: F32
    mask: U16
    level: F32
    noise: _Noise

    def around(self, index: Index, offsets: tuple[tuple[int, int], ...]) -> F32:
        """Values at offsets from pixels, (n, offsets)."""
        steps = np.array([dy * self.data.shape[1] + dx for dy, dx in offsets])
        return np.asarray(self.data.ravel()[index[:, None] + steps])

    def usable(self, index: Index) -> Bool:
        """Which pixels have no known defect."""
        return np.asarray((self.mask.ravel()[index] & BAD_BITS) == 0)

    def peaks(self, threshold: float) -> Index:
        """Pixels (flat indices) that stand so much (DN) above the sky's level, and little under their neighbours."""
        ny, nx = self.data.shape
        across = np.minimum(np.arange(nx) // CELL, self.level.shape[1] - 1)
        found: list[Index] = []
        for k in range(len(self.level)):
            first = max(k * CELL, _MARGIN)
            last = ny - _MARGIN if k == len(self.level) - 1 else min((k + 1) * CELL, ny - _MARGIN)
            limit = self.level[k, across] + np.float32(threshold)
            limit[:_MARGIN], limit[nx - _MARGIN :] = np.inf, np.inf
            found.append(np.flatnonzero(self.data[first:last] > limit) + first * nx)
        index = np.concatenate(found)
        sky = self.level[np.minimum(index // nx // CELL, len(self.level) - 1), across[index % nx]]
        lowest = np.fmax.reduce(self.around(index, _AROUND), axis=1)
        lowest = np.float32(FLANK) * (lowest - sky)
        return np.asarray(index[(self.data.ravel()[index] - sky >= lowest) & self.usable(index)])

    def place(self, index: Index) -> F32:
        """Where pixels lie, (n, 2): y and x from -1 to 1."""
        ny, nx = self.data.shape
        y, x = np.divmod(index, nx)
        return np.stack([2 * y / (ny - 1) - 1, 2 * x / (nx - 1) - 1], axis=1).astype(np.float32)

    def windows(self, index: Index) -> _Windows:
        """What lies around pixels, the sky subtracted, defects filled with what a star on the middle would leave."""
        y, x = np.divmod(index, self.data.shape[1])
        cells = np.minimum(y // CELL, self.level.shape[0] - 1), np.minimum(x // CELL, self.level.shape[1] - 1)
        ring = self.around(index, _RING)
        ring.partition(LEVEL_RANK, axis=1)
        level = np.fmin(self.level[cells], ring[:, LEVEL_RANK])
        pixels = self.around(index, _WINDOW) - level[:, None]
        brightest = np.fmax.reduce(pixels, axis=1)
        steps = np.array([dy * self.data.shape[1] + dx for dy, dx in _WINDOW])
        bits = self.mask.ravel()[index[:, None] + steps]
        brightest[((bits & np.uint16(Mask.SATURATED)) != 0).any(axis=1)] = np.inf
        bad = ((bits & BAD_BITS) != 0) | ~np.isfinite(pixels)
        bad[:, CENTRE] = False
        np.maximum(pixels, np.float32(DEEPEST * self.noise.sigma), out=pixels)
        return _Windows(pixels, bad, brightest, *self.noise.floor(index, level), self.place(index))


class _Windows(NamedTuple):
    """5 x 5 px around n pixels (n, 25; DN over the sky), which of them are no good, and for each window its brightest
    pixel (inf next to saturation, where nothing is known), its noise without a source (DN^2), e-/DN, and in which part
    of the image it lies."""

    pixels: F32
    bad: Bool
    brightest: F32
    floor: F32
    gain: F32
    place: F32

    @property
    def snr(self) -> F32:
        """Signal to noise of the middle pixels."""
        middle = np.maximum(self.pixels[:, CENTRE], 0)
        return np.asarray(middle / np.sqrt(self.floor + middle / self.gain))

    def filled(self, some: Index, profile: F32) -> F32:
        """Pixels of some, bad ones replaced by a star's ``profile`` (25,; 1 in the middle) as high as the middle."""
        pixels = self.pixels[some]
        return np.where(self.bad[some], pixels[:, CENTRE, None] * profile, pixels)

    def evidence(self, banks: Banks) -> F32:
        """The strongest answer of a filter for the window's place, in its noise: photons and the model's error."""
        out = np.empty(len(self.pixels), np.float32)
        which = banks.at(self.place)
        for number, bank in enumerate(banks.banks):
            mine = np.flatnonzero(which == number)
            for first in range(0, len(mine), _BATCH):
                some = mine[first : first + _BATCH]
                out[some] = self._evidence(some, bank)
        return out

    def _evidence(self, some: Index, bank: Bank) -> F32:
        """As above, of the windows ``some``, by one bank.

        With the photons of the brightest pixel in all of them first, which is too much; where anything comes of that,
        with every pixel's own.
        """
        pixels, bright = self.filled(some, bank.profile), np.maximum(self.brightest[some], 0)
        floor = self.floor[some] + (MODEL_ERROR * bright) ** 2
        answers = pixels @ bank.filters.T
        noise = np.sqrt(floor + bright / self.gain[some])
        thin, broad = answers[:, : bank.thin].max(axis=1), answers[:, bank.thin :].max(axis=1)
        out = np.maximum(thin, broad - BROAD * noise) / noise
        near = np.flatnonzero((out > LOOK_AGAIN) & np.isfinite(bright))
        photons = np.maximum(pixels[near], 0) / self.gain[some][near, None]
        sigmas = answers[near] / np.sqrt(photons @ (bank.filters**2).T + floor[near, None])
        out[near] = np.maximum(sigmas[:, : bank.thin].max(axis=1), sigmas[:, bank.thin :].max(axis=1) - BROAD)
        return np.asarray(out)

    def certain(self, banks: Banks) -> Bool:
        """Which middle pixels a particle has hit."""
        needed = np.array([bank.certain for bank in banks.banks], np.float32)[banks.at(self.place)]
        return np.asarray(self.evidence(banks) > needed + CERTAIN_FAINT / np.maximum(self.snr, 1))

    def beside(self, banks: Banks) -> Bool:
        """Which middle pixels belong to a hit beside them."""
        needed = np.array([bank.beside for bank in banks.banks], np.float32)[banks.at(self.place)]
        return np.asarray(self.evidence(banks) > needed)


def _own_banks(windows: _Windows) -> Banks:
    """Filters for the stars of this image."""
    bright = (windows.snr > PEAK_SNR) & (windows.brightest == windows.pixels[:, CENTRE]) & ~windows.bad.any(axis=1)
    pixels = windows.pixels[bright]
    return own_banks(pixels / pixels[:, CENTRE, None], windows.place[bright])


def _without_hot_columns(mask: U16, hits: Index) -> Index:
    """Hits outside columns that are defects; those columns are flagged in ``mask``."""
    ny, nx = mask.shape
    hot = np.flatnonzero(np.bincount(hits % nx, minlength=nx) > max(HOT_COLUMN_FRACTION * ny, HOT_COLUMN_MIN))
    for column in hot:
        rows = hits[hits % nx == column] // nx
        mask[rows.min() : rows.max() + 1, column] |= np.uint16(Mask.NOISY)
    return hits[~np.isin(hits % nx, hot)]


def _followed(image: _Image, hits: Index, banks: Banks) -> Index:
    """Hits and the charge that hangs on them.

    From a peak its charge is followed downhill, ``Bank.depth`` px far; a pixel brighter than what led to it needs
    evidence of its own, and is a peak from which to go on.
    """
    values, nx = image.data.ravel(), image.data.shape[1]
    steps = np.array([dy * nx + dx for dy, dx in _AROUND])
    left = np.zeros(image.data.size, np.int8)  # 1 + px that may still be gone from a pixel; 0 is not hit
    depth = max(bank.depth for bank in banks.banks)
    left[hits] = depth + 1
    fresh = hits
    for _ in range(MAX_STEPS):
        near = _inner(np.unique((fresh[left[fresh] > 1][:, None] + steps).ravel()), image.data.shape)
        near = near[(left[near] == 0) & image.usable(near)]
        ring = image.around(near, _NEAR_RING)
        ring.partition(3, axis=1)
        over = values[near] - ring[:, 3]
        charged = over > GROW_SNR * image.noise.sigma
        near, over, level = near[charged], over[charged], ring[charged, 3]
        if not len(near):
            break
        beside = near[:, None] + steps
        touched = np.where(left[beside] > 1, values[beside], -np.inf)
        downhill = values[near] <= touched.max(axis=1) + image.noise.sigma
        onward = np.where(downhill, left[beside].max(axis=1) - 1, 0)
        uphill = np.flatnonzero(~downhill & (over < MAX_STEP_UP * (touched.max(axis=1) - level)))
        if len(uphill):
            uphill = uphill[image.windows(near[uphill]).beside(banks)]
        onward[uphill] = depth + 1
        left[near] = onward
        fresh = near[onward > 0]
    return np.flatnonzero(left)


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
