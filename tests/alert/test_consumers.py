"""What the brokers' own code accepts and refuses, point by point (the project's ``consumers.md``), on packets that our
own pipeline wrote: a simulated night through ``process``, crowded and synthetic batches where a night has none."""

from __future__ import annotations

import ast
import gzip
import io
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import avro.datafile
import avro.io
import avro.schema
import fastavro
import numpy as np
import pytest
from astropy.io import fits
from nights import Processed

from stream.alert import (
    build_packet,
    emit_packet,
    load_schema,
    packet_header,
    packet_problems,
    read_packet,
    reader_schema,
    schema_text,
    split_header,
    stamp_names,
)
from stream.alert.synthetic import synthetic_batch
from stream.archive import ProductStore, iterate_packets
from stream.core import identity
from stream.core.camera import FULL, SMALL
from stream.core.identity import candid_of, expid_of, nid_of, pid_of, rid_of
from stream.engine.topics import load_topics

Record = dict[str, Any]
SENT_BY_BROKERS = {"coordinates", "classifications", "_id", "objectid", "cutouts", "cross_matches", "properties"}


@pytest.fixture(scope="module")
def packets(processed: Processed) -> list[bytes]:
    """Alerts as ``process`` wrote them, in time order, and a few of a night with a long history."""
    night = [packet for _, packet in iterate_packets(ProductStore(str(processed.store)))]
    batch = synthetic_batch(4)
    assert len(night) > 8
    return night + [emit_packet(item, batch, {"published": 1.6e9}) for item in batch.items]


@pytest.fixture(scope="module")
def records(packets: list[bytes]) -> list[Record]:
    return [read_packet(packet) for packet in packets]


def rows_of(record: Record) -> list[Record]:
    return record["prv_candidates"] or []


def points_of(record: Record) -> list[Record]:
    return record["fp_hists"] or []


def test_01_new_fields_only_at_the_end_of_the_top_record() -> None:
    ours, survey = (json.loads(schema_text(v, "ztf.alert")) for v in ("zsds/1", "ztf/4.02"))
    assert ours["fields"][: len(survey["fields"])] == survey["fields"]
    assert [f["name"] for f in ours["fields"][len(survey["fields"]) :]] == ["zsds"]


def test_02_new_fields_are_nullable_and_of_types_that_pass_everywhere() -> None:
    last = json.loads(schema_text("zsds/1", "ztf.alert"))["fields"][-1]
    assert (last["type"][0], last["default"]) == ("null", None)
    for field in last["type"][1]["fields"]:
        assert field["type"][0] == "null"
        assert field["type"][1] in ("double", "float", "long", "int", "string", "boolean")
        assert field["default"] is None
    names = {field["name"].lower() for field in last["type"][1]["fields"]} | {"zsds"}
    assert not names & SENT_BY_BROKERS


def test_03_names_and_versions(packets: list[bytes]) -> None:
    text = split_header(packets[0])[0]["avro.schema"].decode()
    schema = json.loads(text)
    assert (schema["namespace"], schema["name"], schema["version"]) == ("ztf", "alert", "4.02")
    full = set(re.findall(r'"namespace":"([\w.]+)","name":"(\w+)","type":"record"', text))
    assert {("ztf.alert", name) for name in ("candidate", "prv_candidate", "fp_hist", "cutout")} <= full
    assert {read_packet(packet)["schemavsn"] for packet in packets} == {"4.02"}


def test_04_types_and_unions_resolve_strictly_in_both_libraries(packets: list[bytes]) -> None:
    official = avro.schema.parse(schema_text("ztf/4.02", "ztf.alert"))
    for packet in packets[::4]:
        (one,) = fastavro.reader(io.BytesIO(packet), reader_schema())
        with avro.datafile.DataFileReader(io.BytesIO(packet), avro.io.DatumReader(None, official)) as reader:
            (two,) = list(reader)
        assert one == two
        assert "zsds" not in one
        assert isinstance(one["candidate"]["isdiffpos"], str)


def test_05_nullability_is_the_survey_s() -> None:
    for name in ("candidate", "prv_candidate", "fp_hist", "cutout"):
        ours, survey = (load_schema(v, f"ztf.alert.{name}") for v in ("zsds/1", "ztf/4.02"))
        assert [(f["name"], f["type"]) for f in ours["fields"]] == [(f["name"], f["type"]) for f in survey["fields"]]


def test_06_one_record_in_one_block_behind_the_same_header(packets: list[bytes]) -> None:
    offset = len(packet_header())
    for packet in packets:
        assert packet.startswith(packet_header())
        assert split_header(packet)[0]["avro.codec"] == b"null"
        (block,) = fastavro.block_reader(io.BytesIO(packet))
        assert block.num_records == 1
        # As boom does: from the remembered offset, past the block's count and size, without looking at the header.
        body = io.BytesIO(packet[offset:])
        for _ in range(2):
            fastavro.schemaless_reader(body, "long")
        assert fastavro.schemaless_reader(body, load_schema("zsds/1", "ztf.alert"))["candid"] == read_packet(packet)[
            "candid"
        ]  # fmt: skip


def test_07_all_top_keys_and_three_stamps(records: list[Record]) -> None:
    keys = [f["name"] for f in json.loads(schema_text("ztf/4.02", "ztf.alert"))["fields"]]
    for record in records:
        assert set(keys) <= record.keys()
        assert all(record[key]["stampData"] for key in keys if key.startswith("cutout"))


def test_08_stamps_as_boom_reads_them(records: list[Record]) -> None:
    for record in records:
        for key in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
            data = record[key]["stampData"]
            raw = gzip.decompress(data)
            assert data.count(b"\x1f\x8b\x08") >= 1
            with fits.open(io.BytesIO(raw)) as hdus:
                assert len(hdus) == 1
                header, image = hdus[0].header, hdus[0].data
            assert (header["BITPIX"], "BSCALE" in header, "BZERO" in header) == (-32, False, False)
            assert max(image.shape) <= 63
            if image.shape == (63, 63):
                pixels = np.frombuffer(raw[2880 : 2880 + 4 * 63 * 63], ">f4").reshape(63, 63)
                np.testing.assert_array_equal(pixels, image)
            else:
                c = record["candidate"]
                assert c["mindtoedge"] < 32
            assert np.any(np.isfinite(image) & (image != 0))
            assert math.isfinite(np.linalg.norm(np.nan_to_num(image)))
    shapes = [fits.getdata(io.BytesIO(gzip.decompress(r["cutoutScience"]["stampData"]))).shape for r in records]
    assert shapes.count((63, 63)) > len(shapes) / 2


def test_09_names_of_stamps_follow_the_sign(records: list[Record]) -> None:
    light: list[bool] = []
    for record in records:
        positive = record["candidate"]["isdiffpos"] == "t"
        names = tuple(record[f"cutout{k}"]["fileName"] for k in ("Science", "Template", "Difference"))
        assert names == stamp_names(record["candid"], record["candidate"]["pid"], positive)
        assert ("_scimref" if positive else "_refmsci") in names[2]
        image = fits.getdata(io.BytesIO(gzip.decompress(record["cutoutDifference"]["stampData"])))
        if image.shape == (63, 63):
            light.append(bool(np.nansum(image[29:34, 29:34]) > 0))
    assert {record["candidate"]["isdiffpos"] for record in records} == {"t", "f"}
    # The sign is already turned: the middle is bright in all but a few false ones (one of a dipole's halves).
    assert np.mean(light) > 0.9


def strict(value: Any) -> Any:
    """JSON as a strict reader takes it: NaN and infinity raise."""
    return json.loads(json.dumps(value, default=lambda b: len(b), allow_nan=False))


def test_10_no_number_is_nan_or_infinite(records: list[Record]) -> None:
    for record in records:
        strict(record)


def test_11_null_for_missing_but_never_in_diffmaglim(records: list[Record]) -> None:
    def everywhere(value: Any) -> Any:
        if isinstance(value, dict):
            for inner in value.values():
                yield from everywhere(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from everywhere(inner)
        else:
            yield value

    for record in records:
        assert record["candidate"]["diffmaglim"] is not None
        assert all(row["diffmaglim"] is not None for row in rows_of(record) if row["candid"] is None)
        assert not {-999, -999.0, -99999.0, "-999", "null"} & {
            v for v in everywhere(record) if not isinstance(v, bytes)
        }


def test_12_forced_points_have_flux_error_and_zero_point_one_a_jd(records: list[Record]) -> None:
    seen = 0
    for record in records:
        times = [point["jd"] for point in points_of(record)]
        assert len(set(times)) == len(times)
        assert times == sorted(times, reverse=True)  # newest first, as the survey's
        for point in points_of(record):
            seen += 1
            assert None not in (point["forcediffimflux"], point["forcediffimfluxunc"], point["magzpsci"])
            assert point["forcediffimfluxunc"] > 0
            assert point["procstatus"] in ("0", "56")
    assert seen > len(records) / 2


def test_13_no_batch_without_a_forced_point_from_the_first_exposure_on(records: list[Record]) -> None:
    """Every alert whose own difference image can be measured carries a point of its own epoch, so that not even the
    first exposure of the first night makes a batch without any. Rows of the history begin with the second exposure:
    of the first one nothing earlier is known (the playbook says to process one epoch before a topic goes public)."""
    night = [r for r in records if r["candidate"]["rbversion"] != "synthetic"]
    exposures = sorted({r["candidate"]["jd"] for r in night})
    assert len(exposures) >= 2
    for jd in exposures:
        batch = [r for r in night if r["candidate"]["jd"] == jd]
        own = [r for r in batch if jd in [point["jd"] for point in points_of(r)]]
        assert len(own) > 0.8 * len(batch)
        if jd != exposures[0]:
            assert sum(bool(rows_of(r)) for r in batch) > 0.8 * len(batch)


def test_14_history_is_ordered_recent_near_and_of_two_kinds(records: list[Record]) -> None:
    whole = ("candid", "isdiffpos", "ra", "dec", "magpsf", "sigmapsf")
    kinds = set()
    for record in records:
        c, rows = record["candidate"], rows_of(record)
        assert all(a["jd"] <= b["jd"] for a, b in pairwise(rows))
        assert all(0 < c["jd"] - row["jd"] < 30 for row in rows)
        candids = [row["candid"] for row in rows if row["candid"] is not None]
        assert len({*candids, c["candid"]}) == len(candids) + 1
        for row in rows:
            present = [row[name] is not None for name in whole]
            assert all(present) or not any(present)
            kinds.add(all(present))
            if all(present):
                east = (row["ra"] - c["ra"]) * math.cos(math.radians(c["dec"]))
                assert math.hypot(east, row["dec"] - c["dec"]) * 3600 <= 1.5 + 1e-3
    assert kinds == {True, False}


def test_15_public_packets_hold_public_photometry_only(records: list[Record]) -> None:
    for record in records:
        assert record["candidate"]["programid"] == 1
        assert {row["programid"] for row in rows_of(record) + points_of(record)} <= {1}
    private = synthetic_batch(1)
    private.items[0].fp_hists[0]["programid"] = 2  # type: ignore[index]
    assert any("programid 2" in p for p in packet_problems(build_packet(private.items[0], private, {})))


def test_16_object_names(records: list[Record]) -> None:
    for record in records:
        assert re.fullmatch(r"ZTF(1[7-9]|2\d|3[0-2])[a-z]{7}", record["objectId"])
        # AMPEL turns the name into an integer and back: two digits of the year, seven letters to base 26.
        year, letters = int(record["objectId"][3:5]) - 17, record["objectId"][5:]
        number = sum((ord(letter) - 97) * 26**k for k, letter in enumerate(reversed(letters)))
        assert (number << 4 | year) & 15 == year <= 15


def test_17_filters_programs_and_signs(records: list[Record]) -> None:
    for record in records:
        c = record["candidate"]
        assert c["fid"] in (1, 2, 3)
        assert c["programid"] in (0, 1, 2, 3)
        assert c["isdiffpos"] in ("t", "f")
        assert {row["fid"] for row in rows_of(record) + points_of(record)} <= {1, 2, 3}


def test_18_pid_follows_from_the_start_of_the_exposure(records: list[Record]) -> None:
    for record in records:
        c = record["candidate"]
        assert c["pid"] == pid_of(rid_of(expid_of(c["jd"]), c["rcid"]))
        assert c["nid"] == nid_of(c["jd"])
        assert record["zsds"]["jdmid"] - c["jd"] == pytest.approx(c["exptime"] / 2 / 86_400, abs=2 / 86_400)
        for row in rows_of(record) + points_of(record):
            assert row["pid"] == pid_of(rid_of(expid_of(row["jd"]), row["rcid"]))


def test_19_candids_of_a_crowded_quadrant_stay_unique(records: list[Record]) -> None:
    for record in records:
        c = record["candidate"]
        assert c["candid"] == candid_of(c["pid"], c["isdiffpos"] == "t", c["tblid"])
    pid = records[0]["candidate"]["pid"]
    numbers = [candid_of(pid, positive, row) for positive in (True, False) for row in range(identity.MAX_TBLID + 1)]
    assert len(set(numbers)) == len(numbers)
    assert {number // 1_000_000 for number in numbers} == {pid}
    assert {number // 10_000 % 100 for number in numbers} == {1}  # the version digits are not touched
    with pytest.raises(ValueError, match="collide"):
        candid_of(pid, True, identity.MAX_TBLID + 1)
    crowded = synthetic_batch(1001)
    packet = read_packet(emit_packet(crowded.items[1000], crowded, {}))  # carries into the sign digit: 6000
    assert packet["candid"] % 10_000 == 6000


def test_20_arithmetic_is_exact(records: list[Record]) -> None:
    for record in records:
        c = record["candidate"]
        wanted = {
            "magdiff": (("magap", "magpsf"), lambda a, b: a - b),
            "magfromlim": (("diffmaglim", "magap"), lambda a, b: a - b),
            "elong": (("aimage", "bimage"), lambda a, b: a / b),
            "aimagerat": (("aimage", "fwhm"), lambda a, b: a / b),
            "bimagerat": (("bimage", "fwhm"), lambda a, b: a / b),
            "dsdiff": (("dsnrms", "ssnrms"), lambda a, b: a - b),
        }
        for name, (operands, compute) in wanted.items():
            values = [c[operand] for operand in operands]
            if None not in (c[name], *values):
                assert c[name] == pytest.approx(compute(*values), rel=1e-5, abs=1e-5)
        assert c["jdendhist"] == c["jd"]
        sides = [(camera.nx, camera.ny) for camera in (SMALL, FULL)]
        edges = [min(c["xpos"], c["ypos"], nx + 0.5 - c["xpos"], ny + 0.5 - c["ypos"]) for nx, ny in sides]
        assert min(abs(c["mindtoedge"] - edge) for edge in edges) < 1e-2
        image = fits.getdata(io.BytesIO(gzip.decompress(record["cutoutDifference"]["stampData"])))
        if image.shape == (63, 63):
            assert c["nneg"] == np.sum(image[29:34, 29:34] < 0)


def test_21_neighbours_ascend_and_are_as_many_as_said(records: list[Record]) -> None:
    for record in records:
        c = record["candidate"]
        distances = [c[f"distpsnr{k}"] for k in (1, 2, 3)]
        found = [d for d in distances if d is not None]
        assert distances[: len(found)] == found == sorted(found)
        assert len(found) == min(3, c["nmtchps"])
        assert all(0 <= c[f"sgscore{k}"] <= 1 for k in (1, 2, 3) if c[f"sgscore{k}"] is not None)


def test_22_candids_are_unique_and_the_same_in_both_places(records: list[Record]) -> None:
    assert len({record["candid"] for record in records}) == len(records)
    assert all(record["candid"] == record["candidate"]["candid"] for record in records)


def test_23_topic_names_that_brokers_subscribe_to(records: list[Record]) -> None:
    for record in records:
        c = record["candidate"]
        topic = identity.alert_topic_of(c["jd"], c["programid"])
        assert topic == f"ztf_{identity.utc_of(c['jd']):%Y%m%d}_programid1"
    names = [spec.topic("20181129" if spec.nightly else None) for spec in load_topics().topics]
    assert [name for name in names if re.search(r"^ztf_.*_programid1$", name)] == ["ztf_20181129_programid1"]


def test_24_uncommitted_readers_see_no_aborted_alert() -> None:
    """Proved where the fault harness is, with a real broker: the emitter is idempotent, not transactional. Here: that
    proof is there, and reads as those brokers do."""
    source = Path(__file__).parents[1] / "engine" / "test_alert_emitter.py"
    tests = [n for n in ast.parse(source.read_text()).body if isinstance(n, ast.FunctionDef) and n.name[:5] == "test_"]
    text = source.read_text()
    assert tests
    assert "read_uncommitted" in text or "read_committed=False" in text


def test_every_packet_keeps_every_rule(records: list[Record]) -> None:
    for record in records:
        assert packet_problems(record) == []
