"""The simulator's own effects undone: lamp, fringes, shutter, pockets, judged by what it says it did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream.calibrate import CalibrateSettings, build_bias, build_flat, calibrate
from stream.calibrate.fringe import build_fringe, fringe_sample
from stream.calibrate.shutter import build_shutter
from stream.calibrate.skyflat import build_loflat, sky_sample
from stream.core.camera import SMALL
from stream.core.cells import cell_means, cell_medians
from stream.core.flags import BAD_BITS
from stream.core.records import CalibrationSet, Exposure, Quadrant, RawQuadrant
from stream.simulate import NightPlan, fields, flats
from stream.simulate.effects import Effects
from stream.simulate.expose import expose_packet, paint_sky
from stream.simulate.plan import SimExposure
from stream.simulate.scheduler import schedule

PLAN = NightPlan(
    seed=5, noise_seed=6, camera=SMALL, ccds=(3,), qids=(1,), fid=3, n_bias=4, n_flat=5, n_science=8, satellite=False,
    transients=0, asteroids=0, streaks=0, star_density=1.0, effects=Effects().without("halos", "ghosts", "spikes"),
)  # fmt: skip
QID, RCID = 2, 9  # sees nothing but sky


def raw_of(plan: NightPlan, exposure: SimExposure, qid: int = QID) -> RawQuadrant:
    images, overscans, amps, _ = expose_packet(plan, exposure, 3)
    amp = amps[qid - 1]
    record = Exposure(
        exposure.name(3), exposure.imgtype, exposure.field, exposure.fid, 3, 1, exposure.jd, exposure.jd_mid,
        exposure.exptime, exposure.ra, exposure.dec,
    )  # fmt: skip
    return RawQuadrant(
        Quadrant(record, qid), images[qid - 1], overscans[qid - 1], amp.gain, amp.readnoise, amp.saturate
    )


def of_type(plan: NightPlan, imgtype: str) -> list[SimExposure]:
    return [exposure for exposure in schedule(plan) if exposure.imgtype == imgtype]


@pytest.fixture(scope="module")
def frames() -> CalibrationSet:
    bias = build_bias([raw_of(PLAN, exposure) for exposure in of_type(PLAN, "bias")])
    return CalibrationSet(bias, build_flat([raw_of(PLAN, exposure) for exposure in of_type(PLAN, "flat")], bias))


@pytest.fixture(scope="module")
def raws() -> list[RawQuadrant]:
    return [raw_of(PLAN, exposure) for exposure in of_type(PLAN, "object")]


def without_plane(cells: np.ndarray) -> np.ndarray:
    y, x = np.indices(cells.shape)
    design = np.stack([np.ones(cells.size), x.ravel(), y.ravel()], axis=1)
    fit = np.linalg.lstsq(design, cells.ravel(), rcond=None)[0]
    return np.asarray(cells.ravel() - design @ fit)


def test_the_lamp_and_the_fringes_go(frames: CalibrationSet, raws: list[RawQuadrant]) -> None:
    first = [calibrate(raw, frames) for raw in raws]
    loflat = build_loflat([sky_sample(image) for image in first])
    lamp = fields.spread(flats.lamp(PLAN, RCID, PLAN.fid), SMALL.shape).rows(0, SMALL.ny)
    product = cell_means((loflat.data * lamp).astype(np.float32), 64)  # sky over lamp, times lamp
    assert without_plane(product / product.mean()).std() < 0.0015
    assert without_plane(cell_means(lamp, 64)).std() > 0.0015
    samples = [fringe_sample(image) for image in first]  # on a sky without stars that is as good as several fields
    fringe = build_fringe([replace(one, exposure=replace(one.exposure, field=k)) for k, one in enumerate(samples)])
    pattern = flats.fringes(PLAN.seed, SMALL, RCID)
    with_all = replace(frames, loflat=loflat, fringe=fringe)
    left, was = [], []
    for exposure, raw, before in zip(of_type(PLAN, "object"), raws, first, strict=True):
        image = calibrate(raw, with_all)
        sky = paint_sky(PLAN, exposure, RCID) / (1 + np.float32(flats.FRINGE) * pattern)
        good = (image.mask & np.uint16(BAD_BITS)) == 0
        for what, found in ((before, was), (image, left)):
            cells = cell_medians(np.where(good, what.data / sky, np.nan).astype(np.float32), 32)
            found.append(without_plane(cells).std())
    assert np.median(left) < 0.5 * np.median(was)
    assert "no_fringe" in first[0].notes
    assert "no_fringe" not in calibrate(raws[0], with_all).notes


def test_the_shutter_shows_in_short_flats_and_goes(frames: CalibrationSet) -> None:
    flat = of_type(PLAN, "flat")[0]
    shots = [
        replace(flat, exptime=exptime, jd=flat.jd + (k + 10 * long) / 1440)
        for long, exptime in enumerate((1.0, 20.0)) for k in range(3)
    ]  # fmt: skip
    shutter = build_shutter([raw_of(PLAN, exposure) for exposure in shots], frames.bias)
    truth = fields.spread((flats.shutter(PLAN, shots[0], RCID) - 1) * shots[0].exptime, SMALL.shape).rows(0, SMALL.ny)
    error = cell_means(shutter.data - truth, 64)
    assert (error - error.mean()).std() < 0.3 * cell_means(truth, 64).std() + 1e-4


def test_pockets_are_emptied() -> None:
    quiet = Effects.only("pocket", "nonlinearity", "crosstalk")
    plan = replace(PLAN, fid=2, effects=quiet)
    (exposure, *_) = of_type(plan, "object")
    truth = raw_of(replace(plan, effects=quiet.without("pocket")), exposure, 1)
    spoilt = raw_of(plan, exposure, 1)
    wanted = calibrate(truth, CalibrationSet()).data
    plain = calibrate(spoilt, CalibrationSet()).data - wanted
    undone = calibrate(spoilt, CalibrationSet(), CalibrateSettings(pocket=True)).data - wanted
    assert np.abs(plain).max() > 3.0
    assert np.sqrt(np.mean(undone**2)) < 0.35 * np.sqrt(np.mean(plain**2))  # whole DN are left
