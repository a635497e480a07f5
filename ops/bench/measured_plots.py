"""The plots of ``docs/measurement.md``: two figures that say more than the table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ops.bench.measured import Frame, spread
from ops.bench.measured_rows import (
    MAG_BINS,
    OURS,
    SNR_BINS,
    Sample,
    calibrated,
    found_figures,
    pooled,
    samples,
)

COLOURS = {OURS: "tab:blue", "source-extractor": "tab:orange", "sep": "tab:green", "photutils": "tab:red"}
STYLES = {"normal": "-", "dense": "--", "sparse": ":"}
Parts = dict[str, dict[str, list[Sample]]]  # by field and program


def draw(by_field: dict[str, list[Frame]], docs: Path) -> list[tuple[str, str]]:
    """Write the figures; their captions and file names."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    parts: Parts = {}
    for name, frames in by_field.items():
        programs = dict.fromkeys(n for f in frames for n in f.catalogues)
        parts[name] = {program: samples(frames, program) for program in programs}
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    _positions(axes[0, 0], parts)
    _repeatability(axes[0, 1], parts)
    _pulls(axes[1, 0], parts)
    _zeropoints(axes[1, 1], by_field)
    figure.savefig(docs / "measurement-errors.png", dpi=110)
    plt.close(figure)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    _found(axes, parts)
    figure.savefig(docs / "measurement-completeness.png", dpi=110)
    plt.close(figure)
    return [
        ("Errors of places, magnitudes, fluxes and zero points; lines: fields, colours: programs.",
         "measurement-errors.png"),
        ("Completeness by true S/N and magnitude and purity by measured S/N.", "measurement-completeness.png"),
    ]  # fmt: skip


def _label(field: str, program: str) -> str:
    return f"{program}, {field}"


def _each(parts: Parts) -> Sequence[tuple[str, str, list[Sample], dict[str, Any]]]:
    return [
        (
            field,
            program,
            some,
            {"color": COLOURS[program], "ls": STYLES.get(field, "-"), "label": _label(field, program)},
        )
        for field, programs in parts.items()
        for program, some in programs.items()
        if some
    ]


def _positions(axis: Any, parts: Parts) -> None:
    bins = np.geomspace(5, 1000, 12)
    middle = np.sqrt(bins[1:] * bins[:-1])
    for _, _, some, style in _each(parts):
        values = []
        for low, high in pairwise(bins):
            e = pooled(some, lambda s: s.east, low, high)
            e = e[np.isfinite(e)]
            values.append(1000 * 1.4826 * np.median(np.abs(e)) if len(e) > 10 else np.nan)
        if np.isfinite(values).any():
            axis.loglog(middle, values, **style)
    axis.axhline(15, color="grey", lw=0.7)
    axis.set(xlabel="true S/N", ylabel="error of right ascension [mas]", title="sky places, air included")
    axis.legend(fontsize=7)


def _repeatability(axis: Any, parts: Parts) -> None:
    for _, _, some, style in _each(parts):
        if len(some) < 3:
            continue
        ids, offset, _ = calibrated(some)
        mags = np.full(len(ids), np.nan)
        for s in some:
            mags[np.searchsorted(ids, s.frame.truth["truth_id"][s.truth])] = s.frame.truth["mag"][s.truth]
        often = np.isfinite(offset).sum(axis=0) >= max(len(some) - 2, 3)
        with np.errstate(all="ignore"):
            rms = np.nanstd(offset[:, often], axis=0, ddof=1)
        values = [
            1000 * np.median(rms[there]) if (there := (mags[often] > low) & (mags[often] <= high)).sum() > 5 else np.nan
            for low, high in pairwise(MAG_BINS)
        ]
        axis.semilogy((MAG_BINS[1:] + MAG_BINS[:-1]) / 2, values, **style)
    axis.axhspan(5, 10, color="grey", alpha=0.2)
    axis.set(xlabel="magnitude", ylabel="scatter between exposures [mmag]", title="repeatability", xlim=(13, 21.5))


def _pulls(axis: Any, parts: Parts) -> None:
    bins = np.array([5.0, 7, 10, 15, 25, 50, 100])
    middle = np.sqrt(bins[1:] * bins[:-1])
    for _, _, some, style in _each(parts):
        values = [spread(pooled(some, lambda s: s.pull, low, high)) for low, high in pairwise(bins)]
        axis.semilogx(middle, values, **style)
    axis.axhspan(0.95, 1.10, color="grey", alpha=0.2)
    axis.set(xlabel="true S/N", ylabel="robust sigma of flux pulls", title="flux errors", ylim=(0.5, 3))


def _zeropoints(axis: Any, by_field: dict[str, list[Frame]]) -> None:
    for k, (name, frames) in enumerate(by_field.items()):
        good = [f for f in frames if not f.failure and f.zeropoint is not None]
        seeing = [f.seeing for f in good]
        error = [1000 * (f.zeropoint.magzp - f.conditions["magzp"]) for f in good if f.zeropoint]
        bar = [1000 * f.zeropoint.magzpunc for f in good if f.zeropoint]
        axis.errorbar(seeing, error, bar, fmt="os^"[k % 3], label=name, ms=4)
    axis.axhspan(-10, 10, color="grey", alpha=0.15)
    axis.set(xlabel="seeing [px]", ylabel="MAGZP - truth [mmag]", title="zero points and MAGZPUNC")
    axis.legend(fontsize=7)


def _found(axes: Any, parts: Parts) -> None:
    middle = np.sqrt(SNR_BINS[1:] * SNR_BINS[:-1])
    for field, _, some, style in _each(parts):
        figures = found_figures(some)
        axes[0].semilogx(middle, figures["completeness"], **style)
        axes[1].semilogx(middle, figures["purity"], **style)
        if field == "dense":
            axes[2].plot((MAG_BINS[1:] + MAG_BINS[:-1]) / 2, figures["by_mag"], **style)
    axes[0].set(xlabel="true S/N", ylabel="completeness")
    axes[1].set(xlabel="measured S/N", ylabel="purity", ylim=(0.5, 1.02))
    axes[2].set(xlabel="magnitude", ylabel="completeness, crowded field", xlim=(14, 22.5))
    axes[0].legend(fontsize=6)
