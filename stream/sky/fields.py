"""The survey's grid of fields."""

from __future__ import annotations

import csv
from functools import lru_cache
from importlib import resources

from stream.core.errors import UsageError


@lru_cache(maxsize=1)
def field_grid() -> dict[int, tuple[float, float]]:
    """Centres (ra, dec; deg, J2000) of all fields, by identifier."""
    text = resources.files("stream.core").joinpath("data/fields.csv").read_text()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {int(row["field"]): (float(row["ra"]), float(row["dec"])) for row in rows}


def field_centre(field: int) -> tuple[float, float]:
    """Centre (ra, dec; deg) of a field; ``UsageError`` for an identifier that the grid does not have."""
    try:
        return field_grid()[field]
    except KeyError:
        raise UsageError(f"no field {field} in the survey's grid ({len(field_grid())} fields, 1 to 1897)") from None
