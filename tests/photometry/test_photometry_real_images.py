"""The whole room on real science-image cut-outs: our seeing, aperture corrections and noise against their headers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from stream.core.errors import PhotometryError
from stream.core.psf import PsfModel
from stream.core.records import F32, Background, Table
from stream.photometry import ApertureCorrections, build_psf, detect, estimate_background, measure_sources

pytestmark = pytest.mark.real


@dataclass
class Measured:
    """One cut-out, its header and what we made of it; ``fwhm`` None: too few stars for a PSF."""

    name: str
    header: fits.Header
    data: F32
    background: Background
    detections: Table
    fwhm: float | None = None
    psf: PsfModel | None = None
    sources: Table | None = None
    corrections: ApertureCorrections | None = None


@pytest.fixture(scope="module")
def images(real_data: Path) -> list[Measured]:
    measured = []
    for path in sorted((real_data / "images").glob("*_sciimg.fits")):
        with fits.open(path) as hdus:
            data, header = hdus[0].data.astype(np.float32), hdus[0].header.copy()
        mask = np.zeros(data.shape, np.uint16)
        background = estimate_background(data, mask)
        image = Measured(path.name, header, data, background, detect(data, background, mask))
        noise = header["GAIN"], header["READNOI"]
        try:
            psf = build_psf(data, background, image.detections, mask, *noise, header["SATURATE"])
        except PhotometryError:
            measured.append(image)
            continue
        image.fwhm, image.psf = psf.fwhm, psf
        image.sources, image.corrections = measure_sources(data, background, psf, image.detections, mask, *noise)
        measured.append(image)
    return measured


def with_psf(images: list[Measured]) -> list[Measured]:
    return [image for image in images if image.fwhm is not None]


def test_enough_stars_make_a_psf(images: list[Measured]) -> None:
    assert len(images) == 8
    # The cut-outs hold 16 to 63 detections; where there are more than 30 a PSF must come out.
    assert all(image.fwhm is not None for image in images if len(image.detections) > 30)
    assert len(with_psf(images)) >= 6


def test_seeing_agrees_with_the_header(images: list[Measured]) -> None:
    for image in with_psf(images):
        assert image.fwhm == pytest.approx(image.header["SEEING"], rel=0.10), image.name


def test_aperture_corrections_agree_with_the_header(images: list[Measured]) -> None:
    """Ours from a handful of stars in a corner, theirs from the whole quadrant: 0.1 mag in the smallest aperture."""
    for image in with_psf(images):
        assert image.corrections is not None
        theirs = [image.header[f"APCOR{k}"] for k in range(1, 7)]
        assert np.abs(np.subtract(image.corrections.values, theirs)).max() < 0.1, image.name


def test_residuals_are_noise(images: list[Measured]) -> None:
    chi, sharp = [], []
    for image in with_psf(images):
        assert image.sources is not None
        stars = image.sources[image.sources["snr"] > 10]
        chi.append(np.median(stars["chi"]))
        sharp.append(np.median(stars["sharp"]))
    assert np.median(chi) == pytest.approx(1, abs=0.1)
    assert np.abs(sharp).max() < 0.15


def test_same_star_same_flux_in_two_exposures(images: list[Measured], real_data: Path) -> None:
    """A pair 1.4 min apart, same filter, overlapping by 96 %: one grey factor, scatter as the errors say.

    One of the two is too small for a PSF of its own; the other's stands in, at a cost of a factor common to all stars.
    """
    pair = [image for image in images if "20250116" in image.name]
    psf = next(image.psf for image in pair if image.psf is not None)
    assert psf.degree == 0
    tables, places = [], []
    for image in pair:
        data, mask = image.data, np.zeros(image.data.shape, np.uint16)
        model = replace(psf, shape=data.shape)
        noise = image.header["GAIN"], image.header["READNOI"]
        tables.append(measure_sources(data, image.background, model, image.detections, mask, *noise)[0])
        ra, dec = WCS(image.header).all_pix2world(tables[-1]["x"], tables[-1]["y"], 0)
        places.append(np.stack([ra * np.cos(np.radians(dec[0])), dec], axis=1))
    distance, match = cKDTree(places[1]).query(places[0], distance_upper_bound=1.5 / 3600)
    good = np.flatnonzero(np.isfinite(distance))
    a, b = tables[0][good], tables[1][match[good]]
    stars = (np.abs(a["sharp"]) < 0.5) & (np.abs(b["sharp"]) < 0.5)
    ratio = (a["flux"] / b["flux"])[stars]
    error = ratio * np.hypot(1 / a["snr"], 1 / b["snr"])[stars]
    grey = np.median(ratio)
    assert stars.sum() >= 8
    expected = 10 ** (0.4 * (pair[0].header["MAGZP"] - pair[1].header["MAGZP"]))
    assert grey == pytest.approx(expected, rel=0.06)
    assert np.median(np.abs(ratio - grey) / np.hypot(error, 0.01 * ratio)) < 1.5 * 0.6745
