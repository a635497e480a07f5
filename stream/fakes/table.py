"""What a fake is and what became of it, as one table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.records import Row, Table

POINT, HOST, NUCLEUS, BRIGHT, STREAK = "point", "host", "nucleus", "bright", "streak"
KINDS = (POINT, HOST, NUCLEUS, BRIGHT, STREAK)
OTHER = "other"  # a candidate of the searched piece that is no fake

FAKE_DTYPE = np.dtype(
    [
        ("kind", "U8"),
        ("x", "f8"), ("y", "f8"),  # px of the piece, first is 0; a streak's middle
        ("mag", "f8"), ("flux", "f8"),  # total; DN
        ("length", "f4"), ("angle", "f4"),  # px, deg from x towards y; 0 for points
        ("host_mag", "f4"), ("host_px", "f4"),  # of the galaxy or bright star that it stands at; NaN: none
        ("limit", "f4"),  # 5-sigma limit there, mag
        # What became of it; of a candidate that is no fake only these.
        ("snr", "f4"),  # true flux over the error of a PSF fit there
        ("masked", "?"),  # its middle lies on a pixel without a value
        ("detected", "?"),  # a candidate (a streak: a streak) is there, rejected or not
        ("sent", "?"),
        ("rejected", "U16"),  # why not; empty
        ("positive", "?"),
        ("fit_flux", "f8"), ("fit_err", "f8"),  # as measured, DN, signed as D; NaN: not detected
        ("area", "f8"),  # px of the piece in which candidates that are no fakes were counted
    ]
)  # fmt: skip


def empty_fakes(n: int) -> Table:
    """``n`` fakes with nothing known."""
    table = np.zeros(n, FAKE_DTYPE)
    for name in ("mag", "flux", "host_mag", "host_px", "limit", "snr", "fit_flux", "fit_err"):
        table[name] = np.nan
    return table


def fake_rows(table: Table) -> list[Row]:
    """The table as rows of Python values, NaN as None."""
    names = FAKE_DTYPE.names or ()
    columns = [_values(table[name]) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: NDArray[Any]) -> list[Any]:
    values: list[Any] = column.tolist()
    if column.dtype.kind != "f":
        return values
    return [v if known else None for v, known in zip(values, np.isfinite(column).tolist(), strict=True)]
