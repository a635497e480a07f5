"""Nights: topics before they begin, a heartbeat, a manifest when they are over, another when something is late."""

from __future__ import annotations

import datetime as dt
import json
import time

import pytest
from engine_helpers import wait

from stream.alert import emit_packet, encode_report
from stream.alert.synthetic import synthetic_batch
from stream.archive import PacketArchive, ProductStore, Sent, read_manifest
from stream.archive.manifest import candid_hash, iso, unix_of
from stream.core.identity import expid_of, nid_of, night_of, pid_of, rid_of
from stream.core.records import QuadrantReport, Status
from stream.engine import deadletters
from stream.engine.closing import (
    QUIET_SECONDS,
    NightSeen,
    close_night,
    decide,
    end_of,
    heartbeat_state,
    lost_of,
    nights_wanted,
)
from stream.engine.kafka import OutMessage, Sender, make_admin, make_producer, read_to_end
from stream.engine.nights import NightsWorker
from stream.engine.state import connect
from stream.engine.topics import apply_topics, load_topics
from stream.monitor import Monitor

DAY = 86_400.0
AFTER = end_of("20181129") + 3600
BEFORE = end_of("20181129") - 3600


@pytest.mark.parametrize(
    ("now", "basis", "quiet", "waiting", "closed", "verdict"),
    [
        (BEFORE, "1", 9999, 0, None, "open"),  # the night is still on, however quiet
        (AFTER, "1", 9999, 3, None, "wait"),  # somebody is at work
        (AFTER, "1", QUIET_SECONDS - 1, 0, None, "wait"),  # something has just come
        (AFTER, "1", QUIET_SECONDS, 0, None, "close"),
        (AFTER, "0", QUIET_SECONDS, 0, None, "close"),  # an empty night is closed too
        (AFTER, "1", 9999, 0, "1", "done"),
        (AFTER, "2", 9999, 0, "1", "again"),  # late packets
        (AFTER, "2", 9999, 1, "1", "wait"),
        (AFTER, "2", 5, 0, "1", "wait"),
        (BEFORE, "1", 9999, 0, "1", "done"),  # closed by hand while it is on: stays so
        (BEFORE, "2", 9999, 0, "1", "open"),
    ],
)
def test_when_a_night_is_closed(now, basis, quiet, waiting, closed, verdict):
    assert decide(NightSeen("20181129", basis, quiet, waiting, closed), now) == verdict


def test_a_night_is_over_when_the_sun_is_up_at_palomar():
    for month in range(1, 13):
        night = f"2018{month:02d}15"
        start = dt.datetime.strptime(night, "%Y%m%d").replace(tzinfo=dt.UTC).timestamp()
        assert start + 15 * 3600 < end_of(night) < start + DAY


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2018-11-29T00:00:00Z", ("20181129", "20181130")),
        ("2018-11-29T23:59:59Z", ("20181129", "20181130")),
        ("2018-12-31T12:00:00Z", ("20181231", "20190101")),
        ("2020-02-28T12:00:00Z", ("20200228", "20200229")),
    ],
)
def test_topics_are_made_a_day_ahead(text, wanted):
    assert nights_wanted(unix_of(text)) == wanted


@pytest.mark.parametrize(
    ("waiting", "published", "state"),
    [
        ({"pixels": 0}, 0, "nothing to send"),
        ({"pixels": 4}, 0, "working"),
        ({"pixels": 4}, 1, "sending"),
        ({}, 2, "sending"),
    ],
)
def test_what_a_heartbeat_says(waiting, published, state):
    assert heartbeat_state(waiting, published) == state


def letter(**changes) -> deadletters.DeadLetter:
    common = {
        "id": "x", "time": 0.0, "stage": "ingest", "error": "PacketError", "reason": "cut", "what_to_do": "",
        "traceback": "", "worker": "ingest", "context": {},
    }  # fmt: skip
    return deadletters.DeadLetter(**{**common, **changes})


def test_what_was_lost_is_told_by_rid_or_by_the_file_s_name():
    rid = 6975238412
    letters = [
        letter(context={"rid": rid, "name": "q"}, topic="ztf.raw", headers=[["programid", "2"]]),
        letter(context={"rid": str(rid + 1), "name": "r"}),
        letter(context={"file": "ztf_20181129164000_000651_zr_c03_o.fits.fz"}),
        letter(context={"file": "ztf_20181130164000_000651_zr_c03_o.fits.fz"}),
        letter(context={"rid": rid, "name": "an alert"}, topic="ztf.enriched"),
        letter(context={"file": "nonsense"}),
    ]
    rows = lost_of(letters, "20181129")
    assert [(row["name"], row["rid"], row["programid"]) for row in rows] == [
        ("q", rid, 2), ("r", rid + 1, None), ("ztf_20181129164000_000651_zr_c03_o.fits.fz", None, None)
    ]  # fmt: skip


# -- on the broker -------------------------------------------------------------------------------------------------


class Now:
    """A clock that a test sets."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def said(settings, topic: str, night: str) -> list[dict]:
    return [json.loads(m.value) for m in read_to_end(settings, {topic: {}}, "test") if m.key == night.encode()]


def report(rcid: int, status: str = "ok", jd: float | None = None, later: int = 0, **changes) -> QuadrantReport:
    """Of the synthetic exposure or the one at ``jd``, or one that many hundred-thousandths of a day ``later``."""
    jd = synthetic_batch(1).jd if jd is None else jd
    expid = expid_of(jd) + later
    rid = rid_of(expid, rcid)
    common = {
        "name": f"ztf_q{rcid}", "field": 1, "fid": 1, "ccdid": 1, "qid": 1, "rcid": rcid, "programid": 1,
        "nid": nid_of(jd), "expid": expid, "rid": rid, "pid": pid_of(rid), "jd": jd, "jd_mid": jd,
        "exptime": 30.0, "status": Status(status),
    }  # fmt: skip
    return QuadrantReport(**{**common, **changes})


@pytest.fixture
def ready(settings, tmp_path):
    """The broker with all topics; a store of the test's own, nothing waited for."""
    mine = settings.model_copy(update={"store": str(tmp_path / "store"), "night_quiet_seconds": 0.0,
                                         "renew_references": False, "learn_camera": False})  # fmt: skip
    apply_topics(make_admin(mine), load_topics(), "laptop")
    return mine


@pytest.mark.services
def test_topics_and_heartbeats_come_before_the_first_packet(ready, monkeypatch):
    monkeypatch.setattr("stream.engine.closing.waiting", lambda settings, file: {"pixels": 0})
    now = Now(unix_of("2017-05-01T03:00:00Z"))
    worker = NightsWorker(ready, connect(ready), clock=now)
    worker.step()
    names = set(make_admin(ready).list_topics(timeout=10).topics)
    assert {f"ztf_{night}_programid{n}" for night in ("20170501", "20170502") for n in range(4)} <= names
    now.seconds += 29
    worker.step()
    assert len(said(ready, "ztf.heartbeat", "20170501")) == 1, "one every half minute"
    now.seconds += 1
    worker.step()
    first, second = said(ready, "ztf.heartbeat", "20170501")
    assert (first["state"], first["next_within"]) == ("nothing to send", 30.0)
    assert unix_of(second["time"]) - unix_of(first["time"]) == 30.0
    assert first["alerts"] == {"ztf_20170501_programid1": 0}, "and nothing of private topics"
    now.seconds += DAY
    worker.step()
    assert "ztf_20170503_programid1" in make_admin(ready).list_topics(timeout=10).topics
    assert "ztf_20170501_programid1" in make_admin(ready).list_topics(timeout=10).topics, "the past night stays"


@pytest.mark.services
def test_latencies_are_told_by_stage_with_the_one_that_is_slow(ready, monkeypatch):
    monkeypatch.setattr("stream.engine.closing.waiting", lambda settings, file: {"score": 7})
    client = connect(ready)
    client.delete("ztf:mon:ledgers")
    now = Now(unix_of("2017-05-11T03:00:00Z"))
    for k in range(20):
        t = now.seconds - 100 + k
        times = {"shutter_closed": t, "arrived": t + 5, "calibrated": t + 8, "subtracted": t + 11, "scored": t + 41,
                 "enriched": t + 42, "published": t + 43}  # fmt: skip
        Monitor(client).published(f"{k}:0", times)
        Monitor(client).published(f"{k}:0", times)
    NightsWorker(ready, client, clock=now).step()
    (told,) = said(ready, "ztf.metrics", "20170511")
    assert told["stages"]["scored"] == {"n": 20, "median": 30.0, "p95": 30.0, "longest": 30.0}
    assert told["stages"]["total"]["median"] == 38.0
    assert (told["slow"]["stage"], told["slow"]["owner"]) == ("scored", "score worker")
    assert told["waiting"] == {"score": 7}


@pytest.mark.services
def test_an_empty_night_is_closed_and_a_late_alert_makes_another_version(ready, monkeypatch):
    monkeypatch.setattr("stream.engine.closing.waiting", lambda settings, file: {"pixels": 0})
    night = "20181129"  # of the synthetic packets
    now = Now(end_of(night) - 60)
    client, store = connect(ready), ProductStore(ready.store)
    client.delete(f"ztf:mon:{night}:closed", f"ztf:mon:{night}:quadrants")
    worker = NightsWorker(ready.model_copy(update={"renew_references": True, "learn_camera": True}), client, clock=now)
    worker.step()
    assert read_manifest(store, night) is None, "it is still on"
    now.seconds += 120

    def stepped(version: int) -> bool:
        now.seconds += 30
        worker.step()
        found = read_manifest(store, night)
        return found is not None and found["version"] == version

    wait(lambda: stepped(1), seconds=60)
    empty = read_manifest(store, night)
    assert empty["programs"]["1"]["alerts"] == 0
    wait(lambda: (worker.step(), Monitor(client).is_closed(night))[1])
    chores = {}

    def both_done() -> bool:
        worker.step()
        if worker.chore is not None:
            chores["learn" if "learn" in worker.chore.args else "renew"] = worker.chore.wait(60)
        return len(chores) == 2

    wait(both_done, seconds=60)
    assert set(chores.values()) == {0}, "nothing to learn or renew, and that is no failure"

    batch = synthetic_batch(3)
    packets = [emit_packet(item, batch, {}) for item in batch.items]
    late = unix_of(empty["first_closed"]) + 5
    PacketArchive(store).add([Sent(p, f"ztf_{night}_programid1", 0, k, late) for k, p in enumerate(packets)])
    Monitor(client).quadrant(report(1), {})
    wait(lambda: stepped(2), seconds=60)
    full = read_manifest(store, night)
    assert (full["programs"]["1"]["alerts"], full["programs"]["1"]["late_alerts"]) == (3, 3)
    assert full["first_closed"] == empty["first_closed"]
    wait(lambda: said(ready, "ztf.nights", night)[-1]["version"] == 2)


@pytest.mark.services
def test_a_manifest_accounts_for_everything_and_tells_the_public_its_own(ready):
    jd = 2458493.02384  # a night of its own: other tests leave records of the synthetic one
    night = night_of(jd)
    batch = synthetic_batch(4, jd=jd)
    packets = [emit_packet(item, batch, {}) for item in batch.items]
    topic, when = f"ztf_{night}_programid1", time.time() - 100
    store = ProductStore(ready.store)
    sent = [Sent(p, topic, k % 2, 10 + k, when + k) for k, p in enumerate(packets)]
    PacketArchive(store).add(sent)
    sender = Sender(make_producer(ready, "test"))
    records = [
        report(1, jd=jd), report(2, "failed", jd, stage="astrometry", reason="clouds"), report(3, "no_reference", jd),
        report(1, jd=jd, later=1), report(9, jd=jd, later=2, programid=2),
    ]  # fmt: skip
    for record in records:
        sender.send(OutMessage("ztf.quadrants", b"k", encode_report(record)))
    gone = {"rid": rid_of(expid_of(jd), 4), "name": "gone"}
    lost = letter(id=f"lost-{night}", context=gone, headers=[["programid", "1"]], topic="ztf.raw")
    sender.send(deadletters.encode(lost))
    sender.flush()
    manifest, new = close_night(ready, night, time.time())
    assert new
    public = manifest["programs"]["1"]
    candids = sorted(item.candidate["candid"] for item in batch.items)
    assert (public["alerts"], public["late_alerts"]) == (4, 0)
    assert (public["first_candid"], public["last_candid"]) == (candids[0], candids[-1])
    assert public["sha256_candids"] == candid_hash(candids)
    assert public["topics"] == {topic: {"alerts": 4, "offsets": {"0": [10, 12], "1": [11, 13]}}}
    assert public["exposures"] == 2
    assert public["quadrants"] == {
        "received": 5, "processed": 2, "no_reference": 1, "failed": 1, "lost": 1, "never_came": 3
    }  # fmt: skip
    assert public["failed"] == [{"name": "ztf_q2", "stage": "astrometry", "reason": "clouds"}]
    assert public["lost"] == [{"name": "gone", "stage": "ingest", "reason": "cut"}]
    assert manifest["programs"]["2"]["exposures"] == 1
    again, new = close_night(ready, night, time.time() + 100)
    assert not new
    assert again == manifest
    (told, *_) = reversed(said(ready, "ztf.nights", night))
    assert set(told["programs"]) == {"1"}, "how much others observed is theirs to tell"
    assert told["programs"]["1"] == public
    assert "unassigned" not in told
    assert iso(unix_of(manifest["closed"])) == manifest["closed"]
