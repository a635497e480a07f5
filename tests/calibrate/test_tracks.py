"""Tracks on skies of which everything is known: trails are found, everything else that is long is left alone."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic import add_noise, paint, star_field

from stream.calibrate import find_tracks, mask_tracks
from stream.calibrate.radon import Line, extended, lengths, line_of, radon, strongest
from stream.calibrate.tracks import BLIND_BITS, _summed, strip_pixels
from stream.core.flags import Mask
from stream.core.psf import gaussian_psf
from stream.core.records import Background, Track
from stream.photometry import estimate_background

F64 = NDArray[np.float64]
GAIN, READNOISE = 6.2, 10.0
SHAPE = (900, 840)
SKY = 300.0
SIGMA = math.sqrt(SKY / GAIN + (READNOISE / GAIN) ** 2)
FWHM = 2.3


def across(line: Line, shape: tuple[int, int] = SHAPE) -> tuple[F64, F64]:
    """Distance of each pixel from a line, and its place along it (px)."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    length = math.hypot(line.x2 - line.x1, line.y2 - line.y1)
    ux, uy = (line.x2 - line.x1) / length, (line.y2 - line.y1) / length
    return (x - line.x1) * uy - (y - line.y1) * ux, (x - line.x1) * ux + (y - line.y1) * uy


def trail(line: Line, peak: float, fwhm: float = FWHM) -> F64:
    """Light of an endless trail whose middle has ``peak`` sigma of the sky in a pixel."""
    return np.asarray(peak * SIGMA * np.exp(-0.5 * (across(line)[0] / (fwhm / 2.3548)) ** 2))


def sky(
    light: F64 | float, seed: int, n_stars: int = 400
) -> tuple[NDArray[np.float32], Background, NDArray[np.uint16]]:
    x, y, flux = star_field(SHAPE, n_stars, seed, (100.0, 300_000.0), edge=5.0)
    stars = paint(SHAPE, x, y, flux, gaussian_psf(FWHM, SHAPE), size=25)
    data = np.minimum(add_noise(stars + light, SKY, GAIN, READNOISE, seed + 1), 50_000).astype(np.float32)
    mask = np.where(data >= 50_000, int(Mask.SATURATED), 0).astype(np.uint16)
    return data, estimate_background(data, mask), mask


def random_line(rng: np.random.Generator) -> Line:
    """A line across the image whose chord is at least half its side."""
    while True:
        angle, x, y = rng.uniform(0, math.pi), rng.uniform(0, SHAPE[1]), rng.uniform(0, SHAPE[0])
        line = extended(Line(x, y, x + math.cos(angle), y + math.sin(angle)), SHAPE)
        assert line is not None
        if math.hypot(line.x2 - line.x1, line.y2 - line.y1) > 450:
            return line


def covered(tracks: tuple[Track, ...], line: Line) -> float:
    """Share of a trail's middle line that is masked."""
    mask = mask_tracks(np.zeros(SHAPE, np.uint16), tracks)
    rows, columns = strip_pixels(*SHAPE, line, 0.6)
    return float(np.mean(mask[rows, columns] == Mask.TRACK))


@pytest.mark.parametrize("peak", [1.0, 3.0, 100.0])
def test_trails_of_a_sigma_a_pixel_and_brighter_are_found_and_masked(peak: float) -> None:
    rng = np.random.default_rng(int(peak))
    for seed in range(5):
        line = random_line(rng)
        data, background, mask = sky(trail(line, peak), seed)
        tracks = find_tracks(data, background, mask)
        assert len(tracks) == 1
        assert covered(tracks, line) > 0.97
        assert tracks[0].kind == "satellite"
        assert abs(tracks[0].fwhm - FWHM) < 1.0
        assert tracks[0].light == pytest.approx(peak * SIGMA * FWHM * 1.0645, rel=0.3)
        # No wider than what has light: four sigma of the seeing to each side, and a pixel.
        far = np.abs(across(line)[0]) > 2 + 4 * FWHM
        assert not mask_tracks(mask, tracks)[far & (mask == 0)].any()


def test_several_at_once_and_what_made_them() -> None:
    lines = Line(0, 100, 839, 300), Line(0, 700, 839, 400), Line(600, 0, 500, 899)
    along = across(lines[1])[1]
    flashing = trail(lines[1], 5.0) * (1 + 0.95 * np.sign(np.sin(along / 30))) * (1 + np.cos(along / 300))
    light = trail(lines[0], 4.0) + flashing + trail(lines[2], 2.0, fwhm=24.0)
    tracks = find_tracks(*sky(light, 5, 150))
    kinds = sorted(track.kind for track in tracks)
    assert kinds == ["aircraft", "flashing satellite", "satellite"]
    for line in lines:
        assert covered(tracks, line) > 0.9


def test_nothing_is_found_where_nothing_crosses() -> None:
    """Stars, a gradient, a halo, bleeds, a bad column, an edge-on galaxy, a short trail: none is a track."""
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    gradient = 40 * x / 840 + 30 * (y / 900) ** 2
    halo = 12.0 * (np.hypot(x - 300, y - 350) < 260)
    column = np.zeros(SHAPE)
    column[:, 555] = 25.0
    galaxy = 60 * np.exp(-np.abs(x - 700) / 25 - np.abs(y - 200) / 2)
    short = trail(Line(0, 0, 10, 6), 5.0) * ((x > 200) & (x < 420))
    for seed, light in enumerate((0.0, gradient, halo + gradient, column, galaxy, short, gradient + galaxy + halo)):
        data, background, mask = sky(light, 10 + seed, 1500)
        assert find_tracks(data, background, mask) == ()
    data, background, mask = sky(0.0, 20)
    data[100:800, 420:424] = 50_000
    mask[98:802, 419:425] |= np.uint16(Mask.SATURATED)
    assert find_tracks(data, background, mask) == ()


def test_diffraction_spikes_are_no_tracks_but_a_trail_over_the_star_is() -> None:
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    r = np.hypot(x - 420, y - 450) + 1.0
    angle = math.radians(33)
    arms = 0.0
    for quarter in (0.0, math.pi / 2):
        c, s = math.cos(angle + quarter), math.sin(angle + quarter)
        off = (x - 420) * s - (y - 450) * c
        arms = arms + 3e6 / r**2 * np.exp(-0.5 * (off / 1.0) ** 2)
    star = arms + 4e7 / (r**2 + 4) ** 1.5
    data, background, mask = sky(star, 30, 300)
    assert find_tracks(data, background, mask) == ()
    line = extended(Line(420, 450, 420 + 1.0, 450 + 2.2), SHAPE)
    assert line is not None
    data, background, mask = sky(star + trail(line, 6.0), 30, 300)
    tracks = find_tracks(data, background, mask)
    assert len(tracks) == 1
    assert covered(tracks, line) > 0.9


def test_masks_are_left_alone_where_there_is_no_track() -> None:
    mask = np.zeros((50, 60), np.uint16)
    assert mask_tracks(mask, ()) is mask
    data, background, mask = sky(0.0, 40)
    assert find_tracks(data[:90, :90], background, mask[:90, :90]) == ()
    data[:] = np.nan
    assert find_tracks(data, background, mask) == ()


@given(st.integers(5, 40), st.integers(5, 40), st.integers(0, 2**32 - 1))
def test_the_transform_sums_along_lines(ny: int, nx: int, seed: int) -> None:
    """Against sums along the lines that ``line_of`` names: as many pixels, one a step, next to the line."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(ny, nx)).astype(np.float32)
    sums, counts = radon(image), lengths((ny, nx))
    assert sums[0, 0, :ny] == pytest.approx(image.sum(axis=1), abs=1e-4)
    assert sums[0, 2, :nx] == pytest.approx(image.sum(axis=0), abs=1e-4)
    # Every pixel lies on exactly one line of each slope.
    assert sums.sum(axis=2) == pytest.approx(np.full(sums.shape[:2], image.sum()), abs=1e-2)
    assert (counts <= max(ny, nx)).all()
    spot = np.zeros((ny, nx), np.float32)
    py, px = int(rng.integers(ny)), int(rng.integers(nx))
    spot[py, px] = 1.0
    for place in zip(*np.nonzero(radon(spot)), strict=True):
        line = line_of((int(place[0]), int(place[1]), int(place[2])), (ny, nx), sums.shape)
        length = max(math.hypot(line.x2 - line.x1, line.y2 - line.y1), 1e-9)
        off = abs((px - line.x1) * (line.y2 - line.y1) - (py - line.y1) * (line.x2 - line.x1)) / length
        assert off < 2.0


@given(st.tuples(*[st.floats(-50, 150)] * 4), st.floats(0.6, 9))
def test_strips_are_what_lies_next_to_the_line(ends: tuple[float, float, float, float], half: float) -> None:
    line = Line(*ends)
    if math.hypot(line.x2 - line.x1, line.y2 - line.y1) < 3:
        return
    rows, columns = strip_pixels(100, 90, line, half)
    off, along = across(line, (100, 90))
    length = math.hypot(line.x2 - line.x1, line.y2 - line.y1)
    inside = np.zeros((100, 90), bool)
    inside[rows, columns] = True
    assert (np.abs(off[inside]) <= half + 1e-6).all()
    must = (np.abs(off) <= half - 1e-6) & (along > half + 1) & (along < length - half - 1)
    assert inside[must].all()
    assert all(a >= 0 for a, _ in pairwise([*rows, 0]))


def test_the_line_that_stands_out_is_the_one_that_plain_arrays_find() -> None:
    rng = np.random.default_rng(5)
    image = rng.standard_normal((60, 45)).astype(np.float32)
    image[:, 20] += 1.5
    sums, number = radon(image), lengths((60, 45))
    roots, usable = np.sqrt(np.maximum(number, np.float32(1))), number > 30
    place, contrast = strongest(sums, roots, usable, 7)
    scaled = sums / roots
    plain = scaled - np.float32(0.5) * (np.roll(scaled, 7, axis=2) + np.roll(scaled, -7, axis=2))
    plain[~usable] = 0.0
    assert place == plain.argmax()
    assert contrast == pytest.approx(plain.max(), rel=1e-6)
    assert strongest(sums, roots, np.zeros_like(usable), 7) == (0, 0.0)


def test_cells_are_summed_without_what_is_blind_or_has_no_value() -> None:
    rng = np.random.default_rng(6)
    data = rng.normal(500, 20, (83, 70)).astype(np.float32)
    mask = np.where(rng.uniform(size=data.shape) < 0.02, Mask.DEAD, Mask.SOURCE).astype(np.uint16)
    data[10:14, 30] = np.nan
    sums, lost = np.empty((10, 8), np.float32), np.empty((10, 8), np.float32)
    _summed(data, mask, np.uint16(BLIND_BITS), sums, lost)
    bad = ((mask & BLIND_BITS) != 0) | np.isnan(data)
    cells = (10, 8, 8, 8)  # rows, px, columns, px
    assert np.array_equal(lost, bad[:80, :64].reshape(cells).sum(axis=(1, 3)))
    good = np.where(bad, 0.0, data)[:80, :64].reshape(cells).sum(axis=(1, 3), dtype=np.float64)
    np.testing.assert_allclose(sums, good, rtol=1e-5)
