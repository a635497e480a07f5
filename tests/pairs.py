"""Painted science images and references of one sky, with everything known: for subtraction and reference tests."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray
from synthetic import add_noise, paint

from stream.core.flags import Mask
from stream.core.identity import night_of
from stream.core.pixelmap import world_to_pixel
from stream.core.psf import PsfModel, gaussian_psf
from stream.core.records import (
    SOURCE_DTYPE,
    Astrometry,
    Background,
    Exposure,
    Quadrant,
    Reference,
    ScienceImage,
    Table,
    ZeroPoint,
)

SCALE = 1.0125 / 3600


def sky_wcs(
    shape: tuple[int, int], dx: float = 0.0, dy: float = 0.0, turn: float = 0.0, ra: float = 150.0, dec: float = 30.0
) -> WCS:
    """TAN, x to the west and y to the south, its centre ``dx``, ``dy`` px away and turned by ``turn`` degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5 + dx, shape[0] / 2 + 0.5 + dy]
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    wcs.wcs.cd = -SCALE * np.array([[c, s], [-s, c]])
    wcs.wcs.set()
    return wcs


def varying_psf(fwhm: float, shape: tuple[int, int], growth: float = 0.1) -> PsfModel:
    """Gaussian PSF whose width grows by ``growth`` from the left edge to the right one (to first order)."""
    low, mid, high = (gaussian_psf(f, shape).basis[0] for f in (fwhm * 0.999, fwhm, fwhm * 1.001))
    low, mid, high = low / low.sum(), mid / mid.sum(), high / high.sum()
    slope = (high - low) / 0.002 * growth / 2
    return PsfModel(np.stack([mid, slope, 0 * mid]), 2, 1, shape, fwhm)


def source_table(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    flux: NDArray[np.float64],
    wcs: WCS,
    sky_sigma: float,
    gain: float,
    fwhm: float,
    seed: int,
) -> Table:
    """What photometry would measure: truth with the errors that theory predicts for a Gaussian PSF."""
    rng = np.random.default_rng(seed)
    table = np.zeros(len(x), SOURCE_DTYPE)
    sigflux = np.sqrt(4 * np.pi * (fwhm / 2.355) ** 2 * sky_sigma**2 + flux / gain)
    place = fwhm / 2.355 * sigflux / flux
    table["sourceid"] = np.arange(len(x))
    table["x"], table["y"] = x + rng.normal(0, 1, len(x)) * place, y + rng.normal(0, 1, len(x)) * place
    table["ra"], table["dec"] = wcs.all_pix2world(table["x"], table["y"], 0)
    table["flux"], table["sigflux"] = flux + rng.normal(0, 1, len(x)) * sigflux, sigflux
    table["snr"] = table["flux"] / sigflux
    table["fwhm"] = fwhm
    return table


def quadrant_at(jd: float, field: int = 600, ccdid: int = 5, qid: int = 2, fid: int = 2) -> Quadrant:
    """A quadrant of an exposure that starts at ``jd``."""
    name = f"ztf_{night_of(jd)}{int((jd + 0.5) % 1 * 1e6):06d}_{field:06d}_zr_c{ccdid:02d}_o"
    return Quadrant(Exposure(name, "object", field, fid, ccdid, 1, jd, jd + 15 / 86400, 30.0, 150.0, 30.0), qid)


def science_of(
    shape: tuple[int, int],
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    flux: NDArray[np.float64],
    wcs: WCS,
    psf: PsfModel,
    *,
    sky: float = 300.0,
    gain: float = 6.2,
    readnoise: float = 10.0,
    saturate: float = 48_000.0,
    magzp: float = 26.2,
    jd: float = 2458485.7,
    seed: int = 1,
) -> ScienceImage:
    """A science image of stars at sky places; fluxes in its own DN."""
    x, y = world_to_pixel(wcs, ra, dec)
    clean = paint(shape, x, y, flux, psf)
    data = add_noise(clean, sky, gain, readnoise, seed)
    mask = np.zeros(shape, np.uint16)
    mask[data >= saturate] = int(Mask.SATURATED)
    data = np.minimum(data, np.float32(saturate))
    sigma = float(np.sqrt(sky / gain + (readnoise / gain) ** 2))
    background = Background(np.full(shape, sky, np.float32), np.full(shape, sigma, np.float32), sky, sigma)
    inside = (x > 5) & (x < shape[1] - 6) & (y > 5) & (y < shape[0] - 6)
    peak = flux * psf.stamp((shape[1] - 1) / 2, (shape[0] - 1) / 2).max()
    inside &= (peak + sky < saturate) & (flux > 5 * sigma * 3.5)
    table = source_table(x[inside], y[inside], flux[inside], wcs, sigma, gain, psf.fwhm, seed + 1000)
    maglim = magzp - 2.5 * np.log10(5 * sigma * np.sqrt(4 * np.pi) * psf.fwhm / 2.355)
    return ScienceImage(
        quadrant=quadrant_at(jd),
        data=data,
        mask=mask,
        gain=gain,
        readnoise=readnoise,
        saturate=saturate,
        background=background,
        psf=psf,
        astrometry=Astrometry(wcs, 0.03, 0.03, len(table), len(table), -50.0),
        zeropoint=ZeroPoint(magzp, 1e-5, 0.03, 0.1, 1e-5, 0.0, "g-r", len(table)),
        sources=table,
        maglim=float(maglim),
    )


def reference_of(
    shape: tuple[int, int],
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    flux: NDArray[np.float64],
    wcs: WCS,
    psf: PsfModel,
    *,
    frames: int = 15,
    sky: float = 300.0,
    gain: float = 6.2,
    saturate: float = 47_000.0,
    magzp: float = 26.2,
    seed: int = 2,
) -> Reference:
    """A reference painted on its own grid with the white noise of ``frames`` exposures; fluxes in its own DN."""
    x, y = world_to_pixel(wcs, ra, dec)
    clean = paint(shape, x, y, flux, psf)
    data = add_noise(clean, sky, gain * frames, 10.0 * np.sqrt(frames), seed) - np.float32(sky)
    base = sky / (gain * frames) + 100.0 / (gain**2 * frames)
    unc = np.sqrt(base + np.maximum(clean, 0) / (gain * frames)).astype(np.float32)
    inside = (x > 5) & (x < shape[1] - 6) & (y > 5) & (y < shape[0] - 6)
    peak = flux * psf.stamp((shape[1] - 1) / 2, (shape[0] - 1) / 2).max()
    inside &= (peak < saturate) & (flux > 5 * np.sqrt(base) * 3.5)
    table = source_table(
        x[inside], y[inside], flux[inside], wcs, float(np.sqrt(base)), gain * frames, psf.fwhm, seed + 1000
    )
    return Reference(
        rfid=600120218,
        field=600,
        fid=2,
        rcid=17,
        data=np.minimum(data, np.float32(saturate)),
        unc=unc,
        coverage=np.full(shape, frames, np.int16),
        wcs=wcs,
        psf=psf,
        magzp=magzp,
        sources=table,
        jd_start=2458300.0,
        jd_end=2458400.0,
        n_frames=frames,
        saturate=saturate,
        version="painted",
        qa={"noise_factor": 1.0},
    )
