"""The PSF of an image from its own stars.

The effective PSF (Anderson & King 2000: optics, air and pixel in one) is written as a round profile plus
corrections ``R_k(r) cos m phi, sin m phi`` with spline profiles ``R_k``, each coefficient a polynomial in place.
Against a free pixel grid this needs an order of magnitude fewer numbers, so that ten stars give a smooth, unbiased
model, and wings cannot follow noise or faint neighbours. All coefficients come from one linear least-squares
problem per pass in which each star's flux and place are free as well (eliminated star by star), so that a wrong
centre cannot blur the model. The result is sampled onto the grid of ``PsfModel``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.interpolate import BSpline

from stream.core.errors import PhotometryError
from stream.core.psf import STAMP, PsfModel, polynomial_terms
from stream.core.psfread import PsfTable, psf_table
from stream.core.records import F32, U16, Background, Table
from stream.photometry.psfkernels import Functions, Noise, Stars, Windows, fit_single_stars, star_rows
from stream.photometry.stars import F64, StarStamps, aperture_sums, select_stars

MIN_STARS = 10
# Stars for a variation of first and of second degree: five times the terms at least.
DEGREE_STARS = (30, 150)
RADIUS = 13  # px, of the grid; the products' stamp needs 12.5
# Knots of the profiles in units of the FWHM: dense where the profile bends, none needed in the wings.
KNOTS = (0.0, 0.22, 0.44, 0.68, 0.95, 1.25, 1.65, 2.2, 3.0, 4.2, 6.0)
# How far in r (units of the knots) the angular orders reach: the finer, the nearer to the core.
ANGULAR_REACH = {0: 11, 1: 8, 2: 8, 3: 6, 4: 6}
GAUGE = 1e-4  # how tightly centre (px) and sum are held to the first profile's
TABLE_STEP = 1 / 256  # px, of the tabulated profiles
# Prior width of a coefficient in units of the profile's value there: the model may differ from the first profile
# by this much where no star says anything; a tenth of it for the terms that vary with place and for angular ones.
PRIOR = 0.5
PRIOR_VARIATION = 0.15
GROWTH_RADII = (1.0, 1.5, 2.0, 2.5, 3.5)  # px, at which the first profile is chosen
ERROR_NODES = 5  # a side, of the map of the model's own error: a polynomial of twice the model's degree
BLOCK = 8  # stars whose equations fit into the processor's cache together
# Pixels of a star's window that enter: those within 12.5 px, the reach of the products' stamp.
_OFFSET = np.arange(STAMP * STAMP)
_DX, _DY = _OFFSET % STAMP - STAMP // 2, _OFFSET // STAMP - STAMP // 2
DISC = np.flatnonzero(np.hypot(_DX, _DY) < 12.5)
DISC_X, DISC_Y = _DX[DISC], _DY[DISC]
# Enough for the first, constant solution (thirty are not in a sharp crowd), and for the second that judges the stars.
TURN_STARS = (60, 100, 1000)
FIT_SIZE = 11  # px, of the core from which single stars are fitted
STRAY = 4  # px more than a window that a table of the PSF holds: a star may stray by 1.3 px from its middle pixel
# A star whose residuals exceed the typical ones by this many robust sigma is a blend or a galaxy.
REJECT = 4.0


def build_psf(
    data: F32,
    background: Background,
    detections: Table,
    mask: U16,
    gain: float,
    readnoise: float,
    saturate: float,
) -> PsfModel:
    """The spatially varying PSF of an image.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        DN, sky in.
    background, detections, mask
        Of the same image; ``detections`` of DETECTION_DTYPE.
    gain, readnoise, saturate : float
        e-/DN, e-, DN with sky in (NaN: unknown).

    Returns
    -------
    PsfModel
        Degree 2 from 150 stars, 1 from 30, else constant; ``fwhm`` is the median over the image, ``flux_error`` what
        the covariance of the solution says.

    Raises
    ------
    PhotometryError
        Fewer than ten usable stars.
    """
    shape = (data.shape[0], data.shape[1])
    stamps, fluxes = select_stars(data, background, detections, mask, saturate)
    _require(len(stamps), len(detections))
    profile = _first_profile(stamps, fluxes)
    variance = stamps.sky / gain + (readnoise / gain) ** 2
    kept = np.ones(len(stamps), bool)
    x, y, flux = stamps.x, stamps.y, fluxes
    model = _round_model(profile, shape)
    for turn, model_error in enumerate(MODEL_ERRORS):
        chosen = np.flatnonzero(kept)
        sample = stamps[chosen]
        x, y, flux, misfit = _fit_stars(model, sample, variance[chosen], gain, model_error)
        good = _consistent(misfit, flux)
        kept[chosen[~good]] = False
        sample, chosen = sample[np.flatnonzero(good)], chosen[good]
        x, y, flux = x[good], y[good], flux[good]
        _require(len(sample), len(detections))
        degree = 0 if turn == 0 else sum(len(sample) >= n for n in DEGREE_STARS)
        used = np.arange(min(len(sample), TURN_STARS[turn]))
        model = _solve(
            model, profile, sample[used], variance[chosen[used]], (x[used], y[used], flux[used]),
            (gain, model_error), degree, last=turn == len(MODEL_ERRORS) - 1,
        )  # fmt: skip
    ny, nx = shape
    gx, gy = np.meshgrid((np.arange(3) + 0.5) * nx / 3, (np.arange(3) + 0.5) * ny / 3)
    fwhm = float(np.median(model.widths(gx.ravel(), gy.ravel())))
    if not 0.8 < fwhm < 12:
        raise PhotometryError(f"the PSF came out with a FWHM of {fwhm:.2f} px: no stars", n_stars=len(sample))
    return replace(model, fwhm=fwhm, n_stars=len(sample))


def _require(n: int, n_detections: int) -> None:
    if n < MIN_STARS:
        raise PhotometryError(
            f"{n} usable stars among {n_detections} detections, a PSF needs {MIN_STARS}", n_stars=n,
            n_detections=n_detections,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _ModelError:
    """What no model reproduces (pixel response, brighter-fatter): keeps the few brightest stars from outweighing all.

    Its variance is ``part``^2 times a pixel's light times that light or ``floor`` times the star's brightest pixel,
    whichever is more. With a floor of 1 the weights are those of photons, under which a star's flux does not see to
    first order that the model is off. In proportion to each pixel's own light the many pixels of the rim would
    determine the flux, where a rough model is off by half: in a sharp image full of bright stars (nothing else limits
    them) the core then does not settle.
    """

    part: float
    floor: float

    def variance(self, light: F32) -> F32:
        """Of stars' light (n, ...), none of it negative, in its unit squared."""
        peak = light.reshape(len(light), -1).max(axis=1).reshape(-1, *[1] * (light.ndim - 1))
        out: F32 = np.float32(self.part**2) * light * np.maximum(light, np.float32(self.floor) * peak)
        return out


# High while the model is round and the same everywhere; in the end the rim counts, where neighbours and galaxies show.
MODEL_ERRORS = (_ModelError(0.1, 1.0), _ModelError(0.03, 1.0), _ModelError(0.01, 0.1))


@dataclass(frozen=True, slots=True)
class _Profile:
    """Moffat profile of the effective PSF, sum 1 over the plane."""

    fwhm: float
    beta: float

    def __call__(self, r: NDArray[np.floating]) -> NDArray[np.floating]:
        core = self.fwhm / (2 * np.sqrt(2 ** (1 / self.beta) - 1))
        out: NDArray[np.floating] = (self.beta - 1) / (np.pi * core**2) * (1 + (r / core) ** 2) ** -self.beta
        return out


def _first_profile(stamps: StarStamps, fluxes: F64) -> _Profile:
    """The Moffat whose curve of growth is nearest to the stars' median one."""
    growth = np.median(np.stack(aperture_sums(stamps, GROWTH_RADII)) / fluxes, axis=1)
    profiles, curves = _growth_curves()
    return profiles[int(np.argmin(((curves - growth) ** 2).sum(axis=1)))]


@lru_cache(maxsize=1)
def _growth_curves() -> tuple[tuple[_Profile, ...], F64]:
    """Moffats to choose from, and the light of each within ``GROWTH_RADII`` over that within 5 px."""
    fine = (np.arange(0, 160) + 0.5) * 0.05
    inside = np.stack([np.clip(radius + 0.5 - fine, 0, 1) for radius in (*GROWTH_RADII, 5.0)])
    profiles = [_Profile(float(fwhm), beta) for beta in (2.2, 2.6, 3.0, 3.5, 4.5) for fwhm in np.arange(1.2, 7.0, 0.05)]
    sums = np.stack([inside @ (profile(fine) * fine) for profile in profiles])
    return tuple(profiles), sums[:, :-1] / sums[:, -1:]


def _oversampling(fwhm: float) -> int:
    """Nodes per px: a cubic spline follows a profile of 4.4 nodes FWHM to 0.1 % of its peak."""
    return 2 if fwhm > 2.2 else 3


def _node_polar(oversample: int) -> tuple[F64, F64]:
    node = np.arange(-RADIUS * oversample, RADIUS * oversample + 1) / oversample
    return np.hypot(node[None, :], node[:, None]), np.arctan2(node[:, None], node[None, :])


def _round_model(profile: _Profile, shape: tuple[int, int]) -> PsfModel:
    oversample = _oversampling(profile.fwhm)
    r, _ = _node_polar(oversample)
    return PsfModel(profile(r).astype(np.float32)[None], oversample, 0, shape, profile.fwhm)


def _fit_stars(
    model: PsfModel, stamps: StarStamps, variance: F32, gain: float, model_error: _ModelError
) -> tuple[F64, F64, F64, F64]:
    """Place, flux and reduced chi-square (core, model error allowed for) of each star."""
    low, high = STAMP // 2 - FIT_SIZE // 2, STAMP // 2 + FIT_SIZE // 2 + 1
    flux = np.maximum(stamps.values[:, low:high, low:high].sum(axis=(1, 2)), 1.0).astype(float)
    stars = Stars(stamps.x - stamps.ix, stamps.y - stamps.iy, flux, model.coefficients(stamps.x, stamps.y))
    misfit, noise = np.zeros(len(flux)), Noise(gain, model_error.part, model_error.floor)
    windows = Windows(stamps.values, stamps.usable, variance)
    fit_single_stars(windows, stars, psf_table(model, FIT_SIZE + STRAY), noise, FIT_SIZE, misfit)
    return stamps.ix + stars.dx, stamps.iy + stars.dy, stars.flux, misfit


def _consistent(misfit: F64, flux: F64) -> NDArray[np.bool_]:
    """Stars whose misfit is not far above the others': blends and galaxies stand out, whatever the model's error."""
    log = np.log(np.maximum(misfit, 1e-6))
    centre = np.median(log)
    scatter = max(1.4826 * float(np.median(np.abs(log - centre))), 0.1)
    return np.asarray((flux > 0) & (log < centre + REJECT * scatter))


@dataclass(frozen=True, slots=True)
class _Basis:
    """Tabulated profiles of one angular order each: function k is ``table[:, k]`` times cos or sin."""

    table: F32  # (n_r, n_functions)
    order: NDArray[np.intp]
    sine: NDArray[np.bool_]
    scale: F64  # the first profile's value where each function peaks
    gauge: F64  # (3, n_functions): flux, x and y that each function imitates


@lru_cache(maxsize=4)
def _basis(profile: _Profile) -> _Basis:
    """Cubic B-splines in r, mirrored at r = 0 and tapered as r^m there, for the angular orders 0 to 4."""
    knots = np.array(KNOTS) * profile.fwhm
    knots = knots[knots < RADIUS - 2]
    n = len(knots)
    spread = np.concatenate([-knots[:0:-1], knots, knots[-1] + (RADIUS + 2 - knots[-1]) * np.arange(1, 5) / 3])
    spread = np.concatenate([spread[0] - np.arange(4, 0, -1) * profile.fwhm, spread])
    r = np.arange(0, (RADIUS + 2) * np.sqrt(2) + TABLE_STEP, TABLE_STEP)
    columns: list[F64] = []
    labels: list[tuple[int, int, bool]] = []
    splines: dict[int, tuple[F64, F64]] = {}
    for m, reach in ANGULAR_REACH.items():
        taper = (r**2 / (r**2 + (0.5 * profile.fwhm) ** 2)) ** (m // 2)
        first = len(columns)
        for k in range(len(spread) - 4):
            middle = spread[k + 2]
            if middle < -1e-9 or (m % 2 and middle < 1e-9) or middle > knots[min(reach, n) - 1] + 1e-9:
                continue
            if k not in splines:
                spline = BSpline.basis_element(spread[k : k + 5], extrapolate=False)
                splines[k] = np.nan_to_num(spline(r)), np.nan_to_num(spline(-r))
            value = (splines[k][0] + (-splines[k][1] if m % 2 else splines[k][1])) * taper
            columns.append(value / max(float(value.max()), 1e-6))
        profiles = range(first, len(columns))
        labels += [(k, m, False) for k in profiles] + [(k, m, True) for k in profiles if m]
    radial, order, sine = (np.array(label) for label in zip(*labels, strict=True))
    peaks = r[np.argmax(np.stack(columns), axis=1)]
    scale = profile(peaks)[radial]
    table = np.stack(columns, axis=1)
    gauge = _gauge(profile, r, table, radial, order, sine)
    return _Basis(table.astype(np.float32)[:, radial], order, sine, scale, gauge)


def _gauge(
    profile: _Profile,
    r: F64,
    table: F64,
    radial: NDArray[np.intp],
    order: NDArray[np.intp],
    sine: NDArray[np.bool_],
) -> F64:
    """Overlap of each function with the profile and its gradients, 1 for the profile or its gradient itself.

    Flux and place of every star are free, so nothing but this says what the PSF's centre and sum are; without it
    they would drift from pass to pass.
    """
    value, slope = profile(r), np.gradient(profile(r), TABLE_STEP)
    overlap = (value * r) @ table / (value**2 * r).sum()
    shift = (slope * r) @ table / (slope**2 * r).sum()
    rows = [
        np.where(order == 0, overlap[radial], 0.0),
        np.where((order == 1) & ~sine, shift[radial], 0.0),
        np.where((order == 1) & sine, shift[radial], 0.0),
    ]
    return np.stack(rows)


def _tabulated(profile: _Profile, basis: _Basis) -> Functions:
    """The basis for the compiled loops: columns of one angle are neighbours."""
    angle = np.maximum(2 * basis.order - 1 + basis.sine, 0)
    edges = np.searchsorted(angle, np.arange(angle[-1] + 2))
    first = profile(np.arange(len(basis.table)) * TABLE_STEP)
    return Functions(basis.table, np.asarray(first, np.float64), 1 / TABLE_STEP, edges)


def _evaluate(basis: _Basis, r: NDArray[np.floating], phi: NDArray[np.floating]) -> F32:
    """All functions at polar places (n,), (n, n_functions), float32."""
    rows = np.minimum(np.rint(r / TABLE_STEP).astype(np.intp), len(basis.table) - 1)
    out: F32 = np.take(basis.table, rows, axis=0)
    phi = phi.astype(np.float32)
    for m in range(1, int(basis.order.max()) + 1):
        for is_sine in (False, True):
            columns = np.flatnonzero((basis.order == m) & (basis.sine == is_sine))  # neighbours in the table
            angle = (np.sin if is_sine else np.cos)(m * phi)
            out[:, columns[0] : columns[-1] + 1] *= angle[:, None]
    return out


def _solve(
    model: PsfModel,
    profile: _Profile,
    stamps: StarStamps,
    variance: F32,
    fit: tuple[F64, F64, F64],
    noise_figures: tuple[float, _ModelError],
    degree: int,
    *,
    last: bool,
) -> PsfModel:
    """One linear solution for all coefficients, flux and place of each star eliminated; errors with the ``last``."""
    x, y, flux = fit
    basis, (gain, model_error) = _basis(profile), noise_figures
    stars = Stars(x - stamps.ix, y - stamps.iy, flux, model.coefficients(x, y))
    blocks = _star_equations(
        Windows(stamps.values, stamps.usable, variance), stars, psf_table(model, STAMP + STRAY),
        Noise(gain, model_error.part, model_error.floor), _tabulated(profile, basis),
    )  # fmt: skip
    gram, rhs = (np.concatenate(part) for part in zip(*blocks, strict=True))
    coefficients, factor = _normal_solution(basis, gram, rhs, polynomial_terms(x, y, model.shape, degree))
    solved = _sample(profile, basis, coefficients, model.oversample, model.shape, degree, len(x))
    if not last:
        return solved
    errors = _flux_errors(solved, basis, factor)
    share = np.convolve(np.ones(ERROR_NODES - 1), [0.5, 0.5]) / (ERROR_NODES - 1)  # of the image, of a row of nodes
    mean = float(np.sqrt(share @ errors**2 @ share))
    return replace(solved, flux_error=mean, error_map=errors.astype(np.float32))


def _flux_errors(model: PsfModel, basis: _Basis, factor: tuple[F64, bool]) -> F64:
    """Relative error of a faint star's flux from the coefficients' covariance, on ERROR_NODES x ERROR_NODES places.

    A PSF P + dP gives the flux 1 - sum(P dP) / sum(P^2) + sum(dP) times the true one, the last because it is scaled to
    sum 1 again.
    """
    ny, nx = model.shape
    gx, gy = (g.ravel() for g in np.meshgrid(*(np.linspace(0, n - 1, ERROR_NODES) for n in (nx, ny))))
    functions = _evaluate(basis, np.hypot(DISC_X, DISC_Y), np.arctan2(DISC_Y, DISC_X)).astype(float)
    stamps = model.stamps(gx, gy, subpixel=False).reshape(len(gx), -1)[:, DISC].astype(float)
    weighted = stamps @ functions / (stamps**2).sum(axis=1)[:, None]
    slope = functions.sum(axis=0) - weighted
    terms = polynomial_terms(gx, gy, model.shape, model.degree)
    change = (terms[:, :, None] * slope[:, None, :]).reshape(len(gx), -1)
    variance: F64 = (change.T * linalg.cho_solve(factor, change.T, check_finite=False)).sum(axis=0)
    return np.sqrt(variance).reshape(ERROR_NODES, ERROR_NODES)


def _star_equations(
    windows: Windows, stars: Stars, table: PsfTable, noise: Noise, shape: Functions
) -> Iterator[tuple[F32, F32]]:
    """Normal matrices and right sides for the corrections, flux and place projected out, of ``BLOCK`` stars a time."""
    n, n_functions = len(stars.flux), shape.table.shape[1]
    rows = np.empty((min(BLOCK, n), DISC.size, n_functions), np.float32)
    right = np.empty(rows.shape[:2], np.float32)
    for start in range(0, n, BLOCK):
        part = slice(start, min(start + BLOCK, n))
        k = part.stop - start
        star_rows(windows.part(part), stars.part(part), table, noise, shape, DISC, rows[:k], right[:k])
        transposed = rows[:k].transpose(0, 2, 1)
        yield transposed @ rows[:k], (transposed @ right[:k, :, None])[..., 0]


def _normal_solution(basis: _Basis, gram: F32, rhs: F32, terms: F64) -> tuple[F64, tuple[F64, bool]]:
    """Coefficients (n_terms, n_functions) of the regularised normal equations, and these as Cholesky's factor."""
    n_terms, n_functions = terms.shape[1], gram.shape[1]
    n = len(gram)
    products = (terms[:, :, None] * terms[:, None, :]).reshape(n, -1)
    normal = (products.T @ gram.reshape(n, -1).astype(float)).reshape(n_terms, n_terms, n_functions, n_functions)
    normal = normal.transpose(0, 2, 1, 3).reshape(n_terms * n_functions, -1)
    right = (terms.T @ rhs.astype(float)).ravel()
    width = np.concatenate(
        [basis.scale * np.where(basis.order == 0, PRIOR, PRIOR_VARIATION)]
        + [basis.scale * PRIOR_VARIATION] * (n_terms - 1)
    )
    normal[np.diag_indices_from(normal)] += 1 / width**2
    fixed = np.kron(np.eye(n_terms), basis.gauge)
    normal += fixed.T @ fixed / GAUGE**2
    factor = linalg.cho_factor(normal, check_finite=False)
    solution: F64 = linalg.cho_solve(factor, right, check_finite=False)
    return solution.reshape(n_terms, n_functions), factor


def _sample(
    profile: _Profile,
    basis: _Basis,
    coefficients: F64,
    oversample: int,
    shape: tuple[int, int],
    degree: int,
    n_stars: int,
) -> PsfModel:
    """The solution on the nodes of the grid."""
    r, phi = _node_polar(oversample)
    functions = _evaluate(basis, r.ravel(), phi.ravel())
    grids = (coefficients @ functions.T.astype(float)).reshape(-1, *r.shape)
    grids[0] += profile(r)
    return PsfModel(grids.astype(np.float32), oversample, degree, shape, profile.fwhm, n_stars)
