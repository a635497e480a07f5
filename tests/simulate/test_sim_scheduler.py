"""Nights that the scheduler makes: judged by astropy's sun, moon and frames, and by the survey's own rules."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import AltAz, EarthLocation, SkyCoord, get_body, get_sun
from astropy.time import Time
from astropy.utils import iers

from stream.core import identity
from stream.core.camera import Camera
from stream.core.errors import UsageError
from stream.simulate import NightPlan, Survey, read_truth, schedule, simulate_night
from stream.simulate.conditions import SEEING_AIRMASS, SEEING_FILTER, plan_of_field, weather_of
from stream.simulate.movers import movers
from stream.simulate.plan import DARK_SKY, field_centre
from stream.simulate.scheduler import FILTER_CHANGE, READOUT, choose_fields, fields_of, science_of, slew_time

PALOMAR = EarthLocation(lon=-116.8597 * u.deg, lat=33.3573 * u.deg, height=1668 * u.m)
BARE = {"n_bias": 0, "n_flat": 0}
WHOLE = NightPlan(**BARE, survey=Survey(visits=3, filters=(1, 2, 3)), night="20190115", cloud=0.4)
THREE = NightPlan(**BARE, survey=Survey(nights=3, n_fields=2, visits=3), n_reference=3)


@pytest.fixture(scope="module")
def night():
    return [e for e in schedule(WHOLE) if e.role == "sci"]


@pytest.fixture(autouse=True)
def _no_downloads():
    with iers.conf.set_temp("auto_download", False):
        yield


def test_a_whole_night_has_the_surveys_number_of_exposures(night):
    """About 700 exposures of 30 s with some 40 s from start to start; the dome was closed for a while."""
    assert 550 < len(night) < 900
    starts = np.array([e.jd for e in night]) * 86_400
    assert np.median(np.diff(starts)) == pytest.approx(39.5, abs=1.5)
    assert np.diff(starts).min() > 30 + READOUT - 0.1
    assert {e.fid for e in night} == {1, 2, 3}
    assert {e.programid for e in night} == {1, 2, 3}


def test_fields_are_up_in_the_dark_and_away_from_the_moon(night):
    some = night[::25]
    when = Time([e.jd_mid for e in some], format="jd")
    frame = AltAz(obstime=when, location=PALOMAR)
    assert (get_sun(when).transform_to(frame).alt.deg < -17.9).all()
    places = SkyCoord([e.ra for e in some] * u.deg, [e.dec for e in some] * u.deg)
    seen = places.transform_to(frame)
    secz = seen.secz.value
    assert ((secz > 0.99) & (secz < 2.56)).all()
    assert [e.airmass for e in some] == pytest.approx(secz, rel=0.02)
    moon = get_body("moon", when, PALOMAR).transform_to(frame)
    assert [e.moon[0] for e in some] == pytest.approx(moon.alt.deg, abs=0.05)
    away = moon.separation(seen).deg
    assert (away[moon.alt.deg > 0.2] > 24).all()
    assert [e.moon[1] for e in some] == pytest.approx(away, abs=0.1)


def test_visits_keep_their_gap_and_filters_their_time(night):
    by_field = defaultdict(list)
    for exposure in night:
        by_field[exposure.field].append(exposure)
    for visits in by_field.values():
        assert len(visits) <= 3
        assert [e.fid for e in visits] == [1, 2, 3][: len(visits)]
        assert (np.diff([e.jd for e in visits]) * 1440 >= 30 - 0.1).all()
        assert len({e.programid for e in visits}) == 1
    complete = [len(visits) == 3 for visits in by_field.values()]
    assert np.mean(complete) > 0.9  # what is begun is finished, but for weather
    changes = [(a, b) for a, b in itertools.pairwise(night) if a.fid != b.fid]
    assert 5 < len(changes) < 0.1 * len(night)
    assert all((b.jd - a.jd) * 86_400 > 30 + FILTER_CHANGE for a, b in changes)


def test_seeing_follows_the_airmass_and_drifts_within_its_range(night):
    weather = weather_of(WHOLE, WHOLE.midnight)
    zenith = np.array([e.seeing / e.airmass**SEEING_AIRMASS / SEEING_FILTER[e.fid] for e in night])
    low, high = WHOLE.seeing
    assert ((zenith > 0.85 * low) & (zenith < 1.15 * high)).all()
    # A slew or a change of filter lies between the decision and the exposure.
    assert np.median(np.abs(zenith / [weather.at(e.jd)[1] for e in night] - 1)) < 0.05
    # It drifts: neighbours in time are alike, the ends of an hour less.
    assert np.abs(np.diff(np.log(weather.seeing))).max() < 0.1
    assert np.std(np.log(weather.seeing)) > 0.03


def test_weather_comes_in_spells():
    closed, cloudy, clear = 0.0, 0.0, 0.0
    for k in range(40):
        cloud = weather_of(WHOLE, WHOLE.midnight + k).cloud
        closed += np.isnan(cloud).mean() / 40
        cloudy += (cloud > 0.02).mean() / 40
        clear += (cloud == 0).mean() / 40
    assert 0.01 < closed < 0.15
    assert 0.05 < cloudy < 0.3
    assert clear > 0.6
    assert not weather_of(replace(WHOLE, cloud=0.0), WHOLE.midnight).cloud.any()


def test_moonlight_brightens_the_sky():
    bright = replace(WHOLE, night="20190121", survey=Survey(limit=80))  # full moon
    dark = replace(WHOLE, night="20190205", survey=Survey(limit=80))  # new moon
    levels = []
    for plan in (bright, dark):
        chosen = [e for e in schedule(plan) if e.role == "sci"]
        levels.append([e.sky / DARK_SKY[e.fid] for e in chosen])
        assert all(0 <= e.moonlight < e.sky for e in chosen)
    assert np.median(levels[0]) > 4
    assert 0.9 < np.median(levels[1]) < 1.5


def test_three_nights_see_the_same_neighbouring_fields():
    science = [e for e in schedule(THREE) if e.role == "sci"]
    fields = fields_of(THREE)
    assert len(fields) == 2
    first, second = (SkyCoord(*field_centre(field), unit="deg") for field in fields)
    assert 1 < first.separation(second).deg < 12
    counts = defaultdict(int)
    for exposure in science:
        counts[exposure.field, identity.night_of(exposure.jd)] += 1
    assert len(counts) == 6
    assert set(counts.values()) == {3}
    assert max(e.airmass for e in science) < 2.0


def test_references_are_earlier_dark_and_of_every_field_and_filter():
    references = [e for e in schedule(THREE) if e.role == "ref"]
    counts = defaultdict(int)
    for exposure in references:
        counts[exposure.field, exposure.fid] += 1
        assert 29 < THREE.midnight - exposure.jd < 200
        assert exposure.moonlight < 0.31 * DARK_SKY[exposure.fid]
        assert exposure.airmass < 2
    assert counts == dict.fromkeys([(field, fid) for field in fields_of(THREE) for fid in (1, 2)], 3)


def test_every_night_has_its_calibration_frames():
    plan = replace(THREE, n_bias=2, n_flat=2)
    frames = [e for e in schedule(plan) if e.role == "cal"]
    nights = {identity.night_of(e.jd) for e in frames}
    assert {"20201005", "20201006", "20201007"} < nights
    assert len(nights) == 4  # and the first of the references
    assert len(frames) == 4 * (2 + 2 * 2)
    assert frames[0].jd < min(e.jd for e in schedule(plan) if e.role != "cal")


def test_a_fields_plan_finds_the_surveys_schedule_and_movers():
    first, second = fields_of(THREE)
    assert schedule(plan_of_field(THREE, first)) == schedule(plan_of_field(replace(THREE, ccds=(7,)), second))
    assert {e.field for e in science_of(plan_of_field(THREE, second))} == {second}
    ours, theirs = movers(plan_of_field(THREE, first)), movers(plan_of_field(THREE, second))
    assert {m.truth_id for m in ours} == {m.truth_id for m in theirs}
    assert len({m.designation for m in ours}) == len(ours)


def test_slews_speed_up_and_slow_down():
    assert slew_time(0.0, 0.4, 2.5) == 0
    assert slew_time(1.0, 0.4, 2.5) == pytest.approx(2 * np.sqrt(1 / 0.4))
    assert slew_time(50.0, 0.4, 2.5) == pytest.approx(50 / 2.5 + 2.5 / 0.4)


@pytest.mark.parametrize(
    "wrong",
    [{"nights": 0}, {"visits": 0}, {"filters": ()}, {"filters": (4,)}, {"gap": 0.0}, {"fields": (99999,)},
     {"limit": 0}, {"n_fields": 0}, {"programs": (0.0, 0.0, 0.0)}],
)  # fmt: skip
def test_impossible_surveys_are_refused(wrong):
    with pytest.raises(UsageError):
        Survey(**wrong)


def test_fields_that_are_down_are_said():
    with pytest.raises(UsageError, match="fields are up"):
        choose_fields(NightPlan(), Survey(n_fields=600), [NightPlan().midnight])
    southern = NightPlan(**BARE, survey=Survey(fields=(1,)))
    with pytest.raises(UsageError, match="no exposure fits"):
        schedule(southern)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    tiny = Camera("tiny", 200, 180)
    plan = NightPlan(
        **BARE, camera=tiny, seed=3, transients=2, asteroids=2, streaks=0, variables=0.2, qids=(1, 3), satellite=False,
        survey=Survey(nights=2, n_fields=2, visits=1, filters=(2,)),
    )  # fmt: skip
    return plan, [simulate_night(tmp_path_factory.mktemp(f"w{n}"), plan, workers=n) for n in (1, 2)]


def test_a_survey_on_disk_is_the_same_from_one_process_and_from_two(written):
    _, (one, two) = written
    digests = []
    for summary in (one, two):
        files = sorted(path for path in summary.out.rglob("*") if path.is_file())
        digests.append({str(p.relative_to(summary.out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert digests[0] == digests[1]
    assert len(one.science) == 4


def test_a_survey_on_disk_has_its_fields_skies_and_catalogues(written):
    plan, (summary, _) = written
    sources = read_truth(summary.out)
    fields = np.array([int(name.split("_")[2]) for name in sources["exposure"]])
    assert set(fields.tolist()) == set(fields_of(plan))
    stars = sources["kind"] == "star"
    ids = [set(sources["truth_id"][stars & (fields == field)].tolist()) for field in fields_of(plan)]
    assert not ids[0] & ids[1]
    import pyarrow.parquet as pq

    gaia = pq.read_table(summary.catalogs["gaia"])["source_id"].to_numpy() - 2_500_000_000_000_000_000
    assert len(np.unique(gaia)) == len(gaia)
    bright = sources["truth_id"][stars & (sources["mag"] < 18)]
    assert np.isin(bright, gaia).all()
    # A transient has changed from one night to the other, and is the same source at the same place.
    for identifier in np.unique(sources["truth_id"][sources["kind"] == "transient"]):
        rows = sources["truth_id"] == identifier
        if rows.sum() == 2:
            assert np.ptp(sources["ra"][rows]) == 0
            assert 0 < np.ptp(sources["mag"][rows]) < 3
    assert len(np.unique(sources["mag"][sources["kind"] == "variable"])) > 4
