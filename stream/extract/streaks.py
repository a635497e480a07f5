"""Trailed detections: objects and satellites that moved while the shutter was open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stream.core.records import F32, Difference, ScienceImage, Streak
from stream.extract.table import streak_candid
from stream.extract.trail import Line, TrailFit, fit_trail, trace

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class SeedRule(NamedTuple):
    """Clumps that may be part of a trail; at an FWHM of 2.5 px the noise of a quadrant has none to some tens."""

    threshold: float  # |S_corr| of the pixels that are joined
    min_pixels: int
    min_peak: float
    min_elongation: float


@dataclass(frozen=True, slots=True)
class StreakSettings:
    """What counts as a streak.

    ``seeds`` say which clumps of S_corr pixels start a line: short trails are one bright clump, long faint
    ones fall into pieces at 3 sigma but not at 2.5. ``min_trace`` is the least significance along the line
    that is worth a fit (``trail.trace``). ``min_snr`` is of the whole trail's flux: places,
    angles and lengths make some 10^9 trials a quadrant, so that noise reaches 6.3; 8 leaves room for noise
    that is not quite Gaussian.
    """

    seeds: tuple[SeedRule, ...] = (SeedRule(3.0, 14, 4.0, 1.6), SeedRule(2.5, 12, 3.3, 2.0))
    max_seeds: int = 400  # of each rule, the brightest: a badly subtracted quadrant must not cost minutes
    min_trace: float = 10.0
    min_length: float = 5.0  # px
    max_length: float = 300.0  # px: longer ones are satellites and have a mask bit of their own
    min_snr: float = 8.0
    max_clumpiness: float = 0.3  # bright trails leave some per cent, as the PSF is not a Gaussian
    max_streaks: int = 200
    negative: bool = False  # search the reference's trails too: a false-positive calibration


def find_streaks(science: ScienceImage, difference: Difference, settings: StreakSettings | None = None) -> list[Streak]:
    """Trails in a difference image.

    Clumps of significant pixels that are elongated start a line; the line is followed through the score as
    far as it carries, and a trail (a PSF drawn along a segment) is fitted to the difference.

    Parameters
    ----------
    science : ScienceImage
        For WCS, zero point and identity.
    difference : Difference
    settings : StreakSettings, optional

    Returns
    -------
    list of Streak
        Brightest first in S/N within a sign, positive first; ends ordered west to east (by RA). ``score`` is NaN:
        the classifier gives it. ``flux`` carries the sign of the difference, ``mag`` is of its size (NaN
        without zero point).
    """
    settings = settings or StreakSettings()
    streaks: list[Streak] = []
    for sign in (1, -1) if settings.negative else (1,):
        fits = _find(difference, sign, settings)
        streaks += [_record(science, fit, sign, row) for row, fit in enumerate(fits)]
    return streaks


@dataclass(frozen=True, slots=True)
class Clumps:
    """Groups of touching pixels: centroid (px), direction (rad), elongation, size, peak; brightest first."""

    x: F64
    y: F64
    angle: F64
    elongation: F64
    n: I64
    peak: F64


def find_clumps(scorr: F32, threshold: float, sign: int) -> Clumps:
    """Connected pixels (8 neighbours) with ``sign * scorr >= threshold``; work goes with their number only."""
    nx = scorr.shape[1]
    flat = np.ascontiguousarray(scorr).reshape(-1)
    pixels = np.flatnonzero(flat >= threshold) if sign > 0 else np.flatnonzero(flat <= -threshold)
    if not len(pixels):
        empty = np.zeros(0)
        return Clumps(empty, empty, empty, empty, empty.astype(np.int64), empty)
    y, x = np.divmod(pixels, nx)
    links = []
    for step in (1, nx - 1, nx, nx + 1):
        at = np.minimum(np.searchsorted(pixels, pixels + step), len(pixels) - 1)
        # Neighbours in memory are neighbours in the image, except around the end of a row.
        touch = (pixels[at] == pixels + step) & (np.abs(x[at] - x) <= 1)
        links.append(np.stack([np.flatnonzero(touch), at[touch]]))
    rows, columns = np.concatenate(links, axis=1)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(pixels), len(pixels)))
    count, label = connected_components(graph, directed=False)
    value = np.abs(flat[pixels]).astype(np.float64)
    weight = np.minimum(value, 10.0)  # a star on the trail must not turn it
    total = np.bincount(label, weight, count)
    mx, my = (np.bincount(label, weight * v, count) / total for v in (x, y))
    dx, dy = x - mx[label], y - my[label]
    cxx, cyy, cxy = (np.bincount(label, weight * v, count) / total for v in (dx * dx, dy * dy, dx * dy))
    mean, half = 0.5 * (cxx + cyy), np.hypot(0.5 * (cxx - cyy), cxy)
    # 1/12 px^2: the least variance a row of pixels has across itself.
    elongation = np.sqrt((mean + half + 1 / 12) / (np.maximum(mean - half, 0) + 1 / 12))
    peak = np.zeros(count)
    np.maximum.at(peak, label, value)
    order = np.lexsort((np.arange(count), -total))
    angle = 0.5 * np.arctan2(2 * cxy, cxx - cyy)
    n = np.bincount(label, minlength=count)
    return Clumps(mx[order], my[order], angle[order], elongation[order], n[order].astype(np.int64), peak[order])


def _find(difference: Difference, sign: int, settings: StreakSettings) -> list[TrailFit]:
    found: list[TrailFit] = []
    score = np.ascontiguousarray(difference.scorr if sign > 0 else -difference.scorr, np.float32)
    for x, y, angle in _seeds(difference.scorr, sign, settings):
        if len(found) >= settings.max_streaks:
            break
        if any(fit.line.distance(x, y) < 2 * difference.fwhm for fit in found):
            continue
        fit = _follow(difference, score, sign, (x, y, angle), settings)
        if fit is not None and _is_streak(fit, settings) and not _known(fit.line, found, difference.fwhm):
            found.append(fit)
    return sorted(found, key=lambda fit: (-fit.snr, fit.line.y1, fit.line.x1))


def _seeds(scorr: F32, sign: int, settings: StreakSettings) -> list[tuple[float, float, float]]:
    """Places and directions to start lines from, brightest first within each rule."""
    seeds: list[tuple[float, float, float]] = []
    for rule in settings.seeds:
        clumps = find_clumps(scorr, rule.threshold, sign)
        good = (
            (clumps.n >= rule.min_pixels) & (clumps.elongation >= rule.min_elongation) & (clumps.peak >= rule.min_peak)
        )
        best = np.flatnonzero(good)[: settings.max_seeds]
        seeds += zip(clumps.x[best].tolist(), clumps.y[best].tolist(), clumps.angle[best].tolist(), strict=True)
    return seeds


def _follow(
    difference: Difference, score: F32, sign: int, seed: tuple[float, float, float], settings: StreakSettings
) -> TrailFit | None:
    """Trace and fit from a seed; once more along the fitted line if that carries further."""
    fit: TrailFit | None = None
    reach = int(settings.max_length) + 20
    for _ in range(3):
        traced = trace(score, *seed, reach)
        if traced is None or traced[1] < settings.min_trace:
            return fit
        line = traced[0]
        if fit is not None and line.length < 1.15 * fit.line.length:
            return fit
        better = fit_trail(difference, sign, line)
        if better is None or (fit is not None and better.snr <= fit.snr):
            return fit
        fit = better
        line = fit.line
        seed = (
            0.5 * (line.x1 + line.x2),
            0.5 * (line.y1 + line.y2),
            math.atan2(line.y2 - line.y1, line.x2 - line.x1),
        )
    return fit


def _is_streak(fit: TrailFit, settings: StreakSettings) -> bool:
    """Whether a fit is bright, long and trail-like enough."""
    length = fit.line.length
    numbers = (length, fit.flux, fit.fluxerr, fit.sig_length, fit.chi2)
    return (
        all(math.isfinite(v) for v in numbers)
        and fit.flux > 0
        and fit.snr >= settings.min_snr
        and settings.min_length <= length <= settings.max_length
        and length >= 3 * fit.sig_length
        and fit.clumpiness <= settings.max_clumpiness
    )


def _known(line: Line, found: list[TrailFit], fwhm: float) -> bool:
    middle = 0.5 * (line.x1 + line.x2), 0.5 * (line.y1 + line.y2)
    return any(other.line.distance(*middle) < 2 * fwhm for other in found)


def _record(science: ScienceImage, fit: TrailFit, sign: int, row: int) -> Streak:
    line = fit.line
    ra, dec = science.astrometry.sky_of([line.x1, line.x2], [line.y1, line.y2])
    east = ((ra[1] - ra[0] + 180.0) % 360.0 - 180.0) * math.cos(math.radians(float(dec.mean())))
    north = dec[1] - dec[0]
    if east < 0 or (east == 0 and north < 0):
        ra, dec, east, north = ra[::-1], dec[::-1], -east, -north
    zeropoint = science.zeropoint
    # The zero point's map is in the flux, as for candidates.
    local = float(zeropoint.at(0.5 * (line.x1 + line.x2), 0.5 * (line.y1 + line.y2)))
    factor = 10 ** (-0.4 * (local - zeropoint.magzp)) if math.isfinite(local) else 1.0
    flux, fluxerr = factor * fit.flux, factor * fit.fluxerr
    return Streak(
        streak_candid(science.quadrant, sign > 0, row),
        float(ra[0] % 360.0), float(dec[0]), float(ra[1] % 360.0), float(dec[1]), line.length,
        math.degrees(math.atan2(east, north)) % 180.0, sign * flux, fluxerr,
        zeropoint.magzp - 2.5 * math.log10(flux), fit.snr, float("nan"), fit.sig_length, fit.sig_angle, fit.sig_cross,
    )  # fmt: skip
