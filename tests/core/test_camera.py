"""Camera geometry against the public layout and eight real solutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from stream.core import camera
from stream.core.errors import UsageError


def test_real_solutions_lie_within_the_promised_four_arcminutes(real_data: Path) -> None:
    for path in sorted((real_data / "images").glob("*_sciimg.fits")):
        header = fits.getheader(path)
        real = WCS(header)
        nominal = camera.nominal_wcs(camera.FULL, header["TELRAD"], header["TELDECD"], header["RCID"])
        centre = SkyCoord(*header_centre(real), unit="deg")
        guess = SkyCoord(*nominal.wcs.crval, unit="deg")
        assert centre.separation(guess).arcmin < 4.0
        turn = np.rad2deg(np.arctan2(real.wcs.cd[0, 1], real.wcs.cd[0, 0]))
        turn -= np.rad2deg(np.arctan2(nominal.wcs.cd[0, 1], nominal.wcs.cd[0, 0]))
        assert abs((turn + 180) % 360 - 180) < 0.3


def header_centre(wcs: WCS) -> tuple[float, float]:
    """Sky position of the solution's reference pixel, the quadrant's centre in the survey's headers."""
    ra, dec = wcs.all_pix2world(*wcs.wcs.crpix, 1)
    return float(ra), float(dec)


@given(ra=st.floats(0, 360, exclude_max=True), dec=st.floats(-80, 80), xi=st.floats(-4, 4), eta=st.floats(-4, 4))
def test_deprojection_agrees_with_a_tan_wcs(ra: float, dec: float, xi: float, eta: float) -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [1.0, 1.0]
    wcs.wcs.cdelt = [1.0, 1.0]
    expected = SkyCoord(*wcs.all_pix2world([[xi, eta]], 0)[0], unit="deg")
    got = SkyCoord(*camera.deproject(ra, dec, xi, eta), unit="deg")
    assert got.separation(expected).arcsec < 1e-3


def test_quadrants_tile_the_focal_plane_without_overlap() -> None:
    layout = camera.quadrant_layout()
    assert np.isfinite(layout).all()
    assert layout.shape == (64, 2)
    side = camera.FULL.nx * camera.FULL.pixel_scale / 3600
    for i in range(64):
        d = np.abs(layout - layout[i])
        d[i] = 9
        assert (d.max(axis=1) > 0.99 * side).all()


def test_nominal_axes_point_west_and_south() -> None:
    wcs = camera.nominal_wcs(camera.FULL, 150.0, 20.0, 25)
    ra, dec = wcs.all_pix2world([1536, 1636, 1536], [1540, 1540, 1640], 0)
    assert ra[1] < ra[0]
    assert dec[2] < dec[0]


def test_read_order_puts_the_amplifier_at_the_corner() -> None:
    assert [camera.read_order(q) for q in (1, 2, 3, 4)] == [(False, False), (True, False), (True, True), (False, True)]


def test_unknown_camera_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="full, small"):
        camera.camera_named("large")
