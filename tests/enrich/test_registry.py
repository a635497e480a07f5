"""The registry of objects: one name however many workers meet the object, movers stay out, the idle are forgotten."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import random
from collections.abc import Callable

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from services import whole_state
from test_history import PRV_FIELDS, batch_at, report

from stream.core.identity import night_of
from stream.enrich import MemoryHistory, RedisHistory, enrich_batch
from stream.enrich.history import MATCH_RADIUS, PROVISIONAL_DAYS, Event, History, is_known_mover, separation

pytestmark = pytest.mark.services
JD = 2458850.6
Fresh = Callable[[], History]


def candid(pid: int, row: int) -> int:
    return pid * 1_000_000 + 15_000 + row


@pytest.fixture(params=["memory", "redis"])
def fresh(request: pytest.FixtureRequest) -> Fresh:
    """Makes an empty memory of either kind."""
    if request.param == "memory":
        return MemoryHistory
    client = redis.Redis.from_url(request.getfixturevalue("redis_url"))

    def make() -> History:
        client.flushall()
        whole_state(client)
        return RedisHistory(client)

    return make


def _hammer(url: str, worker: int, places: list[tuple[float, float]], results: object) -> None:
    """One enrich worker: meets every place at once with the other, in an order of its own, twice."""
    history = RedisHistory(redis.Redis.from_url(url))
    order = list(range(len(places)))
    named: dict[int, str] = {}
    for turn in range(2):
        random.Random(turn * 7 + worker).shuffle(order)
        for start in range(0, len(order), 5):
            part = order[start : start + 5]
            events = [Event(*places[i], JD + worker, candid(100 + worker, i)) for i in part]
            for i, match in zip(part, history.match(events), strict=True):
                assert named.setdefault(i, match.name) == match.name
    results.put((worker, named))  # type: ignore[attr-defined]


def test_two_processes_that_meet_the_same_objects_at_once_name_each_once(redis_url: str) -> None:
    redis.Redis.from_url(redis_url).flushall()
    whole_state(redis.Redis.from_url(redis_url))
    # Neighbours 2 arcsec apart, some of them across cells, bands and midnight of right ascension: all are objects.
    places = [(359.9999 + 2.0 * i / 3600 * math.sqrt(2), -0.001 + 2.0 * j / 3600) for i in range(12) for j in range(12)]
    places = [(ra % 360.0, dec) for ra, dec in places]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_hammer, args=(redis_url, k, places, results)) for k in range(2)]
    for worker in workers:
        worker.start()
    named = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert named[0] == named[1]
    assert len(set(named[0].values())) == len(places)


@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=12), st.floats(-89, 89))
@example([(0.0, 0.0), (0.0, 3.0)], 1.25)  # at the rim of the radius but for rounding
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_both_memories_decide_alike(redis_url: str, offsets: list[tuple[float, float]], dec: float) -> None:
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    whole_state(client)
    memories: list[History] = [RedisHistory(client), MemoryHistory()]
    events = [
        Event((0.0003 + x / 3600 / math.cos(math.radians(dec))) % 360, dec + y / 3600, JD + i, candid(100 + i, 1))
        for i, (x, y) in enumerate(offsets)
    ]
    one, two = ([memory.match([e])[0] for e in events] for memory in memories)
    assert one == two
    assert memories[0].match(events) == memories[1].match(events)
    for event, match in zip(events, one, strict=True):
        assert separation(event.ra, event.dec, match.ra, match.dec) <= MATCH_RADIUS


def test_a_repeat_keeps_its_object_though_a_nearer_one_has_come(fresh: Fresh) -> None:
    memory = fresh()
    (first,) = memory.match([Event(150.0, 20.0, JD, candid(1, 0))])
    event = Event(150.0, 20.0 + 1.4 / 3600, JD + 1, candid(2, 0))
    assert memory.match([event])[0].name == first.name
    (second,) = memory.match([Event(150.0, 20.0 + 2.0 / 3600, JD + 2, candid(3, 0))])
    assert second.name != first.name
    (again,) = memory.match([event])
    assert (again.name, again.ra, again.dec) == (first.name, 150.0, 20.0)
    assert set(again.near) == {first.name, second.name}


def test_the_history_is_a_cone_about_the_event_whatever_object_a_detection_has(fresh: Fresh) -> None:
    memory = fresh()
    # Two objects 2 arcsec apart; an event between them is 1 arcsec from the detections of both.
    for k, offset in enumerate((0.0, 2.0)):
        memory.add_epoch(report(10 + k, JD + k))
        enrich_batch(batch_at(10 + k, JD + k, [(150.0, 20.0 + offset / 3600)]), memory, PRV_FIELDS)
    between = batch_at(12, JD + 2, [(150.0, 20.0 + 1.0 / 3600)])
    enrich_batch(between, memory, PRV_FIELDS)
    assert [row["pid"] for row in between.items[0].prv_candidates or []] == [10, 11]
    assert between.items[0].candidate["ndethist"] == 3


@pytest.mark.parametrize(
    ("distance", "moves"), [(None, False), (-999.0, False), (0.0, True), (2.5, True), (9.0, False)]
)
def test_what_lies_at_a_known_object_moves(distance: float | None, moves: bool) -> None:
    assert is_known_mover({"ssdistnr": distance}) == moves
    assert not is_known_mover({})


def test_known_movers_are_neither_matched_nor_there_to_match(fresh: Fresh) -> None:
    memory = fresh()
    star = Event(150.0, 20.0, JD, candid(1, 0))
    passing = Event(150.0, 20.0, JD + 1, candid(2, 0), moving=True)
    elsewhere = Event(151.0, 20.0, JD + 1, candid(2, 1), moving=True)
    later = Event(151.0, 20.0, JD + 2, candid(3, 0))
    names = [memory.match([event])[0].name for event in (star, passing, elsewhere, later)]
    assert len(set(names)) == 4
    assert memory.match([passing])[0].name == names[1]
    assert memory.match([Event(150.0, 20.0, JD + 3, candid(4, 0))])[0].name == names[0]


def test_members_of_a_tracklet_leave_the_registry(fresh: Fresh) -> None:
    memory = fresh()
    night, places = "20200101", [(150.0, 20.0), (150.1, 20.0), (150.2, 20.0)]
    for k, place in enumerate(places):
        enrich_batch(batch_at(10 + k, JD + k / 50, [place, (160.0, 20.0)]), memory, PRV_FIELDS)
    members = {candid(10 + k, 0): candid(10, 0) for k in range(3)}
    # The last one passed over a star: that object stays.
    members[candid(12, 1)] = candid(10, 0)
    memory.add_movers(members, night)
    memory.add_movers(members, night)
    late = batch_at(20, JD + 1, [*places, (160.0, 20.0)])
    enrich_batch(late, memory, PRV_FIELDS)
    counts = [item.candidate["ndethist"] for item in late.items]
    assert counts == [1, 1, 1, 4]
    assert memory.movers([candid(10, 0), candid(20, 0)], night) == {candid(10, 0): candid(10, 0)}


@pytest.mark.parametrize(("program", "public", "named"), [(3, 88, 77), (1, 88, 88), (2, 88, 88), (1, None, None)])
def test_an_event_whose_tracklet_is_known_says_so_and_is_not_matched(
    fresh: Fresh, program: int, public: int | None, named: int | None
) -> None:
    """The tracklet of all programs (77) is named after a detection that the public may not know of."""
    memory = fresh()
    enrich_batch(batch_at(10, JD, [(150.0, 20.0)]), memory, PRV_FIELDS)
    late = dataclasses.replace(batch_at(11, JD, [(150.0, 20.0)]), programid=program)
    memory.add_movers({candid(11, 0): 77}, night_of(JD))
    if public is not None:
        memory.add_movers({candid(11, 0): public}, night_of(JD), public=True)
    enrich_batch(late, memory, PRV_FIELDS)
    (item,) = late.items
    assert item.extension.get("trackid") == named
    assert item.candidate["ndethist"] == 1


@pytest.mark.parametrize(("again_after", "wait", "same"), [(1.0, 5000, True), (0.02, 60, True), (0.02, 200, False)])
def test_what_was_seen_in_one_night_only_is_forgotten(fresh: Fresh, again_after: float, wait: int, same: bool) -> None:
    memory = fresh()
    (first,) = memory.match([Event(150.0, 20.0, JD, candid(1, 0))])
    memory.match([Event(150.0, 20.0, JD + again_after, candid(2, 0))])
    (later,) = memory.match([Event(150.0, 20.0, JD + wait, candid(3, 0))])
    assert (later.name == first.name) == same
    assert PROVISIONAL_DAYS > 60


def test_objects_of_the_archive_come_back_with_their_place_and_events(fresh: Fresh) -> None:
    memory = fresh()
    for _ in range(2):
        memory.add_object("ZTF20aaaaaab", 150.0, 20.0, JD, candid(1, 0))
        memory.add_object("ZTF20aaaaaab", 150.0001, 20.0, JD + 300, candid(2, 0))
    (match,) = memory.match([Event(150.0, 20.0001, JD + 600, candid(3, 0))])
    assert (match.name, match.ra, match.dec) == ("ZTF20aaaaaab", 150.0, 20.0)
    assert memory.match([Event(10.0, 10.0, JD + 300, candid(2, 0))])[0].name == "ZTF20aaaaaab"
