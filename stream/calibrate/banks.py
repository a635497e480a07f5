"""Filters for the stars of an image: how sharp they are at any place is learned from the image's own bright peaks.

How sharp a star can be decides which filters (``sharpness``) tell particles from stars, and it differs over a quadrant:
focus and guiding draw stars out by several percent from one corner to another. Filters for the sharpest corner would be
blind everywhere else: at 1.5 px seeing a hit of ten sigma loses a fifth of its evidence by 5 % in the stars' width, and
half of such hits with it. So the answer of each bright peak to the filters of a width is fitted by a surface over the
image, and a place gets the widest filters whose surface says that stars there hardly excite them.

Whatever still excites a filter (stars drawn out along one direction) is taken off the weight of its middle pixel. What
is left is a model error of a few percent of a star's peak, and counts as noise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.sharpness import CENTRE, WIDTHS, filters, star
from stream.core.records import F32

MIN_PEAKS, MAX_PEAKS = 10, 2000  # peaks that are used; with fewer the narrowest filters are taken
MIN_SURFACE = 60  # peaks that a surface (of six numbers) wants; with fewer one width is for the whole image ...
SHARPER = 80.0  # ... at which so many percent of the peaks answer less than ANSWER: stars that are sharper are few
ANSWER = 0.02  # a filter's answer over the peak that stars may give: what is left to tune is little
# A filter's answer over the peak, beyond which a bright peak is a hit: at any seeing, and at that of the place.
NEVER_STAR, NO_STAR = 0.04, 0.12
# Percentile of the stars' answers that becomes zero, and how far that may sharpen a filter where stars answer less.
TUNED, LOOSEST = 99.5, -0.06
# Charge is followed so far down (px): where stars are narrow, less of a hit is a peak with evidence, and less of a star
# lies beside it.
DEPTH, DEPTH_WIDE, WIDE = 4, 2, 1.9
# Evidence (sigma of a filter) that makes a hit. Where stars are nearly as sharp as particles a hit has less of it, and
# more stars are risked: one in some thousand.
CERTAIN, CERTAIN_NARROW, NARROW = 3.05, 2.6, 1.58
BESIDE, BESIDE_NARROW = 0.5, -0.5  # the same of a peak beside a hit, where hardly a star lies

Index = NDArray[np.intp]


class Bank(NamedTuple):
    """Filters (n, 25), how many of them, the first, are of thin shapes, and the profile (25,; 1 in the middle) of the
    star that they are made for; how far (px) charge is followed downhill; the evidence that makes a bright hit, and
    that with which a peak belongs to the hit beside it."""

    filters: F32
    thin: int
    profile: F32
    depth: int
    certain: float
    beside: float


class Banks(NamedTuple):
    """Banks from the sharpest stars' to the widest's, and surfaces (n - 1, 6): the answers of the image's stars to each
    but the first, which is for places where all of them are ``ANSWER`` or more."""

    banks: tuple[Bank, ...]
    surfaces: F32

    def at(self, place: F32) -> Index:
        """Which bank is for the stars at places (n, 2; y and x from -1 to 1)."""
        if not len(self.surfaces):
            return np.zeros(len(place), np.intp)
        return np.asarray(np.count_nonzero(_terms(place) @ self.surfaces.T < ANSWER, axis=1))


def own_banks(peaks: F32, place: F32) -> Banks:
    """Filters for an image.

    Parameters
    ----------
    peaks : ndarray, (n, 25), float32
        Windows of its bright peaks over the sky, 1 in the middle, without defects; hits may be among them.
    place : ndarray, (n, 2), float32
        Where they lie, y and x from -1 to 1.
    """
    thinned = slice(None, None, 1 + len(peaks) // MAX_PEAKS)
    peaks, place = peaks[thinned], place[thinned]
    wide = _answers(peaks, 0) < NEVER_STAR
    peaks, place = peaks[wide], place[wide]
    none = np.empty((0, 6), np.float32)
    if len(peaks) < MIN_PEAKS:  # nothing is known of the stars: no risk is taken
        return Banks((_tuned(peaks, 0)._replace(certain=CERTAIN, beside=BESIDE),), none)
    if len(peaks) < MIN_SURFACE:
        return Banks((_tuned(peaks, _widest(peaks, SHARPER)),), none)
    terms = _terms(place)
    first = _widest(peaks, 50.0)
    surfaces: dict[int, F32] = {}
    for number in range(first + 1, len(WIDTHS)):  # wider, as long as that is good for the stars of some place
        surfaces[number] = _surface(terms, _answers(peaks, number))
        if np.count_nonzero(terms @ surfaces[number] < ANSWER) < MIN_PEAKS:
            del surfaces[number]
            break
    while first > 0:  # and narrower, until that is good for all
        surface = _surface(terms, _answers(peaks, first))
        if (terms @ surface).max() < ANSWER:
            break
        surfaces[first] = surface
        first -= 1
    numbers = [first, *sorted(surfaces)]
    stacked = np.array([surfaces[number] for number in numbers[1:]], np.float32).reshape(-1, 6)
    chosen = np.count_nonzero(terms @ stacked.T < ANSWER, axis=1)
    mine = (peaks[chosen == k] for k in range(len(numbers)))
    tuned = (_tuned(own if len(own) >= MIN_PEAKS else peaks, n) for own, n in zip(mine, numbers, strict=True))
    return Banks(tuple(tuned), stacked)


def _widest(peaks: F32, percentile: float) -> int:
    """Number of the widest filters that this percentage of the peaks answers less than ``ANSWER``."""
    low, high = 0, len(WIDTHS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.percentile(_answers(peaks, middle), percentile) < ANSWER else (low, middle)
    return low


def _answers(peaks: F32, number: int) -> F32:
    """The strongest answer of each peak to the filters of a width."""
    return np.asarray((peaks @ filters(WIDTHS[number])[0].T).max(axis=1))


def _terms(place: F32) -> F32:
    """A quadratic surface's terms (n, 6) at places."""
    y, x = place[:, 0], place[:, 1]
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)


def _surface(terms: F32, answers: F32) -> F32:
    """A surface through answers; blends, galaxies (less) and hits (more) clipped away."""
    use = np.ones(len(answers), bool)
    found = np.zeros(6, np.float32)
    for _ in range(4):
        found = np.linalg.lstsq(terms[use], answers[use], rcond=None)[0]
        off = answers - terms @ found
        middle = np.median(off)
        use = np.abs(off - middle) < 3 * 1.4826 * np.median(np.abs(off - middle)) + 1e-4
    return np.asarray(found, np.float32)


def _tuned(peaks: F32, number: int) -> Bank:
    """Filters of a width, with what these peaks still answer taken off."""
    width = WIDTHS[number]
    original, thin = filters(width)
    bank = original.copy()
    answers = peaks @ original.T
    answers = answers[answers.max(axis=1) < NO_STAR]
    if len(answers) >= MIN_PEAKS:
        bank[:, CENTRE] -= np.maximum(np.percentile(answers, TUNED, axis=0), LOOSEST).astype(np.float32)
    pixels = star(0.0, 0.0, width)
    profile = np.asarray(pixels / pixels[CENTRE], np.float32)
    certain, beside = (CERTAIN, BESIDE) if width > NARROW else (CERTAIN_NARROW, BESIDE_NARROW)
    return Bank(bank, thin, profile, DEPTH if width < WIDE else DEPTH_WIDE, certain, beside)
