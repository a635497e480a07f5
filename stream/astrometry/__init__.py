"""Astrometry: the WCS of an image from its detections and Gaia, or a refusal."""

from stream.astrometry.epoch import propagate
from stream.astrometry.quality import astrometric_infobits, wcs_cards
from stream.astrometry.solver import solve
from stream.astrometry.tpv import pixel_positions, project, sky_positions, tpv_wcs

__all__ = [
    "astrometric_infobits",
    "pixel_positions",
    "project",
    "propagate",
    "sky_positions",
    "solve",
    "tpv_wcs",
    "wcs_cards",
]
