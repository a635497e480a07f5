"""The linearised fit of point sources to little windows, many at once: one core for free and for fixed places.

Sources whose light overlaps are one system of equations (a group, as in DAOPHOT's ALLSTAR): the coupling of two is
summed over the pixels that their windows share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.photometry.kernels import CHI, COVERED, GROWTH, INFORMATION, KNOWN, SKY_PART, VARIANCE

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]

# Below this part of the PSF's light on usable pixels there is nothing to fit.
MIN_COVERAGE = 0.25
# Part of a flux that its star repeats to at best, photons and PSF aside: pixels' response, brighter-fatter, the air.
RESPONSE_ERROR = 0.001
# The flux that a free place has gained is taken off as far as this S/N; below it nothing is a peak of its own.
LEAST_GAIN_SNR = 3.0


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


def fit_errors(fit: Fit, figures: F64, covariance: float, psf_error: F64, *, moved: bool = True) -> None:
    """Errors, chi and sharp from what ``step_groups`` says of the last step; NaN where the PSF is hardly covered.

    ``covariance`` scales the sky's part of a flux's error, ``psf_error`` (n,) is a part of the flux (NaN: not known).
    Places that ``moved`` settle where noise adds most: what that adds to the flux, error^2 / flux, is taken off.
    """
    covered = (figures[:, COVERED] > MIN_COVERAGE) & np.isfinite(figures[:, VARIANCE])
    part = np.nan_to_num(psf_error) ** 2 + RESPONSE_ERROR**2
    variance = figures[:, VARIANCE] * (1 + (covariance**2 - 1) * figures[:, SKY_PART]) + part * fit.flux**2
    fit.sigflux[:] = np.where(covered, np.sqrt(np.maximum(variance, 0)), np.nan)
    fit.chi[:] = np.where(covered, figures[:, CHI], np.nan)
    light = np.where(covered & (fit.flux > 0), fit.flux, np.nan)
    fit.sharp[:], fit.sigsharp[:] = 2 * figures[:, GROWTH] / light, 2 / np.sqrt(figures[:, KNOWN]) / light
    gain = place_gain(fit.flux, 1 / figures[:, INFORMATION]) if moved else 0.0
    fit.flux[:] = np.where(covered, fit.flux - gain, np.nan)


def place_gain(flux: F64, variance: NDArray[np.floating]) -> F64:
    """What fluxes (n,) of these variances gained because places were free (Portillo et al. 2020, AJ 159, 165).

    The most likely place is where the noise adds most to the star. Each axis gains half of variance / flux: the noise
    of the flux's slope over the curvature of the peak, both from the PSF's own slope.
    """
    safe = np.where(flux > 0, flux, 1.0)
    return np.where(flux > 0, np.minimum(variance / safe, safe / LEAST_GAIN_SNR**2), 0.0)
