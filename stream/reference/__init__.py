"""Reference images: which exposures, on which grid, and their robust mean with everything subtraction needs."""

from stream.reference.build import ReferenceConfig, build_reference, in_memory
from stream.reference.check import Residuals, catalog_residuals
from stream.reference.combine import CombineConfig
from stream.reference.grid import same_place
from stream.reference.select import (
    Epoch,
    EpochConfig,
    Selection,
    epoch_of,
    epoch_of_report,
    epoch_table,
    epochs_of_table,
    expected_depth,
    select_epochs,
)
from stream.reference.update import Current, UpdateConfig, Verdict, decide_rebuild

__all__ = [
    "CombineConfig",
    "Current",
    "Epoch",
    "EpochConfig",
    "ReferenceConfig",
    "Residuals",
    "Selection",
    "UpdateConfig",
    "Verdict",
    "build_reference",
    "catalog_residuals",
    "decide_rebuild",
    "epoch_of",
    "epoch_of_report",
    "epoch_table",
    "epochs_of_table",
    "expected_depth",
    "in_memory",
    "same_place",
    "select_epochs",
]
