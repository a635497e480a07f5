"""Two real exposures of one sky, 1.4 minutes apart, on different CCDs and turned against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from stream.core.errors import PhotometryError
from stream.core.flags import Mask
from stream.core.psf import moffat_psf
from stream.core.records import Astrometry, Exposure, Quadrant, ScienceImage, ZeroPoint
from stream.photometry import build_psf, detect, estimate_background, measure_sources
from stream.reference import build_reference
from stream.subtract import subtract

NAMES = ("20250116146979_000250_zg_c08_o_q3", "20250116147917_000249_zg_c05_o_q4")


def load(path: Path) -> ScienceImage:
    """A published science image with our photometry and the survey's WCS and zero point."""
    with fits.open(path) as hdus:
        header, data = hdus[0].header, np.ascontiguousarray(hdus[0].data, np.float32)
    gain, readnoise, saturate = header["GAIN"], header["READNOI"], header["SATURATE"]
    mask = np.zeros(data.shape, np.uint16)
    mask[~np.isfinite(data)] |= int(Mask.NAN)
    mask[data >= saturate] |= int(Mask.SATURATED)
    background = estimate_background(data, mask)
    detections = detect(data, background, mask, 4.0)
    try:
        psf = build_psf(data, background, detections, mask, gain, readnoise, saturate)
    except PhotometryError:
        psf = moffat_psf(header["SEEING"], data.shape)
    sources, _ = measure_sources(data, background, psf, detections, mask, gain, readnoise)
    sources, wcs, jd = sources.copy(), WCS(header), header["OBSJD"]
    sources["ra"], sources["dec"] = wcs.all_pix2world(sources["x"], sources["y"], 0)
    exposure = Exposure(
        path.name[: len("ztf_20250116146979_000250_zg_c08_o")], "object", header["FIELDID"], 1, header["CCDID"], 1,
        jd, jd + 15 / 86400, 30.0, 0.0, 0.0,
    )  # fmt: skip
    zeropoint = ZeroPoint(header["MAGZP"], 1e-5, 0.03, -0.06, 1e-5, 0.0, "g-r", 500)
    return ScienceImage(
        Quadrant(exposure, header["QID"]), data, mask, gain, readnoise, saturate, background, psf,
        Astrometry(wcs, 0.05, 0.05, 500, 500, -50.0), zeropoint, sources, header["MAGLIM"],
    )  # fmt: skip


def mad(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


@pytest.mark.real
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_difference_is_as_noisy_as_the_two_images_say(real_data: Path, order: tuple[int, int]) -> None:
    science, template = (load(real_data / "images" / f"ztf_{NAMES[i]}_sciimg.fits") for i in order)
    reference = build_reference([template])
    d = subtract(science, reference)
    scale = 10 ** (0.4 * (science.zeropoint.magzp - template.zeropoint.magzp))
    saturated = ndimage.binary_dilation((d.mask & int(Mask.SATURATED)) > 0, iterations=25)
    usable = np.isfinite(d.data) & ~saturated
    assert usable.mean() > 0.4
    expected = np.hypot(science.background.sigma, scale * template.background.sigma)
    assert mad(d.data[usable]) == pytest.approx(expected, rel=0.15)
    assert mad((d.data / d.sigma)[usable]) == pytest.approx(1, abs=0.08)
    assert mad(d.scorr[usable]) == pytest.approx(1, abs=0.1)
    # The stars that both contain are gone: what is left at their places is noise.
    ordinary = science.sources[(science.sources["snr"] > 10) & (science.sources["flags"] & int(Mask.SATURATED) == 0)]
    x, y = np.rint(ordinary["x"]).astype(int), np.rint(ordinary["y"]).astype(int)
    peak = np.abs(d.scorr[y, x])[usable[y, x]]
    assert len(peak) > 5
    assert np.median(peak) < 3
