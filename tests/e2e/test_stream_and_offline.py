"""The night through Kafka, with workers killed, against the same night through ``process``, and both against truth."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections import Counter
from typing import Any

import avro.datafile
import avro.io
import avro.schema
import fastavro
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from nights import Night, Processed, System, wait

from stream.alert import EXTENSION_FIELDS, LEDGER, packet_problems, read_packet, reader_schema, schema_text
from stream.archive import ProductStore, iterate_alerts, iterate_packets, night_of_candid, read_mask
from stream.archive.paths import science_path
from stream.core.flags import BAD_BITS
from stream.core.identity import night_of
from stream.engine.kafka import read_to_end
from stream.engine.processes import tail
from stream.monitor import recovery
from stream.simulate import read_truth

pytestmark = [pytest.mark.services, pytest.mark.slow]


def products(store: Any, names: list[str], suffix: str) -> dict[str, bytes]:
    opened = ProductStore(str(store))
    return {name: opened.read(science_path(name, suffix)) for name in names}


def names_of(processed: Processed) -> list[str]:
    return [line["name"] for line in processed.lines]


def streamed_alerts(system: System, night: Night) -> list[dict[str, Any]]:
    """Packets of the night's own exposures (faults may have been streamed since)."""
    exposures = {path.name.split(".")[0] for path in night.science}
    packets = [p for found in system.gathered.alerts.values() for p in found]
    return [p for p in packets if p["candidate"]["pdiffimfilename"].split("_q")[0] in exposures]


def without_ledger(packet: dict[str, Any]) -> dict[str, Any]:
    return {**packet, "zsds": {name: value for name, value in packet["zsds"].items() if name not in LEDGER}}


def test_the_stream_makes_the_products_that_process_makes(streamed, processed):
    names = names_of(processed)
    assert len(names) == 8
    assert {line["status"] for line in processed.lines} == {"ok"}
    for suffix in ("candidates.parquet", "streaks.parquet", "qa.json", "psfcat.fits", "scimrefdiffimg.fits.fz"):
        offline = products(processed.store, names, suffix)
        online = products(streamed.system.settings.store, names, suffix)
        assert [name for name in names if offline[name] != online[name]] == [], suffix
    assert min(len(data) for data in products(processed.store, names, "candidates.parquet").values()) > 1000


def test_the_stream_sends_the_alerts_that_process_writes(streamed, processed, night):
    offline = {p["candid"]: p for p in iterate_alerts(ProductStore(str(processed.store)))}
    online = {p["candid"]: p for p in streamed_alerts(streamed.system, night)}
    assert online.keys() == offline.keys()
    assert len(offline) == sum(line["n_alerts"] for line in processed.lines) > 50
    for candid, packet in sorted(online.items()):
        assert without_ledger(packet) == without_ledger(offline[candid]), candid
        times = [packet["zsds"][name] for name in LEDGER[1:]]
        assert None not in times
        assert times == sorted(times)


def test_alerts_know_the_exposure_before(streamed, night):
    second = night.science[1].name.split(".")[0]
    alerts = streamed_alerts(streamed.system, night)
    later = [p for p in alerts if p["candidate"]["pdiffimfilename"].startswith(second)]
    seen = [p for p in later if any(row["candid"] for row in p["prv_candidates"] or [])]
    assert len(seen) > 10
    assert all(p["candidate"]["ndethist"] > 1 for p in seen)
    by_candid = {p["candid"]: p for p in alerts}
    for packet in seen:
        for row in packet["prv_candidates"]:
            if row["candid"] is not None:
                assert by_candid[row["candid"]]["objectId"] == packet["objectId"]
    assert all(p["candidate"]["ncovhist"] == 2 for p in later)


def test_nothing_is_lost_or_doubled_when_workers_are_killed(streamed, processed, night):
    first, second = streamed.kills
    assert len(set(first.pids)) == len(set(second.pids)) == 2
    assert not set(first.pids) & set(second.pids)
    assert max(second.begun.values()) == 2, "the second kill met a quadrant that the first one had interrupted"
    told = streamed.system.log.read_text()
    assert told.count('"status": -9') >= 4, tail(streamed.system.log)
    alerts = Counter(p["candid"] for p in streamed_alerts(streamed.system, night))
    assert max(alerts.values()) == 1  # read uncommitted
    wanted = {line["pid"] for line in processed.lines}
    messages = read_to_end(streamed.system.settings, {"ztf.quadrants": {}}, "test")
    counts = Counter(int(message.header("pid")) for message in messages)
    assert {pid: counts[pid] for pid in wanted} == dict.fromkeys(wanted, 1)


def stem_of(streamed: Any, number: int) -> str:
    return str(streamed.system.night.science[number].name.split(".")[0])


def test_an_emptied_redis_is_made_anew_by_one_command_and_nothing_leaves_meanwhile(streamed):
    """That the alerts after it are those of a night without it: see the comparison with `process` above."""
    flush = streamed.flush
    first = sum(
        r.n_candidates for r in streamed.system.gathered.reports.values() if r.name.startswith(stem_of(streamed, 0))
    )
    assert flush.held == first, "alerts of the second exposure left before the state was whole"
    assert flush.shown.status == 1
    assert "state rebuild" in flush.shown.rows()[0]["reason"]
    assert flush.rebuilt.ok().rows()[0]["newest_night"] == "20201005"
    objects = {key for key in flush.before if key.startswith(("ztf:name:", "ztf:det:"))}
    assert len(objects) > 50
    every = flush.before.keys() | flush.after.keys()
    coverage = {key for key in every if key.startswith(("ztf:epoch:", "ztf:cover:", "ztf:mon:"))}
    for key in sorted(every - coverage):
        assert flush.after.get(key) == flush.before.get(key), key
    # The second exposure's epochs are on the topic already: they may be there, the first one's have to be.
    for key in sorted(coverage):
        if key.startswith("ztf:epoch:") and key in flush.before:
            assert flush.after[key] == flush.before[key], key
        if key.startswith("ztf:cover:"):
            assert set(flush.before.get(key, ())) <= set(flush.after[key]), key


def test_injected_sources_become_alerts(streamed, night, processed):
    store = ProductStore(streamed.system.settings.store)
    names = names_of(processed)
    reports = [r for r in streamed.system.gathered.reports.values() if r.name in names]
    usable = {(r.name.rsplit("_q", 1)[0], r.rcid): (read_mask(store, r.name) & BAD_BITS) == 0 for r in reports}
    alerts = [p["candidate"] for p in streamed_alerts(streamed.system, night)]
    injected = recovery(read_truth(night.folder), reports, alerts, usable)
    found, total = injected.completeness(10.0)
    assert total >= 30
    assert found >= 0.9 * total
    # Chance matches are rare: the same alerts a little aside find next to nothing.
    moved = [{**c, "ra": c["ra"] + 20 / 3600} for c in alerts]
    by_chance, _ = recovery(read_truth(night.folder), reports, moved, usable).completeness(10.0)
    assert by_chance < 0.05 * total


def test_sources_are_where_and_as_bright_as_painted(streamed, night):
    truth = read_truth(night.folder)
    kept = (truth["kind"] == "transient") & truth["in_quadrant"]
    exposure, rcid = truth["exposure"].astype(str), truth["rcid"]
    offsets, excess = [], []
    for packet in streamed_alerts(streamed.system, night):
        c = packet["candidate"]
        here = kept & (exposure == c["pdiffimfilename"].split("_q")[0]) & (rcid == c["rcid"])
        if c["isdiffpos"] != "t" or not here.any() or c["scorr"] < 20:
            continue
        east = (truth["ra"][here] - c["ra"]) * np.cos(np.radians(c["dec"])) * 3600
        distance = np.hypot(east, (truth["dec"][here] - c["dec"]) * 3600)
        if distance.min() < 1.5:
            offsets.append(distance.min())
            excess.append((c["magpsf"] - truth["mag"][here][distance.argmin()]) / np.hypot(c["sigmapsf"], 0.03))
    assert len(offsets) > 15
    assert np.median(offsets) < 0.2
    assert np.median(np.abs(excess)) < 2.0


def test_every_packet_is_what_brokers_take(streamed, night):
    official = avro.schema.parse(schema_text("ztf/4.02", "ztf.alert"))
    lengths = set()
    assert streamed.system.gathered.packets
    for packet in streamed.system.gathered.packets:
        record = read_packet(packet)
        assert packet_problems(record) == []
        (plain,) = fastavro.reader(io.BytesIO(packet))
        assert set(plain["zsds"]) == set(EXTENSION_FIELDS)
        (survey,) = fastavro.reader(io.BytesIO(packet), reader_schema())
        assert survey == {name: value for name, value in plain.items() if name != "zsds"}
        with avro.datafile.DataFileReader(io.BytesIO(packet), avro.io.DatumReader(None, official)) as reader:
            (by_apache,) = list(reader)
        assert by_apache == survey
        for cutout in ("Science", "Template", "Difference"):
            with fits.open(io.BytesIO(gzip.decompress(survey[f"cutout{cutout}"]["stampData"]))) as hdus:
                assert hdus[0].data.dtype == ">f4"
                assert max(hdus[0].data.shape) <= 63
        lengths.add(packet.index(str(record["objectId"]).encode()))
    assert len(lengths) == 1, "every packet's header has the same length"


def test_topics_are_named_by_the_ut_date_of_the_exposure(streamed):
    for topic, packets in streamed.system.gathered.alerts.items():
        assert re.fullmatch(r"ztf_\d{8}_programid[12]", topic)
        where = [p["candidate"] for p in packets]
        assert {f"ztf_{night_of(c['jd'])}_programid{c['programid']}" for c in where} == {topic}


def test_the_archive_keeps_what_was_sent(streamed, tmp_path):
    system = streamed.system
    read = ((read_packet(packet), packet) for packet in system.gathered.packets)
    sent = {alert["candid"]: packet for alert, packet in read if alert["candidate"]["programid"] == 1}
    sent = {candid: packet for candid, packet in sent.items() if night_of_candid(candid) == "20201005"}
    store = ProductStore(system.settings.store)
    wait(lambda: len(dict(iterate_packets(store, "20201005", 1))) >= len(sent))
    assert dict(iterate_packets(store, "20201005", 1)) == sent
    tar = tmp_path / "night.tar"
    said = system.call("alerts", "export", "--night", "20201005", "--out", tar, "--json").ok()
    assert said.rows()[0]["alerts"] == len(sent)
    with tarfile.open(tar) as members:
        assert {int(m.name.removesuffix(".avro")): members.extractfile(m).read() for m in members} == sent


def test_candidates_say_why_they_were_not_sent(streamed, processed, night):
    store = ProductStore(streamed.system.settings.store)
    sent = {p["candid"] for p in streamed_alerts(streamed.system, night)}
    for line in processed.lines:
        path = science_path(line["name"], "candidates.parquet")
        rows = pq.read_table(io.BytesIO(store.read(path))).to_pylist()
        assert {row["candid"] for row in rows if row["rejected"] is None} <= sent
        assert sum(row["rejected"] is not None for row in rows) == line["n_rejected"]
        assert len(rows) == line["n_rejected"] + line["n_candidates"]
