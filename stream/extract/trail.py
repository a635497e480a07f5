"""One trailed source: its model, a search along a line, and a least-squares fit of its ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from stream.core.records import F32, Difference
from stream.extract.trailkernels import best_run, fit_ends, score_along, weighed_places

F64 = NDArray[np.float64]

_SIGMA_PER_FWHM = 1 / 2.3548200450309493
# Half width in px of the strip that is searched and fitted beside a line, in PSF sigma: nothing of the trail is left.
_STRIP = 4.0
# Sum of S_corr over root of length: neighbouring values share the PSF, so noise has a spread of about 1.9 here and the
# best extent on a line through a noise clump reaches 7.5 in the median, 9.3 at most of a quadrant's.
_HOPELESS = 8.0
# A trail is as bright in the middle of its pieces (this many px each) as on average; stars in a row leave most empty.
_PIECE = 4
_EVEN = 0.5

# The clipping keeps one star on the line from being the whole line, in the row along it and beside it.
_CLIP = -3.0, 8.0
_WEIGHED = 1.5, 8.0

# Steps of the fit at most (a real trail settles in about six; what wanders longer is none), an end's longest move in
# one (px), and the move at which it is settled: far below any error.
_MAX_STEPS, _MAX_MOVE, _SETTLED = 16, 20.0, 5e-3


@dataclass(frozen=True, slots=True)
class Line:
    """A segment in px, first is 0."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def length(self) -> float:
        """Length in px."""
        return math.hypot(self.x2 - self.x1, self.y2 - self.y1)

    def distance(self, x: float, y: float) -> float:
        """Distance of a place from the segment, px."""
        length = max(self.length, 1e-9)
        ux, uy = (self.x2 - self.x1) / length, (self.y2 - self.y1) / length
        along = min(max((x - self.x1) * ux + (y - self.y1) * uy, 0.0), length)
        return math.hypot(x - self.x1 - along * ux, y - self.y1 - along * uy)


@dataclass(frozen=True, slots=True)
class TrailFit:
    """A fitted trail: ends, total flux and error (DN), errors of length (px), angle (deg), place across (px).

    ``clumpiness`` is what the trail leaves unexplained beyond noise, over what it explains (chi squared both):
    near 0 for a trail, above 1 for stars that happen to stand in a row.
    """

    line: Line
    flux: float
    fluxerr: float
    sig_length: float
    sig_angle: float
    sig_cross: float
    chi2: float
    clumpiness: float

    @property
    def snr(self) -> float:
        """Flux over its error."""
        return self.flux / self.fluxerr


def trail_profile(x: F64, y: F64, line: Line, sigma: float) -> F64:
    """Unit-flux model of a Gaussian PSF drawn along a segment at constant speed, at pixel places.

    (Vereš et al. 2012, PASP 124, 1197: the trail fit of moving objects.)
    """
    length = max(line.length, 1e-3)
    ux, uy = (line.x2 - line.x1) / length, (line.y2 - line.y1) / length
    mx, my = 0.5 * (line.x1 + line.x2), 0.5 * (line.y1 + line.y2)
    along = (x - mx) * ux + (y - my) * uy
    across = -(x - mx) * uy + (y - my) * ux
    root = math.sqrt(2.0) * sigma
    ends = erf((along + length / 2) / root) - erf((along - length / 2) / root)
    profile: F64 = np.exp(-0.5 * (across / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma) * ends / (2 * length)
    return profile


@lru_cache(maxsize=64)
def _lengths(most: int) -> NDArray[np.int64]:
    return np.unique(np.round(np.geomspace(2, most, 40)).astype(np.int64))


def best_extent(values: F64, max_length: int, low: float = -math.inf, high: float = math.inf) -> tuple[int, int, float]:
    """The run [i, j) of a row of unit-variance values, clipped to ``low`` and ``high``, with the greatest sum over root
    of length, and that figure."""
    return best_run(values, _lengths(min(max_length, len(values))), low, high, np.empty(len(values) + 1))


def trace(scorr: F32, x: float, y: float, angle: float, max_length: int) -> tuple[Line, float] | None:
    """Follow a line through a place as far as the score (C order) carries it.

    Returns the segment and its significance estimate along the line (sum of S_corr over root of its
    length), or None where the line is no more than noise or a few stars in a row. The angle (rad, from x to
    y) is improved twice by a straight fit to the significant pixels beside the line.
    """
    line: Line | None = None
    score = -math.inf
    row, known = np.empty(2 * max_length + 1), np.empty(2 * max_length + 1, bool)
    for _ in range(3):
        ux, uy = math.cos(angle), math.sin(angle)
        score_along(scorr, x, y, ux, uy, row, known)
        i, j, score = best_extent(row, max_length, *_CLIP)
        first, last = i - max_length, j - 1 - max_length
        line = Line(x + first * ux, y + first * uy, x + last * ux, y + last * uy)
        if score < _HOPELESS or not _is_even(row[i:j][known[i:j]]):
            return None
        total, mx, my, cxx, cyy, cxy = weighed_places(scorr, line.x1, line.y1, line.x2, line.y2, *_WEIGHED)
        if total <= 0:
            break
        x, y, angle = mx, my, 0.5 * math.atan2(2 * cxy, cxx - cyy)
    return None if line is None or line.length < 1 else (line, score)


def _is_even(values: F64) -> bool:
    """Whether the usable values along a segment are spread over it as a trail's are."""
    n = len(values) // _PIECE
    if n < 3:
        return True
    pieces = values[: n * _PIECE].reshape(n, _PIECE).mean(axis=1)
    return bool(np.median(pieces) >= _EVEN * pieces.mean())


def fit_trail(difference: Difference, sign: int, start: Line) -> TrailFit | None:
    """Least-squares fit of a trail to the difference image; None where it cannot be fitted.

    Five unknowns, the flux and the ends; the width is the difference PSF's.
    """
    sigma = difference.fwhm * _SIGMA_PER_FWHM
    x, y, data, noise = _strip(difference, sign, start, sigma)
    if len(data) < 30:
        return None
    ny, nx = difference.data.shape
    # Beyond the image nothing holds an end: there it stays on the border.
    bounds = np.array([[-0.5] * 4, [nx - 0.5, ny - 0.5, nx - 0.5, ny - 0.5]])
    ends = np.clip([start.x1, start.y1, start.x2, start.y2], bounds[0] + 0.1, bounds[1] - 0.1)
    normal = np.empty((5, 5))
    # Derivatives are analytic: a general solver with numerical ones costs ten times as much for the same answer.
    settled, flux = fit_ends((x, y, data, noise), sigma, ends, bounds, (_MAX_STEPS, _MAX_MOVE, _SETTLED), normal)
    if not settled:
        return None
    line = Line(*ends.tolist())
    residual = data - flux * trail_profile(x, y, line, sigma) / noise
    fluxerr = 1.0 / math.sqrt(max(float(normal[0, 0]), 1e-300))
    try:
        covariance = np.linalg.inv(normal)[1:, 1:]
    except np.linalg.LinAlgError:
        return None
    snr = flux / fluxerr
    clumpiness = _excess(residual) / max(snr**2, 1e-9)
    along: F64 = np.array([line.x2 - line.x1, line.y2 - line.y1]) / max(line.length, 1e-9)
    across: F64 = np.array([-along[1], along[0]])
    chi2 = float(residual @ residual) / max(len(data) - 5, 1)
    return TrailFit(
        line,
        flux,
        fluxerr,
        _error(covariance, np.concatenate([-along, along])),
        math.degrees(_error(covariance, np.concatenate([-across, across])) / max(line.length, 1e-9)),
        _error(covariance, 0.5 * np.concatenate([across, across])),
        chi2,
        clumpiness,
    )


def _excess(residual: F64) -> float:
    """Chi squared of residuals beyond what noise leaves; their own spread is the noise, so that a wrong error map
    does not matter."""
    variance = max((1.4826 * float(np.median(np.abs(residual)))) ** 2, 1e-12)
    n = len(residual)
    # Five standard deviations of chi squared are noise's share.
    return max(float(residual @ residual) / variance - n - 5.0 * math.sqrt(2.0 * n), 0.0)


def _error(covariance: NDArray[np.floating], direction: NDArray[np.floating]) -> float:
    """Standard deviation of a linear combination."""
    return math.sqrt(max(float(direction @ covariance @ direction), 0.0))


def _strip(difference: Difference, sign: int, line: Line, sigma: float) -> tuple[F64, F64, F64, F64]:
    """Usable pixels around a segment: places, signed values over their noise, and the noise."""
    ny, nx = difference.data.shape
    margin = _STRIP * sigma + 3.0
    reach = margin + 0.15 * line.length  # the trace may have stopped short of a faint end
    length = max(line.length, 1e-9)
    ux, uy = (line.x2 - line.x1) / length, (line.y2 - line.y1) / length
    x0, x1 = sorted((line.x1, line.x2))
    y0, y1 = sorted((line.y1, line.y2))
    xs = np.arange(max(int(x0 - reach), 0), min(int(x1 + reach) + 1, nx))
    ys = np.arange(max(int(y0 - reach), 0), min(int(y1 + reach) + 1, ny))
    gx, gy = np.meshgrid(xs, ys)
    along = (gx - line.x1) * ux + (gy - line.y1) * uy
    across = -(gx - line.x1) * uy + (gy - line.y1) * ux
    near = (np.abs(across) <= margin) & (along >= -reach) & (along <= length + reach)
    gx, gy = gx[near], gy[near]
    data, noise = difference.data[gy, gx].astype(np.float64) * sign, difference.sigma[gy, gx].astype(np.float64)
    good = np.isfinite(data) & np.isfinite(noise) & (noise > 0)
    return gx[good].astype(float), gy[good].astype(float), data[good] / noise[good], noise[good]
