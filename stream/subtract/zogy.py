"""Proper image subtraction block by block (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27), with kernels made before.

All blocks share the kernels (``kernels``), so nothing changes at their borders; blocks only keep the transforms in the
processor's cache. Equations of the paper:

- D as in ``kernels``; ``S = P_D`` correlated with D                                                    (12 to 15)
- ``V(S) = (sigma_N^2 * kn^2) + (sigma_R^2 * kr^2)``, kn, kr the kernels of S, with the photon noise of the sources,
  on every second pixel: it is as smooth as a squared PSF                                               (25 to 29)
- ``S_corr = S / sqrt(V(S) + V_ast + V_psf)``, ``V_ast = dx^2 (dSr/dx)^2 + dy^2 (dSr/dy)^2``           (25, 30 to 33)

V_ast is counted once, with the *relative* registration error from place to place and the gradient of the
reference's part alone: what the two images do not share cannot be misplaced between them, so a new source is not
penalised for its own slopes. ``V_psf = (e Sr)^2`` is the same for the relative error e of the PSFs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from stream.core.records import F32
from stream.subtract.kernels import DEGREE, REACH, Kernels, embedded

C64 = NDArray[np.complex64]
BLOCK = 616  # px, wished; with twice the reach of the kernels 672 = 2^5 3 7
# The kernels' variation is worked out on a grid of 3/4 as many pixels where P_D has lost this share of its amplitude at
# a third of a cycle per pixel (seeing above 3.3 px).
_COARSE = 3, 4
_WIDE = 0.05


@dataclass(frozen=True, slots=True)
class Planes:
    """What is subtracted, (ny, nx) float32 each: images without NaN, and their variances (the reference's
    white-equivalent)."""

    new: F32
    reference: F32
    new_variance: F32
    reference_variance: F32


@dataclass(frozen=True, slots=True)
class Errors:
    """Registration error (px, x and y) at the crossings of the rows ``ys`` and columns ``xs``, (n_y, n_x) float32;
    ``psf`` the relative error of the PSFs."""

    xs: NDArray[np.float64]
    ys: NDArray[np.float64]
    dx: F32
    dy: F32
    psf: float = 0.0


@dataclass(frozen=True, slots=True)
class Proper:
    """``difference`` (DN), ``score`` S and ``scorr`` S_corr, (ny, nx) float32."""

    difference: F32
    score: F32
    scorr: F32


def subtract_planes(planes: Planes, kernels: Kernels, errors: Errors) -> Proper:
    """Proper subtraction of two images that lie on one grid."""
    shape = planes.new.shape
    ys, xs = (_starts(n) for n in shape)
    size = _size(max(int(np.diff(v).max()) for v in (ys, xs)))
    plan = _Plan(size, kernels, (shape[0], shape[1]), errors)
    out = Proper(*(np.empty(shape, np.float32) for _ in range(3)))
    for y0, y1 in zip(ys[:-1].tolist(), ys[1:].tolist(), strict=True):
        for x0, x1 in zip(xs[:-1].tolist(), xs[1:].tolist(), strict=True):
            plan.run(planes, out, (y0, y1, x0, x1))
    return out


def _starts(n: int) -> NDArray[np.int64]:
    """Borders of equal blocks, even numbers so that all have the same second pixels."""
    count = max(1, round(n / BLOCK))
    edges = (np.linspace(0, n, count + 1) / 2).round().astype(np.int64) * 2
    edges[-1] = n
    return edges


def _size(core: int) -> int:
    """A fast size for a block with its margins, divisible by 8."""
    n = core + 2 * REACH
    while n % 8 or fft.next_fast_len(n, real=True) != n or fft.next_fast_len(3 * n // 4, real=True) != 3 * n // 4:
        n += 1
    return n


class _Plan:
    """The kernels' transforms for blocks of one size, and the work of a block."""

    def __init__(self, n: int, kernels: Kernels, shape: tuple[int, int], errors: Errors) -> None:
        self.n, self.shape, self.kernels, self.errors = n, shape, kernels, errors
        self.new, self.reference = _spectrum(kernels.new, n), _spectrum(kernels.reference, n)
        psf = _spectrum(kernels.psf, n)
        self.matched = np.conj(psf)
        self.coarse = n * _COARSE[0] // _COARSE[1] if abs(psf[0, n // 3]) < _WIDE else n
        soft = _roll_off(self.coarse)
        self.variation = [_cut(_spectrum(g, n), self.coarse) * soft for g in kernels.variation]
        self.fade = _fade(self.coarse, n)
        half = n // 2
        self.squares = [_spectrum(_paired(k**2), half) for k in (kernels.score_new, kernels.score_reference)]
        share = _cut(self.matched * self.reference, half)
        fy, fx = fft.fftfreq(half)[:, None] / 2, fft.rfftfreq(half) / 2  # cycles per pixel of the image
        share *= np.exp(1j * np.pi * (fx + fy)).astype(np.complex64)  # to the middle of each 2 x 2 pixels
        share *= np.float32(0.25)  # half as many pixels a side
        self.share = share
        self.slopes = [(share * (2j * np.pi * f)).astype(np.complex64) for f in (fx, fy)]
        self.least = 0.25 * (kernels.score_new**2).sum(), 0.25 * (kernels.score_reference**2).sum()

    def run(self, planes: Planes, out: Proper, box: tuple[int, int, int, int]) -> None:
        """One block, its result written where it belongs."""
        y0, y1, x0, x1 = box
        # An even margin, so that pairs of pixels are the same pairs in all blocks.
        oy, ox = ((start - (self.n - (end - start)) // 2) // 2 * 2 for start, end in ((y0, y1), (x0, x1)))
        window = [_window(p, oy, ox, self.n) for p in (planes.new, planes.reference)]
        new, reference = (fft.rfft2(w, workers=1) for w in window)
        new *= self.new
        new -= self.reference * reference
        self._correct(new, reference, (oy, ox))
        score = new * self.matched
        variance = self._variance(planes, reference, (oy, ox))
        inner = np.s_[y0 - oy : y1 - oy, x0 - ox : x1 - ox]
        target = np.s_[y0:y1, x0:x1]
        shape = self.n, self.n
        out.difference[target] = fft.irfft2(new, s=shape, workers=1, overwrite_x=True)[inner]
        s = fft.irfft2(score, s=shape, workers=1, overwrite_x=True)[inner]
        out.score[target] = s
        np.sqrt(variance, out=variance)
        np.divide(s, _doubled(variance)[inner], out=out.scorr[target])

    def _correct(self, difference: C64, reference: C64, origin: tuple[int, int]) -> None:
        """Take out what the variation of the PSFs leaves of the reference's sources, in place."""
        if not self.variation:
            return
        m = self.coarse
        some = reference if m == self.n else _cut(reference, m)
        step = self.n / m
        y, x = (np.asarray(o + step * np.arange(m), np.float64) for o in origin)
        total = np.zeros((m, m), np.float32)
        for kernel, trend in zip(self.variation, self.kernels.trend, strict=True):
            part = fft.irfft2(some * kernel, s=(m, m), workers=1, overwrite_x=True)
            part *= _surface(trend, y, x, self.shape)
            total += part
        total *= self.fade
        part = fft.rfft2(total, workers=1)
        if m == self.n:
            difference -= part
        else:
            _subtract_cut(difference, part, m)

    def _variance(self, planes: Planes, reference: C64, origin: tuple[int, int]) -> F32:
        """V(S) + V_ast + V_psf at every second pixel."""
        half = self.n // 2
        v = [_mean_pairs(_window(p, *origin, self.n)) for p in (planes.new_variance, planes.reference_variance)]
        typical = [float(np.median(w[::8, ::8])) for w in v]
        total = fft.rfft2(v[0], workers=1) * self.squares[0]
        total += fft.rfft2(v[1], workers=1) * self.squares[1]
        variance = fft.irfft2(total, s=(half, half), workers=1, overwrite_x=True)
        # Rounding beside a very bright star must not make a variance vanish.
        np.maximum(variance, np.float32(typical[0] * self.least[0] + typical[1] * self.least[1]), out=variance)
        some = _cut(reference, half)
        y, x = (np.asarray(o + 0.5 + 2.0 * np.arange(half), np.float64) for o in origin)
        for slope, error in zip(self.slopes, (self.errors.dx, self.errors.dy), strict=True):
            part = fft.irfft2(some * slope, s=(half, half), workers=1, overwrite_x=True)
            part *= _bilinear(error, self.errors, y, x)
            part *= part
            variance += part
        if self.errors.psf > 0:
            part = fft.irfft2(some * self.share, s=(half, half), workers=1, overwrite_x=True)
            part *= np.float32(self.errors.psf)
            part *= part
            variance += part
        out: F32 = variance
        return out


def _spectrum(kernel: NDArray[np.float64], n: int) -> C64:
    out: C64 = np.asarray(fft.rfft2(embedded(kernel, n)), np.complex64)
    return out


def _roll_off(m: int) -> F32:
    """Weights of a half plane that fall to nothing over its outermost eighth: a sharp end would ring."""
    fy, fx = np.abs(fft.fftfreq(m)), fft.rfftfreq(m)
    rows, columns = (np.sin(0.5 * np.pi * np.clip((0.5 - f) / 0.0625, 0, 1)) ** 2 for f in (fy, fx))
    out: F32 = (rows[:, None] * columns).astype(np.float32)
    return out


def _fade(m: int, n: int) -> F32:
    """Weights that fall to nothing towards the border of a block, inside its margin: a source that the border cuts
    would ring through the block on its way back to the fine grid."""
    away = np.minimum(np.arange(m), np.arange(m)[::-1]) * (n / m)
    side = np.sin(0.5 * np.pi * np.clip(away / (REACH - 4), 0, 1)) ** 2
    out: F32 = np.outer(side, side).astype(np.float32)
    return out


def _cut(plane: C64, m: int) -> C64:
    """The low frequencies of a half plane, those of an (m, m) image of the same field; the highest are zero."""
    low = m // 2
    out = np.concatenate([plane[:low, : low + 1], plane[-low:, : low + 1]])
    out[low] = 0
    out[:, low] = 0
    return out


def _subtract_cut(plane: C64, part: C64, m: int) -> None:
    """Subtract low frequencies that ``_cut`` took out, in place."""
    low = m // 2
    plane[:low, :low] -= part[:low, :low]
    plane[-low + 1 :, :low] -= part[low + 1 :, :low]


def _window(image: F32, y0: int, x0: int, n: int) -> F32:
    """The n x n window that starts at a pixel; beyond the image its mirror image (sky goes on as sky)."""
    ny, nx = image.shape
    y1, x1 = y0 + n, x0 + n
    inner = image[max(y0, 0) : min(y1, ny), max(x0, 0) : min(x1, nx)]
    if inner.shape == (n, n):
        return inner
    pads = (max(-y0, 0), max(y1 - ny, 0)), (max(-x0, 0), max(x1 - nx, 0))
    return np.pad(inner, pads, mode="symmetric")


def _mean_pairs(image: F32) -> F32:
    """Means of 2 x 2 pixels."""
    rows = image[0::2] + image[1::2]
    out: F32 = rows[:, 0::2] + rows[:, 1::2]
    out *= np.float32(0.25)
    return out


def _paired(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """A kernel (odd side, half a multiple of 2) for means of 2 x 2 pixels: its sum stays."""
    side = kernel.shape[0]
    half = side // 2
    rows = np.zeros((half // 2 * 2 + 1, side))
    for k in range(rows.shape[0]):
        middle = half + 2 * (k - rows.shape[0] // 2)
        for step, weight in ((-1, 0.5), (0, 1.0), (1, 0.5)):
            if 0 <= middle + step < side:
                rows[k, middle + step] = weight
    return np.asarray(rows @ kernel @ rows.T)


def _doubled(image: F32) -> F32:
    """An image of 2 x 2 pixels' means at every pixel, bilinear."""
    return _doubled_rows(_doubled_rows(image).T).T


def _doubled_rows(image: F32) -> F32:
    near, far = image * np.float32(0.75), image * np.float32(0.25)
    out: F32 = np.repeat(near, 2, axis=0)
    out[2::2] += far[:-1]
    out[1:-1:2] += far[1:]
    out[0] += far[0]
    out[-1] += far[-1]
    return out


def _surface(trend: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64], shape: tuple[int, int]) -> F32:
    """A polynomial (``polynomial_terms``) on the grid of rows ``y`` and columns ``x``."""
    ny, nx = shape
    u, v = (x - (nx - 1) / 2) / (nx / 2), (y - (ny - 1) / 2) / (ny / 2)
    square = np.zeros((DEGREE + 1, DEGREE + 1))
    powers = [(total - j, j) for total in range(DEGREE + 1) for j in range(total + 1)]
    for (p, q), value in zip(powers, trend, strict=True):
        square[q, p] = value
    rows, columns = (np.vander(w, DEGREE + 1, increasing=True).astype(np.float32) for w in (v, u))
    out: F32 = rows @ square.astype(np.float32) @ columns.T
    return out


def _bilinear(grid: F32, errors: Errors, y: NDArray[np.float64], x: NDArray[np.float64]) -> F32:
    """A coarse map on the grid of rows ``y`` and columns ``x``; beyond it the edge's values."""
    weights = []
    for nodes, places in ((errors.ys, y), (errors.xs, x)):
        at = np.interp(places, nodes, np.arange(len(nodes)))
        low = np.minimum(at.astype(int), max(len(nodes) - 2, 0))
        part: F32 = (at - low).astype(np.float32)
        matrix: F32 = np.zeros((len(places), len(nodes)), np.float32)
        row = np.arange(len(places))
        matrix[row, low] = 1 - part
        np.add.at(matrix, (row, np.minimum(low + 1, len(nodes) - 1)), part)
        weights.append(matrix)
    return np.asarray(weights[0] @ grid @ weights[1].T, np.float32)
