"""Labels from truth: who is real, who is false, who is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.dataset import concatenate, make_examples
from models.labels import BOGUS, REAL, UNDECIDED, exposure_key, label_candidates
from stream.alert import encode_stamp
from stream.core.errors import UsageError

EXPOSURE = "ztf_20201005231250_000448_zr_c06_o"
RCID = 20
ARCSEC = 1 / 3600.0


def source(kind: str, ra: float, dec: float, mag: float, **more: Any) -> dict[str, Any]:
    """A row of the truth table."""
    row = {
        "truth_id": 1, "kind": kind, "role": "sci", "exposure": EXPOSURE, "rcid": RCID, "ra": ra, "dec": dec,
        "mag": mag, "x1": np.nan, "y1": np.nan, "x2": np.nan, "y2": np.nan,
    }  # fmt: skip
    return row | more


def truth_of(*rows: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Columns of rows."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def candidate(ra: float, dec: float, mag: float = 19.0, sigma: float = 0.1, **more: Any) -> dict[str, Any]:
    """A candidate record."""
    row = {
        "pdiffimfilename": f"{EXPOSURE}_q1_scimrefdiffimg.fits", "rcid": RCID, "ra": ra, "dec": dec, "magpsf": mag,
        "sigmapsf": sigma, "isdiffpos": "t", "xpos": 1.0, "ypos": 1.0,
    }  # fmt: skip
    return row | more


TRANSIENT = source("transient", 150.0, 20.0, 19.0)


@pytest.mark.parametrize(
    ("offset", "more", "expected"),
    [
        (0.5, {}, REAL),
        (1.4, {}, REAL),
        (2.5, {}, UNDECIDED),  # made of its light, perhaps
        (6.0, {}, BOGUS),
        (0.5, {"isdiffpos": "f"}, UNDECIDED),  # something that brightened cannot be negative
        (0.5, {"rcid": RCID + 1}, BOGUS),
        (0.5, {"pdiffimfilename": EXPOSURE.replace("231250", "252083") + "_q1_scimrefdiffimg.fits"}, BOGUS),
        (0.5, {"magpsf": 15.0}, UNDECIDED),  # a spike on it, forty times brighter than it is
    ],
)
def test_a_candidate_by_a_transient(offset: float, more: dict[str, Any], expected: int) -> None:
    labels = label_candidates([candidate(150.0, 20.0 + offset * ARCSEC, **more)], truth_of(TRANSIENT))
    assert labels.tolist() == [expected]


@pytest.mark.parametrize(
    ("mag", "sign", "expected"),
    [
        (16.0, "t", REAL),  # as bright as in the reference plus three tenths
        (16.6, "f", REAL),
        (16.31, "t", UNDECIDED),  # hardly changed: what is seen there is a residual
        (16.0, "f", UNDECIDED),
    ],
)
def test_a_candidate_on_a_variable_is_real_only_if_it_changed(mag: float, sign: str, expected: int) -> None:
    references = [source("variable", 150.0, 20.0, m, role="ref", exposure="ztf_1_1_zr_c06_o") for m in (16.25, 16.35)]
    truth = truth_of(*references, source("variable", 150.0, 20.0, mag))
    found = label_candidates([candidate(150.0, 20.0, mag=18.0, sigma=0.2, isdiffpos=sign)], truth)
    assert found.tolist() == [expected]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (150.0, 101.0, REAL),
        (101.0, 100.5, REAL),
        (150.0, 104.0, UNDECIDED),
        (150.0, 120.0, BOGUS),
        (240.0, 100.0, BOGUS),
    ],
)
def test_a_candidate_on_a_streak_is_real_along_the_whole_trail(x: float, y: float, expected: int) -> None:
    streak = source("streak", 150.0, 20.0, 18.0, x1=100.0, y1=100.0, x2=200.0, y2=100.0)
    found = label_candidates([candidate(150.5, 20.5, xpos=x + 1, ypos=y + 1)], truth_of(streak))
    assert found.tolist() == [expected]


def test_stars_and_galaxies_are_never_real() -> None:
    truth = truth_of(source("star", 150.0, 20.0, 15.0), source("galaxy", 150.0, 20.0, 17.0))
    assert label_candidates([candidate(150.0, 20.0)], truth).tolist() == [BOGUS]
    assert label_candidates([], truth).tolist() == []


def test_the_exposure_is_found_in_any_product_name() -> None:
    assert exposure_key(f"{EXPOSURE}_q1_scimrefdiffimg.fits") == exposure_key(f"/a/b/{EXPOSURE}")


def packet(candid: int, row: dict[str, Any], name: str) -> dict[str, Any]:
    """As much of an alert packet as examples need."""
    stamp = {"stampData": encode_stamp(np.random.default_rng(candid).normal(100, 5, (63, 63)).astype(np.float32))}
    return {
        "candid": candid, "objectId": name, "candidate": row, "cutoutScience": stamp, "cutoutTemplate": stamp,
        "cutoutDifference": stamp,
    }  # fmt: skip


def test_examples_leave_out_the_undecided_and_do_not_depend_on_the_order() -> None:
    packets = [
        packet(1, candidate(150.0, 20.0), "a"),
        packet(2, candidate(150.0, 20.0 + 3 * ARCSEC), "b"),
        packet(3, candidate(151.0, 20.0, sigma=0.2), "c"),
        packet(4, candidate(152.0, 20.0), "c"),
    ]
    examples = make_examples(packets, truth_of(TRANSIENT))
    assert examples.labels.tolist() == [True, False, False]
    assert examples.groups[1] == examples.groups[2] != examples.groups[0]
    assert examples.snr == pytest.approx([10.857, 5.429, 10.857], rel=1e-3)
    assert make_examples(packets[::-1], truth_of(TRANSIENT)).sha256() == examples.sha256()
    both = concatenate([examples, examples])
    assert len(both) == 6
    assert both.sha256() != examples.sha256()


@pytest.mark.parametrize("n", [0, 1])
def test_a_night_with_one_class_only_cannot_be_learned(n: int) -> None:
    packets = [packet(1, candidate(150.0, 20.0), "a")][:n]
    with pytest.raises(UsageError, match="both classes"):
        make_examples(packets, truth_of(TRANSIENT))
