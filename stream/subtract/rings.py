"""What PSF models leave of saturated stars, ring by ring: the wings beyond their end, the step there, wings too bright.

Both images have such a step, in the same place whatever their seeing, so that neither is a convolution of the other:
kernels that match the PSFs ring on it. So the rings of the reference leave both images alike, wings being the
telescope's more than the air's; what the science image's rings have more (another fit, other air), and how they are
longer one way than the other (a trailed exposure has trailed wings), leaves that one alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.core.records import F32
from stream.photometry import Star

B1 = NDArray[np.bool_]
F64 = NDArray[np.float64]
INT = NDArray[np.int64]

REACH = 48  # px; the wings of a star of magnitude 8 are at 1 DN a pixel here, further out the background sees them
# Rings reach this many times the fourth root of the flux (wings fall as r^-4), and 24 px at least.
WINGS, LEAST_REACH = 1.1, 24
_LEAST_PIXELS = 6  # of a ring that has a median
_LEAST_RINGS = 8  # of a star whose rings leave
_OUTERMOST = 6  # rings whose level is the sky's
_MOST = 3.0  # sigma of a ring: what is further off has no say in its shape


def remove_rings(new: F32, reference: F32, bad: B1, stars: Sequence[Star]) -> None:
    """Subtract rings of 1 px width about stars, less the outermost ones' level, in place.

    The medians of the reference's from both images, then those of the difference, and its rings' second harmonics, from
    the science image. A crowd's other stars, in both images, count little in the latter; a transient is no ring and
    stays.

    Parameters
    ----------
    new, reference : ndarray, (ny, nx), float32
        On one grid and of one throughput, stars subtracted as models, no NaN.
    bad : ndarray of bool, (ny, nx)
        Pixels whose values do not count.
    stars : sequence of Star
        Their places (px) and fluxes, which say how far wings reach.
    """
    ny, nx = new.shape
    for star in stars:
        reach = int(np.clip(WINGS * max(star.flux, 0.0) ** 0.25, LEAST_REACH, REACH))
        y0, y1 = max(int(star.y) - reach, 0), min(int(star.y) + reach + 1, ny)
        x0, x1 = max(int(star.x) - reach, 0), min(int(star.x) + reach + 1, nx)
        if y0 >= y1 or x0 >= x1:
            continue
        mine, theirs = new[y0:y1, x0:x1], reference[y0:y1, x0:x1]
        dy, dx = np.arange(y0, y1, dtype=np.float32)[:, None], np.arange(x0, x1, dtype=np.float32)
        dy, dx = dy - np.float32(star.y), dx - np.float32(star.x)
        radius = np.sqrt(dx * dx + dy * dy)
        good = ~bad[y0:y1, x0:x1] & (radius < reach)
        ring = radius[good].astype(np.int64)
        known = np.bincount(ring, minlength=reach) >= _LEAST_PIXELS
        if known.sum() < _LEAST_RINGS:
            continue
        where = np.flatnonzero(known) + 0.5
        seen = theirs[good]
        common, more = (_medians(ring, values, known) for values in (seen, mine[good] - seen))
        profiles = [np.interp(radius, where, p - np.median(p[-_OUTERMOST:]), right=0.0) for p in (common, more)]
        theirs -= profiles[0].astype(np.float32)
        mine -= (profiles[0] + profiles[1]).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            waves = [np.nan_to_num(w / radius**2) for w in (dx * dx - dy * dy, 2 * dx * dy)]
        pair = _harmonics(ring, (mine - theirs)[good], [w[good] for w in waves], known)
        for wave, amplitude in zip(waves, pair, strict=True):
            mine -= wave * np.interp(radius, where, amplitude, right=0.0).astype(np.float32)


def _medians(ring: INT, values: F32, known: B1) -> F64:
    """Medians of the known rings."""
    bits = values.view(np.int32).astype(np.int64)
    # Floats in the order of their bits, those of negative ones turned round: one sort for rings and values.
    key = np.sort((ring << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF)) + (1 << 31))
    first = np.searchsorted(key, np.arange(len(known) + 1, dtype=np.int64) << 32)
    middle = (key[(first[:-1] + np.diff(first) // 2)[known]] & 0xFFFFFFFF) - (1 << 31)
    decoded = (middle ^ ((middle >> 31) & 0x7FFFFFFF)).astype(np.int32).view(np.float32)
    return np.asarray(decoded, np.float64)


def _harmonics(ring: INT, values: F32, waves: Sequence[F32], known: B1) -> tuple[F64, F64]:
    """Amplitudes of two waves in the known rings, least squares with a level, outliers left out."""
    n = len(known)
    spread = np.full(n, np.inf)
    spread[known] = 1.4826 * _medians(ring, np.abs(values), known)
    kept = np.abs(values) < _MOST * spread[ring]
    ring, v = ring[kept], values[kept].astype(np.float64)
    c, s = (w[kept].astype(np.float64) for w in waves)

    def total(weight: F64) -> F64:
        return np.asarray(np.bincount(ring, weight, n)[known], np.float64)

    one = np.ones_like(v)
    rows = [[total(a * b) for b in (one, c, s)] for a in (one, c, s)]
    normal = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2) + np.eye(3)  # a prior: waves of nothing
    found = np.linalg.solve(normal, np.stack([total(v), total(v * c), total(v * s)], axis=-1)[..., None])[..., 0]
    return np.asarray(found[:, 1], np.float64), np.asarray(found[:, 2], np.float64)
