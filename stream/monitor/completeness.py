"""How complete the search is tonight: what became of the sources injected into copies of the quadrants, in few numbers.

``stream.fakes`` tells all there is to tell, from the products; this is what one line of ``status`` needs, from the
messages on ``ztf.fakes``, and light enough for a worker that knows no pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from stream.core.records import Row

BINS = (3.0, 5.0, 6.0, 8.0, 10.0, math.inf)  # of true S/N
POINTS = ("point", "host", "nucleus", "bright")  # kinds of fakes but streaks, whose S/N is another thing
STREAK = "streak"


def tally(rows: Iterable[Row]) -> list[list[int]]:
    """One quadrant's fakes (rows of ``ztf.internal.fake``) as ``[injected, found, sent]``: of all, then of the points
    in each of ``BINS``. Fakes on unusable pixels are left out, and candidates that are no fakes."""
    fair = [r for r in rows if r["kind"] in (*POINTS, STREAK) and not r["masked"] and r["snr"] is not None]
    points = [row for row in fair if row["kind"] != STREAK]
    groups = [fair, *([r for r in points if low <= r["snr"] < high] for low, high in itertools.pairwise(BINS))]
    return [[len(g), sum(bool(r["detected"]) for r in g), sum(bool(r["sent"]) for r in g)] for g in groups]


def added(tallies: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """The sum of quadrants' tallies; empty of none. Those of another version with other bins are left out."""
    same = [one for one in tallies if len(one) == len(BINS)]
    return [[sum(numbers) for numbers in zip(*group, strict=True)] for group in zip(*same, strict=True)]


def in_words(total: Sequence[Sequence[int]]) -> str:
    """A line for a person."""
    injected, found, sent = total[0]
    if not injected:
        return "fakes: none on usable pixels"
    shares = [
        f"{f'{low:g}-{high:g}' if math.isfinite(high) else f'over {low:g}'} {group[1] / group[0]:.0%}"
        for (low, high), group in zip(itertools.pairwise(BINS), total[1:], strict=True)
        if group[0]
    ]
    points = f"; points found by S/N: {', '.join(shares)}" if shares else ""
    return f"fakes: {injected} injected, {found} found ({found / injected:.0%}), {sent} sent{points}"
