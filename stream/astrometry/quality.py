"""What a solution is worth: INFOBITS of astrometry and the cards that products carry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.astrometry.fit import cell_counts
from stream.core.camera import FULL
from stream.core.flags import Info
from stream.core.records import Astrometry
from stream.core.robust import middle

F64 = NDArray[np.float64]

# Thresholds as written in real headers (ztf-facts §2.6).
MIN_MATCHES = 100
MIN_IN_GRID = 5
SCALE_RANGE = (-0.0020, 0.0200)  # relative to the camera's pixel scale
MAX_GRID_RESIDUAL = 0.7  # arcsec
MIN_FRACTION = 0.5
MIN_CATALOG_PERCENT = 0.0  # as the headers have it: never below
MAX_CHI_CHANGE = 0.0  # %
MAX_CHI_SQUARE = 55.0  # since 2020; 30 before
# The headers do not tell the survey's grid; 3 x 3 keeps five stars a cell at the pole of the galaxy.
GRID = 3


def astrometric_infobits(x: F64, y: F64, residuals: F64, n_detected: int, pixel_scale: float) -> int:
    """INFOBITS 14, 15, 16, 19 and 21 of a solution. (Bit 12 is for images without one.)

    Parameters
    ----------
    x, y : ndarray, (n,)
        Places of the matched stars, -1..1 over the image.
    residuals : ndarray, (n, 2)
        Arcsec.
    n_detected : int
        Detections that were offered for matching.
    pixel_scale : float
        Arcsec per px at the image centre.
    """
    bits = Info(0)
    counts = cell_counts(x, y, GRID)
    if len(x) < MIN_MATCHES:
        bits |= Info.FEW_ASTROM_MATCHES
    if counts.min() < MIN_IN_GRID:
        bits |= Info.GRID_MATCHES
    change = pixel_scale / FULL.pixel_scale - 1.0
    if not SCALE_RANGE[0] <= change <= SCALE_RANGE[1]:
        bits |= Info.PIXEL_SCALE
    if worst_cell_residual(x, y, residuals) > MAX_GRID_RESIDUAL:
        bits |= Info.GRID_RESIDUAL
    if len(x) < MIN_FRACTION * n_detected:
        bits |= Info.ASTROM_FRACTION
    return int(bits)


def match_infobits(catalog_percent: float, chi_first: float, chi_second: float) -> int:
    """INFOBITS 13, 17 and 18.

    Parameters
    ----------
    catalog_percent : float
        Catalogue stars on the image that were matched, %.
    chi_first, chi_second : float
        Chi-square per degree of freedom of the same pairs before and after the final fit. NaN sets no bit.
    """
    bits = Info(0)
    if catalog_percent < MIN_CATALOG_PERCENT:
        bits |= Info.CATALOG_FRACTION
    if 100.0 * (chi_second / chi_first - 1.0) > MAX_CHI_CHANGE if chi_first > 0 else False:
        bits |= Info.CHI_CHANGE
    if chi_second > MAX_CHI_SQUARE:
        bits |= Info.CHI_SQUARE
    return int(bits)


def chi_square(residuals: F64, sigma: F64, n_coefficients: int) -> float:
    """Chi-square per degree of freedom of residuals (n, 2) with errors (n,) per axis; NaN without a freedom left."""
    freedom = 2 * (len(residuals) - n_coefficients)
    return float(np.sum((residuals / sigma[:, None]) ** 2) / freedom) if freedom > 0 else float("nan")


def worst_cell_residual(x: F64, y: F64, residuals: F64) -> float:
    """Largest median residual (length, arcsec) of the cells of the grid that have stars."""
    column = np.clip(((x + 1) / 2 * GRID).astype(int), 0, GRID - 1)
    row = np.clip(((y + 1) / 2 * GRID).astype(int), 0, GRID - 1)
    length = np.hypot(residuals[:, 0], residuals[:, 1])
    cell = row * GRID + column
    return max((middle(length[cell == c]) for c in np.unique(cell)), default=0.0)


def wcs_cards(astrometry: Astrometry) -> dict[str, float | int | str]:
    """Header cards of a solution, in the survey's order: the TPV WCS, ASTRRMS1/2 (deg), ASTROMN, ASTCHI2.

    Read back by ``astropy.wcs.WCS`` they give the very same WCS: its coefficients were rounded to what a card
    carries when it was fitted. (On a WCS in use ``wcs.wcs.get_pv()`` is empty and ``wcs.wcs.ctype`` says TAN, the
    distortion having moved inside; the library's own header still tells the truth.)
    """
    wcs = astrometry.wcs
    cards: dict[str, float | int | str] = {"WCSAXES": 2, "EQUINOX": 2000.0, "RADESYS": "ICRS"}
    header = wcs.to_header(relax=True)
    for axis in (1, 2):
        cards[f"CTYPE{axis}"] = str(header[f"CTYPE{axis}"])
    for axis in (1, 2):
        cards[f"CUNIT{axis}"] = "deg"
    for name, values in (("CRPIX", wcs.wcs.crpix), ("CRVAL", wcs.wcs.crval)):
        for axis in (1, 2):
            cards[f"{name}{axis}"] = float(values[axis - 1])
    matrix = wcs.pixel_scale_matrix
    for i in (1, 2):
        for j in (1, 2):
            cards[f"CD{i}_{j}"] = float(matrix[i - 1, j - 1])
    for card in header.cards:
        if card.keyword.startswith(("PV1_", "PV2_")):
            cards[card.keyword] = float(card.value)
    cards["ASTRRMS1"] = float(f"{astrometry.rms_ra / 3600.0:.9e}")
    cards["ASTRRMS2"] = float(f"{astrometry.rms_dec / 3600.0:.9e}")
    cards["ASTROMN"] = int(astrometry.n_matched)
    if np.isfinite(astrometry.chi_square):
        cards["ASTCHI2"] = float(f"{astrometry.chi_square:.6g}")
    return cards
