"""Alerts as pictures: the three stamps of one with its light curve, and a sheet of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stream.alert.packet import CUTOUTS
from stream.alert.stamps import decode_stamp
from stream.core.errors import MessageError, UsageError

Record = Mapping[str, Any]
_TITLES = ("science", "reference", "difference")
_COLOURS = {1: "tab:green", 2: "tab:red", 3: "tab:orange"}
_FILTERS = {1: "g", 2: "r", 3: "i"}


def score_of(record: Record) -> float:
    """How good an alert is thought to be: ``drb``, else ``rb``, else 0; sentinels count as 0."""
    candidate = record["candidate"]
    for name in ("drb", "rb"):
        if candidate.get(name) is not None:
            return max(float(candidate[name]), 0.0)
    return 0.0


def best_alerts(records: Iterable[Record], n: int) -> list[Record]:
    """The ``n`` alerts of highest score, brighter ones first among equals; the same ones every time."""
    ranked = sorted(records, key=lambda r: (-score_of(r), r["candidate"]["magpsf"], r["candid"]))
    return ranked[:n]


def draw_stamp(axes: Axes, record: Record, which: int) -> None:
    """One cutout (0 science, 1 reference, 2 difference), north up and east left, between its 1 and 99.5 percentiles."""
    axes.set_xticks([])
    axes.set_yticks([])
    cutout = record[CUTOUTS[which]]
    try:
        image = None if cutout is None else decode_stamp(cutout["stampData"])
    except MessageError:
        image = None
    if image is None or not np.isfinite(image).any():
        axes.text(0.5, 0.5, "no stamp", ha="center", va="center", transform=axes.transAxes)
        return
    low, high = np.nanpercentile(image, [1.0, 99.5])
    # Stored x grows to the west and y to the south: the first row on top is north up.
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="upper", interpolation="nearest")


def draw_light_curve(axes: Axes, record: Record) -> None:
    """Magnitudes over days before the alert: detections with errors, limits as triangles."""
    candidate = record["candidate"]
    rows = [*(record.get("prv_candidates") or []), candidate]
    for fid, colour in _COLOURS.items():
        own = [row for row in rows if row["fid"] == fid]
        seen = [row for row in own if row.get("magpsf") is not None]
        limits = [row for row in own if row.get("magpsf") is None and row.get("diffmaglim") is not None]
        if seen:
            days = [row["jd"] - candidate["jd"] for row in seen]
            axes.errorbar(
                days, [row["magpsf"] for row in seen], [row["sigmapsf"] for row in seen], fmt="o", color=colour,
                label=_FILTERS[fid],
            )  # fmt: skip
        if limits:
            days = [row["jd"] - candidate["jd"] for row in limits]
            axes.plot(days, [row["diffmaglim"] for row in limits], "v", color=colour, alpha=0.4)
    axes.invert_yaxis()
    axes.set_xlabel("days before this alert")
    axes.set_ylabel("difference magnitude")
    axes.legend(loc="upper left")


def summary(record: Record) -> list[str]:
    """An alert in a few lines of text."""
    c = record["candidate"]
    sign = "brighter" if c["isdiffpos"] in ("t", "1") else "fainter"
    history, forced = record.get("prv_candidates") or [], record.get("fp_hists") or []
    seen = sum(row.get("magpsf") is not None for row in history)

    def number(name: str, form: str) -> str:
        return "-" if c.get(name) in (None, -999.0) else format(c[name], form)

    return [
        f"{record['objectId']}  candid {record['candid']}  jd {c['jd']:.5f}",
        f"ra {c['ra']:.6f}  dec {c['dec']:+.6f}  field {c.get('field')}  rcid {c.get('rcid')}  "
        f"program {c['programid']}",
        f"{_FILTERS.get(c['fid'], '?')} = {c['magpsf']:.3f} +- {c['sigmapsf']:.3f}, {sign} than the reference; "
        f"limit {number('diffmaglim', '.2f')}",
        f"rb {number('rb', '.3f')}  drb {number('drb', '.3f')}  fwhm {number('fwhm', '.2f')} px  "
        f"nearest reference source {number('distnr', '.2f')} px, {number('magnr', '.2f')} mag",
        f"known object: {c.get('ssnamenr') or 'none'}  Pan-STARRS {number('distpsnr1', '.2f')} arcsec, "
        f"star/galaxy {number('sgscore1', '.2f')}",
        f"history: {seen} detections, {len(history) - seen} limits, {len(forced)} forced points",
    ]


# Places are given, in parts of the figure: with matplotlib's constrained layout the same alerts made three different
# files in 25 drawings.
def draw_alert(record: Record, path: Path) -> None:
    """One alert as a PNG: its three stamps above its light curve."""
    figure = Figure(figsize=(9, 7))
    for i, title in enumerate(_TITLES):
        axes = figure.add_axes((0.03 + 0.325 * i, 0.48, 0.30, 0.42))
        draw_stamp(axes, record, i)
        axes.set_title(title)
    draw_light_curve(figure.add_axes((0.08, 0.08, 0.89, 0.36)), record)
    figure.text(0.5, 0.96, summary(record)[0], ha="center")
    _save(figure, path)


def stamps_sheet(packets: Iterable[Record], path: Path, n: int = 12) -> int:
    """The best ``n`` alerts as a PNG sheet, three stamps each; returns how many there are on it.

    Raises
    ------
    UsageError
        There is not a single alert.
    """
    chosen = best_alerts(packets, n)
    if not chosen:
        raise UsageError("no alerts to draw")
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.2 * columns, 1.75 * rows))
    width, height = 1 / columns, 1 / rows
    for k, record in enumerate(chosen):
        left, bottom = (k % columns) * width, 1 - (k // columns + 1) * height
        c = record["candidate"]
        title = f"{record['objectId']}  {_FILTERS.get(c['fid'], '?')} {c['magpsf']:.2f}  score {score_of(record):.2f}"
        figure.text(left + width / 2, bottom + 0.90 * height, title, ha="center", fontsize=8)
        for i, name in enumerate(_TITLES):
            place = left + (0.02 + 0.325 * i) * width, bottom + 0.12 * height, 0.31 * width, 0.74 * height
            axes = figure.add_axes(place)
            draw_stamp(axes, record, i)
            axes.set_xlabel(name, fontsize=7, labelpad=2)
    _save(figure, path)
    return len(chosen)


def _save(figure: Figure, path: Path) -> None:
    # No software version and no date in the file: the same alerts give the same picture.
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
