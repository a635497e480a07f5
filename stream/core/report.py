"""The quality record of a quadrant."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a quadrant ended."""

    OK = "ok"
    NO_REFERENCE = "no_reference"  # science products made, nothing to subtract from
    FAILED = "failed"


@dataclass(slots=True)
class QuadrantReport:
    """The quality record of one quadrant: what `qa.json`, `ztf.quadrants` and the JSON line of `process` carry.

    ``seconds`` (per step, CPU) is wall-clock dependent and therefore not part of ``qa.json``.
    """

    name: str
    field: int
    fid: int
    ccdid: int
    qid: int
    rcid: int
    programid: int
    nid: int
    expid: int
    rid: int
    pid: int
    jd: float
    jd_mid: float
    exptime: float
    status: Status = Status.OK
    stage: str | None = None  # where it failed
    reason: str | None = None
    infobits: int | None = None
    seeing: float | None = None
    magzp: float | None = None
    magzpunc: float | None = None
    magzprms: float | None = None
    clrcoeff: float | None = None
    clrcounc: float | None = None
    maglim: float | None = None
    astrrms1: float | None = None  # deg, as the survey's keyword
    astrrms2: float | None = None
    astromn: int | None = None
    scibckgnd: float | None = None
    scisigpix: float | None = None
    diffmaglim: float | None = None
    rfid: int | None = None
    reference_version: str | None = None
    n_sources: int | None = None
    n_candidates: int | None = None
    n_rejected: int | None = None
    n_streaks: int | None = None
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)
    corners: list[float] = dataclasses.field(default_factory=list)  # ra1, dec1 .. ra4, dec4 (deg) of the image corners
    calids: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    procstatus: int | None = None  # the survey's STATUS: 0 bad, 1 usable
    cloud: str | None = None  # "clear", or the cloud rules that are broken
    airmass: float | None = None
    nmatches: int | None = None  # photometric calibrators
    zpclrcov: float | None = None
    zpmed: float | None = None
    clrmed: float | None = None
    clrrms: float | None = None
    zpmap: list[float] = dataclasses.field(default_factory=list)  # mag, coefficients of the zero-point map
    zpmaprms: float | None = None  # mag, calibrators about zero point and map
    maglimcat: float | None = None  # MAGLIM as the catalogue's errors say; `maglim` is the formula's
    astchi2: float | None = None
    n_catalog: int | None = None  # catalogue stars on the image
    cal_age: float | None = None  # days, of the oldest nightly frame used
    n_tracks: int | None = None
    tracks: list[str] = dataclasses.field(default_factory=list)  # what made each
    # Shares (0..1) of the pixels with the bits of these names, and with any bit of a defect ("bad").
    masked: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
