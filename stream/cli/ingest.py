"""``ztf-stream ingest``: raw packets onto Kafka, each once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stream.cli.common import print_json, progress_bar
from stream.core.errors import UsageError
from stream.engine import logs, metrics
from stream.engine.config import load_settings
from stream.engine.embedded import located
from stream.engine.heartbeat import Heartbeat
from stream.engine.ingest_service import FileOutcome, Ingestor
from stream.engine.state import connect
from stream.ingest import expand_inputs


def ingest(
    files: Annotated[list[str] | None, typer.Argument(help="Packets, patterns, or folders of packets.")] = None,
    watch: Annotated[Path | None, typer.Option("--watch", metavar="DIR", help="Ingest what comes into DIR.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also packets that were sent before.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Whether to wait for workers that are far behind.")
    ] = True,
    camera: Annotated[str | None, typer.Option("--camera", help="full or small; else as configured.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a file.")] = False,
) -> None:
    """Put raw packets onto Kafka, each once; exit status 1 if any of them, or a part of one, could not be used."""
    if not files and watch is None:
        raise UsageError("nothing to ingest: name files or folders, or --watch DIR")
    settings = located(load_settings(camera=camera, raw_backlog=None if wait else 0))
    paths = expand_inputs(files) if files else []
    logs.configure(settings, "ingest")
    metrics.serve(settings)
    console = Console(stderr=True)
    client = connect(settings)

    def waiting(quadrants: int) -> None:
        if console.is_terminal:
            console.print(f"waiting for the workers: {quadrants} quadrants of one channel are unprocessed", end="\r")

    service = Ingestor(settings, client, again=again, waiting=waiting)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: service.stopping.set())
    hurt = 0
    with Heartbeat(client, settings.identity("ingest", 0), "ingest") as heartbeat, progress_bar(console) as bar:
        try:
            for done, result in enumerate(_all(service, paths, watch), 1):
                heartbeat.note("reading", done=1)
                hurt += result.outcome in ("partial", "failed")
                if paths:
                    bar(min(done, len(paths)), len(paths), "ingest")
                _tell(result, as_json)
        finally:
            service.close()
    if hurt:
        raise typer.Exit(1)


def _all(service: Ingestor, paths: list[Path], watch: Path | None) -> Iterator[FileOutcome]:
    yield from service.files(paths)
    if watch is not None:
        yield from service.watch(watch)


def _tell(result: FileOutcome, as_json: bool) -> None:
    if as_json:
        print_json(result.as_dict())
        return
    words = {"sent": "sent", "seen": "was sent before", "partial": "sent in part", "failed": "FAILED"}
    typer.echo(f"{Path(result.path).name}: {words[result.outcome]}, {result.quadrants} quadrants")
    for reason in result.failures:
        typer.echo(f"  {reason}", err=True)
