"""Sky places of this image's pixels and back, through the WCS and the air's displacement, and how good they are.

Whoever says where something on an image is on the sky uses these; the bare WCS is 10 to 15 mas worse.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.astrometry.tpv import pixel_positions
from stream.core.records import Astrometry

F64 = NDArray[np.float64]


def sky_of(astrometry: Astrometry, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64]:
    """Sky places (ra 0..360, dec; deg) of pixels, first pixel (0, 0); NaN in, NaN out."""
    return astrometry.sky_of(x, y)


def pixel_of(astrometry: Astrometry, ra: ArrayLike, dec: ArrayLike) -> tuple[F64, F64]:
    """Pixels (first (0, 0)) at which sky places (deg) are seen; NaN where ``tpv.pixel_positions`` has none."""
    x, y = pixel_positions(astrometry.wcs, ra, dec)
    if astrometry.displacement is not None and x.size:
        # The field changes by a thousandth of itself over its own size: one step is enough, a second is for show.
        u, v = x, y
        for _ in range(2):
            dx, dy = astrometry.displacement.shift(u, v)
            u, v = x - dx.reshape(x.shape), y - dy.reshape(y.shape)
        x, y = u, v
    return x, y


def position_sigma(astrometry: Astrometry, x: ArrayLike, y: ArrayLike, snr: ArrayLike | None = None) -> tuple[F64, F64]:
    """1-sigma error (arcsec, along x and y; west and south within a degree) of sky places.

    Of a source of unknown colour: what refraction does to the stars' colours is in it. Places are the PSF fits', whose
    centre is the PSF model's, some mas from the centroid of lopsided light.
    Without ``snr`` that of the map from pixels to the sky alone, polynomial and displacement; with it that of a point
    source of that S/N measured there, its centroid's error included as the residuals of this exposure's stars tell.
    """
    xs, ys = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    scale = math.sqrt(abs(float(np.linalg.det(astrometry.wcs.pixel_scale_matrix)))) * 3600.0
    if astrometry.displacement is not None and xs.size:
        *_, sx, sy = astrometry.displacement.at(xs, ys)
        out = sx.reshape(xs.shape) * scale, sy.reshape(xs.shape) * scale
    else:  # what the fit leaves in a point, as far as it is known: the spread of its stars over their number
        share = 1.0 / math.sqrt(max(astrometry.n_matched / 10.0, 1.0))
        out = np.full(xs.shape, astrometry.rms_ra * share), np.full(xs.shape, astrometry.rms_dec * share)
    out = np.hypot(out[0], astrometry.colour_sigma[0]), np.hypot(out[1], astrometry.colour_sigma[1])
    if snr is None:
        return out
    at_one, floor = astrometry.centroid
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.hypot(at_one / np.asarray(snr, float), floor) * scale
    return np.hypot(out[0], own), np.hypot(out[1], own)
