"""The loops of the search for trails: a row of the score along a line, and the fit of a trail's ends.

Some hundred lines are followed and fitted in a quadrant of the galactic plane, each over a few hundred pixels: calls of
numpy on so little take ten times their arithmetic. Arrays are float64 but ``scorr`` (float32, C order).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
B1 = NDArray[np.bool_]

FLUX_AND_ENDS = 5


@compiled
def score_along(scorr: F32, x: float, y: float, ux: float, uy: float, row: F64, known: B1) -> None:
    """Mean score of three pixels across a line, at steps of 1 px to both sides of a place, into ``row`` (odd length);
    ``known`` becomes whether the middle one has a value. Pixels without one count as 0."""
    ny, nx = scorr.shape
    middle = len(row) // 2
    for k in range(len(row)):
        step, total = k - middle, 0.0
        known[k] = False
        for side in range(-1, 2):
            px = int(np.rint(x + step * ux - side * uy))
            py = int(np.rint(y + step * uy + side * ux))
            if 0 <= px < nx and 0 <= py < ny:
                value = scorr[py, px]
                if math.isfinite(value):
                    total += value
                    if side == 0:
                        known[k] = True
        row[k] = total / 3


@compiled
def best_run(row: F64, lengths: NDArray[np.int64], low: float, high: float, total: F64) -> tuple[int, int, float]:
    """The run [i, j) of a row, its values clipped to ``low`` and ``high``, with the greatest sum over root of length,
    of the lengths asked for, and that figure. ``total`` is room for one value more than the row has."""
    n = len(row)
    total[0] = 0.0
    for k in range(n):
        total[k + 1] = total[k] + min(max(row[k], low), high)
    first, last, best = 0, 1, -math.inf
    for length in lengths:
        scale = 1 / math.sqrt(length)
        for i in range(n - length + 1):
            score = (total[i + length] - total[i]) * scale
            if score > best:
                first, last, best = i, i + length, score
    return first, last, best


@compiled
def weighed_places(
    scorr: F32, x1: float, y1: float, x2: float, y2: float, threshold: float, most: float
) -> tuple[float, float, float, float, float, float]:
    """Sum of weights (score above ``threshold``, at most ``most``) of the pixels within 3 px of a segment, their means
    of x and y and sums of the squares and product about them: total, mx, my, cxx, cyy, cxy."""
    ny, nx = scorr.shape
    length = max(math.hypot(x2 - x1, y2 - y1), 1e-9)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    steps = max(int(np.rint(length)) + 1, 2)  # a run of pixels has a whole length but for rounding
    total = sx = sy = sxx = syy = sxy = 0.0
    for side in range(-3, 4):
        for k in range(steps):
            share = k / (steps - 1)
            px = int(np.rint(x1 + share * (x2 - x1) - side * uy))
            py = int(np.rint(y1 + share * (y2 - y1) + side * ux))
            if not (0 <= px < nx and 0 <= py < ny):
                continue
            value = scorr[py, px] - threshold
            if value > 0:  # False for NaN
                w, dx, dy = min(value, most), px - x1, py - y1
                total += w
                sx += w * dx
                sy += w * dy
                sxx += w * dx * dx
                syy += w * dy * dy
                sxy += w * dx * dy
    if total <= 0:
        return 0.0, x1, y1, 0.0, 0.0, 0.0
    mx, my = sx / total, sy / total
    return total, x1 + mx, y1 + my, sxx - mx * sx, syy - my * sy, sxy - mx * sy


@inner
def _sums(x: F64, y: F64, data: F64, noise: F64, sigma: float, ends: F64, gram: F64, right: F64) -> float:
    """Products of a trail's five terms over the noise (profile of unit flux, its slopes by x1, y1, x2, y2) with each
    other (``gram``, its lower half) and with the data (``right``); the data's own square is returned."""
    for i in range(FLUX_AND_ENDS):
        right[i] = 0.0
        for j in range(i + 1):
            gram[i, j] = 0.0
    dx, dy = ends[2] - ends[0], ends[3] - ends[1]
    length = max(math.hypot(dx, dy), 1e-3)
    ux, uy = dx / length, dy / length
    mx, my = 0.5 * (ends[0] + ends[2]), 0.5 * (ends[1] + ends[3])
    root = math.sqrt(2.0) * sigma
    scale = 1 / (math.sqrt(2 * math.pi) * sigma * 2 * length)
    edge = 2 / (math.sqrt(math.pi) * root)
    square = 0.0
    for k in range(len(data)):
        along = (x[k] - mx) * ux + (y[k] - my) * uy
        across = -(x[k] - mx) * uy + (y[k] - my) * ux
        first, second = (along + length / 2) / root, (along - length / 2) / root
        weight, value = 1 / noise[k], data[k]
        width = math.exp(-0.5 * (across / sigma) ** 2) * scale * weight
        profile = width * (math.erf(first) - math.erf(second))
        rise, fall = edge * math.exp(-(first**2)), edge * math.exp(-(second**2))
        by_along = width * (rise - fall)
        by_length = 0.5 * width * (rise + fall) - profile / length
        by_across = -across / sigma**2 * profile
        turn = (by_along * across - by_across * along) / length  # an end that moves aside turns the direction
        shift_x = 0.5 * (by_across * uy - by_along * ux)
        shift_y = -0.5 * (by_across * ux + by_along * uy)
        ax, ay = shift_x + uy * turn - ux * by_length, shift_y - ux * turn - uy * by_length
        bx, by = shift_x - uy * turn + ux * by_length, shift_y + ux * turn + uy * by_length
        square += value * value
        right[0] += profile * value
        right[1] += ax * value
        right[2] += ay * value
        right[3] += bx * value
        right[4] += by * value
        gram[0, 0] += profile * profile
        gram[1, 0] += ax * profile
        gram[1, 1] += ax * ax
        gram[2, 0] += ay * profile
        gram[2, 1] += ay * ax
        gram[2, 2] += ay * ay
        gram[3, 0] += bx * profile
        gram[3, 1] += bx * ax
        gram[3, 2] += bx * ay
        gram[3, 3] += bx * bx
        gram[4, 0] += by * profile
        gram[4, 1] += by * ax
        gram[4, 2] += by * ay
        gram[4, 3] += by * bx
        gram[4, 4] += by * by
    return square


@inner
def _equations(gram: F64, right: F64, square: float, normal: F64, force: F64) -> tuple[float, float]:
    """Flux and cost (chi squared) of a place; ``normal`` (5, 5) and ``force`` (5,) of flux and ends there."""
    flux = right[0] / max(gram[0, 0], 1e-300)
    for i in range(FLUX_AND_ENDS):
        si = 1.0 if i == 0 else flux
        force[i] = si * (right[i] - flux * gram[i, 0])
        for j in range(i + 1):
            sj = 1.0 if j == 0 else flux
            normal[i, j] = normal[j, i] = si * sj * gram[i, j]
    return flux, square - flux * right[0]


@inner
def _solved(normal: F64, force: F64, damping: float, low: F64, step: F64) -> bool:
    """The damped step by Cholesky's method; False where the matrix is not positive. ``low`` is room for (5, 5)."""
    n = FLUX_AND_ENDS
    for i in range(n):
        for j in range(i + 1):
            total = normal[i, j] + (damping * normal[i, i] + 1e-12 if i == j else 0.0)
            for k in range(j):
                total -= low[i, k] * low[j, k]
            if i == j:
                if not total > 0:  # NaN too
                    return False
                low[i, i] = math.sqrt(total)
            else:
                low[i, j] = total / low[j, j]
    for i in range(n):
        total = force[i]
        for k in range(i):
            total -= low[i, k] * step[k]
        step[i] = total / low[i, i]
    for i in range(n - 1, -1, -1):
        total = step[i]
        for k in range(i + 1, n):
            total -= low[k, i] * step[k]
        step[i] = total / low[i, i]
    return True


@compiled
def fit_ends(
    pixels: tuple[F64, F64, F64, F64], sigma: float, ends: F64, bounds: F64, limits: tuple[int, float, float],
    normal: F64,
) -> tuple[bool, float]:  # fmt: skip
    """Levenberg-Marquardt in a trail's ends, the flux solved linearly at each.

    ``pixels`` are x, y, data over noise, noise (n,); ``ends`` (4,) x1, y1, x2, y2, moved in place within ``bounds``
    (2, 4); ``limits`` the steps at most, an end's longest move in one, and the move at which it is settled.
    ``normal`` (5, 5) becomes the normal matrix of flux and ends. Returns whether it settled, and the flux.
    """
    x, y, data, noise = pixels
    most, longest, settled = limits
    n = FLUX_AND_ENDS
    gram, low, tried = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    right, force, push, step, trial = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(4)
    square = _sums(x, y, data, noise, sigma, ends, gram, right)
    flux, cost = _equations(gram, right, square, normal, force)
    damping = 1e-3
    for _ in range(most):
        if not math.isfinite(cost):
            return False, flux
        if not _solved(normal, force, damping, low, step):
            damping *= 10.0
            if damping > 1e6:
                return True, flux
            continue
        moved = 0.0
        for k in range(4):
            wanted = ends[k] + min(max(step[k + 1], -longest), longest)
            trial[k] = min(max(wanted, bounds[0, k]), bounds[1, k])
            moved = max(moved, abs(trial[k] - ends[k]))
        square = _sums(x, y, data, noise, sigma, trial, gram, right)
        flux_there, cost_there = _equations(gram, right, square, tried, push)
        if cost_there < cost:
            gained = cost - cost_there
            flux, cost = flux_there, cost_there
            ends[:], normal[:], force[:] = trial, tried, push
            damping = max(0.1 * damping, 1e-7)
            if moved < settled or gained < 1e-5 * cost:
                return True, flux
        else:
            damping *= 10.0
            if damping > 1e6:
                return True, flux
    return False, flux
