"""Small painted images for room tests: known stars, known PSF, known noise, with separate seeds for sky and noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.psf import PsfModel


def star_field(
    shape: tuple[int, int], n: int, seed: int, flux_range: tuple[float, float] = (500.0, 50_000.0), edge: float = 15.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Places (px, first is 0) and total fluxes (DN) of ``n`` stars, log-uniform in flux."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    x = rng.uniform(edge, nx - 1 - edge, n)
    y = rng.uniform(edge, ny - 1 - edge, n)
    flux = np.exp(rng.uniform(np.log(flux_range[0]), np.log(flux_range[1]), n))
    return x, y, flux


def paint(
    shape: tuple[int, int],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    flux: NDArray[np.float64],
    psf: PsfModel,
    size: int = 41,
) -> NDArray[np.float64]:
    """Noise-free image (DN) of point sources, no sky."""
    image = np.zeros(shape)
    half = size // 2
    for xi, yi, fi, stamp in zip(x, y, flux, psf.stamps(x, y, size), strict=True):
        cx, cy = int(np.rint(xi)), int(np.rint(yi))
        x0, x1 = max(cx - half, 0), min(cx + half + 1, shape[1])
        y0, y1 = max(cy - half, 0), min(cy + half + 1, shape[0])
        if x0 < x1 and y0 < y1:
            image[y0:y1, x0:x1] += fi * stamp[y0 - cy + half : y1 - cy + half, x0 - cx + half : x1 - cx + half]
    return image


def add_noise(image: NDArray[np.float64], sky: float, gain: float, readnoise: float, seed: int) -> NDArray[np.float32]:
    """The image with sky, photon noise and read noise (e-), in DN."""
    rng = np.random.default_rng(seed)
    electrons = rng.poisson(np.clip((image + sky) * gain, 0, None)) + rng.normal(0, readnoise, image.shape)
    return (electrons / gain).astype(np.float32)
