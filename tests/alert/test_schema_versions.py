"""Schemas through time: what is published stays, every version reads every other, the page and the registry tell it."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import alert_samples as samples
import avro.io
import avro.schema
import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from hypothesis import given
from hypothesis import strategies as st
from test_packet import real_packets

from stream.alert import (
    convert_packet,
    decode_batch,
    decode_tracklet,
    emit_packet,
    encode_batch,
    encode_tracklet,
    frame_messages,
    load_schema,
    packet_header,
    read_packet,
    registry,
    schema_page,
    schema_text,
    split_header,
    wire,
    writer_schema_text,
)
from stream.alert.schema import OURS, known_versions, schema_files
from stream.core.records import Tracklet
from stream.engine.registry_server import make_server

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [
    (one, two)
    for versions in wire.subjects().values()
    for one, two in itertools.product(versions, repeat=2)
    if one.text != two.text
]


def record_of(one: wire.Registered) -> dict[str, Any]:
    """A record that an old or new writer of that schema may have written."""
    schema = load_schema(one.folder, one.subject)
    item = samples.item()
    if one.subject == "ztf.alert":
        whole = read_packet(emit_packet(item, samples.batch(item), {"published": 1.5e9}))
        return {field["name"]: whole[field["name"]] for field in schema["fields"]}
    raise AssertionError(f"{one.subject} has two versions now: give it a record here")


def by_fastavro(data: bytes, writer: str, reader: str) -> Any:
    parsed = [fastavro.parse_schema(json.loads(text)) for text in (writer, reader)]
    return fastavro.schemaless_reader(io.BytesIO(data), *parsed)


def by_apache(data: bytes, writer: str, reader: str) -> Any:
    parsed = [avro.schema.parse(text) for text in (writer, reader)]
    return avro.io.DatumReader(*parsed).read(avro.io.BinaryDecoder(io.BytesIO(data)))


def test_what_is_published_is_never_edited() -> None:
    published = json.loads(resources.files("schemas").joinpath("published.json").read_text("utf-8"))
    for folder, records in published.items():
        assert schema_files(folder).keys() == records.keys()
        for name, wanted in records.items():
            digest = hashlib.sha256(schema_text(folder, name).encode()).hexdigest()
            assert digest == wanted, f"{folder} {name} has been published: a change needs a folder of its own"


def test_there_are_versions_to_compare() -> None:
    assert {(a.folder, b.folder) for a, b in PAIRS} >= {("ztf/4.02", "zsds/1"), ("zsds/1", "ztf/4.02")}


@pytest.mark.parametrize(("writer", "reader"), PAIRS, ids=lambda one: f"{one.subject}-{one.folder}")
def test_every_version_reads_every_other_in_both_libraries(writer: wire.Registered, reader: wire.Registered) -> None:
    record, out = record_of(writer), io.BytesIO()
    fastavro.schemaless_writer(out, load_schema(writer.folder, writer.subject), record)
    read = by_fastavro(out.getvalue(), writer.text, reader.text)
    assert read == by_apache(out.getvalue(), writer.text, reader.text)
    assert {name: value for name, value in read.items() if name in record} == {
        name: value for name, value in record.items() if name in read
    }
    assert all(read[name] is None for name in read.keys() - record.keys())


def test_the_schema_in_a_packet_says_what_the_registered_one_says() -> None:
    packed, filed = json.loads(writer_schema_text()), json.loads(schema_text(OURS, "ztf.alert"))
    assert fastavro.schema.to_parsing_canonical_form(packed) == fastavro.schema.to_parsing_canonical_form(filed)
    assert packed["fields"][:-1] == filed["fields"][:-1]
    assert len(writer_schema_text()) < len(schema_text(OURS, "ztf.alert"))


def test_packets_of_every_old_version_are_read_today(real_data: Path) -> None:
    seen = set()
    for path in real_packets(real_data):
        old = read_packet(path.read_bytes())
        item, _ = convert_packet(path.read_bytes())
        seen.add(str(old.get("schemavsn")))
        assert item.candidate["candid"] == old["candid"]
        assert {name: item.candidate[name] for name in old["candidate"]} == old["candidate"]
    assert len(seen) >= 4


def test_readers_of_old_versions_read_our_packets(real_data: Path) -> None:
    item = samples.item()
    packet = emit_packet(item, samples.batch(item), {})
    body = io.BytesIO(packet[len(packet_header()) :])
    for _ in range(2):
        fastavro.schemaless_reader(body, "long")
    data, whole = body.read(), read_packet(packet)
    texts = {}
    for path in real_packets(real_data):
        metadata, _ = split_header(path.read_bytes())
        text = metadata["avro.schema"].decode()
        version = json.loads(text).get("version")
        # Before 3.0 fields had other names or types; nobody reads with those any more.
        if version and float(version) >= 3.2 and version != "3.5":
            texts[version] = text
    assert len(texts) >= 2
    for version, text in texts.items():
        read = by_fastavro(data, writer_schema_text(), text)
        assert read == by_apache(data, writer_schema_text(), text), version
        assert read["candidate"] == {name: whole["candidate"][name] for name in read["candidate"]}, version


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_is_current() -> None:
    current = (ROOT / "docs" / "schema.md").read_text("utf-8")
    assert current == schema_page.page(), "run `ztf-stream schemas page`"


def test_every_field_says_its_unit_null_source_and_example() -> None:
    for name in schema_page.PUBLISHED:
        rows = schema_page.describe(name)
        assert [row["field"] for row in rows] == [field["name"] for field in schema_files(OURS)[name]["fields"]]
        for row in rows:
            assert row["null means"]
            assert row["source"]
            assert row["unit"]
    for field in schema_files(OURS)["ztf.alert.zsds"]["fields"]:
        assert all(field[key] not in ("", None) for key in ("doc", "unit", "null", "source", "example"))
        assert isinstance(field["example"], str) == (field["type"][1] == "string")
    rows = {row["field"]: row for row in schema_page.describe("ztf.alert.candidate")}
    assert "14 px DIAMETER" in rows["magap"]["source"]
    assert rows["magap"]["unit"] == "mag"
    assert rows["sgscore2"]["example"] is not None


# -- the registry ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[SchemaRegistryClient]:
    with make_server("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield SchemaRegistryClient({"url": f"http://127.0.0.1:{server.server_port}"})
        server.shutdown()
        thread.join()


def test_a_registry_client_finds_every_schema(client: SchemaRegistryClient) -> None:
    assert client.get_subjects() == list(wire.subjects())
    for subject, versions in wire.subjects().items():
        assert client.get_versions(subject) == [one.version for one in versions]
        for one in versions:
            found = client.get_version(subject, one.version)
            assert (found.schema_id, found.version, found.schema.schema_str) == (one.id, one.version, one.text)
            assert client.get_schema(one.id).schema_str == one.text
        assert client.get_latest_version(subject).version == versions[-1].version
        looked_up = client.lookup_schema(subject, Schema(versions[-1].text, "AVRO"))
        assert looked_up.schema_id == versions[-1].id
    assert client.get_compatibility() == registry.COMPATIBILITY
    assert client.get_compatibility("ztf.alert") == registry.COMPATIBILITY


def test_what_is_not_there_or_would_write_is_refused(client: SchemaRegistryClient) -> None:
    for call, code in (
        (lambda: client.get_versions("ztf.nothing"), 40401),
        (lambda: client.get_version("ztf.alert", 99), 40402),
        (lambda: client.get_schema(1), 40403),
        (lambda: client.lookup_schema("ztf.alert", Schema('{"type":"string"}', "AVRO")), 40403),
        (lambda: client.register_schema("ztf.alert", Schema('{"type":"string"}', "AVRO")), 42205),
        (lambda: client.delete_subject("ztf.alert"), 42205),
    ):
        with pytest.raises(SchemaRegistryError) as caught:
            call()
        assert caught.value.error_code == code


@given(st.sampled_from(["GET", "POST", "PUT", "DELETE"]), st.text(max_size=30), st.binary(max_size=40))
def test_no_request_crashes_the_registry(method: str, path: str, body: bytes) -> None:
    for where in ("/" + path, "/subjects/" + path, "/schemas/ids/" + path, "/subjects/ztf.alert/versions/" + path):
        status, content = registry.answer(method, where, body)
        assert status in (200, 404, 405)
        json.dumps(content, allow_nan=False)


def test_identifiers_are_of_one_text_each() -> None:
    for number, ones in wire.by_id().items():
        assert 0 < number < 2**31
        assert len({one.text for one in ones}) == 1


# -- the wire format ---------------------------------------------------------------------------------------------------


@pytest.fixture
def framed() -> Iterator[None]:
    frame_messages(True)
    yield
    frame_messages(False)


def test_framed_messages_are_read_by_us_and_by_a_registry_s_client(framed: None, client: SchemaRegistryClient) -> None:
    tracklet = Tracklet(5, (5, 6, 9), 2458452.0, 1.0, 2.0, 0.25, 90.0, 0.125, 20.5, "20181129")
    message = encode_tracklet(tracklet)
    assert message[0] == 0
    assert decode_tracklet(message) == tracklet
    row = AvroDeserializer(client)(message, SerializationContext("ztf.tracklets", MessageField.VALUE))
    assert row["candids"] == [5, 6, 9]
    batch = samples.batch(samples.item())
    assert decode_batch(encode_batch(batch)) == batch


def test_both_forms_are_read_whatever_this_process_writes(framed: None) -> None:
    batch = samples.batch(samples.item())
    message = encode_batch(batch)
    frame_messages(False)
    plain = encode_batch(batch)
    assert message == wire.frame("ztf.internal.candidate_batch", plain)
    assert decode_batch(message) == decode_batch(plain) == batch


def test_public_packets_are_never_framed(framed: None) -> None:
    item = samples.item()
    assert emit_packet(item, samples.batch(item), {}).startswith(packet_header())


def test_every_folder_has_versions() -> None:
    assert {one.folder for versions in wire.subjects().values() for one in versions} == set(known_versions())
