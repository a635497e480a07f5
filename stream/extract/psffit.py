"""PSF fits of many candidates at once on a difference image: flux, place, chi squared.

Each fit has three unknowns (flux and the two coordinates), solved for all candidates together by
Gauss-Newton on small stamps. Pixels carry equal weight inside the fit window: the noise of a difference is
nearly uniform under one source, and weights taken from the data themselves bias fluxes. The errors do use
every pixel's own noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.psf import STAMP, PsfModel, read_gradients, read_grids
from stream.core.records import F32

F64 = NDArray[np.float64]
B1 = NDArray[np.bool_]

# The difference PSF is asked for on a grid of this many places a side and taken from the nearest: over a sixteenth
# of a quadrant (half a cell: 96 px) PSFs change by less than a candidate's noise.
PLACES = 8
_ITERATIONS = 5
_MAX_STEP = 0.5  # px a step, keeps a faint fit from jumping to a neighbour
_SETTLED = 2e-3  # px: what moved less is at its place, to a hundredth of any error
MAX_SHIFT = 1.5  # px from the peak; a fit that wanders further is not of this peak
# Less than this share of the PSF's weight on usable pixels: the flux would be the model's, not the data's.
MIN_WEIGHT = 0.7
_STRAY = 4  # px, of both sides: fits start half a pixel off the middle at most and go ``MAX_SHIFT`` from there


@dataclass(frozen=True, slots=True)
class Psfs:
    """PSFs of n places for any shift: ``grids`` (n, m, m) of ``PsfModel.grids``, ``oversample`` nodes to a px."""

    grids: F32
    oversample: int

    def cut(self, size: int) -> Psfs:
        """No more of them than stamps of ``size`` px can reach."""
        m = self.grids.shape[1]
        reach = ((size + _STRAY) // 2 + 1) * self.oversample + 2
        lost = max(m // 2 - reach, 0)
        return Psfs(np.ascontiguousarray(self.grids[:, lost : m - lost, lost : m - lost]), self.oversample)

    def only(self, rows: NDArray[np.int64]) -> Psfs:
        """Those of some places."""
        return self if len(rows) == len(self.grids) else Psfs(self.grids[rows], self.oversample)

    def render(self, dx: F64, dy: F64, size: int) -> F32:
        """Unit-flux stamps (n, size, size), moved by (dx, dy) px from the middle pixel."""
        return read_grids(self.grids, dx, dy, size, self.oversample)

    def with_slopes(self, dx: F64, dy: F64, size: int) -> tuple[F32, F32, F32]:
        """The same and their derivatives with dx and dy."""
        return read_gradients(self.grids, dx, dy, size, self.oversample)


class PsfGrid:
    """A PSF at a grid of places, to be read at sub-pixel shifts for thousands of candidates."""

    def __init__(self, psf: PsfModel, shape: tuple[int, int]) -> None:
        ny, nx = shape
        column, row = (v.ravel() for v in np.meshgrid(np.arange(PLACES), np.arange(PLACES)))
        x, y = ((v + 0.5) * n / PLACES - 0.5 for v, n in ((column, nx), (row, ny)))
        self._shape, self._oversample = shape, psf.oversample
        self._grids = psf.grids(x, y, STAMP + _STRAY)

    def select(self, x: F64, y: F64) -> Psfs:
        """The PSF nearest to each place."""
        ny, nx = self._shape
        column = np.clip((x * PLACES / nx).astype(int), 0, PLACES - 1)
        row = np.clip((y * PLACES / ny).astype(int), 0, PLACES - 1)
        return Psfs(self._grids[row * PLACES + column], self._oversample)


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


def fit_psf(data: F32, variance: F32, good: B1, psfs: Psfs, dx0: F64, dy0: F64) -> PsfFit:
    """Fit flux and place of one PSF in each stamp.

    Parameters
    ----------
    data, variance : ndarray, (n, s, s), float32
        Stamps with the local sky off, signed so that the source is positive, and their variance (DN^2).
    good : ndarray, (n, s, s), bool
        Pixels that take part.
    psfs : Psfs
        From ``PsfGrid.select``.
    dx0, dy0 : ndarray, (n,)
        Starting place, px from the stamp's middle pixel. A fit that ends more than ``MAX_SHIFT`` from it, or
        on no flux, keeps the start and only its flux is fitted.
    """
    size = data.shape[1]
    psfs = psfs.cut(size)
    clean = np.where(good, data, 0.0).astype(np.float32)
    dx, dy = dx0.copy(), dy0.copy()
    moving = np.arange(len(dx))
    for _ in range(_ITERATIONS):
        if not len(moving):
            break
        step_x, step_y = _newton_step(clean[moving], good[moving], psfs.only(moving), dx[moving], dy[moving])
        dx[moving] += step_x
        dy[moving] += step_y
        moving = moving[np.hypot(step_x, step_y) > _SETTLED]
    lost = ~(np.hypot(dx - dx0, dy - dy0) <= MAX_SHIFT)
    dx, dy = np.where(lost, dx0, dx), np.where(lost, dy0, dy)
    model = psfs.render(dx, dy, size)
    flux, error, weight = fit_flux(clean, variance, good, model)
    residual = np.where(good, (clean - flux[:, None, None] * model) ** 2 / variance, 0.0)
    freedom = good.sum(axis=(1, 2)) - 3
    with np.errstate(invalid="ignore", divide="ignore"):
        chi2 = np.where(freedom > 0, residual.sum(axis=(1, 2), dtype=np.float64) / freedom, np.nan)
    bad = ~(weight >= MIN_WEIGHT) | ~np.isfinite(flux) | ~(error > 0)
    for values in (flux, error, chi2):
        values[bad] = np.nan
    return PsfFit(flux, error, dx, dy, chi2, weight, freedom.astype(np.float64))


def _newton_step(clean: F32, good: B1, psfs: Psfs, dx: F64, dy: F64) -> tuple[F64, F64]:
    """One Gauss-Newton step in place, with the flux solved beside it; zero where it cannot be solved."""
    model, slope_x, slope_y = psfs.with_slopes(dx, dy, clean.shape[1])
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
