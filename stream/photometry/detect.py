"""First list of sources: matched-filter detection, deblending by prominence, windowed centroids."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled
from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import DETECTION_DTYPE, F32, U16, Background, Table
from stream.photometry.background import without_sky
from stream.photometry.filtered import (
    MAX_ACTIVE,
    RING_X,
    RING_Y,
    SIGMA_PER_FWHM,
    Pixels,
    filter_taps,
    lifted,
    pixels_above,
    prominences,
)
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
# Pixels that must not make a detection. Saturated ones stay: the star there is real. So does smooth light.
NOT_DETECTED_BITS = BAD_BITS & ~int(
    Mask.SATURATED | Mask.HALO | Mask.GHOST | Mask.SPILLAGE | Mask.LOW_RESPONSE | Mask.HIGH_RESPONSE | Mask.CROSSTALK
)
# The pedestal under a peak of up to twice the threshold is the median of a ring around it; it
# counts where it is this many times its own error.
FAINT, PEDESTAL = 2.0, 2.5

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
    inverse_gain = 0.0 if gain is None else 1 / gain
    pixels = pixels_above(sky_off, background.rms, unusable, threshold, fwhm, inverse_gain=inverse_gain)
    if gain is None:
        level = background.level.reshape(-1)[pixels.index]
        photons = np.divide(np.float32(1), level, out=np.zeros_like(level), where=level > 0)
        pixels = replace(pixels, photons=photons)
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
class SearchNoise:
    """What residuals must stand out of: ``threshold`` times the noise of the image filtered with a Gaussian of
    ``fwhm`` px, which is the sky's (``rms``, DN, (ny, nx)), the photons' (``gain``, e-/DN) of the light taken off, and
    a ``part`` of that light."""

    rms: F32
    gain: float
    part: float
    threshold: float
    fwhm: float


def unusable_pixels(mask: U16) -> BOOL:
    """Pixels that must not make a detection, where a star's saturated ones may."""
    return np.asarray((mask & np.uint16(NOT_DETECTED_BITS)) != 0)


def search_residuals(image: F32, residual: F32, mask: U16, unusable: BOOL, noise: SearchNoise) -> tuple[F64, F64, F64]:
    """Places (px) and rough fluxes of what stands out of an image whose sources are taken off.

    Parameters
    ----------
    image, residual : ndarray, (ny, nx), float32
        DN, sky off: with the sources and without; finite, the residual 0 where it is ``unusable``.
    mask : ndarray, (ny, nx), uint16
    unusable : ndarray, (ny, nx), bool
        As ``unusable_pixels`` says.

    Returns
    -------
    x, y, flux : ndarray, (n,)
    """
    pixels = pixels_above(
        residual, noise.rms, unusable, noise.threshold, noise.fwhm, inverse_gain=1 / noise.gain, taken=image,
        part=noise.part,
    )  # fmt: skip
    basins = _basins(pixels, mask, noise.threshold)
    real = np.flatnonzero(_above_pedestal(pixels, basins.peak, residual, noise.threshold, noise.fwhm))
    flux = np.asarray(np.bincount(basins.owner, np.maximum(pixels.light, 0), len(basins.peak)), np.float64)[real]
    y, x = np.divmod(pixels.index[basins.peak[real]].astype(float), image.shape[1])
    x, y = windowed_centroids(residual, x, y, noise.fwhm * SIGMA_PER_FWHM)
    return x[flux > 0], y[flux > 0], flux[flux > 0]


def _basins(pixels: Pixels, mask: U16, threshold: float) -> Basins:
    """The pixels divided among significant peaks."""
    least, saturated = np.empty(len(pixels.index), np.float32), np.empty(len(pixels.index), bool)
    known = (pixels.index, pixels.light, pixels.photons)
    flat = np.ascontiguousarray(mask).reshape(-1)
    prominences(known, np.float32(min(PROMINENCE, threshold)), flat, np.uint16(Mask.SATURATED), least, saturated)
    return find_basins(pixels.index, pixels.snr, mask.shape[1], least, fraction=PROMINENCE_FRACTION, together=saturated)


def _above_pedestal(pixels: Pixels, peak: INT, sky_off: F32, threshold: float, fwhm: float) -> BOOL:
    """False for peaks that only a bright star's wings or a halo lift above the threshold.

    The sky's meshes cannot follow those; the median of a ring around a faint peak does.
    """
    real = np.ones(len(peak), bool)
    faint = np.flatnonzero(pixels.snr[peak] < FAINT * threshold)
    ny, nx = sky_off.shape
    # In units of the filtered noise, and its own error: that of a median of so many pixels.
    reach = float(filter_taps(fwhm).sum()) ** 2
    least = PEDESTAL * 1.2533 * reach / np.sqrt(len(RING_X))
    y, x = np.divmod(pixels.index[peak[faint]], nx)
    high = np.empty(len(faint), bool)
    lifted(sky_off, x, y, (RING_X, RING_Y), np.float32(least / reach) * pixels.noise[peak[faint]], high)
    faint, x, y = faint[high], x[high], y[high]
    place = peak[faint]
    ring = sky_off[np.clip(y[:, None] + RING_Y, 0, ny - 1), np.clip(x[:, None] + RING_X, 0, nx - 1)]
    middle = len(RING_X) // 2
    level = np.partition(ring, middle, axis=1)[:, middle]
    pedestal = level / pixels.noise[place] * reach
    local = np.sqrt(1 + np.maximum(level, 0) * pixels.photons[place])
    real[faint[pixels.snr[place] - pedestal < threshold * local]] = False
    return real


def _table(pixels: Pixels, basins: Basins, real: INT, sky_off: F32, mask: U16, fwhm: float) -> Table:
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
    peak_x, peak_y, row, limit = np.empty(len(peak)), np.empty(len(peak)), -1, 0
    for k in range(len(peak)):
        peak_x[k], peak_y[k] = peak[k] % nx, peak[k] // nx
    for p in range(len(index)):
        while index[p] >= limit:
            row, limit = row + 1, limit + nx
        basin = owner[p]
        value, sums = max(float(light[p]), 0.0), out[basin]
        dx, dy = index[p] - (limit - nx) - peak_x[basin], row - peak_y[basin]
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
