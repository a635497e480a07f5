"""Galaxies that the sky must not eat: parts of an image where faint light lies together over many times the seeing.

Clipping knows a star by its pixels. The outer parts of a galaxy are below the noise pixel by pixel, and a mesh of the
sky takes them for its own level: an exponential galaxy of magnitude 16 and a half-light radius of 20 px loses a
seventh of its flux. Seen in blocks of some 16 px the same light stands out; what lies together in enough blocks is left
out with a margin, and the sky is looked at again without it. A bright star's aureole and a ghost are as wide, but that
is light under their neighbours, and stays in the sky: galaxies are told by being small, concentrated, and nowhere
saturated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.core.compiled import compiled
from stream.core.flags import Mask
from stream.core.records import F32, U16

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]

BLOCKS = 8  # a side of a mesh
WINSOR = 2.0  # sigma of the sky: a star counts for no more than this in each of its pixels
THRESHOLD = 3.0  # robust sigma of the blocks, each the mean of 3 x 3
# Of what is more than a few stars side by side, and of what is no structure of the sky itself (nebulae, halos).
LEAST_BLOCKS, LARGEST = 12, 6.0  # blocks; blocks of the radius of a disc of that area
# Light within half that radius over that further out, in the mean: 3 to 6 for an exponential disc, 1.4 for a ghost.
CONCENTRATION = 2.0
MARGIN = 0.7  # of that radius, and one block: half of a galaxy's light lies in less, all but 3 % within it


def block_excess(samples: F32, level: F32, rms: F32) -> F64:
    """Mean of samples over a level in each block, in units of the noise; NaN where a block has none.

    Parameters
    ----------
    samples : ndarray, (my, mx, ky, kx), float32
        Pixels of meshes, NaN where unusable.
    level : ndarray, (my * 8, mx * 8), float32
        At the blocks' middles.
    rms : ndarray, (my, mx), float32
    """
    my, mx, ky, kx = samples.shape
    out = np.empty((my * BLOCKS, mx * BLOCKS), np.float32)
    edges = [np.linspace(0, k, BLOCKS + 1).astype(np.int64) for k in (ky, kx)]
    _excess(samples, level, np.maximum(rms, np.float32(1e-9)), edges[0], edges[1], np.float32(WINSOR), out)
    return out.astype(float)


@compiled
def _excess(
    samples: F32,
    level: F32,
    rms: F32,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    winsor: np.float32,
    out: F32,
) -> None:
    my, mx = samples.shape[:2]
    blocks = len(rows) - 1
    for i in range(my):
        for j in range(mx):
            scale = np.float32(1) / rms[i, j]
            for a in range(blocks):
                for b in range(blocks):
                    at = level[i * blocks + a, j * blocks + b]
                    total, count = np.float32(0), 0
                    for y in range(rows[a], rows[a + 1]):
                        for x in range(columns[b], columns[b + 1]):
                            value = (samples[i, j, y, x] - at) * scale
                            if value == value:
                                total += min(max(value, -winsor), winsor)
                                count += 1
                    out[i * blocks + a, j * blocks + b] = total / np.float32(count) if count else np.float32(np.nan)


def extended_blocks(excess: F64, mask: U16) -> BOOL:
    """Blocks that belong to something extended, or lie within the margin around it.

    ``excess`` (rows, columns) as ``block_excess`` has it; ``mask`` (ny, nx) of the image, for what is saturated.
    """
    known = np.isfinite(excess)
    covered = ndimage.uniform_filter(known.astype(float), 3, mode="nearest")
    smooth = ndimage.uniform_filter(np.where(known, excess, 0.0), 3, mode="nearest") / np.maximum(covered, 1 / 9)
    # Blocks with less than a third of their surroundings say nothing.
    usable = covered > 1 / 3
    out = np.zeros(excess.shape, bool)
    if not usable.any():
        return out
    centre = float(np.median(smooth[usable]))
    scatter = 1.4826 * float(np.median(np.abs(smooth[usable] - centre)))
    labels, n = ndimage.label(usable & (smooth > centre + THRESHOLD * scatter) & (scatter > 0))
    if not n:
        return out
    size = np.bincount(labels.ravel(), minlength=n + 1)
    radius = np.sqrt(size / np.pi)
    places = ndimage.find_objects(labels)
    per_block = mask.shape[0] / excess.shape[0], mask.shape[1] / excess.shape[1]
    for k in np.flatnonzero((size[1:] >= LEAST_BLOCKS) & (radius[1:] <= LARGEST)) + 1:
        place = places[k - 1]
        pixels = tuple(slice(int(s.start * p), int(np.ceil(s.stop * p))) for s, p in zip(place, per_block, strict=True))
        inside = labels[place] == k
        if not _concentrated(inside, smooth[place] - centre) or (mask[pixels] & np.uint16(Mask.SATURATED)).any():
            continue
        grow = int(np.ceil(MARGIN * radius[k])) + 1
        around = tuple(slice(max(s.start - grow, 0), s.stop + grow) for s in place)
        away = ndimage.distance_transform_edt(labels[around] != k)
        out[around] |= away <= MARGIN * radius[k] + 1
    return out


def _concentrated(inside: BOOL, light: F64) -> bool:
    """Whether the light of a region falls from its centre as a galaxy's does."""
    weight = np.where(inside, light, 0.0)
    y, x = (np.arange(n, dtype=float) for n in inside.shape)
    cy, cx = (float((weight.sum(axis=1 - a) * c).sum() / weight.sum()) for a, c in ((0, y), (1, x)))
    core = np.hypot(y[:, None] - cy, x - cx) < 0.5 * np.sqrt(inside.sum() / np.pi)
    within, beyond = inside & core, inside & ~core
    if not within.any() or not beyond.any():
        return False
    return bool(light[within].mean() > CONCENTRATION * light[beyond].mean())
