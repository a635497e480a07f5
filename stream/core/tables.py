"""The tables that pass between rooms: numpy structured arrays and their columns. Conventions as in ``records``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.void]  # a numpy structured array

# Apertures of the survey's catalogues, diameters in px (APCOR1..6).
APERTURE_DIAMETERS = (2.0, 3.0, 4.0, 6.0, 10.0, 14.0)

SOURCE_DTYPE = np.dtype(
    [
        ("sourceid", "i4"),
        ("x", "f8"), ("y", "f8"),  # px, first is 0
        ("ra", "f8"), ("dec", "f8"),  # deg, NaN before the astrometric solution
        ("flux", "f8"), ("sigflux", "f8"),  # DN, total flux of a point source (PSF fit)
        ("snr", "f4"),
        ("chi", "f4"),  # r.m.s. of the fit's residuals over the expected one
        ("sharp", "f4"),  # 0 star-like, > 0 extended, < 0 spike
        ("flags", "i4"),  # OR of the mask in a 5 x 5 box; -1 on or near an edge
        ("ap_flux", "f8", (6,)), ("ap_err", "f8", (6,)),  # DN in APERTURE_DIAMETERS
        # px, px, px, rad: moments of the detection; NaN for sources found among the residuals of others
        ("fwhm", "f4"), ("a", "f4"), ("b", "f4"), ("theta", "f4"),
        ("star", "f4"),  # 1 star, 0 galaxy, 0.5 cannot say, NaN not measured
    ]
)  # fmt: skip

# A first list of sources, before the PSF is known: what astrometry and PSF estimation start from.
DETECTION_DTYPE = np.dtype(
    [
        ("x", "f8"), ("y", "f8"),  # px, windowed centroid, first is 0
        ("flux", "f8"), ("peak", "f4"),  # DN, isophotal flux and highest pixel, sky off
        ("a", "f4"), ("b", "f4"), ("theta", "f4"),  # px, px, rad
        ("npix", "i4"),
        ("snr", "f4"),
        ("flags", "i4"),  # OR of the mask in a 5 x 5 box
    ]
)  # fmt: skip

GAIA_DTYPE = np.dtype(
    [
        ("source_id", "i8"), ("ra", "f8"), ("dec", "f8"), ("ra_error", "f4"), ("dec_error", "f4"),
        ("pmra", "f4"), ("pmdec", "f4"), ("parallax", "f4"), ("ref_epoch", "f8"),
        ("phot_g_mean_mag", "f4"), ("bp_rp", "f4"),
    ]
)  # fmt: skip

PS1_DTYPE = np.dtype(
    [
        ("objID", "i8"), ("raMean", "f8"), ("decMean", "f8"),
        ("gMeanPSFMag", "f4"), ("gMeanPSFMagErr", "f4"), ("rMeanPSFMag", "f4"), ("rMeanPSFMagErr", "f4"),
        ("iMeanPSFMag", "f4"), ("iMeanPSFMagErr", "f4"), ("zMeanPSFMag", "f4"), ("zMeanPSFMagErr", "f4"),
        ("ps_score", "f4"),  # 1 star, 0 galaxy, NaN unknown
    ]
)  # fmt: skip

BRIGHT_DTYPE = np.dtype([("name", "U24"), ("ra", "f8"), ("dec", "f8"), ("vmag", "f4")])
