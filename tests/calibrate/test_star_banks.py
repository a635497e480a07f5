"""Filters by place: stars that differ in width over an image each get their own, whatever else is among the peaks."""

from __future__ import annotations

import numpy as np
import pytest

from stream.calibrate.banks import ANSWER, BESIDE, CERTAIN, MIN_PEAKS, Banks, own_banks
from stream.calibrate.sharpness import CENTRE, WIDTHS, filters, star
from stream.core.records import F32

NARROW, WIDE = 1.45, 1.75


def peaks(n: int, narrow: float, wide: float, seed: int = 1) -> tuple[F32, F32]:
    """Windows of stars whose width grows from left to right, and their places."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    widths = narrow + (wide - narrow) * (place[:, 1] + 1) / 2
    windows = np.array([star(*rng.uniform(-0.5, 0.5, 2), width) for width in widths])
    windows /= windows[:, CENTRE, None]
    return (windows + rng.normal(0, 0.005, windows.shape)).astype(np.float32), place


def strongest(banks: Banks, windows: F32, place: F32) -> F32:
    """The strongest answer of each window to the filters of its place."""
    which = banks.at(place)
    return np.array([(banks.banks[k].filters @ w).max() for k, w in zip(which, windows, strict=True)])


@pytest.mark.parametrize("outliers", [0.0, 0.1])
def test_a_place_has_filters_for_its_own_stars(outliers):
    windows, place = peaks(1000, NARROW, WIDE)
    for k in np.flatnonzero(np.random.default_rng(2).uniform(size=1000) < outliers):  # blends, and hits on stars
        windows[k, CENTRE + 1 : CENTRE + 3] += 0.9 if k % 2 else 0.0
        windows[k, : CENTRE - 5] *= 1.0 if k % 2 else 0.2
    banks = own_banks(windows, place)
    edges = np.array([[0.0, -0.95], [0.0, 0.0], [0.0, 0.95]], np.float32)
    profiles = [banks.banks[k].profile[CENTRE + 1] for k in banks.at(edges)]
    assert profiles[0] < profiles[1] < profiles[2]
    for at, width in zip(profiles, (NARROW, (NARROW + WIDE) / 2, WIDE), strict=True):
        own = star(0, 0, width)
        assert at == pytest.approx(own[CENTRE + 1] / own[CENTRE], rel=0.2)
    stars, where = peaks(500, NARROW, WIDE, seed=3)
    answers = strongest(banks, stars, where)
    assert np.percentile(answers, 95) < ANSWER
    assert (answers > 3 * ANSWER).mean() < 0.01


def test_filters_for_the_sharpest_stars_are_blinder_where_stars_are_wide():
    windows, place = peaks(1000, NARROW, WIDE)
    banks = own_banks(windows, place)
    hit = np.zeros(25, np.float32)
    hit[CENTRE : CENTRE + 2] = 1.0
    there = banks.banks[int(banks.at(np.array([[0.0, 0.9]], np.float32))[0])]
    assert (there.filters @ hit).max() > 1.1 * (banks.banks[0].filters @ hit).max()


def test_one_width_for_few_peaks_and_no_risk_for_next_to_none():
    few = own_banks(*peaks(40, 1.9, 1.9))
    assert len(few.banks) == 1
    assert few.banks[0].profile[CENTRE + 1] == pytest.approx(
        star(0, 0, 1.9)[CENTRE + 1] / star(0, 0, 1.9)[CENTRE], rel=0.1
    )
    none = own_banks(*peaks(MIN_PEAKS - 1, 1.9, 1.9))
    assert np.array_equal(none.banks[0].filters, filters(WIDTHS[0])[0])
    assert (none.banks[0].certain, none.banks[0].beside) == (CERTAIN, BESIDE)
    assert (none.at(np.zeros((5, 2), np.float32)) == 0).all()
    empty = own_banks(np.empty((0, 25), np.float32), np.empty((0, 2), np.float32))
    assert len(empty.banks) == 1
