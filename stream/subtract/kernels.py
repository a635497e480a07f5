"""The kernels of a subtraction: one pair for the whole image, and small ones for how its PSFs vary.

With the mean PSFs Pn, Pr of the two images and their noise sn, sr (``^``: Fourier transform), proper subtraction
(Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27, equations 12 to 14) is

    D^ = kn^ N^ - kr^ R^,   kn^ = Pr^ / (F den),   kr^ = Pn^ / (F den),   den^2 = sn^2 |Pr^|^2 + T sr^2 |Pn^|^2

with 1 / F^2 = sn^2 + sr^2. ``T`` is the share of white noise power that the resampling of the reference leaves at each
frequency: its noise is correlated, and with T in ``den`` the difference's is white again. Where the PSFs are pn(x),
pr(x) instead, a star of flux 1 leaves ``m(x) = kn * pn(x) - kr * pr(x)`` in D. That is a small smooth function of
place; a few components M_j with polynomials c_j(x) hold it, and

    D  ->  D - sum_j G_j * (c_j R),   G_j^ = M_j^ / Pr^

takes it out: every star of the reference is matched with the PSFs of its own place, without tiles, and a new source
(which is not in R) appears as ``kn * pn(x)``, P_D at any place. That kn is made of the mean PSFs costs the square
of their relative variation in S/N, under a thousandth for a width that varies by 5 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from stream.core.lanczos import BEFORE, TAPS, lanczos_weights
from stream.core.pixelmap import PixelMap
from stream.core.psf import STAMP, PsfModel, polynomial_terms
from stream.core.records import F32, Reference, ScienceImage
from stream.core.resample import noise_left, noise_transfer

F64 = NDArray[np.float64]

WORK = 35  # px; side of the PSF images that enter the Fourier sums: wings beyond the 25 px core included
REACH = 28  # px; kernels end here: what they have beyond is under 1e-4 of their norm
GRID = 128  # px; of the small transforms in which kernels are made: no smaller than PSF and kernels together
NODES = 5  # places a side at which PSFs are compared: their differences are cubics of place
DEGREE = 3  # of the polynomials c_j: PSF models are of degree 2, their normalised product a little more
MAX_COMPONENTS = 4
TOLERANCE = 1.2e-3  # of P_D's norm, r.m.s. over the places: what of the PSFs' variation is left in, at least
MOST_TOLERANCE = 1e-2  # the same where no bright star is left to suffer from it
LEFT_SIGMA = 0.25  # what the brightest star may leave, of the noise
# Frequencies at which both PSFs are below 1e-7 carry rounding errors only; the floor keeps them from being divided up.
_FLOOR = 1e-14
_STABLE = 0.03  # |Pr^| below which the residual of a star is no longer divided by it


def core_sum(psf: NDArray[np.floating]) -> float:
    """Sum over the 25 x 25 core of an image centred on its middle pixel."""
    lost = (psf.shape[-1] - STAMP) // 2
    return float(psf[lost : lost + STAMP, lost : lost + STAMP].sum(dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the whole image is convolved with; small images (57, 57) float64 centred on the middle pixel.

    ``new``, ``reference``: kn, kr, scaled so that the P_D of mean PSFs has a core of sum 1. ``score_new``,
    ``score_reference``: kernels of S = P_D correlated with D, the latter to act on white-equivalent noise; ``psf``:
    that P_D (35, 35). ``variation`` (n_components, 57, 57): G_j, ``trend`` (n_components, n_terms): polynomials
    c_j. ``gain_new``, ``gain_reference``: variance of D per variance of N and (white-equivalent) R.
    """

    new: F64
    reference: F64
    score_new: F64
    score_reference: F64
    psf: F64
    variation: F64
    trend: F64
    gain_new: float
    gain_reference: float


@dataclass(frozen=True, slots=True)
class Psfs:
    """PSF images (n_places, 35, 35) of both images on the science grid at places ``x``, ``y`` (px)."""

    x: F64
    y: F64
    new: F32
    reference: F32


def psfs_of(science: ScienceImage, reference: Reference, pixel_map: PixelMap) -> Psfs:
    """Both PSFs on a grid of places; the reference's as the interpolation leaves it."""
    ny, nx = science.data.shape
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, nx - 1, NODES), np.linspace(0, ny - 1, NODES)))
    new = science.psf.stamps(x, y, WORK, subpixel=False)
    places = [pixel_map.at(x + dx, y + dy) for dx, dy in _around(pixel_map)]
    qx, qy = (np.stack([p[k] for p in places], axis=1) for k in (0, 1))
    return Psfs(x, y, new, resampled_psfs(reference.psf, qx, qy))


def _around(pixel_map: PixelMap) -> list[tuple[float, float]]:
    """Steps (px) about a place that meet the sub-pixel phases of its surroundings: some lines of the coarse grid."""
    step = 0.5 * (pixel_map.xs[1] - pixel_map.xs[0])
    return [
        (-0.62 * step, -0.34 * step),
        (0.38 * step, -0.74 * step),
        (-0.22 * step, 0.58 * step),
        (0.8 * step, 0.46 * step),
    ]


def make_kernels(
    psfs: Psfs, noise: tuple[float, float], transfer: F64, shape: tuple[int, int], tolerance: float = TOLERANCE
) -> Kernels:
    """Kernels for two images.

    Parameters
    ----------
    psfs : Psfs
    noise : (science, reference)
        White noise per pixel of the two, DN; the reference's before its resampling.
    transfer : ndarray, (128, 65)
        T on the half plane of a ``GRID`` transform (``reference_transfer``).
    shape : (ny, nx)
        Of the image, for the polynomials.
    tolerance : float
        What of the PSFs' variation may be left in, of P_D's norm.
    """
    n, r = _transform(psfs.new.mean(axis=0)), _transform(psfs.reference.mean(axis=0))
    sn2, sr2 = noise[0] ** 2, noise[1] ** 2
    unit = sn2 + sr2
    den2 = sn2 * np.abs(r) ** 2 + transfer * sr2 * np.abs(n) ** 2 + _FLOOR * unit
    scale = np.sqrt(unit / den2)
    new, reference = r * scale, n * scale
    psf = _image(new * n, WORK)
    norm = core_sum(psf)
    psf /= norm
    new, reference = new / norm, reference / norm
    matched = np.conj(_transform(psf))
    variation, trend = _variation(psfs, (new, reference), r, psf, shape, tolerance)
    size = 2 * REACH + 1
    plane = _weights_of_half_plane()
    return Kernels(
        new=_tapered(_image(new, size)),
        reference=_tapered(_image(reference, size)),
        score_new=_image(matched * new, size),
        score_reference=_image(matched * reference * np.sqrt(transfer), size),
        psf=psf,
        variation=variation,
        trend=trend,
        gain_new=float((np.abs(new) ** 2 * plane).sum()),
        gain_reference=float((np.abs(reference) ** 2 * transfer * plane).sum()),
    )


def tolerance_for(snr: float) -> float:
    """How much of the PSFs' variation may be left in where the brightest star that suffers from it has a S/N."""
    return float(np.clip(LEFT_SIGMA / max(snr, 1.0), TOLERANCE, MOST_TOLERANCE))


def _variation(
    psfs: Psfs,
    kernels: tuple[NDArray[np.complex128], NDArray[np.complex128]],
    mean_reference: NDArray[np.complex128],
    psf: F64,
    shape: tuple[int, int],
    tolerance: float,
) -> tuple[F64, F64]:
    """G_j and the coefficients of c_j: what stars of unit flux leave, in as few components as matter."""
    new, reference = kernels
    theirs = _transform(psfs.reference)
    planes = new * _transform(psfs.new) - reference * theirs
    # As a star with the mean PSF would leave it.
    left = _image(planes * mean_reference * np.conj(theirs) / (np.abs(theirs) ** 2 + _STABLE**2), WORK)
    terms = polynomial_terms(psfs.x, psfs.y, shape, DEGREE)
    coefficients = np.linalg.lstsq(terms, left.reshape(len(left), -1), rcond=None)[0]
    smooth = terms @ coefficients
    u, s, vt = np.linalg.svd(smooth, full_matrices=False)
    norm = float(np.sqrt((psf**2).sum()))
    count = 0
    while count < MAX_COMPONENTS and np.sqrt((smooth**2).sum(axis=1).mean()) > tolerance * norm:
        smooth = smooth - s[count] * np.outer(u[:, count], vt[count])
        count += 1
    images = vt[:count].reshape(count, WORK, WORK)
    divided = _transform(images) * np.conj(mean_reference) / (np.abs(mean_reference) ** 2 + _STABLE**2)
    trend = np.linalg.lstsq(terms, u[:, :count] * s[:count], rcond=None)[0].T
    return _tapered(_image(divided, 2 * REACH + 1)), trend


def difference_psf(psf: PsfModel, kernels: Kernels) -> PsfModel:
    """P_D at any place and any sub-pixel phase: the science PSF there, convolved with kn.

    Its nodes as finely as the science PSF has them: between pixels P_D of a sharp image cannot be guessed from its
    values on pixels (2.5 % of the flux at 1.6 px FWHM). Polynomial terms stay, being sums of nodes.
    """
    step, reach = psf.oversample, WORK // 2
    count, half = psf.basis.shape[1], psf.basis.shape[1] // 2
    # Nothing that is kept may have come around the end: an even number, at which all phases of a pixel repeat.
    pixels = fft.next_fast_len(reach + half // step + 1 + REACH + 1, real=True)
    n = pixels * step
    nodes = np.zeros((len(psf.basis), n, n), np.float32)
    index = np.arange(count) - half
    nodes[:, index[:, None], index] = psf.basis
    kernel = np.zeros((n, n), np.float32)
    index = np.arange(-REACH, REACH + 1) * step
    kernel[index[:, None], index] = kernels.new
    seen = fft.irfft2(fft.rfft2(nodes, workers=1) * fft.rfft2(kernel, workers=1), s=(n, n), workers=1)
    index = np.arange(-reach * step, reach * step + 1)
    model = PsfModel(np.ascontiguousarray(seen[:, index[:, None], index]), step, psf.degree, psf.shape, psf.fwhm)
    ny, nx = psf.shape
    return replace(model, fwhm=float(model.widths((nx - 1) / 2, (ny - 1) / 2)[0]))


def reference_transfer(pixel_map: PixelMap, reference: Reference) -> F64:
    """Share of white noise power left in the resampled reference at each frequency, (128, 65).

    Two interpolations: this one, at the sub-pixel phases of the map, and that of the reference's making. Its quality
    record says how much noise per pixel the latter left (``noise_factor``): all phases alike leave 0.93 of the r.m.s.,
    none of it is lost on a grid that needed no interpolation; in between, a mixture of the two.
    """
    ny, nx = pixel_map.shape
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, nx - 1, 23), np.linspace(0, ny - 1, 23)))
    px, py = (np.nan_to_num(p) for p in pixel_map.at(np.rint(x), np.rint(y)))
    everywhere = _transfer(None, None)
    factor = reference.qa.get("noise_factor")
    left = noise_left() if factor is None else float(factor) ** 2
    share = float(np.clip((1 - left) / (1 - noise_left()), 0, 1))
    out: F64 = (1 - share * (1 - everywhere)) * _transfer(py, px)
    return out


def _transfer(phase_y: F64 | None, phase_x: F64 | None) -> F64:
    along_y = noise_transfer(fft.fftfreq(GRID), phase_y)
    along_x = noise_transfer(fft.rfftfreq(GRID), phase_x)
    return np.asarray(along_y[:, None] * along_x, float)


def _weights_of_half_plane() -> F64:
    """Weights that make a sum over the half plane the mean over the whole one."""
    weight = np.full((GRID, GRID // 2 + 1), 2.0)
    weight[:, [0, -1]] = 1.0
    return weight / GRID**2


def _transform(images: NDArray[np.floating]) -> NDArray[np.complex128]:
    """Transforms (..., 128, 65) of small images (..., s, s) whose middle pixel is the origin."""
    return np.asarray(fft.rfft2(embedded(images, GRID)))


def embedded(images: NDArray[np.floating], n: int) -> F64:
    """Small images with their middle pixel at the origin of an (n, n) plane, wrapped."""
    half = images.shape[-1] // 2
    out = np.zeros((*images.shape[:-2], n, n))
    index = np.arange(-half, half + 1)
    out[..., index[:, None], index] = images
    return out


def _image(planes: NDArray[np.complexfloating], size: int) -> F64:
    """The middle (..., size, size) of the images of transforms."""
    whole = fft.irfft2(planes, s=(GRID, GRID))
    index = np.arange(-(size // 2), size // 2 + 1)
    return np.asarray(whole[..., index[:, None], index], float)


def _tapered(kernels: F64) -> F64:
    """Kernels that fall to nothing over their outermost 6 px: what was cut off does not ring."""
    edge = np.clip((REACH + 1 - np.abs(np.arange(-REACH, REACH + 1))) / 6, 0, 1)
    window = np.sin(0.5 * np.pi * edge) ** 2
    out: F64 = kernels * window[:, None] * window
    return out


def resampled_psfs(psf: PsfModel, places_x: F64, places_y: F64) -> F32:
    """The reference's PSF as it is on the science grid: broadened by the interpolation at the phases that occur.

    Parameters
    ----------
    psf : PsfModel
        In the reference's own pixels.
    places_x, places_y : ndarray, (n_places, k)
        Reference places (px) of science pixel centres about each place.

    Returns
    -------
    ndarray, (n_places, 35, 35), float32
        A star centred on a science pixel, resampled exactly as the image was, averaged over the k phases. The turn
        of the grid inside a stamp (0.01 px at ZTF's 0.1 degree) is left out.
    """
    ny, nx = psf.shape
    x = np.clip(np.nan_to_num(places_x), 0, nx - 1).ravel()
    y = np.clip(np.nan_to_num(places_y), 0, ny - 1).ravel()
    wide = WORK + TAPS + 2  # both odd
    wide += 1 - wide % 2
    stars = psf.stamps(x, y, wide)
    wx, wy = _shift_matrices(x - np.rint(x), wide), _shift_matrices(y - np.rint(y), wide)
    moved = np.matmul(np.matmul(wy, stars), wx.transpose(0, 2, 1))
    mean: F32 = moved.reshape(*places_x.shape, WORK, WORK).mean(axis=1)
    return mean


def _shift_matrices(fraction: F64, wide: int) -> F32:
    """(n, 35, wide): Lanczos weights that bring a star at ``fraction`` past the middle pixel onto it."""
    low = np.floor(fraction)
    weights = lanczos_weights(fraction - low)  # (n, taps)
    out = np.zeros((len(fraction), WORK, wide), np.float32)
    first = (wide // 2 - WORK // 2 - BEFORE + low).astype(int)
    n, pixel = np.arange(len(fraction))[:, None, None], np.arange(WORK)[None, :, None]
    tap = np.arange(TAPS)[None, None, :]
    out[n, pixel, first[:, None, None] + pixel + tap] = weights[:, None, :]
    return out
