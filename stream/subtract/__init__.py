"""Difference images: the reference onto the science grid, throughput and background matched, proper subtraction."""

from stream.subtract.cache import ReferenceCache, code_version, make_cache, note_reference
from stream.subtract.difference import SubtractConfig, subtract
from stream.subtract.kernelfit import subtract_by_kernel
from stream.subtract.match import Match, MatchConfig, match_sources

__all__ = [
    "Match",
    "MatchConfig",
    "ReferenceCache",
    "SubtractConfig",
    "code_version",
    "make_cache",
    "match_sources",
    "note_reference",
    "subtract",
    "subtract_by_kernel",
]
