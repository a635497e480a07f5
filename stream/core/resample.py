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
the map is then a shift but for a few hundredths of a pixel, so the tile is two small matrix products (along x,
then along y, as Catmull & Smith 1980) with two or three kernels each: that of the tile's mean shift and its
first and second difference, between which every pixel interpolates to its true place. A whole quadrant takes less
time than ``scipy.ndimage.map_coordinates`` with a cubic spline, at 100 taps instead of 16. Maps that turn by more (over
one degree) go the general way, pixel by pixel, which is slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]

LOBES = 5  # of the Lanczos kernel
TAPS = 2 * LOBES
BEFORE = LOBES - 1  # taps before the pixel at or below the place
_PHASES = 8192  # phases tabulated per pixel: a rounding of 6e-5 px, far below any registration error
_MAX_BEND = 0.12  # px: largest departure from a separable map inside a tile that the quadratic is trusted with
_LINEAR_BEND = 0.04  # px: up to here a straight line will do, within 1e-3 of a star's peak
_TILES = (64, 32, 16, 8)
_BLOCK_ROWS = 64  # rows at a time: what is made on the way stays in the processor's cache


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
    return resample_bridged(bridged(image, bad), bad, map_y, map_x, conserve_flux=conserve_flux)


def resample_bridged(source: F32, bad: NDArray[np.bool_], map_y: F32, map_x: F32, *, conserve_flux: bool = True) -> F32:
    """``resample`` of an image whose ``bad`` pixels were filled by ``bridged`` before."""
    tiling = _tile_for(map_y, map_x)
    if tiling.side:
        out = _resample_tiled(source, map_y, map_x, tiling, conserve_flux)
    else:
        out = _resample_general(source, map_y, map_x)
        if conserve_flux:
            out *= _area_ratio(map_y, map_x)
    _blank_outside(out, source.shape, map_y, map_x)
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


def flags_on(flags: NDArray[np.bool_], map_y: F32, map_x: F32) -> NDArray[np.bool_]:
    """``resample_nearest`` of flags that are rarely set; False outside the source."""
    out = np.zeros(map_y.shape, bool)
    if flags.any():
        for block in _blocks_with(flags, map_y, map_x):
            out[block] = resample_nearest(flags, map_y[block], map_x[block], 0)
    return out


def resample_smooth(image: F32, map_y: F32, map_x: F32, fill: float) -> F32:
    """An image that varies slowly (a noise level) on the target grid, block by block without interpolation.

    Off by up to a pixel; ``fill`` where a block reaches beyond the source. Maps that turn go pixel by pixel.
    """
    tiling = _tile_for(map_y, map_x)
    if not tiling.side:
        return np.asarray(resample_nearest(image, map_y, map_x, fill), np.float32)
    ny, nx = image.shape
    out = np.full(map_y.shape, fill, np.float32)
    side = tiling.side
    for y in range(0, map_y.shape[0], side):
        for x in range(0, map_y.shape[1], side):
            target = out[y : y + side, x : x + side]
            h, w = target.shape
            # The middle of the block decides for all of it.
            sy = round(float(map_y[y + h // 2, x + w // 2])) - h // 2
            sx = round(float(map_x[y + h // 2, x + w // 2])) - w // 2
            y0, y1, x0, x1 = max(sy, 0), min(sy + h, ny), max(sx, 0), min(sx + w, nx)
            if y0 < y1 and x0 < x1:
                target[y0 - sy : y1 - sy, x0 - sx : x1 - sx] = image[y0:y1, x0:x1]
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
    if not bad.any():
        return
    touched = bad.copy()  # touched[y, x]: any of the pixels (y..y+1, x..x+1)
    touched[:, :-1] |= bad[:, 1:]
    touched[:-1] |= touched[1:].copy()
    ny, nx = bad.shape
    flat = touched.reshape(-1)
    for block in _blocks_with(touched, map_y, map_x):
        # A NaN place is outside and NaN already, whatever pixel it is taken for.
        my, mx = np.clip(map_y[block], 0, ny - 1), np.clip(map_x[block], 0, nx - 1)
        np.copyto(my, 0, where=np.isnan(my))
        np.copyto(mx, 0, where=np.isnan(mx))
        iy, ix = my.astype(np.int32), mx.astype(np.int32)
        iy *= nx
        iy += ix
        np.copyto(out[block], np.float32(np.nan), where=np.take(flat, iy))


def _blocks_with(flags: NDArray[np.bool_], map_y: F32, map_x: F32, side: int = 64) -> list[tuple[slice, slice]]:
    """Blocks of the target in whose surroundings in the source any flag is set (a map's extremes lie on its border)."""
    ny, nx = map_y.shape
    cell = 32
    rows = np.logical_or.reduceat(flags, np.arange(0, flags.shape[0], cell), axis=0)
    coarse = np.logical_or.reduceat(rows, np.arange(0, flags.shape[1], cell), axis=1)
    table = np.zeros((coarse.shape[0] + 1, coarse.shape[1] + 1), np.int64)
    table[1:, 1:] = coarse.cumsum(axis=0).cumsum(axis=1)
    y0, x0 = np.arange(0, ny, side), np.arange(0, nx, side)
    y1, x1 = np.minimum(y0 + side, ny) - 1, np.minimum(x0 + side, nx) - 1
    low, high = [], []
    for source, size in ((map_y, coarse.shape[0]), (map_x, coarse.shape[1])):
        corners = np.stack([source[np.ix_(y, x)] for y in (y0, y1) for x in (x0, x1)])
        # Straight but for a px or two in a block; where the map is unknown the whole source is looked at.
        first = np.floor(np.nan_to_num((corners.min(axis=0) - 3) / cell, nan=0.0))
        last = np.floor(np.nan_to_num((corners.max(axis=0) + 3) / cell, nan=float(size)))
        low.append(np.clip(first, 0, size - 1).astype(np.int64))
        high.append(np.clip(last, 0, size - 1).astype(np.int64) + 1)
    count = table[high[0], high[1]] - table[low[0], high[1]] - table[high[0], low[1]] + table[low[0], low[1]]
    return [
        (slice(y0[j], y1[j] + 1), slice(x0[i], x1[i] + 1))
        for j, i in zip(*(v.tolist() for v in np.nonzero(count)), strict=True)
    ]


def bridged(image: F32, bad: NDArray[np.bool_]) -> F32:
    """The image with ``bad`` pixels filled for interpolation: the mean of good ones within 2 px, else the median."""
    return _bridge(image, bad) if bad.any() else image


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


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Largest ``side`` (px) of tiles in which the map bends little enough: by ``bend`` px in all, of them ``turn`` by
    what lies across; 0 where none does."""

    side: int
    turn: float
    bend: float


def _tile_for(map_y: F32, map_x: F32) -> _Tiling:
    """How a map is cut."""
    ny, nx = map_y.shape
    if min(ny, nx) < 8 or not (np.isfinite(map_y[0, 0]) and np.isfinite(map_y[-1, -1])):
        return _Tiling(0, 0.0, 0.0)
    stepy, stepx = max(1, ny // 64), max(1, nx // 64)
    sy, sx = map_y[::stepy, ::stepx], map_x[::stepy, ::stepx]
    turn = max(np.abs(np.diff(sx, axis=0)).max() / stepy, np.abs(np.diff(sy, axis=1)).max() / stepx)
    grow = max(np.abs(np.diff(sx, axis=1) / stepx - 1).max(), np.abs(np.diff(sy, axis=0) / stepy - 1).max())
    bend = float(turn + grow) / 2
    for side in _TILES:
        if bend * side <= _MAX_BEND:  # False where NaN
            return _Tiling(side, float(turn) * side / 2, max(bend * side, 1e-3))
    return _Tiling(0, 0.0, 0.0)


class _Bands:
    """One axis of a map cut into tiles: the kernels of each pixel, and their matrices.

    ``places`` (n, tile) are those of the tiles' pixels along the axis: one px apart but for ``bend``. ``base`` (n,) is
    the first source pixel of each tile's window, ``start`` (n,) how far its first pixel lies beyond it. ``taps``
    (n, order + 1, tile, 12) are the weights from there on, then their first and second differences over ``bend``.
    """

    def __init__(self, places: F32, bend: float, order: int) -> None:
        n, tile = places.shape
        first = places.mean(axis=1, dtype=np.float64) - (tile - 1) / 2
        low = np.floor(first).astype(np.int64)
        nodes = []
        for offset in (-bend, 0.0, bend):
            at = np.floor(first + offset)
            kernel = np.zeros((n, TAPS + 2), np.float32)
            columns = (at.astype(np.int64) - low + 1)[:, None] + np.arange(TAPS)
            np.put_along_axis(kernel, columns, lanczos_weights(first + offset - at), axis=1)
            nodes.append(kernel[:, None, :])
        minus, middle, plus = nodes
        slope, curve = (plus - minus) * np.float32(0.5), (plus + minus) * np.float32(0.5) - middle
        left = ((places - first[:, None] - np.arange(tile)) / bend).astype(np.float32)[:, :, None]
        kernels = [middle + left * (slope + left * curve), slope + (2 * left) * curve, curve + 0 * left]
        self.taps: F32 = np.stack(kernels[: order + 1], axis=1)
        self.base, self.start = low - BEFORE - 1, first - low + BEFORE + 1

    def columns(self, store: F32) -> F32:
        """Matrices (n, span, nodes x tile) that shift rows; ``store`` is zero where no band ever lies."""
        n, nodes, tile, width = self.taps.shape
        step = nodes * tile * 4
        strides = store.strides[0], tile * 4, step + 4, step
        np.lib.stride_tricks.as_strided(store, (n, nodes, tile, width), strides)[...] = self.taps
        return store

    def rows(self, store: F32) -> F32:
        """Matrices (n, nodes x tile, span) that shift columns."""
        n, nodes, tile, width = self.taps.shape
        span = store.shape[2]
        strides = store.strides[0], tile * span * 4, (span + 1) * 4, 4
        np.lib.stride_tricks.as_strided(store, (n, nodes, tile, width), strides)[...] = self.taps
        return store


def _polynomial(parts: F32, u: F32, axis: int) -> F32:
    """Value, first and second difference, one after the other along ``axis``, at fractions ``u`` of the bend."""
    nodes = parts.shape[axis] // u.shape[axis]
    pieces = np.split(parts, nodes, axis=axis)
    out: F32 = pieces[-1] * u
    for piece in pieces[-2:0:-1]:
        out += piece
        out *= u
    out += pieces[0]
    return out


def _resample_tiled(source: F32, map_y: F32, map_x: F32, tiling: _Tiling, conserve_flux: bool) -> F32:
    """Lanczos-5 by matrix products of tiles; the method is told in the module's docstring."""
    ny, nx = map_y.shape
    tile, turn, bend = tiling.side, tiling.turn, tiling.bend
    # Tiles at the far edges are moved inwards to full size rather than cut: every product has one shape.
    tile_y, tile_x = min(tile, ny), min(tile, nx)
    order = 1 if turn <= _LINEAR_BEND else 2
    span_y, span_x = (-(-(t + TAPS + 1) // 8) * 8 for t in (tile_y, tile_x))
    pad = max(span_y, span_x)
    padded = np.pad(source, pad, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (span_y, span_x))
    out = np.empty((ny, nx), np.float32)
    x0 = np.minimum(np.arange(0, nx, tile_x), nx - tile_x)
    cols = x0[:, None] + np.arange(tile_x)
    n, nodes = len(x0), order + 1
    wx, wy = np.zeros((n, span_x, nodes * tile_x), np.float32), np.zeros((n, nodes * tile_y, span_y), np.float32)
    middle_y, middle_x = np.float32((tile_y - 1) / 2), np.float32((tile_x - 1) / 2)
    per_bend = np.float32(1.0 / bend)
    for y in np.minimum(np.arange(0, ny, tile_y), ny - tile_y):
        rows = slice(y, y + tile_y)
        top, bottom = map_x[y][cols], map_x[y + tile_y - 1][cols]  # (tiles, tile_x)
        left, right = map_y[rows][:, cols[:, 0]].T, map_y[rows][:, cols[:, -1]].T  # (tiles, tile_y)
        along = _Bands((top + bottom) * np.float32(0.5), bend, order)
        down = _Bands((left + right) * np.float32(0.5), bend, order)
        gx = (bottom - top) * (per_bend / max(tile_y - 1, 1))
        gy = (right - left) * (per_bend / max(tile_x - 1, 1))
        # Tiles that lie wholly outside are clipped to the padding; _blank_outside makes them NaN.
        bx = np.clip(along.base, -pad, source.shape[1] + pad - span_x)
        by = np.clip(down.base, -pad, source.shape[0] + pad - span_y)
        shifted = windows[by + pad, bx + pad] @ along.columns(wx)
        # Row v of a window is met at this distance (rows) from the tile's middle.
        v = np.arange(span_y) - down.start[:, None] - middle_y
        shifted = down.rows(wy) @ _polynomial(shifted, v.astype(np.float32)[:, :, None] * gx[:, None, :], 2)
        block = _polynomial(shifted, gy[:, :, None] * (np.arange(tile_x, dtype=np.float32) - middle_x), 1)
        if conserve_flux:
            block *= _tile_area(top, bottom, left, right)[:, None, None]
        whole = nx // tile_x * tile_x
        n_whole = whole // tile_x
        out[rows, :whole] = block[:n_whole].transpose(1, 0, 2).reshape(tile_y, whole)
        if whole < nx:
            out[rows, nx - tile_x :] = block[-1]
    return out


def _tile_area(top: F32, bottom: F32, left: F32, right: F32) -> F32:
    """Source pixels per target pixel of each tile, from the map along its four sides."""
    across, down = max(top.shape[1] - 1, 1), max(left.shape[1] - 1, 1)
    xx = (top[:, -1] - top[:, 0] + bottom[:, -1] - bottom[:, 0]) / (2 * across)
    yy = (left[:, -1] - left[:, 0] + right[:, -1] - right[:, 0]) / (2 * down)
    xy, yx = (bottom - top).mean(axis=1) / down, (right - left).mean(axis=1) / across
    area: F32 = np.abs(xx * yy - xy * yx).astype(np.float32)
    return area


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
