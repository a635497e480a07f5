"""``ztf-stream night``: what a night was, and the statement that closes it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Close a night, show what it was.")

NightOption = Annotated[str, typer.Option("--night", help="UT date, YYYYMMDD.")]
StoreOption = Annotated[str | None, typer.Option(help="Product store; the configured one by default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")]


@app.command()
def close(
    night: NightOption,
    now: Annotated[bool, typer.Option("--now", help="Also while work is waiting.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Close a night: its manifest into the archive and onto ztf.nights. Closed again if something came since.

    Exit status 1 while stages have work waiting, unless --now.
    """
    from stream.core.errors import UsageError
    from stream.engine.closing import close_night, waiting
    from stream.engine.config import load_settings
    from stream.engine.embedded import broker_of
    from stream.engine.topics import load_topics

    settings = broker_of(load_settings(store=store))
    behind = {stage: n for stage, n in waiting(settings, load_topics(settings.topics_file)).items() if n}
    if behind and not now:
        words = ", ".join(f"{stage} {n}" for stage, n in behind.items())
        raise UsageError(f"work is waiting ({words}): wait until 'ztf-stream status' shows none, or close --now")
    manifest, new = close_night(settings, night, time.time())
    _show(manifest, as_json)
    if not as_json:
        print("closed" if new else "nothing has changed since it was closed")


@app.command()
def show(night: NightOption, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """What the manifest of a closed night says."""
    from stream.archive import ProductStore, read_manifest
    from stream.core.errors import UsageError
    from stream.engine.config import load_settings

    opened = ProductStore(store or load_settings().store)
    manifest = read_manifest(opened, night)
    if manifest is None:
        raise UsageError(f"night {night} was not closed in {opened.url}: 'ztf-stream night close --night {night}'")
    _show(manifest, as_json)


def _show(manifest: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from stream.cli.common import print_json
    from stream.engine.closing import summary

    if as_json:
        print_json(manifest)
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in summary(manifest).items():
        table.add_row(name, str(value))
    Console().print(table)
