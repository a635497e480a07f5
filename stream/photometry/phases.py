"""The PSF at many places from a table of sub-pixel phases: one matrix product a phase instead of splines a source.

Of every term of the polynomial in place the table holds the stamp and its two derivatives at the middles of 16 x 16
phases of a pixel. A source's stamp is the terms' sum, carried from the phase's middle to its own place by the
derivatives: what is left out is second order in 1/32 px, 2e-4 of the peak, and sums to zero.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stream.core.psf import PsfModel, read_gradients
from stream.core.records import F32
from stream.photometry.stamps import nearest_pixels

F64 = NDArray[np.float64]
INT = NDArray[np.intp]

PHASES = 16


class PhaseTable:
    """Stamps of a ``PsfModel``, ``size`` px a side, around the pixels nearest to places."""

    def __init__(self, psf: PsfModel, size: int, inner: int) -> None:
        self.psf, self.size, self.inner = psf, size, inner
        middle = (np.arange(PHASES) + 0.5) / PHASES - 0.5
        dx, dy = np.tile(middle, PHASES), np.repeat(middle, PHASES)
        terms = psf.term_grids(size)
        table = np.empty((PHASES * PHASES, 3, len(terms), size * size), np.float32)
        for k, grid in enumerate(terms):
            grids = np.broadcast_to(grid, (len(dx), *grid.shape))
            for j, part in enumerate(read_gradients(grids, dx, dy, size, psf.oversample)):
                table[:, j, k] = part.reshape(len(dx), -1)
        self._table = table
        low = (size - inner) // 2
        self._core = np.flatnonzero(np.pad(np.ones((inner, inner), bool), low))

    def gradients(self, x: F64, y: F64) -> tuple[F32, F32, F32]:
        """P (n, size, size), of the middle pixels dP/dx and dP/dy (n, inner, inner), of unit-flux sources."""
        n, inner = len(x), self.inner
        coefficients, phase, offset = self._phases(x, y)
        out, slopes = np.empty((n, self.size**2), np.float32), np.empty((2, n, inner**2), np.float32)
        for these, table in self._by_phase(phase):
            t = coefficients[these]
            px, py = t @ table[1], t @ table[2]
            p = t @ table[0]
            p += offset[0][these, None] * px
            p += offset[1][these, None] * py
            out[these] = p
            slopes[0, these], slopes[1, these] = px[:, self._core], py[:, self._core]
        return out.reshape(n, self.size, self.size), *slopes.reshape(2, n, inner, inner)

    def _phases(self, x: F64, y: F64) -> tuple[F32, INT, tuple[F32, F32]]:
        """Normalised polynomial terms, number of the phase, and the offset (px) from its middle."""
        ix, iy = nearest_pixels(x, y)
        u, v = ((f + 0.5) * PHASES for f in (x - ix, y - iy))
        i, j = (np.clip(w.astype(np.intp), 0, PHASES - 1) for w in (u, v))
        offset = tuple(((w - k - 0.5) / PHASES).astype(np.float32) for w, k in ((u, i), (v, j)))
        return self.psf.coefficients(x, y), j * PHASES + i, (offset[0], offset[1])

    def _by_phase(self, phase: INT) -> list[tuple[INT, F32]]:
        order = np.argsort(phase, kind="stable")
        edges = np.searchsorted(phase[order], np.arange(PHASES * PHASES + 1))
        return [(order[a:b], self._table[k]) for k, (a, b) in enumerate(pairwise(edges.tolist())) if b > a]
