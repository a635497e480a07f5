"""The figures of difference images: a real pair, and a simulated field judged by its truth, beside other programs.

    python -m ops.bench.difference [--real IMAGES] [--out DIR] [--field normal,sparse,dense] [--exposures all]
                                   [--peers 0,6] [--whole] [--peers-python PYTHON] [--limit SECONDS] [--steps 6]
                                   [--done FILE] [--page MD] [--plot PNG] [--json]

Every row is printed as soon as it is known, and kept in ``--done``: what is in there is not measured again. ``--page``
writes the table of all exposures as Markdown. ``--real`` is a folder with the two overlapping published images. DIR
holds the fields of ``ops.bench.fields`` with calibration, catalogues and a reference in ``DIR/FIELD/store``; a field
without one is left out. ``--peers``: of these exposures, what other methods make of the very same planes, in the middle
1024 x 1024 px unless ``--whole``: this project's second method, and PyZOGY and sfft where they are installed.
``--steps``: of these, core-seconds by step.

- **empty sky**: mean and standard deviation of S_corr in cells of 256 px away from every true source; beside the share
  of cells inside 0.98 to 1.02 that which noise alone would leave there.
- **stars**: r.m.s. of D in 7 x 7 px at unsaturated isolated stars of magnitude 15 to 20 over the photon noise there.
- **dipoles**: isolated stars at which |S_corr| exceeds 5.
- **limit**: mag that the scatter of fluxes fitted to empty sky falls short of what the two images allow.
- **core-seconds**: of the whole quadrant for ours, minimum of three; of what they were given for the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ops.bench.difference_figures import FAINT, Figures, Scene, Sky, figures, scene, score_of
from ops.bench.difference_peers import NotThereError, pyzogy, sfft
from ops.bench.difference_real import real_rows
from ops.bench.fields import CCD, QID
from ops.bench.rows import Row
from stream.archive import ProductStore, StoreInputs
from stream.core.camera import FULL
from stream.core.identity import rcid_of
from stream.core.pixelmap import PixelMap
from stream.core.records import Difference, Reference, ScienceImage
from stream.offline import raw_of
from stream.pipeline import ScienceSettings, process_quadrant
from stream.simulate.truth import read_truth
from stream.subtract import ReferenceCache, SubtractConfig, make_cache, subtract, subtract_by_kernel
from stream.subtract import difference as differencing
from stream.subtract import prepare as preparing
from stream.subtract.difference import front

RCID = rcid_of(CCD, QID)
CROP = 1024  # px
REPEATS = 3
OURS = "ours"
BY_STEP = "of all steps"
# Functions whose time is a step's, where the subtraction looks them up.
STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    "resampling": (
        (PixelMap, "nodes"), (preparing, "resample_bridged"), (preparing, "carry"),
    ),
    "ZOGY": ((differencing, "subtract_planes"),),
    "kernels": tuple(
        (differencing, name) for name in ("psfs_of", "make_kernels", "reference_transfer", "difference_psf")
    ),
    "match": ((differencing, "match_sources"),),
    "level and noise": ((differencing, "settle"),),
    "saturated stars": ((preparing, "_saturated_pairs"), (preparing, "subtract_stars"), (preparing, "remove_rings")),
    "bright stars' models": ((preparing, "places_on"), (preparing, "paint")),
    "template, masks, filling": (
        (preparing, "_template"), (preparing, "_fill"), (preparing, "_science_pixels"), (differencing, "plain_growth"),
    ),
}  # fmt: skip


def truth_of(folder: Path, exposure: str) -> Sky:
    """The truth of one exposure of the quadrant."""
    columns = ["kind", "x", "y", "mag", "flux"]
    t = read_truth(folder, columns=columns, exposure=exposure, rcid=RCID)
    ok = np.isfinite(t["x"]) & np.isfinite(t["y"])
    return Sky(t["x"][ok], t["y"][ok], t["mag"][ok], t["flux"][ok], t["kind"][ok] == "star")


def science_of(packet: Path, inputs: StoreInputs) -> ScienceImage | str:
    """One exposure through the project's own science; or why there is none."""
    raw = raw_of(packet, QID, FULL)
    result = None if raw is None else process_quadrant(raw, inputs, ScienceSettings(subtract=False))
    if result is None or result.science is None:
        return "not in the packet" if result is None else str(result.report.reason)
    return result.science


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the core-seconds it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one method on one exposure; ``density``: stars brighter than 20 mag per square arcminute."""

    field: str
    exposure: int
    method: str
    seeing: float
    density: float
    same: bool | None
    figures: Figures


def field_rows(folder: Path, given: argparse.Namespace, done: list[Measured]) -> Iterator[Row]:
    """Rows of one field, exposure by exposure; what is measured goes to ``done``."""
    inputs = StoreInputs(ProductStore(str(folder / "store")))
    packets = sorted((folder / "raw" / "sci").glob("*_o.fits.fz"))
    exposures = range(len(packets)) if given.exposures == "all" else _indices(given.exposures)
    peers, steps = _indices(given.peers), _indices(given.steps)
    known = {(m.exposure, m.method) for m in done if m.field == folder.name}
    cache: ReferenceCache | None = None
    for k in exposures:
        if not 0 <= k < len(packets):
            raise SystemExit(f"no science exposure {k} in {folder}: there are {len(packets)}")
        if (k, OURS) in known and k not in peers and k not in steps:
            continue
        science = science_of(packets[k], inputs)
        if isinstance(science, str):
            yield Row(f"{folder.name} {k}: science image", "", f"none, left out: {science}", None)
            continue
        reference = inputs.reference(science.quadrant)
        if reference is None:
            yield Row(f"{folder.name}: reference", "", f"none in {folder / 'store'}: left out", None)
            return
        truth = truth_of(folder, packets[k].name.removesuffix(".fits.fz"))
        what = f"{folder.name} {k} (seeing {science.seeing:.1f} px)"
        if cache is None:
            cache, seconds = timed(lambda r=reference: make_cache(r))
            yield Row(f"{what}: make_cache", "once a reference", f"{seconds:.2f} core-s", None)
        made = front(science, reference, SubtractConfig(), cache, whole=True)
        whole = np.s_[0 : science.data.shape[0], 0 : science.data.shape[1]]
        head = folder.name, k, science.seeing, density_of(truth, science.data.shape)
        d, seconds, same = repeated(science, reference, cache)
        there = scene(science, reference, made, truth, whole)
        if (k, OURS) not in known:
            yield from _kept(done, head, OURS, same, _ours(d, there, whole, seconds), given)
        if k in steps:
            yield from step_rows(what, science, reference, cache)
        if k in peers:
            box = whole if given.whole else middle(d.data.shape)
            inner = there if given.whole else scene(science, reference, made, truth, box)
            if not given.whole:
                yield from _kept(done, head, f"{OURS}, in the middle", None, _ours(d, inner, box, seconds), given)
            for method, figures_of in peers_of(science, reference, (inner, box), given):
                if (k, method) in known:
                    continue
                try:
                    yield from _kept(done, head, method, None, figures_of(), given)
                except NotThereError as error:
                    yield Row(f"{what}, {method}", "", str(error), None)


def repeated(science: ScienceImage, reference: Reference, cache: ReferenceCache) -> tuple[Difference, float, bool]:
    """A difference, the least core-seconds that it took, and whether it had the same bytes each time."""
    digests, times = set(), []
    for k in range(REPEATS):
        d, seconds = timed(lambda: subtract(science, reference, None, cache))
        times.append(seconds)
        digests.add(hashlib.sha256(d.data.tobytes() + d.scorr.tobytes()).hexdigest())
        if k < REPEATS - 1:
            del d  # its memory is what the next one is made in, as in a worker
    return d, min(times), len(digests) == 1


def _indices(text: str) -> list[int]:
    return [int(k) for k in text.split(",") if k]


def density_of(truth: Sky, shape: tuple[int, ...]) -> float:
    """Stars brighter than 20 mag per square arcminute."""
    ny, nx = shape[:2]
    inside = (truth.x > 0) & (truth.y > 0) & (truth.x < nx) & (truth.y < ny) & truth.star & (truth.mag < FAINT)
    return float(inside.sum() / (ny * nx * (FULL.pixel_scale / 60) ** 2))


def _kept(
    done: list[Measured], head: tuple[str, int, float, float], method: str, same: bool | None, f: Figures,
    given: argparse.Namespace,
) -> Iterator[Row]:  # fmt: skip
    """Keep figures, in the file too, and say them."""
    field, exposure, seeing, density = head
    one = Measured(field, exposure, method, seeing, density, same, f)
    done.append(one)
    if given.done is not None:
        with given.done.open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")
    yield from rows_of(one)


def read_done(path: Path | None) -> list[Measured]:
    """What an earlier run kept; a last line cut short is dropped."""
    if path is None or not path.exists():
        return []
    out = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        values["figures"]["sigma"] = tuple(values["figures"]["sigma"])
        out.append(Measured(**{**values, "figures": Figures(**values["figures"])}))
    return out


def rows_of(one: Measured) -> list[Row]:
    """The figures of one method on one exposure; only ours of a whole image are judged."""
    what, f = f"{one.field} {one.exposure} (seeing {one.seeing:.1f} px), {one.method}", one.figures
    sigma = f"{f.sigma[0]:.3f} to {f.sigma[1]:.3f}, {100 * f.good_cells:.0f} % of {f.cells} cells inside"
    sigma += f" (by noise alone {100 * f.good_by_noise:.0f} %)"
    lines = [
        ("empty sky", "mean 0.00, sigma 0.98 to 1.02", f"mean {f.mean:+.3f} (worst {f.worst_mean:.3f}), {sigma}",
         f.worst_mean < 0.1 and f.good_cells == 1 if f.cells else None),
        ("stars under 1.2 photon noise", "95 %", f"{100 * f.stars_ok:.1f} % of {f.stars}", f.stars_ok >= 0.95),
        ("stars with |S_corr| > 5", "under 5", str(f.dipoles), f.dipoles < 5),
        ("5-sigma limit short of theory", "0.05 mag", f"{f.loss:+.3f} mag",
         f.loss < 0.05 if np.isfinite(f.loss) else None),
        ("core-seconds", "0.40", f"{f.seconds:.2f}", f.seconds <= 0.40),
    ]  # fmt: skip
    if one.same is not None:
        lines.append(("same inputs again", "same bytes", "same bytes" if one.same else "other bytes", one.same))
    return [Row(f"{what}: {n}", t, v, ok if one.method == OURS else None) for n, t, v, ok in lines]


def page_of(done: Sequence[Measured]) -> str:
    """Markdown: ours on every exposure by field and seeing, then the methods beside each other."""
    head = "| field | stars < 20 mag per arcmin^2 | seeing, px | mean of empty sky, worst cell | sigma of cells | cells"
    head += " in 0.98 to 1.02 (by noise alone) | stars under 1.2 photon noise | stars, abs(S_corr) > 5 | limit, mag"
    head += " short | core-seconds |"
    ours = sorted((m for m in done if m.method == OURS), key=lambda m: (m.density, m.seeing))
    out = [head, "|---" * 10 + "|"]
    out += [f"| {m.field} {m.exposure} | {m.density:.1f} | {m.seeing:.2f} | {_cells_of(m.figures)} |" for m in ours]
    others = sorted((m for m in done if m.method != OURS), key=lambda m: (m.field, m.exposure))
    if others:
        out += ["", head.replace("stars < 20 mag per arcmin^2", "method"), "|---" * 10 + "|"]
        out += [f"| {m.field} {m.exposure} | {m.method} | {m.seeing:.2f} | {_cells_of(m.figures)} |" for m in others]
    return "\n".join(out) + "\n"


def steps_page(steps: Sequence[Row]) -> str:
    """Markdown of core-seconds by step; empty without any."""
    lines = [f"| {row.name.replace(': ', ' | ')} | {row.value.removesuffix(' core-s')} |" for row in steps]
    return "\n".join(["", "| exposure | step | core-seconds |", "|---|---|---|", *lines, ""]) if lines else ""


def _cells_of(f: Figures) -> str:
    return " | ".join([
        f"{f.mean:+.3f}, {f.worst_mean:.3f}", f"{f.sigma[0]:.3f} to {f.sigma[1]:.3f}",
        f"{100 * f.good_cells:.0f} % ({100 * f.good_by_noise:.0f} %)", f"{100 * f.stars_ok:.1f} % of {f.stars}",
        str(f.dipoles), f"{f.loss:+.3f}", f"{f.seconds:.2f}",
    ]).replace("nan % (nan %)", "no empty sky").replace("+nan", "-").replace("nan", "-")  # fmt: skip


def middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The box of ``CROP`` px in the middle."""
    y, x = (max((n - CROP) // 2, 0) for n in shape[:2])
    return slice(y, min(y + CROP, shape[0])), slice(x, min(x + CROP, shape[1]))


def _ours(d: Difference, there: Scene, box: tuple[slice, slice], seconds: float) -> Figures:
    centre = (box[1].start + box[1].stop - 1) / 2, (box[0].start + box[0].stop - 1) / 2
    return figures(d.data[box], d.scorr[box], d.psf.stamp(*centre).astype(float), there, seconds)


def peers_of(
    science: ScienceImage, reference: Reference, where: tuple[Scene, tuple[slice, slice]], given: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """The others, each with what measures it."""
    there, box = where

    def by_kernel() -> Figures:
        other, seconds = timed(lambda: subtract_by_kernel(science, reference))
        return _ours(other, there, box, seconds)

    def by_pyzogy() -> Figures:
        data, psf, seconds = pyzogy(there, given.peers_python, given.limit)
        return _peer(data, psf, there, seconds)

    def by_sfft() -> Figures:
        half = max(4, round(2 * science.seeing))
        data, psf, seconds = sfft(there, half, given.peers_python, given.limit)
        return _peer(data, psf, there, seconds)

    yield "kernel fit", by_kernel
    yield "PyZOGY", by_pyzogy
    yield "sfft", by_sfft


def _peer(data: Any, psf: Any, there: Scene, seconds: float) -> Figures:
    score = score_of(data, psf, there)
    data[there.unusable] = np.nan
    return figures(data, score, psf, there, seconds)


def step_rows(what: str, science: ScienceImage, reference: Reference, cache: ReferenceCache) -> Iterator[Row]:
    """Core-seconds of a subtraction by step, each the minimum of ``REPEATS``."""
    runs = []
    for _ in range(REPEATS):
        parts = dict.fromkeys(STEPS, 0.0)
        with ExitStack() as stack:
            for step, places in STEPS.items():
                for owner, name in places:
                    stack.enter_context(patch.object(owner, name, _clocked(getattr(owner, name), parts, step)))
            _, total = timed(lambda: subtract(science, reference, None, cache))
        runs.append({**parts, "rest": total - sum(parts.values()), "all": total})
    for step in runs[0]:
        yield Row(f"{what}: {step}", BY_STEP, f"{min(r[step] for r in runs):.3f} core-s", None)


def _clocked(work: Callable[..., Any], parts: dict[str, float], step: str) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        result, seconds = timed(lambda: work(*arguments, **named))
        parts[step] += seconds
        return result

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, row by row; 1 where a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--real", type=Path, help="folder of the real pair of images")
    parser.add_argument("--plot", type=Path, help="picture of the real pair")
    parser.add_argument("--out", type=Path, help="folder of the fields")
    parser.add_argument("--field", default="normal,sparse,dense", help="with commas")
    parser.add_argument("--exposures", default="all", help="indices of science exposures, with commas")
    parser.add_argument("--peers", default="", help="of these exposures: kernel fit, PyZOGY and sfft beside ours")
    parser.add_argument("--done", type=Path, help="file of what is measured already, one object a line; added to")
    parser.add_argument("--page", type=Path, help="Markdown with the table of all exposures")
    parser.add_argument("--whole", action="store_true", help="peers on the whole quadrant: minutes")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has PyZOGY and sfft")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a peer is stopped")
    parser.add_argument("--steps", default="", help="of these exposures: core-seconds of ours by step")
    parser.add_argument("--json", action="store_true", help="one object a line")
    given = parser.parse_args(arguments)
    if given.real is None and given.out is None:
        parser.error("nothing to measure: give --real or --out")
    done = read_done(given.done)
    parts: list[Iterable[Row]] = [(row for one in done for row in rows_of(one))]
    parts += [real_rows(given.real, given.plot)] if given.real else []
    parts += [field_rows(given.out / field, given, done) for field in given.field.split(",")] if given.out else []
    missed, steps = False, []
    for row in chain.from_iterable(parts):
        missed |= row.ok is False
        steps += [row] if row.target == BY_STEP else []
        mark = {True: "ok", False: "MISSED", None: ""}[row.ok]
        print(
            json.dumps(asdict(row)) if given.json else f"{row.name:75s} {row.target:30s} {row.value} {mark}", flush=True
        )
        if given.page is not None and done:
            given.page.write_text(page_of(done) + steps_page(steps))
    return int(missed)


def as_a_worker() -> None:
    """Start anew as the stream's workers run: one thread, and memory kept, not given back and faulted in again."""
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    wanted |= {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, "-m", "ops.bench.difference", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | wanted)


if __name__ == "__main__":
    as_a_worker()
    sys.exit(main())
