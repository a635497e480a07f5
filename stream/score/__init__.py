"""Real-bogus scores for candidates: a random forest on figures (``rb``), a network on stamps (``drb``)."""

from stream.score.scorer import Scorer, load_scorer

__all__ = ["Scorer", "load_scorer"]
