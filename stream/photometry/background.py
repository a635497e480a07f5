"""Sky level and noise: the mode of each mesh of the image, smoothed and interpolated.

The estimator is SExtractor's (Bertin & Arnouts 1996, §4.1): in each mesh clip at 3 sigma around the median until
nothing changes, take ``2.5 median - 1.5 mean`` as the mode (the median where sources crowd the mesh), smooth
the meshes with a 3 x 3 median, interpolate with splines. Done on sorted samples of all meshes at once, so
that NaN and masked pixels cost nothing and need no filling.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import CubicSpline

from stream.core.compiled import compiled
from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import F32, U16, Background
from stream.photometry.extended import BLOCKS, block_excess, extended_blocks

# Mesh side, px: a few times the survey's halos of ordinary stars, small against moonlight gradients.
BOX = 128
# Samples of the whole image, and the fewest of one mesh (a side): 4096 pixels give the level to 0.02 sigma before
# smoothing; more only costs time. Small images are sampled fully.
ALL_SAMPLES, SAMPLES = 2_400_000, 64
# A mesh with fewer good samples than this takes its neighbours' level.
MIN_SAMPLES = 200
CLIP = 3.0
# A mesh keeps its own level with this part of its samples outside of galaxies.
LEAST_LEFT = 0.25
# What is left of a mesh's spread when its slope's part is taken off is this part of it at least.
LEAST_NOISE = 0.5
# Meshes further than this from their 3 x 3 median (robust sigma of such distances) are taken for contaminated.
OUTLIER = 3.0
# ... unless by less than this part of the noise, which no flux would notice.
TOLERANCE = 0.1
# Gaussian width, in meshes, of the local parabolas: noise as that of a 3 x 3 median, no bias in a gradient or bowl.
WIDTH = 1.0
# A Gaussian clipped at 3 sigma until it settles keeps this part of its standard deviation.
CLIPPED_STD = 0.9850
# Halos, ghosts and uneven response lie on top of a sky that is to be subtracted with them.
SMOOTH_BITS = int(Mask.HALO | Mask.GHOST | Mask.SPILLAGE | Mask.LOW_RESPONSE | Mask.HIGH_RESPONSE | Mask.CROSSTALK)
SKY_BAD_BITS = BAD_BITS & ~SMOOTH_BITS


def estimate_background(data: F32, mask: U16, box: int = BOX) -> Background:
    """Sky level and noise of an image.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        DN, sky in; NaN allowed.
    mask : ndarray, (ny, nx), uint16
        Mask bits; pixels with a defect are left out, smooth light (halos, ghosts) is part of the sky.
    box : int
        Mesh side, px.

    Returns
    -------
    Background
        ``level`` and ``rms`` are finite everywhere, also under masked pixels.

    Raises
    ------
    PhotometryError
        No mesh has enough usable pixels.
    """
    if data.ndim != 2 or data.shape != mask.shape or min(data.shape) < 8:
        raise PhotometryError(f"image {data.shape} and mask {mask.shape} must be equal and at least 8 x 8")
    samples = _mesh_samples(data, mask, box)
    moments = _clipped_moments(samples)
    if np.isnan(moments[0]).all():
        raise PhotometryError(
            "no mesh of the image has enough usable pixels for a sky level",
            usable=float(np.isfinite(samples).mean()),
        )
    level, rms = _levels(moments)
    if min(level.shape) >= 3:
        again = _without_extended(samples, level, rms, mask, moments)
        level, rms = (level, rms) if again is None else _levels(again)
    wy, wx = _weights(data.shape[0], level.shape[0]), _weights(data.shape[1], level.shape[1])
    level_map = _expand(level, wy, wx)
    rms_map = _expand(rms, wy, wx)
    np.maximum(rms_map, np.float32(rms.min()), out=rms_map)
    return Background(level_map, rms_map, float(np.median(level)), float(np.median(rms)))


Moments = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _levels(moments: Moments) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smoothed level and noise of the meshes from their median, skew and spread."""
    known = np.isfinite(moments[0])
    median, skew, rms = (_fill(m) for m in moments)
    tolerance = TOLERANCE * float(np.median(rms))
    level = _smooth(_mode(median, skew, rms), tolerance, known)
    return level, _smooth(_without_slope(rms, level), tolerance, known)


def _without_extended(
    samples: F32, level: NDArray[np.float64], rms: NDArray[np.float64], mask: U16, moments: Moments
) -> Moments | None:
    """Moments of the meshes without what is extended (``stream.photometry.extended``); None where nothing is.

    A mesh of which a part is left out is measured from the first sky, as far as that part's slope is concerned.
    """
    my, mx = level.shape
    at_blocks = _expand(level, _weights(my * BLOCKS, my), _weights(mx * BLOCKS, mx))
    found = extended_blocks(block_excess(samples, at_blocks, rms.astype(np.float32)), mask)
    hit = found.reshape(my, BLOCKS, mx, BLOCKS).any(axis=(1, 3))
    if not hit.any():
        return None
    ky, kx = samples.shape[2:]
    rows, columns = ((np.arange(k) * BLOCKS // k) for k in (ky, kx))
    i, j = np.nonzero(hit)
    y, x = (i[:, None] * BLOCKS + rows)[:, :, None], (j[:, None] * BLOCKS + columns)[:, None, :]
    slope = at_blocks[y, x] - level[i, j].astype(np.float32)[:, None, None]
    left = np.where(found[y, x], np.float32(np.nan), samples[i, j] - slope)
    again = _clipped_moments(left[None])
    out = tuple(m.copy() for m in moments)
    for old, new in zip(out, again, strict=True):
        old[i, j] = new[0]
    # Where less is left than tells a level the neighbours do: a mesh inside a galaxy.
    few = np.isfinite(left).mean(axis=(1, 2)) < LEAST_LEFT
    for old in out:
        old[i[few], j[few]] = np.nan
    return None if np.isnan(out[0]).all() else (out[0], out[1], out[2])


def without_sky(
    data: F32, background: Background, mask: U16, bits: int, *, clear: bool = False
) -> tuple[F32, NDArray[np.bool_]]:
    """An image without its sky, and which pixels are unusable: not finite, or with one of the mask's ``bits``.

    0 where it is not finite, with ``clear`` wherever it is unusable.
    """
    image, unusable = np.empty(data.shape, np.float32), np.empty(data.shape, bool)
    _take_off_sky(
        np.ascontiguousarray(data, np.float32).reshape(-1),
        np.ascontiguousarray(background.level).reshape(-1),
        np.ascontiguousarray(mask).reshape(-1),
        np.uint16(bits), clear, image.reshape(-1), unusable.reshape(-1),
    )  # fmt: skip
    return image, unusable


@compiled
def _take_off_sky(
    data: F32, level: F32, mask: U16, bits: np.uint16, clear: bool, image: F32, unusable: NDArray[np.bool_]
) -> None:
    for i in range(len(data)):
        value = data[i] - level[i]
        finite = abs(value) < np.float32(np.inf)
        good = finite and (mask[i] & bits) == 0
        unusable[i] = not good
        image[i] = value if good or (finite and not clear) else np.float32(0)


def _mesh_samples(data: F32, mask: U16, box: int) -> F32:
    """Evenly spread pixels of each mesh, (my, mx, ky, kx), NaN where unusable."""
    chosen = []
    counts = [max(round(n / box), 1) for n in data.shape]
    side = max(SAMPLES, int(np.sqrt(ALL_SAMPLES / (counts[0] * counts[1]))))
    for n, meshes in zip(data.shape, counts, strict=True):
        per_mesh = min(side, n // meshes)
        edges = np.linspace(0, n, meshes + 1)
        inside = (np.arange(per_mesh) + 0.5) / per_mesh
        chosen.append((edges[:-1, None] + inside * np.diff(edges)[:, None]).astype(int))
    rows, columns = chosen
    picked = np.take(data[rows.ravel()], columns.ravel(), axis=1).astype(np.float32, copy=False)
    bits = np.take(mask[rows.ravel()], columns.ravel(), axis=1)
    picked[(bits & np.uint16(SKY_BAD_BITS)) != 0] = np.nan
    picked[~np.isfinite(picked)] = np.nan
    (my, ky), (mx, kx) = rows.shape, columns.shape
    return np.ascontiguousarray(picked.reshape(my, ky, mx, kx).transpose(0, 2, 1, 3))


def _clipped_moments(samples: F32) -> Moments:
    """Median, mean - median and standard deviation of each mesh after clipping; NaN where too few are usable."""
    my, mx, ky, kx = samples.shape
    n = ky * kx
    ordered = np.sort(samples.reshape(-1, n), axis=1)  # NaN goes last
    row = np.arange(my * mx)
    low, high = np.zeros_like(row), np.isfinite(ordered).sum(axis=1)
    usable = high >= min(MIN_SAMPLES, n // 4 + 1)
    offset = np.where(high > 0, ordered[row, high // 2 - (high == n)], 0).astype(np.float32)
    ordered -= offset[:, None]  # float32 sums stay exact enough
    flat = np.append(ordered.reshape(-1), np.float32(0))
    squares = flat * flat
    mean: NDArray[np.floating] = np.zeros(len(row))
    median: NDArray[np.floating] = mean
    # First width from the faint half, which no source reaches.
    std = np.asarray(ordered[row, np.maximum(high // 2 - 1, 0)] - ordered[row, (high * 0.1587).astype(int)], float)
    for _ in range(6):
        bounds = [_rank(ordered, low * 0, high, median + k * CLIP * std, row) for k in (-1, 1)]
        if np.array_equal(bounds[0], low) and np.array_equal(bounds[1], high):
            break
        low, high = bounds[0], np.maximum(bounds[1], bounds[0])
        edges = np.stack([row * n + low, row * n + high], axis=1).ravel()
        count = np.maximum(high - low, 1)
        mean, square = (np.add.reduceat(v, edges)[::2] / count for v in (flat, squares))
        std = np.sqrt(np.maximum(square - mean**2, 0))
        middle = [np.clip((low + high - k) // 2, 0, n - 1) for k in (0, 1)]
        median = 0.5 * (ordered[row, middle[0]].astype(float) + ordered[row, middle[1]])
    figures = (median + offset, mean - median, std / CLIPPED_STD)
    median_map, skew_map, rms_map = (np.where(usable, f, np.nan).reshape(my, mx) for f in figures)
    return median_map, skew_map, rms_map


def _mode(median: NDArray[np.float64], skew: NDArray[np.float64], rms: NDArray[np.float64]) -> NDArray[np.float64]:
    """``2.5 median - 1.5 mean``, the skew smoothed over more meshes: most of the mode's noise would come from it."""
    crowded = np.abs(skew) > 0.3 * rms  # SExtractor's rule: the mean is no guide there
    smooth = ndimage.uniform_filter(ndimage.median_filter(skew, 3, mode="nearest"), 5, mode="nearest")
    return np.where(crowded, median, median - 1.5 * smooth)


def _without_slope(rms: NDArray[np.float64], level: NDArray[np.float64]) -> NDArray[np.float64]:
    """The noise of meshes without what a sloping sky (twilight, a halo) spreads over each: a twelfth of the square of
    its change across the mesh, as of any even spread."""
    change = sum(np.gradient(level, axis=axis) ** 2 for axis in (0, 1) if level.shape[axis] > 1)
    return np.sqrt(np.maximum(rms**2 - change / 12, (LEAST_NOISE * rms) ** 2))


def _rank(
    values: F32,
    low: NDArray[np.intp],
    high: NDArray[np.intp],
    bound: NDArray[np.float64],
    row: NDArray[np.intp],
) -> NDArray[np.intp]:
    """First index in [low, high] whose value is not below ``bound``, for each sorted row: binary search of all rows."""
    lo, hi = low.copy(), high.copy()
    while True:
        open_ = lo < hi
        if not open_.any():
            return lo
        middle = np.minimum((lo + hi) // 2, values.shape[1] - 1)
        below = values[row, middle] < bound
        lo = np.where(open_ & below, middle + 1, lo)
        hi = np.where(open_ & ~below, middle, hi)


def _fill(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Meshes without a value take the nearest one that has."""
    missing = np.isnan(grid)
    if not missing.any():
        return grid
    nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
    filled: NDArray[np.float64] = grid[tuple(nearest)]
    return filled


def _smooth(grid: NDArray[np.float64], tolerance: float, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Local parabolas through the ``known`` meshes, outliers replaced: no hill under a bright star, no step at the
    edge."""
    if min(grid.shape) < 3:
        return np.full_like(grid, np.median(grid)) if grid.size > 2 else grid
    # Odd reflection: a gradient that runs over the edge is no outlier there.
    around = np.lib.stride_tricks.sliding_window_view(np.pad(grid, 1, mode="reflect", reflect_type="odd"), (3, 3))
    median = np.median(around, axis=(2, 3))
    scatter = 1.4826 * np.median(np.abs(grid - median))
    steady = np.where(np.abs(grid - median) > max(OUTLIER * scatter, tolerance), median, grid)
    ny, nx = grid.shape
    padded = np.pad(np.stack([steady * known, known.astype(float)]), ((0, 0), (2, 2), (2, 2)))
    normal = np.zeros((ny, nx, 6, 6)) + 1e-6 * np.eye(6)  # a row of meshes alone determines no parabola
    right = np.zeros((ny, nx, 6))
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            weight = np.exp(-0.5 * (dx * dx + dy * dy) / WIDTH**2)
            value, inside = padded[:, 2 + dy : 2 + dy + ny, 2 + dx : 2 + dx + nx]
            term = np.array([1.0, dx, dy, dx * dx, dx * dy, dy * dy])
            normal += weight * inside[..., None, None] * np.outer(term, term)
            right += weight * value[..., None] * term
    return np.asarray(np.linalg.solve(normal, right[..., None])[..., 0, 0], np.float64)


@lru_cache(maxsize=8)
def _weights(n: int, meshes: int) -> F32:
    """Weights (n, meshes) of a natural cubic spline through mesh centres, straight beyond the outermost."""
    if meshes == 1:
        return np.ones((n, 1), np.float32)
    centres = (np.arange(meshes) + 0.5) * n / meshes - 0.5
    pixels = np.arange(n, dtype=float)
    inside = np.clip(pixels, centres[0], centres[-1])
    spline = CubicSpline(centres, np.eye(meshes), bc_type="natural")
    weights: F32 = (spline(inside) + (pixels - inside)[:, None] * spline(inside, 1)).astype(np.float32)
    return weights


def _expand(grid: NDArray[np.float64], wy: F32, wx: F32) -> F32:
    # The offset is added last: float32 weights times a large level would lose digits.
    offset = float(np.median(grid))
    out: F32 = (wy @ (grid - offset).astype(np.float32)) @ wx.T
    out += np.float32(offset)
    return out
