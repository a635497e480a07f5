"""The PSFs that the subtraction works with: the science one, the reference's after its resampling, the difference's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.core.psf import STAMP, PsfModel
from stream.core.records import F32
from stream.core.resample import BEFORE, TAPS, lanczos_weights

WORK = 35  # px; side of the PSF images that enter the Fourier sums: wings beyond the 25 px core included
_PLACES = ((-0.31, -0.17), (0.19, -0.37), (-0.11, 0.29), (0.41, 0.23))  # of a tile, where its PSFs are sampled


@dataclass(frozen=True, slots=True)
class TilePsf:
    """The difference image's PSF on a grid of places, read in between by bilinear interpolation.

    ``xs`` (n_x,) and ``ys`` (n_y,) are the places (px, first is 0), ``grid`` (n_y, n_x, 35, 35) the PSFs, each with
    its 25 x 25 core summing to 1. Outside the grid the outermost cell is continued by up to half its width.
    """

    xs: NDArray[np.float64]
    ys: NDArray[np.float64]
    grid: F32

    def stamp(self, x: float, y: float, size: int = STAMP) -> F32:
        """PSF of the difference at a place, centred on the middle pixel, (size, size), its 25 x 25 core summing to 1.

        ``size`` odd; beyond the 35 px that are kept the PSF is zero.
        """
        i, u = _cell(self.xs, x)
        j, v = _cell(self.ys, y)
        g = self.grid
        psf = (g[j, i] * (1 - u) + g[j, i + 1] * u) * (1 - v) + (g[j + 1, i] * (1 - u) + g[j + 1, i + 1] * u) * v
        lost = (psf.shape[0] - STAMP) // 2
        psf = psf / psf[lost : lost + STAMP, lost : lost + STAMP].sum(dtype=np.float64)
        trim = (psf.shape[0] - size) // 2
        image = psf[trim : trim + size, trim : trim + size] if trim >= 0 else np.pad(psf, -trim)
        return np.ascontiguousarray(image, np.float32)


def _cell(nodes: NDArray[np.float64], place: float) -> tuple[int, float]:
    """Cell of a one-dimensional grid and the fraction inside it; a grid has at least two nodes."""
    i = int(np.clip(np.searchsorted(nodes, place) - 1, 0, len(nodes) - 2))
    return i, float(np.clip((place - nodes[i]) / (nodes[i + 1] - nodes[i]), -0.5, 1.5))


def tile_places(xc: NDArray[np.float64], yc: NDArray[np.float64], side: float) -> tuple[NDArray[np.float64], ...]:
    """Places (n_tiles, 4) inside each tile where the reference's sub-pixel phase is sampled."""
    dx = np.array([p[0] for p in _PLACES]) * side
    dy = np.array([p[1] for p in _PLACES]) * side
    return xc[:, None] + dx, yc[:, None] + dy


def resampled_psfs(psf: PsfModel, places_x: NDArray[np.float64], places_y: NDArray[np.float64]) -> F32:
    """The reference's PSF as it is on the science grid: broadened by the interpolation at the phases that occur.

    Parameters
    ----------
    psf : PsfModel
        In the reference's own pixels.
    places_x, places_y : ndarray, (n_tiles, k)
        Reference places (px) of science pixel centres in each tile.

    Returns
    -------
    ndarray, (n_tiles, 35, 35), float32
        A star centred on a science pixel, resampled exactly as the image was, averaged over the k phases. The turn
        of the grid inside a stamp (0.01 px at ZTF's 0.1 degree) is left out.
    """
    ny, nx = psf.shape
    x = np.clip(places_x, 0, nx - 1).ravel()
    y = np.clip(places_y, 0, ny - 1).ravel()
    wide = WORK + TAPS + 2  # both odd
    wide += 1 - wide % 2
    stars = psf.stamps(x, y, wide)
    wx, wy = _shift_matrices(x - np.rint(x), wide), _shift_matrices(y - np.rint(y), wide)
    moved = np.matmul(np.matmul(wy, stars), wx.transpose(0, 2, 1))
    mean: F32 = moved.reshape(*places_x.shape, WORK, WORK).mean(axis=1)
    return mean


def _shift_matrices(fraction: NDArray[np.float64], wide: int) -> F32:
    """(n, 35, wide): Lanczos weights that bring a star at ``fraction`` past the middle pixel onto it."""
    low = np.floor(fraction)
    weights = lanczos_weights(fraction - low)  # (n, taps)
    out = np.zeros((len(fraction), WORK, wide), np.float32)
    first = (wide // 2 - WORK // 2 - BEFORE + low).astype(int)
    n, pixel = np.arange(len(fraction))[:, None, None], np.arange(WORK)[None, :, None]
    tap = np.arange(TAPS)[None, None, :]
    out[n, pixel, first[:, None, None] + pixel + tap] = weights[:, None, :]
    return out


def fwhm_of(stamp: F32) -> float:
    """Full width at half maximum (px) of a PSF image: the diameter of the circle with the area above half maximum."""
    fine = 8
    zoomed = ndimage.zoom(stamp.astype(float), fine, order=3)
    step = (stamp.shape[0] - 1) / (zoomed.shape[0] - 1)
    area = float(np.count_nonzero(zoomed > 0.5 * zoomed.max())) * step * step
    return 2.0 * float(np.sqrt(area / np.pi))
