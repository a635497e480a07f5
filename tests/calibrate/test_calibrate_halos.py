"""Halo discs against angular distances computed by astropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from stream.calibrate import mask_halos
from stream.core.camera import Camera, nominal_wcs
from stream.core.flags import Mask
from stream.core.records import BRIGHT_DTYPE, Table

CAMERA = Camera("wide", 900, 800)


def stars(*rows: tuple[float, float, float]) -> Table:
    return np.array([("s", *row) for row in rows], dtype=BRIGHT_DTYPE)


def within(wcs: WCS, shape: tuple[int, int], ra: float, dec: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels surely inside and surely outside the halo (1 % of its radius left open)."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    distance = wcs.pixel_to_world(x, y).separation(SkyCoord(ra * u.deg, dec * u.deg)).arcsec
    return distance < 367 * 0.99, distance > 367 * 1.01


@pytest.mark.parametrize("place", [(450.0, 400.0), (-200.0, 300.0), (1100.0, 900.0), (0.0, 0.0)])
def test_disc_of_367_arcsec_also_from_outside(place: tuple[float, float]) -> None:
    wcs = nominal_wcs(CAMERA, 359.9, 40.0, 5)
    ra, dec = (float(v) for v in wcs.all_pix2world(*place, 0))
    before = np.full(CAMERA.shape, 2, np.uint16)
    mask = mask_halos(before, wcs, stars((ra, dec, 5.0), (ra, dec + 20, 2.0)), CAMERA.pixel_scale)
    inside, outside = within(wcs, CAMERA.shape, ra, dec)
    assert inside.any()
    assert np.all(mask[inside] == 2 | Mask.HALO)
    assert np.all(mask[outside] == 2)
    assert np.all(before == 2)


def test_only_bright_stars_that_reach_in() -> None:
    wcs = nominal_wcs(CAMERA, 150.0, -20.0, 40)
    ra, dec = (float(v) for v in wcs.all_pix2world(450, 400, 0))
    far = (float(v) for v in wcs.all_pix2world(450 + 450 + 380, 400, 0))
    nan = float("nan")
    table = stars((ra, dec, 6.51), (*far, 1.0), (ra, dec, nan), (nan, dec, 3.0), (ra + 180, -dec, 1.0))
    mask = np.zeros(CAMERA.shape, np.uint16)
    assert not mask_halos(mask, wcs, table, CAMERA.pixel_scale).any()
    assert not mask_halos(mask, wcs, stars(), CAMERA.pixel_scale).any()
    assert mask_halos(mask, wcs, stars((ra, dec, 6.5)), CAMERA.pixel_scale)[400, 450] == Mask.HALO


def test_at_the_pole() -> None:
    wcs = nominal_wcs(CAMERA, 10.0, 89.9, 37)
    ra, dec = (float(v) for v in wcs.all_pix2world(300, 300, 0))
    mask = mask_halos(np.zeros(CAMERA.shape, np.uint16), wcs, stars((ra, dec, 5.0)), CAMERA.pixel_scale)
    inside, outside = within(wcs, CAMERA.shape, ra, dec)
    assert np.all(mask[inside] == Mask.HALO)
    assert not mask[outside].any()


def test_with_real_distorted_solutions(real_data: Path) -> None:
    for path in sorted((real_data / "images").glob("*sciimg.fits"))[:3]:
        header = fits.getheader(path)
        wcs = WCS(header)
        shape = header["NAXIS2"], header["NAXIS1"]
        for place in ((100.0, 100.0), (-250.0, 150.0), (shape[1] + 300.0, shape[0] / 2)):
            ra, dec = (float(v) for v in wcs.all_pix2world(*place, 0))
            mask = mask_halos(np.zeros(shape, np.uint16), wcs, stars((ra, dec, 4.0)), 1.0125)
            inside, outside = within(wcs, shape, ra, dec)
            assert np.all(mask[inside] == Mask.HALO)
            assert not mask[outside].any()
