"""Extract: find what changed in a difference image, measure it, judge it, cut it out.

``extract`` gives the candidates of a quadrant, ``find_streaks`` the trailed ones. Pure functions of the
records of ``stream.core``.
"""

from stream.extract.candidates import Extraction, ExtractSettings, extract, extract_all
from stream.extract.cuts import PROFILES, CutProfile, rejection
from stream.extract.depth import depth_map
from stream.extract.detect import Peaks, detect_peaks
from stream.extract.fields import CANDIDATE_FIELDS, EXTRA_FIELDS
from stream.extract.measure import Measurements, measure
from stream.extract.stamps import STAMP_SIZE, cut_stamps
from stream.extract.streaks import SeedRule, StreakSettings, find_streaks
from stream.extract.table import MAX_ROWS, STREAK_VERSION, assign_tblids

__all__ = [
    "CANDIDATE_FIELDS",
    "EXTRA_FIELDS",
    "MAX_ROWS",
    "PROFILES",
    "STAMP_SIZE",
    "STREAK_VERSION",
    "CutProfile",
    "ExtractSettings",
    "Extraction",
    "Measurements",
    "Peaks",
    "SeedRule",
    "StreakSettings",
    "assign_tblids",
    "cut_stamps",
    "depth_map",
    "detect_peaks",
    "extract",
    "extract_all",
    "find_streaks",
    "measure",
    "rejection",
]
