"""A generator of hostile packets: a sound one changed in one of many ways, each with a name that says how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import packets as made

from stream.ingest.fitsblocks import BLOCK, CARD

Rng = np.random.Generator
REQUIRED = (
    "FIELDID",
    "FILTERID",
    "OBSJD",
    "SHUTOPEN",
    "SHUTCLSD",
    "EXPTIME",
    "PROGRMID",
    "IMGTYPE",
    "TELRAD",
    "TELDECD",
)
STRUCTURE = ("NAXIS1", "NAXIS2", "NAXIS", "BITPIX", "PCOUNT", "GCOUNT", "TFIELDS", "TFORM1", "TTYPE1", "THEAP")
IMAGE = (
    "ZNAXIS1",
    "ZNAXIS2",
    "ZBITPIX",
    "ZTILE1",
    "ZTILE2",
    "ZCMPTYPE",
    "ZNAME1",
    "ZVAL1",
    "BZERO",
    "BSCALE",
    "AMP_ID",
    "CCD_ID",
)
VALUES = (
    "'text'", "-1", "0", "1e400", "NaN", "9223372036854775808", "T", "''", "'2025-99-99T99:99:99'", "(1, 2)", "32",
    "-32",    "2000000000", "1.5", "'\xe9t\xe9'", "", "/ no value", "'unclosed",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """Bytes and name of a hostile packet; ``how`` says what was done."""

    how: str
    data: bytes
    name: str = made.NAME


def _card(key: str, value: str) -> bytes:
    return f"{key:<8}= {value:>20}".encode("latin-1")[:CARD].ljust(CARD)


def _places(data: bytes, key: str) -> list[int]:
    return [p for p in range(0, len(data), CARD) if data[p : p + 8] == key.encode().ljust(8)]


def _some_place(data: bytes, rng: Rng, keys: tuple[str, ...]) -> tuple[str, int]:
    for key in rng.permutation(keys):
        places = _places(data, str(key))
        if places:
            return str(key), int(rng.choice(places))
    raise AssertionError(f"none of {keys} in the packet")


def _extensions(data: bytes) -> list[bytes]:
    """The packet cut where its extensions begin."""
    starts = [0, *(p for p in range(0, len(data), BLOCK) if data[p : p + 8] == b"XTENSION"), len(data)]
    return [data[a:b] for a, b in pairwise(starts)]


def bits_flipped(data: bytes, rng: Rng) -> bytes:
    out = bytearray(data)
    for place in rng.integers(0, len(out), int(rng.integers(1, 20))):
        out[place] ^= 1 << int(rng.integers(8))
    return bytes(out)


def header_bits_flipped(data: bytes, rng: Rng) -> bytes:
    out = bytearray(data)
    _, start = _some_place(data, rng, ("XTENSION", "SIMPLE"))
    for place in rng.integers(start, min(start + BLOCK, len(out)), 4):
        out[place] ^= 1 << int(rng.integers(8))
    return bytes(out)


def swapped(data: bytes, rng: Rng) -> bytes:
    parts = _extensions(data)
    i, j = rng.choice(np.arange(1, len(parts)), 2, replace=False)
    parts[i], parts[j] = parts[j], parts[i]
    return b"".join(parts)


def dropped(data: bytes, rng: Rng) -> bytes:
    parts = _extensions(data)
    del parts[int(rng.integers(0, len(parts)))]
    return b"".join(parts)


def doubled(data: bytes, rng: Rng) -> bytes:
    parts = _extensions(data)
    parts.insert(int(rng.integers(0, len(parts))), parts[int(rng.integers(0, len(parts)))])
    return b"".join(parts)


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def padded(data: bytes, rng: Rng) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 3 * BLOCK)))


def keyword_missing(data: bytes, rng: Rng) -> bytes:
    _, place = _some_place(data, rng, (*REQUIRED, *STRUCTURE, *IMAGE, "END"))
    return data[:place] + b"COMMENT gone".ljust(CARD) + data[place + CARD :]


def wrong_value(data: bytes, rng: Rng) -> bytes:
    key, place = _some_place(data, rng, (*REQUIRED, *STRUCTURE, *IMAGE, "GAIN", "READNOI", "SIMPLE", "XTENSION"))
    return data[:place] + _card(key, str(rng.choice(VALUES))) + data[place + CARD :]


def repeated_keyword(data: bytes, rng: Rng) -> bytes:
    """The same keyword once more, with another value, over a card that is not needed."""
    _, place = _some_place(data, rng, ("QCOMMENT", "EXTNAME", "PRESSURE", "HUMIDITY"))
    key = str(rng.choice(REQUIRED + IMAGE + STRUCTURE))
    return data[:place] + _card(key, str(rng.choice(VALUES))) + data[place + CARD :]


def huge(data: bytes, rng: Rng) -> bytes:
    key, place = _some_place(
        data, rng, ("NAXIS1", "NAXIS2", "ZNAXIS1", "ZNAXIS2", "PCOUNT", "ZTILE1", "THEAP", "NAXIS")
    )
    return data[:place] + _card(key, str(10 ** int(rng.integers(6, 19)))) + data[place + CARD :]


def lost_pointing(data: bytes, rng: Rng) -> bytes:
    key, place = _some_place(data, rng, ("TELRAD", "TELDECD"))
    return data[:place] + _card(key, str(rng.choice(["NaN", "999.0", "-9999", "1e300", "''"]))) + data[place + CARD :]


def odd_times(data: bytes, rng: Rng) -> bytes:
    key, place = _some_place(data, rng, ("OBSJD", "SHUTOPEN", "SHUTCLSD", "EXPTIME"))
    value = str(rng.choice(["0.0", "-30.0", "1e12", "'1858-11-17T00:00:00'", "'9999-12-31T23:59:59'", "NaN"]))
    return data[:place] + _card(key, value) + data[place + CARD :]


def overwritten(data: bytes, rng: Rng) -> bytes:
    """A stretch of zeros, ones or noise, as a bad disk or a broken line leaves."""
    start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 4 * BLOCK))
    filler = [b"\0" * length, b"\xff" * length, rng.bytes(length)][int(rng.integers(3))]
    return (data[:start] + filler + data[start + length :])[: len(data)]


def blocks_shuffled(data: bytes, rng: Rng) -> bytes:
    blocks = [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)]
    i, j = rng.integers(0, len(blocks), 2)
    blocks[i], blocks[j] = blocks[j], blocks[i]
    return b"".join(blocks)


WAYS: tuple[Callable[[bytes, Rng], bytes], ...] = (
    bits_flipped, header_bits_flipped, swapped, dropped, doubled, cut, padded, keyword_missing, wrong_value,
    repeated_keyword, huge, lost_pointing, odd_times, overwritten, blocks_shuffled,
)  # fmt: skip
NAMES = (
    "", "x.fits", "ztf_20250216192384_000402_zr_c11_o_q1.fits", "ztf_20250216192384_000402_zr_c17_o.fits.fz",
    "ztf_20251399999999_000402_zr_c11_o.fits.fz", "ztf_20250216192384_000999_zg_c11_o.fits.fz",
    "ztf_20250216192384_000402_zr_c11_b.fits.fz", "../../etc/passwd", "ztf_" + "9" * 300 + ".fits", "\0.fits",
)  # fmt: skip


def odd_pixels(rng: Rng) -> Iterator[tuple[str, dict[str, object]]]:
    """Sound files whose content is impossible: gains, saturation, image type, program, filter."""
    for key, value in (
        ("GAIN", 0.0),
        ("GAIN", -6.0),
        ("GAIN", 1e30),
        ("READNOI", 0.0),
        ("SATURATE", 1.0),
        ("AMP_ID", 3),
    ):
        yield f"{key} = {value}", {"extension": {int(rng.integers(1, 5)): {key: value}}}
    for key, value in (("FILTERID", 7), ("IMGTYPE", "picture"), ("PROGRMID", -1), ("EXPTIME", -30.0), ("FIELDID", -5)):
        yield f"{key} = {value}", {"primary": {key: value}}


def mutants(number: int, seed: int = 0) -> Iterator[Mutant]:
    """So many hostile packets, the same for a seed: every way in turn, with and without checksums and compression."""
    rng = np.random.default_rng(seed)
    sound = [made.make_packet(compressed=c, checksum=s) for c in (True, False) for s in (False, True)]
    fixed = [Mutant(f"named {name[:40]!r}", sound[0], name) for name in NAMES]
    fixed += [Mutant(how, made.make_packet(checksum=False, **changes)) for how, changes in odd_pixels(rng)]  # type: ignore[arg-type]
    yield from fixed[:number]
    for k in range(number - len(fixed)):
        way = WAYS[k % len(WAYS)]
        # Checksums would catch nearly all: three of four go without.
        data = sound[int(rng.choice([0, 0, 2, 1]))]
        yield Mutant(f"{way.__name__} #{k}", way(data, rng))
