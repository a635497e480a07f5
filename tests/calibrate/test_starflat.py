"""The star flat of a camera whose flat is wrong by a known pattern: found from the catalogues of its exposures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream.archive import ProductStore, catalogs, fitsio
from stream.archive.paths import science_path
from stream.archive.shelf import CalibrationShelf
from stream.calibrate.starflat import StarSample, build_starflat
from stream.core.camera import SMALL
from stream.core.errors import CalibrationError, UsageError
from stream.core.identity import night_of
from stream.core.records import (
    PS1_DTYPE,
    SOURCE_DTYPE,
    Exposure,
    Quadrant,
    QuadrantReport,
    Table,
    ZeroPoint,
    new_report,
)
from stream.offline import Job
from stream.offline_calibration import build_starflats
from stream.photometry import calibrator_residuals
from stream.sky import import_catalog

SHAPE = SMALL.ny, SMALL.nx
N = 400
ZP, CLR = 26.2, 0.11
RA, DEC, STEP = 30.0, 20.0, 1.0125 / 3600


def wrong(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much too large the flat is, relative: what a lamp does that is not the sky, 1.5 % from side to side."""
    u, v = 2 * x / (SHAPE[1] - 1) - 1, 2 * y / (SHAPE[0] - 1) - 1
    return np.asarray(0.006 * u - 0.004 * v + 0.008 * u * v, float)


def exposure(number: int, night: float = 0.0) -> Exposure:
    jd = 2459000.7 + number * 1e-3 + night
    name = f"ztf_{night_of(jd)}{int((jd + 0.5) % 1 * 1e6):06d}_000{400 + number}_zr_c03_o"
    return Exposure(name, "object", 400 + number, 2, 3, 1, jd, jd, 30.0, RA, DEC)


def sky(seed: int) -> Table:
    rng = np.random.default_rng(seed)
    ps1 = np.zeros(N, PS1_DTYPE)
    ps1["objID"] = np.arange(N)
    ps1["raMean"] = RA + (rng.uniform(0, SHAPE[1] - 1, N) - SHAPE[1] / 2) * STEP / np.cos(np.radians(DEC))
    ps1["decMean"] = DEC + (rng.uniform(0, SHAPE[0] - 1, N) - SHAPE[0] / 2) * STEP
    ps1["rMeanPSFMag"] = rng.uniform(14.5, 19, N)
    ps1["gMeanPSFMag"] = ps1["rMeanPSFMag"] + rng.uniform(0.2, 1.1, N)
    ps1["gMeanPSFMagErr"] = ps1["rMeanPSFMagErr"] = 0.004
    ps1["ps_score"] = 1.0
    return ps1


def catalogue(ps1: Table, number: int, offset: float) -> Table:
    """Sources of an exposure, its fluxes divided by a flat that is wrong; dithered by some px."""
    rng = np.random.default_rng([5, number])
    sources = np.zeros(len(ps1), SOURCE_DTYPE)
    sources["x"] = SHAPE[1] / 2 + (ps1["raMean"] - RA) * np.cos(np.radians(DEC)) / STEP
    sources["y"] = SHAPE[0] / 2 + (ps1["decMean"] - DEC) / STEP
    colour = ps1["gMeanPSFMag"] - ps1["rMeanPSFMag"]
    flux = 10 ** (0.4 * (ZP + offset + CLR * colour - ps1["rMeanPSFMag"])) / (1 + wrong(sources["x"], sources["y"]))
    sources["flux"] = flux * (1 + 0.01 * rng.normal(size=len(ps1)))
    sources["sigflux"], sources["snr"] = 0.01 * flux, 100.0
    sources["ra"], sources["dec"] = ps1["raMean"], ps1["decMean"]
    return sources


def sample(number: int, *, night: float = 0.0, calids: tuple[str, ...] = (), tilt: float = 0.0) -> StarSample:
    ps1 = sky(number)
    sources = catalogue(ps1, number, 0.02 * number)
    sources["flux"] *= 10 ** (0.4 * tilt * (sources["x"] > SHAPE[1] / 2))
    zp = ZeroPoint(ZP, 0.001, 0.02, CLR, 0.01, 0.0, "g - R", N)
    return StarSample(exposure(number, night), 9, *calibrator_residuals(sources, ps1, 2, zp), calids=calids)


def pattern() -> np.ndarray:
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    return wrong(x, y)


def left(frame_data: np.ndarray) -> float:
    """r.m.s. (relative) of what a frame leaves of the wrong flat: it is to be divided by, and too large by it."""
    corrected = (1 + pattern()) * frame_data
    return float(np.std(corrected / np.median(corrected)))


def test_the_wrong_pattern_is_recovered() -> None:
    frame = build_starflat([sample(k) for k in range(12)], None, SHAPE)
    assert np.std(pattern()) > 0.004
    assert left(frame.data) < 0.35 * np.std(pattern())
    assert frame.kind == "loflat"
    assert frame.qa["n_stars"] > 10 * N * 0.9
    assert frame.qa["n_fields"] == 12
    assert np.median(frame.data) == pytest.approx(1, abs=2e-3)
    assert 1e-4 < float(np.median(frame.unc)) < 5e-3


def test_cloud_and_other_flats_are_left_out() -> None:
    samples = [sample(k) for k in range(8)] + [sample(8, tilt=0.2), sample(9, calids=("12209025",))]
    frame = build_starflat(samples, None, SHAPE)
    reasons = [reason.split()[0] for reason in frame.qa["rejected"].values()]
    assert sorted(reasons) == ["reduced", "tilt"]
    with pytest.raises(CalibrationError, match="at least 5"):
        build_starflat([sample(k) for k in range(3)], None, SHAPE)
    with pytest.raises(CalibrationError, match="sort them"):
        build_starflat([sample(0), replace(sample(1), rcid=10)], None, SHAPE)


def test_a_second_star_flat_needs_a_later_night() -> None:
    first = build_starflat([sample(k) for k in range(6)], None, SHAPE)
    again = [sample(k, calids=(first.calid,)) for k in range(6)]
    with pytest.raises(CalibrationError, match="later night"):
        build_starflat(again, first, SHAPE)
    later = build_starflat([sample(k, night=1.0, calids=(first.calid,)) for k in range(6)], first, SHAPE)
    assert later.night > first.night
    assert later.qa["base"] == first.calid
    # What is still wrong after the first goes on top of it.
    np.testing.assert_allclose(np.std(later.data / first.data), np.std(first.data), rtol=0.3)


def write_image(store: ProductStore, ps1: Table, number: int) -> None:
    """The two files of a processed exposure that a star flat reads."""
    quadrant = Quadrant(exposure(number), 2)
    report: QuadrantReport = new_report(quadrant)
    half = 0.5 * SHAPE[1] * STEP
    report.corners = [RA - half, DEC - half, RA + half, DEC - half, RA + half, DEC + half, RA - half, DEC + half]
    report.cloud = "clear" if number < 7 else "MAGZP 24.0 < 25.0"
    cards = {"MAGZP": ZP, "CLRCOEFF": CLR, "PCOLOR": "g - R", "NMATCHES": N}
    table = catalogs.psf_catalog(catalogue(ps1, number, 0.0), cards)
    store.write(science_path(quadrant.name, "psfcat.fits"), fitsio.primary(cards) + table)
    store.write(science_path(quadrant.name, "qa.json"), catalogs.quality_json(report))


def test_star_flat_of_a_store(tmp_path: Path) -> None:
    store = ProductStore(str(tmp_path / "store"))
    with pytest.raises(UsageError, match="no science image"):
        build_starflats(Job(store.url, SMALL), 1)
    ps1 = sky(1)
    pq.write_table(pa.table({name: ps1[name] for name in PS1_DTYPE.names}), tmp_path / "ps1.parquet")
    import_catalog("ps1", [tmp_path / "ps1.parquet"], store.url)
    for number in range(8):
        write_image(store, ps1, number)
    (built,) = build_starflats(Job(store.url, SMALL), 1)
    assert built.error is None
    assert built.n_inputs == 7  # the cloudy one is not among them
    shelf = CalibrationShelf(store)
    (version,) = list(shelf.versions("loflat", None, None))
    frame = shelf.read(version)
    assert frame is not None
    assert left(frame.data) < 0.5 * np.std(pattern())  # type: ignore[union-attr]
    assert build_starflats(Job(store.url, SMALL), 1, rcid=9)[0].error is None
    with pytest.raises(UsageError, match="no science image"):
        build_starflats(Job(store.url, SMALL), 1, rcid=10)
