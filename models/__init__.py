"""Real-bogus classifiers: features, training, evaluation and the shipped weights.

Imports ``stream.core`` only (training also reads the archive and the simulator's truth through arguments), so
that the ML team can use it without the stream.
"""
