"""Stars of the simulator beside those of real images, measured by the same code."""

from __future__ import annotations

import pytest

from ops.bench.simulator import compare

IMAGES = ("20250221144653_000453_zg_c08_o_q1", "20250221196181_000453_zr_c08_o_q1", "20250106146331_000203_zg_c10_o_q1")


@pytest.mark.real
def test_width_and_wings_are_those_of_real_stars(real_data, tmp_path):
    """Images with a star bright enough to show its wings: FWHM to a tenth, light of the wings to a factor of two."""
    paths = [real_data / "images" / f"ztf_{name}_sciimg.fits" for name in IMAGES]
    figure = tmp_path / "psf.png"
    rows = compare(paths, figure)
    assert figure.stat().st_size > 10_000
    compared = [row for row in rows if "over real" in row.name]
    assert len(compared) == 4
    for row in compared:
        assert row.ok, f"{row.name}: {row.value} ({row.detail})"
