"""Fluxes at given places: the PSF fit without its freedom to move.

On an image that is ``forced_fluxes``, neighbours and all. What is left of a subtraction has no neighbours, and is
asked for object by object, years of images at a time, of which only windows are read: there ``window_fluxes`` fits
each alone, as the survey's own forced photometry does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from stream.core.psf import read_grids
from stream.core.records import F32
from stream.photometry.fit import Fit
from stream.photometry.scene import Scene, fit_scene

F64 = NDArray[np.float64]


def forced_fluxes(scene: Scene, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64, F64]:
    """PSF fluxes at fixed places of an image: the fit of the photometry (``fit_scene``) without its freedom to move.

    Places whose light overlaps are solved together, that of all others is taken off: an image's own catalogue given
    along with a place leaves none of its neighbours' light in it. Noise, windows, error of the PSF and covariance of
    the sky are the photometry's.

    Parameters
    ----------
    scene : Scene
        Image without sky, its unusable pixels, PSF and noise.
    x, y : array_like, (n,)
        Places, px, first is 0. Not finite or outside the image: NaN results.

    Returns
    -------
    flux, sigflux, chi : ndarray, (n,), float64
        DN in the PSF's norm (sum 1 over 25 x 25: total flux), its error, r.m.s. of residuals over the expected.
        NaN where less than a quarter of the PSF's light falls on usable pixels.
    """
    ny, nx = scene.image.shape
    px, py = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    out = np.full((3, len(px)), np.nan)
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero((px > -0.5) & (py > -0.5) & (px < nx - 0.5) & (py < ny - 0.5))
    if len(rows):
        fit = Fit.start(px[rows], py[rows], np.zeros(len(rows)))
        fit_scene(scene, fit, move=False)
        out[:, rows] = fit.flux, fit.sigflux, fit.chi
    return out[0], out[1], out[2]


WINDOW = 25  # px: the PSF's core, and around it room for the sky
_SKY_RADIUS = 5.0  # px: further out is sky (the survey's forced photometry)
_MIN_SKY = 100  # px
_MAX_BAD = 0.5  # of the window
_MAD_TO_SIGMA = 1.4826
_MEDIAN_LOSS = math.pi / 2  # variance of a median over that of a mean


@dataclass(frozen=True, slots=True)
class ForcedFlux:
    """Fluxes (DN), errors, chi (n,) float64, NaN where there is none, and the survey's status codes (n,) int:
    0 good, 54 too little sky, 55 more than half of the window unusable, 56 some of it, 61 off the image."""

    flux: F64
    error: F64
    chi: F64
    status: NDArray[np.int64]


def window_fluxes(windows: F32, psf: F32, gain: float, static: F32 | float, inside: NDArray[np.bool_]) -> ForcedFlux:
    """PSF fluxes of windows out of a difference image, sky and noise taken from the window itself.

    Parameters
    ----------
    windows : ndarray, (n, 25, 25), float32
        DN around the pixel nearest to each place, NaN where unusable.
    psf : ndarray, (n, 25, 25), float32
        What a star of flux 1 there puts into the window.
    gain : float
        e-/DN.
    static : ndarray, (n, 25, 25), or float
        Light (DN, not negative) that was subtracted there: it has left its photon noise.
    inside : ndarray, (n,), bool
        The place lies on the image.

    Notes
    -----
    The survey's forced photometry (ztf-facts §9.3): background is the median beyond 5 px, its robust spread the noise;
    the flux is the sum of the PSF-weighted pixels, its variance that of sky, source and what was subtracted. The
    weights follow the PSF alone, so that the flux stays unbiased whatever the source's brightness.
    """
    n = len(windows)
    good = np.isfinite(windows)
    reach = np.arange(WINDOW) - WINDOW // 2
    ring = np.hypot(reach[:, None], reach) > _SKY_RADIUS
    sky = np.where(good & ring, windows, np.nan).reshape(n, -1)
    count = np.isfinite(sky).sum(axis=1)
    bad = 1.0 - good.mean(axis=(1, 2))
    status = np.select(
        [~inside, bad > _MAX_BAD, count < _MIN_SKY, bad > 0], [61, 55, 54, 56], 0
    )  # the first that holds
    usable = np.isin(status, (0, 56))
    level, sigma = np.zeros(n), np.full(n, np.nan)
    if usable.any():
        level[usable] = np.nanmedian(sky[usable], axis=1)
        sigma[usable] = _MAD_TO_SIGMA * np.nanmedian(np.abs(sky[usable] - level[usable, None]), axis=1)
    weight = np.where(good, psf, 0.0).astype(np.float64)
    norm = np.einsum("ijk,ijk->i", weight, psf)
    values = np.where(good, windows - level[:, None, None], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        flux = np.einsum("ijk,ijk->i", weight, values) / norm
        photons = np.maximum(np.maximum(flux, 0)[:, None, None] * psf + static, 0) / gain
        variance = np.einsum("ijk,ijk->i", weight**2, sigma[:, None, None] ** 2 + photons) / norm**2
        variance += (weight.sum(axis=(1, 2)) / norm) ** 2 * sigma**2 * _MEDIAN_LOSS / np.maximum(count, 1)
        expected = sigma[:, None, None] ** 2 + photons
        residual = np.where(good, (values - flux[:, None, None] * psf) ** 2 / expected, 0.0)
        chi = np.sqrt(residual.sum(axis=(1, 2)) / np.maximum(good.sum(axis=(1, 2)) - 2, 1))
    # Half the PSF's weight has to be there: a window may be clean but for the star's own saturated middle.
    whole = np.einsum("ijk,ijk->i", psf, psf, dtype=np.float64)
    usable &= (norm > _MAX_BAD * whole) & (sigma > 0)
    status[~usable & np.isin(status, (0, 56))] = 55
    blank = ~usable
    for values_ in (flux, variance, chi):
        values_[blank] = np.nan
    return ForcedFlux(flux, np.sqrt(variance), chi, status)


class GridPsf:
    """A PSF known as stamps on a grid of places, bilinear between them: what ``diffimgpsf`` holds.

    Parameters
    ----------
    stamps : ndarray, (rows, columns, m, m), float32
        Centred stamps, m odd.
    first, step : (x, y)
        Place of the first stamp and distance between them, px, first pixel is 0.
    """

    def __init__(self, stamps: F32, first: tuple[float, float], step: tuple[float, float]) -> None:
        flat = [ndimage.spline_filter(s.astype(np.float64), order=3, mode="mirror") for row in stamps for s in row]
        self._grid = np.asarray(flat, np.float32).reshape(stamps.shape)
        self._places = len(stamps), len(stamps[0])
        self._first, self._step = first, step

    def stamps(self, x: ArrayLike, y: ArrayLike, size: int = WINDOW) -> F32:
        """What a star of flux 1 at each place puts into the window around its nearest pixel, (n, size, size).

        The fraction of a pixel is applied with cubic splines; beyond the grid of places its edge holds.
        """
        xs, ys = (np.atleast_1d(np.asarray(v, float)) for v in (x, y))
        rows, columns = self._places
        u = np.clip((xs - self._first[0]) / self._step[0], 0, columns - 1)
        v = np.clip((ys - self._first[1]) / self._step[1], 0, rows - 1)
        i, j = np.minimum(u.astype(int), columns - 2), np.minimum(v.astype(int), rows - 2)
        fu, fv = ((a - b).astype(np.float32)[:, None, None] for a, b in ((u, i), (v, j)))
        low = self._grid[j, i] * (1 - fu) + self._grid[j, i + 1] * fu
        high = self._grid[j + 1, i] * (1 - fu) + self._grid[j + 1, i + 1] * fu
        return read_grids(low * (1 - fv) + high * fv, xs - np.rint(xs), ys - np.rint(ys), size, 1)
