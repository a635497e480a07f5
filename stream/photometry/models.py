"""The compiled loops that draw sources' models, off an image and anew where a fit has changed them, and keep track of
where that was."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.psfread import PsfTable, PsfWork, mix_terms, psf_work, read_stamp

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
INT = NDArray[np.int64]
BOOL = NDArray[np.bool_]

# Changes are kept track of in cells of so many px; one beyond this part of the noise in the source's brightest pixel
# stirs its cell and those around it, where a step asks for no other part.
CELL, STIRRING = 4, 0.3
# A change up to so many times that noise is drawn within the fitted window: beyond two FWHM nothing of it is seen.
RETOUCHED = 6.0


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
    image; whether places move; whether the fit is judged; whether changed models are drawn anew; number of the turn;
    whether no member of a group may go far below nothing; the change that counts for the next turn (``STIRRING``).

    A turn that does not judge leaves out groups around which the turn before changed nothing.
    """

    size: int
    inverse_gain: float
    alone: bool
    move: bool
    judge: bool
    draw: bool
    turn: int
    positive: bool = False
    stirring: float = STIRRING


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
            mix_source(tables.wide, sources, s, work[1], mixed[1:])
            _paint(image, sources.x[s], sources.y[s], sign * flux, tables.wide, work[1])
        else:
            mix_source(tables.near, sources, s, work[0], mixed[:1])
            _paint(image, sources.x[s], sources.y[s], sign * flux, tables.near, work[0])


@inner
def mix_source(table: PsfTable, sources: Sources, s: int, work: PsfWork, mixed: INT) -> None:
    """The PSF of a source into ``work``, unless ``mixed`` (1,) says that it is there."""
    if mixed[0] != sources.row[s]:
        mix_terms(table, sources.coefficients[sources.row[s]], work)
        mixed[0] = sources.row[s]


@inner
def redraw(
    pixels: Pixels, sources: Sources, s: int, old: tuple[float, float, float], peak: float, tables: Tables,
    work: tuple[PsfWork, PsfWork],
) -> None:  # fmt: skip
    """The source's model in place of the ``old`` one (x, y, flux); the near PSF, with this ``peak``, is mixed in
    ``work``.

    In the wide window only where the change itself is bright: else its wings are not seen.
    """
    x, y, flux = old
    if not peak * light_moved(sources, s, old) > tables.bright:
        _paint(pixels.residual, x, y, flux, tables.near, work[0])
        _paint(pixels.residual, sources.x[s], sources.y[s], -sources.flux[s], tables.near, work[0])
        return
    bright = sources.wide[s] or peak * sources.flux[s] > tables.bright
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
def retouch(
    pixels: Pixels, sources: Sources, s: int, old: tuple[float, float, float], psf: F32, table: PsfTable,
    work: PsfWork, size: int,
) -> None:  # fmt: skip
    """As ``redraw`` for a source that hardly changed: within the fitted window, where its PSF was ``psf``."""
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
def light_moved(sources: Sources, s: int, old: tuple[float, float, float]) -> float:
    """Light (DN) that is elsewhere than before, where x, y and flux were ``old``; a whole px moves all."""
    x, y, flux = old
    shift = math.hypot(sources.x[s] - x, sources.y[s] - y)
    return float(abs(sources.flux[s] - flux) + max(abs(flux), abs(sources.flux[s])) * shift)


@inner
def stir(pixels: Pixels, sources: Sources, s: int, old: tuple[float, float, float], peak: float, step: Step) -> float:
    """The source's change over the noise in its brightest pixel; where it stands out its surroundings are marked.

    ``old`` is its x, y and flux before, ``peak`` the PSF's.
    """
    x, y, flux = old
    noise = math.sqrt(float(sources.noise[s]) + max(peak * flux, 0.0) * step.inverse_gain)
    rise = peak * light_moved(sources, s, old) / noise
    if rise > step.stirring:
        _mark(pixels.stirred, x, y, step.turn)
    return rise


@inner
def at_rest(pixels: Pixels, sources: Sources, members: INT, turn: int) -> bool:
    """Whether nothing changed around the members in the turn before, so that their step would be none."""
    ny, nx = pixels.stirred.shape
    last = 0
    for s in members:
        last = max(last, pixels.stirred[_cell(sources.y[s], ny), _cell(sources.x[s], nx)])
    return last < turn - 1
