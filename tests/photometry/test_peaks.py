"""Watershed on the pixels above a threshold, judged by scipy's labels and by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from stream.photometry.peaks import Basins, find_basins


def basins_of(image: np.ndarray, least: float, fraction: float = 0.0) -> tuple[np.ndarray, Basins]:
    pixel = np.flatnonzero(image > 0)
    value = image.reshape(-1)[pixel].astype(np.float32)
    return pixel, find_basins(pixel, value, image.shape[1], np.full(len(pixel), least, np.float32), fraction=fraction)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 17), st.integers(1, 13), st.floats(0.1, 0.9))
def test_merging_everything_gives_the_connected_regions(seed: int, ny: int, nx: int, part: float) -> None:
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((ny, nx)) < part, rng.integers(1, 6, (ny, nx)), 0).astype(float)
    pixel, basins = basins_of(image, 1e9)
    labels, n = ndimage.label(image > 0, np.ones((3, 3)))
    assert len(basins.peak) == n
    of_pixel = labels.reshape(-1)[pixel]
    for k in range(n):
        members = of_pixel[basins.owner == k]
        assert len(members)
        assert (members == members[0]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 17), st.integers(1, 13))
def test_without_merging_every_local_maximum_is_a_peak(seed: int, ny: int, nx: int) -> None:
    image = np.random.default_rng(seed).permutation(ny * nx).reshape(ny, nx).astype(float)  # no ties
    pixel, basins = basins_of(image, 0.0)
    highest = ndimage.maximum_filter(image, 3, mode="constant", cval=-1)
    assert set(pixel[basins.peak]) == set(np.flatnonzero((image == highest) & (image > 0)))


def test_a_peak_stands_by_its_prominence() -> None:
    ridge = np.array([[0, 5, 9, 6, 8, 3, 0, 4, 0]], float)
    pixel, basins = basins_of(ridge, 1.5)
    assert pixel[basins.peak].tolist() == [2, 4, 7]  # 8 stands 2 above the saddle 6
    pixel, basins = basins_of(ridge, 2.5)
    assert pixel[basins.peak].tolist() == [2, 7]
    assert basins.owner.tolist() == [0, 0, 0, 0, 0, 1]
    assert pixel[basins_of(ridge, 0.0, fraction=0.5)[1].peak].tolist() == [2, 7]


def test_rows_do_not_run_into_each_other() -> None:
    image = np.zeros((3, 4))
    image[0, 3], image[1, 0] = 2, 3
    image[2, 3] = 1
    assert len(basins_of(image, 1e9)[1].peak) == 3


def test_nothing_above_nothing_found() -> None:
    _, basins = basins_of(np.zeros((4, 4)), 1.0)
    assert len(basins.peak) == 0
    assert len(basins.owner) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.floats(0.2, 1.0))
def test_every_pixel_belongs_to_the_peak_that_its_highest_neighbours_lead_to(
    seed: int, ny: int, nx: int, part: float
) -> None:
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((ny, nx)) < part, rng.permutation(ny * nx).reshape(ny, nx) + 1.0, 0)
    pixel, basins = basins_of(image, 0.0)
    for here, owner in zip(pixel.tolist(), basins.owner.tolist(), strict=True):
        while True:
            y, x = divmod(here, nx)
            around = image[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            dy, dx = np.unravel_index(np.argmax(around), around.shape)
            highest = int((max(y - 1, 0) + dy) * nx + max(x - 1, 0) + dx)
            if highest == here:
                break
            here = highest
        assert pixel[basins.peak[owner]] == here
