"""A smooth displacement field from the residuals of stars: what the air (or a registration) left after the polynomial.

The residuals are a Gaussian process plus a low polynomial plus noise (universal kriging: Cressie 1993, §3.4; for the
air's displacement of star images Fortino et al. 2021). Its spread, coherence length and noise are those under which
the residuals are most likely once the polynomial is projected out (restricted maximum likelihood), so that the field's
uncertainty counts the polynomial's own. Stars are averaged in cells first, which keeps the matrices small.

All places are px, first pixel (0, 0), all displacements px.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular
from scipy.spatial import cKDTree

from stream.core.robust import middle

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
# Nodes and their weights, (n,) each, of the terms of an interpolation.
Weights = list[tuple[NDArray[np.int64], F64]]

MIN_STARS = 30  # fewer tell neither the spread nor the length of a field
# Cells a side: those of the likelihood (its eigenvalues cost the cube of their number) and those of the field.
LIKELIHOOD_CELLS, FIELD_CELLS = 12, 20
NODES = 21  # a side
# Coherence lengths tried, in units of the longer side. Kolmogorov's air has none of its own below its outer scale, and
# the polynomial takes the long ones; a registration's own distortion may have a short one.
LENGTHS = (0.1, 0.4)
# The neighbours' floor contains field where stars are far apart: shares of it tried.
FLOORS = (1.0, 0.4)
FLOOR_TRUST = 3.0  # log of the odds of the first
# Spread of the field over the typical noise of a cell, squared, as tried.
RATIOS = np.concatenate([[0.0], np.geomspace(1e-2, 1e4, 43)])
CLIP = 5.0  # residuals beyond so many robust sigma of their neighbourhood are no displacement
NEIGHBOURS = 3
MAD_TO_SIGMA = 1.4826
TINY = 1e-9  # px; residuals that agree exactly are no reason to divide by nothing


@dataclass(frozen=True, slots=True)
class Trend:
    """Gaussian knowledge of the polynomial that lies under the field.

    ``degree`` of full polynomials in places scaled to -1..1 over the image (columns 1, x, y, x^2, xy, ...; -1: no
    polynomial). ``mean`` and ``sigma`` (n_terms, 2) px; ``sigma`` infinite: the data alone decide. Without ``sigma``
    all are free.
    """

    degree: int = 1
    mean: F64 | None = None
    sigma: F64 | None = None


@dataclass(frozen=True, slots=True)
class Displacement:
    """A displacement field on a coarse grid; what is to be added to a pixel place.

    ``dx``, ``dy``, ``sigma_x``, ``sigma_y`` (n_y, n_x) float32 px; the nodes lie evenly from the first to the last
    pixel of an image of ``shape`` (ny, nx). The sigmas are of the field at a point, polynomial included, not of a star.
    ``spread`` (px, x and y) and ``length`` (px) are those of the field, ``floor`` (px) the noise of a star beyond
    ``noise_scale`` times its stated one; ``n_stars`` were used.
    """

    dx: F32
    dy: F32
    sigma_x: F32
    sigma_y: F32
    shape: tuple[int, int]
    spread: tuple[float, float]
    length: float
    floor: float
    noise_scale: float
    n_stars: int

    def at(self, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64, F64, F64]:
        """``dx, dy, sigma_x, sigma_y`` (n,) at places (px); beyond the image those of its edge; NaN in, NaN out."""
        return *self.shift(x, y), *self._read(x, y, (self.sigma_x, self.sigma_y), _linear)

    def shift(self, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64]:
        """``dx, dy`` alone, as ``at`` has them."""
        return self._read(x, y, (self.dx, self.dy), _cubic)

    def _read(
        self, x: ArrayLike, y: ArrayLike, maps: tuple[F32, F32], weights: Callable[[F64, int, int], Weights]
    ) -> tuple[F64, F64]:
        xs, ys = np.atleast_1d(np.asarray(x, float)).ravel(), np.atleast_1d(np.asarray(y, float)).ravel()
        n_y, n_x = maps[0].shape
        first, second = (m.ravel().astype(float) for m in maps)
        out = np.zeros((2, len(xs)))
        columns = weights(xs, self.shape[1], n_x)
        for i, v in weights(ys, self.shape[0], n_y):
            for j, w in columns:
                node, weight = i * n_x + j, v * w
                out[0] += weight * first[node]
                out[1] += weight * second[node]
        return out[0], out[1]

    def expand(self, shape: tuple[int, int] | None = None) -> tuple[F32, F32, F32, F32]:
        """The four maps at every pixel (float32), of the whole image or of one of ``shape`` with the same origin."""
        n_y, n_x = self.dx.shape
        ny, nx = shape or self.shape
        y, x = np.arange(ny, dtype=float), np.arange(nx, dtype=float)
        cubic = _matrix(_cubic(y, self.shape[0], n_y), n_y), _matrix(_cubic(x, self.shape[1], n_x), n_x).T
        linear = _matrix(_linear(y, self.shape[0], n_y), n_y), _matrix(_linear(x, self.shape[1], n_x), n_x).T
        fields = [np.asarray(cubic[0] @ m @ cubic[1], np.float32) for m in (self.dx, self.dy)]
        errors = [np.asarray(linear[0] @ m @ linear[1], np.float32) for m in (self.sigma_x, self.sigma_y)]
        return fields[0], fields[1], errors[0], errors[1]


def fit_displacement(
    x: ArrayLike,
    y: ArrayLike,
    dx: ArrayLike,
    dy: ArrayLike,
    sigma: ArrayLike,
    shape: tuple[int, int],
    trend: Trend | None = None,
) -> Displacement | None:
    """The field that the residuals of stars show, with its uncertainty.

    Parameters
    ----------
    x, y : array_like, (n,)
        Places of the stars.
    dx, dy : array_like, (n,)
        Where they should be minus where they are, px.
    sigma : array_like, (n,)
        Stated error per axis, px; its scale and a floor under it are estimated.
    shape : (ny, nx)
        Of the image.
    trend : Trend, optional
        The polynomial fitted beside the field; a plane by default. Of residuals of a fit, give that fit's degree:
        the field then comes with what the two together say.

    Returns
    -------
    Displacement or None
        None with fewer than ``MIN_STARS`` finite residuals (or no more than the polynomial has terms).
    """
    trend = trend or Trend()
    columns = [np.asarray(v, float).ravel() for v in (x, y, dx, dy, sigma)]
    ok = np.all(np.isfinite(columns), axis=0) & (columns[4] > 0)
    places, residuals, stated = np.stack(columns[:2], 1)[ok], np.stack(columns[2:4], 1)[ok], columns[4][ok]
    ny, nx = shape
    places = (places - [(nx - 1) / 2, (ny - 1) / 2]) * 2.0 / max(nx, ny)
    n_terms = (trend.degree + 1) * (trend.degree + 2) // 2
    if len(places) < max(MIN_STARS, n_terms + MIN_STARS // 2):
        return None
    keep, scale, floor = _noise(places, residuals, stated)
    places, residuals = places[keep], residuals[keep]
    stated = np.maximum(scale * stated[keep], TINY)
    aspect = np.array([nx, ny]) / max(nx, ny)
    tried = [
        (_hyperparameters(_cells(places, residuals, stated**2 + (share * floor) ** 2, LIKELIHOOD_CELLS),
                          trend.degree, aspect), share * floor)
        for share in (FLOORS if floor > 0 else FLOORS[:1])
    ]  # fmt: skip
    # The smaller floor must be clearly likelier: cells do not see the scatter within them.
    law, floor = max(tried, key=lambda t: t[0].evidence + (0.0 if t[1] < floor else FLOOR_TRUST))
    cells = _cells(places, residuals, stated**2 + floor**2, FIELD_CELLS)
    nodes = np.stack(np.meshgrid(*(np.linspace(-a, a, NODES) for a in aspect)), axis=-1).reshape(-1, 2)
    field, error = _krige(cells, nodes, aspect, trend, law)
    dx, dy, sigma_x, sigma_y = (np.ascontiguousarray(v.reshape(NODES, NODES), np.float32) for v in (*field.T, *error.T))
    spread, length = math.sqrt(law.field), law.length * max(nx, ny) / 2
    return Displacement(dx, dy, sigma_x, sigma_y, shape, (spread, spread), length, floor, scale, len(places))


@dataclass(frozen=True, slots=True)
class Law:
    """How the field varies: ``length`` in half longer sides, ``field`` its variance an axis, px^2. ``evidence`` is the
    log of the likelihood."""

    length: float
    field: float
    evidence: float


@dataclass(frozen=True, slots=True)
class Cells:
    """Means of stars in cells: places (n, 2) and residuals (n, 2), variances (n,) px^2."""

    places: F64
    residuals: F64
    variance: F64


def _cells(places: F64, residuals: F64, variance: F64, n: int) -> Cells:
    """Weighted means in an n x n grid; a cell's place is that of its light, so to speak."""
    index = np.clip(((places + 1) / 2 * n).astype(int), 0, n - 1)
    cell = index[:, 1] * n + index[:, 0]
    weight = 1.0 / variance
    total = np.bincount(cell, weight, n * n)
    used = total > 0
    means = [np.bincount(cell, weight * v, n * n)[used] / total[used] for v in (*places.T, *residuals.T)]
    return Cells(np.stack(means[:2], 1), np.stack(means[2:], 1), 1.0 / total[used])


def _noise(places: F64, residuals: F64, stated: F64) -> tuple[Bools, float, float]:
    """Stars that agree with their neighbours, and the noise of a star: a scale of its stated error and a floor.

    The differences between nearest neighbours have no field in them; over bins of stated variance their robust
    variance is a line whose slope and intercept are scale^2 and twice floor^2.
    """
    tree = cKDTree(places, balanced_tree=False, compact_nodes=False)
    near = tree.query(places, k=NEIGHBOURS + 1)[1][:, 1:]
    a, b, c = residuals[near.T]
    off = residuals - np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))  # the median
    size = np.hypot(off[:, 0], off[:, 1])
    keep = np.ones(len(places), bool)
    order = np.argsort(stated, kind="stable")
    for part in np.array_split(order, max(1, min(10, len(order) // 30))):
        keep[part] = size[part] <= CLIP * middle(size[part]) / 1.1774  # the median of a Rayleigh distribution
    first = near[:, 0]
    pair = keep & keep[first]
    difference = residuals[pair] - residuals[first][pair]
    expected = stated[pair] ** 2 + stated[first][pair] ** 2
    order = np.argsort(expected, kind="stable")
    bins = [part for part in np.array_split(order, max(1, min(8, len(order) // 25))) if len(part) > 0]
    if not bins:
        return keep, 1.0, 0.0
    at = np.array([np.mean(expected[part]) for part in bins])
    seen = np.array([(MAD_TO_SIGMA * middle(np.abs(difference[part]).ravel())) ** 2 for part in bins])
    return keep, *_line(at, np.maximum(seen, TINY))


def _line(at: F64, seen: F64) -> tuple[float, float]:
    """Scale and floor of ``seen = scale^2 at + 2 floor^2``, neither negative, relative errors alike."""
    best, answer = np.inf, (1.0, 0.0)
    for columns in ((True, True), (True, False), (False, True))[: 3 if len(at) > 2 else 0] or ((True, False),):
        design = np.stack([at, np.full(len(at), 2.0)], 1)[:, np.array(columns)] / seen[:, None]
        solution = np.linalg.lstsq(design, np.ones(len(at)), rcond=None)[0]
        left = float(np.sum((design @ solution - 1.0) ** 2))
        if (solution > 0).all() and left < best:
            both = np.zeros(2)
            both[np.array(columns)] = solution
            best, answer = left, (float(math.sqrt(both[0])), float(math.sqrt(both[1])))
    return answer


def _structure(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Structure function of the field between places, at length 1: it rises as r^(2/3), Kolmogorov's (1941) law."""
    out, other = (np.subtract.outer(a[:, k], b[:, k]) for k in (0, 1))
    out *= out
    other *= other
    out += other
    with np.errstate(divide="ignore"):  # the cube root by way of the logarithm: several times as fast
        np.log(out, out=out)
    out *= out.dtype.type(1 / 3)
    return np.asarray(np.exp(out, out=out))


def _kernel(structure: NDArray[Any], length: float) -> NDArray[Any]:
    """Correlation of a field of that coherence length."""
    out = structure * structure.dtype.type(-(length ** (-2 / 3)))
    return np.asarray(np.exp(out, out=out))


def _design(places: F64, aspect: F64, degree: int) -> F64:
    """Columns 1, x, y, x^2, ... (n, n_terms) of places scaled to -1..1 over the image."""
    x, y = (places / aspect).T
    powers = [(t - j, j) for t in range(degree + 1) for j in range(t + 1)]
    return np.stack([x**i * y**j for i, j in powers], axis=1) if powers else np.zeros((len(places), 0))


def _hyperparameters(cells: Cells, degree: int, aspect: F64) -> Law:
    """The law under which the cells are most likely, whatever the polynomial; both axes follow the same.

    For each length one eigenvalue problem gives the restricted likelihood of all ratios of field to noise. The spread
    is its mean over the likelihood.
    """
    sigma = np.sqrt(cells.variance)
    typical = float(np.median(cells.variance))
    design = _design(cells.places, aspect, degree) / sigma[:, None]
    q = np.linalg.qr(design, mode="complete")[0] if design.shape[1] else np.eye(len(sigma))
    free = q[:, design.shape[1] :]
    if free.shape[1] < 4:
        return Law(2 * LENGTHS[-1], 0.0, 0.0)
    data = free.T @ (cells.residuals / sigma[:, None])
    laws = []
    structure, noise = _structure(cells.places, cells.places), np.outer(sigma, sigma)
    for length in LENGTHS:
        inner = free.T @ (_kernel(structure, 2 * length) / noise) @ free
        values, vectors = np.linalg.eigh(inner)
        total = 1.0 + RATIOS[:, None] * typical * np.maximum(values, 0.0)  # (ratios, n)
        power = np.sum((vectors.T @ data) ** 2, axis=1)
        log_l = -0.5 * ((1.0 / total) @ power) - np.log(total).sum(axis=1)
        weight = np.exp(log_l - log_l.max())
        evidence = float(log_l.max() + np.log(weight.sum()) - 2 * np.log(sigma).sum())
        # The mean of the spread, not of its square: the long tail of what is just possible would do harm.
        field = float(np.sum(weight * np.sqrt(RATIOS * typical)) / weight.sum()) ** 2
        laws.append(Law(2 * length, field, evidence))
    return max(laws, key=lambda law: law.evidence)


def _krige(cells: Cells, nodes: F64, aspect: F64, trend: Trend, law: Law) -> tuple[F64, F64]:
    """Field plus polynomial (n, 2) at the nodes, and its error."""
    # Single precision: the noise keeps the matrix far from singular, and this is most of the time.
    places = cells.places.astype(np.float32)
    near = _kernel(_structure(places, places), law.length)
    between = _kernel(_structure(places, nodes.astype(np.float32)), law.length)
    between *= np.float32(law.field)
    design, at_nodes = (_design(p, aspect, trend.degree) for p in (cells.places, nodes))
    n_terms = design.shape[1]
    matrix = np.multiply(near, law.field, dtype=float)
    matrix.flat[:: len(matrix) + 1] += cells.variance
    lower = np.linalg.cholesky(matrix)
    solved = solve_triangular(lower, np.hstack([cells.residuals, design]), lower=True, check_finite=False)
    z, b = solved[:, :2], solved[:, 2:]
    k = solve_triangular(lower.astype(np.float32), between, lower=True, check_finite=False)
    precision, target, left = b.T @ b, b.T @ z, at_nodes - k.T @ b
    out, error = k.T @ z, np.zeros((len(nodes), 2))
    own = law.field - np.einsum("ij,ij->j", k, k)
    for axis in range(2):
        here, wanted = precision, target[:, axis]
        if trend.sigma is not None:
            known = 1.0 / np.asarray(trend.sigma, float)[:, axis] ** 2
            mean = np.zeros(n_terms) if trend.mean is None else np.asarray(trend.mean, float)[:, axis]
            here, wanted = precision + np.diag(known), wanted + known * mean
        covariance = np.linalg.pinv(here, hermitian=True)
        out[:, axis] += left @ (covariance @ wanted)
        variance = own + np.sum((left @ covariance) * left, axis=1)
        error[:, axis] = np.sqrt(np.maximum(variance, 0.0))
    return out, error


def _place(at: F64, size: int, nodes: int) -> tuple[NDArray[np.int64], F64]:
    """Node before each place and the fraction to the next."""
    place = np.clip(np.asarray(at, float) * (nodes - 1) / max(size - 1, 1), 0.0, nodes - 1.0)
    base = np.minimum(np.nan_to_num(place).astype(np.int64), nodes - 2)
    return base, place - base


def _linear(at: F64, size: int, nodes: int) -> Weights:
    base, t = _place(at, size, nodes)
    return [(base, 1.0 - t), (base + 1, t)]


def _cubic(at: F64, size: int, nodes: int) -> Weights:
    """Nodes and weights of cubic convolution (Keys 1981), linear continuation beyond the outermost nodes."""
    base, t = _place(at, size, nodes)
    before, after = -0.5 * t + t**2 - 0.5 * t**3, -0.5 * t**2 + 0.5 * t**3
    w1, w2 = 1.0 - 2.5 * t**2 + 1.5 * t**3, 0.5 * t + 2.0 * t**2 - 1.5 * t**3
    first, last = base == 0, base == nodes - 2
    # The node before the first one is twice the first less the second, likewise at the end.
    w1 = w1 + np.where(first, 2.0 * before, 0.0) - np.where(last, after, 0.0)
    w2 = w2 - np.where(first, before, 0.0) + np.where(last, 2.0 * after, 0.0)
    before, after = np.where(first, 0.0, before), np.where(last, 0.0, after)
    return [(np.maximum(base - 1, 0), before), (base, w1), (base + 1, w2), (np.minimum(base + 2, nodes - 1), after)]


def _matrix(weights: Weights, nodes: int) -> F32:
    """Interpolation from nodes to places as a matrix (n, nodes)."""
    matrix = np.zeros((len(weights[0][0]), nodes), np.float32)
    for j, w in weights:
        matrix[np.arange(len(matrix)), j] += w.astype(np.float32)
    return matrix
