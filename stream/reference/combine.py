"""Many resampled images of one sky into one: outliers out, weighted mean, its uncertainty and coverage.

The rejection compares every input with the median of all and allows for what the sky's noise, the photons and the
seeing's changes do (a share of the signal, as SWarp's clipped combination, Gruen et al. 2014, PASP 126, 158). That
share is not a constant but what the inputs' own PSFs say (``seeing_changes``): were it too small, the sharpest input
would be clipped in bright stars and kept in faint ones, and the mean's PSF would depend on brightness, which no
subtraction can undo. It looks twice: at single pixels (cosmic rays) and at 3 x 3 means (asteroids and satellites too
faint to stand out pixel by pixel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.core.psf import STAMP, PsfModel
from stream.core.records import F32

# Variance of a 3 x 3 mean of resampled noise against that of white noise: neighbours share the kernel's lobes.
_MEAN3_NOISE = 1.1 / 3.0
_NEXT = np.ones((3, 3), bool)
# An interpolated star of FWHM 1.7 px is off by this share of its peak as far as the kernel reaches (5 px), depending on
# its phase (``core.resample``): no outlier either.
_RINGING = 0.03
_RINGING_REACH = 11  # px, the whole width of the kernel
# The median's noise over the mean's; the brightest of nine pixels of noise is seldom above three times it.
_MEDIAN_NOISE, _NO_LIGHT = 1.25, 3.0
# Above what the PSF models say: stars lie off them by their errors, and the median is not the models' median.
_SEEING_MARGIN = 1.3
# Pixels of the PSF below this share of its peak do not decide: there the sky's noise allows for everything but in the
# few stars next to saturation, and the wings' ratio has no limit.
_SEEING_FAINTEST = 1e-3


@dataclass(frozen=True, slots=True)
class CombineConfig:
    """How outliers are told from noise."""

    clip: float = 4.0  # sigma
    hold: float = 2.5  # sigma of a 3 x 3 mean that hangs together with one above `clip`
    signal: float = 0.3  # least share of the median by which seeing may change a pixel (Gruen et al.'s A)
    rows: int = 128  # rows combined at a time: bounds the memory of the sort


@dataclass(frozen=True, slots=True)
class InputNoise:
    """Per input, in reference DN: ``sky`` noise per pixel before resampling, ``photon`` variance per DN of signal.

    ``seeing`` (None: unknown): share of the brightest neighbour's signal by which its PSF differs from the others'.
    """

    sky: NDArray[np.float64]
    photon: NDArray[np.float64]
    seeing: NDArray[np.float64] | None = None

    @property
    def weights(self) -> NDArray[np.float64]:
        """Inverse sky variance."""
        out: NDArray[np.float64] = 1.0 / self.sky**2
        return out


@dataclass(frozen=True, slots=True)
class Combined:
    """``data`` (NaN: nothing left), 1-sigma ``unc``, ``coverage``: inputs used, ``rejected``: share clipped."""

    data: F32
    unc: F32
    coverage: NDArray[np.int16]
    rejected: float


def seeing_changes(psfs: Sequence[PsfModel]) -> NDArray[np.float64]:
    """By what share of the median star's light each input's star may differ from it, pixel by pixel, (n,).

    The largest difference that the PSF models show at nine places of the image and four phases, relative to the
    brightest of a pixel's neighbours, with a margin.
    """
    fractions = (np.arange(3) + 0.5) / 3
    phases = np.array([(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
    stars = []
    for psf in psfs:
        ny, nx = psf.shape
        place_y, place_x = (v.ravel() for v in np.meshgrid(np.rint(fractions * ny), np.rint(fractions * nx)))
        x, y = (place_x[:, None] + phases[:, 0] * 0.98).ravel(), (place_y[:, None] + phases[:, 1] * 0.98).ravel()
        stars.append(psf.stamps(x, y, STAMP))
    stack = np.stack(stars)
    # Of two the lower, as `combine` takes it.
    centre = stack.min(axis=0) if len(stack) == 2 else np.median(stack, axis=0)
    brightest = ndimage.maximum_filter(centre, (1, 3, 3))
    counts = brightest > _SEEING_FAINTEST * centre.max(axis=(1, 2), keepdims=True)
    changes = np.where(counts, np.abs(stack - centre) / np.where(counts, brightest, 1), 0)
    return np.asarray(_SEEING_MARGIN * changes.max(axis=(1, 2, 3)), np.float64)


def combine(
    stack: NDArray[np.float32], noise: InputNoise, config: CombineConfig | None = None, light: F32 | None = None
) -> Combined:
    """Robust weighted mean of images on one grid.

    Parameters
    ----------
    stack : ndarray, (n, ny, nx), float32
        Sky-subtracted, on one flux scale; NaN where an input has nothing to say.
    noise : InputNoise
    config : CombineConfig, optional
    light : ndarray, (ny, nx), float32, optional
        Light of stars that has been taken out of all of the stack: it is in the result again, and its photons and
        errors of its models count as noise.

    Returns
    -------
    Combined
        ``unc`` is white-equivalent: what the noise per pixel is for sums over several pixels. The scatter from pixel
        to pixel is lower, by 0.93 where all sub-pixel phases occur alike (``noise_left``), the interpolation having
        spread it.
    """
    config = config or CombineConfig()
    ny, nx = stack.shape[1:]
    data = np.empty((ny, nx), np.float32)
    unc = np.empty((ny, nx), np.float32)
    coverage = np.empty((ny, nx), np.int16)
    n_rejected = n_valid = 0
    halo = 8  # rows beyond a block that the neighbourhoods of the tests reach
    for start in range(0, ny, config.rows):
        low, high = max(start - halo, 0), min(start + config.rows + halo, ny)
        block = stack[:, low:high]
        shine = np.zeros(block.shape[1:], np.float32) if light is None else light[low:high]
        keep = _keep(block, shine, noise, config)
        inner = np.s_[start - low : min(start + config.rows, ny) - low]
        rows = np.s_[start : min(start + config.rows, ny)]
        valid = np.isfinite(block[:, inner])
        n_valid += int(valid.sum())
        n_rejected += int(valid.sum() - keep[:, inner].sum())
        data[rows], unc[rows], coverage[rows] = _weighted_mean(block[:, inner], keep[:, inner], shine[inner], noise)
    if light is not None:
        data += light
    return Combined(data, unc, coverage, n_rejected / max(n_valid, 1))


def _keep(block: F32, light: F32, noise: InputNoise, config: CombineConfig) -> NDArray[np.bool_]:
    """Which values of a block (n, rows, nx) are not outliers."""
    valid = np.isfinite(block)
    if len(block) == 1:
        return valid
    count = valid.sum(axis=0)
    centre = _median(block, count)
    pair = count == 2
    # Of two the median is the lower: the other is off it by the noise of both.
    wider = np.where(pair, np.float32(np.sqrt(2)), np.float32(1))
    # The brightest neighbour counts: on a star's steep flank a change of seeing moves a pixel by its neighbour's light.
    signal = ndimage.maximum_filter(np.abs(centre + light), 3)
    # What may be noise of the median is no light that could change: allowed for, it would let every faint trail in.
    # Of two the lower is dark in the wings that only the blurred one has.
    dark = np.float32(_NO_LIGHT * _MEDIAN_NOISE * _typical_sky(noise))
    lit = np.where(pair, signal, np.maximum(signal - dark, np.float32(0)))
    ringing = np.float32(_RINGING) * ndimage.maximum_filter(lit, _RINGING_REACH)
    shares = np.full(len(block), config.signal)
    if noise.seeing is not None:
        shares = np.maximum(shares, noise.seeing)
    keep = valid.copy()
    for i, values in enumerate(block):
        allowed = np.maximum(np.float32(shares[i]) * lit, ringing)
        deviation = np.where(valid[i], values - centre, np.float32(0))
        sigma = np.sqrt(np.float32(noise.sky[i] ** 2) + np.float32(noise.photon[i]) * signal) * wider
        keep[i] &= np.abs(deviation) <= np.float32(config.clip) * sigma + allowed
        keep[i] &= ~_faint(deviation, np.float32(_MEAN3_NOISE) * sigma, allowed, config)
    # Where all were thrown out (they disagree with their own median) the plain mean is still the best guess.
    nothing = ~keep.any(axis=0)
    keep |= valid & nothing
    return keep


def _faint(deviation: F32, sigma: F32, allowed: F32, config: CombineConfig) -> NDArray[np.bool_]:
    """What stands out in 3 x 3 means only, of noise ``sigma``, and its surroundings."""
    excess = np.abs(ndimage.uniform_filter(deviation, 3)) - allowed
    faint: NDArray[np.bool_] = excess > np.float32(config.clip) * sigma
    if not faint.any():
        return faint
    # Along a trail noise lifts some places above the limit and not others: what hangs together goes together.
    faint = ndimage.binary_propagation(faint, _NEXT, excess > np.float32(config.hold) * sigma)
    wide: NDArray[np.bool_] = ndimage.binary_dilation(faint, _NEXT, iterations=2)
    return wide


def _typical_sky(noise: InputNoise) -> float:
    """1-sigma noise per pixel of a mean of all inputs, were they alike."""
    return float(np.median(noise.sky) / np.sqrt(len(noise.sky)))


def _median(block: F32, count: NDArray[np.intp]) -> F32:
    """Median over the inputs, the lower of two for two: what contaminates is bright. NaN (sorted last) ignored."""
    ordered = np.sort(block, axis=0)
    low = np.maximum((count - 1) // 2, 0)
    high = np.where(count == 2, low, count // 2)
    high = np.minimum(high, np.maximum(count - 1, 0))
    a = np.take_along_axis(ordered, low[None], axis=0)[0]
    b = np.take_along_axis(ordered, high[None], axis=0)[0]
    centre: F32 = np.where(count > 0, (a + b) * np.float32(0.5), np.float32(0))
    return centre


def _weighted_mean(
    block: F32, keep: NDArray[np.bool_], light: F32, noise: InputNoise
) -> tuple[F32, F32, NDArray[np.int16]]:
    weights = noise.weights.astype(np.float32)
    total = np.zeros(block.shape[1:], np.float32)
    weight = np.zeros(block.shape[1:], np.float32)
    photon = np.zeros(block.shape[1:], np.float32)
    for i, values in enumerate(block):
        w = keep[i] * weights[i]
        total += np.where(keep[i], values, np.float32(0)) * w
        weight += w
        photon += w * w * np.float32(noise.photon[i])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(weight > 0, total / weight, np.float32(np.nan))
        variance = 1 / weight + np.maximum(mean + light, 0) * photon / (weight * weight)
        unc = np.where(weight > 0, np.sqrt(variance), np.float32(np.nan))
    return mean.astype(np.float32), unc.astype(np.float32), keep.sum(axis=0).astype(np.int16)
