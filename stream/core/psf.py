"""The point spread function that every room evaluates: an oversampled pixel grid that varies as a polynomial.

The grid holds the *effective* PSF (optics, air and pixel together), sampled every ``1/oversample`` px, so a
star's pixel values are read off it directly; between samples it is a cubic B-spline. The convention of places
is numpy's: the centre of the first pixel is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

STAMP = 25  # side of the stamp that products carry (the survey's diffimgpsf), centre at [12, 12]


def polynomial_terms(x: ArrayLike, y: ArrayLike, shape: tuple[int, int], degree: int) -> NDArray[np.float64]:
    """Terms 1, u, v, u^2, uv, v^2, ... at places of an image, with u, v in -1..1 over the image.

    Returns
    -------
    ndarray, (n_places, n_terms)
    """
    ny, nx = shape
    u = (np.atleast_1d(np.asarray(x, float)) - (nx - 1) / 2) / (nx / 2)
    v = (np.atleast_1d(np.asarray(y, float)) - (ny - 1) / 2) / (ny / 2)
    terms = [u ** (total - j) * v**j for total in range(degree + 1) for j in range(total + 1)]
    return np.stack(terms, axis=1)


def _spline_weights(shift: NDArray[np.float64], size: int, oversample: int, n: int) -> NDArray[np.float32]:
    """Cubic B-spline weights (n_places, size, n) that read ``size`` pixels off a grid of ``n`` nodes.

    ``shift`` is the place's offset from its nearest pixel. All pixels of a stamp meet the nodes at the same
    fraction, so four weights a place are computed and laid out; everything else is zero.
    """
    first = (-(size // 2) - shift) * oversample + n // 2  # node position of the stamp's first pixel
    base = np.floor(first).astype(int)
    t = first - base
    taps = np.stack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3, t**3], axis=1) / 6
    node = base[:, None, None] - 1 + oversample * np.arange(size)[None, :, None] + np.arange(4)[None, None, :]
    weights = np.zeros((len(shift), size, n), np.float32)
    place, pixel, tap = np.nonzero((node >= 0) & (node < n))
    weights[place, pixel, node[place, pixel, tap]] = taps[place, tap]
    return weights


@dataclass(frozen=True, slots=True)
class PsfModel:
    """A spatially varying PSF.

    Parameters
    ----------
    basis : ndarray, (n_terms, n, n), float32
        One oversampled grid per polynomial term (order of ``polynomial_terms``); n odd, the PSF's centre on
        the middle node.
    oversample : int
        Nodes per pixel.
    degree : int
        Degree of the polynomial in place; ``n_terms = (degree + 1)(degree + 2) / 2``.
    shape : (ny, nx)
        Image that the model belongs to.
    fwhm : float
        Median FWHM over the image in px, pixel included.
    n_stars : int
        Stars it was made from; 0 for a PSF given by hand.
    """

    basis: NDArray[np.float32]
    oversample: int
    degree: int
    shape: tuple[int, int]
    fwhm: float
    n_stars: int = 0
    _coefficients: NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms = (self.degree + 1) * (self.degree + 2) // 2
        if self.basis.ndim != 3 or self.basis.shape[0] != terms or self.basis.shape[1] % 2 == 0:
            raise ValueError(f"PSF basis {self.basis.shape}: want ({terms}, odd n, odd n) for degree {self.degree}")
        coefficients = [ndimage.spline_filter(grid.astype(np.float64), order=3, mode="mirror") for grid in self.basis]
        object.__setattr__(self, "_coefficients", np.asarray(coefficients, np.float32))

    def stamps(self, x: ArrayLike, y: ArrayLike, size: int = STAMP, *, subpixel: bool = True) -> NDArray[np.float32]:
        """PSF images at places.

        Parameters
        ----------
        x, y : array_like, (n,)
            Places in px, centre of the first pixel is 0.
        size : int
            Side of each stamp, odd. Beyond the grid the PSF is zero.
        subpixel : bool
            True: the stamp is centred on the pixel nearest to the place and carries its fraction, i.e. it is
            what a star there puts into the image. False: the PSF is centred on the stamp's middle pixel.

        Returns
        -------
        ndarray, (n, size, size), float32
            Scaled so that the centred 25 x 25 stamp at that place sums to 1.
        """
        x = np.atleast_1d(np.asarray(x, float))
        y = np.atleast_1d(np.asarray(y, float))
        terms = polynomial_terms(x, y, self.shape, self.degree).astype(np.float32)
        grids = np.tensordot(terms, self._coefficients, axes=1)
        centred = self._read(grids, np.zeros_like(x), np.zeros_like(y), STAMP)
        norm = centred.sum(axis=(1, 2), dtype=np.float64).astype(np.float32)
        if subpixel:
            out = self._read(grids, x - np.rint(x), y - np.rint(y), size)
        else:
            out = centred if size == STAMP else self._read(grids, np.zeros_like(x), np.zeros_like(y), size)
        return out / norm[:, None, None]

    def stamp(self, x: float, y: float, size: int = STAMP) -> NDArray[np.float32]:
        """The PSF at one place, centred on the middle pixel, (size, size), its 25 x 25 core summing to 1."""
        image: NDArray[np.float32] = self.stamps([x], [y], size, subpixel=False)[0]
        return image

    def _read(
        self, grids: NDArray[np.float32], dx: NDArray[np.float64], dy: NDArray[np.float64], size: int
    ) -> NDArray[np.float32]:
        n = self.basis.shape[1]
        wx = _spline_weights(dx, size, self.oversample, n)
        wy = _spline_weights(dy, size, self.oversample, n)
        out: NDArray[np.float32] = np.matmul(np.matmul(wy, grids), wx.transpose(0, 2, 1))
        return out


def gaussian_psf(fwhm: float, shape: tuple[int, int], oversample: int = 2, radius: int = 14) -> PsfModel:
    """A round Gaussian PSF (not pixel-integrated), the same everywhere: for tests and as a last resort."""
    n = 2 * radius * oversample + 1
    r = (np.arange(n) - n // 2) / oversample
    sigma = fwhm / 2.3548200450309493
    g = np.exp(-0.5 * (r / sigma) ** 2)
    return PsfModel(np.outer(g, g)[None].astype(np.float32), oversample, 0, shape, fwhm)
