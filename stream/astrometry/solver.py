"""From a list of detections and a rough pointing to a trusted WCS, or a refusal.

The way: (1) both lists go into the plane of the first guess; (2) the brightest of both vote for an offset, for
every rotation and scale the telescope may have; (3) a hypothesis grows: nearest pairs, robust polynomial fit,
more stars, smaller radius, higher degree; (4) it is believed only if so many pairs cannot be chance and if it
is a camera that could exist; (5) the final TPV fit about the true image centre.

A wrong solution that passes is the worst outcome here: everything downstream would believe it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.astrometry.fit import Fit, cell_counts, degree_allowed, fit_map
from stream.astrometry.lists import (
    MIN_FIT_SNR,
    Catalogue,
    Frame,
    Stars,
    area_ratio,
    catalogue_near,
    frame_of,
    spread_order,
    usable_stars,
)
from stream.astrometry.match import Candidate, chance_rate, log_chance, nearest_pairs, search_grid, vote
from stream.astrometry.solution import Pairs, tie
from stream.astrometry.tpv import MAX_DEGREE, terms
from stream.core.errors import AstrometryError
from stream.core.records import Astrometry, Table

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# How far the first guess may be off. Real nights: up to 0.055 deg of offset, 0.1 deg of rotation; the contract
# is 4 arcmin, 0.3 deg and 1 %, searched with room to spare. An equatorial telescope that points elsewhere in right
# ascension is turned by the meridians' convergence too: nothing at the equator, a degree at declination 85.
REACH_ARCSEC = 5.2 * 60.0
CAMERA_ROTATION, REACH_ROTATION, LARGEST_REACH = math.radians(0.3), math.radians(0.4), math.radians(1.5)
REACH_SCALE = 0.012
# A camera that could exist: what a solution may differ from the guess by. Beyond the reach by the fit's freedom.
MORE_ROTATION = math.radians(0.2)
MAX_SCALE = 0.016
MAX_SHEAR = 0.004
MAX_DISTORTION_PX = 12.0  # non-linear part at the corners; optics have 3
# Believed at most this probability of chance (log10), all hypotheses counted, and at least so many pairs.
# Matches of wrong skies stay above -3 (tests); true ones with a dozen stars lie below -15.
LOG_CHANCE_LIMIT = -9.0
MIN_PAIRS = 8
# Residuals of true pairs (px, per axis): some hundredths; more where stars are too few to fit the distortion.
# A match that is right in the core of a cluster and nowhere else has more than half a pixel.
MAX_RMS_PX = 0.4
MAX_RMS_FEW_PX = 1.5
FEW_PAIRS = 60
# A cell of a 3 x 3 grid is asked whether it matches if it has so many stars; so large a share must.
MIN_CELL_STARS = 8
MIN_CELL_SHARE = 2 / 3
# Evenly spread, more do not bring the map nearer than a fiftieth of a pixel; ``refine`` takes all.
MAX_FIT_STARS = 800
LONGEST_LIST = 1500  # of detections that vote
DEEPER = 1.5  # catalogue stars a detection that are looked at, so that nearly all of them have their own among them
DEEPEST = 0.95  # share of the fitted stars whose rank counts for that: a spoilt corner has faint ones only
CLEAR_PEAK = 20.0  # Poisson sigma: chance peaks of a whole search stay below 8
# Hypotheses from lists longer than this product come too late to be of use to anybody (over a second).
MAX_VOTES = 3_000_000
# Chance pairs of a catalogue denser than this many stars in the circle would outnumber true ones.
MAX_STARS_IN_CIRCLE = 0.3


@dataclass(frozen=True, slots=True)
class Match:
    """A grown hypothesis: which stars pair with which catalogue entries, and the fitted map (px to px)."""

    stars: Stars
    catalogue: Catalogue
    i: I64
    j: I64
    fit: Fit
    log_chance: float
    n_catalog: int
    rate: float  # chance that one star pairs by chance


def solve(detections: Table, gaia: Table, guess: WCS, jd_mid: float, shape: tuple[int, int]) -> Astrometry:
    """Tie an image to Gaia.

    Parameters
    ----------
    detections : structured array
        ``x``, ``y`` (px, first is 0), ``flux`` and/or ``snr``, optionally ``flags`` (mask bits); spurious,
        saturated and extended ones may be among them.
    gaia : structured array, GAIA_DTYPE
        Stars around the image, reaching at least 5 arcmin beyond it.
    guess : WCS
        Good to 4 arcmin, 0.3 deg of rotation, 1 % of scale; the parity is believed.
    jd_mid : float
        UTC Julian date of mid-exposure: Gaia is moved there (proper motion and parallax).
    shape : (ny, nx)
        Image shape.

    Returns
    -------
    Astrometry
        TPV about the image centre (``CRPIX`` there). ``rms_*`` over the fitted stars.

    Raises
    ------
    AstrometryError
        Nothing to match, or no hypothesis convinces; ``context`` has n_detections, n_gaia, n_matched,
        log_chance of the best one.
    """
    if not math.isfinite(jd_mid):
        raise AstrometryError("the time of mid-exposure is not known: no place of a moving star either")
    frame = frame_of(guess, shape)
    if len(gaia) == 0:
        raise AstrometryError(
            f"the Gaia catalogue has no star near ra {frame.ra0:.4f}, dec {frame.dec0:+.4f}: import that part of "
            "the sky with `ztf-stream catalog import gaia FILE`",
            n_detections=len(detections), n_gaia=0, n_matched=0, log_chance=0.0,
        )  # fmt: skip
    scale = math.sqrt(abs(float(np.linalg.det(frame.jacobian)))) * 3600.0
    reach = REACH_ARCSEC / scale
    stars = usable_stars(detections, shape)
    fitted = _fit_ranks(stars, frame)
    margin = (REACH_SCALE + reach_rotation(frame.dec0)) * frame.half_diagonal
    deepest = _depth(area_ratio(frame, reach + margin), max(_rank_asked(stars), _deepest(fitted)))
    catalogue = catalogue_near(gaia, frame, jd_mid, reach + margin, deepest)
    best: Match | None = None
    if len(stars) >= MIN_PAIRS and len(catalogue) >= MIN_PAIRS:
        for match in _hypotheses(stars, catalogue, frame, reach, fitted):
            if best is None or match.log_chance < best.log_chance:
                best = match
            if convincing(match, frame):
                return _finish(match, frame, shape)
    raise AstrometryError(
        f"no trustworthy match: {len(stars)} usable detections, {catalogue.n_around} Gaia stars around, "
        f"{0 if best is None else len(best.i)} paired at best (log10 of chance "
        f"{0.0 if best is None else best.log_chance:.1f}, needed {LOG_CHANCE_LIMIT:.0f}): wrong pointing, clouds or "
        "trailed stars",
        n_detections=len(stars),
        n_gaia=catalogue.n_around,
        n_matched=0 if best is None else len(best.i),
        log_chance=0.0 if best is None else round(best.log_chance, 2),
    )


def reach_rotation(dec: float) -> float:
    """Largest rotation (rad) that is searched at a declination (deg)."""
    convergence = math.radians(REACH_ARCSEC / 3600.0) * abs(math.tan(math.radians(dec)))
    return min(max(REACH_ROTATION, CAMERA_ROTATION + convergence), LARGEST_REACH)


def _hypotheses(stars: Stars, catalogue: Catalogue, frame: Frame, reach: float, fitted: I64) -> Iterator[Match]:
    """Grown hypotheses, the most likely first; brightest stars first, then deeper lists."""
    grid = search_grid(frame.half_diagonal, reach_rotation(frame.dec0), REACH_SCALE)
    for few, some in _levels(stars, catalogue, frame):
        log_trials = math.log10(len(grid) * (2 * reach / 5.0) ** 2)
        # Most images are turned by little, where the grid begins: a clear peak there spares the rest of it.
        for enough in (CLEAR_PEAK, math.inf):
            candidates = vote(few.p, some.u, reach, grid, enough=enough)
            for candidate in candidates:
                match = _grow(candidate, (few, some), (stars, catalogue, fitted), frame, log_trials)
                if match is not None:
                    yield match
            if not candidates or candidates[0].score < CLEAR_PEAK:
                break  # that was all of it


def _depth(ratio: float, rank: int) -> int:
    """How many catalogue stars, in an area so many times the image's, hold the own of a detection of that rank."""
    return math.ceil(DEEPER * ratio * (rank + 20))


def _rank_asked(stars: Stars) -> int:
    """The deepest rank in brightness that ``_levels`` looks at."""
    return max(int(np.flatnonzero(stars.good)[:500].max(initial=0)) + 1, LONGEST_LIST)


def _deepest(ranks: I64) -> int:
    """Rank that nearly all of these have, whatever stars (saturated ones, mostly) were left out between them."""
    return int(np.quantile(ranks, DEEPEST)) + 1 if len(ranks) else 0


def _levels(stars: Stars, catalogue: Catalogue, frame: Frame) -> Iterator[tuple[Stars, Catalogue]]:
    """Pairs of lists of like depth to vote with.

    First the brightest of all (saturated ones included: their rank in brightness is right even where their
    place is off by a pixel or two), then trusted ones at their own depth, then the brightest of every part of
    the image (no trail or cluster outvotes the rest), then ever more.
    """
    # 1.3: colours and saturation shuffle the order between the bands.
    per_star = 1.3 * catalogue.area_ratio
    trusted = np.flatnonzero(stars.good)
    evenly = spread_order(stars.p, frame.half)
    for index, depth in (
        (np.arange(len(stars))[:150], 150),
        (trusted[:150], int(trusted[:150].max(initial=0)) + 1),
        (evenly[:200], 200),
        (trusted[:500], int(trusted[:500].max(initial=0)) + 1),
        (evenly[:LONGEST_LIST], LONGEST_LIST),
    ):
        if len(index) < MIN_PAIRS:
            continue
        # 20 more: a short list is no sample of a brightness limit.
        some = catalogue.brightest(math.ceil(per_star * (min(depth, len(stars)) + 20)))
        if len(index) * len(some) <= MAX_VOTES:
            yield stars[np.sort(index)], some


def _grow(
    candidate: Candidate,
    voters: tuple[Stars, Catalogue],
    everything: tuple[Stars, Catalogue, I64],
    frame: Frame,
    log_trials: float,
) -> Match | None:
    """Refine a hypothesis with ever more stars, those of the given ranks; None as soon as it falls apart."""
    stars, catalogue = voters
    predicted = stars.p @ candidate.matrix.T + candidate.shift
    fit = _pair_and_fit(stars, catalogue, predicted, frame, 1, 10.0)
    for degree, radius in ((1, 7.0), (2, 5.0), (2, 4.0)):
        if fit is None:
            return None
        fit = _pair_and_fit(stars, catalogue, _map(fit, stars, frame), frame, degree, radius)
    if fit is None:
        return None
    predicted = _map(fit, stars, frame)
    i, _, _, rate, _ = _pairs(stars, catalogue, predicted, frame, 4.0)
    # Far below certainty, far above what most wrong offsets reach: spares the long way for those.
    if log_chance(len(stars), len(i), rate, 3, 0.0) > -3.0:
        return None
    stars, catalogue, fitted = everything
    for share, degree, radius in ((4, 3, 4.0), (1, 4, 3.0)):
        ranks = fitted[: max(len(fitted) // share, min(len(fitted), 300))]
        part = stars[ranks]
        depth = catalogue.brightest(_depth(catalogue.area_ratio, _deepest(ranks)))
        predicted = _map(fit, part, frame)
        next_fit = _pair_and_fit(part, depth, predicted, frame, degree, radius)
        if next_fit is None:
            return None
        fit = next_fit
    return _settle(part, depth, fit, frame, log_trials)


def _settle(stars: Stars, catalogue: Catalogue, fit: Fit, frame: Frame, log_trials: float) -> Match | None:
    """Last rounds at the radius that the residuals themselves ask for."""
    for _ in range(2):
        kept = np.hypot(fit.residuals[fit.used, 0], fit.residuals[fit.used, 1])
        radius = float(np.clip(4.0 * np.median(kept) / 1.1774 + 0.2, 0.6, 3.0))
        next_fit = _pair_and_fit(stars, catalogue, _map(fit, stars, frame), frame, MAX_DEGREE, radius)
        if next_fit is None:
            return None
        fit = next_fit
    i, j, _, rate, n_inside = _pairs(stars, catalogue, _map(fit, stars, frame), frame, radius)
    chance = log_chance(len(stars), len(i), rate, len(fit.coefficients), log_trials)
    return Match(stars, catalogue, i, j, fit, chance, n_inside, rate)


def _fit_ranks(stars: Stars, frame: Frame) -> I64:
    """Ranks in brightness of the stars worth fitting, evenly spread ones first: trusted, S/N above the limit; lower
    where that leaves few."""
    keep = stars.good & (stars.snr >= MIN_FIT_SNR)
    if np.count_nonzero(keep) < 60:
        keep = stars.good & (stars.snr >= 5.0)
    if np.count_nonzero(keep) < 2 * MIN_PAIRS:
        keep = stars.good | (np.count_nonzero(stars.good) < 2 * MIN_PAIRS)
    ranks = np.flatnonzero(keep)
    return ranks[spread_order(stars.p[ranks], frame.half)[:MAX_FIT_STARS]]


def _map(fit: Fit, stars: Stars, frame: Frame) -> F64:
    return fit(stars.p[:, 0] / frame.half[0], stars.p[:, 1] / frame.half[1])


def _pairs(
    stars: Stars, catalogue: Catalogue, predicted: F64, frame: Frame, radius: float
) -> tuple[I64, I64, float, float, int]:
    """One-to-one pairs within ``radius`` (made smaller in crowds), their chance rate, catalogue stars on the image."""
    low, high = predicted.min(axis=0), predicted.max(axis=0)
    n_inside = int(np.count_nonzero(((catalogue.u >= low) & (catalogue.u <= high)).all(axis=1)))
    area = max(float(np.prod(high - low)), 1.0)
    crowd = math.sqrt(MAX_STARS_IN_CIRCLE * area / (math.pi * max(n_inside, 1)))
    radius = min(radius, crowd)
    tree = cKDTree(catalogue.u, balanced_tree=False, compact_nodes=False)
    i, j, _ = nearest_pairs(predicted, tree, radius)
    return i, j, radius, chance_rate(predicted, tree, radius, area, n_inside), n_inside


def _pair_and_fit(
    stars: Stars, catalogue: Catalogue, predicted: F64, frame: Frame, degree: int, radius: float
) -> Fit | None:
    """Pair, then fit the map from pixels to the catalogue's plane; None where there is nothing to hold it."""
    tree = cKDTree(catalogue.u, balanced_tree=False, compact_nodes=False)
    i, j, _ = nearest_pairs(predicted, tree, radius)
    if len(i) < MIN_PAIRS:
        return None
    x, y = stars.p[i, 0] / frame.half[0], stars.p[i, 1] / frame.half[1]
    sigma = np.hypot(stars.sigma[i], catalogue.sigma[j])
    # While the map is still wrong by pixels the bright stars must not dictate it.
    sigma = np.hypot(sigma, radius / 20.0)
    try:
        return fit_map(x, y, catalogue.u[j], sigma, degree_allowed(x, y, degree), choose=True, rounds=2)
    except np.linalg.LinAlgError:
        return None


def convincing(match: Match, frame: Frame) -> bool:
    """Whether a hypothesis cannot be chance and could be this camera."""
    kept = match.fit.residuals[match.fit.used]
    if len(kept) < MIN_PAIRS or match.log_chance > LOG_CHANCE_LIMIT:
        return False
    if math.sqrt(float(np.mean(kept**2))) > (MAX_RMS_PX if len(kept) >= FEW_PAIRS else MAX_RMS_FEW_PX):
        return False
    if len(kept) >= FEW_PAIRS and not holds_everywhere(match, frame):
        return False
    linear = match.fit.coefficients[1:3].T / np.array(frame.half)
    scale = math.sqrt(abs(float(np.linalg.det(linear))))
    rotation = math.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])
    turn = np.array([[math.cos(rotation), -math.sin(rotation)], [math.sin(rotation), math.cos(rotation)]])
    shear = float(np.abs(linear / scale - turn).max())
    corners = np.array([-1.0, 1.0, 1.0, -1.0]), np.array([-1.0, -1.0, 1.0, 1.0])
    bend = match.fit(*corners) - terms(*corners, 1) @ match.fit.coefficients[:3]
    return bool(
        np.linalg.det(linear) > 0
        and abs(rotation) <= reach_rotation(frame.dec0) + MORE_ROTATION
        and abs(scale - 1.0) <= MAX_SCALE
        and shear <= MAX_SHEAR
        and float(np.abs(bend).max()) <= MAX_DISTORTION_PX
    )


def holds_everywhere(match: Match, frame: Frame) -> bool:
    """Whether the stars pair all over the image, not only in one rich corner of it."""
    x, y = match.stars.p[:, 0] / frame.half[0], match.stars.p[:, 1] / frame.half[1]
    offered = cell_counts(x, y, 3)
    paired = cell_counts(x[match.i], y[match.i], 3)
    asked = offered >= MIN_CELL_STARS
    expected = match.rate * offered
    holds = paired > expected + 3.0 * np.sqrt(expected) + 1.0
    return bool(np.count_nonzero(holds & asked) >= MIN_CELL_SHARE * np.count_nonzero(asked))


def _finish(match: Match, frame: Frame, shape: tuple[int, int]) -> Astrometry:
    """The TPV fit of the paired stars about the image's true centre."""
    i, j, cat, fit = match.i, match.j, match.catalogue, match.fit
    p = match.stars.p[i]
    linear = fit.coefficients[1:3].T / np.array(frame.half)
    before = (cat.u[j] - _map(fit, match.stars[i], frame)) @ np.linalg.inv(linear).T
    scale = math.sqrt(abs(float(np.linalg.det(linear))))
    sigma = np.hypot(match.stars.sigma[i], cat.sigma[j] / scale)
    pairs = Pairs(p, cat.ra[j], cat.dec[j], sigma, before, len(match.stars), match.n_catalog, match.log_chance)
    centre = frame.sky_of(fit(np.zeros(1), np.zeros(1))[0])
    return tie(pairs, centre, frame.jacobian @ linear, shape)[0]
