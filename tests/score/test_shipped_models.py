"""The weights that are in the repository: they load, are what their manifests say, and judge sensibly."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.dataset import packet_triplet
from models.evaluate import area_under_curve
from models.features import FEATURE_SET, FEATURES, feature_matrix, triplet
from models.forest import forest_scores
from models.manifest import FOREST, NETWORK, WEIGHTS, read_manifest
from models.network import network_scores
from stream.alert import build_packet, decode_stamp, encode_stamp, read_packets, write_packet
from stream.core.records import BatchItem, CandidateBatch
from stream.score import Scorer, load_scorer

sys.path.insert(0, str(Path(__file__).parents[1] / "alert"))

# What real point sources look like to the forest; of a cosmic ray or a residual much of it differs.
SOUND = {
    "magpsf": 18.5, "sigmapsf": 0.04, "chipsf": 1.0, "magdiff": 0.02, "fwhm": 2.3, "classtar": 0.98, "magfromlim": 1.9,
    "seeratio": 0.95, "aimagerat": 0.30, "bimagerat": 0.285, "elong": 1.05, "nneg": 0, "nbad": 0, "sumrat": 1.0,
    "scorr": 26.0, "dsnrms": 22.0, "ssnrms": 40.0, "dsdiff": -18.0, "distnr": 12.0, "chinr": 1.0, "sharpnr": 0.1,
    "mindtoedge": 800.0, "magnr": 20.1, "isdiffpos": "t",
}  # fmt: skip


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load_scorer()


def psf(dx: float = 0.0, dy: float = 0.0, fwhm: float = 2.0) -> NDArray[np.float64]:
    """A Gaussian star of unit flux in a stamp."""
    y, x = np.mgrid[-31:32, -31:32]
    sigma = fwhm / 2.355
    image: NDArray[np.float64] = np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    return image


def stamps(kind: str, seed: int) -> tuple[NDArray[np.float64], ...]:
    """Science, template, difference: a new source, a cosmic ray, or a star that subtracted badly."""
    rng = np.random.default_rng(seed)
    noise, reference_noise = rng.normal(0, 7.0, (63, 63)), rng.normal(0, 1.5, (63, 63))
    field = sum(
        float(rng.uniform(300, 3000)) * psf(*rng.uniform(-30, 30, 2))
        for _ in range(8)
    )  # fmt: skip
    dx, dy = rng.uniform(-0.4, 0.4, 2)
    if kind == "source":
        change = 900.0 * psf(dx, dy)
    elif kind == "cosmic_ray":
        change = np.zeros((63, 63))
        change[31, 31:34] = (150.0, 400.0, 180.0)
    else:
        change = 30_000.0 * (psf(0.12, 0.10) - psf(-0.12, -0.10))
        field = field + 30_000.0 * psf(-0.12, -0.10)
    return 250.0 + field + change + noise, 100.0 + field + reference_noise, change + noise


def item(kind: str, seed: int) -> BatchItem:
    """A candidate of that kind on its way to the score stage, sound by its figures."""
    candidate: dict[str, Any] = {**SOUND, "candid": seed}
    return BatchItem(candidate, {}, tuple(encode_stamp(image) for image in stamps(kind, seed)))  # type: ignore[arg-type]


def test_shipped_weights_are_those_of_their_manifests(scorer: Scorer) -> None:
    for name, version in ((FOREST, scorer.forest_manifest), (NETWORK, scorer.network_manifest)):
        manifest = read_manifest(name)
        assert manifest == version
        assert (WEIGHTS / manifest.file).stat().st_size < 2_000_000
        assert len(manifest.data_sha256) == 64
        assert min(manifest.n_real, manifest.n_bogus) > 1000
        assert {"equal_error", "night_equal_error", "real_packets_auc"} <= manifest.figures.keys()
        assert manifest.figures["night_equal_error"] < 0.03
    assert scorer.forest.n_features_in_ == len(FEATURES)
    assert scorer.forest_manifest.version.endswith(FEATURE_SET)
    assert scorer.network.input_shape == (None, 63, 63, 3)


def test_the_network_tells_sources_from_cosmic_rays_and_bad_subtractions(scorer: Scorer) -> None:
    items = [item(kind, seed) for kind in ("source", "cosmic_ray", "residual") for seed in range(40)]
    scorer.score(items)
    drb = np.array([one.candidate["drb"] for one in items])
    assert np.median(drb[:40]) > 0.9
    assert np.mean(drb[:40] > 0.5) >= 0.9
    assert np.mean(drb[40:80] < 0.5) >= 0.9
    assert np.mean(drb[80:] < 0.5) >= 0.9


def test_the_forest_tells_sound_figures_from_unsound_ones(scorer: Scorer) -> None:
    cosmic_ray = {"fwhm": 0.8, "elong": 1.7, "seeratio": 2.5, "chipsf": 40.0, "classtar": 0.2, "nneg": 8, "sumrat": 0.8}
    residual = {"nneg": 11, "sumrat": 0.3, "chipsf": 40.0, "distnr": 0.3, "magnr": 14.5, "chinr": 8.0}
    scores = forest_scores(scorer.forest, feature_matrix([SOUND, SOUND | cosmic_ray, SOUND | residual]))
    assert scores[0] > 0.8
    assert (scores[1:] < 0.4).all()


def test_scores_versions_and_hashes_are_filled_in(scorer: Scorer) -> None:
    one = item("source", 3)
    scorer.score([one])
    assert 0 <= one.candidate["rb"] <= 1
    assert 0 <= one.candidate["drb"] <= 1
    assert one.candidate["rbversion"] == scorer.forest_manifest.version
    assert one.candidate["drbversion"] == scorer.network_manifest.version
    assert scorer.forest_manifest.sha256.startswith(one.extension["rb_model"])
    assert scorer.network_manifest.sha256.startswith(one.extension["drb_model"])
    scorer.score([])


def test_a_score_depends_neither_on_the_batch_nor_on_the_place_in_it(scorer: Scorer) -> None:
    items = [item(kind, seed) for seed in range(25) for kind in ("source", "cosmic_ray", "residual")]
    alone = [copy.deepcopy(one) for one in items[:6]]
    backwards = [copy.deepcopy(one) for one in items[::-1]]
    scorer.score(items)
    scorer.score(backwards)
    for one in alone:
        scorer.score([one])
    for name in ("rb", "drb"):
        together = np.array([one.candidate[name] for one in items])
        np.testing.assert_allclose([one.candidate[name] for one in alone], together[:6], atol=1e-5)
        np.testing.assert_allclose([one.candidate[name] for one in backwards][::-1], together, atol=1e-5)


@pytest.mark.parametrize("hurt", ["nan", "cut", "flat"])
def test_hurt_stamps_get_a_score(scorer: Scorer, hurt: str) -> None:
    images = [image.astype(np.float32) for image in stamps("source", 5)]
    if hurt == "nan":
        for image in images:
            image[:20] = np.nan
    elif hurt == "cut":
        images = [image[:, :40] for image in images]
    else:
        images[1] = np.full((63, 63), 100.0, np.float32)
    one = item("source", 5)
    one = replace(one, cutouts=tuple(encode_stamp(image) for image in images), candidate={"candid": 1, "magpsf": 18.0})
    scorer.score([one])
    assert np.isfinite([one.candidate["rb"], one.candidate["drb"]]).all()


def test_a_written_packet_gives_the_features_of_its_batch_item() -> None:
    from alert_samples import batch as sample_batch
    from alert_samples import item as sample_item

    one = sample_item()
    one.candidate |= {"magpsf": 18.123456789, "magnr": 20.98765432101, "distnr": 2.9999999999, "sigmapsf": 0.0712345678}
    whole: CandidateBatch = sample_batch(one)
    (packet,) = read_packets(write_packet(build_packet(one, whole, {})))
    np.testing.assert_array_equal(feature_matrix([packet["candidate"]]), feature_matrix([one.candidate]))
    ours = triplet(*(decode_stamp(cutout) for cutout in one.cutouts))
    np.testing.assert_array_equal(packet_triplet(packet), ours)


@pytest.mark.real
def test_real_packets_are_scored_much_as_the_survey_scores_them(scorer: Scorer, real_data: Path) -> None:
    files = sorted((real_data / "alerts" / "drb_scored").glob("*.avro"))
    packets = [packet for path in files for packet in read_packets(path.read_bytes())]
    drb = network_scores(scorer.network, np.stack([packet_triplet(packet) for packet in packets]))
    rb = forest_scores(scorer.forest, feature_matrix([packet["candidate"] for packet in packets]))
    published = np.array([packet["candidate"]["drb"] for packet in packets], np.float32)
    assert len(packets) > 200
    for scores, name in ((rb, FOREST), (drb, NETWORK)):
        assert np.isfinite(scores).all()
        auc = area_under_curve(scores, published >= 0.5)
        assert auc > 0.7
        assert auc == pytest.approx(read_manifest(name).figures["real_packets_auc"], abs=2e-3)
    known = np.array([packet["candidate"]["ssnamenr"] not in (None, "", "null") for packet in packets])
    assert known.sum() > 50
    assert np.mean(drb[known] >= 0.5) > 0.95  # asteroids with a number are real, whoever scores them
