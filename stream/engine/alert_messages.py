"""The emitter's function: a message of ``ztf.enriched`` to the packets that leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from stream.alert import decode_batch, emit_packet
from stream.core.errors import AlertError
from stream.core.identity import alert_topic_of
from stream.engine import deadletters, ledger
from stream.engine.config import Settings
from stream.engine.emit import AlertOut
from stream.engine.kafka import RawMessage, Sender, encode_headers

Refused = Callable[[RawMessage, int, AlertError], None]


class MakeAlerts:
    """Callable for ``Emitter``: the alerts of one enriched batch, in its order.

    Parameters
    ----------
    refused : callable
        Told (message, candid, error) of an alert that would break a rule that brokers rely on; the others of its
        batch leave all the same.
    """

    def __init__(self, refused: Refused, clock: Callable[[], float] = time.time) -> None:
        self._refused = refused
        self._clock = clock

    def __call__(self, message: RawMessage) -> list[AlertOut]:
        """Packets with their topic and key."""
        batch = decode_batch(message.value)
        times = {**ledger.read(message.headers), "published": self._clock()}
        topic = alert_topic_of(batch.jd, batch.programid)
        headers = (*encode_headers({"name": batch.name, "pid": batch.pid}), *ledger.encode(times))
        alerts = []
        for item in batch.items:
            candid = int(item.candidate["candid"])
            try:
                packet = emit_packet(item, batch, times)
            except AlertError as error:
                self._refused(message, candid, error)
                continue
            alerts.append(AlertOut(topic, str(candid).encode(), packet, candid, headers))
        return alerts


def refusals(sender: Sender, settings: Settings, clock: Callable[[], float] = time.time) -> Refused:
    """A ``refused`` that writes a dead letter, confirmed before the batch goes on."""

    def refused(message: RawMessage, candid: int, error: AlertError) -> None:
        letter = deadletters.letter_of_message(
            message, error, worker="emit", now=clock(), limit=settings.deadletter_value_bytes, stage="alert"
        )
        sender.send(deadletters.encode(replace(letter, id=f"candid-{candid}")))
        sender.flush()

    return refused
