"""Two point lists of the same sky: find the offset between them, pair their points, judge whether it is chance.

All places are px in the plane of the first-guess WCS (see ``solver``), where the two lists differ by a shift of
some hundred px, a rotation and scale of some permille, and a few px of distortion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Bin of the offset histogram (px): the optics' distortion (about 3 px at the corners) plus what half a step of
# rotation and scale moves a corner (SMEAR) stays within the 3 x 3 bins that are summed.
VOTE_BIN = 5.0
SMEAR = 4.0  # px
PEAKS_PER_MATRIX = 3
MEASURED_CHANCES = 4000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A hypothesis: list u = matrix @ p + shift. ``score`` is the peak's excess in units of its Poisson noise."""

    score: float
    matrix: F64
    shift: F64


def search_grid(half_diagonal: float, rotation: float, scale: float) -> list[F64]:
    """Matrices (rotation times scale) that cover ``rotation`` (rad) and ``scale`` (relative) without gaps.

    Steps are such that half of one moves a corner by at most ``SMEAR`` px.
    """
    step = 2 * SMEAR / half_diagonal
    angles = _steps(rotation, step)
    factors = 1.0 + _steps(scale, step)
    # The most likely first: no turn, no change of scale.
    grid = sorted((abs(a) + abs(f - 1), a, f) for a in angles for f in factors)
    return [f * np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for _, a, f in grid]


def _steps(reach: float, step: float) -> F64:
    n = max(math.ceil(reach / step - 0.5), 0)  # half a step is covered beyond the outermost
    return np.linspace(-1.0, 1.0, 2 * n + 1) * (reach * n / (n + 0.5)) if n else np.zeros(1)


def vote(p: F64, u: F64, reach: float, grid: list[F64], n_best: int = 8, enough: float = math.inf) -> list[Candidate]:
    """Best offsets between ``p`` (n, 2) and ``u`` (m, 2), by counting pairs with equal offsets.

    For each matrix of ``grid`` the offsets ``u_j - matrix @ p_i`` of all pairs are counted in a 2-D histogram
    out to ``reach`` px on each axis; true pairs pile up in one place, chance pairs spread evenly. With a peak that
    scores ``enough`` no further matrix is tried.

    Returns
    -------
    list of Candidate
        Up to ``n_best`` distinct ones, best first; empty if there are no pairs.
    """
    # Only pairs that some matrix of the grid can bring within reach.
    margin = max(float(np.abs(m - np.eye(2)).sum(axis=1).max()) for m in grid) * float(np.abs(p).max(initial=0.0))
    near = np.abs(u[None, :, 0] - p[:, None, 0]) <= reach + margin
    near &= np.abs(u[None, :, 1] - p[:, None, 1]) <= reach + margin
    i, j = np.nonzero(near)
    if len(i) == 0:
        return []
    n = 2 * math.ceil(reach / VOTE_BIN)
    u_bins = u[j].T / VOTE_BIN + n / 2
    found: list[Candidate] = []
    for matrix in grid:
        turned = (p @ matrix.T / VOTE_BIN)[i]
        dx, dy = u_bins[0] - turned[:, 0], u_bins[1] - turned[:, 1]
        inside = np.flatnonzero((dx >= 0) & (dx < n) & (dy >= 0) & (dy < n))
        dx, dy = dx[inside], dy[inside]
        column, row = dx.astype(np.int64), dy.astype(np.int64)
        counts = np.bincount(row * n + column, minlength=n * n).astype(np.float64).reshape(n, n)
        total = uniform_filter(counts, 3, mode="constant") * 9
        expected = counts.sum() / n**2 * 9
        for _ in range(PEAKS_PER_MATRIX):
            r, c = divmod(int(np.argmax(total)), n)
            score = (float(total[r, c]) - expected) / math.sqrt(expected + 1.0)
            mine = (np.abs(row - r) <= 1) & (np.abs(column - c) <= 1)
            if score <= 0 or not mine.any():
                break
            shift = (np.array([np.median(dx[mine]), np.median(dy[mine])]) - n / 2) * VOTE_BIN
            found.append(Candidate(score, matrix, shift))
            total[max(r - 2, 0) : r + 3, max(c - 2, 0) : c + 3] = 0.0
        if max((c.score for c in found), default=0.0) >= enough:
            break
    return _distinct(sorted(found, key=lambda c: (-c.score, *c.shift)), n_best)


def _distinct(found: list[Candidate], n_best: int) -> list[Candidate]:
    """The best of each group whose shifts agree within two bins."""
    kept: list[Candidate] = []
    for candidate in found:
        if all(np.abs(candidate.shift - other.shift).max() > 2.5 * VOTE_BIN for other in kept):
            kept.append(candidate)
            if len(kept) == n_best:
                break
    return kept


def nearest_pairs(predicted: F64, tree: cKDTree, radius: float) -> tuple[I64, I64, F64]:
    """One-to-one pairs of ``predicted`` (n, 2) with the tree's points, nearest first come.

    Returns
    -------
    i, j : ndarray, int64
        Indices into ``predicted`` and into the tree; a tree point is paired with its closest claimant only.
    distance : ndarray, float64
    """
    distance, j = tree.query(predicted, distance_upper_bound=radius)
    i = np.flatnonzero(np.isfinite(distance))
    order = i[np.lexsort((i, distance[i], j[i]))]
    first = np.ones(len(order), bool)
    first[1:] = j[order][1:] != j[order][:-1]
    chosen = np.sort(order[first])
    return chosen, j[chosen].astype(np.int64), distance[chosen]


def chance_rate(predicted: F64, tree: cKDTree, radius: float, area: float, n_inside: int) -> float:
    """Probability that a point at ``predicted`` has a tree point within ``radius`` by chance.

    The larger of the analytic rate for evenly spread points and the measured one, with the points moved by
    offsets that are small beside clusters of stars and large beside the radius: twelve directions at growing
    distance, as many as it takes to know a rate of some 1e-4.
    """
    analytic = -math.expm1(-n_inside / area * math.pi * radius**2)
    sample = predicted[:: max(1, len(predicted) // 500)]
    k = np.arange(min(max(12, math.ceil(MEASURED_CHANCES / len(sample))), 240))
    angle, length = k * (2 * np.pi / 12) + 0.1 * (k // 12), 10.0 + 5.0 * radius + 3.0 * (k // 12)
    ring = np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)
    moved = (sample[None, :, :] + ring[:, None, :]).reshape(-1, 2)
    hits = int(np.isfinite(tree.query(moved, distance_upper_bound=radius)[0]).sum())
    return min(max(analytic, (hits + 1) / (len(moved) + 1)), 1.0)


def log_chance(n: int, matched: int, rate: float, n_free: int, log_trials: float) -> float:
    """log10 of a bound on the probability that ``matched`` or more of ``n`` points pair by chance.

    Chernoff's bound on the binomial tail (never below the true tail, never underflows), with as many matches
    and points taken off as the fit has free coefficients per axis, times the number of hypotheses tried.
    """
    n, matched = n - n_free, matched - n_free
    if matched <= 0 or n <= 0 or matched / n <= rate:
        return 0.0
    share = matched / n
    divergence = share * math.log(share / rate)
    if share < 1.0:
        divergence += (1.0 - share) * math.log((1.0 - share) / (1.0 - rate))
    return min(0.0, -n * divergence / math.log(10.0) + log_trials)
