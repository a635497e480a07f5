"""Linking against known movers in static and random noise, and against real known asteroids."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from stream.core.errors import UsageError
from stream.core.identity import nid_of
from stream.solarsystem import LINK_DTYPE, LinkSettings, link_tracklets
from stream.solarsystem.tracklets import repeated_places

JD = 2458451.7
RA, DEC, WIDTH = 150.0, 20.0, 6.8  # one field
POSITION_ERROR = 0.15  # arcsec, each axis


def moved(ra: float, dec: float, rate: float, angle: float, days: float) -> tuple[float, float]:
    """Along a great circle, by astropy."""
    place = SkyCoord(ra * u.deg, dec * u.deg).directional_offset_by(angle * u.deg, rate * days * u.deg)
    return float(place.ra.deg), float(place.dec.deg)


class Night:
    """Detections with known owners."""

    def __init__(self, seed: int, times: list[float]) -> None:
        self.rng = np.random.default_rng(seed)
        self.times = times
        self.rows: list[tuple[float, ...]] = []
        self.owner: dict[int, int] = {}

    def see(self, t: float, ra: float, dec: float, mag: float, owner: int | None = None) -> None:
        candid = 1 + len(self.rows)
        ra += self.rng.normal(0, POSITION_ERROR) / 3600 / np.cos(np.radians(dec))
        dec += self.rng.normal(0, POSITION_ERROR) / 3600
        self.rows.append((candid, t, ra, dec, mag + self.rng.normal(0, 0.1)))
        if owner is not None:
            self.owner[candid] = owner

    def place(self) -> tuple[float, float]:
        dx, dy = self.rng.uniform(-0.5, 0.5, 2) * WIDTH
        return RA + dx / np.cos(np.radians(DEC)), DEC + dy

    def add_noise(self, per_square_degree: float) -> None:
        for t in self.times:
            for _ in range(self.rng.poisson(per_square_degree * WIDTH**2)):
                self.see(t, *self.place(), self.rng.uniform(18, 20.7))

    def add_static(self, n: int, seen: float) -> None:
        for _ in range(n):
            place, mag = self.place(), self.rng.uniform(17, 20)
            for t in self.times:
                if self.rng.random() < seen:
                    self.see(t, *place, mag)

    def add_movers(self, n: int, rates: tuple[float, float], seen: float) -> None:
        for k in range(n):
            (ra, dec), mag = self.place(), self.rng.uniform(17, 20)
            rate, angle = np.exp(self.rng.uniform(*np.log(rates))), self.rng.uniform(0, 360)
            for t in self.times:
                if self.rng.random() < seen:
                    self.see(t, *moved(ra, dec, rate, angle, t - self.times[0]), mag, k)

    def table(self) -> np.ndarray:
        return np.array(self.rows, LINK_DTYPE)

    def linkable(self) -> set[int]:
        count = defaultdict(int)
        for owner in self.owner.values():
            count[owner] += 1
        return {owner for owner, n in count.items() if n >= 3}


@pytest.mark.parametrize(("visits", "hours", "noise", "seen"), [(3, 1.0, 30, 1.0), (4, 0.5, 30, 0.9)])
def test_movers_are_found_and_noise_is_not(visits, hours, noise, seen):
    night = Night(7, [JD + k * hours / 24 for k in range(visits)])
    night.add_noise(noise)
    night.add_static(500, 0.7)
    night.add_movers(150, (0.06, 3.0), seen)
    tracklets = link_tracklets(night.table(), "20181129")
    owners = [{night.owner.get(c) for c in t.candids} for t in tracklets]
    pure = [next(iter(o)) for o in owners if len(o) == 1 and None not in o]
    assert len(set(pure) & night.linkable()) >= 0.97 * len(night.linkable())
    assert len(pure) >= 0.98 * len(tracklets)
    used = [c for t in tracklets for c in t.candids]
    assert len(used) == len(set(used))


def test_rate_angle_place_and_identity_are_true():
    night = Night(3, [JD, JD + 0.02, JD + 0.05, JD + 0.09])
    for t in night.times:
        night.see(t, *moved(359.99, -60.0, 1.2, 75.0, t - JD), 18.0)
    (tracklet,) = link_tracklets(night.table(), "20181129")
    assert tracklet.rate == pytest.approx(1.2, abs=0.005)
    assert tracklet.position_angle == pytest.approx(75.0, abs=0.3)
    separation = SkyCoord(359.99 * u.deg, -60 * u.deg).separation(SkyCoord(tracklet.ra * u.deg, tracklet.dec * u.deg))
    assert separation.arcsec < 0.5
    assert (tracklet.trackid, tracklet.candids, tracklet.jd) == (1, (1, 2, 3, 4), JD)
    assert tracklet.mag == pytest.approx(18.0, abs=0.2)
    assert tracklet.rms < 0.5
    assert tracklet.night == "20181129"


def test_the_order_of_rows_does_not_matter():
    night = Night(11, [JD, JD + 0.03, JD + 0.06])
    night.add_noise(10)
    night.add_movers(40, (0.1, 2.0), 1.0)
    table = night.table()
    shuffled = table[np.random.default_rng(1).permutation(len(table))]
    assert link_tracklets(shuffled, "n") == link_tracklets(table, "n")


def test_a_place_seen_again_later_is_static_but_a_slow_mover_between_quick_exposures_is_not():
    settings = LinkSettings()
    table = np.zeros(4, LINK_DTYPE)
    table["candid"], table["ra"] = range(4), [10.0, 10.0, 20.0, 20.0 + 0.4 / 3600]
    table["jd"] = [JD, JD + 1 / 24, JD, JD + 40 / 86400]
    assert repeated_places(table, settings).tolist() == [True, True, False, False]
    main_belt = Night(5, [JD + k * 300 / 86400 for k in range(8)])  # 0.9 arcsec between exposures
    for t in main_belt.times:
        main_belt.see(t, *moved(30.0, 10.0, 0.25, 110.0, t - JD), 18.0)
    (tracklet,) = link_tracklets(main_belt.table(), "n")
    assert len(tracklet.candids) == 8


def test_two_stars_that_stay_where_they_are_make_no_mover_however_often_they_are_seen():
    """Three arcseconds apart, an exposure a minute: a line leads from one to the other at a mover's speed."""
    pair = Night(8, [JD + k / 1440 for k in range(10)])
    for t in pair.times:
        pair.see(t, 40.0, 5.0, 18.0)
        pair.see(t, 40.0, 5.0 + 3.1 / 3600, 18.2)
    assert link_tracklets(pair.table(), "n") == []
    for t in pair.times:  # a mover that passes between them is found all the same
        pair.see(t, *moved(40.0 - 60 / 3600, 5.0 + 1.5 / 3600, 4.0, 90.0, t - JD), 18.0)
    (tracklet,) = link_tracklets(pair.table(), "n")
    assert len(tracklet.candids) >= 8


@pytest.mark.parametrize(("rate", "linked"), [(0.03, 0), (0.2, 1), (4.5, 1), (8.0, 0)])
def test_only_rates_within_the_limits_are_linked(rate, linked):
    night = Night(2, [JD, JD + 0.03, JD + 0.06])
    for t in night.times:
        night.see(t, *moved(50.0, 0.0, rate, 20.0, t - JD), 18.0)
    assert len(link_tracklets(night.table(), "n")) == linked


def test_what_is_off_the_line_or_of_another_brightness_is_not_linked():
    def linked(offset: float, mag: float) -> int:
        table = np.zeros(3, LINK_DTYPE)
        table["candid"], table["jd"], table["mag"] = [1, 2, 3], [JD, JD + 0.03, JD + 0.06], [18.0, mag, 18.0]
        table["ra"], table["dec"] = [40.0, 40.01, 40.02], [0.0, offset / 3600, 0.0]
        return len(link_tracklets(table, "n"))

    assert linked(0.3, 18.0) == 1
    assert linked(2.0, 18.0) == 0
    assert linked(0.3, 21.0) == 0
    assert linked(0.3, np.nan) == 1


def test_an_outlier_on_a_long_track_is_left_out():
    night = Night(4, [JD + 0.02 * k for k in range(5)])
    for t in night.times:
        night.see(t, *moved(50.0, 0.0, 0.5, 20.0, t - JD), 18.0)
    table = night.table()
    table["dec"][2] += 0.9 / 3600  # near enough to be tried
    (tracklet,) = link_tracklets(table, "n")
    assert set(tracklet.candids) >= {1, 2, 4, 5}
    assert tracklet.rms <= 0.5


def test_pairs_only_on_request():
    table = np.zeros(2, LINK_DTYPE)
    table["candid"], table["jd"], table["ra"], table["mag"] = [4, 9], [JD, JD + 0.04], [10.0, 10.02], np.nan
    assert link_tracklets(table, "n") == []
    (pair,) = link_tracklets(table, "n", LinkSettings(min_detections=2))
    assert pair.candids == (4, 9)
    assert pair.rate == pytest.approx(0.5, rel=1e-3)
    assert np.isnan(pair.mag)


def test_empty_broken_and_incomplete_tables():
    assert link_tracklets(np.zeros(0, LINK_DTYPE), "n") == []
    broken = np.zeros(5, LINK_DTYPE)
    broken["ra"] = np.nan
    assert link_tracklets(broken, "n") == []
    with pytest.raises(UsageError, match="mag"):
        link_tracklets(broken[["candid", "jd", "ra", "dec"]], "n")
    with pytest.raises(UsageError, match="two"):
        link_tracklets(broken, "n", LinkSettings(min_detections=1))


def known_objects(real_data) -> list[tuple[str, tuple[float, ...]]]:
    """(name, row) of the real alerts of known objects."""
    rows = []
    with tarfile.open(real_data / "asteroids" / "small_sso_dataset_202106.tar.gz") as archive:
        for member in archive.getmembers():
            if not member.name.endswith(".parquet"):
                continue
            stored = archive.extractfile(member)
            assert stored is not None
            for c in pq.read_table(io.BytesIO(stored.read()), columns=["candidate"])["candidate"].to_pylist():
                mid = c["jd"] + 15 / 86400
                rows.append((c["ssnamenr"], (c["candid"], mid, c["ra"], c["dec"], c["magpsf"])))
    return rows


@pytest.mark.real
def test_real_asteroids_seen_three_times_in_a_night_are_linked(real_data):
    rows = known_objects(real_data)
    name_of = {int(row[0]): name for name, row in rows}
    by_night = defaultdict(list)
    for _, row in rows:
        by_night[nid_of(row[1])].append(row)
    possible, found, pure, total = 0, 0, 0, 0
    settings = LinkSettings()
    for nid, night in sorted(by_night.items()):
        table = np.array(night, LINK_DTYPE)
        times = defaultdict(list)
        for row in table:
            times[name_of[int(row["candid"])]].append(float(row["jd"]))
        groups = {
            name
            for name, t in times.items()
            if len({round(v, 4) for v in t}) >= 3 and max(t) - min(t) <= settings.max_span
        }
        tracklets = link_tracklets(table, str(nid), settings)
        owners = [{name_of[c] for c in t.candids} for t in tracklets]
        possible += len(groups)
        found += len(groups & {next(iter(o)) for o in owners if len(o) == 1})
        pure += sum(len(o) == 1 for o in owners)
        total += len(owners)
    assert possible >= 5
    assert found >= 0.9 * possible
    assert pure >= 0.98 * total


@pytest.mark.real
def test_real_pairs_of_a_crowded_night_belong_together(real_data):
    table = pq.read_table(real_data / "asteroids" / "ztf_sso_trajectories_6nights_20200504.parquet").to_pydict()
    nights = np.array(table["nid"])
    nid = np.bincount(nights).argmax()
    mine = np.flatnonzero(nights == nid)
    rows = np.zeros(len(mine), LINK_DTYPE)
    for name, column in (("candid", "candid"), ("jd", "jd"), ("ra", "ra"), ("dec", "dec"), ("mag", "magpsf")):
        rows[name] = np.array(table[column])[mine]
    name_of = dict(zip(rows["candid"].tolist(), np.array(table["ssnamenr"])[mine].tolist(), strict=True))
    pairs = link_tracklets(rows, "20200504", LinkSettings(min_detections=2, max_rate=1.0))
    right = [t for t in pairs if len({name_of[c] for c in t.candids}) == 1]
    # Nothing but known objects is in the table: a wrong pair is a confusion of two of them.
    assert len(right) >= 0.8 * len(pairs)
    assert len(right) > 500
