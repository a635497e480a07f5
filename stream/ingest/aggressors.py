"""The bright pixels of a CCD's four quadrants, sent with each of them so that cross-talk can be taken out.

The four amplifiers of a CCD are read at the same time, and each leaves a little of its signal in the other three. The
quadrants go to different workers, so whoever calibrates one does not see the other three; but only bright pixels leave
more than the noise, and they are few. Ingest looks for them once a packet and appends to every quadrant's payload those
of the other three, as one more HDU (``packet`` says where)::

    XTENSION= 'BINTABLE'      EXTNAME = 'AGGRESSORS'      DATASUM = ...
    LEVEL2  =  raw DN of quadrant 2 without stars         THRESH2 =  DN above it from which on all pixels are here
    columns  QID (B), INDEX (J), VALUE (I, TZERO 32768: raw DN)      sorted by QID, INDEX

``INDEX`` counts pixels in read order, so that the same number is the same moment in every quadrant. A quadrant of which
nothing is known (its pixels could not be read) has no LEVEL card.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream.core.camera import read_position
from stream.core.records import U16, Aggressor
from stream.ingest.fitsblocks import BLOCK, CARD, Hdu, ones_complement_sum
from stream.ingest.keywords import Keywords

EXTNAME = "AGGRESSORS"
# DN above the sky. Coefficients are some 1e-4: below, a pixel leaves less than 0.3 DN, a twentieth of the noise of
# dark sky. An ordinary quadrant has 20,000 such pixels (0.4 MB in each of the other payloads, which are 7 MB).
THRESHOLD = 1000.0
# With more the threshold is raised, so that a payload grows by 1.3 MB at most: a plain one (19 MB) still is a message.
MAX_PIXELS = 60_000
_LEVEL_STEP = 16  # every so many pixels each way for the level
_ROW = np.dtype([("qid", "u1"), ("index", ">i4"), ("value", ">i2")])
_SIGN = 32768


def find_aggressor(image: U16, qid: int) -> Aggressor:
    """The bright pixels of a quadrant (ny, nx), raw DN in stored order."""
    level = float(np.median(image[::_LEVEL_STEP, ::_LEVEL_STEP]))
    flat = image.reshape(-1)
    floor = int(min(level + THRESHOLD, 65_535.0))
    bright = np.flatnonzero(flat > np.uint16(floor))
    if len(bright) > MAX_PIXELS:
        values = flat[bright]
        floor = int(np.partition(values, len(values) - MAX_PIXELS - 1)[len(values) - MAX_PIXELS - 1])
        bright = bright[values > floor]
    index = read_position(bright, qid, image.shape)
    order = np.argsort(index, kind="stable")
    return Aggressor(qid, index[order].astype(np.int32), flat[bright[order]], level, floor - level)


def aggressors_hdu(others: Sequence[Aggressor]) -> bytes:
    """The extension with these aggressors."""
    table = np.empty(sum(len(one.index) for one in others), _ROW)
    first = 0
    for one in sorted(others, key=lambda one: one.qid):
        rows = table[first : first + len(one.index)]
        rows["qid"], rows["index"] = one.qid, one.index
        rows["value"] = (one.value.astype(np.int32) - _SIGN).astype(np.int16)
        first += len(one.index)
    body = table.tobytes()
    body += bytes(-len(body) % BLOCK)
    cards = [
        "XTENSION= 'BINTABLE'",
        f"BITPIX  = {8:>20}",
        f"NAXIS   = {2:>20}",
        f"NAXIS1  = {_ROW.itemsize:>20}",
        f"NAXIS2  = {len(table):>20}",
        f"PCOUNT  = {0:>20}",
        f"GCOUNT  = {1:>20}",
        f"TFIELDS = {3:>20}",
        "TTYPE1  = 'QID     '",
        "TFORM1  = 'B       '",
        "TTYPE2  = 'INDEX   '",
        "TFORM2  = 'J       '",
        "TTYPE3  = 'VALUE   '",
        "TFORM3  = 'I       '",
        f"TZERO3  = {_SIGN:>20}",
        f"EXTNAME = '{EXTNAME}'",
        *(f"LEVEL{one.qid}  = {one.level:>20.1f}" for one in others),
        *(f"THRESH{one.qid} = {one.threshold:>20.1f}" for one in others),
        f"DATASUM = '{ones_complement_sum(body)}'",
        "END",
    ]
    header = "".join(card.ljust(CARD) for card in cards)
    return header.ljust(-(-len(header) // BLOCK) * BLOCK).encode("ascii") + body


def read_aggressors(data: bytes, hdu: Hdu, keys: Keywords, shape: tuple[int, int]) -> tuple[Aggressor, ...]:
    """The aggressors of an extension whose structure and checksum were looked at.

    Raises
    ------
    PacketError
        Other columns, or pixels outside ``shape`` or out of order.
    """
    if keys.integer("NAXIS1", 0, 2**31) != _ROW.itemsize or keys.integer("TFIELDS", 0, 999) != 3:
        raise keys.fail("its columns are not QID, INDEX, VALUE: ingest the packet again")
    n = keys.integer("NAXIS2", 0, 4 * MAX_PIXELS)
    table = np.frombuffer(data, _ROW, n, hdu.data_start)
    index = table["index"].astype(np.int32)
    value = (table["value"].astype(np.int32) + _SIGN).astype(np.uint16)
    found = []
    for qid in (1, 2, 3, 4):
        if not keys.has(f"LEVEL{qid}"):
            continue
        own = table["qid"] == qid
        places = index[own]
        inside = not len(places) or (places[0] >= 0 and places[-1] < shape[0] * shape[1])
        if not inside or np.any(np.diff(places) <= 0):
            raise keys.fail(f"pixels of quadrant {qid} outside the image or out of order: ingest the packet again")
        level = keys.number(f"LEVEL{qid}", 0.0, 65_535.0)
        found.append(Aggressor(qid, places, value[own], level, keys.number(f"THRESH{qid}", -65_535.0, 65_535.0)))
    return tuple(found)
