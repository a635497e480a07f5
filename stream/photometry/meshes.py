"""Meshes of an image: their samples, the clipped moments of these, and maps through what the meshes say.

Moments are those of a histogram of each mesh, as fine as a thirtieth of the noise, its pixels spread evenly over their
bins: what sorting says to a thousandth of the noise, in a fifth of its time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from stream.core.compiled import compiled, inner
from stream.core.records import F32, U16

F64 = NDArray[np.float64]
INT = NDArray[np.int64]

# Samples of the whole image, and the fewest of one mesh (a side): 4096 pixels give the level to 0.02 sigma before
# smoothing; more only costs time. Small images are sampled fully.
ALL_SAMPLES, SAMPLES = 2_400_000, 64
# A mesh with fewer good samples than this takes its neighbours' level.
MIN_SAMPLES = 200
CLIP, CLIPPINGS = 3.0, 6
# A Gaussian clipped at 3 sigma until it settles keeps this part of its standard deviation.
CLIPPED_STD = 0.9850
FAINT = 0.1587  # part of a Gaussian fainter than one sigma below its middle
# The first guess of a mesh comes from so many of its samples, all of them where fewer than some are usable.
GUESSED, LEAST_GUESSED = 256, 64
# Reach of the histogram below and above the guessed middle, in guessed widths, and bins a width: what is clipped first
# lies within 3.7 of them.
BELOW, ABOVE, STEPS = 8, 5, 32
BINS = (BELOW + ABOVE) * STEPS


class Moments(NamedTuple):
    """Of meshes (my, mx): median, mean - median and standard deviation; NaN where too few pixels are usable."""

    median: F64
    skew: F64
    std: F64


def mesh_samples(data: F32, mask: U16, box: int, bits: int, level: F32 | None = None) -> F32:
    """Evenly spread pixels of each mesh of about ``box`` px, (my, mx, ky, kx), NaN where unusable: not finite, or with
    one of the mask's ``bits``; a ``level`` (ny, nx) added."""
    chosen = []
    counts = [max(round(n / box), 1) for n in data.shape]
    side = max(SAMPLES, int(np.sqrt(ALL_SAMPLES / (counts[0] * counts[1]))))
    for n, meshes in zip(data.shape, counts, strict=True):
        per_mesh = min(side, n // meshes)
        edges = np.linspace(0, n, meshes + 1)
        inside = (np.arange(per_mesh) + 0.5) / per_mesh
        chosen.append((edges[:-1, None] + inside * np.diff(edges)[:, None]).astype(np.int64))
    rows, columns = chosen
    out = np.empty((len(rows), len(columns), rows.shape[1], columns.shape[1]), np.float32)
    data = np.ascontiguousarray(data, np.float32)
    _pick(data, data if level is None else level, level is not None, mask, np.uint16(bits), (rows, columns), out)
    return out


@compiled
def _pick(data: F32, level: F32, add: bool, mask: U16, bits: np.uint16, places: tuple[INT, INT], out: F32) -> None:
    rows, columns = places
    nothing = np.float32(np.nan)
    for i in range(len(rows)):
        for a in range(rows.shape[1]):
            line, marks, more = data[rows[i, a]], mask[rows[i, a]], level[rows[i, a]]
            for j in range(len(columns)):
                for b in range(columns.shape[1]):
                    x = columns[j, b]
                    value = line[x] + more[x] if add else line[x]
                    good = abs(value) < np.float32(np.inf) and (marks[x] & bits) == 0
                    out[i, j, a, b] = value if good else nothing


def clipped_moments(samples: F32) -> Moments:
    """Moments of each mesh after clipping at ``CLIP`` sigma around the median until it settles."""
    my, mx, ky, kx = samples.shape
    n = ky * kx
    flat = samples.reshape(-1, n)
    middle, width = _guess(flat[:, :: max(n // GUESSED, 1)])
    poor = np.flatnonzero(np.isnan(middle) | ~(width > 0))
    if len(poor):
        few = min(MIN_SAMPLES, n // 4 + 1, LEAST_GUESSED)
        middle[poor], width[poor] = _guess(flat[poor], few)
    out = np.full((3, len(flat)), np.nan)
    _clip(flat, middle, width, min(MIN_SAMPLES, n // 4 + 1), out)
    return Moments(*out.reshape(3, my, mx))


def _guess(samples: F32, few: int = LEAST_GUESSED) -> tuple[F64, F64]:
    """Median and the faint half's width, which no source reaches, of rows of samples; NaN where less than ``few``."""
    ordered = np.sort(samples, axis=1)  # NaN goes last
    count, row = np.isfinite(ordered).sum(axis=1), np.arange(len(ordered))
    middle = np.where(count >= few, ordered[row, np.minimum(count // 2, samples.shape[1] - 1)], np.nan)
    return middle.astype(float), (middle - ordered[row, (count * FAINT).astype(int)]).astype(float)


class _Sums(NamedTuple):
    """Of a histogram, up to each of its edges (BINS + 1,): pixels, and sums of their places and these squared, in bins
    from its middle."""

    pixels: F64
    first: F64
    second: F64


@inner
def _fill(samples: F32, middle: float, width: float, counts: NDArray[np.int32], out: _Sums) -> int:
    """Histogram and sums of a mesh; how many samples there are."""
    low, scale, top = np.float32(middle - BELOW * width), np.float32(STEPS / width), np.float32(BINS - 1)
    counts[:] = 0
    for i in range(len(samples)):
        place = min(max((samples[i] - low) * scale, np.float32(0)), top)
        # The last bin takes what is no number.
        counts[int(place) if samples[i] == samples[i] else BINS] += 1
    out.pixels[0] = out.first[0] = out.second[0] = 0.0
    for k in range(BINS):
        n, place = float(counts[k]), k + 0.5 - BELOW * STEPS
        out.pixels[k + 1] = out.pixels[k] + n
        out.first[k + 1] = out.first[k] + n * place
        out.second[k + 1] = out.second[k] + n * (place * place + 1 / 12)
    return len(samples) - int(counts[BINS])


@inner
def _until(sums: _Sums, place: float) -> tuple[float, float, float]:
    """The sums up to a place, in bins from the histogram's middle."""
    edge = min(max(place + BELOW * STEPS, 0.0), float(BINS))
    k = min(int(edge), BINS - 1)
    part, low = edge - k, k - BELOW * STEPS
    n = (sums.pixels[k + 1] - sums.pixels[k]) * part
    mean = low + 0.5 * part
    return sums.pixels[k] + n, sums.first[k] + n * mean, sums.second[k] + n * (mean * mean + part * part / 12)


@inner
def _place(sums: _Sums, count: float) -> float:
    """Where so many pixels lie below."""
    low, high = 0, BINS
    while high - low > 1:
        k = (low + high) // 2
        if sums.pixels[k] <= count:
            low = k
        else:
            high = k
    inside = sums.pixels[low + 1] - sums.pixels[low]
    return low - BELOW * STEPS + ((count - sums.pixels[low]) / inside if inside > 0 else 0.5)


@compiled
def _clip(samples: F32, middle: F64, width: F64, least: int, out: F64) -> None:
    """``clipped_moments`` of rows of samples into ``out`` (3, n), which is NaN; a row without width has no noise."""
    counts = np.empty(BINS + 1, np.int32)
    sums = _Sums(np.empty(BINS + 1), np.empty(BINS + 1), np.empty(BINS + 1))
    for m in range(len(samples)):
        if not width[m] > 0:
            count = 0
            for i in range(samples.shape[1]):
                count += samples[m, i] == samples[m, i]
            if count >= least and middle[m] == middle[m]:
                out[0, m], out[1, m], out[2, m] = middle[m], 0.0, 0.0
            continue
        total = _fill(samples[m], middle[m], width[m], counts, sums)
        if total < least:
            continue
        median = _place(sums, 0.5 * total)
        std, high, mean = median - _place(sums, FAINT * total), float(BINS), median
        for _ in range(CLIPPINGS):
            high = min(high, median + CLIP * std)
            below, above = _until(sums, median - CLIP * std), _until(sums, high)
            n = max(above[0] - below[0], 1.0)
            mean = (above[1] - below[1]) / n
            std = np.sqrt(max((above[2] - below[2]) / n - mean * mean, 0.0))
            median = _place(sums, 0.5 * (above[0] + below[0]))
        scale = width[m] / STEPS
        out[0, m], out[1, m], out[2, m] = middle[m] + median * scale, (mean - median) * scale, std / CLIPPED_STD * scale


class _Pieces(NamedTuple):
    """A natural cubic spline through mesh centres, straight beyond the outermost, along an axis of n pixels.

    ``start`` (n_pieces + 1,): first pixel of each piece; ``first`` its offset from the piece's anchor in meshes,
    ``step`` that of a pixel; ``cubic`` (n_pieces, 4, meshes): its coefficients from the meshes' values.
    """

    start: INT
    first: F64
    step: float
    cubic: F64


@lru_cache(maxsize=8)
def _pieces(n: int, meshes: int) -> _Pieces:
    if meshes == 1:
        cubic = np.zeros((1, 4, 1))
        cubic[0, 0] = 1.0
        return _Pieces(np.array([0, n]), np.zeros(1), 0.0, cubic)
    width = n / meshes
    centres = (np.arange(meshes) + 0.5) * width - 0.5
    spline = CubicSpline(np.arange(meshes), np.eye(meshes), bc_type="natural")
    cubic = np.zeros((meshes + 1, 4, meshes))
    cubic[1:-1] = spline.c[::-1].transpose(1, 0, 2)
    for piece, end in ((0, 0), (-1, meshes - 1)):
        cubic[piece, 0], cubic[piece, 1] = spline(end), spline(end, 1)
    start = np.concatenate([[0], np.ceil(centres).astype(np.int64), [n]])
    anchor = np.append(centres[0], centres)
    return _Pieces(start, (start[:-1] - anchor) / width, 1 / width, cubic)


def expand(grid: F64, shape: tuple[int, int], least: float = -np.inf) -> F32:
    """A map of pixels through values of meshes, nowhere below ``least``: natural cubic splines along both axes."""
    # The offset is added last: float32 weights times a large level would lose digits.
    offset = float(np.median(grid))
    down, across = _pieces(shape[0], grid.shape[0]), _pieces(shape[1], grid.shape[1])
    by_piece = np.einsum("pkm,mx->pkx", down.cubic, grid - offset)
    row = np.arange(shape[0])
    piece = np.searchsorted(down.start, row, side="right") - 1
    t = down.first[piece] + (row - down.start[piece]) * down.step
    powers = np.stack([np.ones_like(t), t, t * t, t * t * t], axis=1)
    values = np.einsum("jk,jkx->jx", powers, by_piece[piece])
    cubics = np.ascontiguousarray((values @ across.cubic.reshape(-1, grid.shape[1]).T), np.float32)
    out = np.empty(shape, np.float32)
    _fill_rows(cubics, across.start, across.first, across.step, np.float32(offset), np.float32(least), out)
    return out


@compiled
def _fill_rows(
    cubics: F32, start: INT, first: F64, step: float, offset: np.float32, least: np.float32, out: F32
) -> None:
    """Cubics (ny, 4 * n_pieces) of each row's pieces, plus an offset."""
    for j in range(len(out)):
        for p in range(len(first)):
            a, b, c, d = cubics[j, 4 * p], cubics[j, 4 * p + 1], cubics[j, 4 * p + 2], cubics[j, 4 * p + 3]
            line, t0, dt = out[j, start[p] : start[p + 1]], np.float32(first[p]), np.float32(step)
            for i in range(len(line)):
                t = t0 + dt * np.float32(i)
                value = a + t * (b + t * (c + t * d)) + offset
                line[i] = value if value > least else least
