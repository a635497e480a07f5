"""Fixtures that start a real broker and a real Redis once a session; for tests marked ``services``."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from stream.core.errors import UsageError
from stream.engine.config import Settings, load_settings
from stream.engine.embedded_kafka import EmbeddedKafka
from stream.engine.embedded_redis import EmbeddedRedis
from stream.engine.state import Generation, connect


def whole_state(client: redis.Redis) -> None:
    """Tell workers that this Redis has lost nothing, without making anything."""
    generation = Generation(client)
    generation.finish(generation.begin(60))


def dump(client: redis.Redis, *without: str) -> dict[str, Any]:
    """Everything in a database of Redis by key, but keys that begin with one of ``without``; times to live left out."""
    read: dict[str, Callable[[bytes], Any]] = {
        "string": client.get,
        "hash": client.hgetall,
        "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        "list": lambda key: client.lrange(key, 0, -1),
    }
    keys = [key for key in sorted(client.scan_iter()) if not key.decode().startswith(without or ("\0",))]
    return {key.decode(): read[client.type(key).decode()](key) for key in keys}


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """An embedded broker with its users; no topics in it but those that tests make."""
    broker = EmbeddedKafka(tmp_path_factory.mktemp("kafka"))
    try:
        broker.start()
    except UsageError as error:
        if "could not be fetched" in str(error):
            pytest.skip(str(error))
        raise
    try:
        yield broker
    finally:
        broker.stop()


@pytest.fixture(scope="session")
def kafka(broker: EmbeddedKafka) -> str:
    """Address of that broker."""
    return broker.bootstrap


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an embedded Redis."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """An empty database of this test's own."""
    found = redis.Redis.from_url(redis_url.rsplit("/", 1)[0] + "/9")
    found.flushdb()
    yield found
    found.flushdb()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A name of this test's own, for consumer groups, topics and Redis keys."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40] + "-" + uuid.uuid4().hex[:6]


@pytest.fixture
def settings(broker: EmbeddedKafka, redis_url: str, prefix: str, tmp_path: Path) -> Settings:
    """Settings of this test's own on the session's broker and Redis, with an administrator's rights; neither its data
    folder nor that folder's parent is there yet, as on a new machine."""
    mine = load_settings(
        environ={}, redis_url=redis_url, group_prefix=prefix, camera="small", instance="test",
        session_timeout_ms=6_000, log_level="info", data_dir=tmp_path / "new" / "run",
    )  # fmt: skip
    found = broker.signed_in(mine).as_admin()
    whole_state(connect(found))
    return found


@pytest.fixture
def make_topic(settings: Settings) -> Callable[..., str]:
    """Makes a topic: ``make_topic(name, partitions=1)``; one that is there already is left as it is."""
    from stream.engine.kafka import make_admin
    from stream.engine.topics import Changes, Topic, apply_changes

    def make(name: str, partitions: int = 1, max_bytes: int = 16_777_216) -> str:
        config = {"max.message.bytes": str(max_bytes)}
        apply_changes(make_admin(settings), Changes(create=(Topic(name, partitions, 1, config),)))
        return name

    return make
