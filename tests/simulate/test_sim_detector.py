"""Each effect of the detector against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from stream.core.camera import SMALL, read_order
from stream.simulate import detector
from stream.simulate.plan import seeded
from stream.simulate.rays import cosmic_rays


@pytest.mark.parametrize("level", [3.0, 20.0, 29.0, 31.0, 900.0, 2e5])
def test_photon_noise_has_the_mean_and_variance_of_photons(level):
    image = np.full((300, 300), level, np.float32)
    detector.photon_noise(np.random.default_rng(2), image)
    n = image.size
    assert image.mean(dtype=float) == pytest.approx(level, abs=5 * np.sqrt(level / n))
    assert image.var(dtype=float) == pytest.approx(level, rel=5 * np.sqrt(2 / n) + 0.01)
    if level < detector.POISSON_BELOW:
        assert np.array_equal(image, np.rint(image))
        assert image.min() >= 0


def test_negative_light_is_no_crash():
    image = np.full((10, 10), -3.0, np.float32)
    detector.photon_noise(np.random.default_rng(2), image)
    assert not image.any()


@pytest.mark.parametrize("qid", [1, 2, 3, 4])
def test_bleeding_keeps_the_charge_in_its_column(qid):
    image = np.full((200, 40), 100.0, np.float32)
    image[98:103, 20] = 5000.0
    total = image.sum(axis=0, dtype=float)
    pixels = detector.bleed(image, 1000.0, qid)
    assert np.allclose(image.sum(axis=0, dtype=float), total, rtol=1e-6)
    assert image.max() == 1000.0
    full = np.flatnonzero(image[:, 20] >= 1000.0)
    assert np.array_equal(pixels, full * 40 + 20)
    assert np.array_equal(full, np.arange(full[0], full[-1] + 1))
    # More of it away from the amplifier, where rows are read later.
    later, earlier = full[-1] - 102, 98 - full[0]
    if read_order(qid)[1]:
        later, earlier = earlier, later
    assert later > 1.5 * earlier > 0


def test_bleeding_ends_at_the_edge_and_in_neighbouring_runs():
    image = np.zeros((50, 3), np.float32)
    image[:, 1] = 0
    image[5, 1] = image[9, 1] = 1e6
    detector.bleed(image, 1000.0, 1)
    assert (image[:, 1] == 1000.0).all()
    assert not image[:, [0, 2]].any()


def test_no_saturation_nothing_changes():
    image = np.full((10, 10), 5.0, np.float32)
    assert len(detector.bleed(image, 10.0, 1)) == 0
    assert (image == 5.0).all()


def test_hot_pixels_leak_with_time():
    bad = detector.defects(1, SMALL, 0)
    short, long = np.zeros(SMALL.shape, np.float32), np.zeros(SMALL.shape, np.float32)
    detector.leak_charge(short, bad, 0.0)
    detector.leak_charge(long, bad, 30.0)
    assert (long.reshape(-1)[bad.hot] > 5 * short.reshape(-1)[bad.hot]).all()
    assert np.count_nonzero(long) == len(np.unique(bad.hot))


def test_cosmic_rays_are_where_they_say():
    image = np.zeros((400, 400), np.float32)
    hits = cosmic_rays(seeded(1, "test"), image, 600.0)
    assert {hit.kind for hit in hits} == {"muon", "worm", "spot"}
    again = np.zeros(image.size, np.float32)
    for hit in hits:
        assert hit.values.min() > 0
        assert len(np.unique(hit.pixels)) == len(hit.pixels) == len(hit.values)
        again[hit.pixels] += hit.values
    assert np.allclose(again.reshape(image.shape), image, rtol=1e-5)
    assert image.max() > 500


def test_particles_have_their_shapes():
    """Muons are straight, worms curl, spots are a few pixels; none is as round as a star."""
    image = np.zeros((3000, 3000), np.float32)
    hits = cosmic_rays(seeded(2, "shapes"), image, 900.0)
    bend: dict[str, list[float]] = {"muon": [], "worm": []}
    for hit in hits:
        x, y = (hit.pixels % 3000).astype(float), (hit.pixels // 3000).astype(float)
        bright = hit.values > 100
        if hit.kind == "spot":
            assert bright.sum() <= 9
        elif bright.sum() > 12:
            points = np.stack([x[bright] - x[bright].mean(), y[bright] - y[bright].mean()])
            values = np.linalg.eigvalsh(np.cov(points))
            bend[hit.kind].append(float(np.sqrt(max(values[0], 0))))
    assert max(bend["muon"]) < 0.6
    assert np.mean(np.array(bend["worm"]) > 1.0) > 0.3
    rate = len(hits) / (3000 * 3000 * 900)
    assert rate == pytest.approx(1.6e-7, rel=5 / np.sqrt(len(hits)))


def test_brighter_fatter_enlarges_bright_stars_and_keeps_charge():
    y, x = np.indices((41, 41)) - 20.0
    widths = {}
    for peak in (3e3, 3e5):
        star = (peak * np.exp(-0.5 * (x * x + y * y) / 1.1**2) + 100).astype(np.float32)
        total = star.sum(dtype=float)
        before = ((star - 100) * x * x).sum() / (star - 100).sum()
        detector.brighter_fatter(star)
        assert star.sum(dtype=float) == pytest.approx(total, rel=1e-6)
        widths[peak] = np.sqrt((((star - 100) * x * x).sum() / (star - 100).sum()) / before) - 1
    assert 0.002 < widths[3e5] < 0.02
    assert abs(widths[3e3]) < 0.02 * widths[3e5]


def test_brighter_fatter_correlates_neighbours_of_a_flat_as_its_coefficient_says():
    flat = np.full((600, 600), 1e5, np.float32)
    detector.photon_noise(np.random.default_rng(3), flat)
    detector.brighter_fatter(flat)
    excess = flat - flat.mean()
    variance = float((excess**2).mean())
    shift = detector.BRIGHTER_FATTER * 1e5
    assert variance == pytest.approx(1e5 * ((1 - 4 * shift) ** 2 + 4 * shift**2), rel=0.01)
    neighbour = float((excess[:, 1:] * excess[:, :-1]).mean())
    assert neighbour == pytest.approx(2 * shift * (1 - 4 * shift) * 1e5, rel=0.35)


@pytest.mark.parametrize("qid", [1, 3])
def test_spilt_charge_is_read_later_in_the_same_row(qid):
    image = np.zeros((20, 300), np.float32)
    full = np.array([5 * 300 + 150, 6 * 300 + 2 + 296 * (qid == 1)])
    pixels, values = detector.spill(image, full, 3e5, 90, qid)
    assert pixels.tolist() == [5 * 300 + 150 + (90 if qid == 1 else -90)]  # the other one falls off the row
    assert values.tolist() == [pytest.approx(detector.SPILLAGE * 3e5)]
    assert image.sum() == pytest.approx(values[0])


@pytest.mark.parametrize("qid", [1, 2, 3, 4])
def test_dark_current_is_largest_at_the_amplifier(qid):
    image = np.zeros((200, 300), np.float32)
    detector.dark_current(image, 1000.0, qid)
    y, x = np.unravel_index(np.argmax(image), image.shape)
    flip_x, flip_y = read_order(qid)
    assert (x, y) == (299 if flip_x else 0, 199 if flip_y else 0)
    assert image.max() == pytest.approx(1000 * detector.DARK_CURRENT[1], rel=1e-3)
    assert image.min() == pytest.approx(1000 * detector.DARK_CURRENT[0], rel=0.05)


def test_noisy_pixels_have_two_states():
    bad = detector.defects(1, SMALL, 0)
    frames = np.zeros((40, *SMALL.shape), np.float32)
    for k, frame in enumerate(frames):
        detector.telegraph(np.random.default_rng(k), frame, bad)
    values = frames.reshape(40, -1)[:, bad.noisy]
    assert np.count_nonzero(frames.any(axis=0)) == len(bad.noisy)
    assert np.allclose(values.std(axis=0), 1.02 * bad.noise, rtol=0.35)
    assert (np.abs(values) > 0.3 * bad.noise).mean() > 0.99  # never in between


def test_defects_are_as_many_and_as_bad_as_they_should():
    bad = detector.defects(3, SMALL, 9)
    for kind in ("hot", "dead", "low", "noisy"):
        pixels, strength = bad.of_kind(kind)
        assert len(pixels) == len(strength) >= 6
        assert pixels.min() >= 0
        assert pixels.max() < SMALL.nx * SMALL.ny
    assert bad.response.max() < 0.1 < 0.29 < bad.low_response.min()
    assert bad.low_response.max() < 0.9
