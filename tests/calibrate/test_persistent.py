"""Artefacts that come back, told from stars, variables and chance."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from stream.calibrate.persistent import learn_persistent
from stream.core.camera import SMALL, nominal_wcs
from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.records import Sightings

SPOTS = np.array([(100, 57), (333, 402), (11, 480)])  # x, y of pixels that make a detection half of the time


@dataclass
class Season:
    """Detections of a channel over many exposures: chance ones, a variable star, persistent spots."""

    n_exposures: int = 40
    n_nights: int = 8
    dither: float = 8.0  # arcsec, r.m.s. of the pointing about the field
    seed: int = 1
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def sightings(self, *, spots: bool = True, star: bool = True) -> Sightings:
        rng = np.random.default_rng(self.seed)
        for k in range(self.n_exposures):
            ra0, dec0 = 100.0 + rng.normal(0, self.dither) / 3600, 20.0 + rng.normal(0, self.dither) / 3600
            wcs = nominal_wcs(SMALL, ra0, dec0, 10)
            x, y = rng.uniform(0, 512, (2, 60))
            if spots:
                here = SPOTS[rng.uniform(size=len(SPOTS)) < 0.5]
                x, y = (
                    np.append(x, here[:, 0] + rng.normal(0, 0.2, len(here))),
                    np.append(y, here[:, 1] + rng.normal(0, 0.2, len(here))),
                )
            if star:
                middle = nominal_wcs(SMALL, 100.0, 20.0, 10).all_pix2world(250, 250, 0)
                sx, sy = wcs.all_world2pix(*middle, 0)
                x, y = np.append(x, sx), np.append(y, sy)
            ra, dec = wcs.all_pix2world(x, y, 0)
            night = k * self.n_nights // self.n_exposures
            self.rows += [(*row, k, night) for row in zip(x, y, ra, dec, strict=True)]
        x, y, ra, dec, exposure, night = np.array(self.rows).T
        return Sightings(x, y, ra, dec, exposure.astype(np.int64), night.astype(np.int64))


def found(season: Season, **what: bool) -> np.ndarray:
    return np.argwhere(learn_persistent(season.sightings(**what), season.n_exposures, SMALL.shape) == Mask.PERSISTENT)


def test_spots_that_come_back_are_learned_and_nothing_else() -> None:
    for seed in range(3):
        pixels = found(Season(seed=seed))
        for x, y in SPOTS:
            assert (np.abs(pixels - (y, x)).max(axis=1) == 0).any()
        nearest = np.abs(pixels[:, None] - SPOTS[:, ::-1]).max(axis=2).min(axis=1)
        assert nearest.max() <= 1


def test_a_star_is_never_learned_however_well_the_telescope_points() -> None:
    assert len(found(Season(dither=0.3), spots=False)) == 0
    assert len(found(Season(dither=2.0), spots=False)) == 0


def test_without_dither_a_spot_cannot_be_told_from_a_star_and_is_left() -> None:
    assert len(found(Season(dither=0.0), star=False)) == 0


def test_one_night_or_few_exposures_are_not_enough() -> None:
    assert len(found(Season(n_nights=1))) == 0
    with pytest.raises(CalibrationError, match="need 6 exposures"):
        learn_persistent(Season(n_exposures=5).sightings(), 5, SMALL.shape)
    empty = Sightings(*np.zeros((4, 0)), *np.zeros((2, 0), np.int64))
    assert not learn_persistent(empty, 20, SMALL.shape).any()
