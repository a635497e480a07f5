"""Calibrated science images of the survey (or cut-outs of them) as input: the header carries WCS and zero point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.wcs import WCS
from numpy.typing import NDArray

from stream.core.errors import PacketError
from stream.core.flags import Mask
from stream.core.identity import FILTER_CODES, jd_of
from stream.core.records import Astrometry, CalibratedImage, Exposure, Quadrant, ZeroPoint
from stream.core.zeropointmap import read_map

# Without the keyword: the camera's typical values (interfaces §1).
DEFAULT_GAIN, DEFAULT_READNOISE, DEFAULT_SATURATE = 6.2, 10.0, 50_000.0


@dataclass(frozen=True, slots=True)
class CalibratedInput:
    """A calibrated image with what its header knows; None where it knows nothing."""

    image: CalibratedImage
    astrometry: Astrometry
    zeropoint: ZeroPoint | None
    seeing: float | None = None  # FWHM in px, as the header says


def read_science(path: Path) -> CalibratedInput:
    """Read a calibrated image with the survey's keywords (``sciimg``, whole or cut out).

    Raises
    ------
    PacketError
        Not FITS, no image, no celestial WCS, or an identifying keyword is missing.
    """
    try:
        with fits.open(path) as hdus:
            hdu = next((h for h in hdus if h.data is not None and h.data.ndim == 2), None)
            if hdu is None:
                raise PacketError(f"{path.name}: no two-dimensional image in it", file=str(path))
            header, data = hdu.header, np.ascontiguousarray(hdu.data, np.float32)
    except (OSError, VerifyError, ValueError, TypeError) as error:
        raise PacketError(f"{path.name}: not a readable FITS image ({error})", file=str(path)) from error
    wcs = WCS(header)
    if not wcs.has_celestial:
        raise PacketError(f"{path.name}: no celestial WCS in its header; `process` needs one", file=str(path))
    quadrant = Quadrant(_exposure(header, path), int(_required(header, "QID", path)))
    saturate = float(header.get("SATURATE", DEFAULT_SATURATE))
    image = CalibratedImage(
        quadrant,
        data,
        _mask(data, saturate),
        float(header.get("GAIN", DEFAULT_GAIN)),
        float(header.get("READNOI", DEFAULT_READNOISE)),
        saturate,
        notes=("came_calibrated",),
    )
    seeing = header.get("SEEING")
    return CalibratedInput(
        image, _astrometry(header, wcs), _zeropoint(header, data.shape), None if seeing is None else float(seeing)
    )


def _mask(data: NDArray[np.float32], saturate: float) -> NDArray[np.uint16]:
    mask = np.zeros(data.shape, np.uint16)
    mask[~np.isfinite(data)] |= int(Mask.NAN)
    mask[data >= saturate] |= int(Mask.SATURATED)
    return mask


def _required(header: fits.Header, key: str, path: Path) -> float | int | str:
    value = header.get(key)
    if value is None:
        raise PacketError(f"{path.name}: keyword {key} is missing; `process` needs the survey's header", file=str(path))
    return value  # type: ignore[no-any-return]


def _exposure(header: fits.Header, path: Path) -> Exposure:
    from astropy.time import Time

    shutter = [header.get(key) for key in ("SHUTOPEN", "SHUTCLSD")]
    jd = float(_required(header, "OBSJD", path))
    exptime = float(header.get("EXPTIME", header.get("EXPOSURE", 30.0)))
    jd_mid = jd + exptime / 2 / 86_400
    if all(shutter):
        jd_mid = float(np.mean([jd_of(Time(value, scale="utc").to_datetime()) for value in shutter]))
    field, fid = int(_required(header, "FIELDID", path)), int(_required(header, "FILTERID", path))
    if fid not in FILTER_CODES:
        raise PacketError(f"{path.name}: FILTERID {fid} is none of 1, 2, 3", file=str(path))
    stem = path.name.split("_q")[0] if "_q" in path.name else path.stem
    return Exposure(
        stem, "object", field, fid, int(_required(header, "CCDID", path)), int(header.get("PROGRMID", 1)), jd, jd_mid,
        exptime, float(header.get("TELRAD", np.nan)), float(header.get("TELDECD", np.nan)),
        float(header.get("AIRMASS", np.nan)), "ToO" in str(header.get("QCOMMENT", "")),
    )  # fmt: skip


def _astrometry(header: fits.Header, wcs: WCS) -> Astrometry:
    rms = [float(header.get(key, np.nan)) * 3600.0 for key in ("ASTRRMS1", "ASTRRMS2")]
    matched = int(header.get("ASTROMN", 0))
    return Astrometry(wcs, rms[0], rms[1], matched, matched, float("nan"))


def _zeropoint(header: fits.Header, shape: tuple[int, ...]) -> ZeroPoint | None:
    """The header's zero point; with its map where the image is whole (a cut-out's map is of places not on it)."""
    if header.get("MAGZP") is None:
        return None
    keys = ("MAGZP", "MAGZPUNC", "MAGZPRMS", "CLRCOEFF", "CLRCOUNC", "ZPCLRCOV", "ZPMED", "ZPAVG", "CLRMED", "CLRAVG")
    figures = {key.lower(): float(header.get(key, np.nan)) for key in (*keys, "CLRRMS")}
    colour = str(header.get("PCOLOR", "")).strip() or "g - R"
    found = read_map(header)
    whole = found if found is not None and found.shape == shape else None
    return ZeroPoint(pcolor=colour, n_matches=int(header.get("NMATCHES", 0)), **figures, map=whole)
