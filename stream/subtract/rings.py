"""What PSF models leave of saturated stars, ring by ring: the wings beyond their end, the step there, wings too bright.

Both images have such a step, in the same place whatever their seeing, so that neither is a convolution of the other:
kernels that match the PSFs ring on it. So the rings of the reference leave both images alike, wings being the
telescope's more than the air's; what the science image's rings have more (another fit, other air), and how they are
longer one way than the other (a trailed exposure has trailed wings), leaves that one alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
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
_MOST = 3.0 * 1.4826  # median absolute deviations, 3 sigma: what is further off has no say in a ring's shape


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
    if not stars:
        return
    x, y, flux = np.ascontiguousarray(np.array([(star.x, star.y, star.flux) for star in stars], float).T)
    reach = np.clip(WINGS * np.maximum(flux, 0.0) ** 0.25, LEAST_REACH, REACH).astype(np.int64)
    _remove(new, reference, bad, x, y, reach)


class _Work(NamedTuple):
    """Memory for the pixels of one star's disc and for its rings.

    Pixels, in reading order: ``at`` in the flat image, ``ring`` (-1: does not count), ``places`` (3, n): radius and the
    cosine and sine of twice the angle. Their ``values`` ring by ring, where ring q's begin at ``first[q]``. ``figures``
    (rings, 14) of the rings: see ``_COMMON`` and the following, then sums of ``_harmonics``.
    """

    at: INT
    ring: INT
    places: F64
    values: F32
    first: INT
    end: INT
    figures: F64


# Of numpy's integers: of Python's own each would be a type of its own, for which all that takes it is compiled anew.
_COMMON, _MORE, _SPREAD_OF, _ALONG, _ACROSS, _SUMS = (np.int64(k) for k in range(6))


@compiled
def _remove(new: F32, reference: F32, bad: B1, xs: F64, ys: F64, reaches: INT) -> None:
    """``remove_rings``, star by star: what one leaves is what the next one's rings are made of."""
    whole = (2 * REACH + 1) ** 2
    work = _Work(
        np.empty(whole, np.int64), np.empty(whole, np.int64), np.empty((3, whole), np.float64),
        np.empty(whole, np.float32), np.empty(REACH + 1, np.int64), np.empty(REACH + 1, np.int64),
        np.empty((REACH, _SUMS + 9), np.float64),
    )  # fmt: skip
    mine, theirs = new.reshape(-1), reference.reshape(-1)
    for k in range(len(xs)):
        n = _sort_pixels(bad, xs[k], ys[k], reaches[k], work)
        last = _last_ring(reaches[k], work)
        if last >= 0:
            _take_profiles(mine, theirs, n, last, work)
            _take_waves(mine, theirs, n, last, work)


@inner
def _sort_pixels(bad: B1, x: float, y: float, reach: int, work: _Work) -> int:
    """The pixels of a disc and how many they are; ``first``: how many of them each ring has, one ring further on."""
    ny, nx = bad.shape
    n = 0
    for q in range(reach + 1):
        work.first[q] = 0
    for j in range(max(int(y) - reach, 0), min(int(y) + reach + 1, ny)):
        dy = j - y
        for i in range(max(int(x) - reach, 0), min(int(x) + reach + 1, nx)):
            dx = i - x
            square = dx * dx + dy * dy
            if square >= reach * reach:
                continue
            radius = math.sqrt(square)
            ring = -1 if bad[j, i] else int(radius)
            work.at[n], work.ring[n] = j * nx + i, ring
            work.places[0, n] = radius
            work.places[1, n] = (dx * dx - dy * dy) / square if square > 0 else 0.0
            work.places[2, n] = 2 * dx * dy / square if square > 0 else 0.0
            work.first[ring + 1] += 1 if ring >= 0 else 0
            n += 1
    return n


@inner
def _last_ring(reach: int, work: _Work) -> int:
    """The outermost ring that is known, -1 where too few are; ``first`` becomes what it is."""
    known, last = 0, -1
    for q in range(reach):
        if work.first[q + 1] >= _LEAST_PIXELS:
            known, last = known + 1, q
        work.first[q + 1] += work.first[q]
    return last if known >= _LEAST_RINGS else -1


@inner
def _is_known(work: _Work, ring: int) -> bool:
    return bool(work.first[ring + 1] - work.first[ring] >= _LEAST_PIXELS)


@inner
def _medians(some: F32, less: F32, what: np.int64, n: int, last: int, work: _Work) -> None:
    """Medians of the known rings into a figure: of ``some``, or of what it has more than ``less``, or of the size of
    that (``_SPREAD_OF``). Of an even number the upper middle one."""
    for q in range(last + 1):
        work.end[q] = work.first[q]
    for k in range(n):
        q = work.ring[k]
        if 0 <= q <= last:
            value = some[work.at[k]]
            if what != _COMMON:
                value -= less[work.at[k]]
            work.values[work.end[q]] = abs(value) if what == _SPREAD_OF else value
            work.end[q] += 1
    for q in range(last + 1):
        if _is_known(work, q):
            low, high = work.first[q], work.first[q + 1] - 1
            work.figures[q, what] = _selected(work.values, low, high, (low + high + 1) // 2)


@inner
def _selected(values: F32, low: int, high: int, wanted: int) -> float:
    """The value that would be at ``wanted`` if those from ``low`` to ``high`` were in order (Hoare's selection)."""
    while low < high:
        pivot = values[wanted]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if j < wanted:
            low = i
        if wanted < i:
            high = j
    return float(values[wanted])


@inner
def _bridge(what: np.int64, last: int, work: _Work) -> None:
    """A figure of rings that are not known from the known ones on both sides; within the first from that."""
    values, before = work.figures[:, what], -1
    for q in range(last + 1):
        if not _is_known(work, q):
            continue
        for between in range(before + 1, q):
            share = 1.0 if before < 0 else (between - before) / (q - before)
            values[between] = share * values[q] + (0.0 if before < 0 else (1 - share) * values[before])
        before = q


@inner
def _read(what: np.int64, last: int, radius: float, work: _Work) -> float:
    """A figure between the rings' middles; constant within the innermost, nothing beyond the last one's middle."""
    place = radius - 0.5
    if place > last:
        return 0.0
    low = min(int(max(place, 0.0)), last - 1)
    share = max(place - low, 0.0)
    return float((1 - share) * work.figures[low, what] + share * work.figures[low + 1, what])


@inner
def _off_sky(what: np.int64, last: int, work: _Work) -> None:
    """Take the median of the outermost known rings off a figure."""
    few, n, q = work.figures[:, _SUMS], 0, last
    while n < _OUTERMOST:
        if _is_known(work, q):
            at = n
            while at > 0 and few[at - 1] > work.figures[q, what]:
                few[at] = few[at - 1]
                at -= 1
            few[at] = work.figures[q, what]
            n += 1
        q -= 1
    sky = (few[(_OUTERMOST - 1) // 2] + few[_OUTERMOST // 2]) / 2
    for q in range(last + 1):
        work.figures[q, what] -= sky


@inner
def _take_profiles(mine: F32, theirs: F32, n: int, last: int, work: _Work) -> None:
    """The reference's rings off both images, the difference's off the science image."""
    _medians(theirs, theirs, _COMMON, n, last, work)
    _medians(mine, theirs, _MORE, n, last, work)
    for what in (_COMMON, _MORE):
        _off_sky(what, last, work)
        _bridge(what, last, work)
    for k in range(n):
        common = np.float32(_read(_COMMON, last, work.places[0, k], work))
        theirs[work.at[k]] -= common
        mine[work.at[k]] -= common + np.float32(_read(_MORE, last, work.places[0, k], work))


@inner
def _take_waves(mine: F32, theirs: F32, n: int, last: int, work: _Work) -> None:
    """The second harmonics of the difference's rings off the science image: least squares with a level and a prior of
    nothing, outliers left out."""
    _medians(mine, theirs, _SPREAD_OF, n, last, work)
    for q in range(last + 1):
        for term in range(_SUMS, _SUMS + 9):
            work.figures[q, term] = 0
    for k in range(n):
        q = work.ring[k]
        if q < 0 or q > last or not _is_known(work, q):
            continue
        row = work.figures[q]
        value = np.float64(mine[work.at[k]] - theirs[work.at[k]])
        if abs(value) < _MOST * row[_SPREAD_OF]:
            c, s = work.places[1, k], work.places[2, k]
            terms = (1.0, c, s, c * c, c * s, s * s, value, value * c, value * s)
            for term in range(9):
                row[_SUMS + term] += terms[term]
    for q in range(last + 1):
        if _is_known(work, q):
            _solve(work.figures[q])
    _bridge(_ALONG, last, work)
    _bridge(_ACROSS, last, work)
    for k in range(n):
        radius = work.places[0, k]
        c, s = _read(_ALONG, last, radius, work), _read(_ACROSS, last, radius, work)
        mine[work.at[k]] -= np.float32(work.places[1, k] * c + work.places[2, k] * s)


@inner
def _solve(row: F64) -> None:
    """Amplitudes of the two waves from a ring's sums (of 1, c, s, cc, cs, ss, v, vc, vs), a unit added to the normal
    matrix' diagonal: the level eliminated, then Cramer's rule."""
    n, c, s, v = row[_SUMS] + 1, row[_SUMS + 1], row[_SUMS + 2], row[_SUMS + 6]
    cc, cs, ss = row[_SUMS + 3] + 1 - c * c / n, row[_SUMS + 4] - c * s / n, row[_SUMS + 5] + 1 - s * s / n
    vc, vs = row[_SUMS + 7] - v * c / n, row[_SUMS + 8] - v * s / n
    determinant = cc * ss - cs * cs
    row[_ALONG], row[_ACROSS] = (vc * ss - vs * cs) / determinant, (vs * cc - vc * cs) / determinant
