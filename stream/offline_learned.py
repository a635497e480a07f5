"""What a channel's own images teach, from the products in the store: ghosts' geometry and persistent artefacts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stream.archive import ProductStore, StoreInputs, read_mask, read_science_product
from stream.archive.learned import channel_products, read_sightings, write_ghosts, write_persistent
from stream.calibrate import calibrate_ghosts, ghost_sample
from stream.calibrate.ghosts import GhostSample
from stream.calibrate.persistent import learn_persistent
from stream.core.camera import FULL
from stream.core.errors import Permanent, UsageError
from stream.core.flags import Info
from stream.core.ghosts import FIELD_RADIUS
from stream.core.records import Row

Progress = Callable[[int, int, str], None]
# Exposures that are read for ghosts; more sharpen the geometry no further than the layout's own error.
MAX_GHOST_EXPOSURES = 60


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one channel taught: ``figures`` of it, or ``error``, why it did not."""

    kind: str  # ghosts or persistent
    rcid: int
    n_exposures: int
    figures: Row
    error: str | None = None


def learn_ghosts(store: ProductStore, rcid: int, first: str, last: str, progress: Progress) -> Lesson:
    """Calibrate a channel's ghosts from its science images of nights ``first`` to ``last``, and store the geometry.

    Raises
    ------
    UsageError
        The store has no science image of that channel and time.
    """
    products = channel_products(store, rcid, "_sciimg.fits.fz", first, last)
    if not products:
        raise UsageError(f"no science images of channel {rcid} from {first} to {last}: run `ztf-stream process` first")
    step = -(-len(products) // MAX_GHOST_EXPOSURES)
    inputs = StoreInputs(store)
    samples: list[GhostSample] = []
    for name, _, _ in products[::step]:
        science = read_science_product(store, name)
        if not science.infobits & int(Info.BAD_QUALITY):
            exposure = science.quadrant.exposure
            bright = inputs.bright(exposure.ra, exposure.dec, FIELD_RADIUS)
            samples.append(ghost_sample(science, bright, FULL.pixel_scale))
        progress(len(samples), len(products[::step]), "ghosts")
    try:
        geometry = calibrate_ghosts(samples)
    except Permanent as error:
        return Lesson("ghosts", rcid, len(samples), {}, str(error))
    path = write_ghosts(store, rcid, geometry, len(samples))
    return Lesson("ghosts", rcid, len(samples), {**geometry.as_dict(), "path": path})


def learn_artefacts(store: ProductStore, rcid: int, first: str, last: str, progress: Progress) -> Lesson:
    """Learn a channel's persistent artefacts from its candidates, sent and rejected, and store the map.

    Raises
    ------
    UsageError
        The store has no candidates of that channel and time.
    """
    products = channel_products(store, rcid, "_candidates.parquet", first, last)
    if not products:
        raise UsageError(f"no candidates of channel {rcid} from {first} to {last}: run `ztf-stream process` first")
    shape = read_mask(store, products[0][0]).shape
    seen = read_sightings(store, products)
    progress(1, 1, "persistent artefacts")
    try:
        mask = learn_persistent(seen, len(products), (shape[0], shape[1]))
    except Permanent as error:
        return Lesson("persistent", rcid, len(products), {}, str(error))
    nights = sorted({night for _, night, _ in products})
    path = write_persistent(store, rcid, mask, nights, len(products))
    figures = {"pixels": int((mask != 0).sum()), "detections": len(seen.x), "nights": len(nights), "path": path}
    return Lesson("persistent", rcid, len(products), figures)
