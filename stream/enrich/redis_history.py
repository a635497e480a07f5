"""``History`` in Redis: the hot state that all enrich workers share.

Keys, all under ``ztf:``:

- ``obj:<band>:<cell>``   hash objectId -> "ra dec": the registry, by sky cell of 6 arcsec
- ``name:<objectId>``     marks a name as taken
- ``det:<objectId>``      hash candid -> JSON row of ``prv_candidate``
- ``epoch:<pid>``         JSON quality record of an epoch
- ``cover:<band>:<cell>`` set of pids whose footprint touches the one-degree cell

Every write is idempotent: a quadrant that is processed twice leaves the same state. Detections and epochs expire
after the history's length, the registry does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any, TypeVar

import redis

from stream.core.errors import StateUnavailable
from stream.core.records import QuadrantReport, Row
from stream.enrich.history import (
    HISTORY_DAYS,
    MATCH_RADIUS,
    OBJECT_CELL,
    cell_of,
    cells_around,
    cells_in_band,
    covers_nearly,
    object_name,
    year_of,
)

COVER_CELL = 1.0  # deg; a quadrant touches at most a handful
# Twice the look-back: late reprocessing of last week's night must still find its history.
EXPIRE_SECONDS = int(2 * HISTORY_DAYS * 86_400)
_NAME_ATTEMPTS = 8

# Find the nearest object in the given cells or claim the first free of the proposed names, in one atomic step:
# two workers that meet the same new object get one name. The arithmetic is `history.separation`'s.
_MATCH_OR_CLAIM = """
local ra, dec, radius = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local rad = math.pi / 180
local best, best_name = radius, nil
for i = 2, #KEYS do
  local members = redis.call('HGETALL', KEYS[i])
  for j = 1, #members, 2 do
    local r, d = string.match(members[j + 1], '(%S+) (%S+)')
    r, d = tonumber(r), tonumber(d)
    local a = math.sin((d - dec) * rad / 2) ^ 2
      + math.cos(dec * rad) * math.cos(d * rad) * math.sin((r - ra) * rad / 2) ^ 2
    local sep = 2 * math.asin(math.min(1, math.sqrt(a))) / rad * 3600
    if sep < best or (sep == best and (best_name == nil or members[j] < best_name)) then
      best, best_name = sep, members[j]
    end
  end
end
if best_name then return best_name end
for i = 5, #ARGV do
  if redis.call('SETNX', 'ztf:name:' .. ARGV[i], ARGV[4]) == 1 then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[1] .. ' ' .. ARGV[2])
    return ARGV[i]
  end
end
return false
"""

F = TypeVar("F", bound=Callable[..., Any])


def _retriable(method: F) -> F:
    """Turn a Redis failure into ``StateUnavailable``, which callers back off from and retry."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StateUnavailable(
                f"Redis does not answer ({error}): is it running? see `ztf-stream status`"
            ) from error

    return call  # type: ignore[return-value]


class RedisHistory:
    """``stream.enrich.history.History`` shared through Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._match = client.register_script(_MATCH_OR_CLAIM)

    @_retriable
    def add_epoch(self, report: QuadrantReport) -> None:
        """See ``History``."""
        if not report.corners:
            return
        row = asdict(report)
        row.pop("seconds")  # of no use here, and different at every repeat
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(f"ztf:epoch:{report.pid}", json.dumps(row), ex=EXPIRE_SECONDS)
        for band, cell in footprint_cells(report.corners):
            key = f"ztf:cover:{band}:{cell}"
            pipe.sadd(key, report.pid)
            pipe.expire(key, EXPIRE_SECONDS)
        pipe.execute()

    @_retriable
    def object_id(self, ra: float, dec: float, jd: float, candid: int) -> str:
        """See ``History``; one atomic step in Redis."""
        own = _object_key(cell_of(ra, dec, OBJECT_CELL))
        keys = [own, *(_object_key(cell) for cell in cells_around(ra, dec, OBJECT_CELL))]
        names = [object_name(year_of(jd), candid, attempt) for attempt in range(_NAME_ATTEMPTS)]
        found = self._match(keys=keys, args=[repr(ra), repr(dec), MATCH_RADIUS, candid, *names])
        if found is None:
            raise StateUnavailable(f"no free object name in {_NAME_ATTEMPTS} attempts for candid {candid}")
        return str(found.decode())

    @_retriable
    def add_detection(self, object_id: str, row: Row) -> None:
        """See ``History``."""
        key = f"ztf:det:{object_id}"
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(key, str(row["candid"]), json.dumps(row))
        pipe.expire(key, EXPIRE_SECONDS)
        pipe.execute()

    @_retriable
    def detections(self, object_id: str) -> list[Row]:
        """See ``History``."""
        values: Any = self._redis.hvals(f"ztf:det:{object_id}")
        return [json.loads(value) for value in values]

    @_retriable
    def epochs(self, ra: float, dec: float) -> list[QuadrantReport]:
        """See ``History``."""
        band, cell = cell_of(ra, dec, COVER_CELL)
        pids: Any = sorted(self._redis.smembers(f"ztf:cover:{band}:{cell}"))  # type: ignore[arg-type]
        if not pids:
            return []
        texts: Any = self._redis.mget([f"ztf:epoch:{pid.decode()}" for pid in pids])
        reports = [QuadrantReport(**json.loads(text)) for text in texts if text is not None]
        found = [report for report in reports if covers_nearly(report.corners, ra, dec)]
        return sorted(found, key=lambda report: (report.jd, report.pid))


def footprint_cells(corners: list[float]) -> list[tuple[int, int]]:
    """Sorted one-degree cells that a quadrant's bounding box touches."""
    ras, decs = corners[0::2], corners[1::2]
    offsets = [(ra - ras[0] + 180.0) % 360.0 - 180.0 for ra in ras]
    low, high = ras[0] + min(offsets), ras[0] + max(offsets)
    cells: set[tuple[int, int]] = set()
    for band in range(math.floor(min(decs) + 90.0), math.floor(max(decs) + 90.0) + 1):
        n = cells_in_band(band, COVER_CELL)
        first, last = math.floor(low / 360.0 * n), math.floor(high / 360.0 * n)
        cells.update((band, cell % n) for cell in range(first, last + 1))
    return sorted(cells)


def _object_key(cell: tuple[int, int]) -> str:
    return f"ztf:obj:{cell[0]}:{cell[1]}"
