"""Nights on the broker: when one ends, when it is closed, and the statement that closes it.

Deciding is apart from acting: :func:`decide` and :func:`heartbeat_state` are plain functions of what was seen.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stream.alert import decode_report
from stream.archive import (
    ProductStore,
    archived_alerts,
    make_manifest,
    public_part,
    read_manifest,
    same_statement,
    write_alert_tables,
    write_manifest,
)
from stream.core.errors import MessageError, UsageError
from stream.core.identity import NIGHT_ZERO_JD, night_of
from stream.core.records import QuadrantReport, Row
from stream.engine import deadletters
from stream.engine.config import Settings
from stream.engine.kafka import OutMessage, Sender, make_admin, make_producer, read_to_end
from stream.engine.lag import lags, stage_work
from stream.engine.topics import NIGHT, TopicsFile

TOPIC = "ztf.nights"
# At Palomar the Sun rises between 12:40 and 15:00 UT: a night's last exposure is long over by then.
END_HOUR = 16
QUIET_SECONDS = 600.0  # nothing may have come for this long: late packets come in bursts
_FILE_NIGHT = re.compile(r"ztf_(\d{8})\d{6}_")

Verdict = Literal["open", "wait", "close", "again", "done"]


@dataclass(frozen=True, slots=True)
class NightSeen:
    """What is known of a night at a moment. ``basis`` changes when an alert or a quadrant is added."""

    night: str
    basis: str
    quiet: float  # seconds since the basis changed
    waiting: int  # messages that the stages have not finished
    closed_basis: str | None = None  # of its last manifest; None: never closed


def end_of(night: str) -> float:
    """When a night is over, unix seconds: no exposure of that UT date comes after it."""
    day = dt.datetime.strptime(night, "%Y%m%d").replace(tzinfo=dt.UTC)
    return (day + dt.timedelta(hours=END_HOUR)).timestamp()


def decide(seen: NightSeen, now: float, quiet_seconds: float = QUIET_SECONDS) -> Verdict:
    """What to do about a night: it is still on, there is something to wait for, close it, close it again, nothing."""
    if seen.closed_basis is not None and seen.closed_basis == seen.basis:
        return "done"
    if now < end_of(seen.night):
        return "open"
    if seen.waiting or seen.quiet < quiet_seconds:
        return "wait"
    return "close" if seen.closed_basis is None else "again"


def nights_wanted(now: float) -> tuple[str, str]:
    """Nights whose topics have to be there: today's and tomorrow's UT date."""
    today = dt.datetime.fromtimestamp(now, dt.UTC)
    return today.strftime("%Y%m%d"), (today + dt.timedelta(days=1)).strftime("%Y%m%d")


def heartbeat_state(waiting: Mapping[str, int], published: int) -> str:
    """What a heartbeat says: ``sending``, ``working`` (on what is not an alert yet), ``nothing to send``."""
    if published:
        return "sending"
    return "working" if any(waiting.values()) else "nothing to send"


def night_of_rid(rid: int) -> str:
    """UT date of the exposure that a readout belongs to."""
    return night_of(NIGHT_ZERO_JD + rid // 100 // 100_000)


def lost_of(letters: Iterable[deadletters.DeadLetter], night: str) -> list[Row]:
    """What a night's dead letters were about, for the manifest: quadrants and whole packets, as far as they say."""
    rows = []
    for letter in letters:
        rid = letter.context.get("rid")
        number = int(str(rid)) if str(rid or "").isdigit() else None
        name = str(letter.context.get("name") or letter.context.get("file") or letter.id)
        dated = _FILE_NIGHT.match(name)
        of_night = night_of_rid(number) if number is not None else dated.group(1) if dated else None
        if of_night == night and letter.topic in ("", "ztf.raw", "ztf.raw.backlog"):
            program = dict(letter.headers).get("programid") if letter.headers else letter.context.get("programid")
            known = str(program).isdigit()
            rows.append(
                {
                    "name": name, "rid": number, "programid": int(str(program)) if known else None,
                    "stage": letter.stage, "reason": letter.reason,
                }
            )  # fmt: skip
    return rows


def reports_of(settings: Settings, night: str) -> list[QuadrantReport]:
    """The last quality record of every quadrant of a night."""
    found: dict[int, QuadrantReport] = {}
    try:
        for message in read_to_end(settings, {"ztf.quadrants": {}}, "closing"):
            try:
                report = decode_report(message.value)
            except MessageError:
                continue
            if night_of(report.jd) == night:
                found[report.rid] = report
    except UsageError:  # no such topic: nothing was ever processed
        return []
    return list(found.values())


def close_night(settings: Settings, night: str, now: float) -> tuple[Row, bool]:
    """Close a night (again): manifest into the archive and onto ``ztf.nights``, the night's tables written.

    Returns the manifest and whether it says anything new; if not, nothing was written.

    Raises
    ------
    UsageError
        Not a night.
    """
    if not NIGHT.fullmatch(night):
        raise UsageError(f"{night!r} is not a night: YYYYMMDD")
    store = ProductStore(settings.store)
    alerts, previous = archived_alerts(store, night), read_manifest(store, night)
    letters = [letter for letter in deadletters.list_letters(settings) if letter.state == "open"]
    manifest = make_manifest(night, alerts, reports_of(settings, night), lost_of(letters, night), now, previous)
    if previous is not None and same_statement(previous, manifest):
        announce(settings, previous)
        return previous, False
    for program, rows in alerts.items():
        if rows:
            write_alert_tables(store, night, program)
    write_manifest(store, manifest)
    announce(settings, manifest)
    return manifest, True


def announce(settings: Settings, manifest: Row) -> None:
    """Send the public part of a manifest; a repeat replaces itself, the topic is compacted by night."""
    sender = Sender(make_producer(settings, "closing"))
    key = manifest["night"].encode()
    sender.send(OutMessage(TOPIC, key, json.dumps(public_part(manifest)).encode()))
    sender.flush()


def waiting(settings: Settings, file: TopicsFile) -> dict[str, int]:
    """What every stage has not finished, the archive on all nights included."""
    admin = make_admin(settings)
    names = admin.list_topics(timeout=15.0).topics
    nightly = [name for name in names if (spec := file.spec_of(name)) is not None and spec.nightly]
    return lags(settings, stage_work(settings, nightly), admin)


def summary(manifest: Row) -> dict[str, Any]:
    """One line of a manifest for a person."""
    said = manifest["programs"]
    return {
        "night": manifest["night"],
        "version": manifest["version"],
        "closed": manifest["closed"],
        "alerts": sum(p["alerts"] for p in said.values()),
        "late": sum(p["late_alerts"] for p in said.values()),
        "exposures": sum(p["exposures"] for p in said.values()),
        "quadrants": sum(p["quadrants"]["received"] for p in said.values()),
        "failed": sum(p["quadrants"]["failed"] for p in said.values()),
        "lost": sum(p["quadrants"]["lost"] for p in said.values()) + len(manifest["unassigned"]),
    }
