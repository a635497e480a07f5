"""What a channel's own images teach, from the products in the store: ghosts, persistent artefacts, distortion."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from stream.archive import ProductStore, StoreInputs, read_mask, read_science_product
from stream.archive.learned import (
    channel_products,
    channels_of,
    read_sightings,
    read_solutions,
    write_distortion,
    write_ghosts,
    write_persistent,
)
from stream.astrometry.distortion import learn_distortion
from stream.calibrate import calibrate_ghosts, ghost_sample
from stream.calibrate.ghosts import GhostSample
from stream.calibrate.persistent import learn_persistent
from stream.core.camera import FULL
from stream.core.errors import Permanent, UsageError
from stream.core.flags import Info
from stream.core.ghosts import FIELD_RADIUS
from stream.core.identity import FILTER_CODES
from stream.core.records import Row

Progress = Callable[[int, int, str], None]
# Exposures that are read for ghosts; more sharpen the geometry no further than the layout's own error.
MAX_GHOST_EXPOSURES = 60
MAX_NIGHTS = 60  # nights whose detections tell what comes back at a pixel: dust moves, columns go bad
MAX_SOLUTIONS = 200  # newest exposures of a channel that its distortion is learned from: optics change with the seasons


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one channel taught: ``figures`` of it, or ``error``, why it did not."""

    kind: str  # ghosts, persistent or distortion
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


def learn_optics(store: ProductStore, rcid: int, first: str, last: str, progress: Progress) -> Lesson:
    """Learn a channel's distortion in every filter from the solutions of its science images, and store it.

    Raises
    ------
    UsageError
        The store has no science image of that channel and time.
    """
    products = channel_products(store, rcid, "_sciimg.fits.fz", first, last)[-MAX_SOLUTIONS:]
    if not products:
        raise UsageError(f"no science images of channel {rcid} from {first} to {last}: run `ztf-stream process` first")
    solutions = []
    for product in products:
        solutions += read_solutions(store, [product])
        progress(len(solutions), len(products), "distortion")
    models, errors = [], []
    for fid in sorted({fid for fid, _, _ in solutions}):
        mine = [(solved, shape) for of, solved, shape in solutions if of == fid]
        try:
            models.append(learn_distortion(rcid, fid, [solved for solved, _ in mine], mine[-1][1]))
        except Permanent as error:
            errors.append(str(error))
    if not models:
        return Lesson("distortion", rcid, len(products), {}, "; ".join(errors))
    path = write_distortion(store, rcid, models)
    figures: Row = {}
    for model in models:
        code = FILTER_CODES[model.fid]
        figures[f"{code}_exposures"] = model.n_exposures
        figures[f"{code}_scatter_px"] = float(model.sigma[3:].mean())
    return Lesson("distortion", rcid, len(products), {**figures, "path": path})


def learn_night(store: ProductStore, night: str, progress: Progress) -> list[Lesson]:
    """What a night's images teach their channels when it is over: distortion, artefacts that return; none without any.

    Both look back from that night, so that one night after the other is enough. A channel that has too little yet says
    so in its lesson. (Ghosts need the images themselves and months of fields: ``learn_ghosts``.)

    Raises
    ------
    UsageError
        Not a night.
    """
    since = night_before(night, MAX_NIGHTS)
    channels = channels_of(store, night, night)
    quiet: Progress = lambda done, total, what: None  # noqa: E731 - channels are counted, not their exposures
    lessons = []
    for number, rcid in enumerate(channels, 1):
        for kind, lesson, first in (("distortion", learn_optics, "00000000"), ("persistent", learn_artefacts, since)):
            try:
                lessons.append(lesson(store, rcid, first, night, quiet))
            except UsageError as error:  # no candidates: the field has no reference
                lessons.append(Lesson(kind, rcid, 0, {}, str(error)))
        progress(number, len(channels), f"channels of {night}")
    return lessons


def night_before(night: str, days: int) -> str:
    """The night so many days earlier."""
    try:
        date = dt.datetime.strptime(night, "%Y%m%d").replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise UsageError(f"{night!r} is not a night: YYYYMMDD") from error
    return (date - dt.timedelta(days=days)).strftime("%Y%m%d")
