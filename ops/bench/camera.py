"""Every figure of the camera's table against the simulator's truth, on full-size frames, by one command.

    python -m ops.bench.camera --out DIR [--json] [--exposures N]

Frames are simulated once into the folder (some minutes, 1.5 GB) and used again. Calibration is built from them by the
project's own functions, then each row of the table is measured; the rows of the masks come from
``ops.bench.camera_masks``. Exit status 1 where a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from ops.bench.camera_night import CameraNight, packets, quadrants_of, simulate
from ops.bench.rows import Row
from stream.archive import ProductStore
from stream.calibrate import calibrate
from stream.calibrate.crosstalk import CrosstalkSample, crosstalk_of, sample_crosstalk
from stream.calibrate.frames import build_night
from stream.calibrate.overscan import clipped_rms
from stream.calibrate.skyflat import SkySample, build_loflat, sky_sample
from stream.calibrate.transfer import build_instrument, measure_channel, raw_histogram
from stream.core.camera import FULL, read_order
from stream.core.cells import cell_means
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import (
    CalibratedImage,
    CalibrationFrame,
    CalibrationSet,
    InstrumentModel,
    PixelMask,
    RawQuadrant,
)
from stream.simulate import detector, electronics
from stream.simulate.expose import expose_packet, paint_sky
from stream.simulate.scheduler import schedule

LEVELS = (500.0, 2_000.0, 8_000.0, 20_000.0, 35_000.0, 50_000.0)  # DN, for the linearity
STEP_ROWS = 16  # rows or columns on either side of a step


class Timer:
    """CPU seconds of the steps of the bench."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.process_time()

    def __call__(self, what: str) -> None:
        self.console.print(f"[dim]{time.process_time() - self.started:7.1f} s CPU[/]  {what}")


def build(folder: Path, exposures: int, timer: Timer) -> CameraNight:
    """The night, its calibration products in the store, and what calibrates each channel."""
    main, sky = simulate(folder, FULL, exposures, timer)
    night = CameraNight(folder, main, sky, {})
    store = ProductStore(str(night.store))
    by_type = {letter: packets(night.main, "cal", letter) for letter in "bdf"}
    raws = {rcid: [] for rcid in night.rcids}
    for path in [path for paths in by_type.values() for path in paths]:
        for raw in quadrants_of(path, night.camera, aggressors=False):
            raws[raw.quadrant.rcid].append(raw)
    timer("calibration frames read")
    built: dict[int, tuple[list[CalibrationFrame], list[PixelMask]]] = {}
    channels = []
    for rcid, of_channel in raws.items():
        frames, masks, failures = build_night(of_channel)
        if failures:
            raise SystemExit(f"calibration of channel {rcid}: {failures}")
        built[rcid] = frames, masks
        pairs = {kind: [r for r in of_channel if r.quadrant.exposure.imgtype == kind] for kind in ("flat", "bias")}
        channels.append((pairs["flat"], pairs["bias"]))
    timer("bias, flats and pixel masks built")
    model = _instrument(night, channels, timer)
    for rcid, (frames, masks) in built.items():
        bias, flat = frames
        night.frames[rcid] = CalibrationSet(bias, flat, pixelmask=masks[0], instrument=model)
    raws.clear()
    channels.clear()
    _add_loflats(night, timer)
    for frames in night.frames.values():
        for frame in (frames.bias, frames.flat, frames.loflat):
            if frame is not None:
                store.write_calibration(frame)
        if frames.pixelmask is not None:
            store.write_pixelmask(frames.pixelmask)
    store.write_instrument(model)
    timer("calibration written")
    return night


def _instrument(
    night: CameraNight, channels: list[tuple[list[RawQuadrant], list[RawQuadrant]]], timer: Timer
) -> InstrumentModel:
    """Cross-talk, gain, read noise and saturation from the night's own frames."""
    samples: list[list[CrosstalkSample]] = []
    histograms: dict[int, list[np.ndarray]] = {qid: [] for qid in (1, 2, 3, 4)}
    names = []
    for path in packets(night.main, "sci"):
        exposed = quadrants_of(path, night.camera, aggressors=False)
        samples.append(sample_crosstalk(exposed))
        for raw in exposed:
            histograms[raw.quadrant.qid].append(raw_histogram(raw))
        names += [replace(raw, image=raw.image[:0], overscan=raw.overscan[:0]) for raw in exposed]
    timer(f"{len(samples)} exposures sampled for cross-talk")
    facts = [measure_channel(flats, biases, histograms[qid]) for qid, (flats, biases) in enumerate(channels, 1)]
    model = build_instrument(facts, samples, names)
    timer("instrument measured")
    return model


def _add_loflats(night: CameraNight, timer: Timer) -> None:
    """Low-frequency flats from the night's own skies."""
    samples: dict[int, list[SkySample]] = {rcid: [] for rcid in night.rcids}
    for path in packets(night.main, "sci"):
        for raw in quadrants_of(path, night.camera):
            samples[raw.quadrant.rcid].append(sky_sample(calibrate(raw, night.frames[raw.quadrant.rcid])))
    for rcid, of_channel in samples.items():
        night.frames[rcid] = replace(night.frames[rcid], loflat=build_loflat(of_channel))
    timer("low-frequency flats built")


def verdict(name: str, target: str, value: float, limit: float, shown: str, detail: str = "") -> Row:
    """A figure that must not exceed a limit."""
    return Row(name, target, shown, bool(value <= limit), detail)


def skies(night: CameraNight) -> Iterator[tuple[RawQuadrant, CalibratedImage, np.ndarray]]:
    """Empty quadrants calibrated, beside the light that was there (DN)."""
    exposures = {e.expid: e for e in schedule(night.sky_plan)}
    for path in packets(night.sky, "sci"):
        for raw in quadrants_of(path, night.camera):
            if raw.quadrant.qid in night.sky_plan.qids:
                continue
            rcid = raw.quadrant.rcid
            image = calibrate(raw, night.frames[rcid])
            yield raw, image, paint_sky(night.sky_plan, exposures[raw.quadrant.exposure.expid], rcid)


def sky_rows(night: CameraNight) -> list[Row]:
    """Flatness, steps and noise of the calibrated sky."""
    flat, tilted, steps, noise, worst = [], [], [], [], []
    for raw, image, truth in skies(night):
        good = (image.mask & np.uint16(BAD_BITS)) == 0
        ratio = np.where(good, image.data / truth, np.nan).astype(np.float32)
        cells = cell_means(ratio, 64)
        flat.append(float(np.nanstd(cells) / np.nanmean(cells)))
        tilted.append(flat_without_plane(cells))
        sigma = np.sqrt(truth / raw.gain + (raw.readnoise / raw.gain) ** 2)
        off = np.where(good, (image.data - truth) / sigma, np.nan)
        large = cell_means(off.astype(np.float32), 64)
        fine = off - np.repeat(np.repeat(large, 64, 0), 64, 1)[: off.shape[0], : off.shape[1]]
        for axis in (0, 1):
            profile = np.nanmean(off, axis=axis)
            whole = np.count_nonzero(np.isfinite(off), axis=axis) > off.shape[axis] / 2
            smooth = np.convolve(profile, np.ones(STEP_ROWS) / STEP_ROWS, "valid")
            steps.append(float(np.nanmax(np.abs(smooth[STEP_ROWS:] - smooth[:-STEP_ROWS]))))
            worst.append(float(np.nanmax(np.abs(np.nanmean(fine, axis=axis)[whole]))))
        noise.append(clipped_rms(fine[::3, ::3]) - 1)
    value = max(flat)
    return [
        verdict(
            "calibrated sky, r.m.s. at 64 px", "0.3 %", value, 0.003, f"{value:.2%}",
            f"median {np.median(flat):.2%}; without a plane {max(tilted):.2%}; {len(flat)} empty quadrants",
        ),
        verdict(
            "steps at rows and columns", "0.1 sigma", max(steps), 0.1, f"{max(steps):.3f} sigma",
            f"{STEP_ROWS} lines against the next {STEP_ROWS}; single lines off by {max(worst):.3f} sigma at most",
        ),
        verdict(
            "noise over photon and read noise", "2 %", max(np.abs(noise)), 0.02,
            f"{max(noise, key=abs):+.2%}", "pixels about their 64 px cells",
        ),
    ]  # fmt: skip


def flat_without_plane(cells: np.ndarray) -> float:
    """R.m.s. of relative cells about a plane."""
    y, x = np.indices(cells.shape)
    use = np.isfinite(cells)
    design = np.stack([np.ones(use.sum()), x[use], y[use]], axis=1)
    off = cells[use] - design @ np.linalg.lstsq(design, cells[use], rcond=None)[0]
    return float(off.std() / cells[use].mean())


def linearity_row(night: CameraNight) -> Row:
    """Flats of known light, calibrated; only the ratio of light and value may matter."""
    first = next(e for e in schedule(night.plan) if e.imgtype == "flat")
    ratios: dict[int, list[float]] = {rcid: [] for rcid in night.rcids}
    for number, level in enumerate(LEVELS):
        exposure = replace(first, level=level, jd=first.jd + (number + 1) * 60 / 86_400)
        images, overscans, amps, _ = expose_packet(night.plan, exposure, night.plan.ccds[0])
        for image, overscan, amp in zip(images, overscans, amps, strict=True):
            raw = _as_raw(night, image, overscan, amp.rcid)
            value = calibrate(raw, replace(night.frames[amp.rcid], loflat=None)).data
            ratios[amp.rcid].append(float(np.nanmedian(value)) / level)
    off = [max(abs(r / np.mean(values) - 1) for r in values) for values in ratios.values()]
    return verdict(
        "linearity, 500 to 50,000 DN", "0.2 %", max(off), 0.002, f"{max(off):.3%}",
        f"flats of {', '.join(f'{level:.0f}' for level in LEVELS)} DN, four channels",
    )  # fmt: skip


def _as_raw(night: CameraNight, image: np.ndarray, overscan: np.ndarray, rcid: int) -> RawQuadrant:
    """An exposed image as a worker would read it, in the place of the night's first flat."""
    path = packets(night.main, "cal", "f")[0]
    like = next(raw for raw in quadrants_of(path, night.camera, aggressors=False) if raw.quadrant.rcid == rcid)
    return replace(like, image=image, overscan=overscan)


def crosstalk_rows(night: CameraNight) -> list[Row]:
    """What the correction leaves of the cross-talk that was put in, pixel by pixel."""
    truth = electronics.crosstalk_matrix(night.plan.seed, night.plan.ccds[0])
    model = night.frames[night.rcids[0]].instrument
    assert model is not None
    power_in = power_left = 0.0
    for path in packets(night.sky, "sci"):
        exposed = quadrants_of(path, night.camera)
        for victim in exposed:
            put_in = _put_in(victim, exposed, truth)
            left = put_in.copy()
            found = crosstalk_of(victim, model)
            left.reshape(-1)[found.index] -= found.signal
            hit = np.abs(put_in) > 0.3
            power_in += float(np.sum(put_in[hit] ** 2))
            power_left += float(np.sum(left[hit] ** 2))
    share = (power_left / power_in) ** 0.5
    pairs = ~np.eye(4, dtype=bool)
    matrix = float(np.sqrt(np.mean((model.crosstalk - truth)[pairs] ** 2) / np.mean(truth[pairs] ** 2)))
    n = len(packets(night.main, "sci"))
    return [
        verdict(
            "cross-talk left", "5 % of what was put in", share, 0.05, f"{share:.1%}",
            f"r.m.s. over pixels of more than 0.3 DN; matrix from {n} exposures, its own r.m.s. error {matrix:.1%}",
        )
    ]  # fmt: skip


def _put_in(victim: RawQuadrant, exposed: list[RawQuadrant], matrix: np.ndarray) -> np.ndarray:
    """Cross-talk (DN, stored order) that stars of the other quadrants left, by the true matrix."""
    total = np.zeros(victim.image.shape, np.float64)
    own = read_order(victim.quadrant.qid)
    for other in exposed:
        qid = other.quadrant.qid
        if qid == victim.quadrant.qid:
            continue
        over = other.image - np.median(other.image[::16, ::16])
        flips = read_order(qid)
        step_x, step_y = (-1 if flips[axis] != own[axis] else 1 for axis in (0, 1))
        total += matrix[victim.quadrant.qid - 1, qid - 1] * over[::step_y, ::step_x]
    return total


def transfer_rows(night: CameraNight) -> list[Row]:
    """Gain and read noise from the night's frames."""
    gains, reads, piles = [], [], []
    for rcid in night.rcids:
        model = night.frames[rcid].instrument
        assert model is not None
        facts = model.channels[rcid % 4]
        amp = electronics.amplifier(night.plan.seed, rcid, night.plan.midnight)
        gains.append(facts.gain / amp.gain - 1)
        reads.append(facts.readnoise / amp.readnoise - 1)
        top = amp.bias + float(electronics.measured_of_true(np.array([amp.full_well / amp.gain]), amp.a, amp.b)[0])
        piles.append(facts.saturate / top - 1)
    return [
        verdict("gain", "1 %", max(np.abs(gains)), 0.01, f"{max(gains, key=abs):+.2%}", "worst of four channels"),
        verdict("read noise", "3 %", max(np.abs(reads)), 0.03, f"{max(reads, key=abs):+.2%}", "worst of four channels"),
        Row("saturation level", "-", f"{max(piles, key=abs):+.2%}", None, "against full well in raw DN, worst of four"),
    ]


def defect_rows(night: CameraNight) -> list[Row]:
    """Bad-pixel maps against the defects that were put in."""
    bits = {"hot": Mask.NOISY, "noisy": Mask.NOISY, "dead": Mask.DEAD, "low": Mask.LOW_RESPONSE}
    found: dict[str, list[int]] = {kind: [0, 0] for kind in bits}
    false = total = 0
    for rcid in night.rcids:
        mask = night.frames[rcid].pixelmask
        assert mask is not None
        bad = detector.defects(night.plan.seed, night.camera, rcid)
        known = np.zeros(mask.mask.size, bool)
        for kind, bit in bits.items():
            pixels = bad.of_kind(kind)[0]
            known[pixels] = True
            hit = mask.mask.reshape(-1)[pixels] & np.uint16(bit) != 0
            found[kind][0] += int(hit.sum())
            found[kind][1] += len(pixels)
        false += int(np.count_nonzero((mask.mask.reshape(-1) != 0) & ~known))
        total += mask.mask.size
    rows = [
        Row(
            f"{kind} pixels found", "98 %", f"{hit / n:.2%}", hit / n >= 0.98, f"{hit} of {n} in four quadrants",
        )
        for kind, (hit, n) in found.items()
    ]  # fmt: skip
    share = false / total
    return [*rows, verdict("good pixels called bad", "0.01 %", share, 1e-4, f"{share:.5%}", "all kinds together")]


def time_row(night: CameraNight) -> list[Row]:
    """Processor time and memory of a fresh process that decompresses, calibrates and masks."""
    command = [sys.executable, "-m", "ops.bench.camera", "--out", str(night.folder), "--time"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = json.loads(said.strip().splitlines()[-1])
    steps = ", ".join(f"{name} {seconds:.3f}" for name, seconds in figures["steps"].items())
    return [
        verdict(
            "decompress, calibrate, all masks", "0.35 core-seconds", figures["total"], 0.35,
            f"{figures['total']:.3f} s", f"{steps}; median of {figures['n']}",
        ),
        verdict(
            "memory of that, above the interpreter and its libraries", "400 MB", figures["memory"], 400.0,
            f"{figures['memory']:.0f} MB", f"calibration frames in memory included; base {figures['base']:.0f} MB",
        ),
    ]  # fmt: skip


def time_quadrants(folder: Path) -> dict[str, object]:
    """Median CPU seconds by step over the quadrants of one packet, after one that warms up, and the peak memory."""
    import resource

    from ops.bench.camera_night import plans
    from stream.archive import StoreInputs
    from stream.pipeline import ScienceSettings, process_quadrant

    threadpool_limits(1)
    main, _ = plans()
    path = packets(folder / "main", "sci")[-1]
    from stream.ingest import read_packet, read_quadrant

    payload = read_packet(path, main.camera).quadrants[0].payload
    inputs = StoreInputs(ProductStore(str(folder / "store")))

    def peak() -> float:
        """High-water mark of this process in MB; getrusage's would begin with the parent's."""
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    base = peak()
    runs: list[dict[str, float]] = []
    memory = 0.0
    for _ in range(6):
        started = time.process_time()
        raw = read_quadrant(payload, main.camera)
        run = {"decompress": time.process_time() - started}
        if not runs:
            frames = inputs.calibration(raw.quadrant)
            calibrate(raw, frames)
            memory = peak() - base
        result = process_quadrant(raw, inputs, ScienceSettings(camera=main.camera, subtract=False))
        seconds = result.report.seconds
        run |= {name: seconds[name] for name in ("calibrate", "tracks", "mask") if name in seconds}
        runs.append(run)
    steps = {name: float(np.median([run[name] for run in runs[1:]])) for name in runs[-1]}
    return {"steps": steps, "total": sum(steps.values()), "n": len(runs) - 1, "memory": memory, "base": base}


def catalogues(night: CameraNight) -> None:
    """The sky's catalogues into the store, for what masks need of them."""
    from stream.sky import import_catalog

    for kind, name in {"gaia": "gaia.parquet", "ps1": "ps1.parquet", "bright": "bright.parquet"}.items():
        import_catalog(kind, [night.main / name], str(night.store))


def measure(night: CameraNight, timer: Timer) -> list[Row]:
    """All rows."""
    rows: list[Row] = []
    for part in (sky_rows, lambda n: [linearity_row(n)], crosstalk_rows, transfer_rows, defect_rows):
        rows += part(night)
        timer(rows[-1].name)
    if find_spec("ops.bench.camera_masks") is not None:
        rows += import_module("ops.bench.camera_masks").rows(night)
        timer("masks")
    return rows + time_row(night)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder of the simulated frames, used again")
    parser.add_argument("--exposures", type=int, default=20, help="exposures on sky that calibration may use")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--time", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time:
        print(json.dumps(time_quadrants(args.out)))
        return 0
    threadpool_limits(1)
    console = Console(stderr=True)
    timer = Timer(console)
    night = build(args.out, args.exposures, timer)
    catalogues(night)
    rows = measure(night, timer)
    if args.json:
        for row in rows:
            print(json.dumps(asdict(row)))
    else:
        table = Table("what", "figure", "measured", "", "how", title="camera, full-size simulated quadrants")
        for row in rows:
            sign = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[row.ok]
            table.add_row(row.name, row.target, row.value, sign, row.detail)
        Console().print(table)
    return int(any(row.ok is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
