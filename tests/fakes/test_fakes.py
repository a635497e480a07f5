"""Fakes: the piece is the image, the light is what was asked for, what is found is judged rightly, figures add up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from pairs import reference_of, science_of, sky_wcs, varying_psf
from synthetic import star_field

from stream.alert.codec import CODECS, FakeBatch
from stream.archive import ProductStore, science_path
from stream.archive.catalogs import fakes_parquet, read_rows
from stream.cli.fakes import fakes as show_fakes
from stream.core.displacement import Displacement
from stream.core.flags import Mask
from stream.core.records import PS1_DTYPE
from stream.extract import ExtractSettings, depth_map
from stream.fakes import (
    KINDS,
    OTHER,
    FakeSettings,
    crop_reference,
    crop_science,
    empty_fakes,
    fake_rows,
    inject,
    is_due,
    run_fakes,
    summarise,
)
from stream.fakes.crop import Box
from stream.fakes.inject import paint
from stream.fakes.summary import limit_offset
from stream.subtract import note_reference, subtract

SHAPE, REFERENCE_SHAPE = (900, 960), (960, 1000)
SETTINGS = FakeSettings(side=420, most=0.6, counts=(("nucleus", 4), ("host", 4), ("streak", 2), ("point", 20)))
HOW = ExtractSettings(profile="inclusive")


@pytest.fixture(scope="module")
def pair():
    """A science image and its reference with 500 constant stars."""
    wcs = sky_wcs(SHAPE)
    x, y, flux = star_field(SHAPE, 500, 1, (300.0, 60_000.0))
    sky = wcs.all_pix2world(x, y, 0)
    science = science_of(SHAPE, *sky, 0.9 * flux, wcs, varying_psf(2.6, SHAPE), magzp=26.1)
    reference = reference_of(
        REFERENCE_SHAPE, *sky, flux, sky_wcs(REFERENCE_SHAPE, 0.37, -0.61, 0.02), varying_psf(2.2, REFERENCE_SHAPE)
    )
    return science, reference


@pytest.fixture(scope="module")
def galaxies(pair):
    """A catalogue in which every tenth star is called a galaxy."""
    sources = pair[0].sources[::10]
    ps1 = np.zeros(len(sources), PS1_DTYPE)
    ps1["raMean"], ps1["decMean"] = sources["ra"], sources["dec"]
    ps1["rMeanPSFMag"], ps1["ps_score"] = 26.1 - 2.5 * np.log10(sources["flux"]), 0.1
    return ps1


@pytest.fixture(scope="module")
def table(pair, galaxies):
    science, reference = pair
    depth = depth_map(science, subtract(science, reference))
    return run_fakes(science, reference, depth, galaxies, HOW, SETTINGS)


def test_a_piece_is_the_image_in_every_respect(pair):
    science, _ = pair
    box = Box(301, 77, 801, 577)
    piece = crop_science(science, box)
    assert np.array_equal(piece.data, science.data[box.slices])
    x, y = np.array([3.2, 250.0, 480.7]), np.array([11.0, 249.4, 499.0])
    assert np.allclose(piece.psf.stamps(x, y), science.psf.stamps(x + 301, y + 77), atol=2e-6)
    own, whole = piece.astrometry.wcs, science.astrometry.wcs
    assert np.allclose(own.all_pix2world(x, y, 0), whole.all_pix2world(x + 301, y + 77, 0), atol=1e-11)
    node = np.linspace(-0.3, 0.3, 21, dtype=np.float32)
    bent = Displacement(
        np.tile(node, (21, 1)), np.tile(node[:, None] ** 2, (1, 21)), *[np.full((21, 21), 0.01, np.float32)] * 2,
        SHAPE, (0.1, 0.1), 300.0, 0.0, 1.0, 500,
    )  # fmt: skip
    moved = replace(science, astrometry=replace(science.astrometry, displacement=bent))
    places = crop_science(moved, box).astrometry.sky_of(x, y)
    assert np.allclose(places, moved.astrometry.sky_of(x + 301, y + 77), atol=3e-8)  # a tenth of a mas
    again = own.all_world2pix(piece.sources["ra"], piece.sources["dec"], 0)
    assert len(piece.sources) > 50
    assert np.allclose(again, [piece.sources["x"], piece.sources["y"]], atol=0.2)


def test_the_difference_of_a_piece_is_a_piece_of_the_difference(pair):
    science, reference = pair
    box = Box(200, 150, 700, 650)
    piece = crop_science(science, box)
    part = crop_reference(reference, piece)
    assert part.data.shape < reference.data.shape
    whole, own = subtract(science, reference), subtract(piece, part)
    inner = np.s_[60:-60, 60:-60]
    both = np.isfinite(own.scorr[inner]) & np.isfinite(whole.scorr[box.slices][inner])
    apart = (own.scorr[inner] - whole.scorr[box.slices][inner])[both]
    assert both.mean() > 0.9
    assert 1.4826 * np.median(np.abs(apart)) < 0.1  # other stars say where it lies, other tiles do it


def test_a_piece_of_a_reference_has_the_notes_of_its_own_stars(pair):
    """What is noted of a whole reference lies elsewhere in a piece of it, and most of it not at all."""
    science, reference = pair
    limit = float(np.float32(0.1 * np.sort(reference.sources["flux"])[-25]))
    full = replace(reference, data=np.minimum(reference.data, np.float32(limit)), saturate=limit)
    noted = replace(full, notes=note_reference(full))
    piece = crop_science(science, Box(200, 150, 700, 650))
    part, alone = crop_reference(noted, piece), crop_reference(full, piece)
    assert len(noted.notes.stars) > len(part.notes.stars) > 3
    own = part.wcs.all_pix2world(part.notes.stars[:, :2], 0)
    whole = noted.wcs.all_pix2world(noted.notes.stars[:, :2], 0)
    assert (np.abs(own[:, None] - whole[None]).max(axis=2).min(axis=1) < 1e-9).all()
    here, there = part.sources[part.notes.clean], noted.sources[noted.notes.clean]
    assert len(here) > 30
    assert set(here["ra"].tolist()) <= set(there["ra"].tolist())
    found, made_anew = subtract(piece, part), subtract(piece, alone)
    both = np.isfinite(found.scorr) & np.isfinite(made_anew.scorr)
    apart = (found.scorr - made_anew.scorr)[both]
    assert 1.4826 * np.median(np.abs(apart)) < 0.1
    assert np.mean(np.abs(apart) > 1) < 0.01  # stars at the piece's edge are fitted by their whole flanks in one only


def test_a_science_image_beside_the_reference_has_no_part_of_it(pair):
    science, reference = pair
    away = replace(reference, wcs=sky_wcs(REFERENCE_SHAPE, 5000.0, 0.0, 0.0))
    assert crop_reference(away, crop_science(science, Box(0, 0, 300, 300))) is None


def test_light_is_what_was_asked_for_and_the_image_is_left_alone(pair):
    science, _ = pair
    fakes = empty_fakes(3)
    fakes["x"], fakes["y"], fakes["flux"] = [200.3, 400.0, 600.0], [300.6, 500.0, 700.0], [900.0, 5000.0, 4000.0]
    fakes["length"], fakes["angle"] = [0, 30, 0], [0, 40, 0]
    light = paint(SHAPE, fakes, science.psf)
    assert light.sum() == pytest.approx(9900, rel=0.01)
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    near = np.hypot(xx - 400, yy - 500) < 40
    assert (light * xx)[near].sum() / light[near].sum() == pytest.approx(400, abs=0.05)
    turned = (xx - 400) * np.cos(np.radians(40)) + (yy - 500) * np.sin(np.radians(40))
    spread = np.sqrt((light * turned**2)[near].sum() / light[near].sum())
    assert spread == pytest.approx(np.hypot(30 / np.sqrt(12), 2.6 / 2.355), rel=0.06)
    before = science.data.copy()
    faked = inject(science, fakes, 5)
    assert np.array_equal(science.data, before)
    added = (faked.data - science.data).astype(float)
    assert added.sum() == pytest.approx(9900, abs=5 * np.sqrt(9900 / science.gain))
    assert np.array_equal(inject(science, fakes, 5).data, faked.data)
    fakes["flux"][2] = 50 * science.saturate
    full = inject(science, fakes, 5)
    assert full.mask[700, 600] & Mask.SATURATED
    assert not faked.mask[700, 600] & Mask.SATURATED
    assert np.nanmax(full.data) <= science.saturate


def test_a_quadrants_fakes_are_found_as_their_noise_allows(table):
    kinds = [row["kind"] for row in fake_rows(table)]
    asked = dict(SETTINGS.counts)
    assert all(kinds.count(kind) <= asked.get(kind, 0) for kind in KINDS)  # not every galaxy has room beside it
    assert all(kinds.count(kind) == asked[kind] for kind in ("nucleus", "streak", "point"))
    assert kinds.count("host") >= 1
    points = table[(table["kind"] == "point") & ~table["masked"]]
    sure, lost = points[points["snr"] > 7], points[points["snr"] < 2.5]
    assert len(sure) >= 5
    assert sure["sent"].mean() > 0.85
    assert not lost["sent"].all() or not len(lost)
    pulls = ((points["fit_flux"] - points["flux"]) / points["fit_err"])[points["detected"]]
    assert abs(np.median(pulls)) < 1.0
    assert np.abs(pulls).max() < 6
    assert (table["kind"] == OTHER).sum() < 20
    assert (table["x"] < SHAPE[1]).all() & (table["x"] >= 0).all()


def test_the_same_quadrant_has_the_same_fakes(pair, galaxies, table):
    science, reference = pair
    depth = depth_map(science, subtract(science, reference))
    again = run_fakes(science, reference, depth, galaxies, HOW, SETTINGS)
    assert again.tobytes() == table.tobytes()
    small = run_fakes(science, reference, depth, galaxies, HOW, replace(SETTINGS, most=0.2))
    assert small is None  # too small an image to have a piece


def test_a_share_of_the_quadrants_is_chosen_by_their_number():
    pids = range(697252380815, 697252380815 + 4000 * 100, 100)
    share = np.mean([is_due(pid, 0.25) for pid in pids])
    assert share == pytest.approx(0.25, abs=0.03)
    assert [is_due(pid, 0.25) for pid in pids[:50]] == [is_due(pid, 0.25) for pid in pids[:50]]
    assert not any(is_due(pid, 0.0) for pid in pids[:50])


def test_files_and_messages_carry_every_fake(pair, table):
    q = pair[0].quadrant
    rows = read_rows(fakes_parquet(q, table))
    own = fake_rows(table)
    assert [{k: row[k] for k in own[0]} for row in rows] == [pytest.approx(r, nan_ok=True) for r in own]
    assert {(row["pid"], row["rcid"]) for row in rows} == {(q.pid, q.rcid)}
    encode, decode = CODECS["fake_batch"]
    batch = FakeBatch(q.name, q.pid, 600, 2, q.rcid, 1, 1.0, 2.0, 30.0, own)
    assert decode(encode(batch)) == batch


def test_figures_are_those_of_a_known_search():
    rng = np.random.default_rng(3)
    rows = []
    for pid in range(40):
        for _ in range(50):
            offset = rng.uniform(-2, 1)
            snr = 5 * 10 ** (-0.4 * offset)
            seen = bool(snr + rng.normal() > 5 * 10 ** (-0.4 * 0.1))  # half are found 0.1 mag below the limit
            flux = 100 * snr
            rows.append({
                "pid": pid, "rcid": pid % 2, "kind": "point", "mag": 20 + offset, "limit": 20.0, "snr": snr,
                "masked": False, "detected": seen, "sent": seen, "flux": flux, "host_mag": None, "area": 1e6,
                "fit_flux": 1.02 * flux + 200 * rng.normal() if seen else None, "fit_err": 200.0,
            })  # fmt: skip
        rows.append({**rows[-1], "kind": OTHER, "sent": True})
    figures = summarise(rows)
    assert (figures["n"], figures["quadrants"]) == (2000, 40)
    assert figures["limit_offset"] == pytest.approx(0.1, abs=0.05)
    assert figures["flux_bias"] == pytest.approx(0.02, abs=0.03)
    assert figures["flux_pull"] == pytest.approx(1.0, abs=0.1)
    assert figures["others_per_sq_deg"] == pytest.approx(1 / (1e6 * (1.01 / 3600) ** 2), rel=1e-6)
    by_snr = {line["what"]: line["sent"] for line in figures["by_snr"]}
    assert by_snr["10 to 15"] > 0.99
    assert by_snr["3 to 4"] < 0.25
    assert [line["what"] for line in figures["by_rcid"]] == [0, 1]
    assert limit_offset(rows[:20]) is None
    assert summarise([])["purity"] is None


def test_the_command_shows_what_the_store_has(pair, table, tmp_path, capsys):
    q = pair[0].quadrant
    store = ProductStore(str(tmp_path))
    with pytest.raises(typer.Exit):
        show_fakes(store=str(tmp_path), first="", last="99999999", rcid=None, as_json=True)
    assert "switched off" in capsys.readouterr().err
    store.write(science_path(q.name, "fakes.parquet"), fakes_parquet(q, table))
    show_fakes(store=str(tmp_path), first="", last="99999999", rcid=None, as_json=True)
    figures = json.loads(capsys.readouterr().out)
    assert figures["n"] == int((table["kind"] != OTHER).sum())
    assert [line["what"] for line in figures["by_rcid"]] == [q.rcid]
    show_fakes(store=str(tmp_path), first="", last="99999999", rcid=q.rcid, as_json=False)
    assert "true S/N" in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        show_fakes(store=str(tmp_path), first="", last="99999999", rcid=(q.rcid + 1) % 64, as_json=False)
