"""What the emitter keeps with its committed offsets: how far the alert topics reached, for its successor to read on."""

from __future__ import annotations

import json
from collections.abc import Mapping

# Kafka refuses commit metadata above 4096 bytes (offset.metadata.max.bytes).
METADATA_BYTES = 3_800

Ends = dict[str, dict[int, int]]  # topic -> partition -> offset after the last message


def encode_ends(ends: Mapping[str, Mapping[int, int]], limit: int = METADATA_BYTES) -> str:
    """Ends of topics as commit metadata. ``ends`` is oldest first; the oldest are left out if there is no room.

    A topic that is left out is scanned from its beginning should it be needed: slower, not wrong.
    """
    kept: dict[str, list[int]] = {}
    for topic in reversed(list(ends)):
        partitions = ends[topic]
        kept[topic] = [partitions.get(i, 0) for i in range(max(partitions, default=-1) + 1)]
        if len(json.dumps(kept, separators=(",", ":"))) > limit:
            del kept[topic]
            break
    return json.dumps(dict(reversed(list(kept.items()))), separators=(",", ":"))


def decode_ends(metadata: str | None) -> Ends | None:
    """Ends of topics from commit metadata; ``None`` when it is none of ours."""
    try:
        content = json.loads(metadata or "")
        return {topic: {i: int(end) for i, end in enumerate(ends)} for topic, ends in content.items()}
    except (ValueError, AttributeError, TypeError):
        return None


def positions_to_commit(
    positions: Mapping[int, int], goals: Mapping[int, int], bases: Mapping[int, Ends], ends: Ends
) -> dict[int, tuple[int, Ends]]:
    """Offset and ends to be committed for each assigned partition.

    Parameters
    ----------
    positions : mapping
        Partition to the offset after its last finished message.
    goals : mapping
        Partition to its end when it was assigned: up to there a predecessor may have sent alerts.
    bases : mapping
        Partition to the ends in its last commit before it was assigned.
    ends : mapping
        Today's ends of the alert topics.
    """
    return {p: (at, ends if at >= goals[p] else bases[p]) for p, at in positions.items()}
