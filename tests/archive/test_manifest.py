"""The statement about a night: it adds up, does not depend on the order of things, and keeps secrets."""

from __future__ import annotations

import hashlib
import json
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from stream.archive.manifest import (
    candid_hash,
    encode,
    iso,
    make_manifest,
    packet_hash,
    public_part,
    same_statement,
    unix_of,
)
from stream.core.records import QuadrantReport, Status

NIGHT, CLOSED = "20181129", 1_543_510_000.0


def quadrant(exposure: int, rcid: int, program: int, status: Status) -> QuadrantReport:
    expid = 69700000 + exposure
    names = f"q{exposure}-{rcid}", 1, 1, 1, 1, rcid, program, 697, expid, expid * 100 + rcid, 1
    return QuadrantReport(*names, 2458452.0, 2458452.0, 30.0, status, stage="s", reason="r")


REPORTS = st.lists(
    st.builds(quadrant, st.integers(0, 3), st.integers(0, 5), st.sampled_from([1, 2]), st.sampled_from(list(Status))),
    unique_by=lambda report: report.rid,
)
LOST = st.lists(
    st.builds(
        lambda exposure, rcid, program: {
            "name": f"l{exposure}", "rid": (69700000 + exposure) * 100 + rcid, "programid": program, "stage": "ingest",
            "reason": "cut",
        },
        st.integers(0, 3), st.integers(0, 5), st.sampled_from([1, 2, None]),
    ),
    unique_by=lambda row: row["rid"],
)  # fmt: skip
ALERTS = st.lists(
    st.builds(
        lambda candid, published, p, o: {
            "candid": candid, "published": published, "topic": f"ztf_{NIGHT}_programid1", "partition": p,
            "kafka_offset": o, "sha256": hashlib.sha256(str(candid).encode()).hexdigest(),
        },
        st.integers(1, 10**18), st.floats(CLOSED - 1e4, CLOSED + 1e4), st.integers(0, 3), st.integers(0, 1000),
    ),
    unique_by=lambda row: row["candid"],
)  # fmt: skip


@given(REPORTS, LOST, ALERTS, st.randoms())
def test_it_adds_up_whatever_the_order(reports, lost, alerts, random):
    manifest = make_manifest(NIGHT, {1: alerts}, reports, lost, CLOSED)
    for program, said in manifest["programs"].items():
        q = said["quadrants"]
        assert q["received"] == q["processed"] + q["no_reference"] + q["failed"] + q["lost"]
        assert q["failed"] == len(said["failed"])
        assert q["lost"] == len(said["lost"])
        assert q["never_came"] == sum(map(len, said["never_came"].values()))
        mine = [r for r in reports if str(r.programid) == program]
        assert q["processed"] == sum(r.status is Status.OK for r in mine)
    gone = [row for row in lost if row["rid"] not in {r.rid for r in reports}]
    told = sum(said["quadrants"]["lost"] for said in manifest["programs"].values()) + len(manifest["unassigned"])
    assert told == len(gone)
    random.shuffle(reports), random.shuffle(lost), random.shuffle(alerts)
    assert encode(make_manifest(NIGHT, {1: alerts}, reports, lost, CLOSED)) == encode(manifest)


@given(ALERTS, ALERTS)
def test_a_later_version_knows_what_was_late(first, more):
    one = make_manifest(NIGHT, {1: first}, [], [], CLOSED)
    assert one["version"] == 1
    everything = list({row["candid"]: row for row in [*first, *more]}.values())
    two = make_manifest(NIGHT, {1: everything}, [], [], CLOSED + 5e4, one)
    assert (two["version"], two["first_closed"]) == (2, one["closed"])
    late = sum(row["published"] > unix_of(one["closed"]) for row in everything)
    assert two["programs"]["1"]["late_alerts"] == late
    assert same_statement(one, two) == (
        sorted((r["candid"], r["partition"], r["kafka_offset"]) for r in first)
        == sorted((r["candid"], r["partition"], r["kafka_offset"]) for r in everything)
    )


def test_the_hash_is_what_a_shell_makes_of_the_candids():
    candids = [697523840815015003, 697523840815015001, 697523840815015002]
    lines = "".join(f"{candid}\n" for candid in candids)
    shell = subprocess.run("sort -n | sha256sum", input=lines, shell=True, capture_output=True, text=True, check=True)
    assert shell.stdout.split()[0] == candid_hash(candids)
    rows = [{"candid": c, "sha256": "ab"} for c in candids]
    assert packet_hash(rows) == packet_hash(reversed(rows)) != packet_hash(rows[:2])


@given(REPORTS, LOST, ALERTS)
def test_the_public_part_is_of_program_1_alone(reports, lost, alerts):
    manifest = make_manifest(NIGHT, {1: [], 2: alerts}, reports, lost, CLOSED)
    public = public_part(manifest)
    assert set(public["programs"]) == {"1"}
    assert public["programs"]["1"] == manifest["programs"]["1"]
    changed = make_manifest(NIGHT, {1: [], 2: []}, [r for r in reports if r.programid == 1],
                            [row for row in lost if row["programid"] == 1], CLOSED)  # fmt: skip
    if not {r.rid for r in reports if r.programid != 1} & {row["rid"] for row in lost}:
        assert json.dumps(public_part(changed)) == json.dumps(public)


def test_times_are_utc_and_survive():
    assert iso(0.0) == "1970-01-01T00:00:00.000Z"
    assert unix_of(iso(1_543_510_000.125)) == 1_543_510_000.125
