"""One registry for the bits of mask images and of INFOBITS: names, meanings, who sets them.

Mask bits follow the survey (``ztf-facts.md`` §2.4), INFOBITS the thresholds written in real headers (§2.6).
The reserved bits 13 to 15 carry our own artefacts; product headers say so (``MBIT13`` ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag


class Mask(IntFlag):
    """Bits of ``mskimg``. Bits 11 and 1 mark sources, not defects."""

    TRACK = 1 << 0
    SOURCE = 1 << 1
    LOW_RESPONSE = 1 << 2
    HIGH_RESPONSE = 1 << 3
    NOISY = 1 << 4
    GHOST = 1 << 5
    SPILLAGE = 1 << 6
    SPIKE = 1 << 7
    SATURATED = 1 << 8
    DEAD = 1 << 9
    NAN = 1 << 10
    PSF_SOURCE = 1 << 11
    HALO = 1 << 12
    CROSSTALK = 1 << 13
    COSMIC_RAY = 1 << 14
    PERSISTENT = 1 << 15


SOURCE_BITS = int(Mask.SOURCE | Mask.PSF_SOURCE)  # 2050
SURVEY_BAD_BITS = 6141  # the survey's own clean-pixel template: bits 0, 2..10, 12
BAD_BITS = SURVEY_BAD_BITS | int(Mask.CROSSTALK | Mask.COSMIC_RAY | Mask.PERSISTENT)
# No flux can be read off these at all: NaN in the difference, excluded from fits.
UNUSABLE_BITS = int(Mask.SATURATED | Mask.DEAD | Mask.NAN)


@dataclass(frozen=True, slots=True)
class Bit:
    """One bit: number, name, what it means, which room sets it."""

    bit: int
    name: str
    meaning: str
    set_by: str


MASK_BITS = (
    Bit(0, "TRACK", "aircraft or satellite track", "calibrate"),
    Bit(1, "SOURCE", "contains a detected source (not a defect)", "photometry"),
    Bit(2, "LOW_RESPONSE", "low responsivity", "calibrate"),
    Bit(3, "HIGH_RESPONSE", "high responsivity", "calibrate"),
    Bit(4, "NOISY", "noisy pixel", "calibrate"),
    Bit(5, "GHOST", "ghost from a bright source", "calibrate"),
    Bit(6, "SPILLAGE", "ghost from charge spillage (OBSMJD <= 58779)", "calibrate"),
    Bit(7, "SPIKE", "pixel spike, possible radiation hit", "calibrate"),
    Bit(8, "SATURATED", "saturated or bled into", "calibrate"),
    Bit(9, "DEAD", "dead (unresponsive)", "calibrate"),
    Bit(10, "NAN", "no value", "calibrate"),
    Bit(11, "PSF_SOURCE", "contains a PSF-extracted source position (not a defect)", "photometry"),
    Bit(12, "HALO", "halo of a bright star, 367 arcsec radius", "calibrate"),
    Bit(13, "CROSSTALK", "cross-talk from another amplifier of the CCD (ours)", "calibrate"),
    Bit(14, "COSMIC_RAY", "cosmic ray found by its shape (ours)", "calibrate"),
    Bit(15, "PERSISTENT", "artefact that returns at the same pixel night after night (ours)", "calibrate"),
)


class Info(IntFlag):
    """Bits of INFOBITS, the science image's quality word; 0 is cleanest."""

    BACKGROUND = 1 << 0
    NOISE = 1 << 1
    SATURATION = 1 << 2
    SEEING = 1 << 3
    MAGLIM_CATALOG = 1 << 4
    MAGLIM_FORMULA = 1 << 5
    FEW_PSF_SOURCES = 1 << 6
    FEW_SOURCES = 1 << 7
    NO_ZEROPOINT = 1 << 8
    FEW_CALIBRATORS = 1 << 9
    FEW_PHOT_MATCHES = 1 << 10
    PHOT_RMS = 1 << 11
    NO_ASTROMETRY = 1 << 12
    FEW_ASTROM_MATCHES = 1 << 14
    GRID_MATCHES = 1 << 15
    PIXEL_SCALE = 1 << 16
    GRID_RESIDUAL = 1 << 19
    NO_PSF = 1 << 20
    ASTROM_FRACTION = 1 << 21
    BAD_QUALITY = 1 << 25


INFO_BITS = (
    Bit(0, "BACKGROUND", "median background > 4000 DN", "photometry"),
    Bit(1, "NOISE", "robust pixel noise > 100 DN", "photometry"),
    Bit(2, "SATURATION", "saturated pixels > 50 %", "calibrate"),
    Bit(3, "SEEING", "seeing > 5 arcsec", "photometry"),
    Bit(4, "MAGLIM_CATALOG", "MAGLIM from the PSF catalogue < 17.5", "photometry"),
    Bit(5, "MAGLIM_FORMULA", "MAGLIM from the noise formula < 17.5", "photometry"),
    Bit(6, "FEW_PSF_SOURCES", "PSF-catalogue sources < 10", "photometry"),
    Bit(7, "FEW_SOURCES", "detected sources < 20", "photometry"),
    Bit(8, "NO_ZEROPOINT", "photometric calibration not possible", "photometry"),
    Bit(9, "FEW_CALIBRATORS", "photometric calibrators < 30", "photometry"),
    Bit(10, "FEW_PHOT_MATCHES", "matches for the zero point < 5", "photometry"),
    Bit(11, "PHOT_RMS", "r.m.s. of photometric residuals > 0.2 mag", "photometry"),
    Bit(12, "NO_ASTROMETRY", "astrometric calibration not possible", "astrometry"),
    Bit(14, "FEW_ASTROM_MATCHES", "matches for astrometry < 100", "astrometry"),
    Bit(15, "GRID_MATCHES", "minimum in-grid matches < 5", "astrometry"),
    Bit(16, "PIXEL_SCALE", "relative pixel scale outside -0.2 .. +2 %", "astrometry"),
    Bit(19, "GRID_RESIDUAL", "largest in-grid median astrometric residual > 0.7 arcsec", "astrometry"),
    Bit(20, "NO_PSF", "PSF creation not possible", "photometry"),
    Bit(21, "ASTROM_FRACTION", "detected matches for astrometry < 50 %", "astrometry"),
    Bit(25, "BAD_QUALITY", "cloud or moon composite (archive)", "monitor"),
)


def describe(word: int, registry: tuple[Bit, ...]) -> list[str]:
    """Names of the bits set in ``word``, lowest first."""
    return [bit.name for bit in registry if word >> bit.bit & 1]
