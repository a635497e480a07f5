"""Pixels of an image that stand out once it is filtered, and what is said of each: compiled loops of the detection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.records import F32, U16

INT = NDArray[np.int64]
BOOL = NDArray[np.bool_]

# Part of all pixels above the threshold beyond which an image is no star field (40,000 sources cover a fifth).
MAX_ACTIVE = 0.5
SIGMA_PER_FWHM = 1 / 2.3548200450309493
CHUNK = 64  # pixels of a row that are looked at together
# The ring around a peak under which its pedestal is looked for: every second pixel 5 to 9 px from it.
_REACH = 9
_OFFSET = np.arange(-_REACH, _REACH + 1)
_RING = np.flatnonzero(
    (np.abs(np.hypot(_OFFSET[:, None], _OFFSET) - 7.0) <= 2.0) & ((_OFFSET[:, None] + _OFFSET) % 2 == 0)
)
RING_Y, RING_X = _RING // len(_OFFSET) - _REACH, _RING % len(_OFFSET) - _REACH


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pixels above the threshold: flat index (ascending), filtered S/N, light and noise (DN), and the variance that a
    DN of light adds in units of the noise's."""

    index: INT
    snr: F32
    light: F32
    noise: F32
    photons: F32


def filter_taps(fwhm: float) -> F32:
    """One axis of the Gaussian filter, reaching 2.7 sigma, scaled so that white noise keeps its variance."""
    half = max(int(np.ceil(2.5 * fwhm * SIGMA_PER_FWHM - 0.5)), 1)
    taps = np.exp(-0.5 * ((np.arange(2 * half + 1) - half) / (fwhm * SIGMA_PER_FWHM)) ** 2)
    normed: F32 = (taps / np.sqrt((taps**2).sum())).astype(np.float32)
    return normed


def pixels_above(
    image: F32, noise: F32, unusable: BOOL, threshold: float, fwhm: float, *,
    inverse_gain: float = 0.0, taken: F32 | None = None, part: float = 0.0,
) -> Pixels:  # fmt: skip
    """Usable pixels whose filtered value exceeds ``threshold`` times the noise.

    Parameters
    ----------
    image, noise : ndarray, (ny, nx), float32
        DN, finite, unusable pixels 0; the sky's noise.
    fwhm : float
        Of the filter, px.
    inverse_gain : float
        DN/e-.
    taken : ndarray, (ny, nx), float32, optional
        The image with the sources that were taken off it: the photons of that light, and a ``part`` of it, are noise.

    Returns
    -------
    Pixels
        Of more than ``MAX_ACTIVE`` of all pixels the first so many and one more.
    """
    most = int(MAX_ACTIVE * image.size) + 1
    index, value = np.empty(most, np.int64), np.empty(most, np.float32)
    image = np.ascontiguousarray(image)
    n = _filter(image, noise, unusable, filter_taps(fwhm), np.float32(threshold), index, value)
    index, value = index[:n], value[:n]
    light, local, photons = (np.empty(n, np.float32) for _ in range(3))
    settings = np.array([threshold, inverse_gain, part], np.float32)
    flat = image.reshape(-1)
    whole = flat if taken is None else taken.reshape(-1)
    n = _read(flat, whole, noise.reshape(-1), settings, index, value, (light, local, photons))
    return Pixels(index[:n], value[:n], light[:n], local[:n], photons[:n])


@inner
def _some_above(line: F32, noise: F32, threshold: np.float32) -> bool:
    """Whether any pixel is above the threshold."""
    count = np.int32(0)
    for i in range(len(line)):
        count += np.int32(1) if line[i] > threshold * noise[i] else np.int32(0)
    return bool(count > 0)


@compiled
def _filter(image: F32, noise: F32, unusable: BOOL, taps: F32, threshold: np.float32, index: INT, value: F32) -> int:
    """How many pixels of the filtered image are above the threshold: they fill ``index`` and ``value``."""
    ny, nx = image.shape
    half, n = len(taps) // 2, 0
    middle = taps[half]
    column, line = np.zeros(nx + 2 * half, np.float32), np.empty(nx, np.float32)
    nothing = np.zeros(nx, np.float32)
    for j in range(ny):
        inner, row = column[half : half + nx], image[j]
        for i in range(nx):
            inner[i] = middle * row[i]
        for k in range(1, half + 1):
            above, below = image[j - k] if j >= k else nothing, image[j + k] if j + k < ny else nothing
            tap = taps[half + k]
            for i in range(nx):
                inner[i] += tap * (above[i] + below[i])
        for i in range(nx):
            line[i] = middle * inner[i]
        for k in range(1, half + 1):
            left, right, tap = column[half - k : half - k + nx], column[half + k : half + k + nx], taps[half + k]
            for i in range(nx):
                line[i] += tap * (left[i] + right[i])
        for first in range(0, nx, CHUNK):
            last = min(first + CHUNK, nx)
            if not _some_above(line[first:last], noise[j, first:last], threshold):
                continue
            for i in range(first, last):
                if line[i] > threshold * noise[j, i] and not unusable[j, i]:
                    if n == len(index):
                        return n
                    index[n], value[n] = j * nx + i, line[i]
                    n += 1
    return n


@compiled
def _read(image: F32, taken: F32, noise: F32, settings: F32, index: INT, value: F32, out: tuple[F32, F32, F32]) -> int:
    """S/N in place of the pixels' filtered ``value``, and light, noise and photons into ``out``; how many are left when
    those that do not stand out of the light taken off are dropped."""
    threshold, inverse_gain, part = settings[0], settings[1], settings[2]
    zero, n = np.float32(0), 0
    for p in range(len(index)):
        here = index[p]
        light, rms, high = image[here], noise[here], value[p]
        off = taken[here] - light
        local = np.sqrt(rms * rms + (part * off) * (part * off) + max(off, zero) * inverse_gain)
        if high > threshold * local:
            index[n], value[n] = here, high / local
            out[0][n], out[1][n], out[2][n] = light, local, inverse_gain / (local * local)
            n += 1
    return n


@compiled
def prominences(
    pixels: tuple[INT, F32, F32], scale: np.float32, mask: U16, bit: np.uint16, least: F32, marked: BOOL
) -> None:
    """``scale`` times the noise of each pixel's own light in units of the noise into ``least``, and whether its
    ``mask`` (flat) has a bit; ``pixels`` are their index, light and photons."""
    index, light, photons = pixels
    zero, one = np.float32(0), np.float32(1)
    for p in range(len(index)):
        least[p] = scale * np.sqrt(one + max(light[p], zero) * photons[p])
        marked[p] = (mask[index[p]] & bit) != 0


@compiled
def lifted(image: F32, x: INT, y: INT, ring: tuple[INT, INT], level: F32, out: BOOL) -> None:
    """Whether the median of the ring around each pixel (n,) is above its ``level``; beyond the image its edge
    counts."""
    ny, nx = image.shape
    ring_x, ring_y = ring
    needed = len(ring_x) - len(ring_x) // 2
    for k in range(len(x)):
        count = 0
        if x[k] >= _REACH and y[k] >= _REACH and x[k] < nx - _REACH and y[k] < ny - _REACH:
            for q in range(len(ring_x)):
                count += image[y[k] + ring_y[q], x[k] + ring_x[q]] > level[k]
        else:
            for q in range(len(ring_x)):
                i, j = min(max(x[k] + ring_x[q], 0), nx - 1), min(max(y[k] + ring_y[q], 0), ny - 1)
                count += image[j, i] > level[k]
        out[k] = count >= needed
