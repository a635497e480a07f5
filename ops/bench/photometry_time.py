"""Where the processor time of the photometry goes: steps and their parts, on one full-size exposure of each field.

    python -m ops.bench.photometry_time --out DIR [--fields normal,dense] [--repeat 3] [--page docs/photometry-time.md]

DIR holds the fields of ``ops.bench.fields`` with their stores, as ``ops.bench.measurement`` makes them. Every step runs
``--repeat`` times after one that compiles; the least processor time of each step and part counts. With ``--page`` the
table is written there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from threadpoolctl import threadpool_limits

import stream.photometry  # noqa: F401  (its rooms are looked up by name)
from ops.bench.measured import _inputs, raw_quadrant
from stream.calibrate import calibrate
from stream.photometry import build_psf, detect, estimate_background, measure_sources
from stream.pipeline import ScienceSettings, Stopwatch, first_look

ASKED = {"background and detection": 0.25, "psf": 0.08, "photometry": 0.15}
CROWDED_SHARE = 3.0  # 40,000 sources may take three times the photometry's budget
# What is timed inside the steps: module, function, what it does. Parts nest: the search holds a detection.
PARTS = {
    "detect": (
        ("detect", "pixels_above", "filter and threshold"),
        ("detect", "find_basins", "watershed"),
        ("detect", "_table", "moments and centroids"),
        ("detect", "without_sky", "sky off"),
    ),
    "psf": (
        ("psf", "select_stars", "stars chosen and gathered"),
        ("psf", "_fit_stars", "fits of single stars"),
        ("psf", "star_rows", "stars' rows"),
        ("psf", "_normal_solution", "normal equations solved"),
    ),
    "photometry": (
        ("scene", "step_groups", "groups' steps (PSF read, equations, solved, models drawn anew)"),
        ("scene", "draw_sources", "models taken off at first"),
        ("sequences", "_search", "searches of the residuals"),
        ("sequences", "_new_sky", "sky of the residuals"),
        ("sequences", "groups_of", "groups found"),
        ("sequences", "sky_covariance", "the sky's covariance"),
        ("sequences", "_spurious", "spurious ones found"),
        ("scene", "has_neighbour", "neighbours found"),
        ("measure", "aperture_corrections", "aperture corrections"),
        ("measure", "_apertures", "apertures"),
        ("measure", "without_sky", "sky off"),
    ),
}


@dataclass(frozen=True, slots=True)
class Timed:
    """A step's least time, and those of its parts, s."""

    step: str
    seconds: float
    parts: dict[str, float]


def timed(step: str, run: Callable[[], object], repeat: int) -> Timed:
    """The step run ``repeat`` times after once, its parts timed inside."""
    sums: dict[str, float] = {}
    kept: list[tuple[ModuleType, str, Any]] = []
    for room, name, what in PARTS.get(step, ()):
        module = sys.modules[f"stream.photometry.{room}"]
        kept.append((module, name, getattr(module, name)))
        setattr(module, name, clocked(getattr(module, name), what, sums))
    whole: list[float] = []
    parts: dict[str, list[float]] = defaultdict(list)
    try:
        for turn in range(repeat + 1):
            sums.clear()
            start = time.process_time()
            run()
            if turn:
                whole.append(time.process_time() - start)
                for what, seconds in sums.items():
                    parts[what].append(seconds)
    finally:
        for module, name, function in kept:
            setattr(module, name, function)
    return Timed(step, min(whole), {what: min(values) for what, values in parts.items()})


def clocked(function: Callable[..., Any], what: str, sums: dict[str, float]) -> Callable[..., Any]:
    """The function with its processor time added to ``sums``."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            sums[what] = sums.get(what, 0.0) + time.process_time() - start

    return run


def profile(folder: Path, repeat: int) -> tuple[int, list[Timed]]:
    """Sources of a field's first exposure, and the steps that measure them."""
    raw, inputs = raw_quadrant(sorted((folder / "raw" / "sci").rglob("*_o.fits*"))[0]), _inputs(folder)
    settings = ScienceSettings()
    image, look = first_look(calibrate(raw, inputs.calibration(raw.quadrant)), settings.detection_sigma, Stopwatch())
    data, mask, noise, found = image.data, image.mask, (image.gain, image.readnoise), look.detections
    psf = build_psf(data, look.background, found, mask, *noise, image.saturate)
    sources, _ = measure_sources(data, look.background, psf, found, mask, *noise)
    return len(sources), [
        timed("background", lambda: estimate_background(data, mask), repeat),
        timed("detect", lambda: detect(data, look.background, mask, settings.detection_sigma, gain=noise[0]), repeat),
        timed("psf", lambda: build_psf(data, look.background, found, mask, *noise, image.saturate), repeat),
        timed("photometry", lambda: measure_sources(data, look.background, psf, found, mask, *noise), repeat),
    ]


def table(name: str, n: int, steps: list[Timed]) -> list[str]:
    """Markdown of one field."""
    lines = [f"## {name}: {n} sources", "", "| step | part | ms |", "|---|---|---|"]
    for step in steps:
        lines.append(f"| {step.step} | all | {step.seconds * 1e3:.0f} |")
        ordered = sorted(step.parts.items(), key=lambda item: -item[1])
        lines += [f"| | {what} | {seconds * 1e3:.1f} |" for what, seconds in ordered]
    took = {step.step: step.seconds for step in steps}
    took["background and detection"] = took["background"] + took["detect"]
    gaps = []
    for what, limit in ASKED.items():
        share = limit * (CROWDED_SHARE if name == "dense" and what == "photometry" else 1.0)
        gaps.append(f"{what} {took[what]:.3f} s of {share:.2f}")
    return [*lines, "", "Of what is asked: " + ", ".join(gaps) + ".", ""]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the simulated fields")
    parser.add_argument("--fields", default="normal,dense", help="which, with commas")
    parser.add_argument("--repeat", type=int, default=3, help="of each step; the least time counts")
    parser.add_argument("--page", type=Path, help="file that the tables are written to, what it says of the gaps stays")
    args = parser.parse_args()
    text: list[str] = []
    with threadpool_limits(1):
        for name in args.fields.split(","):
            text += table(name, *profile(args.out / name, args.repeat))
    print("\n".join(text))
    if args.page:
        head, mark, notes = args.page.read_text().partition("## What a gap is made of")
        title = head.partition("\n## ")[0]
        args.page.write_text(title.rstrip() + "\n\n" + "\n".join(text) + "\n" + mark + notes)


if __name__ == "__main__":
    main()
