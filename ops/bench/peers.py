"""What other programs make of the same calibrated frames: source-extractor with PSFEx and SCAMP, sep, photutils.

Each peer is a function of a science image, its frame and the Gaia stars there; it returns a ``Catalogue``. They get
the project's calibrated pixels and its masks (as a weight map), so that differences are those of the measurement.
``available`` says which are installed (Debian: source-extractor, psfex, scamp; PyPI: sep, photutils).
"""

from __future__ import annotations

import math
import resource
import shutil
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from ops.bench.measured import HARMFUL, Catalogue, Frame, Peer, clean_places, from_middle, sky_errors
from stream.astrometry import propagate
from stream.core.camera import FULL, nominal_wcs
from stream.core.records import ScienceImage, Table
from stream.pipeline import ScienceSettings

F64 = NDArray[np.float64]
# Peers filter with a Gaussian of the frame's own seeing and detect at our matched-filter significance: with their usual
# settings (1.5 sigma on five pixels) they find a tenth of what has S/N 5.
SIGNIFICANCE = ScienceSettings().detection_sigma
KERNEL_SIDE = 9
MOST = 8000  # sources that photutils fits, around the middle: a crowd of 40,000 takes it an hour
APERTURE = 7  # px radius, sep's flux of bright stars
FIRST = ["X_IMAGE", "Y_IMAGE", "FLUX_RADIUS", "VIGNET(35,35)", "FLUX_APER(1)", "FLUXERR_APER(1)", "ELONGATION", "FLAGS",
         "SNR_WIN"]  # fmt: skip
SECOND = ["X_IMAGE", "Y_IMAGE", "XWIN_IMAGE", "YWIN_IMAGE", "ERRAWIN_IMAGE", "ERRBWIN_IMAGE", "ERRTHETAWIN_IMAGE",
          "XPSF_IMAGE", "YPSF_IMAGE", "FLUX_PSF", "FLUXERR_PSF", "FLUX_AUTO", "FLUXERR_AUTO", "MAG_AUTO",
          "MAGERR_AUTO", "FLUX_RADIUS", "ELONGATION", "FLAGS", "SNR_WIN"]  # fmt: skip


def available() -> dict[str, Peer | None]:
    """Peers by name; None: not installed."""
    extractor = shutil.which("source-extractor") and shutil.which("psfex")
    return {
        "source-extractor": source_extractor if extractor else None,
        "sep": with_sep if find_spec("sep") else None,
        "photutils": with_photutils if find_spec("photutils") else None,
    }


def kernel(fwhm: float) -> F64:
    """A Gaussian of a FWHM (px), sum 1."""
    r = np.arange(KERNEL_SIDE) - KERNEL_SIDE // 2
    line = np.exp(-4 * math.log(2) * (r / fwhm) ** 2)
    both = np.outer(line, line)
    return both / both.sum()


def threshold(fwhm: float) -> float:
    """``SIGNIFICANCE`` in units of the unfiltered noise per pixel."""
    return SIGNIFICANCE * float(np.sqrt((kernel(fwhm) ** 2).sum()))


def _run(command: list[str], folder: Path) -> float:
    """Run a program in a folder; its CPU seconds. ``RuntimeError`` with what it said where it failed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-400:]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _options(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in (f"-{key}", str(value))]


def _tan(science: ScienceImage) -> fits.Header:
    """A header with the nominal place on the sky, which SCAMP starts from."""
    e = science.quadrant.exposure
    header = nominal_wcs(FULL, e.ra, e.dec, science.quadrant.rcid).to_header()
    cards = {
        "EXPTIME": e.exptime, "GAIN": science.gain, "FILTER": e.filtercode, "MJD-OBS": e.jd_mid - 2_400_000.5,
        "EQUINOX": 2000.0, "AIRMASS": 1.0,
    }  # fmt: skip
    for key, value in cards.items():
        header[key] = value
    return header


def source_extractor(science: ScienceImage, frame: Frame, path: Path, gaia: Table) -> Catalogue:
    """source-extractor's detections and PSF fits with PSFEx' model; sky places by SCAMP where it is installed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        header = _tan(science)
        weight = ((science.mask & np.uint16(HARMFUL)) == 0) / np.maximum(science.background.rms, 1e-3) ** 2
        fits.writeto(folder / "image.fits", science.data, header)
        fits.writeto(folder / "weight.fits", weight.astype(np.float32), header)
        lines = [" ".join(f"{v:.6f}" for v in row) for row in kernel(frame.seeing)]
        (folder / "kernel.conv").write_text("CONV NORM\n" + "\n".join(lines) + "\n")
        (folder / "first.param").write_text("\n".join(FIRST) + "\n")
        (folder / "second.param").write_text("\n".join(SECOND) + "\n")
        common = {
            "CATALOG_TYPE": "FITS_LDAC", "FILTER_NAME": "kernel.conv", "WEIGHT_TYPE": "MAP_WEIGHT",
            "WEIGHT_IMAGE": "weight.fits", "GAIN_KEY": "GAIN", "PIXEL_SCALE": FULL.pixel_scale, "PHOT_APERTURES": 14,
            "SATUR_LEVEL": science.saturate, "BACK_SIZE": 128, "VERBOSE_TYPE": "QUIET", "NTHREADS": 1,
            "SEEING_FWHM": frame.seeing * FULL.pixel_scale, "DETECT_MINAREA": 1, "MEMORY_OBJSTACK": 60000,
            "MEMORY_PIXSTACK": 3000000,
        }  # fmt: skip
        first = {"PARAMETERS_NAME": "first.param", "CATALOG_NAME": "first.cat", "DETECT_THRESH": 20}
        seconds = _run(["source-extractor", "image.fits", *_options(common | first)], folder)
        psfex = {
            "SAMPLE_MINSN": 50, "SAMPLE_MAXELLIP": 0.3, "PSFVAR_DEGREES": 2, "PSF_SIZE": "35,35", "CHECKPLOT_TYPE":
            "NONE", "CHECKIMAGE_TYPE": "NONE", "VERBOSE_TYPE": "QUIET", "NTHREADS": 1, "PHOTFLUX_KEY": "FLUX_APER(1)",
            "PHOTFLUXERR_KEY": "FLUXERR_APER(1)", "WRITE_XML": "N",
        }  # fmt: skip
        seconds += _run(["psfex", "first.cat", *_options(psfex)], folder)
        level = threshold(frame.seeing)
        second = {"PARAMETERS_NAME": "second.param", "CATALOG_NAME": "second.cat", "DETECT_THRESH": level,
                  "ANALYSIS_THRESH": level, "PSF_NAME": "first.psf"}  # fmt: skip
        seconds += _run(["source-extractor", "image.fits", *_options(common | second)], folder)
        with fits.open(folder / "second.cat") as hdus:
            rows = np.asarray(hdus[2].data)
        errors = _scamp(science, frame, gaia, folder) if shutil.which("scamp") else None
    # Where its PSF fit fails (in sharp seeing that of most faint sources) its other measures stand in.
    fitted = (rows["FLUX_PSF"] > 0) & (rows["FLUX_PSF"] < 1e29) & (rows["XPSF_IMAGE"] > 0)
    x, y = (np.where(fitted, rows[f"{a}PSF_IMAGE"], rows[f"{a}WIN_IMAGE"]).astype(float) - 1 for a in "XY")
    flux = np.where(fitted, rows["FLUX_PSF"], rows["FLUX_AUTO"]).astype(float)
    sigma = np.where(fitted, rows["FLUXERR_PSF"], rows["FLUXERR_AUTO"]).astype(float)
    good = clean_places(science, x, y) & (sigma > 0) & (sigma < 1e29)
    return Catalogue("source-extractor", x, y, flux, sigma, good, seconds, errors)


def _scamp(science: ScienceImage, frame: Frame, gaia: Table, folder: Path) -> tuple[F64, F64] | None:
    """Sky errors of SCAMP's solution at the true places; None where it found none."""
    ra, dec = propagate(gaia, science.quadrant.exposure.jd_mid)
    bright = gaia["phot_g_mean_mag"] < 20.5
    error = np.full(int(bright.sum()), 5e-6)
    year = 2000.0 + (science.quadrant.exposure.jd_mid - 2_451_545.0) / 365.25
    columns = [
        fits.Column("X_WORLD", "1D", "deg", array=ra[bright]), fits.Column("Y_WORLD", "1D", "deg", array=dec[bright]),
        fits.Column("ERRA_WORLD", "1E", "deg", array=error), fits.Column("ERRB_WORLD", "1E", "deg", array=error),
        fits.Column("MAG", "1E", "mag", array=gaia["phot_g_mean_mag"][bright]),
        fits.Column("MAGERR", "1E", "mag", array=error * 0 + 0.01),
        fits.Column("OBSDATE", "1D", "yr", array=error * 0 + year),
    ]  # fmt: skip
    card = fits.Header([("NAXIS", 0), ("EQUINOX", 2000.0)]).tostring(sep="", padding=False)
    head = fits.BinTableHDU.from_columns(
        [fits.Column("Field Header Card", f"{len(card)}A", array=np.array([card]))], name="LDAC_IMHEAD"
    )
    table = fits.BinTableHDU.from_columns(columns, name="LDAC_OBJECTS")
    fits.HDUList([fits.PrimaryHDU(), head, table]).writeto(folder / "gaia.cat")
    options = {
        "ASTREF_CATALOG": "FILE", "ASTREFCAT_NAME": "gaia.cat", "ASTREFCENT_KEYS": "X_WORLD,Y_WORLD",
        "ASTREFERR_KEYS": "ERRA_WORLD,ERRB_WORLD", "ASTREFMAG_KEY": "MAG", "ASTREFMAGERR_KEY": "MAGERR",
        "ASTREFOBSDATE_KEY": "OBSDATE", "DISTORT_DEGREES": 4, "POSITION_MAXERR": 4.0, "POSANGLE_MAXERR": 1.0,
        "PIXSCALE_MAXERR": 1.02, "CROSSID_RADIUS": 1.5, "CHECKPLOT_TYPE": "NONE", "VERBOSE_TYPE": "QUIET",
        "WRITE_XML": "N", "NTHREADS": 1, "SOLVE_PHOTOM": "N", "CENTROID_KEYS": "XWIN_IMAGE,YWIN_IMAGE",
        "CENTROIDERR_KEYS": "ERRAWIN_IMAGE,ERRBWIN_IMAGE,ERRTHETAWIN_IMAGE", "SN_THRESHOLDS": "10.0,100.0",
        "HEADER_TYPE": "NORMAL", "STABILITY_TYPE": "EXPOSURE", "FWHM_THRESHOLDS": "0.0,100.0",
    }  # fmt: skip
    try:
        _run(["scamp", "second.cat", *_options(options)], folder)
        text = (folder / "second.head").read_text("latin-1")
    except (RuntimeError, OSError):
        return None
    header = fits.Header.fromstring(text.encode("ascii", "replace").decode().replace("?", " "), sep="\n")
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, FULL.nx, FULL.ny
    wcs = WCS(header)
    x, y = (frame.truth[k][: frame.n_points] for k in ("x", "y"))
    found = wcs.all_pix2world(x, y, 0)
    return sky_errors(frame, *found)


def with_sep(science: ScienceImage, frame: Frame, path: Path, gaia: Table) -> Catalogue:
    """sep: matched-filter detections, windowed places, flux in an aperture of 7 px radius."""
    import sep

    sep.set_extract_pixstack(3_000_000)
    start = time.process_time()
    bad = (science.mask & np.uint16(HARMFUL)) != 0
    data = np.ascontiguousarray(science.data)
    data = np.where(np.isfinite(data), data, 0)
    background = sep.Background(data, mask=bad, bw=128, bh=128)
    flat = data - background.back()
    rms = background.globalrms
    level = threshold(frame.seeing)  # with a scalar error sep convolves, and the noise becomes smaller
    found = sep.extract(flat, level, err=rms, mask=bad, minarea=1, filter_kernel=kernel(frame.seeing))
    x, y, _ = sep.winpos(flat, found["x"], found["y"], np.full(len(found), frame.seeing / 2.3548), mask=bad)
    flux, sigma, _ = sep.sum_circle(flat, x, y, float(APERTURE), err=rms, mask=bad, gain=science.gain)
    seconds = time.process_time() - start
    good = clean_places(science, x, y) & (sigma > 0)
    return Catalogue("sep", x, y, flux, sigma, good, seconds, note="aperture of 7 px radius")


def with_photutils(science: ScienceImage, frame: Frame, path: Path, gaia: Table) -> Catalogue:
    """photutils: peaks of the filtered image, an effective PSF from 100 stars, grouped PSF fits."""
    from astropy.nddata import NDData
    from astropy.table import Table as AstropyTable
    from photutils.background import Background2D, MedianBackground
    from photutils.detection import find_peaks
    from photutils.psf import EPSFBuilder, PSFPhotometry, SourceGrouper, extract_stars
    from scipy.ndimage import convolve

    start = time.process_time()
    bad = ((science.mask & np.uint16(HARMFUL)) != 0) | ~np.isfinite(science.data)
    sky = Background2D(science.data, 128, mask=bad, filter_size=3, bkg_estimator=MedianBackground())
    flat = np.where(bad, 0, science.data - sky.background).astype(float)
    sigma = float(sky.background_rms_median)
    # Not its DAOStarFinder: a kernel that sums to zero over few pixels keeps 0.4 to 0.8 of a faint source's S/N.
    smooth = convolve(flat, kernel(frame.seeing), mode="constant")
    found = find_peaks(smooth, threshold(frame.seeing) * sigma, box_size=3, mask=bad)
    x, y = (np.asarray(found[name], float) for name in ("x_peak", "y_peak"))
    clean = clean_places(science, x, y)
    peak = flat[y.astype(int), x.astype(int)]
    chosen = np.flatnonzero(clean & (peak > 50 * sigma) & (peak < 0.5 * science.saturate))[:100]
    stars = extract_stars(NDData(flat), AstropyTable({"x": x[chosen], "y": y[chosen]}), size=25)
    model, _ = EPSFBuilder(oversampling=2, maxiters=5, progress_bar=False)(stars)
    error = np.sqrt(sigma**2 + np.maximum(flat, 0) / science.gain)
    group = SourceGrouper(1.5 * frame.seeing)
    size = 2 * int(np.ceil(1.25 * frame.seeing)) + 1
    fit = PSFPhotometry(model, (size, size), grouper=group, aperture_radius=frame.seeing)
    distance = from_middle(x, y)
    half = float(np.sort(distance)[MOST - 1]) if len(x) > MOST else float("inf")
    near = distance <= half
    rows = fit(flat, error=error, mask=bad, init_params=AstropyTable({"x": x[near], "y": y[near]}))
    seconds = time.process_time() - start
    x, y, flux, err = (np.asarray(rows[name], float) for name in ("x_fit", "y_fit", "flux_fit", "flux_err"))
    good = clean_places(science, np.nan_to_num(x), np.nan_to_num(y)) & (err > 0) & np.isfinite(flux)
    return Catalogue("photutils", x, y, flux, err, good, seconds, half=half)
