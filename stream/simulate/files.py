"""Raw packets as files: primary header, four quadrants, four overscans, Rice tile-compressed or plain."""

from __future__ import annotations

import io
import math
from pathlib import Path

import erfa  # type: ignore[import-untyped]
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from stream.core import identity
from stream.simulate import almanac
from stream.simulate.electronics import Amplifier
from stream.simulate.plan import NightPlan, SimExposure, seeded

U16 = NDArray[np.uint16]

FILTER_NAMES = {1: "ZTF_g", 2: "ZTF_r", 3: "ZTF_i"}
FOLDERS = {"cal": "cal", "ref": "ref", "sci": "sci"}
AMP_NAMES = "EFGH"
MISSING = -9999.0
LONGITUDE, LATITUDE, ALTITUDE = -116.8598, 33.3573, 1668.0
Card = tuple[str, object, str]


def packet_path(out: Path, plan: NightPlan, exposure: SimExposure, ccdid: int) -> Path:
    """Where a packet lies: ``raw/cal``, ``raw/ref`` or ``raw/sci`` under the output folder."""
    ending = ".fits.fz" if plan.compress else ".fits"
    return out / "raw" / FOLDERS[exposure.role] / f"{exposure.name(ccdid)}{ending}"


def iso(jd: float) -> str:
    """ISO 8601 UTC to the millisecond, as in SHUTOPEN."""
    return identity.utc_of(jd).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]


def sexagesimal(value: float, digits: int) -> str:
    """A signed sexagesimal text such as +02:32:30.19."""
    sign, value = "-" if value < 0 else "+", abs(value)
    total = round(value * 3600 * 10**digits)
    seconds, whole = (total % (60 * 10**digits)) / 10**digits, total // 10**digits
    return f"{sign}{whole // 3600:02d}:{whole // 60 % 60:02d}:{seconds:0{3 + digits}.{digits}f}"


def primary_header(plan: NightPlan, exposure: SimExposure, ccdid: int) -> fits.Header:
    """The exposure's keywords, those of real headers that a reader may ask for."""
    name = exposure.name(ccdid)
    cards: list[Card] = [
        ("ORIGIN", "Zwicky Transient Facility", "Data origin"),
        ("OBSERVER", "Simulator", "Observer"),
        ("INSTRUME", "ZTF/MOSAIC", "Instrument name"),
        ("IMGTYPE", exposure.imgtype, "Image type"),
        ("EXPOSURE", exposure.exptime, "Total Exposure Time (s)"),
        ("EXPTIME", exposure.exptime, "Requested Exposure Time (s)"),
        ("CCDSUM", "1 1", "CCD binning"),
        ("PIXSCALE", 1.012, "Pixel scale, in arcsec per pixel"),
        ("FILENAME", f"{name}.fits", "File name"),
        ("ORIGNAME", f"{name}.fits", "Original file name"),
        ("FIELDID", exposure.field, "ZTF field ID number"),
        ("PROGRMID", exposure.programid, "Queue program ID"),
        ("FILTERID", exposure.fid, "Filter ID code"),
        ("FILTER", FILTER_NAMES[exposure.fid], "Filter name"),
        ("OBSJD", exposure.jd, "Julian day corresponds to UTC-OBS (day)"),
        ("OBSMJD", exposure.jd - 2_400_000.5, "MJD corresponds to UTC-OBS (day)"),
        ("SHUTOPEN", iso(exposure.jd_open), "Shutter open time"),
        ("SHUTCLSD", iso(exposure.jd_open + exposure.exptime / 86_400.0), "Shutter close time"),
        ("OBSERVAT", "Palomar Observatory", "Observatory"),
        ("TELESCOP", "Palomar 48-inch", "Observatory telescope"),
        ("OBSLON", LONGITUDE, "Observatory longitude (deg)"),
        ("OBSLAT", LATITUDE, "Observatory latitude (deg)"),
        ("OBSALT", ALTITUDE, "Observatory altitude (m)"),
        ("NFRAMES", 8, "number of frames in FITS file"),
        *_weather(plan, exposure),
    ]
    if exposure.imgtype == "object":
        cards += _pointing(exposure)
    if exposure.imgtype == "flat":
        cards += [("ILUM_LED", 3 + exposure.fid, "Flat-field illuminator LED")]
    header = fits.Header()
    for key, value, comment in cards:
        header[key] = (value, comment)
    return header


def _weather(plan: NightPlan, exposure: SimExposure) -> list[Card]:
    """Environment, focus and temperatures; some missing, as in real headers."""
    rng = seeded(plan.seed, "weather", exposure.expid)
    cards: list[Card] = [
        ("TEMPTURE", round(rng.normal(14, 3), 1), "Outside air temperature (C)"),
        ("HUMIDITY", round(rng.uniform(20, 70), 1), "Humidity (%)"),
        ("WINDSPD", round(rng.uniform(0, 8), 1), "Outside wind speed"),
        ("PRESSURE", MISSING, "Atmospheric pressure, millibars"),
        ("CLOUDS", MISSING, "Cloud sensor reading"),
        ("FOCUSPOS", round(rng.normal(1.4, 0.01), 4), "Hexapod Z (Focus) axis position (mm)"),
    ]
    for ccd in range(1, 17):
        cards.append((f"CCDTMP{ccd:02d}", round(rng.normal(174, 2), 3), f"CCD temperature {ccd:02d} (K)"))
    return cards


def _pointing(exposure: SimExposure) -> list[Card]:
    """Nominal pointing, hour angle, airmass, Sun and Moon."""
    ra, dec = exposure.ra, exposure.dec
    lst = (math.degrees(erfa.era00(exposure.jd, 0.0)) + LONGITUDE) % 360.0
    moon = almanac.moon(exposure.jd)
    sun_altitude = float(almanac.altitude(*almanac.sun(exposure.jd), exposure.jd))
    hour_angle = (lst - ra + 180) % 360 - 180
    return [
        ("OBJRAD", ra, "Object right ascension (deg)"),
        ("OBJDECD", dec, "Object declination (deg)"),
        ("RA", sexagesimal(ra / 15, 2), "Requested right ascension"),
        ("DEC", sexagesimal(dec, 1), "Requested declination"),
        ("RAD", ra, "Requested right ascension (deg)"),
        ("DECD", dec, "Requested declination (deg)"),
        ("TELRA", sexagesimal(ra / 15, 2), "Telescope right ascension"),
        ("TELDEC", sexagesimal(dec, 1), "Telescope declination"),
        ("TELRAD", ra, "Telescope right ascension (deg)"),
        ("TELDECD", dec, "Telescope declination (deg)"),
        ("RA_RATE", 0.0, 'RA tracking rate ("/hr)'),
        ("DEC_RATE", 0.0, 'DEC tracking rate ("/hr)'),
        ("EQUINOX", 2000.0, "Equinox"),
        ("AIRMASS", exposure.airmass, "Airmass (Hardie)"),
        ("OBLST", sexagesimal(lst / 15, 1), "Local Sidereal Time"),
        ("HOURANGD", round(hour_angle / 15, 6), "Hour angle (h)"),
        ("PROGRMPI", "Simulator", "Queue program PI"),
        ("QCOMMENT", "all_sky", "Queue comment"),
        ("SUNALT", round(sun_altitude, 3), "Sun altitude (deg)"),
        ("MOONRA", round(moon.ra, 3), "Moon J2000.0 R.A. (deg)"),
        ("MOONDEC", round(moon.dec, 3), "Moon J2000.0 Dec. (deg)"),
        ("MOONALT", round(moon.altitude, 3), "Moon altitude (deg)"),
        ("MOONILLF", round(moon.lit if moon.waxing else -moon.lit, 5), "Moon illuminated fraction (frac)"),
    ]


def quadrant_header(amp: Amplifier) -> fits.Header:
    """Keywords of an image extension."""
    ccdid, qid = identity.ccd_qid_of(amp.rcid)
    header = fits.Header()
    header["EXTNAME"] = (str(qid), "Quadrant")
    header["CCD_ID"] = (ccdid, "ID value of CCD detector")
    header["CCDNAME"] = (f"S{ccdid:02d}", "Detector name or serial number")
    header["AMP_ID"] = (qid - 1, "ID value of CCD amplifier")
    header["AMP_NAME"] = (AMP_NAMES[qid - 1], "Name of CCD amplifier")
    header["GAIN"] = (amp.gain, "Gain e-/adu")
    header["READNOI"] = (amp.readnoise, "Read noise e-")
    header["SATURATE"] = (amp.saturate, "Saturation, raw DN with the bias in")
    header["DARKCUR"] = (1.0, "Dark current e-/s @ 150 K")
    return header


def write_packet(
    path: Path, header: fits.Header, amps: list[Amplifier], images: list[U16], overscans: list[U16]
) -> None:
    """Write one packet; the name appears only when the file is complete.

    Every HDU carries CHECKSUM and DATASUM. The file depends on nothing but its arguments: the checksum's comment,
    where the library would write the date, says what made it.
    """
    hdus: list[fits.hdu.base._BaseHDU] = [fits.PrimaryHDU(header=header)]
    compressed = path.name.endswith(".fz")
    parts = [(quadrant_header(amp), image) for amp, image in zip(amps, images, strict=True)]
    for amp, overscan in zip(amps, overscans, strict=True):
        extension = fits.Header()
        _, qid = identity.ccd_qid_of(amp.rcid)
        extension["EXTNAME"] = (str(qid + 4), "Overscan of the quadrant")
        extension["CCD_ID"] = amp.rcid // 4 + 1
        extension["AMP_ID"] = qid - 1
        parts.append((extension, overscan))
    for extension, data in parts:
        if compressed:
            tile = (1, data.shape[1])
            hdus.append(fits.CompImageHDU(data, extension, compression_type="RICE_1", tile_shape=tile))
        else:
            hdus.append(fits.ImageHDU(data, extension))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    written = io.BytesIO()
    fits.HDUList(hdus).writeto(written, output_verify="exception")
    as_is = {"disable_image_compression": True, "do_not_scale_image_data": True, "lazy_load_hdus": False}
    with fits.open(io.BytesIO(written.getvalue()), memmap=False, **as_is) as complete:
        for hdu in complete:
            hdu.add_checksum(when="simulated")
        complete.writeto(partial, overwrite=True)
    partial.replace(path)
