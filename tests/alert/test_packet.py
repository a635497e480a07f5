"""The packet: bytes that brokers' readers take, real packets through our records and back, rules one by one."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import alert_samples as samples
import avro.datafile
import avro.io
import avro.schema
import fastavro
import numpy as np
import pytest
from astropy.io import fits

from stream.alert import (
    EXTENSION_FIELDS,
    LEDGER,
    build_packet,
    checked_packet,
    convert_packet,
    convert_record,
    emit_packet,
    from_candidate,
    load_schema,
    make_batch,
    packet_header,
    packet_pair,
    packet_problems,
    read_head,
    read_packet,
    read_packets,
    reader_schema,
    schema_text,
    split_header,
    write_packet,
    writer_schema,
    writer_schema_text,
)
from stream.alert.schema import known_versions, schema_files
from stream.alert.synthetic import synthetic_batch
from stream.core.errors import AlertError, MessageError, UsageError
from stream.core.records import Candidate, Exposure, Quadrant, Stamps

REAL_FOLDERS = ("boom", "kowalski", "ztf-avro-alert")


def our_packet(**ledger: float) -> bytes:
    item = samples.item()
    return emit_packet(item, samples.batch(item), ledger)


def real_packets(real_data: Path) -> list[Path]:
    return [path for folder in REAL_FOLDERS for path in sorted((real_data / "alerts" / folder).glob("*.avro"))]


# -- schema ------------------------------------------------------------------------------------------------------------


def test_official_schema_is_that_of_a_real_packet(real_data: Path) -> None:
    with (real_data / "alerts/boom/2695378462115010012.avro").open("rb") as file:
        real = fastavro.parse_schema(fastavro.reader(file).writer_schema)
    assert fastavro.schema.to_parsing_canonical_form(real) == fastavro.schema.to_parsing_canonical_form(reader_schema())
    docs = [(f["name"], f.get("doc"), f.get("default", "none")) for f in real["fields"]]
    assert docs == [
        (f["name"], f.get("doc"), f.get("default", "none"))
        for f in json.loads(schema_text("ztf/4.02", "ztf.alert"))["fields"]
    ]


def test_ours_is_the_survey_s_plus_one_nullable_record_at_the_end() -> None:
    survey, ours = (json.loads(schema_text(v, "ztf.alert")) for v in ("ztf/4.02", "zsds/1"))
    assert ours["fields"][:-1] == survey["fields"]
    assert {k: v for k, v in ours.items() if k != "fields"} == {k: v for k, v in survey.items() if k != "fields"}
    last = ours["fields"][-1]
    assert (last["name"], last["type"][0], last["default"]) == ("zsds", "null", None)
    for field in last["type"][1]["fields"]:
        assert field["type"][0] == "null"
        assert field["type"][1] in ("int", "long", "float", "double", "string")
        assert field["default"] is None
        assert field["null"]  # says what its absence means
    packed = json.loads(writer_schema_text())["fields"][-1]["type"][1]["fields"]
    assert all("; null: " in field["doc"] for field in packed)
    for record in ("candidate", "prv_candidate", "fp_hist", "cutout"):
        assert schema_files("zsds/1")[f"ztf.alert.{record}"] == schema_files("ztf/4.02")[f"ztf.alert.{record}"]


def test_every_schema_parses_in_both_libraries() -> None:
    for version in known_versions():
        for name in schema_files(version):
            assert load_schema(version, name)["type"] == "record"
            avro.schema.parse(schema_text(version, name))


def test_unknown_schemas_are_named() -> None:
    with pytest.raises(UsageError, match=r"zsds/1, ztf/4\.02"):
        schema_text("zsds/99", "ztf.alert")
    with pytest.raises(UsageError, match=r"ztf\.alert"):
        schema_text("zsds/1", "ztf.nothing")


# -- our packets in everybody's readers --------------------------------------------------------------------------------


def test_fastavro_reads_it_plain_and_with_the_official_schema() -> None:
    packet = our_packet(published=1.5e9)
    (plain,) = fastavro.reader(io.BytesIO(packet))
    assert plain["zsds"]["published"] == 1.5e9
    (official,) = fastavro.reader(io.BytesIO(packet), reader_schema())
    assert "zsds" not in official
    assert official == {k: v for k, v in plain.items() if k != "zsds"}


def test_apache_avro_reads_it_with_the_official_schema() -> None:
    packet = our_packet()
    official = avro.schema.parse(schema_text("ztf/4.02", "ztf.alert"))
    with avro.datafile.DataFileReader(io.BytesIO(packet), avro.io.DatumReader(None, official)) as reader:
        assert reader.schema == writer_schema_text()
        (record,) = list(reader)
    (wanted,) = fastavro.reader(io.BytesIO(packet), reader_schema())
    assert record == wanted


def test_fastavro_would_write_the_same_bytes() -> None:
    record = read_packet(our_packet())
    by_library = io.BytesIO()
    sync = packet_header()[-16:]
    fastavro.writer(by_library, writer_schema(), [record], codec="null", sync_marker=sync)
    datum = io.BytesIO()
    fastavro.schemaless_writer(datum, writer_schema(), record)
    assert write_packet(record).endswith(datum.getvalue() + sync)
    assert by_library.getvalue().endswith(datum.getvalue() + sync)


def test_every_packet_starts_with_the_same_bytes_and_holds_one_block() -> None:
    item, other = samples.item(), samples.item(4, positive=False)
    packets = [emit_packet(i, samples.batch(i), {}) for i in (item, other)]
    metadata, start = split_header(packets[0])
    assert packets[0][:start] == packets[1][:start] == packet_header()
    assert metadata["avro.codec"] == b"null"
    blocks = list(fastavro.block_reader(io.BytesIO(packets[0])))
    assert [block.num_records for block in blocks] == [1]
    assert our_packet() == our_packet()


def test_stamps_are_read_as_boom_and_astropy_read_them() -> None:
    record = read_packet(our_packet())
    data = record["cutoutScience"]["stampData"]
    raw = gzip.decompress(data)
    pixels = np.frombuffer(raw[2880 : 2880 + 4 * 63 * 63], ">f4").reshape(63, 63)
    np.testing.assert_array_equal(pixels, samples.stamp(1))
    with fits.open(io.BytesIO(raw)) as hdus:
        hdus.verify("exception")
        np.testing.assert_array_equal(hdus[0].data, samples.stamp(1))


def test_ledger_and_middle_of_exposure_are_in_the_extension() -> None:
    item = samples.item()
    times = {stage: 1.5e9 + i for i, stage in enumerate(LEDGER)}
    extension = read_packet(emit_packet(item, samples.batch(item), times))["zsds"]
    assert {stage: extension[stage] for stage in LEDGER} == times
    assert extension["jdmid"] == samples.JD + 15 / 86400
    assert extension["maskbits"] == 32768
    assert tuple(extension) == EXTENSION_FIELDS
    with pytest.raises(AlertError, match="lunch"):
        build_packet(item, samples.batch(item), {"lunch": 1.0})


def test_empty_histories_are_null() -> None:
    item = replace(samples.item(), prv_candidates=[], fp_hists=None)
    record = read_packet(emit_packet(item, samples.batch(item), {}))
    assert record["prv_candidates"] is None
    assert record["fp_hists"] is None


def test_rows_that_brokers_cannot_read_stay_out() -> None:
    far = samples.prv_row(samples.JD - 1, ra=150.0 + 2.0 / 3600)
    item = samples.item()
    history = [*(item.prv_candidates or []), far]
    forced = [samples.fp_row(samples.JD - 3, forcediffimflux=None), *(item.fp_hists or []), samples.fp_row(samples.JD)]
    record = build_packet(replace(item, prv_candidates=history, fp_hists=forced), samples.batch(item), {})
    assert record["prv_candidates"] == item.prv_candidates
    assert record["fp_hists"] == item.fp_hists
    assert packet_problems(record) == []


# -- from candidates ---------------------------------------------------------------------------------------------------


def some_candidate(**changes: Any) -> Candidate:
    item = samples.item()
    stamps = Stamps(samples.stamp(1), samples.stamp(2), samples.stamp(3))
    return Candidate({**item.candidate, **changes}, dict(item.extension), None, stamps)


def test_candidates_become_items_with_plain_values() -> None:
    item = from_candidate(some_candidate(sky=np.float32(1.5), chipsf=float("nan"), scorr=np.inf, nbad=np.int64(2)))
    assert (item.candidate["sky"], type(item.candidate["sky"])) == (1.5, float)
    assert item.candidate["chipsf"] is None
    assert item.candidate["scorr"] is None
    assert type(item.candidate["nbad"]) is int
    assert item.cutouts == samples.item().cutouts


def test_unknown_fields_and_missing_stamps_are_refused() -> None:
    with pytest.raises(AlertError, match="rb_new"):
        from_candidate(some_candidate(rb_new=1.0))
    bare = some_candidate()
    bare.stamps = None
    with pytest.raises(AlertError, match="stamps"):
        from_candidate(bare)


def test_batch_holds_the_sent_candidates_in_order() -> None:
    exposure = Exposure(
        "ztf_20181129523840_000651_zr_c03_o", "object", 651, 2, 3, 1, samples.JD, samples.JD + 1e-4, 30.0, 150.0, 20.0
    )
    candidates = [some_candidate(tblid=i) for i in range(3)]
    candidates[1].rejected = "shape"
    batch = make_batch(Quadrant(exposure, 1), candidates)
    assert [item.candidate["tblid"] for item in batch.items] == [0, 2]
    assert (batch.pid, batch.rcid, batch.name) == (samples.PID, 8, exposure.name + "_q1")


# -- real packets ------------------------------------------------------------------------------------------------------


def test_all_real_packets_come_through_our_records_and_writer_unchanged(real_data: Path) -> None:
    paths = real_packets(real_data)
    assert len(paths) == 64
    for path in paths:
        old = read_packet(path.read_bytes())
        item, batch = convert_packet(path.read_bytes())
        new = read_packet(write_packet(build_packet(item, batch, {})))
        for key in ("objectId", "candid", "cutoutScience", "cutoutTemplate", "cutoutDifference"):
            assert new[key] == old[key], path.name
        assert {k: new["candidate"][k] for k in old["candidate"]} == old["candidate"], path.name
        history, forced = list(old["prv_candidates"] or []), list(old.get("fp_hists") or [])
        if history and "forcediffimflux" in history[0]:  # schema 3.5 had forced points for a history
            history, forced = [], history
        for rows, key in ((history, "prv_candidates"), (forced, "fp_hists")):
            back = new[key] or []
            assert len(back) == len(rows), path.name
            for row, same in zip(rows, back, strict=True):
                assert {k: same[k] for k in row} == row, path.name
        assert new["publisher"] == old.get("publisher", new["publisher"])


def test_heads_of_real_packets(real_data: Path) -> None:
    for path in real_packets(real_data):
        data = path.read_bytes()
        head, whole = read_head(data), read_packet(data)
        assert head["candidate"] == whole["candidate"]
        assert head["objectId"] == whole["objectId"]


def test_real_packets_obey_the_rules(real_data: Path) -> None:
    for folder in ("boom", "kowalski"):
        for path in sorted((real_data / "alerts" / folder).glob("*.avro")):
            item, batch = convert_packet(path.read_bytes())
            assert packet_problems(build_packet(item, batch, {})) == [], path.name


def test_what_an_old_packet_did_not_say_is_marked_missing(real_data: Path) -> None:
    item, _ = convert_packet((real_data / "alerts/ztf-avro-alert/472263571115090000.avro").read_bytes())
    assert item.candidate["nmatches"] == -999
    assert item.candidate["drbversion"] == "null"
    assert item.candidate["drb"] is None


def test_conversion_refuses_what_is_no_alert_of_the_survey() -> None:
    record = read_packet(our_packet())
    with pytest.raises(MessageError, match="extra_field"):
        convert_record({**record, "candidate": {**record["candidate"], "extra_field": 1}})
    with pytest.raises(MessageError, match="candidate"):
        convert_record({"objectId": "x"})


# -- reading damaged bytes ---------------------------------------------------------------------------------------------


def test_damaged_packets_are_message_errors() -> None:
    packet = our_packet()
    start = len(packet_header())
    cases = [
        b"",
        b"Obj",
        b"Obj\x01",
        b"nonsense" * 9,
        packet[:-1],
        packet[: start + 100],
        packet[:start],
        packet + b"x",
    ]
    cases.append(packet[: start - 400] + packet[start:])
    cases.append(packet.replace(b'"type":"record"', b'"type":"rekord"'))
    for case in cases:
        with pytest.raises(MessageError):
            read_packet(case)
    for case in cases[:4]:
        with pytest.raises(MessageError):
            read_head(case)
    with pytest.raises(MessageError):
        read_head(packet[: start + 40])


def test_a_packet_holds_exactly_one_alert() -> None:
    packet = our_packet()
    two = packet + packet[len(packet_header()) :]
    assert len(list(read_packets(two))) == 2
    with pytest.raises(MessageError, match="found 2"):
        read_packet(two)


def test_other_codecs_are_read_too() -> None:
    record = read_packet(our_packet())
    deflated = io.BytesIO()
    fastavro.writer(deflated, writer_schema(), [record], codec="deflate")
    assert read_packet(deflated.getvalue()) == record


def test_values_that_do_not_fit_are_alert_errors() -> None:
    record = read_packet(our_packet())
    for path, value, words in (
        ("candidate.magpsf", "bright", "magpsf"),
        ("candidate.magpsf", None, "magpsf may not be null"),
        ("candidate.fid", 2**40, "fid"),
        ("candidate.candid", 2**70, "candid"),
        ("candidate.tblid", 1.5, "tblid"),
        ("candidate.sky", 1e300, "sky"),
        ("prv_candidates.0.rbversion", 5, "rbversion"),
        ("objectId", None, "objectId"),
    ):
        with pytest.raises(AlertError, match=words):
            write_packet(samples.changed(record, path, value))
    del record["candidate"]["rb"]
    with pytest.raises(AlertError, match="'rb' is missing"):
        write_packet(record)


def test_without_stamps_it_is_the_same_alert_in_the_same_schema():
    batch = synthetic_batch(2)
    record = checked_packet(batch.items[1], batch, {})
    whole, light = packet_pair(record)
    assert whole == write_packet(record)
    assert light == write_packet({**record, **dict.fromkeys(name for name in record if name.startswith("cutout"))})
    assert split_header(light)[0] == split_header(whole)[0]
    (read,) = fastavro.reader(io.BytesIO(light), reader_schema())
    (full,) = fastavro.reader(io.BytesIO(whole), reader_schema())
    stamps = {name for name in full if name.startswith("cutout")}
    assert len(stamps) == 3
    assert {read[name] for name in stamps} == {None}
    assert {k: v for k, v in read.items() if k not in stamps} == {k: v for k, v in full.items() if k not in stamps}
    assert len(light) < 0.7 * len(whole)
