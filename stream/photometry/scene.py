"""All sources of an image fitted together: groups solved as one, everybody else's light subtracted, in turns.

The image without the models follows every group's step at once. ``stream.photometry.sequences`` searches it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.psf import STAMP, PsfModel
from stream.core.psfread import psf_table
from stream.core.records import F32, Background
from stream.photometry.fit import Fit, fit_errors
from stream.photometry.groups import Groups, groups_of, has_neighbour, lone_groups
from stream.photometry.kernels import FIGURES, TILE, step_groups, weighted_sums
from stream.photometry.models import CELL, STIRRING, Pixels, Sources, Step, Tables, draw_sources
from stream.photometry.pairs import cross_pairs
from stream.photometry.stamps import nearest_pixels

F64 = NDArray[np.float64]
INT = NDArray[np.intp]
BOOL = NDArray[np.bool_]

# Sources nearer than this (px) share light that matters: the windows' reach plus the PSF's bright part.
NEIGHBOUR_REACH = 15.0
# Turns in which everybody is fitted; a pair one FWHM apart settles to a per cent.
ROUNDS = 3
# Beyond its near window a source fainter than this (sigma of the sky in its peak pixel) has nothing above a fifth of
# the noise.
BRIGHT_PEAK = 100.0
SMALL_MARGIN = 4  # px that the model of a faint source is wider than the fitted window: a place may move by 1.5
# In a crowd faint sources take the PSF of the middle of their cell of so many px: another flux by 0.05 % at most of
# them, 0.2 % in the corners of the worst image, where the PSF itself is not known better.
PSF_CELL = 64

# Places on which the sky's covariance is measured, and the fewest that say anything; how far from sources (FWHM) they
# lie, in a crowd (nearer, the fits have taken what stood out); beyond the last the image has a fault that no error bar
# repairs.
EMPTY_PLACES, LEAST_EMPTY = 4000, 50
FAR, NEAR = 4.0, 2.5
MAX_COVARIANCE = 2.0

# Discs of two FWHM around the sources cover this part of a crowded image: every tenth source has another one within.
CROWDED = 0.1


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


def fit_scene(scene: Scene, fit: Fit, *, rounds: int = ROUNDS, move: bool = True) -> None:
    """Flux and, where they may ``move``, places of all sources; ``fit`` is changed in place."""
    near = has_neighbour(*fit.home, NEIGHBOUR_REACH)
    crowded = np.flatnonzero(near)
    lone, groups = lone_groups(np.flatnonzero(~near)), groups_of(*fit.home, crowded, scene.psf.fwhm)
    fitting = Fitting.begin(scene, fit)
    fitting.draw(crowded)
    covariance = 1.0
    for turn in range(rounds):
        last = turn == rounds - 1
        if last:
            covariance = sky_covariance(scene, fitting.residual, fit)
        fitting.step(lone, alone=True, move=move, judge=last)
        fitting.step(groups, move=move, judge=last, draw=not last)
        fitting.turn += 1
    fit_errors(fit, fitting.figures, covariance, scene.psf.flux_error_at(fit.x, fit.y), moved=move)


@dataclass(slots=True)
class Fitting:
    """A fit on its way: the image without the ``drawn`` models, and what the compiled steps need.

    ``spoiled`` and ``stirred`` are the maps of ``Pixels``, ``figures`` (n, 7) what ``step_groups`` says of each source,
    ``turn`` the number of the next step. ``order`` (n,) are the sources by their place, those with the same PSF
    together.
    """

    scene: Scene
    fit: Fit
    residual: F32
    spoiled: BOOL
    stirred: NDArray[np.int64]
    tables: Tables
    wide: BOOL
    order: INT
    sources: Sources
    figures: F64
    turn: int = 1
    positive: bool = False

    @classmethod
    def begin(cls, scene: Scene, fit: Fit, *, crowded: bool = False) -> Fitting:
        """No model is drawn yet. Steps change ``fit``.

        In a crowd faint sources share the PSF of their cell, and no member of a group goes far below nothing.
        """
        near, psf = window_size(scene.psf.fwhm), scene.psf
        tables = Tables(
            psf_table(psf, near + SMALL_MARGIN), psf_table(psf, STAMP), BRIGHT_PEAK * scene.background.sigma
        )
        ny, nx = scene.image.shape
        spoiled = np.zeros((-(-ny // TILE), -(-nx // TILE)), bool)
        bad = np.flatnonzero(scene.unusable)
        spoiled[bad // nx // TILE, bad % nx // TILE] = True
        stirred = np.zeros((-(-ny // CELL), -(-nx // CELL)), np.int64)
        wide = is_bright(scene, fit.flux)
        order, sources = compiled_sources(scene, fit, wide, crowded=crowded)
        figures = np.full((len(fit), len(FIGURES)), np.nan)
        return cls(
            scene, fit, scene.image.copy(), spoiled, stirred, tables, wide, order, sources, figures, positive=crowded
        )

    def draw(self, rows: INT, sign: float = -1.0) -> None:
        """Take the models of sources off the residual image, or put them back with ``sign`` 1."""
        draw_sources(self.residual, rows, self.sources, self.tables, sign)

    def step(
        self, groups: Groups, *, alone: bool = False, move: bool = True, judge: bool = False, draw: bool = False,
        stirring: float = STIRRING,
    ) -> None:  # fmt: skip
        """One step of all groups, or those around which the turn before changed something."""
        pixels = Pixels(self.scene.image, self.residual, self.scene.unusable, self.spoiled, self.stirred)
        size = window_size(self.scene.psf.fwhm)
        settings = Step(size, 1 / self.scene.gain, alone, move, judge, draw, self.turn, self.positive, stirring)
        step_groups(pixels, self.sources, groups, self.tables, settings, self.figures)


def is_bright(scene: Scene, flux: F64) -> BOOL:
    """Sources whose wings stand out of the noise."""
    peak = 0.8 / max(scene.psf.fwhm, 1) ** 2  # of a Moffat's light in its brightest pixel, roughly
    return np.asarray(np.nan_to_num(flux) * peak > BRIGHT_PEAK * scene.background.sigma)


def compiled_sources(scene: Scene, fit: Fit, wide: BOOL, *, crowded: bool) -> tuple[INT, Sources]:
    """The fit's state for the compiled loops, which change it, and the order in which these best take the sources."""
    psf, n = scene.psf, len(fit)
    noise = sky_variance(scene, fit.x, fit.y)
    if not crowded:
        coefficients = psf.coefficients(fit.x, fit.y)
        return np.arange(n), Sources(fit.x, fit.y, fit.flux, *fit.home, noise, np.arange(n), coefficients, wide)
    ny, nx = scene.image.shape
    width = -(-nx // PSF_CELL)
    cell = np.clip(fit.y, 0, ny - 1).astype(int) // PSF_CELL * width + np.clip(fit.x, 0, nx - 1).astype(int) // PSF_CELL
    used = np.zeros(width * -(-ny // PSF_CELL), bool)
    used[cell[~wide]] = True
    shared, number = np.flatnonzero(used), (np.cumsum(used) - 1)[cell[~wide]]
    middle_y, middle_x = (np.stack(np.divmod(shared, width)) + 0.5) * PSF_CELL - 0.5
    row = np.empty(n, np.int64)
    row[~wide], row[wide] = number, len(shared) + np.arange(wide.sum())
    x, y = np.append(middle_x, fit.x[wide]), np.append(middle_y, fit.y[wide])
    sources = Sources(fit.x, fit.y, fit.flux, *fit.home, noise, row, psf.coefficients(x, y), wide)
    return np.argsort((2 * cell + wide).astype(np.uint16), kind="stable"), sources  # sixteen bits sort fastest


def sky_covariance(scene: Scene, residual: F32, fit: Fit) -> float:
    """How much more an empty place's PSF flux scatters than its pixels' noise says, at least 1.

    Undetected sources, the sky's own error and whatever correlates neighbouring pixels act on a star's area as a whole;
    what they do is seen where no source is.
    """
    ny, nx = residual.shape
    step = max(np.sqrt(ny * nx / EMPTY_PLACES), 1.0)
    gx, gy = (g.ravel() for g in np.meshgrid(np.arange(step / 2, nx - 1, step), np.arange(step / 2, ny - 1, step)))
    gx, gy = np.rint(gx), np.rint(gy)
    for reach in (FAR, NEAR):  # near in a crowd: between the sources, whose models are off
        far = np.ones(len(gx), bool)
        far[cross_pairs(gx, gy, *fit.home, reach * scene.psf.fwhm)[0]] = False
        if far.sum() >= len(far) / 2:
            break
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


def is_crowded(n: int, fwhm: float, area: int) -> bool:
    """Whether so many sources on so many pixels overlap often enough to search behind them."""
    return n * np.pi * (2 * fwhm) ** 2 > CROWDED * area
