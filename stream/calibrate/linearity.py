"""Non-linearity of the amplifiers: published coefficients per amplifier and epoch."""

from __future__ import annotations

import csv
from functools import lru_cache
from importlib import resources

import numpy as np

from stream.core.records import F32

_JD_OF_MJD_ZERO = 2_400_000.5


@lru_cache(maxsize=1)
def _table() -> dict[tuple[int, int], list[tuple[float, float, float]]]:
    """(ccdid, amp_id) to [(valid from MJD, A, B), ...], oldest first."""
    text = resources.files("stream.core").joinpath("data/linearity.csv").read_text()
    table: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        key = int(row["ccdid"]), int(row["amp_id"])
        table.setdefault(key, []).append((float(row["valid_from_mjd"]), float(row["a"]), float(row["b"])))
    return {key: sorted(rows) for key, rows in table.items()}


def linearity_coefficients(ccdid: int, qid: int, jd: float) -> tuple[float, float]:
    """A (DN^-2) and B (DN^-1) of DN_true = x / (A x^2 + B x + 1) for an amplifier at a time.

    Keyed on AMP_ID = qid - 1, never on the amplifier's letter, which changed its meaning (ztf-facts §1.4). The
    first epoch also covers what is older.
    """
    rows = _table()[ccdid, qid - 1]
    a, b = rows[0][1:]
    for valid_from, row_a, row_b in rows:
        if jd - _JD_OF_MJD_ZERO >= valid_from:
            a, b = row_a, row_b
    return a, b


def linearise(x: F32, a: float, b: float, scratch: F32) -> None:
    """Replace overscan-subtracted DN ``x`` by true DN, in place; ``scratch`` has the shape of ``x``."""
    np.multiply(x, np.float32(a), out=scratch)
    scratch += np.float32(b)
    scratch *= x
    scratch += np.float32(1)
    x /= scratch


def linearised(x: float, a: float, b: float) -> float:
    """True DN of one overscan-subtracted value."""
    return x / (a * x * x + b * x + 1.0)
