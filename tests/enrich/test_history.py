"""Object identity and history: the pure decisions by tables and properties, both memories against each other."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import redis
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import example, given
from hypothesis import strategies as st
from services import whole_state

from stream.core.records import BatchItem, CandidateBatch, QuadrantReport
from stream.enrich import MemoryHistory, RedisHistory, enrich_batch
from stream.enrich import history as h
from stream.enrich.redis_history import footprint_cells

RA = st.floats(0, 360, exclude_max=True, allow_nan=False)
DEC = st.floats(-89.9, 89.9, allow_nan=False)
PRV_FIELDS = ("jd", "fid", "pid", "programid", "candid", "isdiffpos", "ra", "dec", "magpsf", "field", "rcid")


def report(
    pid: int, jd: float, ra: float = 150.0, dec: float = 20.0, half: float = 0.43, **more: Any
) -> QuadrantReport:
    """Quality record of an epoch whose footprint is a square about a place."""
    w = half / math.cos(math.radians(dec))
    corners = [ra + w, dec + half, ra - w, dec + half, ra - w, dec - half, ra + w, dec - half]
    values: dict[str, Any] = {
        "field": 500, "fid": 2, "ccdid": 1, "qid": 1, "rcid": 0, "programid": 1, "nid": int(jd - 2457754.5),
        "expid": pid // 10_000, "rid": pid // 100, "pid": pid, "jd": jd, "jd_mid": jd, "exptime": 30.0,
        "diffmaglim": 20.5, "corners": corners,
    }  # fmt: skip
    return QuadrantReport(name=f"q{pid}", **{**values, **more})


def batch_at(pid: int, jd: float, places: list[tuple[float, float]], programid: int = 1) -> CandidateBatch:
    """A batch of detections at the given places."""
    items = []
    for i, (ra, dec) in enumerate(places):
        row = {
            "jd": jd, "fid": 2, "pid": pid, "programid": programid, "candid": pid * 1_000_000 + 15_000 + i,
            "isdiffpos": "t", "ra": ra, "dec": dec, "magpsf": 18.0, "field": 500, "rcid": 0,
        }  # fmt: skip
        items.append(BatchItem(row, {}, (b"", b"", b"")))
    return CandidateBatch(f"q{pid}", pid, 500, 2, 0, programid, jd, jd, 30.0, 0, 1, items)


@pytest.fixture(params=["memory", "redis"])
def memory(request: pytest.FixtureRequest) -> h.History:
    """Both memories: whatever one does, the other must do."""
    if request.param == "memory":
        return MemoryHistory()
    client = redis.Redis.from_url(request.getfixturevalue("redis_url"))
    client.flushall()
    whole_state(client)
    return RedisHistory(client)


@given(jd_year=st.integers(2017, 2032), candid=st.integers(0, 2**62), attempt=st.integers(0, 8))
def test_names_are_what_brokers_accept(jd_year: int, candid: int, attempt: int) -> None:
    assert re.fullmatch(r"ZTF[1-3]\d[a-z]{7}", h.object_name(jd_year, candid, attempt))


def test_neighbouring_candids_get_different_names() -> None:
    names = {h.object_name(2020, 10**17 + i) for i in range(20_000)}
    assert len(names) == 20_000


@given(ra=RA, dec=DEC, dra=st.floats(-10, 10), ddec=st.floats(-10, 10))
def test_separation_agrees_with_astropy(ra: float, dec: float, dra: float, ddec: float) -> None:
    other = (ra + dra / 3600, max(-90.0, min(90.0, dec + ddec / 3600)))
    expected = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(*other, unit="deg")).arcsec
    assert h.separation(ra, dec, *other) == pytest.approx(expected, abs=1e-5)


@example(ra=0.0, dec=1.1, angle=0.0, distance=1.0)  # on a border between bands
@given(ra=RA, dec=DEC, angle=st.floats(0, 6.3), distance=st.floats(0, 1.49))
def test_whatever_lies_within_the_match_radius_is_found_in_the_cells_around(
    ra: float, dec: float, angle: float, distance: float
) -> None:
    moved = SkyCoord(ra, dec, unit="deg").directional_offset_by(angle * u.rad, distance * u.arcsec)
    cell = h.cell_of(float(moved.ra.deg), float(moved.dec.deg), h.OBJECT_CELL)
    assert cell in h.cells_around(ra, dec, h.OBJECT_CELL)


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        ((150.0, 20.0), True),
        ((150.4, 20.4), True),
        ((150.0, 20.45), False),
        ((150.5, 20.0), False),
        ((330.0, -20.0), False),
    ],
)
def test_a_footprint_covers_what_is_inside_its_corners(place: tuple[float, float], inside: bool) -> None:
    assert h.covers(report(1, 2458850.5).corners, *place) == inside


def test_footprints_work_across_midnight_of_right_ascension() -> None:
    corners = report(1, 2458850.5, ra=359.9).corners
    assert h.covers(corners, 0.1, 20.0)
    assert h.covers_nearly(corners, 0.1, 20.0)
    assert not h.covers_nearly(corners, 180.0, 20.0)
    assert h.cell_of(0.1, 20.0, 1.0) in footprint_cells(corners)


def test_history_is_the_last_thirty_days_in_order_without_the_event_itself() -> None:
    rows = [{"jd": 100.0 + d, "candid": d, "pid": d, "programid": 1 + (d == 5)} for d in (40, 39, 5, 12, 20)]
    limits = [{"jd": 100.0 + d, "pid": d, "programid": 1} for d in (20, 25, 2)]
    got = h.assemble_history(rows, limits, jd=140.0, candid=40, programids=(1,))
    # 40 is the event, 5 private (and too old), 2 too old; the limit of epoch 20 is a detection already.
    assert [(r["jd"], r.get("candid")) for r in got] == [(112.0, 12), (120.0, 20), (125.0, None), (139.0, 39)]


@pytest.mark.parametrize(("programid", "visible"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3))])
def test_public_packets_carry_public_photometry_only(programid: int, visible: tuple[int, ...]) -> None:
    assert h.visible_programs(programid) == visible


@pytest.mark.services
def test_two_epochs_of_one_place_make_one_object_with_a_history(memory: h.History) -> None:
    first, second = (
        batch_at(10, 2458850.6, [(150.0, 20.0), (150.1, 20.1)]),
        batch_at(11, 2458851.6, [(150.0001, 20.0001)]),
    )
    for pid, jd in ((8, 2458848.6), (10, 2458850.6), (11, 2458851.6)):
        memory.add_epoch(report(pid, jd))
    enrich_batch(first, memory, PRV_FIELDS)
    enrich_batch(second, memory, PRV_FIELDS)
    (event,) = second.items
    assert event.object_id == first.items[0].object_id != first.items[1].object_id
    assert event.prv_candidates is not None
    assert [row["jd"] for row in event.prv_candidates] == [2458848.6, 2458850.6]
    limit = event.prv_candidates[0]
    assert set(PRV_FIELDS) <= set(limit)
    assert limit["candid"] is limit["ra"] is limit["magpsf"] is None
    assert limit["diffmaglim"] == 20.5
    assert event.prv_candidates[1]["candid"] == first.items[0].candidate["candid"]
    assert (event.candidate["ndethist"], event.candidate["ncovhist"]) == (2, 3)
    assert event.candidate["jdstarthist"] == 2458850.6
    assert event.candidate["jdendhist"] == 2458851.6


@pytest.mark.services
def test_what_is_counted_reaches_sixty_days_back_whatever_the_memory_holds(memory: h.History) -> None:
    """Regular detections keep an object's rows in Redis longer than that; a rebuilt memory does not have them."""
    for pid, jd in ((8, 2458700.6), (9, 2458750.6), (10, 2458800.6), (11, 2458801.6)):
        memory.add_epoch(report(pid, jd))
        event = batch_at(pid, jd, [(150.0, 20.0)])
        enrich_batch(event, memory, PRV_FIELDS)
    counts = event.items[0].candidate
    assert (counts["ndethist"], counts["ncovhist"], counts["jdstarthist"]) == (3, 3, 2458750.6)


@pytest.mark.services
def test_a_repeat_of_the_same_quadrant_changes_nothing(memory: h.History) -> None:
    for pid, jd in ((10, 2458850.6), (11, 2458851.6)):
        memory.add_epoch(report(pid, jd))
        enrich_batch(batch_at(pid, jd, [(150.0, 20.0)]), memory, PRV_FIELDS)
    results = []
    for _ in range(2):
        memory.add_epoch(report(11, 2458851.6))
        again = batch_at(11, 2458851.6, [(150.0, 20.0)])
        enrich_batch(again, memory, PRV_FIELDS)
        results.append((again.items[0].object_id, again.items[0].prv_candidates, again.items[0].candidate))
    assert results[0] == results[1]


@pytest.mark.services
def test_private_photometry_stays_out_of_public_history(memory: h.History) -> None:
    enrich_batch(batch_at(10, 2458850.6, [(150.0, 20.0)], programid=2), memory, PRV_FIELDS)
    public, private = batch_at(11, 2458851.6, [(150.0, 20.0)]), batch_at(12, 2458852.6, [(150.0, 20.0)], programid=2)
    enrich_batch(public, memory, PRV_FIELDS)
    enrich_batch(private, memory, PRV_FIELDS)
    assert public.items[0].prv_candidates is None
    assert private.items[0].prv_candidates is not None
    assert len(private.items[0].prv_candidates) == 2


def test_taken_names_are_passed_over() -> None:
    taken = {h.object_name(2020, 5)}
    assert h.first_free(2458850.5, 5, taken) == h.object_name(2020, 5, 1)
