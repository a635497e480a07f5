"""Windows out of a tile-compressed image without decompressing the rest of it.

Forced photometry needs a few 25 px windows of many images: a fifth of a second to decompress one whole, some
milliseconds for the tiles that hold the windows, and as many bytes less to read from the store. Only what
``stream.archive.fitsio`` writes is read this way (Rice, quantised float, tiles of whole rows); any other image is read
whole by the FITS library.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from stream.archive import fitsio
from stream.core.errors import MessageError
from stream.core.records import F32

try:
    from astropy.io.fits.hdu.compressed._compression import decompress_rice_1_c

    RICE_DECODER: Callable[[bytes, int, int, int], bytes] | None = decompress_rice_1_c
except ImportError:
    RICE_DECODER = None

ReadRange = Callable[[int, int], bytes]  # first byte and the one after the last; may give fewer at the end
_HEAD = 48 * 1024  # bytes: headers and table of our images in one read
_BLOCKSIZE, _BYTEPIX = 32, 4  # of Rice as fitsio writes it; read from the header, these are the standard's defaults
I64 = NDArray[np.int64]


class TiledImage:
    """The first extension of a FITS file, read in pieces.

    Parameters
    ----------
    read : callable
        Bytes ``first`` to ``last`` of the file.

    Raises
    ------
    MessageError
        Not FITS, no image extension, or cut short.
    """

    def __init__(self, read: ReadRange) -> None:
        self._read = read
        head = read(0, _HEAD)
        try:
            self._start = _header_end(head, 0)
            self.header, data = self._extension(head)
        except (ValueError, KeyError, OSError, IndexError) as error:
            raise MessageError(f"no readable FITS image: {type(error).__name__}: {error}") from error
        h = self.header
        self.shape = int(h["ZNAXIS2"]), int(h["ZNAXIS1"])
        self._rows = int(h["ZTILE2"])
        self._wide = h["TFORM1"].lstrip("01").startswith("Q")
        rows, width = int(h["NAXIS2"]), int(h["NAXIS1"])
        table = head[data : data + rows * width]
        if len(table) < rows * width:
            table = read(data, data + rows * width)
        if len(table) < rows * width:
            raise MessageError("FITS image cut short: its table of tiles is not there")
        self._heap = data + int(h.get("THEAP", rows * width))
        cells = np.frombuffer(table, np.uint8).reshape(rows, width)
        size = 16 if self._wide else 8
        self._spans: I64 = np.ascontiguousarray(cells[:, :size]).view(">i8" if self._wide else ">i4").astype(np.int64)
        self._scales = np.ascontiguousarray(cells[:, size : size + 16]).view(">f8").astype(np.float64)

    def _extension(self, head: bytes) -> tuple[fits.Header, int]:
        end = _header_end(head, self._start)
        header = fits.Header.fromstring(head[self._start : end].decode("ascii"))
        if header.get("ZCMPTYPE") != "RICE_1" or header.get("ZQUANTIZ") != "NO_DITHER" or header.get("TFIELDS") != 3:
            raise ValueError("not a tile-compressed image as this archive writes it")
        return header, end

    def cutouts(self, ix: I64, iy: I64, size: int) -> F32:
        """Windows (n, size, size) around pixels, NaN outside the image and where it is null; ``size`` odd."""
        ny, nx = self.shape
        out = np.full((len(ix), size, size), np.nan, np.float32)
        half = size // 2
        low, high = np.clip(iy - half, 0, ny), np.clip(iy + half + 1, 0, ny)
        wanted = {t for a, b in zip(low, high, strict=True) for t in range(a // self._rows, -(-b // self._rows))}
        tiles = self._tiles(sorted(wanted))
        for k in range(len(ix)):
            left, right = max(ix[k] - half, 0), min(ix[k] + half + 1, nx)
            if left >= right:
                continue
            for t in range(low[k] // self._rows, -(-high[k] // self._rows)):
                first, last = max(low[k], t * self._rows), min(high[k], (t + 1) * self._rows)
                part = tiles[t][first - t * self._rows : last - t * self._rows, left:right]
                y, x = first - (iy[k] - half), left - (ix[k] - half)
                out[k, y : y + part.shape[0], x : x + part.shape[1]] = part
        return out

    def _tiles(self, numbers: list[int]) -> dict[int, F32]:
        """Decompressed tiles by number; neighbours in the file are read at once."""
        if RICE_DECODER is None:
            return {t: self._whole[t * self._rows : (t + 1) * self._rows] for t in numbers}
        found: dict[int, F32] = {}
        for run in _runs(numbers):
            offsets = self._spans[run, 1]
            first, last = int(offsets.min()), int((offsets + self._spans[run, 0]).max())
            data = self._read(self._heap + first, self._heap + last)
            if len(data) < last - first:
                raise MessageError("FITS image cut short: tiles are missing")
            for t in run:
                length, offset = (int(v) for v in self._spans[t])
                found[t] = self._decode(t, data[offset - first : offset - first + length])
        return found

    def _decode(self, tile: int, data: bytes) -> F32:
        assert RICE_DECODER is not None
        ny, nx = self.shape
        rows = min(self._rows, ny - tile * self._rows)
        try:
            codes = np.frombuffer(RICE_DECODER(data, self._blocksize, _BYTEPIX, rows * nx), np.int32)
        except Exception as error:  # the decoder's own exception class has no public name
            raise MessageError(f"tile {tile} does not decompress: {error}") from error
        scale, zero = (np.float32(v) for v in self._scales[tile])
        pixels = codes.astype(np.float32) * scale + zero
        pixels[codes == fitsio.ZBLANK] = np.nan
        return pixels.reshape(rows, nx)

    @cached_property
    def _blocksize(self) -> int:
        names = {self.header.get(f"ZNAME{i}"): self.header.get(f"ZVAL{i}") for i in range(1, 5)}
        return int(names.get("BLOCKSIZE") or _BLOCKSIZE)

    @cached_property
    def _whole(self) -> F32:
        """Everything, by the library: for a release of astropy that has moved its decoder."""
        return np.asarray(fitsio.read_hdus(self._read(0, 1 << 40))[1].image(), np.float32)


def _header_end(data: bytes, start: int) -> int:
    """The place after a header's last block."""
    for at in range(start, len(data), 2880):
        block = data[at : at + 2880]
        if any(block[i : i + 8] == b"END     " for i in range(0, len(block), 80)):
            return at + 2880
    raise ValueError("a header without an end")


def _runs(numbers: list[int]) -> list[list[int]]:
    """Consecutive numbers together."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
