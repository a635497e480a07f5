"""The page ``docs/flags.md``, made from the registry: ``python -m stream.core.flagspage docs/flags.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from stream.core.flags import BAD_BITS, FATAL_INFO_BITS, INFO_BITS, MASK_BITS, SOURCE_BITS, SURVEY_BAD_BITS, Bit

_HEAD = """# Flags

<!-- Made by `python -m stream.core.flagspage docs/flags.md` from `stream/core/flags.py`: change it there. -->

## Mask bits

`mskimg` is a 16-bit image; its header names the bits (`MBIT00` to `MBIT15`). A pixel is clean by the survey's own
template if `mask & {survey} == 0`; `mask & {bad} == 0` leaves out our bits 13 to 15 too. `mask & {sources}` marks
sources, not defects. `flags` in a catalogue is the OR of the mask in the 5 x 5 pixels around the source, without the
source bits (every source has those); -1 where the box leaves the image.

"""
_INFO = """
## INFOBITS

The quality word of a science image, 0 is cleanest; in headers of science products, with a card `BITnn` for each bit, in
the quality record and on `ztf.quadrants`. Thresholds are those of the survey's headers.

"""
_STATUS = """
## STATUS

1: usable. 0: bad, where INFOBITS has one of the bits {fatal}. A bad image has no science products, only its
quality record (`procstatus`), which says at which stage it ended and why.
"""


def flags_page() -> str:
    """The page as Markdown."""
    fatal = ", ".join(str(bit.bit) for bit in INFO_BITS if FATAL_INFO_BITS >> bit.bit & 1)
    head = _HEAD.format(survey=SURVEY_BAD_BITS, bad=BAD_BITS, sources=SOURCE_BITS)
    return head + _table(MASK_BITS) + _INFO + _table(INFO_BITS) + _STATUS.format(fatal=fatal)


def _table(bits: tuple[Bit, ...]) -> str:
    rows = [f"| {b.bit} | {1 << b.bit} | {b.name} | {b.meaning} | {b.set_by} | {b.text} |" for b in bits]
    return "\n".join(["| bit | value | name | set when | by | more |", "|---|---|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(flags_page(), encoding="utf-8")
