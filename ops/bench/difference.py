"""The figures of difference images, judged by a simulated field's truth, beside other programs; and of a real pair.

    python -m ops.bench.difference --out DIR [--field normal] [--exposures 0,6,7] [--peers] [--real IMAGES]
                                   [--plot PNG] [--json]

DIR holds the fields of ``ops.bench.fields`` with calibration, catalogues and a reference in ``DIR/FIELD/store``.
``--peers`` adds, where they can be imported, PyZOGY (from its source) and sfft (from PyPI) on the very same prepared
planes, and this project's own second method. ``--real`` is a folder with the two overlapping published images.

- **empty sky**: mean and standard deviation of S_corr in cells of 256 px away from every true source.
- **stars**: r.m.s. of D in 7 x 7 px at unsaturated isolated stars of magnitude 15 to 20 over the photon noise there.
- **dipoles**: isolated stars at which |S_corr| exceeds 5.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from ops.bench.fields import CCD, QID
from ops.bench.rows import Row
from stream.archive import ProductStore, StoreInputs
from stream.core.camera import FULL
from stream.core.identity import rcid_of
from stream.core.records import Difference, Reference, ScienceImage
from stream.offline import process_image, raw_of
from stream.pipeline import ScienceSettings, process_quadrant
from stream.reference import build_reference
from stream.simulate.truth import read_truth
from stream.subtract import SubtractConfig, make_cache, subtract, subtract_by_kernel
from stream.subtract.difference import Front, front
from stream.subtract.kernels import psfs_of

F32 = NDArray[np.float32]
RCID = rcid_of(CCD, QID)
CELL = 256
BRIGHT, FAINT = 15.0, 20.0  # magnitudes of the stars that are looked at
ISOLATION = 8.0  # px
REAL = ("20250116146979_000250_zg_c08_o_q3", "20250116147917_000249_zg_c05_o_q4")


@dataclass(frozen=True, slots=True)
class Sky:
    """Truth of one exposure: places (px), magnitudes, fluxes (DN) and whether a source is a constant star."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    mag: NDArray[np.float64]
    flux: NDArray[np.float64]
    star: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured of one difference."""

    mean: float
    worst_mean: float
    sigma: tuple[float, float]
    good_cells: float
    stars_ok: float
    stars: int
    dipoles: int
    seconds: float


def sky_of(folder: Path, exposure: str) -> Sky:
    """The truth of one exposure of the quadrant."""
    columns = ["kind", "x", "y", "mag", "flux"]
    t = read_truth(folder, columns=columns, exposure=exposure, rcid=RCID)
    ok = np.isfinite(t["x"]) & np.isfinite(t["y"])
    return Sky(t["x"][ok], t["y"][ok], t["mag"][ok], t["flux"][ok], t["kind"][ok] == "star")


def figures(data: F32, scorr: F32, science: ScienceImage, reference: Reference, sky: Sky, seconds: float) -> Figures:
    """Sky and stars of one difference."""
    ny, nx = data.shape
    empty = np.isfinite(scorr)
    for x, y, f in zip(sky.x, sky.y, sky.flux, strict=True):
        r = int(np.clip(6 + 5 * np.log10(max(f, 50) / 50), 5, 60))
        a, b = round(float(x)), round(float(y))
        empty[max(b - r, 0) : max(b + r + 1, 0), max(a - r, 0) : max(a + r + 1, 0)] = False
    means, sigmas = [], []
    for j in range(0, ny - CELL // 2, CELL):
        for i in range(0, nx - CELL // 2, CELL):
            values = scorr[j : j + CELL, i : i + CELL][empty[j : j + CELL, i : i + CELL]]
            if len(values) > 3000:
                means.append(float(values.mean()))
                sigmas.append(float(values.std()))
    chi, peaks = at_stars(data, scorr, science, reference, sky)
    good = np.mean([0.98 <= s <= 1.02 for s in sigmas]) if sigmas else 0.0
    return Figures(
        float(np.mean(means)), float(np.abs(means).max()), (min(sigmas), max(sigmas)), float(good),
        float(np.mean(chi < 1.2)), len(chi), int((peaks > 5).sum()), seconds,
    )  # fmt: skip


def at_stars(
    data: F32, scorr: F32, science: ScienceImage, reference: Reference, sky: Sky
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """R.m.s. over photon noise and largest |S_corr| at isolated constant stars."""
    ny, nx = data.shape
    wanted = sky.star & (sky.mag > BRIGHT) & (sky.mag < FAINT)
    wanted &= (sky.x > 15) & (sky.y > 15) & (sky.x < nx - 16) & (sky.y < ny - 16)
    some = sky.mag < 20.5
    tree = cKDTree(np.stack([sky.x[some], sky.y[some]], 1))
    wanted[wanted] = tree.query(np.stack([sky.x[wanted], sky.y[wanted]], 1), k=2)[0][:, 1] > ISOLATION
    gain = float(reference.qa.get("gain", science.gain * reference.n_frames))
    quiet = float(np.nanmedian(np.abs(data[::5, ::5]))) * 1.4826
    chi, peaks = [], []
    for x, y in zip(sky.x[wanted], sky.y[wanted], strict=True):
        box = np.s_[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4]
        values = data[box]
        if not np.isfinite(values).all():
            continue
        light = np.maximum(science.data[box] - science.background.level[box], 0)
        variance = quiet**2 + light * (1 / science.gain + 1 / gain)
        chi.append(float(np.sqrt(np.mean(values**2 / variance))))
        peaks.append(float(np.nanmax(np.abs(scorr[box]))))
    return np.array(chi), np.array(peaks)


def filtered(data: F32, psf: F32, made: Front) -> F32:
    """A peer's difference matched with a PSF, in units of its own scatter, unusable pixels NaN."""
    score = ndimage.correlate(data, psf, mode="nearest").astype(np.float32)
    score[made.ready.unusable | made.ready.hits] = np.nan
    seen = score[::5, ::5][np.isfinite(score[::5, ::5])]
    out: F32 = score / np.float32(1.4826 * np.median(np.abs(seen - np.median(seen))))
    return out


def pyzogy(made: Front, new_psf: F32, reference_psf: F32, noise: tuple[float, float]) -> F32:
    """D of PyZOGY, science DN: its arithmetic on our planes (its file handling and gain fit left out)."""
    from PyZOGY import subtract as peer

    sides = []
    for plane, psf, sigma in zip((made.ready.new, made.ready.reference), (new_psf, reference_psf), noise, strict=True):
        wide = np.zeros(plane.shape)
        wide[: psf.shape[0], : psf.shape[1]] = psf / psf.sum()
        wide = np.roll(wide, (-(psf.shape[0] // 2), -(psf.shape[1] // 2)), (0, 1))
        sides.append(SimpleNamespace(image_data=plane, psf_data=wide, background_std=sigma, zero_point=1.0))
    d = peer.calculate_difference_image(*sides, gain_ratio=1.0)
    zero = peer.calculate_difference_image_zero_point(*sides)
    out = peer.normalize_difference_image(d, zero, sides[0], sides[1], "science")
    return np.asarray(out.real, np.float32)


def sfft(made: Front, half: int) -> F32:
    """D of sfft (spatially varying delta-basis kernel), science DN; every source brighter than 20 sigma is fitted."""
    from sfft.CustomizedPacket import Customized_Packet

    new, reference = made.ready.new, made.ready.reference
    noise = 1.4826 * float(np.median(np.abs(new[::7, ::7])))
    bright = ndimage.binary_dilation(reference > 20 * noise, iterations=5) & ~(made.ready.unusable | made.ready.hits)
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for name, image in (("sci", new), ("ref", reference), ("msci", new * bright), ("mref", reference * bright)):
            names[name] = f"{folder}/{name}.fits"
            fits.writeto(names[name], image.T.astype(np.float64).T)
        Customized_Packet.CP(
            names["ref"], names["sci"], names["mref"], names["msci"], "REF", half, FITS_DIFF=f"{folder}/d.fits",
            BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1, VERBOSE_LEVEL=0,
        )  # fmt: skip
        return np.asarray(fits.getdata(f"{folder}/d.fits"), np.float32)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the core-seconds it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def compare(science: ScienceImage, reference: Reference, sky: Sky, peers: bool) -> dict[str, Figures]:
    """Figures of ours and, where asked for and there, of the others."""
    cache = make_cache(reference)
    d, seconds = timed(lambda: subtract(science, reference, None, cache))
    again, least = timed(lambda: subtract(science, reference, None, cache))
    if again.scorr.tobytes() != d.scorr.tobytes() or again.data.tobytes() != d.data.tobytes():
        raise RuntimeError("the same inputs gave other bytes")
    out = {"ours": figures(d.data, d.scorr, science, reference, sky, min(seconds, least))}
    if not peers:
        return out
    other, seconds = timed(lambda: subtract_by_kernel(science, reference))
    out["kernel fit"] = figures(other.data, other.scorr, science, reference, sky, seconds)
    made = front(science, reference, SubtractConfig(), cache)
    psfs = psfs_of(science, reference, made.pixel_map)
    new, old = psfs.new.mean(axis=0), psfs.reference.mean(axis=0)
    noise = science.background.sigma, made.match.flux_scale * made.typical
    seen: dict[str, Callable[[], F32]] = {
        "PyZOGY": lambda: pyzogy(made, new, old, noise),
        "sfft": lambda: sfft(made, max(4, round(2 * science.seeing))),
    }
    for name, work in seen.items():
        try:
            data, seconds = timed(work)
        except ImportError as error:
            print(f"{name}: not installed ({error})", file=sys.stderr)
            continue
        data[made.ready.unusable | made.ready.hits] = np.nan
        flat = np.nan_to_num(data)
        out[name] = figures(data, filtered(flat, new, made), science, reference, sky, seconds)
    return out


def science_of(folder: Path, packet: Path, inputs: StoreInputs) -> ScienceImage:
    """One exposure through the project's own science."""
    raw = raw_of(packet, QID, FULL)
    result = None if raw is None else process_quadrant(raw, inputs, ScienceSettings(subtract=False))
    if result is None or result.science is None:
        raise SystemExit(f"{packet.name}: no science image ({None if result is None else result.report.reason})")
    return result.science


def field_rows(folder: Path, exposures: Sequence[int], peers: bool) -> list[Row]:
    """Rows of one field."""
    inputs = StoreInputs(ProductStore(str(folder / "store")))
    packets = sorted((folder / "raw" / "sci").glob("*_o.fits.fz"))
    rows = []
    for k in exposures:
        science = science_of(folder, packets[k], inputs)
        reference = inputs.reference(science.quadrant)
        if reference is None:
            raise SystemExit(f"no reference in {folder / 'store'}: `ztf-stream reference build` makes one")
        sky = sky_of(folder, packets[k].name.removesuffix(".fits.fz"))
        for name, f in compare(science, reference, sky, peers).items():
            rows += _rows(f"{folder.name} {k} (seeing {science.seeing:.1f} px), {name}", f, name == "ours")
    return rows


def _rows(what: str, f: Figures, judged: bool) -> list[Row]:
    sky_ok, stars_ok = f.worst_mean < 0.1 and f.good_cells > 0.95, f.stars_ok >= 0.95
    sigma = f"{f.sigma[0]:.3f} to {f.sigma[1]:.3f}, {100 * f.good_cells:.0f} % of cells inside"
    lines = [
        (
            "empty sky",
            "mean 0.00, sigma 0.98 to 1.02",
            f"mean {f.mean:+.3f} (worst {f.worst_mean:.3f}), {sigma}",
            sky_ok,
        ),
        ("stars under 1.2 photon noise", "95 %", f"{100 * f.stars_ok:.1f} % of {f.stars}", stars_ok),
        ("stars with |S_corr| > 5", "under 5", str(f.dipoles), f.dipoles < 5),
        ("core-seconds", "0.40", f"{f.seconds:.2f}", f.seconds <= 0.40),
    ]
    return [Row(f"{name}: {what}", target, value, ok if judged else None) for name, target, value, ok in lines]


def real_rows(images: Path, plot: Path | None) -> list[Row]:
    """The real pair both ways: noise against prediction, and all that is left at 5 sigma."""
    paths = [images / f"ztf_{name}_sciimg.fits" for name in REAL]
    with tempfile.TemporaryDirectory() as empty:
        inputs = StoreInputs(ProductStore(empty))
        pair = [process_image(path, inputs).science for path in paths]
    rows = []
    for a, b in ((0, 1), (1, 0)):
        science, template = pair[a], pair[b]
        if science is None or template is None:
            raise SystemExit("the real images could not be measured")
        d = subtract(science, build_reference([template]))
        scale = d.flux_scale
        seen = np.isfinite(d.data)
        expected = float(np.hypot(science.background.sigma, scale * template.background.sigma))
        noise = 1.4826 * float(np.median(np.abs(d.data[seen] - np.median(d.data[seen]))))
        ratio = noise / expected
        rows.append(
            Row(f"real pair {a}-{b}: noise over prediction", "0.90 to 1.10", f"{ratio:.3f}", abs(ratio - 1) < 0.1)
        )
        rows += [Row(f"real pair {a}-{b}: left at 5 sigma", "explained", line, None) for line in left_over(d, science)]
        if plot is not None and a == 0:
            picture(plot, science, d)
    return rows


def left_over(d: Difference, science: ScienceImage) -> list[str]:
    """Every island above 5 sigma: place, sign, S_corr, and what is there."""
    labels, count = ndimage.label(np.abs(np.nan_to_num(d.scorr)) > 5, np.ones((3, 3)))
    lines = []
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        inside = np.where(labels[box] == k, np.nan_to_num(d.scorr[box]), 0)
        j, i = np.unravel_index(np.abs(inside).argmax(), inside.shape)
        y, x = int(box[0].start + j), int(box[1].start + i)
        edge = np.s_[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5]
        peak = float(np.nanmax(science.data[edge] - science.background.level[edge]))
        unusable = int(np.isnan(d.data[edge]).sum())
        what = "beside unusable pixels" if unusable else f"source of peak {peak:.0f} DN" if peak > 100 else "empty sky"
        lines.append(
            f"x {x} y {y} S_corr {inside[j, i]:+.1f} {what}, template {float(np.nanmax(d.reference[edge])):.0f} DN"
        )
    return lines or [f"nothing ({count} islands)"]


def picture(plot: Path, science: ScienceImage, d: Difference) -> None:
    """Science, template, difference and S_corr side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(16, 4.4), constrained_layout=True)
    s = science.background.sigma
    for ax, (title, image, low, high) in zip(
        axes,
        (
            ("science", science.data - science.background.level, -3 * s, 20 * s),
            ("template on its grid", d.reference, -3 * s, 20 * s),
            ("difference", d.data, -5 * s, 5 * s),
            ("S_corr", d.scorr, -5, 5),
        ),
        strict=True,
    ):
        ax.imshow(image, origin="lower", vmin=low, vmax=high, cmap="gray", interpolation="nearest")
        ax.set_title(title)
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, dpi=80)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the fields")
    parser.add_argument("--field", default="normal")
    parser.add_argument("--exposures", default="0", help="indices of science exposures, with commas")
    parser.add_argument("--peers", action="store_true", help="PyZOGY, sfft and the kernel fit beside ours")
    parser.add_argument("--real", type=Path, help="folder of the real pair of images")
    parser.add_argument("--plot", type=Path, help="picture of the real pair")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    exposures = [int(k) for k in given.exposures.split(",") if k]
    rows = field_rows(given.out / given.field, exposures, given.peers) if exposures else []
    rows += real_rows(given.real, given.plot) if given.real else []
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        for row in rows:
            mark = {True: "ok", False: "MISSED", None: ""}[row.ok]
            print(f"{row.name:75s} {row.target:30s} {row.value} {mark}")
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
