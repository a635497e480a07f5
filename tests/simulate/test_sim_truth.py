"""The readers of the truth tables: what a test asks for, in one call."""

from __future__ import annotations

import numpy as np
import pytest

from stream.core.camera import Camera
from stream.core.errors import UsageError
from stream.simulate import NightPlan, light_curve, read_quadrant_truth, read_truth, schedule, simulate_night
from stream.simulate.look import draw_page

TINY = Camera("tiny", 220, 200)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    plan = NightPlan(camera=TINY, n_bias=0, n_flat=0, n_reference=1, n_science=2, seed=4, comets=1, satellites=20.0)
    return plan, simulate_night(tmp_path_factory.mktemp("truth"), plan)


def test_rows_and_columns_that_are_asked_for(night):
    _, summary = night
    every = read_truth(summary.out)
    some = read_truth(summary.out, columns=("truth_id", "x"), kind=("transient", "asteroid"), rcid=2, role="sci")
    assert set(some) == {"truth_id", "x"}
    chosen = np.isin(every["kind"].astype(str), ("transient", "asteroid")) & (every["rcid"] == 2)
    assert np.array_equal(some["x"], every["x"][chosen & (every["role"] == "sci")])
    assert set(read_truth(summary.out, "quadrants", role="ref")["role"]) == {"ref"}
    with pytest.raises(UsageError, match="no column colours"):
        read_truth(summary.out, colours=3)


def test_a_quadrant_in_one_call(night):
    plan, summary = night
    exposure = [e for e in schedule(plan) if e.role == "sci"][1]
    truth = read_quadrant_truth(summary.out, exposure.name(1), 0, TINY)
    assert truth.conditions["magzp"] == pytest.approx(26, abs=1)
    transients = truth.of_kind("transient")
    assert len(transients["x"]) > 0
    x, y = truth.wcs.to_pixel(transients["ra"], transients["dec"])
    assert np.hypot(x - transients["x"], y - transients["y"]).max() < 0.3  # air moves them by less
    trail, rays = truth.mask("satellite"), truth.mask("cosmic_ray", above=5.0)
    assert trail.shape == TINY.shape
    assert trail.sum() > 200
    assert not (truth.mask("satellite", above=1e9)).any()
    assert rays.sum() < trail.size
    column = truth.mask("dead_column")
    assert set(np.unique(column.sum(axis=0))) - {0}
    with pytest.raises(UsageError, match="no quadrant"):
        read_quadrant_truth(summary.out, "ztf_nothing", 0, TINY)


def test_a_source_in_all_exposures(night):
    _, summary = night
    stars = read_truth(summary.out, kind="star", rcid=1, role="ref", in_quadrant=True)
    middle = int(np.argmin(np.hypot(stars["x"] - 110, stars["y"] - 100)))
    curve = light_curve(summary.out, int(stars["truth_id"][middle]))
    assert len(curve["jd_mid"]) == 3
    assert (np.diff(curve["jd_mid"]) > 0).all()
    assert np.ptp(curve["mag"]) == 0
    assert np.ptp(curve["flux"]) > 0


def test_the_instrument_is_listed_once_a_channel(night):
    rows = read_truth(night[1].out, "instrument")
    assert rows["rcid"].tolist() == [0, 1, 2, 3]
    assert all(len(row) == 4 for row in rows["crosstalk"])


def test_a_page_shows_it(night, tmp_path):
    _, summary = night
    page = draw_page(summary.out)
    assert page == summary.out / "look.png"
    assert page.stat().st_size > 100_000
    assert page.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(UsageError):
        draw_page(tmp_path)
