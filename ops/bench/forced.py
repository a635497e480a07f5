"""Processor time of forced photometry at the real camera's size: enriching a quadrant's batch, new objects and known.

    python ops/bench/forced.py [--epochs 20] [--objects 30] [--json]

Difference images of 3072 x 3080 px of noise are written as the archive writes them; the batch asks for a point of
every object in every epoch and in its own. ``new``: nothing is known of any object. ``known``: as in a later exposure,
when only its own epoch is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace

import numpy as np

from stream.alert import PRV_FIELDS
from stream.alert.synthetic import synthetic_batch
from stream.archive import ProductStore, catalogs, fitsio
from stream.archive.paths import reference_path, science_path
from stream.core.camera import FULL
from stream.core.identity import candid_of, expid_of, night_of, pid_of, rfid_of, rid_of
from stream.core.psf import moffat_psf
from stream.core.records import SOURCE_DTYPE, CandidateBatch, QuadrantReport
from stream.enrich import MemoryHistory, enrich_batch
from stream.forced import StoreForced

RA, DEC, FIELD, FID, RCID = 150.0, 20.0, 651, 2, 8


def name_of(jd: float) -> str:
    """Name of the quadrant's exposure that began at ``jd``."""
    return f"ztf_{night_of(jd)}{round((jd - 0.5) % 1 * 1e6) % 1_000_000:06d}_{FIELD:06d}_zr_c03_o_q1"


def write_epoch(store: ProductStore, jd: float, image: bytes, psf: bytes, header: dict[str, object]) -> QuadrantReport:
    """Products of one epoch; its quality record."""
    pid = pid_of(rid_of(expid_of(jd), RCID))
    cards = {**header, "OBSJD": jd, "PID": pid}
    step = 0.5
    data = fitsio.primary() + fitsio.float_hdu(np.frombuffer(image, np.float32).reshape(FULL.ny, FULL.nx), step, cards)
    store.write(science_path(name_of(jd), "scimrefdiffimg.fits.fz"), data)
    store.write(science_path(name_of(jd), "diffimgpsf.fits"), psf)
    half = 0.43
    corners = [RA + half, DEC + half, RA - half, DEC + half, RA - half, DEC - half, RA + half, DEC - half]
    rid = rid_of(expid_of(jd), RCID)
    numbers = FIELD, FID, 3, 1, RCID, 1, 1, expid_of(jd), rid, pid
    return QuadrantReport(name_of(jd), *numbers, jd, jd, 30.0, diffmaglim=20.5, corners=corners)


def fixed_files() -> tuple[bytes, bytes, dict[str, object], bytes]:
    """Pixels, PSF, header cards and the reference's catalogue, the same for all epochs."""
    rng = np.random.default_rng(1)
    image = rng.normal(0, 8, (FULL.ny, FULL.nx)).astype(np.float32)
    stamp = moffat_psf(2.2, (FULL.ny, FULL.nx)).stamp(1500, 1500)
    grid = np.broadcast_to(stamp, (5, 5, 25, 25)).astype(np.float32)
    cards = {"GRIDX0": 308.0, "GRIDY0": 309.0, "GRIDDX": 614.2, "GRIDDY": 615.8}
    psf = fitsio.primary({}, stamp) + fitsio.plain_hdu(grid, cards, "PSF_GRID")
    scale = FULL.pixel_scale / 3600
    header: dict[str, object] = {
        "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CRVAL1": RA, "CRVAL2": DEC, "CRPIX1": 1536.5, "CRPIX2": 1540.5,
        "CD1_1": -scale, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": -scale, "PV1_1": 1.0, "PV2_1": 1.0, "FIELDID": FIELD,
        "FILTERID": FID, "RCID": RCID, "PROGRMID": 1, "RFID": rfid_of(FIELD, FID, RCID), "EXPTIME": 30.0, "GAIN": 6.2,
        "MAGZP": 26.2, "SEEING": 2.2, "SKYMED": 300.0, "SKYSIG": 8.0, "DIFFMLIM": 20.5, "FLXSCALE": 1.0, "REFVERS": "x",
    }  # fmt: skip
    sources = np.zeros(12_000, SOURCE_DTYPE)
    sources["ra"], sources["dec"] = RA + rng.uniform(-0.43, 0.43, 12_000), DEC + rng.uniform(-0.43, 0.43, 12_000)
    sources["flux"], sources["sigflux"] = 1000.0, 20.0
    return image.tobytes(), psf, header, fitsio.primary({"MAGZP": 26.2}) + catalogs.psf_catalog(sources, {})


def batch_of(jd: float, n: int) -> CandidateBatch:
    """``n`` candidates of one epoch, all over the quadrant and always at the same places."""
    pid = pid_of(rid_of(expid_of(jd), RCID))
    batch = replace(synthetic_batch(n), name=name_of(jd), pid=pid, jd=jd)
    rng = np.random.default_rng(2)
    for i, item in enumerate(batch.items):
        place = {"ra": RA + rng.uniform(-0.4, 0.4), "dec": DEC + rng.uniform(-0.4, 0.4)}
        item.candidate |= {"jd": jd, "pid": pid, "candid": candid_of(pid, True, i), **place}
    return batch


def main() -> int:
    """Make the images, enrich twice, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="earlier epochs of the field")
    parser.add_argument("--objects", type=int, default=30, help="candidates of the batch")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    image, psf, header, catalog = fixed_files()
    with tempfile.TemporaryDirectory(prefix="ztf-forced-") as folder:
        store, history = ProductStore(folder), MemoryHistory()
        store.write(reference_path(FIELD, FID, RCID, "refpsfcat.fits"), catalog)
        times = [2458452.75 - 29 * (1 - i / options.epochs) for i in range(options.epochs + 2)]
        reports = [write_epoch(store, jd, image, psf, header) for jd in times]
        source, figures = StoreForced(store), {"epochs": options.epochs, "objects": options.objects}
        for report in reports[: options.epochs]:
            history.add_epoch(report)
        for what, report in (("new", reports[-2]), ("known", reports[-1])):
            batch = batch_of(report.jd, options.objects)
            started = time.process_time()
            enrich_batch(batch, history, PRV_FIELDS, source)
            figures[f"{what}_cpu_ms"] = round((time.process_time() - started) * 1e3)
            figures[f"{what}_points"] = sum(len(item.fp_hists or []) for item in batch.items)
            history.add_epoch(report)
        started = time.process_time()
        fitsio.read_hdus(store.read(science_path(reports[0].name, "scimrefdiffimg.fits.fz")))
        figures["whole_image_decode_cpu_ms"] = round((time.process_time() - started) * 1e3)
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{key:28} {value}" for key, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
