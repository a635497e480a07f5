"""What each record stage does with one message: called directly, on a real Redis."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import fastavro
import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services import dump, whole_state

from stream.alert import (
    LEDGER,
    FakeBatch,
    StreakBatch,
    decode_batch,
    decode_tracklet,
    emit_packet,
    encode_batch,
    encode_fakes,
    encode_report,
    encode_streaks,
    packet_problems,
    read_packet,
    write_packet,
)
from stream.alert.synthetic import synthetic_batch
from stream.core.errors import MessageError, StateLost
from stream.core.identity import candid_of, expid_of, nid_of, night_of, pid_of, rid_of, version_digits
from stream.core.records import QuadrantReport, Streak
from stream.engine import ledger, metrics
from stream.engine.alert_messages import MakeAlerts
from stream.engine.kafka import REPORT, VERSION, RawMessage
from stream.engine.stages import (
    RECORD_STAGES,
    EnrichStage,
    Guarded,
    LinkStage,
    MonitorStage,
    ScoreStage,
    disposition,
    link_rows,
    make_stage,
)
from stream.engine.state import Generation
from stream.fakes import empty_fakes, fake_rows
from stream.monitor import Monitor

HEADERS = (("name", b"n"), ("pid", b"7"), *ledger.encode({"arrived": 1.0, "subtracted": 3.0}))


def message(topic: str, value: bytes, *headers: tuple[str, bytes]) -> RawMessage:
    return RawMessage(topic, 0, 5, b"7", value, (*HEADERS, *headers))


def fresh_batch(n: int = 4, *, scored: bool = True):
    """A batch as the scorer or, not ``scored``, the pixel workers send it."""
    batch = synthetic_batch(n)
    for item in batch.items:
        item.candidate |= dict.fromkeys(("ndethist", "ncovhist"))
        if not scored:
            item.candidate |= dict.fromkeys(("rb", "rbversion", "drb", "drbversion"))
        item.object_id = item.prv_candidates = None
    return batch


def moved(batch, jd: float, dra: float):
    """The same candidates at another time, ``dra`` deg further east."""
    pid = pid_of(rid_of(expid_of(jd), batch.rcid))
    for i, item in enumerate(batch.items):
        c = item.candidate
        c |= {"jd": jd, "pid": pid, "candid": candid_of(pid, True, i), "ra": c["ra"] + dra, "nid": nid_of(jd)}
    return replace(batch, jd=jd, jd_mid=jd + 15 / 86_400, pid=pid)


@pytest.fixture
def client(client: redis.Redis) -> redis.Redis:
    """A database of this test's own that has lost nothing."""
    whole_state(client)
    return client


def test_score_fills_both_scores_and_extends_the_ledger():
    stage = ScoreStage(clock=lambda: 5.0)
    (out,) = stage.handle(message("ztf.candidates", encode_batch(fresh_batch(scored=False))))
    assert (out.topic, out.key) == ("ztf.scored", b"7")
    assert ledger.read(out.headers) == {"arrived": 1.0, "subtracted": 3.0, "scored": 5.0}
    assert dict(out.headers)["name"] == b"n"
    for item in decode_batch(out.value).items:
        assert 0 <= item.candidate["rb"] <= 1
        assert 0 <= item.candidate["drb"] <= 1
        assert item.candidate["drbversion"]
    again = stage.handle(message("ztf.candidates", encode_batch(fresh_batch(scored=False))))
    assert again[0].value == out.value


@pytest.mark.services
def test_enrich_names_objects_and_remembers_them(client):
    stage = EnrichStage(client, clock=lambda: 6.0)
    first, second = fresh_batch(), moved(fresh_batch(), synthetic_batch(1).jd + 0.02, 0.2 / 3600)
    (out,) = stage.handle(message("ztf.scored", encode_batch(first)))
    (later,) = stage.handle(message("ztf.scored", encode_batch(second)))
    made, seen = decode_batch(out.value), decode_batch(later.value)
    assert ledger.read(later.headers)["enriched"] == 6.0
    for a, b in zip(made.items, seen.items, strict=True):
        assert a.object_id == b.object_id
        assert a.prv_candidates is None
        assert [row["candid"] for row in b.prv_candidates] == [a.candidate["candid"]]
        assert (a.candidate["ndethist"], b.candidate["ndethist"]) == (1, 2)
    assert len({item.object_id for item in made.items}) == 4
    (repeated,) = stage.handle(message("ztf.scored", encode_batch(first)))
    assert repeated.value == out.value, "a repeat, even a late one, makes the same bytes"


def corners(ra: float, dec: float, half: float = 0.5) -> list[float]:
    return [ra + half, dec + half, ra - half, dec + half, ra - half, dec - half, ra + half, dec - half]


@pytest.mark.services
def test_epochs_without_a_detection_are_limits(client):
    stage = EnrichStage(client)
    batch = fresh_batch()
    jd = batch.jd - 2.0
    rid = rid_of(expid_of(jd), batch.rcid)
    report = QuadrantReport(
        "n", batch.field, batch.fid, 3, 1, batch.rcid, 1, nid_of(jd), expid_of(jd), rid, pid_of(rid), jd, jd, 30.0,
        diffmaglim=20.1, magzp=26.0, corners=corners(150.43, 20.43),
    )  # fmt: skip
    nothing = encode_batch(replace(batch, pid=report.pid, jd=jd, items=[]))
    assert stage.handle(message("ztf.scored", nothing, (REPORT, encode_report(report)))) == []
    (out,) = stage.handle(message("ztf.scored", encode_batch(batch)))
    enriched = decode_batch(out.value)
    for item in enriched.items:
        (row,) = item.prv_candidates
        assert (row["candid"], row["pid"]) == (None, report.pid)
        assert row["diffmaglim"] == pytest.approx(20.1, abs=1e-5)
        assert item.candidate["ncovhist"] == 2
        assert packet_problems(read_packet(emit_packet(item, enriched, {}))) == []


@pytest.mark.services
def test_link_finds_what_moves_and_sends_it_when_it_changes(client):
    stage = LinkStage(client)
    sent = []
    for k in range(4):
        batch = moving(k)
        sent.append(stage.handle(message("ztf.scored", encode_batch(batch))))
    assert [[out.topic for out in outs] for outs in sent] == [[], [], *[["ztf.tracklets", "ztf.movers"]] * 2]
    three, four = (decode_tracklet(out[0].value) for out in sent[2:])
    assert three.trackid == four.trackid
    assert (len(three.candids), len(four.candids)) == (3, 4)
    assert sent[3][0].topic == "ztf.tracklets"
    assert four.rate == pytest.approx(0.2 * np.cos(np.radians(20)), rel=0.02)
    again = stage.handle(message("ztf.scored", encode_batch(batch)))
    assert again == sent[3], "nobody knows whether the repeat's first answer left"
    other = moved(fresh_batch(1), synthetic_batch(1).jd + 0.5, 1.0)
    assert stage.handle(message("ztf.scored", encode_batch(other))) == [], "nothing new: nothing sent"
    assert client.ttl(f"ztf:link:{night_of(batch.jd)}") > 86_400


def test_only_plausible_positive_detections_are_linked():
    batch = fresh_batch(4)
    scores, signs = (0.9, 0.1, None, 0.9), ("t", "t", "t", "f")
    for item, drb, sign in zip(batch.items, scores, signs, strict=True):
        item.candidate |= {"drb": drb, "isdiffpos": sign}
    assert [row[0] for row in link_rows(batch)] == [batch.items[i].candidate["candid"] for i in (0, 2)]


@pytest.mark.services
def test_monitor_counts_every_topic(client):
    stage = MonitorStage(client)
    jd = 2459127.71
    rid = rid_of(expid_of(jd), 0)
    report = QuadrantReport("n", 1, 2, 1, 1, 0, 1, nid_of(jd), expid_of(jd), rid, pid_of(rid), jd, jd, 30.0)
    streaks = StreakBatch("n", 1, 1, 2, 0, 1, jd, jd, 30.0, [])
    rows = fake_rows(empty_fakes(3))
    for row, kind, snr, found in zip(
        rows, ("point", "streak", "other"), (9.0, 20.0, None), (True, False, True), strict=True
    ):
        row |= {"kind": kind, "snr": snr, "detected": found, "sent": found}
    fakes = FakeBatch("n", pid_of(rid), 1, 2, 0, 1, jd, jd, 30.0, rows)
    for _ in range(2):
        assert stage.handle(message("ztf.quadrants", encode_report(report))) == []
        stage.handle(message("ztf.fakes", encode_fakes(fakes)))
        stage.handle(message("ztf.deadletters", json.dumps({"stage": "x"}).encode()))
        stage.handle(message("ztf.streaks", encode_streaks(streaks)))
        stage.handle(message("ztf.tracklets", b"whatever"))
    counts = Monitor(client).counts("20201005")
    assert counts.quadrants == {"ok": 1}
    assert counts.latencies == [2.0]
    assert counts.dead_letters == 1
    assert counts.fakes == [[2, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert counts.events == {"ztf.streaks": 1, "ztf.tracklets": 1}


@pytest.mark.services
def test_stages_by_name_and_bad_messages(client):
    for name in RECORD_STAGES:
        stage = make_stage(name, client)
        assert stage.name == name
        topic = stage.sources[0]
        with pytest.raises(MessageError):
            stage.handle(message(topic, b"poison"))
    with pytest.raises(MessageError, match="monitor"):
        make_stage("nothing", client)


@pytest.mark.parametrize(
    ("version", "sent", "resend", "becomes"),
    [
        (1, None, False, "send"),
        (1, 1, False, "send"),  # a repeat: the emitter knows what left
        (2, 1, False, "held"),
        (1, 2, False, "held"),  # an old packet once more, after a new version was asked for
        (2, 1, True, "send"),
        (2, None, False, "send"),
        (2, 2, False, "send"),
    ],
)
def test_what_becomes_of_other_version_digits(version, sent, resend, becomes):
    assert disposition(version, sent, resend) == becomes


def as_version(batch, version: int):
    items = [replace(item, candidate={**item.candidate}) for item in batch.items]
    for item in items:
        item.candidate["candid"] += (version - version_digits(item.candidate["candid"])) * 10_000
    return replace(batch, items=items)


@pytest.mark.services
def test_a_reprocessed_quadrant_is_held_unless_asked_for(client):
    first, second = fresh_batch(), as_version(fresh_batch(), 2)
    enrich, link = EnrichStage(client), LinkStage(client)
    scored = message("ztf.scored", encode_batch(first))
    again = message("ztf.scored", encode_batch(second), (VERSION, b"2"))
    (sent,) = enrich.handle(scored)
    link.handle(scored)
    before = dump(client)
    held = metrics.ALERTS_HELD._value.get()
    assert enrich.handle(again) == []
    assert link.handle(again) == []
    assert metrics.ALERTS_HELD._value.get() == held + len(first.items)
    assert dump(client) == before
    (resent,) = EnrichStage(client, resend=True).handle(again)
    names = [item.object_id for item in decode_batch(sent.value).items]
    assert [item.object_id for item in decode_batch(resent.value).items] == names
    later = moved(fresh_batch(), first.jd + 0.02, 0.0)
    (out,) = enrich.handle(message("ztf.scored", encode_batch(later)))
    for item in decode_batch(out.value).items:
        assert [version_digits(row["candid"]) for row in item.prv_candidates] == [2], "one row an epoch"


@pytest.mark.services
def test_a_repeat_changes_nothing_in_redis_even_after_later_ones(client):
    """Also where a later exposure made a nearer object of another name in between."""
    stages = [make_stage(name, client) for name in ("enrich", "link")]
    jd = fresh_batch().jd
    # 1.4 arcsec from the first one's, then 1.9: the third is no longer the first's object, but nearest to the second.
    batches = [moved(fresh_batch(), jd + 0.01 * k, shift / 3600) for k, shift in enumerate((0.0, 1.4, 1.9))]
    report = QuadrantReport(
        "n", 5, 2, 3, 1, 8, 1, nid_of(jd), expid_of(jd), 1, pid_of(1), jd, jd, 30.0, corners=corners(150.4, 20.4)
    )
    messages = [message("ztf.scored", encode_batch(b), (REPORT, encode_report(report))) for b in batches]
    outs = [stages[0].handle(m) for m in messages]
    for m in messages:
        stages[1].handle(m)
    before = dump(client)
    assert len([key for key in before if key.startswith("ztf:det:")]) > 4
    for order in ((0, 1, 2), (2, 0, 1)):
        for k in order:
            (again,) = stages[0].handle(messages[k])
            assert again.value == outs[k][0].value
            stages[1].handle(messages[k])
    assert dump(client) == before


@pytest.mark.services
@pytest.mark.parametrize("name", ["enrich", "link", "monitor"])
def test_an_emptied_redis_holds_every_stage_and_names_no_object(client, name):
    stage = make_stage(name, client)
    value = encode_batch(fresh_batch())
    client.flushdb()
    with pytest.raises(StateLost, match="state rebuild"):
        stage.handle(message(stage.sources[0], value))
    assert client.keys() == []


@pytest.mark.services
def test_redis_lost_while_a_batch_is_in_hand_voids_it(client):
    batch = fresh_batch()

    class Losing(EnrichStage):
        def handle(self, message):
            out = super().handle(message)
            client.flushdb()
            return out

    with pytest.raises(StateLost):
        Guarded(Losing(client), Generation(client)).handle(message("ztf.scored", encode_batch(batch)))
    # A flush before the first object: the script itself refuses, whatever was asked before.
    with pytest.raises(StateLost):
        EnrichStage(client).handle(message("ztf.scored", encode_batch(batch)))
    assert client.keys() == []


def moving(k: int):
    """The k-th exposure of one moving object."""
    batch = moved(fresh_batch(1), synthetic_batch(1).jd + 0.02 * k, 0.004 * k)
    batch.items[0].candidate |= {"drb": 0.9}
    return batch


def linked(client, programs: list[int]):
    """Tracklets inside and outside of exposures of these programs, one object in all of them."""
    stage, inside, outside = LinkStage(client), [], []
    for k, program in enumerate(programs):
        for out in stage.handle(message("ztf.scored", encode_batch(replace(moving(k), programid=program)))):
            if out.topic == "ztf.tracklets":
                inside.append(decode_tracklet(out.value))
            else:
                outside.append(next(fastavro.reader(io.BytesIO(out.value))))
    return inside, outside


@pytest.mark.services
def test_the_public_is_told_of_what_moves_from_public_exposures_only(client):
    inside, outside = linked(client, [1, 2, 1, 1])
    private = moving(1).items[0].candidate["candid"]
    assert any(private in tracklet.candids for tracklet in inside)
    assert [len(mover["candids"]) for mover in outside] == [3]
    assert private not in outside[0]["candids"]


@pytest.mark.services
def test_a_public_tracklet_is_the_tracklet_in_a_container(client):
    inside, outside = linked(client, [1, 1, 1, 1])
    assert [m["trackid"] for m in outside] == [t.trackid for t in inside]
    assert [tuple(m["candids"]) for m in outside] == [t.candids for t in inside]
    assert outside[-1]["rate"] == inside[-1].rate


@pytest.mark.services
def test_streaks_of_public_exposures_are_passed_on_and_others_are_not(client):
    streak = Streak(5, 10.0, 20.0, 10.1, 20.1, 400.0, 45.0, 1e4, 100.0, 17.0, 50.0, float("nan"))
    batch = StreakBatch("q", 7, 651, 2, 3, 1, 2458452.02384, 2458452.024, 30.0, [streak])
    stage = LinkStage(client)

    def passed(**changes):
        value = encode_streaks(replace(batch, **changes))
        return stage.handle(RawMessage("ztf.streaks", 0, 0, b"7", value))

    (out,) = passed()
    assert (out.topic, out.key) == ("ztf.streaks.public", b"7")
    (read,) = fastavro.reader(io.BytesIO(out.value))
    assert (read["pid"], read["streaks"][0]["ra2"], read["streaks"][0]["score"]) == (7, 10.1, None)
    assert passed(programid=2) == passed(programid=3) == passed(streaks=[]) == []


class Dying(redis.Redis):
    """A connection whose process is killed before its ``left``-th command from now."""

    left = 1_000_000

    def execute_command(self, *args, **options):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt("killed")
        return super().execute_command(*args, **options)

    def pipeline(self, *args, **options):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt("killed")
        return super().pipeline(*args, **options)


@pytest.mark.services
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(5)),
    deaths=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=8),
)
def test_tracklets_survive_any_death_of_the_worker(client, order, deaths):
    """Killed between any two commands to Redis, or before what it made was confirmed; what it had in hand comes again,
    sooner or later: exposures of several channels have no order of their own."""
    client.flushdb()
    waiting, held = list(order), {}
    while waiting:
        k = waiting.pop(0)
        death, later = deaths.pop(0) if deaths else (None, False)
        dying = Dying(connection_pool=client.connection_pool)
        dying.left = 1_000_000 if death is None else death
        try:
            outs = LinkStage(dying).handle(message("ztf.scored", encode_batch(moving(k))))
        except KeyboardInterrupt:
            outs = None
        if outs is None or death is not None:  # what was not confirmed may be on the topic all the same, or not
            waiting.insert(len(waiting) if later else 0, k)
        if outs is not None and (death is None or later):
            held |= {(out.topic, out.key): out.value for out in outs}
    stage, night = LinkStage(client), night_of(moving(0).jd)
    (tracklet,), (mover,) = stage.linked(night), stage.linked(night, 1)
    assert len(tracklet.candids) == len(mover.candids) == 5
    assert decode_tracklet(held["ztf.tracklets", str(tracklet.trackid).encode()]) == tracklet
    (public,) = fastavro.reader(io.BytesIO(held["ztf.movers", str(mover.trackid).encode()]))
    assert tuple(public["candids"]) == mover.candids


@pytest.mark.services
@pytest.mark.parametrize("jump", [-86_400.0, -1.0, 0.25, 10 * 365.25 * 86_400.0])
def test_a_clock_that_jumps_changes_nothing_but_the_ledger(client, jump):
    """The machine's clock is wrong from ``enrich`` on: the packet's times are the camera's, so are its topics."""
    right = 1601867000.0

    def sent(now: float) -> list:
        client.flushdb()
        whole_state(client)
        batch = fresh_batch(3)
        scored = message("ztf.scored", encode_batch(batch), *ledger.encode({"scored": right}))
        (enriched,) = EnrichStage(client, clock=lambda: now).handle(scored)
        incoming = RawMessage(enriched.topic, 0, 0, enriched.key, enriched.value, enriched.headers)
        return MakeAlerts(lambda *refused: pytest.fail(str(refused)), clock=lambda: now + 0.5)(incoming)

    usual, jumped = sent(right + 1.0), sent(right + jump)
    assert len(jumped) == len(usual) == 9  # on three topics each
    for a, b in zip(usual, jumped, strict=True):
        assert (a.topic, a.key, a.candid) == (b.topic, b.key, b.candid)
        one, other = read_packet(a.value), read_packet(b.value)
        times = [other["zsds"][name] for name in LEDGER if other["zsds"][name] is not None]
        assert times == sorted(times), "no stage before the one that it follows"
        for record in (one, other):
            record["zsds"] |= dict.fromkeys(LEDGER)
        assert write_packet(one) == write_packet(other)
