"""The sky and camera simulator: raw packets in the survey's format with everything about them known.

``simulate_night(out, NightPlan(...))`` writes packets, the catalogues that go with them and truth tables.
"""

from stream.simulate.air import zeropoint
from stream.simulate.effects import Effects
from stream.simulate.expose import epoch_positions, paint_quadrant, simulate_packet
from stream.simulate.night import NightSummary, simulate_night
from stream.simulate.optics import PsfField, Wcs, psf_field, true_wcs, wcs_of
from stream.simulate.plan import NightPlan, SimExposure, Survey
from stream.simulate.scheduler import schedule
from stream.simulate.truth import QuadrantTruth, light_curve, read_quadrant_truth, read_truth

__all__ = [
    "Effects",
    "NightPlan",
    "NightSummary",
    "PsfField",
    "QuadrantTruth",
    "SimExposure",
    "Survey",
    "Wcs",
    "epoch_positions",
    "light_curve",
    "paint_quadrant",
    "psf_field",
    "read_quadrant_truth",
    "read_truth",
    "schedule",
    "simulate_night",
    "simulate_packet",
    "true_wcs",
    "wcs_of",
    "zeropoint",
]
