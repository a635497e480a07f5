"""Pictures of alerts, and the commands that read files and the archive (``tail`` is tested with a broker)."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import alert_samples as samples
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from stream.alert import emit_packet, read_packet
from stream.alert.sheet import best_alerts, draw_alert, score_of, stamps_sheet, summary
from stream.archive import PacketArchive, ProductStore
from stream.cli import alerts
from stream.core.errors import UsageError


def packet(tblid: int = 3, drb: float | None = 0.5) -> bytes:
    item = samples.item(tblid)
    item.candidate["drb"] = drb
    return emit_packet(item, samples.batch(item), {"shutter_closed": 1e9, "published": 1e9 + 12.5})


@pytest.fixture
def store(tmp_path) -> ProductStore:
    made = ProductStore(str(tmp_path / "store"))
    PacketArchive(made).add([packet(1), packet(2)])
    return made


def run(*args: str) -> tuple[int, str, BaseException | None]:
    outcome = CliRunner().invoke(alerts.app, args)
    return outcome.exit_code, outcome.stdout, outcome.exception


def test_best_alerts_are_those_of_highest_score() -> None:
    records = [read_packet(packet(i, drb)) for i, drb in enumerate([0.25, None, 0.875, 0.5])]
    assert [score_of(r) for r in best_alerts(records, 3)] == [0.875, 0.75, 0.5]  # without drb its rb, 0.75


def test_sheet_and_drawing_are_pictures_and_always_the_same(tmp_path) -> None:
    records = [read_packet(packet(i)) for i in range(5)]
    records[1]["cutoutScience"] = None
    records[2]["cutoutScience"]["stampData"] = b"damaged"
    assert stamps_sheet(records, tmp_path / "a.png", 4) == 4
    stamps_sheet(records, tmp_path / "b.png", 4)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert imread(tmp_path / "a.png").std() > 0.05
    draw_alert(records[0], tmp_path / "c.png")
    assert imread(tmp_path / "c.png").shape[0] > 500
    with pytest.raises(UsageError):
        stamps_sheet([], tmp_path / "d.png")


def test_summary_and_line_say_what_matters() -> None:
    record = read_packet(packet())
    text = "\n".join(summary(record))
    assert "1 detections, 1 limits, 2 forced points" in text
    assert "r = 18.250 +- 0.125" in text
    one = alerts.line(record, "ztf_x", alerts.latency_of(record))
    assert "ZTF18abcdefg" in one
    assert "12.5 s" in one
    assert alerts.latency_of({"candid": 1}) is None


def test_show_takes_a_file_or_a_candid(store: ProductStore, tmp_path) -> None:
    file = tmp_path / "one.avro"
    file.write_bytes(packet())
    code, text, _ = run("show", str(file), "--out", str(tmp_path / "one.png"))
    assert code == 0
    assert (tmp_path / "one.png").stat().st_size > 10_000
    assert "ZTF18abcdefg" in text
    candid = read_packet(packet(2))["candid"]
    code, text, _ = run("show", str(candid), "--store", store.url, "--json")
    assert code == 0
    content = json.loads(text)
    assert content["candidate"]["candid"] == candid
    assert not any(key.startswith("cutout") for key in content)
    for wrong in ("12345", "not-there.avro"):
        _, _, error = run("show", wrong, "--store", store.url)
        assert isinstance(error, UsageError)


@pytest.mark.parametrize("name", ["night.tar", "night.tar.gz"])
def test_export_is_a_tar_of_single_alerts(store: ProductStore, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    args = ("export", "--night", "20181129", "--store", store.url, "--out", str(out), "--json")
    code, text, _ = run(*args)
    assert code == 0
    assert json.loads(text)["alerts"] == 2
    first = out.read_bytes()
    with tarfile.open(out) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    assert members == {f"{read_packet(p)['candid']}.avro": p for p in (packet(1), packet(2))}
    run(*args)
    assert out.read_bytes() == first
    assert io.BytesIO(first).read(2) == (b"\x1f\x8b" if name.endswith("gz") else first[:2])


def test_export_of_nothing_says_so(store: ProductStore, tmp_path) -> None:
    for night in ("20200101", "yesterday"):
        _, _, error = run("export", "--night", night, "--store", store.url, "--out", str(tmp_path / "x.tar"))
        assert isinstance(error, UsageError)
    _, _, error = run("export", "--night", "20181129", "--store", store.url, "--out", str(tmp_path / "no" / "x.tar"))
    assert "cannot be written" in str(error)


class FakeMessage:
    """What a consumer's poll gives."""

    def __init__(self, value: bytes | None, error: object = None) -> None:
        self._value, self._error = value, error

    def value(self) -> bytes | None:
        return self._value

    def topic(self) -> str:
        return "ztf_20181129_programid1"

    def error(self) -> object:
        return self._error


class FakeConsumer:
    """A consumer with a script."""

    def __init__(self, script: list[FakeMessage | None]) -> None:
        self.script, self.commits, self.closed, self.topics = script, 0, False, [""]

    def subscribe(self, topics: list[str]) -> None:
        self.topics = topics

    def poll(self, timeout: float) -> FakeMessage | None:
        return self.script.pop(0) if self.script else None

    def commit(self, **_: object) -> None:
        self.commits += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def consumer(monkeypatch) -> FakeConsumer:
    import stream.engine.kafka as kafka

    fake = FakeConsumer([None, FakeMessage(packet(1)), FakeMessage(b"junk"), FakeMessage(packet(2))])
    monkeypatch.setenv("ZTF_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setattr(kafka, "make_consumer", lambda *args, **kwargs: fake)
    return fake


def test_tail_prints_a_line_an_alert_and_passes_over_junk(consumer: FakeConsumer) -> None:
    code, text, _ = run("tail", "--limit", "2", "--group", "mine")
    assert code == 0
    assert [row.split()[1] for row in text.splitlines()] == [str(read_packet(packet(i))["candid"]) for i in (1, 2)]
    assert consumer.commits == 2  # behind what was shown; the last one is shown again rather than lost
    assert consumer.closed
    assert consumer.topics == [alerts.PUBLIC]


def test_tail_as_json_for_a_while(consumer: FakeConsumer) -> None:
    code, text, _ = run("tail", "--seconds", "1", "--json")
    assert code == 0
    rows = [json.loads(row) for row in text.splitlines()]
    assert [row["topic"] for row in rows] == ["ztf_20181129_programid1"] * 2
    assert consumer.commits == 0


def test_tail_says_what_failed(consumer: FakeConsumer, monkeypatch, tmp_path) -> None:
    from confluent_kafka import KafkaError

    from stream.core.errors import BrokerUnavailable

    soon = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)  # a night's topic that is being made
    consumer.script = [FakeMessage(None, soon), FakeMessage(None, KafkaError(KafkaError._ALL_BROKERS_DOWN))]
    _, _, error = run("tail")
    assert isinstance(error, BrokerUnavailable)
    monkeypatch.delenv("ZTF_BOOTSTRAP")
    monkeypatch.setenv("ZTF_DATA_DIR", str(tmp_path))
    _, _, error = run("tail")
    assert isinstance(error, UsageError)
