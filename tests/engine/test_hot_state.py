"""Whether Redis lost its memory: generations, and who may make a new one."""

from __future__ import annotations

import pytest

from stream.core.errors import StateLost, StateUnavailable, UsageError
from stream.engine.state import Generation, Versions, connect
from stream.enrich.history import Event
from stream.enrich.redis_history import RedisHistory

pytestmark = pytest.mark.services


def test_an_empty_redis_is_never_taken_for_a_new_one(client):
    with pytest.raises(StateLost, match="state rebuild"):
        Generation(client).current()


def test_a_rebuild_opens_a_new_generation_at_its_end_only(client):
    generation = Generation(client)
    first = generation.begin(60)
    with pytest.raises(StateLost):
        generation.current()
    generation.finish(first)
    assert generation.current() == first
    second = generation.begin(60)
    assert second != first
    with pytest.raises(StateLost):
        generation.current()
    with pytest.raises(UsageError, match="another process"):
        generation.begin(60)
    generation.give_up(second)
    with pytest.raises(StateLost):
        generation.current()
    generation.finish(generation.begin(60))


def test_a_loss_during_the_rebuild_opens_nothing(client):
    generation = Generation(client)
    name = generation.begin(60)
    client.set("ztf:obj:1:1", "x")
    client.flushdb()
    with pytest.raises(StateLost):
        generation.keep(name, 60)
    with pytest.raises(StateLost):
        generation.finish(name)
    assert client.keys() == []


def test_answers_count_only_if_the_memory_was_whole_all_the_while(client):
    generation = Generation(client)
    generation.finish(generation.begin(60))
    with generation.steady():
        pass
    with pytest.raises(StateLost), generation.steady():
        client.flushdb()
    generation.finish(generation.begin(60))

    def lost_and_rebuilt() -> None:
        client.flushdb()
        generation.finish(generation.begin(60))

    with pytest.raises(StateLost, match="rebuilt meanwhile"), generation.steady():
        lost_and_rebuilt()


def test_no_object_is_named_while_the_memory_is_not_whole(client):
    history, generation = RedisHistory(client), Generation(client)
    event = Event(150.0, 20.0, 2459127.7, 1_373_210_410_015_015_000)
    with pytest.raises(StateLost):
        history.match([event])
    name = generation.begin(60)
    with pytest.raises(StateLost):
        history.match([event])
    history.add_object("ZTF20aaaaaaa", event.ra, event.dec, event.jd - 1, event.candid - 10**12)
    generation.finish(name)
    assert [match.name for match in history.match([event])] == ["ZTF20aaaaaaa"]


def test_what_moves_gets_its_name_back_and_no_place(client):
    history, generation = RedisHistory(client), Generation(client)
    name = generation.begin(60)
    candid = 1_373_210_410_015_015_000
    history.add_object("ZTF20aaaaaab", 150.0, 20.0, 2459127.7, candid, moving=True)
    generation.finish(name)
    again, other = Event(150.0, 20.0, 2459127.7, candid, True), Event(150.0, 20.0, 2459128.7, candid + 10**12)
    assert [match.name for match in history.match([again])] == ["ZTF20aaaaaab"]
    assert history.match([other])[0].name != "ZTF20aaaaaab", "nothing that stands still is matched with it"


def test_versions_are_remembered_by_quadrant(client):
    versions = Versions(client)
    assert versions.sent(1_373_210_410_015) is None
    versions.remember(1_373_210_410_015, 1)
    versions.remember(1_373_210_410_115, 2)
    assert (versions.sent(1_373_210_410_015), versions.sent(1_373_210_410_115)) == (1, 2)
    assert len(client.keys("ztf:version:*")) == 1


def test_a_redis_that_refuses_is_waited_for(settings, client):
    """Out of memory, or read-only after a failover: its trouble, no input's."""
    generation = Generation(client)
    generation.finish(generation.begin(60))
    client.config_set("maxmemory", "1")
    client.config_set("maxmemory-policy", "noeviction")
    try:
        with pytest.raises(StateUnavailable):
            RedisHistory(client).match([Event(150.0, 20.0, 2459127.7, 1_373_210_410_015_015_000)])
    finally:
        client.config_set("maxmemory", "0")
    assert connect(settings).ping()
