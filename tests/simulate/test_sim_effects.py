"""The switches: every effect contributes when it is on, and exactly nothing when it is off."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stream.core.camera import SMALL
from stream.core.errors import UsageError
from stream.simulate import Effects, NightPlan, ghosts, schedule
from stream.simulate.expose import expose_packet
from stream.simulate.facts import instrument, static_artefacts
from stream.simulate.sky import bright_stars

# A moonlit, cloudy night of 2019 in i, a naked-eye star in the quadrant: all effects have something to act on.
PLAN = NightPlan(
    camera=replace(SMALL, name="patch", nx=160, ny=150), n_bias=0, n_flat=1, n_science=1, night="20190610", fid=3,
    qids=(1,), bright_stars=2, satellite=False, seed=17, noise_seed=18, transients=0, asteroids=0, streaks=0,
)  # fmt: skip
FLAT, SKY = (replace(e, transparency=0.5, cloud=0.45, airmass=1.6) for e in schedule(PLAN))


def test_names_are_checked():
    with pytest.raises(UsageError, match="no effect gosts"):
        Effects().without("gosts")
    assert Effects.none().on() == ()
    assert Effects.only("halos", "dust").on() == ("halos", "dust")
    assert "ghosts" not in Effects().without("ghosts").on()
    assert not {"brighter_fatter", "pocket"} & set(Effects().on())
    assert set(Effects().on()) | {"brighter_fatter", "pocket"} == set(Effects.names())


def test_a_perfect_instrument_shows_the_sky_alone():
    """Without any effect a frame is sky times gain over gain plus a constant bias, to the rounding."""
    plan = replace(PLAN, effects=Effects.none(), bright_stars=0, star_density=0.01)
    images, overscans, amps, tables = expose_packet(plan, SKY, 1)
    for image, overscan, amp in zip(images[1:], overscans[1:], amps[1:], strict=True):  # quadrants without sources
        assert np.unique(overscan).tolist() == [round(amp.bias)]
        assert np.unique(image).tolist() == [round(amp.bias + SKY.sky)]
    kinds = {str(part.get("kind")) for part in tables["artefacts"]}
    assert not kinds & {"cosmic_ray", "halo", "ghost", "spikes", "saturated", "spillage"}
    assert static_artefacts(plan) == []


def differs(effect: str, exposure: object, base: Effects) -> bool:
    """Whether switching an effect on changes pixels or overscan of a packet."""
    with_it, without = (
        expose_packet(replace(PLAN, effects=effects), exposure, 1)[:2]  # type: ignore[arg-type]
        for effects in (base.including(effect), base.without(effect))
    )
    return any(not np.array_equal(a, b) for a, b in zip(with_it[0] + with_it[1], without[0] + without[1], strict=True))


# A ghost needs a star on the other side of the camera: test_sim_ghosts.
@pytest.mark.parametrize("effect", sorted(set(Effects.names()) - {"ghosts"}))
def test_every_effect_shows_when_it_is_on(effect):
    base = Effects.only("bleeding") if effect in ("spillage", "brighter_fatter") else Effects.none()
    if effect == "moonlight":
        assert differs(effect, replace(SKY, gradient=(0.02, 0.01)), base)
    elif effect == "lamp":
        assert differs(effect, FLAT, base)
        assert not differs(effect, SKY, base)
    elif effect == "cosmic_rays":
        assert differs(effect, replace(SKY, exptime=600.0), base)
    elif effect == "shutter":
        assert differs(effect, replace(FLAT, exptime=0.5), base)
    else:
        assert differs(effect, SKY, base)


def test_switching_one_off_leaves_the_draws_of_the_others():
    """Noise, rays and readout have generators of their own: a difference of two plans is the effect alone."""
    plan = replace(PLAN, effects=Effects().without("crosstalk", "bleeding"))
    full, bare = (
        expose_packet(replace(plan, effects=effects), replace(SKY, exptime=600.0), 1)[0][1].astype(int)
        for effects in (plan.effects, plan.effects.without("cosmic_rays"))
    )
    changed = full != bare
    rows = [part for part in expose_packet(plan, replace(SKY, exptime=600.0), 1)[3]["artefacts"]
            if part.get("kind") == "cosmic_ray" and part["rcid"] == 1]  # fmt: skip
    pixels = np.concatenate(rows[0]["pixels"])
    assert changed.any()
    assert np.isin(np.flatnonzero(changed), pixels).all()


def test_spillage_ends_with_the_waveforms_of_2019():
    later = replace(SKY, jd=2_400_000.5 + 58_780.2)
    base = Effects.only("bleeding")
    assert differs("spillage", SKY, base)
    assert not differs("spillage", later, base)


def test_the_truth_has_the_instrument():
    rows = instrument(PLAN)
    assert [row["rcid"] for row in rows] == [0, 1, 2, 3]
    matrix = np.array([row["crosstalk"][0] for row in rows])
    assert matrix.shape == (4, 4)
    assert not matrix.diagonal().any()
    assert json.loads(rows[0]["ghost"]) == ghosts.true_geometry(PLAN.seed).as_dict()
    assert json.loads(rows[0]["effects"]) == list(PLAN.effects.on())
    parameters = json.loads(rows[2]["parameters"])
    assert {"lamp", "dust", "pocket", "fringe", "throughput", "spillage_delay"} <= set(parameters)
    off = instrument(replace(PLAN, effects=Effects.none()))
    assert off[0]["readnoise"] == off[0]["linearity_a"] == 0
    assert not np.any(off[1]["crosstalk"])
    assert len(bright_stars(PLAN)) >= 2


def test_photon_transfer_gives_the_gain_and_the_read_noise():
    """The classical method on pairs of flats: an independent way to the truth's numbers."""
    plan = replace(PLAN, effects=Effects().without("cosmic_rays", "defects"), camera=SMALL)
    pairs = {}
    for level in (0.0, 5_000.0, 20_000.0):
        exposures = (replace(FLAT, level=level, exptime=10.0, jd=FLAT.jd + k / 1000) for k in (0, 1))
        pairs[level] = [expose_packet(plan, exposure, 1) for exposure in exposures]
    for qid in (1, 2, 3, 4):
        amp = pairs[0.0][0][2][qid - 1]
        variance, mean = {}, {}
        for level, frames in pairs.items():
            clean = [frame[0][qid - 1] - frame[1][qid - 1][:, 10:].mean(axis=1, keepdims=True) for frame in frames]
            variance[level] = np.var(clean[0] - clean[1]) / 2
            mean[level] = np.mean(clean)
        gain = (mean[20_000.0] - mean[5_000.0]) / (variance[20_000.0] - variance[5_000.0])
        # Non-linearity stretches noise at 20,000 DN by B x, a percent and a half; 2e5 pixels give half a percent.
        assert gain == pytest.approx(amp.gain, rel=0.03)
        overscan = 10.0 / 20  # of the mean that was taken off each row, relative to a pixel's own noise
        assert np.sqrt(variance[0.0]) == pytest.approx(amp.readnoise / amp.gain * (1 + overscan / 20), rel=0.05)
