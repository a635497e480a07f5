"""The final solution: from the places of the PSF photometry, with all that is known of the optics and the air.

The first solution ties the image to the sky by windowed centroids, before its PSF is known. The PSF fits' places are
better, and they are the ones that products give: they are fitted anew, refraction taken off, the optics' distortion
held by what earlier images taught, and what is left smoothed into the air's displacement field.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.astrometry.epoch import position_errors, propagate
from stream.astrometry.fit import Fit
from stream.astrometry.lists import FLOOR_PX, MIN_FIT_SNR, Stars, spread_order, usable_stars
from stream.astrometry.match import nearest_pairs
from stream.astrometry.refraction import Refraction, bluer, colour_of, fit_shift
from stream.astrometry.solution import Pairs, tie
from stream.astrometry.tpv import project, sky_positions
from stream.core.displacement import Trend, fit_displacement
from stream.core.flags import Info
from stream.core.records import MEAN_COLOUR, Astrometry, Distortion, Table

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Error of a PSF fit's place at S/N 1: sqrt(2) FWHM / 2.355 for a Gaussian on sky (King 1983).
CENTROID_FWHM = 0.6
RADIUS = (0.6, 2.0)  # px within which a star is its catalogue entry: four times the first solution's residuals
MIN_PAIRS = 20  # fewer: the first solution stays
BEST_PX = 0.002  # what no S/N buys, before the residuals say more (2 mas)
FEW_STARS = 500
MAX_STARS = 6000  # more see no smaller air than the grid's nodes do
CLIP = 4.0  # robust sigma
MARGIN_PX = 20.0  # what a catalogue's star may have moved


def refine(
    first: Astrometry,
    sources: Table,
    gaia: Table,
    jd_mid: float,
    shape: tuple[int, int],
    fwhm: float,
    known: Distortion | None = None,
    refraction: Refraction | None = None,
) -> Astrometry:
    """The solution of an image's PSF-fitted sources.

    Parameters
    ----------
    first : Astrometry
        From ``solve``: good to a fraction of a pixel everywhere.
    sources : structured array
        ``x``, ``y``, ``flux``, ``snr``, ``flags`` (SOURCE_DTYPE).
    gaia : structured array, GAIA_DTYPE
        Stars around the image.
    fwhm : float
        Seeing, px: what the stars' centroid errors scale with.
    known : Distortion, optional
        The channel's optics; without it the degree is what the data carry.
    refraction : Refraction, optional
        None: stars of all colours are where they are.

    Returns
    -------
    Astrometry
        With ``displacement``, ``centroid``, ``refraction``, ``colour`` and ``colour_sigma``; ``first`` itself where
        fewer than ``MIN_PAIRS`` pair.
    """
    stars = usable_stars(sources, shape, MIN_FIT_SNR)
    if len(stars) > MAX_STARS:
        order, half = spread_order(stars.p, (shape[1] / 2, shape[0] / 2)), MAX_STARS // 2
        # The brightest carry the map, a sample of all others tells how good a place is.
        stars = stars[np.sort(np.concatenate([order[:half], order[half :: math.ceil((len(order) - half) / half)]]))]
    solution = _once(first, stars, gaia, jd_mid, shape, fwhm, known, refraction)
    if first.n_matched >= FEW_STARS:
        return solution
    # A first solution of few stars may be a pixel or two off in the corners: their stars pair with the second one. From
    # a map that is fitted already chi-square changes either way: whether a fit makes it worse, the first turn tells.
    told = solution.infobits & int(Info.CHI_CHANGE)
    solution = _once(solution, stars, gaia, jd_mid, shape, fwhm, known, refraction)
    return replace(solution, infobits=(solution.infobits & ~int(Info.CHI_CHANGE)) | told)


def _once(
    first: Astrometry,
    stars: Stars,
    gaia: Table,
    jd_mid: float,
    shape: tuple[int, int],
    fwhm: float,
    known: Distortion | None,
    refraction: Refraction | None,
) -> Astrometry:
    centre, linear = _linear_part(first)
    pairs, j, here = _pair(first, stars, gaia, jd_mid, shape, fwhm)
    if len(j) < MIN_PAIRS:
        return first
    shift, colour, unknown = math.nan, MEAN_COLOUR, (0.0, 0.0)
    if refraction is not None:
        colour, spread = colour_of(gaia["bp_rp"][here])
        blue = bluer(gaia["bp_rp"][j], colour)
        shift = _fitted_shift(pairs, linear, blue, refraction)
        unknown = abs(shift * refraction.zenith[0]) * spread, abs(shift * refraction.zenith[1]) * spread
        lifted = shift / 3600.0 * blue[:, None] * np.array(refraction.zenith)
        dec = pairs.dec + lifted[:, 1]
        pairs = replace(pairs, ra=pairs.ra + lifted[:, 0] / np.cos(np.radians(dec)), dec=dec)
    # In moving air the brightest stars are no better than others.
    solution, fit = tie(replace(pairs, sigma=np.hypot(pairs.sigma, FLOOR_PX)), centre, linear, shape, known)
    solution = replace(solution, refraction=shift, colour=colour, colour_sigma=unknown)
    return _with_air(solution, pairs, fit, shape, fwhm, known)


def _pair(
    first: Astrometry, stars: Stars, gaia: Table, jd_mid: float, shape: tuple[int, int], fwhm: float
) -> tuple[Pairs, I64, I64]:
    """Stars and their entries; which entries those are, and which are on the image at all."""
    ny, nx = shape
    centre, linear = _linear_part(first)
    back = np.linalg.inv(linear).T
    x, y = stars.p[:, 0] + (nx - 1) / 2, stars.p[:, 1] + (ny - 1) / 2
    predicted = np.stack(project(*sky_positions(first.wcs, x, y), *centre), axis=1) @ back
    # Entries near the image first: only their motion is worth computing.
    with np.errstate(invalid="ignore"):
        near = (
            np.abs(np.stack(project(gaia["ra"], gaia["dec"], *centre), axis=1) @ back) < np.array([nx, ny]) / 2 + 20.0
        )
    entries = np.flatnonzero(near.all(axis=1))
    ra, dec = propagate(gaia[entries], jd_mid, parallax=True)
    places = np.stack(project(ra, dec, *centre), axis=1) @ back
    scale = math.sqrt(abs(float(np.linalg.det(linear)))) * 3600.0
    radius = float(np.clip(4.0 * max(first.rms_ra, first.rms_dec) / scale, *RADIUS))
    if len(entries) == 0 or len(stars) == 0:
        i, j = np.zeros(0, np.int64), np.zeros(0, np.int64)
    else:
        i, j, _ = nearest_pairs(predicted, cKDTree(places, balanced_tree=False, compact_nodes=False), radius)
    inside = (np.abs(places) <= np.array([nx, ny]) / 2).all(axis=1)
    sigma = np.hypot(BEST_PX, CENTROID_FWHM * fwhm / stars.snr[i])
    sigma = np.hypot(sigma, position_errors(gaia[entries[j]], jd_mid) / scale)
    before = places[j] - predicted[i]
    count = int(np.count_nonzero(inside))
    pairs = Pairs(stars.p[i], ra[j], dec[j], sigma, before, len(stars), count, first.log_chance)
    return pairs, entries[j], entries[inside]


def _fitted_shift(pairs: Pairs, linear: F64, blue: F64, expected: Refraction) -> float:
    """Refraction (arcsec a mag bluer) that the residuals show."""
    scale = math.sqrt(abs(float(np.linalg.det(linear)))) * 3600.0
    seen = -(pairs.before @ linear.T @ np.array(expected.zenith)) * 3600.0
    seen -= np.median(seen)
    keep = np.abs(seen) < CLIP * 1.4826 * np.median(np.abs(seen))
    sigma = np.hypot(pairs.sigma, FLOOR_PX) * scale
    return fit_shift(seen[keep], sigma[keep], blue[keep], expected) if keep.any() else expected.shift


def _with_air(
    solution: Astrometry, pairs: Pairs, fit: Fit, shape: tuple[int, int], fwhm: float, known: Distortion | None
) -> Astrometry:
    """The solution with the displacement field of what it leaves, and the error of a star's place."""
    ny, nx = shape
    trend = Trend(fit.degree)
    if known is not None:
        trend = Trend(fit.degree, known.mean - fit.coefficients, known.sigma)
    # What is to be added to a place before it goes through the map: the map's own plane is the pixels' to 1e-2.
    x, y = pairs.p[:, 0] + (nx - 1) / 2, pairs.p[:, 1] + (ny - 1) / 2
    used = fit.used
    dx, dy = fit.residuals[used].T
    air = fit_displacement(x[used], y[used], dx, dy, pairs.sigma[used], shape, trend)
    if air is None:
        return solution
    centroid = air.noise_scale * CENTROID_FWHM * fwhm, math.hypot(air.floor, air.noise_scale * BEST_PX)
    return replace(solution, displacement=air, centroid=centroid)


def _linear_part(first: Astrometry) -> tuple[tuple[float, float], F64]:
    """Sky place (deg) of the image centre and deg per px there."""
    x0, y0 = (float(v) - 1.0 for v in first.wcs.wcs.crpix)
    step = 200.0
    ra, dec = sky_positions(first.wcs, x0 + step * np.array([0, 1, -1, 0, 0]), y0 + step * np.array([0, 0, 0, 1, -1]))
    xi, eta = project(ra, dec, float(ra[0]), float(dec[0]))
    linear = np.array([[xi[1] - xi[2], xi[3] - xi[4]], [eta[1] - eta[2], eta[3] - eta[4]]]) / (2 * step)
    return (float(ra[0]), float(dec[0])), linear
