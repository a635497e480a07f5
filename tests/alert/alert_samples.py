"""One complete alert of our own making, consistent with every rule, to be broken in the tests."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from stream.alert import CANDIDATE_FIELDS, EXTENSION_FIELDS, FP_FIELDS, PRV_FIELDS, encode_stamp
from stream.core.identity import candid_of, expid_of, nid_of, pid_of, rid_of
from stream.core.records import BatchItem, CandidateBatch

JD = 2458452.02384
RCID = 8
PID = pid_of(rid_of(expid_of(JD), RCID))


def stamp(seed: int = 0, shape: tuple[int, int] = (63, 63)) -> np.ndarray:
    image = np.random.default_rng(seed).normal(20, 5, shape).astype(np.float32)
    return np.abs(image)  # no negative pixel: nneg 0


def prv_row(jd: float, detection: bool = True, **changes: Any) -> dict[str, Any]:
    pid = pid_of(rid_of(expid_of(jd), RCID))
    row = dict.fromkeys(PRV_FIELDS) | {
        "jd": jd, "fid": 2, "pid": pid, "programid": 1, "nid": nid_of(jd), "rcid": RCID, "field": 651,
        "diffmaglim": 20.25, "rbversion": "v1",
    }  # fmt: skip
    if detection:
        row |= {"candid": candid_of(pid, True, 3), "isdiffpos": "t", "ra": 150.00001, "dec": 20.00001,
                "magpsf": 18.5, "sigmapsf": 0.125}  # fmt: skip
    return row | changes


def fp_row(jd: float, **changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(FP_FIELDS) | {
        "fid": 2, "pid": pid_of(rid_of(expid_of(jd), RCID)), "rfid": 651120208, "programid": 1, "jd": jd,
        "forcediffimflux": 100.5, "forcediffimfluxunc": 10.25, "magzpsci": 26.25, "procstatus": "0", "ranr": 150.0,
        "decnr": 20.0,
    }  # fmt: skip
    return row | changes


def item(tblid: int = 3, positive: bool = True) -> BatchItem:
    candidate = dict.fromkeys(CANDIDATE_FIELDS) | {
        "jd": JD, "fid": 2, "pid": PID, "diffmaglim": 20.5, "pdiffimfilename": "ztf_a_scimrefdiffimg.fits",
        "programpi": "Kulkarni", "programid": 1, "candid": candid_of(PID, positive, tblid),
        "isdiffpos": "t" if positive else "f", "tblid": tblid, "nid": nid_of(JD), "rcid": RCID, "field": 651,
        "xpos": 1000.5, "ypos": 20.25, "mindtoedge": 20.25, "ra": 150.0, "dec": 20.0, "magpsf": 18.25,
        "sigmapsf": 0.125, "magap": 18.5, "magdiff": 0.25, "magfromlim": 2.0, "fwhm": 2.0, "aimage": 1.5,
        "bimage": 1.0, "aimagerat": 0.75, "bimagerat": 0.5, "elong": 1.5, "nneg": 0, "nbad": 0, "dsnrms": 10.0,
        "ssnrms": 12.0, "dsdiff": -2.0, "ranr": 150.0, "decnr": 20.0, "objectidps1": 11, "objectidps2": 12,
        "distpsnr1": 0.5, "distpsnr2": 4.5, "sgscore1": 1.0, "sgscore2": 0.0, "nmtchps": 2, "ndethist": 2,
        "ncovhist": 9, "jdstarthist": JD - 3, "jdendhist": JD, "scorr": 9.5, "rfid": 651120208,
        "jdstartref": 2458150.5, "jdendref": 2458320.25, "nframesref": 17, "rb": 0.75, "rbversion": "v1", "drb": 0.5,
        "drbversion": "v2", "nmatches": 189, "exptime": 30.0,
    }  # fmt: skip
    extension = dict.fromkeys(EXTENSION_FIELDS) | {"flux": 1200.5, "fluxerr": 12.0, "maskbits": 32768, "software": "1"}
    cutouts = (encode_stamp(stamp(1)), encode_stamp(stamp(2)), encode_stamp(stamp(3)))
    history = [prv_row(JD - 3), prv_row(JD - 2, detection=False)]
    return BatchItem(candidate, extension, cutouts, "ZTF18abcdefg", history, [fp_row(JD - 3), fp_row(JD)])


def batch(*items: BatchItem) -> CandidateBatch:
    return CandidateBatch(
        "ztf_20181129523840_000651_zr_c03_o_q1", PID, 651, 2, RCID, 1, JD, JD + 15 / 86400, 30.0, 0, 1, list(items)
    )


def changed(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A deep copy with one value replaced; path like ``prv_candidates.0.jd``."""
    out = copy.deepcopy(record)
    node: Any = out
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    for parent in parents:
        node = node[parent]
    node[last] = value
    return out
