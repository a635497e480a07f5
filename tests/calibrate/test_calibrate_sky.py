"""Frames learned from the sky and from two lamps: low-frequency flat, fringes, shutter; stars; the pocket."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from rawframes import GAIN, Detector

from stream.calibrate import CalibrateSettings, calibrate
from stream.calibrate.fringe import build_fringe, fringe_amplitude, fringe_sample, remove_fringe
from stream.calibrate.shutter import build_shutter
from stream.calibrate.skyflat import build_loflat, residual_map, sky_sample, with_star_residuals
from stream.core.cells import cell_means, cell_nodes, spread_cells
from stream.core.errors import CalibrationError
from stream.core.pocket import distort, pocket_of, restore
from stream.core.records import CalibratedImage, CalibrationFrame, CalibrationSet, Exposure, Quadrant

SHAPE = (512, 448)
SKY = 400.0
Y, X = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
U, V = X / SHAPE[1] * 2 - 1, Y / SHAPE[0] * 2 - 1
LAMP = 1 + 0.012 * U * V - 0.008 * U**2 + 0.006 * np.cos(2.5 * V)  # no tilt in it
LAMP /= np.median(LAMP)
FRINGES = np.sin((X + 30 * np.sin(Y / 60)) / 7.0) + 0.5 * np.cos(Y / 9.0 + X / 25.0)
FRINGES /= FRINGES.std()


def image(
    number: int, *, tilt: tuple[float, float] = (0.0, 0.0), lamp: np.ndarray | float = LAMP, fringe: float = 0.0,
    halo: float = 0.0, field: int | None = None, sky: float = SKY, fid: int = 2,
) -> CalibratedImage:  # fmt: skip
    """A flat-fielded exposure with a star field of its own."""
    rng = np.random.default_rng([11, number])
    light = sky * (1 + tilt[0] * U + tilt[1] * V) * lamp + fringe * FRINGES
    light = light + halo * np.exp(-0.5 * ((X - 300) ** 2 + (Y - 100) ** 2) / 70.0**2)
    for peak in 10 ** rng.uniform(1, 4, 120):
        x, y = rng.uniform(0, SHAPE[1]), rng.uniform(0, SHAPE[0])
        x0, y0 = int(x), int(y)
        part = np.s_[max(y0 - 12, 0) : y0 + 13, max(x0 - 12, 0) : x0 + 13]
        light[part] += peak * np.exp(-0.5 * ((X[part] - x) ** 2 + (Y[part] - y) ** 2))
    data = (rng.poisson(light * GAIN) / GAIN + rng.normal(0, 1.6, SHAPE)).astype(np.float32)
    exposure = Exposure(
        name=f"ztf_20200531{200000 + number:06d}_{400 + (number if field is None else field):06d}_zr_c03_o",
        imgtype="object", field=400 + (number if field is None else field), fid=fid, ccdid=3, programid=1,
        jd=2459000.7 + number * 1e-3, jd_mid=2459000.7, exptime=30.0, ra=10.0, dec=20.0,
    )  # fmt: skip
    return CalibratedImage(Quadrant(exposure, 2), data, np.zeros(SHAPE, np.uint16), GAIN, 10.0, 50_000.0)


def tilts(n: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(4)
    return [(float(a), float(b)) for a, b in rng.normal(0, 0.02, (n, 2))]


def test_sky_shows_what_the_lamp_does_wrong_whatever_the_moon_does() -> None:
    samples = [sky_sample(image(i, tilt=tilt)) for i, tilt in enumerate(tilts(12))]
    samples += [
        sky_sample(image(20, halo=60.0)),
        sky_sample(image(21, tilt=(0.15, 0.1))),
        sky_sample(image(22, sky=5.0)),
    ]
    frame = build_loflat(samples)
    error = cell_means((frame.data / LAMP - 1).astype(np.float32), 64)
    # What is left is a tilt, as small as a dozen moonlit skies can tell; without it, next to nothing.
    u, v = cell_means(U.astype(np.float32), 64), cell_means(V.astype(np.float32), 64)
    plane = np.stack([np.ones(u.size), u.ravel(), v.ravel()], axis=1)
    fit = np.linalg.lstsq(plane, error.ravel(), rcond=None)[0]
    assert (error.ravel() - plane @ fit).std() < 0.0012
    assert LAMP.std() > 0.003  # not trivially so
    assert np.all(np.abs(fit[1:]) < 3 * np.array(frame.qa["tilt_unc"]))
    assert np.median(frame.data) == pytest.approx(1.0, abs=1e-3)
    assert frame.n_frames == 12
    rejected = list(frame.qa["rejected"].values())
    assert sorted(reason.split()[0] for reason in rejected) == ["differs", "gradient", "sky"]
    assert (frame.kind, frame.calid[-1], frame.fid) == ("loflat", "5", 2)
    assert frame.qa["jd_end"] == samples[11].exposure.jd


def test_a_tilt_that_all_skies_share_is_the_lamps() -> None:
    slope = 0.01
    samples = [sky_sample(image(i, tilt=(slope + a / 20, b / 20), lamp=1.0)) for i, (a, b) in enumerate(tilts(8))]
    frame = build_loflat(samples)
    assert frame.qa["tilt"][0] == pytest.approx(slope, abs=0.001)
    assert abs(frame.qa["tilt"][1]) < 0.001
    chance = build_loflat([sky_sample(image(i, tilt=t, lamp=1.0)) for i, t in enumerate(tilts(8))])
    assert np.hypot(*chance.qa["tilt"]) < 0.01  # twenty times the scatter: nothing is claimed


def test_few_or_mixed_skies_are_refused() -> None:
    few = [sky_sample(image(i)) for i in range(4)]
    with pytest.raises(CalibrationError, match="at least 5"):
        build_loflat(few)
    with pytest.raises(CalibrationError, match="sort them"):
        build_loflat([*few, sky_sample(image(5, fid=1))])


def test_stars_correct_the_low_frequency_flat() -> None:
    rng = np.random.default_rng(8)
    n = 4000
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    frame = build_loflat([sky_sample(image(i, lamp=1.0)) for i in range(5)])
    wrong = 1 + 0.01 * U  # the flat in use says so much, truth is 1
    at = wrong[y.astype(int), x.astype(int)]
    sigma = rng.uniform(0.005, 0.03, n)
    residual = 2.5 * np.log10(at) + rng.normal(0, sigma) + 0.02  # divided by too much: too faint; a zero point on top
    residual[:20] += 1.0  # variables
    made = with_star_residuals(
        replace(frame, data=(frame.data * wrong).astype(np.float32)), residual_map(x, y, residual, sigma, SHAPE, 128), n
    )
    left = made.data / frame.data
    assert left.std() < 0.35 * (wrong / wrong.mean()).std()
    assert made.qa["n_stars"] == n


def test_fringes_are_learned_and_taken_out_with_their_own_amplitude() -> None:
    strengths = [4.0, 7.0, 10.0, 5.0, 8.0, 6.0, 9.0, 3.0]
    frame = build_fringe([fringe_sample(image(i, lamp=1.0, fringe=s, fid=3)) for i, s in enumerate(strengths)])
    assert np.corrcoef(frame.data.ravel(), FRINGES.ravel())[0, 1] > 0.98
    found = list(frame.qa["amplitudes"].values())
    assert np.corrcoef(found, strengths)[0, 1] > 0.995
    other = image(60, lamp=1.0, fringe=12.0, fid=3)
    data, truth = other.data.copy(), image(60, lamp=1.0, fid=3).data
    amplitude = remove_fringe(data, other.mask, frame.data)
    clean = np.abs(data - SKY) < 30
    # The pattern left, seen through the pattern itself.
    left = float(np.mean((data - truth)[clean] * FRINGES[clean]))
    assert abs(left) < 0.08 * 12.0
    assert amplitude == pytest.approx(12.0, rel=0.06)
    still = image(61, lamp=1.0, fid=3)
    value, unc = fringe_amplitude(still.data, still.mask, frame.data)
    assert abs(value) < 4 * unc
    before = still.data.copy()
    assert remove_fringe(still.data, still.mask, frame.data) == 0.0
    np.testing.assert_array_equal(still.data, before)
    with pytest.raises(CalibrationError, match="take more"):
        build_fringe([fringe_sample(image(i, fid=3)) for i in range(3)])
    with pytest.raises(CalibrationError, match="other fields"):
        build_fringe([fringe_sample(image(i, fid=3, field=i % 2)) for i in range(6)])


BLADES = 0.02 * U + 0.015 * V * V  # seconds


@pytest.fixture(scope="module")
def shutter() -> CalibrationFrame:
    detector = Detector(SHAPE, seed=2)
    raws = []
    for i, (exptime, level) in enumerate([(2.0, 15_000.0)] * 4 + [(20.0, 21_000.0)] * 4):
        raw = detector.raw(level * (1 + BLADES / exptime), 70 + i, "flat", number=i)
        exposure = replace(raw.quadrant.exposure, exptime=exptime)
        raws.append(replace(raw, quadrant=replace(raw.quadrant, exposure=exposure)))
    return build_shutter(raws, None)


def test_the_shutters_blades_show_in_short_flats(shutter: CalibrationFrame) -> None:
    error = shutter.data - (BLADES - np.median(BLADES))
    assert np.abs(cell_means(error.astype(np.float32), 64)).max() < 0.003
    assert BLADES.std() > 0.01
    assert (shutter.kind, shutter.fid) == ("shutter", 0)
    with pytest.raises(CalibrationError, match="exposure times"):
        build_shutter([Detector(SHAPE, seed=2).raw(9000.0, i, "flat", number=i) for i in range(3)], None)


@pytest.mark.parametrize(("exptime", "applied"), [(2.0, True), (300.0, False)])
def test_short_exposures_are_evened(shutter: CalibrationFrame, exptime: float, applied: bool) -> None:
    detector = Detector(SHAPE, seed=2)
    detector.flat[:] = 1.0
    detector.bias[:] = 0.0
    raw = detector.raw(8000.0 * (1 + BLADES / exptime), 5)
    raw = replace(raw, quadrant=replace(raw.quadrant, exposure=replace(raw.quadrant.exposure, exptime=exptime)))
    image = calibrate(raw, CalibrationSet(shutter=shutter))
    assert ("shutter" in image.notes) == applied
    cells = cell_means(image.data, 64)
    assert cells.std() / cells.mean() < 0.0008


def test_the_pocket_is_emptied() -> None:
    """Rows through the published model and back, in the quadrant's own direction of reading."""
    rng = np.random.default_rng(6)
    true = rng.poisson(1500, SHAPE).astype(np.float32)
    true[:, 200:203] += 40_000
    pocket = pocket_of(3, 2)
    read = distort(true, pocket)
    assert np.abs(read - true).max() > 50
    assert np.abs(restore(read, pocket) - true).max() < 0.1
    detector = Detector(SHAPE, seed=2)
    detector.flat[:] = 1.0
    detector.bias[:] = 0.0
    raw = detector.raw(300.0, 5)
    # q2 is read from its far end: the stored image is the read one mirrored.
    image = np.rint(read[:, ::-1] / GAIN + 1000).astype(np.uint16)
    raw = replace(raw, image=image, overscan=np.full((SHAPE[0], 30), 1000, np.uint16), gain=GAIN)
    plain = calibrate(raw, CalibrationSet())
    undone = calibrate(raw, CalibrationSet(), CalibrateSettings(pocket=True))
    assert "pocket" in undone.notes
    assert "pocket" not in plain.notes
    rows = [(out.data[:, ::-1] * GAIN - true)[:, 195:215] for out in (plain, undone)]
    assert np.abs(np.mean(rows[1], axis=0)).max() < 0.2 * np.abs(np.mean(rows[0], axis=0)).max()


def test_a_map_of_cells_comes_back() -> None:
    rng = np.random.default_rng(2)
    for shape, cell in (((130, 200), 64), ((77, 64), 16), ((5, 3), 8)):
        grid = rng.normal(1, 0.1, (-(-shape[0] // cell), -(-shape[1] // cell))).astype(np.float32)
        np.testing.assert_allclose(cell_nodes(spread_cells(grid, cell, shape), cell), grid, atol=0.02)
