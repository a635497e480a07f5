"""Saturated stars: a PSF fitted to what is left of them, so that they can be taken out of an image and put back.

A saturated core is a plateau with a cliff around it. Interpolate it, and the kernel rings five pixels far with some
thousand DN; fill it from another image, and the convolutions of a subtraction carry the step at its rim around. A
star's unsaturated flanks tell its flux and place well enough (1 per cent) to take the star away first: what is
left has no step anywhere, and its model can be added again wherever the PSF is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.psf import PsfModel, read_gradients, read_grids
from stream.core.records import F32, Table
from stream.photometry.stamps import add_stamps, nearest_pixels, window_index
from stream.photometry.stars import STAR_BAD_BITS

F64 = NDArray[np.float64]
B1 = NDArray[np.bool_]

FIT_SIZE = 29  # px, side of the window that is fitted: the PSF models end 14 px from their centre
# Share of the model's light by which any PSF model is wrong somewhere.
MODEL_ERROR = 0.02
# Light a pixel that PSF models know nothing of: a star's far aureole, in parts of its flux (7e-4 / 15^2 at its middle).
# Where so little would change a fitted flux by more than this part of it, the flanks tell nothing of the star.
AUREOLE, MAX_TILT = 3e-6, 0.7
LEAST_SNR = 5.0
# A model's share by the squared distance (px^2, so many steps each) from the star: all of it within 7 px, nothing from
# 12 on, before the models end. Where one image is convolved to match another, a step would ring: by 0.1 to 1.2 sigma a
# pixel, 9 to 10 px from stars of 14 to 9 mag, between images of 3.4 and 1.9 px seeing.
FADING_STEPS, _FADES = 8, (7.0, 12.0)
_RADII = np.sqrt(np.arange(FADING_STEPS * 2 * (FIT_SIZE // 2 + 2) ** 2) / FADING_STEPS)
_GONE = np.clip((_RADII - _FADES[0]) / (_FADES[1] - _FADES[0]), 0, 1)
FADING = (np.cos(0.5 * np.pi * _GONE) ** 2).astype(np.float32)
PIECES = 12.0  # px; detections nearer than this to a brighter saturated star are pieces of it
MIN_PIXELS = 60  # usable ones in the window; fewer carry no fit of three unknowns
MAX_STARS = 2000  # pieces of stars; the galactic centre must not cost seconds, but what is left out has a rim of light
MAX_SHIFT = 3.0  # px from the detection: a bled column pulls centroids along it
_STEPS = 6
_ROUGH = 4  # before them, of the flux alone
# A pixel counts for less and less from so many sigma above the model and this share of it; once the fit has settled
# (from that step on) also below it, where a combination of images may have left a hole.
EXCESS, LEEWAY, _SETTLED = 3.0, 0.1, 2
_BLOCK = 64  # stars whose PSF grids stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Star:
    """A fitted star: place (px, first is 0) and flux (DN)."""

    x: float
    y: float
    flux: float


def saturated_stars(sources: Table, saturated: B1) -> tuple[F64, F64]:
    """Places (px) of detections on saturated pixels, brightest first, pieces of one star left out.

    Parameters
    ----------
    sources : ndarray of SOURCE_DTYPE
    saturated : ndarray of bool, (ny, nx)

    Returns
    -------
    x, y : ndarray, (n,)
        At most ``MAX_STARS``.
    """
    ny, nx = saturated.shape
    x, y = sources["x"].astype(float), sources["y"].astype(float)
    ok = (x > -0.5) & (y > -0.5) & (x < nx - 0.5) & (y < ny - 0.5)  # False where NaN
    x, y, light = x[ok], y[ok], np.nan_to_num(sources["ap_flux"][ok, -1].astype(float))
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    touched = np.zeros(len(x), bool)
    for dy in (-2, 0, 2):
        for dx in (-2, 0, 2):
            touched |= saturated[np.clip(iy + dy, 0, ny - 1), np.clip(ix + dx, 0, nx - 1)]
    rows = np.flatnonzero(touched)
    rows = rows[np.lexsort((rows, -light[rows]))][:MAX_STARS]
    x, y = x[rows], y[rows]
    whole = np.zeros(len(rows), bool)
    for k in range(len(rows)):
        whole[k] = not (whole[:k] & ((x[:k] - x[k]) ** 2 + (y[:k] - y[k]) ** 2 <= PIECES**2)).any()
    return x[whole], y[whole]


def bright_stars(sources: Table, psf: PsfModel, least_peak: float) -> list[Star]:
    """Clean stars, in halos too, as photometry has them, whose peak is at least so many DN."""
    ny, nx = psf.shape
    peak = float(psf.stamp((nx - 1) / 2, (ny - 1) / 2).max())
    good = (sources["flags"] & STAR_BAD_BITS) == 0
    good &= (sources["flux"] * peak >= least_peak) & np.isfinite(sources["x"]) & np.isfinite(sources["y"])
    return [Star(*values) for values in sources[good][["x", "y", "flux"]].tolist()]


def fit_stars(
    image: F32, bad: B1, psf: PsfModel, places: tuple[F64, F64], noise: tuple[float, float]
) -> list[Star | None]:
    """Fit stars to their usable flanks.

    Parameters
    ----------
    image : ndarray, (ny, nx), float32
        DN, sky off; values of ``bad`` pixels do not count.
    bad : ndarray of bool, (ny, nx)
        Saturated and other pixels without a value; their neighbours are not fitted either.
    psf : PsfModel
        Of this image.
    places : (x, y)
        First guesses, px.
    noise : (sky variance DN^2, gain e-/DN)

    Returns
    -------
    list of Star or None
        None for what could not be fitted: too few usable pixels, nothing positive, or a plateau so wide that only such
        pixels are left in the window as the PSF hardly reaches (a flux was then what light there is over no PSF).
    """
    stars: list[Star | None] = []
    for start in range(0, len(places[0]), _BLOCK):
        x, y = (np.asarray(v[start : start + _BLOCK], float) for v in places)
        stars += _fit(image, bad, psf, (x, y), noise)
    return stars


def subtract_stars(image: F32, psf: PsfModel, stars: Sequence[Star], faded: bool = False) -> None:
    """Subtract models of stars, in place; the PSF is read at each star's own place. ``faded``: see ``FADING``."""
    _add(image, psf, [(star.x, star.y) for star in stars], stars, -1.0, faded)


def add_stars(
    image: F32, psf: PsfModel, places: Sequence[tuple[float, float]], stars: Sequence[Star], faded: bool = False
) -> None:
    """Add models of stars, in place; ``places`` say where in its own frame the PSF of each is read."""
    _add(image, psf, places, stars, 1.0, faded)


def _add(
    image: F32, psf: PsfModel, places: Sequence[tuple[float, float]], stars: Sequence[Star], sign: float, faded: bool
) -> None:
    for start in range(0, len(stars), _BLOCK):
        some = stars[start : start + _BLOCK]
        x, y, flux = np.array([(star.x, star.y, star.flux) for star in some]).T
        ix, iy = nearest_pixels(x, y)
        stamps = read_grids(_grids(psf, places[start : start + _BLOCK]), x - ix, y - iy, FIT_SIZE, psf.oversample)
        if faded:
            offset = np.arange(FIT_SIZE) - FIT_SIZE // 2
            across, down = ((offset - (v - whole)[:, None]) ** 2 for v, whole in ((x, ix), (y, iy)))
            stamps *= FADING[(FADING_STEPS * (down[:, :, None] + across[:, None, :])).astype(np.intp)]
        add_stamps(image, ix, iy, stamps * (sign * flux).astype(np.float32)[:, None, None])


def _grids(psf: PsfModel, places: Sequence[tuple[float, float]]) -> F32:
    ny, nx = psf.shape
    x, y = np.array(places, float).T
    return psf.grids(np.clip(x, 0, nx - 1), np.clip(y, 0, ny - 1), FIT_SIZE)


def _fit(image: F32, bad: B1, psf: PsfModel, start: tuple[F64, F64], noise: tuple[float, float]) -> list[Star | None]:
    """Gauss-Newton in flux and place of some stars at once; None where too little is usable or nothing positive."""
    (x0, y0), n = start, len(start[0])
    ix, iy = nearest_pixels(x0, y0)
    values, usable = _flanks(image, bad, ix, iy)
    good = usable.sum(axis=(1, 2)) >= MIN_PIXELS
    grids = _grids(psf, list(zip(x0.tolist(), y0.tolist(), strict=True)))
    x, y, flux = x0.copy(), y0.copy(), np.zeros(n)
    for turn in range(-_ROUGH, _STEPS):
        if turn == -_ROUGH or turn > 0:  # the first ones leave the place where it was
            p, px, py = read_gradients(grids, x - ix, y - iy, FIT_SIZE, psf.oversample)
        scale = flux.astype(np.float32)[:, None, None]
        light = scale * np.maximum(p, 0)
        weight = usable / (noise[0] + light / np.float32(noise[1]) + (np.float32(MODEL_ERROR) * light) ** 2)
        if turn > -_ROUGH:
            weight = weight / (1 + _unlike(values, light, turn >= _SETTLED) ** 2 * weight / np.float32(EXCESS**2))
        if turn < 0:
            flux = _dot(weight, p, values) / np.maximum(_dot(weight, p, p), 1e-30)
            good &= flux > 0
            flux[~good] = 0
            continue
        design = np.stack([p, scale * px, scale * py], axis=1).reshape(n, 3, -1)
        weighted = (design * weight.reshape(n, 1, -1)).astype(np.float64)
        normal = weighted @ design.transpose(0, 2, 1).astype(np.float64)
        normal += np.diag([1e-30, 1.0, 1.0])  # a prior of one px
        normal[~good] = np.eye(3)
        right = (weighted @ (values - scale * p).reshape(n, -1, 1).astype(np.float64))[..., 0]
        step = np.linalg.solve(normal, right[..., None])[..., 0] * good[:, None]
        flux = flux + step[:, 0]
        x, y = (v + np.clip(d, -0.5, 0.5) for v, d in ((x, step[:, 1]), (y, step[:, 2])))
        good &= (flux > 0) & (np.maximum(np.abs(x - x0), np.abs(y - y0)) <= MAX_SHIFT)
        x, y, flux = np.where(good, x, x0), np.where(good, y, y0), np.where(good, flux, 0.0)
    information = np.maximum(_dot(weight, p, p), 1e-30)
    good &= np.abs(AUREOLE * _dot(weight, p, np.ones_like(p))) < MAX_TILT * information
    good &= flux**2 * information > LEAST_SNR**2
    return [
        Star(*row) if ok else None
        for ok, *row in zip(good.tolist(), x.tolist(), y.tolist(), flux.tolist(), strict=True)
    ]


def _unlike(values: F32, light: F32, both: bool) -> F32:
    """By how much pixels exceed what a model can be wrong by: a neighbour's light, later also holes beside it."""
    off = values - light
    return np.asarray(np.maximum((np.abs(off) if both else off) - np.float32(LEEWAY) * light, 0))


def _dot(weight: NDArray[np.floating], a: F32, b: F32) -> F64:
    return np.asarray(np.einsum("ijk,ijk,ijk->i", weight, a, b, dtype=np.float64))


def _flanks(image: F32, bad: B1, ix: NDArray[np.intp], iy: NDArray[np.intp]) -> tuple[F32, B1]:
    """Windows around pixels, and which of their values are neither bad, nor beside a bad one, nor outside."""
    shape = image.shape[0], image.shape[1]
    index, inside = window_index(ix, iy, FIT_SIZE, shape)
    usable = inside & ~bad.reshape(-1)[index]
    wide = window_index(ix, iy, FIT_SIZE + 2, shape)[0]
    near = bad.reshape(-1)[wide]
    for dy in range(3):
        for dx in range(3):
            usable &= ~near[:, dy : dy + FIT_SIZE, dx : dx + FIT_SIZE]
    values = np.where(usable, image.reshape(-1)[index], np.float32(0))
    return values, usable
