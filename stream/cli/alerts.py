"""``ztf-stream alerts``: read alerts as a subscriber does, look at one, take a night home."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from stream.core.errors import BrokerUnavailable, MessageError, UsageError

app = typer.Typer(help="Read alerts as a subscriber.", no_args_is_help=True, add_completion=False)

PUBLIC = r"^ztf_.*_programid1$"  # what AMPEL and Lasair subscribe to
_NIGHT = re.compile(r"\d{8}", re.ASCII)
_StoreOption = Annotated[str | None, typer.Option(help="Product store; the configured one by default.")]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, without the stamps.")]


def brief(record: Mapping[str, Any]) -> dict[str, Any]:
    """An alert without its stamps, for JSON."""
    return {k: v for k, v in record.items() if not k.startswith("cutout")}


def line(record: Mapping[str, Any], topic: str = "", latency: float | None = None) -> str:
    """An alert on one line."""
    c = record["candidate"]
    score = "-" if c.get("drb") is None else f"{c['drb']:.2f}"
    age = "" if latency is None else f"  {latency:6.1f} s"
    name = c.get("ssnamenr")
    known = f"  {name}" if name not in (None, "null") else ""
    return (
        f"{record['objectId']}  {record['candid']}  {c['ra']:10.6f} {c['dec']:+10.6f}  "
        f"{'?gri'[c['fid']] if 0 < c['fid'] < 4 else '?'} {c['magpsf']:6.3f} +- {c['sigmapsf']:.3f}  "
        f"{c['isdiffpos']}  drb {score}{age}{known}  {topic}"
    ).rstrip()


def latency_of(record: Mapping[str, Any]) -> float | None:
    """Seconds from the closing of the shutter to publication, where the packet knows both."""
    extension = record.get("zsds") or {}
    published, closed = extension.get("published"), extension.get("shutter_closed")
    if published is None or closed is None or published - closed > 86_400:  # an old night, replayed or simulated
        return None
    return float(published - closed)


@app.command()
def tail(
    topics: Annotated[str, typer.Option(help="Topic, or a pattern that begins with ^.")] = PUBLIC,
    group: Annotated[str, typer.Option(help="Consumer group; the same name goes on where it stopped.")] = "",
    beginning: Annotated[bool, typer.Option("--from-beginning", help="A new group starts with the oldest.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Stop after so many; 0 never.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="Stop after so many seconds; 0 never.")] = 0.0,
    as_json: _JsonOption = False,
) -> None:
    """Print alerts as they come, a line each, as a consumer of the public topics sees them."""
    from rich.console import Console

    from stream.alert import read_packet
    from stream.cli.common import print_json

    console = Console(highlight=False, soft_wrap=True)
    stop = time.monotonic() + seconds if seconds else float("inf")
    shown = 0
    for topic, value in _messages(topics, group, beginning, lambda: time.monotonic() >= stop):
        try:
            record = read_packet(value)
        except MessageError as error:
            Console(stderr=True).print(f"[red]{topic}: {error}[/red]")
            continue
        if as_json:
            print_json({"topic": topic, **brief(record)})
        else:
            style = "bold green" if (record["candidate"].get("drb") or 0.0) > 0.9 else ""
            console.print(line(record, topic, latency_of(record)), style=style, markup=False)
        shown += 1
        if limit and shown >= limit:
            return


def _messages(topics: str, group: str, beginning: bool, stopped: Callable[[], bool]) -> Iterator[tuple[str, bytes]]:
    """Topic and bytes of every message of some topics, offsets committed behind what was yielded."""
    from confluent_kafka import KafkaError

    from stream.engine.config import load_settings
    from stream.engine.embedded import broker_of
    from stream.engine.embedded_kafka import ADMIN, SERVICE
    from stream.engine.kafka import make_consumer

    settings = broker_of(load_settings())
    # A user that is not ours may not use our consumer groups.
    owner = settings.sasl_username
    prefix = settings.group_prefix if owner in ("", SERVICE, ADMIN) else owner
    consumer = make_consumer(
        settings,
        group or f"{prefix}-tail-{time.time_ns()}",
        "tail",
        auto_offset_reset="earliest" if beginning else "latest",
        topic_metadata_refresh_interval_ms=2_000,  # a night's topic appears with its first alert
        allow_auto_create_topics=False,
    )
    consumer.subscribe([topics])
    try:
        while not stopped():
            message = consumer.poll(0.5)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                if error.code() in (KafkaError._PARTITION_EOF, KafkaError.UNKNOWN_TOPIC_OR_PART):
                    continue
                raise BrokerUnavailable(f"reading {topics}: {error.str()}")
            yield str(message.topic()), message.value() or b""
            if group:
                consumer.commit(message=message, asynchronous=True)
    finally:
        consumer.close()


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="A candid of the archive, or an .avro file.")],
    out: Annotated[Path | None, typer.Option(help="PNG to draw; <candid>.png by default.")] = None,
    store: _StoreOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Describe one alert, and draw its stamps and light curve."""
    from stream.alert import read_packet
    from stream.alert.sheet import draw_alert, summary
    from stream.cli.common import print_json

    record = read_packet(_packet(what, store))
    if as_json:
        print_json(brief(record))
        return
    path = out or Path(f"{record['candid']}.png")
    draw_alert(record, path)
    for text in summary(record):
        print(text)
    print(f"drawn: {path}")


def _packet(what: str, store: str | None) -> bytes:
    file = Path(what)
    if file.is_file():
        return file.read_bytes()
    if not what.isdigit():
        raise UsageError(f"{what!r} is neither a file nor a candid")
    from stream.archive import read_alert

    opened = _open_store(store)
    packet = read_alert(opened, int(what))
    if packet is None:
        raise UsageError(f"no alert {what} in the archive of {opened.url}")
    return packet


def _open_store(store: str | None) -> Any:
    from stream.archive import ProductStore
    from stream.engine.config import load_settings

    return ProductStore(store or load_settings().store)


@app.command()
def export(
    night: Annotated[str, typer.Option(help="UT date, YYYYMMDD.")],
    programid: Annotated[
        int, typer.Option("--programid", "--program", min=0, max=3, help="Program of the alerts: 1 public.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="File; .gz compresses. By default as the survey's.")] = None,
    store: _StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Write a night's alerts as one tar, each alert its own <candid>.avro, as the survey's archive has them.

    Its MD5 goes into MD5SUMS beside it. The same night makes the same bytes.
    """
    from stream.archive import NightShelf
    from stream.archive.export import note_sum, tar_name, write_tar
    from stream.cli.common import print_json, progress_bar

    if not _NIGHT.fullmatch(night):
        raise UsageError(f"{night!r} is not a night: YYYYMMDD")
    path = out or Path(tar_name(night, programid))
    shelf = NightShelf(_open_store(store), night, programid)
    if not shelf:
        raise UsageError(f"no alerts of night {night}, program {programid} in the archive")
    packets = ((row["candid"], shelf.packet(row["candid"])) for row in shelf.rows())
    with progress_bar() as report:
        count = write_tar(path, packets, lambda done: report(done, len(shelf), "alerts"))
    md5 = note_sum(path)
    if as_json:
        print_json({"night": night, "programid": programid, "alerts": count, "file": str(path), "md5": md5})
    else:
        print(f"{count} alerts of {night}, program {programid}: {path}, MD5 {md5}")


@app.command()
def replay(
    first: Annotated[str, typer.Option("--from", help="First night, YYYYMMDD.")],
    last: Annotated[str, typer.Option("--to", help="Last night; the first one by default.")] = "",
    rate: Annotated[str, typer.Option(help="x10: ten times as it was; 200: alerts a second; max.")] = "x1",
    topic: Annotated[str, typer.Option(help="Where to.")] = "ztf.replay",
    programid: Annotated[list[int] | None, typer.Option(help="Programs; 1 by default. Repeatable.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also onto a topic that subscribers or stages read.")] = False,
    store: _StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Feed archived alerts to a topic: the bytes and keys they had, where and when they were in headers origin.*."""
    from stream.cli.common import print_json, progress_bar
    from stream.engine import replay as past
    from stream.engine.config import load_settings
    from stream.engine.embedded import broker_of
    from stream.engine.topics import load_topics

    if not (_NIGHT.fullmatch(first) and _NIGHT.fullmatch(last or first)):
        raise UsageError(f"{first!r} to {last!r}: nights are YYYYMMDD")
    settings = broker_of(load_settings(store=store))
    speed = past.Rate.parse(rate)
    alerts = past.archived(_open_store(store), first, last or first, programid or [1])
    if not alerts:
        raise UsageError(f"no alerts of {first} to {last or first} in the archive of {settings.store}")
    file = load_topics(settings.topics_file)
    with progress_bar() as report:
        count = past.replay(
            settings, file, alerts, speed, topic, force=force, progress=lambda n: report(n, len(alerts), "alerts")
        )
    if as_json:
        print_json({"topic": topic, "alerts": count})
    else:
        print(f"{count} alerts replayed to {topic}")
