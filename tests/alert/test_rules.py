"""Each rule of the brokers: a packet that keeps it passes, a packet that breaks it is named and never emitted."""

from __future__ import annotations

import copy
from typing import Any

import alert_samples as samples
import numpy as np
import pytest

from stream.alert import build_packet, emit_packet, encode_stamp, packet_problems
from stream.core.errors import AlertError

JD = samples.JD


@pytest.fixture
def record() -> dict[str, Any]:
    item = samples.item()
    return copy.deepcopy(build_packet(item, samples.batch(item), {}))


def test_the_sample_breaks_no_rule(record: dict[str, Any]) -> None:
    assert packet_problems(record) == []
    del record["zsds"]  # the survey's own packets have none
    assert packet_problems(record) == []


def test_negative_candidate_passes_too() -> None:
    item = samples.item(positive=False)
    made = build_packet(item, samples.batch(item), {})
    assert packet_problems(made) == []
    assert made["cutoutDifference"]["fileName"].endswith("_targ_refmsci.fits.gz")


BROKEN = [
    ("schemavsn", "4.03", "schemavsn"),
    ("objectId", "ZTF18ABCDEFG", "objectId"),
    ("objectId", "ZTF33abcdefg", "objectId"),
    ("objectId", None, "objectId"),
    ("candid", 1, "candid 1 at the top"),
    ("candidate.programid", 4, "programid 4"),
    ("candidate.fid", 4, "fid 4"),
    ("candidate.isdiffpos", "1", "isdiffpos"),
    ("candidate.isdiffpos", "f", "does not follow from sign"),
    ("candidate.magpsf", None, "magpsf may not be null"),
    ("candidate.diffmaglim", None, "diffmaglim is null"),
    ("candidate.sky", float("nan"), "not finite"),
    ("candidate.scorr", float("inf"), "not finite"),
    ("candidate.chipsf", np.float32("nan"), "chipsf"),
    ("zsds.flux", float("nan"), "flux"),
    ("candidate.jd", JD + 0.001, "does not follow from jd"),
    ("candidate.nid", 1, "nid 1"),
    ("candidate.tblid", 4, "tblid 4"),
    ("candidate.tblid", 5000, "outside 0"),
    ("candidate.pid", samples.PID + 100_000_000, "is not of pid"),
    ("candidate.magdiff", 0.5, "magdiff"),
    ("candidate.magfromlim", 1.0, "magfromlim"),
    ("candidate.elong", 1.2, "elong"),
    ("candidate.aimagerat", 1.2, "aimagerat"),
    ("candidate.bimagerat", 1.2, "bimagerat"),
    ("candidate.dsdiff", 2.0, "dsdiff"),
    ("candidate.jdendhist", JD - 1, "jdendhist"),
    ("candidate.mindtoedge", 30.0, "mindtoedge"),
    ("candidate.nneg", 3, "nneg 3"),
    ("candidate.nmtchps", 3, "nmtchps 3"),
    ("candidate.distpsnr2", 0.25, "ascend"),
    ("candidate.distpsnr1", None, "neighbours"),
    ("candidate.sgscore1", 1.5, "sgscore1"),
    ("prv_candidates.0.jd", JD + 1, "time order"),
    ("prv_candidates.0.jd", JD - 31, "30 days"),
    ("prv_candidates.0.magpsf", None, "neither a detection"),
    ("prv_candidates.1.candid", 7, "neither a detection"),
    ("prv_candidates.1.diffmaglim", None, "without diffmaglim"),
    ("prv_candidates.0.ra", 150.001, "arcsec away"),
    ("prv_candidates.0.programid", 2, r"prv_candidates\[0\] is of programid 2"),
    ("prv_candidates.1.rbversion", None, "rbversion may not be null"),
    ("fp_hists.0.forcediffimflux", None, "leave such a point out"),
    ("fp_hists.0.magzpsci", None, "magzpsci null"),
    ("fp_hists.1.jd", JD - 3, "jd twice"),
    ("fp_hists.0.programid", 3, r"fp_hists\[0\] is of programid 3"),
    ("cutoutScience", None, "cutoutScience is missing"),
    ("cutoutTemplate.fileName", "a.fits.gz", "is called"),
    ("cutoutTemplate.stampData", b"junk", "not gzip"),
    ("cutoutTemplate.stampData", b"", "is missing"),
]


@pytest.mark.parametrize(("path", "value", "words"), BROKEN)
def test_a_broken_rule_is_named(record: dict[str, Any], path: str, value: Any, words: str) -> None:
    import re

    problems = packet_problems(samples.changed(record, path, value))
    assert any(re.search(words, problem) for problem in problems), problems


def test_missing_and_unknown_keys(record: dict[str, Any]) -> None:
    del record["fp_hists"]
    assert packet_problems(record) == ["top record lacks fp_hists"]
    record["fp_hists"] = None
    record["coordinates"] = {}
    record["candidate"]["extra"] = 1
    del record["prv_candidates"][0]["rb"]
    problems = packet_problems(record)
    assert len(problems) == 3
    assert "coordinates" in problems[0]


def test_history_may_not_hold_the_alert_or_a_candid_twice(record: dict[str, Any]) -> None:
    itself = samples.prv_row(JD - 1, candid=record["candid"])
    assert any("alert itself" in p for p in packet_problems({**record, "prv_candidates": [itself]}))
    twice = [samples.prv_row(JD - 2, candid=5), samples.prv_row(JD - 1, candid=5)]
    assert any("candid twice" in p for p in packet_problems({**record, "prv_candidates": twice}))


def test_other_programs_may_see_more(record: dict[str, Any]) -> None:
    changed = samples.changed(samples.changed(record, "candidate.programid", 2), "prv_candidates.0.programid", 2)
    assert packet_problems(changed) == []


def test_stamp_of_wrong_size_or_without_content(record: dict[str, Any]) -> None:
    import gzip

    from stream.alert.stamps import _header

    big = gzip.compress(_header(64, 64) + samples.stamp(1, (64, 64)).astype(">f4").tobytes())
    assert any("64 x 64" in p for p in packet_problems(samples.changed(record, "cutoutScience.stampData", big)))
    empty = gzip.compress(_header(63, 63) + bytes(4 * 63 * 63))
    assert any("zeros or NaN" in p for p in packet_problems(samples.changed(record, "cutoutScience.stampData", empty)))
    edge = encode_stamp(samples.stamp(1, (40, 63)))
    assert packet_problems(samples.changed(record, "cutoutDifference.stampData", edge)) == []


def test_zero_denominators_and_missing_operands_pass(record: dict[str, Any]) -> None:
    for path, value in (("candidate.bimage", 0.0), ("candidate.magap", None), ("candidate.rcid", None)):
        changed = samples.changed(record, path, value)
        changed["candidate"]["bimagerat"] = changed["candidate"]["elong"] = None
        assert packet_problems(changed) == []


def test_a_packet_that_breaks_rules_is_not_emitted_and_all_are_listed() -> None:
    item = samples.item()
    item.candidate["magdiff"] = 3.0
    item.candidate["elong"] = 9.0
    with pytest.raises(AlertError, match=r"magdiff.*elong") as caught:
        emit_packet(item, samples.batch(item), {})
    assert caught.value.context == {"candid": item.candidate["candid"], "problems": 2}
