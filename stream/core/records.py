"""The typed records that pass between rooms.

Conventions, everywhere unless a docstring says otherwise:

- pixel places are numpy's: ``image[y, x]``, centre of the first pixel at (0, 0); products and packets carry
  FITS places (first is 1), converted where they are written;
- images are float32 in DN; sky positions are degrees, ICRS; times are UTC Julian dates;
- a number that could not be measured is NaN inside the rooms and null in messages, never a sentinel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.core import identity
from stream.core.depth import DepthMap as DepthMap
from stream.core.errors import Permanent
from stream.core.instrument import Aggressor as Aggressor
from stream.core.instrument import CalibrationFrame as CalibrationFrame
from stream.core.instrument import CalibrationSet as CalibrationSet
from stream.core.instrument import ChannelFacts as ChannelFacts
from stream.core.instrument import Distortion as Distortion
from stream.core.instrument import InstrumentModel as InstrumentModel
from stream.core.instrument import PixelMask as PixelMask
from stream.core.instrument import Row as Row
from stream.core.instrument import Sightings as Sightings
from stream.core.messages import BatchItem as BatchItem
from stream.core.messages import CandidateBatch as CandidateBatch
from stream.core.messages import Streak as Streak
from stream.core.messages import Tracklet as Tracklet
from stream.core.report import QuadrantReport as QuadrantReport
from stream.core.report import Status as Status
from stream.core.tables import APERTURE_DIAMETERS as APERTURE_DIAMETERS
from stream.core.tables import BRIGHT_DTYPE as BRIGHT_DTYPE
from stream.core.tables import DETECTION_DTYPE as DETECTION_DTYPE
from stream.core.tables import GAIA_DTYPE as GAIA_DTYPE
from stream.core.tables import PS1_DTYPE as PS1_DTYPE
from stream.core.tables import SOURCE_DTYPE as SOURCE_DTYPE
from stream.core.tables import Table as Table
from stream.core.zeropointmap import ZeroPointMap as ZeroPointMap

if TYPE_CHECKING:  # a second of a process's start, and most of ours have no pixels
    from astropy.wcs import WCS

    from stream.core.displacement import Displacement
    from stream.core.psf import PsfModel

V = TypeVar("V")
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]

# BP-RP to which sky places belong where too few stars of the image tell theirs: a star of g-r 0.6.
MEAN_COLOUR = 1.1


@dataclass(frozen=True, slots=True)
class Exposure:
    """One CCD of one exposure, as its primary header tells it.

    ``jd`` is the start (OBSJD; identifiers and ``candidate.jd`` follow from it), ``jd_mid`` the middle of the
    shutter's opening (SHUTOPEN, SHUTCLSD). ``name`` is the packet's file name without its extension, e.g.
    ``ztf_20181129252384_000651_zr_c03_o``. ``header`` holds the primary cards that are read where present,
    missing ones left out (the survey's -9999 counts as missing).
    """

    name: str
    imgtype: str  # object, bias, dark, flat
    field: int
    fid: int
    ccdid: int
    programid: int
    jd: float
    jd_mid: float
    exptime: float
    ra: float  # telescope pointing, deg; NaN for calibration frames
    dec: float
    airmass: float = float("nan")
    too: bool = False
    header: Row = dataclasses.field(default_factory=dict)

    @property
    def nid(self) -> int:
        """Night identifier."""
        return identity.nid_of(self.jd)

    @property
    def expid(self) -> int:
        """Exposure identifier."""
        return identity.expid_of(self.jd)

    @property
    def night(self) -> str:
        """UT date of the start, YYYYMMDD."""
        return identity.night_of(self.jd)

    @property
    def filtercode(self) -> str:
        """zg, zr or zi."""
        return identity.FILTER_CODES[self.fid]


@dataclass(frozen=True, slots=True)
class Quadrant:
    """One readout quadrant of one exposure: who every later record is about."""

    exposure: Exposure
    qid: int

    @property
    def rcid(self) -> int:
        """Readout channel, 0..63."""
        return identity.rcid_of(self.exposure.ccdid, self.qid)

    @property
    def rid(self) -> int:
        """Identifier of this channel's image of this exposure."""
        return identity.rid_of(self.exposure.expid, self.rcid)

    @property
    def pid(self) -> int:
        """Identifier of this image's science processing."""
        return identity.pid_of(self.rid)

    @property
    def rfid(self) -> int:
        """Identifier of the reference image that this quadrant is subtracted from."""
        return identity.rfid_of(self.exposure.field, self.exposure.fid, self.rcid)

    @property
    def name(self) -> str:
        """Product base name, e.g. ``ztf_20181129252384_000651_zr_c03_o_q1``."""
        return f"{self.exposure.name}_q{self.qid}"


def new_report(quadrant: Quadrant) -> QuadrantReport:
    """A quality record with the quadrant's identity and nothing else."""
    e = quadrant.exposure
    return QuadrantReport(
        quadrant.name, e.field, e.fid, e.ccdid, quadrant.qid, quadrant.rcid, e.programid, e.nid, e.expid,
        quadrant.rid, quadrant.pid, e.jd, e.jd_mid, e.exptime,
    )  # fmt: skip


def failed_report(quadrant: Quadrant, error: Permanent) -> QuadrantReport:
    """The quality record of a quadrant of which nothing could be made, not even pixels."""
    report = new_report(quadrant)
    report.status, report.stage, report.reason, report.procstatus = Status.FAILED, error.stage, str(error), 0
    return report


@dataclass(frozen=True, slots=True)
class RawQuadrant:
    """Pixels as they came: ``image`` (ny, nx) and ``overscan`` (ny, n_overscan), uint16 raw DN.

    Row i of the overscan was read right after row i of the image; its column 0 first. ``aggressors`` are the other
    quadrants of the CCD as far as they are known, three at most; empty: nobody looked.
    """

    quadrant: Quadrant
    image: U16
    overscan: U16
    gain: float  # e-/DN
    readnoise: float  # e-
    saturate: float  # raw DN, bias in
    aggressors: tuple[Aggressor, ...] = ()


@dataclass(frozen=True, slots=True)
class CalibratedImage:
    """A quadrant after overscan, linearity, cross-talk, bias and flats; sky still in.

    ``saturate`` is in this image's own DN, sky in. Variance in DN^2 is ``data / gain + (readnoise / gain)^2``,
    derived, never stored. ``notes`` names what was missing (``no_bias``, ``no_flat``, ...). ``age`` is that of the
    oldest nightly frame used (bias, flat) in days; NaN where there was none.
    """

    quadrant: Quadrant
    data: F32
    mask: U16
    gain: float
    readnoise: float
    saturate: float
    overscan_level: float = float("nan")
    calids: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    age: float = float("nan")


@dataclass(frozen=True, slots=True)
class Background:
    """Sky of an image: ``level`` and ``rms`` (ny, nx) float32 DN, and their medians."""

    level: F32
    rms: F32
    median: float
    sigma: float  # robust noise per pixel


@dataclass(frozen=True, slots=True)
class Astrometry:
    """A trusted astrometric solution.

    ``wcs`` is TPV, FITS convention inside (use ``origin=0`` for places of this package). ``rms_ra`` and
    ``rms_dec`` are arcsec over the matched stars. ``log_chance`` is log10 of the probability that the match is
    chance. ``infobits`` holds the astrometric bits of INFOBITS. ``chi_square`` is per degree of freedom, over the
    fitted stars.

    ``displacement`` is what the air left beyond the WCS: (dx, dy) to add to a pixel place before it goes through the
    WCS (``stream.astrometry.sky_of``, ``pixel_of``, ``position_sigma`` do). ``centroid`` are the errors (px, an axis)
    of a star's place at S/N 1, falling with S/N, and that which no S/N buys. ``refraction`` is how far (arcsec) a star
    bluer by a mag of BP-RP is lifted to the zenith. ``colour`` is the BP-RP to which sky places belong, the mean of the
    image's stars, ``colour_sigma`` the error (arcsec, along x and y) of the place of a star whose own isn't known. None
    or NaN: not measured.
    """

    wcs: WCS
    rms_ra: float
    rms_dec: float
    n_matched: int
    n_catalog: int
    log_chance: float
    infobits: int = 0
    chi_square: float = float("nan")
    displacement: Displacement | None = None
    centroid: tuple[float, float] = (float("nan"), float("nan"))
    refraction: float = float("nan")
    colour: float = MEAN_COLOUR
    colour_sigma: tuple[float, float] = (0.0, 0.0)

    def sky_of(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sky places (ra 0..360, dec; deg) of pixels, first pixel (0, 0), displacement included; NaN in, NaN out."""
        xs, ys = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
        if xs.size == 0:
            return np.empty(xs.shape), np.empty(xs.shape)
        if self.displacement is not None:
            dx, dy = self.displacement.shift(xs, ys)
            xs, ys = xs + dx.reshape(xs.shape), ys + dy.reshape(ys.shape)
        ra, dec = self.wcs.all_pix2world(xs, ys, 0)
        return ra, dec


@dataclass(frozen=True, slots=True)
class ZeroPoint:
    """m_PS1 - m_inst = magzp + clrcoeff x colour, the survey's keywords; colour is g-r for g and r, r-i for i.

    ``map`` says how ``magzp`` varies over the image (``magzp + map.offset(x, y)`` at a place); None: as far as the
    stars tell, it doesn't. ``magzp`` is the median over the image.
    """

    magzp: float
    magzpunc: float
    magzprms: float
    clrcoeff: float
    clrcounc: float
    zpclrcov: float
    pcolor: str
    n_matches: int
    zpmed: float = float("nan")
    zpavg: float = float("nan")
    clrmed: float = float("nan")
    clravg: float = float("nan")
    clrrms: float = float("nan")
    map: ZeroPointMap | None = None

    def at(self, x: ArrayLike, y: ArrayLike) -> F64:
        """Zero point (mag) at places (px, first pixel is 0), in their shape."""
        if self.map is None:
            return np.full(np.shape(x), self.magzp)
        return self.magzp + self.map.offset(x, y)


@dataclass(frozen=True, slots=True)
class Track:
    """A long straight trail on an image: what made it, its ends (px), and its look.

    ``kind`` is satellite, flashing satellite or aircraft. ``width`` (px) is that of the masked strip, ``fwhm`` (px) of
    the light across, ``light`` DN per px of length.
    """

    kind: str
    x1: float
    y1: float
    x2: float
    y2: float
    width: float
    fwhm: float
    light: float


@dataclass(frozen=True, slots=True)
class ScienceImage:
    """Everything known about one calibrated image before subtraction; also what references are made of.

    ``quadrant`` is that of the packet; for an image that came calibrated it is made from its header.
    ``data`` has its sky in; ``background.level`` is the sky. ``sources`` has ``SOURCE_DTYPE``. ``apcor`` is
    PSF_mag - AP_mag for ``APERTURE_DIAMETERS``. ``cal_age`` is that of ``CalibratedImage``, ``cloud`` the verdict of
    the cloud rules (``clear``, or which are broken; empty: not judged). ``maglim`` is the formula's,
    ``maglimcat`` that of the catalogue's errors.
    """

    quadrant: Quadrant
    data: F32
    mask: U16
    gain: float
    readnoise: float
    saturate: float
    background: Background
    psf: PsfModel
    astrometry: Astrometry
    zeropoint: ZeroPoint
    sources: Table
    maglim: float
    infobits: int = 0
    apcor: tuple[float, ...] = ()
    apcorunc: tuple[float, ...] = ()
    calids: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cal_age: float = float("nan")
    cloud: str = ""
    tracks: tuple[Track, ...] = ()
    maglimcat: float = float("nan")

    @property
    def seeing(self) -> float:
        """Median FWHM in px, pixel included."""
        return self.psf.fwhm


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference image of one field, filter and readout channel, sky subtracted, on its own grid.

    ``unc`` is the 1-sigma uncertainty per pixel (DN), ``coverage`` the number of inputs per pixel (0: ``data``
    is NaN there), ``magzp`` its zero point. ``sources`` is its PSF catalogue in its own pixels.
    """

    rfid: int
    field: int
    fid: int
    rcid: int
    data: F32
    unc: F32
    coverage: NDArray[np.int16]
    wcs: WCS
    psf: PsfModel
    magzp: float
    sources: Table
    jd_start: float
    jd_end: float
    n_frames: int
    saturate: float  # DN; pixels at or above it carry no flux to subtract
    version: str  # short hash of inputs and software
    inputs: tuple[str, ...] = ()
    qa: Row = dataclasses.field(default_factory=dict)
    notes: ReferenceNotes | None = None


@dataclass(frozen=True, slots=True)
class ReferenceNotes:
    """What a subtraction finds out about a reference and is small: kept beside it.

    ``version`` is the reference's, ``code`` that of the code that found it out: under any other code it is worth
    nothing. ``stars`` (n, 3) float64: x, y (px), flux (DN) of its saturated stars; ``clean`` (m,) int64: rows of its
    sources to match with; ``typical`` DN: median noise.
    """

    version: str
    code: str
    stars: NDArray[np.float64]
    clean: NDArray[np.int64]
    typical: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference image on the science grid and everything needed to judge what is in it.

    ``data`` is DN on the science zero point, NaN where unusable; ``scorr`` the corrected matched-filter score
    (unit variance on empty sky), NaN likewise; ``sigma`` the 1-sigma noise per pixel of ``data``;
    ``score_rms`` what ``ssnrms`` needs, the r.m.s. of the uncorrected score S; ``score`` S itself.
    ``reference`` is the reference on the science grid in science DN, sky off, NaN outside its coverage.
    ``mask`` are the science mask's bits, with the reference's defects added.
    """

    data: F32
    scorr: F32
    score: F32
    sigma: F32
    psf: PsfModel
    fwhm: float  # of the difference PSF at the centre, px
    reference: F32
    mask: U16
    flux_scale: float  # reference DN times this is science DN
    registration_rms: tuple[float, float]  # px, x and y
    diffmaglim: float  # 5-sigma, whole quadrant


@dataclass(frozen=True, slots=True)
class Stamps:
    """Cutouts around a candidate, float32, 63 x 63 except at an edge; science and template with sky off-or-on as
    the survey's: science as calibrated (sky in), template sky-subtracted on the science grid, difference signed
    so that the candidate is positive."""

    science: F32
    template: F32
    difference: F32


@dataclass(slots=True)
class Candidate:
    """One extracted event. Mutable: later rooms fill in their fields of the packet.

    ``fields`` has exactly the names of the packet's ``candidate`` record (None where not known yet), ``extra``
    the names of our own extension record. ``rejected`` says why it is not sent; None: it is.
    """

    fields: Row
    extra: Row
    rejected: str | None = None
    stamps: Stamps | None = None

    @property
    def candid(self) -> int:
        """Candidate identifier."""
        return int(self.fields["candid"])


@dataclass(slots=True)
class QuadrantResult:
    """All that the science makes of one quadrant."""

    report: QuadrantReport
    quadrant: Quadrant
    science: ScienceImage | None = None
    reference: Reference | None = None
    difference: Difference | None = None
    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    streaks: list[Streak] = dataclasses.field(default_factory=list)
    depth: DepthMap | None = None  # of the difference
    fakes: Table | None = None  # injected sources and what became of them (``stream.fakes.FAKE_DTYPE``)
    traceback: str | None = None
    # Wall seconds from the start to the end of each step.
    elapsed: dict[str, float] = dataclasses.field(default_factory=dict)


class QuadrantInputs(Protocol):
    """What the science asks of the outside: calibration, catalogues, references. Implemented by ``archive``."""

    def calibration(self, quadrant: Quadrant) -> CalibrationSet:
        """Newest valid frames before the exposure."""
        ...

    def gaia(self, ra: float, dec: float, radius: float) -> Table:
        """Gaia stars (``GAIA_DTYPE``) within ``radius`` deg; empty where nothing is imported."""
        ...

    def ps1(self, ra: float, dec: float, radius: float) -> Table:
        """Pan-STARRS1 objects (``PS1_DTYPE``) within ``radius`` deg."""
        ...

    def bright(self, ra: float, dec: float, radius: float) -> Table:
        """Bright stars (``BRIGHT_DTYPE``) within ``radius`` deg."""
        ...

    def reference(self, quadrant: Quadrant) -> Reference | None:
        """The current reference of that field, filter and channel."""
        ...

    def prepared(self, reference: Reference, make: Callable[[Reference], V]) -> V:
        """What ``make``, a pure function, makes of a reference: remembered by its version as long as memory allows."""
        ...
