"""First list of sources: matched-filter detection, deblending by prominence, windowed centroids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled
from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import DETECTION_DTYPE, F32, U16, Background, Table
from stream.photometry.background import without_sky
from stream.photometry.peaks import Basins, find_basins
from stream.photometry.stamps import box_flags
from stream.photometry.windowed import windowed_centroids

# FWHM of the filter, px: between the survey's best and median seeing. A filter off by 30 % in width costs a star
# of S/N 5 only 0.3.
FILTER_FWHM = 2.2
# In units of the filtered noise. Of 9.5 million pixels about 20 noise peaks pass 4.5 sigma.
THRESHOLD = 4.5
# A peak must stand out of the saddle towards a higher one by this many sigma of the filtered noise there; noise alone
# makes one in a thousand such peaks on a smooth slope.
PROMINENCE = 3.5
# ... and by this part of the saddle's height: flat fields and brighter-fatter cores are no better than that.
PROMINENCE_FRACTION = 0.01
# Part of all pixels above the threshold beyond which an image is no star field (40,000 sources cover a tenth).
MAX_ACTIVE = 0.5
# Pixels that must not make a detection. Saturated ones stay: the star there is real. So does smooth light.
NOT_DETECTED_BITS = BAD_BITS & ~int(
    Mask.SATURATED | Mask.HALO | Mask.GHOST | Mask.SPILLAGE | Mask.LOW_RESPONSE | Mask.HIGH_RESPONSE | Mask.CROSSTALK
)
# The pedestal under a peak of up to twice the threshold is the median of every second pixel 5 to 9 px from it; it
# counts where it is this many times its own error.
FAINT, PEDESTAL = 2.0, 2.5
_REACH = np.arange(-9, 10)
_RING = np.flatnonzero((np.abs(np.hypot(_REACH[:, None], _REACH) - 7.0) <= 2.0) & ((_REACH[:, None] + _REACH) % 2 == 0))
RING_Y, RING_X = _RING // len(_REACH) - 9, _RING % len(_REACH) - 9
SIGMA_PER_FWHM = 1 / 2.3548200450309493

F64 = NDArray[np.float64]
INT = NDArray[np.intp]
BOOL = NDArray[np.bool_]


def detect(
    data: F32,
    background: Background,
    mask: U16,
    threshold: float = THRESHOLD,
    *,
    fwhm: float = FILTER_FWHM,
    gain: float | None = None,
) -> Table:
    """Sources above a threshold in the image filtered with a Gaussian.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        DN, sky in; NaN allowed.
    background : Background
    mask : ndarray, (ny, nx), uint16
        Mask bits.
    threshold : float
        Matched-filter S/N of the faintest point source's peak. 4.5 keeps noise out; down to 3 finds what there is
        at the price of thousands of noise peaks.
    fwhm : float
        Of the filter, px.
    gain : float, optional
        e-/DN, for the photon noise of bright stars' wings. None: as if the sky's own noise were all photons.

    Returns
    -------
    ndarray of DETECTION_DTYPE
        Ordered by y, then x. ``x``, ``y`` are windowed centroids (SExtractor's XWIN), the filtered image's peak
        where the windowed strayed by more than a pixel. ``flux``, ``a``, ``b``, ``theta``, ``npix`` are of the
        pixels above the threshold, ``snr`` is the filtered peak over the filtered noise. Empty if there is nothing.

    Raises
    ------
    PhotometryError
        Shapes differ, no noise figure, or so much of the image is above the threshold that it is no star field.
    """
    if data.shape != mask.shape or data.shape != background.level.shape:
        raise PhotometryError(f"image {data.shape}, mask {mask.shape}, sky {background.level.shape} must be equal")
    if not background.sigma > 0 or not threshold > 0:
        raise PhotometryError(f"detection needs a noise above 0, got {background.sigma}, and a threshold {threshold}")
    sky_off, unusable = without_sky(data, background, mask, NOT_DETECTED_BITS, clear=True)
    pixels = _significant(sky_off, background, unusable, (threshold, fwhm, gain))
    if len(pixels.index) > MAX_ACTIVE * data.size:
        raise PhotometryError(
            f"{len(pixels.index)} of {data.size} pixels are above {threshold:g} sigma: the image is no star field",
            sky=background.median,
            sigma=background.sigma,
        )
    basins = _basins(pixels, mask, threshold)
    real = np.flatnonzero(_above_pedestal(pixels, basins.peak, sky_off, threshold, fwhm))
    return _table(pixels, basins, real, sky_off, mask, fwhm)


@dataclass(frozen=True, slots=True)
class _Pixels:
    """Pixels above the threshold: flat index (ascending), filtered S/N, light and sky noise (DN), and the variance
    that a DN of light adds in units of the sky's."""

    index: INT
    snr: F32
    light: F32
    noise: F32
    photons: F32


@dataclass(frozen=True, slots=True)
class SearchNoise:
    """What residuals must stand out of: ``threshold`` times the noise of the image filtered with a Gaussian of
    ``fwhm`` px, which is the sky's (``rms``, DN, (ny, nx)), the photons' (``gain``, e-/DN) of the light taken off, and
    a ``part`` of that light."""

    rms: F32
    gain: float
    part: float
    threshold: float
    fwhm: float


def search_residuals(image: F32, residual: F32, mask: U16, noise: SearchNoise) -> tuple[F64, F64, F64]:
    """Places (px) and rough fluxes of what stands out of an image whose sources are taken off.

    Parameters
    ----------
    image, residual : ndarray, (ny, nx), float32
        DN, sky off: with the sources and without; finite.
    mask : ndarray, (ny, nx), uint16

    Returns
    -------
    x, y, flux : ndarray, (n,)
    """
    unusable = (mask & np.uint16(NOT_DETECTED_BITS)) != 0
    cleared = residual.copy()
    cleared[unusable] = 0
    index, value = pixels_above(cleared, noise.rms, unusable, noise.threshold, noise.fwhm)
    rest = cleared.reshape(-1)[index]
    light = image.reshape(-1)[index] - rest
    variance = (np.float32(noise.part) * light) ** 2 + np.maximum(light, 0) / np.float32(noise.gain)
    local: F32 = np.sqrt(variance + noise.rms.reshape(-1)[index] ** 2)
    above = value > np.float32(noise.threshold) * local
    index, rest, local = index[above], rest[above], local[above]
    pixels = _Pixels(index, value[above] / local, rest, local, np.float32(1 / noise.gain) / local**2)
    basins = _basins(pixels, mask, noise.threshold)
    real = np.flatnonzero(_above_pedestal(pixels, basins.peak, cleared, noise.threshold, noise.fwhm))
    flux = np.asarray(np.bincount(basins.owner, np.maximum(rest, 0), len(basins.peak)), np.float64)[real]
    y, x = np.divmod(index[basins.peak[real]].astype(float), image.shape[1])
    x, y = windowed_centroids(cleared, x, y, noise.fwhm * SIGMA_PER_FWHM)
    return x[flux > 0], y[flux > 0], flux[flux > 0]


def filter_taps(fwhm: float) -> F32:
    """One axis of the Gaussian filter, reaching 2.7 sigma, scaled so that white noise keeps its variance."""
    half = max(int(np.ceil(2.5 * fwhm * SIGMA_PER_FWHM - 0.5)), 1)
    taps = np.exp(-0.5 * ((np.arange(2 * half + 1) - half) / (fwhm * SIGMA_PER_FWHM)) ** 2)
    normed: F32 = (taps / np.sqrt((taps**2).sum())).astype(np.float32)
    return normed


def _significant(
    image: F32, background: Background, unusable: BOOL, settings: tuple[float, float, float | None]
) -> _Pixels:
    """The usable pixels where the filtered image exceeds ``threshold`` times its noise; filter and gain follow it."""
    threshold, fwhm, gain = settings
    index, value = pixels_above(image, background.rms, unusable, threshold, fwhm)
    noise = background.rms.reshape(-1)[index]
    if gain is not None:
        photons = np.float32(1 / gain) / noise**2
    else:
        level = background.level.reshape(-1)[index]
        photons = np.divide(np.float32(1), level, out=np.zeros_like(noise), where=level > 0)
    return _Pixels(index, value / noise, image.reshape(-1)[index], noise, photons)


def pixels_above(image: F32, noise: F32, unusable: BOOL, threshold: float, fwhm: float) -> tuple[INT, F32]:
    """Flat indices (ascending) of usable pixels whose filtered value exceeds ``threshold`` times the noise, and that.

    Of more than ``MAX_ACTIVE`` of all pixels the first so many and one more.
    """
    most = int(MAX_ACTIVE * image.size) + 1
    index, value = np.empty(most, np.int64), np.empty(most, np.float32)
    n = _filter(np.ascontiguousarray(image), noise, unusable, filter_taps(fwhm), np.float32(threshold), index, value)
    return index[:n].copy(), value[:n].copy()


@compiled
def _filter(
    image: F32, noise: F32, unusable: BOOL, taps: F32, threshold: np.float32, index: NDArray[np.int64], value: F32
) -> int:
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
        for i in range(nx):
            if line[i] > threshold * noise[j, i] and not unusable[j, i]:
                if n == len(index):
                    return n
                index[n], value[n] = j * nx + i, line[i]
                n += 1
    return n


def _basins(pixels: _Pixels, mask: U16, threshold: float) -> Basins:
    """The pixels divided among significant peaks."""
    local = np.sqrt(1 + np.maximum(pixels.light, 0) * pixels.photons)
    saturated = (mask.reshape(-1)[pixels.index] & np.uint16(Mask.SATURATED)) != 0
    return find_basins(
        pixels.index, pixels.snr, mask.shape[1], np.float32(min(PROMINENCE, threshold)) * local,
        fraction=PROMINENCE_FRACTION, together=saturated,
    )  # fmt: skip


def _above_pedestal(pixels: _Pixels, peak: INT, sky_off: F32, threshold: float, fwhm: float) -> BOOL:
    """False for peaks that only a bright star's wings or a halo lift above the threshold.

    The sky's meshes cannot follow those; the median of a ring around a faint peak does.
    """
    real = np.ones(len(peak), bool)
    faint = np.flatnonzero(pixels.snr[peak] < FAINT * threshold)
    place = peak[faint]
    ny, nx = sky_off.shape
    y, x = np.divmod(pixels.index[place], nx)
    ring = sky_off[np.clip(y[:, None] + RING_Y, 0, ny - 1), np.clip(x[:, None] + RING_X, 0, nx - 1)]
    middle = len(RING_X) // 2
    level = np.partition(ring, middle, axis=1)[:, middle]
    # In units of the filtered noise, and its own error: that of a median of so many pixels.
    reach = float(filter_taps(fwhm).sum()) ** 2
    pedestal = level / pixels.noise[place] * reach
    uncertainty = 1.2533 * reach / np.sqrt(len(RING_X))
    local = np.sqrt(1 + np.maximum(level, 0) * pixels.photons[place])
    lifted = (pedestal > PEDESTAL * uncertainty) & (pixels.snr[place] - pedestal < threshold * local)
    real[faint[lifted]] = False
    return real


def _table(pixels: _Pixels, basins: Basins, real: INT, sky_off: F32, mask: U16, fwhm: float) -> Table:
    """Isophotal sums and moments of basins, windowed centroids, flags; rows only for the ``real`` ones."""
    ny, nx = sky_off.shape
    sums = np.zeros((len(basins.peak), len(_SUMS)))
    _sum_moments(pixels.index, basins.owner, pixels.index[basins.peak], pixels.light, nx, sums)
    n_pixels, flux, mx, my, xx, yy, xy = sums[real].T
    y0, x0 = np.divmod(pixels.index[basins.peak[real]], nx)
    safe = np.where(flux > 0, flux, 1)
    mx, my = mx / safe, my / safe
    xx, yy, xy = xx / safe - mx * mx, yy / safe - my * my, xy / safe - mx * my
    # A pixel is as wide as this; without it a source of one pixel would have no extent.
    xx, yy = np.maximum(xx, 1 / 12), np.maximum(yy, 1 / 12)
    mean, split = 0.5 * (xx + yy), np.hypot(0.5 * (xx - yy), xy)
    table = np.zeros(len(real), DETECTION_DTYPE)
    table["a"], table["b"] = np.sqrt(mean + split), np.sqrt(np.maximum(mean - split, 1 / 12))
    table["theta"] = 0.5 * np.arctan2(2 * xy, xx - yy)
    table["flux"], table["npix"] = flux, n_pixels
    peak = np.empty(len(real), np.float32)
    _brightest(sky_off, x0, y0, peak)
    table["peak"] = peak
    table["snr"] = pixels.snr[basins.peak[real]]
    sigma = fwhm * SIGMA_PER_FWHM
    table["x"], table["y"] = windowed_centroids(sky_off, x0.astype(float), y0.astype(float), sigma)
    np.clip(table["x"], 0, nx - 1, out=table["x"])
    np.clip(table["y"], 0, ny - 1, out=table["y"])
    table = table[flux > 0]
    table["flags"] = box_flags(mask, table["x"], table["y"], edge=None)
    ordered: Table = table[np.lexsort((table["x"], table["y"]))]
    return ordered


_SUMS = "n_pixels", "flux", "mx", "my", "xx", "yy", "xy"


@compiled
def _sum_moments(index: INT, owner: INT, peak: INT, light: F32, nx: int, out: F64) -> None:
    """Pixels of each basin, their light, and its first and second moments around the ``peak``'s pixel (flat index)."""
    for p in range(len(index)):
        basin = owner[p]
        value, sums = max(float(light[p]), 0.0), out[basin]
        dx, dy = float(index[p] % nx - peak[basin] % nx), float(index[p] // nx - peak[basin] // nx)
        sums[0] += 1
        sums[1] += value
        sums[2] += value * dx
        sums[3] += value * dy
        sums[4] += value * dx * dx
        sums[5] += value * dy * dy
        sums[6] += value * dx * dy


@compiled
def _brightest(image: F32, x: INT, y: INT, out: F32) -> None:
    """The highest of the 3 x 3 pixels around each pixel."""
    ny, nx = image.shape
    for k in range(len(x)):
        out[k] = image[y[k], x[k]]
        for j in range(max(y[k] - 1, 0), min(y[k] + 2, ny)):
            for i in range(max(x[k] - 1, 0), min(x[k] + 2, nx)):
                out[k] = max(out[k], image[j, i])
