"""The figures of difference images: a real pair, and a simulated field judged by its truth, beside other programs.

    python -m ops.bench.difference [--real IMAGES] [--out DIR] [--field normal] [--exposures 0,6] [--peers] [--whole]
                                   [--sfft-python PYTHON] [--limit SECONDS] [--steps] [--plot PNG] [--json]

Every row is printed as soon as it is known. ``--real`` is a folder with the two overlapping published images. DIR holds
the fields of ``ops.bench.fields`` with calibration, catalogues and a reference in ``DIR/FIELD/store``. ``--peers`` adds
what other methods make of the very same prepared planes, in the middle 1024 x 1024 px unless ``--whole``: this
project's second method, ZOGY with one PSF an image (the arithmetic of PyZOGY), and sfft where it is installed.

- **empty sky**: mean and standard deviation of S_corr in cells of 256 px away from every true source.
- **stars**: r.m.s. of D in 7 x 7 px at unsaturated isolated stars of magnitude 15 to 20 over the photon noise there.
- **dipoles**: isolated stars at which |S_corr| exceeds 5.
- **limit**: mag that the scatter of fluxes fitted to empty sky falls short of what the two images allow.
- **core-seconds**: of the whole quadrant for ours, minimum of three; of what they were given for the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ops.bench.difference_figures import Figures, Scene, Sky, figures, scene, score_of
from ops.bench.difference_peers import NotThereError, plain_zogy, sfft
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
}  # fmt: skip


def truth_of(folder: Path, exposure: str) -> Sky:
    """The truth of one exposure of the quadrant."""
    columns = ["kind", "x", "y", "mag", "flux"]
    t = read_truth(folder, columns=columns, exposure=exposure, rcid=RCID)
    ok = np.isfinite(t["x"]) & np.isfinite(t["y"])
    return Sky(t["x"][ok], t["y"][ok], t["mag"][ok], t["flux"][ok], t["kind"][ok] == "star")


def science_of(packet: Path, inputs: StoreInputs) -> ScienceImage:
    """One exposure through the project's own science."""
    raw = raw_of(packet, QID, FULL)
    result = None if raw is None else process_quadrant(raw, inputs, ScienceSettings(subtract=False))
    if result is None or result.science is None:
        raise SystemExit(f"{packet.name}: no science image ({None if result is None else result.report.reason})")
    return result.science


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the core-seconds it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def field_rows(folder: Path, exposures: Sequence[int], given: argparse.Namespace) -> Iterator[Row]:
    """Rows of one field, exposure by exposure."""
    inputs = StoreInputs(ProductStore(str(folder / "store")))
    packets = sorted((folder / "raw" / "sci").glob("*_o.fits.fz"))
    for k in exposures:
        if not 0 <= k < len(packets):
            raise SystemExit(f"no science exposure {k} in {folder}: there are {len(packets)}")
        science = science_of(packets[k], inputs)
        reference = inputs.reference(science.quadrant)
        if reference is None:
            raise SystemExit(f"no reference in {folder / 'store'}: `ztf-stream reference build` makes one")
        truth = truth_of(folder, packets[k].name.removesuffix(".fits.fz"))
        what = f"{folder.name} {k} (seeing {science.seeing:.1f} px)"
        cache, seconds = timed(lambda r=reference: make_cache(r))
        runs = [timed(lambda s=science, r=reference, c=cache: subtract(s, r, None, c)) for _ in range(REPEATS)]
        same = len({(d.data.tobytes(), d.scorr.tobytes()) for d, _ in runs}) == 1
        yield Row(f"{what}: same inputs again", "same bytes", "same bytes" if same else "other bytes", same)
        d = runs[-1][0]
        whole = np.s_[0 : d.data.shape[0], 0 : d.data.shape[1]]
        made = front(science, reference, SubtractConfig(), cache, whole=True)
        there = scene(science, reference, made, truth, whole)
        yield from _rows(f"{what}, ours", _ours(d, there, whole, min(t for _, t in runs)), True)
        if given.steps:
            yield Row(f"{what}: make_cache", "once a reference", f"{seconds:.2f} core-s", None)
            yield from step_rows(what, science, reference, cache)
        if given.peers:
            box = whole if given.whole else middle(d.data.shape)
            inner = there if given.whole else scene(science, reference, made, truth, box)
            part = f"{what}, {inner.new.shape[1]} x {inner.new.shape[0]} px"
            if not given.whole:
                yield from _rows(f"{part}, ours", _ours(d, inner, box, min(t for _, t in runs)), None)
            yield from peer_rows(part, science, reference, (inner, box), given)


def middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The box of ``CROP`` px in the middle."""
    y, x = (max((n - CROP) // 2, 0) for n in shape[:2])
    return slice(y, min(y + CROP, shape[0])), slice(x, min(x + CROP, shape[1]))


def _ours(d: Difference, there: Scene, box: tuple[slice, slice], seconds: float) -> Figures:
    centre = (box[1].start + box[1].stop - 1) / 2, (box[0].start + box[0].stop - 1) / 2
    return figures(d.data[box], d.scorr[box], d.psf.stamp(*centre).astype(float), there, seconds)


def peer_rows(
    what: str, science: ScienceImage, reference: Reference, where: tuple[Scene, tuple[slice, slice]],
    given: argparse.Namespace,
) -> Iterator[Row]:  # fmt: skip
    """Rows of the others, one after the other."""
    there, box = where
    other, seconds = timed(lambda: subtract_by_kernel(science, reference))
    yield from _rows(f"{what}, kernel fit", _ours(other, there, box, seconds), None)
    (data, psf), seconds = timed(lambda: plain_zogy(there))
    yield from _peer(f"{what}, plain ZOGY", data, psf, there, seconds)
    try:
        half = max(4, round(2 * science.seeing))
        data, psf, seconds = sfft(there, half, given.sfft_python, given.limit)
    except NotThereError as error:
        yield Row(f"{what}, sfft", "", str(error), None)
        return
    yield from _peer(f"{what}, sfft", data, psf, there, seconds)


def _peer(what: str, data: Any, psf: Any, there: Scene, seconds: float) -> Iterator[Row]:
    score = score_of(data, psf, there)
    data[there.unusable] = np.nan
    return _rows(what, figures(data, score, psf, there, seconds), None)


def _rows(what: str, f: Figures, judged: bool | None) -> Iterator[Row]:
    sigma = f"{f.sigma[0]:.3f} to {f.sigma[1]:.3f}, {100 * f.good_cells:.0f} % of {f.cells} cells inside"
    lines = [
        ("empty sky", "mean 0.00, sigma 0.98 to 1.02", f"mean {f.mean:+.3f} (worst {f.worst_mean:.3f}), {sigma}",
         f.worst_mean < 0.1 and f.good_cells == 1),
        ("stars under 1.2 photon noise", "95 %", f"{100 * f.stars_ok:.1f} % of {f.stars}", f.stars_ok >= 0.95),
        ("stars with |S_corr| > 5", "under 5", str(f.dipoles), f.dipoles < 5),
        ("5-sigma limit short of theory", "0.05 mag", f"{f.loss:+.3f} mag", f.loss < 0.05),
        ("core-seconds", "0.40", f"{f.seconds:.2f}", f.seconds <= 0.40),
    ]  # fmt: skip
    for name, target, value, ok in lines:
        yield Row(f"{what}: {name}", target, value, ok if judged else None)


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
        yield Row(f"{what}: {step}", "", f"{min(r[step] for r in runs):.3f} core-s", None)


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
    parser.add_argument("--field", default="normal")
    parser.add_argument("--exposures", default="0,6", help="indices of science exposures, with commas")
    parser.add_argument("--peers", action="store_true", help="kernel fit, plain ZOGY and sfft beside ours")
    parser.add_argument("--whole", action="store_true", help="peers on the whole quadrant: minutes")
    parser.add_argument("--sfft-python", default=sys.executable, help="interpreter that has sfft")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which sfft is stopped")
    parser.add_argument("--steps", action="store_true", help="core-seconds of ours by step")
    parser.add_argument("--json", action="store_true", help="one object a line")
    given = parser.parse_args(arguments)
    if given.real is None and given.out is None:
        parser.error("nothing to measure: give --real or --out")
    exposures = [int(k) for k in given.exposures.split(",") if k]
    parts = [real_rows(given.real, given.plot)] if given.real else []
    parts += [field_rows(given.out / given.field, exposures, given)] if given.out else []
    missed = False
    for row in chain.from_iterable(parts):
        missed |= row.ok is False
        mark = {True: "ok", False: "MISSED", None: ""}[row.ok]
        print(
            json.dumps(asdict(row)) if given.json else f"{row.name:75s} {row.target:30s} {row.value} {mark}", flush=True
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
