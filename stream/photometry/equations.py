"""The compiled sums of normal equations, and their solution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import inner

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
INT = NDArray[np.int64]


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
def coupling(design: F32, weight: F32, other: F32, offset: tuple[int, int], size: int, shifted: F32, out: F64) -> None:
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
