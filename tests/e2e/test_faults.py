"""Bad input through the running system: a clear outcome for what is bad, while everything else goes on undisturbed."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from conftest import counted, reports_of, stem_of
from nights import ztf_stream

from stream.archive import ProductStore, public_part, read_manifest
from stream.archive.manifest import candid_hash
from stream.archive.paths import SCIENCE_SUFFIXES, science_path
from stream.core.identity import night_of, pid_of_candid
from stream.core.records import Status
from stream.engine.kafka import read_to_end

pytestmark = [pytest.mark.services, pytest.mark.slow]


def alerts_of(system, packet) -> Counter:
    """Alerts (by candid) of one exposure, as often as a reader of uncommitted messages met them."""
    stem = stem_of(packet)
    found = (p for packets in system.gathered.alerts.values() for p in packets)
    return Counter(p["candid"] for p in found if p["candidate"]["pdiffimfilename"].startswith(stem))


def test_ingest_says_what_became_of_each_file(faults):
    assert faults.said.status == 1
    outcomes = {name: faults.outcome(name)["outcome"] for name in faults.packets}
    assert outcomes == {
        "cut": "partial", "truncated": "failed", "sum": "partial", "rice": "sent", "flat": "sent",
        "no reference": "sent", "another ccd": "sent", "good": "sent",
    }  # fmt: skip
    assert faults.said.rows()[-1]["outcome"] == "seen"


@pytest.mark.parametrize(
    ("name", "hurt", "worker", "reason"),
    [
        ("cut", {4}, "ingest", "the file ends at"),
        ("truncated", {1, 2, 3, 4}, "ingest", "fetch the file again"),
        ("sum", {2}, "ingest", "DATASUM"),
        ("rice", {2}, "ztf-pixels", "does not decompress"),
    ],
)
def test_a_hurt_extension_costs_its_own_quadrant(faults, name, hurt, worker, reason):
    assert {qid for qid, r in faults.reports(name).items() if r.status is Status.OK} == {1, 2, 3, 4} - hurt
    letters = faults.letters(name)
    assert len(letters) == len(hurt)
    for letter in letters:
        assert letter.stage == "ingest"
        assert letter.error == "PacketError"
        assert reason in letter.reason
        assert letter.worker.startswith(worker)
        assert letter.state == "open"
        assert "Get it again" in letter.what_to_do
    with_rid = {int(x.context["rid"]) % 100 for x in letters}
    assert with_rid == {qid - 1 for qid in hurt}
    # Each has its quality record too, with the letter's reason: nobody waits for it, and `status` counts it.
    records = {r.rid: r for r in faults.reports(name).values()}
    assert len(records) == 4
    for letter in letters:
        record = records[int(letter.context["rid"])]
        assert (record.status, record.stage, record.procstatus) == (Status.FAILED, "ingest", 0)
        assert record.reason == letter.reason


def test_a_quadrant_of_one_number_fails_with_a_reason_and_the_others_do_not(faults):
    reports = faults.reports("flat")
    assert {qid: r.status for qid, r in reports.items()} == {
        1: Status.OK, 2: Status.FAILED, 3: Status.FAILED, 4: Status.OK
    }  # fmt: skip
    assert (reports[2].stage, reports[3].stage) != (None, None)
    assert "every pixel is 65535" in reports[2].reason
    assert "every pixel is 1000" in reports[3].reason
    letters = {x.context["name"]: x for x in faults.letters("flat")}
    assert set(letters) == {reports[2].name, reports[3].name}
    for qid in (2, 3):
        letter = letters[reports[qid].name]
        assert (letter.stage, letter.reason) == (reports[qid].stage, reports[qid].reason)
        assert letter.stage != "unknown"
        assert "Error" in letter.traceback
    sent = {pid_of_candid(candid) for candid in alerts_of(faults.system, faults.packets["flat"])}
    assert sent == {reports[qid].pid for qid in (1, 4)}


def test_without_a_reference_science_products_are_made(faults):
    store = ProductStore(faults.system.settings.store)
    reports = faults.reports("no reference")
    assert {r.status for r in reports.values()} == {Status.NO_REFERENCE}
    for report in reports.values():
        assert "reference build" in report.reason
        assert report.magzp is not None
        made = {suffix for suffix in SCIENCE_SUFFIXES if store.stamp(science_path(report.name, suffix)) is not None}
        assert {"sciimg.fits.fz", "mskimg.fits.fz", "psfcat.fits", "qa.json"} <= made
        assert "scimrefdiffimg.fits.fz" not in made
    assert faults.letters("no reference") == []
    assert not alerts_of(faults.system, faults.packets["no reference"])


def test_good_quadrants_among_the_bad_ones_are_not_held_up(faults):
    """The fault costs the quadrants behind it no retry and no wait: they take as long as those of a good packet."""
    gathered = faults.system.gathered

    def latest(name: str) -> float:
        ledgers = [gathered.ledgers[report.pid] for report in faults.reports(name).values()]
        return max(times["subtracted"] - times["calibrated"] for times in ledgers if "calibrated" in times)

    for name in ("cut", "sum", "rice", "flat"):
        assert latest(name) < 3 * latest("good") + 5
        expected = sum(r.n_candidates or 0 for r in faults.reports(name).values())
        assert len(alerts_of(faults.system, faults.packets[name])) == expected > 0


def test_a_packet_that_comes_again_is_sent_once(faults):
    system = faults.system
    good = faults.packets["good"]
    (again,) = faults.again.rows()
    assert (again["outcome"], again["quadrants"]) == ("sent", 4)
    pids = {report.pid for report in reports_of(system.gathered, good).values()}
    assert counted(system, "ztf.quadrants", pids) == 8, "asked for with --again it is processed twice"
    alerts = alerts_of(system, good)
    assert len(alerts) == sum(r.n_candidates for r in faults.reports("good").values()) > 0
    assert set(alerts.values()) == {1}
    first = alerts_of(system, system.night.science[1])
    assert set(first.values()) == {1}


def test_the_manifest_of_the_night_says_what_was_lost_and_why_and_which_ccd_never_came(faults):
    system, night = faults.system, "20201005"
    system.call("night", "close", "--night", night, "--now").ok()
    system.settled()
    manifest = read_manifest(ProductStore(system.settings.store), night)
    public = manifest["programs"]["1"]
    reports = [r for r in system.gathered.reports.values() if night_of(r.jd) == night]
    failed = {r.name: (r.stage, r.reason) for r in reports if r.status is Status.FAILED}
    assert {row["name"]: (row["stage"], row["reason"]) for row in public["failed"]} == failed
    hurt = {"cut": {4}, "truncated": {1, 2, 3, 4}, "sum": {2}, "rice": {2}, "flat": {2, 3}}
    for name, qids in hurt.items():
        stem = stem_of(faults.packets[name])
        assert {f"{stem}_q{qid}" for qid in qids} == {each for each in failed if each.startswith(stem)}
        for letter in faults.letters(name):
            assert any(row["reason"] == letter.reason for row in public["failed"] if row["name"].startswith(stem))
    assert manifest["unassigned"] == [], "each hurt quadrant has a record that says what became of it"
    counts = public["quadrants"]
    assert counts["received"] == len(reports) == sum(counts[k] for k in ("processed", "no_reference", "failed", "lost"))
    second = {r.expid for r in faults.reports("another ccd").values()}
    assert public["never_came"] == {str(r.expid): [4, 5, 6, 7] for r in reports if r.expid not in second} | {
        str(expid): [0, 1, 2, 3] for expid in second
    }
    sent = [p["candid"] for p in system.gathered.alerts[f"ztf_{night}_programid1"]]
    assert (public["alerts"], public["sha256_candids"]) == (len(sent), candid_hash(sent))
    told = [json.loads(m.value) for m in read_to_end(system.settings, {"ztf.nights": {}}, "test") if m.key]
    assert public_part(manifest) in told


def test_dead_letters_can_be_listed_by_stage(faults):
    rows = faults.system.call("deadletter", "list", "--json").ok().rows()
    of_ingest = faults.system.call("deadletter", "list", "--stage", "ingest", "--json").ok().rows()
    assert {row["id"] for row in of_ingest} == {row["id"] for row in rows if row["stage"] == "ingest"}
    assert len(of_ingest) == 1 + 4 + 1 + 1
    table = faults.system.call("deadletter", "list").ok().out
    assert "DATASUM" in table
    unknown = faults.system.call("deadletter", "show", "nothing")
    assert unknown.status == 1
    assert "no dead letter" in unknown.err


def test_a_file_s_letter_cannot_be_retried_and_says_what_to_do(faults):
    (letter,) = faults.letters("sum")
    said = faults.system.call("deadletter", "retry", letter.id, "--json")
    assert said.status == 1
    (row,) = said.rows()
    assert row["state"] == "failed"
    assert "ztf-stream ingest" in row["reason"]


def test_a_sky_without_gaia_is_given_up_and_comes_back_when_it_is_imported(elsewhere):
    assert elsewhere.ingested.ok().rows()[0]["outcome"] == "sent"
    assert {r.status for r in elsewhere.before.values()} == {Status.FAILED}
    assert {r.stage for r in elsewhere.before.values()} == {"astrometry"}
    first = elsewhere.before[1]
    assert "catalog import gaia" in first.reason
    assert first.name in elsewhere.shown.ok().out
    assert first.reason in elsewhere.shown.out
    assert len(elsewhere.letters) == 4
    elsewhere.imported.ok()
    assert elsewhere.retried.ok().rows()[0] | {"id": ""} == {
        "id": "", "state": "retried", "topic": "ztf.raw", "attempts": 1
    }  # fmt: skip
    after = reports_of(elsewhere.system.gathered, elsewhere.packet)
    assert after[1].status is Status.OK
    alerts = alerts_of(elsewhere.system, elsewhere.packet)
    assert len(alerts) == after[1].n_candidates >= 5
    assert "ztf_20201007_programid1" in elsewhere.system.gathered.alerts
    assert set(alerts.values()) == {1}
    listed = elsewhere.system.call("deadletter", "list", "--json").ok().rows()
    assert first.name not in {row["context"].get("name") for row in listed}
    everything = elsewhere.system.call("deadletter", "list", "--all", "--json").ok().rows()
    states = {row["context"].get("name"): row["state"] for row in everything}
    assert states[first.name] == "retried"


def test_a_retry_before_the_cause_is_gone_opens_the_letter_again(elsewhere):
    name = elsewhere.before[2].name  # no stars there, with or without Gaia
    (letter,) = [row for row in elsewhere.letters if row["context"]["name"] == name]
    elsewhere.system.call("deadletter", "retry", letter["id"]).ok()
    elsewhere.system.until("the second failure", lambda g: g.letters[letter["id"]].attempts == 2)
    (row,) = [x for x in elsewhere.system.call("deadletter", "list", "--json").rows() if x["id"] == letter["id"]]
    assert (row["state"], row["attempts"]) == ("open", 2)


def test_without_calibration_frames_the_overscan_is_still_removed(night, tmp_path):
    store = night.sibling(tmp_path / "store", "catalogs", "ref")
    said = ztf_stream("process", night.science[1], "--store", store, "--json", "--workers", 1, "--no-score")
    assert {row["status"] for row in said.ok().rows()} == {"ok"}
    for row in said.rows():
        assert {"no_bias", "no_flat"} <= set(row["notes"])
        assert row["calids"] == []
        assert 280 < row["scibckgnd"] < 350  # DN: the bias level is 1,000


def test_status_knows_the_running_system(elsewhere):
    said = elsewhere.system.call("status", "--json").ok()
    (state,) = said.rows()
    assert state["stuck"] == []
    assert {one["role"] for one in state["alive"]} == {
        "pixels",
        "score",
        "enrich",
        "link",
        "monitor",
        "emit",
        "archive",
        "nights",
    }
    assert set(state["lag"]) >= {"pixels", "score", "enrich", "emit"}
    (night,) = [n for n in state["nights"] if n["night"] == "20201005"]
    reports = [r for r in elsewhere.system.gathered.reports.values() if night_of(r.jd) == "20201005"]
    counts = Counter(str(r.status) for r in reports)
    assert night["quadrants"] == dict(counts)
    assert night["candidates"] == sum(r.n_candidates or 0 for r in reports)
    assert elsewhere.system.call("status").ok().out.count("ztf-pixels") == 2


def test_alerts_tail_reads_as_a_subscriber(streamed):
    said = streamed.system.call("alerts", "tail", "--from-beginning", "--limit", 20, "--seconds", 60, "--json").ok()
    rows = said.rows()
    assert len(rows) == 20
    known = {p["candid"] for packets in streamed.system.gathered.alerts.values() for p in packets}
    assert {row["candid"] for row in rows} <= known
    assert {row["topic"] for row in rows} <= set(streamed.system.gathered.alerts)


def test_topics_of_the_running_system_are_as_stated(streamed):
    said = streamed.system.call("topics", "diff", "--json")
    assert said.status == 0, said.out
