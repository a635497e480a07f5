"""The grid of a reference: undistorted, turned and scaled like the science images, a little larger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from astropy.wcs import WCS

from stream.core.pixelmap import world_to_pixel
from stream.core.records import ScienceImage

PAD = 64  # px a side: about an arcminute, twice the pointing's scatter within a field


def reference_grid(wcs_list: Sequence[WCS], shape: tuple[int, int], pad: int = PAD) -> tuple[WCS, tuple[int, int]]:
    """TAN grid centred on the quadrant of the most central input.

    Parameters
    ----------
    wcs_list : sequence of WCS
        Of the inputs, all of ``shape``.
    shape : (ny, nx)
    pad : int
        Pixels added on each side.

    Returns
    -------
    wcs, shape
        Tangent point at the grid's centre, axes along those of that input at its centre, its pixel scale.
    """
    ny, nx = shape
    centre = (nx - 1) / 2, (ny - 1) / 2
    places = np.array([wcs.all_pix2world(*centre, 0) for wcs in wcs_list], float)
    ra, dec = np.radians(places[:, 0]), np.radians(places[:, 1])
    unit = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    middle = np.median(unit, axis=0)
    chosen = int(np.argmin(((unit - middle) ** 2).sum(axis=1)))
    out = WCS(naxis=2)
    out.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    out.wcs.cunit = ["deg", "deg"]
    out.wcs.radesys = "ICRS"
    out.wcs.crval = places[chosen]
    out.wcs.crpix = [nx / 2 + 0.5 + pad, ny / 2 + 0.5 + pad]
    out.wcs.cd = _local_cd(wcs_list[chosen], centre, places[chosen])
    out.wcs.set()
    return out, (ny + 2 * pad, nx + 2 * pad)


def same_place(grid: tuple[WCS, tuple[int, int]], image: ScienceImage, pad: int = PAD) -> bool:
    """Whether a grid has the size that one for this image would have, and its middle within ``pad`` of it: then the
    new reference can have the old one's pixels, so that all versions lie on top of each other."""
    wcs, shape = grid
    ny, nx = image.data.shape
    if shape != (ny + 2 * pad, nx + 2 * pad):
        return False
    middle = image.astrometry.wcs.all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0)
    x, y = world_to_pixel(wcs, *middle)
    off = np.hypot(x[0] - (shape[1] - 1) / 2, y[0] - (shape[0] - 1) / 2)
    return bool(off < pad)


def _local_cd(wcs: WCS, centre: tuple[float, float], place: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Degrees on the tangent plane per pixel, distortion included, at one place."""
    plane = WCS(naxis=2)
    plane.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    plane.wcs.crval = place
    plane.wcs.crpix = [1.0, 1.0]
    plane.wcs.cdelt = [1.0, 1.0]
    plane.wcs.set()
    h = 8.0  # px: small against the distortion, large against rounding
    x = centre[0] + np.array([-h, h, 0.0, 0.0])
    y = centre[1] + np.array([0.0, 0.0, -h, h])
    xi, eta = plane.wcs_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    step = 2 * h
    return np.array([[xi[1] - xi[0], xi[3] - xi[2]], [eta[1] - eta[0], eta[3] - eta[2]]]) / step
