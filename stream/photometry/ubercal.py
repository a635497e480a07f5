"""Relative photometry across epochs: zero points of exposures and mean magnitudes of stars, solved together.

Each exposure's own zero point against Pan-STARRS1 has an error that all stars of the exposure share (1 to 10 mmag).
The same stars in many exposures tell it: m_ij = M_j + z_i + sum_k c_ik P_k(u, v), with M_j the mean magnitude of star
j, z_i the correction of exposure i and c_ik its low-order surface over the quadrant (Padmanabhan et al. 2008, ApJ 674,
1217: *ubercalibration*). A sparse weighted least-squares fit, repeated with outliers weighted down, stars that vary
left out of the exposures' corrections, and a floor under the errors that the stars themselves show.

Light curves only know differences: the corrections' weighted mean over exposures (of each term) is zero, so that the
mean of all exposures stays on Pan-STARRS1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import lsmr
from scipy.spatial import cKDTree

from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import Table, ZeroPoint
from stream.core.sphere import chord, unit_vectors
from stream.core.zeropointmap import basis
from stream.photometry.zeropoint import excess_scatter

F64 = NDArray[np.float64]
INT = NDArray[np.int64]
BOOL = NDArray[np.bool_]

ROUNDS = 8
# A residual beyond so many sigma counts as if it were there (Huber 1964): outliers pull, but never harder.
HUBER = 2.0
# A star whose residuals are so many times larger than their errors varies (or is a blend) and defines no exposure.
VARIABLE = 2.5
# An exposure with fewer stars, or whose stars scatter so many times more than the others', is not corrected.
MIN_STARS, MAX_SCATTER = 5, 3.0
# Spread (mag) that the surface's coefficients are believed to have: with few stars they stay small.
SURFACE_PRIOR = 0.02
POGSON = 1.0857362
MATCH_RADIUS = 1.5  # arcsec, from the seed to the source
MAX_SHARP = 0.5
# Smooth additive light is in the sky; these stars are measured well.
USABLE = int(Mask.HALO | Mask.CROSSTALK)


@dataclass(frozen=True, slots=True)
class Observations:
    """Magnitudes of stars in exposures, flat: (n,) each.

    ``epoch`` and ``star`` number exposures and stars from 0; ``mag`` is on the exposure's own zero point (map and, as
    wanted, colour term applied), ``sigma`` its photon error, ``x`` and ``y`` px.
    """

    epoch: INT
    star: INT
    mag: F64
    sigma: F64
    x: F64
    y: F64
    n_epochs: int
    n_stars: int


@dataclass(frozen=True, slots=True)
class RelativePhotometry:
    """The solution.

    ``zero`` and ``zero_sigma`` (n_epochs,) mag are to be subtracted from the magnitudes of an exposure together with
    the surface of ``surface`` (n_epochs, n_terms; terms of ``zeropointmap.terms`` without the constant); NaN where an
    exposure has too few stars or too large a scatter (``scatter``, (n_epochs,), in units of the errors). ``mean`` and
    ``mean_sigma`` (n_stars,) mag; ``rms`` (n_stars,) the robust scatter of a star about its mean, NaN with fewer than
    three; ``variable`` stars took no part in the corrections. ``floor`` (mag) is what good stars scatter beyond their
    photon errors: the repeatability of bright stars.
    """

    zero: F64
    zero_sigma: F64
    surface: F64
    scatter: F64
    mean: F64
    mean_sigma: F64
    rms: F64
    variable: BOOL
    floor: float
    shape: tuple[int, int]
    degree: int

    def correction(self, epoch: ArrayLike, x: ArrayLike, y: ArrayLike) -> F64:
        """What to subtract from magnitudes of exposures at places (px), (n,)."""
        index = np.asarray(epoch, np.int64).ravel()
        out = self.zero[index].copy()
        if self.degree:
            out += (self.surface[index] * basis(x, y, self.shape, self.degree)[:, 1:]).sum(axis=1)
        return out


def solve_relative(seen: Observations, shape: tuple[int, int], *, degree: int = 0) -> RelativePhotometry:
    """Solve for exposures and stars at once.

    Parameters
    ----------
    seen : Observations
        NaN magnitudes and errors that are not positive are left out.
    shape : (ny, nx)
        Of the quadrant.
    degree : int
        Of the surface of every exposure; 0: its zero point only.

    Raises
    ------
    PhotometryError
        Fewer than two exposures, or than five stars that two exposures share.
    """
    good = np.isfinite(seen.mag) & np.isfinite(seen.sigma) & (seen.sigma > 0)
    count = np.bincount(seen.star[good], minlength=seen.n_stars)
    good &= count[seen.star] >= 2
    n_shared, n_used = int((count >= 2).sum()), len(np.unique(seen.epoch[good]))
    if n_used < 2 or n_shared < MIN_STARS:
        raise PhotometryError(
            f"{n_shared} stars shared by {n_used} of {seen.n_epochs} exposures: relative photometry needs two "
            f"exposures and {MIN_STARS} stars; give more exposures of this field, filter and channel",
            n_stars=n_shared, n_exposures=n_used,
        )  # fmt: skip
    part = _chosen(seen, good)
    surface = basis(part.x, part.y, shape, degree)[:, 1:]
    floor, variable = 0.003, np.zeros(seen.n_stars, bool)
    weight = 1 / (part.sigma**2 + floor**2)
    zero, coefficients, mean = _fit(part, surface, weight, variable)
    for _ in range(ROUNDS):
        residual = part.mag - mean[part.star] - zero[part.epoch] - (coefficients[part.epoch] * surface).sum(axis=1)
        steady = ~variable[part.star]
        # A star's mean follows its few points: their residuals are smaller than their errors by this.
        freedom = np.sqrt(np.maximum(1 - 1 / np.maximum(count[part.star], 1), 0.2))
        floor = excess_scatter((residual / freedom)[steady], part.sigma[steady])
        error = np.hypot(part.sigma, floor)
        size = np.abs(residual / freedom) / error
        variable = _group_median(size, part.star, seen.n_stars) * 1.4826 > VARIABLE
        weight = np.minimum(1, HUBER / np.maximum(size, 1e-9)) / error**2
        zero, coefficients, mean = _fit(part, surface, weight, variable)
    return _solution(part, surface, (zero, coefficients, mean), weight, variable, floor, (shape, degree))


def _chosen(seen: Observations, good: BOOL) -> Observations:
    columns = {name: getattr(seen, name)[good] for name in ("epoch", "star", "mag", "sigma", "x", "y")}
    return replace(seen, **columns)


def _fit(seen: Observations, surface: F64, weight: F64, variable: BOOL) -> tuple[F64, F64, F64]:
    """Zero points (n_epochs,), surfaces (n_epochs, n_terms) and means (n_stars,) for given weights.

    Columns have unit norm, so that a few dozen iterations of LSMR (Fong & Saunders 2011) settle it; of the solutions
    that differ by a constant it takes the smallest, and the gauge is set afterwards.
    """
    n, k = len(seen.mag), surface.shape[1]
    steady = ~variable[seen.star]
    root = np.sqrt(np.where(steady, weight, 0))
    row = np.arange(n)
    columns = [seen.star, seen.n_stars + seen.epoch]
    values = [root, root]
    for term in range(k):
        columns.append(seen.n_stars + seen.n_epochs * (1 + term) + seen.epoch)
        values.append(root * surface[:, term])
    width = seen.n_stars + seen.n_epochs * (1 + k)
    entries = np.concatenate(values), (np.tile(row, 2 + k), np.concatenate(columns))
    matrix = sparse.csr_matrix(entries, shape=(n, width))
    if k:
        prior = sparse.csr_matrix(
            (np.full(seen.n_epochs * k, 1 / SURFACE_PRIOR),
             (np.arange(seen.n_epochs * k), seen.n_stars + seen.n_epochs + np.arange(seen.n_epochs * k))),
            shape=(seen.n_epochs * k, width),
        )  # fmt: skip
        matrix = sparse.vstack([matrix, prior]).tocsr()
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel())
    scale = np.where(norm > 0, 1 / np.maximum(norm, 1e-300), 0)
    # Around each star's mean, so that what is solved for is small and float errors are too.
    start = _group_mean(seen.mag, weight, seen.star, seen.n_stars)
    right = np.concatenate([root * (seen.mag - start[seen.star]), np.zeros(matrix.shape[0] - n)])
    solution = lsmr(matrix @ sparse.diags(scale), right, atol=1e-9, btol=1e-9, maxiter=400)[0] * scale
    zero = solution[seen.n_stars : seen.n_stars + seen.n_epochs]
    terms_of = solution[seen.n_stars + seen.n_epochs :].reshape(k, seen.n_epochs).T
    # The gauge: the mean of the exposures, weighted with their stars, stays where it is.
    each = np.bincount(seen.epoch, root**2, seen.n_epochs)
    share = each / each.sum()
    zero, terms_of = zero - share @ zero, terms_of - share @ terms_of
    left = seen.mag - zero[seen.epoch] - (terms_of[seen.epoch] * surface).sum(axis=1)
    return zero, terms_of, _group_mean(left, weight, seen.star, seen.n_stars)


def _group_mean(value: F64, weight: F64, group: INT, n: int) -> F64:
    total = np.bincount(group, weight, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: F64 = np.bincount(group, weight * value, n) / total
    return np.where(total > 0, mean, 0.0)


def _group_median(value: F64, group: INT, n: int) -> F64:
    """Medians of groups; 0 where a group has fewer than three."""
    order = np.lexsort((value, group))
    count = np.bincount(group, minlength=n)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    middle = order[np.minimum(first + count // 2, len(order) - 1)]
    lower = order[np.minimum(first + np.maximum(count - 1, 0) // 2, len(order) - 1)]
    return np.where(count >= 3, (value[middle] + value[lower]) / 2, 0.0)


def _solution(
    seen: Observations,
    surface: F64,
    fitted: tuple[F64, F64, F64],
    weight: F64,
    variable: BOOL,
    floor: float,
    how: tuple[tuple[int, int], int],
) -> RelativePhotometry:
    """The record of a fit, with its errors."""
    zero, coefficients, mean = fitted
    steady = np.where(variable[seen.star], 0.0, weight)
    residual = seen.mag - mean[seen.star] - zero[seen.epoch] - (coefficients[seen.epoch] * surface).sum(axis=1)
    per_epoch, per_star = np.bincount(seen.epoch, steady, seen.n_epochs), np.bincount(seen.star, weight, seen.n_stars)
    # A star that only a few exposures saw tells each of them less: its own mean is as uncertain.
    share = 1 - weight / np.maximum(per_star[seen.star], 1e-300)
    useful = np.bincount(seen.epoch, steady * share, seen.n_epochs)
    with np.errstate(invalid="ignore", divide="ignore"):
        zero_sigma, mean_sigma = 1 / np.sqrt(useful), 1 / np.sqrt(per_star)
    scatter = 1.4826 * _group_median(np.abs(residual) / np.hypot(seen.sigma, floor), seen.epoch, seen.n_epochs)
    n_stars = np.bincount(seen.epoch, steady > 0, seen.n_epochs)
    bad = (n_stars < MIN_STARS) | (scatter > MAX_SCATTER * max(float(np.median(scatter[n_stars > 0])), 1e-9))
    rms = 1.4826 * _group_median(np.abs(residual), seen.star, seen.n_stars)
    rms[np.bincount(seen.star, minlength=seen.n_stars) < 3] = np.nan
    unseen = per_star <= 0
    return RelativePhotometry(
        np.where(bad, np.nan, zero), np.where(bad | (per_epoch <= 0), np.nan, zero_sigma),
        np.where(bad[:, None], np.nan, coefficients), scatter, np.where(unseen, np.nan, mean),
        np.where(unseen, np.nan, mean_sigma), rms, variable, floor, *how,
    )  # fmt: skip


def observations(
    catalogs: Sequence[Table], zeropoints: Sequence[ZeroPoint], seed_ra: ArrayLike, seed_dec: ArrayLike
) -> Observations:
    """Observations of given stars out of the catalogues of many exposures of one field, filter and channel.

    Parameters
    ----------
    catalogs : sequence of ndarray of SOURCE_DTYPE
        One an exposure, with ``ra`` and ``dec``.
    zeropoints : sequence of ZeroPoint
        Theirs, maps included; magnitudes are those of colour 0, as light curves carry them.
    seed_ra, seed_dec : array_like, (n_stars,)
        deg; of the reference image's sources, say.

    Returns
    -------
    Observations
        Good single sources only, each matched with the nearest seed within 1.5 arcsec, a seed with its nearest.
    """
    ra, dec = (np.asarray(v, float).ravel() for v in (seed_ra, seed_dec))
    seeds = cKDTree(unit_vectors(ra, dec)) if len(ra) else None
    reach = chord(MATCH_RADIUS)
    parts: list[tuple[INT, INT, F64, F64, F64, F64]] = []
    for number, (table, zp) in enumerate(zip(catalogs, zeropoints, strict=True)):
        good = (table["flux"] > 0) & (table["sigflux"] > 0) & (np.abs(table["sharp"]) < MAX_SHARP)
        good &= ((table["flags"] & (BAD_BITS & ~USABLE)) == 0) & np.isfinite(table["ra"]) & np.isfinite(table["dec"])
        rows = np.flatnonzero(good)
        if seeds is None or not len(rows):
            continue
        distance, star = seeds.query(unit_vectors(table["ra"][rows], table["dec"][rows]), distance_upper_bound=reach)
        order = np.argsort(distance, kind="stable")
        order = order[np.isfinite(distance[order])]
        _, nearest = np.unique(star[order], return_index=True)
        chosen = np.sort(order[nearest])
        row, star = table[rows[chosen]], star[chosen].astype(np.int64)
        mag = zp.at(row["x"], row["y"]) - 2.5 * np.log10(row["flux"])
        sigma = POGSON * row["sigflux"] / row["flux"]
        parts.append((np.full(len(row), number, np.int64), star, mag, sigma, row["x"], row["y"]))
    epoch, star = (np.concatenate([p[k] for p in parts] or [np.zeros(0, np.int64)]) for k in (0, 1))
    mag, sigma, x, y = (np.concatenate([p[k] for p in parts] or [np.zeros(0)]) for k in (2, 3, 4, 5))
    return Observations(epoch, star, mag, sigma, x, y, len(catalogs), len(ra))
