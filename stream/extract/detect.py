"""Where something changed: peaks of either sign in the corrected matched-filter score.

The survey runs SExtractor on S_corr with an absolute threshold of 5, minimal area 1 and no filter
(``ztf-facts.md`` §5.4). S_corr is already filtered with the PSF, so a source is one smooth bump there: its
local maximum *is* the detection, and only the few pixels beyond the threshold need looking at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.lanczos import LOBES, lanczos_weights
from stream.core.records import F32
from stream.extract.stamps import gather

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Two maxima of one sign closer than this many FWHM are tested for being one source: beyond it the PSF of one
# has fallen to nothing under the other.
BLEND_REACH_FWHM = 3.0
# The valley between two sources must be this deep below the fainter one: 1.5 sigma, because ripples of the
# filtered noise on a bright source's flank are about 1 sigma, and 2 % of the brighter one, because PSF errors and
# the side lobes of the filter ring at that level.
VALLEY_SIGMA = 1.5
VALLEY_FRACTION = 0.02
_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


@dataclass(frozen=True, slots=True)
class Peaks:
    """Detections of both signs, sorted by (y, x).

    ``x``, ``y`` are the peak pixels (first is 0), ``sign`` +1 or -1, ``scorr`` the score there times the sign
    (always positive). ``n_dropped`` counts, for (positive, negative), the faintest peaks left out because a
    sign had more than the table holds.
    """

    x: I64
    y: I64
    sign: NDArray[np.int8]
    scorr: F32
    n_dropped: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.x)


def detect_peaks(scorr: F32, threshold: float, fwhm: float, max_rows: int) -> Peaks:
    """Local maxima of ``|scorr|`` that reach ``threshold``, for each sign apart, deblended.

    Parameters
    ----------
    scorr : ndarray, (ny, nx), float32
        Unit variance on empty sky; NaN where unusable (never a detection, no obstacle to a neighbour). The
        outermost row and column are not searched.
    threshold : float
        Absolute, in sigma, of the maximum between the pixels (``peak_values``).
    fwhm : float
        Of the difference PSF, px: the scale on which maxima may be one source.
    max_rows : int
        Most peaks kept of one sign; the faintest beyond are dropped and counted.

    Returns
    -------
    Peaks
    """
    ny, nx = scorr.shape
    flat = np.ascontiguousarray(scorr, np.float32).reshape(-1)
    least = corner_share(fwhm) * threshold
    pixels = np.flatnonzero((flat >= least) | (flat <= -least))
    y, x = np.divmod(pixels, nx)
    inside = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
    pixels = pixels[inside]
    sign = np.where(flat[pixels] > 0, 1, -1).astype(np.int8)
    value = flat[pixels] * sign
    top = np.ones(len(pixels), bool)
    for dy, dx in _NEIGHBOURS:
        other = flat[pixels + dy * nx + dx] * sign
        # Of equal neighbours the first in reading order is the peak.
        top &= ~(other > value) if (dy, dx) > (0, 0) else ~(other >= value)
    pixels, sign, value = pixels[top], sign[top], value[top]
    y, x = np.divmod(pixels, nx)
    high = peak_values(scorr, Peaks(x, y, sign, value)) >= threshold
    pixels, sign, value = pixels[high], sign[high], value[high]
    groups, dropped = [], []
    for s in (1, -1):
        mine = np.flatnonzero(sign == s)
        mine = mine[_separate(flat, nx, pixels[mine], value[mine], s, fwhm)]
        order = np.lexsort((pixels[mine], -value[mine]))
        dropped.append(max(len(mine) - max_rows, 0))
        groups.append(mine[order[:max_rows]])
    keep = np.sort(np.concatenate(groups))  # pixels ascend in reading order
    y, x = np.divmod(pixels[keep], nx)
    return Peaks(x, y, sign[keep], value[keep], (dropped[0], dropped[1]))


def _separate(flat: F32, nx: int, pixels: I64, value: F32, sign: int, fwhm: float) -> NDArray[np.bool_]:
    """Which peaks of one sign stand apart from every brighter one nearby (see ``VALLEY_SIGMA``)."""
    keep = np.ones(len(pixels), bool)
    if len(pixels) < 2:
        return keep
    y, x = np.divmod(pixels, nx)
    reach = max(BLEND_REACH_FWHM * fwhm, 3.0)
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(reach, output_type="ndarray")
    if not len(pairs):
        return keep
    swap = value[pairs[:, 0]] < value[pairs[:, 1]]
    bright = np.where(swap, pairs[:, 1], pairs[:, 0])
    faint = np.where(swap, pairs[:, 0], pairs[:, 1])
    steps = np.linspace(0.0, 1.0, int(np.ceil(reach)) + 2)[None, :]
    px = np.rint(x[bright, None] + steps * (x[faint] - x[bright])[:, None]).astype(np.int64)
    py = np.rint(y[bright, None] + steps * (y[faint] - y[bright])[:, None]).astype(np.int64)
    path = flat[py * nx + px] * sign
    # An unusable pixel between them is no valley: what is left of a saturated star is one thing.
    valley = np.min(np.where(np.isfinite(path), path, np.inf), axis=1)
    depth = np.maximum(VALLEY_SIGMA, VALLEY_FRACTION * value[bright])
    keep[faint[valley > value[faint] - depth]] = False
    return keep


def refine_peaks(scorr: F32, peaks: Peaks) -> tuple[F64, F64]:
    """Sub-pixel places of peaks (px, first is 0) from a parabola through each peak's row and column."""
    (dx, _), (dy, _) = (_parabola(scorr, peaks, *step) for step in ((0, 1), (1, 0)))
    return peaks.x + dx, peaks.y + dy


def corner_share(fwhm: float) -> float:
    """What the highest pixel of a source has of its maximum between the pixels if it lies on a pixel's corner.

    S_corr of a point is the PSF's autocorrelation: a Gaussian of twice the PSF's variance, half a pixel off both ways
    (0.75 at an FWHM of 1.55 px, 0.92 at 3). The threshold is on the maximum, so that the place in the pixel decides
    nothing.
    """
    return math.exp(-1 / (8 * (max(fwhm, 1.0) / 2.3548) ** 2))


def peak_values(scorr: F32, peaks: Peaks) -> F64:
    """Heights of peaks between the pixels: S_corr interpolated (Lanczos-5) at the places of ``refine_peaks``.

    At an FWHM of 1.55 px the parabolas' own tops are an eighth too low for a source on a pixel's corner. They stand in
    beside unusable pixels.
    """
    (dx, rise_x), (dy, rise_y) = (_parabola(scorr, peaks, *step) for step in ((0, 1), (1, 0)))
    rough: F64 = peaks.scorr + rise_x + rise_y
    exact = _interpolated(scorr, peaks.x + dx, peaks.y + dy) * peaks.sign
    return np.where(np.isfinite(exact), np.maximum(exact, peaks.scorr), rough)


def _interpolated(image: F32, x: F64, y: F64) -> F64:
    """Values at places (px), NaN where one of the 10 x 10 pixels has none or lies beyond the image."""
    ix, iy = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    across, down = lanczos_weights(x - ix), lanczos_weights(y - iy)
    taps = gather(image, ix, iy, LOBES)[:, 1:, 1:]  # from four before the pixel to five after it
    return np.asarray(np.einsum("nj,nji,ni->n", down, taps, across), np.float64)


def _parabola(scorr: F32, peaks: Peaks, dy: int, dx: int) -> tuple[F64, F64]:
    """Shift (px) and rise of each peak's maximum along one axis; 0 beside unusable pixels."""
    before = scorr[peaks.y - dy, peaks.x - dx] * peaks.sign
    after = scorr[peaks.y + dy, peaks.x + dx] * peaks.sign
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (before - after) / (before - 2 * peaks.scorr + after)
    shift = np.where(np.isfinite(shift), np.clip(shift, -0.5, 0.5), 0.0).astype(np.float64)
    slope = np.where(np.isfinite(before - after), before - after, 0.0)
    return shift, -0.25 * slope * shift
