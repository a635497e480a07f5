"""``ztf-stream models`` on a made-up night of few alerts: train, list, evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stream.alert import build_packet, encode_stamp, write_packet
from stream.archive import ProductStore, write_alert
from stream.cli.models import app
from stream.core.errors import UsageError
from stream.core.identity import candid_of
from stream.simulate.truth import TruthWriter

sys.path.insert(0, str(Path(__file__).parents[1] / "alert"))
from alert_samples import PID, RCID, batch, item

EXPOSURE = "ztf_20181129523840_000651_zr_c03_o"


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """Eighty alerts, every second one on a transient; a real one has a blob in its difference."""
    folder = tmp_path / "night"
    store = ProductStore(str(folder / "store"))
    rng = np.random.default_rng(1)
    y, x = np.mgrid[-31:32, -31:32]
    blob = 30 * np.exp(-(x**2 + y**2) / 2.5)
    truth: dict[str, list[object]] = {"truth_id": [], "ra": [], "dec": [], "mag": []}
    for k in range(80):
        one = item(tblid=k)
        real = k % 2 == 0
        ra = 150.0 + 0.01 * k
        one.candidate |= {
            "candid": candid_of(PID, True, k), "tblid": k, "ra": ra, "dec": 20.0, "magpsf": 18.25, "sigmapsf": 0.1,
            "pdiffimfilename": f"{EXPOSURE}_q1_scimrefdiffimg.fits", "chipsf": 1.0 if real else 9.0,
        }  # fmt: skip
        one.object_id = f"ZTF18aaaaa{chr(97 + k // 26)}{chr(97 + k % 26)}"
        difference = rng.normal(0, 1, (63, 63)) + (blob if real else 0)
        one.cutouts = (*one.cutouts[:2], encode_stamp(difference.astype(np.float32)))
        write_alert(store, write_packet(build_packet(one, batch(one), {})))
        if real:
            for name, value in (("truth_id", k), ("ra", ra), ("dec", 20.0), ("mag", 18.25)):
                truth[name].append(value)
    with TruthWriter(folder / "truth") as writer:
        writer.add({"sources": [{**truth, "kind": "transient", "role": "sci", "exposure": EXPOSURE, "rcid": RCID}]})
    return folder


@pytest.mark.slow
def test_train_list_and_evaluate(night: Path, tmp_path: Path) -> None:
    run = CliRunner()
    out = tmp_path / "weights"
    made = run.invoke(
        app, ["train", str(night), "--held-out", str(night), "--out", str(out), "--epochs", "1", "--json"]
    )
    assert made.exit_code == 0, made.output
    forest, network = json.loads(made.stdout)
    assert (forest["n_real"], forest["n_bogus"]) == (40, 40)
    assert network["figures"]["night_n_test"] == 80
    assert forest["data_sha256"] == network["data_sha256"]
    listed = run.invoke(app, ["list", "--folder", str(out), "--json"])
    assert json.loads(listed.stdout) == [forest, network]
    assert "night_equal_error" in run.invoke(app, ["list", "--folder", str(out)]).stdout
    measured = run.invoke(app, ["evaluate", str(night), "--folder", str(out), "--json"])
    assert measured.exit_code == 0, measured.output
    found = json.loads(measured.stdout)
    assert (found["n_real"], found["n_bogus"]) == (40, 40)
    assert found["figures"][forest["version"]]["n_test"] == 80
    assert found["figures"][forest["version"]]["equal_error"] == forest["figures"]["night_equal_error"]
    assert found["figures"][network["version"]]["equal_error"] == network["figures"]["night_equal_error"]


def test_what_is_missing_is_said(night: Path, tmp_path: Path) -> None:
    run = CliRunner()
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (["train", str(tmp_path / "nowhere")], "truth"),
        (["train", str(night), "--packets", str(tmp_path / "empty")], "drb"),
        (["list", "--folder", str(tmp_path / "empty")], "models train"),
    ):
        result = run.invoke(app, arguments)
        assert isinstance(result.exception, UsageError), arguments
        assert words in str(result.exception)
