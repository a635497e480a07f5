"""The choice of exposures, as a table of decisions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.errors import ReferenceBuildError
from stream.core.flags import Info
from stream.reference import Epoch, EpochConfig, epoch_table, epochs_of_table, expected_depth, select_epochs


def good(k: int, **changes: float) -> Epoch:
    values = {"infobits": 0, "seeing": 2.0, "maglim": 20.5 + 0.01 * k, "magzp": 26.2, "exptime": 30.0} | changes
    figures = values["seeing"], values["maglim"], values["magzp"], values["exptime"], values.get("jd", 2458300.0)
    return Epoch(f"ztf_{k:03d}", int(values["infobits"]), *figures)


def test_all_good_ones_deepest_first() -> None:
    selection = select_epochs([good(k) for k in range(20)])
    assert selection.chosen == tuple(range(19, -1, -1))
    assert (selection.relaxed, selection.rejected, selection.sufficient) == ((), {}, True)


def test_no_more_than_the_maximum() -> None:
    selection = select_epochs([good(k) for k in range(60)])
    assert len(selection.chosen) == 50
    assert min(selection.chosen) == 10
    assert selection.rejected["ztf_000"] == "more exposures than needed"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seeing": 3.0}, "seeing"),
        ({"seeing": 1.5}, "seeing"),
        ({"maglim": 18.0}, "MAGLIM"),
        ({"maglim": 23.0}, "MAGLIM"),
        ({"infobits": float(Info.FEW_SOURCES)}, "INFOBITS"),
        ({"magzp": 25.7}, "MAGZP"),
        ({"magzp": float("nan")}, "no zero point"),
        ({"infobits": float(Info.NO_ASTROMETRY)}, "astrometry"),
        ({"seeing": float("nan")}, "PSF"),
    ],
)
def test_each_rule_rejects(change: dict[str, float], why: str) -> None:
    epochs = [good(k) for k in range(15)] + [good(15, **change)]
    selection = select_epochs(epochs)
    assert 15 not in selection.chosen
    assert why in selection.rejected["ztf_015"]
    assert selection.sufficient


def test_long_exposures_obey_the_rules_of_short_ones() -> None:
    """Ten times the light: a zero point 2.5 mag higher, a limit 1.25 mag fainter; nothing is unusual about either."""
    long = good(99, exptime=300.0, magzp=28.7, maglim=22.2)
    epochs = [good(k) for k in range(14)] + [long]
    assert select_epochs(epochs, EpochConfig(relax=False)).chosen[0] == 14
    cloudy = good(99, exptime=300.0, magzp=28.3, maglim=22.2)
    assert "MAGZP" in select_epochs([*epochs[:14], cloudy]).rejected["ztf_099"]


def test_nights_outside_the_asked_ones_are_never_used() -> None:
    epochs = [good(k, jd=100.0 + k) for k in range(6)]
    selection = select_epochs(epochs, EpochConfig(jd_min=102.0, jd_max=104.0))
    assert sorted(selection.chosen) == [2, 3, 4]
    assert "before" in selection.rejected["ztf_001"]
    assert "after" in selection.rejected["ztf_005"]


def test_cloud_is_named() -> None:
    cloudy = Epoch("ztf_099", int(Info.BAD_QUALITY), 2.0, 20.5, 26.2, cloud="MAGZP 25.1 < 25.5")
    why = select_epochs([*(good(k) for k in range(3)), cloudy]).rejected["ztf_099"]
    assert "cloud: MAGZP 25.1 < 25.5" in why


def test_depths_add_as_their_weights_do() -> None:
    four = [good(k, maglim=20.5) for k in range(4)]
    assert expected_depth(four) == pytest.approx(20.5 + 2.5 * np.log10(2))
    assert np.isnan(expected_depth([]))


def test_the_log_of_a_reference_remembers_its_exposures() -> None:
    epochs = [good(k, jd=2458300.0 + k) for k in range(3)] + [good(3, seeing=4.0, jd=2458310.0)]
    rows = epoch_table(epochs, select_epochs(epochs, EpochConfig(minimum=2)))
    assert [row["verdict"].split()[0] for row in rows] == ["chosen", "chosen", "chosen", "seeing"]
    assert epochs_of_table(json.loads(json.dumps(rows))) == epochs[:3]


def test_the_least_bad_fill_up_when_good_ones_are_few() -> None:
    epochs = [good(0), good(1, seeing=3.0), good(2, seeing=3.0, maglim=18.0), good(3, infobits=float(Info.NO_PSF))]
    selection = select_epochs(epochs, EpochConfig(minimum=2))
    assert (selection.chosen, selection.relaxed, selection.sufficient) == ((0, 1), (1,), False)
    assert select_epochs(epochs).chosen == (0, 1, 2)
    assert select_epochs(epochs, EpochConfig(relax=False)).chosen == (0,)


def test_nothing_usable_is_an_error_that_says_why() -> None:
    with pytest.raises(ReferenceBuildError, match="there is none"):
        select_epochs([])
    with pytest.raises(ReferenceBuildError, match="ztf_000: no zero point"):
        select_epochs([good(0, infobits=float(Info.NO_ZEROPOINT))])


@given(st.permutations(range(12)), st.integers(1, 12))
def test_the_choice_does_not_depend_on_the_order(order: list[int], minimum: int) -> None:
    epochs = [good(k, seeing=1.6 + 0.1 * k) for k in range(12)]
    config = EpochConfig(minimum=minimum)
    straight = {epochs[i].name for i in select_epochs(epochs, config).chosen}
    shuffled = [epochs[i] for i in order]
    assert {shuffled[i].name for i in select_epochs(shuffled, config).chosen} == straight
