"""Loops over pixels that numpy can only do in many passes over memory, compiled once by numba.

For what a profile names and nothing else: the start of a worker pays for every kernel, even if only by reading it from
the cache. A kernel takes C-contiguous arrays, always of the same dtypes (each combination is compiled anew), makes no
array it is not asked for, and gives the same bits on every run: no threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable[..., object])

# Without the first a sum is one chain of additions, each waiting for the one before; the second joins a product and
# a sum. Which order the compiler takes is fixed in the code, so that every run gives the same bits (another processor
# may round otherwise, as in numpy's own sums). NaN and infinity keep their meaning.
FREEDOM = {"reassoc", "contract"}


def compiled(function: F) -> F:
    """The function as machine code, compiled at its first call and kept on disk for the next process.

    The code lies beside the module (``__pycache__``), or in the user's cache folder where that cannot be written, or
    where ``NUMBA_CACHE_DIR`` says. Division by zero gives inf or NaN, as in numpy; indices are not checked. Sums may be
    taken in another order than written.
    """
    kernel: F = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FREEDOM)(function)
    return kernel


def inner(function: F) -> F:
    """As ``compiled``, for a function that only other compiled ones call and that makes no array.

    Every view of an array (a slice, a row) otherwise counts its references, which takes longer than the loop over the
    dozen pixels that it is made for. The caller holds the arrays. Such a function may hand an array to another of
    its kind, never back to a ``compiled`` one: that would release what nobody counted, and the heap breaks.
    """
    kernel: F = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FREEDOM, _nrt=False)(function)
    return kernel
