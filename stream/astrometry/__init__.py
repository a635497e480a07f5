"""Astrometry: the WCS of an image from its detections and Gaia, or a refusal."""

from stream.astrometry.epoch import propagate
from stream.astrometry.places import pixel_of, position_sigma, sky_of
from stream.astrometry.quality import astrometric_infobits, wcs_cards
from stream.astrometry.refine import refine
from stream.astrometry.refraction import expected_refraction, own_colours
from stream.astrometry.solver import solve
from stream.astrometry.tpv import pixel_positions, project, sky_positions, tpv_wcs

__all__ = [
    "astrometric_infobits",
    "expected_refraction",
    "own_colours",
    "pixel_of",
    "pixel_positions",
    "position_sigma",
    "project",
    "propagate",
    "refine",
    "sky_of",
    "sky_positions",
    "solve",
    "tpv_wcs",
    "wcs_cards",
]
