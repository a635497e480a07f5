"""The emitter's function: a message of ``ztf.enriched`` to the packets that leave."""

from __future__ import annotations

import time
from collections.abc import Callable

from stream.alert import decode_batch, emit_packet
from stream.core.identity import alert_topic_of
from stream.engine import ledger
from stream.engine.emit import AlertOut
from stream.engine.kafka import RawMessage, encode_headers


class MakeAlerts:
    """Callable for ``Emitter``: the alerts of one enriched batch, in its order."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def __call__(self, message: RawMessage) -> list[AlertOut]:
        """Packets with their topic and key; ``AlertError`` where one would break the brokers' rules."""
        batch = decode_batch(message.value)
        times = {**ledger.read(message.headers), "published": self._clock()}
        topic = alert_topic_of(batch.jd, batch.programid)
        headers = (*encode_headers({"name": batch.name, "pid": batch.pid}), *ledger.encode(times))
        alerts = []
        for item in batch.items:
            candid = int(item.candidate["candid"])
            packet = emit_packet(item, batch, times)
            alerts.append(AlertOut(topic, str(candid).encode(), packet, candid, headers))
        return alerts
