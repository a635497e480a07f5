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
    def start(cls, x: F64, y: F64) -> Fit:
        """Nothing known but places."""
        nan = np.full(len(x), np.nan)
        return cls(x.astype(float), y.astype(float), np.zeros(len(x)), nan.copy(), nan.copy(), nan.copy())


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
    add_own: bool = False,
) -> None:
    """Gauss-Newton steps of flux and place for ``rows`` of ``fit``, in place; the last one fills errors, chi, sharp.

    Parameters
    ----------
    windows : (values, noise, usable), each (n, size, size)
        DN with sky off (with ``add_own``: with this source's own model off too), sky and read variance (DN^2),
        which pixels count; around the pixel nearest to ``home``.
    home : (x, y)
        Detected places, the centres of the windows and of the prior.
    """
    values, noise, usable = windows
    n, size = len(rows), values.shape[1]
    hx, hy = home
    ix, iy = nearest_pixels(hx, hy)
    x, y, flux = fit.x[rows], fit.y[rows], fit.flux[rows]
    grids = psf.grids(hx, hy, size)
    reader = psf.oversample
    if add_own:
        p, _, _ = read_gradients(grids, x - ix, y - iy, size, reader)
        values = values + np.where(usable, flux.astype(np.float32)[:, None, None] * p, np.float32(0))
    prior = np.zeros((n, 3))
    normal = right = np.zeros(0)
    for _ in range(steps):
        p, px, py = read_gradients(grids, x - ix, y - iy, size, reader)
        scale = flux.astype(np.float32)[:, None, None]
        signal = np.maximum(scale, 0) * np.maximum(p, 0)
        weight = (usable / (noise + signal / np.float32(gain))).reshape(n, 1, -1)
        design = np.stack([p, scale * px, scale * py], axis=1).reshape(n, 3, -1)
        weighted = design * weight
        normal = (weighted @ design.transpose(0, 2, 1)).astype(np.float64)
        right = (weighted @ (values - scale * p).reshape(n, -1, 1)).astype(np.float64)[..., 0]
        dead = ~(normal[:, 0, 0] > 0)
        normal[dead] = np.eye(3)
        right[dead] = 0
        prior[:, 1], prior[:, 2] = hx - x, hy - y
        normal[:, [1, 2], [1, 2]] += 1 / PLACE_PRIOR**2
        step = np.linalg.solve(normal, (right + prior / PLACE_PRIOR**2)[..., None])[..., 0]
        flux = flux + step[:, 0]
        for place, base, delta in ((x, hx, step[:, 1]), (y, hy, step[:, 2])):
            np.copyto(place, np.clip(place + np.clip(delta, -MAX_STEP, MAX_STEP), base - MAX_SHIFT, base + MAX_SHIFT))
    fit.x[rows], fit.y[rows], fit.flux[rows] = x, y, flux
    _judge(fit, rows, (values, noise, usable), (grids, ix, iy, reader), gain, normal)


def _judge(
    fit: Fit,
    rows: NDArray[np.intp],
    windows: tuple[F32, F32, BOOL],
    model: tuple[F32, NDArray[np.intp], NDArray[np.intp], int],
    gain: float,
    normal: F64,
) -> None:
    """Error, chi and sharp of fitted sources; NaN flux where the PSF is hardly covered by usable pixels."""
    values, noise, usable = windows
    grids, ix, iy, oversample = model
    n, size = len(rows), values.shape[1]
    x, y, flux = fit.x[rows], fit.y[rows], fit.flux[rows].astype(np.float32)[:, None, None]
    fx, fy = (x - ix).astype(np.float32), (y - iy).astype(np.float32)
    p, px, py = read_gradients(grids, x - ix, y - iy, size, oversample)
    signal = np.maximum(flux, 0) * np.maximum(p, 0)
    variance = noise + signal / np.float32(gain)
    weight = usable / variance
    residual = values - flux * p
    trust = usable / (variance + (np.float32(PROFILE_ERROR) * signal) ** 2)
    dof = np.maximum(usable.sum(axis=(1, 2)) - 3, 1)
    chi = np.sqrt((trust * residual**2).sum(axis=(1, 2)) / dof)
    # What the PSF would change if it were wider by d ln(sigma): -(2 + r d/dr) P, the part not like P itself.
    offset = (np.arange(size) - size // 2).astype(np.float32)
    wider = -2 * p + (offset[None, None, :] - fx[:, None, None]) * px + (offset[None, :, None] - fy[:, None, None]) * py
    information = np.maximum((weight * p * p).sum(axis=(1, 2)), 1e-30)
    wider -= ((weight * p * wider).sum(axis=(1, 2)) / information)[:, None, None] * p
    growth = (weight * wider * residual).sum(axis=(1, 2)) / np.maximum((weight * wider**2).sum(axis=(1, 2)), 1e-30)
    covered = (usable * p).sum(axis=(1, 2)) > MIN_COVERAGE * p.sum(axis=(1, 2))
    # A singular matrix is excluded: the prior keeps the place's part of it positive.
    sigma = np.sqrt(np.linalg.inv(normal)[:, 0, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        sharp = np.where(flux[:, 0, 0] > 0, 2 * growth / flux[:, 0, 0], np.nan)
    fit.flux[rows] = np.where(covered, fit.flux[rows], np.nan)
    fit.sigflux[rows] = np.where(covered, sigma, np.nan)
    fit.chi[rows], fit.sharp[rows] = np.where(covered, chi, np.nan), np.where(covered, sharp, np.nan)
