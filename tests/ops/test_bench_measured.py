"""The bench of measurement asks the map of places where PSF fits see the stars."""

from __future__ import annotations

import numpy as np

from ops.bench.measured import centre_offset
from stream.core.psf import PsfModel
from stream.simulate.optics import PsfField

FLAT = (0.0,) * 5
SHAPE = (300, 280)
NODES, OVERSAMPLE = 53, 2


def gaussian(sigma: float, dx: float, dy: float) -> PsfModel:
    """A model whose light is centred (dx, dy) px from its own centre."""
    grid = (np.arange(NODES) - NODES // 2) / OVERSAMPLE
    profile = np.exp(-0.5 * ((grid - dx) ** 2 + (grid[:, None] - dy) ** 2) / sigma**2)
    return PsfModel(profile[None].astype(np.float32), OVERSAMPLE, 0, SHAPE, 2.355 * sigma)


def test_a_models_own_centre_is_told_from_the_lights() -> None:
    true = PsfField(SHAPE, (2.4, *FLAT), (0.0, *FLAT), (0.0, *FLAT))
    x, y = np.array([20.0, 140.3, 270.0]), np.array([30.0, 150.8, 290.0])
    for dx, dy in ((0.0, 0.0), (0.03, -0.02)):
        off = centre_offset(gaussian(1.1, dx, dy), true, x, y)
        np.testing.assert_allclose(off, [[-dx] * 3, [-dy] * 3], atol=1e-3)


def test_lopsided_light_is_seen_off_its_centroid_where_it_is_lopsided() -> None:
    # Coma along x that grows with x from nothing at the middle: its sign changes there.
    true = PsfField(SHAPE, (2.4, *FLAT), (0.0, *FLAT), (0.0, *FLAT), (0.0, 0.15, 0.0, 0.0, 0.0, 0.0))
    x = np.array([40.0, 139.5, 240.0])
    off_x, off_y = centre_offset(gaussian(1.1, 0.0, 0.0), true, x, np.full(3, 149.5))
    assert off_x[0] * off_x[2] < 0
    assert min(abs(off_x[0]), abs(off_x[2])) > 0.01
    np.testing.assert_allclose(off_x[1], 0.0, atol=1e-3)
    np.testing.assert_allclose(off_y, 0.0, atol=1e-3)
