"""Fake light into an image: what a source would have added to the pixels, with its own photon noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream.core.flags import Mask
from stream.core.records import F32, ScienceImage, Table

_SIZE = 29  # px, side of a star's stamp: all that a PSF model of ours holds
_STEP = 0.5  # px between the stars that a streak is drawn with: no ripple at any seeing

F64 = NDArray[np.float64]


class Stars(Protocol):
    """A PSF that gives stamps of stars (``core.psf.PsfModel``; the bench takes the simulator's own)."""

    def stamps(self, x: F64, y: F64, size: int) -> F32:
        """Unit-flux stamps (n, size, size) on the pixel nearest to each place."""
        ...


def paint(shape: tuple[int, int], fakes: Table, psf: Stars) -> F32:
    """The light (DN) of fakes on nothing, (ny, nx) float32.

    ``fakes`` needs ``x, y`` (px; a streak's middle), ``flux`` (DN), ``length`` (px, 0: a point), ``angle`` (deg, from x
    towards y).
    """
    ny, nx = shape
    half = _SIZE // 2
    image = np.zeros((ny + 2 * half, nx + 2 * half), np.float32)
    x, y, flux = _points(fakes)
    inside = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    x, y, flux = x[inside], y[inside], flux[inside]
    stamps = psf.stamps(x, y, _SIZE) * flux.astype(np.float32)[:, None, None]
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    for stamp, column, row in zip(stamps, ix.tolist(), iy.tolist(), strict=True):
        image[row : row + _SIZE, column : column + _SIZE] += stamp
    return np.ascontiguousarray(image[half : half + ny, half : half + nx])


def _points(fakes: Table) -> tuple[F64, F64, F64]:
    """Every fake as one star, a streak as many along its line."""
    xs, ys, fluxes = [], [], []
    for fake in fakes:
        n = max(int(np.ceil(fake["length"] / _STEP)), 1)
        along = (np.arange(n) + 0.5) / n - 0.5
        angle = np.radians(float(fake["angle"]))
        xs.append(fake["x"] + along * fake["length"] * np.cos(angle))
        ys.append(fake["y"] + along * fake["length"] * np.sin(angle))
        fluxes.append(np.full(n, fake["flux"] / n))
    if not xs:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    return np.concatenate(xs), np.concatenate(ys), np.concatenate(fluxes)


def inject(science: ScienceImage, fakes: Table, seed: int, psf: Stars | None = None) -> ScienceImage:
    """A copy of a science image with fakes in its pixels.

    Parameters
    ----------
    science : ScienceImage
    fakes : Table
        See ``paint``.
    seed : int
        Of the photon noise: the same seed gives the same pixels.
    psf : optional
        By default the image's own model.

    Returns
    -------
    ScienceImage
        ``data`` and ``mask`` are new; pixels that the fakes drive over ``saturate`` are cut there and masked.
        Everything else is the image's: its sky, PSF, WCS and sources were measured without the fakes.
    """
    light = paint(science.data.shape, fakes, psf or science.psf)
    lit = np.flatnonzero(light > 0)
    rng = np.random.default_rng(seed)
    gain = science.gain
    noisy = rng.poisson(light.reshape(-1)[lit].astype(np.float64) * gain) / gain
    data = science.data.copy()
    data.reshape(-1)[lit] += noisy.astype(np.float32)
    mask = science.mask.copy()
    full = np.flatnonzero(data.reshape(-1)[lit] >= science.saturate)
    mask.reshape(-1)[lit[full]] |= np.uint16(Mask.SATURATED)
    data.reshape(-1)[lit[full]] = np.float32(science.saturate)
    return replace(science, data=data, mask=mask)
