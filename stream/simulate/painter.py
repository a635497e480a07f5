"""Light on the pixels: stars, galaxies, trails, sky. Everything in DN of the linear, flat-fielded image, no noise."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from stream.simulate.optics import BETA_CORE, WING_FRACTION, WING_SCALE, PsfField

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# A stamp ends where its light falls below this (DN per pixel): a hundredth of the noise of dark sky.
FAINTEST_LIGHT = 0.05
# Sides of stamps: few classes, so that whole batches are computed at once.
STAMP_SIZES = (17, 25, 41, 65, 105, 169, 273, 441)
BATCH_PIXELS = 60_000  # keeps a batch's scratch arrays in the processor's cache
GALAXY_SIGMAS = np.array([0.06, 0.18, 0.45, 0.95, 1.8])  # Gaussians of a galaxy, in half-light radii
PSF_SIGMAS = np.array([0.27, 0.43, 0.68, 1.15, 3.0])  # of the PSF, in core scales


def add_stamps(image: F32, x: F64, y: F64, stamps: F32) -> None:
    """Add stamps at their nearest pixels; what falls outside is lost."""
    ny, nx = image.shape
    half = stamps.shape[1] // 2
    columns, rows = np.rint(x).astype(int) - half, np.rint(y).astype(int) - half
    for stamp, x0, y0 in zip(stamps, columns.tolist(), rows.tolist(), strict=True):
        left, right = max(x0, 0), min(x0 + 2 * half + 1, nx)
        low, high = max(y0, 0), min(y0 + 2 * half + 1, ny)
        if left < right and low < high:
            image[low:high, left:right] += stamp[low - y0 : high - y0, left - x0 : right - x0]


def stamp_sizes(flux: F64, alpha: F64) -> NDArray[np.int64]:
    """Side of the stamp that each star needs."""
    core = flux * (1 - WING_FRACTION) * (BETA_CORE - 1) / (math.pi * alpha**2 * FAINTEST_LIGHT)
    wing = flux * WING_FRACTION / (math.pi * (WING_SCALE * alpha) ** 2 * FAINTEST_LIGHT)
    radius = np.maximum(alpha * np.maximum(core, 1) ** (0.5 / BETA_CORE), WING_SCALE * alpha * wing**0.25)
    classes = np.searchsorted(np.array(STAMP_SIZES) // 2, radius)
    return np.array(STAMP_SIZES)[np.minimum(classes, len(STAMP_SIZES) - 1)]


def paint_stars(image: F32, x: F64, y: F64, flux: F64, psf: PsfField) -> None:
    """Add point sources: places in px (first is 0), flux in DN."""
    if len(x) == 0:
        return
    sizes = stamp_sizes(flux, psf.at(x, y)[0])
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        step = max(1, BATCH_PIXELS // int(size) ** 2)
        for start in range(0, len(members), step):
            some = members[start : start + step]
            stamps = psf.stamps(x[some], y[some], int(size))
            stamps *= flux[some].astype(np.float32)[:, None, None]
            add_stamps(image, x[some], y[some], stamps)


@lru_cache(maxsize=1)
def galaxy_weights() -> tuple[F64, F64]:
    """Light in each of ``GALAXY_SIGMAS`` for an exponential disc and for a de Vaucouleurs bulge, each summing to 1.

    The bulge is cut at four half-light radii by what the Gaussians can follow, as survey models cut it too.
    """
    r = np.geomspace(0.02, 4.5, 300)
    weights = []
    for index, b in ((1.0, 1.678), (4.0, 7.669)):
        profile = np.exp(-b * r ** (1 / index))
        gauss = np.exp(-0.5 * (r[:, None] / GALAXY_SIGMAS) ** 2) / (2 * np.pi * GALAXY_SIGMAS**2)
        scale = np.sqrt(r**2)  # equal weight for equal light in log r
        weights.append(nnls(gauss * scale[:, None], profile * scale)[0])
    disc, bulge = (w / w.sum() for w in weights)
    return disc, bulge


@lru_cache(maxsize=1)
def psf_weights() -> F64:
    """Light in Gaussians of ``PSF_SIGMAS`` core scales that together follow the PSF's profile."""
    r = np.geomspace(0.02, 8.0, 300)
    core = (1 - WING_FRACTION) * (BETA_CORE - 1) / math.pi * (1 + r**2) ** -BETA_CORE
    wing = WING_FRACTION / (math.pi * WING_SCALE**2) * (1 + (r / WING_SCALE) ** 2) ** -2
    gauss = np.exp(-0.5 * (r[:, None] / PSF_SIGMAS) ** 2) / (2 * np.pi * PSF_SIGMAS**2)
    weights: F64 = nnls(gauss * r[:, None], (core + wing) * r)[0]
    weights /= weights.sum()
    return weights


def paint_galaxies(image: F32, x: F64, y: F64, flux: F64, shape: tuple[F64, F64, F64, F64], psf: PsfField) -> None:
    """Add galaxies: sums of Gaussians, so that the convolution with the PSF (itself a sum) is exact and free.

    ``shape`` holds the half-light radius (px), axis ratio, angle of the long axis (rad, from x towards y) and the
    bulge's share of the light.
    """
    if len(x) == 0:
        return
    radius = shape[0]
    alpha = psf.at(x, y)[0]
    extent = 3.2 * np.hypot(GALAXY_SIGMAS[-1] * radius, 1.5 * alpha) * np.clip(0.5 + 0.25 * np.log10(flux), 0.7, 1.3)
    classes = np.searchsorted(np.array(STAMP_SIZES) // 2, extent)
    sizes = np.array(STAMP_SIZES)[np.minimum(classes, len(STAMP_SIZES) - 1)]
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        step = max(1, BATCH_PIXELS // int(size) ** 2)
        for start in range(0, len(members), step):
            some = members[start : start + step]
            part = (shape[0][some], shape[1][some], shape[2][some], shape[3][some])
            stamps = _galaxy_stamps(x[some], y[some], flux[some], part, psf, int(size))
            add_stamps(image, x[some], y[some], stamps)


def _galaxy_stamps(x: F64, y: F64, flux: F64, shape: tuple[F64, F64, F64, F64], psf: PsfField, size: int) -> F32:
    half = size // 2
    grid = np.arange(-half, half + 1, dtype=np.float64)
    dx = (grid[None, :] - (x - np.rint(x))[:, None]).astype(np.float32)
    dy = (grid[None, :] - (y - np.rint(y))[:, None]).astype(np.float32)
    radius, ratio, angle, bulge = shape
    # Covariance of the unit galaxy and of the unit PSF; a pixel adds 1/12 to each axis.
    c, s = np.cos(angle), np.sin(angle)
    gxx, gyy = radius**2 * (c**2 + (ratio * s) ** 2), radius**2 * (s**2 + (ratio * c) ** 2)
    gxy = radius**2 * c * s * (1 - ratio**2)
    a, b, cc = psf.quadratic(x, y)
    determinant = a * cc - b * b / 4
    pxx, pyy, pxy = cc / determinant, a / determinant, -0.5 * b / determinant
    disc_weights, bulge_weights = galaxy_weights()
    fraction = psf.core_fraction(x, y)
    out = np.zeros((len(x), size, size), np.float32)
    product = dx[:, None, :] * dy[:, :, None]
    for k, galaxy_sigma in enumerate(GALAXY_SIGMAS):
        light = (disc_weights[k] * (1 - bulge) + bulge_weights[k] * bulge) * flux / fraction
        for psf_weight, psf_sigma in zip(psf_weights(), PSF_SIGMAS, strict=True):
            if psf_weight < 1e-4 or not light.any():
                continue
            vxx = galaxy_sigma**2 * gxx + psf_sigma**2 * pxx + 1 / 12
            vyy = galaxy_sigma**2 * gyy + psf_sigma**2 * pyy + 1 / 12
            vxy = galaxy_sigma**2 * gxy + psf_sigma**2 * pxy
            det = vxx * vyy - vxy**2
            peak = (light * psf_weight / (2 * np.pi * np.sqrt(det))).astype(np.float32)
            exponent = (vxy / det).astype(np.float32)[:, None, None] * product
            exponent += ((-0.5 * vyy / det).astype(np.float32)[:, None] * dx * dx)[:, None, :]
            exponent += ((-0.5 * vxx / det).astype(np.float32)[:, None] * dy * dy)[:, :, None]
            np.exp(exponent, out=exponent)
            exponent *= peak[:, None, None]
            out += exponent
    return out


def paint_trail(image: F32, ends: tuple[float, float, float, float], flux: float, psf: PsfField) -> None:
    """Add a trail of constant light from (x1, y1) to (x2, y2): a star every third of a pixel."""
    x1, y1, x2, y2 = ends
    steps = max(1, math.ceil(3 * math.hypot(x2 - x1, y2 - y1)))
    t = (np.arange(steps) + 0.5) / steps
    paint_stars_of_size(image, x1 + t * (x2 - x1), y1 + t * (y2 - y1), np.full(steps, flux / steps), psf, 31)


def paint_stars_of_size(image: F32, x: F64, y: F64, flux: F64, psf: PsfField, size: int) -> None:
    """Like ``paint_stars`` with one stamp size for all."""
    step = max(1, BATCH_PIXELS // size**2)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        stamps = psf.stamps(x[part], y[part], size)
        stamps *= flux[part].astype(np.float32)[:, None, None]
        add_stamps(image, x[part], y[part], stamps)
