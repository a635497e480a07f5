"""The PSF read off its splines in compiled loops, a source a time: as ``PsfModel.stamps`` and ``read_gradients``.

A stamp's pixels meet the spline's nodes every ``oversample`` nodes, all at the same fraction. The nodes of a row are
therefore stored by their remainder (all with remainder 0, then all with 1, ...): the four nodes under neighbouring
pixels are then neighbours in memory, and a stamp is a sum of shifted rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled
from stream.core.psf import PsfModel

F32 = NDArray[np.float32]

GUARD = 2  # nodes of nothing around a grid: what the spline's four nodes touch beyond the cut ones


class PsfTable(NamedTuple):
    """Spline coefficients of each polynomial term for stamps of up to ``size`` px.

    ``terms`` (n_terms, rows * oversample * columns), float32: node (y, x) lies at ``(y * oversample + x % oversample)
    * columns + x // oversample``; ``middle`` is the node of the PSF's centre on both axes.
    """

    terms: F32
    rows: int
    columns: int
    oversample: int
    middle: int
    size: int


class PsfWork(NamedTuple):
    """Memory for one source at a time: its grid, and rows of it (values, slopes) under the stamp's rows."""

    grid: F32
    rows: F32
    slopes: F32
    taps: F32


def psf_table(psf: PsfModel, size: int) -> PsfTable:
    """The table of a model for stamps of up to ``size`` px (odd), the star within half a pixel of the middle."""
    terms = psf.term_grids(size)
    n_terms, n, _ = terms.shape
    # What stamps of this size reach from the middle node, whether the model's grid does or not: beyond it is zero.
    reach = math.ceil((size // 2 + 0.5) * psf.oversample) + GUARD
    columns = -(-(2 * reach + 1) // psf.oversample) + 1
    rows = 2 * reach + 1
    spread = np.zeros((n_terms, rows, columns * psf.oversample), np.float32)
    inner, outer = max(n // 2 - reach, 0), max(reach - n // 2, 0)
    cut = terms[:, inner : n - inner, inner : n - inner]
    spread[:, outer : outer + cut.shape[1], outer : outer + cut.shape[2]] = cut
    by_remainder = spread.reshape(n_terms, rows, columns, psf.oversample).transpose(0, 1, 3, 2)
    flat = np.ascontiguousarray(by_remainder).reshape(n_terms, -1)
    return PsfTable(flat, rows, columns, psf.oversample, reach, size)


@compiled
def psf_work(table: PsfTable) -> PsfWork:
    """Memory for ``read_values`` and ``read_slopes``."""
    width = table.columns * table.oversample
    return PsfWork(
        np.empty((table.rows, width), np.float32),
        # One row more than is filled: shifted views of all rows reach into it.
        np.zeros((table.size + 1, width), np.float32),
        np.zeros((table.size + 1, width), np.float32),
        np.empty((4, 4), np.float32),
    )


@compiled
def _taps(fraction: float, oversample: int, out: F32) -> None:
    """Weights of the four nodes around a fraction in ``out[0]``, their change with the star's place in ``out[1]``."""
    t, s = fraction, 1 - fraction
    out[0, 0], out[0, 3] = s * s * s / 6, t * t * t / 6
    out[0, 1], out[0, 2] = (4 - 6 * t * t + 3 * t * t * t) / 6, (4 - 6 * s * s + 3 * s * s * s) / 6
    out[1, 0], out[1, 3] = oversample * s * s / 2, -oversample * t * t / 2
    out[1, 1], out[1, 2] = oversample * (4 * t - 3 * t * t) / 2, -oversample * (4 * s - 3 * s * s) / 2


@compiled
def _mix(terms: F32, coefficients: F32, out: F32) -> None:
    """Sum of the terms with their coefficients."""
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


@compiled
def _down(grid: F32, first: int, step: int, taps: F32, out: F32) -> None:
    """Rows of the stamp out of rows of nodes, the first four of which start at ``first``."""
    a, b, c, d = taps[0], taps[1], taps[2], taps[3]
    for j in range(out.shape[0]):
        node = first + step * j
        for i in range(out.shape[1]):
            out[j, i] = a * grid[node, i] + b * grid[node + 1, i] + c * grid[node + 2, i] + d * grid[node + 3, i]


@compiled
def _across(rows: F32, first: int, table: PsfTable, taps: F32, out: F32) -> None:
    """Pixels of the stamp out of its rows of nodes."""
    height, width = out.shape[0], rows.shape[1]
    flat, n = rows.reshape(-1), out.shape[0] * rows.shape[1]
    step, columns = table.oversample, table.columns
    k0, k1, k2, k3 = first, first + 1, first + 2, first + 3
    s0, s1 = (k0 % step) * columns + k0 // step, (k1 % step) * columns + k1 // step
    s2, s3 = (k2 % step) * columns + k2 // step, (k3 % step) * columns + k3 // step
    v0, v1 = flat[s0 : s0 + n].reshape((height, width)), flat[s1 : s1 + n].reshape((height, width))
    v2, v3 = flat[s2 : s2 + n].reshape((height, width)), flat[s3 : s3 + n].reshape((height, width))
    a, b, c, d = taps[0], taps[1], taps[2], taps[3]
    for j in range(height):
        for i in range(out.shape[1]):
            out[j, i] = a * v0[j, i] + b * v1[j, i] + c * v2[j, i] + d * v3[j, i]


@compiled
def read_values(table: PsfTable, coefficients: F32, dx: float, dy: float, work: PsfWork, out: F32) -> None:
    """The PSF of unit flux, ``dx``, ``dy`` px (half a pixel at most) off the middle pixel of ``out`` (size, size).

    ``coefficients`` are those of ``PsfModel.coefficients``, the table's ``size`` that of ``out`` or more.
    """
    size = out.shape[0]
    x = table.middle - (size // 2 + dx) * table.oversample
    y = table.middle - (size // 2 + dy) * table.oversample
    ix, iy = int(np.floor(x)), int(np.floor(y))
    _mix(table.terms, coefficients, work.grid.reshape(-1))
    _taps(x - ix, table.oversample, work.taps[:2])
    _taps(y - iy, table.oversample, work.taps[2:])
    _down(work.grid, iy - 1, table.oversample, work.taps[2], work.rows[:size])
    _across(work.rows, ix - 1, table, work.taps[0], out)


@compiled
def read_slopes(table: PsfTable, coefficients: F32, dx: float, dy: float, work: PsfWork, out: F32) -> None:
    """As ``read_values`` and its derivatives with the star's place: P, dP/dx, dP/dy in ``out`` (3, size, size)."""
    read_values(table, coefficients, dx, dy, work, out[0])
    size = out.shape[1]
    ix = int(np.floor(table.middle - (size // 2 + dx) * table.oversample))
    iy = int(np.floor(table.middle - (size // 2 + dy) * table.oversample))
    _across(work.rows, ix - 1, table, work.taps[1], out[1])
    _down(work.grid, iy - 1, table.oversample, work.taps[3], work.slopes[:size])
    _across(work.slopes, ix - 1, table, work.taps[0], out[2])


@compiled
def read_many(table: PsfTable, coefficients: F32, dx: NDArray[np.float64], dy: NDArray[np.float64], out: F32) -> None:
    """``read_slopes`` of n sources into ``out`` (n, 3, size, size)."""
    work = psf_work(table)
    for k in range(len(dx)):
        read_slopes(table, coefficients[k], dx[k], dy[k], work, out[k])
