"""One trailed source: its model, a search along a line, and a least-squares fit of its ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from stream.core.records import F32, Difference
from stream.extract.stamps import gather_at

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


def trail_terms(x: F64, y: F64, line: Line, sigma: float) -> F64:
    """``trail_profile`` and its derivatives with respect to x1, y1, x2, y2; (5, n)."""
    length = max(line.length, 1e-3)
    ux, uy = (line.x2 - line.x1) / length, (line.y2 - line.y1) / length
    mx, my = 0.5 * (line.x1 + line.x2), 0.5 * (line.y1 + line.y2)
    along = (x - mx) * ux + (y - my) * uy
    across = -(x - mx) * uy + (y - my) * ux
    root = math.sqrt(2.0) * sigma
    first, second = (along + length / 2) / root, (along - length / 2) / root
    width = np.exp(-0.5 * (across / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma * 2 * length)
    profile = width * (erf(first) - erf(second))
    edge = 2 / (math.sqrt(math.pi) * root)
    rise, fall = edge * np.exp(-(first**2)), edge * np.exp(-(second**2))
    by_along = width * (rise - fall)
    by_length = 0.5 * width * (rise + fall) - profile / length
    by_across = -across / sigma**2 * profile
    turn = (by_along * across - by_across * along) / length  # by the direction's turning with an end that moves aside
    shift_x = 0.5 * (by_across * uy - by_along * ux)
    shift_y = -0.5 * (by_across * ux + by_along * uy)
    return np.stack(
        [
            profile,
            shift_x + uy * turn - ux * by_length,
            shift_y - ux * turn - uy * by_length,
            shift_x - uy * turn + ux * by_length,
            shift_y + ux * turn + uy * by_length,
        ]
    )


def best_extent(values: F64, max_length: int) -> tuple[int, int, float]:
    """The run [i, j) of a row of unit-variance values with the greatest sum over root of length, and that figure."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    n = len(values)
    best = (0, 1, -math.inf)
    lengths = np.unique(np.round(np.geomspace(2, min(max_length, n), 40)).astype(int))
    for length in lengths.tolist():
        scores = (total[length:] - total[:-length]) / math.sqrt(length)
        i = int(np.argmax(scores))
        if scores[i] > best[2]:
            best = (i, i + length, float(scores[i]))
    return best


def trace(scorr: F32, x: float, y: float, angle: float, max_length: int) -> tuple[Line, float] | None:
    """Follow a line through a place as far as the score carries it.

    Returns the segment and its significance estimate along the line (sum of S_corr over root of its
    length), or None where the line is no more than noise or a few stars in a row. The angle (rad, from x to
    y) is improved twice by a straight fit to the significant pixels beside the line.
    """
    line: Line | None = None
    score = -math.inf
    for _ in range(3):
        steps = np.arange(-max_length, max_length + 1)
        ux, uy = math.cos(angle), math.sin(angle)
        across = np.array([-1, 0, 1])[:, None]
        px = np.rint(x + steps * ux - across * uy).astype(np.int64)
        py = np.rint(y + steps * uy + across * ux).astype(np.int64)
        band = gather_at(scorr, px, py).astype(np.float64)
        row = np.nan_to_num(band).mean(axis=0)
        # The clipping keeps one star on the line from being the whole line.
        i, j, score = best_extent(np.clip(row, -3.0, 8.0), max_length)
        line = Line(x + steps[i] * ux, y + steps[i] * uy, x + steps[j - 1] * ux, y + steps[j - 1] * uy)
        if score < _HOPELESS or not _is_even(row[i:j][np.isfinite(band[1, i:j])]):
            return None
        refined = _straighten(scorr, line)
        if refined is None:
            break
        x, y, angle = refined
    return None if line is None or line.length < 1 else (line, score)


def _is_even(values: F64) -> bool:
    """Whether the usable values along a segment are spread over it as a trail's are."""
    n = len(values) // _PIECE
    if n < 3:
        return True
    pieces = values[: n * _PIECE].reshape(n, _PIECE).mean(axis=1)
    return bool(np.median(pieces) >= _EVEN * pieces.mean())


def _straighten(scorr: F32, line: Line) -> tuple[float, float, float] | None:
    """Centroid and direction (rad) of the significant pixels within 3 px of a segment."""
    steps = np.linspace(0, 1, max(int(line.length) + 1, 2))
    length = max(line.length, 1e-9)
    ux, uy = (line.x2 - line.x1) / length, (line.y2 - line.y1) / length
    across = np.arange(-3, 4)[:, None]
    gx = line.x1 + steps * (line.x2 - line.x1) - across * uy
    gy = line.y1 + steps * (line.y2 - line.y1) + across * ux
    px, py = np.rint(gx).astype(np.int64), np.rint(gy).astype(np.int64)
    weight = np.clip(np.nan_to_num(gather_at(scorr, px, py)).astype(np.float64) - 1.5, 0.0, 8.0)
    total = weight.sum()
    if total <= 0:
        return None
    mx, my = float((weight * px).sum() / total), float((weight * py).sum() / total)
    cxx, cyy = (weight * (px - mx) ** 2).sum(), (weight * (py - my) ** 2).sum()
    cxy = (weight * (px - mx) * (py - my)).sum()
    return mx, my, float(0.5 * math.atan2(2 * cxy, cxx - cyy))


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
    low, high = np.full(4, -0.5), np.array([nx - 0.5, ny - 0.5, nx - 0.5, ny - 0.5])
    ends = np.clip([start.x1, start.y1, start.x2, start.y2], low + 0.1, high - 0.1)
    solved = _least_squares(x, y, data, noise, sigma, ends, (low, high))
    if solved is None:
        return None
    ends, flux, residual, normal = solved
    line = Line(*(float(v) for v in ends))
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


def _least_squares(
    x: F64, y: F64, data: F64, noise: F64, sigma: float, ends: F64, bounds: tuple[F64, F64]
) -> tuple[F64, float, F64, F64] | None:
    """Levenberg-Marquardt in the ends, the flux solved linearly at each: ends, flux, residuals, normal matrix (5, 5).

    Derivatives are analytic: a general solver with numerical ones costs ten times as much for the same answer. None
    where it does not settle.
    """

    def solve(p: F64) -> tuple[float, F64, F64]:
        terms = trail_terms(x, y, Line(*p), sigma) / noise
        flux = float(terms[0] @ data) / max(float(terms[0] @ terms[0]), 1e-300)
        return flux, data - flux * terms[0], terms

    flux, residual, terms = solve(ends)
    cost, damping = float(residual @ residual), 1e-3
    for _ in range(_MAX_STEPS):
        jacobian = np.concatenate([terms[:1], flux * terms[1:]])
        normal = jacobian @ jacobian.T
        damped = normal + np.diag(damping * np.diagonal(normal) + 1e-12)
        if not np.isfinite(damped).all():
            return None
        step = np.linalg.solve(damped, jacobian @ residual)[1:]
        trial = np.clip(ends + np.clip(step, -_MAX_MOVE, _MAX_MOVE), *bounds)
        flux_t, residual_t, terms_t = solve(trial)
        cost_t = float(residual_t @ residual_t)
        if cost_t < cost:
            moved, gained = float(np.abs(trial - ends).max()), cost - cost_t
            ends, flux, residual, terms, cost = trial, flux_t, residual_t, terms_t, cost_t
            damping = max(0.1 * damping, 1e-7)
            if moved < _SETTLED or gained < 1e-5 * cost:
                break
        else:
            damping *= 10.0
            if damping > 1e6:
                break
    else:
        return None
    jacobian = np.concatenate([terms[:1], flux * terms[1:]])
    return ends, flux, residual, jacobian @ jacobian.T


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
