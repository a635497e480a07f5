"""The manifest beside each shipped model: what it is, what it was trained on, how good it is, what file it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stream.core.errors import UsageError

WEIGHTS = Path(__file__).resolve().parent / "weights"
FOREST, NETWORK = "realbogus_forest", "realbogus_network"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Identity and figures of a trained model.

    ``version`` is what packets carry (rbversion or drbversion); ``sha256`` is of the weights file; ``data_sha256``
    of the training examples; ``figures`` the evaluation on held-out exposures (see ``models.evaluate``).
    """

    name: str
    version: str
    file: str
    sha256: str
    data_sha256: str
    seed: int
    n_real: int
    n_bogus: int
    figures: dict[str, float]
    software: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write ``<name>.json`` with sorted keys, so that a retraining shows as a readable diff."""
    path = folder / f"{manifest.name}.json"
    path.write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n")
    return path


def read_manifest(name: str, folder: Path = WEIGHTS) -> Manifest:
    """Read a model's manifest and check that the weights file is the one it speaks of.

    Raises
    ------
    UsageError
        No such model, or the weights were changed without their manifest.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise UsageError(f"no model {name!r} in {folder}: train one with `ztf-stream models train`")
    manifest = Manifest(**json.loads(path.read_text()))
    actual = file_sha256(folder / manifest.file)
    if actual != manifest.sha256:
        raise UsageError(
            f"{folder / manifest.file} is not the file its manifest names (sha256 {actual[:12]}, expected "
            f"{manifest.sha256[:12]}): restore it or retrain with `ztf-stream models train`"
        )
    return manifest
