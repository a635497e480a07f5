"""Science and difference images as files, and the science image read back.

Cards are the survey's (``interfaces.md`` §3) plus what is needed to have the ``ScienceImage`` again: the middle of
the exposure, calibration identifiers, notes, and the sky as a coarse map in two small extensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from stream.archive import catalogs, fitsio
from stream.archive.depths import SUFFIX as DEPTH_SUFFIX
from stream.archive.depths import encode_depth
from stream.archive.frames import as_signed, as_unsigned
from stream.astrometry import wcs_cards
from stream.core.displacement import Displacement
from stream.core.errors import MessageError
from stream.core.flags import INFO_BITS, MASK_BITS, status_of
from stream.core.identity import utc_of
from stream.core.records import (
    APERTURE_DIAMETERS,
    F32,
    MEAN_COLOUR,
    Astrometry,
    Background,
    Difference,
    Exposure,
    Quadrant,
    QuadrantResult,
    Reference,
    ScienceImage,
    Track,
    ZeroPoint,
)
from stream.core.zeropointmap import map_cards, read_map

# The sky is smooth over this many px; its map is a mean of cells, read back by bilinear interpolation.
_SKY_CELL = 32
# What a catalogue says of its image, as the survey's do.
_CATALOG_CARDS = ("FILENAME", "FIELDID", "FILTERID", "CCDID", "QID", "RCID", "EXPID", "MAGZP", "MAGZPUNC", "MAGZPRMS",
                  "CLRCOEFF", "CLRCOUNC", "PCOLOR", "NMATCHES", "SEEING", "MAGLIM", "INFOBITS")  # fmt: skip
_OUR_BITS = (13, 14, 15)  # the survey's reserved ones
_GRID = 5  # places of the difference PSF, each way
_PSF_SIDE = 25


def science_cards(science: ScienceImage) -> dict[str, Any]:
    """Header cards of a science image: who it is, its WCS, its calibration, its quality."""
    q, zp = science.quadrant, science.zeropoint
    cards: dict[str, Any] = {**exposure_cards(q), **wcs_cards(science.astrometry)}
    cards |= {
        "GAIN": (science.gain, "[e-/DN]"),
        "READNOI": (science.readnoise, "[e-]"),
        "SATURATE": (float(science.saturate), "saturation value in this image, sky in [DN]"),
        "NMATCHES": (zp.n_matches, "photometric calibrators used"),
        "MAGZP": (zp.magzp, "zero point for PSF photometry [mag]"),
        "MAGZPUNC": (zp.magzpunc, "its uncertainty [mag]"),
        "MAGZPRMS": (zp.magzprms, "r.m.s. of its residuals [mag]"),
        "CLRCOEFF": (zp.clrcoeff, "colour coefficient"),
        "CLRCOUNC": (zp.clrcounc, "its uncertainty"),
        "ZPCLRCOV": (zp.zpclrcov, "covariance of MAGZP and CLRCOEFF"),
        "PCOLOR": (zp.pcolor, "colour used"),
        "ZPMED": zp.zpmed,
        "ZPAVG": zp.zpavg,
        "CLRMED": zp.clrmed,
        "CLRAVG": zp.clravg,
        "CLRRMS": zp.clrrms,
        **map_cards(zp.map),
        "FIXAPERS": (",".join(f"{d:g}" for d in APERTURE_DIAMETERS), "aperture diameters [px]"),
    }
    for i, (value, unc) in enumerate(zip(science.apcor, science.apcorunc, strict=False), 1):
        cards[f"APCOR{i}"] = (float(value), f"PSF_mag - AP_mag, diameter {APERTURE_DIAMETERS[i - 1]:g} px")
        cards[f"APCORUN{i}"] = (float(unc), f"uncertainty of APCOR{i} [mag]")
    cards |= {
        "SEEING": (float(science.seeing), "median FWHM, pixel included [px]"),
        "MAGLIM": (float(science.maglim), "5-sigma limit at the centre [mag]"),
        "MAGLIMCT": (float(science.maglimcat), "5-sigma limit by the catalogue's errors [mag]"),
        "INFOBITS": (science.infobits, _set_bits(science.infobits)),
        **{f"BIT{b.bit:02d}": (b.bit, b.meaning[:46].upper()) for b in INFO_BITS},
        "STATUS": (status_of(science.infobits), "overall processing flag: 0 bad, 1 usable"),
        "CLOUD": (science.cloud[:60], "cloud rules that are broken"),
        "CALAGE": (float(science.cal_age), "oldest nightly calibration frame [days]"),
        "NTRACKS": (len(science.tracks), "tracks of satellites and aircraft"),
        "SKYMED": (float(science.background.median), "median sky [DN]"),
        "SKYSIG": (float(science.background.sigma), "robust noise per pixel [DN]"),
        "ASTRNCAT": (science.astrometry.n_catalog, "catalogue stars offered to the match"),
        "CENTRSN1": (float(science.astrometry.centroid[0]), "error of a place at S/N 1, an axis [px]"),
        "CENTRMIN": (float(science.astrometry.centroid[1]), "error that no S/N buys [px]"),
        "REFRACT": (float(science.astrometry.refraction), "lift of a star bluer by 1 mag of BP-RP [arcsec]"),
        "COLOUR": (float(science.astrometry.colour), "BP-RP to which places belong [mag]"),
        "COLOURX": (float(science.astrometry.colour_sigma[0]), "error of a place, colour unknown, x [arcsec]"),
        "COLOURY": (float(science.astrometry.colour_sigma[1]), "error of a place, colour unknown, y [arcsec]"),
        "ASTRLOGP": (float(science.astrometry.log_chance), "log10 of the chance that the match is chance"),
        "CALIDS": (",".join(science.calids), ""),
        "NOTES": (",".join(science.notes), ""),
    }
    return cards


def _set_bits(infobits: int) -> str:
    """The survey's comment of INFOBITS."""
    bits = [str(b.bit) for b in INFO_BITS if infobits >> b.bit & 1]
    return f"infoBits string; bit(s) = {', '.join(bits) or 'null'}"


def exposure_cards(quadrant: Quadrant) -> dict[str, Any]:
    """Identity cards of a quadrant, with what its raw header told."""
    e = quadrant.exposure
    cards: dict[str, Any] = {
        "ORIGIN": "Zwicky Transient Facility",
        "BUNIT": "DN",
        "IMGTYPE": e.imgtype,
        "FILENAME": (e.name, "raw packet"),
        "FIELDID": e.field,
        "FILTERID": e.fid,
        "PROGRMID": e.programid,
        "OBSJD": (e.jd, "start, UTC"),
        "JDMID": (e.jd_mid, "middle of the shutter's opening, UTC"),
        "EXPTIME": e.exptime,
        "TELRAD": (e.ra, "telescope pointing [deg]"),
        "TELDECD": (e.dec, "telescope pointing [deg]"),
        "AIRMASS": e.airmass,
        "TOO": (e.too, "target of opportunity"),
        "CCDID": e.ccdid,
        "QID": quadrant.qid,
        "RCID": quadrant.rcid,
        "NID": e.nid,
        "EXPID": e.expid,
        "RID": quadrant.rid,
        "PID": quadrant.pid,
        **_shutter_cards(e),
    }
    for key, value in sorted(e.header.items()):
        if len(key) <= 8 and key not in cards and isinstance(value, str | int | float | bool):
            cards[key] = value
    return cards


def _shutter_cards(e: Exposure) -> dict[str, str]:
    """SHUTOPEN and SHUTCLSD where the raw header did not keep them: the survey's users take times from there."""
    half = e.exptime / 2 / 86_400
    if "SHUTOPEN" in e.header or not np.isfinite(e.jd_mid - half):
        return {}
    iso = [utc_of(jd).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] for jd in (e.jd_mid - half, e.jd_mid + half)]
    return {"SHUTOPEN": iso[0], "SHUTCLSD": iso[1]}


def _coarse(image: F32) -> F32:
    """Means of cells, NaN left out of them."""
    ny, nx = (-(-n // _SKY_CELL) * _SKY_CELL for n in image.shape)
    padded = np.pad(image, ((0, ny - image.shape[0]), (0, nx - image.shape[1])), mode="edge")
    cells = padded.reshape(ny // _SKY_CELL, _SKY_CELL, nx // _SKY_CELL, _SKY_CELL)
    return np.asarray(cells.mean(axis=(1, 3), dtype=np.float64), np.float32)


def _fine(cells: F32, shape: tuple[int, int]) -> F32:
    """A map of cells at every pixel: bilinear between the cells' centres, and on in the same slope."""
    rows, columns = (_slopes(n, of) for n, of in zip(shape, cells.shape, strict=True))
    # About the mean: the products stay exact to what float32 holds of the map itself.
    mean = np.float32(cells.mean(dtype=np.float64))
    out: F32 = (rows @ (cells - mean)) @ columns.T
    out += mean
    return out


@lru_cache(maxsize=4)
def _slopes(n: int, n_cells: int) -> F32:
    """(n, n_cells) weights of linear interpolation."""
    at = (np.arange(n) + 0.5) / _SKY_CELL - 0.5
    first = np.clip(np.floor(at).astype(int), 0, max(n_cells - 2, 0))
    weight = at - first if n_cells > 1 else np.zeros(n)
    out = np.zeros((n, n_cells), np.float32)
    out[np.arange(n), first] = 1 - weight
    out[np.arange(n), np.minimum(first + 1, n_cells - 1)] += weight.astype(np.float32)
    return out


def encode_science(science: ScienceImage) -> dict[str, bytes]:
    """The science products of an image by suffix."""
    cards = science_cards(science)
    bits = {f"MBIT{b.bit:02d}": (b.name, b.meaning[:40]) for b in MASK_BITS}
    bits |= {f"MBIT{b}": (MASK_BITS[b].name, "ours: the survey reserves the bit") for b in _OUR_BITS}
    bits |= {f"TRACK{i:02d}": (_track_card(track), "") for i, track in enumerate(science.tracks, 1)}
    step = fitsio.quantum(science.background.sigma)
    image = fitsio.float_hdu(science.data, step, cards, "SCIIMG")
    sky = fitsio.plain_hdu(_coarse(science.background.level), {"CELL": _SKY_CELL}, "SKY")
    sky += fitsio.plain_hdu(_coarse(science.background.rms), {"CELL": _SKY_CELL}, "SKYRMS")
    sky += _air(science.astrometry.displacement)
    brief = {key: cards[key] for key in _CATALOG_CARDS} | map_cards(science.zeropoint.map)
    psf = catalogs.psf_catalog(science.sources, brief, science.zeropoint) + catalogs.psf_model(science.psf)
    return {
        "sciimg.fits.fz": fitsio.primary() + image + sky,
        "mskimg.fits.fz": fitsio.primary() + fitsio.int_hdu(as_signed(science.mask), {**cards, **bits}, "MSKIMG"),
        "psfcat.fits": fitsio.primary(brief) + psf,
        "sexcat.fits": fitsio.primary(brief) + catalogs.aperture_catalog(science.sources, brief),
    }


_AIR = "DISPLACEMENT"


def _air(field: Displacement | None) -> bytes:
    """What the air left beyond the WCS: planes dx, dy, their errors (px) at nodes spread evenly over the image."""
    if field is None:
        return b""
    cards = {
        "SPREADX": (field.spread[0], "r.m.s. of the field [px]"),
        "SPREADY": (field.spread[1], "r.m.s. of the field [px]"),
        "LENGTH": (field.length, "its coherence length [px]"),
        "FLOOR": (field.floor, "noise of a star beyond its stated one [px]"),
        "SCALE": (field.noise_scale, "factor of the stated one"),
        "NSTARS": (field.n_stars, "stars used"),
    }
    planes = np.stack([field.dx, field.dy, field.sigma_x, field.sigma_y]).astype(np.float32)
    return fitsio.plain_hdu(planes, cards, _AIR)


def _read_air(extension: fitsio.Extension | None, shape: tuple[int, int]) -> Displacement | None:
    if extension is None:
        return None
    h, planes = extension.header, np.asarray(extension.image(), np.float32)
    return Displacement(
        planes[0], planes[1], planes[2], planes[3], shape, (h["SPREADX"], h["SPREADY"]), h["LENGTH"], h["FLOOR"],
        h["SCALE"], h["NSTARS"],
    )  # fmt: skip


def _track_card(track: Track) -> str:
    """What made a track, its ends (FITS pixels), strip and FWHM (px), light (DN per px)."""
    numbers = track.x1 + 1, track.y1 + 1, track.x2 + 1, track.y2 + 1, track.width, track.fwhm, track.light
    return ",".join([track.kind, *(f"{n:.1f}" for n in numbers)])


def _read_track(card: str) -> Track:
    kind, *numbers = card.split(",")
    x1, y1, x2, y2, width, fwhm, light = (float(n) for n in numbers)
    return Track(kind, x1 - 1, y1 - 1, x2 - 1, y2 - 1, width, fwhm, light)


def decode_science(files: Mapping[str, bytes]) -> ScienceImage:
    """The science image of its files: pixels to a sixteenth of their noise, everything else as it was."""
    hdus = catalogs.by_name(files["sciimg.fits.fz"])
    tables = catalogs.by_name(files["psfcat.fits"])
    aperture = catalogs.by_name(files["sexcat.fits"])[catalogs.APERTURE_CATALOG]
    mask = fitsio.read_hdus(files["mskimg.fits.fz"])[1]
    tracks = [mask.header.get(f"TRACK{i:02d}") for i in range(1, int(mask.header.get("NTRACKS", 0)) + 1)]
    nan = float("nan")
    try:
        main = hdus["SCIIMG"]
        h, data = main.header, np.asarray(main.image(), np.float32)
        shape = data.shape[0], data.shape[1]
        rms = [h.get(f"ASTRRMS{i}", nan) * 3600.0 for i in (1, 2)]
        level, noise = (_fine(hdus[name].image(), shape) for name in ("SKY", "SKYRMS"))
        count = sum(f"APCOR{i}" in h for i in range(1, len(APERTURE_DIAMETERS) + 1))
        return ScienceImage(
            quadrant=Quadrant(read_exposure(h), h["QID"]),
            data=data,
            mask=as_unsigned(mask.image()),
            gain=h["GAIN"],
            readnoise=h["READNOI"],
            saturate=h.get("SATURATE", float("inf")),
            background=Background(level, noise, h["SKYMED"], h["SKYSIG"]),
            psf=catalogs.read_psf_model(tables),
            astrometry=Astrometry(
                WCS(h),
                rms[0],
                rms[1],
                h.get("ASTROMN", 0),
                h.get("ASTRNCAT", 0),
                h.get("ASTRLOGP", nan),
                chi_square=h.get("ASTCHI2", nan),
                displacement=_read_air(hdus.get(_AIR), shape),
                centroid=(h.get("CENTRSN1", nan), h.get("CENTRMIN", nan)),
                refraction=h.get("REFRACT", nan),
                colour=h.get("COLOUR", MEAN_COLOUR),
                colour_sigma=(h.get("COLOURX", 0.0), h.get("COLOURY", 0.0)),
            ),
            zeropoint=zeropoint_of(h),
            sources=catalogs.sources_of(tables[catalogs.PSF_CATALOG].image(), aperture.image()),
            maglim=h.get("MAGLIM", nan),
            infobits=h["INFOBITS"],
            apcor=tuple(h[f"APCOR{i}"] for i in range(1, count + 1)),
            apcorunc=tuple(h.get(f"APCORUN{i}", nan) for i in range(1, count + 1)),
            calids=tuple(filter(None, str(h.get("CALIDS", "")).split(","))),
            notes=tuple(filter(None, str(h.get("NOTES", "")).split(","))),
            cal_age=h.get("CALAGE", nan),
            cloud=str(h.get("CLOUD", "")),
            maglimcat=h.get("MAGLIMCT", nan),
            tracks=tuple(_read_track(track) for track in tracks if track),
        )
    except KeyError as error:
        raise MessageError(f"not a science image of ours: {error}") from error


_FIT_CARDS = ("MAGZP", "MAGZPUNC", "MAGZPRMS", "CLRCOEFF", "CLRCOUNC", "ZPCLRCOV")
_MEDIAN_CARDS = ("ZPMED", "ZPAVG", "CLRMED", "CLRAVG", "CLRRMS")


def zeropoint_of(h: fits.Header) -> ZeroPoint:
    """The zero point of a science product's header; NaN where a card is missing."""
    fit = {key.lower(): h.get(key, float("nan")) for key in _FIT_CARDS}
    medians = {key.lower(): h.get(key, float("nan")) for key in _MEDIAN_CARDS}
    return ZeroPoint(**fit, pcolor=h["PCOLOR"], n_matches=h["NMATCHES"], **medians, map=read_map(h))


# Cards of the raw header that ingest keeps, beside CCDTMPnn.
_RAW_CARDS = frozenset(
    {"RA_RATE", "DEC_RATE", "FOCUSPOS", "TEMPTURE", "HUMIDITY", "WINDSPD", "MOONRA", "MOONDEC", "MOONILLF", "SUNALT"}
    | {"ILUM_LED", "AIRMASS", "OBSJD", "QCOMMENT", "SHUTOPEN", "SHUTCLSD", "FILTER"}
)


def read_exposure(h: fits.Header) -> Exposure:
    """The exposure of a science product's header."""
    nan = float("nan")
    keep = {k: v for k, v in h.items() if k in _RAW_CARDS or k.startswith("CCDTMP")}
    middle = h.get("JDMID")
    if middle is None:
        middle = h["OBSJD"] + h["EXPTIME"] / 2 / 86_400
    return Exposure(
        name=h["FILENAME"],
        imgtype=h["IMGTYPE"],
        field=h["FIELDID"],
        fid=h["FILTERID"],
        ccdid=h["CCDID"],
        programid=h["PROGRMID"],
        jd=h["OBSJD"],
        jd_mid=middle,
        exptime=h["EXPTIME"],
        ra=h.get("TELRAD", nan),
        dec=h.get("TELDECD", nan),
        airmass=h.get("AIRMASS", nan),
        too=bool(h.get("TOO", False)),
        header=keep,
    )


def encode_difference(science: ScienceImage, reference: Reference, difference: Difference) -> dict[str, bytes]:
    """The difference image and its PSF."""
    cards = science_cards(science)
    cards |= {
        "RFID": (reference.rfid, "reference image identifier"),
        "REFVERS": (reference.version, "hash of the reference"),
        "FLXSCALE": (float(difference.flux_scale), "reference DN times this is science DN"),
        "DIFFMLIM": (float(difference.diffmaglim), "5-sigma limit of the difference [mag]"),
        "DIFFFWHM": (float(difference.fwhm), "FWHM of the difference PSF at the centre [px]"),
        "REGRMSX": (float(difference.registration_rms[0]), "registration r.m.s. [px]"),
        "REGRMSY": (float(difference.registration_rms[1]), "registration r.m.s. [px]"),
    }
    sample = difference.sigma[::16, ::16]
    finite = sample[np.isfinite(sample)]
    step = fitsio.quantum(float(np.median(finite)) if finite.size else float("nan"))
    return {
        "scimrefdiffimg.fits.fz": fitsio.primary() + fitsio.float_hdu(difference.data, step, cards, "SCIMREFDIFF"),
        "diffimgpsf.fits": difference_psf(difference),
    }


def difference_psf(difference: Difference) -> bytes:
    """``diffimgpsf.fits``: the PSF at the centre, and on a grid of places.

    Extension ``PSF_GRID`` has axes (x, y of the stamp, x, y of the place). Place i, j lies at FITS pixel
    (GRIDX0 + i GRIDDX, GRIDY0 + j GRIDDY); between places interpolate the stamps bilinearly.
    """
    ny, nx = difference.data.shape
    centre = difference.psf.stamp((nx - 1) / 2, (ny - 1) / 2, _PSF_SIDE)
    xs, ys = (np.linspace(0, n - 1, 2 * _GRID + 1)[1::2] for n in (nx, ny))
    grid = np.array([[difference.psf.stamp(float(x), float(y), _PSF_SIDE) for x in xs] for y in ys], np.float32)
    cards = {
        "GRIDX0": (float(xs[0]) + 1.0, "FITS pixel of the first place"),
        "GRIDY0": (float(ys[0]) + 1.0, "FITS pixel of the first place"),
        "GRIDDX": (float(xs[1] - xs[0]), "px between places"),
        "GRIDDY": (float(ys[1] - ys[0]), "px between places"),
        "INTERP": ("BILINEAR", "between the stamps of neighbouring places"),
    }
    return fitsio.primary({}, np.asarray(centre, np.float32)) + fitsio.plain_hdu(grid, cards, "PSF_GRID")


def encode_result(result: QuadrantResult) -> dict[str, bytes]:
    """Every product of a quadrant by suffix, as far as it came; the quality record always, and last."""
    files: dict[str, bytes] = {}
    if result.science is not None:
        files |= encode_science(result.science)
        if result.difference is not None and result.reference is not None:
            files |= encode_difference(result.science, result.reference, result.difference)
            if result.depth is not None:
                files[DEPTH_SUFFIX] = encode_depth(result.depth)
            files["candidates.parquet"] = catalogs.candidates_parquet(result.candidates)
            if result.fakes is not None:
                files["fakes.parquet"] = catalogs.fakes_parquet(result.quadrant, result.fakes)
            files["streaks.parquet"] = catalogs.streaks_parquet(result.streaks)
    files["qa.json"] = catalogs.quality_json(result.report)
    return files
