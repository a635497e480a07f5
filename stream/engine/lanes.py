"""Two lanes for raw quadrants: under overload the newest public exposures go first, and nothing is dropped.

The policy: a quadrant that has waited too long while newer ones of its channel wait behind it steps aside, into
``ztf.raw.backlog``; quadrants of the public survey have more patience than the others. The backlog is worked off,
oldest first, whenever a worker finds its part of ``ztf.raw`` empty. Stepping aside is a transaction like any other
result: the quadrant is on one of the two topics, never on both or none. While the backlog is full nobody steps aside;
then ``ztf.raw`` fills up and ingest waits, as without lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from stream.engine.config import Settings
from stream.engine.kafka import OutMessage, RawMessage, make_admin, translated
from stream.engine.lag import GroupOffsets, behind

BACKLOG = "ztf.raw.backlog"
MOVED = "moved"  # header of a quadrant in the backlog: where it stepped aside
PUBLIC = "1"


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds that a quadrant waits before newer ones may pass, and how many of them must be there."""

    public_seconds: float
    other_seconds: float
    newer: int

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """As configured."""
        return cls(settings.overtake_public_seconds, settings.overtake_other_seconds, settings.overtake_newer)


def steps_aside(waited: float, newer: int, public: bool, room: bool, policy: Policy) -> bool:
    """Whether a quadrant lets newer ones pass.

    Parameters
    ----------
    waited : float
        Seconds since it was put on ``ztf.raw``.
    newer : int
        Quadrants of its channel that wait behind it.
    public : bool
        Of the public survey.
    room : bool
        Whether the backlog takes another one.
    """
    patience = policy.public_seconds if public else policy.other_seconds
    return room and newer >= policy.newer and waited > patience


class Lanes:
    """The backlog as a worker meets it."""

    def __init__(self, settings: Settings, group: str, topic: str = BACKLOG) -> None:
        self.topic = topic
        self.policy = Policy.of(settings)
        self._offsets = GroupOffsets(settings, group)
        self._most = settings.raw_backlog
        self._admin: AdminClient = make_admin(settings)
        with translated("looking at the backlog"):
            metadata = self._admin.list_topics(topic, timeout=15.0).topics[topic]
        self._partitions = 0 if metadata.error is not None else len(metadata.partitions)

    @property
    def usable(self) -> bool:
        """Whether this broker has the backlog's topic; without it there is one lane."""
        return self._partitions > 0

    def aside(self, message: RawMessage, newer: int, now: float) -> OutMessage | None:
        """The message as it steps aside; ``None`` if it does not."""
        waited, public = now - message.timestamp, message.header("programid") == PUBLIC
        if not steps_aside(waited, newer, public, True, self.policy):
            return None  # the usual case, without asking the broker anything
        partition = message.partition % self._partitions
        if not steps_aside(waited, newer, public, self._has_room(partition), self.policy):
            return None
        where = f"{message.topic}[{message.partition}]@{message.offset}".encode()
        return OutMessage(self.topic, message.key, message.value, (*message.headers, (MOVED, where)), partition)

    def empty(self, places: Sequence[TopicPartition]) -> bool:
        """Whether the broker has nothing for the group in these partitions."""
        return not places or not any(behind(self._admin, self._offsets, places).values())

    def _has_room(self, partition: int) -> bool:
        if not self._most:
            return True
        place = TopicPartition(self.topic, partition)
        # Every message that steps aside is a transaction, whose marker takes up an offset of its own (a moment later).
        return (behind(self._admin, self._offsets, [place])[self.topic, partition] + 1) // 2 < self._most
