"""Reference images: which exposures, on which grid, and their robust mean with everything subtraction needs."""

from stream.reference.build import ReferenceConfig, build_reference
from stream.reference.combine import CombineConfig
from stream.reference.select import Epoch, EpochConfig, Selection, epoch_of, select_epochs

__all__ = [
    "CombineConfig",
    "Epoch",
    "EpochConfig",
    "ReferenceConfig",
    "Selection",
    "build_reference",
    "epoch_of",
    "select_epochs",
]
