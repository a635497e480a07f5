"""Images of the survey itself through ``process``, and a night painted from one of its own catalogues."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from astropy.io import fits
from nights import ztf_stream
from scipy import ndimage

from stream.archive import ProductStore, iterate_alerts, read_mask, read_science_product
from stream.archive.paths import science_path
from stream.core.camera import SMALL
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import QuadrantReport
from stream.monitor import recovery
from stream.simulate import NightPlan, read_truth, simulate_night

pytestmark = [pytest.mark.real, pytest.mark.slow]

PAIR = ("20250116146979_000250_zg_c08_o_q3", "20250116147917_000249_zg_c05_o_q4")


def mad(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_real_image_is_subtracted_from_another(real_data, tmp_path, order):
    image, reference = (real_data / "images" / f"ztf_{PAIR[i]}_sciimg.fits" for i in order)
    said = ztf_stream("process", image, "--reference", reference, "--store", tmp_path, "--json", "--workers", 1)
    (line,) = said.ok().rows()
    assert line["status"] == "ok"
    assert 1.2 < line["seeing"] < 4
    assert 25 < line["magzp"] < 27
    assert 19 < line["maglim"] < 22
    assert line["n_sources"] > 10
    store = ProductStore(str(tmp_path))
    name = f"ztf_{PAIR[order[0]]}"
    assert line["name"] == name
    science = read_science_product(store, name)
    other = ztf_stream("process", reference, "--store", tmp_path, "--json", "--workers", 1, "--no-score")
    template = read_science_product(store, f"ztf_{PAIR[order[1]]}")
    assert other.rows()[0]["status"] == "no_reference"
    with fits.open(io.BytesIO(store.read(science_path(name, "scimrefdiffimg.fits.fz")))) as hdus:
        difference = hdus[-1].data
    saturated = ndimage.binary_dilation((read_mask(store, name) & int(Mask.SATURATED)) > 0, iterations=25)
    usable = np.isfinite(difference) & ~saturated
    assert usable.mean() > 0.4
    scale = 10 ** (0.4 * (science.zeropoint.magzp - template.zeropoint.magzp))
    expected = np.hypot(science.background.sigma, scale * template.background.sigma)
    assert mad(difference[usable]) == pytest.approx(expected, rel=0.15)
    quality = json.loads(store.read(science_path(name, "qa.json")))
    assert quality["diffmaglim"] == pytest.approx(line["diffmaglim"])
    # Two exposures 1.4 minutes apart: nothing much has changed, so nothing much may be sent.
    assert line["n_alerts"] == line["n_candidates"] <= 25


def test_a_night_painted_from_a_real_catalogue(real_data, tmp_path):
    plan = NightPlan(
        seed=3, noise_seed=3, camera=SMALL, field=202, ccds=(10,), qids=(1,), fid=1, n_reference=4, n_science=1,
        n_bias=3, n_flat=3, transients=12, satellite=False,
        source_list=real_data / "catalogs" / "ztf_000202_zg_c10_q1_refpsfcat.fits",
    )  # fmt: skip
    night = simulate_night(tmp_path, plan, workers=2)
    store = tmp_path / "store"
    for kind in ("gaia", "ps1", "bright"):
        ztf_stream("catalog", "import", kind, tmp_path / f"{kind}.parquet", "--store", store).ok()
    ztf_stream("calibration", "build", *night.calibration, "--store", store, "--workers", 1).ok()
    built = ztf_stream("reference", "build", *night.reference, "--store", store, "--json", "--workers", 1)
    errors = {row["rcid"]: row["error"] for row in built.rows()}
    assert errors[36] is None  # CCD 10, quadrant 1; the others of the packet see no stars
    said = ztf_stream("process", *night.science, "--store", store, "--json", "--workers", 1)
    lines = {row["rcid"]: row for row in said.rows()}
    line = lines.pop(36)
    assert (line["status"], line["field"]) == ("ok", 202)
    assert {row["status"] for row in lines.values()} == {"failed"}
    truth, opened = read_truth(tmp_path), ProductStore(str(store))
    report = QuadrantReport(**{k: v for k, v in line.items() if k != "n_alerts"})
    usable = {(line["name"].rsplit("_q", 1)[0], 36): (read_mask(opened, line["name"]) & BAD_BITS) == 0}
    alerts = [packet["candidate"] for packet in iterate_alerts(opened)]
    assert len(alerts) == line["n_alerts"]
    found, total = recovery(truth, [report], alerts, usable).completeness(10.0)
    assert total >= 5
    assert found >= 0.9 * total
