"""Where the pixels of one image lie in another: the map between two grids on the sky."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import RectBivariateSpline, make_interp_spline

from stream.core.lanczos import NODE, SEGMENT

F32 = NDArray[np.float32]


def _spline_matrix(places: NDArray[np.int64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, n_knots) matrix that evaluates at places (n,) the interpolating cubic spline of values given at the knots."""
    spline = make_interp_spline(knots, np.eye(len(knots)), k=min(3, len(knots) - 1))
    matrix: NDArray[np.float64] = spline(places)
    return matrix


def _node_columns(nx: int) -> NDArray[np.int64]:
    """Every ``NODE``-th column, to the end of the last whole segment."""
    return np.arange(0, -(-nx // SEGMENT) * SEGMENT + 1, NODE)


@dataclass(frozen=True, slots=True)
class MapNodes:
    """A map between two grids at every row and every ``NODE``-th column of the target, straight in between.

    ``shift_y``, ``shift_x`` (ny, n_nodes) float32 px: source minus target place; the target has ``shape``. NaN: no
    place.
    """

    shift_y: F32
    shift_x: F32
    shape: tuple[int, int]

    @classmethod
    def of(cls, map_y: F32, map_x: F32) -> MapNodes:
        """Of full maps (ny, nx) of source places; straight on beyond their last column."""
        ny, nx = map_y.shape
        columns = _node_columns(nx)
        inside = np.minimum(columns, nx - 1)
        moved = []
        for full, index in ((map_y, np.arange(ny)[:, None]), (map_x, inside)):
            shift = full[:, inside].astype(np.float64) - index
            before = max(nx - 1 - NODE, 0)
            last = full[:, -1].astype(np.float64) - full[:, before] - (0 if full is map_y else nx - 1 - before)
            shift += (columns - inside) * (last / max(nx - 1 - before, 1))[:, None]
            moved.append(shift.astype(np.float32))
        return cls(moved[0], moved[1], (ny, nx))

    @property
    def reaches(self) -> bool:
        """Whether every place is known."""
        return bool(np.isfinite(self.shift_y).all() and np.isfinite(self.shift_x).all())

    def area(self) -> F32:
        """Source pixels per target pixel at the nodes."""
        yy, yx = np.gradient(self.shift_y)
        xy, xx = np.gradient(self.shift_x)
        step = np.float32(NODE)
        out: F32 = np.abs((1 + xx / step) * (1 + yy) - xy * (yx / step)).astype(np.float32)
        return out

    def full(self) -> tuple[F32, F32]:
        """``map_y, map_x`` (ny, nx)."""
        ny, nx = self.shape
        index = np.arange(ny)[:, None], np.arange(nx)
        map_y, map_x = (self.between(v) + i for v, i in zip((self.shift_y, self.shift_x), index, strict=True))
        return map_y.astype(np.float32), map_x.astype(np.float32)

    def between(self, values: F32) -> F32:
        """Values at the nodes, (ny, n_nodes), at every pixel (ny, nx)."""
        columns = np.arange(self.shape[1])
        left, part = columns // NODE, (columns % NODE / NODE).astype(np.float32)
        out: F32 = values[:, left] + part * (values[:, left + 1] - values[:, left])
        return out


@dataclass(frozen=True, slots=True)
class PixelMap:
    """Where the pixels of a target image lie in a source image, on a coarse grid.

    ``shift_y``, ``shift_x`` (n_y, n_x) float64 px: source minus target place at the crossings of the rows ``ys`` and
    the columns ``xs`` of the target, which has ``shape``; cubic splines in between. NaN: the source projection does not
    reach the target.
    """

    ys: NDArray[np.float64]
    xs: NDArray[np.float64]
    shift_y: NDArray[np.float64]
    shift_x: NDArray[np.float64]
    shape: tuple[int, int]

    @classmethod
    def between(cls, target_wcs: WCS, target_shape: tuple[int, int], source_wcs: WCS, step: int = 48) -> PixelMap:
        """The map that two WCS say.

        Parameters
        ----------
        target_wcs, source_wcs : astropy.wcs.WCS
            Celestial, any projection and distortion that astropy knows (TAN, TPV, SIP).
        target_shape : (ny, nx)
        step : int
            Spacing (px) of the grid; 48 keeps a fourth-degree distortion of 3" at the corners to 1e-4 px.
        """
        ny, nx = target_shape
        ys = np.linspace(0, ny - 1, max(4, round((ny - 1) / step) + 1))
        xs = np.linspace(0, nx - 1, max(4, round((nx - 1) / step) + 1))
        xx, yy = np.meshgrid(xs, ys)
        ra, dec = target_wcs.all_pix2world(xx.ravel(), yy.ravel(), 0)
        sx, sy = (np.reshape(v, xx.shape) for v in world_to_pixel(source_wcs, ra, dec))
        return cls(ys, xs, sy - yy, sx - xx, (ny, nx))

    @property
    def reaches(self) -> bool:
        """Whether every place is known."""
        return bool(np.isfinite(self.shift_y).all() and np.isfinite(self.shift_x).all())

    def at(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Source places (x, y) of target places (n,), beyond the image by the outermost cells' cubics."""
        x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
        if not self.reaches:
            return np.full(x.shape, np.nan), np.full(x.shape, np.nan)
        degrees = {"kx": min(3, len(self.xs) - 1), "ky": min(3, len(self.ys) - 1)}
        moved = [
            place + RectBivariateSpline(self.ys, self.xs, shift, kx=degrees["ky"], ky=degrees["kx"]).ev(y, x)
            for place, shift in ((x, self.shift_x), (y, self.shift_y))
        ]
        return moved[0], moved[1]

    def moved(self, dx: NDArray[np.float64], dy: NDArray[np.float64]) -> PixelMap:
        """The map with ``dx``, ``dy`` (n_y, n_x) px added to the source places of its grid."""
        return replace(self, shift_y=self.shift_y + dy, shift_x=self.shift_x + dx)

    def full(self) -> tuple[F32, F32]:
        """``map_y, map_x``: the source place of every target pixel, float32, within 1e-3 px."""
        ny, nx = self.shape
        if not self.reaches:
            nowhere = np.full(self.shape, np.nan, np.float32)
            return nowhere, nowhere.copy()
        my, mx = _spline_matrix(np.arange(ny), self.ys), _spline_matrix(np.arange(nx), self.xs)
        return (
            _upsample(self.shift_y, my, mx, np.arange(ny)[:, None]),
            _upsample(self.shift_x, my, mx, np.arange(nx)[None, :]),
        )

    def nodes(self) -> MapNodes:
        """The map at every row and some columns, within 1e-4 px."""
        ny, nx = self.shape
        columns = _node_columns(nx)
        if not self.reaches:
            nowhere = np.full((ny, len(columns)), np.nan, np.float32)
            return MapNodes(nowhere, nowhere, self.shape)
        my, mx = _spline_matrix(np.arange(ny), self.ys), _spline_matrix(columns, self.xs)
        nothing = np.zeros((1, 1), np.intp)
        shift_y, shift_x = (_upsample(v, my, mx, nothing) for v in (self.shift_y, self.shift_x))
        return MapNodes(shift_y, shift_x, self.shape)


def pixel_map(target_wcs: WCS, target_shape: tuple[int, int], source_wcs: WCS, step: int = 48) -> tuple[F32, F32]:
    """Source pixel (first is 0) of each target pixel, ``map_y, map_x`` (ny, nx) float32: ``PixelMap`` in full."""
    return PixelMap.between(target_wcs, target_shape, source_wcs, step).full()


def _upsample(
    shift: NDArray[np.float64], my: NDArray[np.float64], mx: NDArray[np.float64], index: NDArray[np.intp]
) -> F32:
    # The displacement is splined, in float32 about its mean: the product stays exact to 1e-5 px and fast.
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
