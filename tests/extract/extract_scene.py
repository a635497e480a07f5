"""Hand-made records for the extraction tests: a difference with known sources in known noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from synthetic import paint

from stream.core.camera import FULL, Camera, nominal_wcs
from stream.core.psf import gaussian_psf
from stream.core.records import (
    SOURCE_DTYPE,
    Astrometry,
    Background,
    Difference,
    Exposure,
    Quadrant,
    Reference,
    ScienceImage,
    ZeroPoint,
)

FWHM = 2.5
SIGMA = 10.0
ZP = 26.3
RA, DEC = 150.0, 20.0


def camera_of(shape: tuple[int, int]) -> Camera:
    """A camera whose quadrants have this shape."""
    return Camera("test", shape[1], shape[0], FULL.n_overscan, FULL.pixel_scale)


def science_of(shape: tuple[int, int], sky: float = 300.0) -> ScienceImage:
    """A science image without stars."""
    exposure = Exposure(
        "ztf_20181129252384_000651_zr_c03_o", "object", 651, 2, 3, 1, 2458451.752384, 2458451.75256, 30.0, RA, DEC
    )
    wcs = nominal_wcs(camera_of(shape), RA, DEC, 8)
    background = Background(np.full(shape, sky, np.float32), np.full(shape, SIGMA, np.float32), sky, SIGMA)
    zeropoint = ZeroPoint(ZP, 1e-3, 0.03, 0.1, 1e-3, -1e-6, "g - r", 400, ZP, ZP, 0.6, 0.6, 0.2)
    return ScienceImage(
        Quadrant(exposure, 1), np.full(shape, sky, np.float32), np.zeros(shape, np.uint16), 6.2, 10.0, 50_000.0,
        background, gaussian_psf(FWHM, shape), Astrometry(wcs, 0.03, 0.03, 500, 600, -80.0), zeropoint,
        np.zeros(0, SOURCE_DTYPE), 20.6,
    )  # fmt: skip


def reference_of(science: ScienceImage, image: NDArray[np.float64] | None = None, sources=None) -> Reference:
    """A reference on the science grid itself."""
    shape = science.data.shape
    q = science.quadrant
    data = np.zeros(shape, np.float32) if image is None else image.astype(np.float32)
    sources = np.zeros(0, SOURCE_DTYPE) if sources is None else sources
    return Reference(
        q.rfid, 651, 2, q.rcid, data, np.ones(shape, np.float32), np.full(shape, 20, np.int16),
        science.astrometry.wcs, gaussian_psf(FWHM, shape), ZP + 0.2, sources,
        2458200.5, 2458300.5, 20, 50_000.0, "abc123",
    )  # fmt: skip


def correlate(image: NDArray[np.float64], fwhm: float = FWHM) -> NDArray[np.float64]:
    """The image filtered with a unit-sum PSF."""
    psf = gaussian_psf(fwhm, image.shape).stamp(0, 0)
    return fftconvolve(image, psf[::-1, ::-1], mode="same")


def difference_of(signal: NDArray[np.float64], seed: int | None, mask=None, reference=None) -> Difference:
    """White noise of ``SIGMA`` DN on ``signal``, with the score and S_corr that go with it."""
    shape = signal.shape
    noise = np.zeros(shape) if seed is None else np.random.default_rng(seed).normal(0, SIGMA, shape)
    data = signal + noise
    psf = gaussian_psf(FWHM, shape)
    norm = float(np.sqrt(np.sum(psf.stamp(0, 0).astype(float) ** 2)))
    scorr = correlate(data) / (SIGMA * norm)
    return Difference(
        data.astype(np.float32), scorr.astype(np.float32), (correlate(data) / SIGMA**2).astype(np.float32),
        np.full(shape, SIGMA, np.float32), psf, FWHM,
        np.zeros(shape, np.float32) if reference is None else reference.astype(np.float32),
        np.zeros(shape, np.uint16) if mask is None else mask, 1.0, (0.1, 0.1), limit_magnitude(),
    )  # fmt: skip


def flux_error() -> float:
    """Theoretical error of a PSF flux in the test's noise, DN."""
    psf = gaussian_psf(FWHM, (64, 64)).stamp(0, 0).astype(float)
    return SIGMA / float(np.sqrt(np.sum(psf**2)))


def limit_magnitude() -> float:
    """Theoretical 5-sigma magnitude."""
    return ZP - 2.5 * np.log10(5 * flux_error())


def point_sources(shape: tuple[int, int], x, y, flux) -> NDArray[np.float64]:
    """Point sources of either sign on nothing."""
    return paint(shape, np.asarray(x, float), np.asarray(y, float), np.asarray(flux, float), gaussian_psf(FWHM, shape))


def grid_places(shape: tuple[int, int], step: int, seed: int, edge: int = 30) -> tuple[NDArray, NDArray]:
    """Places on a jittered grid, so that no two are closer than about ``step - 2`` px."""
    gy, gx = np.mgrid[edge : shape[0] - edge : step, edge : shape[1] - edge : step].astype(float)
    rng = np.random.default_rng(seed)
    return gx.ravel() + rng.uniform(-1, 1, gx.size), gy.ravel() + rng.uniform(-1, 1, gy.size)
