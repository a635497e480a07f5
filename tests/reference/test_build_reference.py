"""References of painted skies: the sky comes out, what moves does not, and the errors are true."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from pairs import science_of, sky_wcs, varying_psf
from synthetic import paint, star_field

from stream.core.displacement import Displacement
from stream.core.errors import ReferenceBuildError
from stream.core.flags import Mask
from stream.core.identity import rfid_of
from stream.core.pixelmap import world_to_pixel
from stream.core.records import Reference, ScienceImage
from stream.core.zeropointmap import ZeroPointMap
from stream.reference import build_reference, same_place
from stream.reference.combine import InputNoise, combine
from stream.subtract import subtract

N = 512
SHAPE = (N, N)
JD = 2458300.7
ASTEROID = (300.0, 200.0)  # px of input 1
ZP = 26.275  # the common zero point of r


@pytest.fixture(scope="module")
def sky() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Stars around the field (ra, dec) and their flux in reference DN."""
    x, y, flux = star_field((N + 160, N + 160), 260, 21, (500, 150_000), edge=0)
    ra, dec = sky_wcs(SHAPE).all_pix2world(x - 80, y - 80, 0)
    return ra, dec, flux


def exposures(sky: tuple[NDArray[np.float64], ...], n: int) -> list[ScienceImage]:
    """Dithered, turned exposures in different seeing and transparency; asteroid, trail and cosmic ray in some."""
    ra, dec, flux = sky
    out = []
    for k in range(n):
        wcs = sky_wcs(SHAPE, dx=3.7 * np.sin(k), dy=4.1 * np.cos(2 * k), turn=0.03 * (k - n / 2))
        scale = 10 ** (-0.4 * (ZP - 26.1 - 0.02 * k))
        psf = varying_psf(2.0 + 0.08 * k, SHAPE, growth=0.05)
        image = science_of(SHAPE, ra, dec, flux * scale, wcs, psf, magzp=26.1 + 0.02 * k, jd=JD + k, seed=100 + k)
        out.append(image)
    if n > 3:
        moving = [np.array([ASTEROID[0]]), np.array([ASTEROID[1]]), np.array([30_000.0])]
        out[1].data[...] += paint(SHAPE, *moving, out[1].psf).astype(np.float32)
        y = np.arange(N)
        out[2].data[y, (100 + 0.4 * y).astype(int)] += 400.0
        out[3].data[50:53, 60:62] += 20_000
    return out


@pytest.fixture(scope="module")
def images(sky: tuple[NDArray[np.float64], ...]) -> list[ScienceImage]:
    return exposures(sky, 8)


@pytest.fixture(scope="module")
def reference(images: list[ScienceImage]) -> Reference:
    return build_reference(images)


def truth_of(reference: Reference, sky: tuple[NDArray[np.float64], ...]) -> NDArray[np.float64]:
    x, y = world_to_pixel(reference.wcs, sky[0], sky[1])
    return paint(reference.data.shape, x, y, sky[2], reference.psf)


def quiet(reference: Reference, sky: tuple[NDArray[np.float64], ...]) -> NDArray[np.bool_]:
    """Fully covered pixels that no star reaches."""
    out = reference.coverage >= reference.n_frames - 3
    x, y = world_to_pixel(reference.wcs, sky[0], sky[1])
    yy, xx = np.indices(out.shape)
    for xi, yi in zip(x, y, strict=True):
        out &= (xx - xi) ** 2 + (yy - yi) ** 2 > 12**2
    return out


def test_identity_grid_and_epochs(reference: Reference, images: list[ScienceImage]) -> None:
    assert reference.rfid == rfid_of(600, 2, 17)
    assert (reference.field, reference.fid, reference.rcid, reference.n_frames) == (600, 2, 17, 8)
    assert reference.data.shape == reference.unc.shape == reference.coverage.shape == (N + 128, N + 128)
    assert (reference.data.dtype, reference.unc.dtype, reference.coverage.dtype) == (np.float32, np.float32, np.int16)
    assert (reference.jd_start, reference.jd_end) == (JD, JD + 7)
    assert reference.magzp == ZP
    assert sorted(reference.inputs) == sorted(i.quadrant.name for i in images)
    cd = reference.wcs.wcs.cd
    assert cd[0, 0] < 0
    assert cd[1, 1] < 0
    # The middle of the grid is the middle of one of the inputs.
    middle = reference.wcs.all_pix2world((N + 127) / 2, (N + 127) / 2, 0)
    offsets = [np.hypot(*(np.array(i.astrometry.wcs.all_world2pix(*middle, 0)) - (N - 1) / 2)) for i in images]
    assert min(offsets) < 0.01


def test_stars_are_where_and_as_bright_as_they_should_be(reference: Reference, sky: tuple) -> None:  # type: ignore[type-arg]
    x, y = world_to_pixel(reference.wcs, sky[0], sky[1])
    table = reference.sources
    matched = 0
    ratios, offsets = [], []
    for xi, yi, flux in zip(x, y, sky[2], strict=True):
        crowd = np.hypot(x - xi, y - yi)
        if not (100 < xi < N and 100 < yi < N) or flux < 5000 or np.sort(crowd)[1] < 15 or flux > 100_000:
            continue
        k = int(np.argmin(np.hypot(table["x"] - xi, table["y"] - yi)))
        matched += 1
        ratios.append(table["flux"][k] / flux)
        offsets.append((table["x"][k] - xi, table["y"][k] - yi))
    assert matched > 15
    assert np.median(ratios) == pytest.approx(1, abs=0.01)
    assert np.abs(np.median(offsets, axis=0)).max() < 0.02
    assert np.std(offsets) < 0.05
    again = reference.wcs.all_world2pix(table["ra"], table["dec"], 0)
    assert np.allclose(again[0], table["x"], atol=1e-3)


def test_its_uncertainty_is_true(reference: Reference, sky: tuple) -> None:  # type: ignore[type-arg]
    empty = quiet(reference, sky)
    assert empty.sum() > 50_000
    pixel = (reference.data / reference.unc)[empty].std()
    assert pixel == pytest.approx(reference.qa["noise_factor"], rel=0.03)

    # Sums over 4 x 4 px, about what a star covers, have the white-equivalent error.
    def binned(image: np.ndarray) -> np.ndarray:
        return image.reshape((N + 128) // 4, 4, (N + 128) // 4, 4).sum(axis=(1, 3))

    whole = binned(empty) == 16
    pull = binned(np.nan_to_num(reference.data))[whole] / np.sqrt(binned(np.nan_to_num(reference.unc) ** 2)[whole])
    assert pull.std() == pytest.approx(1, abs=0.06)
    assert abs(reference.data[empty].mean()) < 0.3


def test_what_moves_and_flashes_is_gone(reference: Reference, images: list[ScienceImage], sky: tuple) -> None:  # type: ignore[type-arg]
    left = reference.data - truth_of(reference, sky)
    noise = np.nanmedian(reference.unc)
    for image, places in (
        (images[1], [ASTEROID]),
        (images[2], [(100 + 0.4 * y, y) for y in range(40, 480, 40)]),
        (images[3], [(60.5, 51.0)]),
    ):
        for px, py in places:
            x, y = (round(float(v)) for v in reference.wcs.all_world2pix(
                *image.astrometry.wcs.all_pix2world(px, py, 0), 0))  # fmt: skip
            box = left[y - 3 : y + 4, x - 3 : x + 4]
            star = truth_of(reference, sky)[y - 3 : y + 4, x - 3 : x + 4]
            if star.max() > 20:
                continue
            # The mean over 49 px is known to 0.14 of a pixel's noise; an unclipped trail alone would leave 1.5.
            assert abs(np.nanmean(box)) < 0.8 * noise, (px, py)
    assert 0 < reference.qa["rejected"] < 0.02


def test_coverage_counts_inputs(reference: Reference) -> None:
    assert reference.coverage.max() == 8
    assert (np.isnan(reference.data) == (reference.coverage == 0)).all()
    assert reference.coverage[5, 5] == 0
    middle = reference.coverage[100:-100, 100:-100]
    assert np.median(middle) == 8
    # Beside bright stars the kernel rings by its phase, and so values are clipped: a few pixels.
    assert (middle < 5).mean() < 1e-3


def test_its_psf_is_the_mean_of_the_inputs(reference: Reference, images: list[ScienceImage]) -> None:
    assert reference.psf.shape == reference.data.shape
    assert reference.qa["psf_measured"]
    assert reference.psf.fwhm == pytest.approx(np.median([i.seeing for i in images]), rel=0.06)


def test_quality_record(reference: Reference) -> None:
    qa = reference.qa
    assert qa["nframes"] == 8
    assert qa["medncov"] == pytest.approx(8, abs=1)
    assert 40 < qa["cov5percent"] <= 100
    assert qa["npixnan"] == np.isnan(reference.data).sum()
    assert qa["clstddev"] == pytest.approx(qa["datascale"], rel=0.5)
    assert qa["gain"] == pytest.approx(8 * 6.2, rel=0.15)
    assert qa["fwhmminpix"] < qa["fwhmmedpix"] < qa["fwhmmaxpix"]
    assert qa["nsources"] == len(reference.sources)


def test_order_does_not_matter_and_versions_do(images: list[ScienceImage]) -> None:
    one, other = build_reference(images[:3]), build_reference(images[2::-1])
    assert one.version == other.version
    assert one.data.tobytes() == other.data.tobytes()
    assert one.sources.tobytes() == other.sources.tobytes()
    assert build_reference(images[:2]).version != one.version


def test_a_difference_against_it_has_unit_variance(sky: tuple, reference: Reference) -> None:  # type: ignore[type-arg]
    ra, dec, flux = sky
    wcs = sky_wcs(SHAPE, dx=1.3, dy=-2.2, turn=0.07)
    scale = 10 ** (-0.4 * (ZP - 26.2))
    science = science_of(SHAPE, ra, dec, flux * scale, wcs, varying_psf(2.1, SHAPE, 0.05), magzp=26.2, seed=7)
    d = subtract(science, reference)
    assert d.flux_scale == pytest.approx(scale, rel=0.01)
    x, y = world_to_pixel(wcs, ra, dec)
    yy, xx = np.indices(SHAPE)
    empty = np.isfinite(d.scorr)
    for xi, yi in zip(x, y, strict=True):
        empty &= (xx - xi) ** 2 + (yy - yi) ** 2 > 12**2
    assert empty.mean() > 0.4
    for j in (0, 256):
        for i in (0, 256):
            cell = np.s_[j : j + 256, i : i + 256]
            assert 0.95 < d.scorr[cell][empty[cell]].std() < 1.05
    assert (d.data / d.sigma)[empty].std() == pytest.approx(1, abs=0.025)


def test_saturated_stars_stay_saturated_and_excluded_pixels_stay_out(sky: tuple) -> None:  # type: ignore[type-arg]
    images = exposures(sky, 3)
    images[0].mask[200:204, 300:304] = int(Mask.SATURATED)
    images[1].data[100:110, 100:110] = 1e6
    images[1].mask[100:110, 100:110] = int(Mask.COSMIC_RAY)
    images[2].data[300, 40:60] = np.nan
    reference = build_reference(images)
    x, y = (round(float(v)) for v in reference.wcs.all_world2pix(
        *images[0].astrometry.wcs.all_pix2world(301.5, 201.5, 0), 0))  # fmt: skip
    assert reference.data[y, x] >= reference.saturate * 0.999
    x, y = (round(float(v)) for v in reference.wcs.all_world2pix(
        *images[1].astrometry.wcs.all_pix2world(104.5, 104.5, 0), 0))  # fmt: skip
    assert reference.coverage[y, x] == 2
    assert reference.data[y - 3 : y + 4, x - 3 : x + 4].max() < 1e5


def test_one_image_is_enough(sky: tuple) -> None:  # type: ignore[type-arg]
    image = exposures(sky, 1)[0]
    reference = build_reference([image])
    assert reference.n_frames == 1
    assert reference.coverage.max() == 1
    assert np.nanmedian(reference.unc) == pytest.approx(
        image.background.sigma * 10 ** (0.4 * (ZP - image.zeropoint.magzp)), rel=0.05
    )


def test_few_stars_lend_an_inputs_psf(sky: tuple) -> None:  # type: ignore[type-arg]
    wcs = sky_wcs((128, 128))
    none = np.zeros(0)
    image = science_of((128, 128), none, none, none, wcs, varying_psf(2.3, (128, 128)), seed=3)
    reference = build_reference([image])
    assert not reference.qa["psf_measured"]
    assert reference.psf.fwhm == image.psf.fwhm


def test_bad_requests_are_said(images: list[ScienceImage]) -> None:
    with pytest.raises(ReferenceBuildError, match="at least one"):
        build_reference([])
    stranger = dataclasses.replace(images[1], quadrant=dataclasses.replace(images[1].quadrant, qid=3))
    with pytest.raises(ReferenceBuildError, match="another field"):
        build_reference([images[0], stranger])
    dark = dataclasses.replace(images[1], zeropoint=dataclasses.replace(images[1].zeropoint, magzp=float("nan")))
    with pytest.raises(ReferenceBuildError, match="zero point"):
        build_reference([images[0], dark])


def test_two_inputs_keep_the_fainter_value_where_they_disagree() -> None:
    rng = np.random.default_rng(1)
    stack = rng.normal(0, 1, (2, 40, 40)).astype(np.float32)
    stack[1, 20, 20] = 500
    noise = InputNoise(np.ones(2), np.full(2, 0.1))
    mean = combine(stack, noise)
    assert mean.coverage[20, 20] == 1
    assert abs(mean.data[20, 20]) < 5
    assert mean.unc[20, 20] >= 1
    assert mean.unc[5, 5] == pytest.approx(np.sqrt(0.5 + 0.05 * max(mean.data[5, 5], 0)), rel=1e-3)


def test_combination_in_row_blocks_is_the_combination() -> None:
    from stream.reference import CombineConfig

    rng = np.random.default_rng(2)
    stack = rng.normal(0, 1, (6, 100, 50)).astype(np.float32)
    stack[3, 30:36, 20:26] += 4
    stack[2, :10] = np.nan
    noise = InputNoise(np.ones(6), np.zeros(6))
    whole, parts = (combine(stack, noise, CombineConfig(rows=rows)) for rows in (100, 17))
    # Running sums of the 3 x 3 means round differently: a value on the very limit may fall the other way.
    same = whole.coverage == parts.coverage
    assert same.mean() > 0.999
    assert np.array_equal(whole.data[same], parts.data[same])
    assert (whole.coverage[:10] <= 5).all()


def test_the_sharpest_input_is_not_clipped_in_bright_stars(sky: tuple) -> None:  # type: ignore[type-arg]
    ra, dec, flux = sky
    images = []
    for k, fwhm in enumerate((2.3, 1.7, 2.1, 2.2, 2.1)):
        wcs = sky_wcs(SHAPE, dx=1.3 * np.sin(k), dy=1.1 * np.cos(2 * k))
        psf = varying_psf(fwhm, SHAPE, growth=0.05)
        images.append(science_of(SHAPE, ra, dec, flux, wcs, psf, magzp=ZP, jd=JD + k, seed=300 + k))
    reference = build_reference(images)
    x, y = world_to_pixel(reference.wcs, ra, dec)
    inside = (np.minimum(x, y) > 90) & (np.maximum(x, y) < N + 40)
    bright = inside & (flux > 30_000)
    assert bright.sum() > 20
    cores = [reference.coverage[round(b) - 2 : round(b) + 3, round(a) - 2 : round(a) + 3].min()
             for a, b in zip(x[bright], y[bright], strict=True)]  # fmt: skip
    assert np.mean(np.array(cores) == 5) > 0.9
    # One PSF for all: what it finds in bright and in faint stars is the same share of their light.
    table, ratios = reference.sources, {True: [], False: []}
    for xi, yi, fi in zip(x[inside], y[inside], flux[inside], strict=True):
        k = int(np.argmin(np.hypot(table["x"] - xi, table["y"] - yi)))
        if fi > 5000 and np.sort(np.hypot(x - xi, y - yi))[1] > 15:
            ratios[bool(fi > 30_000)].append(table["flux"][k] / fi)
    assert np.median(ratios[True]) == pytest.approx(np.median(ratios[False]), abs=0.006)


def test_a_bad_column_through_a_star_leaves_no_mark(sky: tuple) -> None:  # type: ignore[type-arg]
    ra, dec, flux = sky
    x0, y0 = sky_wcs(SHAPE).all_world2pix(ra, dec, 0)
    inside = (np.minimum(x0, y0) > 60) & (np.maximum(x0, y0) < N - 60)
    star = int(np.argmax(np.where(inside, flux, 0)))
    images = []
    for k, fwhm in enumerate((2.6, 1.8, 2.1, 2.3)):
        wcs = sky_wcs(SHAPE, dx=1.0 * k)
        image = science_of(SHAPE, ra, dec, flux, wcs, varying_psf(fwhm, SHAPE), magzp=ZP, jd=JD + k, seed=400 + k)
        if k < 2:
            column = round(float(world_to_pixel(wcs, ra[star], dec[star])[0][0])) - 1 + k
            image.data[:, column] += 5000
            image.mask[:, column] |= int(Mask.NOISY)
            # Photometry flags what it has near a defect; here it does not list such stars at all.
            near = np.abs(image.sources["x"] - column) < 3
            images.append(dataclasses.replace(image, sources=image.sources[~near]))
        else:
            images.append(image)
    reference = build_reference(images)
    x, y = (float(v[0]) for v in world_to_pixel(reference.wcs, ra[star], dec[star]))
    k = int(np.argmin(np.hypot(reference.sources["x"] - x, reference.sources["y"] - y)))
    assert reference.coverage[round(y), round(x) - 4 : round(x) + 5].min() < 4
    assert reference.sources["flux"][k] == pytest.approx(flux[star], rel=0.01)


def test_an_asteroid_that_photometry_took_for_a_star_goes(sky: tuple) -> None:  # type: ignore[type-arg]
    images = exposures(sky, 5)
    row = images[1].sources[:1].copy()
    row["x"], row["y"], row["flux"], row["flags"] = *ASTEROID, 30_000.0, 0
    images[1] = dataclasses.replace(images[1], sources=np.concatenate([images[1].sources, row]))
    reference = build_reference(images)
    x, y = (round(float(v)) for v in reference.wcs.all_world2pix(
        *images[1].astrometry.wcs.all_pix2world(*ASTEROID, 0), 0))  # fmt: skip
    left = (reference.data - truth_of(reference, sky))[y - 3 : y + 4, x - 3 : x + 4]
    assert abs(np.nanmean(left)) < 0.8 * np.nanmedian(reference.unc)


def test_a_fit_gone_wrong_in_one_input_leaves_no_light(images: list[ScienceImage], reference: Reference) -> None:
    """Blends come out as two stars or one, and now and then as one with a hundred times their light."""
    wild = images[2].sources.copy()
    rows = np.argsort(wild["flux"])[-40::8]
    wild["flux"][rows] *= np.array([100.0, 10.0, 3.0, 0.1, 0.5], np.float32)
    hurt = [*images[:2], dataclasses.replace(images[2], sources=wild), *images[3:]]
    built = build_reference(hurt, None, (reference.wcs, (reference.data.shape[0], reference.data.shape[1])))
    x, y = world_to_pixel(built.wcs, *images[2].astrometry.wcs.all_pix2world(wild["x"][rows], wild["y"][rows], 0))
    for px, py in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
        box = np.s_[py - 4 : py + 5, px - 4 : px + 5]
        light = np.nansum(reference.data[box])
        assert light > 1000
        assert abs(np.nansum(built.data[box]) - light) < 0.02 * light


def test_a_long_exposure_among_short_ones_counts_for_what_it_is(sky: tuple) -> None:  # type: ignore[type-arg]
    """Ten times as long: it saturates at a tenth, and has the others' weight three times elsewhere."""
    ra, dec, flux = sky
    images = exposures(sky, 3)
    psf = varying_psf(2.1, SHAPE, growth=0.05)
    long = science_of(SHAPE, ra, dec, 10 * flux, sky_wcs(SHAPE, dx=2.2), psf, sky=3000.0, magzp=ZP + 2.5, jd=JD + 9)
    reference = build_reference([*images, long])
    # A tenth of the noise of ten times the sky, against three of about one: what inverse variances say.
    short = [i.background.sigma * 10 ** (0.4 * (ZP - i.zeropoint.magzp)) for i in images]
    expected = sum(s**-2 for s in [*short, long.background.sigma / 10]) ** -0.5
    middle = reference.unc[200:400, 200:400]
    assert np.median(middle) == pytest.approx(expected, rel=0.02)
    assert np.median(middle) < 0.6 * min(short)
    # Stars that only it saturated are not lost, and as bright as they are.
    assert reference.saturate > 40_000
    x, y = world_to_pixel(reference.wcs, ra, dec)
    peak = flux * psf.stamp(256, 256).max()
    inside = (np.minimum(x, y) > 90) & (np.maximum(x, y) < N + 40)
    lost = inside & (10 * peak > 1.2 * long.saturate) & (peak < 40_000)
    assert lost.sum() > 10
    ratios = []
    for xi, yi, fi in zip(x[lost], y[lost], flux[lost], strict=True):
        assert reference.data[round(yi), round(xi)] < reference.saturate
        k = int(np.argmin(np.hypot(reference.sources["x"] - xi, reference.sources["y"] - yi)))
        if np.sort(np.hypot(x - xi, y - yi))[1] > 15:
            ratios.append(reference.sources["flux"][k] / fi)
    assert np.median(ratios) == pytest.approx(1, abs=0.01)
    assert np.std(ratios) < 0.02
    assert reference.qa["exptime"] == 120.0


def test_a_reference_lies_on_the_pixels_of_the_one_before(sky: tuple, reference: Reference) -> None:  # type: ignore[type-arg]
    images = exposures(sky, 2)
    stacks = []

    def empty(shape: tuple[int, ...]) -> NDArray[np.float32]:
        stacks.append(shape)
        return np.full(shape, 7, np.float32)

    again = build_reference(images, grid=(reference.wcs, reference.data.shape), empty=empty)
    assert stacks == [(2, *reference.data.shape)]
    assert np.array_equal(again.wcs.wcs.crval, reference.wcs.wcs.crval)
    bright = [r.sources[r.sources["snr"] > 200] for r in (reference, again)]
    nearest = [np.hypot(bright[0]["x"] - s["x"], bright[0]["y"] - s["y"]).min() for s in bright[1]]
    assert np.median(nearest) < 0.03
    assert same_place((reference.wcs, reference.data.shape), images[0])
    assert not same_place((reference.wcs, (N, N)), images[0])
    elsewhere = dataclasses.replace(
        images[0], astrometry=dataclasses.replace(images[0].astrometry, wcs=sky_wcs(SHAPE, dx=90.0))
    )
    assert not same_place((reference.wcs, reference.data.shape), elsewhere)


@pytest.mark.parametrize("n", [5, 12])
def test_a_faint_trail_goes_as_a_whole(n: int) -> None:
    """Its brightest pixels are at 2.5 sigma of one input: no pixel tells it from noise, a piece of 40 px would be left
    at 6 sigma of the mean of five."""
    rng = np.random.default_rng(n)
    stack = rng.normal(0, 1, (n, 160, 200)).astype(np.float32)
    clean = combine(stack, InputNoise(np.ones(n), np.zeros(n)))
    y = np.arange(160)[:, None]
    trail = 2.5 * np.exp(-0.5 * ((y - 80 - 0.2 * (np.arange(200) - 100)) / 0.85) ** 2)
    stack[1] += trail.astype(np.float32)
    mean = combine(stack, InputNoise(np.ones(n), np.zeros(n)))
    left = (mean.data - clean.data)[:, 20:180]
    strip = trail[:, 20:180] > 0.1
    pieces = np.array([left[:, k : k + 40][strip[:, k : k + 40]].sum() for k in range(0, 160, 40)])
    error = np.sqrt(strip[:, :40].sum() / n)
    assert np.abs(pieces / error).max() < 5
    unclipped = trail[:, 20:60].sum() / n / error
    assert np.mean(pieces / error) < 0.5 * unclipped or unclipped < 2
    # And hardly anything else went.
    assert (clean.coverage < n).mean() < 0.02


def test_what_the_air_moved_is_moved_back(sky: tuple) -> None:  # type: ignore[type-arg]
    """The same exposures, their solutions written as another WCS and a displacement that makes up for it."""
    images = exposures(sky, 2)
    plain = build_reference(images)
    dx, dy = (np.full((5, 5), v, np.float32) for v in (0.6, -0.4))
    field = Displacement(dx, dy, dx * 0, dy * 0, SHAPE, (0.5, 0.5), 500.0, 0.0, 1.0, 100)
    moved = []
    for image in images:
        wcs = image.astrometry.wcs.deepcopy()
        wcs.wcs.crpix = np.add(wcs.wcs.crpix, (0.6, -0.4))
        wcs.wcs.set()
        astrometry = dataclasses.replace(image.astrometry, wcs=wcs, displacement=field)
        moved.append(dataclasses.replace(image, astrometry=astrometry))
    again = build_reference(moved, grid=(plain.wcs, plain.data.shape))
    covered = (plain.coverage == 2) & (again.coverage == 2)
    assert covered.mean() > 0.5
    assert np.abs(again.data - plain.data)[covered].max() < 0.02 * np.nanmax(plain.data)
    assert np.std((again.data - plain.data)[covered]) < 0.02 * np.nanmedian(plain.unc)


def test_zero_points_that_vary_over_an_input_are_evened(sky: tuple) -> None:  # type: ignore[type-arg]
    images = exposures(sky, 2)
    plain = build_reference(images)
    surface = ZeroPointMap(1, SHAPE, (0.0, 0.05, -0.03), (0.001,) * 3)
    tilted = []
    for image in images:
        gain = 10 ** (0.4 * surface.expand())
        level = image.background.level
        sources = image.sources.copy()
        sources["flux"] *= 10 ** (0.4 * surface.offset(sources["x"], sources["y"]))
        zeropoint = dataclasses.replace(image.zeropoint, map=surface)
        data = level + (image.data - level) * gain.astype(np.float32)
        tilted.append(dataclasses.replace(image, data=data, sources=sources, zeropoint=zeropoint))
    again = build_reference(tilted, grid=(plain.wcs, plain.data.shape))
    covered = (plain.coverage == 2) & (again.coverage == 2)
    assert covered.mean() > 0.5
    assert np.std((again.data - plain.data)[covered]) < 0.02 * np.nanmedian(plain.unc)
