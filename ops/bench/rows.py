"""One line of a table of measured figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """``name`` of the figure, its ``target`` and ``value`` as a person reads them, whether it holds, and how it was
    measured. ``ok`` None: measured, but nothing was asked of it."""

    name: str
    target: str
    value: str
    ok: bool | None
    detail: str = ""
