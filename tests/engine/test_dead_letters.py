"""Dead letters: what they say, and sending the original again."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream.cli.deadletter import app
from stream.core.errors import AstrometryError, MessageError, PacketError, UsageError
from stream.engine import deadletters
from stream.engine.deadletters import (
    decode,
    encode,
    letter_of_file,
    letter_of_message,
    list_letters,
    original_message,
    retry_letter,
    show_letter,
)
from stream.engine.kafka import OutMessage, RawMessage, Sender, make_producer, read_to_end

RUN = CliRunner()


def plain(message: RawMessage, limit: int = 1000, error: Exception | None = None):
    return letter_of_message(message, error or AstrometryError("no stars", n_stars=3), worker="w", now=5.0, limit=limit)


@given(
    st.binary(max_size=50),
    st.none() | st.binary(max_size=9),
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.binary(max_size=9))),
)
def test_a_letter_keeps_its_original_to_the_byte(value, key, headers):
    message = RawMessage("t", 1, 2, key, value, tuple(headers))
    letter = plain(message)
    assert decode(encode(letter).value) == letter
    back = original_message(None, letter)
    assert (back.topic, back.partition, back.key, back.value, back.headers) == ("t", 1, key, value, tuple(headers))


def test_a_letter_says_what_why_and_what_to_do():
    message = RawMessage("ztf.raw", 5, 77, b"5", b"x" * 2000, (("name", b"ztf_q1"), ("pid", b"123"), ("attempt", b"2")))
    letter = plain(message, error=AstrometryError("no stars", n_stars=3, odd=object(), snr=float("nan")))
    assert (letter.id, letter.stage, letter.error, letter.reason) == (
        "ztf.raw-5-77", "astrometry", "AstrometryError", "no stars",
    )  # fmt: skip
    assert letter.value is None
    assert letter.value_bytes == 2000
    assert letter.attempts == 3
    assert letter.context["n_stars"] == 3
    assert letter.context["snr"] is None
    assert letter.context["pid"] == "123"
    assert "retry" in letter.what_to_do
    json.loads(encode(letter).value, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_second_failure_is_the_same_letter():
    message = RawMessage("ztf.raw", 5, 900, None, b"", ((deadletters.ORIGIN, b"ztf.raw-5-77"),))
    assert plain(message).id == "ztf.raw-5-77"


def test_a_file_is_no_message():
    letter = letter_of_file("n.fits", "/in/n.fits", "ab" * 32, PacketError("cut short"), worker="ingest", now=1.0)
    with pytest.raises(UsageError, match=r"/in/n\.fits.*ingest"):
        original_message(None, letter)


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"id": 1, "more": 2}', b"\xff"])
def test_what_is_no_letter_is_told(value):
    with pytest.raises(MessageError):
        decode(value)


@pytest.fixture
def letters(settings, prefix, make_topic):
    """A topic with a small and a large message, and their letters."""
    make_topic("ztf.deadletters", 4)
    source = make_topic(f"{prefix}.in", 2)
    sender = Sender(make_producer(settings, "test"))
    sent = [
        RawMessage(source, 1, 0, b"k1", b"small", (("name", b"one"),)),
        RawMessage(source, 1, 1, b"k2", bytes(5000), (("name", b"two"),)),
    ]
    for m in sent:
        sender.send(OutMessage(m.topic, m.key, m.value, m.headers, m.partition))
    sender.send(OutMessage(deadletters.TOPIC, b"?", b"no letter at all"))
    made = [plain(m) for m in sent]
    for letter in made:
        sender.send(encode(letter))
    sender.flush()
    return made


@pytest.mark.services
def test_list_show_retry(settings, prefix, letters):
    small, large = letters
    mine = [x for x in list_letters(settings) if x.topic == small.topic]
    assert sorted(mine, key=lambda x: x.offset) == letters
    assert show_letter(settings, small.id) == small
    assert not [x for x in list_letters(settings, stage="ingest") if x.topic == small.topic]

    for letter in letters:
        retry_letter(settings, letter.id)
    assert not [x for x in list_letters(settings) if x.topic == small.topic]
    again = [m for m in read_to_end(settings, {small.topic: {}}, "test") if m.header("attempt")]
    assert [(m.partition, m.key, m.value) for m in again] == [(1, b"k1", b"small"), (1, b"k2", bytes(5000))]
    assert [(m.header("name"), m.header("attempt"), m.header("deadletter")) for m in again] == [
        ("one", "1", small.id), ("two", "1", large.id),
    ]  # fmt: skip

    # It fails once more: the letter is open again and counts on.
    sender = Sender(make_producer(settings, "test"))
    sender.send(encode(plain(again[0])))
    sender.flush()
    reopened = show_letter(settings, small.id)
    assert (reopened.state, reopened.attempts) == ("open", 2)
    retry_letter(settings, small.id)
    last = list(read_to_end(settings, {small.topic: {}}, "test"))[-1]
    assert (last.header("attempt"), last.value) == ("2", b"small")


@pytest.mark.services
def test_an_original_that_is_gone_is_told(settings, letters):
    from confluent_kafka import TopicPartition

    from stream.engine.kafka import make_admin

    large = letters[1]
    admin = make_admin(settings)
    for future in admin.delete_records([TopicPartition(large.topic, 1, 2)]).values():
        future.result(30)
    with pytest.raises(UsageError, match="no longer"):
        retry_letter(settings, large.id)
    assert show_letter(settings, large.id).state == "open"


@pytest.mark.services
def test_unknown_and_ambiguous_ids_are_told(settings, letters):
    with pytest.raises(UsageError, match="no dead letter"):
        show_letter(settings, "nothing-like-it")
    with pytest.raises(UsageError, match="2 dead letters"):
        show_letter(settings, letters[0].topic)


@pytest.mark.services
def test_the_commands(settings, letters, monkeypatch):
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    small, large = letters
    rows = [json.loads(line) for line in RUN.invoke(app, ["list", "--json"]).stdout.splitlines()]
    mine = {row["id"]: row for row in rows if row["topic"] == small.topic}
    assert set(mine) == {small.id, large.id}
    assert "value" not in mine[small.id]
    assert "reason" in RUN.invoke(app, ["list"]).stdout
    shown = RUN.invoke(app, ["show", small.id]).stdout
    assert "no stars" in shown
    assert re.search(r"what to do +\w", shown)
    assert base64.b64decode(json.loads(RUN.invoke(app, ["show", small.id, "--json"]).stdout)["value"]) == b"small"
    told = RUN.invoke(app, ["retry", small.id, "unknown-id", "--json"])
    assert told.exit_code == 1
    assert [json.loads(line)["state"] for line in told.stdout.splitlines()] == ["retried", "failed"]
    assert RUN.invoke(app, ["retry", large.id]).exit_code == 0
    assert RUN.invoke(app, ["retry"]).exit_code != 0
    told = RUN.invoke(app, ["list", "--all", "--json"]).stdout
    states = {row["id"]: row["state"] for row in map(json.loads, told.splitlines())}
    assert states[small.id] == states[large.id] == "retried"
