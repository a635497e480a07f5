"""PSF and aperture photometry of every detected source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import NDArray
from scipy.special import ndtr

from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.psf import PsfModel
from stream.core.records import APERTURE_DIAMETERS, F32, SOURCE_DTYPE, U16, Background, Table
from stream.photometry.apertures import aperture_fluxes
from stream.photometry.background import without_sky
from stream.photometry.detect import NOT_DETECTED_BITS
from stream.photometry.fit import Fit
from stream.photometry.groups import has_neighbour
from stream.photometry.scene import NEIGHBOUR_REACH, Scene, fit_scene, is_crowded
from stream.photometry.sequences import fit_sequences
from stream.photometry.stamps import box_flags, nearest_pixels

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]
INT = NDArray[np.intp]

UNFIT_BITS = NOT_DETECTED_BITS | int(Mask.SATURATED)
# Scatter of the stars' ``sharp`` where photons do not limit it, and the range in which galaxies are looked for.
STAR_SHARP, WIDEST = 0.03, 2.0
# Aperture corrections come from sources with at least this S/N; below it, from the best there are.
APERTURE_SNR = 50.0
MIN_APERTURE_STARS = 5


@dataclass(frozen=True, slots=True)
class ApertureCorrections:
    """PSF_mag - AP_mag for ``APERTURE_DIAMETERS``, robust medians, and their uncertainties; NaN: too few stars."""

    values: tuple[float, ...]
    uncertainties: tuple[float, ...]
    n_stars: int


def measure_sources(
    data: F32,
    background: Background,
    psf: PsfModel,
    detections: Table,
    mask: U16,
    gain: float,
    readnoise: float,
) -> tuple[Table, ApertureCorrections]:
    """PSF photometry with neighbours subtracted, and aperture photometry, of all detections.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        DN, sky in.
    background : Background
    psf : PsfModel
        Of this image.
    detections : ndarray of DETECTION_DTYPE
    mask : ndarray, (ny, nx), uint16
    gain, readnoise : float
        e-/DN, e-. Noise variance (DN^2) is ``(sky + model) / gain + (readnoise / gain)^2``: the model's light, not
        the pixels' own, so that faint fluxes are not biased by their noise. Where the measured ``rms`` of the sky
        exceeds the expected one (by 8 % in real images), it counts.

    Returns
    -------
    sources : ndarray of SOURCE_DTYPE
        One row a detection, in its order; in a crowded field then what was found behind them, without moments of
        its own. ``ra``, ``dec`` NaN. ``sourceid`` counts from 0. Fluxes are NaN where
        hardly a pixel of the source is usable; ``sharp`` is about (width / PSF width)^2 - 1.
    corrections : ApertureCorrections

    Raises
    ------
    PhotometryError
        Shapes differ, or gain is not above 0.
    """
    shape = (data.shape[0], data.shape[1])
    if mask.shape != shape or background.level.shape != shape or psf.shape != shape:
        raise PhotometryError(f"image {shape}, mask {mask.shape}, sky and PSF {psf.shape} must be equal")
    if not gain > 0:
        raise PhotometryError(f"noise needs a gain above 0, got {gain}")
    sky_off, unusable = without_sky(data, background, mask, UNFIT_BITS)
    scene = Scene(sky_off, unusable, background, psf, gain, readnoise)
    x, y = (np.asarray(detections[name], float) for name in ("x", "y"))
    fit = Fit.start(x, y, np.maximum(detections["flux"], 1.0))
    if is_crowded(len(fit), psf.fwhm, data.size):
        scene, fit = fit_sequences(scene, fit, mask)
    else:
        fit_scene(scene, fit)
    table = _table(detections, fit, mask)
    _apertures(table, scene.image, unusable, scene.background, gain)
    return table, aperture_corrections(table)


def _table(detections: Table, fit: Fit, mask: U16) -> Table:
    table = np.zeros(len(fit), SOURCE_DTYPE)
    table["sourceid"] = np.arange(len(fit))
    for name in ("x", "y", "flux", "sigflux", "chi", "sharp"):
        table[name] = getattr(fit, name)
    table["ra"] = table["dec"] = np.nan
    table["snr"] = fit.flux / fit.sigflux
    table["flags"] = box_flags(mask, fit.x, fit.y)
    table["star"] = star_likeness(fit.sharp, fit.sigsharp)
    for name in ("a", "b", "theta"):
        table[name] = np.nan
        table[name][: len(detections)] = detections[name]
    # FWHM of a Gaussian with the detection's moments, as SExtractor's 2 sqrt(ln 2 (a^2 + b^2)).
    a, b = table["a"].astype(float), table["b"].astype(float)
    table["fwhm"] = 2 * np.sqrt(np.log(2) * (a**2 + b**2))
    return table


def star_likeness(sharp: F64, sigsharp: F64) -> F64:
    """How likely a width is a star's rather than a galaxy's, both being as frequent: 1 star, 0 galaxy.

    Stars have sharp 0 within its error and the PSF's; galaxies that are seen as such lie anywhere up to ``WIDEST``.
    """
    sigma = np.hypot(sigsharp, STAR_SHARP)
    star = np.exp(-0.5 * (sharp / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    galaxy = (ndtr(sharp / sigma) - ndtr((sharp - WIDEST) / sigma)) / WIDEST
    # A spike is no galaxy; what is wider than any is one.
    return np.where(sharp > WIDEST, 0.0, star / np.maximum(star + galaxy, 1e-300))


def _apertures(table: Table, sky_off: F32, unusable: BOOL, background: Background, gain: float) -> None:
    """Fill ``ap_flux`` and ``ap_err``; masked pixels take the mean of the others, NaN where there are none."""
    if not len(table):
        return
    ix, iy = nearest_pixels(table["x"], table["y"])
    ny, nx = sky_off.shape
    sky = background.rms[np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)].astype(float)
    diameters = np.array(APERTURE_DIAMETERS, float)
    flux = aperture_fluxes(sky_off, unusable, table["x"], table["y"], tuple(diameters / 2))
    table["ap_flux"] = flux
    table["ap_err"] = np.sqrt(np.pi / 4 * diameters**2 * sky[:, None] ** 2 + np.maximum(flux, 0) / gain)


def aperture_corrections(sources: Table) -> ApertureCorrections:
    """PSF_mag - AP_mag of isolated clean stars: clipped median and its uncertainty, for each aperture."""
    n = len(APERTURE_DIAMETERS)
    good = (sources["flags"] & BAD_BITS) == 0
    good &= (sources["flux"] > 0) & (sources["snr"] > 10) & (np.abs(sources["sharp"]) < 0.3)
    good &= np.all(sources["ap_flux"] > 0, axis=1)
    if good.any():
        good &= ~has_neighbour(sources["x"], sources["y"], NEIGHBOUR_REACH)
    stars = sources[good]
    bright = stars[stars["snr"] > APERTURE_SNR]
    stars = bright if len(bright) >= MIN_APERTURE_STARS else stars
    if len(stars) < MIN_APERTURE_STARS:
        return ApertureCorrections((np.nan,) * n, (np.nan,) * n, len(stars))
    differences = -2.5 * np.log10(stars["flux"][:, None] / stars["ap_flux"])
    values, errors = [], []
    for column in differences.T:
        kept = column
        for _ in range(3):
            middle = np.median(kept)
            scatter = 1.4826 * np.median(np.abs(kept - middle))
            kept = kept[np.abs(kept - middle) <= 3 * max(scatter, 1e-6)]
        values.append(float(np.median(kept)))
        errors.append(float(1.2533 * np.std(kept) / np.sqrt(len(kept))))
    return ApertureCorrections(tuple(values), tuple(errors), len(stars))


def mark_sources(mask: U16, sources: Table) -> U16:
    """The mask with SOURCE on every pixel of a detection and PSF_SOURCE at measured places (neither is a defect).

    A detection's pixels are those of its ellipse of 3 sigma, as its moments say.
    """
    inside = np.zeros(mask.shape, bool)
    shaped = sources[(sources["a"] > 0) & (sources["b"] > 0)]
    if len(shaped):
        axes = [np.maximum(shaped[name].astype(float), 0.5) for name in ("a", "b")]
        theta = np.clip(shaped["theta"].astype(float), -np.pi / 2, np.pi / 2)
        sep.mask_ellipse(inside, shaped["x"], shaped["y"], *axes, theta, r=3.0)
    out = mask | (inside.view(np.uint8) * np.uint16(Mask.SOURCE))
    ix, iy = nearest_pixels(sources["x"], sources["y"])
    good = np.isfinite(sources["flux"]) & (ix >= 0) & (iy >= 0) & (ix < mask.shape[1]) & (iy < mask.shape[0])
    out[iy[good], ix[good]] |= np.uint16(Mask.PSF_SOURCE)
    return out
