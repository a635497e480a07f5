"""``History`` in Redis: the hot state that all enrich workers share.

Keys, all under ``ztf:`` (times to live in days in brackets; none: for ever):

- ``obj:<band>:<cell>``   hash objectId -> "ra dec first last": the registry, by sky cell of 6 arcsec: the object's
  place (deg, as text, for good) and the jd of its first and last detection
- ``name:<objectId>``     "candid ra dec band cell" of the object's first event: the name is taken [400: the next year
  has other names]
- ``ids:<pid>``           hash candid -> objectId: what the events of a quadrant were matched with, so that a repeat
  gets the same [10]
- ``det:<objectId>``      hash candid -> JSON row of ``prv_candidate`` [60 after the last]
- ``fp:<objectId>``       hash pid -> JSON list, the values of a row of ``fp_hist`` in the schema's order, or ``null``
  where the image gave no flux [60 after the last]
- ``epoch:<pid>``         JSON of ``Epoch`` [60]
- ``cover:<band>:<cell>`` sorted set of pids by jd whose footprint touches the one-degree cell [60; members older than
  60 days before the newest are taken out]
- ``movers:<night>``      hash candid -> tracklet [10]; ``movers:public:<night>`` the same of public detections alone

Every write is idempotent: a quadrant that is processed twice leaves the same state. While ``ztf:generation`` is absent
the memory is not whole (``stream.engine.state.Generation``): no object is matched or made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from typing import Any, TypeVar

import redis

from stream.alert.schema import FP_FIELDS
from stream.core.errors import StateLost, StateUnavailable
from stream.core.identity import pid_of_candid
from stream.core.records import QuadrantReport, Row
from stream.enrich.history import (
    KEEP_DAYS,
    MATCH_RADIUS,
    NEAR_RADIUS,
    OBJECT_CELL,
    ONE_NIGHT,
    PROVISIONAL_DAYS,
    Epoch,
    Event,
    Match,
    cell_of,
    cells_around,
    cells_in_band,
    covers_nearly,
    object_name,
    year_of,
)

COVER_CELL = 1.0  # deg; a quadrant touches at most a handful
# Twice the look-back: late reprocessing of last week's night must still find its history.
EXPIRE_SECONDS = int(KEEP_DAYS * 86_400)
REPEAT_SECONDS = 10 * 86_400  # longer than any message that could be read again lives
NAME_SECONDS = 400 * 86_400
NAME_ATTEMPTS = 8

# Find the object of an event or make it, in one atomic step: two workers that meet the same new object get one name.
# The arithmetic is `history.separation`'s, the rules are those of `MemoryHistory`.
# KEYS: own cell, ids, then the cells around. ARGV: ra, dec, jd, candid, moving, band and cell of the own one, match
# radius, near radius, days of one night, provisional days, seconds of ids and of names, then the proposed names.
_MATCH_OR_CLAIM = """
if redis.call('EXISTS', 'ztf:generation') == 0 then return redis.error_reply('LOST the memory is not whole') end
local ra, dec, jd, candid, moving = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5] == '1'
local rad = math.pi / 180
local best, name = tonumber(ARGV[8]), redis.call('HGET', KEYS[2], candid)
local known, close, entries, cells = name, {}, {}, {}
for i = 3, #KEYS do
  local members = redis.call('HGETALL', KEYS[i])
  for j = 1, #members, 2 do
    local r, d, first, last = string.match(members[j + 1], '(%S+) (%S+) (%S+) (%S+)')
    if last - first < tonumber(ARGV[10]) and jd - last > tonumber(ARGV[11]) then
      redis.call('HDEL', KEYS[i], members[j])
    else
      local a = math.sin((d - dec) * rad / 2) ^ 2
        + math.cos(dec * rad) * math.cos(d * rad) * math.sin((r - ra) * rad / 2) ^ 2
      local sep = 2 * math.asin(math.min(1, math.sqrt(a))) / rad * 3600
      if sep <= tonumber(ARGV[9]) then close[#close + 1] = members[j] end
      entries[members[j]], cells[members[j]] = {r, d, first, last}, KEYS[i]
      if not known and not moving and (sep < best or (sep == best and (not name or members[j] < name))) then
        best, name = sep, members[j]
      end
    end
  end
end
if not name then
  for i = 14, #ARGV do
    local place = candid .. ' ' .. ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[6] .. ' ' .. ARGV[7]
    local taken = redis.call('GET', 'ztf:name:' .. ARGV[i])
    -- Its own name, given before and since forgotten, is free for it.
    if not taken or string.match(taken, '%S+') == candid then
      redis.call('SET', 'ztf:name:' .. ARGV[i], place, 'EX', ARGV[13])
      name = ARGV[i]
      entries[name], cells[name] = {ARGV[1], ARGV[2], ARGV[3], ARGV[3]}, KEYS[1]
      if not moving then
        redis.call('HSET', KEYS[1], name, table.concat(entries[name], ' '))
      end
      break
    end
  end
  if not name then return false end
elseif entries[name] then
  local e = entries[name]
  if jd < tonumber(e[3]) then e[3] = ARGV[3] end
  if jd > tonumber(e[4]) then e[4] = ARGV[3] end
  redis.call('HSET', cells[name], name, table.concat(e, ' '))
end
redis.call('HSET', KEYS[2], candid, name)
redis.call('EXPIRE', KEYS[2], ARGV[12])
local r, d = ARGV[1], ARGV[2]
if entries[name] then
  r, d = entries[name][1], entries[name][2]
else
  local text = redis.call('GET', 'ztf:name:' .. name)
  if text then r, d = string.match(text, '%S+ (%S+) (%S+)') end
end
return {name, r, d, unpack(close)}
"""

# Take objects that are nothing but movers out of the registry. KEYS: movers. ARGV: names.
_RELEASE = """
for _, name in ipairs(ARGV) do
  local alone = true
  for _, candid in ipairs(redis.call('HKEYS', 'ztf:det:' .. name)) do
    if redis.call('HEXISTS', KEYS[1], candid) == 0 then alone = false end
  end
  local text = redis.call('GET', 'ztf:name:' .. name)
  if alone and text then
    local band, cell = string.match(text, '(%S+) (%S+)$')
    redis.call('HDEL', 'ztf:obj:' .. band .. ':' .. cell, name)
  end
end
"""

# Remember an object that was named before, or another detection of it. KEYS: ids. ARGV: name, ra, dec, jd, candid,
# band, cell, seconds of ids and of names, moving (1: it has a name, and no place in the registry).
_ADD_OBJECT = """
local place = ARGV[5] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. ARGV[6] .. ' ' .. ARGV[7]
redis.call('SET', 'ztf:name:' .. ARGV[1], place, 'NX', 'EX', ARGV[9])
redis.call('HSET', KEYS[1], ARGV[5], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[8])
if ARGV[10] == '1' then return end
local band, cell = string.match(redis.call('GET', 'ztf:name:' .. ARGV[1]), '(%S+) (%S+)$')
local key = 'ztf:obj:' .. band .. ':' .. cell
local text = redis.call('HGET', key, ARGV[1])
if text then
  local r, d, first, last = string.match(text, '(%S+) (%S+) (%S+) (%S+)')
  if tonumber(ARGV[4]) < tonumber(first) then first = ARGV[4] end
  if tonumber(ARGV[4]) > tonumber(last) then last = ARGV[4] end
  redis.call('HSET', key, ARGV[1], table.concat({r, d, first, last}, ' '))
else
  redis.call('HSET', key, ARGV[1], table.concat({ARGV[2], ARGV[3], ARGV[4], ARGV[4]}, ' '))
end
"""

F = TypeVar("F", bound=Callable[..., Any])


def _retriable(method: F) -> F:
    """Turn a Redis failure into ``StateUnavailable``, which callers back off from and retry."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except redis.RedisError as error:
            if "LOST" in str(error):
                raise StateLost from error
            # Also what it refuses (out of memory, read-only after a failover): its trouble, never the input's.
            raise StateUnavailable(
                f"Redis does not answer ({error}): is it running? see `ztf-stream status`"
            ) from error

    return call  # type: ignore[return-value]


class RedisHistory:
    """``stream.enrich.history.History`` shared through Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._match = client.register_script(_MATCH_OR_CLAIM)
        self._release = client.register_script(_RELEASE)
        self._add = client.register_script(_ADD_OBJECT)

    @_retriable
    def add_epoch(self, report: QuadrantReport) -> None:
        """See ``History``."""
        if not report.corners:
            return
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(f"ztf:epoch:{report.pid}", json.dumps(asdict(Epoch.of(report))), ex=EXPIRE_SECONDS)
        for band, cell in footprint_cells(report.corners):
            key = f"ztf:cover:{band}:{cell}"
            pipe.zadd(key, {str(report.pid): report.jd})
            pipe.zremrangebyscore(key, "-inf", report.jd - KEEP_DAYS)
            pipe.expire(key, EXPIRE_SECONDS)
        pipe.execute()

    @_retriable
    def match(self, events: Sequence[Event]) -> list[Match]:
        """See ``History``; one round trip, each event an atomic step in Redis."""
        pipe = self._redis.pipeline(transaction=False)
        for event in events:
            self._match(keys=self._keys(event), args=_match_arguments(event), client=pipe)
        matches = []
        for event, found in zip(events, pipe.execute(), strict=True):
            if found is None:
                raise StateUnavailable(f"no free object name in {NAME_ATTEMPTS} attempts for candid {event.candid}")
            name, ra, dec, *close = (part.decode() for part in found)
            near = (name,) if event.moving else tuple(sorted({name, *close}))
            matches.append(Match(name, float(ra), float(dec), near))
        return matches

    def _keys(self, event: Event) -> list[str]:
        own = _object_key(cell_of(event.ra, event.dec, OBJECT_CELL))
        around = (_object_key(cell) for cell in cells_around(event.ra, event.dec, OBJECT_CELL))
        return [own, _ids_key(event.candid), *around]

    @_retriable
    def add_object(self, name: str, ra: float, dec: float, jd: float, candid: int, *, moving: bool = False) -> None:
        """See ``History``."""
        cell = cell_of(ra, dec, OBJECT_CELL)
        place = [name, repr(float(ra)), repr(float(dec)), repr(float(jd)), candid, *cell]
        arguments: list[Any] = [*place, REPEAT_SECONDS, NAME_SECONDS, int(moving)]
        self._add(keys=[_ids_key(candid)], args=arguments)

    @_retriable
    def add_detections(self, rows: Sequence[tuple[str, Row]]) -> None:
        """See ``History``."""
        pipe = self._redis.pipeline(transaction=False)
        for name, row in rows:
            pipe.hset(f"ztf:det:{name}", str(row["candid"]), json.dumps(row))
            pipe.expire(f"ztf:det:{name}", EXPIRE_SECONDS)
        pipe.execute()

    @_retriable
    def detections(self, names: Sequence[str]) -> dict[str, list[Row]]:
        """See ``History``."""
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hvals(f"ztf:det:{name}")
        return {n: [json.loads(v) for v in values] for n, values in zip(names, pipe.execute(), strict=True)}

    @_retriable
    def epochs(self, ra: Sequence[float], dec: Sequence[float], jd: float) -> list[Epoch]:
        """See ``History``."""
        cells = sorted({cell_of(r, d, COVER_CELL) for r, d in zip(ra, dec, strict=True)})
        pipe = self._redis.pipeline(transaction=False)
        for band, cell in cells:
            pipe.zrangebyscore(f"ztf:cover:{band}:{cell}", jd - KEEP_DAYS, f"({jd!r}")
        pids = sorted({pid.decode() for members in pipe.execute() for pid in members})
        if not pids:
            return []
        texts: Any = self._redis.mget([f"ztf:epoch:{pid}" for pid in pids])
        epochs = [_epoch(json.loads(text)) for text in texts if text is not None]
        places = list(zip(ra, dec, strict=True))
        found = [e for e in epochs if e.jd < jd and any(covers_nearly(e.corners, r, d) for r, d in places)]
        return sorted(found, key=lambda epoch: (epoch.jd, epoch.pid))

    @_retriable
    def add_movers(self, members: Mapping[int, int], night: str, *, public: bool = False) -> None:
        """See ``History``."""
        if not members:
            return
        key = _movers_key(night, public)
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(key, mapping={str(candid): str(track) for candid, track in members.items()})
        pipe.expire(key, REPEAT_SECONDS)
        if public:
            pipe.execute()
            return
        for candid in members:
            pipe.hget(_ids_key(candid), str(candid))
        names: list[Any] = sorted({name.decode() for name in pipe.execute()[2:] if name is not None})
        if names:
            self._release(keys=[key], args=names)

    @_retriable
    def movers(self, candids: Sequence[int], night: str, *, public: bool = False) -> dict[int, int]:
        """See ``History``."""
        if not candids:
            return {}
        tracks: Any = self._redis.hmget(_movers_key(night, public), [str(candid) for candid in candids])
        return {c: int(track) for c, track in zip(candids, tracks, strict=True) if track is not None}

    @_retriable
    def forced(self, names: Sequence[str]) -> dict[str, dict[int, Row | None]]:
        """See ``History``."""
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(f"ztf:fp:{name}")
        found = zip(names, pipe.execute(), strict=True)
        return {name: {int(pid): _point(text) for pid, text in points.items()} for name, points in found}

    @_retriable
    def add_forced(self, points: Sequence[tuple[str, int, Row | None]]) -> list[Row | None]:
        """See ``History``."""
        pipe = self._redis.pipeline(transaction=False)
        for name, pid, row in points:
            key = f"ztf:fp:{name}"
            pipe.hsetnx(key, str(pid), _values(row))
            pipe.hget(key, str(pid))
            pipe.expire(key, EXPIRE_SECONDS)
        return [_point(text) for text in pipe.execute()[1::3]]


def _values(row: Row | None) -> str:
    return "null" if row is None else json.dumps([row[name] for name in FP_FIELDS], separators=(",", ":"))


def _point(text: bytes) -> Row | None:
    values = json.loads(text)
    return None if values is None else dict(zip(FP_FIELDS, values, strict=True))


def _match_arguments(event: Event) -> list[Any]:
    names = [object_name(year_of(event.jd), event.candid, attempt) for attempt in range(NAME_ATTEMPTS)]
    place = [repr(float(event.ra)), repr(float(event.dec)), repr(float(event.jd)), event.candid, int(event.moving)]
    rules = [MATCH_RADIUS, NEAR_RADIUS, ONE_NIGHT, PROVISIONAL_DAYS, REPEAT_SECONDS, NAME_SECONDS]
    return [*place, *cell_of(event.ra, event.dec, OBJECT_CELL), *rules, *names]


def _epoch(values: dict[str, Any]) -> Epoch:
    return Epoch(**{**values, "corners": tuple(values["corners"])})


def _movers_key(night: str, public: bool) -> str:
    return f"ztf:movers:public:{night}" if public else f"ztf:movers:{night}"


def _ids_key(candid: int) -> str:
    return f"ztf:ids:{pid_of_candid(candid)}"


def footprint_cells(corners: Sequence[float]) -> list[tuple[int, int]]:
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
