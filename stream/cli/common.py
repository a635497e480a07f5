"""What commands share: progress bars, the store's option, output as JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from stream.offline import Progress as Report  # imports all of the science: not for 'topics list'


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Report]:
    """A progress report that draws a bar per kind of work while a person watches, and nothing otherwise."""
    console = console or Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


def clean(value: Any) -> Any:
    """A value that strict JSON takes: records as objects, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return clean(asdict(value))
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if hasattr(value, "item"):
        return clean(value.item())
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(clean(value), sort_keys=False), flush=True)


def complain(lines: list[str]) -> None:
    """Sentences for a person, on standard error."""
    for line in lines:
        print(f"ztf-stream: {line}", file=sys.stderr)
