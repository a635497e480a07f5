"""Where the counter-moving ghost of a bright star falls, and how bright it is: a handful of numbers a camera."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.core.errors import MessageError

F64 = NDArray[np.float64]

# Faintest star (V) whose ghost is looked for: of fainter ones it stays below the noise of the sky.
GHOST_VMAG = 7.0
# The telescope's light reaches the detectors from nowhere beyond this (deg from the boresight, each axis).
FIELD_HALF_SIDE = 3.7
FIELD_RADIUS = 5.3  # deg, to the corners and a little more


@dataclass(frozen=True, slots=True)
class GhostGeometry:
    """A reflection that moves against its star: light that goes from detector to window or filter and back.

    In the plane tangent at the boresight (xi east, eta north, deg) the ghost of a star at (xi, eta) is centred at
    ``(scale xi + xi0, scale eta + eta0)``, ``scale`` about -1. It is the pupil out of focus: a disc of ``radius``
    arcsec with a hole of ``inner_radius`` (the shadow of the prime focus). ``fraction`` is the ghost's brightness in
    one pixel as a share of the star's whole flux.
    """

    scale: float = -1.0
    xi0: float = 0.0
    eta0: float = 0.0
    radius: float = 180.0
    inner_radius: float = 60.0
    fraction: float = 4e-8

    def __post_init__(self) -> None:
        values = asdict(self).values()
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"ghost geometry with a value that is no number: {self}")
        if not 0 <= self.inner_radius < self.radius or self.fraction < 0:
            raise ValueError(f"ghost geometry that cannot be: {self}")

    def place(self, xi: ArrayLike, eta: ArrayLike) -> tuple[F64, F64]:
        """Centre of the ghost (deg) of a star (deg), both from the boresight."""
        return (
            np.asarray(self.scale * np.asarray(xi, float) + self.xi0),
            np.asarray(self.scale * np.asarray(eta, float) + self.eta0),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> GhostGeometry:
        """What ``as_dict`` gave.

        Raises
        ------
        MessageError
            A name is missing or unknown, or a value impossible.
        """
        try:
            return cls(**{name: float(value) for name, value in row.items()})
        except (TypeError, ValueError) as error:
            raise MessageError(f"not a ghost geometry: {error}") from error


def sees(xi: ArrayLike, eta: ArrayLike) -> NDArray[np.bool_]:
    """Whether a star at these offsets (deg) sends light into the camera."""
    inside = (np.abs(np.asarray(xi)) <= FIELD_HALF_SIDE) & (np.abs(np.asarray(eta)) <= FIELD_HALF_SIDE)
    return np.asarray(inside, bool)
