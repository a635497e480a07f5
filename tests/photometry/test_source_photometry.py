"""Source photometry against truth: fluxes, true errors, crowding, defects; apertures against photutils."""

from __future__ import annotations

import numpy as np
import pytest
from photometry_truth import GAIN, READNOISE, SATURATE, SKY, Truth, make_truth, true_psf
from photutils.aperture import CircularAperture, aperture_photometry
from scipy.spatial import cKDTree
from synthetic import add_noise, paint

from stream.core.errors import PhotometryError
from stream.core.flags import SOURCE_BITS, Mask
from stream.core.psf import gaussian_psf
from stream.core.records import APERTURE_DIAMETERS, DETECTION_DTYPE, SOURCE_DTYPE, Background, Table
from stream.photometry import (
    Fit,
    Scene,
    aperture_corrections,
    build_psf,
    detect,
    estimate_background,
    fit_scene,
    mark_sources,
    measure_sources,
)


def measure(truth: Truth, mask: np.ndarray | None = None, *, known_psf: bool = False) -> Table:
    mask = truth.mask if mask is None else mask
    args = (truth.data, truth.background)
    psf = truth.psf if known_psf else build_psf(*args, truth.detections, mask, GAIN, READNOISE, SATURATE)
    return measure_sources(*args, psf, truth.detections, mask, GAIN, READNOISE)[0]


def match(truth: Truth, sources: Table, isolation: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of sources and stars that belong together and stand alone."""
    stars = cKDTree(np.stack([truth.x, truth.y], axis=1))
    places = np.stack([sources["x"], sources["y"]], axis=1)
    distance, star = stars.query(places)
    alone = np.array([len(near) == 1 for near in stars.query_ball_point(places, isolation)])
    row = np.flatnonzero((distance < 1) & alone & np.isfinite(sources["flux"]))
    return row, star[row]


def spread(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


@pytest.mark.parametrize("fwhm", [1.7, 2.2, 3.0])
def test_fluxes_and_their_errors_are_true(fwhm: float) -> None:
    """Errors say the truth at S/N 5 to 100 and the mean flux is right, PSF made from the same image."""
    pulls, ratios = [], []
    for seed in (21, 22):
        truth = make_truth(fwhm, (640, 640), n=420, seed=seed, flux=(300.0, 40_000.0))
        sources = measure(truth)
        row, star = match(truth, sources, 3 * fwhm)
        # Chosen by true flux: the faint end of a detected sample is bright by selection.
        snr = truth.flux[star] / sources["sigflux"][row]
        use = (snr > 8) & (snr < 100)
        pulls.append(((sources["flux"][row] - truth.flux[star]) / sources["sigflux"][row])[use])
        bright = snr > 50
        ratios.append((sources["flux"][row] / truth.flux[star])[bright])
    pull, ratio = np.concatenate(pulls), np.concatenate(ratios)
    assert len(pull) > 200
    assert 0.9 < spread(pull) < 1.15
    assert abs(np.median(pull)) < 0.2
    assert np.median(ratio) == pytest.approx(1, abs=0.005)
    assert spread(ratio) < 0.012


def test_free_places_do_not_make_faint_stars_brighter() -> None:
    """All stars of a known S/N are fitted from their true places, found or not, so that nothing selects them."""
    shape, snr = (600, 600), 7.0
    psf = true_psf(2.2, shape, 0.0)
    area = 1 / (psf.stamp(300, 300).astype(float) ** 2).sum()
    noise = area * (SKY / GAIN + (READNOISE / GAIN) ** 2)
    flux = np.full(25 * 25, (snr**2 / GAIN + np.sqrt((snr**2 / GAIN) ** 2 + 4 * snr**2 * noise)) / 2)
    pulls, gained = [], []
    for seed in (51, 52, 53, 54):
        rng = np.random.default_rng(seed)
        x, y = (g.ravel() + rng.uniform(-2, 2, len(flux)) for g in np.meshgrid(*[np.linspace(15, 585, 25)] * 2))
        data = add_noise(paint(shape, x, y, flux, psf, 25), SKY, GAIN, READNOISE, seed)
        image, level = data - np.float32(SKY), np.full(shape, SKY, np.float32)
        rms = float(np.sqrt(SKY / GAIN + (READNOISE / GAIN) ** 2))
        sky = Background(level, np.full(shape, rms, np.float32), SKY, rms)
        for move, out in ((True, pulls), (False, gained)):
            fit = Fit.start(x, y, flux)
            fit_scene(Scene(image, np.zeros(shape, bool), sky, psf, GAIN, READNOISE), fit, move=move)
            out.append((fit.flux - flux) / fit.sigflux)
    free, fixed = np.concatenate(pulls), np.concatenate(gained)
    # The same pixels with and without freedom: what is common to both is the sample's own noise.
    assert abs((free - fixed).mean()) < 0.3 / snr
    assert spread(free) == pytest.approx(1, abs=0.06)


def test_known_psf_reaches_the_noise_limit() -> None:
    truth = make_truth(2.2, (640, 640), n=400, seed=24, flux=(300.0, 60_000.0))
    sources = measure(truth, known_psf=True)
    row, star = match(truth, sources, 7)
    pull = (sources["flux"][row] - truth.flux[star]) / sources["sigflux"][row]
    bright = sources["snr"][row] > 20
    assert 0.85 < spread(pull[bright]) < 1.15
    assert np.median(sources["chi"][row]) == pytest.approx(1, abs=0.06)
    very = sources["snr"][row] > 200
    assert spread(sources["x"][row][very] - truth.x[star][very]) < 0.008
    assert abs(np.median(sources["sharp"][row][bright])) < 0.02


def test_crowded_pairs_are_told_apart() -> None:
    """Pairs two FWHM apart, one five times the other: neighbours subtracted, both fluxes within a few per cent."""
    truth = make_truth(2.2, n=100, seed=25, flux=(3000.0, 30_000.0), vary=0.0)
    rng = np.random.default_rng(9)
    x, y = (
        g.ravel() + rng.uniform(-4, 4, 100) for g in np.meshgrid(np.linspace(30, 480, 10), np.linspace(30, 480, 10))
    )
    x2 = x + 4.8
    flux = np.concatenate([np.full(100, 20_000.0), np.full(100, 4000.0)])
    xs, ys = np.concatenate([x, x2]), np.concatenate([y, y])
    data = add_noise(paint((512, 512), xs, ys, flux, truth.psf, 31), SKY, GAIN, READNOISE, 8)
    background = estimate_background(data, truth.mask)
    detections = np.zeros(200, DETECTION_DTYPE)
    detections["x"], detections["y"], detections["flux"] = xs + 0.1, ys - 0.1, flux * 0.8
    detections["a"] = detections["b"] = 1.0
    sources, _ = measure_sources(data, background, truth.psf, detections, truth.mask, GAIN, READNOISE)
    ratio = sources["flux"] / flux
    assert np.median(ratio[:100]) == pytest.approx(1, abs=0.005)
    assert np.median(ratio[100:]) == pytest.approx(1, abs=0.02)
    assert spread((sources["flux"][100:] - 4000) / sources["sigflux"][100:]) < 1.3


def test_apertures_agree_with_photutils() -> None:
    truth = make_truth(2.2, n=60, seed=26)
    sources = measure(truth)
    inside = (np.minimum(sources["x"], sources["y"]) > 10) & (np.maximum(sources["x"], sources["y"]) < 500)
    places = np.stack([sources["x"], sources["y"]], axis=1)[inside]
    sky_off = truth.data - truth.background.level
    error = np.sqrt(truth.background.rms.astype(float) ** 2 + 0 * sky_off)
    for k, diameter in enumerate(APERTURE_DIAMETERS):
        other = aperture_photometry(sky_off, CircularAperture(places, diameter / 2), error=error)
        assert sources["ap_flux"][inside, k] == pytest.approx(np.asarray(other["aperture_sum"]), rel=1e-4, abs=0.05)
        total = np.hypot(other["aperture_sum_err"], np.sqrt(np.maximum(other["aperture_sum"], 0) / GAIN))
        assert sources["ap_err"][inside, k] == pytest.approx(np.asarray(total), rel=0.01)


def test_aperture_corrections_are_the_psf_s_curve_of_growth() -> None:
    truth = make_truth(2.2, (640, 640), n=150, seed=27, flux=(3000.0, 50_000.0), vary=0.0)
    sources = measure(truth)
    corrections = aperture_corrections(sources)
    phases = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 2))
    for k, diameter in enumerate(APERTURE_DIAMETERS):
        parts = []
        for dx, dy in phases:  # the curve of growth, averaged over the sub-pixel phases
            stamp = truth.psf.stamps([300 + dx], [300 + dy], 25)[0]
            part = aperture_photometry(stamp, CircularAperture((12 + dx, 12 + dy), diameter / 2))["aperture_sum"][0]
            parts.append(2.5 * np.log10(part))
        assert corrections.values[k] == pytest.approx(np.mean(parts), abs=0.015)
        assert 0 < corrections.uncertainties[k] < 0.02


def test_too_few_stars_leave_corrections_open() -> None:
    corrections = aperture_corrections(np.zeros(0, SOURCE_DTYPE))
    assert np.isnan(corrections.values).all()
    assert len(corrections.values) == len(corrections.uncertainties) == len(APERTURE_DIAMETERS)


def test_sharp_tells_shapes() -> None:
    shape = (256, 256)
    psf = gaussian_psf(2.4, shape)
    grid = np.arange(40.0, 230.0, 40.0)
    x, y = (g.ravel() + 0.3 for g in np.meshgrid(grid, grid))
    third = len(x) // 3
    image = paint(shape, x[:third], y[:third], np.full(third, 2e4), psf)
    wide = slice(third, 2 * third)
    image += paint(shape, x[wide], y[wide], np.full(third, 2e4), gaussian_psf(3.4, shape))
    image[np.rint(y[2 * third :]).astype(int), np.rint(x[2 * third :]).astype(int)] += 5000
    data = add_noise(image, SKY, GAIN, READNOISE, 4)
    mask = np.zeros(shape, np.uint16)
    background = estimate_background(data, mask)
    detections = np.zeros(len(x), DETECTION_DTYPE)
    detections["x"], detections["y"], detections["flux"] = x, y, 1e4
    sources, _ = measure_sources(data, background, psf, detections, mask, GAIN, READNOISE)
    assert np.abs(sources["sharp"][:third]).max() < 0.1
    assert sources["sharp"][wide].min() > 0.4
    assert sources["sharp"][2 * third :].max() < -0.3
    assert np.median(sources["chi"][third:]) > 2 * np.median(sources["chi"][:third])


def test_defects_flags_and_edges() -> None:
    truth = make_truth(2.2, n=150, seed=28, flux=(2000.0, 40_000.0), vary=0.0)
    row = int(np.argmax(truth.detections["flux"]))
    cx, cy = (round(float(truth.detections[n][row])) for n in ("x", "y"))
    mask, data = truth.mask.copy(), truth.data.copy()
    data[cy, cx + 1] = 60_000  # a defect beside the core, known
    mask[cy, cx + 1] = int(Mask.COSMIC_RAY)
    clean = measure(truth, known_psf=True)
    sources, _ = measure_sources(data, truth.background, truth.psf, truth.detections, mask, GAIN, READNOISE)
    assert sources["flags"][row] == int(Mask.COSMIC_RAY)
    assert sources["flux"][row] == pytest.approx(clean["flux"][row], rel=0.02)
    assert sources["sigflux"][row] > clean["sigflux"][row]
    # A source whose pixels are all lost has no flux, and one at the edge says so.
    data[cy - 9 : cy + 10, cx - 9 : cx + 10] = np.nan
    detections = truth.detections.copy()
    other = (row + 1) % len(detections)
    detections["x"][other], detections["y"][other] = 1.2, 100.0
    lost, _ = measure_sources(data, truth.background, truth.psf, detections, mask, GAIN, READNOISE)
    assert np.isnan([lost["flux"][row], lost["sigflux"][row], lost["snr"][row]]).all()
    assert np.isnan(lost["ap_flux"][row, 0])
    assert lost["flags"][other] == -1
    assert len(lost) == len(detections)


def test_rows_types_and_repeatability() -> None:
    truth = make_truth(2.2, n=100, seed=29)
    sources = measure(truth)
    assert sources.dtype == SOURCE_DTYPE
    assert (sources["sourceid"] == np.arange(len(truth.detections))).all()
    assert np.isnan(sources["ra"]).all()
    assert sources.tobytes() == measure(truth).tobytes()


def test_no_detections_no_sources() -> None:
    truth = make_truth(2.2, n=30, seed=30)
    empty = truth.detections[:0]
    sources, corrections = measure_sources(truth.data, truth.background, truth.psf, empty, truth.mask, GAIN, READNOISE)
    assert len(sources) == 0
    assert sources.dtype == SOURCE_DTYPE
    assert corrections.n_stars == 0
    assert (mark_sources(truth.mask, sources) == 0).all()


def test_wrong_input_is_refused() -> None:
    truth = make_truth(2.2, n=30, seed=31)
    args = (truth.background, truth.psf, truth.detections)
    with pytest.raises(PhotometryError, match="equal"):
        measure_sources(truth.data[1:], *args, truth.mask, GAIN, READNOISE)
    with pytest.raises(PhotometryError, match="gain above 0"):
        measure_sources(truth.data, *args, truth.mask, 0.0, READNOISE)


def test_marked_pixels_are_those_of_the_sources() -> None:
    truth = make_truth(2.2, n=60, seed=33, flux=(2000.0, 40_000.0))
    sources = measure(truth, known_psf=True)
    mask = truth.mask.copy()
    mask[0, 0] = int(Mask.DEAD)
    marked = mark_sources(mask, sources)
    assert marked.dtype == np.uint16
    assert marked[0, 0] == int(Mask.DEAD)
    assert (mask & SOURCE_BITS == 0).all()
    centre = marked[np.rint(sources["y"]).astype(int), np.rint(sources["x"]).astype(int)]
    assert (centre & SOURCE_BITS == SOURCE_BITS).all()
    light = paint(truth.data.shape, truth.x, truth.y, truth.flux, truth.psf)
    bright = light > 10 * truth.background.sigma
    assert ((marked & int(Mask.SOURCE)) != 0)[bright].mean() > 0.95
    assert ((marked & int(Mask.SOURCE)) != 0).mean() < 0.05
    assert detect(truth.data, truth.background, marked).tobytes() != b""  # source bits hide nothing
    assert len(detect(truth.data, truth.background, marked)) == len(truth.detections)


@pytest.fixture(scope="module")
def crowd() -> tuple[Truth, Table]:
    """Stars as dense as 95,000 on a quadrant, measured from a list that misses all the blended ones."""
    truth = make_truth(2.4, (320, 320), n=1000, seed=41, flux=(150.0, 15_000.0), vary=0.0)
    sources, _ = measure_sources(truth.data, truth.background, truth.psf, truth.detections, truth.mask, GAIN, READNOISE)
    return truth, sources


def test_crowded_fields_are_searched_again(crowd: tuple[Truth, Table]) -> None:
    truth, sources = crowd
    known = len(truth.detections)
    stars = cKDTree(np.stack([truth.x, truth.y], axis=1))
    bright = truth.flux > 600

    def share(table: Table) -> float:
        near, _ = cKDTree(np.stack([table["x"], table["y"]], axis=1)).query(stars.data, distance_upper_bound=1.2)
        return float(np.isfinite(near[bright]).mean())

    assert len(sources) > 1.2 * known
    assert share(sources) > share(sources[:known]) + 0.08
    assert share(sources) > 0.85
    added = sources[known:]
    distance, _ = stars.query(np.stack([added["x"], added["y"]], axis=1))
    assert (distance < 2).mean() > 0.9
    assert (added["snr"] > 3).all()


def test_fluxes_in_a_crowd_are_unbiased(crowd: tuple[Truth, Table]) -> None:
    """The sky is measured with the sources off: without that every flux here would be low."""
    truth, sources = crowd
    row, star = match(truth, sources, 4.0)
    pull = (sources["flux"][row] - truth.flux[star]) / sources["sigflux"][row]
    use = (truth.flux[star] / sources["sigflux"][row] > 10) & (sources["flags"][row] == 0)
    assert use.sum() > 100
    assert abs(np.median(pull[use])) < 0.35
    assert spread(pull[use]) < 1.4


def test_close_pairs_are_solved_as_one() -> None:
    """Three stars within one FWHM of each other: each flux and its error is right, which taking turns cannot do."""
    truth = make_truth(2.4, (420, 420), n=100, seed=43, flux=(3000.0, 30_000.0), vary=0.0)
    rng = np.random.default_rng(10)
    gx, gy = (g.ravel() for g in np.meshgrid(np.arange(30.0, 400, 30), np.arange(30.0, 400, 30)))
    xs = np.concatenate([gx, gx + 2.3, gx + 0.6]) + np.tile(rng.uniform(-0.5, 0.5, len(gx)), 3)
    ys = np.concatenate([gy, gy + 0.8, gy - 2.4])
    flux = np.repeat([20_000.0, 8000.0, 12_000.0], len(gx))
    data = add_noise(paint(truth.data.shape, xs, ys, flux, truth.psf, 31), SKY, GAIN, READNOISE, 11)
    background = estimate_background(data, truth.mask)
    detections = np.zeros(len(xs), DETECTION_DTYPE)
    detections["x"], detections["y"], detections["flux"] = xs + 0.15, ys - 0.15, flux * 0.7
    sources, _ = measure_sources(data, background, truth.psf, detections, truth.mask, GAIN, READNOISE)
    pull = (sources["flux"][: len(xs)] - flux) / sources["sigflux"][: len(xs)]
    assert 0.85 < spread(pull) < 1.2
    assert abs(np.median(pull)) < 0.25
    alone = np.sqrt(flux / GAIN)  # a star's photons alone: the neighbours must cost more
    assert (sources["sigflux"][: len(xs)] > 1.2 * alone).all()


def test_errors_know_the_sky_s_covariance() -> None:
    """Faint sources nobody detects, dense as grass: pixels hardly show them, fluxes do, and the errors say so."""
    truth = make_truth(2.4, (640, 640), n=150, seed=51, flux=(400.0, 4000.0), vary=0.0)
    rng = np.random.default_rng(52)
    n = 30_000
    grass = paint(
        truth.data.shape, rng.uniform(0, 639, n), rng.uniform(0, 639, n), rng.choice([-25.0, 25.0], n), truth.psf, 15
    )
    plain, _ = measure_sources(truth.data, truth.background, truth.psf, truth.detections, truth.mask, GAIN, READNOISE)
    data = (truth.data + grass).astype(np.float32)
    background = estimate_background(data, truth.mask)
    sources, _ = measure_sources(data, background, truth.psf, truth.detections, truth.mask, GAIN, READNOISE)
    row, star = match(truth, sources, 7)
    faint = truth.flux[star] < 1500
    pull = ((sources["flux"][row] - truth.flux[star]) / sources["sigflux"][row])[faint]
    assert faint.sum() > 40
    assert np.median(sources["sigflux"][row] / plain["sigflux"][row]) > 1.15
    assert 0.75 < spread(pull) < 1.3


def test_given_places_are_the_same_fit_without_its_freedom() -> None:
    """Overlapping stars at known places: fluxes of both signs, right within smaller errors than with free places."""
    shape = (300, 300)
    psf = make_truth(2.4, (300, 300), n=5, seed=71, vary=0.0).psf
    grid, rng = np.arange(30.0, 280, 30), np.random.default_rng(72)
    gx, gy = (g.ravel() for g in np.meshgrid(grid, grid))
    x, y = np.concatenate([gx, gx + 2.0]), np.concatenate([gy, gy + 1.0]) + rng.uniform(-0.5, 0.5, 2 * len(gx))
    flux = np.concatenate([np.full(len(gx), 3000.0), np.full(len(gx), -900.0)])
    data = add_noise(paint(shape, x, y, flux, psf, 31), SKY, GAIN, READNOISE, 73)
    background = estimate_background(data, np.zeros(shape, np.uint16))
    fits = []
    for move in (False, True):
        scene = Scene(data - background.level, np.zeros(shape, bool), background, psf, GAIN, READNOISE)
        fit = Fit.start(x, y, np.where(flux > 0, 2500.0, -500.0))
        fit_scene(scene, fit, move=move)
        fits.append(fit)
    fixed, free = fits
    pull = (fixed.flux - flux) / fixed.sigflux
    assert np.array_equal(fixed.x, x)
    assert np.array_equal(fixed.y, y)
    assert 0.85 < spread(pull) < 1.2
    assert abs(np.median(pull)) < 0.25
    assert np.median(free.sigflux / fixed.sigflux) > 1.02


def test_stars_and_galaxies_are_told_apart() -> None:
    truth = make_truth(2.2, (420, 420), n=60, seed=81, flux=(8000.0, 30_000.0), vary=0.0)
    rng = np.random.default_rng(82)
    gx, gy = (g.ravel() for g in np.meshgrid(np.arange(30.0, 400, 50), np.arange(30.0, 400, 50)))
    wide = gaussian_psf(3.4, truth.data.shape)
    galaxies = np.maximum(paint(truth.data.shape, gx, gy, np.full(len(gx), 8000.0), wide), 0)
    data = truth.data + rng.poisson(galaxies * GAIN) / GAIN
    data = data.astype(np.float32)
    found = detect(data, truth.background, truth.mask)
    sources, _ = measure_sources(data, truth.background, truth.psf, found, truth.mask, GAIN, READNOISE)
    places = np.stack([sources["x"], sources["y"]], axis=1)
    star, galaxy = (cKDTree(np.stack(at, axis=1)).query(places)[0] for at in ((truth.x, truth.y), (gx, gy)))
    assert np.median(sources["star"][(star < 1) & (galaxy > 12)]) > 0.9
    assert np.median(sources["star"][(galaxy < 1) & (star > 12)]) < 0.1
