"""FITS bytes: tile-compressed images written cheaply and always alike, and read back.

Float images are quantised here rather than by the FITS library: one step for the whole image, a power of two no
larger than a sixteenth of the noise, no dither. That is the standard's own form of a quantised image (``ZSCALE`` and
``ZZERO`` the same in every tile), takes a third of the time of the library's tile-by-tile estimate (0.15 s instead
of 0.47 to 0.62 s for 3072 x 3080 px), and writing what was read gives the same values. The r.m.s. error is 0.018 of
the noise at a sixteenth. No card carries a date.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from stream.core.errors import MessageError

F32 = NDArray[np.float32]
Cards = Mapping[str, Any]  # value, or (value, comment)

ZBLANK = -(2**31)  # exact in float32, which the codes pass through
_TILE_ROWS = 32  # few enough tiles that the library's loop costs nothing
_BLOCK = 2880
# Quantised values must stay exact in float32 after scaling.
_MAX_CODE = 2.0**24


def quantum(noise: float, q: float = 16.0) -> float:
    """The largest power of two that is no more than ``noise / q``; 2^-10 where the noise is not a positive number."""
    if not (math.isfinite(noise) and noise > 0):
        return 2.0**-10
    return float(2.0 ** math.floor(math.log2(noise / q)))


def header_of(cards: Cards) -> fits.Header:
    """A header from cards; a value that is None, NaN or infinite is left out (FITS has no word for it)."""
    header = fits.Header()
    for key, entry in cards.items():
        value, comment = entry if isinstance(entry, tuple) else (entry, "")
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue
        header[key] = (value, comment) if comment else value
    return header


def float_hdu(image: NDArray[Any], step: float, cards: Cards, name: str = "") -> bytes:
    """One compressed image extension of a float image.

    Parameters
    ----------
    image : ndarray, (ny, nx)
        NaN and infinity become the null value.
    step : float
        Quantum; widened by powers of two where the range of the image asks for it.
    """
    codes: F32 = np.multiply(image, np.float32(1.0 / step), dtype=np.float32)
    null = ~np.isfinite(codes)
    codes[null] = 0.0
    peak = max(float(codes.max()), -float(codes.min()))
    while peak > _MAX_CODE:
        codes, peak, step = codes * np.float32(0.5), peak / 2, step * 2
    np.rint(codes, out=codes)
    codes[null] = ZBLANK
    hdu = _integer_hdu(codes.astype(np.int32), cards, name)
    return _as_quantised(hdu, step)


def int_hdu(image: NDArray[np.integer[Any]], cards: Cards, name: str = "") -> bytes:
    """One Rice-compressed extension of an integer image (int16 or int32), lossless."""
    return _integer_hdu(image, cards, name)


def _integer_hdu(image: NDArray[np.integer[Any]], cards: Cards, name: str) -> bytes:
    tile = (min(_TILE_ROWS, image.shape[0]), image.shape[1])
    hdu = fits.CompImageHDU(image, header_of(cards), name=name or None, compression_type="RICE_1", tile_shape=tile)
    return _without_primary([hdu])


def _without_primary(hdus: list[Any]) -> bytes:
    everything = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(everything)
    return everything.getvalue()[_primary_size(everything.getvalue()) :]


def _primary_size(data: bytes) -> int:
    """Length of a primary HDU without data: its header."""
    at = 0
    while True:
        block = data[at : at + _BLOCK]
        at += _BLOCK
        if not block or any(block[i : i + 8] == b"END     " for i in range(0, _BLOCK, 80)):
            return at


def _as_quantised(hdu: bytes, step: float) -> bytes:
    """An integer extension as the standard's quantised float one: two more columns, three more cards."""
    size = _primary_size(hdu)
    header = fits.Header.fromstring(hdu[:size].decode("ascii"))
    rows, width, heap = header["NAXIS2"], header["NAXIS1"], header["PCOUNT"]
    table = np.frombuffer(hdu, np.uint8, rows * width, size).reshape(rows, width)
    scale = np.tile(np.frombuffer(np.array([step, 0.0], ">f8").tobytes(), np.uint8), (rows, 1))
    header["NAXIS1"], header["TFIELDS"] = width + 16, 3
    after = "TFORM1"
    for key, title in (("TTYPE2", "ZSCALE"), ("TFORM2", "1D"), ("TTYPE3", "ZZERO"), ("TFORM3", "1D")):
        header.insert(after, (key, title), after=True)
        after = key
    header["ZBITPIX"] = -32
    header.insert("ZCMPTYPE", ("ZBLANK", ZBLANK), after=True)
    header.insert("ZCMPTYPE", ("ZQUANTIZ", "NO_DITHER"), after=True)
    start = size + rows * width
    data = np.hstack([table, scale]).tobytes() + hdu[start : start + heap]
    return bytes(header.tostring().encode("ascii")) + data + bytes(-len(data) % _BLOCK)


def plain_hdu(image: NDArray[Any], cards: Cards, name: str) -> bytes:
    """One uncompressed image extension, for small arrays that must stay exact."""
    return _without_primary([fits.ImageHDU(image, header_of(cards), name=name)])


def table_hdu(columns: Iterable[tuple[str, str, NDArray[Any]]], name: str, cards: Cards | None = None) -> bytes:
    """One binary table from (name, unit, values)."""
    made = []
    for title, unit, values in columns:
        made.append(fits.Column(title, _format(values), unit=unit or None, array=values))
    hdu = fits.BinTableHDU.from_columns(fits.ColDefs(made), header_of(cards or {}), name=name)
    return _without_primary([hdu])


_FORMATS = {"i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D"}


def _format(values: NDArray[Any]) -> str:
    count = int(np.prod(values.shape[1:], dtype=int))
    return f"{count if count > 1 else 1}{_FORMATS[values.dtype.str[1:]]}"


def primary(cards: Cards | None = None, image: NDArray[Any] | None = None) -> bytes:
    """A primary HDU, without data or with an uncompressed image."""
    out = io.BytesIO()
    fits.PrimaryHDU(image, header_of(cards or {})).writeto(out)
    return out.getvalue()


class Extension:
    """One HDU of a file that was read: ``name``, ``header`` and, when asked for, ``data``."""

    def __init__(self, name: str, header: fits.Header, data: NDArray[Any] | None) -> None:
        self.name = name
        self.header = header
        self.data = data

    def image(self) -> NDArray[Any]:
        """The image; ``MessageError`` where there is none."""
        if self.data is None:
            raise MessageError(f"extension {self.name or 'PRIMARY'} holds no data")
        return self.data


def read_hdus(data: bytes) -> list[Extension]:
    """Every HDU of a file, images decompressed (float32 with NaN where null), tables as structured arrays.

    Raises
    ------
    MessageError
        Not FITS, or damaged.
    """
    try:
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            return [_extension(hdu) for hdu in hdus]
    except Exception as error:  # a damaged file meets whatever part of a general reader stumbles first
        raise MessageError(f"{len(data)} bytes are no readable FITS: {type(error).__name__}: {error}") from error


def read_header(data: bytes, name: str) -> fits.Header:
    """The header of one extension, as of an image that is not compressed; its pixels stay unread.

    Raises
    ------
    MessageError
        Not FITS, damaged, or no such extension.
    """
    try:
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            return hdus[name].header.copy()
    except Exception as error:  # as above
        raise MessageError(f"{len(data)} bytes are no FITS with {name}: {type(error).__name__}: {error}") from error


def _extension(hdu: Any) -> Extension:
    data = hdu.data
    if data is not None:
        data = np.asarray(data).astype(data.dtype.newbyteorder("="), copy=False)
    return Extension(hdu.name, hdu.header.copy(), data)
