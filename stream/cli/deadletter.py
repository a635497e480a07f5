"""``ztf-stream deadletter``: what failed, why, and try again."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stream.cli.common import print_json
from stream.core.errors import UsageError
from stream.engine.config import Settings, load_settings
from stream.engine.deadletters import DeadLetter, list_letters, retry_letter, show_letter
from stream.engine.embedded import located

app = typer.Typer(no_args_is_help=True, add_completion=False, help="What failed, why, and try again.")

JsonOption = Annotated[bool, typer.Option("--json", help="JSON lines instead of text.")]
AllOption = Annotated[bool, typer.Option("--all", help="Also letters that were sent again.")]
StageOption = Annotated[str, typer.Option("--stage", help="Only letters of this stage, e.g. astrometry.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The letter's id, or an unambiguous beginning of it.")]


def _settings() -> Settings:
    settings = load_settings()
    return settings if settings.bootstrap else located(settings)


def _when(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


@app.command("list")
def list_(everything: AllOption = False, stage: StageOption = "", as_json: JsonOption = False) -> None:
    """The open dead letters, oldest first."""
    letters = list_letters(_settings(), everything=everything, stage=stage)
    if as_json:
        for letter in letters:
            row = asdict(letter)
            row.pop("value")
            row.pop("traceback")
            print_json(row)
        return
    if not letters:
        typer.echo("No dead letters.")
        return
    table = Table(title=f"{len(letters)} dead letters")
    for column in ("id", "UTC", "stage", "about", "reason", "tries", "state"):
        table.add_column(column, overflow="fold")
    for x in letters:
        about = str(x.context.get("name") or x.context.get("file") or "")
        table.add_row(x.id, _when(x.time), x.stage, about, x.reason, str(x.attempts), x.state)
    Console().print(table)


@app.command()
def show(letter_id: IdArgument, as_json: JsonOption = False) -> None:
    """Everything known about one dead letter."""
    letter = show_letter(_settings(), letter_id)
    if as_json:
        print_json(asdict(letter))
        return
    place = f"{letter.topic}[{letter.partition}]@{letter.offset}" if letter.topic else letter.context.get("file", "")
    kept = "in the letter" if letter.value is not None else "where it lies"
    lines = [
        f"{letter.id}  ({letter.state}, tried {letter.attempts} time(s), {_when(letter.time)} UTC)",
        f"stage       {letter.stage}, by {letter.worker}",
        f"reason      {letter.error}: {letter.reason}",
        f"what to do  {letter.what_to_do}",
        f"original    {place} ({letter.value_bytes} bytes, {kept})",
        *(f"  {name}: {value}" for name, value in letter.context.items()),
        "",
        letter.traceback.rstrip(),
    ]
    typer.echo("\n".join(lines))


@app.command()
def retry(
    letter_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Letters to send again.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every open letter that was a message.")] = False,
    stage: StageOption = "",
    as_json: JsonOption = False,
) -> None:
    """Send the originals to their topics again; a second failure opens the letter again."""
    settings = _settings()
    ids = list(letter_ids or [])
    if everything or stage:
        ids += [letter.id for letter in list_letters(settings, stage=stage) if letter.topic]
    elif not ids:
        raise UsageError("name the letters to retry, or --all, or --stage STAGE")
    failed = 0
    for letter_id in dict.fromkeys(ids):
        try:
            letter: DeadLetter = retry_letter(settings, letter_id)
        except UsageError as error:
            failed += 1
            print_json({"id": letter_id, "state": "failed", "reason": str(error)}) if as_json else typer.echo(
                str(error), err=True
            )
            continue
        if as_json:
            print_json({"id": letter.id, "state": letter.state, "topic": letter.topic, "attempts": letter.attempts})
        else:
            typer.echo(f"{letter.id}: sent to {letter.topic} again")
    if failed:
        raise typer.Exit(1)
