"""A small FITS reader for bytes that may be hurt: where the HDUs lie, what their cards say, whether sums agree.

A general FITS library follows whatever a damaged header tells it (sizes, extension counts) and fails deep
inside. Here nothing is allocated from a header's word: extensions are found by their first card on the 2880-byte
grid, each header is read within fixed limits, and every declared size is compared with the bytes at hand. FITS
standard 4.0 (Pence et al. 2010, A&A 524, A42), checksums after its appendix J.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

BLOCK = 2880
CARD = 80
# Real primary headers of the survey have about 270 cards (8 blocks); 64 blocks is beyond anything sensible and
# still only 184 kB to look through.
MAX_HEADER_BLOCKS = 64
# An extension's first card, as far as it is the same in every file; 15 of 20 characters must agree, so that
# a flipped byte there hurts one extension and not the counting of all that follow. Random data never agree so far.
_FIRST_CARDS = (b"XTENSION= 'BINTABLE'", b"XTENSION= 'IMAGE   '")
_MIN_AGREEMENT = 15

_STRING = re.compile(r"\s*'((?:[^']|'')*)'")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][+-]?\d+)?)\s*(?:/|$)")
_LOGICAL = re.compile(r"\s*([TF])\s*(?:/|$)")
_EMPTY = re.compile(r"\s*(?:/|$)")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The value of a card that is none of FITS's types; ``text`` is what stands there."""

    text: str


Value = str | int | float | bool | Unreadable | None
Cards = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Hdu:
    """One header and data unit: byte offsets in its file, and its cards (first one of a name wins).

    ``problem`` says what is wrong with it; then nothing else of it but ``start`` may be trusted.
    """

    start: int
    data_start: int = -1
    end: int = -1  # padded to the block
    cards: Cards | None = None
    problem: str | None = None

    def bytes_of(self, data: bytes) -> bytes:
        """The HDU as it stands in the file."""
        return data[self.start : self.end]


def parse_value(text: str) -> Value:
    """Value of the 70 characters that follow ``KEYWORD =``; ``None`` where there is none."""
    if match := _STRING.match(text):
        return match[1].replace("''", "'").rstrip()
    if match := _NUMBER.match(text):
        number = match[1]
        return int(number) if number.lstrip("+-").isdigit() else float(number.upper().replace("D", "E"))
    if match := _LOGICAL.match(text):
        return match[1] == "T"
    return None if _EMPTY.match(text) else Unreadable(text.strip())


def read_cards(data: bytes, start: int, limit: int) -> tuple[Cards, int] | None:
    """Cards of the header at ``start`` and the offset of its data; ``None`` if no END card stands before ``limit``."""
    cards: Cards = {}
    stop = min(limit, len(data), start + MAX_HEADER_BLOCKS * BLOCK)
    for offset in range(start, stop - CARD + 1, CARD):
        card = data[offset : offset + CARD]
        key = card[:8].rstrip().decode("latin-1")
        if key == "END" and not card[8:].strip():
            end = start + math.ceil((offset + CARD - start) / BLOCK) * BLOCK
            return (cards, end) if end <= len(data) else None
        if card[8:10] == b"= " and key not in cards:
            cards[key] = parse_value(card[10:].decode("latin-1"))
    return None


def data_size(cards: Cards) -> int | None:
    """Bytes of the data unit, not padded; ``None`` where the structural cards make no sense."""
    bitpix, naxis = cards.get("BITPIX"), _count(cards.get("NAXIS"))
    if not isinstance(bitpix, int) or bitpix not in (8, 16, 32, 64, -32, -64) or naxis is None or naxis > 3:
        return None
    counts = [_count(cards.get(f"NAXIS{i + 1}")) for i in range(naxis)]
    counts += [_count(cards.get("PCOUNT", 0)), _count(cards.get("GCOUNT", 1))]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    *sizes, pcount, gcount = known
    return abs(bitpix) // 8 * gcount * (pcount + math.prod(sizes)) if sizes else 0


def _count(value: Value) -> int | None:
    """The value if it is a number that can count things."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_hdu(data: bytes, start: int, limit: int | None = None) -> Hdu:
    """The HDU at ``start``. ``limit`` is where the next one begins, if that is known: it must end just there."""
    found = read_cards(data, start, len(data) if limit is None else limit)
    if found is None:
        return Hdu(start, problem="its header has no END card (cut off or overwritten)")
    cards, data_start = found
    size = data_size(cards)
    if size is None:
        return Hdu(start, problem="BITPIX, NAXISn, PCOUNT or GCOUNT are missing or make no sense")
    end = data_start + math.ceil(size / BLOCK) * BLOCK
    if end > len(data):
        return Hdu(start, problem=f"its header announces data up to byte {end}, the file ends at {len(data)}")
    if limit is not None and end != limit:
        return Hdu(start, problem=f"its header announces data up to byte {end}, the next extension is at {limit}")
    return Hdu(start, data_start, end, cards)


def extension_starts(data: bytes) -> list[int]:
    """Offsets where extensions begin, found on the block grid by their first card."""
    n_blocks = len(data) // BLOCK
    blocks = np.frombuffer(data, np.uint8, n_blocks * BLOCK).reshape(n_blocks, BLOCK)
    heads = blocks[:, : len(_FIRST_CARDS[0])]
    agreement = np.stack([(heads == np.frombuffer(card, np.uint8)).sum(axis=1) for card in _FIRST_CARDS])
    return [int(block) * BLOCK for block in np.nonzero(agreement.max(axis=0) >= _MIN_AGREEMENT)[0] if block > 0]


def locate_extensions(data: bytes, first: int, count: int) -> list[Hdu]:
    """The ``count`` extensions that follow the primary HDU, which ends at ``first``.

    With at least ``count`` beginnings in the file the order alone says which is which, and a hurt header costs
    one extension. With fewer, only the unbroken chain from ``first`` is trusted: what follows a gap could be
    any extension, and a wrong overscan is worse than none.
    """
    starts = extension_starts(data)[: count + 1]
    complete = len(starts) >= count
    bounds: list[int | None] = [*starts[1:], None]
    hdus: list[Hdu] = []
    expected = first
    for start, limit in zip(starts[:count], bounds, strict=False):
        if not complete and start != expected:
            break
        hdu = read_hdu(data, start, limit)
        hdus.append(hdu)
        expected = hdu.end
    missing = f"it is not there: the file has {len(starts)} of {count} extensions ({len(data)} bytes)"
    return hdus + [Hdu(-1, problem=missing) for _ in range(count - len(hdus))]


def ones_complement_sum(data: bytes) -> int:
    """32-bit ones' complement sum of whole blocks, as CHECKSUM and DATASUM use it."""
    total = int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def checksum_problem(data: bytes, hdu: Hdu) -> str | None:
    """What CHECKSUM or DATASUM say against this HDU; ``None``: nothing, or they are not there."""
    cards = hdu.cards or {}
    datasum, checksum = cards.get("DATASUM"), cards.get("CHECKSUM")
    if not datasum and not checksum:
        return None
    body = ones_complement_sum(data[hdu.data_start : hdu.end])
    if datasum:
        text = str(datasum).strip()
        if not (text.isascii() and text.isdigit()):
            return f"DATASUM is {text!r}, not a number"
        # All ones and all zeros are the same number in ones' complement.
        if int(text) % 0xFFFFFFFF != body % 0xFFFFFFFF:
            return f"DATASUM says {int(text)}, its data give {body}: the data were damaged on the way"
    if checksum:
        head = ones_complement_sum(data[hdu.start : hdu.data_start])
        if (head + body) % 0xFFFFFFFF:
            return "its CHECKSUM does not agree: header or data were damaged on the way"
    return None
