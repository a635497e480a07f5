"""What is known at the place of a candidate: catalogue neighbours, object identity, history, coverage.

``match_catalogs`` is pure; ``enrich_batch`` works on a ``History``, of which there is one in Redis and one in memory.
"""

from stream.enrich.catalogs import match_catalogs
from stream.enrich.history import History, MemoryHistory, enrich_batch
from stream.enrich.redis_history import RedisHistory

__all__ = ["History", "MemoryHistory", "RedisHistory", "enrich_batch", "match_catalogs"]
