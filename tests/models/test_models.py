"""The classifiers' parts on small made-up problems whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score, roc_curve

from models import evaluate, features, forest, network
from models.dataset import Examples, split
from models.manifest import FOREST, NETWORK, read_manifest
from models.train import train_models
from stream.core.errors import UsageError


def made_up(n: int, seed: int) -> Examples:
    """Half blobs in the difference (real), half noise or dipoles (bogus); features tell the same story."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2 == 0
    y, x = np.mgrid[-31:32, -31:32]
    blob = np.exp(-(x**2 + y**2) / (2 * 1.2**2))
    triplets = rng.normal(0, 1, (n, 63, 63, 3)).astype(np.float16)
    triplets[labels, :, :, 2] += (4 * blob).astype(np.float16)
    triplets[~labels, :, :, 2] += (4 * (np.roll(blob, 2, 1) - np.roll(blob, -2, 1))).astype(np.float16)
    table = rng.normal(0, 1, (n, len(features.FEATURES))).astype(np.float32)
    table[:, 0] += 6 * labels
    table[::7, 5] = np.nan
    return Examples(table, triplets, labels, np.arange(n, dtype=np.int64) // 2, np.full(n, 8.0, np.float32))


def test_features_are_the_packets_figures_and_missing_ones_are_nan() -> None:
    row = {"magpsf": 18.0, "sigmapsf": 0.1, "magnr": 20.0, "distnr": 1.0, "isdiffpos": "t", "fwhm": None}
    (vector,) = features.feature_matrix(
        [
            row,
        ]
    )
    named = dict(zip(features.FEATURES, vector, strict=True))
    assert named["magpsf"] == 18.0
    assert named["contrast"] == pytest.approx(-2.0)
    assert named["snr"] == pytest.approx(10.857362)
    assert named["sign"] == 1.0
    assert np.isnan(named["fwhm"])
    far = features.feature_matrix([{**row, "distnr": 5.0}])[0]
    assert np.isnan(far[features.FEATURES.index("contrast")])


def test_triplets_are_in_units_of_noise_whatever_the_sky_and_the_gain() -> None:
    rng = np.random.default_rng(1)
    stamps = [rng.normal(0, 1, (63, 63)).astype(np.float32) for _ in range(3)]
    out = features.triplet(*stamps)
    assert out.shape == (63, 63, 3)
    for k, stamp in enumerate(stamps):
        assert np.sinh(out[..., k]).std() == pytest.approx(1.0, abs=0.05)
        assert np.corrcoef(np.sinh(out[..., k]).ravel(), stamp.ravel())[0, 1] > 0.9999
    other = features.triplet(*(250.0 + 17.0 * stamp for stamp in stamps))
    np.testing.assert_allclose(other, out, atol=1e-4)


def test_triplets_of_cut_empty_and_hurt_stamps_are_finite() -> None:
    rng = np.random.default_rng(1)
    hurt, cut, empty = rng.normal(100, 3, (63, 63)), rng.normal(5, 1, (40, 63)), np.zeros((63, 63))
    hurt[3, 4], hurt[5, 5] = np.nan, np.inf
    out = features.triplet(hurt, cut, empty)
    assert np.isfinite(out).all()
    assert out[3, 4, 0] == 0
    assert out[5, 5, 0] == 0
    assert not out[40:, :, 1].any()
    assert out[:40, :, 1].std() > 0.5
    assert not out[..., 2].any()
    mostly_filled = np.zeros((63, 63))
    mostly_filled[30:33, 30:33] = 50.0
    assert np.isfinite(features.triplet(mostly_filled, np.full((63, 63), np.nan), empty)).all()


def test_equal_error_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(4000) < 0.4
    scores = np.clip(rng.normal(0.35 + 0.3 * labels, 0.15), 0, 1).astype(np.float32)
    fpr, tpr, _ = roc_curve(labels, scores)
    nearest = int(np.argmin(np.abs(fpr - (1 - tpr))))
    expected = (fpr[nearest] + 1 - tpr[nearest]) / 2
    assert evaluate.equal_error(scores, labels)[1] == pytest.approx(expected, abs=2e-3)


def test_rank_figures_agree_with_other_libraries() -> None:
    rng = np.random.default_rng(4)
    labels = rng.random(500) < 0.3
    scores = np.round(0.4 * labels + rng.random(500), 1).astype(np.float32)  # with ties
    other = (scores + rng.normal(0, 0.2, 500)).astype(np.float32)
    assert evaluate.area_under_curve(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert evaluate.rank_correlation(scores, other) == pytest.approx(spearmanr(scores, other).statistic)
    assert np.isnan(evaluate.area_under_curve(scores, np.ones(500, bool)))
    assert np.isnan(evaluate.equal_error(scores, np.ones(500, bool))[1])
    assert np.isnan(evaluate.rank_correlation(np.ones(5, np.float32), other[:5]))
    found = evaluate.agreement(scores, other)
    assert found["real_packets_n"] == 500


def test_figures_by_signal_to_noise_only_where_both_classes_are() -> None:
    rng = np.random.default_rng(5)
    labels = rng.random(2000) < 0.5
    snr = np.where(np.arange(2000) < 1000, 6.0, 12.0).astype(np.float32)
    scores = np.where(snr < 7, rng.random(2000), labels).astype(np.float32)
    found = evaluate.figures(scores, labels, snr, "night_")
    assert found["night_equal_error_snr_5_7"] == pytest.approx(0.5, abs=0.06)
    assert found["night_equal_error_snr_10_20"] == 0
    assert "night_equal_error_snr_7_10" not in found


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [([0.9, 0.8, 0.2], [True, True, False], 1.0), ([0.9, 0.8, 0.2], [False, True, True], 0.0)],
)
def test_completeness_at_purity(scores: list[float], labels: list[bool], expected: float) -> None:
    assert evaluate.completeness_at_purity(np.array(scores, np.float32), np.array(labels)) == expected


def test_one_object_is_never_on_both_sides() -> None:
    examples = made_up(400, 1)
    doubled = Examples(*(np.concatenate([a, a]) for a in (
        examples.features, examples.triplets, examples.labels, examples.groups, examples.snr)))  # fmt: skip
    parts = split(doubled)
    groups = [set(part.groups.tolist()) for part in parts]
    assert sum(len(part) for part in parts) == len(doubled)
    assert not (groups[0] & groups[1])
    assert not (groups[0] & groups[2])
    assert not (groups[1] & groups[2])


@pytest.mark.slow
def test_training_learns_writes_manifests_and_notices_a_changed_file(tmp_path: Path) -> None:
    lines: list[str] = []
    manifests = train_models(made_up(600, 2), tmp_path, seed=1, epochs=5, report=lines.append)
    assert lines
    for manifest in manifests:
        assert read_manifest(manifest.name, tmp_path) == manifest
        assert manifest.figures["equal_error"] < 0.1
    test = made_up(64, 9)
    model = network.load_network(tmp_path / manifests[1].file)
    scores = network.network_scores(model, test.triplets)
    assert evaluate.equal_error(scores, test.labels)[1] < 0.1
    trees = forest.load_forest(manifests[0], tmp_path)
    assert evaluate.equal_error(forest.forest_scores(trees, test.features), test.labels)[1] < 0.1
    assert _same_alone(model, test.triplets, scores)
    (tmp_path / manifests[0].file).write_bytes(b"something else")
    with pytest.raises(UsageError, match="not the file its manifest names"):
        read_manifest(FOREST, tmp_path)


def test_the_same_examples_and_seed_give_the_same_network() -> None:
    examples = made_up(96, 5)
    held = (examples.triplets[:32], examples.labels[:32])
    first, second = (network.train_network(examples.triplets, examples.labels, held, 7, 1)[0] for _ in range(2))
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_turning_keeps_pixels_and_gives_all_eight_ways() -> None:
    stamp = np.arange(63 * 63 * 3, dtype=np.float32).reshape(63, 63, 3)
    batch = network.turned(np.stack([stamp] * 200), np.random.default_rng(1))
    assert len({example.tobytes() for example in batch}) == 8
    assert (batch[:, 31, 31] == stamp[31, 31]).all()
    assert (np.sort(batch.reshape(200, -1), axis=1) == np.arange(stamp.size)).all()


def test_classes_weigh_alike() -> None:
    labels = np.array([True] * 3 + [False] * 9)
    weights = network.class_weights(labels)
    assert weights[labels].sum() == pytest.approx(weights[~labels].sum())
    assert weights.mean() == pytest.approx(1.0)


def _same_alone(model: object, triplets: NDArray[np.float32], scores: NDArray[np.float32]) -> bool:
    """A score does not depend on the batch it came in."""
    alone = [network.network_scores(model, triplets[i : i + 1])[0] for i in range(3)]
    return bool(np.allclose(alone, scores[:3], atol=1e-5))


def test_a_forest_of_another_library_version_is_refused(tmp_path: Path) -> None:
    examples = made_up(100, 4)
    path = tmp_path / f"{FOREST}.joblib"
    forest.save_forest(forest.train_forest(examples.features, examples.labels, 1), path)
    from models.manifest import Manifest, file_sha256, write_manifest

    manifest = Manifest(FOREST, "t", path.name, file_sha256(path), "", 1, 1, 1, {}, {"scikit-learn": "0.1.0"})
    write_manifest(tmp_path, manifest)
    with pytest.raises(UsageError, match=r"trained with scikit-learn 0\.1\.0"):
        forest.load_forest(read_manifest(FOREST, tmp_path), tmp_path)


def test_an_absent_model_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="models train"):
        read_manifest(NETWORK, tmp_path)


def test_manifests_are_readable_json(tmp_path: Path) -> None:
    from models.manifest import Manifest, write_manifest

    path = write_manifest(tmp_path, Manifest("m", "v", "f", "s", "d", 1, 2, 3, {"a": 0.5}, {}))
    assert json.loads(path.read_text())["figures"] == {"a": 0.5}
