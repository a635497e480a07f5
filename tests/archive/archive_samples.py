"""Small complete records, everything about them known, for the tests of the store."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from stream.alert import CANDIDATE_FIELDS, EXTENSION_FIELDS
from stream.core.identity import candid_of, nid_of
from stream.core.psf import PsfModel, gaussian_psf
from stream.core.records import (
    SOURCE_DTYPE,
    Astrometry,
    Background,
    CalibrationFrame,
    Candidate,
    Difference,
    Exposure,
    Quadrant,
    QuadrantReport,
    QuadrantResult,
    Reference,
    ScienceImage,
    Stamps,
    Status,
    Streak,
    ZeroPoint,
    ZeroPointMap,
)

SHAPE = (130, 150)  # not square, and no multiple of a tile
JD = 2458452.0238400


def tpv_wcs() -> WCS:
    header = fits.Header()
    cards = {
        "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CRPIX1": 75.5, "CRPIX2": 65.5, "CRVAL1": 123.456789012,
        "CRVAL2": -12.3456789012, "CUNIT1": "deg", "CUNIT2": "deg", "CD1_1": -2.81e-4, "CD1_2": -6.2e-6,
        "CD2_1": 6.3e-6, "CD2_2": -2.812e-4, "PV1_1": 0.99982, "PV1_2": 2.36e-4, "PV1_4": 6.6e-4, "PV2_1": 1.00047,
        "PV2_2": 3.3e-4, "PV2_5": 5.4e-4, "RADESYS": "ICRS",
    }  # fmt: skip
    header.update(cards)
    return WCS(header)


def quadrant(jd: float = JD, field: int = 651, fid: int = 2, ccdid: int = 3, qid: int = 1) -> Quadrant:
    fraction = f"{round((jd - 0.5) % 1 * 1e6):06d}"
    from stream.core.identity import FILTER_CODES, night_of

    name = f"ztf_{night_of(jd)}{fraction}_{field:06d}_{FILTER_CODES[fid]}_c{ccdid:02d}_o"
    kept = {"AIRMASS": 1.2, "OBSJD": jd, "SHUTOPEN": "2018-11-29T12:34:19.776", "MOONILLF": 0.5, "QCOMMENT": "all_sky"}
    exposure = Exposure(
        name, "object", field, fid, ccdid, 1, jd, jd + 15.2 / 86400, 30.0, 123.4, -12.3, 1.2, False, kept
    )
    return Quadrant(exposure, qid)


def sources(n: int = 40, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = np.zeros(n, SOURCE_DTYPE)
    table["sourceid"] = np.arange(n)
    table["x"], table["y"] = rng.uniform(0, SHAPE[1] - 1, n), rng.uniform(0, SHAPE[0] - 1, n)
    for name in SOURCE_DTYPE.names or ():
        if name not in ("sourceid", "x", "y", "flags"):
            table[name] = rng.uniform(1, 100, table[name].shape)
    table["flux"][0] = -3.0
    table["flags"] = rng.integers(-1, 65536, n)
    return table


def varying_psf() -> PsfModel:
    flat = gaussian_psf(2.5, SHAPE)
    basis = np.concatenate([flat.basis, 0.01 * flat.basis, -0.02 * flat.basis])
    errors = np.linspace(1e-3, 3e-3, 9, dtype=np.float32).reshape(3, 3)
    return PsfModel(basis, flat.oversample, 1, SHAPE, 2.51, 33, 2e-3, errors)


def science(q: Quadrant | None = None, seed: int = 1) -> ScienceImage:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    level = (200 + 0.02 * x + 0.03 * y).astype(np.float32)
    data = (level + rng.normal(0, 6, SHAPE)).astype(np.float32)
    data[3, 4] = np.nan
    data[60, 70] = 55_000.0
    mask = rng.integers(0, 65536, SHAPE).astype(np.uint16)
    zp = ZeroPoint(26.123784, 6.9e-5, 0.045652, -0.059691, 1.2e-4, -8.3e-5, "g - R", 189, 26.086, 26.08, 0.61, 0.7, 0.3)
    zp = replace(zp, map=ZeroPointMap(1, SHAPE, (0.0003, 0.006, -0.004), (0.0, 0.001, 0.0011), 0.031))
    return ScienceImage(
        q or quadrant(), data, mask, 6.2, 9.3, 59645.117,
        Background(level, np.full(SHAPE, 6.0, np.float32), 204.0, 6.0),
        varying_psf(), Astrometry(tpv_wcs(), 0.031, 0.042, 348, 1200, -120.5), zp, sources(), 20.41, 3,
        (-1.7, -1.0, -0.6, -0.25, -0.05, -0.02), (0.1, 0.1, 0.1, 0.1, 0.1, 0.1), ("69608002", "69608024"), ("no_flat",),
    )  # fmt: skip


def reference(version: str = "abcdef123456", field: int = 651) -> Reference:
    rng = np.random.default_rng(2)
    data = rng.normal(0, 2, SHAPE).astype(np.float32)
    coverage = np.full(SHAPE, 17, np.int16)
    coverage[:5] = 0
    data[:5] = np.nan
    unc = rng.uniform(1.5, 2.5, SHAPE).astype(np.float32)
    return Reference(
        field * 1_000_000 + 120_208, field, 2, 8, data, unc, coverage, tpv_wcs(), varying_psf(), 26.275, sources(),
        2458150.5, 2458320.25, 17, 40_000.0, version, ("ztf_a", "ztf_b"), {"median": 0.25, "n": 17},
    )  # fmt: skip


def calibration(kind: str = "bias", night: str = "20181129", nid: int | None = None) -> CalibrationFrame:
    rng = np.random.default_rng(3)
    base, noise = (0.0, 0.7) if kind == "bias" else (1.0, 1e-3)
    data = rng.normal(base, 5 * noise, SHAPE).astype(np.float32)
    data[7, 7] = np.nan
    unc = np.full(SHAPE, noise, np.float32)
    badpix = rng.choice(np.array([0, 0, 0, 4, 512, 32768], np.uint16), SHAPE)
    fid = 0 if kind == "bias" else 2
    return CalibrationFrame(kind, 8, fid, nid or nid_of(JD), night, data, unc, badpix, 20, "69608002", {"median": 0.1})


def candidate(tblid: int = 0, positive: bool = True, q: Quadrant | None = None) -> Candidate:
    """A candidate as extraction leaves it, consistent with itself; what later rooms set is None."""
    q = q or quadrant()
    x, y = 40.0 + tblid, 50.0
    fields = dict.fromkeys(CANDIDATE_FIELDS)
    fields |= {
        "jd": q.exposure.jd, "fid": q.exposure.fid, "pid": q.pid, "diffmaglim": 20.5, "programid": 1,
        "candid": candid_of(q.pid, positive, tblid), "isdiffpos": "t" if positive else "f", "tblid": tblid,
        "nid": q.exposure.nid, "rcid": q.rcid, "field": q.exposure.field, "xpos": x, "ypos": y, "mindtoedge": x,
        "ra": 123.4 + 0.01 * tblid, "dec": -12.3, "magpsf": np.float32(18.25), "sigmapsf": 0.05, "magap": 18.5,
        "magdiff": 0.25, "magfromlim": 2.0, "fwhm": float("nan"), "ranr": 123.4001, "decnr": -12.3001, "nmtchps": 0,
        "rfid": 651120208, "jdstartref": 2458150.5, "jdendref": 2458320.25, "nframesref": 17, "nmatches": 189,
        "pdiffimfilename": f"{q.name}_scimrefdiffimg.fits", "exptime": 30.0,
    }  # fmt: skip
    extra = dict.fromkeys(EXTENSION_FIELDS) | {"flux": np.float64(120.5), "fluxerr": 6.0, "jdmid": q.exposure.jd_mid}
    rng = np.random.default_rng(tblid)
    stamp = rng.normal(0, 5, (63, 63)).astype(np.float32)
    return Candidate(fields, extra, None, Stamps(stamp + 200, stamp / 2, stamp))


def report(q: Quadrant | None = None) -> QuadrantReport:
    q = q or quadrant()
    e = q.exposure
    made = QuadrantReport(
        q.name, e.field, e.fid, e.ccdid, q.qid, q.rcid, e.programid, e.nid, e.expid, q.rid, q.pid, e.jd, e.jd_mid, 30.0
    )
    made.corners = [123.0, -12.0, 124.0, -12.0, 124.0, -13.0, 123.0, -13.0]
    made.status, made.magzp, made.diffmaglim, made.seeing = Status.OK, 26.1, 20.5, float("nan")
    made.rejected, made.seconds, made.notes = {"shape": 3}, {"calibrate": 0.1}, ["no_flat"]
    return made


def difference() -> Difference:
    rng = np.random.default_rng(4)
    data = rng.normal(0, 7, SHAPE).astype(np.float32)
    data[0, :9] = np.nan
    zero = np.zeros(SHAPE, np.float32)
    return Difference(
        data, zero, zero, np.full(SHAPE, 7, np.float32), varying_psf(), 2.6, zero, np.zeros(SHAPE, np.uint16), 1.02,
        (0.05, 0.06), 20.5,
    )  # fmt: skip


def streak(candid: int = 1) -> Streak:
    return Streak(candid, 123.1, -12.1, 123.2, -12.2, 90.5, 45.0, 1000.0, 30.0, 18.4, 33.0, 0.97)


def result(q: Quadrant | None = None) -> QuadrantResult:
    q = q or quadrant()
    sent, rejected = candidate(0, q=q), candidate(1, positive=False, q=q)
    rejected.rejected = "shape"
    return QuadrantResult(report(q), q, science(q), reference(), difference(), [sent, rejected], [streak()])
