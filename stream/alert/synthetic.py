"""A batch of alerts that looks like a night's and comes from no image: for timing the writer and for examples.

Stamps are sky noise with a star in the middle, so that they compress as real ones do; every record obeys the rules of
``stream.alert.rules``. The same arguments give the same batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.alert.schema import CANDIDATE_FIELDS, EXTENSION_FIELDS, FP_FIELDS, PRV_FIELDS
from stream.alert.stamps import STAMP_SIDE, encode_stamp
from stream.core.camera import FULL
from stream.core.identity import MAX_TBLID, candid_of, expid_of, nid_of, night_of, pid_of, rfid_of, rid_of
from stream.core.records import BatchItem, CandidateBatch, Row

_JD, _FIELD, _FID, _RCID = 2458452.02384, 651, 2, 8
_SKY, _NOISE = 300.0, 8.0  # DN, a dark r-band exposure of 30 s
_DIFFMAGLIM, _MAGZP, _FWHM = 20.5, 26.2, 2.2
# Epochs before the alert, days: what a public field gets in a month, two filters every second night. Every third saw
# something. Real packets hold 11 to 67 rows and up to 21 forced points.
_HISTORY_DAYS = tuple(29.0 - 2.0 * i + hour for i in range(14) for hour in (0.0, -0.125))
_EDGE = 40.0  # px: every stamp is whole


def synthetic_batch(n: int, seed: int = 1, jd: float = _JD) -> CandidateBatch:
    """One quadrant's batch of ``n`` enriched and scored candidates of an exposure that started at ``jd``.

    Each has a month's history: 28 epochs, detections, limits and a forced point of each.

    Raises
    ------
    ValueError
        ``n`` is negative, or more than one quadrant can number.
    """
    if not 0 <= n <= MAX_TBLID + 1:
        raise ValueError(f"{n} candidates: one quadrant numbers 0 to {MAX_TBLID + 1}")
    rng = np.random.default_rng(seed)
    pid = pid_of(rid_of(expid_of(jd), _RCID))
    name = f"ztf_{night_of(jd)}523840_{_FIELD:06d}_zr_c03_o_q1"
    items = [_item(rng, pid, tblid, jd, name) for tblid in range(n)]
    return CandidateBatch(name, pid, _FIELD, _FID, _RCID, 1, jd, jd + 15.0 / 86_400.0, 30.0, 0, 1, items)


def _item(rng: np.random.Generator, pid: int, tblid: int, jd: float, name: str) -> BatchItem:
    mag = float(rng.uniform(16.0, 20.3))
    star = _star() * np.float32(10 ** (0.4 * (_MAGZP - mag)))
    difference = (star + rng.normal(0.0, _NOISE, star.shape)).astype(np.float32)
    template = rng.normal(0.0, 0.5 * _NOISE, star.shape).astype(np.float32)
    science = (difference + template + np.float32(_SKY)).astype(np.float32)
    nneg = int(np.sum(difference[29:34, 29:34] < 0))
    cutouts = (encode_stamp(science), encode_stamp(template), encode_stamp(difference))
    about = {"jd": jd, "nid": nid_of(jd), "pdiffimfilename": f"{name}_scimrefdiffimg.fits.fz"}
    about |= {"jdstarthist": jd - _HISTORY_DAYS[0], "jdendhist": jd}
    candidate = _candidate(rng, pid, tblid, mag, nneg) | about
    history = [_epoch(candidate, jd - days, i % 3 == 0) for i, days in enumerate(_HISTORY_DAYS)]
    forced = [_point(rng, candidate, row["jd"]) for row in [*history, candidate]][::-1]
    return BatchItem(candidate, dict.fromkeys(EXTENSION_FIELDS), cutouts, _object_id(tblid), history, forced)


def _star() -> NDArray[np.float32]:
    middle = STAMP_SIDE // 2
    y, x = np.mgrid[-middle : middle + 1, -middle : middle + 1]
    sigma = _FWHM / 2.3548
    core = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
    return np.asarray(core / core.sum(), np.float32)


def _object_id(number: int) -> str:
    letters = ""
    for _ in range(7):
        number, letter = divmod(number, 26)
        letters = chr(ord("a") + letter) + letters
    return f"ZTF18{letters}"


def _candidate(rng: np.random.Generator, pid: int, tblid: int, mag: float, nneg: int) -> Row:
    x, y = (float(rng.uniform(_EDGE, side - _EDGE)) for side in (FULL.nx, FULL.ny))
    magap, elong = mag + float(rng.normal(0.0, 0.05)), float(rng.uniform(1.0, 1.4))
    aimage = float(rng.uniform(0.8, 1.2))
    dsnrms, ssnrms = (float(v) for v in rng.uniform(5.0, 30.0, 2))
    distances = np.sort(rng.uniform(0.3, 30.0, 3))
    row: Row = dict.fromkeys(CANDIDATE_FIELDS) | {
        "fid": _FID, "pid": pid, "diffmaglim": _DIFFMAGLIM, "programid": 1, "programpi": "Kulkarni",
        "candid": candid_of(pid, True, tblid), "isdiffpos": "t", "tblid": tblid, "rcid": _RCID,
        "field": _FIELD, "xpos": x, "ypos": y, "mindtoedge": min(x, y, FULL.nx + 0.5 - x, FULL.ny + 0.5 - y),
        "ra": 150.0 + x * FULL.pixel_scale / 3600.0, "dec": 20.0 + y * FULL.pixel_scale / 3600.0,
        "magpsf": mag, "sigmapsf": 10 ** (0.4 * (mag - _DIFFMAGLIM)) / 5.0, "magap": magap, "sigmagap": 0.1,
        "magdiff": magap - mag, "magfromlim": _DIFFMAGLIM - magap, "distnr": float(rng.uniform(0.1, 20.0)),
        "magnr": 19.5, "sigmagnr": 0.05, "chinr": 0.5, "sharpnr": 0.0, "sky": 0.1, "fwhm": _FWHM,
        "classtar": 0.9, "aimage": aimage, "bimage": aimage / elong, "elong": elong,
        "aimagerat": aimage / _FWHM, "bimagerat": aimage / elong / _FWHM, "nneg": nneg, "nbad": 0, "dsnrms": dsnrms,
        "ssnrms": ssnrms, "dsdiff": dsnrms - ssnrms, "magzpsci": _MAGZP, "magzpsciunc": 1e-5, "magzpscirms": 0.03,
        "nmatches": 900, "clrcoeff": 0.1, "clrcounc": 1e-5, "scorr": 5.0 * 10 ** (0.4 * (_DIFFMAGLIM - mag)),
        "rb": float(rng.uniform()), "rbversion": "synthetic", "drb": float(rng.uniform()), "drbversion": "synthetic",
        "nmtchps": 3, "rfid": rfid_of(_FIELD, _FID, _RCID), "jdstartref": 2458150.5, "jdendref": 2458320.25,
        "nframesref": 17, "exptime": 30.0, "ndethist": 11, "ncovhist": 29,
        "ranr": 150.0, "decnr": 20.0, "tooflag": 0,
    }  # fmt: skip
    for i, distance in enumerate(distances, 1):
        row |= {f"objectidps{i}": 10**17 + i, f"distpsnr{i}": float(distance), f"sgscore{i}": float(rng.uniform())}
        row |= {f"s{band}mag{i}": float(rng.uniform(15.0, 22.0)) for band in "griz"}
    return {name: row[name] for name in CANDIDATE_FIELDS}


def _epoch(candidate: Row, jd: float, seen: bool) -> Row:
    """One row of the history: a detection at the same place, or a limit."""
    pid = pid_of(rid_of(expid_of(jd), _RCID))
    row: Row = dict.fromkeys(PRV_FIELDS) | {
        "jd": jd, "fid": _FID, "pid": pid, "programid": 1, "nid": nid_of(jd), "rcid": _RCID, "field": _FIELD,
        "diffmaglim": _DIFFMAGLIM, "rbversion": "synthetic", "magzpsci": _MAGZP,
    }  # fmt: skip
    if seen:
        taken = {name: candidate[name] for name in ("isdiffpos", "ra", "dec", "magpsf", "sigmapsf")}
        row |= {"candid": candid_of(pid, True, candidate["tblid"]), **taken}
    return row


def _point(rng: np.random.Generator, candidate: Row, jd: float) -> Row:
    """One forced point."""
    row: Row = dict.fromkeys(FP_FIELDS) | {
        "field": _FIELD, "rcid": _RCID, "fid": _FID, "pid": pid_of(rid_of(expid_of(jd), _RCID)),
        "rfid": candidate["rfid"], "sciinpseeing": _FWHM, "scibckgnd": _SKY, "scisigpix": _NOISE, "magzpsci": _MAGZP,
        "magzpsciunc": 1e-5, "magzpscirms": 0.03, "clrcoeff": 0.1, "clrcounc": 1e-5, "exptime": 30.0,
        "diffmaglim": _DIFFMAGLIM, "programid": 1, "jd": jd, "procstatus": "0",
        "forcediffimflux": float(rng.normal(0.0, 30.0)), "forcediffimfluxunc": float(rng.uniform(28.0, 35.0)),
        "ranr": candidate["ranr"], "decnr": candidate["decnr"], "distnr": 1.5, "magnr": 19.5, "sigmagnr": 0.05,
        "chinr": 0.5, "sharpnr": 0.0,
    }  # fmt: skip
    return {name: row[name] for name in FP_FIELDS}
