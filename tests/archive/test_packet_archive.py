"""The archive of packets: byte for byte, each once, readable by anything, remembered for the next night."""

from __future__ import annotations

import io
from dataclasses import replace

import archive_samples as samples
import fastavro
import pytest

from stream.alert import emit_packet, make_batch, read_packet
from stream.archive import (
    PacketArchive,
    ProductStore,
    alert_index,
    archived_nights,
    iterate_alerts,
    iterate_packets,
    night_of_candid,
    read_alert,
    recall_history,
    write_alert,
    write_products,
)
from stream.core.errors import MessageError, StoreUnavailable
from stream.core.identity import night_of
from stream.core.records import CandidateBatch


def packets(n: int = 4, jd: float = samples.JD, program: int = 1) -> list[bytes]:
    q = samples.quadrant(jd)
    q = replace(q, exposure=replace(q.exposure, programid=program))
    batch: CandidateBatch = make_batch(q, [samples.candidate(i, q=q) for i in range(n)])
    out = []
    for i, item in enumerate(batch.items):
        item.object_id = "ZTF18abcdef" + "ghijklmnop"[i]
        item.candidate |= {
            "ndethist": 1, "ncovhist": 2, "jdendhist": jd, "rbversion": "v", "drbversion": "v", "programid": program
        }  # fmt: skip
        out.append(emit_packet(item, batch, {}))
    return out


def candid_of(packet: bytes) -> int:
    return int(read_packet(packet)["candid"])


@pytest.fixture
def store(tmp_path) -> ProductStore:
    return ProductStore(str(tmp_path))


def test_single_packets(store: ProductStore) -> None:
    sent = packets()
    night = night_of(samples.JD)
    assert write_alert(store, sent[0]) == f"alerts/{night}/programid1/{candid_of(sent[0])}.avro"
    assert read_alert(store, candid_of(sent[0])) == sent[0]
    assert read_alert(store, candid_of(sent[1])) is None
    assert night_of_candid(candid_of(sent[0])) == night


def test_shard_is_one_avro_file_and_every_packet_comes_back_byte_for_byte(store: ProductStore) -> None:
    sent = packets()
    assert PacketArchive(store).add(sent) == 4
    (shard,) = [n for n in store.names("alerts/20181129/programid1") if n.endswith(".avro")]
    data = store.read(f"alerts/20181129/programid1/{shard}")
    assert len(data) < 0.75 * sum(map(len, sent))  # one header instead of four
    assert [r["candid"] for r in fastavro.reader(io.BytesIO(data))] == [candid_of(p) for p in sent]
    assert [read_alert(store, candid_of(p)) for p in sent] == sent
    index = alert_index(store, "20181129", 1)
    assert [row["candid"] for row in index] == sorted(map(candid_of, sent))
    assert index[0]["magpsf"] == 18.25
    assert index[0]["objectId"].startswith("ZTF18")


def test_delivering_twice_archives_once(store: ProductStore) -> None:
    sent = packets()
    one = PacketArchive(store)
    assert one.add(sent[:2]) == 2
    assert one.add([*sent[:3], sent[2]]) == 1
    assert PacketArchive(store).add(sent) == 1  # after a restart; the fourth is new
    assert one.add(sent) == 0  # another worker wrote in between
    assert [p for _, p in iterate_packets(store)] == sent


def test_nights_and_programs_lie_apart(store: ProductStore) -> None:
    night, partner, later = packets(1), packets(1, samples.JD + 0.001, program=2), packets(1, samples.JD + 1)
    assert PacketArchive(store).add([*night, *partner, *later]) == 3
    assert archived_nights(store) == ["20181129", "20181130"]
    assert [p for _, p in iterate_packets(store, "20181129", 1)] == night
    assert [p for _, p in iterate_packets(store, programid=2)] == partner
    assert len(list(iterate_alerts(store))) == 3


def test_crash_between_shard_and_index_loses_and_repeats_nothing(store: ProductStore, monkeypatch) -> None:
    sent = packets()
    write = ProductStore.write

    def crash(self: ProductStore, path: str, data: bytes) -> None:
        if path.endswith(".parquet"):
            raise StoreUnavailable("gone")
        write(self, path, data)

    monkeypatch.setattr(ProductStore, "write", crash)
    with pytest.raises(StoreUnavailable):
        PacketArchive(store).add(sent[:3])
    monkeypatch.setattr(ProductStore, "write", write)
    assert PacketArchive(store).add(sent) == 1
    assert sorted(c for c, _ in iterate_packets(store)) == sorted(map(candid_of, sent))
    assert read_alert(store, candid_of(sent[1])) == sent[1]


def test_single_and_sharded_packet_count_once(store: ProductStore) -> None:
    sent = packets(2)
    write_alert(store, sent[0])
    PacketArchive(store).add(sent)
    assert len(list(iterate_packets(store))) == 2


def test_what_is_no_packet_is_refused_before_anything_is_written(store: ProductStore) -> None:
    with pytest.raises(MessageError):
        PacketArchive(store).add([*packets(1), b"nonsense"])
    assert archived_nights(store) == []


def test_a_packet_of_another_schema_is_kept_too(store: ProductStore, real_data) -> None:
    sent = (real_data / "alerts/boom/2695378462115010012.avro").read_bytes()
    PacketArchive(store).add([sent, *packets(1)])
    assert read_alert(store, 2695378462115010012) == sent


class Memory:
    """Takes down what it is told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.objects: list[tuple[str, float]] = []
        self.detections: list[tuple[str, int]] = []
        self.forced: list[tuple[str, int]] = []

    def add_epoch(self, report) -> None:
        self.epochs.append(report.pid)

    def add_object(self, name: str, ra: float, dec: float, jd: float, candid: int) -> None:
        self.objects.append((name, ra))

    def add_detections(self, rows) -> None:
        self.detections.extend((object_id, row["candid"]) for object_id, row in rows)

    def add_forced(self, points) -> None:
        self.forced.extend((object_id, pid) for object_id, pid, _ in points)


def test_the_last_two_months_are_recalled_in_time_order(store: ProductStore) -> None:
    for jd in (samples.JD - 70, samples.JD - 20, samples.JD, samples.JD + 3):
        write_products(store, samples.result(samples.quadrant(jd)))
        PacketArchive(store).add(packets(2, jd))
    memory = Memory()
    assert recall_history(store, memory, samples.JD) == 4
    assert memory.epochs == [samples.quadrant(jd).pid for jd in (samples.JD - 20, samples.JD)]
    assert [candid for _, candid in memory.detections] == sorted(candid for _, candid in memory.detections)
    assert [name for name, _ in memory.objects] == [name for name, _ in memory.detections]
