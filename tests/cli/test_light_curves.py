"""Light curves of a simulated night by their command: stars repeat, and an exposure that is off is put right."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from nights import Night, ztf_stream
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.archive import ProductStore, StoreInputs, write_products
from stream.calibrate import calibrate
from stream.core.camera import SMALL
from stream.core.identity import FILTER_CODES
from stream.core.records import QuadrantResult, Table, new_report
from stream.core.sphere import chord, unit_vectors
from stream.ingest import read_packet, read_quadrant
from stream.lightcurves import light_curves, near, star_scatter
from stream.pipeline import ScienceSettings, Stopwatch, make_science, report_science

OFF, WRONG = 0.03, 2  # the third exposure's zero point is wrong by so much
Where = tuple[int, int, int]


@dataclass(frozen=True)
class Observed:
    """A store with the science products of one quadrant's exposures (names in time order), and the true stars of each:
    RA, Dec (deg) and magnitude at colour 0 of that moment."""

    store: Path
    where: Where
    stars: dict[str, NDArray[np.float64]]

    def offsets(self, points: Table, exposure: int, name: str) -> NDArray[np.float64]:
        """Measured minus true magnitudes of an exposure's points; NaN where no star is there."""
        true = self.stars[name]
        mine = points[points["exposure"] == exposure]
        tree = cKDTree(unit_vectors(true[:, 0], true[:, 1]))
        distance, star = tree.query(unit_vectors(mine["ra"], mine["dec"]))
        return np.where(distance < chord(1.0), mine["mag"] - true[star, 2], np.nan)

    @property
    def options(self) -> tuple[object, ...]:
        """What names the quadrant on the command line."""
        field, fid, rcid = self.where
        return "--field", field, "--rcid", rcid, "--filter", FILTER_CODES[fid], "--store", self.store


@pytest.fixture(scope="module")
def observed(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """All exposures of the shared night, those of its reference too; one's zero point is spoilt."""
    store = night.sibling(tmp_path_factory.mktemp("curves") / "store", "catalogs", "cal", "ref")
    root, inputs = ProductStore(str(store)), StoreInputs(ProductStore(str(store)))
    truth = night.folder / "truth" / "sources.parquet"
    quadrants = pq.read_table(night.folder / "truth" / "quadrants.parquet").to_pylist()
    stars: dict[str, NDArray[np.float64]] = {}
    paths = sorted((night.folder / "raw" / "ref").iterdir()) + night.science
    for k, path in enumerate(paths):
        raw = read_quadrant(read_packet(path, SMALL).quadrants[0].payload, SMALL)
        frames = inputs.calibration(raw.quadrant)
        science = make_science(calibrate(raw, frames), inputs, ScienceSettings(camera=SMALL), Stopwatch(), frames)
        zp = science.zeropoint
        if k == WRONG:
            science = replace(science, zeropoint=replace(zp, magzp=zp.magzp + OFF))
        result = QuadrantResult(new_report(raw.quadrant), raw.quadrant, science)
        report_science(result.report, science)
        write_products(root, result)
        name = path.name.removesuffix(".fits.fz")
        rcid = raw.quadrant.rcid
        mine = pq.read_table(truth, filters=[("exposure", "=", name), ("rcid", "=", rcid), ("kind", "=", "star")])
        ra, dec, mag, colour = (mine[key].to_numpy() for key in ("ra", "dec", "mag", "colour"))
        (term,) = (q["clrcoeff"] for q in quadrants if q["exposure"] == name and q["rcid"] == rcid)
        stars[raw.quadrant.name] = np.stack([ra, dec, mag - term * colour], axis=1)
    exposure = raw.quadrant.exposure
    return Observed(store, (exposure.field, exposure.fid, raw.quadrant.rcid), stars)


def test_relative_photometry_finds_the_exposure_that_is_off(observed: Observed, tmp_path: Path) -> None:
    out = tmp_path / "curves.parquet"
    said = ztf_stream("lightcurves", *observed.options, "--relative", "--degree", 0, "--out", out, "--json").ok()
    (figures,) = said.rows()
    assert figures["exposures"] == len(observed.stars)
    assert figures["bright_stars"] >= 5
    assert figures["repeatability"] < 0.010
    root = ProductStore(str(observed.store))
    names = [line["name"] for line in figures["corrections"]]
    # By truth: what all bright stars of an exposure are off by together is what was found.
    off, left = np.zeros((2, len(names)))
    for medians, degree in ((off, None), (left, 0)):
        points = light_curves(root, observed.where, degree=degree).points
        bright = points[points["sigmag"] < 0.01]
        medians[:] = [np.nanmedian(observed.offsets(bright, k, name)) for k, name in enumerate(names)]
    found = np.array([line["zero"] for line in figures["corrections"]])
    assert np.ptp(off) > 0.02
    assert np.abs((found - found.mean()) - (off - off.mean())).max() < 0.005
    assert np.ptp(left) < 0.010
    table = pq.read_table(io.BytesIO(out.read_bytes()))
    assert table.num_rows == figures["points"]
    assert json.loads(table.schema.metadata[b"lightcurves"])["points"] == figures["points"]
    assert set(table["exposure"].to_pylist()) == set(observed.stars)


def test_absolute_points_keep_the_error_and_relative_ones_lose_it(observed: Observed) -> None:
    root = ProductStore(str(observed.store))
    absolute, relative = (light_curves(root, observed.where, degree=degree) for degree in (None, 0))
    assert absolute.relative is None
    assert not absolute.points["correction"].any()
    for curves, expected in ((absolute, OFF), (relative, 0.0)):
        wrong = curves.exposures.index(list(observed.stars)[WRONG])
        points = curves.points[curves.points["sigmag"] < 0.01]
        mean = {row["sourceid"]: row["mag"] for row in star_scatter(points)}
        there = points[points["exposure"] == wrong]
        off = [p["mag"] - mean[p["sourceid"]] for p in there if p["sourceid"] in mean]
        assert np.median(off) == pytest.approx(expected, abs=0.01)
    one = relative.points[0]
    assert set(near(relative.points, one["ra"], one["dec"], 1.0)["sourceid"]) == {one["sourceid"]}


def test_a_place_shows_its_points_and_an_empty_field_says_so(observed: Observed) -> None:
    curves = light_curves(ProductStore(str(observed.store)), observed.where)
    star = star_scatter(curves.points)[0]["sourceid"]
    mine = curves.points[curves.points["sourceid"] == star]
    place = "--place", mine["ra"][0], mine["dec"][0], "--radius", 1
    said = ztf_stream("lightcurves", *observed.options, *place, "--json").ok()
    assert [row["jd"] for row in said.rows()[1:]] == mine["jd"].tolist()
    plain = ztf_stream("lightcurves", *observed.options, *place).ok()
    assert f"{mine['jd'][0]:.6f}" in plain.out
    nowhere = ztf_stream("lightcurves", *observed.options, "--out", observed.store / "no" / "folder.parquet")
    assert nowhere.status == 1
    assert "cannot be written" in nowhere.err
    nothing = ztf_stream("lightcurves", *observed.options, "--first", "20990101", "--json")
    assert nothing.status == 1
    assert "ztf-stream process" in nothing.err
