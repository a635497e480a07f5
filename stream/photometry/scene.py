"""All sources of an image fitted together: groups solved as one, everybody else's light subtracted, in rounds.

In crowded fields the residual image is searched again (as DAOPHOT's ALLSTAR is used), what is found there is added, and
all are fitted anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.psf import STAMP, PsfModel
from stream.core.psfread import psf_table
from stream.core.records import F32, U16, Background
from stream.photometry.background import estimate_background
from stream.photometry.detect import detect
from stream.photometry.fit import Fit, fit_errors
from stream.photometry.groups import groups_of, has_neighbour, lone_groups
from stream.photometry.kernels import (
    FIGURES,
    Pixels,
    Sources,
    Step,
    restore_windows,
    search_noise,
    step_groups,
    subtract_sources,
    weighted_sums,
)
from stream.photometry.stamps import nearest_pixels

F64 = NDArray[np.float64]
INT = NDArray[np.intp]
BOOL = NDArray[np.bool_]

# Sources nearer than this (px) share light that matters: the windows' reach plus the PSF's bright part.
NEIGHBOUR_REACH = 15.0
# Rounds in which models are subtracted and everybody is fitted again; a pair one FWHM apart settles to a per cent.
ROUNDS = 3
# ... in a crowded field: before the first search (one round leaves misfits that look like sources), between searches,
# and at the end.
FIRST_ROUNDS, NEXT_ROUNDS, LAST_ROUNDS = 2, 1, 2
# Beyond 6 px a source fainter than this (sigma of the sky in its peak pixel) has nothing above the noise.
BRIGHT_PEAK = 30.0
SMALL_MARGIN = 4  # px more than the fitted window: a place may move by 1.5

# Places on which the sky's covariance is measured, and the fewest that say anything; how far from sources (FWHM) they
# lie, in a crowd; beyond the last the image has a fault that no error bar repairs.
EMPTY_PLACES, LEAST_EMPTY = 4000, 50
FAR, NEAR = 4.0, 1.5
MAX_COVARIANCE = 2.0

# Discs of two FWHM around the sources cover this part of a crowded image: every tenth source has another one within.
CROWDED = 0.1
SEQUENCES = 2  # one finds 89 % where source-extractor finds half, two 93 %
SEARCH_THRESHOLD = 4.0  # sigma, of the residual image's search
# Part of the subtracted light that counts as noise in that search: PSF models are wrong by so much somewhere.
SEARCH_ERROR = 0.03
# A new source within this many FWHM of a known one is that one's misfit.
SEPARATION = 0.6
# A found source whose fit ends below this S/N, or that comes this near (FWHM) to a brighter one, was none.
LEAST_SNR, MERGED = 3.0, 0.4


@dataclass(frozen=True, slots=True)
class Scene:
    """An image to fit: ``image`` without sky (DN, finite), ``unusable`` pixels, noise (gain e-/DN, read noise e-)."""

    image: F32
    unusable: BOOL
    background: Background
    psf: PsfModel
    gain: float
    readnoise: float


def window_size(fwhm: float) -> int:
    """Side of the windows that are fitted, px: twice the FWHM to each side, 9 to 17."""
    return int(np.clip(2 * round(2 * fwhm) + 1, 9, 17))


def fit_scene(
    scene: Scene, fit: Fit, *, rounds: int = ROUNDS, move: bool = True, begun: tuple[F32, int] | None = None
) -> None:
    """Flux and, where they may ``move``, places of all sources; ``fit`` is changed in place.

    ``begun``, where known, is the image with the models of so many first sources off, as they are (it is changed).
    """
    near = has_neighbour(*fit.home, NEIGHBOUR_REACH)
    crowded = np.flatnonzero(near)
    lone, groups = lone_groups(np.flatnonzero(~near)), groups_of(*fit.home, crowded, scene.psf.fwhm)
    size, figures = window_size(scene.psf.fwhm), np.full((len(fit), len(FIGURES)), np.nan)
    table = psf_table(scene.psf, size)
    residual = np.empty_like(scene.image) if len(crowded) else scene.image
    if begun is not None:
        residual = begun[0]
    drawn: INT | None = None
    for turn in range(rounds):
        judge = turn == rounds - 1
        sources = _sources(scene, fit)
        if begun is not None and turn == 0:
            subtract_models(residual, scene, sources, crowded[crowded >= begun[1]])
        elif len(crowded):
            if drawn is None or (drawn[:, 2] ** 2).sum() > residual.size:
                np.copyto(residual, scene.image)
            else:
                restore_windows(scene.image, residual, drawn)
            drawn = subtract_models(residual, scene, sources, crowded)
        pixels = Pixels(scene.image, residual, scene.unusable)
        covariance = sky_covariance(scene, residual, fit) if judge else 1.0
        for part, alone in ((lone, True), (groups, False)):
            step_groups(pixels, sources, part, table, Step(size, 1 / scene.gain, alone, move, judge), figures)
    fit_errors(fit, figures, covariance, scene.psf.flux_error_at(fit.x, fit.y), moved=move)


def _sources(scene: Scene, fit: Fit) -> Sources:
    """The fit's state for the compiled loops, which change it."""
    noise, coefficients = sky_variance(scene, fit.x, fit.y), scene.psf.coefficients(fit.x, fit.y)
    return Sources(fit.x, fit.y, fit.flux, *fit.home, noise, coefficients)


def sky_covariance(scene: Scene, residual: F32, fit: Fit) -> float:
    """How much more an empty place's PSF flux scatters than its pixels' noise says, at least 1.

    Undetected sources, the sky's own error and whatever correlates neighbouring pixels act on a star's area as a whole;
    what they do is seen where no source is.
    """
    ny, nx = residual.shape
    step = max(np.sqrt(ny * nx / EMPTY_PLACES), 1.0)
    gx, gy = (g.ravel() for g in np.meshgrid(np.arange(step / 2, nx - 1, step), np.arange(step / 2, ny - 1, step)))
    gx, gy = np.rint(gx), np.rint(gy)
    distance, _ = cKDTree(np.stack(fit.home, axis=1)).query(np.stack([gx, gy], axis=1))
    far = distance > FAR * scene.psf.fwhm
    if far.sum() < len(far) / 2:  # a crowd: between the sources, whose models are off
        far = distance > NEAR * scene.psf.fwhm
    gx, gy = gx[far], gy[far]
    size = window_size(scene.psf.fwhm)
    stamp = scene.psf.stamp((nx - 1) / 2, (ny - 1) / 2, size)
    flux = np.empty(len(gx))
    weighted_sums(residual, scene.unusable, *nearest_pixels(gx, gy), stamp, flux)
    whole = np.isfinite(flux)
    if whole.sum() < LEAST_EMPTY:
        return 1.0
    flux = flux[whole]
    deviation = flux / np.sqrt(sky_variance(scene, gx[whole], gy[whole]) * (stamp**2).sum())
    scatter = 1.4826 * float(np.median(np.abs(deviation - np.median(deviation))))
    return float(np.clip(scatter, 1.0, MAX_COVARIANCE))


def sky_variance(scene: Scene, x: F64, y: F64) -> F32:
    """Noise variance (n,) of an empty pixel at places, DN^2: the expected or the measured one, the greater."""
    ix, iy = nearest_pixels(x, y)
    ny, nx = scene.image.shape
    place = np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)
    background = scene.background
    expected = np.maximum(background.level[place], 0) / scene.gain + (scene.readnoise / scene.gain) ** 2
    variance: F32 = np.maximum(np.maximum(expected, background.rms[place].astype(float) ** 2), 1e-6).astype(np.float32)
    return variance


def subtract_models(image: F32, scene: Scene, sources: Sources, rows: INT) -> INT:
    """Take models of sources off an image, in place: of bright ones all the PSF, of others what exceeds the noise.

    Returns the windows that changed, (n, 3): middle pixel x and y, and side.
    """
    peak = 0.8 / max(scene.psf.fwhm, 1) ** 2  # of a Moffat's light in its brightest pixel, roughly
    bright = np.nan_to_num(sources.flux)[rows] * peak > BRIGHT_PEAK * scene.background.sigma
    near = window_size(scene.psf.fwhm) + SMALL_MARGIN
    for chosen, size in ((rows[bright], STAMP), (rows[~bright], near)):
        subtract_sources(image, chosen, sources, psf_table(scene.psf, size), size)
    return np.stack([*nearest_pixels(sources.x[rows], sources.y[rows]), np.where(bright, STAMP, near)], axis=1)


def is_crowded(n: int, fwhm: float, area: int) -> bool:
    """Whether so many sources on so many pixels overlap often enough to search behind them."""
    return n * np.pi * (2 * fwhm) ** 2 > CROWDED * area


def fit_sequences(scene: Scene, fit: Fit, mask: U16) -> tuple[Scene, Fit]:
    """Search what the fitted sources leave, add what is found, fit again, ``SEQUENCES`` times.

    Returns
    -------
    scene : Scene
        With the sky as it is once the sources are off: in a crowd no mesh of the image shows it.
    fit : Fit
        Those added come last.
    """
    known = len(fit)
    fit_scene(scene, fit, rounds=FIRST_ROUNDS)
    for turn in range(SEQUENCES):
        residual = _residual(scene, fit)
        if turn == 0:
            scene, residual = _with_sky(scene, residual, mask)
        found = _search(scene, residual, fit, mask)
        searched = len(fit)
        start = (np.concatenate(pair) for pair in zip((fit.x, fit.y, np.nan_to_num(fit.flux)), found, strict=True))
        fit = Fit.start(*start)
        last = turn == SEQUENCES - 1
        fit_scene(scene, fit, rounds=LAST_ROUNDS if last else NEXT_ROUNDS, begun=(residual, searched))
        fit = _without_spurious(fit, known, scene.psf.fwhm)
    return scene, fit


def _residual(scene: Scene, fit: Fit) -> F32:
    residual = scene.image.copy()
    subtract_models(residual, scene, _sources(scene, fit), np.arange(len(fit)))
    return residual


def _with_sky(scene: Scene, residual: F32, mask: U16) -> tuple[Scene, F32]:
    """Scene and residual (in place) under the sky of the residual."""
    old = scene.background
    sky = estimate_background(residual + old.level, mask)
    change = sky.level - old.level
    residual -= change
    return replace(scene, image=np.subtract(scene.image, change, out=change), background=sky), residual


def _search(scene: Scene, residual: F32, fit: Fit, mask: U16) -> tuple[F64, F64, F64]:
    """Places (px) and rough fluxes of what stands out of the residuals and is no misfit of a known source."""
    noise = np.empty_like(residual)
    search_noise(scene.image, residual, scene.background.rms, SEARCH_ERROR, 1 / scene.gain, noise)
    sky = replace(scene.background, level=np.zeros_like(residual), rms=noise)
    found = detect(residual, sky, mask, SEARCH_THRESHOLD, fwhm=scene.psf.fwhm, gain=scene.gain)
    places = np.stack([found["x"], found["y"]], axis=1)
    distance, _ = cKDTree(np.stack([fit.x, fit.y], axis=1)).query(places)
    found = found[distance > SEPARATION * scene.psf.fwhm]
    return found["x"], found["y"], found["flux"]


def _without_spurious(fit: Fit, known: int, fwhm: float) -> Fit:
    """The fit without those added sources that vanished or fell onto a brighter one."""
    keep = np.ones(len(fit), bool)
    with np.errstate(invalid="ignore"):
        keep[known:] = (fit.flux / fit.sigflux)[known:] > LEAST_SNR
    places = np.stack([fit.x, fit.y], axis=1)
    pairs = cKDTree(places).query_pairs(MERGED * fwhm, output_type="ndarray")
    flux = np.nan_to_num(fit.flux)
    fainter = np.where(flux[pairs[:, 0]] < flux[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    keep[fainter[fainter >= known]] = False
    return fit.part(keep)
