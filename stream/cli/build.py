"""What ``reference build`` and ``calibration build`` share: options, files, a table of what was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from stream.core.camera import camera_named
from stream.core.identity import FILTER_CODES

if TYPE_CHECKING:
    from stream.offline import Built, Job

Files = Annotated[list[str] | None, typer.Argument(help="Packets, globs or folders.")]
Store = Annotated[str | None, typer.Option(help="Product store (folder or URL).", envvar="ZTF_STORE")]
CameraName = Annotated[str | None, typer.Option("--camera", help="full or small.", envvar="ZTF_CAMERA")]
Workers = Annotated[int | None, typer.Option(help="Processes; one a core by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, a line for each product.")]


def prepare(
    raw: list[str] | None, store: str | None, camera: str | None, workers: int | None
) -> tuple[list[Path], Job, int]:
    """Files, store and camera, and number of processes of a build."""
    from stream.cli.common import cores
    from stream.engine.config import load_settings
    from stream.ingest import expand_inputs
    from stream.offline import Job

    settings = load_settings(store=store, camera=camera)
    paths = expand_inputs(raw) if raw else []
    return paths, Job(settings.store, camera_named(settings.camera)), workers or cores()


def show(built: list[Built], errors: list[str], as_json: bool, what: str) -> None:
    """Report what was made; exit with 1 if anything was not."""
    from stream.cli.common import complain, print_json

    failed = [one for one in built if one.error is not None]
    if as_json:
        for one in built:
            print_json(one)
    else:
        table = Table("kind", "night", "field", "rcid", "filter", "inputs", "figures", title=what)
        for one in built:
            figures = one.error or _figures(one.figures)
            code = FILTER_CODES.get(one.fid, "bi")
            table.add_row(one.kind, one.night, str(one.field or ""), str(one.rcid), code, str(one.n_inputs), figures)
        Console().print(table)
    complain(errors)
    if failed or errors:
        raise typer.Exit(1)


def _figures(figures: dict[str, object]) -> str:
    shown = [f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, float)]
    return ", ".join(shown[:5])
