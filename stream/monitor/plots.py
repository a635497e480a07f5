"""Plots of a night for a person: completeness by S/N, where things are, how long it took."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream.monitor.recovery import Injected

EDGES = (3.0, 5.0, 7.0, 10.0, 15.0, 25.0, 50.0, 100.0, 1000.0)


def plot_night(
    path: Path,
    injected: Injected,
    candidates: Sequence[Mapping[str, Any]],
    ledgers: Sequence[Mapping[str, float]],
    title: str,
) -> Path:
    """Write one PNG with completeness, scores, magnitudes and latency of a night's alerts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    _completeness(axes[0, 0], injected)
    _scores(axes[0, 1], candidates)
    _magnitudes(axes[1, 0], injected, candidates)
    _latency(axes[1, 1], ledgers)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def _completeness(axis: Any, injected: Injected) -> None:
    centres, values, counts = [], [], []
    for low, high in itertools.pairwise(EDGES):
        found, total = injected.completeness(low, high)
        if total:
            centres.append(np.sqrt(low * high))
            values.append(found / total)
            counts.append(total)
    axis.plot(centres, values, "o-")
    for x, y, n in zip(centres, values, counts, strict=True):
        axis.annotate(str(n), (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axis.set(xscale="log", ylim=(0, 1.12), xlabel="expected S/N", ylabel="fraction that became alerts")
    axis.axhline(0.9, color="0.7", lw=0.8)
    axis.set_title("injected point sources found (number above)")


def _scores(axis: Any, candidates: Sequence[Mapping[str, Any]]) -> None:
    for name, label in (("rb", "forest (rb)"), ("drb", "network (drb)")):
        values = [c[name] for c in candidates if c.get(name) is not None]
        if values:
            axis.hist(values, bins=np.linspace(0, 1, 26), histtype="step", label=label)
            axis.legend()
    axis.set(xlabel="real-bogus score", ylabel="alerts", title="scores")


def _magnitudes(axis: Any, injected: Injected, candidates: Sequence[Mapping[str, Any]]) -> None:
    bins = np.arange(13, 23.5, 0.5)
    axis.hist([c["magpsf"] for c in candidates], bins=bins, histtype="step", label="alerts")
    axis.hist(injected.mag, bins=bins, histtype="step", label="injected")
    axis.set(xlabel="magnitude", ylabel="number", yscale="log", title="magnitudes")
    axis.legend()


def _latency(axis: Any, ledgers: Sequence[Mapping[str, float]]) -> None:
    for end in ("subtracted", "scored", "published"):
        times = sorted(led[end] - led["arrived"] for led in ledgers if end in led and "arrived" in led)
        if times:
            axis.step(times, np.arange(1, len(times) + 1) / len(times), label=end, where="post")
            axis.legend()
    axis.set(xlabel="seconds since arrival", ylabel="fraction of alerts", title="latency")
