"""The records that travel between score, enrich, link and emit: candidates, streaks, tracklets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from stream.core.instrument import Row


@dataclass(slots=True)
class BatchItem:
    """One candidate on its way through score, enrich and emit.

    ``candidate`` has the names of ``ztf.alert.candidate``, ``extension`` those of ``ztf.alert.zsds``;
    ``cutouts`` are the gzip FITS bytes of science, template, difference. The last three are None until
    ``enrich`` fills them.
    """

    candidate: Row
    extension: Row
    cutouts: tuple[bytes, bytes, bytes]
    object_id: str | None = None
    prv_candidates: list[Row] | None = None
    fp_hists: list[Row] | None = None
    rejected: str | None = None  # why it is not sent; only on `ztf.rejected`


@dataclass(slots=True)
class CandidateBatch:
    """The sent candidates of one quadrant (or one of ``n_chunks`` parts of them, beyond the message size limit)."""

    name: str  # Quadrant.name
    pid: int
    field: int
    fid: int
    rcid: int
    programid: int
    jd: float
    jd_mid: float
    exptime: float
    chunk: int
    n_chunks: int
    items: list[BatchItem] = dataclasses.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Streak:
    """A trailed detection in a difference image; positions deg, lengths px, fluxes DN (signed as D)."""

    candid: int
    ra1: float
    dec1: float
    ra2: float
    dec2: float
    length: float
    angle: float  # deg, east of north
    flux: float
    sigflux: float
    mag: float
    snr: float
    score: float
    sig_length: float = float("nan")
    sig_angle: float = float("nan")
    sig_cross: float = float("nan")  # px, across the trail


@dataclass(frozen=True, slots=True)
class Tracklet:
    """Detections of one night on one line at constant speed: a moving object.

    ``trackid`` is deterministic: the smallest candid of its members. ``rate`` deg/day, ``position_angle`` deg
    east of north, ``ra``/``dec`` deg at ``jd`` (mid-exposure of the first detection), ``rms`` arcsec.
    """

    trackid: int
    candids: tuple[int, ...]
    jd: float
    ra: float
    dec: float
    rate: float
    position_angle: float
    rms: float
    mag: float
    night: str
