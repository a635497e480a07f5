"""The figures of reference images, judged by a simulated field's truth: depth, errors, what moves, time, memory.

    python -m ops.bench.references --out DIR [--field normal] [--counts 5,10,20,40] [--exposures 40] [--plot PNG]

DIR holds the fields of ``ops.bench.fields`` (made where missing, with the flats of every night in ``DIR/FIELD/nights``;
calibration and catalogues in ``DIR/FIELD/store``).
Every reference exposure goes through the project's own science once, into ``DIR/FIELD/references``. The field's own
exposures hold neither satellites nor asteroids, so both are painted onto the calibrated images, with their photons,
of every brightness, where nothing masks them: what keeps them out is the combination alone.

- **depth**: PSF fluxes at places without any true source down to the faintest, halo or ghost; their scatter against
  that of the single exposures, measured alike, and the square root of N. "Alike": of exposures of nearly one seeing,
  for which the mean is the best that can be made of them; the others weigh by their noise, whatever their seeing.
- **uncertainty**: the same fluxes over their predicted errors, and sums over squares of 1 to 32 px over theirs.
- **what moves**: PSF flux at the asteroids' places and light in pieces of 40 px along the trails that the reference
  has and one of the same exposures without them has not, over their errors.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from ops.bench.fields import CCD, QID, flats_of_nights, plan_of, simulate
from ops.bench.rows import Row
from stream.archive import ProductStore, read_science_product, write_products
from stream.core.camera import FULL, Camera
from stream.core.flags import Mask
from stream.core.identity import rcid_of
from stream.core.pixelmap import world_to_pixel
from stream.core.psf import PsfModel
from stream.core.records import Reference, ScienceImage
from stream.offline import Job, own_task, packet_heads, parallel, raw_of
from stream.pipeline import ScienceSettings, process_quadrant
from stream.reference import ReferenceConfig, build_reference
from stream.simulate.truth import read_truth

F64 = NDArray[np.float64]
RCID = rcid_of(CCD, QID)
SIZE = 25
CLEAR = 9.0  # px from a place to the next true source
PLACES = 6000
BOXES = (1, 2, 4, 8, 16, 32)
ASTEROIDS = 8  # painted per exposure
PIECE = 40.0  # px of a trail that are looked at together


def science_names(folder: Path, workers: int) -> list[str]:
    """Base names of the field's reference exposures, their science products made where missing."""
    store = ProductStore(str(folder / "references"))
    heads, _ = packet_heads(sorted((folder / "raw" / "ref").glob("*_o.fits.fz")), FULL)
    names = [f"{head.path.name.removesuffix('.fits.fz')}_q{QID}" for head in heads]
    if all(store.exists(_image(name)) for name in names):
        return names
    for kind in ("cal", "catalogs", "det"):
        if (folder / "store" / kind).is_dir():
            shutil.copytree(folder / "store" / kind, folder / "references" / kind, dirs_exist_ok=True)
    job = Job(str(folder / "references"), FULL)
    units = [(head.path, FULL) for head in heads]
    settings = ScienceSettings(camera=FULL, subtract=False)
    for reason in parallel(_science, units, job, workers, settings):
        if reason is not None:
            raise SystemExit(reason)
    return names


def _image(name: str) -> str:
    from stream.archive import science_path

    return science_path(name, "sciimg.fits.fz")


def _science(unit: tuple[Path, Camera]) -> str | None:
    path, camera = unit
    task = own_task()
    raw = raw_of(path, QID, camera)
    if raw is None:
        return f"{path.name}: no quadrant {QID}"
    result = process_quadrant(raw, task.inputs, task.settings)
    if result.science is None:
        return f"{path.name}: {result.report.reason}"
    write_products(task.store, result)
    return None


@dataclass(frozen=True)
class Moving:
    """What was painted onto one exposure: asteroids (x, y, flux) and one trail (x1, y1, x2, y2, DN per px)."""

    asteroids: F64
    trail: F64


class Painted(Sequence[ScienceImage]):
    """The exposures, read when asked for, each with its own asteroids and satellite."""

    def __init__(self, store: ProductStore, names: Sequence[str], moving: bool) -> None:
        self._store, self.names, self._moving = store, list(names), moving

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> ScienceImage:  # type: ignore[override]
        image = read_science_product(self._store, self.names[index])
        if self._moving:
            paint_moving(image, moving_of(image, index), index)
        return image


def moving_of(image: ScienceImage, seed: int) -> Moving:
    """Asteroids from the limit of one exposure to a hundred times it, and a satellite of 0.3 to 30 sigma a pixel."""
    rng = np.random.default_rng(1000 + seed)
    ny, nx = image.data.shape
    x, y = rng.uniform(80, nx - 80, ASTEROIDS), rng.uniform(80, ny - 80, ASTEROIDS)
    limit = 10 ** (-0.4 * (image.maglim - image.zeropoint.magzp))
    flux = limit * 10 ** rng.uniform(0, 2, ASTEROIDS)
    angle, cx, cy = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8) * nx, rng.uniform(0.2, 0.8) * ny
    half = 0.5 * np.hypot(nx, ny)
    ends = [cx - half * np.cos(angle), cy - half * np.sin(angle), cx + half * np.cos(angle), cy + half * np.sin(angle)]
    # A line's light of L per px has a peak of about L / (1.06 FWHM).
    light = image.background.sigma * 1.06 * image.seeing * 10 ** rng.uniform(-0.5, 1.5)
    return Moving(np.stack([x, y, flux], axis=1), np.array([*ends, light]))


def paint_moving(image: ScienceImage, moving: Moving, seed: int) -> None:
    """Add them with their photon noise, in place; an asteroid of 0.5 arcsec/min trails by a quarter of a pixel."""
    rng = np.random.default_rng(2000 + seed)
    light = np.zeros(image.data.shape, np.float32)
    ny, nx = light.shape
    for x, y, flux in moving.asteroids:
        iy, ix = round(y), round(x)
        stamp = image.psf.stamps(np.array([x]), np.array([y]), SIZE)[0]
        light[iy - 12 : iy + 13, ix - 12 : ix + 13] += np.float32(flux) * stamp
    x1, y1, x2, y2, strength = moving.trail
    n = int(np.hypot(x2 - x1, y2 - y1) * 2)
    t = (np.arange(n) + 0.5) / n
    xs, ys = x1 + t * (x2 - x1), y1 + t * (y2 - y1)
    inside = (xs > 13) & (xs < nx - 14) & (ys > 13) & (ys < ny - 14)
    for start in range(0, int(inside.sum()), 512):
        px, py = xs[inside][start : start + 512], ys[inside][start : start + 512]
        stamps = image.psf.stamps(px, py, SIZE) * np.float32(0.5 * strength)
        for stamp, iy, ix in zip(stamps, np.rint(py).astype(int), np.rint(px).astype(int), strict=True):
            light[iy - 12 : iy + 13, ix - 12 : ix + 13] += stamp
    lit = light > 0
    noisy = rng.poisson(np.maximum(light[lit], 0).astype(float) * image.gain) / image.gain
    image.data[lit] += noisy.astype(np.float32)


class Sky:
    """Where the true sources of the field are, and the halos and ghosts of its brightest stars."""

    def __init__(self, folder: Path, images: Sequence[ScienceImage]) -> None:
        rows = read_truth(folder, "sources", rcid=RCID, role="ref", columns=["truth_id", "ra", "dec", "mag"])
        _, first = np.unique(rows["truth_id"], return_index=True)
        self.ra, self.dec, self.mag = (np.asarray(rows[name][first], float) for name in ("ra", "dec", "mag"))
        lit = int(Mask.HALO | Mask.GHOST)
        # Their edges are soft: 64 px more.
        self._lit = [
            (image.astrometry.wcs, ndimage.binary_dilation((image.mask[::8, ::8] & np.uint16(lit)) != 0, iterations=8))
            for image in images
        ]

    def clear(self, wcs: object, x: F64, y: F64) -> NDArray[np.bool_]:
        """Which places are far enough from every source: bright ones reach further."""
        sx, sy = world_to_pixel(wcs, self.ra, self.dec)  # type: ignore[arg-type]
        ok = np.isfinite(sx) & np.isfinite(sy)
        out = np.ones(len(x), bool)
        for brighter, reach in ((99.0, CLEAR), (18.0, 18.0), (16.0, 40.0), (14.0, 120.0), (12.0, 250.0)):
            some = ok & (self.mag < brighter)
            if some.any():
                out &= cKDTree(np.stack([sx[some], sy[some]], axis=1)).query(np.stack([x, y], axis=1))[0] > reach
        ra, dec = wcs.all_pix2world(x, y, 0)  # type: ignore[attr-defined]
        for own, lit in self._lit:
            px, py = (np.nan_to_num(v, nan=-1.0) for v in world_to_pixel(own, ra, dec))
            ix, iy = np.rint(px / 8).astype(int), np.rint(py / 8).astype(int)
            inside = (ix >= 0) & (iy >= 0) & (ix < lit.shape[1]) & (iy < lit.shape[0])
            out[inside] &= ~lit[iy[inside], ix[inside]]
        return out


def psf_fluxes(data: NDArray[np.float32], unc: NDArray[np.float32], psf: PsfModel, x: F64, y: F64) -> tuple[F64, F64]:
    """PSF-weighted fluxes and their predicted errors at places; NaN where a pixel is missing."""
    half = SIZE // 2
    flux, error = np.full(len(x), np.nan), np.full(len(x), np.nan)
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    ny, nx = data.shape
    inside = np.flatnonzero((ix >= half) & (iy >= half) & (ix < nx - half) & (iy < ny - half))
    stamps = psf.stamps(x[inside], y[inside], SIZE).astype(float)
    for k, stamp in zip(inside.tolist(), stamps, strict=True):
        box = np.s_[iy[k] - half : iy[k] + half + 1, ix[k] - half : ix[k] + half + 1]
        power = (stamp**2).sum()
        flux[k] = (stamp * data[box]).sum() / power
        error[k] = np.sqrt((stamp**2 * unc[box].astype(float) ** 2).sum()) / power
    return flux, error


def spread(values: F64) -> float:
    """Robust standard deviation."""
    low, high = np.nanpercentile(values, [15.865, 84.135])
    return float(high - low) / 2


def empty_places(sky: Sky, wcs: object, shape: tuple[int, int], edge: int) -> tuple[F64, F64]:
    """The same empty places for every image of a shape."""
    rng = np.random.default_rng(5)
    x, y = rng.uniform(edge, shape[1] - edge, PLACES * 20), rng.uniform(edge, shape[0] - edge, PLACES * 20)
    clear = np.flatnonzero(sky.clear(wcs, x, y))[:PLACES]
    return x[clear], y[clear]


@dataclass(frozen=True)
class Measured:
    """What one reference shows; ``single`` the noise (reference DN) that one of its exposures has on average.

    ``seeing``: the sharpest and the worst of its exposures, px. Without what moves, nothing of it is judged.
    """

    n: int
    alike: bool
    seeing: tuple[float, float]
    noise: float
    single: float
    psf_pull: float
    boxes: dict[int, float]
    maglim: float
    places: int
    cpu: float
    asteroids: tuple[int, int, float]  # above 5 sigma, judged, worst
    trails: tuple[int, int, float]

    @property
    def gain(self) -> float:
        """Depth gained over the square root of N: 1 is what noise allows."""
        return self.single / self.noise / np.sqrt(self.n)


@dataclass(frozen=True)
class Single:
    """One exposure: scatter of PSF fluxes at its empty places, in reference DN, and seeing, px."""

    noise: float
    seeing: float


def single_of(image: ScienceImage, sky: Sky, zeropoint: float) -> Single:
    """What one exposure is worth."""
    x, y = empty_places(sky, image.astrometry.wcs, image.data.shape, 100)
    data = image.data - image.background.level
    unc = np.full(data.shape, np.float32(image.background.sigma))
    flux, _ = psf_fluxes(data, unc, image.psf, x, y)
    return Single(spread(flux) * 10 ** (0.4 * (zeropoint - image.zeropoint.magzp)), image.seeing)


def box_pulls(reference: Reference, sky: Sky) -> dict[int, float]:
    """Scatter of sums over empty squares, over their predicted errors."""
    ny, nx = reference.data.shape
    yy, xx = np.mgrid[0:ny:2, 0:nx:2]
    clear = sky.clear(reference.wcs, xx.ravel().astype(float), yy.ravel().astype(float)).reshape(xx.shape)
    clear = np.repeat(np.repeat(clear, 2, 0), 2, 1)[:ny, :nx]
    clear &= np.isfinite(reference.data) & (reference.coverage >= 0.7 * reference.n_frames)
    out = {}
    for box in BOXES:
        cut = np.s_[: ny // box * box, : nx // box * box]

        def summed(image: NDArray[np.floating], cut: tuple[slice, slice] = cut, box: int = box) -> F64:
            part = np.where(clear, image, 0)[cut]
            return np.asarray(part.reshape(ny // box, box, nx // box, box).sum(axis=(1, 3), dtype=float))

        enough = summed(np.ones(clear.shape, np.float32)) > 0.95 * box * box
        if enough.sum() > 50:
            out[box] = spread((summed(reference.data) / np.sqrt(np.maximum(summed(reference.unc**2), 1e-9)))[enough])
    return out


def left_over(
    dirty: Reference, clean: Reference, images: Painted
) -> tuple[tuple[int, int, float], tuple[int, int, float]]:
    """Asteroids and pieces of trails above 5 sigma, how many were judged, and the worst."""
    asteroid, trail = [], []
    left = dirty.data - clean.data
    for k in range(len(images)):
        image = images[k]
        moving = moving_of(image, k)
        x, y = _there(image, dirty, moving.asteroids[:, 0], moving.asteroids[:, 1])
        flux, error = psf_fluxes(left, dirty.unc, dirty.psf, x, y)
        asteroid.append(flux / error)
        trail.append(_pieces(image, dirty, left, moving.trail))
    return _count(np.concatenate(asteroid)), _count(np.concatenate(trail))


def _there(image: ScienceImage, reference: Reference, x: F64, y: F64) -> tuple[F64, F64]:
    return world_to_pixel(reference.wcs, *image.astrometry.wcs.all_pix2world(x, y, 0))


def _count(pulls: F64) -> tuple[int, int, float]:
    known = pulls[np.isfinite(pulls)]
    return int((known > 5).sum()), len(known), float(known.max()) if len(known) else float("nan")


def _pieces(image: ScienceImage, reference: Reference, left: NDArray[np.float32], trail: F64) -> F64:
    """Light of a trail's pieces, 5 px wide, over its error."""
    x1, y1, x2, y2, _ = trail
    length = np.hypot(x2 - x1, y2 - y1)
    t = np.arange(0, length) / length
    px, py = x1 + t * (x2 - x1), y1 + t * (y2 - y1)
    ny, nx = image.data.shape
    inside = (px > 20) & (px < nx - 21) & (py > 20) & (py < ny - 21)
    if inside.sum() < 2 * PIECE:
        return np.zeros(0)
    x, y = _there(image, reference, px[inside], py[inside])
    ux, uy = np.gradient(x), np.gradient(y)
    across = np.arange(-2, 3) / np.hypot(ux, uy)[:, None]
    gx = np.rint(x[:, None] - uy[:, None] * across).astype(int)
    gy = np.rint(y[:, None] + ux[:, None] * across).astype(int)
    pieces = len(gx) // int(PIECE)
    cut = np.s_[: pieces * int(PIECE)]
    light = left[gy[cut], gx[cut]].reshape(pieces, -1).astype(float)
    variance = reference.unc[gy[cut], gx[cut]].reshape(pieces, -1).astype(float) ** 2
    return np.asarray(np.nansum(light, axis=1) / np.sqrt(np.nansum(variance, axis=1)))


def measure(
    store: ProductStore, names: Sequence[str], sky: Sky, singles: dict[str, Single], alike: bool = False
) -> Measured:
    """Build one reference, and unless ``alike`` a second one with what moves, and judge both."""
    config = ReferenceConfig()
    start = time.process_time()
    reference = build_reference(Painted(store, names, moving=False), config)
    cpu = time.process_time() - start
    x, y = empty_places(sky, reference.wcs, reference.data.shape, 180)
    flux, error = psf_fluxes(reference.data, reference.unc, reference.psf, x, y)
    noise = spread(flux)
    inverse = np.mean([singles[name].noise ** -2 for name in names])
    asteroids = trails = (0, 0, float("nan"))
    if not alike:
        dirty_images = Painted(store, names, moving=True)
        dirty = build_reference(
            dirty_images, config, (reference.wcs, (reference.data.shape[0], reference.data.shape[1]))
        )
        asteroids, trails = left_over(dirty, reference, dirty_images)
    seeing = [singles[name].seeing for name in names]
    return Measured(
        len(names), alike, (min(seeing), max(seeing)), noise, float(inverse**-0.5), spread(flux / error),
        box_pulls(reference, sky), float(reference.magzp - 2.5 * np.log10(5 * noise)), len(x), cpu, asteroids, trails,
    )  # fmt: skip


def halves(store: ProductStore, names: Sequence[str], sky: Sky) -> tuple[float, dict[int, float]]:
    """Errors from noise alone: scatter of fluxes and sums in the difference of two references of half the exposures
    each, over prediction. What the sky or the camera really has at a place is in both."""
    one = build_reference(Painted(store, names[::2], moving=False))
    grid = one.wcs, one.data.shape
    other = build_reference(Painted(store, names[1::2], moving=False), None, (grid[0], (grid[1][0], grid[1][1])))
    x, y = empty_places(sky, one.wcs, one.data.shape, 180)
    pairs = [psf_fluxes(r.data, r.unc, one.psf, x, y) for r in (one, other)]
    pull = spread((pairs[0][0] - pairs[1][0]) / np.hypot(pairs[0][1], pairs[1][1]))
    between = replace(one, data=one.data - other.data, unc=np.hypot(one.unc, other.unc))
    return pull, box_pulls(between, sky)


def subsets(names: Sequence[str], counts: Sequence[int]) -> Iterator[list[str]]:
    """Exposures spread evenly over all of them, so that every subset has the same mix of nights."""
    for n in counts:
        if n <= len(names):
            yield [names[i] for i in np.linspace(0, len(names) - 1, n).round().astype(int).tolist()]


def most_alike(names: Sequence[str], singles: dict[str, Single], n: int) -> list[str]:
    """The n exposures whose seeing differs least."""
    ordered = sorted(names, key=lambda name: singles[name].seeing)
    seeing = np.array([singles[name].seeing for name in ordered])
    first = int(np.argmin(seeing[n - 1 :] / seeing[: len(seeing) - n + 1]))
    return sorted(ordered[first : first + n])


def rows_of(measured: Sequence[Measured], noise: tuple[float, dict[int, float]], peak: float) -> list[Row]:
    """The table."""
    rows = []
    for m in measured:
        name = f"reference of {m.n}" + (" alike" if m.alike else "")
        rows += [
            Row(f"{name}: depth over sqrt(N)", "0.90 to 1.10", f"{m.gain:.3f}", 0.9 <= m.gain <= 1.1,
                f"5 sigma at {m.maglim:.2f} mag; PSF fluxes at {m.places} empty places; seeing {m.seeing[0]:.2f} to "
                f"{m.seeing[1]:.2f} px"),
            Row(f"{name}: scatter of PSF fluxes over prediction", "0.95 to 1.10", f"{m.psf_pull:.3f}",
                0.95 <= m.psf_pull <= 1.1, "sums over squares of "
                + ", ".join(f"{b} px {v:.2f}" for b, v in m.boxes.items())),
            Row(f"{name}: time", "-", f"{m.cpu:.1f} core-s", None, f"{m.cpu / m.n:.2f} an exposure, reading included"),
        ]  # fmt: skip
        if not m.alike:
            rows += [
                Row(f"{name}: asteroids above 5 sigma", "0", str(m.asteroids[0]), m.asteroids[0] == 0,
                    f"of {m.asteroids[1]}, worst {m.asteroids[2]:.1f} sigma"),
                Row(f"{name}: pieces of trails above 5 sigma", "0", str(m.trails[0]), m.trails[0] == 0,
                    f"of {m.trails[1]} of {PIECE:.0f} px, worst {m.trails[2]:.1f} sigma"),
            ]  # fmt: skip
    pull, boxes = noise
    rows.append(
        Row(
            "two halves' difference over prediction", "0.95 to 1.05", f"{pull:.3f}", 0.95 <= pull <= 1.05,
            "PSF fluxes; sums over squares of " + ", ".join(f"{b} px {v:.2f}" for b, v in boxes.items()),
        )
    )  # fmt: skip
    return [*rows, Row("peak memory", "-", f"{peak:.2f} GB", None, f"up to N = {max(m.n for m in measured)}")]


def plot(measured: Sequence[Measured], noise: dict[int, float], path: Path) -> None:
    """Depth against N, and the errors at all scales."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    n = np.array([m.n for m in measured], float)
    left.loglog(n, [m.single / m.noise for m in measured], "o", label="measured")
    line = np.geomspace(1, n.max(), 20)
    left.loglog(line, np.sqrt(line), "-", lw=1, label="square root of N")
    left.set(xlabel="exposures", ylabel="noise of one exposure over noise of the reference")
    left.legend()
    for m in measured:
        what = f"N = {m.n}" + (" alike" if m.alike else "")
        right.semilogx(list(m.boxes), list(m.boxes.values()), "o-", ms=4, base=2, label=what)
    right.semilogx(list(noise), list(noise.values()), "ks--", ms=4, base=2, label="difference of two halves")
    right.axhline(1, color="k", lw=0.5)
    right.set(xlabel="side of the square [px]", ylabel="scatter of sums over predicted error")
    right.legend()
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> int:
    """Measure, print the table, draw the plot; 1 if a row misses what was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--field", default="normal")
    parser.add_argument("--counts", default="5,10,20,40")
    parser.add_argument("--exposures", type=int, default=40, help="reference exposures of the field")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = args.out / args.field

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    if not (folder / "store").is_dir():
        plan = plan_of(args.field, references=args.exposures)
        simulate(folder, plan, say, args.workers)
        for night, flats in flats_of_nights(plan).items():
            simulate(folder / "nights" / night, flats, say, args.workers)
        raise SystemExit(
            f"make {folder}/store first: catalog import; calibration build of {folder}/raw/cal, then of "
            f"{folder}/nights/*/raw/cal, each of its own"
        )
    names = science_names(folder, args.workers)
    store = ProductStore(str(folder / "references"))
    sky = Sky(folder, [read_science_product(store, name) for name in names[:: max(1, len(names) // 3)]])
    zeropoint = ReferenceConfig().zero_points[2]
    singles = {name: single_of(read_science_product(store, name), sky, zeropoint) for name in names}
    measured, counts = [], [int(n) for n in args.counts.split(",")]
    for some in subsets(names, counts):
        measured.append(measure(store, some, sky, singles))
        say(json.dumps(asdict(measured[-1])))
    if len(names) // 2 >= 2:
        measured.append(measure(store, most_alike(names, singles, len(names) // 2), sky, singles, alike=True))
        say(json.dumps(asdict(measured[-1])))
    (most,) = subsets(names, [min(max(counts), len(names))])
    noise = halves(store, most, sky)
    rows = rows_of(measured, noise, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
    if args.plot:
        plot(measured, noise[1], args.plot)
    if args.json:
        for row in rows:
            print(json.dumps(asdict(row)))
    else:
        print("| figure | asked | measured | |\n|---|---|---|---|")
        for row in rows:
            missed = " (missed)" if row.ok is False else ""
            print(f"| {row.name} | {row.target} | {row.value}{missed} | {row.detail} |")
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
