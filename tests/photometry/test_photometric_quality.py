"""Depth against photometry of simulated stars at that magnitude; each quality bit at its threshold."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from photometry_truth import GAIN, READNOISE, SKY
from synthetic import add_noise, paint

from stream.core.flags import Info
from stream.core.psf import PsfModel, gaussian_psf
from stream.core.records import SOURCE_DTYPE, Background, ZeroPoint, ZeroPointMap
from stream.photometry import (
    Scene,
    catalog_maglim,
    estimate_background,
    forced_fluxes,
    maglim,
    noise_area,
    photometric_infobits,
)

SHAPE = (400, 400)
ZP = ZeroPoint(26.3, 1e-3, 0.03, 0.1, 1e-3, 0.0, "g - R", 200)


def test_noise_area_of_a_gaussian() -> None:
    fwhm = 3.0
    assert noise_area(gaussian_psf(fwhm, SHAPE, oversample=3), 200, 200) == pytest.approx(
        4 * math.pi * (fwhm / 2.3548) ** 2, rel=0.002
    )


def test_stars_at_the_limit_have_snr_five() -> None:
    psf = gaussian_psf(2.3, SHAPE)
    x, y = (g.ravel() + 0.3 for g in np.meshgrid(np.arange(20.0, 385, 14), np.arange(20.0, 385, 14)))
    empty = add_noise(np.zeros(SHAPE), SKY, GAIN, READNOISE, 1)
    background = estimate_background(empty, np.zeros(SHAPE, np.uint16))
    flux = np.full(len(x), 10 ** (0.4 * (ZP.magzp - maglim(psf, background, ZP))))
    data = add_noise(paint(SHAPE, x, y, flux, psf, 25), SKY, GAIN, READNOISE, 2)
    scene = Scene(data - np.float32(SKY), np.zeros(SHAPE, bool), background, psf, GAIN, READNOISE)
    found, _, _ = forced_fluxes(scene, x, y)
    # The star's own photons add a few per cent to the sky's noise.
    assert flux[0] / found.std() == pytest.approx(5, rel=0.1)
    assert found.mean() == pytest.approx(flux[0], rel=0.03)


def test_depth_needs_zero_point_and_noise() -> None:
    flat = np.ones(SHAPE, np.float32)
    background = Background(flat * 100, flat * 5, 100, 5)
    psf = gaussian_psf(2, SHAPE)
    assert math.isnan(maglim(psf, background, None))
    assert math.isnan(maglim(psf, replace(background, rms=flat * 0), ZP))
    one, five = (maglim(psf, background, ZP, nsigma=n) for n in (1.0, 5.0))
    assert one - five == pytest.approx(2.5 * math.log10(5))


def test_depth_is_that_of_the_middle_where_the_zero_point_varies() -> None:
    flat = np.ones(SHAPE, np.float32)
    background, psf = Background(flat * 100, flat * 5, 100, 5), gaussian_psf(2, SHAPE)
    hump = ZeroPointMap(2, SHAPE, (0.0, 0, 0, -0.02, 0, -0.02), (0.0,) * 6)
    assert maglim(psf, background, replace(ZP, map=hump)) - maglim(psf, background, ZP) == pytest.approx(0.02)


def test_depth_of_a_catalogue() -> None:
    sources = np.zeros(30, SOURCE_DTYPE)
    sources["sigflux"], sources["snr"] = 20.0, np.linspace(1, 60, 30)
    sources["sigflux"][sources["snr"] > 20] = 500.0
    assert catalog_maglim(sources, ZP) == pytest.approx(26.3 - 2.5 * math.log10(100))
    many = np.concatenate([sources, sources[:12]])
    many["sigflux"][30:], many["snr"][30:] = 10.0, 5.0
    assert catalog_maglim(many, ZP) == pytest.approx(26.3 - 2.5 * math.log10(50))
    assert math.isnan(catalog_maglim(sources, None))
    assert math.isnan(catalog_maglim(sources[:0], ZP))


def bits(**changes: object) -> int:
    """The quality word of a good image with something changed."""
    flat = np.ones((20, 20), np.float32)
    sources = np.zeros(40, SOURCE_DTYPE)
    sources["flux"], sources["sigflux"], sources["snr"] = 200.0, 20.0, 10.0
    good: dict[str, object] = {
        "background": Background(flat * 200, flat * 6, 200.0, 6.0),
        "psf": PsfModel(np.ones((1, 5, 5), np.float32), 1, 0, (20, 20), 2.0),
        "sources": sources,
        "n_detections": 60,
        "zeropoint": ZP,
        "depth": 20.5,
    }
    return photometric_infobits(**(good | changes))  # type: ignore[arg-type]


FLAT = np.ones((20, 20), np.float32)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0),
        ({"background": Background(FLAT, FLAT, 4001.0, 6.0)}, Info.BACKGROUND),
        ({"background": Background(FLAT, FLAT, 4000.0, 100.0)}, 0),
        ({"background": Background(FLAT, FLAT, 200.0, 100.1)}, Info.NOISE),
        ({"saturated": 0.51}, Info.SATURATION),
        ({"pixel_scale": 2.6}, Info.SEEING),
        ({"depth": 17.4}, Info.MAGLIM_FORMULA),
        ({"depth": math.nan}, 0),
        ({"n_detections": 19}, Info.FEW_SOURCES),
        ({"zeropoint": None}, Info.NO_ZEROPOINT | Info.FEW_CALIBRATORS | Info.FEW_PHOT_MATCHES),
        ({"zeropoint": replace(ZP, n_matches=29)}, Info.FEW_CALIBRATORS),
        ({"zeropoint": replace(ZP, magzprms=0.21)}, Info.PHOT_RMS),
        ({"zeropoint": replace(ZP, magzp=22.0)}, Info.MAGLIM_CATALOG),
        ({"psf": None}, Info.NO_PSF),
        ({"sources": np.zeros(0, SOURCE_DTYPE)}, Info.FEW_PSF_SOURCES),
    ],
)
def test_each_bit_at_its_threshold(changes: dict[str, object], expected: int) -> None:
    assert bits(**changes) == int(expected)
