"""A simulated night as it lies on disk, and the examples of each kind of source and artefact that are worth a look."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from stream.core import identity
from stream.core.camera import Camera
from stream.core.errors import UsageError
from stream.simulate.truth import read_truth

F32 = NDArray[np.float32]
Rows = dict[str, NDArray[Any]]

MOST_PACKETS = 10  # that are looked into for examples
MOST_IMAGES = 6  # that are kept, 38 MB each
SATURATED = 3e6  # DN, flux of a star that saturates in every seeing
UNSATURATED = 1.5e5  # DN, of one that does in none
SOURCE_COLUMNS = (
    "truth_id", "kind", "variety", "designation", "exposure", "rcid", "jd_mid", "x", "y", "ra", "dec", "mag", "flux",
    "in_quadrant", "x1", "y1", "x2", "y2",
)  # fmt: skip


@dataclass(slots=True)
class Night:
    """A simulated night on disk, and what of it is shown."""

    out: Path
    quadrants: Rows = field(init=False)
    packets: dict[str, Path] = field(init=False)
    sources: Rows = field(init=False)
    artefacts: Rows = field(init=False)
    _images: dict[tuple[str, int], F32] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.quadrants = read_truth(self.out, "quadrants")
        files = sorted((self.out / "raw" / "sci").glob("*.fits*")) or sorted((self.out / "raw" / "ref").glob("*.fits*"))
        if not files:
            raise UsageError(f"{self.out} holds no exposure of the sky to look at")
        self.packets = {path.name.split(".fits")[0]: path for path in files}
        names = list(self.packets)
        trails = read_truth(self.out, "artefacts", columns=("exposure",), kind=("satellite", "aircraft"))["exposure"]
        chosen = [names[k] for k in np.unique(np.linspace(0, len(names) - 1, MOST_PACKETS).astype(int))]
        chosen += [name for name in dict.fromkeys(trails.tolist()) if name in self.packets][:4]
        self.sources = read_truth(self.out, "sources", columns=SOURCE_COLUMNS, exposure=chosen, in_quadrant=True)
        artefacts = read_truth(self.out, "artefacts", exposure=chosen)
        self.artefacts = artefacts

    @property
    def first(self) -> tuple[str, int]:
        """The quadrant that is shown whole: the first with a trail across it, else the first of all."""
        trails = np.flatnonzero(np.isin(self.artefacts["kind"].astype(str), ("satellite", "aircraft")))
        if len(trails):
            return str(self.artefacts["exposure"][trails[0]]), int(self.artefacts["rcid"][trails[0]])
        name = next(iter(self.packets))
        rows = self.sources["exposure"] == name
        return name, int(self.sources["rcid"][rows].min()) if rows.any() else 4 * (int(name.split("_c")[1][:2]) - 1)

    def image(self, exposure: str, rcid: int) -> F32:
        """A raw quadrant less the level of its overscan, row by row, DN."""
        key = exposure, rcid
        if key not in self._images:
            while len(self._images) >= MOST_IMAGES:
                self._images.pop(next(iter(self._images)))
            qid = identity.ccd_qid_of(rcid)[1]
            with fits.open(self.packets[exposure]) as hdus:
                level = np.median(hdus[qid + 4].data[:, 15:], axis=1)
                self._images[key] = hdus[qid].data.astype(np.float32) - level[:, None].astype(np.float32)
        return self._images[key]

    @property
    def camera(self) -> Camera:
        """The camera that took it."""
        shape = self.image(*self.first).shape
        return Camera("seen", shape[1], shape[0])

    def of_exposures(self) -> Rows:
        """One row an exposure of the sky, in time order."""
        sky = np.flatnonzero(np.isfinite(self.quadrants["airmass"].astype(float)))
        stamps = np.array([name.split("_c")[0] for name in self.quadrants["exposure"][sky]])
        _, once = np.unique(stamps, return_index=True)
        rows = {name: column[sky[once]] for name, column in self.quadrants.items()}
        order = np.argsort(rows["jd"])
        return {name: column[order] for name, column in rows.items()}


Example = tuple[str, str, int, tuple[float, float], int]


def _source(night: Night, kind: str, label: str, half: int, variety: str = "") -> Example | None:
    """The brightest of a kind (and variety) that lies well inside its quadrant and is not saturated."""
    rows = night.sources
    camera = night.camera
    chosen = rows["kind"] == kind
    if variety:
        chosen &= rows["variety"] == variety
    elif kind == "star":
        chosen &= rows["flux"] < UNSATURATED
    x, y = rows["x"].astype(float), rows["y"].astype(float)
    chosen &= (x > half) & (x < camera.nx - half) & (y > half) & (y < camera.ny - half)
    best = np.flatnonzero(chosen)
    if len(best) == 0:
        return None
    k = int(best[np.argmax(rows["flux"][best].astype(float))])
    if kind == "streak":
        half = max(half, int(0.7 * math.hypot(rows["x2"][k] - rows["x1"][k], rows["y2"][k] - rows["y1"][k])))
    name = f"{label} {rows['designation'][k]}" if rows["designation"][k] else label
    return f"{name}, {rows['mag'][k]:.1f} mag", str(rows["exposure"][k]), int(rows["rcid"][k]), (x[k], y[k]), half


def _saturated(night: Night) -> Example | None:
    rows, camera = night.sources, night.camera
    x, y = rows["x"].astype(float), rows["y"].astype(float)
    inside = (x > 60) & (x < camera.nx - 60) & (y > 60) & (y < camera.ny - 60)
    best = np.flatnonzero((rows["kind"] == "star") & (rows["flux"] > SATURATED) & inside)
    if len(best) == 0:
        return None
    k = int(best[np.argmax(rows["flux"][best].astype(float))])
    half = min(150, camera.nx // 6)
    return f"saturated star, {rows['mag'][k]:.1f} mag", rows["exposure"][k], int(rows["rcid"][k]), (x[k], y[k]), half


def _artefact(night: Night, kind: str, label: str, half: int) -> Example | None:
    """The strongest artefact of a kind."""
    rows = night.artefacts
    some = np.flatnonzero((rows["kind"] == kind) & np.isin(rows["exposure"], list(night.packets)))
    some = some[np.isfinite(rows["x"][some].astype(float))]
    camera = night.camera
    edge = min(half, 30)
    x, y = rows["x"].astype(float), rows["y"].astype(float)
    some = some[(x[some] > edge) & (x[some] < camera.nx - edge) & (y[some] > edge) & (y[some] < camera.ny - edge)]
    if len(some) == 0:
        return None
    size = rows["npix"][some].astype(float)
    k = int(some[np.argmax(np.nan_to_num(size))])
    half = min(half, camera.nx // 3)
    return label, str(rows["exposure"][k]), int(rows["rcid"][k]), (float(x[k]), float(y[k])), half


def _flashing(night: Night) -> Example | None:
    """The brightest satellite that tumbles."""
    rows = night.artefacts
    tumbling = [
        k
        for k in np.flatnonzero(rows["kind"] == "satellite").tolist()
        if json.loads(rows["parameters"][k] or "{}").get("period") and rows["npix"][k] > 300
    ]
    if not tumbling:
        return None
    k = max(tumbling, key=lambda k: float(np.max(rows["values"][k])))
    top = int(rows["pixels"][k][int(np.argmax(rows["values"][k]))])
    half, nx = min(150, night.camera.nx // 4), night.camera.nx
    return "tumbling satellite", str(rows["exposure"][k]), int(rows["rcid"][k]), (top % nx, top // nx), half


EXAMPLES: tuple[Callable[[Night], Example | None], ...] = (
    partial(_source, kind="star", label="star", half=20),
    _saturated,
    partial(_source, kind="galaxy", label="galaxy", half=30),
    partial(_source, kind="transient", label="supernova", half=25, variety="supernova"),
    partial(_source, kind="transient", label="nuclear transient", half=25, variety="nuclear"),
    partial(_source, kind="transient", label="hostless transient", half=25, variety="hostless"),
    partial(_source, kind="variable", label="dwarf nova", half=25, variety="dwarf_nova"),
    partial(_source, kind="variable", label="flare star", half=25, variety="flare"),
    partial(_source, kind="variable", label="fader", half=25, variety="fader"),
    partial(_source, kind="asteroid", label="asteroid", half=20),
    partial(_source, kind="comet", label="comet", half=70),
    partial(_source, kind="streak", label="near-Earth", half=25),
    partial(_artefact, kind="satellite", label="satellite", half=150),
    _flashing,
    partial(_artefact, kind="aircraft", label="aircraft", half=400),
    partial(_artefact, kind="cosmic_ray", label="cosmic ray", half=25),
    partial(_artefact, kind="ghost", label="ghost of a bright star", half=400),
    partial(_artefact, kind="halo", label="halo of a bright star", half=450),
)
