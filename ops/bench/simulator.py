"""The simulator's figures: CPU time and memory of a full-size quadrant, and its stars beside those of real images.

    python ops/bench/simulator.py time [--density D] [--json]
    python ops/bench/simulator.py psf IMAGE... [--out docs/simulator-psf.png]

``time`` exposes and writes one packet of four full quadrants with all default effects, twice: the second time what
belongs to channel and night is cached, as in a worker that goes on with the same CCD. It fails if a quadrant costs two
core-seconds or more. ``psf`` measures stars of calibrated survey images and of simulated quadrants of the same seeing
alike: radial profiles with the wings of the brightest stars, and the ellipticity of all.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import sep
from astropy.io import fits
from numpy.typing import NDArray

from ops.bench.rows import Row
from stream.simulate import Effects, NightPlan, paint_quadrant, schedule
from stream.simulate.expose import expose_packet
from stream.simulate.files import packet_path, primary_header, write_packet

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

TARGET = 2.0  # core-seconds a quadrant
EDGES = np.concatenate([np.arange(0, 4, 0.5), [4, 5, 6, 7, 8, 10, 12.5, 16, 20, 25, 32, 40, 50, 63, 80, 100, 126]])
STAMP = 12  # px: half of the 25 px square that holds a star's flux


def timing(density: float | None, profile: bool) -> list[Row]:
    """CPU seconds a quadrant, first and repeated, without and with writing; peak memory of the process."""
    plan = NightPlan(n_bias=0, n_flat=0, n_science=2, star_density=density)
    exposures = [exposure for exposure in schedule(plan) if exposure.role == "sci"]
    rows = []
    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        for name, exposure in (("first", exposures[0]), ("repeated", exposures[1])):
            if profile and name == "repeated":
                profiler.enable()
            start = time.process_time()
            images, overscans, amps, _ = expose_packet(plan, exposure, 1)
            exposed = time.process_time()
            path = packet_path(Path(folder), plan, exposure, 1)
            write_packet(path, primary_header(plan, exposure, 1), amps, images, overscans)
            written = time.process_time()
            profiler.disable()
            for what, seconds in (("paint, expose, read out", exposed - start), ("and write", written - start)):
                value = seconds / 4
                rows.append(Row(f"{name}: {what}", f"< {TARGET} s", f"{value:.2f} s", value < TARGET, "CPU a quadrant"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(Row("peak memory", "bounded", f"{peak:.0f} MB", None, "one process, whole packet"))
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    return rows


@dataclass(frozen=True, slots=True)
class Stars:
    """Stars of an image: median FWHM (px), radial profile (share of the flux per pixel), ellipticities."""

    fwhm: float
    profile: F64
    ellipticity: F64


def measure(image: F32, saturate: float) -> Stars:
    """Profiles of the stars of a calibrated image (DN, sky in), by the same rules whoever made it.

    The inner profile is the mean of unsaturated stars; beyond 6 px that of the brightest star, saturated or not, is
    scaled to it, and the sky is the level beyond 130 px.
    """
    bad = ~np.isfinite(image)
    image = np.where(bad, np.float32(np.nanmedian(image)), image)
    background = sep.Background(image, mask=bad, bw=128, bh=128)
    flat = image - np.float32(np.median(image[~bad]))
    _, bright = sep.extract(flat, 3, err=background.globalrms, minarea=5, segmentation_map=True)
    flat -= sep.Background(flat, mask=bad | (bright != 0), bw=200, bh=200).back()
    found, segments = sep.extract(
        flat, 3, err=background.globalrms, minarea=5, segmentation_map=True, deblend_cont=0.005
    )
    ny, nx = image.shape
    inside = (found["x"] > 20) & (found["x"] < nx - 20) & (found["y"] > 20) & (found["y"] < ny - 20)
    sharp = inside & (found["peak"] < 0.5 * saturate) & (found["peak"] > 40 * background.globalrms)
    inner, widths, shapes, weights = [], [], [], []
    for k in np.flatnonzero(sharp):
        x, y = (float(value) for value in sep.winpos(flat, found["x"][k], found["y"][k], 1.2)[:2])
        if not (20 < x < nx - 20 and 20 < y < ny - 20):
            continue
        others = (segments != 0) & (segments != k + 1)
        x0, y0 = round(x), round(y)
        box = np.s_[y0 - STAMP : y0 + STAMP + 1, x0 - STAMP : x0 + STAMP + 1]
        if others[box].any() or bad[box].any():
            continue
        stamp = flat[box] - np.median(flat[box][[0, -1]])
        inner.append(radial(stamp, x - x0 + STAMP, y - y0 + STAMP) / stamp.sum())
        weights.append(float(stamp.sum()))
        shape = moments(stamp, x - x0 + STAMP, y - y0 + STAMP)
        widths.append(half_width(inner[-1]))
        shapes.append(shape)
    profile = np.full(len(EDGES) - 1, np.nan)
    if inner:
        with np.errstate(invalid="ignore"):
            masked = np.ma.masked_invalid(np.array(inner))
            profile = np.ma.average(masked, axis=0, weights=np.array(weights)).filled(np.nan)
    bright = int(np.argmax(np.where(inside, found["flux"], 0)))
    outer = radial(flat, *_middle(flat, found, bright), (segments != 0) & (segments != bright + 1) | bad)
    sky = radial_sky(flat, *_middle(flat, found, bright), (segments != 0) | bad)
    join = (EDGES[:-1] >= 5) & (EDGES[:-1] < 8)
    scale = np.nanmean(profile[join]) / np.nanmean((outer - sky)[join])
    far = EDGES[:-1] >= 6
    profile[far] = ((outer - sky) * scale)[far]
    return Stars(float(np.median(widths)) if widths else np.nan, profile, np.array(shapes))


def _middle(flat: F32, found: NDArray[np.void], k: int) -> tuple[float, float]:
    return float(found["x"][k]), float(found["y"][k])


def radial(image: F32, x: float, y: float, masked: NDArray[np.bool_] | None = None) -> F64:
    """Mean in rings within 6 px, median beyond; NaN where a ring has no pixel."""
    r = np.hypot(*(np.indices(image.shape) - np.array([y, x])[:, None, None]))
    use = np.ones(image.shape, bool) if masked is None else ~masked
    out = np.full(len(EDGES) - 1, np.nan)
    for k, (low, high) in enumerate(pairwise(EDGES)):
        ring = image[use & (r >= low) & (r < high)]
        if len(ring):
            out[k] = ring.mean() if high <= 6 else np.median(ring)
    return out


def radial_sky(image: F32, x: float, y: float, masked: NDArray[np.bool_]) -> float:
    """Median between 130 and 250 px."""
    r = np.hypot(*(np.indices(image.shape) - np.array([y, x])[:, None, None]))
    ring = image[~masked & (r > 130) & (r < 250)]
    return float(np.median(ring)) if len(ring) > 100 else 0.0


def half_width(profile: F64) -> float:
    """FWHM (px) of a radial profile."""
    r = 0.5 * (EDGES[:-1] + EDGES[1:])
    good = np.isfinite(profile) & (r < 10)
    top = np.nanmax(profile[:3]) * 1.05  # a ring's mean lies below the peak
    return float(2 * np.interp(-0.5 * top, -profile[good], r[good]))


def moments(stamp: F32, x: float, y: float) -> float:
    """Ellipticity (a^2 - b^2) / (a^2 + b^2) of Gaussian-weighted moments."""
    dy, dx = np.indices(stamp.shape)
    dx, dy = dx - x, dy - y
    weight = stamp * np.exp(-0.5 * (dx**2 + dy**2) / 1.6**2)
    xx, yy, xy = (float((weight * part).sum()) for part in (dx * dx, dy * dy, dx * dy))
    return float(np.hypot(xx - yy, 2 * xy) / (xx + yy))


def simulated(fwhm: float, airmass: float, fid: int, sky: float, k: int) -> Stars:
    """Stars of a simulated cut-out, with noise, around a star as bright as those of the real ones."""
    camera = replace(NightPlan().camera, name="cut-out", nx=594, ny=594)
    rcid = (k * 9 + 4) % 64
    plan = NightPlan(
        camera=camera, n_bias=0, n_flat=0, n_science=1, seed=50 + k, fid=fid, seeing=(fwhm, fwhm), sky=sky,
        ccds=(rcid // 4 + 1,), qids=(rcid % 4 + 1,), star_density=1.5, satellite=False, transients=0, asteroids=0,
        streaks=0, effects=Effects().without("halos", "ghosts"),
    )  # fmt: skip
    exposure = replace(next(e for e in schedule(plan) if e.role == "sci"), airmass=airmass)
    image = paint_quadrant(plan, exposure, rcid)[0]
    image = np.minimum(image, 60_000.0)
    noise = np.random.default_rng(k).standard_normal(image.shape, dtype=np.float32)
    image += noise * np.sqrt(image / 6.3 + 2.3)
    return measure(image.astype(np.float32), 60_000.0)


def compare(paths: list[Path], out: Path) -> list[Row]:
    """Measure real and simulated stars alike, draw them and say how they differ."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), gridspec_kw={"width_ratios": (1.6, 1)})
    r = 0.5 * (EDGES[:-1] + EDGES[1:])
    both: list[tuple[Stars, Stars]] = []
    for k, path in enumerate(paths):
        header = fits.getheader(path)
        real = measure(np.ascontiguousarray(fits.getdata(path), np.float32), float(header["SATURATE"]))
        if not np.isfinite(real.fwhm):
            continue
        sky = float(np.nanmedian(fits.getdata(path)))
        fid = 1 if "_zg_" in path.name else 2
        fake = simulated(float(header["SEEING"]), float(header["AIRMASS"]), fid, sky, k)
        both.append((real, fake))
        left.loglog(r, real.profile, color="C0", lw=1, alpha=0.7, label="real cut-outs" if len(both) == 1 else None)
        left.loglog(r, fake.profile, color="C3", lw=1, ls="--", label="simulated" if len(both) == 1 else None)
    left.set(xlabel="radius (px)", ylabel="flux share per pixel", ylim=(1e-7, 0.3), xlim=(0.2, 130))
    left.legend()
    left.set_title(f"{len(both)} images, each with a simulated one of its seeing", fontsize=9)
    shapes = [np.concatenate([pair[i].ellipticity for pair in both]) for i in (0, 1)]
    bins = np.linspace(0, 0.25, 26)
    right.hist(shapes[0], bins, density=True, histtype="step", color="C0", label="real")
    right.hist(shapes[1], bins, density=True, histtype="step", color="C3", ls="--", label="simulated")
    right.set(xlabel="ellipticity of weighted moments", ylabel="stars")
    right.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=80)
    rows = []
    widths = np.array([[pair[0].fwhm, pair[1].fwhm] for pair in both])
    rows.append(_ratio("FWHM, simulated over real", widths[:, 1] / widths[:, 0], (0.9, 1.1)))
    for low, high, bound in ((6, 12.5, 2.0), (12.5, 25, 2.0), (25, 63, 3.0)):
        ring = (EDGES[:-1] >= low) & (EDGES[:-1] < high)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.array([np.nanmean(fake.profile[ring]) / np.nanmean(real.profile[ring]) for real, fake in both])
        good = ratios[np.isfinite(ratios) & (ratios > 0)]
        rows.append(_ratio(f"wings at {low} to {high} px, simulated over real", good, (1 / bound, bound)))
    medians = [float(np.median(shape)) for shape in shapes]
    rows.append(Row("median ellipticity, simulated", f"{medians[0]:.3f} (real)", f"{medians[1]:.3f}",
                    0.5 < medians[1] / medians[0] < 2.0, f"{len(shapes[0])} and {len(shapes[1])} stars"))  # fmt: skip
    return rows


def _ratio(name: str, ratios: F64, bounds: tuple[float, float]) -> Row:
    middle = float(np.median(ratios))
    detail = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return Row(name, f"{bounds[0]:.2g} to {bounds[1]:.2g}", f"{middle:.2f}", bounds[0] <= middle <= bounds[1], detail)


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two measurements; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    timed = commands.add_parser("time", help="CPU time and memory of a full-size packet")
    timed.add_argument("--density", type=float, help="star density; real counts by default, 1: 5,000 to 20.6 mag")
    timed.add_argument("--profile", action="store_true", help="where the time goes, to standard error")
    drawn = commands.add_parser("psf", help="stars of real images and of the simulator")
    drawn.add_argument("images", type=Path, nargs="+", help="calibrated survey images (sciimg.fits)")
    drawn.add_argument("--out", type=Path, default=Path("docs/simulator-psf.png"), help="figure")
    for command in (timed, drawn):
        command.add_argument("--json", action="store_true", help="one JSON object a figure")
    options = parser.parse_args(arguments)
    rows = timing(options.density, options.profile) if options.what == "time" else compare(options.images, options.out)
    for row in rows:
        mark = {True: "holds", False: "MISSED", None: ""}[row.ok]
        line = f"{row.name:52} {row.target:>14} {row.value:>10} {mark:7} {row.detail}"
        print(json.dumps(asdict(row)) if options.json else line)
    return int(any(row.ok is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
