"""What the subtraction does to pixels before, between and after its transforms, in one pass over memory each."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled
from stream.core.records import F32

C64 = NDArray[np.complex64]
_ROWS = 64  # of a transform at a time: they stay in the processor's cache


@compiled
def mirror(place: int, n: int) -> int:
    """The pixel 0..n-1 that stands for one beyond the image: its mirror image about the edge, edge pixel included."""
    period = 2 * n
    place %= period
    return place if place < n else period - 1 - place


@compiled
def window(image: F32, y0: int, x0: int, out: F32) -> None:
    """The window that starts at a pixel; beyond the image its mirror image (sky goes on as sky)."""
    ny, nx = image.shape
    first, last = min(max(-x0, 0), out.shape[1]), max(min(nx - x0, out.shape[1]), 0)
    for j in range(out.shape[0]):
        line = image[mirror(y0 + j, ny)]
        for i in range(first):
            out[j, i] = line[mirror(x0 + i, nx)]
        if first < last:
            out[j, first:last] = line[x0 + first : x0 + last]
        for i in range(max(first, last), out.shape[1]):
            out[j, i] = line[mirror(x0 + i, nx)]


@compiled
def pairs(image: F32, y0: int, x0: int, out: F32) -> None:
    """Means of 2 x 2 pixels of a window that starts at a pixel, as ``window``."""
    ny, nx = image.shape
    first, last = min((max(-x0, 0) + 1) // 2, out.shape[1]), max(min((nx - x0) // 2, out.shape[1]), 0)
    quarter = np.float32(0.25)
    for j in range(out.shape[0]):
        one, two = image[mirror(y0 + 2 * j, ny)], image[mirror(y0 + 2 * j + 1, ny)]
        if first < last:
            inner, upper, lower = out[j, first:last], one[x0 + 2 * first :], two[x0 + 2 * first :]
            for i in range(len(inner)):
                inner[i] = quarter * ((upper[2 * i] + upper[2 * i + 1]) + (lower[2 * i] + lower[2 * i + 1]))
        for i in range(out.shape[1]):
            if first <= i < last:
                continue
            x, z = mirror(x0 + 2 * i, nx), mirror(x0 + 2 * i + 1, nx)
            out[j, i] = quarter * ((one[x] + one[z]) + (two[x] + two[z]))


@compiled
def modulate(part: F32, coefficients: F32, columns: F32, out: F32) -> None:
    """``part`` times a cubic: row j's value at column i is the sum of ``coefficients[j, k] columns[i]^k``."""
    for j in range(out.shape[0]):
        a, b, c, d = coefficients[j, 0], coefficients[j, 1], coefficients[j, 2], coefficients[j, 3]
        some, own = part[j], out[j]
        for i in range(len(own)):
            u = columns[i]
            own[i] = (a + u * (b + u * (c + u * d))) * some[i]


def combine(parts: C64, kernels: C64, matched: C64) -> None:
    """The transforms of D and S, in place of those of the two images: D^ is the sum of all ``parts`` (n, rows, columns)
    times their ``kernels``, S^ that times ``matched``. (Products of complex numbers are faster in numpy.)"""
    for j in range(0, parts.shape[1], _ROWS):
        rows = slice(j, j + _ROWS)
        some = parts[:, rows]
        some *= kernels[:, rows]
        for more in some[1:]:
            some[0] += more
        np.multiply(some[0], matched[rows], out=some[1])


@compiled
def add_errors(variance: F32, least: float, slopes: F32, errors: F32, rows: F32, x0: int, psf_error: float) -> None:
    """Keep a variance above ``least`` and add that of uncertain places and PSFs, in place.

    ``slopes`` (3, n, n): of the reference's part of S along x and y, and itself. ``errors`` (2, n_nodes, columns): what
    the places are uncertain by on some rows, from column ``x0`` on; ``rows`` (n,): where the variance's lie among
    these, linear between. ``psf_error``: of the reference's part itself.
    """
    floor, doubt = np.float32(least), np.float32(psf_error)
    n = variance.shape[1]
    last = max(errors.shape[1] - 2, 0)
    for j in range(variance.shape[0]):
        node = min(int(rows[j]), last)
        part = rows[j] - np.float32(node)
        other = min(node + 1, errors.shape[1] - 1)
        total = variance[j]
        x_slope, y_slope, light = slopes[0, j], slopes[1, j], slopes[2, j]
        x_low, y_low = errors[0, node, x0 : x0 + n], errors[1, node, x0 : x0 + n]
        x_high, y_high = errors[0, other, x0 : x0 + n], errors[1, other, x0 : x0 + n]
        for i in range(n):
            along = x_slope[i] * (x_low[i] + part * (x_high[i] - x_low[i]))
            across = y_slope[i] * (y_low[i] + part * (y_high[i] - y_low[i]))
            own = light[i] * doubt
            total[i] = max(total[i], floor) + (along * along + across * across + own * own)


@compiled
def place(
    images: F32,
    variance: F32,
    origin: tuple[int, int],
    box: tuple[int, int, int, int],
    data: F32,
    score: F32,
    scorr: F32,
) -> None:
    """A block's D, S and S over its noise into whole images.

    ``images`` (2, n, n): D and S from the pixel ``origin`` (y, x) on; ``box`` y0, y1, x0, x1: what of it is wanted.
    ``variance`` (n / 2, n / 2) is that of 2 x 2 pixels, bilinear between.
    """
    oy, ox = origin
    y0, y1, x0, x1 = box
    n_y, n_x = variance.shape
    near, far = np.float32(0.75), np.float32(0.25)
    wide = np.empty(2 * n_x, np.float32)
    line = np.empty(n_x + 2, np.float32)
    left, inner, right = line[:n_x], line[1 : n_x + 1], line[2:]
    for y in range(y0, y1):
        v = y - oy
        this, other = variance[v // 2], variance[min(max(v // 2 + (1 if v % 2 else -1), 0), n_y - 1)]
        for i in range(n_x):
            inner[i] = near * this[i] + far * other[i]
        line[0], line[n_x + 1] = line[1], line[n_x]
        for i in range(n_x):
            wide[2 * i] = near * inner[i] + far * left[i]
            wide[2 * i + 1] = near * inner[i] + far * right[i]
        some, matched, noise = images[0, v, x0 - ox : x1 - ox], images[1, v, x0 - ox : x1 - ox], wide[x0 - ox : x1 - ox]
        own, s, c = data[y, x0:x1], score[y, x0:x1], scorr[y, x0:x1]
        for i in range(len(own)):
            own[i] = some[i]
            s[i] = matched[i]
            c[i] = matched[i] / math.sqrt(noise[i])


@compiled
def science_pixels(data: F32, level: F32, rms: F32, gain: float, typical: float, new: F32, variance: F32) -> None:
    """An image without its sky, and its variance: the sky's, and the photons' of what stands out by 2 sigma (below
    that is sky, whose noise the r.m.s. has already); ``typical`` where there is no value."""
    per_gain, unknown = np.float32(1.0 / gain), np.float32(typical)
    for j in range(data.shape[0]):
        some, sky, noise, own, total = data[j], level[j], rms[j], new[j], variance[j]
        for i in range(len(some)):
            value = some[i] - sky[i]
            own[i] = value
            seen = noise[i] * noise[i] + (value * per_gain if value > np.float32(2) * noise[i] else np.float32(0))
            total[i] = seen if value == value and seen == seen else unknown


@compiled
def noise_of(new: F32, reference: F32, gain_new: float, gain_reference: float, out: F32) -> None:
    """1-sigma noise of a sum of two images from their variances and what the sum makes of them."""
    a, b = np.float32(gain_new), np.float32(gain_reference)
    for j in range(out.shape[0]):
        one, two, own = new[j], reference[j], out[j]
        for i in range(len(own)):
            own[i] = math.sqrt(one[i] * a + two[i] * b)


@compiled
def level_off(level: F32, width: F32, per_psf: float, data: F32, sigma: F32, score: F32, scorr: F32) -> None:
    """Take a level of S_corr out of S_corr, S and D and scale noise by a width, all (n, nx), in place.

    S = S_corr sqrt(V): what the level is in S follows from the two, and in D from S.
    """
    share = np.float32(per_psf)
    for j in range(data.shape[0]):
        off, wide, d, n, s, c = level[j], width[j], data[j], sigma[j], score[j], scorr[j]
        for i in range(len(d)):
            root = s[i] / c[i] * off[i]
            root = root if abs(root) < np.float32(np.inf) else np.float32(0)  # NaN too
            s[i] -= root
            d[i] -= root * share
            c[i] = (c[i] - off[i]) / wide[i]
            n[i] *= wide[i]
