"""A reference against the catalogues that its inputs were tied to: its places on Gaia, its fluxes on Pan-STARRS1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.astrometry import propagate
from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS
from stream.core.pixelmap import world_to_pixel
from stream.core.records import Reference, Row, Table
from stream.photometry import fit_zeropoint
from stream.photometry.zeropoint import match_calibrators

F64 = NDArray[np.float64]
RADIUS = 0.7  # px; a reference that is off by more would not be subtracted from either
MIN_SNR = 20.0  # so that the scatter shows the solution's, not the photons'
GAIA_BRIGHT = 14.0  # mag; brighter stars saturate


@dataclass(frozen=True, slots=True)
class Residuals:
    """Of matched stars: place (px) and difference, reference minus catalogue (arcsec east, north; mag)."""

    x: F64
    y: F64
    east: F64
    north: F64
    photometry_x: F64
    photometry_y: F64
    magnitude: F64  # PS1 magnitude
    difference: F64  # calibrated (zero point, colour term) minus PS1


def catalog_residuals(reference: Reference, gaia: Table, ps1: Table) -> tuple[Residuals, Row]:
    """Residuals star by star, and their figures for the quality record.

    Figures: ``gaia_n``, ``gaia_east``, ``gaia_north`` (median offset, mas), ``gaia_rms_east``, ``gaia_rms_north``
    (robust, mas); ``ps1_n``, ``ps1_zeropoint`` (mag, to be compared with MAGZP), ``ps1_offset`` (MAGZP minus it),
    ``ps1_rms``, ``ps1_clrcoeff``. What could not be measured is NaN.
    """
    x, y, east, north = _places(reference, gaia)
    nan = float("nan")
    row: Row = {"gaia_n": len(x)}
    for name, values in (("east", east), ("north", north)):
        row[f"gaia_{name}"] = 1000 * float(np.median(values)) if len(values) else nan
        row[f"gaia_rms_{name}"] = 1000 * _spread(values) if len(values) > 2 else nan
    px, py, mag, difference = (np.zeros(0) for _ in range(4))
    try:
        fit = fit_zeropoint(reference.sources, ps1, reference.fid)
    except PhotometryError:
        row |= {"ps1_n": 0, "ps1_zeropoint": nan, "ps1_offset": nan, "ps1_rms": nan, "ps1_clrcoeff": nan}
    else:
        stars = match_calibrators(reference.sources, ps1, reference.fid)
        px, py = reference.sources["x"][stars.source], reference.sources["y"][stars.source]
        instrumental = -2.5 * np.log10(reference.sources["flux"][stars.source])
        mag = stars.difference + instrumental
        difference = instrumental + reference.magzp + fit.clrcoeff * stars.colour - mag
        row |= {
            "ps1_n": fit.n_matches, "ps1_zeropoint": fit.magzp, "ps1_offset": reference.magzp - fit.magzp,
            "ps1_rms": fit.magzprms, "ps1_clrcoeff": fit.clrcoeff,
        }  # fmt: skip
    return Residuals(x, y, east, north, px, py, mag, difference), row


def _places(reference: Reference, gaia: Table) -> tuple[F64, F64, F64, F64]:
    """Place (px) of matched stars, and how far east and north of Gaia's they are, arcsec."""
    s = reference.sources
    good = (s["snr"] > MIN_SNR) & ((s["flags"] & BAD_BITS) == 0) & np.isfinite(s["ra"]) & np.isfinite(s["dec"])
    s = s[good]
    gaia = gaia[gaia["phot_g_mean_mag"] > GAIA_BRIGHT]
    empty = np.zeros(0)
    if len(s) == 0 or len(gaia) == 0:
        return empty, empty, empty, empty
    ra, dec = propagate(gaia, 0.5 * (reference.jd_start + reference.jd_end))
    there = np.stack(world_to_pixel(reference.wcs, ra, dec), axis=1)
    seen = np.isfinite(there).all(axis=1)
    ra, dec, there = ra[seen], dec[seen], there[seen]
    if not len(there):
        return empty, empty, empty, empty
    here = np.stack([s["x"], s["y"]], axis=1)
    distance, k = cKDTree(there).query(here, distance_upper_bound=RADIUS)
    found = np.isfinite(distance)
    s, k = s[found], k[found]
    turn = (s["ra"] - ra[k] + 180.0) % 360.0 - 180.0
    return s["x"], s["y"], turn * np.cos(np.radians(s["dec"])) * 3600.0, (s["dec"] - dec[k]) * 3600.0


def _spread(values: F64) -> float:
    low, high = np.percentile(values, [15.865, 84.135])
    return float(high - low) / 2
