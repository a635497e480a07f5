"""From an extension to pixels: the layout its header promises, checked first, and the decoding of it.

Rice decompression uses the C decoder inside astropy tile by tile (63 ms a full quadrant on one core; astropy's own
loop around it takes 135 ms); where a release of astropy has moved it, astropy's public reader does the work.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from stream.core.records import U16
from stream.ingest.fitsblocks import Hdu
from stream.ingest.keywords import Keywords

try:
    from astropy.io.fits.hdu.compressed._compression import decompress_rice_1_c

    RICE_DECODER: Callable[[bytes, int, int, int], bytes] | None = decompress_rice_1_c
except ImportError:
    RICE_DECODER = None

_DESCRIPTOR = re.compile(r"[01]?([PQ])B(\(\d+\))?\s*", re.ASCII)
_ZERO = 32768  # BZERO of uint16 in FITS: stored as int16, shifted by half the range


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixels of one extension are stored; ``blocksize`` 0 means plain, else Rice."""

    shape: tuple[int, int]  # (ny, nx)
    blocksize: int = 0
    wide: bool = False  # 64-bit descriptors
    row_bytes: int = 0
    heap: int = 0  # offset in the data unit
    heap_end: int = 0


def read_layout(keys: Keywords, shape: tuple[int, int]) -> Layout:
    """The storage of a ``uint16`` image of ``shape``, plain or Rice-compressed with one row a tile.

    Raises
    ------
    PacketError
        Another shape, type or compression. Nothing has been allocated yet.
    """
    extension = keys.cards.get("XTENSION")
    if extension == "IMAGE":
        _check_image(keys, "", shape)
        return Layout(shape)
    if extension != "BINTABLE" or keys.cards.get("ZIMAGE") is not True:
        raise keys.fail(f"XTENSION is {extension!r}: neither an image nor a tile-compressed image")
    _check_image(keys, "Z", shape)
    ny, nx = shape
    method = keys.text("ZCMPTYPE")
    if method not in ("RICE_1", "RICE_ONE"):
        raise keys.fail(f"compressed with {method!r}, only RICE_1 is read: write the file with fpack -r")
    tile = keys.integer("ZTILE1", 1, 2**31, nx), keys.integer("ZTILE2", 1, 2**31, 1)
    if tile != (nx, 1):
        raise keys.fail(f"tiles are {tile[0]} x {tile[1]}, they must be one row each: write the file with fpack -r")
    column = _DESCRIPTOR.fullmatch(keys.text("TFORM1"))
    if column is None or keys.text("TTYPE1") != "COMPRESSED_DATA":
        raise keys.fail("its first column is not COMPRESSED_DATA with a byte-array descriptor")
    wide = column[1] == "Q"
    row_bytes = keys.integer("NAXIS1", 16 if wide else 8, 1024)
    if keys.integer("NAXIS2", 0, 2**31) != ny:
        raise keys.fail(f"it has {keys.cards.get('NAXIS2')} tiles, the image {ny} rows")
    parameters = {keys.cards.get(f"ZNAME{i}"): f"ZVAL{i}" for i in range(1, 5)}
    if keys.integer(parameters.get("BYTEPIX", "BYTEPIX"), 1, 8, 4) != 2:  # 4 is the standard's default
        raise keys.fail("Rice BYTEPIX is not 2: the pixels are not 16-bit")
    blocksize = keys.integer(parameters.get("BLOCKSIZE", "BLOCKSIZE"), 8, 1024, 32)
    table = row_bytes * ny
    pcount = keys.integer("PCOUNT", 0, 2**40)
    heap = keys.integer("THEAP", table, table + pcount, table)
    return Layout(shape, blocksize, wide, row_bytes, heap, table + pcount)


def _check_image(keys: Keywords, prefix: str, shape: tuple[int, int]) -> None:
    """Type and size of the image, where compressed from the Z-keywords."""
    ny, nx = shape
    bitpix = keys.integer(f"{prefix}BITPIX", -64, 64)
    if bitpix != 16:
        raise keys.fail(f"{prefix}BITPIX is {bitpix}, pixels must be 16-bit", keyword=f"{prefix}BITPIX")
    if keys.number("BZERO", -1e30, 1e30, 0.0) != _ZERO or keys.number("BSCALE", -1e30, 1e30, 1.0) != 1:
        raise keys.fail(f"BZERO must be {_ZERO} and BSCALE 1: pixels are unsigned", keyword="BZERO")
    if keys.integer(f"{prefix}NAXIS", 0, 999) != 2:
        raise keys.fail(f"{prefix}NAXIS must be 2", keyword=f"{prefix}NAXIS")
    size = keys.integer(f"{prefix}NAXIS1", 0, 2**62), keys.integer(f"{prefix}NAXIS2", 0, 2**62)
    if size != (nx, ny):
        raise keys.fail(
            f"it is {size[0]} x {size[1]} px, this camera's are {nx} x {ny}: "
            "a damaged header, or a packet of another camera (see --camera)",
            keyword=f"{prefix}NAXIS1",
        )


def decode(data: bytes, hdu: Hdu, layout: Layout, keys: Keywords) -> U16:
    """Pixels (ny, nx) of an extension whose layout was checked.

    Raises
    ------
    PacketError
        A tile lies outside the heap or does not decompress to a row.
    """
    ny, nx = layout.shape
    if not layout.blocksize:
        if hdu.end - hdu.data_start < 2 * nx * ny:
            raise keys.fail("its data are shorter than its image")
        return _unsigned(np.frombuffer(data, ">u2", nx * ny, hdu.data_start).astype(np.uint16).reshape(ny, nx))
    spans = _tile_spans(data, hdu, layout, keys)
    return _decode_rice(data, spans, layout, keys) if RICE_DECODER else _decode_astropy(data, hdu, layout, keys)


def _unsigned(stored: U16) -> U16:
    stored ^= np.uint16(_ZERO)  # adding half the range modulo 2^16 flips the highest bit
    return stored


def _tile_spans(data: bytes, hdu: Hdu, layout: Layout, keys: Keywords) -> NDArray[np.int64]:
    """First and last byte (ny, 2) of every compressed row in ``data``, all inside the heap."""
    ny = layout.shape[0]
    if hdu.data_start + layout.heap_end > hdu.end:
        raise keys.fail("its table is longer than its data")
    table = np.frombuffer(data, np.uint8, layout.row_bytes * ny, hdu.data_start).reshape(ny, layout.row_bytes)
    columns = np.ascontiguousarray(table[:, : 16 if layout.wide else 8]).view(">i8" if layout.wide else ">i4")
    length, offset = columns.astype(np.int64).T
    room = layout.heap_end - layout.heap
    # Compared without adding: a flipped high bit must not wrap around.
    bad = (length <= 0) | (offset < 0) | (length > room) | (offset > room - length)
    if bad.any():
        raise keys.fail(f"{int(bad.sum())} compressed rows, the first {int(bad.argmax())}, lie outside the heap")
    first = hdu.data_start + layout.heap + offset
    return np.stack([first, first + length], axis=1)


def _decode_rice(data: bytes, spans: NDArray[np.int64], layout: Layout, keys: Keywords) -> U16:
    """Row by row with the C decoder."""
    assert RICE_DECODER is not None
    ny, nx = layout.shape
    image = np.empty((ny, nx), np.uint16)
    for row, (first, last) in enumerate(spans.tolist()):
        try:
            pixels = RICE_DECODER(data[first:last], layout.blocksize, 2, nx)
            image[row] = np.frombuffer(pixels, np.uint16)
        except Exception as error:  # the decoder's own exception class has no public name
            raise keys.fail(f"row {row} does not decompress ({error}): damaged on the way", row=row) from error
    return _unsigned(image)


def _decode_astropy(data: bytes, hdu: Hdu, layout: Layout, keys: Keywords) -> U16:
    """The whole extension with astropy's reader, behind a bare primary header."""
    alone = io.BytesIO()
    fits.PrimaryHDU().writeto(alone)
    alone.write(hdu.bytes_of(data))
    alone.seek(0)
    try:
        with fits.open(alone) as hdus:
            image = np.ascontiguousarray(hdus[1].data, dtype=np.uint16)
    except Exception as error:  # whatever a general reader trips over: the bytes are the cause
        raise keys.fail(f"does not decompress ({error}): damaged on the way") from error
    if image.shape != layout.shape:
        raise keys.fail(f"decompresses to {image.shape}, not {layout.shape}")
    return image
