"""A place that the partnership observed first and the public survey later: what the public packet may tell."""

from __future__ import annotations

from pathlib import Path

import bad_packets as bad
import pytest
from astropy.io import fits
from conftest import reports_of, stem_of

from stream.alert import read_packet
from stream.core.records import Status
from stream.engine.kafka import read_to_end

pytestmark = [pytest.mark.services, pytest.mark.slow]
# Long after the exposures that the other tests stream: hours within the night, days of the history.
PRIVATE, OPEN = 3000, 3600


def of_program(program: int):
    """A change of a packet that makes it another program's."""

    def change(hdus: fits.HDUList) -> None:
        hdus[0].header["PROGRMID"] = program
        hdus[0].add_checksum()

    return change


@pytest.fixture(scope="module")
def observed(streamed, tmp_path_factory) -> dict[int, list[dict]]:
    """Packets by program of one sky, seen by program 2 and ten minutes later by program 1, through the whole stream."""
    system, folder = streamed.system, tmp_path_factory.mktemp("private")
    good = system.night.science[1]
    packets: dict[int, Path] = {}
    for program, seconds in ((2, PRIVATE), (1, OPEN)):
        packets[program] = bad.later(good, folder, seconds, change=of_program(program))
        system.call("ingest", packets[program], "--json").ok()
        system.until("the exposure", lambda g, p=program: len(reports_of(g, packets[p])) == 4)
        system.settled()
    for packet in packets.values():
        assert {r.status for r in reports_of(system.gathered, packet).values()} == {Status.OK}
    found = [p for sent in system.gathered.alerts.values() for p in sent]
    return {
        program: [p for p in found if p["candidate"]["pdiffimfilename"].startswith(stem_of(packet))]
        for program, packet in packets.items()
    }


def test_each_program_s_alerts_are_on_its_own_topics(observed, streamed):
    assert {p["candidate"]["programid"] for p in observed[2]} == {2}
    assert {p["candidate"]["programid"] for p in observed[1]} == {1}
    private = {p["candid"] for p in observed[2]}
    assert len(private) > 10
    settings = streamed.system.settings
    for topic in ("ztf.alerts.programid1", "ztf.alerts.light.programid1"):
        public = {int(m.header("candid")) for m in read_to_end(settings, {topic: {}}, "test")}
        assert {p["candid"] for p in observed[1]} <= public
        assert not public & private
    theirs = {int(m.header("candid")) for m in read_to_end(settings, {"ztf.alerts.programid2": {}}, "test")}
    assert theirs == private


def test_a_public_packet_tells_nothing_of_the_private_exposure(observed):
    private_objects = {p["objectId"] for p in observed[2]}
    private_jd = {p["candidate"]["jd"] for p in observed[2]}
    again = [p for p in observed[1] if p["objectId"] in private_objects]
    assert len(again) > 10, "the same sky: most objects were seen by both"
    for packet in observed[1]:
        rows = [*(packet["prv_candidates"] or ()), *(packet["fp_hists"] or ())]
        assert {row["programid"] for row in rows} <= {1}
        assert not {row["jd"] for row in rows} & private_jd
        assert packet["candidate"]["jdstarthist"] not in private_jd


def test_a_private_packet_knows_the_public_epochs(observed):
    """The rule withholds what is private, not what is public: else the test above would hold for an empty history."""
    rows = [row for p in observed[2] for row in p["prv_candidates"] or ()]
    assert {row["programid"] for row in rows} == {1}
    assert len(rows) > 10


def test_counts_of_a_public_packet_leave_private_epochs_out(observed):
    public = {p["objectId"]: p["candidate"] for p in observed[1]}
    private = {p["objectId"]: p["candidate"] for p in observed[2]}
    both = sorted(public.keys() & private.keys())
    assert len(both) > 10
    for name in both:
        # Ten minutes apart and nothing public between: the public one counts what the private one counted, which
        # counted itself, and leaves that one out.
        assert public[name]["ncovhist"] == private[name]["ncovhist"]


def test_light_packets_carry_no_more_than_the_full_ones(observed, streamed):
    full = {p["candid"]: p for p in observed[1]}
    for message in read_to_end(streamed.system.settings, {"ztf.alerts.light.programid1": {}}, "test"):
        candid = int(message.header("candid"))
        if candid in full:
            light = read_packet(message.value)
            assert light["prv_candidates"] == full[candid]["prv_candidates"]
            assert message.key == light["objectId"].encode()
            assert light["cutoutScience"] is None
