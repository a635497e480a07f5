"""``ztf-stream topics``: the topics file against a broker, users' rights included."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stream.cli.common import print_json
from stream.engine.access import AccessChanges, Grant, apply_access, diff_access
from stream.engine.config import Settings, load_settings
from stream.engine.embedded import broker_of
from stream.engine.kafka import make_admin
from stream.engine.topics import Changes, apply_topics, desired_topics, diff, load_topics

app = typer.Typer(no_args_is_help=True, add_completion=False, help="topics.yaml against a broker.")

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
NightOption = Annotated[
    list[str] | None, typer.Option("--night", help="Also the alert topics of this night (YYYYMMDD); repeatable.")
]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="laptop or cluster; else as configured.")]
FileOption = Annotated[str | None, typer.Option("--file", help="Another topics.yaml.")]
BootstrapOption = Annotated[str | None, typer.Option("--bootstrap", help="Broker as host:port; else as configured.")]


def _settings(profile: str | None, file: str | None, bootstrap: str | None = None) -> Settings:
    return load_settings(profile=profile, topics_file=file, bootstrap=bootstrap)


def _broker(settings: Settings) -> Settings:
    return broker_of(settings).as_admin()


def _size(text: str) -> str:
    number = float(text)
    if number < 0:
        return "no limit"
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1024 or unit == "GB":
            return f"{number:.0f} {unit}"
        number /= 1024
    return text


@app.command("list")
def list_(
    profile: ProfileOption = None, file: FileOption = None, night: NightOption = None, as_json: JsonOption = False
) -> None:
    """The topics as the file states them; asks no broker."""
    settings = _settings(profile, file)
    stated = load_topics(settings.topics_file)
    nights = night or []
    rows: list[dict[str, Any]] = []
    sized = {t.name: t for t in desired_topics(stated, settings.profile, nights or ["00000000"])}
    for spec in stated.topics:
        for day in (nights or ["00000000"]) if spec.nightly else [None]:
            topic = sized[spec.topic(day)]
            name = topic.name if nights or not spec.nightly else spec.name
            rows.append({**spec.model_dump(by_alias=True), **asdict(topic), "name": name, "pattern": spec.name})
    if as_json:
        print_json(rows)
        return
    table = Table(title=f"Topics, profile {settings.profile}")
    table.add_column("topic", no_wrap=True)
    for column in ("partitions", "key", "kept", "per partition", "message", "written by", "read by", "access"):
        table.add_column(column, overflow="fold")
    for row in rows:
        config = row["config"]
        table.add_row(
            row["name"], str(row["partitions"]), row["key"], f"{int(config['retention.ms']) // 3_600_000} h",
            _size(config["retention.bytes"]), _size(config["max.message.bytes"]), ", ".join(row["writers"]),
            ", ".join(row["readers"]), row["access"],
        )  # fmt: skip
    Console().print(table)


def _rule(grant: Grant) -> str:
    pattern = "..." if grant.pattern == "prefixed" else ""
    return f"{grant.principal} {grant.permission} {grant.operation} {grant.resource}{pattern}"


def _report(changes: Changes, access: AccessChanges, as_json: bool, done: bool) -> None:
    drift = changes.drift or access.drift
    if as_json:
        print_json({"drift": drift, **asdict(changes), "access": asdict(access)})
        return
    console = Console()
    if not drift:
        console.print("The broker is as topics.yaml states.")
    else:
        table = Table(title="Changed" if done else "The broker differs from topics.yaml")
        for column in ("topic", "what", "on the broker", "stated"):
            table.add_column(column, overflow="fold")
        for topic in changes.create:
            table.add_row(topic.name, "topic", "absent", f"{topic.partitions} partitions")
        for name, now, wanted in changes.grow:
            table.add_row(name, "partitions", str(now), str(wanted))
        for change in changes.configure:
            table.add_row(change.topic, change.setting, change.is_now, change.should_be)
        for sentence in changes.stuck:
            table.add_row("", f"[red]by hand:[/red] {sentence}", "", "")
        for name in access.make:
            table.add_row(name, "user", "absent", "stated")
        for name in access.missing:
            table.add_row(name, f"[red]by hand:[/red] user without a password: ztf-stream users add {name}", "", "")
        for grant in access.grant:
            table.add_row(grant.name, _rule(grant), "absent", "stated")
        for grant in access.revoke:
            table.add_row(grant.name, _rule(grant), "there", "not stated")
        console.print(table)
    if access.disabled:
        console.print("[yellow]This broker has no authorizer: it keeps no users' rights, everybody may read all.[/]")
    if changes.unknown:
        console.print(f"Not of topics.yaml, left alone: {', '.join(changes.unknown)}")


@app.command()
def apply(
    profile: ProfileOption = None,
    file: FileOption = None,
    night: NightOption = None,
    bootstrap: BootstrapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make topics, users and rights as the file states; exit status 1 if something is left for a person to change."""
    settings = _broker(_settings(profile, file, bootstrap))
    stated = load_topics(settings.topics_file)
    changes = apply_topics(make_admin(settings), stated, settings.profile, night or [])
    access = apply_access(settings, stated)
    _report(changes, access, as_json, done=True)
    if changes.stuck or access.missing:
        raise typer.Exit(1)


@app.command("diff")
def diff_(
    profile: ProfileOption = None,
    file: FileOption = None,
    night: NightOption = None,
    bootstrap: BootstrapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where the broker differs from the file; exit status 1 if it does anywhere."""
    settings = _broker(_settings(profile, file, bootstrap))
    stated = load_topics(settings.topics_file)
    changes = diff(make_admin(settings), stated, settings.profile, night or [])
    access = diff_access(settings, stated)
    _report(changes, access, as_json, done=False)
    if changes.drift or access.drift:
        raise typer.Exit(1)
