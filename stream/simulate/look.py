"""A page of plots that shows a person what a simulated night holds: ``OUT/look.png``.

Everything is read back from the packets and the truth tables on disk.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stream.core import identity
from stream.core.camera import quadrant_layout
from stream.simulate.gallery import EXAMPLES, SOURCE_COLUMNS, Night
from stream.simulate.truth import read_truth

F32 = NDArray[np.float32]

INK = {1: "#2a9d5c", 2: "#c8402f", 3: "#7b3fa0"}  # g, r, i
FILTER = {1: "g", 2: "r", 3: "i"}
KIND_INK = {
    "transient": "#ff5d5d", "variable": "#ffb03b", "asteroid": "#59d0ff", "comet": "#8affc1", "streak": "#d08bff",
    "galaxy": "#9fc36a", "star": "#ffffff",
}  # fmt: skip
CURVES = 12  # light curves on the page


def draw_page(out: Path, path: Path | None = None) -> Path:
    """Draw the page of a simulated night; ``OUT/look.png`` unless another path is given.

    Raises
    ------
    UsageError
        There is no simulated night in the folder, or no exposure of the sky in it.
    """
    night = Night(Path(out))
    figure = Figure(figsize=(22, 29), layout="constrained", facecolor="white")
    parts: Any = figure.subfigures(3, 1, height_ratios=(10, 9, 12), hspace=0.01)
    top, middle, bottom = parts
    left, right = top.subplots(1, 2)
    draw_quadrant(left, night)
    draw_focal_plane(right, night)
    draw_examples(middle, night)
    grid = bottom.add_gridspec(3, 6)
    draw_counts(bottom.add_subplot(grid[0, :2]), night)
    draw_colours(bottom.add_subplot(grid[0, 2:4]), night)
    draw_census(bottom.add_subplot(grid[0, 4:]), night)
    draw_timeline(bottom.add_subplot(grid[1, :]), night)
    draw_light_curves(bottom.add_subplot(grid[2, :3]), night)
    draw_tracks(bottom.add_subplot(grid[2, 3:]), night)
    figure.suptitle(_title(night), fontsize=20)
    path = Path(out) / "look.png" if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75, metadata={"Software": None})
    return path


def _title(night: Night) -> str:
    rows = night.of_exposures()
    nights = len({identity.night_of(float(jd)) for jd in rows["jd"][rows["role"] == "sci"]})
    fields = len(set(rows["field"].tolist()))
    return (
        f"Simulated: {len(rows['jd'])} exposures of the sky, {fields} field{'s' * (fields > 1)}, "
        f"{nights} night{'s' * (nights != 1)}, {len(night.packets)} packets"
    )


def _grey(axis: Axes, image: F32, contrast: float = 0.995, **how: Any) -> None:
    """An image in grey, from just below the sky to a high percentile."""
    finite = image[np.isfinite(image)]
    sky = float(np.median(finite))
    noise = 1.4826 * float(np.median(np.abs(finite - sky))) + 1e-3
    top = max(float(np.quantile(finite, contrast)), sky + 6 * noise)
    shown = np.arcsinh((image - sky) / (2 * noise))
    limits = {"vmin": np.arcsinh(-1.5), "vmax": np.arcsinh((top - sky) / (2 * noise))}
    axis.imshow(shown, cmap="gray", origin="lower", interpolation="nearest", **limits, **how)
    axis.set_xticks([])
    axis.set_yticks([])


# -- whole quadrant and focal plane


def draw_quadrant(axis: Axes, night: Night) -> None:
    """A raw quadrant with what was put into it."""
    exposure, rcid = night.first
    image = night.image(exposure, rcid)
    step = max(1, image.shape[1] // 1024)
    ny, nx = (size // step * step for size in image.shape)
    binned = image[:ny, :nx].reshape(ny // step, step, nx // step, step).mean(axis=(1, 3))
    _grey(axis, binned, 0.997, extent=(-0.5, nx - 0.5, -0.5, ny - 0.5))
    rows = (night.sources["exposure"] == exposure) & (night.sources["rcid"] == rcid)
    for kind, ink in KIND_INK.items():
        some = np.flatnonzero(rows & (night.sources["kind"] == kind))
        if kind in ("star", "galaxy") or len(some) == 0:
            continue
        x, y = night.sources["x"][some], night.sources["y"][some]
        axis.scatter(x, y, s=90, facecolors="none", edgecolors=ink, linewidths=1.2, label=f"{len(some)} {kind}")
    axis.legend(loc="upper right", fontsize=10, framealpha=0.85)
    axis.set_title(f"a raw quadrant, as stored: {exposure}, rcid {rcid}", fontsize=12)


def draw_focal_plane(axis: Axes, night: Night) -> None:
    """The exposure in the focal plane: FWHM and elongation of the PSF, bright stars, trails."""
    from stream.simulate.optics import PsfField

    exposure, _ = night.first
    stamp = exposure.split("_c")[0]
    camera = night.camera
    half = camera.nx / 2 * camera.pixel_scale / 3600, camera.ny / 2 * camera.pixel_scale / 3600
    places, fwhms, whiskers = [], [], []
    for k in np.flatnonzero([str(name).startswith(stamp) for name in night.quadrants["exposure"]]):
        if not night.quadrants["psf"][k]:
            continue
        psf = PsfField(camera.shape, **{name: tuple(v) for name, v in json.loads(night.quadrants["psf"][k]).items()})
        xi, eta = quadrant_layout()[int(night.quadrants["rcid"][k])]
        at = np.linspace(0.1, 0.9, 5) if camera.nx > 2000 else np.array([0.5])
        x, y = (part.ravel() for part in np.meshgrid(at * camera.nx, at * camera.ny))
        alpha, e1, e2 = psf.at(x, y)
        east, north = half[0] * (1 - 2 * x / camera.nx), half[1] * (1 - 2 * y / camera.ny)
        places.append(np.stack([xi + east, eta + north]))
        fwhms.append(psf.fwhm(x, y))
        # Stored x runs west and y south: the same axis of elongation on the sky.
        whiskers.append(np.stack([np.hypot(e1, e2), 0.5 * np.arctan2(e2, e1), alpha]))
    for xi, eta in quadrant_layout():
        axis.add_patch(_box(xi, eta, *half))
    if places:
        xs, ys = np.concatenate(places, axis=1)
        size, angle, _ = np.concatenate(whiskers, axis=1)
        colours = axis.scatter(xs, ys, c=np.concatenate(fwhms), s=30, cmap="viridis")
        axis.figure.colorbar(colours, ax=axis, label="FWHM (px)", shrink=0.75)
        # A whisker of a sixth of a degree is an elongation of a tenth.
        how = {"pivot": "middle", "headwidth": 0, "headlength": 0, "headaxislength": 0, "width": 0.012, "scale": 0.6}
        how |= {"angles": "xy", "scale_units": "xy", "units": "xy", "color": "black"}
        axis.quiver(xs, ys, size * np.cos(angle), size * np.sin(angle), **how)
    _draw_crossings(axis, night, stamp)
    axis.set(xlim=(4.4, -4.4), ylim=(-4.4, 4.4), aspect="equal", xlabel="east (deg)", ylabel="north (deg)")
    axis.set_title("focal plane: FWHM, elongation (whiskers), satellites (red) and aircraft (orange)", fontsize=12)


def _box(xi: float, eta: float, half_x: float, half_y: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((xi - half_x, eta - half_y), 2 * half_x, 2 * half_y, fill=False, color="0.75", lw=0.6)


def _draw_crossings(axis: Axes, night: Night, stamp: str) -> None:
    for k, kind in enumerate(night.artefacts["kind"]):
        described = night.artefacts["parameters"][k]
        if kind in ("satellite", "aircraft") and described and str(night.artefacts["exposure"][k]).startswith(stamp):
            line = json.loads(described)
            ink = "red" if kind == "satellite" else "orange"
            axis.plot([line["xi1"], line["xi2"]], [line["eta1"], line["eta2"]], color=ink, lw=1.0)


# -- examples


def draw_examples(figure: Any, night: Night) -> None:
    """Zoom-ins on one of each kind, as many as there are."""
    shown = [example for example in (find(night) for find in EXAMPLES) if example is not None]
    axes = figure.subplots(3, 6).ravel()
    for axis, example in zip(axes, [*shown, *[None] * 18][:18], strict=True):
        if example is None:
            axis.axis("off")
            continue
        label, exposure, rcid, (x, y), half = example
        image = night.image(exposure, rcid)
        low, left = max(0, round(y) - half), max(0, round(x) - half)
        part = image[low : round(y) + half + 1, left : round(x) + half + 1]
        _grey(axis, part, 0.999 if half < 100 else 0.995)
        axis.set_title(label, fontsize=10.5)
        axis.set_xlabel(f"{part.shape[1]} px", fontsize=8, labelpad=2)


# -- the sky, the night, what changes


def draw_counts(axis: Axes, night: Night) -> None:
    """Sources by magnitude in one quadrant, a square degree."""
    exposure, rcid = night.first
    rows = (night.sources["exposure"] == exposure) & (night.sources["rcid"] == rcid)
    camera = night.camera
    area = camera.nx * camera.ny * (camera.pixel_scale / 3600) ** 2
    edges = np.arange(11.0, 22.6, 0.5)
    for kind, ink in (("star", "black"), ("galaxy", "#5d8a2a"), ("variable", "#e08a00"), ("transient", "#d62828")):
        mags = night.sources["mag"][rows & (night.sources["kind"] == kind)]
        counts = np.histogram(mags, edges)[0] / area / 0.5
        axis.stairs(np.where(counts > 0, counts, np.nan), edges, color=ink, label=kind, lw=1.8, baseline=None)
    axis.set(yscale="log", xlabel=f"{FILTER[_fid(exposure)]} (mag)", ylabel="a square degree and magnitude")
    axis.legend(fontsize=9)
    axis.set_title("number counts")


def _fid(exposure: str) -> int:
    return {"zg": 1, "zr": 2, "zi": 3}[exposure.split("_")[3]]


def draw_colours(axis: Axes, night: Night) -> None:
    """The stellar locus and the galaxies, as the Pan-STARRS1 table lists them."""
    columns = ("gMeanPSFMag", "rMeanPSFMag", "iMeanPSFMag", "ps_score")
    table = pq.read_table(night.out / "ps1.parquet", columns=list(columns))
    g, r, i, score = (np.asarray(table[name]) for name in columns)
    good = (g > 0) & (r > 0) & (i > 0) & (r < 20)
    for chosen, ink, label in ((score < 0.5, "#5d8a2a", "galaxies"), (score >= 0.5, "black", "stars")):
        some = np.flatnonzero(good & chosen)[:6000]
        axis.scatter(g[some] - r[some], r[some] - i[some], s=2, color=ink, alpha=0.35, label=label)
    axis.set(xlim=(-0.6, 2.0), ylim=(-0.4, 2.2), xlabel="g - r", ylabel="r - i")
    axis.legend(fontsize=9, markerscale=4)
    axis.set_title("colours in ps1.parquet (r < 20)")


def draw_census(axis: Axes, night: Night) -> None:
    """How many of each kind are in the exposures that were looked into."""
    kinds, varieties = night.sources["kind"].astype(str), night.sources["variety"]
    names = np.array([f"{k}: {v}" if v and k not in ("star",) else k for k, v in zip(kinds, varieties, strict=True)])
    _, once = np.unique(night.sources["truth_id"], return_index=True)
    found = list(zip(*np.unique(names[once], return_counts=True), strict=True))
    _, marks = np.unique(night.artefacts["kind"].astype(str), return_inverse=True)
    counted = np.bincount(marks) if len(marks) else np.zeros(0, int)
    found += list(zip(sorted(set(night.artefacts["kind"].astype(str).tolist())), counted, strict=True))
    axis.axis("off")
    half = (len(found) + 1) // 2
    for column, part in enumerate((found[:half], found[half:])):
        for row, (name, count) in enumerate(part):
            y = 0.95 - row * 0.9 / max(half, 1)
            axis.text(0.02 + 0.52 * column, y, name, fontsize=9.5, transform=axis.transAxes)
            axis.text(0.46 + 0.52 * column, y, f"{count}", fontsize=9.5, ha="right", transform=axis.transAxes)
    axis.set_title(f"in {len(set(night.sources['exposure'].tolist()))} packets looked into: sources and artefacts")


def draw_timeline(axis: Axes, night: Night) -> None:
    """Airmass, seeing, cloud and moon of the science exposures; nights follow one another."""
    rows = night.of_exposures()
    science = rows["role"] == "sci" if (rows["role"] == "sci").any() else np.ones(len(rows["jd"]), bool)
    rows = {name: column[science] for name, column in rows.items()}
    start = np.floor(rows["jd"] - 0.5)
    nights = np.unique(start)
    hours = (rows["jd"] - 0.5 - start) * 24 + 14.0 * np.searchsorted(nights, start)
    for fid, ink in INK.items():
        some = rows["fid"] == fid
        if some.any():
            axis.scatter(hours[some], rows["airmass"][some], s=12, color=ink, label=f"airmass, {FILTER[fid]}")
            axis.scatter(
                hours[some], rows["seeing"][some], s=12, color=ink, marker="x", label=f"seeing (px), {FILTER[fid]}"
            )
    axis.scatter(hours, 5 * rows["transparency"].astype(float), s=8, color="0.55", marker="s", label="loss x 5 (mag)")
    moon = np.clip(rows["moon_altitude"].astype(float) / 30.0, 0, None)
    axis.fill_between(hours, 0, moon, step="mid", color="#f2d16b", alpha=0.45, label="moon's altitude / 30 deg")
    axis.set(ylim=(0, max(4.5, 1.5 * float(np.nanmax(rows["seeing"].astype(float))))), xlabel="UT (h)")
    ticks = [14.0 * k + hour for k in range(len(nights)) for hour in range(2, 14, 2)]
    axis.set_xticks(ticks, [f"{tick % 14:.0f}" for tick in ticks])
    for midnight in nights:
        label = f"{identity.utc_of(float(midnight) + 0.75):%Y-%m-%d}"
        axis.text(float(hours[start == midnight].min()), 0.97 * axis.get_ylim()[1], label, va="top", fontsize=11)
    first, last = float(hours.min()), float(hours.max())
    axis.set_xlim(first - 0.3 - 0.02 * (last - first), last + 0.3 + 0.02 * (last - first))
    axis.legend(fontsize=9, ncols=8, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    axis.set_title("the science exposures in time", loc="left")


def draw_light_curves(axis: Axes, night: Night) -> None:
    """What changes most, over references and science, exposure by exposure."""
    chosen = _changing(night)
    curves = read_truth(night.out, "sources", columns=SOURCE_COLUMNS, truth_id=chosen or [-1])
    exposures = night.of_exposures()
    times = exposures["jd_mid"].astype(float)
    for identifier in chosen[:CURVES]:
        of = np.flatnonzero((curves["truth_id"] == identifier) & curves["in_quadrant"].astype(bool))
        if len(of) == 0:
            continue
        of = of[np.argsort(curves["jd_mid"][of])]
        fids = [_fid(str(exposure)) for exposure in curves["exposure"][of]]
        turn = np.searchsorted(times, curves["jd_mid"][of] - 1e-6)
        axis.plot(turn, curves["mag"][of], color="0.8", lw=0.8, zorder=1)
        axis.scatter(turn, curves["mag"][of], s=14, c=[INK[fid] for fid in fids], zorder=2)
        name = str(curves["variety"][of[0]] or curves["kind"][of[0]])
        last = (float(turn[-1]), float(curves["mag"][of[-1]]))
        axis.annotate(name, last, xytext=(5, -3), textcoords="offset points", fontsize=8)
    breaks = np.flatnonzero(np.diff(times) > 0.3) + 0.5
    for place in breaks if len(breaks) < 30 else []:
        axis.axvline(place, color="0.9", lw=0.8, zorder=0)
    axis.axvline(int((exposures["role"] == "ref").sum()) - 0.5, color="0.4", lw=1.0)
    axis.set(xlabel="exposure (nights between thin lines; references left of the dark one)", ylabel="mag")
    axis.set(ylim=(24.5, 13.5), xlim=(-0.5, 1.12 * len(times)))
    axis.set_title("true light curves (g green, r red, i violet)")


def _changing(night: Night) -> list[int]:
    """Identifiers of the brightest transients and variables of each variety."""
    rows = night.sources
    wanted = (
        ("transient", "supernova", 2), ("transient", "nuclear", 1), ("transient", "hostless", 1),
        ("variable", "fader", 2), ("variable", "dwarf_nova", 2), ("variable", "flare", 1), ("variable", "rr_lyrae", 1),
        ("variable", "eclipsing", 1), ("variable", "pulsator", 1),
    )  # fmt: skip
    chosen: list[int] = []
    for kind, variety, count in wanted:
        some = np.flatnonzero((rows["kind"] == kind) & (rows["variety"] == variety))
        brightest = some[np.argsort(rows["mag"][some].astype(float))]
        chosen += list(dict.fromkeys(rows["truth_id"][brightest].tolist()))[:count]
    return chosen


def draw_tracks(axis: Axes, night: Night) -> None:
    """How movers move from exposure to exposure, each from where it was first seen."""
    wanted = ("truth_id", "kind", "variety", "jd_mid", "ra", "dec")
    rows = read_truth(night.out, "sources", columns=wanted, kind=("asteroid", "comet", "streak"), role="sci")
    inks = {
        "main_belt": "#1d70b8",
        "hungaria": "#2a9d5c",
        "trojan": "#7b3fa0",
        "near_earth": "#d62828",
        "comet": "#e08a00",
    }
    labelled: set[str] = set()
    for identifier in np.unique(rows["truth_id"])[:300]:
        of = np.flatnonzero(rows["truth_id"] == identifier)
        of = of[np.argsort(rows["jd_mid"][of])]
        if rows["kind"][of[0]] == "streak":
            continue
        ra, dec = rows["ra"][of], rows["dec"][of]
        east = 60 * ((ra - ra[0] + 180) % 360 - 180) * np.cos(np.radians(dec[0]))
        name = str(rows["variety"][of[0]])
        label = None if name in labelled else name.replace("_", " ")
        labelled.add(name)
        axis.plot(east, 60 * (dec - dec[0]), "o-", ms=3, lw=0.8, color=inks.get(name, "0.5"), label=label)
    axis.axhline(0, color="0.9", zorder=0)
    axis.axvline(0, color="0.9", zorder=0)
    axis.invert_xaxis()
    if labelled:
        axis.legend(fontsize=9)
    axis.set(xlabel="east (arcmin)", ylabel="north (arcmin)", title="movers from where they were first seen")
