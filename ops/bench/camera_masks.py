"""The rows of the camera's table that belong to masks, on full-size simulated quadrants against truth.

``rows(night)`` is called by ``ops.bench.camera``. Alone:

    python -m ops.bench.camera_masks --out DIR [--exposures N] [--skies N] [--trails N]

DIR is a folder that ``ops.bench.camera`` made. One channel's exposures go through the project's own science
(calibrate to mask, no subtraction); every second of them calibrates the ghosts' geometry, and the others are judged.
Trails are put onto one of those calibrated images; false ones are looked for on all of them, and on the skies of six
of them with the noise drawn anew, as often as asked.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ops.bench.camera_night import CameraNight, packets, plans
from ops.bench.rows import Row
from stream.archive import ProductStore, StoreInputs
from stream.calibrate import calibrate, calibrate_ghosts, find_tracks, ghost_sample, mask_ghosts, mask_tracks
from stream.calibrate.ghosts import CELL, GhostSample
from stream.calibrate.radon import Line, clipped, extended
from stream.calibrate.tracks import BLIND_BITS, strip_pixels
from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.ghosts import FIELD_RADIUS, GhostGeometry
from stream.core.records import Background, CalibratedImage, Quadrant, ScienceImage
from stream.ingest import read_packet, read_quadrant
from stream.photometry import estimate_background
from stream.pipeline import ScienceSettings, process_quadrant
from stream.simulate import NightPlan, simulate_night

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]
PEAKS = (1.0, 1.5, 3.0)  # sigma of a sky pixel in a trail's middle
SEEINGS = (1.5, 2.0, 3.0)
TRAILS, SKIES = 40, 500
SKY_QUADRANTS = 6  # whose stars false trails are looked for on; they stay in memory, 0.2 GB each
HIT = int(Mask.SPIKE | Mask.COSMIC_RAY)


@dataclass
class Counts:
    """Sums over quadrants."""

    full: int = 0
    full_found: int = 0
    full_false: int = 0
    ring: int = 0
    pixels: int = 0
    hits: int = 0
    hits_found: int = 0
    stars: int = 0
    harmed: int = 0
    crossings: int = 0
    crossings_found: int = 0
    false_tracks: int = 0
    quadrants: int = 0
    seconds: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Reflections:
    """What one exposure gives for halos and ghosts: truth of light (DN) by cells, masks of halos, ghost sample."""

    light: F64
    halo: BOOL
    sample: GhostSample
    sigma: float
    shape: tuple[int, int]


class Truth:
    """Truth tables of a night, by exposure and channel."""

    def __init__(self, folder: Path) -> None:
        self._tables = {name: pq.read_table(folder / "truth" / f"{name}.parquet") for name in ("artefacts", "sources")}

    def richest(self, kind: str) -> int:
        """Channel with the most artefacts of a kind."""
        of_kind = np.asarray(self._tables["artefacts"]["kind"]) == kind
        channels = np.asarray(self._tables["artefacts"]["rcid"])[of_kind]
        return int(np.bincount(channels).argmax()) if len(channels) else 0

    def rows(self, table: str, quadrant: Quadrant, kind: str | None = None) -> list[dict[str, Any]]:
        """Rows of a quadrant, of one kind where it is given."""
        rows = self._tables[table]
        keep = np.asarray(rows["rcid"]) == quadrant.rcid
        keep &= np.asarray(rows["exposure"]) == quadrant.exposure.name
        if kind is not None:
            keep &= np.asarray(rows["kind"]) == kind
        found: list[dict[str, Any]] = rows.filter(keep).to_pylist()
        return found


def _pixels(rows: list[dict[str, Any]]) -> tuple[NDArray[np.int64], F64]:
    index = [np.asarray(row["pixels"], np.int64) for row in rows if row["pixels"]]
    values = [np.asarray(row["values"] or np.zeros(len(row["pixels"])), float) for row in rows if row["pixels"]]
    return (np.concatenate(index), np.concatenate(values)) if index else (np.zeros(0, np.int64), np.zeros(0))


def _near(index: NDArray[np.int64], shape: tuple[int, int], dy: int, dx: int) -> BOOL:
    """Pixels within ``dy`` rows and ``dx`` columns of some."""
    out = np.zeros(shape, bool)
    y, x = np.divmod(index, shape[1])
    for sy in range(-dy, dy + 1):
        for sx in range(-dx, dx + 1):
            out[np.clip(y + sy, 0, shape[0] - 1), np.clip(x + sx, 0, shape[1] - 1)] = True
    return out


def count(counts: Counts, image: ScienceImage | CalibratedImage, background: Background, truth: Truth) -> None:
    """Add a quadrant's saturated pixels, particles and stars."""
    q, mask, shape = image.quadrant, image.mask, image.data.shape
    bits = mask.reshape(-1)
    full, _ = _pixels(truth.rows("artefacts", q, "saturated"))
    saturated = mask & np.uint16(Mask.SATURATED) != 0
    counts.full += len(full)
    counts.full_found += int(saturated.reshape(-1)[full].sum())
    own = np.zeros(shape, bool)
    own.reshape(-1)[full] = True
    counts.ring += int((saturated & ~own).sum())
    counts.full_false += int((saturated & ~_near(full, (shape[0], shape[1]), 2, 1)).sum())
    counts.pixels += mask.size
    hits, electrons = _pixels(truth.rows("artefacts", q, "cosmic_ray"))
    level = np.maximum(background.level.reshape(-1)[hits], 1.0)
    noise = np.sqrt(level * image.gain + image.readnoise**2)
    strong = (electrons > 5 * noise) & ((bits[hits] & np.uint16(Mask.SATURATED | Mask.DEAD | Mask.NAN)) == 0)
    counts.hits += int(strong.sum())
    counts.hits_found += int((bits[hits[strong]] & np.uint16(HIT) != 0).sum())
    stars = [row for row in truth.rows("sources", q, "star") if row["in_quadrant"] and row["flux"] > 200]
    x, y = (np.rint([row[name] for row in stars]).astype(int) for name in ("x", "y"))
    inside = (x > 3) & (y > 3) & (x < shape[1] - 4) & (y < shape[0] - 4)
    at = (y * shape[1] + x)[inside]
    touched = _near(hits, (shape[0], shape[1]), 0, 0).reshape(-1)
    good = ((bits[at] & np.uint16(Mask.SATURATED)) == 0) & ~touched[at]
    counts.stars += int(good.sum())
    counts.harmed += int((bits[at[good]] & np.uint16(HIT) != 0).sum())


def count_tracks(counts: Counts, science: ScienceImage, truth: Truth) -> None:
    """Trails of the simulator that are masked along their way, and tracks that are none of them."""
    shape = science.data.shape
    trails = [
        row for kind in ("satellite", "flashing satellite", "aircraft")
        for row in truth.rows("artefacts", science.quadrant, kind)
    ]  # fmt: skip
    lines = [_line(row, (shape[0], shape[1])) for row in trails]
    known = np.zeros(shape, bool)
    for line, row in zip(lines, trails, strict=True):
        if line is None:
            continue
        rows, columns = strip_pixels(shape[0], shape[1], line, 30.0)
        known[rows, columns] = True
        peak = row["strength"] / (1.0645 * max(row["width"] or science.seeing, 1.0))
        if peak < science.background.sigma or math.hypot(line.x2 - line.x1, line.y2 - line.y1) < 400:
            continue
        rows, columns = strip_pixels(shape[0], shape[1], line, 0.6)
        counts.crossings += 1
        counts.crossings_found += bool(np.mean(science.mask[rows, columns] & np.uint16(Mask.TRACK) != 0) > 0.5)
    for track in science.tracks:
        rows, columns = strip_pixels(shape[0], shape[1], Line(track.x1, track.y1, track.x2, track.y2), 1.0)
        counts.false_tracks += bool(known[rows, columns].mean() < 0.5)
    counts.quadrants += 1


def _line(row: dict[str, Any], shape: tuple[int, int]) -> Line | None:
    """Where a trail of the truth runs on the image: between its ends, or all along its direction."""
    if row["x1"] is not None:
        return clipped(Line(row["x1"], row["y1"], row["x2"], row["y2"]), shape)
    angle = math.radians(row["angle"])
    return extended(Line(row["x"], row["y"], row["x"] + math.cos(angle), row["y"] + math.sin(angle)), shape)


def reflections(science: ScienceImage, truth: Truth, inputs: StoreInputs, scale: float) -> Reflections:
    """Halos and ghosts of one exposure."""
    ny, nx = (n // CELL for n in science.data.shape)
    y, x = np.mgrid[0:ny, 0:nx] * float(CELL) + 7.5
    light = np.zeros((ny, nx))
    for kind in ("halo", "ghost"):
        for row in truth.rows("artefacts", science.quadrant, kind):
            shape = json.loads(row["parameters"])
            r = np.hypot(x - row["x"], y - row["y"])
            light += row["strength"] * ((r <= shape["radius"]) & (r >= shape.get("inner_radius", 0.0)))
    halo = science.mask[8::CELL, 8::CELL][:ny, :nx] & np.uint16(Mask.HALO) != 0
    e = science.quadrant.exposure
    sample = ghost_sample(science, inputs.bright(e.ra, e.dec, FIELD_RADIUS), scale)
    return Reflections(light, halo, sample, science.background.sigma, (science.data.shape[0], science.data.shape[1]))


def judged(parts: list[Reflections], geometry: GhostGeometry) -> tuple[float, float, int]:
    """Share of the affected cells that are masked, share of all cells that are masked in vain, affected cells."""
    affected = hit = false = total = 0
    for one in parts:
        empty = np.zeros(one.shape, np.uint16)
        ghosts = mask_ghosts(empty, one.sample.plane, one.sample.stars, geometry, one.sigma, one.sample.pixel_scale)
        ny, nx = one.light.shape
        masked = one.halo | (ghosts[8::CELL, 8::CELL][:ny, :nx] != 0)
        touched = one.light > one.sigma / CELL
        affected += int(touched.sum())
        hit += int((touched & masked).sum())
        false += int((masked & ~touched).sum())
        total += masked.size
    return hit / max(affected, 1), false / max(total, 1), affected


def trail_rows(science: ScienceImage, n_trails: int) -> list[Row]:
    """Recall of trails put onto a calibrated image."""
    rng = np.random.default_rng(77)
    data, mask = science.data, science.mask & np.uint16(~(Mask.TRACK | Mask.SOURCE | Mask.PSF_SOURCE) & 0xFFFF)
    ny, nx = data.shape
    sigma, rows = science.background.sigma, []
    for peak in PEAKS:
        found = 0
        for _ in range(n_trails):
            line = _random_line(rng, (ny, nx))
            crossed = data.copy()
            _add_trail(crossed, line, peak * sigma, science.seeing)
            tracks = find_tracks(crossed, science.background, mask)
            strip = strip_pixels(ny, nx, line, 0.6)
            found += bool(np.mean(mask_tracks(np.zeros_like(mask), tracks)[strip] != 0) > 0.5)
        share = found / n_trails
        detail = f"{found} of {n_trails}, any chord of 400 px and more"
        rows.append(Row(f"trails of {peak:g} sigma a pixel", "95 %", f"{share:.1%}", share >= 0.95, detail))
    return rows


def false_trail_row(skies: list[ScienceImage], n_skies: int) -> Row:
    """False trails on the skies of several exposures: their stars as they are, turned, with the noise drawn anew."""
    rng = np.random.default_rng(78)
    false = 0
    for k in range(n_skies):
        science = skies[k % len(skies)]
        turn = np.s_[:: 1 - 2 * (k // len(skies) & 1), :: 1 - (k // len(skies) & 2)]
        sigma = science.background.sigma
        stars = np.nan_to_num(science.data - science.background.level)[turn]
        stars[stars < 3 * sigma] = 0
        noise = rng.standard_normal(stars.shape, dtype=np.float32)
        noise *= np.sqrt(sigma**2 + stars / np.float32(science.gain))
        mask = np.ascontiguousarray((science.mask & np.uint16(BLIND_BITS))[turn])  # defects are there in every image
        sky = science.background.median + stars + noise
        false += len(find_tracks(sky, estimate_background(sky, mask), mask))
    return Row("false trails, new noise", "1 in 500 quadrants", f"{false} in {n_skies}", false <= n_skies / 500,
               f"stars of {len(skies)} quadrants turned, noise drawn anew")  # fmt: skip


def _add_trail(data: NDArray[np.float32], line: Line, peak: float, fwhm: float) -> None:
    """Add a trail with a Gaussian profile, ``peak`` DN in its middle."""
    rows, columns = strip_pixels(data.shape[0], data.shape[1], line, 2.5 * fwhm)
    length = math.hypot(line.x2 - line.x1, line.y2 - line.y1)
    off = (columns - line.x1) * (line.y2 - line.y1) - (rows - line.y1) * (line.x2 - line.x1)
    data[rows, columns] += (peak * np.exp(-0.5 * (off / length / (fwhm / 2.3548)) ** 2)).astype(np.float32)


def _random_line(rng: np.random.Generator, shape: tuple[int, int]) -> Line:
    while True:
        angle, x, y = rng.uniform(0, math.pi), rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        line = extended(Line(x, y, x + math.cos(angle), y + math.sin(angle)), shape)
        if line is not None and math.hypot(line.x2 - line.x1, line.y2 - line.y1) > 400:
            return line


def seeing_rows(night: CameraNight) -> list[Row]:
    """Particles found and stars harmed at given seeing, on one quadrant each, made once."""
    rows = []
    for seeing in SEEINGS:
        folder = night.folder / f"seeing{seeing:g}"
        plan: NightPlan = replace(
            night.plan, survey=None, qids=(1,), n_bias=0, n_dark=0, n_flat=0, n_science=1, n_reference=0,
            satellites=0.0, seeing=(seeing, seeing + 0.01),
        )  # fmt: skip
        if not (folder / "truth" / "artefacts.parquet").is_file():
            simulate_night(folder, plan)
        counts = Counts()
        truth = Truth(folder)
        inputs = StoreInputs(ProductStore(str(night.store)))
        for path in packets(folder, "sci"):
            raw = read_quadrant(read_packet(path, night.camera).quadrants[0].payload, night.camera)
            image = calibrate(raw, inputs.calibration(raw.quadrant))
            count(counts, image, estimate_background(image.data, image.mask), truth)
        recall, harmed = counts.hits_found / max(counts.hits, 1), counts.harmed / max(counts.stars, 1)
        detail = f"{counts.hits_found} of {counts.hits} pixels; {counts.harmed} of {counts.stars} stars"
        rows.append(
            Row(
                f"cosmic-ray pixels above 5 sigma, seeing {seeing:g} px",
                "95 %",
                f"{recall:.1%}",
                recall >= 0.95,
                detail,
            )
        )
        rows.append(Row(f"stars harmed, seeing {seeing:g} px", "0.1 %", f"{harmed:.3%}", harmed < 1e-3, detail))
    return rows


def _sciences(
    folder: Path, night: CameraNight, inputs: StoreInputs, counts: Counts, limit: int = 99, place: int = 0
) -> Iterator[ScienceImage]:
    """Science images of one quadrant (by its place) of a night's packets."""
    settings = ScienceSettings(camera=night.camera, subtract=False)
    for path in packets(folder, "sci")[:limit]:
        payload = read_packet(path, night.camera).quadrants[place].payload
        started = time.process_time()
        raw = read_quadrant(payload, night.camera)
        decompress = time.process_time() - started
        result = process_quadrant(raw, inputs, settings)
        counts.seconds.append({"decompress": decompress, **result.report.seconds})
        if result.science is None:
            print(f"{result.report.name}: {result.report.stage}: {result.report.reason}", flush=True)
            continue
        yield result.science


def _counted(counts: Counts) -> list[Row]:
    """Rows of what was counted pixel by pixel on the night's own exposures."""
    recall, hits = counts.full_found / max(counts.full, 1), counts.hits_found / max(counts.hits, 1)
    false, ring = counts.full_false / counts.pixels, counts.ring / counts.pixels
    harmed = counts.harmed / max(counts.stars, 1)
    of = f"in {counts.quadrants} quadrants"
    return [
        Row("saturated and bleeding pixels", "99 %", f"{recall:.2%}", recall >= 0.99, f"{counts.full} {of}"),
        Row("false saturated pixels", "0.02 %", f"{false:.4%}", false < 2e-4,
            f"beyond the guard of a pixel (two along the column), which takes {ring:.4%}"),
        Row("cosmic-ray pixels above 5 sigma, the night's seeing", "95 %", f"{hits:.1%}", hits >= 0.95,
            f"{counts.hits} pixels {of}"),
        Row("stars harmed, the night's seeing", "0.1 %", f"{harmed:.3%}", harmed < 1e-3,
            f"{counts.harmed} of {counts.stars}"),
        Row("the night's own trails", "95 %", f"{counts.crossings_found} of {counts.crossings}",
            counts.crossings_found >= 0.95 * counts.crossings, "brighter than a sigma a pixel, 400 px and longer"),
        Row("false trails, the night's own sky", "1 in 500 quadrants", f"{counts.false_tracks} in {counts.quadrants}",
            counts.false_tracks == 0, "spikes, bleeds, halos and galaxies in them"),
    ]  # fmt: skip


def _reflected(area: float, vain: float, affected: int, said: str) -> list[Row]:
    """Rows of halos and ghosts."""
    return [
        Row("halos and ghosts masked", "95 % of the area", f"{area:.1%}", area >= 0.95, f"{affected} cells; {said}"),
        Row("masked in vain", "0.2 % of the area", f"{vain:.3%}", vain < 2e-3, "halos and ghosts together"),
    ]


def rows(night: CameraNight, exposures: int = 20, n_trails: int = TRAILS, n_skies: int = SKIES) -> list[Row]:
    """All rows of the masks."""
    inputs = StoreInputs(ProductStore(str(night.store)))
    truth, counts = Truth(night.main), Counts()
    parts: list[Reflections] = []
    skies: list[ScienceImage] = []
    place = truth.richest("ghost") % 4
    for science in _sciences(night.main, night, inputs, counts, exposures, place):
        count(counts, science, science.background, truth)
        count_tracks(counts, science, truth)
        parts.append(reflections(science, truth, inputs, night.camera.pixel_scale))
        if not science.tracks and len(skies) < SKY_QUADRANTS:
            skies.append(science)
    try:
        geometry, said = calibrate_ghosts([one.sample for one in parts[::2]]), "geometry calibrated on every second one"
    except CalibrationError as error:
        geometry, said = GhostGeometry(), str(error)
    area, vain, affected = judged(parts[1::2], geometry)
    out = [*_counted(counts), *_reflected(area, vain, affected, said)]
    out += seeing_rows(night)
    if skies:
        out += [*trail_rows(skies[0], n_trails), false_trail_row(skies, n_skies)]
    steps = ("decompress", "calibrate", "tracks", "mask")
    medians = {step: float(np.nanmedian([one.get(step, math.nan) for one in counts.seconds[1:]])) for step in steps}
    detail = ", ".join(f"{step} {seconds:.3f}" for step, seconds in medians.items())
    return [*out, Row("masks, CPU seconds by step", "-", f"{sum(medians.values()):.3f} s", None, detail)]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder that ops.bench.camera made")
    parser.add_argument("--exposures", type=int, default=20)
    parser.add_argument("--trails", type=int, default=TRAILS)
    parser.add_argument("--skies", type=int, default=SKIES)
    args = parser.parse_args()
    main_plan, sky_plan = plans()
    night = CameraNight(args.out, main_plan, sky_plan, {})
    found = rows(night, args.exposures, args.trails, args.skies)
    for row in found:
        print(f"{row.name:55s} {row.target:20s} {row.value:16s} {row.ok!s:6s} {row.detail}")
    return int(any(row.ok is False for row in found))


if __name__ == "__main__":
    raise SystemExit(main())
