"""Windows out of tile-compressed images: the pixels that the FITS library gives, from a part of the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.archive import fitsio
from stream.archive.tiles import TiledImage
from stream.core.errors import MessageError

NY, NX = 150, 90


def made(seed: int = 1) -> bytes:
    image = np.random.default_rng(seed).normal(5, 8, (NY, NX)).astype(np.float32)
    image[40:44, 10:80] = np.nan
    return fitsio.primary() + fitsio.float_hdu(image, 0.5, {"GAIN": 6.2}, "SCIMREFDIFF")


FILE = made()
WHOLE = np.asarray(fitsio.read_hdus(FILE)[1].image(), np.float32)


def opened(data: bytes, log: list[int] | None = None) -> TiledImage:
    def read(first: int, last: int) -> bytes:
        if log is not None:
            log.append(last - first)
        return data[first:last]

    return TiledImage(read)


@given(st.lists(st.tuples(st.integers(-30, NX + 30), st.integers(-30, NY + 30)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_windows_are_the_library_s_pixels(places: list[tuple[int, int]]) -> None:
    size, half = 25, 12
    padded = np.full((NY + 120, NX + 120), np.nan, np.float32)
    padded[60 : 60 + NY, 60 : 60 + NX] = WHOLE
    ix, iy = (np.array(v) for v in zip(*places, strict=True))
    got = opened(FILE).cutouts(ix, iy, size)
    for window, x, y in zip(got, ix + 60, iy + 60, strict=True):
        np.testing.assert_array_equal(window, padded[y - half : y + half + 1, x - half : x + half + 1])


def test_without_the_fast_decoder_the_library_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from stream.archive import tiles

    fast = opened(FILE).cutouts(np.array([40, 3]), np.array([42, 149]), 25)
    monkeypatch.setattr(tiles, "RICE_DECODER", None)
    np.testing.assert_array_equal(opened(FILE).cutouts(np.array([40, 3]), np.array([42, 149]), 25), fast)


def test_only_the_tiles_of_the_windows_are_read() -> None:
    big = np.random.default_rng(2).normal(0, 8, (2000, 600)).astype(np.float32)
    data = fitsio.primary() + fitsio.float_hdu(big, 0.5, {})
    log: list[int] = []
    opened(data, log).cutouts(np.array([300]), np.array([1500]), 25)
    assert sum(log[1:]) < len(data) / 20


def test_what_is_no_such_image_is_named() -> None:
    plain = fitsio.primary() + fitsio.plain_hdu(WHOLE, {}, "SKY")
    for data in (b"", b"x" * 9000, FILE[:2880], FILE[:5800], plain):
        with pytest.raises(MessageError):
            opened(data)
    with pytest.raises(MessageError, match="cut short"):
        opened(FILE[:-6000]).cutouts(np.array([40]), np.array([140]), 25)
