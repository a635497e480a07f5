"""The PSF read off its splines in compiled loops, a source a time: as ``PsfModel.stamps`` and ``read_gradients``.

A stamp's pixels meet the spline's nodes every ``oversample`` nodes, all at the same fraction. The nodes are therefore
stored by their remainders (a plane of all with remainders 0 and 0, then all with 0 and 1, ...): the four nodes under
neighbouring pixels are then neighbours in memory, and a stamp is a sum of four shifted planes. As long as its rows have
the planes' width that is one loop over all its pixels, which the processor does eight at a time; rows as short as a
stamp's would leave it half of them to do singly. So stamps are read with rows of ``PsfTable.side``, of which the first
``size`` columns are the stamp and the rest means nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.core.psf import PsfModel

F32 = NDArray[np.float32]

GUARD = 2  # nodes of nothing around a grid: what the spline's four nodes touch beyond the cut ones


class PsfTable(NamedTuple):
    """Spline coefficients of each polynomial term for stamps of up to ``size`` px.

    ``terms`` (n_terms, planes * side * side), float32: node (y, x) lies in the plane ``y % oversample * oversample +
    x % oversample`` at ``(y // oversample, x // oversample)``; ``middle`` is the node of the PSF's centre on both axes.
    """

    terms: F32
    side: int
    oversample: int
    middle: int
    size: int


class PsfWork(NamedTuple):
    """Memory for one source at a time: its planes, rows of them (values, slopes) under the stamp's rows, a stamp and
    its slopes with rows of the table's ``side``."""

    grid: F32
    rows: F32
    slopes: F32
    taps: F32
    stamps: F32


def psf_table(psf: PsfModel, size: int) -> PsfTable:
    """The table of a model for stamps of up to ``size`` px (odd), the star within half a pixel of the middle."""
    terms, step = psf.term_grids(size), psf.oversample
    n_terms, n, _ = terms.shape
    # What stamps of this size reach from the middle node, whether the model's grid does or not: beyond it is zero.
    reach = math.ceil((size // 2 + 0.5) * step) + GUARD
    side = -(-(2 * reach + 1) // step)
    spread = np.zeros((n_terms, side * step, side * step), np.float32)
    inner, outer = max(n // 2 - reach, 0), max(reach - n // 2, 0)
    cut = terms[:, inner : n - inner, inner : n - inner]
    spread[:, outer : outer + cut.shape[1], outer : outer + cut.shape[2]] = cut
    planes = spread.reshape(n_terms, side, step, side, step).transpose(0, 2, 4, 1, 3)
    return PsfTable(np.ascontiguousarray(planes).reshape(n_terms, -1), side, step, reach, size)


@compiled
def psf_work(table: PsfTable) -> PsfWork:
    """Memory for ``read_values`` and ``read_slopes``."""
    step, side = table.oversample, table.side
    return PsfWork(
        np.empty((step * step, side * side), np.float32),
        # One row more than is filled: shifted views of all rows reach into it.
        np.zeros((step, (table.size + 1) * side), np.float32),
        np.zeros((step, (table.size + 1) * side), np.float32),
        np.empty((4, 4), np.float32),
        np.zeros((3, table.size * side), np.float32),
    )


@inner
def _taps(fraction: float, oversample: int, out: F32) -> None:
    """Weights of the four nodes around a fraction in ``out[0]``, their change with the star's place in ``out[1]``."""
    t, s = fraction, 1 - fraction
    out[0, 0], out[0, 3] = s * s * s / 6, t * t * t / 6
    out[0, 1], out[0, 2] = (4 - 6 * t * t + 3 * t * t * t) / 6, (4 - 6 * s * s + 3 * s * s * s) / 6
    out[1, 0], out[1, 3] = oversample * s * s / 2, -oversample * t * t / 2
    out[1, 1], out[1, 2] = oversample * (4 * t - 3 * t * t) / 2, -oversample * (4 * s - 3 * s * s) / 2


@inner
def mix_terms(table: PsfTable, coefficients: F32, work: PsfWork) -> None:
    """The PSF's nodes at a place for ``read_stamp``: ``coefficients`` (n_terms,) are ``PsfModel.coefficients``."""
    terms, out = table.terms, work.grid.reshape(-1)
    n = len(out)
    if len(coefficients) == 6:
        a, b, c, d, e, f = terms[0], terms[1], terms[2], terms[3], terms[4], terms[5]
        ka, kb, kc = coefficients[0], coefficients[1], coefficients[2]
        kd, ke, kf = coefficients[3], coefficients[4], coefficients[5]
        for i in range(n):
            out[i] = ka * a[i] + kb * b[i] + kc * c[i] + kd * d[i] + ke * e[i] + kf * f[i]
        return
    for i in range(n):
        out[i] = coefficients[0] * terms[0, i]
    for k in range(1, len(coefficients)):
        for i in range(n):
            out[i] += coefficients[k] * terms[k, i]


@inner
def _blend(planes: tuple[F32, F32, F32, F32], starts: tuple[int, int, int, int], taps: F32, out: F32) -> None:
    """Sum of four stretches of memory with their weights."""
    n = len(out)
    p, q = planes[0][starts[0] : starts[0] + n], planes[1][starts[1] : starts[1] + n]
    r, s = planes[2][starts[2] : starts[2] + n], planes[3][starts[3] : starts[3] + n]
    a, b, c, d = taps[0], taps[1], taps[2], taps[3]
    for i in range(n):
        out[i] = a * p[i] + b * q[i] + c * r[i] + d * s[i]


@inner
def _blend_both(
    planes: tuple[F32, F32, F32, F32], starts: tuple[int, int, int, int], taps: F32, out: F32, slopes: F32
) -> None:
    """``_blend`` with two rows of weights at once."""
    n = len(out)
    p, q = planes[0][starts[0] : starts[0] + n], planes[1][starts[1] : starts[1] + n]
    r, s = planes[2][starts[2] : starts[2] + n], planes[3][starts[3] : starts[3] + n]
    a, b, c, d = taps[0, 0], taps[0, 1], taps[0, 2], taps[0, 3]
    e, f, g, h = taps[1, 0], taps[1, 1], taps[1, 2], taps[1, 3]
    for i in range(n):
        out[i] = a * p[i] + b * q[i] + c * r[i] + d * s[i]
        slopes[i] = e * p[i] + f * q[i] + g * r[i] + h * s[i]


@inner
def _nodes(planes: F32, first: int, step: int, every: int, offset: int) -> tuple[F32, F32, F32, F32]:
    """The planes of four nodes in a row: plane ``every`` times the node's remainder plus ``offset``."""
    return (
        planes[first % step * every + offset],
        planes[(first + 1) % step * every + offset],
        planes[(first + 2) % step * every + offset],
        planes[(first + 3) % step * every + offset],
    )


@inner
def read_stamp(table: PsfTable, dx: float, dy: float, size: int, slopes: bool, work: PsfWork, out: F32) -> None:
    """The PSF of unit flux that ``mix_terms`` left in ``work``, ``dx``, ``dy`` px off the middle pixel.

    Parameters
    ----------
    dx, dy : float
        Half a pixel at most, and half of what the table's size is above ``size`` more.
    size : int
        Of the stamp, odd, at most the table's. Its rows are as long as the table's side.
    slopes : bool
        Whether the derivatives with the star's place are wanted too.
    out : ndarray, (3, size * table.side), float32
        P and, if wanted, dP/dx and dP/dy.
    """
    step, side, n = table.oversample, table.side, size * table.side
    x = table.middle - (size // 2 + dx) * step
    y = table.middle - (size // 2 + dy) * step
    ix, iy = int(np.floor(x)), int(np.floor(y))
    _taps(x - ix, step, work.taps[:2])
    _taps(y - iy, step, work.taps[2:])
    k = iy - 1  # the first of the four rows of nodes under the stamp's first row
    starts = (k // step * side, (k + 1) // step * side, (k + 2) // step * side, (k + 3) // step * side)
    for plane in range(step):
        nodes = _nodes(work.grid, k, step, step, plane)
        if slopes:
            _blend_both(nodes, starts, work.taps[2:], work.rows[plane, :n], work.slopes[plane, :n])
        else:
            _blend(nodes, starts, work.taps[2], work.rows[plane, :n])
    k = ix - 1
    starts = (k // step, (k + 1) // step, (k + 2) // step, (k + 3) // step)
    if slopes:
        _blend_both(_nodes(work.rows, k, step, 1, 0), starts, work.taps[:2], out[0], out[1])
        _blend(_nodes(work.slopes, k, step, 1, 0), starts, work.taps[0], out[2])
    else:
        _blend(_nodes(work.rows, k, step, 1, 0), starts, work.taps[0], out[0])


@inner
def _cut(padded: F32, side: int, out: F32) -> None:
    size = out.shape[1]
    for j in range(out.shape[0]):
        line, cut = padded[j * side : j * side + size], out[j]
        for i in range(size):
            cut[i] = line[i]


@inner
def read_values(table: PsfTable, coefficients: F32, dx: float, dy: float, work: PsfWork, out: F32) -> None:
    """P in ``out`` (size, size) of a star ``dx``, ``dy`` px (half a pixel at most) off its middle pixel.

    ``coefficients`` are those of ``PsfModel.coefficients``, the table's ``size`` that of ``out`` or more.
    """
    size = out.shape[0]
    stamps = work.stamps[:, : size * table.side]
    mix_terms(table, coefficients, work)
    read_stamp(table, dx, dy, size, False, work, stamps)
    _cut(stamps[0], table.side, out)


@inner
def read_slopes(table: PsfTable, coefficients: F32, dx: float, dy: float, work: PsfWork, out: F32) -> None:
    """As ``read_values`` and its derivatives with the star's place: P, dP/dx, dP/dy in ``out`` (3, size, size)."""
    size = out.shape[1]
    stamps = work.stamps[:, : size * table.side]
    mix_terms(table, coefficients, work)
    read_stamp(table, dx, dy, size, True, work, stamps)
    for k in range(3):
        _cut(stamps[k], table.side, out[k])


@compiled
def read_many(table: PsfTable, coefficients: F32, dx: NDArray[np.float64], dy: NDArray[np.float64], out: F32) -> None:
    """``read_slopes`` of n sources into ``out`` (n, 3, size, size)."""
    work = psf_work(table)
    for k in range(len(dx)):
        read_slopes(table, coefficients[k], dx[k], dy[k], work, out[k])
