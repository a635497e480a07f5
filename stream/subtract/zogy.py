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
from stream.subtract import blocks
from stream.subtract.kernels import DEGREE, REACH, Kernels

C64 = NDArray[np.complex64]
BLOCK = 514  # px, wished; with twice the reach of the kernels 576 = 2^6 3^2, the fastest a pixel that is kept


@dataclass(frozen=True, slots=True)
class Planes:
    """What is subtracted, (ny, nx) float32 each: images without NaN, and their variances (the reference's
    white-equivalent). ``light``: the reference's sources whose places and PSFs are uncertain, where more of them were
    there than are in ``reference``."""

    new: F32
    reference: F32
    new_variance: F32
    reference_variance: F32
    light: F32 | None = None


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
    """A fast size for a block with its margins, divisible by 4."""
    n = core + 2 * REACH
    while n % 4 or fft.next_fast_len(n, real=True) != n or fft.next_fast_len(n // 2, real=True) != n // 2:
        n += 1
    return n


class _Plan:
    """The kernels' transforms for blocks of one size, and the work of a block."""

    def __init__(self, n: int, kernels: Kernels, shape: tuple[int, int], errors: Errors) -> None:
        self.n, self.shape, self.trend = n, shape, kernels.trend
        both = kernels.new, -kernels.reference
        self.kernels = np.stack([_spectrum(k, n) for k in (*both, *(-g for g in kernels.variation))])
        self.matched = np.conj(_spectrum(kernels.psf, n))
        half = n // 2
        self.squares = [_spectrum(_paired(k**2), half) for k in (kernels.score_new, kernels.score_reference)]
        fy, fx = fft.fftfreq(half)[:, None] / 2, fft.rfftfreq(half) / 2  # cycles per pixel of the image
        # The light comes as means of 2 x 2 pixels, which have this much of it.
        share = _cut(-self.matched * self.kernels[1], half) / (np.cos(np.pi * fy) * np.cos(np.pi * fx))
        share *= _roll_off(half)
        self.slopes = np.stack([(share * f).astype(np.complex64) for f in (2j * np.pi * fx, 2j * np.pi * fy, 1.0)])
        self.least = 0.25 * (kernels.score_new**2).sum(), 0.25 * (kernels.score_reference**2).sum()
        self.psf_error = float(errors.psf)
        self.errors = _errors_on_rows(errors, shape, n)
        self.error_rows = _nodes_below(errors.ys, shape[0], n)
        self.parts = np.empty((len(self.kernels), n, n), np.float32)
        self.small = np.empty((3, half, half), np.float32)

    def run(self, planes: Planes, out: Proper, box: tuple[int, int, int, int]) -> None:
        """One block, its result written where it belongs."""
        y0, y1, x0, x1 = box
        # An even margin, so that pairs of pixels are the same pairs in all blocks.
        oy, ox = ((start - (self.n - (end - start)) // 2) // 2 * 2 for start, end in ((y0, y1), (x0, x1)))
        for image, into in zip((planes.new, planes.reference), self.parts, strict=False):
            blocks.window(image, oy, ox, into)
        self._modulate(oy, ox)
        transforms = fft.rfft2(self.parts, workers=1)
        blocks.combine(transforms, self.kernels, self.matched)
        both = fft.irfft2(transforms[:2], s=(self.n, self.n), workers=1, overwrite_x=True)
        variance = self._variance(planes, (oy, ox))
        blocks.place(both, variance, (oy, ox), box, out.difference, out.score, out.scorr)

    def _modulate(self, oy: int, ox: int) -> None:
        """The reference times the polynomials of the PSFs' variation, beside the two images."""
        if len(self.parts) == 2:
            return
        y, x = (np.arange(o, o + self.n, dtype=float) for o in (oy, ox))
        rows, columns = _scaled(y, x, self.shape)
        for part, trend in zip(self.parts[2:], self.trend, strict=False):
            blocks.modulate(self.parts[1], _rows_of(trend, rows), columns, part)

    def _variance(self, planes: Planes, origin: tuple[int, int]) -> F32:
        """V(S) + V_ast + V_psf at every second pixel."""
        half = self.n // 2
        light = planes.reference if planes.light is None else planes.light
        for image, into in zip((planes.new_variance, planes.reference_variance, light), self.small, strict=True):
            blocks.pairs(image, *origin, into)
        least = sum(float(np.median(v[::8, ::8])) * s for v, s in zip(self.small, self.least, strict=False))
        new, reference, seen = fft.rfft2(self.small, workers=1)
        new *= self.squares[0]
        reference *= self.squares[1]
        new += reference
        variance: F32 = fft.irfft2(new, s=(half, half), workers=1, overwrite_x=True)
        slopes = fft.irfft2(self.slopes * seen, s=(half, half), workers=1, overwrite_x=True)
        first, column = ((o + self.n) // 2 for o in origin)
        rows = self.error_rows[first : first + half]
        # Rounding beside a very bright star must not make a variance vanish.
        blocks.add_errors(variance, least, slopes, self.errors, rows, column, self.psf_error)
        return variance


def _errors_on_rows(errors: Errors, shape: tuple[int, int], n: int) -> F32:
    """Registration errors in x and y on the rows of their nodes for every two columns, (2, n_y, columns) from -n on."""
    at = _nodes_below(errors.xs, shape[1], n)
    low = np.minimum(at.astype(np.intp), max(len(errors.xs) - 2, 0))
    high, part = np.minimum(low + 1, len(errors.xs) - 1), at - low.astype(np.float32)
    out: F32 = np.stack([g[:, low] + part * (g[:, high] - g[:, low]) for g in (errors.dx, errors.dy)])
    return np.ascontiguousarray(out, np.float32)


def _nodes_below(nodes: NDArray[np.float64], size: int, n: int) -> F32:
    """Where every two pixels from -n to n beyond the image lie among the nodes; beyond these the outermost."""
    places = np.arange(-n, size + n, 2, dtype=float) + 0.5
    return np.interp(places, nodes, np.arange(len(nodes))).astype(np.float32)


def _spectrum(kernel: NDArray[np.float64], n: int) -> C64:
    """Transform (n, n / 2 + 1) of a small image whose middle pixel is the origin."""
    half = kernel.shape[0] // 2
    index = np.arange(-half, half + 1)
    lines = np.zeros((len(index), n), np.float32)
    lines[:, index] = kernel
    plane = np.zeros((n, n // 2 + 1), np.complex64)
    plane[index] = fft.rfft(lines, axis=1, workers=1)  # all other rows are zero
    out: C64 = fft.fft(plane, axis=0, workers=1, overwrite_x=True)
    return out


def _roll_off(m: int) -> F32:
    """Weights of a half plane that fall to nothing over its outermost eighth: a sharp end would ring."""
    fy, fx = np.abs(fft.fftfreq(m)), fft.rfftfreq(m)
    rows, columns = (np.sin(0.5 * np.pi * np.clip((0.5 - f) / 0.0625, 0, 1)) ** 2 for f in (fy, fx))
    out: F32 = (rows[:, None] * columns).astype(np.float32)
    return out


def _cut(plane: C64, m: int) -> C64:
    """The low frequencies of a half plane, those of an (m, m) image of the same field; the highest are zero."""
    low = m // 2
    out = np.concatenate([plane[:low, : low + 1], plane[-low:, : low + 1]])
    out[low] = 0
    out[:, low] = 0
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


def _scaled(y: NDArray[np.float64], x: NDArray[np.float64], shape: tuple[int, int]) -> tuple[F32, F32]:
    """Powers of rows (n, 4) and scaled columns (n,) of ``polynomial_terms``."""
    ny, nx = shape
    u, v = (x - (nx - 1) / 2) / (nx / 2), (y - (ny - 1) / 2) / (ny / 2)
    return np.vander(v, DEGREE + 1, increasing=True).astype(np.float32), u.astype(np.float32)


def _rows_of(trend: NDArray[np.float64], rows: F32) -> F32:
    """Coefficients (n, 4) of the powers of x in each row of a polynomial (``polynomial_terms``)."""
    square = np.zeros((DEGREE + 1, DEGREE + 1), np.float32)
    powers = [(total - j, j) for total in range(DEGREE + 1) for j in range(total + 1)]
    for (p, q), value in zip(powers, trend, strict=True):
        square[q, p] = value
    out: F32 = rows @ square
    return out
