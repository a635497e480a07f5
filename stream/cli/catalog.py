"""``ztf-stream catalog``: reference catalogues and orbits into the store's sky tiles."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stream.core.errors import ZtfError

app = typer.Typer(
    name="catalog",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Import Gaia, Pan-STARRS1, bright stars and orbits; list what is there.",
)


class Kind(StrEnum):
    """Catalogues that can be imported."""

    GAIA = "gaia"
    PS1 = "ps1"
    BRIGHT = "bright"
    ORBITS = "orbits"


Store = Annotated[str, typer.Option("--store", envvar="ZTF_STORE", help="URL or folder of the product store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Report as one line of JSON.")]


@app.command("import")
def import_(
    kind: Annotated[Kind, typer.Argument(help="What the files hold.")],
    files: Annotated[list[Path], typer.Argument(help="Parquet, FITS, CSV or ECSV tables; MPCORB or CometEls lines.")],
    store: Store = "./store",
    as_json: AsJson = False,
) -> None:
    """Sort tables into sky tiles; importing a table again changes nothing."""
    from stream.sky import import_catalog  # the science stack is slow to load: not for --help

    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(f"importing {kind.value}", total=len(files))
            summary = import_catalog(kind.value, files, store, lambda done, total: bar.update(task, completed=done))
    except ZtfError as error:
        _fail(error, as_json)
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
        return
    typer.echo(
        f"{summary.kind}: {summary.rows_read} rows of {summary.files} files, {summary.rows_new} of them new, "
        f"{summary.tiles} {'files' if kind is Kind.ORBITS else 'tiles'} written to {store}"
    )


@app.command("list")
def list_(store: Store = "./store", as_json: AsJson = False) -> None:
    """What the store has of every catalogue."""
    from stream.sky import list_catalogs

    try:
        found = list_catalogs(store)
    except ZtfError as error:
        _fail(error, as_json)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in found]))
        return
    table = Table("catalogue", "rows", "tiles", "MB")
    for entry in found:
        table.add_row(entry.kind, f"{entry.rows:,}", str(entry.tiles), f"{entry.size / 1e6:.1f}")
    Console().print(table)


def _fail(error: ZtfError, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"error": type(error).__name__, "message": str(error)}))
    typer.echo(f"ztf-stream: {error}", err=True)
    raise typer.Exit(1)
