"""The compiled loops of the simultaneous fit: windows, normal equations, groups solved, models taken off.

``stream.photometry.fit`` says what is fitted; here each source's window is read once a round, and its equations are
summed while it lies in the processor's cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled
from stream.core.psfread import PsfTable, psf_work, read_slopes, read_values
from stream.photometry.groups import Groups

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
INT = NDArray[np.int64]
BOOL = NDArray[np.bool_]

# A place may leave its detection by this much (px) in the end and in one step; beyond lies another source.
MAX_SHIFT, MAX_STEP = 1.5, 0.5
# Weak prior (px) that holds places where the data say nothing; a source of S/N 5 knows its place to 0.2 px.
PLACE_PRIOR = 0.5
# Two sources on one place share its flux as they like; this part of a source's information keeps the sum solvable.
RIDGE = 1e-3
# Part of the model's light by which any PSF is wrong somewhere: enters chi, not the weights (a Poisson-weighted flux
# does not see such errors to first order, because the model's sum is right).
PROFILE_ERROR = 0.01

# What ``step_groups`` says of each source's fit: variance of its flux by the normal equations (NaN: no usable pixel);
# part of it that is the sky's; chi; change of ln(width) that the residuals ask for in units of flux, and its
# information; part of the PSF's light on usable pixels; inverse variance of the flux were nothing else free.
FIGURES = VARIANCE, SKY_PART, CHI, GROWTH, KNOWN, COVERED, INFORMATION = range(7)


class Pixels(NamedTuple):
    """Image with sky off (DN, finite), the same with all models off, and which pixels do not count."""

    image: F32
    residual: F32
    unusable: BOOL


class Sources(NamedTuple):
    """Places (px) and flux (DN) of n sources, which a step changes; first places; noise variance of an empty pixel
    there (DN^2), and the PSF's coefficients."""

    x: F64
    y: F64
    flux: F64
    home_x: F64
    home_y: F64
    noise: F32
    coefficients: F32


class Step(NamedTuple):
    """``size`` of the windows, px; DN per e-; True: the sources stand alone and their models are still in the residual
    image; whether places move; whether the fit is judged."""

    size: int
    inverse_gain: float
    alone: bool
    move: bool
    judge: bool


@compiled
def subtract_sources(image: F32, rows: INT, sources: Sources, table: PsfTable, size: int) -> None:
    """Take the models of sources off an image, each in a window of ``size`` px; what falls outside is dropped."""
    ny, nx = image.shape
    half = size // 2
    work, stamp = psf_work(table), np.empty((size, size), np.float32)
    for s in rows:
        flux = np.float32(sources.flux[s])
        if flux == 0 or np.isnan(flux):
            continue
        ix, iy = int(np.rint(sources.x[s])), int(np.rint(sources.y[s]))
        read_values(table, sources.coefficients[s], sources.x[s] - ix, sources.y[s] - iy, work, stamp)
        left, right = max(half - ix, 0), min(size, nx - ix + half)
        for j in range(max(half - iy, 0), min(size, ny - iy + half)):
            model = stamp[j, left:right]
            line = image[iy - half + j, ix - half + left : ix - half + right]
            for i in range(len(model)):
                line[i] -= flux * model[i]


@compiled
def restore_windows(image: F32, residual: F32, windows: INT) -> None:
    """Copy windows (n, 3: middle pixel x and y, side) of ``image`` into ``residual``."""
    ny, nx = image.shape
    for k in range(len(windows)):
        half = windows[k, 2] // 2
        left, right = max(windows[k, 0] - half, 0), min(windows[k, 0] + half + 1, nx)
        for row in range(max(windows[k, 1] - half, 0), min(windows[k, 1] + half + 1, ny)):
            here, there = residual[row, left:right], image[row, left:right]
            for i in range(len(here)):
                here[i] = there[i]


@compiled
def weighted_sums(image: F32, unusable: BOOL, ix: INT, iy: INT, weights: F32, out: F64) -> None:
    """Sums of windows times ``weights`` (size, size) around pixels (n,); NaN where one is not whole and usable."""
    ny, nx = image.shape
    size = len(weights)
    for k in range(len(ix)):
        x, y = ix[k] - size // 2, iy[k] - size // 2
        out[k] = np.nan
        if x < 0 or y < 0 or x + size > nx or y + size > ny:
            continue
        total, spoiled = 0.0, 0
        for j in range(size):
            line, bad, weight = image[y + j, x : x + size], unusable[y + j, x : x + size], weights[j]
            part = np.float32(0)
            for i in range(size):
                part += line[i] * weight[i]
                spoiled += 1 if bad[i] else 0
            total += float(part)
        if spoiled == 0:
            out[k] = total


@compiled
def search_noise(image: F32, residual: F32, rms: F32, part: float, inverse_gain: float, out: F32) -> None:
    """Noise of a residual image: the sky's, the photons of the models taken off, and a ``part`` of their light."""
    square, gain, zero = np.float32(part * part), np.float32(inverse_gain), np.float32(0)
    for j in range(image.shape[0]):
        for i in range(image.shape[1]):
            light, sky = image[j, i] - residual[j, i], rms[j, i]
            out[j, i] = np.sqrt(square * light * light + gain * max(light, zero) + sky * sky)


@compiled
def _window(
    pixels: Pixels, corner: tuple[int, int], model: tuple[F32, np.float32, np.float32], step: Step, out: F32
) -> None:
    """Inverse variances and residuals, (2, size, size), of the window whose first pixel is ``corner`` (x, y).

    ``model`` is the PSF, the flux, and the noise of an empty pixel there.
    """
    x0, y0 = corner
    psf, flux, noise = model
    ny, nx = pixels.image.shape
    gain = np.float32(step.inverse_gain)
    left, right = max(-x0, 0), min(step.size, nx - x0)
    if left > 0 or right < step.size or y0 < 0 or y0 + step.size > ny:
        out[:] = 0
    for j in range(max(-y0, 0), min(step.size, ny - y0)):
        value, bad = pixels.image[y0 + j, x0 + left : x0 + right], pixels.unusable[y0 + j, x0 + left : x0 + right]
        rest = pixels.residual[y0 + j, x0 + left : x0 + right]
        weight, residual, own = out[0, j, left:right], out[1, j, left:right], psf[j, left:right]
        if step.alone:
            for i in range(len(value)):
                light = flux * own[i]
                residual[i] = value[i] - light
                weight[i] = np.float32(0) if bad[i] else np.float32(1) / (noise + max(light, np.float32(0)) * gain)
        else:
            for i in range(len(value)):
                light = value[i] - rest[i]
                residual[i] = rest[i]
                weight[i] = np.float32(0) if bad[i] else np.float32(1) / (noise + max(light, np.float32(0)) * gain)


@compiled
def own_equations(design: F32, window: F32, flux: float, normal: F64, right: F64) -> None:
    """Normal matrix (3, 3) and right side (3,) of flux and place; ``design`` (3, n) the PSF and its slopes."""
    p, px, py = design[0], design[1], design[2]
    weight, residual = window[0], window[1]
    zero = np.float32(0)
    n00 = n01 = n02 = n11 = n12 = n22 = r0 = r1 = r2 = zero
    for i in range(len(p)):
        w = weight[i]
        a, b, c = w * p[i], w * px[i], w * py[i]
        n00 += a * p[i]
        n01 += a * px[i]
        n02 += a * py[i]
        n11 += b * px[i]
        n12 += b * py[i]
        n22 += c * py[i]
        r0 += a * residual[i]
        r1 += b * residual[i]
        r2 += c * residual[i]
    normal[0, 0] = n00
    normal[0, 1] = normal[1, 0] = flux * n01
    normal[0, 2] = normal[2, 0] = flux * n02
    normal[1, 1] = flux * flux * n11
    normal[1, 2] = normal[2, 1] = flux * flux * n12
    normal[2, 2] = flux * flux * n22
    right[0], right[1], right[2] = r0, flux * r1, flux * r2


@compiled
def _coupling(design: F32, weight: F32, other: F32, offset: tuple[int, int], size: int, shifted: F32, out: F64) -> None:
    """Sums (3, 3) of a source's weighted design with another's over the pixels that their windows share.

    ``offset`` (x, y) is the other's pixel minus the own one; ``shifted`` (3, size * size) is memory.
    """
    ox, oy = offset
    out[:] = 0
    if abs(ox) >= size or abs(oy) >= size:
        return
    low, high = max(oy, 0), size + min(oy, 0)
    left, right = max(ox, 0), size + min(ox, 0)
    for k in range(3):
        shifted[k, low * size : high * size] = 0
        for j in range(low, high):
            theirs = other[k, (j - oy) * size + left - ox : (j - oy) * size + right - ox]
            mine = shifted[k, j * size + left : j * size + right]
            for i in range(len(mine)):
                mine[i] = theirs[i]
    inside = slice(low * size, high * size)
    a, b, c = shifted[0, inside], shifted[1, inside], shifted[2, inside]
    w = weight[inside]
    for k in range(3):
        d = design[k, inside]
        s0 = s1 = s2 = np.float32(0)
        for i in range(len(w)):
            heavy = w[i] * d[i]
            s0 += heavy * a[i]
            s1 += heavy * b[i]
            s2 += heavy * c[i]
        out[k, 0], out[k, 1], out[k, 2] = s0, s1, s2


@compiled
def eliminate(matrix: F64, n: int, columns: int) -> None:
    """Solve in place: ``matrix`` (n, n + columns) holds the equations and then right sides, which become solutions.

    Gauss's elimination with partial pivoting; a pivot of nothing leaves infinities.
    """
    width = n + columns
    for k in range(n):
        best = k
        for row in range(k + 1, n):
            if abs(matrix[row, k]) > abs(matrix[best, k]):
                best = row
        if best != k:
            for i in range(k, width):
                matrix[k, i], matrix[best, i] = matrix[best, i], matrix[k, i]
        pivot = matrix[k, k:width]
        for row in range(k + 1, n):
            line = matrix[row, k:width]
            factor = line[0] / pivot[0]
            if factor != 0:
                for i in range(len(line)):
                    line[i] -= factor * pivot[i]
    for k in range(n - 1, -1, -1):
        solution = matrix[k, n:width]
        for row in range(k + 1, n):
            known = matrix[row, n:width]
            factor = matrix[k, row]
            for i in range(len(known)):
                solution[i] -= factor * known[i]
        for i in range(len(solution)):
            solution[i] /= matrix[k, k]


@compiled
def _judge(
    design: F32, window: F32, change: F32, place: tuple[float, float, float, float], size: int, out: F64
) -> None:
    """The figures of a source (all but its variance) after a ``change`` (3,) of flux and place.

    The change is small by now: the residuals after it follow from the linearisation. ``place`` is the flux after it,
    the empty pixel's noise, and the place before it minus the middle pixel (x, y).
    """
    p, px, py = design[0], design[1], design[2]
    weight, residual = window[0], window[1]
    flux, noise = np.float32(max(place[0], 0.0)), np.float32(place[1])
    zero, error = np.float32(0), np.float32(PROFILE_ERROR**2)
    chi2 = info = sky = tilt = seen = whole = zero
    used = 0
    half = size // 2
    # What the PSF would change if it were wider by d ln(sigma): -(2 + r d/dr) P, the part not like P itself.
    for j in range(size):
        dy = np.float32(j - half - place[3])
        for i in range(size):
            k = j * size + i
            w = weight[k]
            rest = residual[k] - (change[0] * p[k] + change[1] * px[k] + change[2] * py[k])
            residual[k] = rest
            signal = flux * p[k]
            chi2 += w / (np.float32(1) + w * error * signal * signal) * rest * rest
            heavy = w * p[k]
            info += heavy * p[k]
            sky += heavy * heavy * noise
            wider = -np.float32(2) * p[k] + np.float32(i - half - place[2]) * px[k] + dy * py[k]
            tilt += heavy * wider
            whole += p[k]
            seen += p[k] if w > 0 else zero
            used += 1 if w > 0 else 0
    least = np.float32(1e-30)
    like = tilt / max(info, least)
    known = growth = zero
    for j in range(size):
        dy = np.float32(j - half - place[3])
        for i in range(size):
            k = j * size + i
            wider = -np.float32(2) * p[k] + np.float32(i - half - place[2]) * px[k] + dy * py[k] - like * p[k]
            heavy = weight[k] * wider
            known += heavy * wider
            growth += heavy * residual[k]
    out[SKY_PART] = sky / max(info, least)
    out[CHI] = np.sqrt(chi2 / max(used - 3, 1))
    out[GROWTH] = growth / max(known, least)
    out[KNOWN] = max(known, least)
    out[COVERED] = seen / whole
    out[INFORMATION] = max(info, least)


class _Memory(NamedTuple):
    """For one group: design (P and its slopes) and windows (inverse variance, residual) of its members, what their own
    light says of their fluxes (inverse variance), and smaller pieces."""

    design: F32
    window: F32
    information: F64
    shifted: F32
    change: F32
    block: F64
    right: F64


@compiled
def _memory(most: int, size: int) -> _Memory:
    return _Memory(
        np.empty((most, 3, size, size), np.float32),
        np.empty((most, 2, size, size), np.float32),
        np.empty(most),
        np.empty((3, size * size), np.float32),
        np.zeros(3, np.float32),
        np.empty((3, 3)),
        np.empty(3),
    )


@compiled
def _own_blocks(sources: Sources, members: INT, step: Step, memory: _Memory, matrix: F64) -> None:
    """Each member's own normal equations, prior and all, into the group's."""
    size, columns, n = step.size, 3 if step.move else 1, matrix.shape[0]
    normal, right, prior = memory.block, memory.right, 1 / PLACE_PRIOR**2
    flat = memory.design.reshape((memory.design.shape[0], 3, size * size))
    windows = memory.window.reshape((memory.design.shape[0], 2, size * size))
    for a in range(len(members)):
        s = members[a]
        own_equations(flat[a], windows[a], sources.flux[s], normal, right)
        memory.information[a] = normal[0, 0]
        if not normal[0, 0] > 0:
            normal[:] = 0
            right[:] = 0
            normal[0, 0] = normal[1, 1] = normal[2, 2] = 1
        normal[1, 1] += prior
        normal[2, 2] += prior
        right[1] += (sources.home_x[s] - sources.x[s]) * prior
        right[2] += (sources.home_y[s] - sources.y[s]) * prior
        if len(members) > 1:
            normal[0, 0] *= 1 + RIDGE
        for i in range(columns):
            for j in range(columns):
                matrix[a * columns + i, a * columns + j] = normal[i, j]
            matrix[a * columns + i, n] = right[i]
        if step.judge:
            matrix[a * columns, n + 1 + a] = 1


@compiled
def _couple(
    sources: Sources, pair: tuple[int, int], rows: tuple[int, int], step: Step, memory: _Memory, matrix: F64
) -> None:
    """The coupling of two members (their sources' ``rows``) into the group's equations."""
    a, b = pair
    s, t = rows
    if not (memory.information[a] > 0 and memory.information[b] > 0):
        return
    size, columns, block = step.size, 3 if step.move else 1, memory.block
    flat = memory.design.reshape((memory.design.shape[0], 3, size * size))
    offset = (
        int(np.rint(sources.x[t]) - np.rint(sources.x[s])),
        int(np.rint(sources.y[t]) - np.rint(sources.y[s])),
    )
    _coupling(flat[a], memory.window[a, 0].reshape(-1), flat[b], offset, size, memory.shifted, block)
    for i in range(columns):
        for j in range(columns):
            value = block[i, j] * (sources.flux[s] if i else 1.0) * (sources.flux[t] if j else 1.0)
            matrix[a * columns + i, b * columns + j] = matrix[b * columns + j, a * columns + i] = value


@compiled
def _move(sources: Sources, s: int, a: int, step: Step, memory: _Memory, matrix: F64, figures: F64) -> None:
    """Member ``a`` (source ``s``) takes the step that the solved equations say, and is judged."""
    size, columns, n = step.size, 3 if step.move else 1, matrix.shape[0]
    x, y, flux, change = sources.x[s], sources.y[s], sources.flux[s], memory.change
    sources.flux[s] = flux + matrix[a * columns, n]
    change[0] = matrix[a * columns, n]
    if step.move:
        dx = min(max(matrix[a * columns + 1, n], -MAX_STEP), MAX_STEP)
        dy = min(max(matrix[a * columns + 2, n], -MAX_STEP), MAX_STEP)
        change[1], change[2] = flux * dx, flux * dy
        sources.x[s] = min(max(x + dx, sources.home_x[s] - MAX_SHIFT), sources.home_x[s] + MAX_SHIFT)
        sources.y[s] = min(max(y + dy, sources.home_y[s] - MAX_SHIFT), sources.home_y[s] + MAX_SHIFT)
    if step.judge:
        design, window = memory.design[a].reshape((3, size * size)), memory.window[a].reshape((2, size * size))
        place = (sources.flux[s], float(sources.noise[s]), x - np.rint(x), y - np.rint(y))
        _judge(design, window, change, place, size, figures[s])
        variance, information = matrix[a * columns, n + 1 + a], memory.information[a]
        # Rounding may leave no positive variance where two sources cannot be told apart.
        figures[s, VARIANCE] = variance if variance > 0 else 1 / information
        if not information > 0:
            figures[s, VARIANCE] = np.nan


@compiled
def step_groups(pixels: Pixels, sources: Sources, groups: Groups, table: PsfTable, step: Step, figures: F64) -> None:
    """One Gauss-Newton step of flux and place for all groups, in place.

    Where ``step.judge``, ``figures`` (n, 7) is filled for their members, of the state after the step.
    """
    most, columns, half = 1, 3 if step.move else 1, step.size // 2
    for g in range(len(groups.start) - 1):
        most = max(most, groups.start[g + 1] - groups.start[g])
    memory, work = _memory(most, step.size), psf_work(table)
    store = np.empty(3 * most * (4 * most + 1))
    for g in range(len(groups.start) - 1):
        low, k = groups.start[g], groups.start[g + 1] - groups.start[g]
        members = groups.members[low : low + k]
        n, sides = k * columns, 1 + (k if step.judge else 0)
        matrix = store[: n * (n + sides)].reshape((n, n + sides))
        matrix[:] = 0
        for a in range(k):
            s = members[a]
            ix, iy = int(np.rint(sources.x[s])), int(np.rint(sources.y[s]))
            dx, dy = sources.x[s] - ix, sources.y[s] - iy
            read_slopes(table, sources.coefficients[s], dx, dy, work, memory.design[a])
            model = (memory.design[a, 0], np.float32(sources.flux[s]), sources.noise[s])
            _window(pixels, (ix - half, iy - half), model, step, memory.window[a])
        _own_blocks(sources, members, step, memory, matrix)
        for q in range(groups.pair_start[g], groups.pair_start[g + 1]):
            a, b = groups.first[q] - low, groups.second[q] - low
            _couple(sources, (a, b), (members[a], members[b]), step, memory, matrix)
        eliminate(matrix, n, sides)
        for a in range(k):
            _move(sources, members[a], a, step, memory, matrix, figures)
