"""Packets onto ztf.raw: each once, each quadrant where it belongs, what is broken into the dead letters."""

from __future__ import annotations

import hashlib
import json
import threading
import time

import numpy as np
import pytest
from confluent_kafka import TopicPartition
from typer.testing import CliRunner

from stream.alert import decode_report
from stream.core.camera import Camera
from stream.core.errors import PacketError, StateUnavailable
from stream.core.identity import pid_of
from stream.core.records import Exposure, Quadrant
from stream.engine import ingest_service, ledger
from stream.engine.deadletters import list_letters
from stream.engine.ingest_service import Ingestor, partition_of, quadrant_message
from stream.engine.kafka import make_admin, make_consumer, read_to_end
from stream.engine.state import connect
from stream.engine.topics import apply_topics, load_topics
from stream.ingest import Packet, QuadrantPayload

JD = 2458451.75


def exposure_named(name: str, ccdid: int = 3) -> Exposure:
    return Exposure(
        name=name.split(".")[0], imgtype="object", field=651, fid=2, ccdid=ccdid, programid=1, jd=JD,
        jd_mid=JD + 15.0 / 86_400, exptime=30.0, ra=10.0, dec=20.0,
    )  # fmt: skip


def parse(data: bytes, name: str, camera: Camera) -> Packet:
    """Stands in for the ingest room: the file's text says how many quadrants are hurt."""
    if data == b"garbage":
        raise PacketError(f"{name}: no FITS file", file=name)
    hurt = int(data.split()[0])
    exposure = exposure_named(name)
    good = tuple(
        QuadrantPayload(Quadrant(exposure, qid), data + bytes([qid]), hashlib.sha256(data + bytes([qid])).hexdigest())
        for qid in range(hurt + 1, 5)
    )
    return Packet(exposure, good, tuple(PacketError(f"extension {q} is hurt", qid=q) for q in range(1, hurt + 1)))


@pytest.fixture
def service(settings):
    apply_topics(make_admin(settings), load_topics(), "laptop")
    made = []

    def make(**options) -> Ingestor:
        made.append(Ingestor(settings, connect(settings), parse=parse, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def sent(settings, text: bytes):
    """Messages on ztf.raw whose payload begins with ``text`` (other tests use the topic as well)."""
    return [m for m in read_to_end(settings, {"ztf.raw": {}}, "test") if m.value.startswith(text)]


def test_every_channel_has_a_partition_of_its_own_and_a_ccd_spreads_over_workers():
    assert sorted(partition_of(rcid, 64) for rcid in range(64)) == list(range(64))
    for ccd in range(16):
        blocks = {partition_of(4 * ccd + q, 64) // 32 for q in range(4)}
        assert blocks == {0, 1}


def test_a_quadrant_goes_where_its_channel_belongs():
    exposure = exposure_named("ztf_20181129252384_000651_zr_c16_o", 16)
    item = QuadrantPayload(Quadrant(exposure, 4), b"FITS", "ab" * 32)
    for partitions in (64, 8, 1):
        out = quadrant_message(item, partitions, arrived=1.6e9)
        assert out.partition == partition_of(63, partitions)
        assert out.key == b"63"
    headers = {name: value.decode() for name, value in out.headers}
    assert int(headers["pid"]) == pid_of(int(headers["rid"])) == item.quadrant.pid
    assert (headers["programid"], headers["sha256"]) == ("1", "ab" * 32)
    times = ledger.read(out.headers)
    assert times["shutter_closed"] == pytest.approx(ledger.unix_of_jd(JD) + 30.0, abs=1e-3)
    assert times["arrived"] == 1.6e9


@pytest.mark.services
def test_a_packet_is_sent_once_over_restarts_and_again_when_asked(service, settings, prefix, tmp_path):
    text = f"0 {prefix}".encode()
    path = tmp_path / "ztf_20181129252384_000651_zr_c03_o.fits.fz"
    path.write_bytes(text)
    first = service()
    assert [r.outcome for r in first.files([path, path])] == ["sent", "seen"]
    assert service().file(path).outcome == "seen"  # another process, later
    messages = sent(settings, text)
    assert {m.partition for m in messages} == {partition_of(rcid, 64) for rcid in (8, 9, 10, 11)}
    for message in messages:
        assert hashlib.sha256(message.value).hexdigest() == message.header("sha256")
        assert message.partition == partition_of(int(message.key or b""), 64)
    assert service(again=True).file(path).outcome == "sent"
    assert len(sent(settings, text)) == 8


@pytest.mark.services
def test_changed_content_under_the_same_name_is_another_packet(service, settings, prefix, tmp_path):
    path = tmp_path / "ztf_20181129252384_000651_zr_c03_o.fits"
    one = service()
    for number in range(2):
        path.write_bytes(f"0 {prefix} {number}".encode())
        assert one.file(path).outcome == "sent"
    assert len(sent(settings, f"0 {prefix}".encode())) == 8


@pytest.mark.services
def test_hurt_quadrants_become_dead_letters_and_the_others_go_on(service, settings, prefix, tmp_path):
    text = f"2 {prefix}".encode()
    path = tmp_path / f"ztf_{prefix}.fits"
    path.write_bytes(text)
    result = service().file(path)
    assert (result.outcome, result.quadrants, len(result.failures)) == ("partial", 2, 2)
    assert len(sent(settings, text)) == 2
    garbage, missing = tmp_path / f"g-{prefix}.fits", tmp_path / f"m-{prefix}.fits"
    garbage.write_bytes(b"garbage")
    assert [r.outcome for r in service().files([garbage, missing])] == ["failed", "failed"]
    letters = [x for x in list_letters(settings) if prefix in str(x.context.get("file"))]
    assert sorted(x.context.get("qid", 0) for x in letters) == [0, 0, 1, 2]
    assert {x.stage for x in letters} == {"ingest"}
    # What is known to be a quadrant has a quality record, so that it is counted.
    # Other tests' messages are on the same topic, among them some that are no records.
    messages = [m for m in read_to_end(settings, {"ztf.quadrants": {}}, "test") if prefix.encode() in m.value]
    mine = {report.qid: report for report in (decode_report(m.value) for m in messages)}
    assert {qid: (str(r.status), r.stage, r.reason) for qid, r in mine.items()} == {
        qid: ("failed", "ingest", f"extension {qid} is hurt") for qid in (1, 2)
    }
    assert service().file(garbage).outcome == "seen"  # known to be bad: no second letter


@pytest.mark.services
def test_a_service_that_fails_is_waited_for(service, settings, prefix, tmp_path):
    path = tmp_path / "ztf_20181129252384_000651_zr_c03_o.fits"
    path.write_bytes(f"0 {prefix}".encode())
    one = service()
    real, failures = one._marks.get, iter([True, True])

    def get(name: str):
        if next(failures, False):
            raise StateUnavailable("away")
        return real(name)

    one._marks.get = get
    assert one.file(path).outcome == "sent"


@pytest.mark.services
def test_ingest_waits_for_workers_that_are_far_behind(service, settings, prefix, tmp_path):
    settings_tight = settings.model_copy(update={"raw_backlog": 2})
    waits: list[int] = []
    one = Ingestor(settings_tight, connect(settings), parse=parse, waiting=waits.append)
    workers = make_consumer(settings, settings.group("pixels"), "workers")
    apply_topics(make_admin(settings), load_topics(), "laptop")

    def finished() -> None:
        places = [TopicPartition("ztf.raw", p) for p in [partition_of(rcid, 64) for rcid in (8, 9, 10, 11)]]
        ends = [workers.get_watermark_offsets(place)[1] for place in places]
        done = [TopicPartition("ztf.raw", p.partition, end) for p, end in zip(places, ends, strict=True)]
        workers.commit(offsets=done, asynchronous=False)

    try:
        finished()
        paths = [tmp_path / f"ztf_{n}_000651_zr_c03_o.fits" for n in range(3)]
        for path in paths:
            path.write_bytes(f"0 {prefix} {path.name}".encode())
        assert [r.outcome for r in one.files(paths[:2])] == ["sent", "sent"]
        assert not waits
        thread = threading.Thread(target=lambda: one.file(paths[2]))
        thread.start()
        deadline = time.monotonic() + 10
        while not waits and time.monotonic() < deadline:
            time.sleep(0.05)
        assert waits[0] == 2
        assert thread.is_alive()
        finished()
        thread.join(10)
        assert not thread.is_alive()
    finally:
        one.stopping.set()
        one.close()
        workers.close()


@pytest.mark.services
def test_the_command_watches_a_folder_until_told_to_stop(settings, prefix, tmp_path, monkeypatch):
    import typer

    from stream.cli.ingest import ingest as command

    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ingest_service.Ingestor.__init__, "__kwdefaults__",
                        {**ingest_service.Ingestor.__init__.__kwdefaults__, "parse": parse})  # fmt: skip
    apply_topics(make_admin(settings), load_topics(), "laptop")
    app = typer.Typer()
    app.command()(command)
    path = tmp_path / "ztf_20181129252384_000651_zr_c03_o.fits"
    path.write_bytes(f"0 {prefix}".encode())
    bad = tmp_path / "ztf_20181129252384_000651_zr_c04_o.fits"
    bad.write_bytes(b"garbage")
    told = CliRunner().invoke(app, [str(path), str(bad), "--json"])
    assert told.exit_code == 1, told.output
    rows = [json.loads(line) for line in told.stdout.splitlines() if line.startswith('{"path')]
    assert [row["outcome"] for row in rows] == ["sent", "failed"]
    assert CliRunner().invoke(app, [str(path)]).exit_code == 0
    assert CliRunner().invoke(app, []).exit_code != 0


@pytest.mark.services
def test_a_watched_folder_is_followed(service, settings, prefix, tmp_path):
    one = service()
    results = []
    thread = threading.Thread(target=lambda: results.extend(one.watch(tmp_path)))
    thread.start()
    text = f"0 {prefix}".encode()
    (tmp_path / "ztf_20181129252384_000651_zr_c03_o.fits").write_bytes(text)
    deadline = time.monotonic() + 15
    while not sent(settings, text) and time.monotonic() < deadline:
        time.sleep(0.1)
    one.stopping.set()
    thread.join(10)
    assert [r.outcome for r in results] == ["sent"]
    assert np.all([m.header("imgtype") == "object" for m in sent(settings, text)])
