"""``ztf-stream state``: what Redis holds, and how to have it again after it was lost."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from stream.cli.common import print_json

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The hot state in Redis.")

JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


@app.command()
def rebuild(as_json: JsonOption = False) -> None:
    """Make the hot state anew: after Redis was emptied, and once when a system of one's own services first starts.

    Objects keep their objectIds, histories and limits their rows, what was published is not published again. Workers
    may run: those that need the state hold what they have in hand, and go on when it is there. Sources are the alert
    topics and the archive, ztf.quadrants, ztf.scored, ztf.enriched, ztf.tracklets, and the store's quality records.
    """
    from stream.engine.config import load_settings
    from stream.engine.embedded import located
    from stream.engine.rebuild import rebuild_state
    from stream.engine.state import connect

    settings = located(load_settings())
    console = Console(stderr=True)

    def progress(what: str, number: int) -> None:
        if console.is_terminal:
            console.print(f"{what.replace('_', ' ')}: {number}", end="\r")

    done = rebuild_state(settings, connect(settings), progress).as_dict()
    if as_json:
        print_json(done)
    else:
        typer.echo("; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in done.items()))


@app.command()
def show(as_json: JsonOption = False) -> None:
    """Whether the state is whole; exit status 1 if Redis was emptied."""
    from stream.core.errors import StateLost
    from stream.engine.config import load_settings
    from stream.engine.embedded import located
    from stream.engine.state import Generation, connect

    try:
        generation = Generation(connect(located(load_settings()))).current()
    except StateLost as error:
        if not as_json:
            raise
        print_json({"generation": None, "reason": str(error)})
        raise typer.Exit(1) from None
    if as_json:
        print_json({"generation": generation})
    else:
        typer.echo(f"the state is whole (generation {generation})")
