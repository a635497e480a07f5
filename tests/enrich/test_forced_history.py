"""Forced photometry of earlier epochs: fluxes by the simulator's truth, each point measured once and kept."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import redis
from nights import Night, Processed, ztf_stream
from services import whole_state

from stream.alert import FP_FIELDS, PRV_FIELDS, convert_record, read_packet
from stream.alert.avro import compile_encoder
from stream.archive import ProductStore, iterate_alerts
from stream.archive.catalogs import read_quality
from stream.archive.paths import science_path
from stream.archive.products import science_files
from stream.core.records import CandidateBatch, QuadrantReport
from stream.enrich import MemoryHistory, RedisHistory, enrich_batch
from stream.enrich.history import History
from stream.forced import StoreForced

from test_history import batch_at, report  # isort: skip


@pytest.fixture(scope="session")
def epochs(night: Night, processed: Processed, tmp_path_factory: pytest.TempPathFactory) -> ProductStore:
    """The science exposures, and two exposures before anything exploded, subtracted from the same references."""
    store = tmp_path_factory.mktemp("epochs") / "store"
    shutil.copytree(processed.store, store, symlinks=True)
    earlier = sorted((night.folder / "raw" / "ref").iterdir())[-2:]
    ztf_stream("process", *earlier, "--store", store, "--json", "--workers", 2).ok()
    return ProductStore(str(store))


def transients(night: Night) -> dict[int, list[dict[str, Any]]]:
    rows = pq.read_table(night.folder / "truth" / "sources.parquet").to_pylist()
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "transient" and row["in_quadrant"]:
            found.setdefault(row["rcid"], []).append(row)
    return found


def pulls_and_fluxes(night: Night, store: ProductStore) -> tuple[np.ndarray, np.ndarray]:
    """(true flux, measured, error) of every transient in every exposure; true 0 before the explosion."""
    source = StoreForced(store)
    rows = []
    exposures = [path.name.removesuffix(".fits.fz") for kind in ("ref", "sci") for path in
                 sorted((night.folder / "raw" / kind).iterdir())]  # fmt: skip
    for rcid, truth in transients(night).items():
        places = {row["truth_id"]: (row["ra"], row["dec"]) for row in truth}
        ra, dec = np.array(list(places.values())).T
        for exposure in exposures:
            points = source.points(f"{exposure}_q{rcid % 4 + 1}", ra, dec)
            flux = {row["truth_id"]: row["flux"] for row in truth if row["exposure"] == exposure}
            for truth_id, point in zip(places, points or [], strict=False):
                if point is not None:
                    rows.append((flux.get(truth_id, 0.0), point["forcediffimflux"], point["forcediffimfluxunc"]))
    true, measured, error = np.array(rows).T
    return true, (measured - true) / error


def test_fluxes_are_the_truth_s_and_zero_before_the_explosion(night: Night, epochs: ProductStore) -> None:
    true, pull = pulls_and_fluxes(night, epochs)
    for some in (true == 0, true > 0):
        n = some.sum()
        assert n > 40
        # Five times the spread that n pulls of unit variance have; a tenth more for what no error bar knows.
        assert abs(np.mean(pull[some])) < 0.2 + 5 / np.sqrt(n)
        assert np.std(pull[some]) == pytest.approx(1.0, abs=0.1 + 5 / np.sqrt(2 * n))
    assert np.abs(pull).max() < 6


class Counting:
    """A source that counts what it is asked, on top of the real one."""

    def __init__(self, source: StoreForced) -> None:
        self.source = source
        self.asked: list[tuple[str, int]] = []

    def points(self, name: str, ra: Any, dec: Any) -> Any:
        self.asked.append((name, len(ra)))
        return self.source.points(name, ra, dec)


@pytest.fixture(params=["memory", "redis"])
def memory(request: pytest.FixtureRequest) -> History:
    if request.param == "memory":
        return MemoryHistory()
    client = redis.Redis.from_url(request.getfixturevalue("redis_url"))
    client.flushall()
    whole_state(client)
    return RedisHistory(client)


def told(store: ProductStore, memory: History) -> list[QuadrantReport]:
    """Tell the memory of every epoch of readout channel 0; their quality records in time order."""
    found = []
    for _, path in science_files(store, "_q1_qa.json"):
        quality = read_quality(store.read(path))
        if quality.rcid == 0 and quality.diffmaglim is not None:
            memory.add_epoch(quality)
            found.append(quality)
    return found


def alerts_of(store: ProductStore, quality: Any) -> CandidateBatch:
    """The batch that a quadrant's alerts came in, not yet enriched."""
    items = [convert_record(r) for r in iterate_alerts(store) if r["candidate"]["pid"] == quality.pid]
    return CandidateBatch(quality.name, quality.pid, quality.field, quality.fid, quality.rcid, quality.programid,
                          quality.jd, quality.jd_mid, quality.exptime, 0, 1, items)  # fmt: skip


@pytest.mark.services
def test_a_point_is_measured_once_and_the_same_in_every_later_packet(epochs: ProductStore, memory: History) -> None:
    qualities = told(epochs, memory)
    source = Counting(StoreForced(epochs))
    packets = []
    for quality in qualities[-2:]:
        batch = alerts_of(epochs, quality)
        assert batch.items
        enrich_batch(batch, memory, PRV_FIELDS, source)
        packets.append({item.object_id: item for item in batch.items})
    first, second = packets
    both = first.keys() & second.keys()
    assert both
    encode = compile_encoder("zsds/1", "ztf.alert.fp_hist")
    for name in both:
        early = {p["pid"]: encode(p) for p in first[name].fp_hists or []}
        late = {p["pid"]: encode(p) for p in second[name].fp_hists or []}
        assert early.items() <= late.items()
        assert qualities[-1].pid in late
        times = [p["jd"] for p in second[name].fp_hists or []]
        assert times == sorted(times, reverse=True)
        assert len(times) == len(qualities)
    # For the second batch, the earlier images are asked only about its new objects.
    new = len(second.keys() - first.keys())
    assert sum(n for _, n in source.asked) == len(first) * (len(qualities) - 1) + len(second) + new * (
        len(qualities) - 1
    )
    before = len(source.asked)
    again = alerts_of(epochs, qualities[-1])
    enrich_batch(again, memory, PRV_FIELDS, source)
    assert len(source.asked) == before
    assert {i.object_id: i.fp_hists for i in again.items} == {n: i.fp_hists for n, i in second.items()}


def test_missing_and_damaged_images_make_no_point_and_no_failure(epochs: ProductStore, tmp_path: Any) -> None:
    memory = MemoryHistory()
    name = told(epochs, memory)[-1].name
    broken = ProductStore(str(tmp_path))
    ra, dec = np.array([10.0]), np.array([1.0])
    assert StoreForced(broken).points(name, ra, dec) is None
    for suffix in ("diffimgpsf.fits", "scimrefdiffimg.fits.fz"):
        broken.write(science_path(name, suffix), epochs.read(science_path(name, suffix)))
    assert StoreForced(broken).points(name, ra, dec) is None  # no reference
    path = science_path(name, "scimrefdiffimg.fits.fz")
    for length in (0, 100, 5000, 20_000):
        broken.write(path, epochs.read(path)[:length])
        assert StoreForced(broken).points(name, ra, dec) is None


def test_a_place_off_the_image_gives_none(epochs: ProductStore) -> None:
    quality = told(epochs, MemoryHistory())[-1]
    (point,) = StoreForced(epochs).points(quality.name, np.array([quality.corners[0] + 5]), np.array([0.0])) or [1]
    assert point is None


def test_packets_of_process_carry_the_points(processed: Processed, epochs: ProductStore) -> None:
    records = list(iterate_alerts(epochs))
    assert records
    for record in records:
        own = [p for p in record["fp_hists"] or [] if p["pid"] == record["candidate"]["pid"]]
        assert all(p["jd"] == record["candidate"]["jd"] for p in own)
    measured = [r for r in records if r["fp_hists"]]
    assert len(measured) > 0.8 * len(records)
    assert all(set(p) == set(FP_FIELDS) for r in measured for p in r["fp_hists"])
    assert json.dumps([p for r in measured for p in r["fp_hists"]], allow_nan=False).count("-999") == 0


def test_movers_are_measured_in_their_own_epoch_only() -> None:
    memory = MemoryHistory()
    for pid in (10, 11):
        memory.add_epoch(report(pid, 2458850.5 + pid))
    batch = batch_at(12, 2458862.5, [(150.0, 20.0), (150.1, 20.0)])
    batch.items[1].candidate["ssdistnr"] = 0.5
    enrich_batch(batch, memory, PRV_FIELDS, Flat())
    assert [len(item.fp_hists or []) for item in batch.items] == [3, 1]


class Flat:
    """A source that finds nothing anywhere; the pid is in the name that ``report`` gives."""

    def points(self, name: str, ra: Any, dec: Any) -> Any:
        pid = int(name[1:])
        row = dict.fromkeys(FP_FIELDS) | {"jd": 2458850.5 + pid, "pid": pid, "forcediffimflux": 0.0}
        return [row for _ in ra]


@pytest.mark.services
def test_private_points_are_in_private_packets_only(memory: History) -> None:
    for pid, program in ((10, 1), (11, 2), (12, 1)):
        memory.add_epoch(report(pid, 2458850.5 + pid, programid=program))
    private = batch_at(13, 2458863.5, [(150.0, 20.0)], programid=2)
    enrich_batch(private, memory, PRV_FIELDS, Flat())
    assert [p["pid"] for p in private.items[0].fp_hists or []] == [13, 12, 11, 10]
    memory.add_epoch(report(13, 2458863.5, programid=2))
    # The object is known from a private exposure, its points are remembered: the public packet tells of none of it.
    public = batch_at(14, 2458864.5, [(150.0, 20.0)])
    enrich_batch(public, memory, PRV_FIELDS, Flat())
    (item,) = public.items
    assert item.object_id == private.items[0].object_id
    assert [p["pid"] for p in item.fp_hists or []] == [14, 12, 10]
    assert [row["pid"] for row in item.prv_candidates or []] == [10, 12]
    assert (item.candidate["ndethist"], item.candidate["ncovhist"]) == (1, 3)
    assert item.candidate["jdstarthist"] == item.candidate["jd"]


@pytest.mark.services
def test_a_point_that_two_workers_measured_is_the_first_one_s(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    one, two = RedisHistory(client), RedisHistory(client)
    row = dict.fromkeys(FP_FIELDS) | {"jd": 2458850.5, "pid": 7, "forcediffimflux": 1.5}
    assert one.add_forced([("ZTF20aaaaaaa", 7, row), ("ZTF20aaaaaaa", 8, None)]) == [row, None]
    late = two.add_forced([("ZTF20aaaaaaa", 7, {**row, "forcediffimflux": 9.0}), ("ZTF20aaaaaaa", 8, row)])
    assert late == [row, None]
    assert two.forced(["ZTF20aaaaaaa", "ZTF20aaaaaab"]) == {"ZTF20aaaaaaa": {7: row, 8: None}, "ZTF20aaaaaab": {}}


def test_readers_of_old_packets_find_no_points(real_data: Any) -> None:
    path = next((real_data / "alerts/ztf-avro-alert").glob("*.avro"))
    assert read_packet(path.read_bytes()).get("fp_hists") is None
