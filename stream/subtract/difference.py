"""A science image minus its reference: the steps in their order.

1. Where does each science pixel lie in the reference (``PixelMap``); what do the common stars say about throughput and
   about where the map is wrong, and how well do they say it (``match``).
2. The reference onto the science grid, once; the science image is never interpolated. Saturated stars out of both;
   defects of both into one mask (``prepare``).
3. Proper subtraction with one pair of kernels and a small correction for how the PSFs vary (``kernels``, ``zogy``).
4. The difference's slow background out of D and S, its noise checked against the empty sky (``background``).
5. What cannot be trusted is NaN again, two pixels wider than it was (particle hits and hot pixels one); where
   residuals of bright sources exceed the propagated noise, scores and errors are scaled to what is there (``floor``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream.core.errors import SubtractionError
from stream.core.pixelmap import PixelMap
from stream.core.psf import PsfModel
from stream.core.records import F32, Difference, Reference, ScienceImage
from stream.subtract import blocks
from stream.subtract.background import settle
from stream.subtract.cache import ReferenceCache, make_cache
from stream.subtract.floor import apply_floor
from stream.subtract.kernels import difference_psf, make_kernels, psfs_of, reference_transfer, tolerance_for
from stream.subtract.match import Match, MatchConfig, match_sources
from stream.subtract.prepare import Prepared, plain_growth, prepare
from stream.subtract.zogy import Errors, Planes, subtract_planes


@dataclass(frozen=True, slots=True)
class SubtractConfig:
    """Sizes and limits of the subtraction."""

    grow: int = 2  # px that unusable pixels grow by: the width of the difference kernels' core
    grow_hits: int = 1  # the same for charge that is no light: sharp, and what is left of it beside the flags is little
    background_cell: int = 128
    min_overlap: float = 0.002  # share of the science image that the reference must cover
    psf_error: float = 0.003  # of a PSF's amplitude: what two models of a star's light disagree by
    match: MatchConfig = field(default_factory=MatchConfig)


def subtract(
    science: ScienceImage,
    reference: Reference,
    config: SubtractConfig | None = None,
    cache: ReferenceCache | None = None,
) -> Difference:
    """Proper difference of a science image and its reference.

    Parameters
    ----------
    science : ScienceImage
    reference : Reference
        Any pointing; where it does not cover the science image the difference is NaN.
    config : SubtractConfig, optional
    cache : ReferenceCache, optional
        Of this reference (``make_cache``); made here where missing.

    Returns
    -------
    Difference
        ``data`` in science DN: a source of flux F adds F x P_D, P_D its ``psf`` (25 x 25 core of sum 1), so that
        ``flux = sum(data P_D) / sum(P_D^2)`` with error ``sigma / sqrt(sum(P_D^2))``. ``scorr`` has unit variance
        where there is no source. ``mask``: NAN is set where the reference has no coverage, SATURATED where it is
        saturated.

    Raises
    ------
    SubtractionError
        No overlap, or neither common stars nor zero points.
    """
    config = config or SubtractConfig()
    made = front(science, reference, config, cache)
    match, pixel_map, ready = made.match, made.pixel_map, made.ready
    shape = science.data.shape[0], science.data.shape[1]
    noise = science.background.sigma, match.flux_scale * made.typical
    psfs, transfer = psfs_of(science, reference, pixel_map), reference_transfer(pixel_map, reference)
    kernels = make_kernels(psfs, noise, transfer, shape, tolerance_for(made.left))
    planes = Planes(ready.new, ready.reference, ready.new_variance, ready.reference_variance, ready.light)
    proper = subtract_planes(planes, kernels, _errors(match, shape, config))
    sigma = _sigma(planes, kernels.gain_new, kernels.gain_reference)
    blank = plain_growth(ready.unusable, ready.hits, config.grow, config.grow_hits)
    images = proper.difference, sigma, proper.score, proper.scorr
    psf = difference_psf(science.psf, kernels)
    return finish(science, made, images, psf, float(kernels.psf.sum()), blank, config)


@dataclass(frozen=True, slots=True)
class Front:
    """What every method starts from: the stars' word, the map put right by it, both images made ready; ``typical`` the
    reference's white noise per pixel in its own DN, ``left`` the S/N of the brightest star that is not modelled."""

    match: Match
    pixel_map: PixelMap
    ready: Prepared
    typical: float
    left: float


def front(
    science: ScienceImage,
    reference: Reference,
    config: SubtractConfig,
    cache: ReferenceCache | None,
    whole: bool = False,
) -> Front:
    """Steps 1 and 2, ``whole``: with the bright stars in; ``SubtractionError`` where there is nothing to subtract."""
    if cache is None or cache.version != reference.version:
        cache = make_cache(reference)
    if whole:
        cache = cache.with_stars(reference.psf)
    pixel_map = PixelMap.between(science.astrometry.wcs, science.data.shape, reference.wcs)
    _require_overlap(reference, pixel_map, config)
    match = match_sources(science, reference, pixel_map, config.match, cache.clean)
    pixel_map = match.moved(pixel_map)
    ready = prepare(science, reference, cache, pixel_map, match)
    if float(np.isfinite(ready.template).mean()) < config.min_overlap:
        raise SubtractionError("the reference has no usable pixel on the science image", rfid=reference.rfid)
    return Front(match, pixel_map, ready, cache.typical, cache.left)


def finish(
    science: ScienceImage,
    made: Front,
    images: tuple[F32, F32, F32, F32],
    psf: PsfModel,
    psf_sum: float,
    blank: NDArray[np.bool_],
    config: SubtractConfig,
) -> Difference:
    """Steps 4 and 5, in place, on D, its sigma, S and S_corr (``psf_sum``: see ``settle``): how every method ends."""
    data, sigma, score, scorr = images
    ny, nx = data.shape
    centre = psf.stamp((nx - 1) / 2, (ny - 1) / 2)
    apply_floor(scorr, sigma, settle(data, sigma, score, scorr, blank, psf_sum, config.background_cell))
    return Difference(
        data=data,
        scorr=scorr,
        score=score,
        sigma=sigma,
        psf=psf,
        fwhm=psf.fwhm,
        reference=made.ready.template,
        mask=made.ready.mask,
        flux_scale=made.match.flux_scale,
        registration_rms=made.match.rms,
        diffmaglim=limiting_magnitude(sigma, centre, science.zeropoint.magzp),
    )


def _require_overlap(reference: Reference, pixel_map: PixelMap, config: SubtractConfig) -> None:
    ny, nx = reference.data.shape
    x, y = (v.ravel() for v in np.meshgrid(*(np.arange(0, n, 16) for n in pixel_map.shape[::-1])))
    qx, qy = pixel_map.at(x, y)
    inside = (qy >= 0) & (qy <= ny - 1) & (qx >= 0) & (qx <= nx - 1)
    if not float(inside.mean()) > config.min_overlap:
        raise SubtractionError("science and reference do not overlap on the sky", rfid=reference.rfid)


def _errors(match: Match, shape: tuple[int, int], config: SubtractConfig) -> Errors:
    ny, nx = shape
    ys, xs = np.linspace(0, ny - 1, 25), np.linspace(0, nx - 1, 25)
    dx, dy = match.error_at(xs, ys)
    return Errors(xs, ys, dx, dy, config.psf_error)


def _sigma(planes: Planes, gain_new: float, gain_reference: float) -> F32:
    """1-sigma noise per pixel of D: its kernels are close to points (they are points where the PSFs are alike)."""
    sigma = np.empty_like(planes.new_variance)
    blocks.noise_of(planes.new_variance, planes.reference_variance, gain_new, gain_reference, sigma)
    return sigma


def limiting_magnitude(sigma: F32, psf: F32, magzp: float) -> float:
    """5-sigma magnitude of a point source at the centre for the median noise of the quadrant; NaN if unknown."""
    values = sigma[::4, ::4]
    values = values[np.isfinite(values)]
    if values.size == 0 or not np.isfinite(magzp):
        return float("nan")
    flux_error = float(np.median(values)) / float(np.sqrt(np.sum(psf.astype(float) ** 2)))
    return float(magzp - 2.5 * np.log10(5 * flux_error))
