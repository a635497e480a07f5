"""Typed, ranged reading of header cards, and the exposure that a packet's name and primary header describe."""

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass
from typing import Any

from stream.core import identity
from stream.core.errors import PacketError
from stream.core.records import Exposure, Row
from stream.ingest.fitsblocks import Cards, Unreadable

MISSING = -9999.0  # the survey's "no value"
IMAGE_TYPES = {"o": "object", "b": "bias", "d": "dark", "f": "flat"}
_NAME = re.compile(r"ztf_(\d{8})(\d{6})_(\d{6})_(zg|zr|zi|bi|dk|00)_c(\d\d)_([obdf])(?:\.fits(?:\.fz)?)?", re.ASCII)
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z?", re.ASCII)

JD_MIN = identity.NIGHT_ZERO_JD  # nid counts from here
# candid = nid x 10^15 + ...: from nid 9223 on it leaves a signed 64-bit integer, the alert schema's long.
JD_MAX = identity.NIGHT_ZERO_JD + 9223
# OBSJD and SHUTOPEN differ by up to 2 s in real headers (ztf-facts 1.4). Beyond ten, one of two clocks is
# wrong, and the shutter's is the one that saw the light.
MAX_CLOCK_DIFFERENCE_S = 10.0
MAX_EXPOSURE_S = 3600.0  # the survey's longest are 300 s; an hour leaves room and stops nonsense

# Primary cards kept in ``Exposure.header`` where present (interfaces.md 1), beside the typed ones.
_KEPT_NUMBERS = (
    "RA_RATE", "DEC_RATE", "FOCUSPOS", "TEMPTURE", "HUMIDITY", "WINDSPD", "MOONRA", "MOONDEC", "MOONALT", "MOONILLF",
    "SUNALT", "ILUM_LED", "AIRMASS", "OBSJD", *(f"CCDTMP{i:02d}" for i in range(1, 17)),
)  # fmt: skip
_KEPT_TEXTS = ("QCOMMENT", "SHUTOPEN", "SHUTCLSD", "FILTER")


@dataclass(frozen=True, slots=True)
class NameParts:
    """What a packet's file name identifies. It never measures: no time is taken from it."""

    name: str  # without folder and extension
    field: int
    filtercode: str
    ccdid: int
    imgtype: str


def parse_name(name: str) -> NameParts:
    """Parts of ``ztf_YYYYMMDDdddddd_FFFFFF_<f>_cCC_<t>[.fits[.fz]]``; folders before it are ignored.

    Raises
    ------
    PacketError
        Not such a name, no such CCD, or no such day.
    """
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    match = _NAME.fullmatch(base)
    if match is None:
        raise PacketError(
            f"{base}: not the name of a CCD packet; expected ztf_YYYYMMDDdddddd_FFFFFF_<zg|zr|zi|bi|dk>_cCC_<o|b|d|f>"
            ".fits[.fz]: rename the file as the camera did",
            file=base,
        )
    day, fraction, field, code, ccd, letter = match.groups()
    try:
        dt.datetime.strptime(day, "%Y%m%d")
    except ValueError:
        raise PacketError(f"{base}: {day} is no day of the calendar: rename the file", file=base) from None
    if not 1 <= int(ccd) <= 16:
        raise PacketError(f"{base}: there is no CCD {ccd}, they are 01 to 16: rename the file", file=base)
    stem = f"ztf_{day}{fraction}_{field}_{code}_c{ccd}_{letter}"
    return NameParts(stem, int(field), code, int(ccd), IMAGE_TYPES[letter])


@dataclass(frozen=True, slots=True)
class Keywords:
    """Cards with their place: every complaint names the file, the header and the keyword.

    ``where`` is e.g. ``ztf_..._c03_o: primary header``; ``context`` goes into every ``PacketError``.
    """

    cards: Cards
    where: str
    context: dict[str, Any]

    def fail(self, message: str, **context: Any) -> PacketError:
        """The error to raise, with this header's place before the message."""
        return PacketError(f"{self.where}: {message}", **(self.context | context))

    def has(self, key: str) -> bool:
        """Whether the keyword is there with a value (-9999 is none)."""
        value = self.cards.get(key)
        return value is not None and value != "" and not (isinstance(value, int | float) and value == MISSING)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in ``low..high``; ``default`` where it is missing, if one is given."""
        if not self.has(key):
            if default is None:
                raise self.fail(f"required keyword {key} is missing; have it written by the camera", keyword=key)
            return default
        value = self.cards[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"{key} must be a number, it is {_shown(value)}", keyword=key)
        if not math.isfinite(value) or not low <= value <= high:
            raise self.fail(f"{key} = {_shown(value)} is outside {low:g} .. {high:g}", keyword=key)
        return float(value)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in ``low..high`` (``2.`` counts); ``default`` where it is missing, if one is given."""
        value = self.number(key, low, high, default)
        if value != int(value):
            raise self.fail(f"{key} must be a whole number, it is {value:g}", keyword=key)
        return int(value)

    def text(self, key: str) -> str:
        """A string that must be there."""
        if not self.has(key):
            raise self.fail(f"required keyword {key} is missing; have it written by the camera", keyword=key)
        value = self.cards[key]
        if not isinstance(value, str):
            raise self.fail(f"{key} must be a string, it is {_shown(value)}", keyword=key)
        return value.strip()

    def julian_date(self, key: str) -> float:
        """UTC Julian date of an ISO 8601 string that must be there."""
        text = self.text(key)
        try:
            if not _ISO.fullmatch(text):
                raise ValueError
            jd = identity.jd_of(dt.datetime.fromisoformat(text))
        except ValueError:
            raise self.fail(f"{key} = {text!r} is not UTC as 2025-02-16T04:37:03.328", keyword=key) from None
        if not JD_MIN <= jd < JD_MAX:
            raise self.fail(f"{key} = {text} is outside the survey's years", keyword=key)
        return jd


def _shown(value: object) -> str:
    return repr(value.text if isinstance(value, Unreadable) else value)[:60]


def exposure_of(cards: Cards, parts: NameParts) -> Exposure:
    """The exposure of a primary header.

    Times: ``jd`` is OBSJD, from which all identifiers follow as in the survey's own products. Where OBSJD and
    SHUTOPEN disagree by more than 10 s the shutter is believed; ``header['JDSOURCE']`` says which was taken.
    ``jd_mid`` is the middle of SHUTOPEN and SHUTCLSD. Biases and darks do not open the shutter, and their
    shutter keywords may be an older exposure's: there OBSJD always counts, and ``jd_mid`` adds half of EXPTIME.

    FILTERID of a bias or dark may be missing or 0 (``fid`` 0), and so may PROGRMID (0) of any calibration frame.

    Raises
    ------
    PacketError
        A required keyword is missing, has the wrong type, or is out of range; or header and name contradict each
        other about image type, field or filter.
    """
    keys = Keywords(cards, f"{parts.name}: primary header", {"file": parts.name, "ccdid": parts.ccdid})
    imgtype = keys.text("IMGTYPE").lower()
    if imgtype != parts.imgtype:
        raise keys.fail(f"IMGTYPE is {imgtype!r}, the file name says {parts.imgtype!r}: rename or refuse the file")
    on_sky, dark_shutter = imgtype == "object", imgtype in ("bias", "dark")
    fid = keys.integer("FILTERID", 0 if dark_shutter else 1, 3, 0 if dark_shutter else None)
    if not dark_shutter and identity.FILTER_CODES[fid] != parts.filtercode:
        raise keys.fail(f"FILTERID is {fid}, the file name says {parts.filtercode}: rename or refuse the file")
    field = keys.integer("FIELDID", 0, 999_999)
    if on_sky and field != parts.field:
        raise keys.fail(f"FIELDID is {field}, the file name says {parts.field}: rename or refuse the file")
    exptime = keys.number("EXPTIME", 1e-3 if on_sky else 0.0, MAX_EXPOSURE_S)
    jd, jd_mid, source = _times(keys, exptime, dark_shutter)
    header = _kept(cards) | {"JDSOURCE": source}
    nan = float("nan")
    ra, dec = _pointing(keys, on_sky)
    airmass = header.get("AIRMASS", nan)
    return Exposure(
        name=parts.name,
        imgtype=imgtype,
        field=parts.field,
        fid=fid,
        ccdid=parts.ccdid,
        programid=keys.integer("PROGRMID", 0, 3, None if on_sky else 0),
        jd=jd,
        jd_mid=jd_mid,
        exptime=exptime,
        ra=ra,
        dec=dec,
        airmass=airmass if 1.0 <= airmass <= 40.0 else nan,
        too="ToO" in str(header.get("QCOMMENT", "")),
        header=header,
    )


def _times(keys: Keywords, exptime: float, dark_shutter: bool) -> tuple[float, float, str]:
    """Start, middle (JD), and which keyword gave the start."""
    obsjd = keys.number("OBSJD", JD_MIN, JD_MAX)
    if dark_shutter:
        return obsjd, obsjd + exptime / 2 / 86_400, "OBSJD"
    opened, closed = keys.julian_date("SHUTOPEN"), keys.julian_date("SHUTCLSD")
    duration = (closed - opened) * 86_400
    # A Julian date in a double resolves 40 microseconds; the shutter's stamps are milliseconds.
    if not -1e-3 <= duration <= MAX_EXPOSURE_S:
        raise keys.fail(f"the shutter was open for {duration:.3f} s (SHUTOPEN, SHUTCLSD)", keyword="SHUTCLSD")
    believed = abs(obsjd - opened) * 86_400 <= MAX_CLOCK_DIFFERENCE_S
    return (obsjd, (opened + closed) / 2, "OBSJD") if believed else (opened, (opened + closed) / 2, "SHUTOPEN")


def _pointing(keys: Keywords, on_sky: bool) -> tuple[float, float]:
    """Telescope pointing (deg): TELRAD, else OBJRAD, else RAD; NaN for calibration frames."""
    if not on_sky:
        return float("nan"), float("nan")
    for ra, dec in (("TELRAD", "TELDECD"), ("OBJRAD", "OBJDECD"), ("RAD", "DECD")):
        if keys.has(ra) and keys.has(dec):
            return keys.number(ra, 0.0, 360.0) % 360.0, keys.number(dec, -90.0, 90.0)
    raise keys.fail("no pointing: one of TELRAD, OBJRAD, RAD with its declination is required", keyword="TELRAD")


def _kept(cards: Cards) -> Row:
    """The cards that later rooms read, JSON-serialisable; missing and unreadable ones are left out."""
    kept: Row = {}
    for key in _KEPT_NUMBERS:
        value = cards.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value != MISSING:
            kept[key] = float(value)
    for key in _KEPT_TEXTS:
        text = cards.get(key)
        if isinstance(text, str) and text.strip():
            kept[key] = text.strip()
    return kept
