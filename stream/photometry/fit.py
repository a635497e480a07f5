"""The linearised fit of point sources to little windows, all sources at once: one core for free and forced places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.psf import PsfModel, read_gradients
from stream.core.records import F32
from stream.photometry.stamps import nearest_pixels

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]

# Part of the model's light by which any PSF is wrong somewhere: enters chi, not the weights (a Poisson-weighted flux
# does not see such errors to first order, because the model's sum is right).
PROFILE_ERROR = 0.01
# A place may leave its detection by this much (px) in the end and in one step; beyond lies another source.
MAX_SHIFT, MAX_STEP = 1.5, 0.5
# Weak prior (px) that holds places where the data say nothing; a source of S/N 5 knows its place to 0.2 px.
PLACE_PRIOR = 0.5
# Below this part of the PSF's light on usable pixels there is nothing to fit.
MIN_COVERAGE = 0.25


@dataclass(slots=True)
class Fit:
    """Running state of ``n`` sources: place (px), flux and its 1-sigma error (DN), chi, sharp."""

    x: F64
    y: F64
    flux: F64
    sigflux: F64
    chi: F64
    sharp: F64

    @classmethod
    def start(cls, x: F64, y: F64, flux: F64) -> Fit:
        """First places and fluxes."""
        nan = np.full(len(x), np.nan)
        return cls(x.astype(float), y.astype(float), flux.astype(float), nan.copy(), nan.copy(), nan.copy())


def fixed_flux(values: F32, weight: F32, p: F32) -> tuple[F64, F64, F64]:
    """Weighted least-squares flux at known places.

    Parameters
    ----------
    values, weight, p : ndarray, (n, ...)
        DN with sky off, inverse variance (0: unusable), PSF.

    Returns
    -------
    flux, sigflux, chi : ndarray, (n,)
        NaN where less than a quarter of the PSF's light falls on usable pixels. ``chi`` is the r.m.s. of the
        residuals over the expected one.
    """
    n = len(values)
    values, weight, p = (a.reshape(n, -1) for a in (values, weight, p))
    information = np.einsum("ij,ij,ij->i", weight, p, p, dtype=np.float64)
    covered = np.where(weight > 0, p, 0).sum(axis=1, dtype=np.float64) > MIN_COVERAGE * p.sum(axis=1, dtype=np.float64)
    good = covered & (information > 0)
    safe = np.where(good, information, 1)
    flux = np.where(good, np.einsum("ij,ij,ij->i", weight, p, values, dtype=np.float64) / safe, np.nan)
    residual = values - np.nan_to_num(flux)[:, None] * p
    dof = np.maximum((weight > 0).sum(axis=1) - 1, 1)
    chi = np.sqrt(np.einsum("ij,ij,ij->i", weight, residual, residual, dtype=np.float64) / dof)
    return flux, np.where(good, 1 / np.sqrt(safe), np.nan), np.where(good, chi, np.nan)


def refine(
    fit: Fit,
    rows: NDArray[np.intp],
    windows: tuple[F32, F32, BOOL],
    psf: PsfModel,
    gain: float,
    *,
    steps: int,
    home: tuple[F64, F64],
    own_off: bool = False,
    judge: bool = False,
) -> None:
    """Gauss-Newton steps of flux and place for ``rows`` of ``fit``, in place.

    Parameters
    ----------
    windows : (values, noise, usable), each (n, size, size)
        DN with sky off, sky and read variance (DN^2), which pixels count; around the pixel nearest to ``home``.
    home : (x, y)
        Detected places, the centres of the windows and of the prior.
    own_off : bool
        The values have these sources' own models (of the fit's present state) off as well.
    judge : bool
        Fill ``sigflux``, ``chi`` and ``sharp`` from the last step; NaN flux where the PSF is hardly covered.
    """
    values, noise, usable = windows
    n, size = len(rows), values.shape[1]
    hx, hy = home
    ix, iy = nearest_pixels(hx, hy)
    x, y, flux = fit.x[rows], fit.y[rows], fit.flux[rows]
    grids = psf.grids(hx, hy, size)
    for turn in range(steps):
        p, px, py = read_gradients(grids, x - ix, y - iy, size, psf.oversample)
        scale = flux.astype(np.float32)[:, None, None]
        model = scale * p
        if own_off and turn == 0:
            values = values + model
        residual = values - model
        weight = usable / (noise + np.maximum(model, 0) / np.float32(gain))
        design = np.empty((n, 3, size * size), np.float32)
        for k, term in enumerate((p, scale * px, scale * py)):
            design[:, k] = term.reshape(n, -1)
        step, error = _step(design, weight.reshape(n, 1, -1), residual.reshape(n, -1, 1), (hx - x, hy - y))
        if judge and turn == steps - 1:
            # The step is small by now: the residuals after it follow from the linearisation.
            residual -= (design.transpose(0, 2, 1) @ step[..., None].astype(np.float32)).reshape(residual.shape)
            _judge(fit, rows, (p, px, py), residual, weight, usable, flux + step[:, 0], (x - ix, y - iy), error)
        flux = flux + step[:, 0]
        x = np.clip(x + step[:, 1], hx - MAX_SHIFT, hx + MAX_SHIFT)
        y = np.clip(y + step[:, 2], hy - MAX_SHIFT, hy + MAX_SHIFT)
    fit.x[rows], fit.y[rows], fit.flux[rows] = x, y, flux
    if judge:
        fit.flux[rows] = np.where(np.isfinite(fit.sigflux[rows]), flux, np.nan)


def _step(design: F32, weight: F32, residual: F32, prior: tuple[F64, F64]) -> tuple[F64, F64]:
    """Change (n, 3) of flux and place, cut to ``MAX_STEP``, and the flux's error."""
    weighted = design * weight
    normal = (weighted @ design.transpose(0, 2, 1)).astype(np.float64)
    right = (weighted @ residual).astype(np.float64)[..., 0]
    dead = ~(normal[:, 0, 0] > 0)
    normal[dead] = np.eye(3)
    right[dead] = 0
    for k, distance in enumerate(prior, start=1):
        normal[:, k, k] += 1 / PLACE_PRIOR**2
        right[:, k] += distance / PLACE_PRIOR**2
    inverse = np.linalg.inv(normal)  # 3 x 3, positive definite thanks to the prior
    step = (inverse @ right[..., None])[..., 0]
    np.clip(step[:, 1:], -MAX_STEP, MAX_STEP, out=step[:, 1:])
    return step, np.where(dead, np.nan, np.sqrt(inverse[:, 0, 0]))


def _judge(
    fit: Fit,
    rows: NDArray[np.intp],
    gradients: tuple[F32, F32, F32],
    residual: F32,
    weight: F32,
    usable: BOOL,
    flux: F64,
    fraction: tuple[F64, F64],
    error: F64,
) -> None:
    """Error, chi and sharp of fitted sources; NaN where the PSF is hardly covered by usable pixels."""
    p, px, py = gradients
    size = p.shape[1]
    signal = np.maximum(flux, 0).astype(np.float32)[:, None, None] * p
    trust = weight / (1 + weight * (np.float32(PROFILE_ERROR) * signal) ** 2)
    dof = np.maximum(usable.sum(axis=(1, 2)) - 3, 1)
    chi = np.sqrt(np.einsum("ijk,ijk,ijk->i", trust, residual, residual) / dof)
    # What the PSF would change if it were wider by d ln(sigma): -(2 + r d/dr) P, the part not like P itself.
    dx, dy = (np.arange(size) - size // 2 - f[:, None] for f in fraction)
    wider = -2 * p + dx.astype(np.float32)[:, None, :] * px + dy.astype(np.float32)[:, :, None] * py
    heavy = weight * p
    information = np.maximum(np.einsum("ijk,ijk->i", heavy, p), 1e-30)
    wider -= (np.einsum("ijk,ijk->i", heavy, wider) / information)[:, None, None] * p
    heavy = weight * wider
    growth = np.einsum("ijk,ijk->i", heavy, residual) / np.maximum(np.einsum("ijk,ijk->i", heavy, wider), 1e-30)
    covered = np.einsum("ijk,ijk->i", usable.astype(np.float32), p) > MIN_COVERAGE * p.sum(axis=(1, 2))
    sharp = 2 * growth / np.where(flux > 0, flux, np.nan)
    fit.sigflux[rows] = np.where(covered, error, np.nan)
    fit.chi[rows], fit.sharp[rows] = np.where(covered, chi, np.nan), np.where(covered, sharp, np.nan)
