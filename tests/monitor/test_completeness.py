"""Tonight's completeness: what became of the fakes, added up over quadrants, against the full summary."""

from __future__ import annotations

import itertools

import numpy as np

from stream.fakes import KINDS, OTHER, empty_fakes, fake_rows, summarise
from stream.monitor.completeness import BINS, POINTS, STREAK, added, in_words, tally


def quadrant(seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    table = empty_fakes(200)
    table["kind"] = rng.choice([*KINDS, OTHER], 200)
    table["snr"] = np.where(table["kind"] == OTHER, np.nan, rng.uniform(2, 20, 200))
    table["masked"] = rng.uniform(size=200) < 0.1
    table["detected"] = table["snr"] + rng.normal(size=200) > 5
    table["sent"] = table["detected"] & (rng.uniform(size=200) < 0.9)
    return [row | {"pid": seed, "rcid": 0} for row in fake_rows(table)]


def test_kinds_are_those_that_are_injected():
    assert set(POINTS) | {STREAK} == set(KINDS)


def test_sums_over_quadrants_say_what_the_summary_of_all_rows_says():
    quadrants = [quadrant(seed) for seed in range(5)]
    total = added([tally(rows) for rows in quadrants])
    everything = [row for rows in quadrants for row in rows]
    fair = [row for row in everything if row["kind"] != OTHER and not row["masked"]]
    assert total[0] == [len(fair), sum(r["detected"] for r in fair), sum(r["sent"] for r in fair)]
    assert len(total) == len(BINS)
    by_kind = summarise(everything)["by_kind"]
    found = sum(line["found"] * sum(r["kind"] == line["what"] for r in fair) for line in by_kind)
    assert total[0][1] == round(found)
    for (low, high), (n, found, sent) in zip(itertools.pairwise(BINS), total[1:], strict=True):
        mine = [r for r in fair if r["kind"] != STREAK and low <= r["snr"] < high]
        assert [n, found, sent] == [len(mine), sum(r["detected"] for r in mine), sum(r["sent"] for r in mine)]


def test_in_words():
    assert in_words([[10, 5, 4], [0, 0, 0], [4, 1, 1], [0, 0, 0], [0, 0, 0], [2, 2, 2]]) == (
        "fakes: 10 injected, 5 found (50%), 4 sent; points found by S/N: 5-6 25%, over 10 100%"
    )
    assert in_words(tally([])) == "fakes: none on usable pixels"
    assert added([]) == []
    assert added([tally([]), [[1, 1, 1]]]) == tally([])  # of another version with other bins
