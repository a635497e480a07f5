"""The compiled loops of the PSF's making: fits of single stars, and each star's equations for the corrections."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.psfread import PsfTable, psf_work, read_slopes
from stream.photometry.equations import eliminate, own_equations

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
INT = NDArray[np.int64]
BOOL = NDArray[np.bool_]

FIT_ROUNDS = 4
MAX_STEP, MAX_SHIFT = 0.3, 0.8  # px, of a star's place in one round and in all
CLIP = 5.0  # residuals beyond this many sigma are cut there


class Windows(NamedTuple):
    """Stars' windows (n, side, side): DN with sky off, which pixels count, variance of the sky (DN^2)."""

    values: F32
    usable: BOOL
    variance: F32

    def part(self, chosen: slice) -> Windows:
        """Some of them."""
        return Windows(self.values[chosen], self.usable[chosen], self.variance[chosen])


class Stars(NamedTuple):
    """Places (px from the windows' middle pixels) and fluxes (DN) of n stars, and the model's coefficients there."""

    dx: F64
    dy: F64
    flux: F64
    coefficients: F32

    def part(self, chosen: slice) -> Stars:
        """Some of them."""
        return Stars(self.dx[chosen], self.dy[chosen], self.flux[chosen], self.coefficients[chosen])


class Noise(NamedTuple):
    """e-/DN, and what no model reproduces: ``part`` of the light, ``floor`` of the star's peak (``_ModelError``)."""

    gain: float
    part: float
    floor: float


class Functions(NamedTuple):
    """Tabulated profiles (n_r, n_functions), the first profile (n_r,), ``steps`` of both a px; columns from
    ``edges[q]`` to ``edges[q + 1]`` go with the angle q of 1, cos phi, sin phi, cos 2 phi, ..."""

    table: F32
    profile: F64
    steps: float
    edges: INT


class Image(NamedTuple):
    """DN with sky in, the sky's level, mask bits, and those that spoil a pixel."""

    data: F32
    level: F32
    mask: NDArray[np.uint16]
    bad: np.uint16


@compiled
def gather_windows(image: Image, ix: INT, iy: INT, out: Windows) -> None:
    """Windows around pixels (n,), the sky's level in place of a variance; beyond the image nothing is usable or set."""
    ny, nx = image.data.shape
    side = out.values.shape[1]
    half = side // 2
    for k in range(len(ix)):
        for j in range(max(half - iy[k], 0), min(side, ny - iy[k] + half)):
            row = iy[k] + j - half
            for i in range(max(half - ix[k], 0), min(side, nx - ix[k] + half)):
                column = ix[k] + i - half
                value, level = image.data[row, column], image.level[row, column]
                out.values[k, j, i], out.variance[k, j, i] = value - level, level
                out.usable[k, j, i] = abs(value) < np.float32(np.inf) and (image.mask[row, column] & image.bad) == 0


@compiled
def hide_discs(usable: BOOL, window: INT, dx: F64, dy: F64, radius: F64) -> None:
    """Pixels of windows (n, side, side) nearer than ``radius`` to places (px from the middle pixel) become unusable."""
    side = usable.shape[1]
    for q in range(len(window)):
        for j in range(side):
            y = j - side // 2 - dy[q]
            for i in range(side):
                x = i - side // 2 - dx[q]
                if x * x + y * y < radius[q] * radius[q]:
                    usable[window[q], j, i] = False


@compiled
def soft_apertures(values: F32, dx: F64, dy: F64, radii: F64, out: F64) -> None:
    """Sums (n, n_radii) within radii around places in windows (px from the middle pixel), edges softened over a px."""
    side = values.shape[1]
    out[:] = 0
    for k in range(len(dx)):
        for j in range(side):
            y = j - side // 2 - dy[k]
            for i in range(side):
                x = i - side // 2 - dx[k]
                r = math.sqrt(x * x + y * y)
                for q in range(len(radii)):
                    out[k, q] += values[k, j, i] * min(max(radii[q] + 0.5 - r, 0.0), 1.0)


@compiled
def fit_single_stars(windows: Windows, stars: Stars, table: PsfTable, noise: Noise, size: int, misfit: F64) -> None:
    """Places and fluxes of stars from their cores of ``size`` px, in place; ``misfit`` is the reduced chi-square.

    A prior of one px keeps hopeless stars in place.
    """
    cut = windows.values.shape[1] // 2 - size // 2
    design, window = np.empty((3, size, size), np.float32), np.empty((2, size, size), np.float32)
    flat, equations = design.reshape((3, size * size)), window.reshape((2, size * size))
    normal, right, matrix, work = np.empty((3, 3)), np.empty(3), np.empty((3, 4)), psf_work(table)
    for s in range(len(stars.flux)):
        home_x, home_y = stars.dx[s], stars.dy[s]
        for _ in range(FIT_ROUNDS):
            read_slopes(table, stars.coefficients[s], stars.dx[s], stars.dy[s], work, design)
            flux, bright = stars.flux[s], max(stars.flux[s], 1.0)
            peak = max(np.max(design[0]), np.float32(0)) * bright
            chi2, used = 0.0, 0
            for j in range(size):
                for i in range(size):
                    p, y, x = design[0, j, i], cut + j, cut + i
                    light = bright * max(p, np.float32(0))
                    model = noise.part**2 * light * max(light, noise.floor * peak)
                    rest = windows.values[s, y, x] - flux * p
                    weight = 0.0
                    if windows.usable[s, y, x]:
                        weight = 1 / (windows.variance[s, y, x] + light / noise.gain + model)
                        used += 1
                    window[0, j, i], window[1, j, i] = weight, rest
                    chi2 += weight * rest * rest
            misfit[s] = chi2 / max(used - 3, 1)
            own_equations(flat, equations, flux, normal, right)
            for i in range(3):
                for j in range(3):
                    matrix[i, j] = normal[i, j]
                matrix[i, i] += 1.0 if i else 1e-12
                matrix[i, 3] = right[i]
            eliminate(matrix, 3, 1)
            stars.flux[s] = flux + matrix[0, 3]
            x, y = min(max(matrix[1, 3], -MAX_STEP), MAX_STEP), min(max(matrix[2, 3], -MAX_STEP), MAX_STEP)
            stars.dx[s] = min(max(stars.dx[s] + x, home_x - MAX_SHIFT), home_x + MAX_SHIFT)
            stars.dy[s] = min(max(stars.dy[s] + y, home_y - MAX_SHIFT), home_y + MAX_SHIFT)


@inner
def _angles(cosine: float, sine: float, root: float, out: F32) -> None:
    """``root`` times 1, cos phi, sin phi, cos 2 phi, sin 2 phi, ... as far as ``out`` goes."""
    c, s = 1.0, 0.0
    out[0] = root
    for m in range(1, (len(out) + 1) // 2):
        c, s = c * cosine - s * sine, s * cosine + c * sine
        out[2 * m - 1], out[2 * m] = root * c, root * s


@inner
def _project_out(columns: F32, rows: F32, right: F32, memory: F32) -> None:
    """Take what three ``columns`` (3, n) explain out of ``rows`` (n, k) and ``right`` (n,); they become orthonormal."""
    for a in range(3):
        for b in range(a):
            overlap = np.float32(0)
            for i in range(columns.shape[1]):
                overlap += columns[a, i] * columns[b, i]
            for i in range(columns.shape[1]):
                columns[a, i] -= overlap * columns[b, i]
        norm = np.float32(0)
        for i in range(columns.shape[1]):
            norm += columns[a, i] * columns[a, i]
        scale = np.float32(1 / math.sqrt(norm)) if norm > 0 else np.float32(0)
        for i in range(columns.shape[1]):
            columns[a, i] *= scale
    p, q, r = columns[0], columns[1], columns[2]
    memory[:] = 0
    u, v, w = memory[0], memory[1], memory[2]
    su = sv = sw = np.float32(0)
    for i in range(len(right)):
        su += p[i] * right[i]
        sv += q[i] * right[i]
        sw += r[i] * right[i]
        for k in range(rows.shape[1]):
            u[k] += p[i] * rows[i, k]
            v[k] += q[i] * rows[i, k]
            w[k] += r[i] * rows[i, k]
    for i in range(len(right)):
        right[i] -= su * p[i] + sv * q[i] + sw * r[i]
        for k in range(rows.shape[1]):
            rows[i, k] -= p[i] * u[k] + q[i] * v[k] + r[i] * w[k]


@compiled
def star_rows(
    windows: Windows, stars: Stars, table: PsfTable, noise: Noise, shape: Functions, disc: INT, rows: F32, right: F32
) -> None:
    """Each star's weighted functions and residuals with its own flux and place projected out.

    Parameters
    ----------
    disc : ndarray, (n_disc,)
        Flat indices of the windows' pixels that enter.
    rows, right : ndarray, (n, n_disc, n_functions) and (n, n_disc), float32
        Filled. Residuals are against the first profile; what goes far beyond the noise is cut at the present model.
    """
    side, n_disc = windows.values.shape[1], len(disc)
    slopes, work = np.empty((3, side, side), np.float32), psf_work(table)
    flat, nuisance = slopes.reshape((3, side * side)), np.empty((3, n_disc), np.float32)
    angles, memory = np.empty(len(shape.edges) - 1, np.float32), np.empty((3, rows.shape[2]), np.float32)
    for s in range(len(stars.flux)):
        dx, dy, flux = stars.dx[s], stars.dy[s], stars.flux[s]
        read_slopes(table, stars.coefficients[s], dx, dy, work, slopes)
        values, usable = windows.values[s].reshape(-1), windows.usable[s].reshape(-1)
        variance, peak = windows.variance[s].reshape(-1), 0.0
        for k in range(n_disc):
            peak = max(peak, float(flat[0, disc[k]]))
        for k in range(n_disc):
            pixel = disc[k]
            x, y = pixel % side - side // 2 - dx, pixel // side - side // 2 - dy
            p, r = float(flat[0, pixel]), math.sqrt(x * x + y * y)
            light = max(p, 0.0)
            sigma2 = (variance[pixel] + flux * light / noise.gain) / flux**2
            sigma2 += noise.part**2 * light * max(light, noise.floor * peak)
            bound = CLIP * math.sqrt(sigma2)
            root = 1 / math.sqrt(sigma2) if usable[pixel] else 0.0
            node = r * shape.steps
            low = min(int(node), len(shape.profile) - 2)
            first = shape.profile[low] + (node - low) * (shape.profile[low + 1] - shape.profile[low])
            right[s, k] = root * (p + min(max(values[pixel] / flux - p, -bound), bound) - first)
            nuisance[0, k], nuisance[1, k], nuisance[2, k] = root * p, root * flat[1, pixel], root * flat[2, pixel]
            _angles(x / r if r > 0 else 1.0, y / r if r > 0 else 0.0, root, angles)
            profiles, line = shape.table[min(int(np.rint(node)), len(shape.table) - 1)], rows[s, k]
            for q in range(len(angles)):
                angle = angles[q]
                for f in range(shape.edges[q], shape.edges[q + 1]):
                    line[f] = profiles[f] * angle
        _project_out(nuisance, rows[s], right[s], memory)
