"""Redis as the engine uses it: a connection, its errors as ours, whether it lost its memory, marks of what is done."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from stream.core.errors import StateLost, StateUnavailable, UsageError
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


# Longest pause between two looks at an emptied Redis, seconds: a look is cheap, all wait for the same moment.
LOST_BACKOFF = 2.0


class Generation:
    """Whether Redis still holds what the stream wrote: one key, made when the state is complete, gone when Redis is.

    An empty Redis does not say whether it is new or lost. So nobody takes it for new: the key is written by
    :mod:`stream.engine.rebuild` alone (a first start is a rebuild from nothing), and whoever answers a question from
    Redis does so under :meth:`steady`. New objects are made by a script that looks for the key itself, so that
    not one is named between a loss and the rebuild.
    """

    KEY = "ztf:generation"  # looked for by the script of `stream.enrich.redis_history` too
    REBUILDING = "ztf:rebuilding"
    # Ends a rebuild only if Redis has kept everything since its begin.
    _FINISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
return 1
"""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def current(self) -> str:
        """Name of the present generation; ``StateLost`` where there is none."""
        with translated("looking whether it was emptied"):
            value = self.client.get(self.KEY)
        if not isinstance(value, bytes):
            raise StateLost
        return value.decode()

    @contextmanager
    def steady(self) -> Iterator[None]:
        """The block's answers from Redis count only if its memory was whole from the first to the last of them.

        Raises
        ------
        StateLost
            It was not: what the block found out is void, try again.
        """
        before = self.current()
        yield
        if self.current() != before:
            raise StateLost("Redis was rebuilt meanwhile")

    def begin(self, patience: int) -> str:
        """Close the present generation and begin to make a new one; its name, to be given to the calls that follow.

        ``patience`` is how many seconds without :meth:`keep` end the attempt.
        """
        name = uuid.uuid4().hex
        with translated("beginning to rebuild it"):
            if not self.client.set(self.REBUILDING, name, nx=True, ex=patience):
                raise UsageError("another process is rebuilding the state: wait for it, or a minute if it was killed")
            self.client.delete(self.KEY)
        return name

    def keep(self, name: str, patience: int) -> None:
        """Go on with the attempt ``name``; ``StateLost`` if Redis was emptied since its begin."""
        with translated("rebuilding it"):
            if self.client.get(self.REBUILDING) != name.encode():
                raise StateLost("Redis was emptied while its state was rebuilt: run `ztf-stream state rebuild` again")
            self.client.expire(self.REBUILDING, patience)

    def finish(self, name: str) -> None:
        """The state is complete: open the new generation. ``StateLost`` as in :meth:`keep`."""
        with translated("ending its rebuild"):
            if not self.client.eval(self._FINISH, 2, self.REBUILDING, self.KEY, name):
                raise StateLost("Redis was emptied while its state was rebuilt: run `ztf-stream state rebuild` again")

    def give_up(self, name: str) -> None:
        """End the attempt without a new generation."""
        with translated("giving up its rebuild"):
            if self.client.get(self.REBUILDING) == name.encode():
                self.client.delete(self.REBUILDING)


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


class Versions:
    """Under which version digits a quadrant's alerts left, or are on their way: ``ztf:version:<night>``, by pid."""

    TTL = 60 * 86_400  # seconds; nights older than that are processed again with care, not by mistake

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    @staticmethod
    def _key(pid: int) -> str:
        return f"ztf:version:{pid // 1_000_000_000}"  # pid is nid, five digits of the day, two of channel, two of ours

    def sent(self, pid: int) -> int | None:
        """Version digits, ``None`` where nothing left."""
        with translated("looking for the version sent"):
            value: Any = self.client.hget(self._key(pid), str(pid))
        return None if value is None else int(value)

    def remember(self, pid: int, version: int) -> None:
        """Note that its alerts leave under these digits."""
        with translated("noting the version sent"), self.client.pipeline(transaction=True) as pipe:
            pipe.hset(self._key(pid), str(pid), str(version))
            pipe.expire(self._key(pid), self.TTL)
            pipe.execute()


class Attempts:
    """How often a worker has begun a message without ending it in any way: the only trace that a process killed by its
    input leaves."""

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
