"""The script that makes the shipped weights: its nights are what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "ops" / "bench" / "train_models.py"


def test_held_out_nights_share_neither_sky_nor_noise_nor_camera_with_the_training() -> None:
    parts = runpy.run_path(str(SCRIPT))
    training, held_out = parts["TRAINING"], parts["HELD_OUT"]
    assert set(training).isdisjoint(held_out)
    for plan in held_out.values():
        for other in training.values():
            assert plan.seed != other.seed
            assert plan.field != other.field
            assert set(plan.ccds).isdisjoint(other.ccds)
    assert {plan.fid for plan in training.values()} == {1, 2, 3}
    assert all(plan.n_reference >= 6 and plan.n_science >= 3 for plan in parts["NIGHTS"].values())
