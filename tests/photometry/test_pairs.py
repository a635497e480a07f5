"""Pairs of near places against all distances."""

from __future__ import annotations

import numpy as np
import pytest

from stream.photometry.pairs import close_pairs, cross_pairs


@pytest.mark.parametrize(
    ("n", "m", "reach"), [(50, 80, 3.0), (1, 1, 2.0), (300, 10, 0.5), (200, 200, 500.0), (0, 5, 1.0)]
)
def test_pairs_are_all_that_are_near(n: int, m: int, reach: float) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.uniform(-50, 150, (2, n))  # some far outside of the others' field
    u, v = rng.uniform(0, 100, (2, m))
    near = np.hypot(x[:, None] - u, y[:, None] - v) <= reach
    assert sorted(zip(*cross_pairs(x, y, u, v, reach), strict=True)) == list(zip(*np.nonzero(near), strict=True))
    near = np.triu(np.hypot(x[:, None] - x, y[:, None] - y) <= reach, 1)
    assert sorted(zip(*close_pairs(x, y, reach), strict=True)) == list(zip(*np.nonzero(near), strict=True))


def test_places_on_one_point_and_on_a_line() -> None:
    assert len(close_pairs(np.full(5, 3.0), np.full(5, 4.0), 0.1)[0]) == 10
    first, second = close_pairs(np.arange(6.0), np.zeros(6), 1.0)
    assert list(zip(first, second, strict=True)) == [(i, i + 1) for i in range(5)]
