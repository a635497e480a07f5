"""The archive back onto a topic, and as tar and tables: the same bytes, the same keys, nothing added or lost."""

from __future__ import annotations

import hashlib
import re
import tarfile

import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nights import ztf_stream

from stream.alert import emit_packet, read_packet
from stream.alert.synthetic import synthetic_batch
from stream.archive import NightShelf, PacketArchive, ProductStore, Sent, write_alert, write_alert_tables
from stream.archive.alert_tables import FOLDER, NORDER
from stream.core.errors import UsageError
from stream.engine.kafka import read_to_end
from stream.engine.replay import TOPIC, Rate, archived, refuse
from stream.engine.topics import load_topics

NIGHT = "20181129"
FILE = load_topics()


@pytest.fixture(scope="module")
def packets() -> dict[int, bytes]:
    """Packets of the public survey by candid."""
    batch = synthetic_batch(12)
    return {item.candidate["candid"]: emit_packet(item, batch, {}) for item in batch.items}


@pytest.fixture
def store(tmp_path, packets) -> ProductStore:
    """An archive of them: published backwards in candid, two topics' partitions, three shards, one in a file alone."""
    store = ProductStore(str(tmp_path / "store"))
    archive = PacketArchive(store)
    sent = [
        Sent(packet, f"ztf_{NIGHT}_programid1", k % 2, 100 + k, 1_600_000_000.0 - 0.25 * k)
        for k, packet in enumerate(packets.values())
    ]
    for part in (sent[:5], sent[5:8], sent[8:11]):
        archive.add(part)
    write_alert(store, sent[11].packet)
    return store


def test_a_shelf_gives_every_packet_back_with_its_place(store, packets):
    shelf = NightShelf(store, NIGHT, 1)
    rows = shelf.rows()
    assert [row["candid"] for row in rows] == sorted(packets)
    for k, row in enumerate(rows):
        assert shelf.packet(row["candid"]) == packets[row["candid"]]
        assert row["sha256"] == hashlib.sha256(packets[row["candid"]]).hexdigest()
        if k < 11:
            assert (row["partition"], row["kafka_offset"]) == (k % 2, 100 + k)
    assert len(NightShelf(store, NIGHT, 2)) == 0


def test_export_is_the_survey_s_tar_with_its_sum(store, packets, tmp_path):
    out = tmp_path / "ztf_public_20181129.tar.gz"
    other = tmp_path / "other.tar"
    (tmp_path / "MD5SUMS").write_text("0123  aaa.tar.gz\n")
    (row,) = ztf_stream("alerts", "export", "--night", NIGHT, "--out", out, "--store", store.url, "--json").ok().rows()
    first = out.read_bytes()
    with tarfile.open(out) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    assert members == {f"{candid}.avro": packet for candid, packet in packets.items()}
    assert row["md5"] == hashlib.md5(first).hexdigest()
    ztf_stream("alerts", "export", "--night", NIGHT, "--programid", 1, "--out", other, "--store", store.url).ok()
    ztf_stream("alerts", "export", "--night", NIGHT, "--out", out, "--store", store.url).ok()
    assert out.read_bytes() == first, "the same night makes the same bytes"
    lines = (tmp_path / "MD5SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["aaa.tar.gz", "other.tar", "ztf_public_20181129.tar.gz"]
    nothing = ztf_stream("alerts", "export", "--night", NIGHT, "--programid", 2, "--out", out, "--store", store.url)
    assert nothing.status == 1
    assert "no alerts" in nothing.err


def test_tables_have_a_row_an_alert_in_cells_and_the_same_bytes_again(store, packets, tmp_path):
    cells = write_alert_tables(store, NIGHT, 1)
    assert sum(cells.values()) == len(packets)
    folder = tmp_path / "store" / FOLDER
    files = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    table = ds.dataset(folder, partitioning="hive").to_table()
    rows = {row["candid"]: row for row in table.to_pylist()}
    assert rows.keys() == packets.keys()
    for candid, packet in packets.items():
        alert, row = read_packet(packet), rows[candid]
        assert (row["night"], row["programid"], row["norder"]) == (int(NIGHT), 1, NORDER)
        assert (row["objectId"], row["magpsf"]) == (alert["objectId"], alert["candidate"]["magpsf"])
        assert row["zsds_jdmid"] == alert["zsds"]["jdmid"]
        assert row["n_prv_candidates"] == len(alert["prv_candidates"])
    assert {row["npix"] for row in rows.values()} == set(cells)
    write_alert_tables(store, NIGHT, 1)
    assert {path: path.read_bytes() for path in folder.rglob("*.parquet")} == files


RATES = {"x10": Rate(speed=10.0), "x0.5": Rate(speed=0.5), "200": Rate(count=200.0), "5/s": Rate(count=5.0)}


@pytest.mark.parametrize(("text", "rate"), RATES.items())
def test_rates(text, rate):
    assert Rate.parse(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "x0", "-3", "0", "x"])
def test_what_is_no_rate_is_told(text):
    with pytest.raises(UsageError, match="x10"):
        Rate.parse(text)


@given(st.lists(st.floats(0, 1e5), min_size=1).map(sorted), st.floats(0.1, 100))
def test_the_past_goes_by_so_many_times_faster(times, speed):
    due = list(Rate(speed=speed).schedule(times))
    assert due[0] == 0
    for k in range(1, len(times)):
        gap = min(times[k] - times[k - 1], 3600)
        assert due[k] - due[k - 1] == pytest.approx(gap / speed, abs=1e-6 * (1 + due[k]))
    by_count = list(Rate(count=speed).schedule(times))
    assert by_count[-1] == pytest.approx((len(times) - 1) / speed)
    assert set(Rate().schedule(times)) == {0.0}


@pytest.mark.parametrize(
    ("topic", "force", "said"),
    [
        (TOPIC, False, None),
        ("mine", False, None),
        ("ztf_20181129_programid1", False, "take the past"),
        ("ztf_20181129_programid3", False, "take the past"),
        ("ztf.alerts.programid1", False, "take the past"),
        ("ztf.enriched", False, "take the past"),
        ("ztf_test_programid1", False, "take the past"),
        ("ztf.alerts.programid1", True, None),
        ("absent", True, "no topic"),
    ],
)
def test_where_the_past_may_go(topic, force, said):
    existing = {TOPIC, "mine", "ztf_20181129_programid1", "ztf_20181129_programid3", "ztf.alerts.programid1",
                "ztf.enriched", "ztf_test_programid1"}  # fmt: skip
    if said is None:
        refuse(topic, existing, FILE, force)
        return
    with pytest.raises(UsageError, match=said):
        refuse(topic, existing, FILE, force)


@pytest.mark.services
def test_a_replay_gives_the_same_messages_with_where_they_were(settings, prefix, make_topic, store, packets):
    topic = make_topic(prefix, 1)
    environment = {**settings.environment(), "ZTF_STORE": store.url}
    where = "--from", NIGHT, "--topic", topic, "--rate", "max"
    (row,) = ztf_stream("alerts", "replay", *where, "--json", **environment).ok().rows()
    assert row == {"topic": topic, "alerts": 12}
    read = list(read_to_end(settings, {topic: {}}, "test"))
    assert {int(m.key): m.value for m in read} == packets
    alerts = archived(store, NIGHT, NIGHT)
    assert [int(m.key) for m in read] == [alert.row["candid"] for alert in alerts]
    times = [int(m.header("origin.timestamp")) for m in read]
    assert times == sorted(times)
    published = [m for m in read if m.header("origin.topic")]
    assert len(published) == 11
    by_candid = {alert.row["candid"]: alert.row for alert in alerts}
    for m in published:
        row = by_candid[int(m.header("candid"))]
        assert (int(m.header("origin.partition")), int(m.header("origin.offset"))) == (
            row["partition"], row["kafka_offset"]
        )  # fmt: skip
    refused = ztf_stream("alerts", "replay", "--from", NIGHT, "--topic", "ztf.raw", **environment)
    assert refused.status == 1
    assert re.search("no topic|take the past", refused.err)
