"""Cutouts as the survey sends them: one gzip member holding one FITS image with a single 2880-byte header block.

Written by hand because brokers read them by hand: boom takes the pixels from byte 2880 on and knows nothing but
big-endian float32 (``BITPIX`` -32, no ``BSCALE``). The bytes depend on the pixels alone: no time in the gzip
header, no date in the FITS one.
"""

from __future__ import annotations

import io
import re
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from stream.core.errors import AlertError, MessageError

STAMP_SIDE = 63  # px; no side may be longer, brokers' arrays are of this size
_BLOCK = 2880
# ISA-L's deflate: 43 us a stamp where zlib takes 284 for the same 14.3 kB (131 when it looks for runs only). Noise has
# little structure to find: levels 2 and 3 gain nothing, level 0 makes stamps 38 % larger.
_GZIP_LEVEL = 1
_GZIP_WBITS = 31  # gzip framing; the time in it is left at zero
_BROKEN: type[Exception] = isal_zlib.IsalError  # type: ignore[assignment]  # its stub calls it an instance

F32 = NDArray[np.float32]


@lru_cache(maxsize=256)
def _header(ny: int, nx: int) -> bytes:
    cards = (
        f"{'SIMPLE':<8}= {'T':>20}",
        f"{'BITPIX':<8}= {-32:>20}",
        f"{'NAXIS':<8}= {2:>20}",
        f"{'NAXIS1':<8}= {nx:>20}",
        f"{'NAXIS2':<8}= {ny:>20}",
        f"{'BUNIT':<8}= 'DN      '",
        "END",
    )
    return "".join(f"{card:<80}" for card in cards).ljust(_BLOCK).encode("ascii")


def encode_stamp(image: NDArray[Any]) -> bytes:
    """A cutout as gzip FITS.

    Parameters
    ----------
    image : ndarray, (ny, nx)
        Pixels in DN, at most 63 x 63; NaN where there are none.

    Raises
    ------
    AlertError
        Not a two-dimensional image, empty, longer than 63 px, or nothing but zeros or NaN (brokers divide by the
        norm of what they are sent).
    """
    if image.ndim != 2 or 0 in image.shape or max(image.shape) > STAMP_SIDE:
        raise AlertError(f"stamp of shape {image.shape}: want two sides of 1 to {STAMP_SIDE} px")
    pixels = np.ascontiguousarray(image, dtype=">f4")
    data = pixels.tobytes()
    if not np.any(np.abs(image) > 0):  # NaN is not
        raise AlertError("stamp without a single finite pixel other than zero")
    padding = bytes(-len(data) % _BLOCK)
    deflate = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WBITS)
    packed: bytes = deflate.compress(_header(*image.shape) + data + padding) + deflate.flush()
    return packed


def decode_stamp(stamp: bytes) -> F32:
    """Pixels of a cutout, ours or the survey's.

    Returns
    -------
    ndarray, (ny, nx), float32, native byte order

    Raises
    ------
    MessageError
        Neither gzip nor FITS, or no image in it.
    """
    try:
        raw = isal_zlib.decompress(stamp, _GZIP_WBITS)
    except _BROKEN as error:
        raise MessageError(f"stamp of {len(stamp)} bytes is not gzip: {error}") from error
    shape = _plain_shape(raw[:_BLOCK])
    if shape is not None and len(raw) >= _BLOCK + 4 * shape[0] * shape[1]:
        pixels = np.frombuffer(raw, dtype=">f4", count=shape[0] * shape[1], offset=_BLOCK)
        return pixels.reshape(shape).astype(np.float32)
    return _decode_any(raw)


_CARD = re.compile(rb"(SIMPLE|BITPIX|NAXIS|NAXIS1|NAXIS2|BSCALE|BZERO) *= *([^ /]+)")


@lru_cache(maxsize=256)
def _plain_shape(header: bytes) -> tuple[int, int] | None:
    """(ny, nx) where the header is one block of a plain float32 image, else None."""
    cards = [header[i : i + 80] for i in range(0, len(header), 80)]
    if b"END".ljust(80) not in cards:
        return None
    found = {m[1]: m[2] for card in cards if (m := _CARD.match(card))}
    if found.get(b"BITPIX") != b"-32" or found.get(b"NAXIS") != b"2" or b"BSCALE" in found or b"BZERO" in found:
        return None
    try:
        ny, nx = int(found[b"NAXIS2"]), int(found[b"NAXIS1"])
    except (KeyError, ValueError):
        return None
    return (ny, nx) if ny > 0 and nx > 0 else None


def _decode_any(raw: bytes) -> F32:
    """Whatever else FITS allows, by astropy."""
    from astropy.io import fits  # a quarter of a second of a process's start for what only other people's packets need

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the survey's SIMPLE card is not written as the standard wants it
            with fits.open(io.BytesIO(raw), ignore_missing_simple=True) as hdus:
                data = hdus[0].data
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise MessageError(f"stamp is not FITS: {error}") from error
    if data is None or np.ndim(data) != 2:
        raise MessageError("stamp holds no two-dimensional image")
    return np.asarray(data, dtype=np.float32)


def stamp_names(candid: int, pid: int, positive: bool) -> tuple[str, str, str]:
    """File names of the science, template and difference cutouts, as the survey's (``scimref`` or ``refmsci``)."""
    sense = "scimref" if positive else "refmsci"
    return (
        f"candid{candid}_pid{pid}_targ_sci.fits.gz",
        f"candid{candid}_ref.fits.gz",
        f"candid{candid}_pid{pid}_targ_{sense}.fits.gz",
    )
