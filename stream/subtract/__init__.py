"""Difference images: the reference onto the science grid, throughput and background matched, proper subtraction."""

from stream.subtract.difference import SubtractConfig, subtract
from stream.subtract.kernels import TilePsf
from stream.subtract.match import Match, MatchConfig, match_sources

__all__ = ["Match", "MatchConfig", "SubtractConfig", "TilePsf", "match_sources", "subtract"]
