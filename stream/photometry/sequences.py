"""A crowded field: what the fitted sources leave is searched again, what is found is added, and all are fitted anew,
as DAOPHOT's ALLSTAR is used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stream.core.records import U16
from stream.photometry.background import estimate_background, move_sky
from stream.photometry.detect import SearchNoise, search_residuals, unusable_pixels
from stream.photometry.fit import MIN_COVERAGE, Fit, fit_errors
from stream.photometry.groups import groups_of
from stream.photometry.kernels import COVERED, INFORMATION
from stream.photometry.models import STIRRING, stir_places
from stream.photometry.pairs import close_pairs, cross_pairs
from stream.photometry.scene import Fitting, Scene, compiled_sources, is_bright, sky_covariance

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]

# Turns between the searches, and at the end.
NEXT_ROUNDS, LAST_ROUNDS = 1, 2
# Before the first search there is one turn, and one more for groups in which something changed by so many times the
# noise in a source's brightest pixel: their misfits would look like sources.
RESTLESS = 5.0
SEQUENCES = 2  # one finds 89 % where source-extractor finds half, two 93 %
SEARCH_THRESHOLD = 4.0  # sigma, of the residual image's search
# Part of the subtracted light that counts as noise in that search: PSF models are wrong by so much somewhere.
SEARCH_ERROR = 0.03
# A new source within this many FWHM of a known one is that one's misfit.
SEPARATION = 0.6
# A found source whose fit ends below this S/N, or that comes this near (FWHM) to a brighter one, was none.
LEAST_SNR, MERGED = 3.0, 0.4


def fit_sequences(scene: Scene, fit: Fit, mask: U16) -> tuple[Scene, Fit]:
    """Search what the fitted sources leave, add what is found, fit again, ``SEQUENCES`` times.

    The sky's change is taken off the scene's image in place.

    Returns
    -------
    scene : Scene
        With the sky as it is once the sources are off: in a crowd no mesh of the image shows it.
    fit : Fit
        Those added come last.
    """
    known = len(fit)
    fitting, unusable = Fitting.begin(scene, fit, crowded=True), unusable_pixels(mask)
    fitting.draw(fitting.order)
    _turns(fitting, 1, stirring=RESTLESS)
    _new_sky(fitting, mask)  # early, so that later turns find nothing new everywhere
    _turns(fitting, 1)
    for sequence in range(SEQUENCES):
        _uncover(fitting)
        _add(fitting, *_search(fitting, mask, unusable))
        if sequence < SEQUENCES - 1:
            _turns(fitting, NEXT_ROUNDS)
            snr = fitting.fit.flux * np.sqrt(np.nan_to_num(fitting.figures[:, INFORMATION]))
            _drop(fitting, ~_spurious(fitting.fit, snr, known, scene.psf.fwhm))
    _turns(fitting, LAST_ROUNDS, judge=True)
    fit = fitting.fit
    with np.errstate(invalid="ignore"):
        snr = fit.flux / fit.sigflux
    return fitting.scene, fit.part(~_spurious(fit, snr, known, scene.psf.fwhm))


def _turns(fitting: Fitting, rounds: int, *, judge: bool = False, stirring: float = STIRRING) -> None:
    """So many turns of all groups; with ``judge`` the last one gives errors. The next turn looks at those in which
    something changed by ``stirring``."""
    fit, scene = fitting.fit, fitting.scene
    groups = groups_of(*fit.home, fitting.order, scene.psf.fwhm)
    for turn in range(rounds):
        if judge and turn == rounds - 1:
            covariance = sky_covariance(scene, fitting.residual, fit)
            fitting.step(groups, judge=True)
            fit_errors(fit, fitting.figures, covariance, scene.psf.flux_error_at(fit.x, fit.y))
        else:
            fitting.step(groups, draw=True, stirring=stirring)
        fitting.turn += 1


def _new_sky(fitting: Fitting, mask: U16) -> None:
    """The scene, and its residual, under the sky of the residual; both images change in place."""
    scene = fitting.scene
    old = scene.background.level
    sky = estimate_background(fitting.residual, mask, taken_off=old)
    move_sky(old.reshape(-1), sky.level.reshape(-1), scene.image.reshape(-1), fitting.residual.reshape(-1))
    fitting.scene = replace(scene, background=sky)


def _search(fitting: Fitting, mask: U16, unusable: BOOL) -> tuple[F64, F64, F64]:
    """Places (px) and rough fluxes of what stands out of the residuals and is no misfit of a known source."""
    scene, fit, fwhm = fitting.scene, fitting.fit, fitting.scene.psf.fwhm
    noise = SearchNoise(scene.background.rms, scene.gain, SEARCH_ERROR, SEARCH_THRESHOLD, fwhm)
    fitting.residual[unusable] = 0  # they count nowhere
    x, y, flux = search_residuals(scene.image, fitting.residual, mask, unusable, noise)
    new = np.ones(len(x), bool)
    new[cross_pairs(x, y, fit.x, fit.y, SEPARATION * fwhm)[0]] = False
    return x[new], y[new], flux[new]


def _uncover(fitting: Fitting) -> None:
    """Put back what was guessed of sources that hardly a pixel shows (saturated): rests of it would be searched."""
    hidden = np.flatnonzero(fitting.figures[:, COVERED] < MIN_COVERAGE)
    fitting.draw(hidden, 1.0)
    fitting.fit.flux[hidden] = 0.0


def _add(fitting: Fitting, x: F64, y: F64, flux: F64) -> None:
    """New sources, last in the list; their models are drawn. What is around them moves again."""
    fit = fitting.fit
    old = len(fit)
    columns = zip((fit.x, fit.y, fit.flux), (x, y, flux), strict=True)
    fitting.fit = Fit.start(*(np.concatenate(pair) for pair in columns))
    fitting.wide = np.concatenate([fitting.wide, is_bright(fitting.scene, flux)])
    fitting.figures = np.concatenate([fitting.figures, np.full((len(x), fitting.figures.shape[1]), np.nan)])
    fitting.order, fitting.sources = compiled_sources(fitting.scene, fitting.fit, fitting.wide, crowded=True)
    fitting.draw(fitting.order[fitting.order >= old])
    stir_places(fitting.stirred, x, y, fitting.turn - 1)


def _drop(fitting: Fitting, keep: BOOL) -> None:
    """Only those to ``keep``; the models of the others are put back."""
    fitting.draw(np.flatnonzero(~keep), 1.0)
    stir_places(fitting.stirred, fitting.fit.x[~keep], fitting.fit.y[~keep], fitting.turn - 1)
    fitting.fit, fitting.wide, fitting.figures = fitting.fit.part(keep), fitting.wide[keep], fitting.figures[keep]
    fitting.order, fitting.sources = compiled_sources(fitting.scene, fitting.fit, fitting.wide, crowded=True)


def _spurious(fit: Fit, snr: F64, known: int, fwhm: float) -> BOOL:
    """Which of the sources added to the ``known`` first ones vanished or fell onto a brighter one."""
    spurious = np.zeros(len(fit), bool)
    spurious[known:] = ~(snr[known:] > LEAST_SNR)
    one, other = close_pairs(fit.x, fit.y, MERGED * fwhm)
    flux = np.nan_to_num(fit.flux)
    fainter = np.where(flux[one] < flux[other], one, other)
    spurious[fainter[fainter >= known]] = True
    return spurious
