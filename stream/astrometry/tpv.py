"""The TPV projection: a tangent plane with a polynomial of degree 4, as the survey's headers carry it.

Intermediate coordinates are (x, y) = CD (p - CRPIX) in degrees; the tangent-plane place is

    xi  = PV1_0 + PV1_1 x + PV1_2 y + PV1_4 x^2 + PV1_5 xy + PV1_6 y^2 + PV1_7 x^3 + ... + PV1_16 y^4
    eta = PV2_0 + PV2_1 y + PV2_2 x + PV2_4 y^2 + PV2_5 xy + PV2_6 x^2 + PV2_7 y^3 + ... + PV2_16 x^4

(the FITS registry's TPV; the radial terms 3, 11, 17 are not used). Places are numpy's, first pixel (0, 0).
"""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

# PV numbers of the polynomial terms by degree, in the order x^n, x^(n-1) y, ..., y^n.
PV_NUMBERS = (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16)
MAX_DEGREE = 4
# Digits kept in headers. The fit is rounded to them, so that a WCS read back is the WCS that was fitted.
SIGNIFICANT_DIGITS = 12
# Beyond this from the tangent point nothing is on a quadrant (half diagonal 0.61 deg) or its reference.
MAX_OFFSET_DEG = 2.0
CRVAL_DECIMALS = 9  # 4 microarcsec


def n_terms(degree: int) -> int:
    """Coefficients per axis of a full polynomial: 3, 6, 10, 15 for degrees 1 to 4."""
    return (degree + 1) * (degree + 2) // 2


def terms(x: F64, y: F64, degree: int) -> F64:
    """Columns 1, x, y, x^2, xy, y^2, ... (n, n_terms): nested, so that lower degrees are the first columns."""
    xs, ys = [np.ones_like(x)], [np.ones_like(y)]
    for _ in range(degree):
        xs.append(xs[-1] * x)
        ys.append(ys[-1] * y)
    return np.stack([xs[t - j] * ys[j] for t in range(degree + 1) for j in range(t + 1)], axis=1)


def swap_axes(coefficients: F64) -> F64:
    """Coefficients of ``terms(x, y)`` as those of ``terms(y, x)``: every degree's block reversed."""
    swapped: list[F64] = []
    start = 0
    while start < len(coefficients):
        width = len(swapped) + 1
        swapped.append(coefficients[start : start + width][::-1])
        start += width
    return np.concatenate(swapped)


def round_significant(values: ArrayLike) -> F64:
    """Values as a header with ``SIGNIFICANT_DIGITS`` would carry them."""
    flat = np.atleast_1d(np.asarray(values, float))
    rounded = [float(f"{v:.{SIGNIFICANT_DIGITS - 1}e}") for v in flat.ravel()]
    return np.array(rounded).reshape(flat.shape)


def tpv_wcs(
    crval: tuple[float, float],
    cd: F64,
    pv1: F64,
    pv2: F64,
    crpix: tuple[float, float],
    shape: tuple[int, int] | None = None,
) -> WCS:
    """A TPV WCS from its coefficients.

    Parameters
    ----------
    crval : (ra, dec)
        Tangent point, deg, ICRS.
    cd : ndarray, (2, 2)
        deg per px.
    pv1, pv2 : ndarray, (3 | 6 | 10 | 15,)
        Coefficients in the order of ``PV_NUMBERS``: PV1 of (x, y), PV2 of (y, x), as in the header.
    crpix : (x, y)
        FITS pixel of the tangent point, first is 1.
    shape : (ny, nx), optional
        Image shape to remember.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TPV", "DEC--TPV"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cd = list(crval), list(crpix), np.asarray(cd, float)
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.equinox = 2000.0
    pvs = [(axis, m, float(v)) for axis, c in ((1, pv1), (2, pv2)) for m, v in zip(PV_NUMBERS, c, strict=False)]
    wcs.wcs.set_pv(pvs)
    wcs.wcs.set()
    if shape is not None:
        wcs.array_shape = shape
    return wcs


def sky_positions(wcs: WCS, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64]:
    """Sky places (ra 0..360, dec; deg) of pixels, first pixel (0, 0); NaN in, NaN out."""
    xs, ys = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    if xs.size == 0:
        return np.empty(0), np.empty(0)
    ra, dec = wcs.all_pix2world(xs, ys, 0)
    return ra, dec


def pixel_positions(wcs: WCS, ra: ArrayLike, dec: ArrayLike) -> tuple[F64, F64]:
    """Pixels (first (0, 0)) of sky places (deg).

    NaN where a place is not on the tangent plane's half of the sky or the distortion has no inverse there (the
    polynomial is meant for the image, not for the next field).
    """
    ras, decs = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    x, y = np.full(ras.shape, np.nan), np.full(ras.shape, np.nan)
    if ras.size == 0:
        return x, y
    # Far off, a polynomial has spurious inverses: a place degrees away must not land on the image.
    xi, eta = project(ras, decs, float(wcs.wcs.crval[0]), float(wcs.wcs.crval[1]))
    near = np.hypot(xi, eta) < MAX_OFFSET_DEG
    if near.any():
        x[near], y[near] = wcs.wcs_world2pix(ras[near], decs[near], 0)
    return x, y


def project(ra: F64, dec: F64, ra0: float, dec0: float) -> tuple[F64, F64]:
    """Gnomonic tangent-plane offsets (xi east, eta north; deg) about (ra0, dec0); NaN on the other half of the sky."""
    a, d = np.radians(np.asarray(ra, float) - ra0), np.radians(dec)
    d0 = np.radians(dec0)
    sin_d, cos_d, sin_d0, cos_d0 = np.sin(d), np.cos(d), np.sin(d0), np.cos(d0)
    cos_a = np.cos(a)
    depth = sin_d * sin_d0 + cos_d * cos_d0 * cos_a
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = np.where(depth > 0, depth, np.nan)
        xi = np.degrees(cos_d * np.sin(a) / depth)
        eta = np.degrees((sin_d * cos_d0 - cos_d * sin_d0 * cos_a) / depth)
    return xi, eta
