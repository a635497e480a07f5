"""Both images made ready for the subtraction: one grid, one throughput, no saturated stars, no holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.flags import UNUSABLE_BITS, Mask
from stream.core.pixelmap import PixelMap
from stream.core.records import F32, U16, Reference, ScienceImage
from stream.core.resample import carry, resample_bridged
from stream.photometry import Star, add_stars, fit_stars, saturated_stars, subtract_stars
from stream.subtract import blocks
from stream.subtract.background import grow
from stream.subtract.cache import ReferenceCache, reference_gain
from stream.subtract.match import Match
from stream.subtract.models import own_places, paint, places_on
from stream.subtract.rings import remove_rings

B1 = NDArray[np.bool_]

# Charge that is no light: cosmic rays, spikes, hot pixels. Calibration knows them by their shape; in S they are the
# sharpest "transients" of all. They are filled and NaN like pixels without any value.
HIT_BITS = int(Mask.NOISY | Mask.SPIKE | Mask.COSMIC_RAY)
_SAME_STAR = 3.0  # px: places of a saturated star in two images differ by a part of its plateau


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the subtraction works on, (ny, nx) each.

    ``new``, ``reference``: sky off, science DN, without saturated and modelled stars, no NaN; their variances (DN^2),
    the reference's white-equivalent; ``light``: the reference with modelled stars in, no NaN;
    ``template``: the whole reference on the science grid, NaN outside its coverage; ``mask``: the science mask with the
    reference's defects; ``unusable``, ``hits``: pixels that were filled.
    """

    new: F32
    reference: F32
    new_variance: F32
    reference_variance: F32
    light: F32
    template: F32
    mask: U16
    unusable: B1
    hits: B1


def prepare(
    science: ScienceImage, reference: Reference, cache: ReferenceCache, pixel_map: PixelMap, match: Match
) -> Prepared:
    """Sky off, variances made, saturated stars removed, unusable pixels filled.

    Parameters
    ----------
    pixel_map : PixelMap
        Reference pixel of each science pixel.
    match : Match
        Its throughput.
    """
    nodes, shape = pixel_map.nodes(), pixel_map.shape
    reference_variance, full = carry(cache.sigma, cache.typical, cache.full, nodes, match.flux_scale)
    mask = science.mask.copy()
    mask[full] |= np.uint16(Mask.SATURATED)
    new, new_variance = _science_pixels(science)
    pairs, alone, models = _saturated_pairs(science, reference, cache, pixel_map, (new, mask))
    own, theirs = [star for star, _ in pairs], [star for _, star in pairs]
    subtract_stars(new, science.psf, own, faded=True)
    here = places_on(pixel_map, models[:, 0], models[:, 1])
    flux = match.scale_at(*here, shape) * models[:, 2]
    widths = science.seeing, reference.psf.fwhm
    own_here = own_places(here, match.error_of(*here), models[:, 3], science.sources, widths)
    paint(new, science.psf, *own_here, -flux)
    left = resample_bridged(alone, cache.empty, nodes, match.scale_on(nodes))
    outside = np.isnan(left)
    mask[outside | np.isnan(new)] |= np.uint16(Mask.NAN)
    light = left.copy()
    paint(light, reference.psf, *here, flux, (models[:, 0], models[:, 1]))
    template = _template(light, reference, mask, (own, theirs), match)
    light[outside] = 0
    unusable = (mask & np.uint16(UNUSABLE_BITS)) != 0
    hits = (mask & np.uint16(HIT_BITS)) != 0
    _fill(new, left, mask, unusable, hits)
    without_value = unusable | hits
    remove_rings(new, left, without_value, own)
    return Prepared(new, left, new_variance, reference_variance, light, template, mask, unusable, hits)


def _fill(new: F32, reference: F32, mask: U16, unusable: B1, hits: B1) -> None:
    """Where either image is unusable both get the same value, in place: nothing to subtract, nothing to ring."""
    place = np.flatnonzero(unusable | hits | np.isnan(new) | np.isnan(reference))
    n, r = new.reshape(-1), reference.reshape(-1)
    value = np.where(np.isfinite(r[place]), r[place], n[place])
    full = (mask.reshape(-1)[place] & np.uint16(Mask.SATURATED)) != 0
    value[~np.isfinite(value) | full] = 0
    r[place] = value
    filled = unusable.reshape(-1)[place] | hits.reshape(-1)[place] | ~np.isfinite(n[place])
    n[place[filled]] = value[filled]


def _science_pixels(science: ScienceImage) -> tuple[F32, F32]:
    """The science image without its sky, and its variance."""
    new, variance = np.empty(science.data.shape, np.float32), np.empty(science.data.shape, np.float32)
    planes = science.data, science.background.level, science.background.rms
    data, level, rms = (np.ascontiguousarray(v, np.float32) for v in planes)
    blocks.science_pixels(data, level, rms, float(science.gain), float(science.background.sigma**2), new, variance)
    return new, variance


def _saturated_pairs(
    science: ScienceImage,
    reference: Reference,
    cache: ReferenceCache,
    pixel_map: PixelMap,
    pixels: tuple[F32, U16],
) -> tuple[list[tuple[Star, Star]], F32, NDArray[np.float64]]:
    """Stars saturated in either image, as fitted in the science image and in the reference; the reference's pixels
    without them; and the modelled stars that are not among them. Only those fitted in both: a star taken from one image
    alone would be a transient."""
    new, mask = pixels
    saturated = (mask & np.uint16(Mask.SATURATED)) != 0
    x, y = saturated_stars(science.sources, saturated) if saturated.any() else (np.zeros(0), np.zeros(0))
    there_x, there_y = pixel_map.at(x, y)
    bad = saturated | ((mask & np.uint16(UNUSABLE_BITS | HIT_BITS)) != 0) | np.isnan(new)
    own = fit_stars(new, bad, science.psf, (x, y), (science.background.sigma**2, science.gain)) if len(x) else []
    gone = np.concatenate([cache.stars, cache.models[:, :3]])
    known = _nearest(gone, there_x, there_y)
    theirs: list[Star | None] = [None if k < 0 else Star(*gone[k].tolist()) for k in known.tolist()]
    inside = (there_x > -0.5) & (there_y > -0.5)
    inside &= (there_x < reference.data.shape[1] - 0.5) & (there_y < reference.data.shape[0] - 0.5)
    rest = np.flatnonzero((known < 0) & inside)
    if len(rest):
        noise = cache.typical**2, reference_gain(reference, science.gain)
        places = there_x[rest], there_y[rest]
        fitted = fit_stars(reference.data, cache.full | cache.empty, reference.psf, places, noise)
        for k, star in zip(rest.tolist(), fitted, strict=True):
            theirs[k] = star
    out = [own[k] is not None and theirs[k] is not None for k in range(len(x))]
    pairs = [(a, b) for a, b, ok in zip(own, theirs, out, strict=True) if ok and a is not None and b is not None]
    more = [theirs[k] for k in rest.tolist() if out[k]]
    used = {int(known[k]) for k in range(len(x)) if out[k] and known[k] >= 0}
    lonely = [Star(*row) for k, row in enumerate(cache.stars.tolist()) if k not in used]
    models = cache.models[[len(cache.stars) + k not in used for k in range(len(cache.models))]]
    if not more and not lonely:
        return pairs, cache.pixels, models
    alone = cache.pixels.copy()
    if more:
        subtract_stars(alone, reference.psf, [star for star in more if star is not None], faded=True)
        alone[cache.full] = 0  # a plateau minus a star is a hole
    add_stars(alone, reference.psf, [(star.x, star.y) for star in lonely], lonely, faded=True)
    if lonely:  # what comes back on a plateau is no more than it was
        alone[cache.full] = np.minimum(alone[cache.full], np.float32(reference.saturate))
    return pairs, alone, models


def _nearest(stars: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Row of the cached star at each place, -1 where there is none; no row twice."""
    if len(stars) == 0 or len(x) == 0:
        return np.full(len(x), -1, np.int64)
    places = np.stack([np.nan_to_num(x, nan=-1e9), np.nan_to_num(y, nan=-1e9)], axis=1)
    distance, row = cKDTree(stars[:, :2]).query(places, distance_upper_bound=_SAME_STAR)
    row = np.where(np.isfinite(distance), row, -1).astype(np.int64)
    first: dict[int, int] = {}
    for k, r in enumerate(row.tolist()):
        if r >= 0 and (r not in first or distance[k] < distance[first[r]]):
            first[r] = k
    return np.array([r if r >= 0 and first[r] == k else -1 for k, r in enumerate(row.tolist())], np.int64)


def _template(light: F32, reference: Reference, mask: U16, stars: tuple[list[Star], list[Star]], match: Match) -> F32:
    """The reference on the science grid with its stars in, their cores as bright as the plateau."""
    template = light.copy()
    own, theirs = stars
    x, y = np.array([(a.x, a.y) for a in own], float).reshape(-1, 2).T
    scales = match.scale_at(x, y, (light.shape[0], light.shape[1]))
    here = [Star(a.x, a.y, k * b.flux) for a, b, k in zip(own, theirs, scales.tolist(), strict=True)]
    add_stars(template, reference.psf, [(b.x, b.y) for b in theirs], here, faded=True)
    if np.isfinite(reference.saturate):
        full = np.flatnonzero(mask & np.uint16(Mask.SATURATED))
        flat = template.reshape(-1)
        limit = np.float32(reference.saturate * match.flux_scale)
        flat[full] = np.where(np.isfinite(flat[full]), np.minimum(flat[full], limit), flat[full])
    return template


def plain_growth(unusable: B1, hits: B1, wide: int, narrow: int) -> B1:
    """Pixels that cannot be trusted in a difference: the filled ones and their surroundings."""
    blank = grow(unusable, wide)
    blank |= grow(hits & ~unusable, narrow)
    return blank
