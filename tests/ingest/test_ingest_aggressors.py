"""Bright pixels of the other quadrants travel with each quadrant, at their read positions."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

sys.path.insert(0, str(Path(__file__).parent))
import packets as made

from stream.core.camera import read_order, read_position
from stream.core.errors import PacketError
from stream.ingest import aggressors as room
from stream.ingest import parse_packet, read_quadrant
from stream.ingest.aggressors import find_aggressor
from stream.ingest.fitsblocks import BLOCK

GOOD = made.make_packet()
TAIL = b"XTENSION= 'BINTABLE'"


def in_read_order(image: np.ndarray, qid: int) -> np.ndarray:
    """The image with the first pixel read at [0, 0], by flipping."""
    flip_x, flip_y = read_order(qid)
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


@pytest.mark.parametrize("compressed", [True, False])
def test_each_quadrant_brings_the_bright_pixels_of_the_other_three(compressed: bool) -> None:
    packet = parse_packet(made.make_packet(compressed=compressed), made.NAME, made.TINY)
    for entry in packet.quadrants:
        raw = read_quadrant(entry.payload, made.TINY)
        assert [one.qid for one in raw.aggressors] == [qid for qid in (1, 2, 3, 4) if qid != entry.quadrant.qid]
        for one in raw.aggressors:
            image = made.pixels(made.TINY, 11, one.qid)[0]
            assert one.level == pytest.approx(np.median(image), abs=15)
            expected = np.flatnonzero(in_read_order(image, one.qid).ravel() > one.level + one.threshold)
            np.testing.assert_array_equal(one.index, expected)
            np.testing.assert_array_equal(one.value, in_read_order(image, one.qid).ravel()[expected])
            assert list(one.value) == [65535]
            assert one.index.dtype == np.int32
            assert one.value.dtype == np.uint16


def test_calibration_frames_and_callers_without_need_carry_none() -> None:
    name = "ztf_20250216192384_000000_zr_c11_f.fits.fz"
    data = made.make_packet(primary={"IMGTYPE": "flat", "FIELDID": 0})
    for packet in (parse_packet(data, name, made.TINY), parse_packet(GOOD, made.NAME, made.TINY, aggressors=False)):
        assert all(read_quadrant(entry.payload, made.TINY).aggressors == () for entry in packet.quadrants)


def test_older_payloads_are_read() -> None:
    for entry in parse_packet(GOOD, made.NAME, made.TINY).quadrants:
        four = entry.payload[: entry.payload.rindex(TAIL)]
        assert len(four) % BLOCK == 0
        raw, whole = read_quadrant(four, made.TINY), read_quadrant(entry.payload, made.TINY)
        assert raw.aggressors == ()
        assert len(whole.aggressors) == 3
        np.testing.assert_array_equal(raw.image, whole.image)


def test_a_hurt_quadrant_is_missing_among_the_others_aggressors() -> None:
    data = bytearray(made.make_packet(checksum=False))
    with fits.open(io.BytesIO(bytes(data)), disable_image_compression=True) as hdus:
        info = hdus[2].fileinfo()
    for place in range(info["datLoc"], info["datLoc"] + 8 * made.TINY.ny, 8):
        data[place] = 0x7F  # row lengths beyond the heap
    packet = parse_packet(bytes(data), made.NAME, made.TINY)
    by_qid = {entry.quadrant.qid: entry for entry in packet.quadrants}
    assert sorted(by_qid) == [1, 2, 3, 4]
    with pytest.raises(PacketError, match="outside the heap"):
        read_quadrant(by_qid[2].payload, made.TINY)
    assert [one.qid for one in read_quadrant(by_qid[1].payload, made.TINY).aggressors] == [3, 4]


def test_a_damaged_list_is_refused_not_believed() -> None:
    payload = parse_packet(GOOD, made.NAME, made.TINY).quadrants[0].payload
    start = payload.rindex(TAIL)
    data_start = start + BLOCK * (len(payload[start:]) // BLOCK - 1)
    damaged = bytearray(payload)
    damaged[data_start + 3] ^= 4
    with pytest.raises(PacketError, match="aggressors"):
        read_quadrant(bytes(damaged), made.TINY)
    # Without its checksum, the table itself has to make sense.
    place = payload.index(b"DATASUM", start)
    damaged[place : place + 80] = b"COMMENT".ljust(80)
    damaged[data_start + 1] = 0x7F
    with pytest.raises(PacketError, match="outside the image"):
        read_quadrant(bytes(damaged), made.TINY)


def test_a_flood_of_bright_pixels_keeps_the_brightest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_PIXELS", 100)
    rng = np.random.default_rng(5)
    image = np.full((64, 80), 1000, np.uint16)
    image[::2, ::2] = rng.integers(3000, 60_000, (32, 40))
    found = find_aggressor(image, 3)
    assert 50 <= len(found.index) <= 100
    assert found.level + found.threshold < found.value.min()
    assert np.count_nonzero(image > found.level + found.threshold) == len(found.index)


images = hnp.arrays(np.uint16, made.TINY.shape, fill=st.integers(0, 65535))
PAYLOADS = {entry.quadrant.qid: entry.payload for entry in parse_packet(GOOD, made.NAME, made.TINY).quadrants}


@given(images, st.sampled_from([(1, 2), (2, 3), (3, 4), (4, 1)]))
def test_any_list_comes_back(image: np.ndarray, own_and_other: tuple[int, int]) -> None:
    own, other = own_and_other
    found = find_aggressor(image, other)
    positions = read_position(np.arange(image.size), other, image.shape)
    np.testing.assert_array_equal(in_read_order(image, other).ravel()[positions], image.ravel())
    assert np.all(in_read_order(image, other).ravel()[found.index] == found.value)
    changed = PAYLOADS[own][: PAYLOADS[own].rindex(TAIL)] + room.aggressors_hdu([found])
    (back,) = read_quadrant(changed, made.TINY).aggressors
    assert (back.qid, back.level, back.threshold) == (other, found.level, found.threshold)
    np.testing.assert_array_equal(back.index, found.index)
    np.testing.assert_array_equal(back.value, found.value)
