"""What is measured of a difference image beside its truth; the same for ours and for other programs' differences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from stream.core.records import Reference, ScienceImage
from stream.subtract.difference import Front
from stream.subtract.kernels import psfs_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Box = tuple[slice, slice]

CELL = 256  # px
ALLOWED = 0.02  # of a cell's sigma from 1
LEAST = 3000  # pixels of empty sky in a cell that is counted
BRIGHT, FAINT = 15.0, 20.0  # magnitudes of the stars that are looked at
ISOLATION = 8.0  # px


@dataclass(frozen=True, slots=True)
class Sky:
    """Truth of one exposure: places (px), magnitudes, fluxes (DN) and whether a source is a constant star."""

    x: F64
    y: F64
    mag: F64
    flux: F64
    star: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scene:
    """What all methods start from, in one box of the science image, and its truth (places in the box).

    ``new``, ``reference``, ``variances``: the prepared planes (``stream.subtract.prepare``), DN; ``unusable``;
    ``light``: science image without its sky; ``gains``: e-/DN of the two; ``psfs``: mean PSFs (35, 35); ``noise``:
    DN a pixel, the science image's from its photons and read noise (its measured r.m.s. has the faint sources in, which
    a subtraction takes out), the reference's the median of its variance.
    """

    new: F32
    reference: F32
    variances: tuple[F32, F32]
    unusable: NDArray[np.bool_]
    light: F32
    gains: tuple[float, float]
    psfs: tuple[F64, F64]
    noise: tuple[float, float]
    sky: Sky
    empty: NDArray[np.bool_]


def scene(science: ScienceImage, reference: Reference, made: Front, truth: Sky, box: Box) -> Scene:
    """The scene of a box of the science image."""
    ready = made.ready
    y0, x0, ny, nx = box[0].start, box[1].start, box[0].stop - box[0].start, box[1].stop - box[1].start
    inside = (truth.x > x0 - 60) & (truth.x < x0 + nx + 60) & (truth.y > y0 - 60) & (truth.y < y0 + ny + 60)
    sky = Sky(truth.x[inside] - x0, truth.y[inside] - y0, truth.mag[inside], truth.flux[inside], truth.star[inside])
    psfs = psfs_of(science, reference, made.pixel_map)
    variances = ready.new_variance[box], ready.reference_variance[box]
    photons = float(np.median(science.background.level[box])) / science.gain
    noise = float(np.hypot(np.sqrt(photons), science.readnoise / science.gain))
    return Scene(
        ready.new[box], ready.reference[box], variances, (ready.unusable | ready.hits)[box],
        (science.data - science.background.level)[box],
        (science.gain, float(reference.qa.get("gain", science.gain * reference.n_frames))),
        (psfs.new.mean(axis=0).astype(float), psfs.reference.mean(axis=0).astype(float)),
        (noise, float(np.sqrt(np.median(variances[1])))),
        sky, empty_sky(sky, (ny, nx)),
    )  # fmt: skip


def empty_sky(sky: Sky, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels away from every true source, further from brighter ones."""
    empty = np.ones(shape, bool)
    for x, y, r in zip(sky.x, sky.y, reach(sky.flux).astype(int), strict=True):
        a, b = round(float(x)), round(float(y))
        empty[max(b - r, 0) : max(b + r + 1, 0), max(a - r, 0) : max(a + r + 1, 0)] = False
    return empty


def reach(flux: F64) -> F64:
    """Distance (px) from sources of a flux (DN) at which none of their light is left, for what is looked at here."""
    return np.asarray(np.clip(6 + 5 * np.log10(np.maximum(flux, 50) / 50), 5, 60), float)


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured of one difference; ``loss``: mag that its 5-sigma limit falls short of the theoretical one,
    ``good_by_noise``: share of cells whose sigma would be as wanted by noise alone."""

    mean: float
    worst_mean: float
    sigma: tuple[float, float]  # NaN, as all of the empty sky, where no cell has enough of it
    good_cells: float
    good_by_noise: float
    cells: int
    stars_ok: float
    stars: int
    dipoles: int
    loss: float
    seconds: float


def figures(data: F32, scorr: F32, psf: F64, there: Scene, seconds: float) -> Figures:
    """Sky, stars and depth of a difference ``data`` in which a source of flux 1 DN is ``psf``, and of its S_corr."""
    ny, nx = data.shape
    means, sigmas, by_noise = [], [], []
    correlated = correlation_area(psf)
    seen = there.empty & np.isfinite(scorr)
    for j in range(0, ny - CELL // 2, CELL):
        for i in range(0, nx - CELL // 2, CELL):
            cell = np.s_[j : j + CELL, i : i + CELL]
            values = scorr[cell][seen[cell]]
            if len(values) > LEAST:
                means.append(float(values.mean()))
                sigmas.append(float(values.std()))
                error = np.sqrt(correlated / len(values) / 2)
                by_noise.append(math.erf(ALLOWED / error / math.sqrt(2)))
    if not means:  # a crowd's sky is nowhere empty
        means, sigmas, by_noise = [math.nan], [math.nan], [math.nan]
    chi, peaks = at_stars(data, scorr, there)
    good = [abs(s - 1) <= ALLOWED for s in sigmas]
    cells = int(np.isfinite(means).sum())
    return Figures(
        float(np.mean(means)), float(np.abs(means).max()), (min(sigmas), max(sigmas)),
        float(np.mean(good)) if cells else math.nan,
        float(np.mean(by_noise)), cells, float(np.mean(chi < 1.2)), len(chi), int((peaks > 5).sum()),
        loss(data, psf, there), seconds,
    )  # fmt: skip


def correlation_area(psf: F64) -> float:
    """Pixels of S_corr that tell its variance as well as one independent value: the sum of its squared correlation.

    S is white noise matched with ``psf``, so that its correlation is the PSF's own.
    """
    power = np.abs(fft.rfft2(psf, (128, 128))) ** 2
    correlation = fft.irfft2(power, (128, 128))
    return float(((correlation / correlation[0, 0]) ** 2).sum())


def at_stars(data: F32, scorr: F32, there: Scene) -> tuple[F64, F64]:
    """R.m.s. over photon noise in 7 x 7 px and largest |S_corr| at isolated constant stars without unusable pixels."""
    ny, nx = data.shape
    sky = there.sky
    wanted = sky.star & (sky.mag > BRIGHT) & (sky.mag < FAINT)
    wanted &= (sky.x > 15) & (sky.y > 15) & (sky.x < nx - 16) & (sky.y < ny - 16)
    some = sky.mag < 20.5
    tree = cKDTree(np.stack([sky.x[some], sky.y[some]], 1))
    wanted[wanted] = tree.query(np.stack([sky.x[wanted], sky.y[wanted]], 1), k=2)[0][:, 1] > ISOLATION
    quiet = float(np.nanmedian(np.abs(data[::5, ::5]))) * 1.4826
    chi, peaks = [], []
    for x, y in zip(sky.x[wanted], sky.y[wanted], strict=True):
        box = np.s_[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4]
        values = data[box]
        if not np.isfinite(values).all():
            continue
        light = np.maximum(there.light[box], 0)
        variance = quiet**2 + light * (1 / there.gains[0] + 1 / there.gains[1])
        chi.append(float(np.sqrt(np.mean(values**2 / variance))))
        peaks.append(float(np.nanmax(np.abs(scorr[box]))))
    return np.array(chi), np.array(peaks)


def loss(data: F32, psf: F64, there: Scene) -> float:
    """Mag between the scatter of fluxes fitted to empty sky and what noise and PSFs of the two images allow.

    The limit is that of proper subtraction (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27, section 3): the information on
    the flux of a new source is the sum of |Pn Pr|^2 / (sn^2 |Pr|^2 + sr^2 |Pn|^2) over the frequencies.
    """
    n, r = (np.abs(spectrum(p, (256, 256))) ** 2 for p in there.psfs)
    weight = np.full(n.shape, 2.0)
    weight[:, [0, -1]] = 1
    information = weight * n * r / (there.noise[0] ** 2 * r + there.noise[1] ** 2 * n + 1e-14)
    least = 1 / np.sqrt(information.sum() / 256**2)
    fitted = ndimage.correlate(np.nan_to_num(data), psf.astype(np.float32), mode="nearest") / float((psf**2).sum())
    clean = there.empty & ~ndimage.binary_dilation(~np.isfinite(data), iterations=5)
    if clean.sum() < LEAST:
        return math.nan
    return float(2.5 * np.log10(_scatter(fitted[clean]) / least))


def score_of(data: F32, psf: F64, there: Scene) -> F32:
    """S_corr of a difference whose program gives none: matched with its PSF, over the noise of sky and sources, scaled
    to its own scatter on empty sky; unusable pixels NaN."""
    score = ndimage.correlate(np.nan_to_num(data), psf.astype(np.float32), mode="nearest")
    variance = ndimage.correlate(there.variances[0] + there.variances[1], (psf**2).astype(np.float32), mode="nearest")
    score /= np.sqrt(np.maximum(variance, np.float32(1e-6)))
    score[there.unusable] = np.nan
    out: F32 = (score / np.float32(_scatter(score[there.empty & np.isfinite(score)]))).astype(np.float32)
    return out


def spectrum(psf: F64, shape: tuple[int, int]) -> NDArray[np.complex128]:
    """Transform of a small image whose middle pixel is the origin, on the half plane of an image of ``shape``."""
    half = psf.shape[0] // 2
    wide = np.zeros(shape)
    wide[: psf.shape[0], : psf.shape[1]] = psf
    return np.asarray(fft.rfft2(np.roll(wide, (-half, -half), (0, 1))))


def _scatter(values: NDArray[np.floating]) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
