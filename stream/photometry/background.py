"""Sky level and noise: the mode of each mesh of the image, smoothed and interpolated.

The estimator is SExtractor's (Bertin & Arnouts 1996, §4.1): in each mesh clip at 3 sigma around the median until
nothing changes, take ``2.5 median - 1.5 mean`` as the mode (the median where sources crowd the mesh), smooth
the meshes with a 3 x 3 median, interpolate with splines. ``stream.photometry.meshes`` has the loops over pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.core.compiled import compiled
from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import F32, U16, Background
from stream.photometry.extended import BLOCKS, block_excess, extended_blocks
from stream.photometry.meshes import Moments, clipped_moments, expand, mesh_samples

# Mesh side, px: a few times the survey's halos of ordinary stars, small against moonlight gradients.
BOX = 128
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
# Halos, ghosts and uneven response lie on top of a sky that is to be subtracted with them.
SMOOTH_BITS = int(Mask.HALO | Mask.GHOST | Mask.SPILLAGE | Mask.LOW_RESPONSE | Mask.HIGH_RESPONSE | Mask.CROSSTALK)
SKY_BAD_BITS = BAD_BITS & ~SMOOTH_BITS


def estimate_background(data: F32, mask: U16, box: int = BOX, *, taken_off: F32 | None = None) -> Background:
    """Sky level and noise of an image.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        DN, sky in; NaN allowed.
    mask : ndarray, (ny, nx), uint16
        Mask bits; pixels with a defect are left out, smooth light (halos, ghosts) is part of the sky.
    box : int
        Mesh side, px.
    taken_off : ndarray, (ny, nx), float32, optional
        What was taken off the data and belongs to the sky.

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
    samples = mesh_samples(data, mask, box, SKY_BAD_BITS, taken_off)
    moments = clipped_moments(samples)
    if np.isnan(moments[0]).all():
        raise PhotometryError(
            "no mesh of the image has enough usable pixels for a sky level",
            usable=float(np.isfinite(samples).mean()),
        )
    level, rms = _levels(moments)
    if min(level.shape) >= 3:
        again = _without_extended(samples, level, rms, mask, moments)
        level, rms = (level, rms) if again is None else _levels(again)
    shape = (data.shape[0], data.shape[1])
    level_map, rms_map = expand(level, shape), expand(rms, shape, float(rms.min()))
    return Background(level_map, rms_map, float(np.median(level)), float(np.median(rms)))


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
    at_blocks = expand(level, (my * BLOCKS, mx * BLOCKS))
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
    again = clipped_moments(left[None])
    out = Moments(*(m.copy() for m in moments))
    for old, new in zip(out, again, strict=True):
        old[i, j] = new[0]
    # Where less is left than tells a level the neighbours do: a mesh inside a galaxy.
    few = np.isfinite(left).mean(axis=(1, 2)) < LEAST_LEFT
    for old in out:
        old[i[few], j[few]] = np.nan
    return None if np.isnan(out.median).all() else out


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


@compiled
def move_sky(old: F32, new: F32, image: F32, residual: F32) -> None:
    """Images (n,) without the ``old`` sky become images without the ``new`` one."""
    for i in range(len(image)):
        more = new[i] - old[i]
        image[i] -= more
        residual[i] -= more


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
