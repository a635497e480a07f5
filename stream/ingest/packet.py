"""CCD packets to quadrant messages, and quadrant messages to pixels.

A packet (``interfaces.md`` §1) is checked on its headers, sizes and checksums and split by copying bytes: the pixels
that the worker gets are the camera's own bytes. A quadrant payload is a FITS file of its own::

    0  primary HDU       as it came
    1  image HDU         as it came
    2  overscan HDU      as it came
    3  provenance        no data; FILENAME, QID, SHA256 of the three above
    4  aggressors        bright pixels of the CCD's other quadrants (on-sky exposures; ``ingest.aggressors``)

The last is the only thing for which ingest looks at pixels. Payloads of three or four HDUs, as they were written
before, are read too.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.core.camera import Camera
from stream.core.errors import PacketError
from stream.core.records import Aggressor, Exposure, Quadrant, RawQuadrant
from stream.ingest.aggressors import EXTNAME, aggressors_hdu, find_aggressor, read_aggressors
from stream.ingest.fitsblocks import (
    BLOCK,
    CARD,
    Hdu,
    checksum_problem,
    extension_starts,
    locate_extensions,
    read_hdu,
)
from stream.ingest.keywords import Keywords, NameParts, exposure_of, parse_name
from stream.ingest.pixels import Layout, decode, read_layout

# A full CCD packet is 32 MB compressed and 77 MB plain. Four times that is no packet of this camera.
MAX_PACKET_BYTES = 320_000_000
GAIN_DEFAULT, READNOISE_DEFAULT, SATURATE_DEFAULT = 6.2, 10.0, 60_000.0  # interfaces.md §1
_ADC_MAX = 65_535.0  # the converter's ceiling: a larger SATURATE would never be reached
_PROVENANCE = "ZTFPACKT"


@dataclass(frozen=True, slots=True)
class QuadrantPayload:
    """One quadrant on its way to a worker: ``payload`` is a FITS file, ``sha256`` (hex) that of its source HDUs."""

    quadrant: Quadrant
    payload: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Packet:
    """A CCD packet taken apart. Every quadrant is in ``quadrants`` or the reason it is not in ``failures``."""

    exposure: Exposure
    quadrants: tuple[QuadrantPayload, ...]
    failures: tuple[PacketError, ...]


def read_packet(path: Path, camera: Camera, *, aggressors: bool = True) -> Packet:
    """``parse_packet`` of a file; ``PacketError`` also where it cannot be read or is absurdly large."""
    try:
        size = path.stat().st_size
        if size > MAX_PACKET_BYTES:
            raise PacketError(f"{path.name}: {size} bytes is no CCD packet of this camera", file=path.name)
        data = path.read_bytes()
    except OSError as error:
        raise PacketError(f"{path.name}: cannot be read ({error.strerror}): check the file", file=path.name) from error
    return parse_packet(data, path.name, camera, aggressors=aggressors)


def parse_packet(data: bytes, name: str, camera: Camera, *, aggressors: bool = True) -> Packet:
    """Split a CCD packet into four quadrant payloads, copying HDUs byte for byte.

    Parameters
    ----------
    data : bytes
        The whole file, plain or tile-compressed.
    name : str
        Its file name (folders ignored): identifies field, filter, CCD and image type, never measures.
    camera : Camera
        Expected sizes.
    aggressors : bool
        Whether payloads of an on-sky exposure carry the bright pixels of the other quadrants, for which all four are
        decompressed (0.07 s each). False where nobody will calibrate them.

    Returns
    -------
    Packet
        Quadrants in order of ``qid``. One that is hurt (header, size, type, checksum, or its overscan) is in
        ``failures`` with ``qid``, ``rcid``, ``rid`` in the error's context. One whose compressed pixels are hurt goes
        on (the worker refuses it) and is only missing among the aggressors of the others.

    Raises
    ------
    PacketError
        The name, the primary header or the file as a whole is wrong: no quadrant can be used. ``exposure_of``
        tells how times are taken.
    """
    parts = parse_name(name)
    primary = _primary(data, parts)
    exposure = exposure_of(primary.cards or {}, parts)
    extensions = locate_extensions(data, primary.end, 8)
    sound: dict[int, bytes] = {}
    bright: list[Aggressor] = []
    failures = []
    for qid in (1, 2, 3, 4):
        quadrant = Quadrant(exposure, qid)
        image, overscan = extensions[qid - 1], extensions[qid + 3]
        try:
            layout, keys = _checked(data, image, quadrant, f"extension {qid}", camera.shape)
            _checked(data, overscan, quadrant, f"extension {qid + 4}", (camera.ny, camera.n_overscan))
            _amplifier(image, quadrant)
        except PacketError as error:
            failures.append(error)
            continue
        sound[qid] = primary.bytes_of(data) + image.bytes_of(data) + overscan.bytes_of(data)
        if aggressors and exposure.imgtype == "object":
            with suppress(PacketError):  # the worker that gets these pixels will say what is wrong with them
                bright.append(find_aggressor(decode(data, image, layout, keys), qid))
    quadrants = []
    for qid, source in sound.items():
        sha256 = hashlib.sha256(source).hexdigest()
        others = [one for one in bright if one.qid != qid]
        payload = source + _provenance(parts.name, qid, sha256) + (aggressors_hdu(others) if others else b"")
        quadrants.append(QuadrantPayload(Quadrant(exposure, qid), payload, sha256))
    return Packet(exposure, tuple(quadrants), tuple(failures))


def read_quadrant(payload: bytes, camera: Camera) -> RawQuadrant:
    """Decompress one quadrant payload.

    Everything is checked again: the message may come out of an old topic or a dead-letter file. A payload of
    three HDUs without provenance is taken too if its primary header has FILENAME or ORIGNAME.

    Raises
    ------
    PacketError
        The payload breaks the format or a row does not decompress.
    """
    extensions, quadrant = _whose(payload)
    image, overscan = extensions[:2]
    checked = [
        _checked(payload, image, quadrant, "image", camera.shape),
        _checked(payload, overscan, quadrant, "overscan", (camera.ny, camera.n_overscan)),
    ]
    gain, readnoise, saturate = _amplifier(image, quadrant)
    pixels = [
        decode(payload, hdu, layout, keys) for hdu, (layout, keys) in zip((image, overscan), checked, strict=True)
    ]
    others = next((hdu for hdu in extensions[2:] if (hdu.cards or {}).get("EXTNAME") == EXTNAME), None)
    return RawQuadrant(
        quadrant, pixels[0], pixels[1], gain, readnoise, saturate, _aggressors(payload, others, quadrant, camera)
    )


def payload_quadrant(payload: bytes) -> Quadrant | None:
    """Whose payload it is, as far as its headers can be read; None where they cannot."""
    try:
        return _whose(payload)[1]
    except PacketError:
        return None


def _whose(payload: bytes) -> tuple[list[Hdu], Quadrant]:
    """Extensions of a payload and the quadrant they are of."""
    starts = extension_starts(payload)
    if len(starts) < 2:
        raise PacketError(f"quadrant payload of {len(payload)} bytes: image or overscan is missing: send it again")
    primary = read_hdu(payload, 0, starts[0])
    extensions = locate_extensions(payload, starts[0], len(starts))
    names = [
        (extensions[2].cards or {}).get("FILENAME") if len(extensions) > 2 else None,
        *((primary.cards or {}).get(key) for key in ("FILENAME", "ORIGNAME")),
    ]
    name = next((name for name in names if isinstance(name, str) and name), None)
    if name is None:
        raise PacketError("quadrant payload without FILENAME, nothing says which packet it is of: ingest it again")
    parts = parse_name(name)
    _check_primary(payload, primary, parts)
    exposure = exposure_of(primary.cards or {}, parts)
    image = extensions[0]
    if image.problem or image.cards is None:
        raise PacketError(f"{parts.name}: quadrant payload: image: {image.problem}", file=parts.name)
    qid = Keywords(image.cards, f"{parts.name}: image", {"file": parts.name}).integer("AMP_ID", 0, 3) + 1
    return extensions, Quadrant(exposure, qid)


def _aggressors(payload: bytes, hdu: Hdu | None, quadrant: Quadrant, camera: Camera) -> tuple[Aggressor, ...]:
    """What the payload says about the CCD's other quadrants; nothing where it is of an older form."""
    if hdu is None:
        return ()
    keys = _keywords(hdu, quadrant, "aggressors")
    problem = hdu.problem or checksum_problem(payload, hdu)
    if problem:
        raise keys.fail(f"{problem}; ingest the packet again")
    return tuple(one for one in read_aggressors(payload, hdu, keys, camera.shape) if one.qid != quadrant.qid)


def _primary(data: bytes, parts: NameParts) -> Hdu:
    """The primary HDU of a packet, checked."""
    if len(data) > MAX_PACKET_BYTES:
        raise PacketError(f"{parts.name}: {len(data)} bytes is no CCD packet of this camera", file=parts.name)
    starts = extension_starts(data)
    primary = read_hdu(data, 0, starts[0] if starts else None)
    _check_primary(data, primary, parts)
    return primary


def _check_primary(data: bytes, primary: Hdu, parts: NameParts) -> None:
    problem = primary.problem
    if not data.startswith(b"SIMPLE  ="):
        problem = "the file does not begin with SIMPLE: no FITS file (empty, compressed as a whole, or overwritten)"
    elif problem is None:
        cards = primary.cards or {}
        if cards.get("SIMPLE") is not True or cards.get("NAXIS") != 0:
            problem = "SIMPLE must be T and NAXIS 0: the primary header of a packet has no data"
        else:
            problem = checksum_problem(data, primary)
    if problem:
        raise PacketError(f"{parts.name}: primary header: {problem}; fetch the file again", file=parts.name)


def _checked(data: bytes, hdu: Hdu, quadrant: Quadrant, what: str, shape: tuple[int, int]) -> tuple[Layout, Keywords]:
    """Layout and keywords of a sound extension; ``PacketError`` says what is wrong with another."""
    keys = _keywords(hdu, quadrant, what)
    problem = hdu.problem or checksum_problem(data, hdu)
    if problem:
        raise keys.fail(f"{problem}; fetch the file again")
    return read_layout(keys, shape), keys


def _keywords(hdu: Hdu, quadrant: Quadrant, what: str) -> Keywords:
    exposure = quadrant.exposure
    context: dict[str, Any] = {
        "file": exposure.name,
        "ccdid": exposure.ccdid,
        "qid": quadrant.qid,
        "rcid": quadrant.rcid,
        "rid": quadrant.rid,
        "field": exposure.field,
    }
    return Keywords(hdu.cards or {}, f"{exposure.name}: quadrant {quadrant.qid}, {what}", context)


def _amplifier(image: Hdu, quadrant: Quadrant) -> tuple[float, float, float]:
    """Gain (e-/DN), read noise (e-) and saturation (raw DN) of an image extension that is the quadrant it should be."""
    keys = _keywords(image, quadrant, "image")
    ccdid, amp = keys.integer("CCD_ID", 1, 16), keys.integer("AMP_ID", 0, 3)
    if (ccdid, amp) != (quadrant.exposure.ccdid, quadrant.qid - 1):
        raise keys.fail(
            f"CCD_ID {ccdid}, AMP_ID {amp} do not belong here (expected {quadrant.exposure.ccdid}, {quadrant.qid - 1}):"
            " extensions swapped or file renamed",
            keyword="AMP_ID",
        )
    return (
        keys.number("GAIN", 0.1, 100.0, GAIN_DEFAULT),
        keys.number("READNOI", 0.1, 1000.0, READNOISE_DEFAULT),
        min(keys.number("SATURATE", 1000.0, 1e7, SATURATE_DEFAULT), _ADC_MAX),
    )


def _provenance(name: str, qid: int, sha256: str) -> bytes:
    """The header-only extension that ends a payload."""
    cards = [
        "XTENSION= 'IMAGE   '",
        f"BITPIX  = {8:>20}",
        f"NAXIS   = {0:>20}",
        f"PCOUNT  = {0:>20}",
        f"GCOUNT  = {1:>20}",
        f"EXTNAME = '{_PROVENANCE}'",
        f"FILENAME= '{name}'",
        f"QID     = {qid:>20}",
        f"SHA256  = '{sha256}'",
        "END",
    ]
    return "".join(card.ljust(CARD) for card in cards).ljust(BLOCK).encode("ascii")
