"""One registry for the bits of mask images and of INFOBITS: names, meanings, who sets them.

Mask bits follow the survey (``ztf-facts.md`` §2.4), INFOBITS the thresholds written in real headers (§2.6, and the
``BITnn`` cards of headers of 2025). The reserved bits 13 to 15 carry our own artefacts; product headers say so
(``MBIT13`` ...). ``docs/flags.md`` is made from here: ``python -m stream.core.flagspage docs/flags.md``.
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
    CATALOG_FRACTION = 1 << 13
    FEW_ASTROM_MATCHES = 1 << 14
    GRID_MATCHES = 1 << 15
    PIXEL_SCALE = 1 << 16
    CHI_CHANGE = 1 << 17
    CHI_SQUARE = 1 << 18
    GRID_RESIDUAL = 1 << 19
    NO_PSF = 1 << 20
    ASTROM_FRACTION = 1 << 21
    TRACKS = 1 << 22
    BAD_QUALITY = 1 << 25


# STATUS of an image with one of these is 0, bad: it cannot be placed on the sky or put on a magnitude scale.
FATAL_INFO_BITS = int(Info.NO_ZEROPOINT | Info.NO_ASTROMETRY | Info.NO_PSF)


def status_of(infobits: int) -> int:
    """The survey's STATUS: 0 bad, 1 usable."""
    return 0 if infobits & FATAL_INFO_BITS else 1


@dataclass(frozen=True, slots=True)
class Bit:
    """One bit: number, name, what it means in a line, which room sets it, and what a user should know about it.

    ``meaning`` of an INFOBITS bit carries the threshold as the survey's headers write it.
    """

    bit: int
    name: str
    meaning: str
    set_by: str
    text: str = ""


MASK_BITS = (
    Bit(
        0, "TRACK", "aircraft or satellite track", "calibrate.tracks",
        "Straight trails of at least 400 px, found on the science image itself by a Radon transform of its binned "
        "sky and followed at full resolution. Diffraction spikes and bleeds are not tracks. The quality record says "
        "what made each (satellite, flashing satellite, aircraft). Shorter trails are detections: see the streaks.",
    ),
    Bit(
        1, "SOURCE", "contains a detected source (not a defect)", "photometry.measure",
        "Within the 3-sigma ellipse of a detection.",
    ),
    Bit(
        2, "LOW_RESPONSE", "low responsivity", "calibrate.frames",
        "The flat is far below its surroundings, but light still comes through. From the night's flats.",
    ),
    Bit(
        3, "HIGH_RESPONSE", "high responsivity", "calibrate.frames",
        "The flat is far above its surroundings, or a dark shows charge that the flat cannot explain.",
    ),
    Bit(
        4, "NOISY", "noisy pixel", "calibrate.frames, calibrate.spikes",
        "Scatters more than its neighbours from bias to bias; or a column with sharp pixels on a tenth of its rows.",
    ),
    Bit(
        5, "GHOST", "ghost from a bright source", "calibrate.ghosts",
        "Counter-moving reflection of a star of V <= 7 anywhere in the camera's field, where it is brighter than the "
        "sky's noise in 16 x 16 px. Its geometry is calibrated from images (`calibrate_ghosts`) and kept in the store.",
    ),
    Bit(
        6, "SPILLAGE", "ghost from charge spillage (OBSMJD <= 58779)", "calibrate.ghosts",
        "Charge of heavily saturated pixels that came back later in the readout. The readout was changed on "
        "2019-10-23; later images never carry the bit.",
    ),
    Bit(
        7, "SPIKE", "pixel spike, possible radiation hit", "calibrate.spikes",
        "A single pixel that is sharper than any star can be.",
    ),
    Bit(
        8, "SATURATED", "saturated or bled into", "calibrate.image",
        "At the amplifier's ceiling, beside such a pixel, or the end of a bleeding column, which is filled in part.",
    ),
    Bit(9, "DEAD", "dead (unresponsive)", "calibrate.frames", "The flat shows next to no light."),
    Bit(10, "NAN", "no value", "calibrate.image", "The calibrated value is not a number."),
    Bit(
        11, "PSF_SOURCE", "contains a PSF-extracted source position (not a defect)", "photometry.measure",
        "The pixel that a source of the PSF catalogue falls into.",
    ),
    Bit(
        12, "HALO", "halo of a bright star, 367 arcsec radius", "calibrate.halos",
        "Co-moving reflection around every star of V <= 6.5, also of stars beyond the quadrant's edge.",
    ),
    Bit(
        13, "CROSSTALK", "cross-talk from another amplifier of the CCD (ours)", "calibrate.crosstalk",
        "The survey reserves the bit. Light of a bright pixel that was read at the same moment by another amplifier: "
        "the correction exceeds the pixel's noise, or the other pixel was saturated, so that it is not known.",
    ),
    Bit(
        14, "COSMIC_RAY", "cosmic ray found by its shape (ours)", "calibrate.spikes",
        "The survey reserves the bit. A group of pixels sharper than the PSF: particle tracks, muons, worms.",
    ),
    Bit(
        15, "PERSISTENT", "artefact that returns at the same pixel night after night (ours)", "calibrate.persistent",
        "The survey reserves the bit. Detections came back at the same detector position over several nights and "
        "fields; the map is learned from the catalogues.",
    ),
)  # fmt: skip


INFO_BITS = (
    Bit(0, "BACKGROUND", "median background level > 4000 DN", "photometry"),
    Bit(1, "NOISE", "robust pixel noise > 100 DN", "photometry"),
    Bit(2, "SATURATION", "saturated pixels > 50 %", "calibrate", "Pixels with mask bit 8."),
    Bit(3, "SEEING", "seeing (FWHM) > 5 arcsec", "photometry"),
    Bit(4, "MAGLIM_CATALOG", "MAGLIM from the PSF catalogue's uncertainties < 17.5 mag", "photometry"),
    Bit(5, "MAGLIM_FORMULA", "MAGLIM from the noise formula < 17.5 mag", "photometry"),
    Bit(6, "FEW_PSF_SOURCES", "PSF-catalogue sources < 10", "photometry"),
    Bit(7, "FEW_SOURCES", "aperture-catalogue sources < 20", "photometry"),
    Bit(
        8, "NO_ZEROPOINT", "photometric calibration not possible", "photometry",
        "Fatal: STATUS is 0 and no science product is made.",
    ),
    Bit(9, "FEW_CALIBRATORS", "photometric calibrators < 30", "photometry"),
    Bit(10, "FEW_PHOT_MATCHES", "matches for the zero point < 5", "photometry"),
    Bit(11, "PHOT_RMS", "r.m.s. of photometric residuals > 0.2 mag", "photometry"),
    Bit(
        12, "NO_ASTROMETRY", "astrometric calibration not possible", "astrometry",
        "Fatal: STATUS is 0 and no science product is made.",
    ),
    Bit(
        13, "CATALOG_FRACTION", "percentage of reference-catalogue matches < 0", "astrometry",
        "The survey's headers write a threshold of 0 %, so that the bit is never set, there or here. The percentage "
        "itself is in the quality record.",
    ),
    Bit(14, "FEW_ASTROM_MATCHES", "matches for astrometry < 100", "astrometry"),
    Bit(15, "GRID_MATCHES", "minimum in-grid matches < 5", "astrometry", "On a grid of 3 x 3."),
    Bit(16, "PIXEL_SCALE", "relative pixel scale outside -0.2 .. +2 %", "astrometry"),
    Bit(
        17, "CHI_CHANGE", "change of chi-square from the first to the second pass > 0 %", "astrometry",
        "The survey fits twice with SCAMP. Our first pass is the map with which stars were last paired, our second "
        "the final fit; chi-square is per degree of freedom of the same pairs in both.",
    ),
    Bit(
        18, "CHI_SQUARE", "chi-square of the second pass > 55", "astrometry",
        "As above. 30 in headers of 2017, 55 from 2020 on; SCAMP's errors are smaller than ours, its values larger.",
    ),
    Bit(19, "GRID_RESIDUAL", "largest in-grid median astrometric residual > 0.7 arcsec", "astrometry"),
    Bit(
        20, "NO_PSF", "PSF creation (hence PSF-fit photometry) not possible", "photometry",
        "Fatal: STATUS is 0; an image that came calibrated is still measured with a PSF of its header's seeing.",
    ),
    Bit(21, "ASTROM_FRACTION", "detected matches for astrometry < 50 %", "astrometry"),
    Bit(
        22, "TRACKS", "pixels masked as a track > 0.53 %", "calibrate.tracks",
        "Not in the survey's documentation and absent from headers of 2017 and 2020; headers of 2025 write this "
        "meaning and threshold (BIT22).",
    ),
    Bit(
        25, "BAD_QUALITY", "probably unusable: cloud, by MAGZP, its scatter or calibrators", "photometry.cloud",
        "Airmass-dependent limits on MAGZP, MAGZPRMS and NMATCHES by filter and readout channel (Explanatory "
        "Supplement §13.4). The survey's archive sets it; ours is set when the image is made. Its value, 33554432, "
        "is the usual cut: `infobits < 33554432` is likely usable, 0 is cleanest.",
    ),
)  # fmt: skip
# Seen in the survey's data and not set here: 26 ("bad frame by cut of Andrew Drake" in headers of 2025) and 27.


def describe(word: int, registry: tuple[Bit, ...]) -> list[str]:
    """Names of the bits set in ``word``, lowest first."""
    return [bit.name for bit in registry if word >> bit.bit & 1]
