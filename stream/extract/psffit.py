"""PSF fits of many candidates at once on a difference image: flux, place, chi squared.

Each fit has three unknowns (flux and the two coordinates), solved for all candidates together by
Gauss-Newton on small stamps. Pixels carry equal weight inside the fit window: the noise of a difference is
nearly uniform under one source, and weights taken from the data themselves bias fluxes. The errors do use
every pixel's own noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.core.psf import STAMP
from stream.core.records import F32, PlacePsf

F64 = NDArray[np.float64]
B1 = NDArray[np.bool_]

# The difference PSF is asked for on a grid of this many places a side and taken from the nearest: over a sixteenth
# of a quadrant (half a cell: 96 px) PSFs change by less than a candidate's noise.
PLACES = 8
_ITERATIONS = 5
_MAX_STEP = 0.5  # px a step, keeps a faint fit from jumping to a neighbour
MAX_SHIFT = 1.5  # px from the peak; a fit that wanders further is not of this peak
# Less than this share of the PSF's weight on usable pixels: the flux would be the model's, not the data's.
MIN_WEIGHT = 0.7
# Nodes per px of the spline that is read between pixels. The PSF is asked for at whole pixels; a cubic spline through
# those misses 0.3 % of the flux of an FWHM of 2.5 px, through twice as many from its Fourier series a tenth of that.
_OVERSAMPLE = 2
_NODES = _OVERSAMPLE * (STAMP - 1) + 1


def _upsample(stamp: F32) -> F64:
    """The stamp at half pixels from its Fourier series (exact where the PSF is sampled well enough), (49, 49)."""
    n = STAMP + 7  # room, so that one edge does not meet the other
    padded = np.zeros((n, n))
    padded[:STAMP, :STAMP] = stamp
    spectrum = np.fft.fftshift(np.fft.fft2(padded))
    wide = np.zeros((_OVERSAMPLE * n, _OVERSAMPLE * n), complex)
    start = (_OVERSAMPLE * n - n) // 2
    wide[start : start + n, start : start + n] = spectrum
    image: F64 = np.fft.ifft2(np.fft.ifftshift(wide)).real * _OVERSAMPLE**2
    return image[:_NODES, :_NODES]


class PsfGrid:
    """A ``PlacePsf`` sampled at a grid of places, to be read at sub-pixel shifts for thousands of candidates."""

    def __init__(self, psf: PlacePsf, shape: tuple[int, int]) -> None:
        self._psf, self._shape = psf, shape
        self._cells: dict[int, int] = {}
        self._coefficients: list[F32] = []

    def select(self, x: F64, y: F64) -> F32:
        """Spline coefficients (n, 49, 49) of the PSF nearest to each place."""
        ny, nx = self._shape
        column = np.clip((x * PLACES / nx).astype(int), 0, PLACES - 1)
        row = np.clip((y * PLACES / ny).astype(int), 0, PLACES - 1)
        cells = row * PLACES + column
        for cell in np.unique(cells).tolist():
            if cell not in self._cells:
                r, c = divmod(cell, PLACES)
                stamp = self._psf.stamp((c + 0.5) * nx / PLACES - 0.5, (r + 0.5) * ny / PLACES - 0.5, STAMP)
                self._cells[cell] = len(self._coefficients)
                spline = ndimage.spline_filter(_upsample(stamp), order=3, mode="mirror")
                self._coefficients.append(spline.astype(np.float32))
        index = np.array([self._cells[cell] for cell in cells.tolist()], int)
        selected: F32 = np.stack(self._coefficients)[index]
        return selected


def _taps(shift: F64, size: int) -> tuple[F32, F32]:
    """Cubic B-spline weights (n, size, 49) that read a PSF moved by ``shift`` px, and their derivative."""
    first = _NODES // 2 - (size // 2 + shift) * _OVERSAMPLE
    base = np.floor(first).astype(int)
    t = (first - base)[:, None]
    value = np.concatenate(
        [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3, t**3], axis=1
    )
    # With respect to the shift in px: t falls when the PSF moves on.
    slope = -_OVERSAMPLE * np.concatenate(
        [-3 * (1 - t) ** 2, 9 * t**2 - 12 * t, 12 * (1 - t) - 9 * (1 - t) ** 2, 3 * t**2], axis=1
    )
    n = len(shift)
    # More nodes on either side catch what falls off the stamp, where the PSF is zero.
    pad = 8
    node = np.clip(
        base[:, None, None] - 1 + pad + _OVERSAMPLE * np.arange(size)[None, :, None] + np.arange(4),
        0,
        _NODES + 2 * pad - 1,
    )
    out = []
    for taps in (value, slope):
        weights = np.zeros((n, size, _NODES + 2 * pad), np.float32)
        np.put_along_axis(weights, node, np.broadcast_to(taps[:, None, :] / 6.0, node.shape).astype(np.float32), axis=2)
        out.append(weights[:, :, pad:-pad])
    return out[0], out[1]


def render(coefficients: F32, dx: F64, dy: F64, size: int) -> F32:
    """Unit-flux PSF stamps (n, size, size), moved by (dx, dy) px from the middle pixel."""
    wx, _ = _taps(dx, size)
    wy, _ = _taps(dy, size)
    return np.asarray(wy @ coefficients @ wx.transpose(0, 2, 1), np.float32)


def _render_with_slopes(coefficients: F32, dx: F64, dy: F64, size: int) -> tuple[Any, Any, Any]:
    wx, gx = _taps(dx, size)
    wy, gy = _taps(dy, size)
    rows = wy @ coefficients
    wx, gx = wx.transpose(0, 2, 1), gx.transpose(0, 2, 1)
    return np.asarray(rows @ wx), np.asarray(rows @ gx), np.asarray(gy @ coefficients @ wx)


@dataclass(frozen=True, slots=True)
class PsfFit:
    """Result per candidate: ``flux`` and ``fluxerr`` (DN), shift (px) from the stamp's middle pixel, reduced
    ``chi2``, ``weight`` (share of the PSF's weight on usable pixels), ``freedom`` (degrees of freedom of chi2). NaN
    where not measurable."""

    flux: F64
    fluxerr: F64
    dx: F64
    dy: F64
    chi2: F64
    weight: F64
    freedom: F64


def fit_flux(data: F32, variance: F32, good: B1, model: F32) -> tuple[F64, F64, F64]:
    """Linear flux of a known model in stamps (n, s, s): flux, its error, and the share of weight on good pixels."""
    square = model.astype(np.float64) ** 2
    total = square.sum(axis=(1, 2))
    usable = np.where(good, square, 0.0)
    weight = usable.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        flux = np.where(good, data * model, 0.0).sum(axis=(1, 2), dtype=np.float64) / weight
        error = np.sqrt(np.where(good, square * variance, 0.0).sum(axis=(1, 2))) / weight
        return flux, error, weight / total


def fit_psf(data: F32, variance: F32, good: B1, coefficients: F32, dx0: F64, dy0: F64) -> PsfFit:
    """Fit flux and place of one PSF in each stamp.

    Parameters
    ----------
    data, variance : ndarray, (n, s, s), float32
        Stamps with the local sky off, signed so that the source is positive, and their variance (DN^2).
    good : ndarray, (n, s, s), bool
        Pixels that take part.
    coefficients : ndarray, (n, 49, 49)
        From ``PsfGrid.select``.
    dx0, dy0 : ndarray, (n,)
        Starting place, px from the stamp's middle pixel. A fit that ends more than ``MAX_SHIFT`` from it, or
        on no flux, keeps the start and only its flux is fitted.
    """
    size = data.shape[1]
    clean = np.where(good, data, 0.0).astype(np.float32)
    dx, dy = dx0.copy(), dy0.copy()
    for _ in range(_ITERATIONS):
        step_x, step_y = _newton_step(clean, good, coefficients, dx, dy, size)
        dx, dy = dx + step_x, dy + step_y
    lost = ~(np.hypot(dx - dx0, dy - dy0) <= MAX_SHIFT)
    dx, dy = np.where(lost, dx0, dx), np.where(lost, dy0, dy)
    model = render(coefficients, dx, dy, size)
    flux, error, weight = fit_flux(clean, variance, good, model)
    residual = np.where(good, (clean - flux[:, None, None] * model) ** 2 / variance, 0.0)
    freedom = good.sum(axis=(1, 2)) - 3
    with np.errstate(invalid="ignore", divide="ignore"):
        chi2 = np.where(freedom > 0, residual.sum(axis=(1, 2), dtype=np.float64) / freedom, np.nan)
    bad = ~(weight >= MIN_WEIGHT) | ~np.isfinite(flux) | ~(error > 0)
    for values in (flux, error, chi2):
        values[bad] = np.nan
    return PsfFit(flux, error, dx, dy, chi2, weight, freedom.astype(np.float64))


def _newton_step(clean: F32, good: B1, coefficients: F32, dx: F64, dy: F64, size: int) -> tuple[F64, F64]:
    """One Gauss-Newton step in place, with the flux solved beside it; zero where it cannot be solved."""
    model, slope_x, slope_y = _render_with_slopes(coefficients, dx, dy, size)
    n = len(dx)
    mask = good.reshape(n, -1)
    basis = np.stack([m.reshape(n, -1) * mask for m in (model, slope_x, slope_y)], axis=1).astype(np.float64)
    normal = basis @ basis.transpose(0, 2, 1)
    right = (basis @ clean.reshape(n, -1, 1).astype(np.float64))[:, :, 0]
    determinant = np.linalg.det(normal)
    scale = np.prod(np.diagonal(normal, axis1=1, axis2=2), axis=1)
    solvable = determinant > 1e-6 * np.maximum(scale, 1e-300)
    normal[~solvable] = np.eye(3)
    flux, flux_x, flux_y = np.linalg.solve(normal, right[:, :, None])[:, :, 0].T
    moves = solvable & (flux > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        step_x, step_y = flux_x / flux, flux_y / flux
    return (
        np.where(moves, np.clip(step_x, -_MAX_STEP, _MAX_STEP), 0.0),
        np.where(moves, np.clip(step_y, -_MAX_STEP, _MAX_STEP), 0.0),
    )
