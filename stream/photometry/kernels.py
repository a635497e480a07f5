"""The compiled loops of the simultaneous fit: windows, normal equations, groups solved, models taken off.

``stream.photometry.fit`` says what is fitted; here each source's window is read once a round, and its equations are
summed while it lies in the processor's cache.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.psfread import PsfTable, PsfWork, mix_terms, psf_work, read_stamp
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

# Changes are kept track of in cells of so many px; one beyond this part of the noise in the source's brightest pixel
# stirs its cell and those around it.
CELL, STIRRING = 4, 0.3
TILE = 16  # px, of the map that says where there is an unusable pixel at all

LEAST = 1e-30  # information that is none
# What ``step_groups`` says of each source's fit: variance of its flux by the normal equations (NaN: no usable pixel);
# part of it that is the sky's; chi; change of ln(width) that the residuals ask for in units of flux, and its
# information; part of the PSF's light on usable pixels; inverse variance of the flux were nothing else free.
FIGURES = VARIANCE, SKY_PART, CHI, GROWTH, KNOWN, COVERED, INFORMATION = range(7)


class Pixels(NamedTuple):
    """Image with sky off (DN, finite), the same with the drawn models off, which pixels do not count, in which tiles of
    ``TILE`` px there are such, and the last turn in which something changed in each cell of ``CELL`` px (0: never)."""

    image: F32
    residual: F32
    unusable: BOOL
    spoiled: BOOL
    stirred: INT


class Sources(NamedTuple):
    """Places (px) and flux (DN) of n sources, which a step changes; first places; noise variance of an empty pixel
    there (DN^2); row of ``coefficients`` (n_rows, n_terms), the PSF's, of each; whether its model is drawn in the wide
    window, which a step may change too."""

    x: F64
    y: F64
    flux: F64
    home_x: F64
    home_y: F64
    noise: F32
    row: INT
    coefficients: F32
    wide: BOOL


class Tables(NamedTuple):
    """The PSF for the models of faint and of bright sources, whose sizes are those of their windows; least peak
    (DN) of a bright one."""

    near: PsfTable
    wide: PsfTable
    bright: float


class Step(NamedTuple):
    """``size`` of the windows, px; DN per e-; True: the sources stand alone and their models are still in the residual
    image; whether places move; whether the fit is judged; whether changed models are drawn anew; number of the turn.

    A turn that does not judge leaves out groups around which the turn before changed nothing.
    """

    size: int
    inverse_gain: float
    alone: bool
    move: bool
    judge: bool
    draw: bool
    turn: int


@inner
def _paint(image: F32, x: float, y: float, flux: float, table: PsfTable, work: PsfWork) -> None:
    """Add a model whose PSF is mixed in ``work`` to an image; what falls outside is dropped."""
    ny, nx = image.shape
    size, side = table.size, table.side
    half, ix, iy, light = size // 2, int(np.rint(x)), int(np.rint(y)), np.float32(flux)
    read_stamp(table, x - ix, y - iy, size, False, work, work.stamps)
    left, right = max(half - ix, 0), min(size, nx - ix + half)
    for j in range(max(half - iy, 0), min(size, ny - iy + half)):
        model = work.stamps[0, j * side + left : j * side + right]
        line = image[iy - half + j, ix - half + left : ix - half + right]
        for i in range(len(model)):
            line[i] += light * model[i]


@compiled
def draw_sources(image: F32, rows: INT, sources: Sources, tables: Tables, sign: float) -> None:
    """Add ``sign`` times the models of sources to an image, each in its window."""
    work, mixed = (psf_work(tables.near), psf_work(tables.wide)), np.full(2, -1)
    for s in rows:
        flux = sources.flux[s]
        if flux == 0 or np.isnan(flux):
            continue
        if sources.wide[s]:
            _mix(tables.wide, sources, s, work[1], mixed[1:])
            _paint(image, sources.x[s], sources.y[s], sign * flux, tables.wide, work[1])
        else:
            _mix(tables.near, sources, s, work[0], mixed[:1])
            _paint(image, sources.x[s], sources.y[s], sign * flux, tables.near, work[0])


@inner
def _mix(table: PsfTable, sources: Sources, s: int, work: PsfWork, mixed: INT) -> None:
    """The PSF of a source into ``work``, unless ``mixed`` (1,) says that it is there."""
    if mixed[0] != sources.row[s]:
        mix_terms(table, sources.coefficients[sources.row[s]], work)
        mixed[0] = sources.row[s]


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


@inner
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


@inner
def _coupling(design: F32, weight: F32, other: F32, offset: tuple[int, int], size: int, shifted: F32, out: F64) -> None:
    """Sums (3, 3) of a source's weighted design with another's over the pixels that their windows share.

    ``offset`` (x, y) is the other's pixel minus the own one; ``shifted`` (3, size * side) is memory.
    """
    side = design.shape[1] // size
    ox, oy = offset
    out[:] = 0
    if abs(ox) >= size or abs(oy) >= size:
        return
    low, high = max(oy, 0), size + min(oy, 0)
    left, right = max(ox, 0), size + min(ox, 0)
    for k in range(3):
        shifted[k, low * side : high * side] = 0
        for j in range(low, high):
            theirs = other[k, (j - oy) * side + left - ox : (j - oy) * side + right - ox]
            mine = shifted[k, j * side + left : j * side + right]
            for i in range(len(mine)):
                mine[i] = theirs[i]
    inside = slice(low * side, high * side)
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


@inner
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


@inner
def _judge(
    design: F32, window: F32, change: F32, place: tuple[float, float, float, float], size: int, out: F64
) -> None:
    """The figures of a source that need a sum over pixels after a ``change`` (3,) of flux and place.

    The change is small by now: the residuals after it follow from the linearisation. ``place`` is the flux after it,
    the empty pixel's noise, and the place before it minus the middle pixel (x, y).
    """
    p, px, py = design[0], design[1], design[2]
    weight, residual = window[0], window[1]
    flux, noise = np.float32(max(place[0], 0.0)), np.float32(place[1])
    zero, error = np.float32(0), np.float32(PROFILE_ERROR**2)
    chi2 = info = sky = tilt = zero
    used = 0
    half, side = size // 2, len(p) // size
    # What the PSF would change if it were wider by d ln(sigma): -(2 + r d/dr) P, the part not like P itself.
    for j in range(size):
        dy = np.float32(j - half - place[3])
        for i in range(size):
            k = j * side + i
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
            used += 1 if w > 0 else 0
    least = np.float32(LEAST)
    like = tilt / max(info, least)
    known = growth = zero
    for j in range(size):
        dy = np.float32(j - half - place[3])
        for i in range(size):
            k = j * side + i
            wider = -np.float32(2) * p[k] + np.float32(i - half - place[2]) * px[k] + dy * py[k] - like * p[k]
            heavy = weight[k] * wider
            known += heavy * wider
            growth += heavy * residual[k]
    out[SKY_PART] = sky / max(info, least)
    out[CHI] = np.sqrt(chi2 / max(used - 3, 1))
    out[GROWTH] = growth / max(known, least)
    out[KNOWN] = max(known, least)


class _Memory(NamedTuple):
    """For one group: design (P and its slopes) and windows (inverse variance, residual) of its members, rows as long as
    the table's side; what their own light says of their fluxes (inverse variance); a window of the image and which of
    it counts, and smaller pieces."""

    design: F32
    window: F32
    information: F64
    value: F32
    counts: F32
    shifted: F32
    change: F32
    block: F64
    right: F64


@compiled
def _memory(most: int, pixels: int) -> _Memory:
    return _Memory(
        np.empty((most, 3, pixels), np.float32),
        np.zeros((most, 2, pixels), np.float32),
        np.empty(most),
        np.zeros(pixels, np.float32),
        np.zeros(pixels, np.float32),
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
    _coupling(memory.design[a], memory.window[a, 0], memory.design[b], offset, step.size, memory.shifted, block)
    for i in range(columns):
        for j in range(columns):
            value = block[i, j] * (sources.flux[s] if i else 1.0) * (sources.flux[t] if j else 1.0)
            matrix[a * columns + i, b * columns + j] = matrix[b * columns + j, a * columns + i] = value


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
        _judge(memory.design[a], memory.window[a], change, place, step.size, figures[s])
        variance, information = matrix[a * columns, n + 1 + a], memory.information[a]
        # Rounding may leave no positive variance where two sources cannot be told apart.
        figures[s, VARIANCE] = variance if variance > 0 else 1 / information
        if not information > 0:
            figures[s, VARIANCE] = np.nan


@inner
def _cell(place: float, n: int) -> int:
    """Cell of a place along an axis of n."""
    return min(max(int(place) // CELL, 0), n - 1)


@inner
def _mark(stirred: INT, x: float, y: float, turn: int) -> None:
    ny, nx = stirred.shape
    cx, cy = _cell(x, nx), _cell(y, ny)
    for j in range(max(cy - 1, 0), min(cy + 2, ny)):
        for i in range(max(cx - 1, 0), min(cx + 2, nx)):
            stirred[j, i] = turn


@compiled
def stir_places(stirred: INT, x: F64, y: F64, turn: int) -> None:
    """Mark the cells of ``Pixels`` around places (n,) as changed in a turn."""
    for k in range(len(x)):
        _mark(stirred, x[k], y[k], turn)


@inner
def _stir(pixels: Pixels, sources: Sources, s: int, old: tuple[float, float, float], peak: float, step: Step) -> bool:
    """Whether the source's change stands out of the noise in its brightest pixel; then its surroundings are marked.

    ``old`` is its x, y and flux before, ``peak`` the PSF's.
    """
    x, y, flux = old
    change = abs(sources.flux[s] - flux) + max(abs(flux), abs(sources.flux[s])) * math.hypot(
        sources.x[s] - x, sources.y[s] - y
    )
    noise = float(sources.noise[s]) + max(peak * flux, 0.0) * step.inverse_gain
    if not (peak * change) ** 2 > STIRRING**2 * noise:
        return False
    _mark(pixels.stirred, x, y, step.turn)
    return True


@inner
def _redraw(
    pixels: Pixels, sources: Sources, s: int, old: tuple[float, float, float], bright: bool, tables: Tables,
    work: tuple[PsfWork, PsfWork],
) -> None:  # fmt: skip
    """The source's model in place of the ``old`` one (x, y, flux); the near PSF is mixed in ``work``."""
    x, y, flux = old
    if bright:
        mix_terms(tables.wide, sources.coefficients[sources.row[s]], work[1])
    if sources.wide[s]:
        _paint(pixels.residual, x, y, flux, tables.wide, work[1])
    else:
        _paint(pixels.residual, x, y, flux, tables.near, work[0])
    sources.wide[s] = bright
    if bright:
        _paint(pixels.residual, sources.x[s], sources.y[s], -sources.flux[s], tables.wide, work[1])
    else:
        _paint(pixels.residual, sources.x[s], sources.y[s], -sources.flux[s], tables.near, work[0])


@inner
def _retouch(
    pixels: Pixels, sources: Sources, s: int, old: tuple[float, float, float], psf: F32, table: PsfTable,
    work: PsfWork, size: int,
) -> None:  # fmt: skip
    """As ``_redraw`` for a faint source that hardly changed: within the fitted window, where its PSF was ``psf``."""
    x, y, flux = old
    ny, nx = pixels.residual.shape
    half, side, ix, iy = size // 2, table.side, int(np.rint(x)), int(np.rint(y))
    stamps = work.stamps[:, : size * side]
    read_stamp(table, sources.x[s] - ix, sources.y[s] - iy, size, False, work, stamps)
    before, now = np.float32(flux), np.float32(sources.flux[s])
    left, right = max(half - ix, 0), min(size, nx - ix + half)
    difference = stamps[1]
    for i in range(len(difference)):
        difference[i] = before * psf[i] - now * stamps[0, i]
    for j in range(max(half - iy, 0), min(size, ny - iy + half)):
        change = difference[j * side + left : j * side + right]
        line = pixels.residual[iy - half + j, ix - half + left : ix - half + right]
        for i in range(len(line)):
            line[i] += change[i]


@inner
def _at_rest(pixels: Pixels, sources: Sources, members: INT, turn: int) -> bool:
    """Whether nothing changed around the members in the turn before, so that their step would be none."""
    ny, nx = pixels.stirred.shape
    last = 0
    for s in members:
        last = max(last, pixels.stirred[_cell(sources.y[s], ny), _cell(sources.x[s], nx)])
    return last < turn - 1


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
    memory, work = _memory(most, step.size * table.side), (psf_work(table), psf_work(tables.wide))
    mixed, middle = np.full(1, -1), half * (table.side + 1)
    windows = (memory.value, memory.counts, _whole(step.size, table.side))
    store = np.empty(3 * most * (4 * most + 1))
    for g in range(len(groups.start) - 1):
        low, k = groups.start[g], groups.start[g + 1] - groups.start[g]
        members = groups.members[low : low + k]
        if not step.judge and _at_rest(pixels, sources, members, step.turn):
            continue
        n, sides = k * columns, 1 + (k if step.judge else 0)
        matrix = store[: n * (n + sides)].reshape((n, n + sides))
        matrix[:] = 0
        for a in range(k):
            s = members[a]
            ix, iy = int(np.rint(sources.x[s])), int(np.rint(sources.y[s]))
            _mix(table, sources, s, work[0], mixed)
            read_stamp(table, sources.x[s] - ix, sources.y[s] - iy, step.size, True, work[0], memory.design[a])
            model = (memory.design[a, 0], np.float32(sources.flux[s]), sources.noise[s])
            figures[s, COVERED] = _window(pixels, (ix - half, iy - half), model, step, windows, memory.window[a])
        _own_blocks(sources, members, step, memory, matrix)
        for q in range(groups.pair_start[g], groups.pair_start[g + 1]):
            a, b = groups.first[q] - low, groups.second[q] - low
            _couple(sources, (a, b), (members[a], members[b]), step, memory, matrix)
        eliminate(matrix, n, sides)
        for a in range(k):
            s = members[a]
            old, peak = (sources.x[s], sources.y[s], sources.flux[s]), float(memory.design[a, 0, middle])
            figures[s, INFORMATION] = max(memory.information[a], LEAST)
            _move(sources, s, a, step, memory, matrix, figures)
            much = _stir(pixels, sources, s, old, peak, step)
            if step.draw:
                _mix(table, sources, s, work[0], mixed)
                bright = sources.wide[s] or peak * sources.flux[s] > tables.bright
                if bright or much:
                    _redraw(pixels, sources, s, old, bright, tables, work)
                else:
                    _retouch(pixels, sources, s, old, memory.design[a, 0], tables.near, work[0], step.size)
