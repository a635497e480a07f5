"""What is known about the instrument: calibration frames, pixel masks, amplifiers, cross-talk.

``core.records`` gives these records on; conventions as there.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.ghosts import GhostGeometry

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U16 = NDArray[np.uint16]
Row = dict[str, Any]

# Last digit of a calibration id. 1, 2, 4 and 5 are the survey's (ztf-facts §2.1), the others ours.
CALIBRATION_TYPES = {
    "pmask": 1, "bias": 2, "dark": 3, "hifreqflat": 4, "loflat": 5, "fringe": 6, "shutter": 7, "instrument": 8,
}  # fmt: skip
_NIGHT_ZERO = dt.date(2017, 1, 1)


def calid_of(kind: str, nid: int, rcid: int, fid: int) -> str:
    """Identifier of a calibration product: [nid] rcid(2) fid(2) type(1)."""
    return f"{nid}{rcid:02d}{fid:02d}{CALIBRATION_TYPES[kind]}"


def nid_of_night(night: str) -> int:
    """Night identifier of a UT date, YYYYMMDD."""
    return (dt.datetime.strptime(night, "%Y%m%d").date() - _NIGHT_ZERO).days


def night_of_nid(nid: int) -> str:
    """UT date, YYYYMMDD, of a night identifier."""
    return f"{_NIGHT_ZERO + dt.timedelta(days=nid):%Y%m%d}"


@dataclass(frozen=True, slots=True)
class Aggressor:
    """The bright pixels of another quadrant of the same CCD, which cross-talk left in this one.

    ``index`` (n,) int32, ascending: flat index in *read* order (``core.camera.read_order``: first pixel read at
    [0, 0]), so that the same number is the same moment in all four quadrants. ``value`` (n,) uint16 raw DN,
    saturated and bled pixels as they are. ``level`` is that quadrant's raw level without stars (DN, bias and sky in).
    All pixels of more than ``threshold`` DN above ``level`` are here.
    """

    qid: int
    index: I32
    value: U16
    level: float
    threshold: float


@dataclass(frozen=True, slots=True)
class CalibrationFrame:
    """A frame of one readout channel, its uncertainty and where it came from.

    ``data`` by ``kind``: ``bias`` DN; ``hifreqflat`` and ``loflat`` response, median 1; ``fringe`` DN of a pattern of
    r.m.s. 1; ``shutter`` seconds that a pixel is open beyond EXPTIME (negative: less). ``qa["jd_end"]`` is the start of
    the newest exposure it is made of.
    """

    kind: str
    rcid: int
    fid: int  # 0 for a bias
    nid: int
    night: str
    data: F32
    unc: F32
    badpix: U16  # mask bits found while building it
    n_frames: int
    calid: str  # the survey's calibration identifier, ztf-facts §2.1
    qa: Row = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PixelMask:
    """The bad pixels of one readout channel for good (bits of ``Mask``), from a night's biases, darks and flats."""

    rcid: int
    fid: int
    nid: int
    night: str
    mask: U16
    n_frames: int
    calid: str  # type 1 of ztf-facts §2.1
    qa: Row = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """What frames say about one amplifier; NaN where it was not measured. ``..._unc`` are 1 sigma."""

    gain: float = float("nan")  # e-/DN
    gain_unc: float = float("nan")
    readnoise: float = float("nan")  # e-
    readnoise_unc: float = float("nan")
    saturate: float = float("nan")  # raw DN, bias in: where pixels pile up, or the lowest value that is not linear
    saturate_unc: float = float("nan")


@dataclass(frozen=True, slots=True)
class InstrumentModel:
    """What an observatory does not hand over about one CCD, measured from its frames.

    ``channels`` by qid - 1. ``crosstalk`` (4, 4) float64 [to, from] by qid - 1: share of the aggressor's measured DN
    (over bias and sky) that appears in the victim at the same read position; NaN where not measured, zero on the
    diagonal. ``crosstalk_unc`` its 1-sigma uncertainty.
    """

    ccdid: int
    nid: int
    night: str
    channels: tuple[ChannelFacts, ChannelFacts, ChannelFacts, ChannelFacts]
    crosstalk: F64
    crosstalk_unc: F64
    n_frames: int
    qa: Row = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Distortion:
    """What a channel's earlier images say of its optics in one filter: the map from pixels to the sky beyond its plane.

    ``mean`` and ``sigma`` (15, 2) px along x and y: coefficients of 1, x, y, x^2, xy, y^2, ... to degree 4 with x, y in
    -1..1 over the image, in units of the map's own linear part (``stream.astrometry.distortion``), and their scatter
    between exposures, the air's included. The first three rows are 0 and infinite: pointing, turn and scale are
    every exposure's own.
    """

    rcid: int
    fid: int
    mean: F64
    sigma: F64
    n_exposures: int
    nights: tuple[str, str]  # first and last, YYYYMMDD


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """What a quadrant is calibrated with; ``None`` where nothing valid exists (the quality record says so).

    ``flat`` is the night's high-frequency flat, ``loflat`` multiplies it (dome lamp to sky). ``persistent`` (ny, nx)
    has ``Mask.PERSISTENT`` where artefacts return night after night. ``ghosts`` is the calibrated geometry of this
    channel's ghosts, ``distortion`` what is known of its optics in the exposure's filter.
    """

    bias: CalibrationFrame | None = None
    flat: CalibrationFrame | None = None
    loflat: CalibrationFrame | None = None
    fringe: CalibrationFrame | None = None
    pixelmask: PixelMask | None = None
    instrument: InstrumentModel | None = None
    persistent: U16 | None = None
    ghosts: GhostGeometry | None = None
    shutter: CalibrationFrame | None = None
    distortion: Distortion | None = None


@dataclass(frozen=True, slots=True)
class Sightings:
    """Detections of one readout channel: pixel places (first is 0), sky places (deg), exposure and night of each."""

    x: F64
    y: F64
    ra: F64
    dec: F64
    exposure: NDArray[np.int64]
    night: NDArray[np.int64]
