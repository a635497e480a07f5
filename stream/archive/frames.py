"""Calibration frames and references as files: bytes made of records, records made of bytes.

Both are quantised far below their own noise (a sixty-fourth), so that reading one costs no more than decompressing
a raw quadrant. Everything downstream, stream and offline alike, works with what was read back: there is one version
of the numbers, the stored one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from astropy.wcs import WCS

from stream.archive import catalogs, fitsio
from stream.astrometry import wcs_cards
from stream.core.cells import cell_nodes, spread_cells
from stream.core.errors import MessageError
from stream.core.identity import ccd_qid_of
from stream.core.records import (
    F32,
    Astrometry,
    CalibrationFrame,
    ChannelFacts,
    InstrumentModel,
    PixelMask,
    Reference,
    ReferenceNotes,
    Row,
)

BADPIX = "BADPIX"
# Noise of a frame over its quantum. Reading 64 levels of noise takes as long as reading 16; the file is 2 bits a
# pixel larger.
_LEVELS = 64.0


def _typical(image: F32) -> float:
    """A typical value of a smooth positive map, from every 64th pixel each way."""
    sample = image[:: min(64, image.shape[0]), :: min(64, image.shape[1])]
    sample = sample[np.isfinite(sample) & (sample > 0)]
    return float(np.median(sample)) if sample.size else float("nan")


def as_signed(mask: np.ndarray) -> np.ndarray:
    """Mask bits as FITS's int16: bit 15 becomes the sign (-32768), every other bit stays where it was."""
    return np.ascontiguousarray(mask, np.uint16).view(np.int16)


def as_unsigned(mask: np.ndarray) -> np.ndarray:
    """Mask bits of a product as uint16."""
    return np.ascontiguousarray(mask, np.int16).view(np.uint16)


def encode_calibration(frame: CalibrationFrame) -> tuple[bytes, bytes]:
    """A calibration frame and its uncertainty as two files; bad pixels travel with the first."""
    ccdid, qid = ccd_qid_of(frame.rcid)
    cards: dict[str, Any] = {
        "ORIGIN": "Zwicky Transient Facility",
        "CALKIND": (frame.kind, "calibration product"),
        "CALID": (frame.calid, "calibration identifier"),
        "NIGHT": (frame.night, "UT date of the frames"),
        "NID": (frame.nid, "night identifier"),
        "FILTERID": (frame.fid, "1 g, 2 r, 3 i; 0 bias"),
        "CCDID": ccdid,
        "QID": qid,
        "RCID": frame.rcid,
        "NFRAMES": (frame.n_frames, "frames combined"),
        "BUNIT": "DN" if frame.kind == "bias" else "",
        "QAJSON": (catalogs.json_bytes(frame.qa).decode().replace("\n", ""), ""),
    }
    typical = _typical(frame.unc)
    cell = int(frame.qa.get("cell", 0))
    if cell:
        # A smooth map is known by its cells: a file of some kB, read in no time.
        cards |= {"CALCELL": (cell, "px a side of a cell"), "CALNX": frame.data.shape[1], "CALNY": frame.data.shape[0]}
        parts = (fitsio.plain_hdu(cell_nodes(image, cell), cards, name) for image, name in (
            (frame.data, frame.kind.upper()), (frame.unc, "UNC")))  # fmt: skip
        data, spread = (fitsio.primary() + part for part in parts)
        return data, spread
    main = fitsio.float_hdu(frame.data, fitsio.quantum(typical, _LEVELS), cards, frame.kind.upper())
    bad = fitsio.int_hdu(as_signed(frame.badpix), {}, BADPIX)
    unc = fitsio.float_hdu(frame.unc, fitsio.quantum(typical, 1024.0), cards, "UNC")
    return fitsio.primary() + main + bad, fitsio.primary() + unc


def decode_calibration(data: bytes, unc: bytes | None = None) -> CalibrationFrame:
    """A calibration frame.

    Parameters
    ----------
    data, unc : bytes
        The two files. Without the second, ``unc`` is one NaN seen through every pixel: it takes no memory, and
        calibrating an image does not ask for it.
    """
    _, main, *others = fitsio.read_hdus(data)
    h = main.header
    bad = next((e for e in others if e.name == BADPIX), None)
    try:
        image = _whole(main)
        spread = np.broadcast_to(np.float32(np.nan), image.shape) if unc is None else _whole(fitsio.read_hdus(unc)[1])
        return CalibrationFrame(
            kind=h["CALKIND"],
            rcid=h["RCID"],
            fid=h["FILTERID"],
            nid=h["NID"],
            night=h["NIGHT"],
            data=image,
            unc=spread,
            badpix=np.zeros(image.shape, np.uint16) if bad is None else as_unsigned(bad.image()),
            n_frames=h["NFRAMES"],
            calid=str(h["CALID"]),
            qa=catalogs.read_json(h["QAJSON"].encode()),
        )
    except KeyError as error:
        raise MessageError(f"not a calibration frame of ours: {error}") from error


def _whole(hdu: fitsio.Extension) -> F32:
    """The image, spread over its pixels where it is stored by cells."""
    image = np.asarray(hdu.image(), np.float32)
    cell = hdu.header.get("CALCELL")
    return spread_cells(image, int(cell), (hdu.header["CALNY"], hdu.header["CALNX"])) if cell else image


def encode_pixelmask(mask: PixelMask) -> bytes:
    """A pixel mask as a file."""
    ccdid, qid = ccd_qid_of(mask.rcid)
    cards: dict[str, Any] = {
        "ORIGIN": "Zwicky Transient Facility",
        "CALKIND": ("pmask", "calibration product"),
        "CALID": (mask.calid, "calibration identifier"),
        "NIGHT": (mask.night, "UT date of the frames"),
        "NID": (mask.nid, "night identifier"),
        "FILTERID": (mask.fid, "1 g, 2 r, 3 i; 0 any"),
        "CCDID": ccdid,
        "QID": qid,
        "RCID": mask.rcid,
        "NFRAMES": (mask.n_frames, "frames used"),
        "QAJSON": (catalogs.json_bytes(mask.qa).decode().replace("\n", ""), ""),
    }
    return fitsio.primary() + fitsio.int_hdu(as_signed(mask.mask), cards, "PMASK")


def decode_pixelmask(data: bytes) -> PixelMask:
    """The pixel mask of a file."""
    _, main = fitsio.read_hdus(data)
    h = main.header
    try:
        bits = as_unsigned(main.image())
        qa = catalogs.read_json(h["QAJSON"].encode())
        return PixelMask(h["RCID"], h["FILTERID"], h["NID"], h["NIGHT"], bits, h["NFRAMES"], str(h["CALID"]), qa)
    except KeyError as error:
        raise MessageError(f"not a pixel mask of ours: {error}") from error


def encode_instrument(model: InstrumentModel) -> bytes:
    """An instrument model as JSON; what was not measured is null."""
    record = {
        "ccdid": model.ccdid, "nid": model.nid, "night": model.night, "n_frames": model.n_frames,
        "channels": [asdict(channel) for channel in model.channels],
        "crosstalk": model.crosstalk.tolist(), "crosstalk_unc": model.crosstalk_unc.tolist(), "qa": model.qa,
    }  # fmt: skip
    return catalogs.json_bytes(record)


def decode_instrument(data: bytes) -> InstrumentModel:
    """The instrument model of a file."""
    record = catalogs.read_json(data)

    def known(value: float | None) -> float:
        return float("nan") if value is None else float(value)

    try:
        one, two, three, four = (
            ChannelFacts(**{key: known(value) for key, value in channel.items()}) for channel in record["channels"]
        )
        shares, uncs = (
            np.array([[known(value) for value in row] for row in record[key]]).reshape(4, 4)
            for key in ("crosstalk", "crosstalk_unc")
        )
        return InstrumentModel(
            record["ccdid"], record["nid"], record["night"], (one, two, three, four), shares, uncs,
            record["n_frames"], record["qa"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"not an instrument model of ours: {error}") from error


def grid_cards(wcs: WCS) -> Row:
    """The cards of a bare WCS."""
    cards = wcs_cards(Astrometry(wcs, float("nan"), float("nan"), 0, 0, float("nan")))
    return {key: value for key, value in cards.items() if key not in ("ASTRRMS1", "ASTRRMS2", "ASTROMN")}


# Card, name in the quality record, meaning: the survey's successor's list (``ztf-facts.md`` §4), then ours.
_QUALITY_CARDS = (
    ("NPIXSAT", "npixsat", "saturated pixels"),
    ("NPIXNAN", "npixnan", "pixels without a value"),
    ("CLMEAN", "clmean", "clipped mean [DN]"),
    ("CLSTDDEV", "clstddev", "clipped standard deviation [DN]"),
    ("GMEDIAN", "gmedian", "median [DN]"),
    ("DATASCAL", "datascale", "half of 84th less 16th percentile [DN]"),
    ("GMIN", "gmin", "minimum [DN]"),
    ("GMAX", "gmax", "maximum [DN]"),
    ("COV5PERC", "cov5percent", "mean of coverage up to 5, per cent of 5"),
    ("MEDNCOV", "medncov", "median coverage"),
    ("MEDPIXU", "medpixunc", "median uncertainty [DN]"),
    ("FWHMMED", "fwhmmedpix", "median FWHM of the inputs [px]"),
    ("FWHMMIN", "fwhmminpix", "least FWHM of the inputs [px]"),
    ("FWHMMAX", "fwhmmaxpix", "largest FWHM of the inputs [px]"),
    ("NSOURCES", "nsources", "sources in the catalogue"),
    ("GAIN", "gain", "of the mean [e-/DN]"),
    ("NOISEFAC", "noise_factor", "r.m.s. from pixel to pixel over uncertainty"),
    ("MAGLIM", "maglim", "5-sigma limit at the centre [mag]"),
    ("CLIPPED", "rejected", "share of the inputs' pixels left out"),
    ("EXPTOTAL", "exptime", "sum of the exposure times [s]"),
    ("GAIARMS1", "gaia_rms_east", "r.m.s. against Gaia, east [mas]"),
    ("GAIARMS2", "gaia_rms_north", "r.m.s. against Gaia, north [mas]"),
    ("GAIAN", "gaia_n", "stars matched with Gaia"),
    ("PS1ZP", "ps1_zeropoint", "zero point against PS1 [mag]"),
    ("PS1RMS", "ps1_rms", "r.m.s. of its residuals [mag]"),
    ("PS1N", "ps1_n", "calibrators"),
    ("CLRCOEFF", "ps1_clrcoeff", "colour coefficient"),
)


def encode_reference(reference: Reference) -> dict[str, bytes]:
    """The files of a reference by suffix; ``reflog.json`` last, as it says that the others are complete."""
    ccdid, qid = ccd_qid_of(reference.rcid)
    cards: dict[str, Any] = {
        "ORIGIN": "Zwicky Transient Facility",
        "BUNIT": "DN",
        **grid_cards(reference.wcs),
        "FIELDID": reference.field,
        "FILTERID": reference.fid,
        "CCDID": ccdid,
        "QID": qid,
        "RCID": reference.rcid,
        "RFID": (reference.rfid, "reference image identifier"),
        "MAGZP": (float(reference.magzp), "zero point [mag]"),
        "SATURATE": (float(reference.saturate), "no flux at or above it [DN]"),
        "SEEING": (float(reference.psf.fwhm), "median FWHM [px]"),
        "JDSTART": (float(reference.jd_start), "start of the first input"),
        "JDEND": (float(reference.jd_end), "start of the last input"),
        "NFRAMES": (reference.n_frames, "inputs"),
        "REFVERS": (reference.version, "hash of inputs, software and pixels"),
        "MJDMIN": (float(reference.jd_start) - 2_400_000.5, "start of the first input"),
        "MJDMAX": (float(reference.jd_end) - 2_400_000.5, "start of the last input"),
        **{card: (reference.qa.get(name), comment) for card, name, comment in _QUALITY_CARDS},
    }
    typical = _typical(reference.unc)
    identity = {key: cards[key] for key in ("FIELDID", "FILTERID", "CCDID", "QID", "RCID", "RFID", "MAGZP", "REFVERS")}
    image = fitsio.float_hdu(reference.data, fitsio.quantum(typical, _LEVELS), cards, "REFIMG")
    cover = fitsio.int_hdu(reference.coverage.astype(np.int16, copy=False), {**cards, "BUNIT": ""}, "REFCOV")
    unc = fitsio.float_hdu(reference.unc, fitsio.quantum(typical, 1024.0), cards, "REFUNC")
    tables = catalogs.psf_catalog(reference.sources, identity) + catalogs.aperture_catalog(reference.sources, identity)
    log = {"version": reference.version, "rfid": reference.rfid, "inputs": list(reference.inputs), "qa": reference.qa}
    return {
        "refimg.fits.fz": fitsio.primary() + image,
        "refcov.fits.fz": fitsio.primary() + cover,
        "refunc.fits.fz": fitsio.primary() + unc,
        "refpsfcat.fits": fitsio.primary(identity) + tables + catalogs.psf_model(reference.psf),
        "reflog.json": catalogs.json_bytes(log),
    }


def decode_reference(files: Mapping[str, bytes]) -> Reference:
    """The reference of its files.

    Raises
    ------
    MessageError
        Files of different versions (a reference is being replaced: read again), or not a reference of ours.
    """
    image = fitsio.read_hdus(files["refimg.fits.fz"])[1]
    unc = fitsio.read_hdus(files["refunc.fits.fz"])[1]
    cover = fitsio.read_hdus(files["refcov.fits.fz"])[1]
    tables = catalogs.by_name(files["refpsfcat.fits"])
    log = catalogs.read_json(files["reflog.json"])
    h = image.header
    try:
        versions = {str(v) for v in (h["REFVERS"], unc.header["REFVERS"], cover.header["REFVERS"], log["version"])}
        versions.add(str(tables["PRIMARY"].header["REFVERS"]))
        if len(versions) != 1:
            raise MessageError(f"files of a reference do not belong together: {', '.join(sorted(versions))}")
        psf, aperture = tables[catalogs.PSF_CATALOG].image(), tables[catalogs.APERTURE_CATALOG].image()
        return Reference(
            rfid=h["RFID"],
            field=h["FIELDID"],
            fid=h["FILTERID"],
            rcid=h["RCID"],
            data=np.asarray(image.image(), np.float32),
            unc=np.asarray(unc.image(), np.float32),
            coverage=np.asarray(cover.image(), np.int16),
            wcs=WCS(h),
            psf=catalogs.read_psf_model(tables),
            magzp=h["MAGZP"],
            sources=catalogs.sources_of(psf, aperture),
            jd_start=h["JDSTART"],
            jd_end=h["JDEND"],
            n_frames=h["NFRAMES"],
            saturate=h.get("SATURATE", float("inf")),
            version=str(h["REFVERS"]),
            inputs=tuple(log["inputs"]),
            qa=log["qa"],
        )
    except KeyError as error:
        raise MessageError(f"not a reference of ours: {error}") from error


def encode_notes(notes: ReferenceNotes) -> bytes:
    """Notes as JSON; their numbers come back exactly, and ``digest`` says whether they did."""
    row: Row = {
        "version": notes.version, "code": notes.code, "typical": notes.typical,
        "stars": notes.stars.tolist(), "clean": notes.clean.tolist(),
    }  # fmt: skip
    return catalogs.json_bytes({**row, "digest": _digest(row)})


def decode_notes(data: bytes) -> ReferenceNotes | None:
    """The notes; None where the file is damaged: they can be made again."""
    try:
        row = catalogs.read_json(data)
        digest = row.pop("digest")
        if digest != _digest(row):
            return None
        stars, clean = np.array(row["stars"], np.float64).reshape(-1, 3), np.array(row["clean"], np.int64)
        return ReferenceNotes(str(row["version"]), str(row["code"]), stars, clean, float(row["typical"]))
    except (MessageError, KeyError, TypeError, ValueError):
        return None


def _digest(row: Row) -> str:
    return hashlib.sha256(catalogs.json_bytes(row)).hexdigest()[:16]
