"""Images whose every number is known: elliptical Moffat PSF, pixel-integrated, varying with place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from synthetic import add_noise, paint, star_field

from stream.core.psf import PsfModel
from stream.core.records import F32, U16, Background, Table
from stream.photometry import detect, estimate_background

GAIN, READNOISE, SATURATE, SKY = 6.2, 10.0, 50_000.0, 200.0


def true_psf(fwhm: float, shape: tuple[int, int], vary: float = 0.05, ellipticity: float = 0.06) -> PsfModel:
    """A PSF on a grid four times as fine as a pixel, wider and otherwise elongated towards the image's right.

    ``fwhm`` of the result (pixel included) is the median over a grid of places.
    """
    oversample, radius, beta = 4, 16, 3.2
    node = np.arange(-radius * oversample, radius * oversample + 1) / oversample

    def moffat(width: float, e1: float, e2: float) -> NDArray[np.float64]:
        core = width / (2 * np.sqrt(2 ** (1 / beta) - 1))
        total = np.zeros((len(node), len(node)))
        for dx in (np.arange(7) - 3) / 7:  # the pixel: a mean over its area
            for dy in (np.arange(7) - 3) / 7:
                x, y = node[None, :] + dx, node[:, None] + dy
                total += (1 + ((1 + e1) * x**2 + (1 - e1) * y**2 + 2 * e2 * x * y) / core**2) ** -beta
        return total / total.sum() * oversample**2

    optical = np.sqrt(fwhm**2 - 0.5)
    base = moffat(optical, ellipticity, ellipticity / 2)
    right = moffat(optical * (1 + vary), ellipticity / 2, ellipticity) - base
    up = moffat(optical, -ellipticity, ellipticity / 2) - base
    basis = np.stack([base, right, up]).astype(np.float32) if vary else base[None].astype(np.float32)
    model = PsfModel(basis, oversample, 1 if vary else 0, shape, fwhm)
    gx, gy = np.meshgrid(np.linspace(0, shape[1] - 1, 5), np.linspace(0, shape[0] - 1, 5))
    median = float(np.median(model.widths(gx.ravel(), gy.ravel())))
    return PsfModel(basis, oversample, model.degree, shape, median)


@dataclass
class Truth:
    """An image and what is in it."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    flux: NDArray[np.float64]
    psf: PsfModel
    data: F32
    mask: U16
    background: Background
    detections: Table

    def detections_with(self, mask: U16) -> Table:
        """Detections under another mask."""
        return detect(self.data, self.background, mask)


def make_truth(
    fwhm: float,
    shape: tuple[int, int] = (512, 512),
    n: int = 220,
    seed: int = 1,
    flux: tuple[float, float] = (200.0, 60_000.0),
    vary: float = 0.05,
) -> Truth:
    """Stars of known place and flux on a flat sky, with sky and detections measured."""
    psf = true_psf(fwhm, shape, vary)
    x, y, fluxes = star_field(shape, n, seed, flux)
    data = add_noise(paint(shape, x, y, fluxes, psf, 31), SKY, GAIN, READNOISE, seed + 1000)
    mask = np.zeros(shape, np.uint16)
    background = estimate_background(data, mask)
    return Truth(x, y, fluxes, psf, data, mask, background, detect(data, background, mask))
