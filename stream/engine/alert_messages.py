"""The emitter's function: a message of ``ztf.enriched`` to the packets that leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import redis

from stream.alert import checked_packet, decode_batch, packet_pair
from stream.core.errors import AlertError
from stream.core.identity import alert_topic_of, night_of
from stream.engine import deadletters, ledger
from stream.engine.config import Settings
from stream.engine.emit import AlertOut
from stream.engine.kafka import RawMessage, Sender, encode_headers

PERMANENT = {program: f"ztf.alerts.programid{program}" for program in (1, 2, 3)}  # engineering (0) has none
LIGHT = {1: "ztf.alerts.light.programid1"}

Refused = Callable[[RawMessage, int, AlertError], None]


class MakeAlerts:
    """Callable for ``Emitter``: the alerts of one enriched batch, in its order.

    Parameters
    ----------
    refused : callable
        Told (message, candid, error) of an alert that would break a rule that brokers rely on; the others of its
        batch leave all the same.
    late : callable
        Whether a night was closed already: its alerts carry the header ``late``.
    """

    def __init__(
        self,
        refused: Refused,
        clock: Callable[[], float] = time.time,
        late: Callable[[str], bool] = lambda night: False,
    ) -> None:
        self._refused = refused
        self._clock = clock
        self._late = late

    def __call__(self, message: RawMessage) -> list[AlertOut]:
        """Packets with their topics and keys: for every alert the night's topic, then the permanent ones."""
        batch = decode_batch(message.value)
        times = ledger.in_order({**ledger.read(message.headers), "published": self._clock()})
        date = night_of(batch.jd)
        late = 1 if self._late(date) else None
        named = encode_headers({"name": batch.name, "pid": batch.pid, "night": date, "late": late})
        headers = (*named, *ledger.encode(times))
        night, permanent = alert_topic_of(batch.jd, batch.programid), PERMANENT.get(batch.programid)
        light = LIGHT.get(batch.programid)
        alerts = []
        for item in batch.items:
            candid = int(item.candidate["candid"])
            key = str(candid).encode()
            try:
                record = checked_packet(item, batch, times)
                packet, slim = packet_pair(record)
            except AlertError as error:
                self._refused(message, candid, error)
                continue
            alerts.append(AlertOut(night, key, packet, candid, headers))
            if permanent:
                alerts.append(AlertOut(permanent, key, packet, candid, headers))
            if light:
                alerts.append(AlertOut(light, str(item.object_id).encode(), slim, candid, headers))
        return alerts


class LateNights:
    """Whether a night was closed, asked for at most every five seconds; Redis failing is no reason to wait."""

    PATIENCE = 5.0

    def __init__(self, closed: Callable[[str], bool]) -> None:
        self._closed = closed
        self._known: dict[str, tuple[float, bool]] = {}

    def __call__(self, night: str) -> bool:
        """Whether it was closed."""
        asked, answer = self._known.get(night, (float("-inf"), False))
        if time.monotonic() - asked > self.PATIENCE:
            with suppress(redis.RedisError):
                answer = self._closed(night)
            self._known[night] = time.monotonic(), answer
        return answer


def refusals(sender: Sender, settings: Settings, clock: Callable[[], float] = time.time) -> Refused:
    """A ``refused`` that writes a dead letter, confirmed before the batch goes on."""

    def refused(message: RawMessage, candid: int, error: AlertError) -> None:
        letter = deadletters.letter_of_message(
            message, error, worker="emit", now=clock(), limit=settings.deadletter_value_bytes, stage="alert"
        )
        sender.send(deadletters.encode(replace(letter, id=f"candid-{candid}")))
        sender.flush()

    return refused
