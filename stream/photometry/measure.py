"""PSF and aperture photometry of every detected source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.psf import STAMP, PsfModel
from stream.core.records import APERTURE_DIAMETERS, F32, SOURCE_DTYPE, U16, Background, Table
from stream.photometry.detect import NOT_DETECTED_BITS
from stream.photometry.fit import Fit, refine
from stream.photometry.stamps import add_stamps, box_flags, nearest_pixels, window_index

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]
INT = NDArray[np.intp]

UNFIT_BITS = NOT_DETECTED_BITS | int(Mask.SATURATED)
# Sources nearer than this (px) share light that matters: the windows' reach plus the PSF's bright part.
NEIGHBOUR_REACH = 15.0
# Rounds in which neighbours' models are subtracted and everybody is fitted again; a pair one FWHM apart settles to
# a per cent in three.
ROUNDS = 3
BLOCK = 256  # sources whose windows and PSF grids stay in the processor's cache
# Beyond 6 px a source fainter than this (sigma of the sky in its peak pixel) has nothing above the noise.
BRIGHT_PEAK = 30.0
SMALL_MARGIN = 4  # px more than the fitted window: a place may move by 1.5
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
        One row a detection, in its order; ``ra``, ``dec`` NaN. ``sourceid`` counts from 0. Fluxes are NaN where
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
    sky_off = np.subtract(data, background.level, dtype=np.float32)
    unusable = (mask & np.uint16(UNFIT_BITS)) != 0
    unusable |= ~np.isfinite(sky_off)
    np.copyto(sky_off, np.float32(0), where=unusable & ~np.isfinite(sky_off))
    fit = fit_sources(sky_off, unusable, background, psf, detections, (gain, readnoise))
    table = _table(detections, fit, mask)
    _apertures(table, sky_off, unusable, background, gain)
    return table, aperture_corrections(table)


def window_size(fwhm: float) -> int:
    """Side of the windows that are fitted, px: twice the FWHM to each side, 9 to 17."""
    return int(np.clip(2 * round(2 * fwhm) + 1, 9, 17))


def fit_sources(
    sky_off: F32,
    unusable: BOOL,
    background: Background,
    psf: PsfModel,
    detections: Table,
    noise_figures: tuple[float, float],
) -> Fit:
    """Flux and place of sources, crowded ones with their neighbours' models subtracted.

    ``noise_figures`` are gain (e-/DN) and read noise (e-).
    """
    gain, readnoise = noise_figures
    x, y = (np.asarray(detections[name], float) for name in ("x", "y"))
    fit = Fit.start(x, y, np.maximum(detections["flux"], 1.0))
    size = window_size(psf.fwhm)
    crowded = _has_neighbour(x, y)

    def run(rows: INT, image: F32, steps: int, *, own_off: bool, judge: bool) -> None:
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            home = x[part], y[part]
            windows = _windows(image, unusable, _sky_variance(background, *home, gain, readnoise), *home, size)
            refine(fit, part, windows, psf, gain, steps=steps, home=home, own_off=own_off, judge=judge)

    run(np.flatnonzero(~crowded), sky_off, 3, own_off=False, judge=True)
    rows = np.flatnonzero(crowded)
    residual = sky_off.copy() if len(rows) else sky_off
    for turn in range(ROUNDS if len(rows) else 0):
        last = turn == ROUNDS - 1
        state = fit.x[rows].copy(), fit.y[rows].copy(), fit.flux[rows].copy()
        _add_models(residual, rows, state, psf, background.sigma, -1.0)
        run(rows, residual, 2 if last else 1, own_off=True, judge=last)
        if not last:
            _add_models(residual, rows, state, psf, background.sigma, 1.0)
    return fit


def _has_neighbour(x: F64, y: F64) -> BOOL:
    crowded = np.zeros(len(x), bool)
    if len(x) < 2:
        return crowded
    places = np.stack([x, y], axis=1)
    pairs = cKDTree(places).query_pairs(NEIGHBOUR_REACH, output_type="ndarray")
    crowded[pairs.ravel()] = True
    return crowded


def _sky_variance(background: Background, x: F64, y: F64, gain: float, readnoise: float) -> F32:
    """Noise variance (n,) of an empty pixel at places, DN^2: the expected or the measured one, the greater."""
    ix, iy = nearest_pixels(x, y)
    ny, nx = background.level.shape
    place = np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)
    expected = np.maximum(background.level[place], 0) / gain + (readnoise / gain) ** 2
    variance: F32 = np.maximum(np.maximum(expected, background.rms[place].astype(float) ** 2), 1e-6).astype(np.float32)
    return variance


def _windows(image: F32, unusable: BOOL, variance: F32, x: F64, y: F64, size: int) -> tuple[F32, F32, BOOL]:
    """Values, sky variance (smooth: one value a window) and usable pixels around places."""
    index, inside = window_index(*nearest_pixels(x, y), size, (image.shape[0], image.shape[1]))
    values = image.reshape(-1)[index]
    usable = inside & ~unusable.reshape(-1)[index]
    return values, np.broadcast_to(variance[:, None, None], values.shape), usable


def _add_models(
    image: F32,
    rows: INT,
    state: tuple[F64, F64, F64],
    psf: PsfModel,
    sigma: float,
    sign: float,
) -> None:
    """Add the models of sources (place, flux) times ``sign`` to an image; faint ones in a small window."""
    peak = 0.8 / max(psf.fwhm, 1) ** 2  # of a Moffat's light in its brightest pixel, roughly
    bright = state[2] * peak > BRIGHT_PEAK * sigma
    for chosen, size in (
        (np.flatnonzero(bright), STAMP),
        (np.flatnonzero(~bright), window_size(psf.fwhm) + SMALL_MARGIN),
    ):
        for start in range(0, len(chosen), BLOCK):
            x, y, flux = (value[chosen[start : start + BLOCK]] for value in state)
            ix, iy = nearest_pixels(x, y)
            add_stamps(image, ix, iy, (sign * flux).astype(np.float32)[:, None, None] * psf.stamps(x, y, size))


def _table(detections: Table, fit: Fit, mask: U16) -> Table:
    table = np.zeros(len(detections), SOURCE_DTYPE)
    table["sourceid"] = np.arange(len(detections))
    for name in ("x", "y", "flux", "sigflux", "chi", "sharp"):
        table[name] = getattr(fit, name)
    table["ra"] = table["dec"] = np.nan
    table["snr"] = fit.flux / fit.sigflux
    table["flags"] = box_flags(mask, fit.x, fit.y)
    for name in ("a", "b", "theta"):
        table[name] = detections[name]
    # FWHM of a Gaussian with the detection's moments, as SExtractor's 2 sqrt(ln 2 (a^2 + b^2)).
    table["fwhm"] = 2 * np.sqrt(np.log(2) * (detections["a"].astype(float) ** 2 + detections["b"].astype(float) ** 2))
    return table


def _apertures(table: Table, sky_off: F32, unusable: BOOL, background: Background, gain: float) -> None:
    """Fill ``ap_flux`` and ``ap_err``; masked pixels take the mean of the others, NaN where there are none."""
    if not len(table):
        return
    ix, iy = nearest_pixels(table["x"], table["y"])
    ny, nx = sky_off.shape
    sky = background.rms[np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)].astype(float)
    for k, diameter in enumerate(APERTURE_DIAMETERS):
        flux, _, flag = sep.sum_circle(sky_off, table["x"], table["y"], diameter / 2, mask=unusable, subpix=0)
        flux = np.where((flag & sep.APER_ALLMASKED) != 0, np.nan, flux)
        table["ap_flux"][:, k] = flux
        table["ap_err"][:, k] = np.sqrt(np.pi / 4 * diameter**2 * sky**2 + np.maximum(flux, 0) / gain)


def aperture_corrections(sources: Table) -> ApertureCorrections:
    """PSF_mag - AP_mag of isolated clean stars: clipped median and its uncertainty, for each aperture."""
    n = len(APERTURE_DIAMETERS)
    good = (sources["flags"] & BAD_BITS) == 0
    good &= (sources["flux"] > 0) & (sources["snr"] > 10) & (np.abs(sources["sharp"]) < 0.3)
    good &= np.all(sources["ap_flux"] > 0, axis=1)
    if good.any():
        good &= ~_has_neighbour(sources["x"], sources["y"])
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
