"""Halos of bright stars: discs of fixed radius in the mask."""

from __future__ import annotations

import math

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from stream.core.flags import Mask
from stream.core.records import U16, Table

# Measured in the survey's own masks on two fields (ztf-facts §2.3): the co-moving reflection of a bright star.
HALO_RADIUS = 367.0  # arcsec
HALO_VMAG = 6.5  # Tycho-2 V of the faintest star that always gets one
# Fainter stars, down to this, get one where their halo is brighter than the sky's noise in 16 x 16 px. A halo has some
# 2e-8 of its star's flux in a pixel.
FAINT_VMAG = 7.0
HALO_LIGHT = 2e-8
CELL = 16


def halo_limit(magzp: float, sigma: float) -> float:
    """V of the faintest star whose halo gets masked, for a zero point (mag) and noise of a sky pixel (DN)."""
    if not (math.isfinite(magzp) and sigma > 0):
        return HALO_VMAG
    shown = magzp + 2.5 * math.log10(HALO_LIGHT * CELL / sigma)
    return min(max(shown, HALO_VMAG), FAINT_VMAG)


def mask_halos(mask: U16, wcs: WCS, bright: Table, pixel_scale: float, limit: float = HALO_VMAG) -> U16:
    """The mask with bit 12 set within 367 arcsec of every star of V <= ``limit``, inside the image or not.

    Parameters
    ----------
    mask : ndarray, (ny, nx), uint16
        Not changed; returned as it is where no disc reaches in.
    wcs : WCS
        The image's solution.
    bright : structured array, ``BRIGHT_DTYPE``
        Stars; rows without position or magnitude (NaN) are no stars. Any number, anywhere on the sky.
    pixel_scale : float
        arcsec per px.
    limit : float
        See ``halo_limit``.
    """
    ny, nx = mask.shape
    radius = HALO_RADIUS / pixel_scale
    wanted = np.isfinite(bright["ra"]) & np.isfinite(bright["dec"]) & (bright["vmag"] <= limit)
    ra, dec = bright["ra"][wanted], bright["dec"][wanted]
    centre = wcs.all_pix2world([[(nx - 1) / 2, (ny - 1) / 2]], 0)[0]
    # A first cut on the sphere, with a tenth to spare: a WCS inverted far from its image gives nonsense.
    reach = 1.1 * (math.hypot(nx, ny) / 2 + radius) * pixel_scale / 3600.0
    near = _separation(ra, dec, *centre) <= reach
    if not near.any():
        return mask
    halos = mask.copy()
    for x, y in _places(wcs, ra[near], dec[near], (nx, ny)):
        x0, x1 = max(math.floor(x - radius), 0), min(math.ceil(x + radius) + 1, nx)
        y0, y1 = max(math.floor(y - radius), 0), min(math.ceil(y + radius) + 1, ny)
        if x0 < x1 and y0 < y1:
            inside = (np.arange(x0, x1) - x) ** 2 + (np.arange(y0, y1)[:, None] - y) ** 2 <= radius**2
            halos[y0:y1, x0:x1][inside] |= np.uint16(Mask.HALO)
    return halos


def _separation(ra: NDArray[np.float64], dec: NDArray[np.float64], ra0: float, dec0: float) -> NDArray[np.float64]:
    """Angular distance (deg) from a place (deg), haversine."""
    d, d0 = np.radians(dec), math.radians(dec0)
    h = np.sin((d - d0) / 2) ** 2 + np.cos(d) * math.cos(d0) * np.sin(np.radians(ra - ra0) / 2) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(h, 0, 1)))))


def _places(wcs: WCS, ra: NDArray[np.float64], dec: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Pixel places (first is 0) of stars in or near the image.

    The image's own distortion polynomial inverts well inside, but outside the image it may not converge: there
    the place follows from the solution linearised at the image's centre, good to some arcsec, a hundredth
    of the disc's radius.
    """
    x0, y0 = (size[0] - 1) / 2, (size[1] - 1) / 2
    sky = wcs.all_pix2world([[x0, y0], [x0 + 1, y0], [x0, y0 + 1]], 0)
    offsets = np.array([gnomonic(*place, *sky[0]) for place in sky[1:]]).T  # columns: d(xi, eta) per px in x, y
    star = np.array([gnomonic(a, d, *sky[0]) for a, d in zip(ra, dec, strict=True)])
    linear = np.linalg.solve(offsets, star.T).T + np.array([x0, y0])
    try:
        places = np.asarray(wcs.all_world2pix(np.stack([ra, dec], axis=1), 0, quiet=True))
    except (ValueError, RuntimeError):  # the inversion gave up on one of them
        return np.asarray(linear, dtype=np.float64)
    good = np.isfinite(places).all(axis=1) & (np.abs(places - linear).max(axis=1) < 0.05 * max(size))
    return np.asarray(np.where(good[:, None], places, linear), dtype=np.float64)


def gnomonic(ra: float, dec: float, ra0: float, dec0: float) -> tuple[float, float]:
    """Tangent-plane offsets (xi east, eta north; rad) of a place (deg) from a tangent point (deg)."""
    a, d, d0 = math.radians(ra - ra0), math.radians(dec), math.radians(dec0)
    cosine = math.sin(d0) * math.sin(d) + math.cos(d0) * math.cos(d) * math.cos(a)
    xi = math.cos(d) * math.sin(a) / cosine
    return xi, (math.cos(d0) * math.sin(d) - math.sin(d0) * math.cos(d) * math.cos(a)) / cosine
