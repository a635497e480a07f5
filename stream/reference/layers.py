"""The inputs of a reference on its grid, their stars apart from everything else.

Interpolating a star is what goes wrong first: a kernel rings about the cliffs of saturated stars by thousands of
DN, about sharp bright ones by some per cent of their peaks, and widens all of them in good seeing. And where one input
has a defect, the mean of the others has another PSF, so that a bad column dithered through a star leaves its mark.
Therefore every input's stars, as its own photometry and PSF have them, are subtracted, only the rest is interpolated
and clipped, and the stars' models are averaged on the new grid over all inputs that saw their place. The rest keeps
what the models get wrong. All inputs have the same list of stars: what half of them measured; who lacks one, or has
it much fainter or brighter, takes what the others agree on. So an asteroid, a "star" of one input, stays in that
input's rest and is clipped there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.astrometry import pixel_of
from stream.core.flags import Mask
from stream.core.pixelmap import PixelMap, world_to_pixel
from stream.core.psf import PsfModel
from stream.core.records import F32, Astrometry, ScienceImage
from stream.core.resample import noise_left, resample, resample_nearest
from stream.photometry import Star, add_stars, bright_stars, fit_stars, saturated_stars, subtract_stars

F64 = NDArray[np.float64]
B1 = NDArray[np.bool_]

# Defects that come and go or carry no flux: left out of the mean. Halos, ghosts, cross-talk and uneven response stand
# at the same place in every exposure; leaving them out would make holes, and what differs is clipped anyway.
EXCLUDED_BITS = int(Mask.TRACK | Mask.NOISY | Mask.SPIKE | Mask.DEAD | Mask.NAN | Mask.COSMIC_RAY)
# Stars whose peak exceeds the noise of the sky by this factor are interpolated as models: with fainter ones, what the
# kernel does to their shape is far below the noise. Were only the brightest spared it, the PSF would depend on flux.
MODELLED_PEAK = 5.0
SAME_STAR = 1.5  # px, on the reference's grid
# An input's own star agrees with the others' to this share of its flux, which the clipping allows seeing to change
# (``CombineConfig.signal``), and to this many px: what is off by less is not clipped.
SAME_FLUX, SAME_PLACE = 0.3, 0.5


@dataclass(frozen=True, slots=True)
class Input:
    """One science image's place in the mean; ``stars`` in its own px and DN, which ``scale`` makes reference DN.

    ``early``: it saturates long before the others.
    """

    name: str
    scale: float
    sky: float  # DN
    sigma: float  # DN, noise per pixel
    gain: float
    readnoise: float
    saturate: float
    fwhm: float
    jd: float
    exptime: float  # s
    psf: PsfModel
    astrometry: Astrometry
    stars: tuple[Star, ...]
    early: bool = False

    @property
    def limit(self) -> float:
        """Where it saturates, reference DN without sky; infinite where nothing says so."""
        limit = self.scale * (self.saturate - self.sky)
        return limit if np.isfinite(limit) else float("inf")


@dataclass(frozen=True, slots=True)
class Layers:
    """The inputs on the reference's grid, in reference DN.

    ``rest`` (n, ny, nx): without stars, NaN where an input has nothing to say; ``stars`` (ny, nx): the weighted mean
    of the stars' models; ``saturated``: any input was; ``left`` (n,): share of the noise's variance that the
    interpolation left.
    """

    rest: F32
    stars: F32
    saturated: B1
    left: F64


def evened(image: ScienceImage) -> ScienceImage:
    """The image as if its zero point were MAGZP everywhere."""
    surface = image.zeropoint.map
    if surface is None:
        return image
    data = image.data - image.background.level
    data *= np.exp(np.float32(-0.4 * np.log(10)) * surface.expand())
    data += image.background.level
    sources = image.sources.copy()
    factor = 10 ** (-0.4 * surface.offset(sources["x"], sources["y"]))
    for name in ("flux", "sigflux"):
        sources[name] *= factor
    for name in ("ap_flux", "ap_err"):
        sources[name] *= factor[:, None]
    return replace(image, data=data, sources=sources)


def stars_of(image: ScienceImage) -> tuple[Star, ...]:
    """Saturated stars, fitted to their flanks, and all that photometry has above ``MODELLED_PEAK``."""
    pixels = image.data - image.background.level
    saturated = (image.mask & np.uint16(Mask.SATURATED)) != 0
    bad = saturated | ((image.mask & np.uint16(EXCLUDED_BITS)) != 0) | ~np.isfinite(pixels)
    places = saturated_stars(image.sources, saturated)
    fitted = fit_stars(pixels, bad, image.psf, places, (image.background.sigma**2, image.gain))
    stars = [star for star in fitted if star is not None]
    return (*stars, *bright_stars(image.sources, image.psf, MODELLED_PEAK * image.background.sigma))


def make_layers(
    images: Sequence[ScienceImage], order: Sequence[int], inputs: Sequence[Input], wcs: WCS, rest: F32
) -> Layers:
    """Subtract, interpolate and average (see the module's docstring); each image is asked for once.

    Parameters
    ----------
    images : sequence of ScienceImage
    order : sequence of int
        Which image belongs to each of ``inputs``.
    inputs : sequence of Input
    wcs : WCS
        Of the reference.
    rest : ndarray, (n, ny, nx), float32
        Is filled.
    """
    shape = rest.shape[1], rest.shape[2]
    lists = common_stars(inputs, wcs)
    stars, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    saturated, left = np.zeros(shape, bool), np.ones(len(order))
    for k, i in enumerate(order):
        image, one, (own, here) = evened(images[i]), inputs[k], lists[k]
        map_y, map_x = _map(one.astrometry, wcs, shape)
        left[k] = noise_left(map_y, map_x)
        full = (image.mask & np.uint16(Mask.SATURATED)) != 0
        pixels = image.data - image.background.level
        subtract_stars(pixels, image.psf, own)
        pixels[full] = 0
        invalid = (image.mask & np.uint16(EXCLUDED_BITS)) != 0
        if one.early:
            invalid |= full
        moved = resample(pixels, map_y, map_x, invalid=invalid)
        moved *= np.float32(one.scale)
        rest[k] = moved
        ny, nx = image.data.shape
        seen = ((map_y >= 0) & (map_y <= ny - 1) & (map_x >= 0) & (map_x <= nx - 1)).astype(np.float32)
        seen *= np.float32(1.0 / (one.scale * one.sigma) ** 2)
        model = np.zeros(shape, np.float32)
        add_stars(model, image.psf, [(star.x, star.y) for star in own], here)
        model *= seen
        stars += model
        weights += seen
        if full.any() and not one.early:
            saturated |= np.asarray(resample_nearest(_wider(full), map_y, map_x, 0), bool)
    stars /= np.maximum(weights, np.float32(1e-30))
    return Layers(rest, stars, saturated, left)


def common_stars(inputs: Sequence[Input], wcs: WCS) -> list[tuple[list[Star], list[Star]]]:
    """For every input the same stars, twice: in its own px and DN, and in the reference's.

    Stars are what half of the inputs have, and two at least; places and fluxes the medians of theirs. An input has
    its own where they agree with those; where it has none, or one that is off (two stars that one input takes for
    one, a fit gone wrong), the common ones. Else its rest would be off by whole stars, be clipped, and the light of
    the wrong model be left in the mean.
    """
    inputs = [_unsaturated(one) if one.early else one for one in inputs]
    own = [_carried(one.stars, one.astrometry, wcs, one.scale) for one in inputs]
    everything = np.zeros((0, 3))
    for mine in own:
        _, found = _pairs(everything, mine)
        everything = np.concatenate([everything, np.delete(mine, found, axis=0)])
    everything = _agreed(everything, own, max(len(inputs) / 2, min(2, len(inputs))))
    lists = []
    for one, mine in zip(inputs, own, strict=True):
        rows, found = _pairs(everything, mine)
        theirs = everything[rows]
        off = np.abs(mine[found, 2] - theirs[:, 2]) > SAME_FLUX * theirs[:, 2]
        off |= np.hypot(*(mine[found, :2] - theirs[:, :2]).T) > SAME_PLACE
        rows, found = rows[~off], found[~off]
        lent = np.delete(everything, rows, axis=0)
        x, y = _seen_at(lent, wcs, one.astrometry)
        reached = np.isfinite(x) & np.isfinite(y)
        borrowed = np.column_stack([x, y, lent[:, 2] / one.scale])[reached]
        there = [one.stars[k] for k in found.tolist()] + [Star(*row) for row in borrowed.tolist()]
        here = [Star(*row) for row in (*mine[found].tolist(), *lent[reached].tolist())]
        lists.append((there, here))
    return lists


def _agreed(everything: F64, own: Sequence[F64], least: float) -> F64:
    """Of stars (rows of x, y, flux) those that so many inputs have, with the medians of what these have."""
    seen = np.full((len(own), *everything.shape), np.nan)
    for k, mine in enumerate(own):
        rows, found = _pairs(everything, mine)
        seen[k, rows] = mine[found]
    enough = np.isfinite(seen[..., 0]).sum(axis=0) >= least
    return np.asarray(np.nanmedian(seen[:, enough], axis=0))


def _unsaturated(one: Input) -> Input:
    """Without the stars that it saturates: the others know them better."""
    ny, nx = one.psf.shape
    most = 0.8 * (one.saturate - one.sky) / float(one.psf.stamp((nx - 1) / 2, (ny - 1) / 2).max())
    return replace(one, stars=tuple(star for star in one.stars if star.flux < most))


def _map(astrometry: Astrometry, wcs: WCS, shape: tuple[int, int]) -> tuple[F32, F32]:
    """Where the reference's pixels lie in an image, the air's displacement of that image included."""
    between = PixelMap.between(wcs, shape, astrometry.wcs)
    if astrometry.displacement is not None and between.reaches:
        xx, yy = np.meshgrid(between.xs, between.ys)
        x, y = xx + between.shift_x, yy + between.shift_y
        dx, dy, *_ = astrometry.displacement.at(x, y)
        # The field where the light was seen, not where it would have been.
        dx, dy, *_ = astrometry.displacement.at(x.ravel() - dx, y.ravel() - dy)
        between = between.moved(-dx.reshape(x.shape), -dy.reshape(x.shape))
    return between.full()


def _seen_at(stars: F64, wcs: WCS, astrometry: Astrometry) -> tuple[F64, F64]:
    """Where stars of the reference (rows of x, y, ...) are seen in an image."""
    if len(stars) == 0:
        return np.zeros(0), np.zeros(0)
    return pixel_of(astrometry, *wcs.all_pix2world(stars[:, 0], stars[:, 1], 0))


def _pairs(stars: F64, others: F64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows (of x, y, ...) of two lists that are each other's nearest, within ``SAME_STAR``."""
    if len(stars) == 0 or len(others) == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    distance, nearest = cKDTree(others[:, :2]).query(stars[:, :2])
    back = cKDTree(stars[:, :2]).query(others[:, :2])[1]
    rows = np.flatnonzero((distance <= SAME_STAR) & (back[nearest] == np.arange(len(stars))))
    return rows, np.asarray(nearest[rows], np.intp)


def _carried(stars: Sequence[Star], astrometry: Astrometry, wcs: WCS, scale: float) -> F64:
    """Stars of one image where the reference has them: rows of x, y (px) and flux (times ``scale``)."""
    if not stars:
        return np.zeros((0, 3))
    rows = np.array([(star.x, star.y, star.flux * scale) for star in stars])
    rows[:, 0], rows[:, 1] = world_to_pixel(wcs, *astrometry.sky_of(rows[:, 0], rows[:, 1]))
    return rows


def _wider(full: B1) -> B1:
    """One pixel wider to each of the four sides: an interpolated pixel beside a saturated one has taken from it."""
    wide = full.copy()
    wide[1:] |= full[:-1]
    wide[:-1] |= full[1:]
    wide[:, 1:] |= full[:, :-1]
    wide[:, :-1] |= full[:, 1:]
    return wide
