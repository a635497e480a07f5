"""Proper image subtraction of one tile (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27), as pure arithmetic.

With N the new image, R the reference (both sky-subtracted, on one grid, on one throughput scale), P their PSFs of
sum 1 and s their noise per pixel (equations of the paper; ``^`` is the Fourier transform):

- ``den^2 = sN^2 |Pr^|^2 + T sR^2 |Pn^|^2``; D = (Pr^ N^ - Pn^ R^) / (F den), F = 1 / sqrt(sN^2 + sR^2)   (13, 12)
- ``PD^ = Pr^ Pn^ / (F den)``, the response of D to a source of flux 1                                     (14)
- ``S = kn^ N^ - kr^ R^``, kn^ = conj(Pn^) |Pr^|^2 / den^2, kr^ = conj(Pr^) |Pn^|^2 / den^2               (12, 28, 29)
- ``V(S) = (sigma_N^2 * kn^2) + (sigma_R^2 * kr^2)``, pixel by pixel, with the photon noise of the sources (26, 27)
- ``S_corr = S / sqrt(V(S) + V_ast)``, V_ast = dx^2 (dSr/dx)^2 + dy^2 (dSr/dy)^2                           (25, 30-33)

Two departures. ``T`` is the share of white noise power that the resampling of the reference leaves at each
frequency: its noise is correlated, and with T in ``den`` the difference's noise is white again and the variance of S
right. And V_ast is counted once, with the *relative* registration error and the gradient of the reference's
part alone: what the two images do not share cannot be misplaced between them, so a new source is not penalised for
its own slopes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from stream.core.psf import STAMP
from stream.core.records import F32

C64 = NDArray[np.complex64]
# Frequencies at which both PSFs are below 1e-7 carry rounding errors only; the floor keeps them from being divided up.
_FLOOR = 1e-14


@dataclass(frozen=True, slots=True)
class TileInput:
    """One tile: images and variances (n, n) float32, PSF images (s, s) centred on the middle pixel, scalars.

    ``reference_variance`` is white-equivalent: what the noise per pixel was before the resampling. ``transfer``
    (n, n // 2 + 1) is T above. ``registration`` px per axis (x, y).
    """

    new: F32
    reference: F32
    new_variance: F32
    reference_variance: F32
    new_psf: F32
    reference_psf: F32
    new_sigma: float
    reference_sigma: float
    transfer: F32
    registration: tuple[float, float]


@dataclass(frozen=True, slots=True)
class TileOutput:
    """D (DN), its variance per pixel, S, the variance of S, and P_D (s, s), its 25 x 25 core summing to 1."""

    difference: F32
    variance: F32
    score: F32
    score_variance: F32
    psf: F32


class Plan:
    """What all tiles of one size share: the matrices that carry small centred images to the Fourier plane and back."""

    def __init__(self, n: int, psf_size: int) -> None:
        self.n = n
        self.size = psf_size
        offset = np.arange(psf_size) - psf_size // 2
        rows = np.exp(-2j * np.pi * np.outer(fft.fftfreq(n), offset))
        cols = np.exp(-2j * np.pi * np.outer(offset, fft.rfftfreq(n)))
        self._rows: C64 = rows.astype(np.complex64)
        self._cols: C64 = cols.astype(np.complex64)
        # A compact kernel is known from every k-th frequency alone: its image on a grid of n / k px, no smaller
        # than twice the kernel.
        self._every = max(k for k in range(1, n + 1) if n % (2 * k) == 0 and (n // k >= 2 * psf_size or k == 1))
        self._small = n // self._every
        self._wrap = np.ix_(offset % self._small, offset % self._small)

    def transform(self, small: F32) -> C64:
        """Fourier transform of a small image whose middle pixel is the origin, on the tile's half plane."""
        out: C64 = (self._rows @ small.astype(np.complex64)) @ self._cols
        return out

    def forward(self, image: F32) -> C64:
        """Real transform of a tile."""
        out: C64 = fft.rfft2(image, workers=1)
        return out

    def back(self, plane: C64) -> F32:
        """Real tile of a half plane."""
        out: F32 = fft.irfft2(plane, s=(self.n, self.n), workers=1, overwrite_x=True)
        return out

    def core(self, plane: C64) -> F32:
        """The middle (size, size) of the image of a compact kernel, its origin on the middle pixel."""
        few = plane[:: self._every, :: self._every]
        out: F32 = fft.irfft2(few, s=(self._small, self._small), workers=1)[self._wrap]
        return out


def subtract_tile(tile: TileInput, plan: Plan) -> TileOutput:
    """Proper subtraction of one tile; the outermost PSF widths of the result are wrapped and must be cropped."""
    pn, pr = plan.transform(tile.new_psf), plan.transform(tile.reference_psf)
    sn2, sr2 = np.float32(tile.new_sigma**2), np.float32(tile.reference_sigma**2)
    unit = sn2 + sr2  # 1 / F^2
    power_n, power_r = _power(pn), _power(pr)
    den2 = sn2 * power_r
    den2 += (sr2 * tile.transfer) * power_n
    den2 += np.float32(_FLOOR) * unit
    scale = np.sqrt(unit / den2)  # 1 / (F den)
    new, reference = plan.forward(tile.new), plan.forward(tile.reference)
    left = pr * new
    left -= pn * reference
    difference = plan.back(left * scale)
    # S^ = conj(Pn^ Pr^) / den^2 times the same numerator.
    product = pn * pr
    filtered = np.conj(product)
    filtered /= den2
    psf = plan.core(product * scale)
    score = plan.back(left * filtered)
    kernel_n = np.conj(pn)
    kernel_n *= power_r / den2
    kernel_r = np.conj(pr)
    kernel_r *= power_n / den2
    share = plan.back(kernel_r * reference)  # the reference's part of S
    kernel_r *= np.sqrt(tile.transfer)  # acts on white-equivalent noise from here on
    score_variance = _noise_of_score(tile, plan, kernel_n, kernel_r)
    _add_astrometric(score_variance, share, tile.registration)
    # The variance of D is nearly local: its kernels are close to a point (they are one where the PSFs are alike).
    gain_n = float(np.mean(power_r / den2)) * float(unit)
    gain_r = float(np.mean(power_n * tile.transfer / den2)) * float(unit)
    variance = tile.new_variance * np.float32(gain_n)
    variance += tile.reference_variance * np.float32(gain_r)
    # Fluxes of the house are totals inside the 25 px core: D is scaled so that F P_D with such a P_D is what it shows.
    lost = (psf.shape[0] - STAMP) // 2
    norm = float(psf[lost : lost + STAMP, lost : lost + STAMP].sum(dtype=np.float64))
    difference /= np.float32(norm)
    variance /= np.float32(norm * norm)
    return TileOutput(difference, variance, score, score_variance, psf / np.float32(norm))


def _power(plane: C64) -> F32:
    out: F32 = plane.real**2 + plane.imag**2
    return out


def _noise_of_score(tile: TileInput, plan: Plan, kernel_n: C64, kernel_r: C64) -> F32:
    """V(S) without the astrometric term: variances convolved with the squared kernels."""
    square_n, square_r = plan.core(kernel_n) ** 2, plan.core(kernel_r) ** 2
    total = plan.forward(tile.new_variance) * plan.transform(square_n)
    total += plan.forward(tile.reference_variance) * plan.transform(square_r)
    variance = plan.back(total)
    # Rounding beside a very bright star must not make a variance vanish.
    least = tile.new_sigma**2 * float(square_n.sum()) + tile.reference_sigma**2 * float(square_r.sum())
    np.maximum(variance, np.float32(0.25 * least), out=variance)
    return variance


def _add_astrometric(variance: F32, share: F32, registration: tuple[float, float]) -> None:
    """Add dx^2 (dSr/dx)^2 + dy^2 (dSr/dy)^2 inside the outermost pixels."""
    dx, dy = (np.float32(0.25 * r * r) for r in registration)  # central differences over 2 px
    gx = share[1:-1, 2:] - share[1:-1, :-2]
    gy = share[2:, 1:-1] - share[:-2, 1:-1]
    gx *= gx
    gy *= gy
    gx *= dx
    gy *= dy
    gx += gy
    variance[1:-1, 1:-1] += gx
