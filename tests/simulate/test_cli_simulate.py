"""The command ``simulate`` as a person types it."""

from __future__ import annotations

import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from stream.cli.simulate import effects_of, filter_numbers, numbers, simulate
from stream.core.errors import UsageError
from stream.simulate import read_truth

app = Typer()
app.command()(simulate)


def run(*words: str):
    return CliRunner(env={"NO_COLOR": "1", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}).invoke(app, list(words))


def test_a_small_night(tmp_path):
    result = run(
        "--out", str(tmp_path), "--camera", "small", "--exposures", "1", "--calibrations", "0", "--seed", "3",
        "--filter", "g", "--ccds", "5", "--workers", "1", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["n_packets"] == 1
    assert summary["science"][0].endswith("_zg_c05_o.fits.fz")
    for name in ("gaia.parquet", "ps1.parquet", "bright.parquet", "MPCORB.DAT", "truth/sources.parquet"):
        assert (tmp_path / name).is_file()


def test_a_person_gets_a_sentence(tmp_path):
    words = ("--out", str(tmp_path), "--camera", "small", "--exposures", "0", "--calibrations", "0", "--workers", "1")
    result = run(*words)
    assert result.exit_code == 0
    assert "0 packets" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--camera", "tiny"),
        ("--filter", "u"),
        ("--ccds", "17"),
        ("--ccds", "one"),
        ("--field", "99999"),
        ("--without", "gravity"),
        ("--with", "gravity"),
        ("--survey", "--filters", "gx"),
        ("--survey", "--field-list", "99999"),
        ("--survey", "--fields", "900"),
        ("--nights", "3"),
        ("--survey", "--source-list", "list.fits"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_so(words, tmp_path):
    result = run("--out", str(tmp_path), *words)
    assert result.exit_code != 0
    assert isinstance(result.exception, UsageError)
    assert not list(tmp_path.iterdir())


def test_help_names_the_folder_and_the_seeds():
    result = run("--help")
    assert result.exit_code == 0
    for word in ("--out", "--seed", "--ccds", "--camera"):
        assert word in result.stdout


def test_a_survey_of_three_nights_with_its_page(tmp_path):
    result = run(
        "--out", str(tmp_path), "--camera", "small", "--survey", "--nights", "3", "--fields", "1", "--visits", "1",
        "--filters", "r", "--references", "1", "--calibrations", "0", "--ccds", "7", "--workers", "1", "--look",
        "--json", "--without", "ghosts,halos,crosstalk", "--asteroids", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    nights = {name.split("/")[-1].split("_")[1][:8] for name in summary["science"]}
    assert nights == {"20201005", "20201006", "20201007"}
    assert len(summary["reference"]) == 1
    assert summary["look"] == str(tmp_path / "look.png")
    assert (tmp_path / "look.png").is_file()
    instrument = read_truth(tmp_path, "instrument")
    on = json.loads(instrument["effects"][0])
    assert "spikes" in on
    assert not {"ghosts", "halos", "crosstalk"} & set(on)


def test_effects_are_switched_by_name():
    from stream.simulate import Effects

    assert effects_of(None, None) == Effects()
    assert effects_of("ghosts, spikes", "pocket") == Effects().without("ghosts", "spikes").including("pocket")
    assert effects_of("all", "halos") == Effects.only("halos")
    assert effects_of(None, "all") == Effects.only(*Effects.names())


def test_lists_of_filters():
    assert filter_numbers("gri") == (1, 2, 3)
    assert filter_numbers("r,g") == (2, 1)
    assert filter_numbers("zi") == (3,)


def test_lists_of_numbers():
    assert numbers("1,2,5-7", "ccds") == (1, 2, 5, 6, 7)
    assert numbers("all", "ccds") == tuple(range(1, 17))
