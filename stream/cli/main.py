"""The tree of commands. Each command's module is imported only when it is called, so that ``--help`` is quick."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# command -> (module, name of the typer app or function in it, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("stream.cli.demo", "demo", "A small night from raw packets to alerts on this machine, with a summary."),
    "run": ("stream.cli.run", "run", "The whole system on this machine, until Ctrl-C."),
    "worker": (
        "stream.cli.run",
        "worker",
        "One kind of worker: pixels, score, enrich, link, monitor, archive, emit, ...",
    ),
    "status": ("stream.cli.status", "status", "What is late, what failed, who is alive."),
    "fakes": ("stream.cli.fakes", "fakes", "How complete the search is, from sources injected into copies."),
    "simulate": ("stream.cli.simulate", "simulate", "A night of raw packets from a sky that is known."),
    "catalog": ("stream.cli.catalog", "app", "Import Gaia, Pan-STARRS, bright stars and orbits."),
    "calibration": (
        "stream.cli.calibration",
        "app",
        "Bias, flats, pixel masks, what is measured of the camera.",
    ),
    "reference": ("stream.cli.reference", "app", "Build, renew, list, pin and look at reference images."),
    "process": ("stream.cli.process", "process", "Packets to products and alert files, without a broker."),
    "lightcurves": ("stream.cli.lightcurves", "lightcurves", "Light curves of a field's stars, absolute or relative."),
    "ingest": ("stream.cli.ingest", "ingest", "Raw packets onto Kafka, each once."),
    "topics": ("stream.cli.topics", "app", "topics.yaml against a broker."),
    "night": ("stream.cli.night", "app", "Close a night, show what it was."),
    "users": ("stream.cli.users", "app", "Who may read the broker."),
    "schemas": ("stream.cli.schemas", "app", "What is in an alert: schemas as a page and as a registry."),
    "alerts": ("stream.cli.alerts", "app", "Read alerts as a subscriber."),
    "state": ("stream.cli.state", "app", "The hot state in Redis: is it whole, make it anew."),
    "deadletter": ("stream.cli.deadletter", "app", "What failed, why, and try again."),
    "models": ("stream.cli.models", "app", "Train and inspect the real-bogus classifiers."),
    "bench": ("stream.cli.bench", "app", "The figures of the design, as whole processes."),
}


class LazyGroup(TyperGroup):
    """A command group that imports a command's module when the command is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, built from its module; for the group's own help only its line of text is needed."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, text = COMMANDS[cmd_name]
        if ctx.resilient_parsing or _listing():
            return TyperCommand(cmd_name, short_help=text, help=text)
        target: Any = getattr(importlib.import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
            app.command(cmd_name)(target)
            target = app
        command = typer.main.get_command(target)
        command.name = cmd_name
        return command


def _listing() -> bool:
    return len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help")


app = typer.Typer(
    cls=LazyGroup,
    name="ztf-stream",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The Zwicky Transient Facility's data system as a stream: raw CCD packets in, Avro alerts out.",
)


@app.callback()
def _root() -> None:
    """The Zwicky Transient Facility's data system as a stream: raw CCD packets in, Avro alerts out."""


def run() -> int:
    """Run the command line; the exit status."""
    from stream.core.errors import ZtfError

    try:
        app()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except ZtfError as error:
        print(f"ztf-stream: {error}", file=sys.stderr)
        return 1
    return 0
