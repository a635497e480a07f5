"""The point spread function that every room evaluates: an oversampled pixel grid that varies as a polynomial.

The grid holds the *effective* PSF (optics, air and pixel together), sampled every ``1/oversample`` px, so a
star's pixel values are read off it directly; between samples it is a cubic B-spline. The convention of places
is numpy's: the centre of the first pixel is (0, 0).
"""

from __future__ import annotations

import math
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


def spline_taps(t: NDArray[np.float64], *, derivative: bool = False) -> NDArray[np.float64]:
    """The four cubic B-spline weights (n, 4) of the nodes around a fraction ``t`` (0..1), or their d/dt."""
    if derivative:
        taps = [-3 * (1 - t) ** 2, -12 * t + 9 * t**2, 12 * (1 - t) - 9 * (1 - t) ** 2, 3 * t**2]
    else:
        taps = [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3, t**3]
    return np.stack(taps, axis=1) / 6


def _spline_weights(
    shift: NDArray[np.float64], size: int, oversample: int, n: int, *, gradient: bool = False
) -> NDArray[np.float32]:
    """Cubic B-spline weights (n_places, size, n) that read ``size`` pixels off a grid of ``n`` nodes.

    ``shift`` is the place's offset from its nearest pixel. All pixels of a stamp meet the nodes at the same
    fraction, so four weights a place are computed and laid out; everything else is zero. With ``gradient``
    the result is (n_places, 2 size, n): below the values' weights, those of d/dshift.
    """
    first = (-(size // 2) - shift) * oversample + n // 2  # node position of the stamp's first pixel
    base = np.floor(first).astype(int)
    rows = [spline_taps(first - base)]
    if gradient:  # moving the star by one px moves the first pixel back by ``oversample`` nodes
        rows.append(-oversample * spline_taps(first - base, derivative=True))
    weights = np.zeros((len(shift), len(rows) * size, n), np.float32)
    if not len(shift):
        return weights
    flat = weights.reshape(-1)
    # Places of one base node (at most oversample + 1 of them) share a pattern: two indices say where it goes.
    pixel = np.arange(size)[:, None]
    for node in range(int(base.min()), int(base.max()) + 1):
        place = np.flatnonzero(base == node)
        column = node - 1 + oversample * pixel + np.arange(4)
        inside = (column >= 0) & (column < n)
        pattern = (pixel * n + column)[inside]
        tap = np.broadcast_to(np.arange(4), column.shape)[inside]
        for k, taps in enumerate(rows):
            flat[(place * (len(rows) * size * n) + k * size * n)[:, None] + pattern] = taps[place][:, tap]
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
    flux_error : float
        Relative 1-sigma error that the model's own error makes in the flux of a faint star, r.m.s. over the image;
        NaN: unknown.
    error_map : ndarray, (k, k), float32, or None
        The same by place: nodes spread evenly from the first to the last pixel of each axis, bilinear between them.
    """

    basis: NDArray[np.float32]
    oversample: int
    degree: int
    shape: tuple[int, int]
    fwhm: float
    n_stars: int = 0
    flux_error: float = float("nan")
    error_map: NDArray[np.float32] | None = None
    _coefficients: NDArray[np.float32] = field(init=False, repr=False, compare=False)
    # Sum of each term's centred 25 x 25 stamp: the norm at a place is linear in the polynomial terms.
    _sums: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms = (self.degree + 1) * (self.degree + 2) // 2
        if self.basis.ndim != 3 or self.basis.shape[0] != terms or self.basis.shape[1] % 2 == 0:
            raise ValueError(f"PSF basis {self.basis.shape}: want ({terms}, odd n, odd n) for degree {self.degree}")
        coefficients = [ndimage.spline_filter(grid.astype(np.float64), order=3, mode="mirror") for grid in self.basis]
        object.__setattr__(self, "_coefficients", np.asarray(coefficients, np.float32))
        w = _spline_weights(np.zeros(1), STAMP, self.oversample, self.basis.shape[1])[0].astype(float)
        object.__setattr__(self, "_sums", np.array([(w @ grid @ w.T).sum() for grid in coefficients]))

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
        fx, fy = (x - np.rint(x), y - np.rint(y)) if subpixel else (np.zeros_like(x), np.zeros_like(y))
        out = np.empty((len(x), size, size), np.float32)
        for part in _blocks(len(x)):
            out[part] = read_grids(self.grids(x[part], y[part], size), fx[part], fy[part], size, self.oversample)
        return out

    def stamp(self, x: float, y: float, size: int = STAMP) -> NDArray[np.float32]:
        """The PSF at one place, centred on the middle pixel, (size, size), its 25 x 25 core summing to 1."""
        image: NDArray[np.float32] = self.stamps([x], [y], size, subpixel=False)[0]
        return image

    def flux_error_at(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Relative 1-sigma error (n,) that the model makes in a faint star's flux at places; NaN: unknown."""
        xs, ys = (np.atleast_1d(np.asarray(v, float)) for v in (x, y))
        if self.error_map is None:
            return np.full(len(xs), self.flux_error)
        n = len(self.error_map)
        node = np.stack([ys, xs]) * (n - 1) / (np.array(self.shape)[:, None] - 1)
        out: NDArray[np.float64] = ndimage.map_coordinates(
            self.error_map.astype(np.float64), np.nan_to_num(node), order=1, mode="nearest"
        )
        return out

    def grids(self, x: ArrayLike, y: ArrayLike, size: int = STAMP) -> NDArray[np.float32]:
        """Spline coefficients of the normalised PSF at places, cut to what stamps of ``size`` px can reach.

        Returns
        -------
        ndarray, (n, m, m), float32
            For ``read_grids``; m odd, centre on the middle node.
        """
        inner = self.term_grids(size)
        m = inner.shape[1]
        out: NDArray[np.float32] = (self.coefficients(x, y) @ inner.reshape(len(inner), m * m)).reshape(-1, m, m)
        return out

    def coefficients(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float32]:
        """Weights (n, n_terms) of ``term_grids`` that make the normalised PSF at places."""
        terms = polynomial_terms(x, y, self.shape, self.degree)
        terms /= (terms @ self._sums)[:, None]
        return terms.astype(np.float32)

    def term_grids(self, size: int = STAMP) -> NDArray[np.float32]:
        """Spline coefficients (n_terms, m, m) of each polynomial term, cut to what stamps of ``size`` px can reach."""
        n = self.basis.shape[1]
        # Half a stamp and half a pixel of shift, plus the spline's own reach of two nodes.
        cut = max(n // 2 - (math.ceil((size // 2 + 0.5) * self.oversample) + 2), 0)
        return self._coefficients[:, cut : n - cut, cut : n - cut]

    def widths(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """FWHM in px, pixel included, at places (n,): of the circle with the area above half the maximum."""
        step, reach = 0.05, 7.0  # px; areas to 1e-3, FWHM up to 14 px (the survey's worst is 5)
        lattice = np.arange(-reach, reach + step / 2, step) * self.oversample
        grids = self.grids(x, y)
        node = lattice + grids.shape[1] // 2
        base = np.floor(node).astype(int)
        weights = np.zeros((len(node), grids.shape[1]), np.float32)
        index = np.clip(base[:, None] - 1 + np.arange(4), 0, grids.shape[1] - 1)
        np.add.at(weights, (np.arange(len(node))[:, None], index), spline_taps(node - base))
        out = np.empty(len(grids))
        for i, grid in enumerate(grids):
            fine = weights @ grid @ weights.T
            out[i] = 2 * math.sqrt(np.count_nonzero(fine > fine.max() / 2) * step * step / math.pi)
        return out


def _blocks(n: int, length: int = 512) -> list[slice]:
    """Slices over ``n`` places whose grids stay in the processor's cache."""
    return [slice(start, min(start + length, n)) for start in range(0, n, length)]


def read_grids(
    grids: NDArray[np.float32], dx: NDArray[np.float64], dy: NDArray[np.float64], size: int, oversample: int
) -> NDArray[np.float32]:
    """Stamps (n, size, size) read off ``PsfModel.grids``, the star ``dx``, ``dy`` px off the middle pixel."""
    n = grids.shape[1]
    wx, wy = np.split(_spline_weights(np.concatenate([dx, dy]), size, oversample, n), 2)
    out: NDArray[np.float32] = np.matmul(np.matmul(wy, grids), wx.transpose(0, 2, 1))
    return out


def read_gradients(
    grids: NDArray[np.float32], dx: NDArray[np.float64], dy: NDArray[np.float64], size: int, oversample: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Stamps as ``read_grids`` and their derivatives with the star's place: P, dP/dx, dP/dy, (n, size, size)."""
    n = grids.shape[1]
    wx, wy = np.split(_spline_weights(np.concatenate([dx, dy]), size, oversample, n, gradient=True), 2)
    both = np.matmul(np.matmul(wy, grids), wx.transpose(0, 2, 1))
    return both[:, :size, :size], both[:, :size, size:], both[:, size:, :size]


def gaussian_psf(fwhm: float, shape: tuple[int, int], oversample: int = 2, radius: int = 14) -> PsfModel:
    """A round Gaussian PSF (not pixel-integrated), the same everywhere: for tests and as a last resort."""
    n = 2 * radius * oversample + 1
    r = (np.arange(n) - n // 2) / oversample
    sigma = fwhm / 2.3548200450309493
    g = np.exp(-0.5 * (r / sigma) ** 2)
    return PsfModel(np.outer(g, g)[None].astype(np.float32), oversample, 0, shape, fwhm)


def moffat_psf(
    fwhm: float, shape: tuple[int, int], beta: float = 3.0, oversample: int = 3, radius: int = 14
) -> PsfModel:
    """A round Moffat PSF of a known FWHM (px), the same everywhere: for an image with too few stars to measure one.

    ``beta`` 3 is what the survey's own cut-outs show; a Gaussian would miss a tenth of the light.
    """
    n = 2 * radius * oversample + 1
    r = (np.arange(n) - n // 2) / oversample
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    grid = (1 + (r[:, None] ** 2 + r[None, :] ** 2) / alpha**2) ** -beta
    return PsfModel(grid[None].astype(np.float32), oversample, 0, shape, fwhm)
