"""Which detections are single, unsaturated, undisturbed stars: what a PSF may be made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.flags import BAD_BITS, Mask
from stream.core.psf import STAMP
from stream.core.records import F32, U16, Background, Table
from stream.photometry.pairs import cross_pairs
from stream.photometry.psfkernels import Image, Windows, gather_windows, hide_discs, soft_apertures
from stream.photometry.stamps import nearest_pixels

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]

# More stars than this add nothing to a model of six terms whose errors are systematic by then.
MAX_STARS = 240
MAX_CANDIDATES = 600  # windows looked at to find them: two in five are galaxies, blends or lie beside a defect
CELLS = 5  # a side: the brightest of each cell are taken in turn, so that the stars cover the image
# Stars below S/N 20 add little; where there are fewer than 60 above it, fainter ones are taken, to S/N 8.
MIN_SNR, LOWEST_SNR, WANTED = 20.0, 8.0, 60
# Above this part of the saturation level the detector's response is no longer trusted.
SATURATION_MARGIN = 0.8
# A neighbour this near (px) or nearer disturbs the core if it has more than the fraction of the star's light.
ISOLATION = 7.0
ISOLATION_FRACTION = 0.02
# Smooth light and uneven response do not spoil a star's shape.
STAR_BAD_BITS = BAD_BITS & ~int(Mask.HALO | Mask.GHOST | Mask.SPILLAGE | Mask.CROSSTALK)
# Width of the star sequence in log concentration that is kept: seeing varies by 10 % across a quadrant.
LOCUS_WIDTH = 0.15


@dataclass(frozen=True, slots=True)
class StarStamps:
    """Windows of stars: ``values`` (n, 25, 25) DN, sky off; ``sky`` DN; ``usable``; pixel and first place of each."""

    x: F64
    y: F64
    ix: NDArray[np.intp]
    iy: NDArray[np.intp]
    values: F32
    sky: F32
    usable: BOOL

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: NDArray[np.generic]) -> StarStamps:
        return StarStamps(*(getattr(self, name)[chosen] for name in self.__slots__))


def select_stars(
    data: F32, background: Background, detections: Table, mask: U16, saturate: float
) -> tuple[StarStamps, F64]:
    """Windows of the stars that a PSF is made of, brightest cells first, and their fluxes within 5 px (DN).

    Neighbours' surroundings and defects are marked unusable in the windows. May be empty.
    """
    candidates = _clean_candidates(background, detections, saturate, (data.shape[0], data.shape[1]))
    candidates = candidates[_isolated(detections, candidates)]
    found = detections[candidates]
    candidates = candidates[_spread(found["x"], found["y"], found["flux"], data.shape, MAX_CANDIDATES)]
    stamps = gather_stars(data, background, mask, detections, candidates)
    core = stamps.usable[:, STAMP // 2 - 3 : STAMP // 2 + 4, STAMP // 2 - 3 : STAMP // 2 + 4]
    whole = core.all(axis=(1, 2)) & (stamps.usable.mean(axis=(1, 2)) > 0.6)
    inner, outer = aperture_sums(stamps, (1.5, 5.0))
    kept = np.flatnonzero(whole & (inner > 0) & (outer > inner))
    kept = kept[_on_star_locus(inner[kept], outer[kept], stamps.x[kept], stamps.y[kept], data.shape)]
    kept = kept[_spread(stamps.x[kept], stamps.y[kept], outer[kept], data.shape, MAX_STARS)]
    return stamps[kept], outer[kept]


def _clean_candidates(
    background: Background, detections: Table, saturate: float, shape: tuple[int, int]
) -> NDArray[np.intp]:
    ny, nx = shape
    half = STAMP // 2
    x, y = detections["x"], detections["y"]
    ix, iy = nearest_pixels(x, y)
    good = (ix >= half) & (iy >= half) & (ix < nx - half) & (iy < ny - half)
    good &= (detections["flags"] & STAR_BAD_BITS) == 0
    sky = background.level[np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)]
    if np.isfinite(saturate):
        good &= detections["peak"] + sky < SATURATION_MARGIN * saturate
    good &= (detections["b"] > 0) & (detections["a"] < 2 * detections["b"])
    snr = detections["snr"][good]
    wanted = np.partition(snr, -WANTED)[-WANTED] if len(snr) >= WANTED else LOWEST_SNR
    lowest = np.clip(wanted, LOWEST_SNR, MIN_SNR)
    chosen: NDArray[np.intp] = np.flatnonzero(good & (detections["snr"] > lowest))
    return chosen


def _isolated(detections: Table, chosen: NDArray[np.intp]) -> BOOL:
    x, y = detections["x"].astype(float), detections["y"].astype(float)
    alone = np.ones(len(chosen), bool)
    star, other = cross_pairs(x[chosen], y[chosen], x, y, ISOLATION)
    disturbed = (chosen[star] != other) & (
        detections["flux"][other] > ISOLATION_FRACTION * detections["flux"][chosen[star]]
    )
    alone[star[disturbed]] = False
    return alone


def gather_stars(
    data: F32, background: Background, mask: U16, detections: Table, chosen: NDArray[np.intp]
) -> StarStamps:
    """Windows of chosen detections with defects and neighbours marked unusable.

    A neighbour hides the pixels within 3 to 9 px of it, farther the brighter it is beside the star.
    """
    x, y, flux = (detections[name].astype(float) for name in ("x", "y", "flux"))
    ix, iy = nearest_pixels(x[chosen], y[chosen])
    n = len(chosen)
    values, sky = np.zeros((n, STAMP, STAMP), np.float32), np.zeros((n, STAMP, STAMP), np.float32)
    usable = np.zeros((n, STAMP, STAMP), bool)
    star, other = cross_pairs(x[chosen], y[chosen], x, y, STAMP)
    star, other = star[chosen[star] != other], other[chosen[star] != other]
    ratio = flux[other] / np.maximum(flux[chosen[star]], 1e-3)
    reach = np.clip(5.0 + 2.0 * np.log10(np.maximum(ratio, 1e-6)), 3.0, 9.0)
    bad = np.uint16(STAR_BAD_BITS)
    gather_windows(Image(data, background.level, mask, bad), ix, iy, Windows(values, usable, sky))
    hide_discs(usable, star, x[other] - ix[star], y[other] - iy[star], reach)
    values[~usable] = 0
    return StarStamps(x[chosen], y[chosen], ix, iy, values, sky, usable)


def aperture_sums(stamps: StarStamps, radii: tuple[float, ...]) -> list[F64]:
    """Flux within radii around each star's place, pixel edges softened over one px."""
    sums = np.empty((len(stamps), len(radii)))
    soft_apertures(stamps.values, stamps.x - stamps.ix, stamps.y - stamps.iy, np.array(radii), sums)
    return list(sums.T)


def _on_star_locus(inner: F64, outer: F64, x: F64, y: F64, shape: tuple[int, ...]) -> BOOL:
    """Concentration near the ridge of the stars, a plane over the image; galaxies lie below, spikes above it."""
    c = np.log(inner / outer)
    if len(c) < 5:
        return np.ones(len(c), bool)
    # Start at the mode, the densest third of a third: stars are alike, nothing else is.
    ordered = np.sort(c)
    span = max(len(c) // 3, 3)
    start = int(np.argmin(ordered[span - 1 :] - ordered[: len(c) - span + 1]))
    centre = np.full(len(c), np.median(ordered[start : start + span]))
    kept = np.abs(c - centre) < LOCUS_WIDTH
    terms = np.stack([np.ones_like(x), x / shape[1] - 0.5, y / shape[0] - 0.5], axis=1)
    for _ in range(3):
        if kept.sum() < 12:
            break
        centre = terms @ np.linalg.lstsq(terms[kept], c[kept], rcond=None)[0]
        scatter = 1.4826 * np.median(np.abs(c - centre)[kept])
        kept = np.abs(c - centre) < np.clip(4 * scatter, 0.02, LOCUS_WIDTH)
    return np.asarray(kept)


def _spread(x: F64, y: F64, flux: F64, shape: tuple[int, ...], limit: int) -> NDArray[np.intp]:
    """At most ``limit`` stars: the brightest of every cell, then the second of every cell, and so on."""
    cell = ((y * CELLS / shape[0]).astype(int) * CELLS + (x * CELLS / shape[1]).astype(int)).astype(np.uint8)
    by_cell = np.argsort(-flux, kind="stable")
    by_cell = by_cell[np.argsort(cell[by_cell], kind="stable")]
    first = np.searchsorted(cell[by_cell], np.arange(CELLS * CELLS + 1))
    rank = np.arange(len(cell)) - first[cell[by_cell]]
    if len(rank) > limit:
        few = rank <= np.partition(rank, limit)[limit]
        by_cell, rank = by_cell[few], rank[few]
    order: NDArray[np.intp] = by_cell[np.lexsort((-flux[by_cell], rank))][:limit]
    return order
