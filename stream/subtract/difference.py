"""A science image minus its reference: the steps in their order.

1. Where does each science pixel lie in the reference (``pixel_map``); what do the common stars say about
   throughput, residual offset and registration error (``match``).
2. The reference onto the science grid, once; the science image is never interpolated. Saturated stars out of both;
   defects of both into one mask; the difference's slow background out (``prepare``).
3. Proper subtraction in overlapping tiles, each with the PSFs of its own place (``zogy``), joined over 16 px wide
   seams so that nothing steps at a border.
4. What cannot be trusted is NaN again, two pixels wider than it was (particle hits and hot pixels one); where
   residuals of bright sources exceed the propagated noise, scores and errors are scaled to what is there (``floor``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from stream.core.errors import SubtractionError
from stream.core.psf import polynomial_terms
from stream.core.records import F32, Difference, Reference, ScienceImage
from stream.core.resample import noise_left, noise_transfer, pixel_map
from stream.subtract.background import grow
from stream.subtract.floor import apply_floor, excess_noise
from stream.subtract.kernels import WORK, TilePsf, fwhm_of, resampled_psfs, tile_places
from stream.subtract.match import Match, MatchConfig, match_sources
from stream.subtract.prepare import Prepared, prepare
from stream.subtract.zogy import Plan, TileInput, TileOutput, subtract_tile


@dataclass(frozen=True, slots=True)
class SubtractConfig:
    """Sizes and limits of the subtraction."""

    tile: int = 384  # px; PSFs are constant inside a tile, and 384 + 2 x 48 = 480 is a fast transform
    margin: int = 48  # px around a tile that are computed and cropped: the kernels reach about 20 px
    seam: int = 16  # px over which neighbouring tiles are blended
    grow: int = 2  # px that unusable pixels grow by: the width of the difference kernels' core
    grow_hits: int = 1  # the same for charge that is no light: sharp, and what is left of it beside the flags is little
    background_cell: int = 256
    min_overlap: float = 0.002  # share of the science image that the reference must cover
    match: MatchConfig = field(default_factory=MatchConfig)


def subtract(science: ScienceImage, reference: Reference, config: SubtractConfig | None = None) -> Difference:
    """Proper difference of a science image and its reference.

    Parameters
    ----------
    science : ScienceImage
    reference : Reference
        Any pointing; where it does not cover the science image the difference is NaN.
    config : SubtractConfig, optional

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
    map_y, map_x = pixel_map(science.astrometry.wcs, science.data.shape, reference.wcs)
    _require_overlap(reference, map_y, map_x, config)
    match = match_sources(science, reference, map_y, map_x, config.match)
    _shift_map(map_y, map_x, match)
    ready = prepare(science, reference, (map_y, map_x), match.flux_scale, config.background_cell)
    if float(np.isfinite(ready.template).mean()) < config.min_overlap:
        raise SubtractionError("the reference has no usable pixel on the science image", rfid=reference.rfid)
    tiles = _Tiles(science.data.shape, config)
    psf = tiles.run(science, reference, ready, map_y, map_x, match)
    data, sigma, score, scorr = tiles.finish(ready.unusable, ready.hits)
    apply_floor(scorr, sigma, excess_noise(scorr))
    centre = psf.stamp((data.shape[1] - 1) / 2, (data.shape[0] - 1) / 2)
    return Difference(
        data=data,
        scorr=scorr,
        score=score,
        sigma=sigma,
        psf=psf,
        fwhm=fwhm_of(centre),
        reference=ready.template,
        mask=ready.mask,
        flux_scale=match.flux_scale,
        registration_rms=match.rms,
        diffmaglim=_limiting_magnitude(sigma, centre, science.zeropoint.magzp),
    )


def _require_overlap(reference: Reference, map_y: F32, map_x: F32, config: SubtractConfig) -> None:
    ny, nx = reference.data.shape
    y, x = map_y[::16, ::16], map_x[::16, ::16]
    inside = (y >= 0) & (y <= ny - 1) & (x >= 0) & (x <= nx - 1)
    if not float(inside.mean()) > config.min_overlap:
        raise SubtractionError("science and reference do not overlap on the sky", rfid=reference.rfid)


def _shift_map(map_y: F32, map_x: F32, match: Match) -> None:
    """Add the residual offset of the stars to the map, in place."""
    ny, nx = map_y.shape
    for target, coefficients in ((map_y, match.offset_y), (map_x, match.offset_x)):
        if not np.any(coefficients):
            continue
        if len(coefficients) == 1:
            target += np.float32(coefficients[0])
            continue
        along_x = polynomial_terms(np.arange(nx), np.full(nx, (ny - 1) / 2), (ny, nx), 1) @ coefficients
        along_y = polynomial_terms(np.full(ny, (nx - 1) / 2), np.arange(ny), (ny, nx), 1) @ coefficients
        target += along_x.astype(np.float32)
        target += (along_y - coefficients[0]).astype(np.float32)[:, None]


class _Tiles:
    """Cuts the images into tiles, runs them, joins the results."""

    def __init__(self, shape: tuple[int, int], config: SubtractConfig) -> None:
        self.shape = shape
        self.config = config
        self.ys, self.xs = (_tile_starts(n, config.tile) for n in shape)
        self.core = max(int(np.diff(np.append(v, n)).max()) for v, n in ((self.ys, shape[0]), (self.xs, shape[1])))
        self.n = fft.next_fast_len(self.core + 2 * config.margin, real=True)
        self.n += self.n % 2  # odd sizes shift D against S (ztf-facts §5.3)
        while fft.next_fast_len(self.n, real=True) != self.n or self.n % 2:
            self.n += 1
        self.plan = Plan(self.n, WORK)
        self.data, self.variance, self.score, self.score_variance = (np.zeros(shape, np.float32) for _ in range(4))

    def run(
        self, science: ScienceImage, reference: Reference, ready: Prepared, map_y: F32, map_x: F32, match: Match
    ) -> TilePsf:
        """All tiles, row by row; the difference's PSFs."""
        ny, nx = self.shape
        ends_y, ends_x = np.append(self.ys[1:], ny), np.append(self.xs[1:], nx)
        yc, xc = (self.ys + ends_y - 1) / 2, (self.xs + ends_x - 1) / 2
        grid_x, grid_y = (v.ravel() for v in np.meshgrid(xc, yc))
        px, py = tile_places(grid_x, grid_y, float(self.core))
        ix, iy = np.clip(np.rint(px), 0, nx - 1).astype(int), np.clip(np.rint(py), 0, ny - 1).astype(int)
        qx, qy = map_x[iy, ix].astype(float), map_y[iy, ix].astype(float)
        new_psfs = science.psf.stamps(grid_x, grid_y, WORK, subpixel=False)
        reference_psfs = resampled_psfs(reference.psf, qx, qy)
        psfs = np.empty((len(grid_x), WORK, WORK), np.float32)
        done = np.zeros(len(grid_x), bool)
        built = _built_transfer(self.n, reference)
        for k in range(len(grid_x)):
            j, i = divmod(k, len(self.xs))
            y0, x0 = self.ys[j], self.xs[i]
            y1, x1 = ends_y[j], ends_x[i]
            seam = self.config.seam
            if ready.unusable[max(y0 - seam, 0) : y1 + seam, max(x0 - seam, 0) : x1 + seam].all():
                continue
            # Window with the tile in its middle.
            oy, ox = y0 - (self.n - (y1 - y0)) // 2, x0 - (self.n - (x1 - x0)) // 2
            clean = ~ready.unusable[y0:y1:4, x0:x1:4]
            tile = TileInput(
                new=_window(ready.new, oy, ox, self.n),
                reference=_window(ready.reference, oy, ox, self.n),
                new_variance=_window(ready.new_variance, oy, ox, self.n),
                reference_variance=_window(ready.reference_variance, oy, ox, self.n),
                new_psf=new_psfs[k],
                reference_psf=reference_psfs[k],
                new_sigma=_noise(ready.new_variance[y0:y1:4, x0:x1:4], clean),
                reference_sigma=_noise(ready.reference_variance[y0:y1:4, x0:x1:4], clean),
                transfer=built * _transfer(self.n, qy[k], qx[k]),
                registration=match.rms,
            )
            result = subtract_tile(tile, self.plan)
            psfs[k], done[k] = result.psf, True
            self._add(result, (y0, y1, x0, x1), (oy, ox))
        for k in np.flatnonzero(~done).tolist():  # a tile without data has the PSF of the nearest one with
            away = np.hypot(grid_x - grid_x[k], grid_y - grid_y[k])
            psfs[k] = psfs[int(np.argmin(np.where(done, away, np.inf)))]
        grid = psfs.reshape(len(yc), len(xc), WORK, WORK)
        return _psf_grid(xc, yc, grid)

    def _add(self, result: TileOutput, box: tuple[int, int, int, int], origin: tuple[int, int]) -> None:
        """Add a tile with its blending weight."""
        y0, y1, x0, x1 = box
        half = self.config.seam // 2
        top, bottom = (y0 - half if y0 > 0 else 0), (y1 + half if y1 < self.shape[0] else y1)
        left, right = (x0 - half if x0 > 0 else 0), (x1 + half if x1 < self.shape[1] else x1)
        source = np.s_[top - origin[0] : bottom - origin[0], left - origin[1] : right - origin[1]]
        neighbours = (y0 > 0, y1 < self.shape[0], x0 > 0, x1 < self.shape[1])
        for total, part in (
            (self.data, result.difference),
            (self.variance, result.variance),
            (self.score, result.score),
            (self.score_variance, result.score_variance),
        ):
            piece = part[source]
            _fade(piece, 2 * half, neighbours)
            total[top:bottom, left:right] += piece

    def finish(self, unusable: NDArray[np.bool_], hits: NDArray[np.bool_]) -> tuple[F32, F32, F32, F32]:
        """D, its sigma, S and S_corr with the unusable pixels and their surroundings NaN."""
        blank = grow(unusable, self.config.grow)
        blank |= grow(hits, self.config.grow_hits)
        blank |= self.score_variance <= 0  # tiles that were skipped
        self.score_variance[blank] = np.nan
        scorr: F32 = (self.score / np.sqrt(self.score_variance)).astype(np.float32, copy=False)
        sigma: F32 = np.sqrt(self.variance).astype(np.float32, copy=False)
        for image in (self.data, self.score, sigma):
            image[blank] = np.nan
        return self.data, sigma, self.score, scorr


def _tile_starts(n: int, tile: int) -> NDArray[np.int64]:
    """First pixel of each tile: as many equal tiles as fit the wished size best."""
    count = max(1, round(n / tile))
    return np.linspace(0, n, count + 1).astype(np.int64)[:-1]


def _fade(piece: F32, seam: int, neighbours: tuple[bool, bool, bool, bool]) -> None:
    """Let a tile fall off linearly, in place, over ``seam`` px at the sides (top, bottom, left, right) that have a
    neighbour: the two add up to 1."""
    if seam == 0:
        return
    rise = (np.arange(seam, dtype=np.float32) + np.float32(0.5)) / np.float32(seam)
    top, bottom, left, right = neighbours
    if top:
        piece[:seam] *= rise[:, None]
    if bottom:
        piece[-seam:] *= rise[::-1, None]
    if left:
        piece[:, :seam] *= rise
    if right:
        piece[:, -seam:] *= rise[::-1]


def _window(image: F32, y0: int, x0: int, n: int) -> F32:
    """The n x n window that starts at a pixel; beyond the image its mirror image (sky goes on as sky)."""
    ny, nx = image.shape
    y1, x1 = y0 + n, x0 + n
    inner = image[max(y0, 0) : min(y1, ny), max(x0, 0) : min(x1, nx)]
    if inner.shape == (n, n):
        return inner
    pads = (max(-y0, 0), max(y1 - ny, 0)), (max(-x0, 0), max(x1 - nx, 0))
    return np.pad(inner, pads, mode="symmetric")


def _noise(variance: F32, clean: NDArray[np.bool_]) -> float:
    """Noise per pixel of a tile's sky: the median keeps the sources out."""
    values = variance[clean]
    return float(np.sqrt(np.median(values if values.size else variance)))


def _transfer(n: int, phase_y: NDArray[np.float64] | None, phase_x: NDArray[np.float64] | None) -> F32:
    """Share of white noise power left at each frequency of the half plane after one interpolation."""
    along_y = noise_transfer(fft.fftfreq(n), phase_y)
    along_x = noise_transfer(fft.rfftfreq(n), phase_x)
    out: F32 = along_y[:, None] * along_x
    return out


def _built_transfer(n: int, reference: Reference) -> F32:
    """The same for the interpolation when the reference was made.

    Its quality record says how much noise per pixel that left (``noise_factor``): all phases alike leave 0.93 of the
    r.m.s., none of it is lost on a grid that needed no interpolation; in between, a mixture of the two.
    """
    everywhere = _transfer(n, None, None)
    factor = reference.qa.get("noise_factor")
    left = noise_left() if factor is None else float(factor) ** 2
    share = np.float32(np.clip((1 - left) / (1 - noise_left()), 0, 1))
    return 1 - share * (1 - everywhere)


def _psf_grid(xc: NDArray[np.float64], yc: NDArray[np.float64], grid: F32) -> TilePsf:
    """The PSFs as a grid of at least 2 x 2 places."""
    if len(xc) == 1:
        xc, grid = np.append(xc, xc + 1.0), np.repeat(grid, 2, axis=1)
    if len(yc) == 1:
        yc, grid = np.append(yc, yc + 1.0), np.repeat(grid, 2, axis=0)
    return TilePsf(xc, yc, grid)


def _limiting_magnitude(sigma: F32, psf: F32, magzp: float) -> float:
    """5-sigma magnitude of a point source at the centre for the median noise of the quadrant; NaN if unknown."""
    values = sigma[::4, ::4]
    values = values[np.isfinite(values)]
    if values.size == 0 or not np.isfinite(magzp):
        return float("nan")
    flux_error = float(np.median(values)) / float(np.sqrt(np.sum(psf.astype(float) ** 2)))
    return float(magzp - 2.5 * np.log10(5 * flux_error))
