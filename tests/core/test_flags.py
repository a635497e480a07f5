"""The registry of bits against itself, its page and the survey's own headers."""

from __future__ import annotations

from pathlib import Path

import pytest
from astropy.io import fits

from stream.core.flags import (
    BAD_BITS,
    FATAL_INFO_BITS,
    INFO_BITS,
    MASK_BITS,
    SOURCE_BITS,
    SURVEY_BAD_BITS,
    Info,
    Mask,
    describe,
    status_of,
)
from stream.core.flagspage import flags_page

ROOT = Path(__file__).resolve().parents[2]


def test_every_bit_is_registered_once_under_its_name() -> None:
    assert {bit.name: 1 << bit.bit for bit in MASK_BITS} == {bit.name: int(bit) for bit in Mask}
    assert {bit.name: 1 << bit.bit for bit in INFO_BITS} == {bit.name: int(bit) for bit in Info}
    assert [bit.bit for bit in INFO_BITS] == [*range(23), 25]
    assert all(bit.meaning and bit.set_by for bit in MASK_BITS + INFO_BITS)


def test_templates_are_the_surveys() -> None:
    assert sum(1 << bit for bit in (0, *range(2, 11), 12)) == SURVEY_BAD_BITS
    assert SOURCE_BITS == 2050
    assert not BAD_BITS & SOURCE_BITS
    assert BAD_BITS | SOURCE_BITS == 0xFFFF


def test_status_is_bad_for_what_cannot_be_calibrated_and_for_nothing_else() -> None:
    for bit in Info:
        assert status_of(int(bit)) == (0 if bit & FATAL_INFO_BITS else 1)
    assert describe(int(Info.NO_PSF | Info.SEEING), INFO_BITS) == ["SEEING", "NO_PSF"]


def test_the_page_is_current() -> None:
    written = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == flags_page(), "run: python -m stream.core.flagspage docs/flags.md"


@pytest.mark.real
def test_thresholds_are_those_of_real_headers(real_data: Path) -> None:
    """Every number in the meaning of a bit stands in the comment of the survey's BITnn card."""
    header = fits.getheader(sorted((real_data / "images").glob("*sciimg.fits"))[0])
    for bit in INFO_BITS:
        comment = header.comments[f"BIT{bit.bit:02d}"]
        ours, theirs = (
            {float(word.strip('%"+')) for word in text.split() if word.strip('%"+-.').replace(".", "").isdigit()}
            for text in (bit.meaning, comment.replace(" mag", "").replace(" DN", ""))
        )
        if bit.bit in (3, 16, 19):  # inches and a range, written otherwise
            continue
        assert {abs(v) for v in ours} <= {abs(v) for v in theirs}, (bit.meaning, comment)
