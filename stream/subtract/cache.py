"""What a subtraction needs of a reference and is the same for every science image: made once, kept beside it."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.core import psf
from stream.core.psf import PsfModel
from stream.core.records import F32, Reference, ReferenceNotes
from stream.core.resample import bridged, near
from stream.photometry import Star, fit_stars, saturated, saturated_stars, stamps, subtract_stars
from stream.subtract import match
from stream.subtract.match import MatchConfig, clean_stars
from stream.subtract.models import modelled_stars, paint

# The reference's plateaus, a little below their limit: whatever measured it had noise.
PLATEAU = 0.98


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """A reference made ready; all images (ny, nx) on its own grid.

    ``version`` is the reference's. ``pixels`` float32 DN: without the saturated stars that could be fitted and without
    ``models``, plateaus 0, pixels without a value bridged (no NaN). ``empty`` bool: those pixels. ``full`` bool:
    plateaus, one pixel wider. ``sigma`` float32 DN: the noise of white pixels, no NaN. ``stars`` (n, 3) float64: x, y
    (px), flux (DN) of the saturated stars taken out. ``models`` (k, 4) float64: the same of the bright stars taken out,
    and their S/N, ``left`` that of the brightest that is still in. ``clean`` (m,) int64: rows of ``sources`` to match
    with. ``typical`` DN: median noise.
    """

    version: str
    pixels: F32
    empty: NDArray[np.bool_]
    full: NDArray[np.bool_]
    sigma: F32
    stars: NDArray[np.float64]
    models: NDArray[np.float64]
    left: float
    clean: NDArray[np.int64]
    typical: float

    def with_stars(self, psf: PsfModel) -> ReferenceCache:
        """The same with the bright stars in, for a method that needs to see them; ``psf`` is the reference's."""
        pixels = self.pixels.copy()
        paint(pixels, psf, *self.models[:, :3].T)
        return replace(self, pixels=pixels, models=np.zeros((0, 4)))


def make_cache(reference: Reference, config: MatchConfig | None = None) -> ReferenceCache:
    """The record of a reference; a pure function of it.

    0.09 core-seconds for a whole quadrant with the reference's notes of this code, up to 0.3 more without.
    """
    empty, plateau = ~np.isfinite(reference.data), _plateau(reference)
    notes = reference.notes
    if notes is None or config is not None or (notes.version, notes.code) != (reference.version, code_version()):
        notes = note_reference(reference, config)
    sigma = reference.unc.copy()
    np.copyto(sigma, np.float32(notes.typical), where=~np.isfinite(sigma))
    pixels = reference.data.copy()
    subtract_stars(pixels, reference.psf, [Star(*row) for row in notes.stars.tolist()], faded=True)
    pixels[plateau] = 0
    models, left = modelled_stars(reference.sources, plateau, notes.stars)
    paint(pixels, reference.psf, models[:, 0], models[:, 1], -models[:, 2])
    pixels, full = bridged(pixels, empty), near(plateau, 1)
    return ReferenceCache(
        reference.version, pixels, empty, full, sigma, notes.stars, models, left, notes.clean, notes.typical
    )


def note_reference(reference: Reference, config: MatchConfig | None = None) -> ReferenceNotes:
    """The part of ``ReferenceCache`` that takes long and is small.

    Images are not in it: to read one takes as long as to make it from the reference's own.
    """
    known = reference.unc[::8, ::8][np.isfinite(reference.unc[::8, ::8])]
    typical = float(np.median(known)) if known.size else 1.0
    stars = _saturated(reference, _plateau(reference), ~np.isfinite(reference.data), typical)
    table = np.array([(s.x, s.y, s.flux) for s in stars], float).reshape(-1, 3)
    clean = clean_stars(reference.sources, reference.data.shape, config or MatchConfig()).astype(np.int64)
    return ReferenceNotes(reference.version, code_version(), table, clean, typical)


@lru_cache(maxsize=1)
def code_version() -> str:
    """Short hash of the source of what makes notes."""
    digest = hashlib.sha256()
    for module in (match, psf, saturated, stamps):
        digest.update(inspect.getsource(module).encode())
    digest.update(inspect.getsource(note_reference).encode() + inspect.getsource(_saturated).encode())
    return digest.hexdigest()[:12]


def _plateau(reference: Reference) -> NDArray[np.bool_]:
    if not np.isfinite(reference.saturate):
        return np.zeros(reference.data.shape, bool)
    return np.asarray(reference.data >= np.float32(PLATEAU * reference.saturate))  # False where NaN


def reference_gain(reference: Reference, science_gain: float) -> float:
    """e-/DN of a reference: its own word, else that of so many averaged exposures."""
    return float(reference.qa.get("gain", science_gain * max(reference.n_frames, 1)))


def _saturated(
    reference: Reference, plateau: NDArray[np.bool_], empty: NDArray[np.bool_], typical: float
) -> list[Star]:
    """Stars on plateaus, as far as their flanks can be fitted."""
    if not plateau.any() or len(reference.sources) == 0:
        return []
    x, y = saturated_stars(reference.sources, plateau)
    noise = typical**2, reference_gain(reference, 6.2)
    return [s for s in fit_stars(reference.data, plateau | empty, reference.psf, (x, y), noise) if s is not None]
