"""``ztf-stream users``: who may read the broker."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stream.cli.common import print_json
from stream.engine import access
from stream.engine.config import Settings, load_settings
from stream.engine.embedded import broker_of
from stream.engine.topics import TopicsFile, load_topics

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Who may read the broker.")

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]
BootstrapOption = Annotated[str | None, typer.Option("--bootstrap", help="Broker as host:port; else as configured.")]


def _open(bootstrap: str | None) -> tuple[Settings, TopicsFile]:
    settings = broker_of(load_settings(bootstrap=bootstrap)).as_admin()
    return settings, load_topics(settings.topics_file)


@app.command("list")
def list_(bootstrap: BootstrapOption = None, as_json: JsonOption = False) -> None:
    """Users, their groups, and how many topics they may read."""
    settings, file = _open(bootstrap)
    rows = access.describe(settings, file)
    if as_json:
        print_json(list(rows))
        return
    table = Table("user", "group", "password", "stated in", "topics", title="Users")
    for row in rows:
        word = "yes" if row["password"] else "[red]none[/]"
        table.add_row(str(row["user"]), str(row["group"]), word, str(row["stated"]), str(row["topics"]))
    Console().print(table)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Small letters, digits, dashes.")],
    group: Annotated[str, typer.Option(help="A group of topics.yaml: partnership, caltech, public, services.")],
    password: Annotated[str, typer.Option(help="One of your own; else a new one is made and printed, once.")] = "",
    bootstrap: BootstrapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a user, or give it another group and password. Consumer groups NAME and NAME-... are its own."""
    settings, file = _open(bootstrap)
    made = password or secrets.token_urlsafe(18)
    access.add_user(settings, file, name, group, made)
    if as_json:
        print_json({"user": name, "group": group, "password": made})
    else:
        print(f"{name} of {group}, password {made}")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The user.")],
    bootstrap: BootstrapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a user's rights and password away."""
    settings, file = _open(bootstrap)
    access.remove_user(settings, file, name)
    if as_json:
        print_json({"user": name, "removed": True})
    else:
        print(f"{name} is removed")
