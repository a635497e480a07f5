"""Whatever the bytes: a Packet, or a PacketError, at once and in little memory."""

from __future__ import annotations

import sys
import time
import tracemalloc
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import packets as made

from stream.core.errors import PacketError
from stream.ingest import Packet, parse_packet, read_quadrant
from stream.ingest.fitsblocks import BLOCK, CARD, parse_value, read_cards

SOUND = {(c, s): made.make_packet(compressed=c, checksum=s) for c in (True, False) for s in (True, False)}
KEYS = [
    b"NAXIS1",
    b"NAXIS2",
    b"NAXIS",
    b"PCOUNT",
    b"GCOUNT",
    b"BITPIX",
    b"ZNAXIS1",
    b"ZTILE1",
    b"THEAP",
    b"TFORM1",
    b"END",
]


def outcome(data: bytes, name: str = made.NAME) -> Packet | None:
    """The packet with all its quadrants read, ``None`` where refused; anything else raised is the test's failure."""
    try:
        packet = parse_packet(data, name, made.TINY)
    except PacketError:
        return None
    assert len(packet.quadrants) + len(packet.failures) == 4
    for entry in packet.quadrants:
        try:
            raw = read_quadrant(entry.payload, made.TINY)
        except PacketError:
            continue
        assert raw.image.shape == made.TINY.shape
    return packet


variant = st.sampled_from(sorted(SOUND))


@settings(max_examples=150, deadline=None)
@given(variant, st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bits(which: tuple[bool, bool], flips: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND[which])
    for place, bits in flips:
        data[place % len(data)] ^= bits
    packet = outcome(bytes(data))
    if which[1] and packet is not None:  # with checksums, what passes is unhurt
        for entry in packet.quadrants:
            raw = read_quadrant(entry.payload, made.TINY)
            assert (raw.image == made.pixels(made.TINY, 11, entry.quadrant.qid)[0]).all()


@settings(max_examples=120, deadline=None)
@given(variant, st.integers(0, 30), st.sampled_from(KEYS), st.text("0123456789-+.ET' ()PQB", max_size=30))
def test_changed_cards(which: tuple[bool, bool], nth: int, key: bytes, value: str) -> None:
    data = SOUND[which]
    places = [p for p in range(0, len(data), CARD) if data[p : p + 8] == key.ljust(8)]
    if not places:
        return
    place = places[nth % len(places)]
    outcome(data[:place] + key.ljust(8) + b"= " + value.encode().ljust(70) + data[place + CARD :])


@settings(max_examples=80, deadline=None)
@given(variant, st.lists(st.integers(0, 40), max_size=12), st.integers(0, BLOCK))
def test_blocks_dropped_doubled_and_cut(which: tuple[bool, bool], moves: list[int], cut: int) -> None:
    blocks = [SOUND[which][i : i + BLOCK] for i in range(0, len(SOUND[which]), BLOCK)]
    for move in moves:
        i, kind = move % len(blocks), move % 3
        if kind == 0 and len(blocks) > 1:
            del blocks[i]
        elif kind == 1:
            blocks.insert(i, blocks[-1])
        else:
            blocks[i], blocks[-1] = blocks[-1], blocks[i]
    data = b"".join(blocks)
    outcome(data[: len(data) - cut])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=9000), st.text(max_size=60))
def test_any_bytes_any_name(data: bytes, name: str) -> None:
    outcome(data)
    outcome(b"SIMPLE  =                    T".ljust(CARD) + data)
    outcome(SOUND[True, True], name)


@given(st.text(max_size=70))
def test_any_card_has_a_value(text: str) -> None:
    parse_value(text)
    read_cards(text.encode("utf-8", "replace").ljust(BLOCK), 0, BLOCK)


@given(st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False), st.text("ab '/", max_size=20))
def test_values_come_back(whole: int, real: float, text: str) -> None:
    assert parse_value(f" {whole} / comment") == whole
    assert parse_value(f" {real!r} / comment") == real
    quoted = text.replace("'", "''")
    assert parse_value(f"'{quoted}' / comment") == text.rstrip()


def test_gigantic_promises_cost_nothing() -> None:
    data = made.make_packet(checksum=False)
    for key in (b"NAXIS1  =", b"NAXIS2  =", b"PCOUNT  =", b"ZNAXIS1 =", b"ZNAXIS2 =", b"ZTILE1  ="):
        place = data.index(key, BLOCK)
        changed = data[:place] + key + b"  2000000000".rjust(21) + data[place + 30 :]
        tracemalloc.start()
        begun = time.process_time()
        outcome(changed)
        assert time.process_time() - begun < 2.0
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()
