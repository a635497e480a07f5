"""One image onto the pixel grid of another: where every pixel comes from, and its value there, in one interpolation.

**Where.** ``pixel_map`` sends a coarse grid of pixels through the two WCS and fills in between with a cubic spline.

**What.** ``resample`` uses the Lanczos-5 kernel. Worst error of a Gaussian star at any sub-pixel phase along one
axis, in units of its peak (and the variance per pixel that white noise keeps in both):

=============  ========  ========  ========  =====
kernel         FWHM 2.0  FWHM 2.5  FWHM 3.0  noise
=============  ========  ========  ========  =====
cubic spline   0.043     0.015     0.006     0.76
Lanczos-3      0.032     0.011     0.007     0.80
Lanczos-4      0.027     0.007     0.004     0.84
Lanczos-5      0.020     0.004     0.002     0.87
=============  ========  ========  ========  =====

A star of 50,000 DN shows an error of 0.01 as a 3-sigma residual in a difference, so the long kernel is worth its taps,
which cost next to nothing here. Its support is finite (10 x 10 px; a spline's prefilter spreads a bad pixel over
its row), and its weights, normalised to sum 1 at each phase, conserve a constant exactly.

**Speed.** Two images of one field differ by a shift, a small rotation and a slow distortion. In a tile of 64 px
the map is then separable but for a few hundredths of a pixel, so the tile is two small matrix products (along x,
then along y, as Catmull & Smith 1980) with three kernels each: the kernel at the tile's mean position and its
first and second difference, between which every pixel interpolates to its true place. A whole quadrant takes less
time than ``scipy.ndimage.map_coordinates`` with a cubic spline, at 100 taps instead of 16. Maps that turn by more (over
one degree) go the general way, pixel by pixel, which is slow.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline

F32 = NDArray[np.float32]

LOBES = 5  # of the Lanczos kernel
TAPS = 2 * LOBES
BEFORE = LOBES - 1  # taps before the pixel at or below the place
_PHASES = 8192  # phases tabulated per pixel: a rounding of 6e-5 px, far below any registration error
_MAX_BEND = 0.085  # px: largest departure from a separable map inside a tile that the quadratic is trusted with
_TILES = (64, 32, 16, 8)
_BLOCK_ROWS = 64  # rows at a time: what is made on the way stays in the processor's cache


def _spline_matrix(n: int, knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, n_knots) matrix that evaluates at 0..n-1 the interpolating cubic spline of values given at the knots."""
    spline = make_interp_spline(knots, np.eye(len(knots)), k=min(3, len(knots) - 1))
    matrix: NDArray[np.float64] = spline(np.arange(n))
    return matrix


def pixel_map(target_wcs: WCS, target_shape: tuple[int, int], source_wcs: WCS, step: int = 48) -> tuple[F32, F32]:
    """Where each pixel of the target image lies in the source image.

    Parameters
    ----------
    target_wcs, source_wcs : astropy.wcs.WCS
        Celestial, any projection and distortion that astropy knows (TAN, TPV, SIP).
    target_shape : (ny, nx)
    step : int
        Spacing (px) of the grid that goes through the WCS; 48 keeps a fourth-degree distortion of 3" at the
        corners to 1e-4 px.

    Returns
    -------
    map_y, map_x : ndarray, (ny, nx), float32
        Source pixel (first is 0) of each target pixel, within 1e-3 px. NaN everywhere if the source projection
        does not reach the target (the other side of the sky).
    """
    ny, nx = target_shape
    gy = np.linspace(0, ny - 1, max(4, round((ny - 1) / step) + 1))
    gx = np.linspace(0, nx - 1, max(4, round((nx - 1) / step) + 1))
    xx, yy = np.meshgrid(gx, gy)
    ra, dec = target_wcs.all_pix2world(xx.ravel(), yy.ravel(), 0)
    sx, sy = (np.reshape(v, xx.shape) for v in world_to_pixel(source_wcs, ra, dec))
    if not (np.isfinite(sx).all() and np.isfinite(sy).all()):
        nowhere = np.full(target_shape, np.nan, np.float32)
        return nowhere, nowhere.copy()
    my, mx = _spline_matrix(ny, gy), _spline_matrix(nx, gx)
    # The displacement is splined, in float32 about its mean: the product stays exact to 1e-5 px and fast.
    return _upsample(sy - yy, my, mx, np.arange(ny)[:, None]), _upsample(sx - xx, my, mx, np.arange(nx)[None, :])


def _upsample(
    shift: NDArray[np.float64], my: NDArray[np.float64], mx: NDArray[np.float64], index: NDArray[np.intp]
) -> F32:
    mean = float(shift.mean())
    left = (my @ (shift - mean)).astype(np.float32)
    fine: F32 = left @ mx.T.astype(np.float32)
    fine += (index + mean).astype(np.float32)
    return fine


def world_to_pixel(wcs: WCS, ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel (first is 0) of sky positions (deg, ICRS); NaN for positions that the projection does not reach.

    A TPV solution has no closed inverse; a few Newton steps from the undistorted one reach 1e-6 px.
    """
    ra, dec = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    try:
        x, y = wcs.all_world2pix(ra, dec, 0, quiet=True, tolerance=1e-6)
    except (ValueError, RuntimeError):  # wcslib refuses the whole list for one point behind the tangent plane
        return np.full(ra.shape, np.nan), np.full(ra.shape, np.nan)
    return np.asarray(x, float), np.asarray(y, float)


def lanczos_weights(phase: ArrayLike) -> F32:
    """Normalised Lanczos-5 weights, (..., 10), for taps -4..5 of a place ``phase`` (0..1) past tap 0."""
    t = np.asarray(phase, float)[..., None] - np.arange(-BEFORE, LOBES + 1)
    w = np.sinc(t) * np.sinc(t / LOBES)
    out: F32 = (w / w.sum(axis=-1, keepdims=True)).astype(np.float32)
    return out


@lru_cache(maxsize=1)
def _weight_table() -> F32:
    return lanczos_weights(np.arange(_PHASES + 1) / _PHASES)


def noise_transfer(frequency: ArrayLike, phase: ArrayLike | None = None) -> NDArray[np.float32]:
    """Power that white pixel noise keeps at each frequency when it is resampled (one axis).

    The response at zero frequency is 1: a sum over a star keeps its true error although the r.m.s. per pixel
    falls. ``frequency`` in cycles/px; ``phase`` the sub-pixel phases that occur (0..1), None for all alike.
    """
    phases = np.arange(32) / 32 if phase is None else np.atleast_1d(np.asarray(phase, float)) % 1.0
    weights = lanczos_weights(phases).astype(float)
    wave = np.exp(-2j * np.pi * np.asarray(frequency, float)[:, None] * np.arange(TAPS))
    power: NDArray[np.float32] = (np.abs(wave @ weights.T) ** 2).mean(axis=1).astype(np.float32)
    return power


def noise_left(map_y: F32 | None = None, map_x: F32 | None = None) -> float:
    """Share of white noise's variance per pixel that is left after the interpolation along a map.

    1 for a map of whole pixels; 0.87 where all sub-pixel phases occur alike, which is also the answer without a map.
    """
    if map_y is None or map_x is None:
        phase = np.arange(32) / 32
        return float(_kept(phase).mean() ** 2)
    y, x = map_y[::29, ::31].astype(float), map_x[::29, ::31].astype(float)
    ok = np.isfinite(y) & np.isfinite(x)
    return float((_kept(y[ok] % 1.0) * _kept(x[ok] % 1.0)).mean()) if ok.any() else 1.0


def _kept(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    kept: NDArray[np.float64] = (lanczos_weights(phase).astype(float) ** 2).sum(axis=-1)
    return kept


def resample(
    image: F32, map_y: F32, map_x: F32, *, conserve_flux: bool = True, invalid: NDArray[np.bool_] | None = None
) -> F32:
    """The image on the grid that the maps describe, by one Lanczos-5 interpolation.

    Parameters
    ----------
    image : ndarray, (ny, nx), float32
        Source. NaN pixels are bridged by their neighbours before the interpolation, so that they do not spread.
    map_y, map_x : ndarray, (my, mx), float32
        Source pixel of each target pixel (``pixel_map``); smooth.
    conserve_flux : bool
        Multiply by the local ratio of pixel areas, so that the sum over a star stays what it was.
    invalid : ndarray of bool, (ny, nx), optional
        Source pixels whose values must not be used though finite.

    Returns
    -------
    ndarray, (my, mx), float32
        NaN where the place is outside the source or one of the four pixels around it is NaN or invalid: a bad
        pixel grows by at most one pixel a side. The outer taps (their weights sum to less than 0.2 an axis) may read
        bridged values.
    """
    bad = np.isnan(image)
    if invalid is not None:
        bad |= invalid
    any_bad = bool(bad.any())
    source = _bridge(image, bad) if any_bad else image
    tile, bend = _tile_for(map_y, map_x)
    if tile:
        out = _resample_tiled(source, map_y, map_x, tile, bend, conserve_flux)
    else:
        out = _resample_general(source, map_y, map_x)
        if conserve_flux:
            out *= _area_ratio(map_y, map_x)
    _blank_outside(out, image.shape, map_y, map_x)
    if any_bad:
        _blank_bad(out, bad, map_y, map_x)
    return out


def resample_nearest(image: NDArray[np.generic], map_y: F32, map_x: F32, fill: float = 0) -> NDArray[np.generic]:
    """Value of the source pixel nearest to each place: for masks, coverage and variances.

    Nothing grows: a masked source pixel marks the target pixels whose centres lie in it (0 to 2 of them by
    chance of phase). Who needs every target pixel that a bad source pixel can touch grows the result by one.
    ``fill`` where the place is outside the source; same dtype as ``image``.
    """
    ny, nx = image.shape
    out = np.empty(map_y.shape, image.dtype)
    flat = image.reshape(-1)
    for start in range(0, len(map_y), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        my, mx = map_y[rows], map_x[rows]
        outside = _outside(image.shape, my, mx)
        any_outside = bool(outside.any())
        if any_outside:  # NaN places too
            my, mx = np.where(outside, np.float32(0), my), np.where(outside, np.float32(0), mx)
        # Half a pixel beyond the outermost centres is still inside and rounds back onto them.
        iy, ix = np.rint(my).astype(np.int32), np.rint(mx).astype(np.int32)
        np.clip(iy, 0, ny - 1, out=iy)
        np.clip(ix, 0, nx - 1, out=ix)
        iy *= nx
        iy += ix
        np.take(flat, iy, out=out[rows])
        if any_outside:
            out[rows][outside] = fill
    return out


def _outside(shape: tuple[int, ...], map_y: F32, map_x: F32) -> NDArray[np.bool_]:
    """Places beyond the outer edge of the outermost pixels (NaN places too)."""
    ny, nx = shape
    inside = (map_y >= -0.5) & (map_y <= ny - 0.5)
    inside &= map_x >= -0.5
    inside &= map_x <= nx - 0.5
    return ~inside


def _blank_outside(out: F32, shape: tuple[int, ...], map_y: F32, map_x: F32) -> None:
    ny, nx = shape
    # A smooth map's extremes lie on its border, so only maps that cross the edge are tested pixel by pixel.
    border_y = np.concatenate([map_y[0], map_y[-1], map_y[:, 0], map_y[:, -1]])
    border_x = np.concatenate([map_x[0], map_x[-1], map_x[:, 0], map_x[:, -1]])
    inside = border_y.min() >= 0 and border_y.max() <= ny - 1 and border_x.min() >= 0 and border_x.max() <= nx - 1
    if not inside:
        out[_outside(shape, map_y, map_x)] = np.nan


def _blank_bad(out: F32, bad: NDArray[np.bool_], map_y: F32, map_x: F32) -> None:
    """NaN where one of the four source pixels around a place is bad."""
    touched = bad.copy()  # touched[y, x]: any of the pixels (y..y+1, x..x+1)
    touched[:, :-1] |= bad[:, 1:]
    touched[:-1] |= touched[1:].copy()
    ny, nx = bad.shape
    flat = touched.reshape(-1)
    for start in range(0, len(out), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        # A NaN place is outside and NaN already, whatever pixel it is taken for.
        my, mx = np.clip(map_y[rows], 0, ny - 1), np.clip(map_x[rows], 0, nx - 1)
        np.copyto(my, 0, where=np.isnan(my))
        np.copyto(mx, 0, where=np.isnan(mx))
        iy, ix = my.astype(np.int32), mx.astype(np.int32)
        iy *= nx
        iy += ix
        np.copyto(out[rows], np.float32(np.nan), where=np.take(flat, iy))


def _bridge(image: F32, bad: NDArray[np.bool_]) -> F32:
    """The image with bad pixels replaced by the mean of the good ones within 2 px, or else by the median."""
    ny, nx = image.shape
    good = image[::7, ::7][~bad[::7, ::7]]
    level = np.float32(np.median(good)) if good.size else np.float32(0)
    out = image.copy()
    out[bad] = level
    y, x = np.nonzero(bad & _near(~bad, 2))
    flat, good_flat = out.reshape(-1), ~bad.reshape(-1)
    total = np.zeros(len(y), np.float32)
    count = np.zeros(len(y), np.float32)
    for dy in range(-2, 3):
        row = np.clip(y + dy, 0, ny - 1) * nx
        for dx in range(-2, 3):
            place = row + np.clip(x + dx, 0, nx - 1)
            ok = good_flat[place]
            total += flat[place] * ok
            count += ok
    out[y, x] = total / count
    return out


def _near(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Pixels with one of the mask's in the square of ``radius`` around them."""
    out = mask
    for axis in (0, 1):
        wide = out.copy()
        for step in range(1, radius + 1):
            low, high = (np.s_[:, step:], np.s_[:, :-step]) if axis else (np.s_[step:], np.s_[:-step])
            wide[low] |= out[high]
            wide[high] |= out[low]
        out = wide
    return out


def _tile_for(map_y: F32, map_x: F32) -> tuple[int, float]:
    """Largest tile in which the map bends little enough, and by how much (px); 0 where none does."""
    ny, nx = map_y.shape
    if min(ny, nx) < 8 or not (np.isfinite(map_y[0, 0]) and np.isfinite(map_y[-1, -1])):
        return 0, 0.0
    sy, sx = map_y[:: max(1, ny // 64), :: max(1, nx // 64)], map_x[:: max(1, ny // 64), :: max(1, nx // 64)]
    stepy, stepx = max(1, ny // 64), max(1, nx // 64)
    turn = max(np.abs(np.diff(sx, axis=0)).max() / stepy, np.abs(np.diff(sy, axis=1)).max() / stepx)
    grow = max(np.abs(np.diff(sx, axis=1) / stepx - 1).max(), np.abs(np.diff(sy, axis=0) / stepy - 1).max())
    if not np.isfinite(turn) or grow > 0.04:  # a tile's source window leaves room for 4 % of scale
        return 0, 0.0
    for tile in _TILES:
        bend = float(turn) * tile / 2
        if bend <= _MAX_BEND:
            return tile, max(bend, 1e-3)
    return 0, 0.0


def _axis_weights(
    places: F32, base: NDArray[np.int64], span: int, bend: float, taps_first: bool
) -> NDArray[np.float32]:
    """Kernel and its first and second difference over ``bend`` as matrices.

    (n_tiles, 3 * tile, span), or (n_tiles, span, 3 * tile) with ``taps_first``: what the product reads fastest.
    """
    tiles, tile = places.shape
    table = _weight_table()
    shape = (tiles, span, 3, tile) if taps_first else (tiles, 3, tile, span)
    matrices = np.zeros(shape, np.float32)
    flat = matrices.reshape(-1)
    along = 3 * tile if taps_first else 1  # how far apart two taps of one place lie
    place = np.arange(tile) * (1 if taps_first else span)
    start = np.arange(tiles)[:, None] * (3 * tile * span) + place - (base[:, None] + BEFORE) * along
    taps = np.arange(TAPS) * along
    parts = []
    for node, offset in enumerate((-bend, 0.0, bend)):
        at = places + np.float32(offset)
        low = np.floor(at)
        phase = ((at - low) * _PHASES + np.float32(0.5)).astype(np.int32)
        flat[(start + low.astype(np.int64) * along + node * tile * (1 if taps_first else span))[..., None] + taps] = (
            table[phase]
        )
        parts.append(matrices[:, :, node] if taps_first else matrices[:, node])
    minus, middle, plus = parts
    half = (plus + minus) * np.float32(0.5)
    half -= middle
    slope = (plus - minus) * np.float32(0.5)
    minus[...], middle[...], plus[...] = middle.copy(), slope, half
    return matrices.reshape((tiles, span, 3 * tile) if taps_first else (tiles, 3 * tile, span))


def _resample_tiled(source: F32, map_y: F32, map_x: F32, tile: int, bend: float, conserve_flux: bool) -> F32:
    """Lanczos-5 by matrix products of tiles; the method is told in the module's docstring."""
    ny, nx = map_y.shape
    span = tile + TAPS + 2 + tile // 16
    pad = span + 4
    padded = np.pad(source, pad, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (span, span))
    out = np.empty((ny, nx), np.float32)
    # Tiles at the far edges are moved inwards to full size rather than cut: every product has one shape.
    tile_y, tile_x = min(tile, ny), min(tile, nx)
    x0 = np.minimum(np.arange(0, nx, tile_x), nx - tile_x)
    cols = x0[:, None] + np.arange(tile_x)
    inv_bend = np.float32(1.0 / bend)
    half_y, half_x = np.float32((tile_y - 1) / 2), np.float32((tile_x - 1) / 2)
    for y in np.minimum(np.arange(0, ny, tile_y), ny - tile_y):
        rows = slice(y, y + tile_y)
        top, bottom = map_x[y][cols], map_x[y + tile_y - 1][cols]  # (tiles, tile_x)
        left, right = map_y[rows][:, cols[:, 0]].T, map_y[rows][:, cols[:, -1]].T  # (tiles, tile_y)
        sx, sy = (top + bottom) * np.float32(0.5), (left + right) * np.float32(0.5)
        gx, gy = (bottom - top) / (tile_y - 1), (right - left) / (tile_x - 1)
        bx = np.clip(np.floor(sx.min(axis=1)).astype(np.int64) - LOBES, -pad, source.shape[1] + pad - span)
        by = np.clip(np.floor(sy.min(axis=1)).astype(np.int64) - LOBES, -pad, source.shape[0] + pad - span)
        # Tiles that lie wholly outside are clipped to the padding; _blank_outside makes them NaN.
        sx = np.clip(sx, (bx + BEFORE + 0.5)[:, None], (bx + span - LOBES - 1.5)[:, None])
        sy = np.clip(sy, (by + BEFORE + 0.5)[:, None], (by + span - LOBES - 1.5)[:, None])
        wx = _axis_weights(sx.astype(np.float32), bx, span, bend, True)
        wy = _axis_weights(sy.astype(np.float32), by, span, bend, False)
        stack = windows[by + pad, bx + pad]  # (tiles, span, span)
        along_x = stack @ wx
        # Row v of the source is met at this offset (rows) from the tile's middle.
        slope = np.maximum((sy[:, -1] - sy[:, 0]) / (tile_y - 1), np.float32(0.5))
        centre = (sy[:, -1] + sy[:, 0]) / 2
        v = ((by[:, None] + np.arange(span)) - centre[:, None]) / slope[:, None]
        u = (np.clip(v, -half_y - LOBES - 1, half_y + LOBES + 1) * inv_bend).astype(np.float32)[:, :, None] * gx[
            :, None, :
        ]
        inner = along_x[:, :, 2 * tile_x :] * u
        inner += along_x[:, :, tile_x : 2 * tile_x]
        inner *= u
        inner += along_x[:, :, :tile_x]
        along_y = wy @ inner
        u = (gy * inv_bend)[:, :, None] * (np.arange(tile_x, dtype=np.float32) - half_x)
        block = along_y[:, 2 * tile_y :] * u
        block += along_y[:, tile_y : 2 * tile_y]
        block *= u
        block += along_y[:, :tile_y]
        if conserve_flux:
            scale_x = (sx[:, -1] - sx[:, 0]) / (tile_x - 1)
            area = np.abs(scale_x * slope - gx.mean(axis=1) * gy.mean(axis=1))
            block *= area[:, None, None]
        whole = nx // tile_x * tile_x
        n_whole = whole // tile_x
        out[rows, :whole] = block[:n_whole].transpose(1, 0, 2).reshape(tile_y, whole)
        if whole < nx:
            out[rows, nx - tile_x :] = block[-1]
    return out


def _resample_general(source: F32, map_y: F32, map_x: F32) -> F32:
    """Lanczos-5 tap by tap for maps of any shape."""
    ny, nx = source.shape
    y, x = np.nan_to_num(map_y), np.nan_to_num(map_x)
    low_y, low_x = np.floor(y), np.floor(x)
    wy = _weight_table()[np.rint((y - low_y) * _PHASES).astype(np.intp)]
    wx = _weight_table()[np.rint((x - low_x) * _PHASES).astype(np.intp)]
    iy, ix = low_y.astype(np.intp), low_x.astype(np.intp)
    columns = [np.clip(ix + tap - BEFORE, 0, nx - 1) for tap in range(TAPS)]
    out = np.zeros(map_y.shape, np.float32)
    for tap_y in range(TAPS):
        row = np.clip(iy + tap_y - BEFORE, 0, ny - 1) * nx
        line = np.zeros_like(out)
        for tap_x in range(TAPS):
            line += wx[..., tap_x] * source.ravel()[row + columns[tap_x]]
        out += wy[..., tap_y] * line
    return out


def _area_ratio(map_y: F32, map_x: F32) -> F32:
    """Source pixels per target pixel."""
    if min(map_y.shape) < 2:
        return np.ones(map_y.shape, np.float32)
    yy, yx = np.gradient(map_y.astype(float))
    xy, xx = np.gradient(map_x.astype(float))
    ratio: F32 = np.abs(xx * yy - xy * yx).astype(np.float32)
    return ratio
