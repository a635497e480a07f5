"""Both images made ready for the subtraction: one grid, one throughput, one sky, no saturated stars, no holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.flags import BAD_BITS, SOURCE_BITS, UNUSABLE_BITS, Mask
from stream.core.records import F32, U16, Reference, ScienceImage
from stream.core.resample import resample, resample_nearest
from stream.photometry import Star, add_stars, fit_stars, remove_rings, saturated_stars, subtract_stars
from stream.subtract.background import grow, mesh_level

B1 = NDArray[np.bool_]
Maps = tuple[F32, F32]

# Charge that is no light: cosmic rays, spikes, hot pixels. Calibration knows them by their shape; in S they are the
# sharpest "transients" of all. They are filled and NaN like pixels without any value.
HIT_BITS = int(Mask.NOISY | Mask.SPIKE | Mask.COSMIC_RAY)
# The reference's plateaus, a little below their limit: whatever measured it had noise.
_PLATEAU = 0.98


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the tiles work on, (ny, nx) each.

    ``new``, ``reference``: sky off, science DN, without saturated stars, no NaN; their variances (DN^2);
    ``template``: the whole reference on the science grid, NaN outside its coverage; ``mask``: the science mask with the
    reference's defects; ``unusable``, ``hits``: pixels that were filled.
    """

    new: F32
    reference: F32
    new_variance: F32
    reference_variance: F32
    template: F32
    mask: U16
    unusable: B1
    hits: B1


def prepare(
    science: ScienceImage, reference: Reference, maps: Maps, flux_scale: float, background_cell: int
) -> Prepared:
    """Sky off, background matched, variances made, saturated stars removed, unusable pixels filled.

    Parameters
    ----------
    maps : (map_y, map_x)
        Reference pixel of each science pixel.
    flux_scale : float
        Reference DN times this is science DN.
    background_cell : int
        Side (px) of the cells in which the backgrounds are matched.
    """
    scale = np.float32(flux_scale)
    plateau = _plateau(reference)
    reference_variance, mask = _noise_and_mask(science, reference, maps, plateau)
    new, variance = _science_pixels(science)
    pairs = _saturated_pairs(science, reference, maps, (new, mask, plateau))
    own, theirs = [star for star, _ in pairs], [star for _, star in pairs]
    subtract_stars(new, science.psf, own)
    alone = resample(_starless(reference, theirs, plateau), *maps)
    alone *= scale
    mask[~(np.isfinite(alone) & np.isfinite(new))] |= np.uint16(Mask.NAN)
    template = _template(alone, reference, mask, own, theirs, scale)
    unusable, hits, ignore = _kinds(science, new, mask)
    level = mesh_level(new - alone, ignore, background_cell)
    no_light = np.uint16(Mask.SATURATED)
    for rows in _row_blocks(len(new)):
        n, t, r = new[rows], alone[rows], reference_variance[rows]
        n -= level[rows]
        r *= scale
        np.square(r, out=r)
        # Where either image is unusable both get the same value: nothing to subtract, nothing to ring.
        np.copyto(t, n, where=~np.isfinite(t))
        np.copyto(t, np.float32(0), where=~np.isfinite(t) | ((mask[rows] & no_light) != 0))
        np.copyto(n, t, where=unusable[rows] | hits[rows])
    without_value = unusable | hits
    remove_rings(new, without_value, own)
    remove_rings(alone, without_value, own)
    return Prepared(new, alone, variance, reference_variance, template, mask, unusable, hits)


def _row_blocks(n: int, rows: int = 64) -> list[slice]:
    """Slices of rows small enough that what is made of them on the way stays in the processor's cache."""
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def _plateau(reference: Reference) -> B1:
    """Saturated pixels of the reference, on its own grid."""
    if not np.isfinite(reference.saturate):
        return np.zeros(reference.data.shape, bool)
    full: B1 = reference.data >= np.float32(_PLATEAU * reference.saturate)  # False where NaN
    return full


def _noise_and_mask(science: ScienceImage, reference: Reference, maps: Maps, plateau: B1) -> tuple[F32, U16]:
    """The reference's 1-sigma noise (its own DN) on the science grid, and the science mask with its saturated pixels.

    One look-up serves both: the sign carries the saturation.
    """
    unc = np.where(plateau, -reference.unc, reference.unc)
    noise = np.asarray(resample_nearest(unc, *maps, np.nan), np.float32)
    mask = science.mask.copy()
    # One pixel wider: a pixel beside the nearest one of the four around a place.
    mask[grow(noise < 0, 1)] |= np.uint16(Mask.SATURATED)
    np.abs(noise, out=noise)
    known = noise[::8, ::8][np.isfinite(noise[::8, ::8])]
    np.copyto(noise, np.float32(np.median(known) if known.size else 0), where=~np.isfinite(noise))
    return noise, mask


def _science_pixels(science: ScienceImage) -> tuple[F32, F32]:
    """The science image without its sky, and its variance."""
    shape, rms = science.data.shape, science.background.rms
    new, variance = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for rows in _row_blocks(shape[0]):
        n, v = new[rows], variance[rows]
        np.subtract(science.data[rows], science.background.level[rows], out=n)
        np.square(rms[rows], out=v)
        # Photons of sources; pixels below 2 sigma are sky, whose noise the r.m.s. has already.
        v += np.where(n > 2 * rms[rows], n, np.float32(0)) * np.float32(1.0 / science.gain)
        np.copyto(v, np.float32(science.background.sigma**2), where=~np.isfinite(v))
    return new, variance


def _saturated_pairs(
    science: ScienceImage, reference: Reference, maps: Maps, pixels: tuple[F32, U16, B1]
) -> list[tuple[Star, Star]]:
    """Stars saturated in either image, as fitted in the science image and in the reference; only those fitted in both:
    a star taken from one image alone would be a transient."""
    new, mask, plateau = pixels
    saturated = (mask & np.uint16(Mask.SATURATED)) != 0
    if not saturated.any():
        return []
    x, y = saturated_stars(science.sources, saturated)
    iy, ix = np.rint(y).astype(int), np.rint(x).astype(int)
    # A science pixel is a reference pixel but for a thousandth: fractions carry over.
    there_x, there_y = maps[1][iy, ix] + (x - ix), maps[0][iy, ix] + (y - iy)
    inside = np.isfinite(there_x) & np.isfinite(there_y)
    x, y, there_x, there_y = (v[inside] for v in (x, y, there_x, there_y))
    bad = saturated | ((mask & np.uint16(UNUSABLE_BITS | HIT_BITS)) != 0) | ~np.isfinite(new)
    own = fit_stars(new, bad, science.psf, (x, y), (science.background.sigma**2, science.gain))
    typical = reference.unc[::8, ::8]
    variance = float(np.median(typical[np.isfinite(typical)])) ** 2 if np.isfinite(typical).any() else 1.0
    gain = float(reference.qa.get("gain", science.gain * max(reference.n_frames, 1)))
    bad = plateau | ~np.isfinite(reference.data)
    theirs = fit_stars(reference.data, bad, reference.psf, (there_x, there_y), (variance, gain))
    return [(a, b) for a, b in zip(own, theirs, strict=True) if a is not None and b is not None]


def _starless(reference: Reference, stars: list[Star], plateau: B1) -> F32:
    """The reference's pixels without the stars; plateaus, which would ring in the interpolation, are gone with them."""
    if not plateau.any() and not stars:
        return reference.data
    out = reference.data.copy()
    subtract_stars(out, reference.psf, stars)
    out[plateau] = 0
    return out


def _template(
    alone: F32, reference: Reference, mask: U16, own: list[Star], theirs: list[Star], scale: np.float32
) -> F32:
    """The reference on the science grid with its stars in, their cores as bright as the plateau."""
    template = alone.copy()
    here = [Star(a.x, a.y, float(scale) * b.flux) for a, b in zip(own, theirs, strict=True)]
    add_stars(template, reference.psf, [(b.x, b.y) for b in theirs], here)
    if np.isfinite(reference.saturate):
        full = np.flatnonzero(mask & np.uint16(Mask.SATURATED))
        flat = template.reshape(-1)
        limit = np.float32(reference.saturate) * scale
        flat[full] = np.where(np.isfinite(flat[full]), np.minimum(flat[full], limit), flat[full])
    return template


def _kinds(science: ScienceImage, new: F32, mask: U16) -> tuple[B1, B1, B1]:
    """Pixels without a value, pixels with charge that is no light, and pixels that say nothing about the sky."""
    shape, rms = mask.shape, science.background.rms
    unusable, hits, ignore = (np.empty(shape, bool) for _ in range(3))
    for rows in _row_blocks(shape[0]):
        bits = mask[rows]
        np.not_equal(bits & np.uint16(UNUSABLE_BITS), 0, out=unusable[rows])
        np.not_equal(bits & np.uint16(HIT_BITS), 0, out=hits[rows])
        np.not_equal(bits & np.uint16(BAD_BITS | SOURCE_BITS), 0, out=ignore[rows])
        ignore[rows] |= new[rows] > 5 * rms[rows]
    return unusable, hits, ignore
