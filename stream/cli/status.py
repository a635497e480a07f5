"""``ztf-stream status``: what is late, what failed, who is alive, on one screen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Latencies are shown over this long, seconds.
WINDOW = 600.0
_ROLES = {"backlog": "pixels"}  # who works a lag off, where it is not the stage of that name


def status(
    data_dir: Annotated[str | None, typer.Option(help="Folder of the embedded system.", envvar="ZTF_DATA_DIR")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    watch: Annotated[float, typer.Option(help="Repeat every so many seconds, until Ctrl-C.")] = 0.0,
) -> None:
    """Show lag by stage, the last quadrant, failures, latencies, how complete the search is, and who is alive.

    Exit status 1 when a stage has work waiting and nobody alive to do it.
    """
    from rich.console import Console

    from stream.cli.common import print_json
    from stream.engine.config import load_settings
    from stream.engine.embedded import located

    settings = located(load_settings(data_dir=data_dir))
    console = Console()
    while True:
        state = gather(settings)
        if as_json:
            print_json(state)
        else:
            if watch:
                console.clear()
            draw(state, console)
        if not watch:
            break
        time.sleep(watch)
    if state["stuck"]:
        raise typer.Exit(1)


def gather(settings: Any) -> dict[str, Any]:
    """Everything the screen shows, as plain values."""
    from stream.engine.closing import waiting
    from stream.engine.heartbeat import living
    from stream.engine.state import connect
    from stream.engine.topics import load_topics
    from stream.monitor import Monitor, latency_report

    client = connect(settings)
    monitor = Monitor(client)
    lags = waiting(settings, load_topics(settings.topics_file))
    alive = living(client)
    nights = monitor.nights()
    working = {one.get("role") for one in alive}
    return {
        "bootstrap": settings.bootstrap,
        "lag": lags,
        "alive": alive,
        "stuck": [stage for stage, lag in lags.items() if lag and _ROLES.get(stage, stage) not in working],
        "latency": latency_report(monitor.ledgers(time.time() - WINDOW)),
        "nights": [monitor.counts(night) for night in nights[-3:]],
    }


def draw(state: dict[str, Any], console: Console) -> None:
    """The screen."""
    from rich.columns import Columns
    from rich.table import Table

    from stream.monitor.completeness import in_words

    lag = Table("stage", "waiting", title="lag")
    for stage, waiting in state["lag"].items():
        colour = "red" if stage in state["stuck"] else "yellow" if waiting else "green"
        lag.add_row(stage, f"[{colour}]{waiting}[/]")
    alive = Table("worker", "at", "done", "metrics", title="alive")
    for one in state["alive"]:
        port = one.get("metrics")
        where = f"{one.get('host')}:{port}" if port else ""
        alive.add_row(str(one.get("name")), str(one.get("doing", "")), str(one.get("done", "")), where)
    console.print(Columns([lag, alive, _latency(state["latency"])]))
    slow = state["latency"]["slow"]
    if slow:
        console.print(
            f"[yellow]slow: {slow['stage']}[/], {slow['median']:.1f} s in the median where {slow['seconds']:.0f} s "
            f"would do; ask: {slow['owner']}"
        )
    for night in state["nights"]:
        outcome = ", ".join(f"{n} {what}" for what, n in sorted(night.quadrants.items()))
        console.print(
            f"[bold]{night.night}[/]  {outcome}; {night.candidates} candidates, {night.dead_letters} dead letters"
        )
        if night.latencies:
            worst = max(night.latencies)
            middle = sorted(night.latencies)[len(night.latencies) // 2]
            console.print(f"  arrival to subtracted: median {middle:.1f} s, longest {worst:.1f} s")
        if night.fakes:
            console.print(f"  {in_words(night.fakes)}")
        if night.last:
            console.print(
                f"  last quadrant {night.last['name']}: {night.last['status']}, {night.last['seconds']} core-s"
            )
        for failure in night.failures[:5]:
            console.print(f"  [red]{failure['name']}[/] {failure['stage']}: {failure['reason']}")
    if state["stuck"]:
        console.print(f"[red]work is waiting and nobody is at it: {', '.join(state['stuck'])}[/] (`ztf-stream run`)")


def _latency(report: dict[str, Any]) -> Table:
    """Seconds that each stage took of what was published lately."""
    from rich.table import Table

    table = Table("until", "median", "95 %", "longest", title=f"latency, last {WINDOW / 60:.0f} min")
    for name, stage in report["stages"].items():
        numbers = (f"{stage[key]:.1f} s" for key in ("median", "p95", "longest"))
        table.add_row(name if name != "total" else "[bold]arrival to alert[/]", *numbers)
    return table
