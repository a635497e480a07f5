"""Whole subtractions of painted skies: what was put in comes out, what was not does not."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from pairs import reference_of, science_of, sky_wcs, varying_psf
from scipy import ndimage
from synthetic import star_field

from stream.core.errors import SubtractionError
from stream.core.flags import Mask
from stream.core.psf import PsfModel
from stream.core.records import Difference, Reference, ScienceImage
from stream.subtract import make_cache, subtract, subtract_by_kernel, zogy
from stream.subtract.background import grow, sky_of

N = 768
SHAPE = (N, N)
RSHAPE = (N + 128, N + 128)


@dataclass(frozen=True)
class Scene:
    """A subtracted pair, its static stars and its transients (places px, flux DN)."""

    science: ScienceImage
    reference: Reference
    difference: Difference
    stars: tuple[NDArray[np.float64], ...]
    transients: tuple[NDArray[np.float64], ...]

    def empty_sky(self) -> NDArray[np.bool_]:
        """Pixels that no source reaches."""
        sky = np.ones(SHAPE, bool)
        for x, y, f in zip(*(np.concatenate(p) for p in zip(self.stars, self.transients, strict=True)), strict=True):
            r, xi, yi = int(8 + 4 * np.log10(max(f, 100) / 100)), round(x), round(y)
            sky[max(yi - r, 0) : yi + r + 1, max(xi - r, 0) : xi + r + 1] = False
        return sky


def make_scene(science_fwhm: float, reference_fwhm: float, turn: float, frames: int, seed: int) -> Scene:
    wcs = sky_wcs(SHAPE)
    x, y, flux = star_field(SHAPE, 250, seed, (150, 200_000), edge=-20)
    rng = np.random.default_rng(seed + 1)
    ty, tx = (v.ravel().astype(float) for v in np.mgrid[40 : N - 40 : 60, 40 : N - 40 : 60])
    clear = np.hypot(tx[:, None] - x, ty[:, None] - y).min(axis=1) > 12
    tx, ty = tx[clear], ty[clear]
    tf = np.exp(rng.uniform(np.log(300), np.log(20_000), tx.size))
    sky = wcs.all_pix2world(np.append(x, tx), np.append(y, ty), 0)
    science = science_of(SHAPE, *sky, np.append(0.9 * flux, tf), wcs, varying_psf(science_fwhm, SHAPE), seed=seed + 2)
    reference = reference_of(
        RSHAPE, sky[0][: x.size], sky[1][: x.size], flux, sky_wcs(RSHAPE, 0.37, -0.61, turn),
        varying_psf(reference_fwhm, RSHAPE), frames=frames, seed=seed + 3,
    )  # fmt: skip
    return Scene(science, reference, subtract(science, reference), (x, y, flux), (tx, ty, tf))


@pytest.fixture(scope="module", params=[(1.8, 2.5, 0.05, 15), (2.5, 1.8, 0.3, 15), (2.2, 2.2, 2.0, 1)], ids=str)
def scene(request: pytest.FixtureRequest) -> Scene:
    return make_scene(*request.param, seed=10)


def measure(d: Difference, x: float, y: float) -> tuple[float, float]:
    """Flux and error of a source centred on a pixel, as the contract says."""
    xi, yi = round(x), round(y)
    box = np.s_[yi - 12 : yi + 13, xi - 12 : xi + 13]
    p = d.psf.stamp(x, y).astype(float)
    flux = (d.data[box] * p).sum() / (p * p).sum()
    return flux, float(np.sqrt(((d.sigma[box] * p) ** 2).sum()) / (p * p).sum())


def test_throughput_is_found(scene: Scene) -> None:
    assert scene.difference.flux_scale == pytest.approx(0.9, rel=0.006)
    assert max(scene.difference.registration_rms) < 0.05


def test_transients_keep_their_flux(scene: Scene) -> None:
    got = np.array([measure(scene.difference, x, y) for x, y in zip(*scene.transients[:2], strict=True)])
    truth = scene.transients[2]
    weight = 1 / got[:, 1] ** 2
    ratio = (got[:, 0] * truth * weight).sum() / (truth**2 * weight).sum()
    assert ratio == pytest.approx(1, abs=0.01)
    pulls = (got[:, 0] - truth) / np.hypot(got[:, 1], 0.003 * truth)
    assert 0.75 < pulls.std() < 1.3
    assert abs(pulls.mean()) < 0.5


def test_faint_transients_have_the_significance_that_is_theirs(scene: Scene) -> None:
    d = scene.difference
    x, y, truth = scene.transients
    faint = truth < 1500
    significance = d.scorr[np.rint(y[faint]).astype(int), np.rint(x[faint]).astype(int)]
    expected = np.array([f / measure(d, a, b)[1] for a, b, f in zip(x[faint], y[faint], truth[faint], strict=True)])
    assert np.median(significance / expected) == pytest.approx(1, abs=0.1)


def test_score_has_unit_variance_in_every_cell_of_empty_sky(scene: Scene) -> None:
    sky = scene.empty_sky() & np.isfinite(scene.difference.scorr)
    for j in range(0, N, 256):
        for i in range(0, N, 256):
            cell = np.s_[j : j + 256, i : i + 256]
            values = scene.difference.scorr[cell][sky[cell]]
            # About 30,000 px of a score correlated over 3 px: the standard deviation is known to about 1.2 %.
            assert 0.96 < values.std() < 1.04
            assert abs(values.mean()) < 0.15
    whole = scene.difference.scorr[sky]
    assert whole.std() == pytest.approx(1, abs=0.02)


def test_sigma_is_the_scatter_of_the_difference(scene: Scene) -> None:
    sky = scene.empty_sky() & np.isfinite(scene.difference.data)
    assert (scene.difference.data / scene.difference.sigma)[sky].std() == pytest.approx(1, abs=0.02)


def test_static_stars_vanish(scene: Scene) -> None:
    d = scene.difference
    x, y, flux = scene.stars
    xi, yi = np.rint(x).astype(int), np.rint(y).astype(int)
    seen = (xi > 8) & (yi > 8) & (xi < N - 9) & (yi < N - 9)
    worst = np.array([np.nanmax(np.abs(d.scorr[b - 2 : b + 3, a - 2 : a + 3])) if s and np.isfinite(d.scorr[b, a])
                      else np.nan for a, b, s in zip(xi, yi, seen, strict=True)])  # fmt: skip
    ordinary = np.isfinite(worst) & (flux < 50_000)
    assert ordinary.sum() > 100
    assert np.mean(worst[ordinary] > 5) < 0.02


def test_records_agree_with_each_other(scene: Scene) -> None:
    d = scene.difference
    assert {v.dtype for v in (d.data, d.scorr, d.score, d.sigma, d.reference)} == {np.dtype(np.float32)}
    nan = np.isnan(d.data)
    for image in (d.scorr, d.score, d.sigma):
        assert (np.isnan(image) == nan).all()
    assert nan[(d.mask & int(Mask.SATURATED | Mask.NAN | Mask.DEAD)) != 0].all()
    assert nan.mean() < 0.05
    noise = np.nanmedian(d.sigma)
    p = d.psf.stamp(N / 2, N / 2).astype(float)
    assert d.diffmaglim == pytest.approx(26.2 - 2.5 * np.log10(5 * noise / np.sqrt((p**2).sum())), abs=0.01)
    assert 1.7 < d.fwhm < 3.0


def test_psf_survives_pickling_and_sums_to_one(scene: Scene) -> None:
    psf = pickle.loads(pickle.dumps(scene.difference.psf))
    for x, y in ((0, 0), (N / 2, 100.3), (N + 50, -10)):
        stamp = psf.stamp(x, y)
        assert stamp.shape == (25, 25)
        assert stamp.sum() == pytest.approx(1, abs=1e-5)
        assert np.unravel_index(stamp.argmax(), stamp.shape) == (12, 12)
    wide = psf.stamp(N / 2, N / 2, 63)
    assert wide.shape == (63, 63)
    assert wide[19:44, 19:44] == pytest.approx(psf.stamp(N / 2, N / 2), rel=1e-6, abs=1e-10)


def test_same_input_same_bytes(scene: Scene) -> None:
    again = subtract(scene.science, scene.reference)
    assert again.data.tobytes() == scene.difference.data.tobytes()
    assert again.scorr.tobytes() == scene.difference.scorr.tobytes()


def test_a_cached_reference_gives_the_same_bytes(scene: Scene) -> None:
    again = subtract(scene.science, scene.reference, cache=make_cache(scene.reference))
    assert again.scorr.tobytes() == scene.difference.scorr.tobytes()


def test_inputs_are_left_alone() -> None:
    scene = make_scene(2.0, 2.2, 0.0, 15, seed=30)
    before = scene.science.data.copy(), scene.reference.data.copy(), scene.science.mask.copy()
    subtract(scene.science, scene.reference)
    assert (before[0] == scene.science.data).all()
    assert (before[1] == scene.reference.data).all()
    assert (before[2] == scene.science.mask).all()


def test_a_misplaced_reference_is_put_right() -> None:
    scene = make_scene(2.0, 2.4, 0.05, 15, seed=40)
    wcs = scene.reference.wcs.deepcopy()
    wcs.wcs.crpix = wcs.wcs.crpix + np.array([0.25, -0.15])
    wcs.wcs.set()
    d = subtract(scene.science, dataclasses.replace(scene.reference, wcs=wcs))
    x, y, flux = scene.stars
    bright = (flux > 5000) & (flux < 50_000) & (x > 10) & (y > 10) & (x < N - 10) & (y < N - 10)
    peak = np.abs(d.scorr[np.rint(y[bright]).astype(int), np.rint(x[bright]).astype(int)])
    assert np.nanmean(peak > 5) < 0.1


def test_a_gradient_of_the_sky_goes() -> None:
    scene = make_scene(2.0, 2.4, 0.05, 15, seed=50)
    tilted = scene.science.data + np.linspace(-8, 8, N, dtype=np.float32)[None, :]
    d = subtract(dataclasses.replace(scene.science, data=tilted), scene.reference)
    sky = scene.empty_sky() & np.isfinite(d.data)
    left = [d.data[:, i : i + 128][sky[:, i : i + 128]].mean() for i in range(0, N, 128)]
    assert np.abs(left).max() < 0.5


def test_partial_overlap_is_nan_outside_and_flagged() -> None:
    scene = make_scene(2.0, 2.2, 0.05, 15, seed=60)
    half = dataclasses.replace(
        scene.reference,
        data=scene.reference.data[:, :450].copy(),
        unc=scene.reference.unc[:, :450].copy(),
        coverage=scene.reference.coverage[:, :450].copy(),
    )
    d = subtract(scene.science, half)
    assert np.isnan(d.data[:, 420:]).all()
    assert (d.mask[:, 420:] & int(Mask.NAN)).all()
    inside = np.isfinite(d.scorr) & scene.empty_sky()
    assert inside[:, :380].mean() > 0.4
    assert d.scorr[inside].std() == pytest.approx(1, abs=0.03)


def test_no_overlap_is_said() -> None:
    scene = make_scene(2.0, 2.2, 0.05, 15, seed=60)
    far = dataclasses.replace(scene.reference, wcs=sky_wcs(RSHAPE, ra=151.0))
    with pytest.raises(SubtractionError, match="overlap"):
        subtract(scene.science, far)
    other_side = dataclasses.replace(scene.reference, wcs=sky_wcs(RSHAPE, ra=330.0, dec=-30.0))
    with pytest.raises(SubtractionError, match="overlap"):
        subtract(scene.science, other_side)
    empty = dataclasses.replace(scene.reference, data=np.full_like(scene.reference.data, np.nan))
    with pytest.raises(SubtractionError, match="usable"):
        subtract(scene.science, empty)


def test_nothing_steps_where_blocks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(2.0, 2.4, 0.05, 15, seed=70)
    one = subtract(scene.science, scene.reference)
    monkeypatch.setattr(zogy, "BLOCK", 192)
    many = subtract(scene.science, scene.reference)
    seen = np.isfinite(one.data) & np.isfinite(many.data)
    # Cut into sixteen blocks or one: the same to a hundredth of the noise, stars and borders included.
    change = ((one.data - many.data) / one.sigma)[seen]
    assert np.abs(change).max() < 0.06
    assert change.std() < 0.005
    change = (one.scorr - many.scorr)[seen]
    assert (np.abs(change) - 0.03 * np.abs(one.scorr[seen])).max() < 0.1
    assert change.std() < 0.01


def test_nan_science_pixels_stay_local() -> None:
    scene = make_scene(2.0, 2.4, 0.05, 15, seed=80)
    data = scene.science.data.copy()
    data[300:303, :] = np.nan
    d = subtract(dataclasses.replace(scene.science, data=data), scene.reference)
    assert np.isnan(d.data[298:305]).all()
    assert np.isfinite(d.data[310:320]).mean() > 0.9
    assert (d.mask[300:303] & int(Mask.NAN)).all()


def test_hot_pixels_and_particle_hits_are_no_transients() -> None:
    made = make_scene(2.2, 2.2, 0.05, 15, seed=45)
    data, mask = made.science.data.copy(), made.science.mask.copy()
    hits = {(201, 333): Mask.NOISY, (402, 120): Mask.SPIKE, (610, 540): Mask.COSMIC_RAY}
    for place, bit in hits.items():
        data[place] += 4000
        mask[place] |= int(bit)
    d = subtract(dataclasses.replace(made.science, data=data, mask=mask), made.reference)
    for (y, x), bit in hits.items():
        assert np.isnan(d.scorr[y - 1 : y + 2, x - 1 : x + 2]).all()
        assert int(d.mask[y, x]) & int(bit)
        around = np.s_[y - 8 : y + 9, x - 8 : x + 9]
        # What lies around is as it would be without the hit.
        assert np.nanmax(np.abs(d.scorr[around] - made.difference.scorr[around])) < 1.5
    assert np.isfinite(d.scorr).sum() >= np.isfinite(made.difference.scorr).sum() - 27


def moffat_psf(fwhm: float, shape: tuple[int, int]) -> PsfModel:
    """A PSF with wings, as the atmosphere makes them: a saturated Gaussian has no flanks to speak of."""
    r = np.hypot(*np.mgrid[-28:29, -28:29]) / 2
    core = fwhm / (2 * np.sqrt(2 ** (1 / 3) - 1))
    return PsfModel(((1 + (r / core) ** 2) ** -3)[None].astype(np.float32), 2, 0, shape, fwhm)


@pytest.mark.parametrize("fwhms", [(1.9, 2.6), (2.6, 1.9)])
def test_saturated_stars_leave_nothing_around_their_cores(fwhms: tuple[float, float]) -> None:
    wcs = sky_wcs(SHAPE)
    x, y, flux = star_field(SHAPE, 120, 5, (500, 100_000), edge=20)
    sx, sy = (v.ravel().astype(float) + 0.3 for v in np.mgrid[100:N:150, 100:N:150])
    giants = np.geomspace(5e5, 8e6, sx.size)
    clear = np.hypot(x[:, None] - sx, y[:, None] - sy).min(axis=1) > 40
    x, y, flux = x[clear], y[clear], flux[clear]
    # Beside each giant a transient.
    tx, ty = sx + 17.0, sy - 3.0
    at = wcs.all_pix2world(np.concatenate([x, sx, tx]), np.concatenate([y, sy, ty]), 0)
    still = x.size + sx.size
    fluxes = np.concatenate([flux, giants, np.full(tx.size, 3000.0)])
    science = science_of(SHAPE, *at, fluxes, wcs, moffat_psf(fwhms[0], SHAPE), seed=91)
    rows = np.zeros(sx.size, science.sources.dtype)  # saturated stars are in the list, their PSF fluxes are not
    rows["x"], rows["y"], rows["flux"], rows["ap_flux"] = sx, sy, np.nan, giants[:, None]
    rows["flags"] = int(Mask.SATURATED)
    science = dataclasses.replace(science, sources=np.concatenate([science.sources, rows]))
    reference = reference_of(
        RSHAPE, at[0][:still], at[1][:still], fluxes[:still], sky_wcs(RSHAPE, 0.37, -0.61, 0.05),
        moffat_psf(fwhms[1], RSHAPE), seed=92,
    )  # fmt: skip
    d = subtract(science, reference)
    yy, xx = np.indices(SHAPE)
    around = (np.hypot(xx[..., None] - sx, yy[..., None] - sy) < 30).any(axis=-1)
    new = (np.hypot(xx[..., None] - tx, yy[..., None] - ty) < 9).any(axis=-1)
    values = d.scorr[around & ~new & np.isfinite(d.scorr)]
    assert np.percentile(np.abs(values), 99) < 4
    assert (np.abs(values) > 5).mean() < 2e-3
    assert np.isnan(d.scorr[around]).mean() < 0.2
    seen = d.scorr[np.rint(ty).astype(int), np.rint(tx).astype(int)]
    assert (seen > 10).all()


def test_growing_is_a_square_dilation() -> None:
    mask = np.random.default_rng(4).random((60, 50)) < 0.02
    mask[0, 0] = mask[-1, -1] = True
    for radius in (0, 1, 2):
        size = 2 * radius + 1
        assert np.array_equal(grow(mask, radius), ndimage.maximum_filter(mask, size, mode="constant"))


def test_the_sky_is_read_beside_sources_and_defects() -> None:
    y, x = np.mgrid[:600, :500].astype(np.float32)
    truth = 0.1 + 0.001 * x - 0.0005 * y
    image = 1.2 * np.random.default_rng(1).normal(0, 1, truth.shape).astype(np.float32) + truth
    image[::9, ::7] += 50
    blank = np.zeros(truth.shape, bool)
    blank[100:200, 100:200] = True
    image[blank] = 1e5
    level, scatter, _ = sky_of(image, blank, 100)
    assert level.shape == (6, 5)
    middle = truth[50::100, 50::100]
    # Cells of 1,100 values.
    assert np.abs(level - middle).max() < 0.2
    assert np.std(level - middle) < 0.06
    assert scatter == pytest.approx(np.full((6, 5), 1.2), rel=0.04)
    nothing = sky_of(image, np.ones_like(blank), 100)
    assert (nothing[0] == 0).all()
    assert (nothing[1] == 1).all()


def test_residuals_of_a_bright_star_are_no_noise_of_the_sky() -> None:
    rng = np.random.default_rng(8)
    image = ndimage.gaussian_filter(rng.normal(0, 1, (800, 768)), 1.2)
    image = (image / image.std()).astype(np.float32)
    y, x = np.mgrid[:800, :768]
    r = np.hypot(x - 400, y - 300)
    image += (12 * np.exp(-((r / 40) ** 2)) * np.cos(1.7 * r)).astype(np.float32)
    scatter, excess = sky_of(image, np.zeros(image.shape, bool), 128)[1:]
    assert excess is not None
    assert excess.max() > 4
    assert (excess[20:] == 1).mean() > 0.95
    assert scatter == pytest.approx(np.ones(scatter.shape), abs=0.05)


def test_another_method_sees_the_same_sky(scene: Scene) -> None:
    other = subtract_by_kernel(scene.science, scene.reference)
    d = scene.difference
    got = np.array([measure(other, x, y) for x, y in zip(*scene.transients[:2], strict=True)])
    ours = np.array([measure(d, x, y) for x, y in zip(*scene.transients[:2], strict=True)])
    bright = scene.transients[2] > 3000
    assert np.median(got[bright, 0] / ours[bright, 0]) == pytest.approx(1, abs=0.02)
    sky = scene.empty_sky() & np.isfinite(other.scorr) & np.isfinite(d.scorr)
    assert other.scorr[sky].std() == pytest.approx(1, abs=0.04)
    assert np.corrcoef(other.scorr[sky], d.scorr[sky])[0, 1] > 0.7
