"""What surrounds a candidate and what it stands on: the other half of a dipole, defects, the two images themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.flags import UNUSABLE_BITS, Mask
from stream.core.records import F32, U16, ScienceImage
from stream.extract.psffit import PsfFit, fit_flux
from stream.extract.stamps import gather

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
B1 = NDArray[np.bool_]

# A forced flux needs this share of the PSF's weight on usable pixels.
MIN_SHARE = 0.5
CHI_RADII = (2.0, 4.0, 7.0)  # px: the core, the window of the fit, the aperture of magap
MASK_BOX = 11  # px: side of the box in which shares of mask bits are counted; the fit's window at poor seeing
# A persistent artefact farther away than this many px says nothing: it returns within its own width.
PERSISTENT_REACH = 50.0
_DIPOLE_RADIUS_FWHM = 1.5
# The deepest of the few independent places within the dipole radius lies about this many sigma below zero by noise.
_DIPOLE_NOISE = 2.0
_FIT_RADIUS_FWHM = 1.75
_MAX_HALF = 11


def dipole_of(score: F32, ix: I64, iy: I64, sign: I64, fwhm: float, rms: float) -> tuple[F64, F64]:
    """How deep the opposite sign stands beside a candidate, and how far away.

    Parameters
    ----------
    score : ndarray, (ny, nx)
        S, uncorrected.
    ix, iy, sign : ndarray, (n,)
        Peak pixels and signs.
    fwhm : float
        Of the difference PSF, px.
    rms : float
        Spread of S on empty sky.

    Returns
    -------
    ratio, separation : ndarray, (n,)
        Depth of the other lobe within 1.5 FWHM over the candidate's height, 0 (none beyond noise) to 1; px from the
        pixel of the candidate's maximum to the deepest one, NaN where there is no other lobe.
    """
    half = int(np.ceil(_DIPOLE_RADIUS_FWHM * fwhm))
    oy, ox = np.mgrid[-half : half + 1, -half : half + 1]
    near = np.hypot(ox, oy) <= _DIPOLE_RADIUS_FWHM * fwhm
    oy, ox = oy[near], ox[near]
    s = gather(score, ix, iy, half)[:, near].astype(np.float64) * sign[:, None]
    lowest = np.argmin(np.where(np.isfinite(s), s, np.inf), axis=1)
    highest = np.argmax(np.where(np.isfinite(s), s, -np.inf), axis=1)
    rows = np.arange(len(s))
    low, top = s[rows, lowest], s[rows, highest]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(top > 0, np.clip((-low - _DIPOLE_NOISE * rms) / top, 0.0, 1.0), np.nan)
    apart = np.hypot(ox[lowest] - ox[highest], oy[lowest] - oy[highest])
    return ratio, np.where(ratio > 0, apart, np.nan)


def radial_chi2(data: F32, variance: F32, good: B1, model: F32) -> list[F64]:
    """Reduced chi squared of a model (flux included) within each of ``CHI_RADII`` of the stamps' middle; NaN where
    fewer than three pixels are usable beyond the fit's three unknowns."""
    half = data.shape[1] // 2
    r = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1])
    usable = good & (variance > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        pulls = np.where(usable, (data - model) ** 2 / variance, 0.0).astype(np.float64)
    result = []
    for radius in CHI_RADII:
        inside = r <= radius
        freedom = usable[:, inside].sum(axis=1) - 3
        total = pulls[:, inside].sum(axis=1)
        result.append(np.where(freedom >= 3, total / np.maximum(freedom, 1), np.nan))
    return result


def unexplained_of(fit: PsfFit) -> F64:
    """Chi squared that a PSF leaves beyond noise, over what it explains.

    Near 0 for a point source, below 1 for a trail or a comet, 1 and more for the lobe of a dipole, hundreds for a
    particle's track, which is sharper than any PSF: its power is nowhere near the PSF's.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        left = fit.chi2 * fit.freedom - fit.freedom - 5.0 * np.sqrt(2.0 * np.maximum(fit.freedom, 1.0))
        ratio: F64 = np.maximum(left, 0.0) / (fit.flux / fit.fluxerr) ** 2
    return ratio


def science_flux(science: ScienceImage, x: F64, y: F64) -> tuple[F64, F64]:
    """PSF-forced flux of the science image at places (px) and its error (DN); NaN where half the PSF is unusable.

    The sky is the image's own; light of a host under the candidate is in the flux.
    """
    half = int(np.clip(np.ceil(_FIT_RADIUS_FWHM * science.psf.fwhm), 3, _MAX_HALF))
    ix, iy = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    rms = gather(science.background.rms, ix, iy, half)
    data = gather(science.data, ix, iy, half) - gather(science.background.level, ix, iy, half)
    mask = gather(science.mask, ix, iy, half, fill=int(Mask.NAN))
    good = np.isfinite(data) & np.isfinite(rms) & ((mask & UNUSABLE_BITS) == 0)
    data = np.where(good, data, 0.0).astype(np.float32)
    variance = (np.nan_to_num(rms) ** 2 + np.maximum(data, 0.0) / science.gain).astype(np.float32)
    flux, error, weight = fit_flux(data, variance, good, science.psf.stamps(x, y, 2 * half + 1))
    usable = weight > MIN_SHARE
    return np.where(usable, flux, np.nan), np.where(usable & (error > 0), error, np.nan)


def mask_shares(mask: U16, ix: I64, iy: I64) -> F64:
    """Share of the ``MASK_BOX`` x ``MASK_BOX`` pixels around with each of the 16 bits, (n, 16); pixels beyond the image
    have none."""
    words = gather(mask, ix, iy, MASK_BOX // 2, fill=0).reshape(len(ix), -1)
    bits = np.unpackbits(np.ascontiguousarray(words, "<u2").view(np.uint8), axis=1, bitorder="little")
    shares: F64 = bits.reshape(len(ix), -1, 16).mean(axis=1)
    return shares


def persistent_distance(mask: U16, ix: I64, iy: I64) -> F64:
    """Distance (px) to the nearest pixel with ``PERSISTENT``, 0 on one; NaN beyond ``PERSISTENT_REACH``."""
    far = np.full(len(ix), np.nan)
    marked = np.flatnonzero(mask & np.uint16(Mask.PERSISTENT)) if len(ix) else np.zeros(0, np.int64)
    if not len(marked):
        return far
    y, x = np.divmod(marked, mask.shape[1])
    tree = cKDTree(np.stack([x, y], axis=1), balanced_tree=False, compact_nodes=False)
    distance = tree.query(np.stack([ix, iy], axis=1), distance_upper_bound=PERSISTENT_REACH)[0]
    return np.where(np.isfinite(distance), distance, far)
