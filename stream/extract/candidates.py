"""From three records to the list of candidates of a quadrant: detect, measure, judge, number, cut out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from stream.core.errors import SubtractionError
from stream.core.flags import MASK_BITS
from stream.core.identity import CANDID_VERSION
from stream.core.records import Candidate, Difference, Reference, Row, ScienceImage
from stream.core.sphere import unit_vectors
from stream.extract.cuts import POGSON, CutProfile, profile_named, rejection
from stream.extract.detect import detect_peaks
from stream.extract.fields import CANDIDATE_FIELDS, EXTRA_FIELDS
from stream.extract.measure import Measurements, measure
from stream.extract.psffit import MIN_WEIGHT
from stream.extract.stamps import cut_stamps
from stream.extract.table import MAX_ROWS, assign_tblids, candids

F64 = NDArray[np.float64]
# The schema's documentation limits the search for reference sources to 30 arcsec; beyond it the nearest one says
# nothing about the candidate.
REFERENCE_RADIUS = 30.0  # arcsec


@dataclass(frozen=True, slots=True)
class ExtractSettings:
    """How a difference is searched.

    ``threshold`` is absolute on \\|S_corr\\|. The survey's is 5.0, at which noise alone leaves 84 % of what has a true
    S/N of 6. S_corr of such a source is 5.75 on average (its own light is in the variance): at 4.0 noise leaves 96 %,
    for some two hundred peaks of noise a quadrant, which the profile keeps back. ``profile`` names the cuts
    (``cuts.PROFILES``).
    ``max_rows`` is the most candidates of one sign, ``version`` the two version digits of their candids.
    """

    threshold: float = 4.0
    profile: str = "survey-2018"
    max_rows: int = MAX_ROWS
    stamp_size: int = 63
    version: int = CANDID_VERSION


@dataclass(frozen=True, slots=True)
class Extraction:
    """``candidates`` sorted by (sign: positive first, tblid); ``n_dropped`` peaks (positive, negative) beyond
    ``max_rows``, the faintest, that were never measured (reason ``table_full``)."""

    candidates: list[Candidate] = field(default_factory=list)
    n_dropped: tuple[int, int] = (0, 0)


def extract(
    science: ScienceImage,
    reference: Reference,
    difference: Difference,
    settings: ExtractSettings | None = None,
) -> list[Candidate]:
    """All candidates of a quadrant, sent and rejected; see ``extract_all`` for those too many to number."""
    return extract_all(science, reference, difference, settings).candidates


def extract_all(
    science: ScienceImage,
    reference: Reference,
    difference: Difference,
    settings: ExtractSettings | None = None,
) -> Extraction:
    """Search a difference image for what changed, of either sign.

    Parameters
    ----------
    science, reference, difference
        Of one quadrant. ``difference`` is on the science grid.
    settings : ExtractSettings, optional

    Returns
    -------
    Extraction
        Every candidate has all names of the packet's ``candidate`` record in ``fields`` (float fields already
        rounded to float32, so that ratios and differences hold exactly in the packet; never NaN) and
        ``EXTRA_FIELDS`` in ``extra``. ``rejected`` is a reason of ``cuts.rejection`` or ``unusable`` (more than 30 % of
        the PSF on unusable pixels); rejected ones have no stamps. Empty where the difference has no usable pixel.

    Raises
    ------
    SubtractionError
        If the images' shapes do not agree or the difference has no PSF width.
    UsageError
        If there is no such cut profile.
    """
    settings = settings or ExtractSettings()
    profile = profile_named(settings.profile)
    _check(science, difference)
    rows = min(settings.max_rows, MAX_ROWS)
    peaks = detect_peaks(difference.scorr, settings.threshold, difference.fwhm, rows)
    if not len(peaks):
        return Extraction([], peaks.n_dropped)
    m = _on_zeropoint(measure(science, reference, difference, peaks), science)
    columns = _columns(science, reference, difference, m)
    extras = _extra_columns(science, m)
    common = _common(science, reference, difference)
    all_fields = zip(*(columns.get(name, repeat(common[name])) for name in CANDIDATE_FIELDS), strict=False)
    all_extras = zip(*(extras[name] for name in EXTRA_FIELDS), strict=True)
    usable = (m.weight >= MIN_WEIGHT).tolist()
    records = []
    for one, other, ok in zip(all_fields, all_extras, usable, strict=True):
        fields, extra = dict(zip(CANDIDATE_FIELDS, one, strict=True)), dict(zip(EXTRA_FIELDS, other, strict=True))
        records.append(Candidate(fields, extra, _judge(fields, extra, profile) if ok else "unusable"))
    _number(science, m, records, settings.version)
    _cut_out(science, difference, m, records, settings.stamp_size)
    order = sorted(range(len(m)), key=lambda i: (m.sign[i] < 0, records[i].fields["tblid"]))
    return Extraction([records[i] for i in order], peaks.n_dropped)


_FLUXES = (
    "flux", "fluxerr", "ap", "ap_err", "big", "big_err", "sciflux", "scifluxerr", "refflux", "reffluxerr",
)  # fmt: skip


def _on_zeropoint(m: Measurements, science: ScienceImage) -> Measurements:
    """Fluxes as they would be where the quadrant's zero point holds: its map taken out, so that a packet's fluxes and
    magnitudes go with the one ``magzpsci`` that it has room for."""
    zeropoint = science.zeropoint
    if zeropoint.map is None:
        return m
    factor = 10 ** (-0.4 * (zeropoint.at(m.x, m.y) - zeropoint.magzp))
    return replace(m, **{name: getattr(m, name) * factor for name in _FLUXES})


def _judge(fields: Row, extra: Row, profile: CutProfile) -> str | None:
    # The number is given after the verdict; it is never missing.
    return rejection({**fields, "candid": 0}, extra, profile)


def _check(science: ScienceImage, difference: Difference) -> None:
    shape = science.data.shape
    for name in ("data", "scorr", "score", "sigma", "reference", "mask"):
        if getattr(difference, name).shape != shape:
            raise SubtractionError(
                f"difference.{name} is {getattr(difference, name).shape}, the science image {shape}: not one grid",
                rid=science.quadrant.rid,
            )
    if not (math.isfinite(difference.fwhm) and difference.fwhm > 0):
        raise SubtractionError(f"difference PSF has FWHM {difference.fwhm}", rid=science.quadrant.rid)


def _floats(values: ArrayLike, dtype: type = np.float32) -> list[float | None]:
    """Python floats of a column, rounded to ``dtype``; None where not finite."""
    array: NDArray[Any] = np.asarray(values).astype(dtype)
    finite = np.isfinite(array)
    if finite.all():
        result: list[float | None] = array.tolist()
        return result
    return [v if ok else None for v, ok in zip(array.tolist(), finite.tolist(), strict=True)]


def _scalar(value: float, dtype: type = np.float32) -> float | None:
    return _floats(np.array([value]), dtype)[0]


def _magnitude(flux: F64, error: F64, zeropoint: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Magnitudes and errors as float32; NaN for fluxes that are not positive."""
    positive = np.where(flux > 0, flux, np.nan)
    return (zeropoint - 2.5 * np.log10(positive)).astype(np.float32), (POGSON * error / positive).astype(np.float32)


def _columns(
    science: ScienceImage, reference: Reference, difference: Difference, m: Measurements
) -> dict[str, list[Any]]:
    """The per-candidate columns of the packet, as Python values."""
    zp = science.zeropoint.magzp
    magpsf, sigmapsf = _magnitude(m.flux, m.fluxerr, zp)
    magap, sigmagap = _magnitude(m.ap, m.ap_err, zp)
    magbig, sigmagbig = _magnitude(m.big, m.big_err, zp)
    limit = np.float32(difference.diffmaglim)
    a, b, fwhm = (v.astype(np.float32) for v in (m.a, m.b, m.fwhm))
    dsnrms, ssnrms = m.dsnrms.astype(np.float32), m.ssnrms.astype(np.float32)
    ny, nx = difference.data.shape
    xpos, ypos = (m.x + 1).astype(np.float32), (m.y + 1).astype(np.float32)
    # Exact in float32: half pixels and subtractions of numbers this close.
    edge = np.minimum.reduce([xpos, ypos, np.float32(nx + 0.5) - xpos, np.float32(ny + 0.5) - ypos])
    ra, dec = science.astrometry.sky_of(m.x, m.y)
    with np.errstate(invalid="ignore", divide="ignore"):
        floats = {
            "xpos": xpos, "ypos": ypos, "magpsf": magpsf, "sigmapsf": sigmapsf, "chipsf": m.chi2,
            "magap": magap, "sigmagap": sigmagap, "magapbig": magbig, "sigmagapbig": sigmagbig, "sky": m.sky,
            "magdiff": magap - magpsf, "magfromlim": limit - magap, "fwhm": fwhm, "classtar": m.classtar,
            "mindtoedge": edge, "seeratio": np.float32(difference.fwhm) / fwhm, "aimage": a, "bimage": b,
            "aimagerat": a / fwhm, "bimagerat": b / fwhm, "elong": a / b, "sumrat": m.sumrat,
            "dsnrms": dsnrms, "ssnrms": ssnrms, "dsdiff": dsnrms - ssnrms,
        }  # fmt: skip
    columns: dict[str, list[Any]] = {name: _floats(values) for name, values in floats.items()}
    columns["ra"], columns["dec"] = _floats(ra % 360.0, np.float64), _floats(dec, np.float64)
    columns["scorr"] = _floats(m.scorr, np.float64)
    columns["nneg"], columns["nbad"] = m.nneg.tolist(), m.nbad.tolist()
    columns["isdiffpos"] = ["t" if s > 0 else "f" for s in m.sign.tolist()]
    columns |= _nearest_reference(reference, ra, dec, _pixel_scale(science))
    return columns


def _extra_columns(science: ScienceImage, m: Measurements) -> dict[str, list[Any]]:
    """Columns of our own extension."""
    zp, n = science.zeropoint.magzp, len(m)
    with np.errstate(invalid="ignore", divide="ignore"):
        limmag = zp - 2.5 * np.log10(5.0 * m.fluxerr)
    return {
        "flux": _floats(m.flux * m.sign, np.float64),
        "fluxerr": _floats(m.fluxerr, np.float64),
        "refflux": _floats(m.refflux, np.float64),
        "refmagzp": [_scalar(zp, np.float64)] * n,
        "limmag": _floats(limmag, np.float64),
        "jdmid": [science.quadrant.exposure.jd_mid] * n,
        "maskbits": m.maskbits.tolist(),
        "dipole": _floats(m.dipole, np.float64),
        "sciflux": _floats(m.sciflux, np.float64),
        "scifluxerr": _floats(m.scifluxerr, np.float64),
        "reffluxerr": _floats(m.reffluxerr, np.float64),
        "dipole_sep": _floats(m.dipole_sep),
        "chi2px": _floats(m.chi2px),
        "chi4px": _floats(m.chi4px),
        "chi7px": _floats(m.chi7px),
        "unexplained": _floats(m.unexplained),
        "masked": _named_shares(m.shares),
        "persistdist": _floats(m.persistent),
    }


def _named_shares(shares: F64) -> list[str]:
    """Shares of the bits that are set at all by the bit's name, as JSON: a packet's new fields are plain values."""
    rows: list[dict[str, float]] = [{} for _ in range(len(shares))]
    for row, bit in zip(*np.nonzero(shares), strict=True):
        rows[row][MASK_BITS[bit].name.lower()] = round(float(shares[row, bit]), 4)
    return [json.dumps(row, separators=(",", ":")) for row in rows]


def _pixel_scale(science: ScienceImage) -> float:
    """Arcsec per pixel at the image's centre, distortion included."""
    ny, nx = science.data.shape
    x, y = nx / 2 + np.array([0.0, 1.0, 0.0]), ny / 2 + np.array([0.0, 0.0, 1.0])
    v = unit_vectors(*science.astrometry.wcs.all_pix2world(x, y, 0))
    area = np.linalg.norm(np.cross(v[1] - v[0], v[2] - v[0]))
    return float(np.degrees(np.sqrt(area)) * 3600.0)


def _nearest_reference(reference: Reference, ra: F64, dec: F64, scale: float) -> dict[str, list[Any]]:
    """Nearest source of the reference's PSF catalogue within ``REFERENCE_RADIUS``.

    ``distnr`` in science pixels. Where there is none, ``ranr``/``decnr``, which the schema requires, repeat
    the candidate's own place and the rest is null.
    """
    sources = reference.sources
    known = np.isfinite(sources["ra"]) & np.isfinite(sources["dec"]) if len(sources) else np.zeros(0, bool)
    rows = np.flatnonzero(known)  # not the table without the others: most of it is never asked for
    placed = np.isfinite(ra) & np.isfinite(dec)
    distance, index = np.full(len(ra), np.nan), np.zeros(len(ra), int)
    if len(rows) and placed.any():
        # Quick to make: it is asked a thousand times, not a million.
        places = unit_vectors(sources["ra"][rows], sources["dec"][rows])
        tree = cKDTree(places, balanced_tree=False, compact_nodes=False)
        chord, found = tree.query(unit_vectors(ra[placed], dec[placed]))
        distance[placed] = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600.0
        index[placed] = found
    near = distance <= REFERENCE_RADIUS
    if not near.any():
        empty: list[None] = [None] * len(ra)
        names = ("distnr", "magnr", "sigmagnr", "chinr", "sharpnr")
        own = {"ranr": _floats(ra % 360.0, np.float64), "decnr": _floats(dec, np.float64)}
        return {**own, **dict.fromkeys(names, empty)}
    matched = sources[rows[index]]
    magnr, sigmagnr = _magnitude(matched["flux"], matched["sigflux"], reference.magzp)

    def only_near(values: ArrayLike) -> list[float | None]:
        return _floats(np.where(near, values, np.nan))

    return {
        "distnr": only_near(distance / scale),
        "magnr": only_near(magnr),
        "sigmagnr": only_near(sigmagnr),
        "chinr": only_near(matched["chi"]),
        "sharpnr": only_near(matched["sharp"]),
        "ranr": _floats(np.where(near, matched["ra"], ra) % 360.0, np.float64),
        "decnr": _floats(np.where(near, matched["dec"], dec), np.float64),
    }


def _common(science: ScienceImage, reference: Reference, difference: Difference) -> Row:
    """Fields that are the same for the whole quadrant, and those that later rooms fill in."""
    q, e, zp = science.quadrant, science.quadrant.exposure, science.zeropoint
    row: Row = dict.fromkeys(CANDIDATE_FIELDS)
    row |= {
        "jd": e.jd, "fid": e.fid, "pid": q.pid, "programid": e.programid, "nid": e.nid, "rcid": q.rcid,
        "field": e.field, "pdiffimfilename": f"{q.name}_scimrefdiffimg.fits.fz", "tooflag": int(e.too),
        "diffmaglim": _scalar(difference.diffmaglim), "exptime": _scalar(e.exptime),
        "rfid": reference.rfid, "jdstartref": _scalar(reference.jd_start, np.float64),
        "jdendref": _scalar(reference.jd_end, np.float64), "nframesref": reference.n_frames, "nmatches": zp.n_matches,
        "magzpsci": _scalar(zp.magzp), "magzpsciunc": _scalar(zp.magzpunc), "magzpscirms": _scalar(zp.magzprms),
        "clrcoeff": _scalar(zp.clrcoeff), "clrcounc": _scalar(zp.clrcounc), "zpclrcov": _scalar(zp.zpclrcov),
        "zpmed": _scalar(zp.zpmed), "clrmed": _scalar(zp.clrmed), "clrrms": _scalar(zp.clrrms),
        # Filled in by the rooms that follow; the schema wants a value from the start.
        "ndethist": 0, "ncovhist": 0, "nmtchps": 0, "rbversion": "", "drbversion": "",
    }  # fmt: skip
    return row


def _number(science: ScienceImage, m: Measurements, records: list[Candidate], version: int) -> None:
    positive = m.sign > 0
    rows = assign_tblids(m.x, m.y, positive, [r.rejected is None for r in records])
    numbers = candids(science.quadrant, positive.tolist(), rows, version)
    for record, row, candid in zip(records, rows.tolist(), numbers, strict=True):
        record.fields["tblid"], record.fields["candid"] = row, candid


def _cut_out(
    science: ScienceImage, difference: Difference, m: Measurements, records: list[Candidate], size: int
) -> None:
    sent = np.array([i for i, r in enumerate(records) if r.rejected is None], int)
    images = science.data, difference.reference, difference.data
    for i, stamps in zip(
        sent.tolist(), cut_stamps(*images, m.ix[sent], m.iy[sent], m.sign[sent].tolist(), size), strict=True
    ):
        records[i].stamps = stamps
