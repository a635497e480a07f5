"""Every figure of the candidates' table against the simulator's truth, on full-size quadrants, by one command.

    python -m ops.bench.candidates [--nights DIR] [--fields normal,dense,sparse] [--exposures N] [--out DIR] [--json]

``--nights`` holds the fields of ``ops.bench.fields`` with their stores; a field without frames or a reference is left
out and named. Sources are injected into the calibrated science image with the simulator's own PSF, hundreds a
frame, and go through the stream's ``subtract`` and ``extract``. Exit status 1 where a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Sheet
from scipy import fft
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from ops.bench.fields import QID
from ops.bench.rows import Row
from stream.archive import ProductStore, StoreInputs
from stream.core.camera import FULL
from stream.core.records import Candidate, Difference, Reference, ScienceImage, Table
from stream.engine.config import Settings
from stream.extract import ExtractSettings, depth_map, extract
from stream.fakes import FakeSettings, empty_fakes, inject, judge, run_fakes
from stream.fakes.recover import true_errors
from stream.ingest import read_packet, read_quadrant
from stream.pipeline import ScienceSettings, footprint_cone, process_quadrant
from stream.simulate.optics import PsfField
from stream.subtract import subtract

F64 = NDArray[np.float64]
HOW = ExtractSettings(profile=ScienceSettings().profile)
SNR = np.concatenate([np.arange(3.0, 8.01, 0.5), [9.0, 10.0, 12.0, 15.0, 20.0, 40.0]])
STEP = 64  # px between injected points
CLEAR = 10.0  # px: no source of the sky this near to an isolated point
MATCH = 3.0  # px between a candidate and what changed
REPEATS = 3
SHARE = float(Settings.model_fields["fakes_share"].default)  # of the quadrants have fakes


@dataclass
class Counts:
    """What one field gave, summed over its exposures."""

    points: list[Table] = field(default_factory=list)  # judged fakes with theoretical S/N in `snr`
    nuclei: list[Table] = field(default_factory=list)
    bogus: list[int] = field(default_factory=list)  # sent, S/N >= 5, a quadrant
    dipoles: list[int] = field(default_factory=list)
    real: list[int] = field(default_factory=list)
    faint: list[int] = field(default_factory=list)  # not sent, between threshold and S/N 5: noise of the deeper search
    snr: list[tuple[float, bool]] = field(default_factory=list)  # of every sent candidate, and whether it is real
    truth: list[tuple[float, float, float]] = field(default_factory=list)  # simulated transients: true, fit, error
    seconds: list[float] = field(default_factory=list)
    fakes: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    stars: int = 0


class Night:
    """The frames, truth and store of one field."""

    def __init__(self, folder: Path) -> None:
        self.inputs = StoreInputs(ProductStore(str(folder / "store")))
        self.packets = sorted((folder / "raw" / "sci").glob("*.fz"))
        sources = pq.read_table(folder / "truth" / "sources.parquet")
        self.sources = sources.filter(pc.equal(sources["role"], "sci"))
        self.quadrants = pq.read_table(folder / "truth" / "quadrants.parquet")

    def science(self, path: Path) -> tuple[ScienceImage | None, float]:
        """The science image of a packet's quadrant, and the CPU seconds of everything before the subtraction."""
        payloads = read_packet(path, FULL).quadrants
        raw = next(q for q in (read_quadrant(p.payload, FULL) for p in payloads) if q.quadrant.qid == QID)
        result = process_quadrant(raw, self.inputs, ScienceSettings(subtract=False))
        return result.science, sum(result.report.seconds.values())

    def truth(self, science: ScienceImage) -> Table:
        """x, y, mag, kind, flux, x1, y1, x2, y2 of what is on the quadrant."""
        chosen = self._of(self.sources, science)
        names = ("x", "y", "mag", "flux", "x1", "y1", "x2", "y2")
        columns = [chosen[name].to_numpy(zero_copy_only=False).astype(float) for name in names]
        kinds = np.array(chosen["kind"].to_pylist(), "U12")
        return np.rec.fromarrays([*columns, kinds], names=[*names, "kind"])

    def psf(self, science: ScienceImage) -> PsfField:
        """The simulator's PSF of an exposure."""
        row = self._of(self.quadrants, science).to_pylist()[0]
        return PsfField(science.data.shape, **{k: tuple(v) for k, v in json.loads(row["psf"]).items()})

    def _of(self, table: Any, science: ScienceImage) -> Any:
        q = science.quadrant
        return table.filter(pc.and_(pc.equal(table["exposure"], q.exposure.name), pc.equal(table["rcid"], q.rcid)))


def theoretical_error(science: ScienceImage, reference: Reference, difference: Difference, psf: PsfField) -> F64:
    """1-sigma flux error (DN) of an isolated point on a 5 x 5 grid of the quadrant, from both images' noise and PSFs.

    Zackay, Ofek & Gal-Yam 2016, eq. 15: 1 / sigma^2 is the mean of |Pn|^2 |Pr|^2 / (sn^2 |Pr|^2 + sr^2 |Pn|^2) over
    frequencies. The science PSF is the simulator's, its noise per pixel that of photons and read-out: the r.m.s. that
    the background measures has the faint stars in, which a subtraction takes out (a fifth more in a crowd).
    """
    n, size = 64, 49
    ny, nx = science.data.shape
    scale, typical = difference.flux_scale, float(np.nanmedian(reference.unc[::8, ::8]))
    out = np.zeros((5, 5))
    for j, y in enumerate(np.linspace(0.1, 0.9, 5) * ny):
        for i, x in enumerate(np.linspace(0.1, 0.9, 5) * nx):
            mine = psf.stamps(np.array([np.rint(x)]), np.array([np.rint(y)]), size)[0]
            theirs = reference.psf.stamp(min(x, reference.psf.shape[1] - 1), min(y, reference.psf.shape[0] - 1), size)
            pn, pr = (np.abs(fft.rfft2(p.astype(float), (n, n))) ** 2 for p in (mine, theirs))
            photons = float(science.background.level[int(y), int(x)]) / science.gain
            sn = float(np.hypot(np.sqrt(photons), science.readnoise / science.gain))
            weight = np.full(pn.shape, 2.0)
            weight[:, [0, -1]] = 1.0  # the half plane's own columns count once
            terms = pn * pr / (sn**2 * pr + (scale * typical) ** 2 * pn + 1e-30)
            out[j, i] = 1 / np.sqrt(np.sum(weight * terms) / n**2)
    return out


def at_grid(values: F64, shape: tuple[int, ...], x: F64, y: F64) -> F64:
    """The nearest of a 5 x 5 grid's values."""
    column, row = (np.clip((v / n * 5).astype(int), 0, 4) for v, n in ((x, shape[1]), (y, shape[0])))
    return values[row, column]


def isolated_points(science: ScienceImage, sky: Table, errors: F64, rng: np.random.Generator) -> Table:
    """Fakes on a jittered grid away from everything, at the S/N of ``SNR``."""
    ny, nx = science.data.shape
    gx, gy = (v.ravel() for v in np.meshgrid(np.arange(STEP, nx - STEP, STEP), np.arange(STEP, ny - STEP, STEP)))
    x, y = gx + rng.uniform(-16, 16, len(gx)), gy + rng.uniform(-16, 16, len(gy))
    bright = sky[sky["mag"] < 22.0]
    clear = cKDTree(np.stack([bright["x"], bright["y"]], 1)).query(np.stack([x, y], 1))[0] > CLEAR
    x, y = x[clear], y[clear]
    table = empty_fakes(len(x))
    table["kind"], table["x"], table["y"] = "point", x, y
    table["snr"] = SNR[np.arange(len(x)) % len(SNR)] * 10 ** rng.uniform(-0.01, 0.01, len(x))
    table["flux"] = table["snr"] * at_grid(errors, science.data.shape, x, y)
    table["limit"] = table["snr"]  # kept: `judge` puts the difference's own into `snr`
    return table


def nuclear_points(science: ScienceImage, sky: Table, difference: Difference) -> Table:
    """A fake at S/N 6 on the centre of every galaxy brighter than 18."""
    ny, nx = science.data.shape
    inside = (sky["x"] > 30) & (sky["x"] < nx - 30) & (sky["y"] > 30) & (sky["y"] < ny - 30)
    hosts = sky[(sky["kind"] == "galaxy") & (sky["mag"] < 18.0) & inside]
    table = empty_fakes(len(hosts))
    table["kind"], table["x"], table["y"], table["host_mag"] = "nucleus", hosts["x"], hosts["y"], hosts["mag"]
    table["flux"] = 6.0 * true_errors(difference, table["x"], table["y"])
    table["limit"] = 6.0
    return table[np.isfinite(table["flux"])]


def measure(night: Night, path: Path, counts: Counts) -> None:
    """One exposure: clean and with fakes."""
    science, before = night.science(path)
    if science is None:
        return
    reference = night.inputs.reference(science.quadrant)
    if reference is None:
        return
    sky, rng = night.truth(science), np.random.default_rng(science.quadrant.pid)
    started = time.process_time()
    difference = subtract(science, reference)
    subtracted = time.process_time() - started
    candidates, seconds = timed(lambda: extract(science, reference, difference, HOW))
    depth, more = timed(lambda: depth_map(science, difference))
    counts.seconds.append(seconds + more)
    counts.whole.append(before + subtracted + seconds + more)
    ps1 = night.inputs.ps1(*footprint_cone(science.astrometry, science.data.shape))
    counts.fakes.append(timed(lambda: run_fakes(science, reference, depth, ps1, HOW, FakeSettings()), 2)[1])
    count_bogus(candidates, sky, counts)
    counts.stars = max(counts.stars, int(np.sum(sky["mag"] < 20.6)))
    psf = night.psf(science)
    errors = theoretical_error(science, reference, difference, psf)
    nuclei = nuclear_points(science, sky, difference)
    fakes = np.concatenate([isolated_points(science, sky, errors, rng), nuclei])
    faked = inject(science, fakes, science.quadrant.pid, psf)
    difference = subtract(faked, reference)
    judged = judge(fakes, faked, difference, extract(faked, reference, difference, HOW), [])
    judged["snr"] = fakes["limit"]
    counts.points.append(judged[judged["kind"] == "point"])
    counts.nuclei.append(judged[judged["kind"] == "nucleus"])


def timed(work: Any, repeats: int = REPEATS) -> tuple[Any, float]:
    """What a function gives, and the least CPU seconds it took."""
    best = np.inf
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        best = min(best, time.process_time() - started)
    return result, best


def count_bogus(candidates: Sequence[Candidate], sky: Table, counts: Counts) -> None:
    """Sort the candidates of a clean quadrant into what changed and what did not."""
    changed = sky[np.isin(sky["kind"], ("transient", "variable", "asteroid", "comet", "streak"))]
    still = sky[np.isin(sky["kind"], ("star", "galaxy")) & (sky["mag"] < 20.5)]
    real_tree, still_tree = (cKDTree(np.stack([t["x"], t["y"]], 1)) for t in (changed, still))
    bogus = dipoles = real = faint = 0
    for c in candidates:
        flux, error = c.extra["flux"], c.extra["fluxerr"]
        if flux is None or error is None:
            continue
        place, snr = (c.fields["xpos"] - 1, c.fields["ypos"] - 1), abs(flux) / error
        distance, index = real_tree.query(place)
        true = distance < MATCH or on_streak(changed, place)
        if c.rejected is not None:
            faint += c.rejected == "low_snr" and snr >= HOW.threshold and not true
            continue
        counts.snr.append((snr, true))
        real += true
        if not true:
            bogus += 1
            dipoles += still_tree.query(place)[0] < 4.0 and (c.extra["dipole"] or 0.0) > 0.3
        elif changed["kind"][index] == "transient" and snr > 10 and flux > 0:
            counts.truth.append((float(changed["flux"][index]), flux, error))
    for total, value in ((counts.bogus, bogus), (counts.dipoles, dipoles), (counts.real, real), (counts.faint, faint)):
        total.append(int(value))


def on_streak(changed: Table, place: tuple[float, float]) -> bool:
    """Whether a place lies along a simulated streak."""
    for s in changed[changed["kind"] == "streak"]:
        dx, dy = s["x2"] - s["x1"], s["y2"] - s["y1"]
        length = max(float(np.hypot(dx, dy)), 1e-6)
        along = np.clip(((place[0] - s["x1"]) * dx + (place[1] - s["y1"]) * dy) / length**2, 0, 1)
        if np.hypot(place[0] - s["x1"] - along * dx, place[1] - s["y1"] - along * dy) < 6.0:
            return True
    return False


def fair(tables: list[Table]) -> Table:
    """Fakes outside masked pixels."""
    whole = np.concatenate(tables) if tables else empty_fakes(0)
    bad = whole["masked"] | np.isin(whole["rejected"], ("bad_pixels", "unusable", "edge"))
    return whole[~bad]


def share_at(table: Table, low: float, high: float, name: str) -> float:
    """Share found (``detected``) or sent of the fakes between two S/N."""
    chosen = table[(table["snr"] >= low) & (table["snr"] < high)]
    return float(chosen[name].mean()) if len(chosen) else float("nan")


def half_at(table: Table) -> float:
    """S/N at which half of the points are sent: where the curve of shares crosses a half."""
    centres = SNR[(SNR > 3.4) & (SNR < 7.6)]
    shares = np.array([share_at(table, s * 0.97, s * 1.03, "sent") for s in centres])
    above = int(np.argmax(shares >= 0.5))
    low, high = shares[above - 1], shares[above]
    return float(centres[above - 1] + (0.5 - low) / (high - low) * (centres[above] - centres[above - 1]))


def robust(pulls: F64) -> float:
    """Standard deviation from the median absolute deviation."""
    return 1.4826 * float(np.median(np.abs(pulls - np.median(pulls))))


def rows_of(name: str, counts: Counts) -> list[Row]:
    """The table of one field."""
    points, nuclei = fair(counts.points), fair(counts.nuclei)
    half = half_at(points)
    offset = 2.5 * np.log10(half / 5.0)
    six = share_at(points, 5.8, 6.2, "detected")
    nuclear = float(nuclei["detected"].mean()) if len(nuclei) else float("nan")
    sure = points[points["detected"] & (points["snr"] > 9.5) & np.isfinite(points["fit_flux"])]
    bias = float(np.median(sure["fit_flux"] / sure["flux"]) - 1)
    pull = robust((sure["fit_flux"] - sure["flux"]) / sure["fit_err"])
    of_all = SHARE * float(np.median(counts.fakes) / np.median(counts.whole))
    found = bool(abs(offset) <= 0.05), bool(six >= 0.95), bool(nuclear >= 0.85)
    out = [
        Row("half of isolated points sent", "within 0.05 mag of theory", f"{offset:+.3f} mag", found[0],
            f"S/N {half:.2f}, {len(points)} points"),
        Row("found at true S/N 6", ">= 95 %", f"{100 * six:.1f} %", found[1],
            f"sent: {100 * share_at(points, 5.8, 6.2, 'sent'):.1f} %"),
        Row("found at S/N 6 on nuclei of galaxies < 18", ">= 85 %", f"{100 * nuclear:.1f} %", found[2],
            f"{len(nuclei)} nuclei"),
        Row("sent that are no change, a quadrant", "< 30", f"{np.mean(counts.bogus):.1f}",
            bool(np.mean(counts.bogus) < 30), f"by exposure {', '.join(map(str, counts.bogus))}; "
            f"real {np.mean(counts.real):.0f}; {counts.stars} stars < 20.6; "
            f"noise below S/N 5 kept back {np.mean(counts.faint):.0f}"),
        Row("of them dipoles at stars", "< 5", f"{np.mean(counts.dipoles):.1f}", bool(np.mean(counts.dipoles) < 5), ""),
        Row("flux bias of injected points", "< 1 %", f"{100 * bias:+.2f} %", bool(abs(bias) < 0.01),
            f"{len(sure)} of S/N > 9.5, the simulator's PSF"),
        Row("pulls of injected points", "0.95 to 1.10", f"{pull:.3f}", bool(0.95 <= pull <= 1.10), ""),
        Row("candidates, metrics, stamps, depth", "0.20 core-s", f"{min(counts.seconds):.3f}",
            bool(min(counts.seconds) <= 0.20), f"median {np.median(counts.seconds):.3f}"),
        Row("always-on fakes", "< 10 % of a quadrant", f"{100 * of_all:.1f} %", of_all < 0.1,
            f"{np.median(counts.fakes):.3f} core-s in {100 * SHARE:.0f} % of the quadrants"),
    ]  # fmt: skip
    if len(counts.truth) > 10:
        true, fit, error = np.array(counts.truth).T
        own = (fit - true) / error
        out.append(
            Row("simulated transients, raw to flux", "", f"{100 * np.median(fit / true - 1):+.2f} %", None,
                f"{len(true)} of S/N > 10; pulls {robust(own):.2f}; flat field, cloud and zero point are in it")
        )  # fmt: skip
    return [Row(f"{name}: {r.name}", r.target, r.value, r.ok, r.detail) for r in out]


def plot(fields: dict[str, Counts], folder: Path) -> None:
    """Completeness over S/N, purity over S/N, false candidates over the number of stars."""
    from matplotlib.figure import Figure
    from scipy.stats import norm

    figure = Figure((12, 3.8), layout="constrained")
    curve, purity, density = figure.subplots(1, 3)
    x = np.linspace(3, 10, 200)
    curve.plot(x, norm.cdf(x - 5.0), "k:", label="sent, by noise alone (5)")
    curve.plot(x, norm.cdf(x - HOW.threshold), "k--", label=f"found, by noise alone ({HOW.threshold:g})")
    for name, counts in fields.items():
        points = fair(counts.points)
        at = SNR[SNR <= 10]
        for column, style in (("sent", "o-"), ("detected", "s-")):
            shares = [share_at(points, s * 0.97, s * 1.03, column) for s in at]
            curve.plot(at, shares, style, ms=3, label=f"{name}, {'found' if column == 'detected' else 'sent'}")
        snr, real = np.array(counts.snr, float).T
        edges = np.array([5, 6, 8, 12, 20, 50, 1e4])
        share = [real[(snr >= a) & (snr < b)].mean() for a, b in pairwise(edges)]
        purity.semilogx(np.append(edges[:-2], 50), share, "o-", ms=3, label=name)
        density.errorbar(counts.stars, np.mean(counts.bogus), np.std(counts.bogus), fmt="o", label=name)
        density.plot(counts.stars, np.mean(counts.dipoles), "x", color="grey")
    curve.set(xlabel="true S/N", ylabel="completeness", title="isolated points")
    purity.set(xlabel="measured S/N, from", ylabel="real among sent", ylim=(0, 1.02), title="before classifiers")
    density.set(xlabel="stars < 20.6 in the quadrant", xscale="log", ylabel="sent, no change", title="crosses: dipoles")
    for axes in (curve, purity, density):
        axes.legend(fontsize=7)
    figure.savefig(folder / "candidates.png", dpi=110)


def markdown(rows: list[Row], missing: list[str], exposures: int) -> str:
    """The page of the figures."""
    lines = [
        "# Candidates: measured", "",
        "Made by `python -m ops.bench.candidates`: full-size simulated quadrants with every effect on, references of",
        f"20 exposures, science seeing 1.5 to 3.5 px, {exposures} exposures a field at most; points injected with",
        "the simulator's own PSF.", "",
        "| figure | asked | measured | | how |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        mark = {True: "holds", False: "missed", None: ""}[row.ok]
        lines.append(f"| {row.name} | {row.target} | {row.value} | {mark} | {row.detail} |")
    lines += [
        "",
        *[f"Left out: {name}." for name in missing],
        "",
        "![completeness, purity, density](candidates.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nights", type=Path, default=Path("nights"), help="folder of the fields")
    parser.add_argument("--fields", default="normal,dense,sparse")
    parser.add_argument("--exposures", type=int, default=10, help="science exposures of each field")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where candidates.md and candidates.png go")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console, fields, missing = Console(stderr=True), {}, []
    with threadpool_limits(1):
        for name in options.fields.split(","):
            counts = Counts()
            if (options.nights / name / "truth" / "sources.parquet").exists():
                night = Night(options.nights / name)
                for path in night.packets[: options.exposures]:
                    console.print(f"{name}: {path.name}")
                    measure(night, path, counts)
            if counts.points:
                fields[name] = counts
            else:
                missing.append(f"{name} (no frames or no reference in {options.nights})")
    rows = [row for name, counts in fields.items() for row in rows_of(name, counts)]
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / "candidates.md"
    written = page.read_text("utf-8").partition("\n## ") if page.exists() else ("", "", "")
    page.write_text(markdown(rows, missing, options.exposures) + "".join(written[1:]), "utf-8")  # what people wrote
    plot(fields, options.out)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    sheet = Sheet("figure", "asked", "measured", "", "how")
    for row in rows:
        sheet.add_row(row.name, row.target, row.value, {True: "ok", False: "MISSED", None: ""}[row.ok], row.detail)
    console.print(sheet)
    return 1 if not rows or any(row.ok is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
