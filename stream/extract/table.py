"""Row numbers and candidate identifiers of one quadrant's extraction tables, the same in every rerun."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.core import identity
from stream.core.records import Quadrant

MAX_ROWS = identity.MAX_TBLID + 1  # of one sign: what the candid arithmetic can tell apart
# VV of a streak's candid (the survey used 01, 02, 04, 06, 09 and 11): streaks have tables of their own and must
# not share numbers with candidates.
STREAK_VERSION = 81


def assign_tblids(x: ArrayLike, y: ArrayLike, positive: ArrayLike, accepted: ArrayLike) -> NDArray[np.int64]:
    """Row numbers, one table a sign: accepted rows first, then by (y, x).

    Sent rows so get the small numbers: a row of 1000 or more carries into the candid's sign digit (still
    unique, but brokers that read the sign off the candid would be misled).

    Parameters
    ----------
    x, y : array_like, (n,)
        Places in px.
    positive, accepted : array_like, (n,), bool

    Returns
    -------
    ndarray, (n,), int64
        0-based row in the table of the candidate's sign.

    Raises
    ------
    ValueError
        If a sign has more than ``MAX_ROWS`` rows; detection drops the faintest before.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    positive, accepted = np.asarray(positive, bool), np.asarray(accepted, bool)
    rows = np.zeros(len(x), np.int64)
    for sign in (True, False):
        mine = np.flatnonzero(positive == sign)
        if len(mine) > MAX_ROWS:
            raise ValueError(f"{len(mine)} rows of one sign: the candid can tell {MAX_ROWS} apart")
        order = np.lexsort((x[mine], y[mine], ~accepted[mine]))
        rows[mine[order]] = np.arange(len(mine))
    return rows


def candids(
    quadrant: Quadrant, positive: Sequence[bool], rows: ArrayLike, version: int = identity.CANDID_VERSION
) -> list[int]:
    """Candidate identifiers of rows of a quadrant's tables, with these two version digits."""
    return [
        identity.candid_of(quadrant.pid, bool(p), int(row), version)
        for p, row in zip(positive, np.asarray(rows), strict=True)
    ]


def streak_candid(quadrant: Quadrant, positive: bool, row: int) -> int:
    """Identifier of a streak: a candidate's, with a version of its own."""
    return identity.candid_of(quadrant.pid, positive, row, version=STREAK_VERSION)
