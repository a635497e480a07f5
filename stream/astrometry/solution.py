"""The TPV solution of stars that are paired with catalogue entries: the fit, its keywords and quality bits.

Both the first solution (``solver``) and the refined one (``refine``) end here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.astrometry.fit import Fit, Knowledge, degree_allowed, fit_map
from stream.astrometry.quality import astrometric_infobits, chi_square, match_infobits
from stream.astrometry.tpv import (
    CRVAL_DECIMALS,
    MAX_DEGREE,
    project,
    round_significant,
    swap_axes,
    terms,
    tpv_wcs,
)
from stream.core.records import Astrometry, Distortion

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Stars on an image and their catalogue entries.

    ``p`` (n, 2) px from the image centre; ``ra``, ``dec`` (n,) deg, where the catalogue has them as seen in this
    exposure; ``sigma`` (n,) px, of both together; ``before`` (n, 2) px, residuals of the map that paired them.
    ``n_offered`` stars were offered, ``n_catalog`` catalogue entries lie on the image.
    """

    p: F64
    ra: F64
    dec: F64
    sigma: F64
    before: F64
    n_offered: int
    n_catalog: int
    log_chance: float


def tie(
    pairs: Pairs, centre: tuple[float, float], linear: F64, shape: tuple[int, int], known: Distortion | None = None
) -> tuple[Astrometry, Fit]:
    """The solution about the image's true centre, and its fit in px.

    Parameters
    ----------
    centre : (ra, dec)
        Sky place (deg) of the image centre as known so far.
    linear : ndarray, (2, 2)
        deg per px as known so far: the fit is of what it leaves, in px.
    known : Distortion, optional
        Enters as Gaussian knowledge of the coefficients; without it the data choose the degree.
    """
    ny, nx = shape
    half = np.array([nx / 2, ny / 2])
    x, y = (pairs.p / half).T
    crval = round(centre[0], CRVAL_DECIMALS) % 360.0, round(centre[1], CRVAL_DECIMALS)
    target = np.stack(project(pairs.ra, pairs.dec, *crval), axis=1) @ np.linalg.inv(linear).T
    if known is None:
        fit = fit_map(x, y, target, pairs.sigma, degree_allowed(x, y), choose=True)
    else:
        fit = fit_map(x, y, target, pairs.sigma, MAX_DEGREE, known=Knowledge(known.mean, known.sigma))
    cd = round_significant(linear @ (fit.coefficients[1:3].T / half))
    pv1, pv2 = _pv_coefficients(fit, cd, linear, half)
    wcs = tpv_wcs(crval, cd, pv1, pv2, (nx / 2 + 0.5, ny / 2 + 0.5), shape)
    used, scale = fit.used, math.sqrt(abs(float(np.linalg.det(linear)))) * 3600.0
    residuals = fit.residuals @ linear.T * 3600.0
    rms = np.sqrt(np.mean(residuals[used] ** 2, axis=0))
    bits = astrometric_infobits(x[used], y[used], residuals[used], pairs.n_offered, scale)
    chi = [chi_square(r[used], pairs.sigma[used], len(fit.coefficients)) for r in (pairs.before, fit.residuals)]
    bits |= match_infobits(100.0 * len(x) / max(pairs.n_catalog, 1), *chi)
    solution = Astrometry(
        wcs, float(rms[0]), float(rms[1]), int(np.count_nonzero(used)), pairs.n_catalog, pairs.log_chance, bits,
        chi_square=chi[1],
    )  # fmt: skip
    return solution, fit


def _pv_coefficients(fit: Fit, cd: F64, linear: F64, half: F64) -> tuple[F64, F64]:
    """PV1 and PV2 (in header order): the same polynomial, written in intermediate coordinates (deg)."""
    steps = np.linspace(-1.0, 1.0, MAX_DEGREE + 2)
    x, y = (v.ravel() for v in np.meshgrid(steps, steps))
    place = fit(x, y) @ linear.T
    q = np.stack([x, y], axis=1) * half @ cd.T
    unit = float(np.abs(q).max())  # keeps the columns of one size
    solution = np.linalg.lstsq(terms(q[:, 0] / unit, q[:, 1] / unit, fit.degree), place, rcond=None)[0]
    powers = np.repeat(np.arange(fit.degree + 1), np.arange(1, fit.degree + 2))
    coefficients = solution / unit ** powers[:, None]
    return round_significant(coefficients[:, 0]), round_significant(swap_axes(coefficients[:, 1]))
