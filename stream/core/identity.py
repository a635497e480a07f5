"""The survey's identifier arithmetic: pure integer functions, computed once at ingest.

Checked against real packets (``tests/core/test_identity.py``); rules as in real headers and alerts:

- ``nid``    days since 2017-01-01 UT
- ``expid``  nid x 100000 + first five digits of the UT day fraction of the exposure start
- ``rcid``   4 x (ccdid - 1) + (qid - 1), readout channel 0..63
- ``rid``    expid x 100 + rcid
- ``pid``    rid x 100 + 15 (15 is the science/difference pipeline)
- ``candid`` pid x 10^6 + version x 10^4 + sign x 1000 + tblid; sign 5 for positive, 0 for negative
- ``rfid``   field x 10^6 + 12 x 10^4 + fid x 100 + rcid
"""

from __future__ import annotations

import datetime as dt
import math

NIGHT_ZERO_JD = 2457754.5  # 2017-01-01T00:00 UT
SCIENCE_PIPELINE = 15
REFERENCE_PIPELINE = 12
CANDID_VERSION = 1
MAX_TBLID = 4999  # rows of one sign; a positive row 5000 would collide with nothing but leaves the field
FILTER_CODES = {1: "zg", 2: "zr", 3: "zi"}
FILTER_IDS = {code: fid for fid, code in FILTER_CODES.items()}

_UNIX_EPOCH_JD = 2440587.5
# A Julian date in a double resolves 40 microseconds: a fraction written as exactly .17380 may be stored a
# hair below it. One thousandth of the last kept digit (0.9 ms) lifts it back; it is far below the shutter's jitter.
_FRACTION_GUARD = 1e-3


def nid_of(jd: float) -> int:
    """Night identifier of an exposure that starts at ``jd`` (UTC Julian date)."""
    return math.floor(jd - NIGHT_ZERO_JD)


def expid_of(jd: float) -> int:
    """Exposure identifier of an exposure that starts at ``jd`` (UTC Julian date)."""
    frac5 = math.floor(((jd - NIGHT_ZERO_JD) % 1.0) * 1e5 + _FRACTION_GUARD)
    nid = nid_of(jd)
    if frac5 >= 100_000:  # the guard crossed midnight
        return (nid + 1) * 100_000
    return nid * 100_000 + frac5


def rcid_of(ccdid: int, qid: int) -> int:
    """Readout channel 0..63 of quadrant ``qid`` (1..4) of CCD ``ccdid`` (1..16)."""
    if not (1 <= ccdid <= 16 and 1 <= qid <= 4):
        raise ValueError(f"no such quadrant: ccdid={ccdid}, qid={qid}")
    return 4 * (ccdid - 1) + (qid - 1)


def ccd_qid_of(rcid: int) -> tuple[int, int]:
    """CCD (1..16) and quadrant (1..4) of readout channel ``rcid``."""
    if not 0 <= rcid <= 63:
        raise ValueError(f"no such readout channel: rcid={rcid}")
    return rcid // 4 + 1, rcid % 4 + 1


def rid_of(expid: int, rcid: int) -> int:
    """Identifier of one readout channel's image of one exposure."""
    return expid * 100 + rcid


def pid_of(rid: int) -> int:
    """Processing identifier of the science/difference products of ``rid``."""
    return rid * 100 + SCIENCE_PIPELINE


def candid_of(pid: int, positive: bool, tblid: int, version: int = CANDID_VERSION) -> int:
    """Candidate identifier from its row in the extraction table of its sign.

    ``tblid`` is 0-based. Rows 1000 to 4999 carry into the sign digit (positive: 5..9, negative: 0..4), which
    stays unique and keeps the arithmetic; rows beyond that are refused, the extraction room never makes them.
    """
    if not 0 <= tblid <= MAX_TBLID:
        raise ValueError(f"tblid {tblid} outside 0..{MAX_TBLID}: the candid would collide")
    return pid * 1_000_000 + version * 10_000 + (5000 if positive else 0) + tblid


def pid_of_candid(candid: int) -> int:
    """Processing identifier inside a candidate identifier."""
    return candid // 1_000_000


def version_digits(candid: int) -> int:
    """The two version digits inside a candidate identifier."""
    return candid // 10_000 % 100


def rfid_of(field: int, fid: int, rcid: int) -> int:
    """Reference image identifier of a field, filter and readout channel."""
    return field * 1_000_000 + REFERENCE_PIPELINE * 10_000 + fid * 100 + rcid


def utc_of(jd: float) -> dt.datetime:
    """UTC date and time of a Julian date, to the millisecond (leap seconds as in Unix time)."""
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(milliseconds=round((jd - _UNIX_EPOCH_JD) * 86_400_000))


def jd_of(utc: dt.datetime) -> float:
    """Julian date of a UTC date and time (naive values are taken as UTC)."""
    if utc.tzinfo is None:
        utc = utc.replace(tzinfo=dt.UTC)
    return _UNIX_EPOCH_JD + utc.timestamp() / 86_400.0


def night_of(jd: float) -> str:
    """``YYYYMMDD``: UT date of the exposure start, as topics and product paths carry it."""
    return utc_of(jd).strftime("%Y%m%d")


def alert_topic_of(jd: float, programid: int) -> str:
    """Name of the nightly alert topic that a packet with this ``jd`` and ``programid`` belongs to."""
    return f"ztf_{night_of(jd)}_programid{programid}"
