"""What is known at the place of a candidate: neighbours, object identity, history, forced photometry, coverage.

``match_catalogs`` is pure; ``enrich_batch`` works on a ``History``, of which there is one in Redis and one in memory.
"""

from stream.enrich.batch import enrich_batch
from stream.enrich.catalogs import match_catalogs
from stream.enrich.forced import ForcedSource
from stream.enrich.history import Depth, History, quadrant_depth
from stream.enrich.memory_history import MemoryHistory
from stream.enrich.redis_history import RedisHistory

__all__ = [
    "Depth",
    "ForcedSource",
    "History",
    "MemoryHistory",
    "RedisHistory",
    "enrich_batch",
    "match_catalogs",
    "quadrant_depth",
]
