"""The linearised fit of point sources to little windows, many at once: one core for free and for fixed places.

Sources whose light overlaps are one system of equations (a group, as in DAOPHOT's ALLSTAR): the coupling of two is
summed over the pixels that their windows share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.records import F32
from stream.photometry.groups import Block
from stream.photometry.stamps import nearest_pixels

F64 = NDArray[np.float64]
INT = NDArray[np.intp]
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
# Part of a flux that its star repeats to at best, photons and PSF aside: pixels' response, brighter-fatter, the air.
RESPONSE_ERROR = 0.001
# The flux that a free place has gained is taken off as far as this S/N; below it nothing is a peak of its own.
LEAST_GAIN_SNR = 3.0
# Two sources on one place share its flux as they like; this part of a source's information keeps the sum solvable.
RIDGE = 1e-3


@dataclass(slots=True)
class Fit:
    """Running state of ``n`` sources: place (px), flux and its 1-sigma error (DN), chi, sharp and its error, home (the
    first place)."""

    x: F64
    y: F64
    flux: F64
    sigflux: F64
    chi: F64
    sharp: F64
    sigsharp: F64
    home: tuple[F64, F64]

    @classmethod
    def start(cls, x: F64, y: F64, flux: F64) -> Fit:
        """First places and fluxes."""
        nan = np.full(len(x), np.nan)
        x, y = x.astype(float), y.astype(float)
        return cls(x.copy(), y.copy(), flux.astype(float), nan.copy(), nan.copy(), nan.copy(), nan.copy(), (x, y))

    def __len__(self) -> int:
        return len(self.x)

    def part(self, keep: BOOL) -> Fit:
        """The chosen sources."""
        columns = (self.x, self.y, self.flux, self.sigflux, self.chi, self.sharp, self.sigsharp)
        x, y, flux, sigflux, chi, sharp, sigsharp = (column[keep] for column in columns)
        return Fit(x, y, flux, sigflux, chi, sharp, sigsharp, (self.home[0][keep], self.home[1][keep]))


def fixed_flux(values: F32, weight: F32, p: F32) -> tuple[F64, F64, F64]:
    """Weighted least-squares flux of sources that stand alone, at known places.

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


def step_block(
    fit: Fit,
    block: Block,
    psf: tuple[F32, F32, F32],
    windows: tuple[F32, F32 | None, F32, BOOL],
    gain: float,
    *,
    move: bool = True,
    errors: tuple[float, F64] | None = None,
) -> None:
    """One Gauss-Newton step of flux and place for the sources of ``block``, in place.

    Parameters
    ----------
    psf : (P, dP/dx, dP/dy), each (n, size, size)
        At the fit's present places, around the pixels nearest to them.
    windows : (values, residual, noise, usable), each (n, size, size)
        Around the same pixels: DN with sky off; the same with all models (of the fit's present state) off, None where
        nobody else's light is there; sky and read variance (DN^2); which pixels count.
    move : bool
        False: places stay, only fluxes are fitted.
    errors : (sky's covariance, PSF's flux error), optional
        Given in the last round: fill ``sigflux``, ``chi`` and ``sharp``; NaN flux where the PSF is hardly covered. The
        first scales the sky's part of a flux's error, the second (n,) is a part of the flux (NaN: not known). Places
        that move settle where noise adds most: what that adds to the flux, error^2 / flux, is taken off.
    """
    rows = block.rows
    values, residual, noise, usable = windows
    n, size = len(rows), values.shape[1]
    x, y, flux = fit.x[rows], fit.y[rows], fit.flux[rows]
    hx, hy = (h[rows] for h in fit.home)
    pixel = nearest_pixels(x, y)
    p, px, py = psf
    scale = flux.astype(np.float32)[:, None, None]
    own = scale * p
    light = own if residual is None else values - residual  # of all models there
    residual = values - own if residual is None else residual
    weight = usable / (noise + np.maximum(light, 0) / np.float32(gain))
    design = np.empty((n, 3 if move else 1, size * size), np.float32)
    for k, column in enumerate((p, scale * px, scale * py) if move else (p,)):
        design[:, k] = column.reshape(n, -1)
    prior = (hx - x, hy - y) if move else ()
    step, error = _solve(design, weight.reshape(n, 1, -1), residual.reshape(n, -1, 1), prior, block, pixel, size)
    if errors is not None:
        # The step is small by now: the residuals after it follow from the linearisation.
        change = (design.transpose(0, 2, 1) @ step[..., None].astype(np.float32)).reshape(residual.shape)
        after, fraction = flux + step[:, 0], (x - pixel[0], y - pixel[1])
        _judge(fit, rows, psf, residual - change, weight, usable, after, fraction)
        information = np.maximum(np.einsum("ijk,ijk,ijk->i", weight, p, p), 1e-30)
        sky = np.einsum("ijk,ijk,ijk,ijk->i", weight, weight * noise, p, p, optimize=True) / information
        part = np.nan_to_num(errors[1]) ** 2 + RESPONSE_ERROR**2
        spread = error**2 * (1 + (errors[0] ** 2 - 1) * sky) + part * after**2
        fit.sigflux[rows] = np.where(np.isfinite(fit.chi[rows]), np.sqrt(spread), np.nan)
        if move:
            step[:, 0] -= place_gain(after, 1 / information)
    fit.flux[rows] = flux + step[:, 0]
    if move:
        fit.x[rows] = np.clip(x + step[:, 1], hx - MAX_SHIFT, hx + MAX_SHIFT)
        fit.y[rows] = np.clip(y + step[:, 2], hy - MAX_SHIFT, hy + MAX_SHIFT)
    if errors is not None:
        fit.flux[rows] = np.where(np.isfinite(fit.sigflux[rows]), fit.flux[rows], np.nan)


def place_gain(flux: F64, variance: NDArray[np.floating]) -> F64:
    """What fluxes (n,) of these variances gained because places were free (Portillo et al. 2020, AJ 159, 165).

    The most likely place is where the noise adds most to the star. Each axis gains half of variance / flux: the noise
    of the flux's slope over the curvature of the peak, both from the PSF's own slope.
    """
    safe = np.where(flux > 0, flux, 1.0)
    return np.where(flux > 0, np.minimum(variance / safe, safe / LEAST_GAIN_SNR**2), 0.0)


def _solve(
    design: F32, weight: F32, residual: F32, prior: tuple[F64, ...], block: Block, pixel: tuple[INT, INT], size: int
) -> tuple[F64, F64]:
    """Change (n, columns) of flux and place, cut to ``MAX_STEP``, and the flux's error, groups solved as one."""
    n, columns = design.shape[:2]
    weighted = design * weight
    normal = (weighted @ design.transpose(0, 2, 1)).astype(np.float64)
    right = (weighted @ residual).astype(np.float64)[..., 0]
    dead = ~(normal[:, 0, 0] > 0)
    normal[dead] = np.eye(columns)
    right[dead] = 0
    for k, distance in enumerate(prior, start=1):
        normal[:, k, k] += 1 / PLACE_PRIOR**2
        right[:, k] += distance / PLACE_PRIOR**2
    step, variance = np.empty((n, columns)), np.empty(n)
    coupling = _couplings(design, weighted, block, pixel, size)
    for members in block.groups:
        n_groups, k = members.shape
        if k == 1:
            inverse = np.linalg.inv(normal[members[:, 0]])  # positive definite thanks to the prior
        else:
            whole = np.zeros((n_groups, k, columns, k, columns))
            place = np.arange(k)
            whole[:, place, :, place, :] = normal[members.T]
            inside = np.flatnonzero(block.size[block.first] == k)
            g, i, j = (
                block.group[block.first[inside]],
                block.slot[block.first[inside]],
                block.slot[block.second[inside]],
            )
            whole[g, i, :, j, :] = coupling[inside]
            whole[g, j, :, i, :] = coupling[inside].transpose(0, 2, 1)
            whole[:, place, 0, place, 0] *= 1 + RIDGE
            inverse = np.linalg.inv(whole.reshape(n_groups, k * columns, -1))
        step[members] = (inverse @ right[members].reshape(n_groups, -1, 1)).reshape(n_groups, k, columns)
        variance[members] = np.diagonal(inverse, axis1=1, axis2=2)[:, ::columns]
    np.clip(step[:, 1:], -MAX_STEP, MAX_STEP, out=step[:, 1:])
    # Rounding may leave no positive variance where two sources cannot be told apart.
    variance = np.where(variance > 0, variance, 1 / normal[:, 0, 0])
    return step, np.where(dead, np.nan, np.sqrt(variance))


def _couplings(design: F32, weighted: F32, block: Block, pixel: tuple[INT, INT], size: int) -> F64:
    """Sums (n_pairs, columns, columns) of two sources' weighted products over the pixels that their windows share."""
    columns = design.shape[1]
    out = np.zeros((len(block.first), columns, columns))
    a, b = (part.reshape(len(part), columns, size, size) for part in (weighted, design))
    ox, oy = (axis[block.second] - axis[block.first] for axis in pixel)
    reach = 2 * size
    for code in np.unique((oy + reach) * 4 * size + ox + reach).tolist():
        dy, dx = code // (4 * size) - reach, code % (4 * size) - reach
        if max(abs(dx), abs(dy)) >= size:
            continue
        pairs = np.flatnonzero((ox == dx) & (oy == dy))
        mine = (slice(max(dy, 0), size + min(dy, 0)), slice(max(dx, 0), size + min(dx, 0)))
        theirs = (slice(max(-dy, 0), size + min(-dy, 0)), slice(max(-dx, 0), size + min(-dx, 0)))
        first = a[block.first[pairs]][:, :, mine[0], mine[1]].reshape(len(pairs), columns, -1)
        second = b[block.second[pairs]][:, :, theirs[0], theirs[1]].reshape(len(pairs), columns, -1)
        out[pairs] = first @ second.transpose(0, 2, 1)
    return out


def _judge(
    fit: Fit,
    rows: INT,
    gradients: tuple[F32, F32, F32],
    residual: F32,
    weight: F32,
    usable: BOOL,
    flux: F64,
    fraction: tuple[F64, F64],
) -> None:
    """Chi and sharp of fitted sources; NaN where the PSF is hardly covered by usable pixels."""
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
    known = np.maximum(np.einsum("ijk,ijk->i", heavy, wider), 1e-30)
    growth = np.einsum("ijk,ijk->i", heavy, residual) / known
    covered = np.einsum("ijk,ijk->i", usable.astype(np.float32), p) > MIN_COVERAGE * p.sum(axis=(1, 2))
    light = np.where(covered & (flux > 0), flux, np.nan)
    fit.sharp[rows], fit.sigsharp[rows] = 2 * growth / light, 2 / np.sqrt(known) / light
    fit.chi[rows] = np.where(covered, chi, np.nan)
