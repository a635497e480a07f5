"""Everything that is measured on the pixels under a candidate, for all candidates of a quadrant together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.flags import BAD_BITS, UNUSABLE_BITS
from stream.core.records import Difference, Reference, ScienceImage
from stream.extract.context import (
    MIN_SHARE,
    dipole_of,
    mask_shares,
    persistent_distance,
    radial_chi2,
    science_flux,
    unexplained_of,
)
from stream.extract.detect import Peaks, peak_values, refine_peaks
from stream.extract.psffit import PsfGrid, fit_flux, fit_psf
from stream.extract.shape import (
    APERTURE_RADIUS,
    BIG_APERTURE_RADIUS,
    aperture_flux,
    robust_rms,
    star_likeness,
    sum_ratio,
    windowed_shape,
)
from stream.extract.stamps import gather, gather_at

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Candidates per pass: keeps the stamps of one pass in a few megabytes.
CHUNK = 512
_HALF = 11  # px: stamps hold the big aperture wherever the source lies in its pixel
# Sky annulus, px: outside the big aperture and the PSF's wings at the worst seeing that is accepted, small enough
# for local structure; every second pixel, as a median needs no more.
_SKY_INNER, _SKY_OUTER = 12.0, 20.0
_MIN_SKY_PIXELS = 50
# Fit window in FWHM: holds 99 % of a Gaussian's weight; a wider one only adds neighbours.
_FIT_RADIUS_FWHM = 1.75
# A PSF fit of an isolated source has the S/N that S_corr has, to within this factor (the fit's own window, sky and
# free place). Where the fit claims more, S_corr knows of noise that the pixels' do not: registration under stars.
_SCORE_SLACK = 1.15


@dataclass(frozen=True, slots=True)
class Measurements:
    """One value per candidate; fluxes in DN, signed so that the candidate is positive; NaN: not measurable.

    ``x``, ``y`` are the fitted places and ``ix``, ``iy`` their nearest pixels (first is 0).
    """

    x: F64
    y: F64
    ix: I64
    iy: I64
    sign: I64
    scorr: F64
    flux: F64
    fluxerr: F64
    chi2: F64
    weight: F64  # share of the PSF on usable pixels
    sky: F64
    ap: F64
    ap_err: F64
    big: F64
    big_err: F64
    a: F64
    b: F64
    fwhm: F64
    classtar: F64
    sumrat: F64
    nneg: I64
    nbad: I64
    maskbits: I64
    dsnrms: F64
    ssnrms: F64
    sciflux: F64  # forced on the science image, sky off
    scifluxerr: F64
    refflux: F64  # forced on the reference, in science DN
    reffluxerr: F64
    dipole: F64
    dipole_sep: F64  # px from the peak to the deepest place of the other sign
    chi2px: F64  # reduced chi squared within 2, 4 and 7 px
    chi4px: F64
    chi7px: F64
    unexplained: F64
    shares: F64  # (n, 16): share of the 11 x 11 pixels around with each bit
    persistent: F64  # px to the nearest pixel of a persistent artefact

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True)
class _Scales:
    """What is the same for all candidates of a quadrant."""

    grid: PsfGrid
    d_rms: float
    s_rms: float
    fit_half: int


def measure(science: ScienceImage, reference: Reference, difference: Difference, peaks: Peaks) -> Measurements:
    """Measure all peaks.

    Parameters
    ----------
    science, reference, difference
        The quadrant's records; see their docstrings for units.
    peaks : Peaks
        Where to measure.

    Returns
    -------
    Measurements
        In the order of ``peaks``.
    """
    half = int(np.clip(np.ceil(_FIT_RADIUS_FWHM * difference.fwhm), 3, _HALF))
    scales = _Scales(
        PsfGrid(difference.psf, difference.data.shape), robust_rms(difference.data), robust_rms(difference.score), half
    )
    x, y = refine_peaks(difference.scorr, peaks)
    tops = peak_values(difference.scorr, peaks)
    parts = []
    for start in range(0, len(peaks), CHUNK):
        take = slice(start, start + CHUNK)
        part = _measure_chunk(difference, scales, peaks, take, x[take], y[take])
        part["fluxerr"] = _with_score_noise(part["flux"], part["fluxerr"], tops[take])
        part["refflux"], part["reffluxerr"] = _reference_flux(science, reference, difference, part)
        part["sciflux"], part["scifluxerr"] = science_flux(science, part["x"], part["y"])
        part["shares"] = mask_shares(difference.mask, part["ix"], part["iy"])
        part["persistent"] = persistent_distance(difference.mask, part["ix"], part["iy"])
        parts.append(part)
    names = [f.name for f in fields(Measurements)]
    if not parts:
        empty: dict[str, NDArray[Any]] = {name: np.zeros(0) for name in names}
        return Measurements(**empty)
    return Measurements(**{name: np.concatenate([part[name] for part in parts]) for name in names})


def _with_score_noise(flux: F64, error: F64, score: F64) -> F64:
    """Errors with the noise that only S_corr has: registration and PSF differences under bright stars.

    The flux over S_corr is the error that S_corr stands for; what it exceeds the fit's own by, beyond
    ``_SCORE_SLACK``, is added in quadrature. Isolated sources keep their errors.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        known = np.abs(flux) / score
        total: F64 = np.sqrt(error**2 + np.maximum(known**2 - (_SCORE_SLACK * error) ** 2, 0.0))
    return np.where(np.isfinite(total), total, error)


def _measure_chunk(
    difference: Difference, scales: _Scales, peaks: Peaks, take: slice, x: F64, y: F64
) -> dict[str, NDArray[Any]]:
    sign = peaks.sign[take].astype(np.int64)
    px, py = peaks.x[take], peaks.y[take]
    data = gather(difference.data, px, py, _HALF) * sign[:, None, None].astype(np.float32)
    variance = gather(difference.sigma, px, py, _HALF) ** 2
    mask = gather(difference.mask, px, py, _HALF, fill=0)
    good = np.isfinite(data) & (variance > 0) & np.isfinite(variance) & ((mask & UNUSABLE_BITS) == 0)
    sky, sky_variance = _sky(difference, px, py, sign)
    data = data - sky.astype(np.float32)[:, None, None]
    variance = np.where(good, variance, 0.0).astype(np.float32)
    psfs = scales.grid.select(x, y)
    inner = np.s_[:, _HALF - scales.fit_half : _HALF + scales.fit_half + 1,
                  _HALF - scales.fit_half : _HALF + scales.fit_half + 1]  # fmt: skip
    disc = np.hypot(*np.mgrid[-_HALF : _HALF + 1, -_HALF : _HALF + 1]) <= scales.fit_half + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = fit_psf(data[inner], variance[inner], (good & disc)[inner], psfs, x - px, y - py)
    model = psfs.render(fit.dx, fit.dy, 2 * _HALF + 1)
    # Holes are filled with what the fit expects, so that apertures and moments miss nothing.
    filled = np.where(good, data, np.nan_to_num(fit.flux)[:, None, None] * model).astype(np.float32)
    ap, ap_err = aperture_flux(filled, variance, sky_variance, fit.dx, fit.dy, APERTURE_RADIUS)
    big, big_err = aperture_flux(filled, variance, sky_variance, fit.dx, fit.dy, BIG_APERTURE_RADIUS)
    shape = windowed_shape(filled, fit.dx, fit.dy, difference.fwhm)
    rings = radial_chi2(data, variance, good, fit.flux.astype(np.float32)[:, None, None] * model)
    fx, fy = px + fit.dx, py + fit.dy
    ix, iy = np.rint(fx).astype(np.int64), np.rint(fy).astype(np.int64)
    return {
        "x": fx, "y": fy, "ix": ix, "iy": iy, "sign": sign, "scorr": peaks.scorr[take].astype(np.float64),
        "flux": fit.flux, "fluxerr": fit.fluxerr, "chi2": fit.chi2, "weight": fit.weight, "sky": sky,
        "ap": ap, "ap_err": ap_err, "big": big, "big_err": big_err,
        "a": shape.a, "b": shape.b, "fwhm": shape.fwhm,
        "classtar": star_likeness(shape.fwhm, difference.fwhm, fit.flux / fit.fluxerr),
        "unexplained": unexplained_of(fit),
        "chi2px": rings[0], "chi4px": rings[1], "chi7px": rings[2],
        **_core_pixels(difference, ix, iy, sign),
        **_scores(difference, scales, ix, iy, sign),
    }  # fmt: skip


def _sky(difference: Difference, px: I64, py: I64, sign: I64) -> tuple[F64, F64]:
    """Median of an annulus (DN, signed) and the variance of that median; 0 where too few pixels are usable."""
    half = int(_SKY_OUTER)
    oy, ox = np.mgrid[-half : half + 1, -half : half + 1]
    r = np.hypot(ox, oy)
    ring = (r >= _SKY_INNER) & (r <= _SKY_OUTER) & ((ox + oy) % 2 == 0)
    values = gather_at(difference.data, px[:, None] + ox[ring], py[:, None] + oy[ring])
    values = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(values).sum(axis=1)
    rows = np.arange(len(values))
    quantiles = [values[rows, np.clip((count * q).astype(int), 0, values.shape[1] - 1)] for q in (0.25, 0.5, 0.75)]
    enough = count >= _MIN_SKY_PIXELS
    sky = np.where(enough, quantiles[1] * sign, 0.0).astype(np.float64)
    rms = (quantiles[2] - quantiles[0]) / 1.349  # a Gaussian's interquartile range
    # A median's variance is pi/2 times a mean's; the skipped half of the ring is a sample of the same sky.
    sky_variance = np.where(enough, np.pi / 2 * rms.astype(np.float64) ** 2 / np.maximum(count, 1), 0.0)
    return sky, sky_variance


def _core_pixels(difference: Difference, ix: I64, iy: I64, sign: I64) -> dict[str, NDArray[Any]]:
    """Counts and ratios over the 5x5 pixels in the middle of the cutout (its rows and columns 29..33)."""
    core = gather(difference.data, ix, iy, 2) * sign[:, None, None].astype(np.float32)
    mask = gather(difference.mask, ix, iy, 2, fill=0)
    bad = ((mask & BAD_BITS) != 0) | ~np.isfinite(core)
    return {
        "sumrat": sum_ratio(core),
        "nneg": (core < 0).sum(axis=(1, 2)),
        "nbad": bad.sum(axis=(1, 2)),
        "maskbits": np.bitwise_or.reduce(mask.reshape(len(mask), -1), axis=1).astype(np.int64),
    }


def _scores(difference: Difference, scales: _Scales, ix: I64, iy: I64, sign: I64) -> dict[str, NDArray[Any]]:
    """Ratios of D and S to their spread, and how much of a dipole's other half stands beside the candidate."""
    d = gather_at(difference.data, ix, iy).astype(np.float64) * sign
    here = gather_at(difference.score, ix, iy).astype(np.float64) * sign
    dipole, separation = dipole_of(difference.score, ix, iy, sign, difference.fwhm, scales.s_rms)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = {"dsnrms": d / scales.d_rms, "ssnrms": here / scales.s_rms}
    return {**ratios, "dipole": dipole, "dipole_sep": separation}


def _reference_flux(
    science: ScienceImage, reference: Reference, difference: Difference, part: dict[str, NDArray[Any]]
) -> tuple[F64, F64]:
    """PSF-forced flux of the resampled reference at the fitted places and its error (DN on the science zero point)."""
    ix, iy = part["ix"].astype(np.int64), part["iy"].astype(np.int64)
    dx, dy = part["x"] - ix, part["y"] - iy
    ra, dec = science.astrometry.sky_of(part["x"], part["y"])
    rx, ry = reference.wcs.all_world2pix(ra, dec, 0, quiet=True)
    ny, nx = reference.data.shape
    rx, ry = (np.clip(np.nan_to_num(v), 0, n - 1) for v, n in ((rx, nx), (ry, ny)))
    half = int(np.clip(np.ceil(_FIT_RADIUS_FWHM * reference.psf.fwhm), 3, _HALF))
    # The place chooses the PSF, the candidate's own fraction of a pixel its phase.
    model = reference.psf.stamps(np.rint(rx) + dx, np.rint(ry) + dy, 2 * half + 1)
    data = gather(difference.reference, ix, iy, half)
    good = np.isfinite(data)
    noise = gather(reference.unc, np.rint(rx).astype(np.int64), np.rint(ry).astype(np.int64), half)
    variance = (np.nan_to_num(noise) * np.float32(difference.flux_scale)) ** 2
    flux, error, weight = fit_flux(np.where(good, data, 0.0).astype(np.float32), variance, good, model)
    usable = weight > MIN_SHARE
    return np.where(usable, flux, np.nan), np.where(usable & (error > 0), error, np.nan)
