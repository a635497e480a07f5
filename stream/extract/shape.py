"""Apertures, moments and pixel counts of many candidates at once, on stamps of the difference image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.records import F32

F64 = NDArray[np.float64]

APERTURE_RADIUS = 7.0  # px: magap is a 14-px DIAMETER (the schema; real packets confirm it, ztf-facts §5.8)
BIG_APERTURE_RADIUS = 9.0
# Windowed moments use a Gaussian of this many times the difference PSF's width. SExtractor's windowed moments
# have a window as wide as the source (factor 1), which gives the survey's aimage of 0.76 px at an FWHM of 2.5 px.
WINDOW = 1.0
_SIGMA_PER_FWHM = 1 / 2.3548200450309493
# A source whose windowed size fills the window to more than this has no measurable width of its own.
_MAX_FILL = 0.97
_CLASS_TOLERANCE = 0.35


def aperture_weights(dx: F64, dy: F64, radius: float, size: int) -> F32:
    """How much of each pixel a circle covers, (n, size, size); centre (dx, dy) px from the middle pixel.

    The edge is a ramp one pixel wide: within 0.3 % of the exact overlap in area for radii above 3 px.
    """
    offsets = np.arange(size) - size // 2
    x, y = ((offsets - d[:, None]).astype(np.float32) for d in (dx, dy))
    weights: F32 = np.sqrt(x[:, None, :] ** 2 + y[:, :, None] ** 2)
    np.subtract(np.float32(radius + 0.5), weights, out=weights)
    return np.clip(weights, np.float32(0), np.float32(1), out=weights)


def aperture_flux(data: F32, variance: F32, sky_variance: F64, dx: F64, dy: F64, radius: float) -> tuple[F64, F64]:
    """Sum in a circle and its error, with the error of the subtracted sky level in it.

    ``data`` has no NaN (unusable pixels replaced by the PSF model), ``sky_variance`` is that of the sky level.
    """
    weights = aperture_weights(dx, dy, radius, data.shape[1])
    flux = np.sum(weights * data, axis=(1, 2), dtype=np.float64)
    noise = np.sum(weights**2 * variance, axis=(1, 2), dtype=np.float64)
    area = weights.sum(axis=(1, 2), dtype=np.float64)
    error: F64 = np.sqrt(noise + area**2 * sky_variance)
    return np.asarray(flux), error


@dataclass(frozen=True, slots=True)
class Shape:
    """Windowed r.m.s. widths ``a`` >= ``b`` (px), position angle ``theta`` (rad, from x to y) and ``fwhm`` (px)
    of a Gaussian with those moments, the window taken out; NaN where noise leaves none."""

    a: F64
    b: F64
    theta: F64
    fwhm: F64


def windowed_shape(data: F32, dx: F64, dy: F64, window_fwhm: float) -> Shape:
    """Second moments of stamps about (dx, dy) under a Gaussian window as wide as the PSF.

    As SExtractor's ``AWIN_IMAGE``: the window stays in ``a`` and ``b`` (a Gaussian source as wide as the
    window gives its sigma over the square root of two), so their ratio is stable for faint sources.
    """
    sigma = WINDOW * window_fwhm * _SIGMA_PER_FWHM
    offsets = np.arange(data.shape[1]) - data.shape[1] // 2
    x = (offsets - dx[:, None])[:, None, :]
    y = (offsets - dy[:, None])[:, :, None]
    weighted = data * np.exp(-0.5 * (x**2 + y**2) / sigma**2)
    total = weighted.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        cxx = (weighted * x**2).sum(axis=(1, 2)) / total
        cyy = (weighted * y**2).sum(axis=(1, 2)) / total
        cxy = (weighted * x * y).sum(axis=(1, 2)) / total
        mean, half = 0.5 * (cxx + cyy), np.hypot(0.5 * (cxx - cyy), cxy)
        a, b = np.sqrt(mean + half), np.sqrt(mean - half)
        size = a * b
        narrow = 1 / size - 1 / sigma**2
        fwhm = np.where(size < _MAX_FILL * sigma**2, 1 / np.sqrt(narrow), np.nan) / _SIGMA_PER_FWHM
    measured = (total > 0) & (mean - half > 0)
    theta = 0.5 * np.arctan2(2 * cxy, cxx - cyy)
    return Shape(*(np.where(measured, v, np.nan) for v in (a, b, theta, fwhm)))


def star_likeness(fwhm: F64, psf_fwhm: float, snr: F64) -> F64:
    """1 for a source as wide as the PSF, to 0 for one much narrower or wider (stands where SExtractor's
    CLASS_STAR stood): a Gaussian in the logarithm of the width ratio, opened by the width's own noise."""
    with np.errstate(invalid="ignore", divide="ignore"):
        tolerance = np.hypot(_CLASS_TOLERANCE, 1 / snr)
        return np.exp(-0.5 * (np.log(fwhm / psf_fwhm) / tolerance) ** 2)


def sum_ratio(core: F32) -> F64:
    """sum(p) / sum(|p|) over 5x5 stamps (n, 5, 5) after a 3x3 median.

    The windows end at the stamp's edge and of an even number of pixels the lower middle one is taken: so the survey's
    values are reproduced exactly (388 real packets). NaN pixels are left out. Noise gives about -0.25..0.25, a source
    1.
    """
    # What is not there sorts to the end.
    padded = np.pad(np.where(np.isfinite(core), core, np.inf), ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).reshape(len(core), 5, 5, 9)
    count = np.isfinite(windows).sum(axis=-1, keepdims=True)
    middle = np.take_along_axis(np.sort(windows, axis=-1), np.maximum(count - 1, 0) // 2, axis=-1)[..., 0]
    smooth = np.where(count[..., 0] > 0, middle, 0.0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: F64 = smooth.sum(axis=(1, 2)) / np.abs(smooth).sum(axis=(1, 2))
    return ratio


def robust_rms(image: F32, max_samples: int = 200_000) -> float:
    """Standard deviation of an image's finite pixels from their median absolute deviation; NaN if none is finite.

    Every k-th pixel is used, with k odd so that no column is preferred.
    """
    flat = image.reshape(-1)
    step = max(flat.size // max_samples, 1) | 1
    sample = flat[::step]
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return float("nan")
    middle = np.median(sample)
    return float(1.482602218505602 * np.median(np.abs(sample - middle)))
