"""What moves, for subscribers: Avro containers that carry their schema, as the alerts do.

``ztf.movers`` has one tracklet a message, ``ztf.streaks.public`` the streaks of one quadrant. Both are sent at least
once under their identifier: a repeat, or an object that was seen again, replaces what was sent before.
"""

from __future__ import annotations

from dataclasses import fields

from stream.alert.avro import compile_encoder
from stream.alert.codec import StreakBatch
from stream.alert.packet import container, plain
from stream.alert.schema import OURS, field_names, schema_text
from stream.core.records import Row, Tracklet

MOVER, STREAKS = "ztf.public.mover", "ztf.public.streaks"
PUBLIC_PROGRAM = 1


def mover_packet(tracklet: Tracklet) -> bytes:
    """A moving object. The caller answers for its detections being public."""
    row: Row = {name: plain(getattr(tracklet, name)) for name in field_names(MOVER)}
    row["candids"] = [int(candid) for candid in tracklet.candids]
    return container(schema_text(OURS, MOVER), compile_encoder(OURS, MOVER)(row))


def streaks_packet(batch: StreakBatch) -> bytes | None:
    """The streaks of a quadrant; ``None`` where there are none or their exposure is not public."""
    if batch.programid != PUBLIC_PROGRAM or not batch.streaks:
        return None
    row: Row = {name: getattr(batch, name) for name in field_names(STREAKS)}
    row["streaks"] = [{f.name: plain(getattr(s, f.name)) for f in fields(s)} for s in batch.streaks]
    return container(schema_text(OURS, STREAKS), compile_encoder(OURS, STREAKS)(row))
