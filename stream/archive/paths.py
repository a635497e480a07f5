"""Names of products, as the survey names them: pure functions of identifiers.

All paths are relative to the store's root, with forward slashes. ``cal`` and ``ref`` carry no time finer than a
night, ``sci`` the day fraction of the exposure's start, so that a rerun finds its own files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stream.core.errors import UsageError
from stream.core.identity import FILTER_CODES, FILTER_IDS, ccd_qid_of

SCIENCE_SUFFIXES = (
    "sciimg.fits.fz",
    "mskimg.fits.fz",
    "psfcat.fits",
    "sexcat.fits",
    "scimrefdiffimg.fits.fz",
    "diffimgpsf.fits",
    "candidates.parquet",
    "streaks.parquet",
    "qa.json",
)
REFERENCE_SUFFIXES = ("refimg.fits.fz", "refcov.fits.fz", "refunc.fits.fz", "refpsfcat.fits", "reflog.json")
VERSIONS = "versions"  # folder of the references that were in use before, one folder each
# Pixel masks and frames of one channel; the instrument model of a CCD has a path of its own.
CALIBRATION_KINDS = ("bias", "hifreqflat", "loflat", "fringe", "shutter", "pmask")
INSTRUMENT = "instrument"
VETOES, PINS = "cal/veto", "cal/pin"
_BIAS_CODE, _ANY_CODE = "bi", "00"
_NAME = re.compile(r"ztf_(\d{4})(\d{4})(\d{6})_(\d{6})_(zg|zr|zi)_c(\d\d)_o_q([1-4])", re.ASCII)


@dataclass(frozen=True, slots=True)
class ScienceName:
    """What a science product's base name says."""

    night: str
    field: int
    fid: int
    ccdid: int
    qid: int

    @property
    def rcid(self) -> int:
        """Readout channel, 0..63."""
        return 4 * (self.ccdid - 1) + self.qid - 1


def parse_science_name(name: str) -> ScienceName:
    """Parts of ``ztf_YYYYMMDDdddddd_FFFFFF_<f>_cCC_o_qQ``; ``UsageError`` where it is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is not a quadrant's name: ztf_YYYYMMDDdddddd_FFFFFF_<zg|zr|zi>_cCC_o_qQ")
    year, day, _, field, code, ccd, qid = match.groups()
    return ScienceName(year + day, int(field), FILTER_IDS[code], int(ccd), int(qid))


def science_path(name: str, suffix: str) -> str:
    """Path of a science product, e.g. suffix ``sciimg.fits.fz``."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is not a quadrant's name: ztf_YYYYMMDDdddddd_FFFFFF_<zg|zr|zi>_cCC_o_qQ")
    return f"sci/{match[1]}/{match[2]}/{match[3]}/{name}_{suffix}"


def calibration_folder(night: str, kind: str, fid: int, rcid: int) -> str:
    """Folder of the calibration frames of one channel and night (YYYYMMDD); ``fid`` 0 for a bias."""
    ccdid, qid = ccd_qid_of(rcid)
    return f"cal/{night[:4]}/{night[4:]}/{kind}/{calibration_code(kind, fid)}/ccd{ccdid:02d}/q{qid}"


def calibration_code(kind: str, fid: int) -> str:
    """``bi`` for a bias, ``00`` for what is of no filter, else the filter's code."""
    if kind not in CALIBRATION_KINDS:
        raise UsageError(f"no calibration product {kind!r}: known are {', '.join(CALIBRATION_KINDS)}")
    if kind == "bias":
        return _BIAS_CODE
    return FILTER_CODES[fid] if fid else _ANY_CODE


def calibration_path(night: str, kind: str, fid: int, rcid: int, *, unc: bool = False) -> str:
    """Path of a calibration frame, or of its uncertainty."""
    ccdid, qid = ccd_qid_of(rcid)
    code = calibration_code(kind, fid)
    name = f"ztf_{night}_{code}_c{ccdid:02d}_q{qid}_{kind}{'unc' if unc else ''}.fits.fz"
    return f"{calibration_folder(night, kind, fid, rcid)}/{name}"


def instrument_path(night: str, ccdid: int) -> str:
    """Path of what was measured about one CCD: gain, read noise, saturation, cross-talk."""
    folder = f"cal/{night[:4]}/{night[4:]}/{INSTRUMENT}/ccd{ccdid:02d}"
    return f"{folder}/ztf_{night}_c{ccdid:02d}_{INSTRUMENT}.json"


def veto_path(kind: str, calid: str) -> str:
    """Path of a person's word that a version must not be used."""
    return f"{VETOES}/{kind}_{calid}.json"


def pin_path(kind: str, fid: int, rcid: int) -> str:
    """Path of a person's word which version of a channel is to be used; a CCD's instrument model goes by its first."""
    code = _ANY_CODE if kind == INSTRUMENT else calibration_code(kind, fid)
    return f"{PINS}/{kind}_{code}_rc{rcid:02d}.json"


def reference_folder(field: int, fid: int, rcid: int) -> str:
    """Folder of the reference of a field, filter and channel. FFF are the field's first three of six digits."""
    ccdid, qid = ccd_qid_of(rcid)
    return f"ref/{field // 1000:03d}/field{field:06d}/{FILTER_CODES[fid]}/ccd{ccdid:02d}/q{qid}"


def reference_path(field: int, fid: int, rcid: int, suffix: str, version: str | None = None) -> str:
    """Path of a reference product, e.g. suffix ``refimg.fits.fz``; without ``version`` that of the one in use."""
    ccdid, qid = ccd_qid_of(rcid)
    folder = reference_folder(field, fid, rcid) + (f"/{VERSIONS}/{version}" if version else "")
    return f"{folder}/ztf_{field:06d}_{FILTER_CODES[fid]}_c{ccdid:02d}_q{qid}_{suffix}"


def notes_path(field: int, fid: int, rcid: int, version: str) -> str:
    """Path of what a subtraction found out about a version of a reference."""
    return f"{reference_folder(field, fid, rcid)}/notes/{version}.json"


def alert_folder(night: str, programid: int) -> str:
    """Folder of one night's and program's alerts."""
    return f"alerts/{night}/programid{programid}"


def manifest_path(night: str) -> str:
    """Path of the manifest of a closed night."""
    return f"alerts/{night}/manifest.json"


def alert_path(night: str, programid: int, candid: int) -> str:
    """Path of one alert packet."""
    return f"{alert_folder(night, programid)}/{candid}.avro"
