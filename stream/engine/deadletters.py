"""Dead letters: what could not be processed, why, and the way to try again.

A letter is a JSON message on ``ztf.deadletters`` keyed by its id. The id follows from where the original lies, so
that a letter written twice (a crash, a second attempt that fails as well) is one letter. The last record of an id
counts: ``open`` until it was sent again, then ``retried``, and ``open`` once more if that failed too.
"""

from __future__ import annotations

import base64
import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from confluent_kafka import TopicPartition

from stream.core.errors import MessageError, Permanent, UsageError
from stream.engine.config import Settings
from stream.engine.kafka import (
    OutMessage,
    RawMessage,
    Sender,
    make_consumer,
    make_producer,
    raw_message,
    read_to_end,
    translated,
)

TOPIC = "ztf.deadletters"
ATTEMPT = "attempt"  # header of a message that was sent again: how many times it was tried before
ORIGIN = "deadletter"  # header: id of the letter it was sent again from
_TRACEBACK_CHARS = 8_000
_REASON_CHARS = 4_000

_ADVICE = {
    "ingest": "The packet breaks the format. Get it again from the camera computer, then 'ztf-stream ingest FILE'.",
    "calibrate": "Look at the raw pixels and the calibration frames of that night; after a repair retry this letter.",
    "astrometry": "Clouds, a wrong pointing or missing catalogue tiles; import the tiles if so, then retry.",
    "photometry": "Too few usable stars: clouds or a bad PSF. Retry after importing missing PS1 tiles.",
    "subtract": "Look at the reference of that field and quadrant; rebuild it if it is bad, then retry.",
    "message": "A message of another software version? Upgrade the reader or writer, then retry.",
    "alert": "The alert would break the brokers' rules: a defect of ours. Fix it, then retry.",
    "crash": "The worker's process died on this input each time (memory, native code). Run it with "
    "'ztf-stream process' to see it; after a fix retry.",
    "unknown": "A defect of ours: see the traceback. After the fix retry this letter.",
}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One thing that was given up.

    ``topic``, ``partition``, ``offset`` say where the original message lies (topic empty: it was a file, see
    ``context``). ``value`` is its value in base64 where it was small enough, else ``None``; ``headers`` are text
    (latin-1, which keeps every byte). ``time`` (of the failure) and ``retried`` are unix seconds.
    """

    id: str
    time: float
    stage: str
    error: str
    reason: str
    what_to_do: str
    context: dict[str, Any]
    traceback: str
    worker: str
    topic: str = ""
    partition: int = -1
    offset: int = -1
    key: str | None = None
    headers: list[list[str]] = field(default_factory=list)
    value: str | None = None
    value_bytes: int = 0
    attempts: int = 1
    state: str = "open"
    retried: float | None = None


def _scalars(context: Mapping[str, Any]) -> dict[str, Any]:
    """A context that JSON can carry: what is no plain scalar becomes text."""
    plain = (str, int, float, bool, type(None))
    out = {name: value if isinstance(value, plain) else str(value) for name, value in context.items()}
    return {name: (None if isinstance(value, float) and value != value else value) for name, value in out.items()}


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-_TRACEBACK_CHARS:]


def letter_of_message(
    message: RawMessage, error: BaseException, *, worker: str, now: float, limit: int, stage: str = ""
) -> DeadLetter:
    """The letter for a message that ``error`` made impossible.

    ``stage`` overrides the error's own; an error that is not of our family is a defect, its stage ``unknown``.
    """
    stage = stage or (error.stage if isinstance(error, Permanent) else "unknown")
    origin = message.header(ORIGIN)
    context = _scalars(error.context) if isinstance(error, Permanent) else {}
    for name in ("name", "rid", "pid"):
        value = message.header(name)
        if value is not None:
            context.setdefault(name, value)
    return DeadLetter(
        id=origin or f"{message.topic}-{message.partition}-{message.offset}",
        time=now,
        stage=stage,
        error=type(error).__name__,
        reason=str(error)[:_REASON_CHARS],
        what_to_do=_ADVICE.get(stage, _ADVICE["unknown"]),
        context=context,
        traceback=_trace(error),
        worker=worker,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=None if message.key is None else message.key.decode("latin-1"),
        headers=[[key, value.decode("latin-1")] for key, value in message.headers],
        value=base64.b64encode(message.value).decode() if len(message.value) <= limit else None,
        value_bytes=len(message.value),
        attempts=int(message.header(ATTEMPT) or 0) + 1,
    )


def letter_of_file(
    name: str, path: str, sha256: str, error: BaseException, *, worker: str, now: float, number: int = 0
) -> DeadLetter:
    """The letter for a packet file, or for one extension of it (``number`` tells several of one file apart)."""
    stage = error.stage if isinstance(error, Permanent) else "ingest"
    context = _scalars(error.context) if isinstance(error, Permanent) else {}
    return DeadLetter(
        id=f"file-{name}-{sha256[:12]}-{number}",
        time=now,
        stage=stage,
        error=type(error).__name__,
        reason=str(error)[:_REASON_CHARS],
        what_to_do=_ADVICE.get(stage, _ADVICE["ingest"]),
        context={**context, "file": path, "sha256": sha256},
        traceback=_trace(error),
        worker=worker,
    )


def encode(letter: DeadLetter) -> OutMessage:
    """The letter as a message."""
    value = json.dumps(asdict(letter), allow_nan=False).encode()
    return OutMessage(TOPIC, letter.id.encode(), value, (("stage", letter.stage.encode()),))


def decode(value: bytes) -> DeadLetter:
    """A letter from its message; ``MessageError`` if it is none."""
    try:
        return DeadLetter(**json.loads(value))
    except (ValueError, TypeError) as error:
        raise MessageError(f"not a dead letter: {error}") from error


def _scan(settings: Settings) -> dict[str, DeadLetter]:
    """The last record of every id on the topic, oldest letter first. A record that is no letter is passed over."""
    last: dict[str, DeadLetter] = {}
    for message in read_to_end(settings, {TOPIC: {}}, "deadletter"):
        try:
            letter = decode(message.value)
        except MessageError:
            continue
        last[letter.id] = letter
    return dict(sorted(last.items(), key=lambda item: (item[1].time, item[0])))


def list_letters(settings: Settings, *, everything: bool = False, stage: str = "") -> list[DeadLetter]:
    """The open letters, oldest first; with ``everything`` also those that were sent again. Optionally of one stage."""
    letters = _scan(settings).values()
    return [x for x in letters if (everything or x.state == "open") and (not stage or x.stage == stage)]


def show_letter(settings: Settings, letter_id: str) -> DeadLetter:
    """One letter by its id (or the unambiguous beginning of it)."""
    letters = list_letters(settings, everything=True)
    found = [x for x in letters if x.id == letter_id] or [x for x in letters if x.id.startswith(letter_id)]
    if len(found) != 1:
        what = "no dead letter" if not found else f"{len(found)} dead letters"
        raise UsageError(f"{what} with the id {letter_id!r}: see 'ztf-stream deadletter list --all'")
    return found[0]


def original_message(settings: Settings, letter: DeadLetter) -> RawMessage:
    """The message that a letter is about: from the letter itself, or read from where it lies.

    Raises
    ------
    UsageError
        It was a file, or the topic's retention has deleted it.
    """
    if not letter.topic:
        raise UsageError(
            f"{letter.id} was the file {letter.context.get('file')}: repair or fetch it, then 'ztf-stream ingest' it"
        )
    headers = tuple((key, value.encode("latin-1")) for key, value in letter.headers)
    key = None if letter.key is None else letter.key.encode("latin-1")
    if letter.value is not None:
        return RawMessage(letter.topic, letter.partition, letter.offset, key, base64.b64decode(letter.value), headers)
    consumer = make_consumer(settings, f"{settings.group_prefix}-deadletter-fetch", "deadletter")
    place = TopicPartition(letter.topic, letter.partition, letter.offset)
    try:
        with translated(f"reading {letter.topic}"):
            low, high = consumer.get_watermark_offsets(place, timeout=15.0)
            if not low <= letter.offset < high:
                raise UsageError(
                    f"{letter.id}: the original ({letter.value_bytes} bytes) is no longer on {letter.topic}, its "
                    "retention has deleted it. Send the packet again with 'ztf-stream ingest --again FILE'"
                )
            consumer.assign([place])
            message = consumer.poll(30.0)
        if message is None:
            raise UsageError(f"{letter.id}: {letter.topic} gave nothing within 30 s; try again")
        found = raw_message(message)
    finally:
        consumer.close()
    if found.offset != letter.offset:
        raise UsageError(f"{letter.id}: the original is gone from {letter.topic}[{letter.partition}]@{letter.offset}")
    return found


def retry_letter(settings: Settings, letter_id: str) -> DeadLetter:
    """Send the original of a letter to its topic again, and note that; both or neither, in one transaction.

    The message carries its letter's id and the number of attempts, so that a second failure updates the letter.
    """
    letter = show_letter(settings, letter_id)
    message = original_message(settings, letter)
    kept = tuple((key, value) for key, value in message.headers if key not in (ATTEMPT, ORIGIN))
    headers = (*kept, (ATTEMPT, str(letter.attempts).encode()), (ORIGIN, letter.id.encode()))
    again = OutMessage(letter.topic, message.key, message.value, headers, letter.partition)
    done = replace(letter, state="retried", retried=time.time())
    producer = make_producer(settings, "deadletter", transactional_id=f"{settings.group_prefix}-deadletter-retry")
    sender = Sender(producer)
    with translated("sending a dead letter again"):
        producer.init_transactions(30.0)
        producer.begin_transaction()
        sender.send(again)
        sender.send(encode(done))
        sender.flush()
        producer.commit_transaction(30.0)
    return done
