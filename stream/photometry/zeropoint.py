"""The zero point against Pan-STARRS1: m_PS1 - m_inst = MAGZP + CLRCOEFF x colour (``ztf-facts.md`` §3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import Table, ZeroPoint

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]

MATCH_RADIUS = 1.5  # arcsec: 20 times the astrometric error, a third of the distance between stars in a rich field
MIN_MATCHES = 5
MIN_SNR = 10.0
# PS1 saturates near 13.5 to 14; fainter than 20.5 its stars are no longer told from galaxies, nor measured to 2 %.
MAG_RANGE = (14.0, 20.5)
MAX_PS1_ERROR = 0.05
STAR_SCORE = 0.8  # ps_score: 1 star, 0 galaxy (Tachibana & Miller 2018); unknown is allowed
# Beyond these colours the relation between the systems is no straight line (M dwarfs, hot stars).
COLOUR_RANGE = {1: (0.1, 1.2), 2: (0.1, 1.2), 3: (-0.1, 0.8)}
# Error floor per star, mag: PS1's own accuracy and the scatter of real stars around a linear colour term. Without it
# the few brightest stars would be the whole fit.
ERROR_FLOOR = 0.01
# Colour coefficients in real headers (g -0.08..-0.03, r 0.10..0.13, i 0.19): a loose prior for few matches.
CLR_PRIOR = {1: -0.06, 2: 0.11, 3: 0.19}
CLR_PRIOR_SIGMA = 0.1
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
    """Matched stars: PS1 minus instrumental magnitude, its error, PS1 colour; rows of the two tables."""

    difference: F64
    error: F64
    colour: F64
    source: NDArray[np.intp]
    star: NDArray[np.intp]


def fit_zeropoint(sources: Table, ps1: Table, fid: int) -> ZeroPoint:
    """Zero point and colour term of an image.

    Parameters
    ----------
    sources : ndarray of SOURCE_DTYPE
        With ``ra`` and ``dec``.
    ps1 : ndarray of PS1_DTYPE
        Magnitudes NaN or -999 where missing.
    fid : int
        1 g, 2 r, 3 i.

    Returns
    -------
    ZeroPoint
        ``magzpunc`` and ``clrcounc`` include the stars' real scatter, unlike the survey's formal ones; still, the
        error of one calibrated magnitude is better told by ``magzprms``.

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
    kept = np.ones(n, bool)
    pivot = float(np.median(stars.colour))
    value, covariance = _line(stars, kept, pivot, CLR_PRIOR[fid])
    for _ in range(10):
        residual = stars.difference - value[0] - value[1] * (stars.colour - pivot)
        scatter = 1.4826 * np.median(np.abs(residual[kept] - np.median(residual[kept])))
        allowed = CLIP * np.hypot(stars.error, scatter)
        chosen = np.abs(residual - np.median(residual[kept])) < allowed
        if chosen.sum() < MIN_MATCHES or np.array_equal(chosen, kept):
            break
        kept = chosen
        value, covariance = _line(stars, kept, pivot, CLR_PRIOR[fid])
    return _zeropoint(stars, kept, pivot, value, covariance, fid)


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
    i, j = _mutual(sources, ps1)
    both = good[i] & star[j]
    i, j = i[both], j[both]
    flux = sources["flux"][i]
    own = 1.0857 * sources["sigflux"][i] / flux
    theirs = np.nan_to_num(error[j], nan=0.0)
    total = np.sqrt(own**2 + np.maximum(theirs, 0) ** 2 + ERROR_FLOOR**2)
    return Calibrators(mag[j] + 2.5 * np.log10(flux), total, colour[j], i, j)


def _mutual(sources: Table, ps1: Table) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of sources and catalogue that are each other's nearest, within the radius. All rows take part: a star
    beside a galaxy must not be matched with it."""
    empty = np.zeros(0, np.intp)
    rows = np.flatnonzero(np.isfinite(sources["ra"]) & np.isfinite(sources["dec"]))
    if not len(rows) or not len(ps1):
        return empty, empty
    a = _unit_vectors(sources["ra"][rows], sources["dec"][rows])
    b = _unit_vectors(ps1["raMean"], ps1["decMean"])
    reach = 2 * np.sin(np.radians(MATCH_RADIUS / 3600) / 2)
    distance, nearest = cKDTree(b).query(a, distance_upper_bound=reach)
    _, back = cKDTree(a).query(b[np.minimum(nearest, len(b) - 1)])
    good = np.isfinite(distance) & (back == np.arange(len(rows)))
    return rows[good], nearest[good]


def _unit_vectors(ra: F64, dec: F64) -> F64:
    a, d = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)


def _line(stars: Calibrators, kept: BOOL, pivot: float, prior: float) -> tuple[F64, F64]:
    """Weighted line through the kept stars, colour counted from ``pivot``; covariance scaled with the real scatter."""
    y, colour = stars.difference[kept], stars.colour[kept] - pivot
    design = np.stack([np.ones_like(colour), colour], axis=1)
    weight = 1 / stars.error[kept] ** 2
    normal = (design * weight[:, None]).T @ design
    right = (design * weight[:, None]).T @ y
    normal[1, 1] += CLR_PRIOR_SIGMA**-2
    right[1] += prior * CLR_PRIOR_SIGMA**-2
    covariance = np.asarray(np.linalg.inv(normal), np.float64)
    value = covariance @ right
    chi2 = float((weight * (y - design @ value) ** 2).sum()) / max(len(y) - 2, 1)
    return value, covariance * max(chi2, 1.0)


def _zeropoint(stars: Calibrators, kept: BOOL, pivot: float, value: F64, covariance: F64, fid: int) -> ZeroPoint:
    shift = np.array([[1.0, -pivot], [0.0, 1.0]])  # from the pivot's colour to colour 0
    zp, clr = shift @ value
    covariance = shift @ covariance @ shift.T
    difference, colour = stars.difference[kept], stars.colour[kept]
    residual = difference - zp - clr * colour
    bright = stars.error[kept] < RMS_ERROR
    measured = residual[bright] if np.count_nonzero(bright) >= RMS_STARS else residual
    return ZeroPoint(
        magzp=float(zp),
        magzpunc=float(np.sqrt(covariance[0, 0])),
        magzprms=float(np.sqrt(np.mean(measured**2))),
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
    )
