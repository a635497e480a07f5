"""The compiled loops of the simultaneous fit: windows, normal equations, groups solved.

``stream.photometry.fit`` says what is fitted; here each source's window is read once a round, and its equations are
summed while it lies in the processor's cache.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.psfread import psf_work, read_stamp
from stream.photometry.equations import coupling, eliminate, own_equations
from stream.photometry.groups import Groups
from stream.photometry.models import (
    RETOUCHED,
    Pixels,
    Sources,
    Step,
    Tables,
    at_rest,
    mix_source,
    redraw,
    retouch,
    stir,
)

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
# Of two whose places are free one may grow as the other falls below nothing. A group's member that would end so
# many sigma (its own noise's) below is taken for nothing, and the others are solved without it, held by this many times
# its information.
DARKEST, HOLD = 3.0, 1e6
# Part of the model's light by which any PSF is wrong somewhere: enters chi, not the weights (a Poisson-weighted flux
# does not see such errors to first order, because the model's sum is right).
PROFILE_ERROR = 0.01

TILE = 16  # px, of the map that says where there is an unusable pixel at all
LEAST = 1e-30  # information that is none
# What ``step_groups`` says of each source's fit: variance of its flux by the normal equations (NaN: no usable pixel);
# part of it that is the sky's; chi; change of ln(width) that the residuals ask for in units of flux, and its
# information; part of the PSF's light on usable pixels; inverse variance of the flux were nothing else free.
FIGURES = VARIANCE, SKY_PART, CHI, GROWTH, KNOWN, COVERED, INFORMATION = range(7)


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


@inner
def _spoiled(spoiled: BOOL, x0: int, y0: int, size: int) -> bool:
    """Whether a window in the image touches a tile with unusable pixels."""
    some = False
    for j in range(y0 // TILE, (y0 + size - 1) // TILE + 1):
        for i in range(x0 // TILE, (x0 + size - 1) // TILE + 1):
            some = some or spoiled[j, i]
    return some


@inner
def _window(
    pixels: Pixels, corner: tuple[int, int], model: tuple[F32, np.float32, np.float32], step: Step,
    memory: tuple[F32, F32, F32], out: F32,
) -> float:  # fmt: skip
    """Inverse variances and residuals, (2, size * side), of the window whose first pixel is ``corner`` (x, y).

    ``model`` is the PSF, the flux, and the noise of an empty pixel there; ``memory`` (size * side,) takes the image and
    1 for pixels that count; the third is that where all do (0 beyond the window's columns). Returns the part of the
    PSF's light on pixels that count.
    """
    x0, y0 = corner
    psf, flux, noise = model
    value, counts, whole = memory
    weight, residual, covered = out[0], out[1], 1.0
    ny, nx = pixels.image.shape
    gain, side = np.float32(step.inverse_gain), len(value) // step.size
    left, right, low, high = max(-x0, 0), min(step.size, nx - x0), max(-y0, 0), min(step.size, ny - y0)
    # Rows are short: they are gathered first, so that everything else is one loop over all pixels.
    for j in range(low, high):
        own, own_rest = value[j * side + left : j * side + right], residual[j * side + left : j * side + right]
        bright, rest = pixels.image[y0 + j, x0 + left : x0 + right], pixels.residual[y0 + j, x0 + left : x0 + right]
        for i in range(len(bright)):
            own[i], own_rest[i] = bright[i], rest[i]
    if right - left < step.size or high - low < step.size or _spoiled(pixels.spoiled, x0, y0, step.size):
        counts[:] = 0
        for j in range(low, high):
            for i in range(left, right):
                counts[j * side + i] = np.float32(0) if pixels.unusable[y0 + j, x0 + i] else np.float32(1)
        seen = light = np.float32(0)
        for i in range(len(psf)):
            seen += counts[i] * psf[i]
            light += whole[i] * psf[i]
        covered = float(seen / light)
    else:
        counts = whole
    if step.alone:
        for i in range(len(value)):
            light = flux * psf[i]
            residual[i] = value[i] - light
            weight[i] = counts[i] / (noise + max(light, np.float32(0)) * gain)
    else:
        for i in range(len(value)):
            weight[i] = counts[i] / (noise + max(value[i] - residual[i], np.float32(0)) * gain)
    return covered


class _Memory(NamedTuple):
    """For one group: design (P and its slopes) and windows (inverse variance, residual) of its members, rows as long as
    the table's side; what their own light says of their fluxes (inverse variance), and which are taken for nothing; a
    window of the image and which of it counts, the pixels' x and y from the middle one, and smaller pieces."""

    design: F32
    window: F32
    information: F64
    dark: BOOL
    value: F32
    counts: F32
    offset: F32
    shifted: F32
    change: F32
    block: F64
    right: F64


@inner
def _judge(
    design: F32, window: F32, change: F32, place: tuple[float, float, float, float], memory: _Memory, out: F64
) -> None:
    """The figures of a source that need a sum over pixels after a ``change`` (3,) of flux and place.

    The change is small by now: the residuals after it follow from the linearisation. ``place`` is the flux after it,
    the empty pixel's noise, and the place before it minus the middle pixel (x, y).
    """
    p, px, py, wider = design[0], design[1], design[2], memory.value
    weight, residual, x, y = window[0], window[1], memory.offset[0], memory.offset[1]
    flux, noise = np.float32(max(place[0], 0.0)), np.float32(place[1])
    dx, dy, df = np.float32(place[2]), np.float32(place[3]), change
    zero, one, error = np.float32(0), np.float32(1), np.float32(PROFILE_ERROR**2)
    chi2 = info = sky = tilt = used = zero
    for k in range(len(p)):
        w = weight[k]
        rest = residual[k] - (df[0] * p[k] + df[1] * px[k] + df[2] * py[k])
        residual[k] = rest
        signal = flux * p[k]
        chi2 += w / (one + w * error * signal * signal) * rest * rest
        heavy = w * p[k]
        info += heavy * p[k]
        sky += heavy * heavy * noise
        # What the PSF would change if it were wider by d ln(sigma): -(2 + r d/dr) P, the part not like P itself.
        wide = -np.float32(2) * p[k] + (x[k] - dx) * px[k] + (y[k] - dy) * py[k]
        wider[k] = wide
        tilt += heavy * wide
        used += one if w > 0 else zero
    least = np.float32(LEAST)
    like = tilt / max(info, least)
    known = growth = zero
    for k in range(len(p)):
        wide = wider[k] - like * p[k]
        heavy = weight[k] * wide
        known += heavy * wide
        growth += heavy * residual[k]
    out[SKY_PART] = sky / max(info, least)
    out[CHI] = np.sqrt(chi2 / max(used - np.float32(3), one))
    out[GROWTH] = growth / max(known, least)
    out[KNOWN] = max(known, least)


@compiled
def _memory(most: int, size: int, side: int) -> _Memory:
    pixels, offset = size * side, np.empty((2, size * side), np.float32)
    for k in range(pixels):
        offset[0, k], offset[1, k] = k % side - size // 2, k // side - size // 2
    return _Memory(
        np.empty((most, 3, pixels), np.float32),
        np.zeros((most, 2, pixels), np.float32),
        np.empty(most),
        np.zeros(most, np.bool_),
        np.zeros(pixels, np.float32),
        np.zeros(pixels, np.float32),
        offset,
        np.empty((3, pixels), np.float32),
        np.zeros(3, np.float32),
        np.empty((3, 3)),
        np.empty(3),
    )


@compiled
def _whole(size: int, side: int) -> F32:
    """1 in the first columns of a window, 0 beyond."""
    counts = np.zeros((size, side), np.float32)
    counts[:, :size] = 1
    return counts.reshape(-1)


@inner
def _own_blocks(sources: Sources, members: INT, step: Step, memory: _Memory, matrix: F64) -> None:
    """Each member's own normal equations, prior and all, into the group's."""
    columns, n = 3 if step.move else 1, matrix.shape[0]
    normal, right, prior = memory.block, memory.right, 1 / PLACE_PRIOR**2
    for a in range(len(members)):
        s = members[a]
        own_equations(memory.design[a], memory.window[a], sources.flux[s], normal, right)
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
        if memory.dark[a]:
            normal[0, 0] *= HOLD
            right[0] = -sources.flux[s] * normal[0, 0]
        for i in range(columns):
            for j in range(columns):
                matrix[a * columns + i, a * columns + j] = normal[i, j]
            matrix[a * columns + i, n] = right[i]
        if step.judge:
            matrix[a * columns, n + 1 + a] = 1


@inner
def _couple(
    sources: Sources, pair: tuple[int, int], rows: tuple[int, int], step: Step, memory: _Memory, matrix: F64
) -> None:
    """The coupling of two members (their sources' ``rows``) into the group's equations."""
    a, b = pair
    s, t = rows
    if not (memory.information[a] > 0 and memory.information[b] > 0):
        return
    columns, block = 3 if step.move else 1, memory.block
    offset = (
        int(np.rint(sources.x[t]) - np.rint(sources.x[s])),
        int(np.rint(sources.y[t]) - np.rint(sources.y[s])),
    )
    coupling(memory.design[a], memory.window[a, 0], memory.design[b], offset, step.size, memory.shifted, block)
    for i in range(columns):
        for j in range(columns):
            value = block[i, j] * (sources.flux[s] if i else 1.0) * (sources.flux[t] if j else 1.0)
            matrix[a * columns + i, b * columns + j] = matrix[b * columns + j, a * columns + i] = value


@inner
def _darken(sources: Sources, members: INT, memory: _Memory, matrix: F64, columns: int) -> bool:
    """Whether one more member of a group, the one that the solution takes farthest below nothing, is to be nothing."""
    n, worst, least = matrix.shape[0], -1, -DARKEST
    if len(members) > 1:
        for a in range(len(members)):
            snr = (sources.flux[members[a]] + matrix[a * columns, n]) * math.sqrt(max(memory.information[a], 0.0))
            if snr < least and not memory.dark[a]:
                worst, least = a, snr
    if worst >= 0:
        memory.dark[worst] = True
    return worst >= 0


@inner
def _move(sources: Sources, s: int, a: int, step: Step, memory: _Memory, matrix: F64, figures: F64) -> None:
    """Member ``a`` (source ``s``) takes the step that the solved equations say, and is judged."""
    columns, n = 3 if step.move else 1, matrix.shape[0]
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
        place = (sources.flux[s], float(sources.noise[s]), x - np.rint(x), y - np.rint(y))
        _judge(memory.design[a], memory.window[a], change, place, memory, figures[s])
        variance, information = matrix[a * columns, n + 1 + a], memory.information[a]
        # Rounding may leave no positive variance where two sources cannot be told apart.
        figures[s, VARIANCE] = variance if variance > 0 and not memory.dark[a] else 1 / information
        if not information > 0:
            figures[s, VARIANCE] = np.nan


@compiled
def step_groups(pixels: Pixels, sources: Sources, groups: Groups, tables: Tables, step: Step, figures: F64) -> None:
    """One Gauss-Newton step of flux and place for all groups, in place.

    ``figures`` (n, 7) gets their members' ``COVERED`` and ``INFORMATION``, and where ``step.judge`` the others too, of
    the state after the step. With ``step.draw`` the residual image follows each group at once, so that the next one
    meets what is there.
    """
    table, most, columns, half = tables.near, 1, 3 if step.move else 1, step.size // 2
    for g in range(len(groups.start) - 1):
        most = max(most, groups.start[g + 1] - groups.start[g])
    memory, work = _memory(most, step.size, table.side), (psf_work(table), psf_work(tables.wide))
    mixed, middle = np.full(1, -1), half * (table.side + 1)
    windows = (memory.value, memory.counts, _whole(step.size, table.side))
    store = np.empty(3 * most * (4 * most + 1))
    for g in range(len(groups.start) - 1):
        low, k = groups.start[g], groups.start[g + 1] - groups.start[g]
        members = groups.members[low : low + k]
        if not step.judge and at_rest(pixels, sources, members, step.turn):
            continue
        n, sides = k * columns, 1 + (k if step.judge else 0)
        matrix = store[: n * (n + sides)].reshape((n, n + sides))
        for a in range(k):
            s = members[a]
            ix, iy = int(np.rint(sources.x[s])), int(np.rint(sources.y[s]))
            mix_source(table, sources, s, work[0], mixed)
            read_stamp(table, sources.x[s] - ix, sources.y[s] - iy, step.size, True, work[0], memory.design[a])
            model = (memory.design[a, 0], np.float32(sources.flux[s]), sources.noise[s])
            figures[s, COVERED] = _window(pixels, (ix - half, iy - half), model, step, windows, memory.window[a])
        memory.dark[:] = False
        for _ in range(k):
            matrix[:] = 0
            _own_blocks(sources, members, step, memory, matrix)
            for q in range(groups.pair_start[g], groups.pair_start[g + 1]):
                a, b = groups.first[q] - low, groups.second[q] - low
                _couple(sources, (a, b), (members[a], members[b]), step, memory, matrix)
            eliminate(matrix, n, sides)
            if not step.positive or not _darken(sources, members, memory, matrix, columns):
                break
        for a in range(k):
            s = members[a]
            old, peak = (sources.x[s], sources.y[s], sources.flux[s]), float(memory.design[a, 0, middle])
            figures[s, INFORMATION] = max(memory.information[a], LEAST)
            _move(sources, s, a, step, memory, matrix, figures)
            rise = stir(pixels, sources, s, old, peak, step)
            if step.draw:
                mix_source(table, sources, s, work[0], mixed)
                if rise > RETOUCHED:
                    redraw(pixels, sources, s, old, peak, tables, work)
                else:
                    retouch(pixels, sources, s, old, memory.design[a, 0], tables.near, work[0], step.size)
