"""Redis as the engine uses it: a connection, its errors as ours, and marks that say what is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import redis

from stream.core.errors import StateUnavailable, UsageError
from stream.engine.config import Settings


def connect(settings: Settings) -> redis.Redis:
    """A client of the Redis in the settings; nothing is sent yet. Answers are bytes."""
    if not settings.redis_url:
        raise UsageError(
            "no Redis is known: set ZTF_REDIS_URL to your own, or start the embedded one with 'ztf-stream run'"
        )
    try:
        return redis.Redis.from_url(
            settings.redis_url, socket_timeout=10.0, socket_connect_timeout=5.0, health_check_interval=30
        )
    except ValueError as error:
        raise UsageError(f"ZTF_REDIS_URL is {settings.redis_url!r}: {error}") from None


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn a Redis error raised inside into ``StateUnavailable``."""
    try:
        yield
    except redis.RedisError as error:
        raise StateUnavailable(f"Redis, while {doing}: {error}") from error


class Marks:
    """Things that are done, remembered under ``prefix`` for ``ttl`` seconds: written after the fact is certain."""

    def __init__(self, client: redis.Redis, prefix: str, ttl: int) -> None:
        self.client = client
        self.prefix = prefix
        self.ttl = ttl

    def _key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    def get(self, name: str) -> str | None:
        """What the mark of ``name`` says, ``None`` where there is none."""
        with translated(f"reading a mark of {self.prefix}"):
            value = self.client.get(self._key(name))
        return value.decode() if isinstance(value, bytes) else None

    def known(self, names: Sequence[str]) -> set[str]:
        """Those of ``names`` that are marked."""
        if not names:
            return set()
        with translated(f"reading marks of {self.prefix}"):
            values = self.client.mget([self._key(name) for name in names])
        return {name for name, value in zip(names, values, strict=True) if value is not None}

    def mark(self, names: Iterable[str], value: str = "1") -> None:
        """Mark all of ``names``, all or none."""
        names = list(names)
        if not names:
            return
        with translated(f"writing marks of {self.prefix}"), self.client.pipeline(transaction=True) as pipe:
            for name in names:
                pipe.set(self._key(name), value, ex=self.ttl)
            pipe.execute()


class Attempts:
    """How often a worker has begun a message: the only trace that a process killed by its input leaves."""

    TTL = 86_400

    def __init__(self, client: redis.Redis, prefix: str = "attempt") -> None:
        self.client = client
        self.prefix = prefix

    def begin(self, name: str) -> int:
        """Count one more beginning of ``name``; returns how many there are now, this one included."""
        key = f"{self.prefix}:{name}"
        with translated("counting attempts"), self.client.pipeline(transaction=True) as pipe:
            pipe.incr(key)
            pipe.expire(key, self.TTL)
            return int(pipe.execute()[0])

    def done(self, name: str) -> None:
        """Forget ``name``."""
        with translated("forgetting attempts"):
            self.client.delete(f"{self.prefix}:{name}")
