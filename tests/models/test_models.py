"""The classifiers' parts on small made-up problems whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

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
    triplets = rng.normal(0, 0.02, (n, 63, 63, 3)).astype(np.float32)
    triplets[labels, :, :, 2] += 0.5 * blob.astype(np.float32)
    triplets[~labels, :, :, 2] += 0.3 * (np.roll(blob, 2, 1) - np.roll(blob, -2, 1)).astype(np.float32)
    table = rng.normal(0, 1, (n, len(features.FEATURES))).astype(np.float32)
    table[:, 0] += 3 * labels
    table[::7, 5] = np.nan
    return Examples(table, triplets, labels, np.arange(n, dtype=np.int64) // 2)


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
    assert named["snr"] == pytest.approx(10.857)
    assert named["sign"] == 1.0
    assert np.isnan(named["fwhm"])
    far = features.feature_matrix([{**row, "distnr": 5.0}])[0]
    assert np.isnan(far[features.FEATURES.index("contrast")])


def test_triplets_are_normalised_padded_and_finite() -> None:
    rng = np.random.default_rng(1)
    full, cut, empty = rng.normal(100, 3, (63, 63)), rng.normal(5, 1, (40, 63)), np.zeros((63, 63))
    full[3, 4] = np.nan
    out = features.triplet(full, cut, empty)
    assert out.shape == (63, 63, 3)
    assert np.isfinite(out).all()
    assert np.linalg.norm(out[..., 0]) == pytest.approx(1.0, rel=1e-5)
    assert np.linalg.norm(out[..., 1]) == pytest.approx(1.0, rel=1e-5)
    assert not out[..., 2].any()


def test_equal_error_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(4000) < 0.4
    scores = np.clip(rng.normal(0.35 + 0.3 * labels, 0.15), 0, 1).astype(np.float32)
    fpr, tpr, _ = roc_curve(labels, scores)
    nearest = int(np.argmin(np.abs(fpr - (1 - tpr))))
    expected = (fpr[nearest] + 1 - tpr[nearest]) / 2
    assert evaluate.equal_error(scores, labels)[1] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [([0.9, 0.8, 0.2], [True, True, False], 1.0), ([0.9, 0.8, 0.2], [False, True, True], 0.0)],
)
def test_completeness_at_purity(scores: list[float], labels: list[bool], expected: float) -> None:
    assert evaluate.completeness_at_purity(np.array(scores, np.float32), np.array(labels)) == expected


def test_one_object_is_never_on_both_sides() -> None:
    examples = made_up(400, 1)
    doubled = Examples(*(np.concatenate([a, a]) for a in (
        examples.features, examples.triplets, examples.labels, examples.groups)))  # fmt: skip
    parts = split(doubled)
    groups = [set(part.groups.tolist()) for part in parts]
    assert sum(len(part) for part in parts) == len(doubled)
    assert not (groups[0] & groups[1])
    assert not (groups[0] & groups[2])
    assert not (groups[1] & groups[2])


@pytest.mark.slow
def test_training_learns_writes_manifests_and_notices_a_changed_file(tmp_path: Path) -> None:
    lines: list[str] = []
    manifests = train_models(made_up(500, 2), tmp_path, seed=1, epochs=3, report=lines.append)
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
