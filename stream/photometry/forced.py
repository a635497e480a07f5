"""Fluxes at given places: the PSF fit without its freedom to move."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.core.errors import PhotometryError
from stream.core.psf import PsfModel
from stream.core.records import F32
from stream.photometry.fit import fixed_flux
from stream.photometry.stamps import nearest_pixels, window_index

F64 = NDArray[np.float64]
BLOCK = 512  # places whose windows stay in the processor's cache
SIZE = 11  # px: holds all the weight of PSFs up to a FWHM of 4 px


class StampsPsf(Protocol):
    """A PSF that paints stars at fractional places, as ``PsfModel.stamps``."""

    def stamps(self, x: ArrayLike, y: ArrayLike, size: int = ..., *, subpixel: bool = ...) -> F32:
        """Stamps (n, size, size) around the pixels nearest to the places."""
        ...


def forced_fluxes(
    data: F32, sigma: float | F32, psf: StampsPsf | F32, x: ArrayLike, y: ArrayLike, size: int = SIZE
) -> tuple[F64, F64, F64]:
    """PSF fluxes at fixed places.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        DN, sky off; NaN where unusable.
    sigma : float or ndarray, (ny, nx)
        1-sigma noise per pixel, DN; pixels where it is not above 0 are left out.
    psf : object with ``stamps`` or ndarray, (m, m)
        A ``PsfModel`` or alike; or one stamp, m odd, centred on its middle pixel, the same everywhere (fractions
        of a pixel are interpolated with cubic splines).
    x, y : array_like, (n,)
        Places, px, first is 0. Not finite or outside the image: NaN results.
    size : int
        Side of the windows, odd.

    Returns
    -------
    flux, sigflux, chi : ndarray, (n,), float64
        DN in the PSF's norm (sum 1 over 25 x 25: total flux), its error, r.m.s. of residuals over the expected.
        NaN where less than a quarter of the PSF's light falls on usable pixels.

    Raises
    ------
    PhotometryError
        ``size`` is even, a PSF stamp is not square and odd, or ``sigma`` has another shape than ``data``.
    """
    shape = (data.shape[0], data.shape[1])
    if size < 1 or size % 2 == 0:
        raise PhotometryError(f"forced photometry needs a window of odd side, got {size}")
    if np.ndim(sigma) and np.shape(sigma) != shape:
        raise PhotometryError(f"noise {np.shape(sigma)} must have the image's shape {shape}")
    source = _constant(psf, shape) if isinstance(psf, np.ndarray) else psf
    px, py = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    out = np.full((3, len(px)), np.nan)
    inside = np.isfinite(px) & np.isfinite(py) & (px > -0.5) & (py > -0.5)
    rows = np.flatnonzero(inside & (px < shape[1] - 0.5) & (py < shape[0] - 0.5))
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        ix, iy = nearest_pixels(px[part], py[part])
        index, within = window_index(ix, iy, size, shape)
        values = data.reshape(-1)[index]
        noise = np.asarray(sigma, np.float32)
        noise = noise.reshape(-1)[index] if noise.ndim else np.broadcast_to(noise, values.shape)
        usable = within & np.isfinite(values) & (noise > 0)
        weight = np.where(usable, 1 / np.where(usable, noise, 1) ** 2, np.float32(0)).astype(np.float32)
        stamps = source.stamps(px[part], py[part], size)
        out[:, part] = fixed_flux(np.where(usable, values, np.float32(0)), weight, stamps)
    return out[0], out[1], out[2]


def _constant(stamp: F32, shape: tuple[int, int]) -> PsfModel:
    if stamp.ndim != 2 or stamp.shape[0] != stamp.shape[1] or stamp.shape[0] % 2 == 0:
        raise PhotometryError(f"a PSF stamp must be square with an odd side, got {stamp.shape}")
    return PsfModel(stamp[None].astype(np.float32), 1, 0, shape, float("nan"))
