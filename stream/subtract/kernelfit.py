"""A second difference, by another method, to compare with: a fitted kernel (Alard & Lupton 1998, ApJ 503, 325).

The sharper image is convolved with a kernel that makes it look like the other one. The kernel is a sum of Gaussians
times polynomials whose coefficients are polynomials of place; they are fitted to the pixels of common bright stars.
Nothing is shared with proper subtraction but the images' preparation: no PSF model enters, and no Fourier transform.
Slow (some seconds a quadrant), its noise is coloured where the seeing differs: for checks, never in the stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from stream.core.errors import SubtractionError
from stream.core.flags import BAD_BITS
from stream.core.psf import PsfModel, polynomial_terms
from stream.core.records import F32, Difference, Reference, ScienceImage
from stream.subtract.cache import ReferenceCache
from stream.subtract.difference import SubtractConfig, finish, front
from stream.subtract.kernels import WORK, psfs_of
from stream.subtract.match import MatchConfig, clean_stars
from stream.subtract.prepare import plain_growth

F64 = NDArray[np.float64]

# Widths (px) and degrees of the Gaussians' polynomials: those of the paper, for kernels between seeings of 2 to 3.5 px.
WIDTHS, DEGREES = (0.7, 1.5, 2.7), (4, 2, 1)
KERNEL = 10  # px, half side of the kernel
STAMP = 9  # px, half side of what is fitted of a star
PLACE_DEGREE = 2
MAX_STARS = 300
MIN_STARS = 12


@dataclass(frozen=True, slots=True)
class _Basis:
    """One separable kernel: values along y and x (21,)."""

    y: F64
    x: F64


def _basis() -> list[_Basis]:
    """The kernels; the first has sum 1, all others sum 0 or nearly so."""
    u = np.arange(-KERNEL, KERNEL + 1, dtype=float)
    out = []
    for width, degree in zip(WIDTHS, DEGREES, strict=True):
        g = np.exp(-0.5 * (u / width) ** 2)
        g /= g.sum()
        out += [
            _Basis(g * (u / width) ** q, g * (u / width) ** p) for p in range(degree + 1) for q in range(degree + 1 - p)
        ]
    return out


def subtract_by_kernel(
    science: ScienceImage,
    reference: Reference,
    config: SubtractConfig | None = None,
    cache: ReferenceCache | None = None,
) -> Difference:
    """Difference of a science image and its reference by a fitted kernel.

    Returns
    -------
    Difference
        As ``subtract``: science DN, ``scorr`` with unit scatter on the empty sky.

    Raises
    ------
    SubtractionError
        As ``subtract``, or fewer than 12 stars to fit.
    """
    config = config or SubtractConfig()
    made = front(science, reference, config, cache, whole=True)
    ready, shape = made.ready, (science.data.shape[0], science.data.shape[1])
    psfs = psfs_of(science, reference, made.pixel_map)
    # Sharper: the one whose PSF has the higher noise-equivalent peak.
    forward = float((psfs.reference.mean(axis=0) ** 2).sum()) >= float((psfs.new.mean(axis=0) ** 2).sum())
    sharp, blunt = (ready.reference, ready.new) if forward else (ready.new, ready.reference)
    variances = (
        (ready.reference_variance, ready.new_variance) if forward else (ready.new_variance, ready.reference_variance)
    )
    blank = plain_growth(ready.unusable, ready.hits, config.grow, config.grow_hits)
    x, y = _stars(science, blank, config.match)
    solution = _fit(sharp, blunt, variances[0] + variances[1], (x, y), shape)
    data = blunt - _convolved(sharp, solution, shape)
    if not forward:
        np.negative(data, out=data)
    middle = _kernel_at(solution, shape)
    sigma = np.sqrt(variances[1] + ndimage.convolve(variances[0], middle**2, mode="nearest")).astype(np.float32)
    fwhm = science.psf.fwhm if forward else reference.psf.fwhm
    psf = _psf(psfs.new if forward else psfs.reference, (psfs.x, psfs.y), shape, fwhm)
    centre = psf.stamp((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    score, scorr = _scores(data, variances, middle, centre)
    return finish(science, made, (data, sigma, score, scorr), psf, float(centre.sum()), blank, config)


def _stars(science: ScienceImage, blank: NDArray[np.bool_], config: MatchConfig) -> tuple[NDArray[np.int64], ...]:
    """Pixels of bright clean stars with nothing unusable near them, the brightest of each neighbourhood."""
    table = science.sources[clean_stars(science.sources, science.data.shape, config)]
    ny, nx = blank.shape
    edge = STAMP + KERNEL + 1
    x, y = np.rint(table["x"]).astype(np.int64), np.rint(table["y"]).astype(np.int64)
    ok = (x > edge) & (y > edge) & (x < nx - edge) & (y < ny - edge) & (table["flags"] & BAD_BITS == 0)
    x, y, flux = x[ok], y[ok], table["flux"][ok]
    good = [not blank[b - STAMP : b + STAMP + 1, a - STAMP : a + STAMP + 1].any() for a, b in zip(x, y, strict=True)]
    x, y, flux = x[good], y[good], flux[good]
    order = np.argsort(-flux, kind="stable")[: 4 * MAX_STARS]
    x, y = x[order], y[order]
    if len(x) > 1:  # not two whose stamps overlap
        near = cKDTree(np.stack([x, y], 1)).query_pairs(2 * STAMP)
        worse = {max(pair) for pair in near}
        keep = [k for k in range(len(x)) if k not in worse]
        x, y = x[keep], y[keep]
    return x[:MAX_STARS], y[:MAX_STARS]


def _fit(sharp: F32, blunt: F32, variance: F32, stars: tuple[NDArray[np.int64], ...], shape: tuple[int, int]) -> F64:
    """Coefficients (n_basis, n_terms): weighted least squares over the stars' pixels, bad stars left out."""
    x, y = stars
    if len(x) < MIN_STARS:
        raise SubtractionError(f"only {len(x)} clean stars: a kernel cannot be fitted", n_stars=len(x))
    basis, reach, wide = _basis(), STAMP, STAMP + KERNEL
    terms = polynomial_terms(x, y, shape, PLACE_DEGREE)
    blocks, values = [], []
    for k, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        window = sharp[b - wide : b + wide + 1, a - wide : a + wide + 1].astype(float)
        views = np.lib.stride_tricks.sliding_window_view(window, 2 * KERNEL + 1, axis=1)
        images = []
        for one in basis:
            along = np.lib.stride_tricks.sliding_window_view(views @ one.x[::-1], 2 * KERNEL + 1, axis=0)
            images.append(along @ one.y[::-1])
        box = np.s_[b - reach : b + reach + 1, a - reach : a + reach + 1]
        weight = 1 / np.sqrt(variance[box].astype(float))
        design = (np.stack(images) * weight).reshape(len(basis), -1)
        level = weight.ravel()  # a sky of its own per star would cost a column each: it is taken out by projection
        level = level / np.linalg.norm(level)
        target = (blunt[box] * weight).ravel()
        design = design - np.outer(design @ level, level)
        blocks.append((design[:, None, :] * terms[k][None, :, None]).reshape(-1, target.size))
        values.append(target - (target @ level) * level)
    good = np.ones(len(x), bool)
    for _ in range(3):
        normal = sum(blocks[k] @ blocks[k].T for k in np.flatnonzero(good))
        right = sum(blocks[k] @ values[k] for k in np.flatnonzero(good))
        solution = np.linalg.lstsq(np.asarray(normal), np.asarray(right), rcond=1e-12)[0]
        chi = np.array([np.mean((v - solution @ m) ** 2) for m, v in zip(blocks, values, strict=True)])
        good = chi < 4 * np.median(chi[good])  # variables, blends
    return np.asarray(solution.reshape(len(basis), -1), float)


def _convolved(sharp: F32, solution: F64, shape: tuple[int, int]) -> F32:
    """The sharper image with the kernel of each place."""
    ny, nx = shape
    out = np.zeros(shape, np.float32)
    y = np.arange(ny)
    middle = np.full(ny, (nx - 1) / 2)
    u = (np.arange(nx) - (nx - 1) / 2) / (nx / 2)
    v = polynomial_terms(middle, y, shape, PLACE_DEGREE)  # 1, u, v, u^2, uv, v^2 with u = 0
    along, powers = {}, [(t - j, j) for t in range(PLACE_DEGREE + 1) for j in range(t + 1)]
    rows = [v[:, powers.index((0, q))].astype(np.float32)[:, None] for _, q in powers]
    columns = [(u**p).astype(np.float32) for p, _ in powers]
    for one, coefficients in zip(_basis(), solution, strict=True):
        key = one.x.tobytes()
        if key not in along:
            along = {key: ndimage.convolve1d(sharp, one.x, axis=1, mode="nearest")}
        image = ndimage.convolve1d(along[key], one.y, axis=0, mode="nearest")
        surface = sum(np.float32(c) * r * k for c, r, k in zip(coefficients, rows, columns, strict=True))
        out += surface * image
    return out


def _kernel_at(solution: F64, shape: tuple[int, int]) -> F64:
    """The kernel (21, 21) in the middle of the image."""
    terms = polynomial_terms((shape[1] - 1) / 2, (shape[0] - 1) / 2, shape, PLACE_DEGREE)[0]
    images = [np.outer(one.y, one.x) for one in _basis()]
    return np.asarray(np.tensordot(solution @ terms, np.stack(images), 1))


def _psf(stamps: F32, places: tuple[F64, F64], shape: tuple[int, int], fwhm: float) -> PsfModel:
    """The blunter image's PSF: that of the difference."""
    terms = polynomial_terms(*places, shape, 2)
    images = np.linalg.lstsq(terms, stamps.reshape(len(stamps), -1).astype(float), rcond=None)[0]
    return PsfModel(images.reshape(-1, WORK, WORK).astype(np.float32), 1, 2, shape, fwhm)


def _scores(data: F32, variances: tuple[F32, F32], kernel: F64, psf: F32) -> tuple[F32, F32]:
    """S and S_corr by the PSF in the middle; the sharper image's noise (the first) is correlated by the kernel."""
    score = ndimage.correlate(data, psf, mode="nearest").astype(np.float32)
    whole = ndimage.convolve(np.pad(kernel, psf.shape[0] // 2), psf[::-1, ::-1].astype(float), mode="constant")
    variance = ndimage.convolve(variances[0], whole**2, mode="nearest")
    variance += ndimage.correlate(variances[1], psf.astype(float) ** 2, mode="nearest")
    return score, (score / np.sqrt(variance)).astype(np.float32)
