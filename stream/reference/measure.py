"""What is measured on a finished mean: its residual sky, PSF, catalogue and quality figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from stream.core.errors import PhotometryError
from stream.core.flags import Mask
from stream.core.psf import PsfModel
from stream.core.records import F32, SOURCE_DTYPE, Background, Row, Table
from stream.photometry import build_psf, detect, estimate_background, measure_sources
from stream.photometry.quality import noise_area

DETECTION_SIGMA = 4.0  # as for science images


@dataclass(frozen=True, slots=True)
class Coadd:
    """A mean image and the figures that make its noise look like an exposure's.

    ``data`` without sky; ``gain`` e-/DN and ``readnoise`` e- of the whole mean; ``pedestal`` the sky (DN) whose photons
    explain its noise; ``saturate`` DN without sky; ``noise_left`` the share of variance per pixel that the
    interpolation left.
    """

    data: F32
    saturated: NDArray[np.bool_]
    gain: float
    readnoise: float
    pedestal: float
    saturate: float
    noise_left: float
    wcs: WCS


@dataclass(frozen=True, slots=True)
class Measured:
    """``data`` without residual sky, its PSF and catalogue; ``psf_measured``: False if an input's PSF was lent."""

    data: F32
    background: Background
    psf: PsfModel
    sources: Table
    psf_measured: bool


def measure_reference(coadd: Coadd, input_psfs: Sequence[PsfModel]) -> Measured:
    """PSF and sources of a mean image.

    Too few stars for a PSF of its own (a small cut-out): that of the input with the middle seeing stands in.

    Raises
    ------
    PhotometryError
        No sky level can be measured.
    """
    image = coadd.data + np.float32(coadd.pedestal)
    mask = np.zeros(image.shape, np.uint16)
    mask[~np.isfinite(image)] |= np.uint16(Mask.NAN)
    mask[coadd.saturated] |= np.uint16(Mask.SATURATED)
    background = estimate_background(image, mask)
    data = coadd.data - (background.level - np.float32(coadd.pedestal))
    noise = coadd.gain, coadd.readnoise
    detections = detect(image, background, mask, DETECTION_SIGMA)
    try:
        psf, own = build_psf(image, background, detections, mask, *noise, coadd.saturate + coadd.pedestal), True
    except PhotometryError:
        psf, own = _lent_psf(input_psfs, image.shape), False
    if len(detections):
        sources, _ = measure_sources(image, background, psf, detections, mask, *noise)
        sources = sources.copy()
        sources["ra"], sources["dec"] = coadd.wcs.all_pix2world(sources["x"], sources["y"], 0)
    else:
        sources = np.zeros(0, SOURCE_DTYPE)
    return Measured(data, background, psf, sources, own)


def _lent_psf(psfs: Sequence[PsfModel], shape: tuple[int, ...]) -> PsfModel:
    """The PSF of the input with the middle seeing, on the reference's frame."""
    psf = sorted(psfs, key=lambda p: p.fwhm)[len(psfs) // 2]
    return PsfModel(psf.basis, psf.oversample, psf.degree, (shape[0], shape[1]), psf.fwhm, 0)


def quality(
    coadd: Coadd,
    measured: Measured,
    unc: F32,
    coverage: NDArray[np.int16],
    input_fwhm: Sequence[float],
    magzp: float,
) -> Row:
    """Quality figures of a reference: the list of the survey's successor (``ztf-facts.md`` §4) and what else is needed.

    ``noise_factor`` times ``unc`` is the r.m.s. from pixel to pixel: what the interpolation left of it. The subtraction
    reads off it how correlated the noise is.
    """
    data = measured.data
    values = data[::3, ::3][np.isfinite(data[::3, ::3])].astype(float)
    low, middle, high = np.percentile(values, [16, 50, 84])
    spread = 0.5 * (high - low)
    clipped = values[np.abs(values - middle) <= 3 * spread] if spread > 0 else values
    finite = np.isfinite(data)
    return {
        "nframes": len(input_fwhm),
        "npixsat": int(coadd.saturated.sum()),
        "npixnan": int((~finite).sum()),
        "clmean": float(clipped.mean()),
        "clstddev": float(clipped.std()),
        "gmedian": float(middle),
        "datascale": float(spread),
        "gmin": float(data[finite].min()),
        "gmax": float(data[finite].max()),
        "cov5percent": float(np.minimum(coverage, 5).sum() / (5.0 * coverage.size) * 100.0),
        "medncov": float(np.median(coverage)),
        "medpixunc": float(np.nanmedian(unc)),
        "fwhmmedpix": float(np.median(input_fwhm)),
        "fwhmminpix": float(min(input_fwhm)),
        "fwhmmaxpix": float(max(input_fwhm)),
        "fwhm": measured.psf.fwhm,
        "nsources": len(measured.sources),
        "psf_measured": measured.psf_measured,
        "gain": coadd.gain,
        "readnoise": coadd.readnoise,
        "noise_factor": float(np.sqrt(coadd.noise_left)),
        "maglim": _depth(measured.psf, unc, magzp),
    }


def _depth(psf: PsfModel, unc: F32, magzp: float) -> float:
    """5-sigma limit (mag) of an isolated point source at the centre, sky-limited."""
    ny, nx = psf.shape
    sigma = float(np.nanmedian(unc))
    if not sigma > 0:
        return float("nan")
    return float(magzp - 2.5 * np.log10(5 * sigma * np.sqrt(noise_area(psf, (nx - 1) / 2, (ny - 1) / 2))))
