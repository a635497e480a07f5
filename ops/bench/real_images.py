"""The survey's own pixels and sources: eight cut-outs against their headers, and its reference catalogue painted.

Nothing here is truth: a cut-out is compared with what the survey's pipeline wrote into its header, the astrometry from
scratch with a catalogue made of the sources of the images that overlap it (at the places that their headers give).
The reference catalogue's 18,833 sources are painted at their places by the simulator and found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from rich.console import Console
from scipy.spatial import cKDTree

from ops.bench.measured import Frame, Unit, measure, spread
from ops.bench.measured_rows import MAG_BINS, found_figures, samples
from stream.astrometry import sky_of, solve
from stream.astrometry.solver import LOG_CHANCE_LIMIT, MIN_PAIRS
from stream.core.camera import FULL, nominal_wcs
from stream.core.errors import Permanent
from stream.core.records import BRIGHT_DTYPE, GAIA_DTYPE, PS1_DTYPE, Astrometry, ScienceImage, Table
from stream.ingest import read_science
from stream.offline import Job
from stream.offline_calibration import build_calibrations
from stream.photometry import detect, estimate_background
from stream.pipeline import science_from_calibrated
from stream.simulate import NightPlan, simulate_night
from stream.sky import import_catalog

F64 = NDArray[np.float64]
LIST = ("catalogs/ztf_000202_zg_c10_q1_refpsfcat.fits", 202, 10, 1, 1)  # file, field, CCD, quadrant, filter
SAME = 1.5 / 3600  # deg
YEAR = 365.25
CUT_OUT_NOTE = f"""
Astrometry is from scratch: telescope's pointing, nominal layout, and as catalogue the sources of the overlapping
cut-out, which is another filter's where the field has no other. A match needs {MIN_PAIRS} pairs and a chance below
1e{LOG_CHANCE_LIMIT:.0f} over all offsets within 5 arcmin; where fewer stars are in common, refusing is right. Cut-outs
with fewer than ten PSF stars take the header's seeing and a Moffat's APCOR. Limits: ours is of the cut-out, five times
the noise of a PSF flux at its middle, with the noise that is measured; the second number has the noise that sky level,
gain and read noise predict (real noise is some 8 % more); the header's comes from the whole quadrant's catalogue.
"""


class NoCatalogs:
    """What the science asks of the outside, where there is nothing outside the image."""

    def gaia(self, ra: float, dec: float, radius: float) -> Table:
        """No star."""
        return np.zeros(0, GAIA_DTYPE)

    def ps1(self, ra: float, dec: float, radius: float) -> Table:
        """No star."""
        return np.zeros(0, PS1_DTYPE)

    def bright(self, ra: float, dec: float, radius: float) -> Table:
        """No star."""
        return np.zeros(0, BRIGHT_DTYPE)


@dataclass
class CutOut:
    """One real image, measured with its header's WCS and zero point."""

    name: str
    header: fits.Header
    science: ScienceImage
    detections: Table

    @property
    def mag(self) -> F64:
        """Magnitudes on the header's zero point, colour 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mag: F64 = self.header["MAGZP"] - 2.5 * np.log10(self.science.sources["flux"])
        return mag


def read_cut_outs(folder: Path) -> list[CutOut]:
    """All cut-outs, measured."""
    found = []
    for path in sorted(folder.glob("*_sciimg.fits")):
        came = read_science(path)
        science = science_from_calibrated(
            came.image,
            came.astrometry,
            came.zeropoint,
            NoCatalogs(),
            seeing=came.seeing,  # type: ignore[arg-type]
        )
        detections = detect(came.image.data, estimate_background(came.image.data, came.image.mask), came.image.mask)
        found.append(CutOut(path.name, fits.getheader(path), science, detections))
    return found


def _overlapping(image: CutOut, others: Sequence[CutOut]) -> tuple[Table, list[CutOut]]:
    """Sources of the other images that lie on this one, as a catalogue of stars at that epoch."""
    ny, nx = image.science.data.shape
    rows, partners = [], []
    for other in others:
        s = other.science.sources
        if other is image or not len(s):
            continue
        x, y = image.science.astrometry.wcs.all_world2pix(s["ra"], s["dec"], 0, quiet=True)
        on = (x > -60) & (x < nx + 60) & (y > -60) & (y < ny + 60) & np.isfinite(other.mag) & (s["snr"] > 5)
        if on.sum() < 5:
            continue
        part = np.zeros(int(on.sum()), GAIA_DTYPE)
        part["ra"], part["dec"], part["phot_g_mean_mag"] = s["ra"][on], s["dec"][on], other.mag[on]
        part["ra_error"] = part["dec_error"] = 50.0
        part["ref_epoch"] = 2000.0 + (other.science.quadrant.exposure.jd_mid - 2_451_545.0) / YEAR
        rows.append(part)
        partners.append(other)
    table = np.concatenate(rows) if rows else np.zeros(0, GAIA_DTYPE)
    table["source_id"] = np.arange(len(table))
    return table, partners


def solved(image: CutOut, catalogue: Table) -> Astrometry | str:
    """The cut-out's astrometry from scratch: telescope's pointing, layout, catalogue. A refusal says why."""
    h, q = image.header, image.science.quadrant
    guess = nominal_wcs(FULL, h["TELRAD"], h["TELDECD"], q.rcid)
    guess.wcs.crpix = [h["CRPIX1"], h["CRPIX2"]]
    guess.wcs.set()
    try:
        return solve(image.detections, catalogue, guess, q.exposure.jd_mid, image.science.data.shape)
    except Permanent as error:
        return str(error)


def _against_header(image: CutOut, found: Astrometry) -> tuple[float, float]:
    """Distance of the solution's places from the header's over the cut-out, arcsec: median and largest."""
    ny, nx = image.science.data.shape
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)))
    ra, dec = sky_of(found, x, y)
    ra0, dec0 = image.science.astrometry.wcs.all_pix2world(x, y, 0)
    off = np.hypot((ra - ra0) * np.cos(np.radians(dec0)), dec - dec0) * 3600
    return float(np.median(off)), float(off.max())


def _in_common(image: CutOut, catalogue: Table) -> int:
    """How many detections have a star of the catalogue within 1.5 arcsec, by the header's WCS."""
    if not len(catalogue) or not len(image.detections):
        return 0
    ra, dec = image.science.astrometry.wcs.all_pix2world(image.detections["x"], image.detections["y"], 0)
    cosine = np.cos(np.radians(np.mean(dec)))
    tree = cKDTree(np.column_stack([catalogue["ra"] * cosine, catalogue["dec"]]))
    return int((tree.query(np.column_stack([ra * cosine, dec]))[0] < SAME).sum())


def _limit_of_photons(science: ScienceImage) -> float:
    """The limit if the sky's noise were what its level, gain and read noise predict."""
    expected = np.sqrt(science.background.median / science.gain + (science.readnoise / science.gain) ** 2)
    return science.maglim + 2.5 * float(np.log10(science.background.sigma / expected))


def _same_filter(image: CutOut, partners: Sequence[CutOut]) -> str:
    """Median difference of magnitudes (both on their header's zero points) of the stars that two images share."""
    for other in partners:
        if other.header["FILTERID"] != image.header["FILTERID"]:
            continue
        a, b = image.science.sources, other.science.sources
        cosine = np.cos(np.radians(image.science.astrometry.wcs.wcs.crval[1]))
        tree = cKDTree(np.column_stack([b["ra"] * cosine, b["dec"]]))
        distance, nearest = tree.query(np.column_stack([a["ra"] * cosine, a["dec"]]), distance_upper_bound=SAME)
        i = np.flatnonzero(np.isfinite(distance))
        j = nearest[i]
        good = (a["snr"][i] > 10) & (b["snr"][j] > 10) & (np.abs(a["sharp"][i]) < 0.5) & (np.abs(b["sharp"][j]) < 0.5)
        difference = (image.mag[i] - other.mag[j])[good]
        if len(difference) >= 5:
            error = spread(difference) / np.sqrt(len(difference))
            return f"{np.median(difference):+.3f} +- {error:.3f} ({len(difference)} stars)"
    return "no partner in this filter"


def cut_out_table(folder: Path) -> str:
    """Markdown: a row a cut-out."""
    images = read_cut_outs(folder)
    head = [
        "image", "our astrometry", "against the header, median and largest", "header's r.m.s.",
        "seeing ours / header [px]", "APCOR4 ours / header", "mag difference, same filter",
        "limit: ours, ours if noise were photons' / header",
    ]  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for image in images:
        h, s = image.header, image.science
        catalogue, partners = _overlapping(image, images)
        found = solved(image, catalogue)
        if isinstance(found, str):
            pairs = f"{_in_common(image, catalogue)} of {len(catalogue)} stars are in both images by the header's WCS"
            astro, off = f"refused: {pairs}", "-"
        else:
            median, worst = _against_header(image, found)
            astro = f"{found.n_matched} of {len(catalogue)}, chance 1e{found.log_chance:.0f}"
            off = f'{median:.3f}", {worst:.3f}"'
        header_rms = 3600 * float(np.hypot(h["ASTRRMS1"], h["ASTRRMS2"]) / np.sqrt(2))
        rows.append(
            f"| {h['FIELDID']} {s.quadrant.exposure.filtercode} {image.name[4:18]} | {astro} | {off} "
            f'| {header_rms:.3f}" | {s.seeing:.2f} / {h["SEEING"]:.2f} '
            f"| {s.apcor[3]:+.3f} / {h['APCOR4']:+.3f} | {_same_filter(image, partners)} "
            f"| {s.maglim:.2f}, {_limit_of_photons(s):.2f} / {h['MAGLIM']:.2f} |"
        )
    return "\n".join(rows) + "\n"


def listed_frames(data: Path, folder: Path, console: Console) -> list[Frame]:
    """Exposures on which the real reference catalogue shines, measured."""
    file, field, ccd, qid, fid = LIST
    plan = NightPlan(
        seed=77, noise_seed=77, field=field, ccds=(ccd,), qids=(qid,), fid=fid, night="20201016", n_bias=5, n_flat=5,
        n_dark=0, n_reference=0, n_science=2, source_list=data / file,
    )  # fmt: skip
    if not (folder / "store" / "catalogs").is_dir():
        console.print("painting the real reference catalogue")
        simulate_night(folder, plan)
        build_calibrations(sorted((folder / "raw" / "cal").rglob("*.fits*")), Job(str(folder / "store"), FULL), 1)
        for kind in ("gaia", "ps1", "bright"):
            import_catalog(kind, [folder / f"{kind}.parquet"], str(folder / "store"))
    paths = sorted((folder / "raw" / "sci").rglob("*_o.fits*"))
    return [measure(Unit(folder, path, qid=qid)) for path in paths]


def listed_table(data: Path, folder: Path, console: Console) -> str:
    """Markdown: what is found again of the real catalogue, by magnitude."""
    frames = listed_frames(data, folder, console)
    with fits.open(data / LIST[0]) as hdus:
        n_listed = len(hdus["PSF_CATALOG"].data)
    failed = [f"{f.name}: {f.failure}" for f in frames if f.failure]
    parts = samples(frames, "ours")
    if not parts:
        return f"None of {len(frames)} exposures could be measured: {failed}\n"
    shares = found_figures(parts)["by_mag"]
    text = [f"{n_listed} sources of the catalogue, {len(parts)} exposures, seeing "
            f"{', '.join(f'{f.seeing:.2f}' for f in frames)} px, limit {', '.join(f'{f.maglim:.2f}' for f in frames)}"
            f"{'; failed: ' + '; '.join(failed) if failed else ''}.", "",
            "| magnitude | found | median error of place [mas] | magnitude minus listed, median and scatter [mmag] |",
            "|---|---|---|---|"]  # fmt: skip
    for k in range(0, len(MAG_BINS) - 1, 2):
        low, high = MAG_BINS[k], MAG_BINS[min(k + 2, len(MAG_BINS) - 1)]
        east, off = [], []
        for s in parts:
            mag = s.frame.truth["mag"][s.truth]
            use = (mag > low) & (mag <= high)
            east.append(np.abs(s.east[use]))
            off.append(-2.5 * np.log10(s.ratio[use]))
        places, offsets = np.concatenate(east), np.concatenate(off)
        if len(offsets) >= 10:
            found = np.nanmean(shares[k : k + 2])
            text.append(f"| {low:.1f} to {high:.1f} | {100 * found:.1f} % | {1000 * np.median(places):.0f} "
                        f"| {1000 * np.median(offsets):+.1f}, {1000 * spread(offsets):.1f} |")  # fmt: skip
    return "\n".join(text) + "\n"


def report(data: Path, folder: Path, console: Console) -> str:
    """Both tables as a part of the page; empty where the real data are not there."""
    if not (data / "images").is_dir():
        console.print(f"no real data in {data}")
        return ""
    return (
        "\n## Real cut-outs\n\n" + cut_out_table(data / "images") + CUT_OUT_NOTE
        + "\n## The real reference catalogue, painted and found\n\n" + listed_table(data, folder, console)
    )  # fmt: skip
