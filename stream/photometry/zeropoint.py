"""The zero point against Pan-STARRS1: m_PS1 - m_inst = MAGZP + CLRCOEFF x colour (``ztf-facts.md`` §3.2).

Zero point, colour term and the zero point's map over the quadrant are one weighted fit. The weights hold what the
stars themselves show to scatter beyond the errors of their fluxes and of the catalogue; that and a floor make the
errors true, while the survey's own are formal (1e-5 mag).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import Table, ZeroPoint, ZeroPointMap
from stream.core.sphere import chord, unit_vectors
from stream.core.zeropointmap import basis, terms

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]

MATCH_RADIUS = 1.5  # arcsec: 20 times the astrometric error, a third of the distance between stars in a rich field
MIN_MATCHES = 5
MAX_CALIBRATORS = 4000  # the best measured: of a crowded field's 20,000 the rest costs 0.1 s and adds no accuracy
MIN_SNR = 10.0
# PS1 saturates near 13.5 to 14; fainter than 20.5 its stars are no longer told from galaxies, nor measured to 2 %.
MAG_RANGE = (14.0, 20.5)
MAX_PS1_ERROR = 0.05
STAR_SCORE = 0.8  # ps_score: 1 star, 0 galaxy (Tachibana & Miller 2018); unknown is allowed
# Beyond these colours the relation between the systems is no straight line (M dwarfs, hot stars).
COLOUR_RANGE = {1: (0.1, 1.2), 2: (0.1, 1.2), 3: (-0.1, 0.8)}
# Least error of a calibrator, mag: PS1's own relative accuracy. What real stars scatter beyond it and their other
# errors (about the linear colour term, about the PSF's and the flat's errors) is measured on the image itself, between
# these limits; with few stars the measure means little and the usual value stands in.
ERROR_FLOOR = 0.003
SCATTER_RANGE, USUAL_SCATTER, SCATTER_STARS = (0.001, 0.1), 0.01, 40
# What does not average out over stars, mag: repeated exposures of a field differ in their zero points by this beyond
# the errors of the fits, because all stars of an exposure share one PSF model and its normalisation.
ZEROPOINT_FLOOR = 0.001
# The map: highest degree, and stars that each of its coefficients needs at least.
MAX_DEGREE, STARS_PER_TERM = 3, 12
# Colour coefficients in real headers (g -0.08..-0.03, r 0.10..0.13, i 0.19): a loose prior for few matches.
CLR_PRIOR = {1: -0.06, 2: 0.11, 3: 0.19}
CLR_PRIOR_SIGMA = 0.1
MAX_COLOUR_NOISE = 0.3  # share of the colours' spread that may be their errors; beyond, only the prior helps
CLIP = 3.5
# MAGZPRMS is to show how well stars can be calibrated, not how faint the calibrators go: of those measured to 5 %,
# where there are enough. The survey's limits on it (``cloud``) are for calibrators like that.
RMS_ERROR, RMS_STARS = 0.05, 20
MAX_SHARP = 0.3
# Smooth additive light is in the sky; these stars are measured well.
USABLE = int(Mask.HALO | Mask.CROSSTALK)
# Band, blue and red band of the colour, and the colour as the survey's headers write it (PCOLOR).
NAMES = {1: ("g", "g", "r", "g - R"), 2: ("r", "g", "r", "g - R"), 3: ("i", "r", "i", "R - i")}


@dataclass(frozen=True, slots=True)
class Calibrators:
    """Matched stars: PS1 minus instrumental magnitude, its error, PS1 colour; rows of the two tables; variance of the
    colour's error and its covariance with the difference's (both have the band's PS1 error in them)."""

    difference: F64
    error: F64
    colour: F64
    source: NDArray[np.intp]
    star: NDArray[np.intp]
    colour_variance: F64
    covariance: F64


def fit_zeropoint(sources: Table, ps1: Table, fid: int, shape: tuple[int, ...] | None = None) -> ZeroPoint:
    """Zero point, colour term and zero-point map of an image.

    Parameters
    ----------
    sources : ndarray of SOURCE_DTYPE
        With ``ra`` and ``dec``.
    ps1 : ndarray of PS1_DTYPE
        Magnitudes NaN or -999 where missing.
    fid : int
        1 g, 2 r, 3 i.
    shape : (int, int), optional
        Of the image; None: no map is fitted.

    Returns
    -------
    ZeroPoint
        ``magzp`` is the median over the image where there is a map. ``magzpunc`` and ``clrcounc`` are true: they
        include the stars' real scatter and a floor, unlike the survey's formal ones; the error of one calibrated
        magnitude is told by ``magzprms``, the r.m.s. about the zero point without its map. ``map`` has the degree
        (0 to 3; 0: None) that the Bayesian information criterion chooses.

    Raises
    ------
    PhotometryError
        Fewer than five good matches, or an unknown filter.
    """
    if fid not in NAMES:
        raise PhotometryError(f"no zero point for filter {fid}: known are 1 (g), 2 (r), 3 (i)")
    stars = match_calibrators(sources, ps1, fid)
    n = len(stars.difference)
    if n < MIN_MATCHES:
        raise PhotometryError(
            f"{n} matches with PS1 among {len(sources)} sources and {len(ps1)} catalogue stars, a zero point needs "
            f"{MIN_MATCHES}",
            n_matches=n,
        )
    degrees = range(MAX_DEGREE + 1) if shape is not None else range(1)
    ny, nx = shape if shape is not None else (1, 1)
    surface = basis(sources["x"][stars.source], sources["y"][stars.source], (ny, nx), max(degrees))
    fit = robust_fit(stars, surface, fid, 0)
    enough = [d for d in degrees if d == 0 or int(fit.kept.sum()) >= STARS_PER_TERM * len(terms(d))]
    trials = [_solve(stars, surface, fit, fid, degree) for degree in enough]
    # Chi-square in units of the richest surface's: an underestimated error must not ask for more terms.
    unit = max(trials[-1].chi_square, 1.0)
    free = max(int(fit.kept.sum()), 1)
    costs = [t.chi_square * max(free - len(t.value), 1) / unit + len(t.value) * math.log(free) for t in trials]
    degree = enough[int(np.argmin(costs))]
    if degree:
        fit = robust_fit(stars, surface, fid, degree)
    residual = stars.difference - _model(stars, surface, fit)
    return _zeropoint(stars, fit, fid, (ny, nx), residual)


@dataclass(frozen=True, slots=True)
class Fit:
    """Zero point at the pivot's colour, colour term, map coefficients without the constant; their covariance; the
    calibrators' rows that were used and the errors they were used with; chi-square per degree of freedom."""

    value: F64
    covariance: F64
    kept: BOOL
    error: F64
    pivot: float
    degree: int
    chi_square: float = math.nan


def robust_fit(stars: Calibrators, surface: F64, fid: int, degree: int) -> Fit:
    """The fit of a given degree with outliers left out and the stars' scatter in the weights."""
    pivot = float(np.median(stars.colour))
    start = np.hypot(stars.error, USUAL_SCATTER)
    empty = np.zeros(0)
    fit = Fit(empty, empty, np.ones(len(stars.difference), bool), start, pivot, degree)
    fit = _solve(stars, surface, fit, fid, degree)
    for turn in range(10):
        residual = stars.difference - _model(stars, surface, fit)
        centre = float(np.median(residual[fit.kept]))
        error = np.hypot(stars.error, excess_scatter(residual[fit.kept] - centre, stars.error[fit.kept]))
        kept = np.abs(residual - centre) < CLIP * error
        # The first turn only guessed the scatter: its weights are none even where it left nobody out.
        if kept.sum() < MIN_MATCHES or (turn and np.array_equal(kept, fit.kept)):
            break
        fit = _solve(stars, surface, replace(fit, kept=kept, error=error), fid, degree)
    return fit


def excess_scatter(residual: F64, error: F64) -> float:
    """What residuals scatter beyond their errors (mag, within ``SCATTER_RANGE``), so that their median absolute value
    in units of the whole is that of a Gaussian."""
    if len(residual) < SCATTER_STARS:
        return USUAL_SCATTER
    low, high = SCATTER_RANGE
    size = np.abs(residual)
    for _ in range(10):  # to half a per cent
        middle = math.sqrt(low * high)
        if 1.4826 * np.median(size / np.hypot(error, middle)) > 1:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def match_calibrators(sources: Table, ps1: Table, fid: int) -> Calibrators:
    """Good single stars of both tables that are each other's nearest within 1.5 arcsec, in order of the sources."""
    band, blue, red, _ = NAMES[fid]
    mag, error = (ps1[f"{band}MeanPSF{kind}"].astype(float) for kind in ("Mag", "MagErr"))
    colour = ps1[f"{blue}MeanPSFMag"].astype(float) - ps1[f"{red}MeanPSFMag"].astype(float)
    with np.errstate(invalid="ignore"):
        star = (mag > MAG_RANGE[0]) & (mag < MAG_RANGE[1]) & ~(error > MAX_PS1_ERROR) & ~(ps1["ps_score"] < STAR_SCORE)
        star &= (colour > COLOUR_RANGE[fid][0]) & (colour < COLOUR_RANGE[fid][1])
        good = (sources["flux"] > 0) & (sources["snr"] > MIN_SNR) & (np.abs(sources["sharp"]) < MAX_SHARP)
        good &= ((sources["flags"] & (BAD_BITS & ~USABLE)) == 0) & np.isfinite(sources["ra"])
    rows = np.flatnonzero(good)
    if len(rows) > MAX_CALIBRATORS:
        rows = np.sort(rows[np.argsort(-sources["snr"][rows], kind="stable")[:MAX_CALIBRATORS]])
    i, j = _mutual(sources, ps1, rows)
    i, j = i[star[j]], j[star[j]]
    flux = sources["flux"][i]
    own = 1.0857 * sources["sigflux"][i] / flux
    theirs = np.nan_to_num(error[j], nan=0.0)
    total = np.sqrt(own**2 + np.maximum(theirs, 0) ** 2 + ERROR_FLOOR**2)
    variance = [np.nan_to_num(ps1[f"{b}MeanPSFMagErr"][j].astype(float), nan=0.0).clip(0) ** 2 for b in (blue, red)]
    shared = variance[0] if band == blue else -variance[1]
    return Calibrators(mag[j] + 2.5 * np.log10(flux), total, colour[j], i, j, variance[0] + variance[1], shared)


def calibrator_residuals(sources: Table, ps1: Table, fid: int, zeropoint: ZeroPoint) -> tuple[F64, F64, F64, F64]:
    """Places (px), measured minus catalogue magnitude on the zero point without its map, and errors (mag) of an
    image's calibrators, (n,) each: what a star flat is made of."""
    stars = match_calibrators(sources, ps1, fid)
    residual = zeropoint.magzp + zeropoint.clrcoeff * stars.colour - stars.difference
    row = sources[stars.source]
    return row["x"].astype(float), row["y"].astype(float), residual, np.hypot(stars.error, USUAL_SCATTER)


def _mutual(sources: Table, ps1: Table, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Of those rows of the sources, the ones that are each other's nearest with one of the catalogue, within the
    radius. As neighbours all sources and the whole catalogue count: a star beside a galaxy must not be matched with
    it."""
    empty = np.zeros(0, np.intp)
    there = np.flatnonzero(np.isfinite(sources["ra"]) & np.isfinite(sources["dec"]))
    if not len(rows) or not len(ps1):
        return empty, empty
    a = unit_vectors(sources["ra"][there], sources["dec"][there])
    reach = chord(MATCH_RADIUS)
    # The catalogue's cone is more than twice the image: what lies outside is nobody's nearest within the radius.
    dec, margin = sources["dec"][there], MATCH_RADIUS / 3600
    near = np.flatnonzero((ps1["decMean"] > dec.min() - margin) & (ps1["decMean"] < dec.max() + margin))
    b = unit_vectors(ps1["raMean"][near], ps1["decMean"][near])
    inside = np.flatnonzero(((b >= a.min(axis=0) - reach) & (b <= a.max(axis=0) + reach)).all(axis=1))
    near, b = near[inside], b[inside]
    if not len(near):
        return empty, empty
    # Unbalanced trees are built in a third of the time and are as fast on points that fill a square.
    tree, own = (cKDTree(v, balanced_tree=False, compact_nodes=False) for v in (b, a))
    at = np.searchsorted(there, rows)
    distance, nearest = tree.query(a[at], distance_upper_bound=reach)
    some = np.flatnonzero(np.isfinite(distance))
    _, back = own.query(b[nearest[some]], distance_upper_bound=reach)
    mutual = some[back == at[some]]
    return rows[mutual], near[nearest[mutual]]


def _design(stars: Calibrators, surface: F64, fit: Fit, degree: int) -> F64:
    """Columns of zero point, colour from the pivot, and the map's terms without the constant."""
    colour = stars.colour - fit.pivot
    return np.column_stack([np.ones_like(colour), colour, surface[:, 1 : len(terms(degree))]])


def _model(stars: Calibrators, surface: F64, fit: Fit) -> F64:
    return np.asarray(_design(stars, surface, fit, fit.degree) @ fit.value, np.float64)


def _solve(stars: Calibrators, surface: F64, fit: Fit, fid: int, degree: int) -> Fit:
    """Weighted least squares over the kept stars, with the usual colour term as a loose prior; the covariance is
    scaled with the scatter that is left."""
    kept = fit.kept
    y, design = stars.difference[kept], _design(stars, surface, fit, degree)[kept]
    weight = 1 / fit.error[kept] ** 2
    normal = (design * weight[:, None]).T @ design
    right = (design * weight[:, None]).T @ y
    # Errors of colours flatten the slope, and the band's own error stands on both sides (0.002 in the slope, 2 mmag at
    # colour 0): their known moments are taken off (Fuller 1987, Measurement Error Models, §2.2).
    noise = float((weight * stars.colour_variance[kept]).sum())
    if noise < MAX_COLOUR_NOISE * normal[1, 1]:
        normal[1, 1] -= noise
        right[1] -= float((weight * stars.covariance[kept]).sum())
    normal[1, 1] += CLR_PRIOR_SIGMA**-2
    right[1] += CLR_PRIOR[fid] * CLR_PRIOR_SIGMA**-2
    covariance = np.asarray(np.linalg.inv(normal), np.float64)
    value = covariance @ right
    chi2 = float((weight * (y - design @ value) ** 2).sum()) / max(len(y) - len(value), 1)
    return replace(fit, value=value, covariance=covariance * max(chi2, 1.0), degree=degree, chi_square=chi2)


def _map(fit: Fit, shape: tuple[int, int], rms: float) -> tuple[ZeroPointMap | None, float]:
    """The map, its median over the image zero, and what that adds to the zero point."""
    if not fit.degree:
        return None, 0.0
    errors = np.sqrt(np.diag(fit.covariance)[2:])
    raw = ZeroPointMap(fit.degree, shape, (0.0, *map(float, fit.value[2:])), (0.0, *map(float, errors)), rms)
    at = np.meshgrid(np.linspace(0, shape[1] - 1, 65), np.linspace(0, shape[0] - 1, 65))
    median = float(np.median(raw.offset(*at)))
    return replace(raw, coefficients=(-median, *raw.coefficients[1:])), median


def _zeropoint(stars: Calibrators, fit: Fit, fid: int, shape: tuple[int, int], residual: F64) -> ZeroPoint:
    kept = fit.kept
    shift = np.array([[1.0, -fit.pivot], [0.0, 1.0]])  # from the pivot's colour to colour 0
    zp, clr = shift @ fit.value[:2]
    covariance = shift @ fit.covariance[:2, :2] @ shift.T
    difference, colour = stars.difference[kept], stars.colour[kept]
    error = np.hypot(stars.error, USUAL_SCATTER)[kept]
    bright = error < RMS_ERROR
    chosen = bright if np.count_nonzero(bright) >= RMS_STARS else np.ones(len(bright), bool)
    plain = (difference - clr * colour)[chosen]
    mapped = residual[kept][chosen]
    found, median = _map(fit, shape, float(np.sqrt(np.mean(mapped**2))))
    return ZeroPoint(
        magzp=float(zp) + median,
        magzpunc=float(np.hypot(np.sqrt(covariance[0, 0]), ZEROPOINT_FLOOR)),
        magzprms=float(np.sqrt(np.mean((plain - np.average(plain, weights=error[chosen] ** -2)) ** 2))),
        clrcoeff=float(clr),
        clrcounc=float(np.sqrt(covariance[1, 1])),
        zpclrcov=float(covariance[0, 1]),
        pcolor=NAMES[fid][3],
        n_matches=int(kept.sum()),
        zpmed=float(np.median(difference)),
        zpavg=float(np.mean(difference)),
        clrmed=float(np.median(colour)),
        clravg=float(np.mean(colour)),
        clrrms=float(np.std(colour)),
        map=found,
    )
