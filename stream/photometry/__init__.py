"""Photometry: sky, detection, PSF, fluxes, zero point and what they say about an image's quality.

The pipeline calls them in this order: ``estimate_background``, ``detect``, ``build_psf``, ``measure_sources``,
(the final astrometry comes between) ``fit_zeropoint``, ``mark_sources``, ``maglim``, ``photometric_infobits``.
``forced_fluxes`` measures given places of an image, ``window_fluxes`` those of windows out of a difference image;
``fit_stars`` and what goes with it take saturated stars out of an image that is to be interpolated or subtracted.
"""

from stream.photometry.background import estimate_background
from stream.photometry.cloud import CLEAR, cloud_verdict
from stream.photometry.detect import detect
from stream.photometry.fit import Fit
from stream.photometry.forced import ForcedFlux, GridPsf, forced_fluxes, window_fluxes
from stream.photometry.measure import (
    ApertureCorrections,
    aperture_corrections,
    mark_sources,
    measure_sources,
)
from stream.photometry.psf import build_psf
from stream.photometry.quality import catalog_maglim, maglim, noise_area, photometric_infobits
from stream.photometry.saturated import (
    FADING,
    FADING_STEPS,
    Star,
    add_stars,
    bright_stars,
    fit_stars,
    saturated_stars,
    subtract_stars,
)
from stream.photometry.scene import Scene, fit_scene
from stream.photometry.stamps import box_flags
from stream.photometry.stars import STAR_BAD_BITS
from stream.photometry.ubercal import Observations, RelativePhotometry, observations, solve_relative
from stream.photometry.zeropoint import calibrator_residuals, fit_zeropoint, match_calibrators

__all__ = [
    "CLEAR",
    "FADING",
    "FADING_STEPS",
    "STAR_BAD_BITS",
    "ApertureCorrections",
    "Fit",
    "ForcedFlux",
    "GridPsf",
    "Observations",
    "RelativePhotometry",
    "Scene",
    "Star",
    "add_stars",
    "aperture_corrections",
    "box_flags",
    "bright_stars",
    "build_psf",
    "calibrator_residuals",
    "catalog_maglim",
    "cloud_verdict",
    "detect",
    "estimate_background",
    "fit_scene",
    "fit_stars",
    "fit_zeropoint",
    "forced_fluxes",
    "maglim",
    "mark_sources",
    "match_calibrators",
    "measure_sources",
    "noise_area",
    "observations",
    "photometric_infobits",
    "saturated_stars",
    "solve_relative",
    "subtract_stars",
    "window_fluxes",
]
