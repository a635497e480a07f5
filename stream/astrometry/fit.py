"""Robust weighted polynomial fits of sky on pixels, with the degree that the data carry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.astrometry.tpv import MAX_DEGREE, n_terms, terms
from stream.core.robust import middle

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

CLIP = 4.0  # residuals beyond this many robust sigma are no part of the fit
# Prediction error that each further coefficient must save, in units of one star's. Terms that save less are as
# likely noise, which the corners would pay for.
GAIN_PER_TERM = 2.0
# Where most residuals are far below their expected errors, the few larger ones are still no outliers.
MIN_SCALE = 0.5
# Stars per coefficient below which a degree is not tried: with fewer, the prediction error of the fit equals
# that of the stars.
STARS_PER_TERM = 4
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class Fit:
    """A polynomial map. ``coefficients`` (n_terms, 2) of ``terms(x, y)``; ``used`` marks the points kept.

    ``residuals`` (n, 2) target minus map, of all points; ``scale`` is the robust ratio of residuals to their
    expected errors.
    """

    degree: int
    coefficients: F64
    residuals: F64
    used: Bools
    scale: float

    def __call__(self, x: F64, y: F64) -> F64:
        """The map at places, (n, 2)."""
        return np.asarray(terms(x, y, self.degree) @ self.coefficients)


def degree_allowed(x: F64, y: F64, limit: int = MAX_DEGREE) -> int:
    """Highest degree that the number of points and their spread over the image (x, y in -1..1) carry.

    A polynomial of degree n is only held where there are stars: degrees 3 and 4 need all nine cells of a 3 x 3
    grid occupied, degree 2 six of them.
    """
    occupied = np.count_nonzero(cell_counts(x, y, 3))
    spread = 4 if occupied == 9 else 2 if occupied >= 6 else 1
    number = max((d for d in range(1, MAX_DEGREE + 1) if len(x) >= STARS_PER_TERM * n_terms(d)), default=1)
    return min(limit, spread, number)


def cell_counts(x: F64, y: F64, n: int) -> NDArray[np.int64]:
    """Points in each cell of an n x n grid over -1..1, flattened."""
    column = np.clip(((x + 1) / 2 * n).astype(int), 0, n - 1)
    row = np.clip(((y + 1) / 2 * n).astype(int), 0, n - 1)
    return np.bincount(row * n + column, minlength=n * n)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of a map's coefficients beforehand: ``mean`` and ``sigma`` (n_terms, 2); infinite: nothing."""

    mean: F64
    sigma: F64


def fit_map(
    x: F64, y: F64, target: F64, sigma: F64, limit: int, *,
    choose: bool = False, rounds: int = 4, known: Knowledge | None = None,
) -> Fit:  # fmt: skip
    """Weighted fit of ``target`` (n, 2) as polynomials of (x, y), clipping outliers.

    Parameters
    ----------
    x, y : ndarray
        Places scaled to about -1..1.
    sigma : ndarray
        Expected error per axis, in the target's unit.
    limit : int
        Degree; the highest one if ``choose``, when the degree with the least prediction error (PRESS, the
        leave-one-out residuals: Allen 1974) is taken.
    known : Knowledge, optional
        Of the coefficients, in the target's unit: they enter as so many measurements. The degree is ``limit`` then.

    Raises
    ------
    numpy.linalg.LinAlgError
        If there are fewer points than coefficients or they lie on a line.
    """
    used = np.ones(len(x), bool)
    weight = 1.0 / sigma
    design = terms(x, y, limit)
    for round_ in range(rounds):
        if known is None:
            coefficients, degree = _solve(design[used], target[used], weight[used], limit, choose)
        else:
            coefficients, degree = _solve_known(design[used], target[used], weight[used], known), limit
        residuals = target - design[:, : len(coefficients)] @ coefficients
        pull = np.hypot(residuals[:, 0], residuals[:, 1]) * weight
        # The median of a Rayleigh distribution is 1.1774 sigma.
        scale = middle(pull[used]) / 1.1774
        keep = pull <= CLIP * max(scale, MIN_SCALE)
        if round_ == rounds - 1 or np.count_nonzero(keep) < n_terms(degree) + 2 or np.array_equal(keep, used):
            break
        used = keep
    return Fit(degree, coefficients, residuals, used, scale)


def _solve(design: F64, target: F64, weight: F64, limit: int, choose: bool) -> tuple[F64, int]:
    """Coefficients (n_terms, 2) and degree. One orthogonal basis serves all degrees, the columns being nested.

    It comes from the normal equations: places scaled to -1..1 leave them 1e-7 or better conditioned.
    """
    if len(design) < n_terms(limit):
        raise np.linalg.LinAlgError(f"{len(design)} points for {n_terms(limit)} coefficients")
    weighted = design * weight[:, None]
    r = np.linalg.cholesky(weighted.T @ weighted).T
    if np.abs(np.diag(r)).min() < 1e-7 * np.abs(np.diag(r)).max():
        raise np.linalg.LinAlgError("the points do not span the image")
    q = weighted @ np.linalg.inv(r)
    wanted = target * weight[:, None]
    projected = q.T @ wanted
    degree = limit
    if choose:
        leverage = np.cumsum(q**2, axis=1)
        best = np.inf
        for d in range(1, limit + 1):
            m = n_terms(d)
            left = (wanted - q[:, :m] @ projected[:m]) / np.maximum(1.0 - leverage[:, m - 1 : m], 1e-3)
            score = float(np.sum(left**2))
            if d == 1 or score < best * (1.0 - GAIN_PER_TERM * (m - n_terms(degree)) / len(design)):
                best, degree = score, d
    m = n_terms(degree)
    return np.linalg.solve(r[:m, :m], projected[:m]), degree


def _solve_known(design: F64, target: F64, weight: F64, known: Knowledge) -> F64:
    """Coefficients (n_terms, 2) of one degree with Gaussian knowledge of them."""
    weighted = design * weight[:, None]
    square, right = weighted.T @ weighted, weighted.T @ (target * weight[:, None])
    precision = 1.0 / known.sigma**2
    columns = [
        np.linalg.solve(square + np.diag(precision[:, k]), right[:, k] + precision[:, k] * known.mean[:, k])
        for k in range(2)
    ]
    return np.stack(columns, axis=1)
