"""References without a broker, in parallel processes: from packets or stored products, and made anew when worth it.

Images are read when they are combined, one at a time, and the one array that grows with their number lies in a file
where it is large: a reference of fifty exposures takes no more memory than one of ten.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stream.archive import (
    ProductStore,
    find_science_products,
    parse_science_name,
    read_quality_record,
    read_science_product,
    reference_path,
    science_path,
    write_products,
)
from stream.archive.products import science_files
from stream.archive.reference_shelf import ReferenceShelf, Where
from stream.core.camera import Camera
from stream.core.errors import MessageError, PacketError, Permanent, UsageError
from stream.core.records import F32, QuadrantInputs, Reference, Row, ScienceImage
from stream.offline import Built, Job, PacketHead, Progress, own_task, packet_heads, parallel, quiet, raw_of
from stream.pipeline import CONE_MARGIN, ScienceSettings, process_quadrant
from stream.reference import (
    Current,
    Epoch,
    EpochConfig,
    UpdateConfig,
    Verdict,
    build_reference,
    catalog_residuals,
    decide_rebuild,
    epoch_of_report,
    epoch_table,
    epochs_of_table,
    in_memory,
    same_place,
    select_epochs,
)
from stream.subtract import code_version, note_reference

SCIENCE_IMAGE = "sciimg.fits.fz"
STACK_IN_MEMORY = 512 << 20  # bytes; larger stacks of inputs lie in a file


@dataclass(frozen=True, slots=True)
class Request:
    """What a process is to make: the reference of one field, filter and channel from packets or stored products.

    ``keep``: the packets' science products go to the store, not to a scratch folder.
    """

    where: Where  # field, fid, rcid
    camera: Camera
    epochs: EpochConfig
    heads: tuple[PacketHead, ...] = ()
    names: tuple[str, ...] = ()
    keep: bool = False


class StoredImages(Sequence[ScienceImage]):
    """Science images of a store, each read when it is asked for."""

    def __init__(self, store: ProductStore, names: Sequence[str]) -> None:
        self._store, self._names = store, list(names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> ScienceImage:  # type: ignore[override]
        return read_science_product(self._store, self._names[index])


def _build(request: Request) -> Built:
    task, what = own_task(), request.where
    with tempfile.TemporaryDirectory(prefix="ztf-reference-") as scratch:
        store, names = task.store, list(request.names)
        reasons: list[str] = []
        if request.heads:
            store = task.store if request.keep else ProductStore(f"{scratch}/products")
            names, reasons = _process(request, store)
        night = request.heads[0].night if request.heads else ""
        looked_at = len(request.heads) or len(names)
        try:
            reference = _combine(what, store, names, request, Path(scratch))
        except Permanent as error:
            return Built("reference", what[0], what[2], what[1], night, looked_at, {"rejected": reasons}, str(error))
    task.store.write_reference(reference)
    take_notes(task.store, what)
    qa = {name: value for name, value in reference.qa.items() if name != "epochs"}
    left_out = [f"{row['name']}: {row['verdict']}" for row in reference.qa["epochs"] if not row["chosen"]]
    figures = {**qa, "version": reference.version, "clipped": qa["rejected"], "rejected": [*reasons, *left_out]}
    return Built("reference", what[0], what[2], what[1], night, reference.n_frames, figures)


def take_notes(store: ProductStore, where: Where) -> bool:
    """Make the notes of the reference in use where it has none of this code; whether that was so.

    From the pixels as they are stored: then a worker that has to make them itself finds the same.
    """
    log = store.reference_log(*where)
    if log is None:
        return False
    notes = store.read_notes(*where, str(log["version"]))
    if notes is not None and (notes.version, notes.code) == (log["version"], code_version()):
        return False
    reference = store.read_reference(*where)
    if reference is None:
        return False
    store.write_notes(*where, note_reference(reference))
    return True


def _process(request: Request, store: ProductStore) -> tuple[list[str], list[str]]:
    """Science products of packets: their base names, and why others gave none."""
    task = own_task()
    qid = request.where[2] % 4 + 1
    names, reasons = [], []
    for head in request.heads:
        name = f"{head.path.name.split('.fits')[0]}_q{qid}"
        if request.keep and store.exists(science_path(name, SCIENCE_IMAGE)):
            names.append(name)  # with its candidates, which making it again without a reference would lose
            continue
        raw = raw_of(head.path, qid, request.camera)
        if raw is None:
            continue
        result = process_quadrant(raw, task.inputs, task.settings)
        if result.science is None or result.report.reason is not None:
            reasons.append(f"{head.path.name}: {result.report.reason}")
            continue
        write_products(store, result)
        names.append(result.quadrant.name)
    return names, reasons


def _combine(where: Where, store: ProductStore, names: Sequence[str], request: Request, scratch: Path) -> Reference:
    """Choose, combine and check against the catalogues; the pixels lie where those of the reference so far do."""
    task = own_task()
    epochs = _epochs(store, names, request.camera.pixel_scale)
    selection = select_epochs(epochs, request.epochs)
    images = StoredImages(store, [epochs[i].name for i in selection.chosen])

    def empty(shape: tuple[int, ...]) -> F32:
        if 4 * int(np.prod(shape)) <= STACK_IN_MEMORY:
            return in_memory(shape)
        return np.memmap(scratch / "stack", np.float32, "w+", shape=shape)

    grid = task.store.reference_grid(*where)
    if grid is not None and not same_place(grid, images[0]):
        grid = None
    reference = build_reference(images, None, grid, empty)
    _, figures = catalog_residuals(reference, *catalogs_of(reference, task.inputs))
    qa: Row = {**reference.qa, **figures, "epochs": epoch_table(epochs, selection)}
    return replace(reference, qa=qa)


def catalogs_of(reference: Reference, inputs: QuadrantInputs) -> tuple[np.ndarray, np.ndarray]:
    """Gaia and Pan-STARRS1 about a reference."""
    ny, nx = reference.data.shape
    ra, dec = (float(v) for v in reference.wcs.all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0))
    scale = float(np.sqrt(abs(np.linalg.det(reference.wcs.pixel_scale_matrix))))
    radius = 0.5 * float(np.hypot(nx, ny)) * scale + CONE_MARGIN
    return inputs.gaia(ra, dec, radius), inputs.ps1(ra, dec, radius)


def build_references(
    paths: Sequence[Path],
    job: Job,
    workers: int,
    progress: Progress = quiet,
    epochs: EpochConfig | None = None,
    *,
    keep: bool = False,
) -> tuple[list[Built], list[PacketError]]:
    """References of every field, filter and quadrant position among raw `o` packets.

    Raises
    ------
    UsageError
        There is no science packet among the files.
    """
    heads, errors = packet_heads(paths, job.camera)
    groups: dict[tuple[int, int, int, int], list[PacketHead]] = defaultdict(list)
    for head in heads:
        if head.imgtype == "object":
            for qid in head.qids:
                groups[head.field, head.fid, head.ccdid, qid].append(head)
    if not groups:
        raise UsageError(f"none of {len(heads)} readable packets is an exposure on sky: name `_o` packets")
    requests = [
        Request((of, fid, 4 * (ccdid - 1) + qid - 1), job.camera, epochs or EpochConfig(), tuple(group), keep=keep)
        for (of, fid, ccdid, qid), group in sorted(groups.items())
    ]
    settings = ScienceSettings(camera=job.camera, subtract=False, calibrate=job.calibrate)
    return _build_all(requests, job, workers, progress, settings), errors


def _build_all(
    requests: Sequence[Request], job: Job, workers: int, progress: Progress, settings: ScienceSettings | None = None
) -> list[Built]:
    built = []
    for done, one in enumerate(parallel(_build, requests, job, workers, settings), 1):
        built.append(one)
        progress(done, len(requests), "references")
    return built


def build_references_from_store(
    field: int,
    rcid: int | None,
    fid: int,
    job: Job,
    workers: int,
    progress: Progress = quiet,
    epochs: EpochConfig | None = None,
) -> list[Built]:
    """References of a field and filter from the science products in the store.

    Raises
    ------
    UsageError
        The store has no such products.
    """
    store = ProductStore(job.store)
    groups: dict[int, list[str]] = defaultdict(list)
    for name, channel in find_science_products(store, field, fid):
        if rcid is None or channel == rcid:
            groups[channel].append(name)
    if not groups:
        where = "" if rcid is None else f", rcid {rcid}"
        raise UsageError(
            f"no science products of field {field}{where}, filter {fid} in {job.store}: run `process` first"
        )
    config = epochs or EpochConfig()
    requests = [
        Request((field, fid, channel), job.camera, config, names=tuple(sorted(names)))
        for channel, names in sorted(groups.items())
    ]
    return _build_all(requests, job, workers, progress)


@dataclass(frozen=True, slots=True)
class Updated:
    """What `update` decided about one reference and, where it was made anew, what came of it."""

    field: int
    fid: int
    rcid: int
    before: str | None  # version
    rebuild: bool
    reason: str
    gain: float  # mag of depth; NaN: unknown
    built: Built | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """Which references are looked at: None is all; ``night`` (YYYYMMDD): only those observed in it."""

    field: int | None = None
    fid: int | None = None
    rcid: int | None = None
    night: str | None = None


def update_references(
    job: Job,
    workers: int,
    config: UpdateConfig | None = None,
    scope: Scope | None = None,
    progress: Progress = quiet,
    *,
    quarantine: float = 0.0,
    dry_run: bool = False,
) -> list[Updated]:
    """Make anew what the store's science products would make better, and make what is missing.

    What is kept as it is gets notes of the code of today (``take_notes``).

    Parameters
    ----------
    quarantine : float
        Days before the newest exposure of a reference's own that do not enter one that is replaced: what flared up
        lately is not to become the zero level that it is measured against.
    dry_run : bool
        Decide only.
    """
    config, store = config or UpdateConfig(), ProductStore(job.store)
    decided: list[Updated] = []
    requests: dict[Where, Request] = {}
    places = sorted(_observed(store, scope or Scope()).items())
    for done, (where, names) in enumerate(places, 1):
        epochs = _epochs(store, names, job.camera.pixel_scale)
        current = current_reference(store, where)
        limits = config.epochs
        if current is not None and quarantine > 0 and epochs:
            limits = replace(limits, jd_max=min(limits.jd_max, max(e.jd for e in epochs) - quarantine))
        verdict: Verdict = decide_rebuild(current, epochs, replace(config, epochs=limits))
        before = None if current is None else current.version
        decided.append(Updated(*where, before, verdict.rebuild, verdict.reason, verdict.gain))
        if verdict.rebuild:
            requests[where] = Request(where, job.camera, limits, names=tuple(e.name for e in epochs))
        progress(done, len(places), "decisions")
    if dry_run:
        return decided
    for where, _ in places:
        if where not in requests:
            take_notes(store, where)
    if not requests:
        return decided
    built = dict(zip(requests, _build_all(list(requests.values()), job, workers, progress), strict=True))
    return [replace(one, built=built.get((one.field, one.fid, one.rcid))) for one in decided]


def _observed(store: ProductStore, scope: Scope) -> dict[Where, list[str]]:
    """Base names of the store's science images by field, filter and channel."""
    groups: dict[Where, list[str]] = defaultdict(list)
    wanted = set()
    for name, _ in science_files(store, f"_{SCIENCE_IMAGE}"):
        try:
            parts = parse_science_name(name)
        except UsageError:  # somebody else's file in our tree
            continue
        where = parts.field, parts.fid, parts.rcid
        if all(asked in (None, has) for asked, has in zip((scope.field, scope.fid, scope.rcid), where, strict=True)):
            groups[where].append(name)
            if scope.night in (None, parts.night):
                wanted.add(where)
    return {where: names for where, names in groups.items() if where in wanted}


def _epochs(store: ProductStore, names: Iterable[str], pixel_scale: float) -> list[Epoch]:
    """What quality records say of images; one without a record of ours is left out."""
    epochs = []
    for name in names:
        with suppress(UsageError, MessageError):
            epochs.append(epoch_of_report(read_quality_record(store, name), pixel_scale))
    return epochs


def current_reference(store: ProductStore, where: Where) -> Current | None:
    """What the decision needs of the reference in use, from its log."""
    log = store.reference_log(*where)
    if log is None:
        return None
    rows = log["qa"].get("epochs", [])
    pin = ReferenceShelf(store).pinned(where)
    return Current(
        str(log["version"]),
        tuple(log["inputs"]),
        tuple(epochs_of_table(rows)),
        any(row["relaxed"] for row in rows),
        None if pin is None else f"{pin.version}, {pin.who}: {pin.why}",
    )


def write_report(store: ProductStore, inputs: QuadrantInputs, where: Where, version: str | None, folder: Path) -> Path:
    """Write the page about a reference (``version`` None: the one in use) into a folder; returns its path.

    Raises
    ------
    UsageError
        There is no such version.
    """
    from stream.reference.report import report_page  # draws: not for a worker's start

    reference = store.read_reference(*where, version)
    if reference is None:
        raise UsageError(f"no reference of field {where[0]}, filter {where[1]}, rcid {where[2]}, version {version}")
    residuals, _ = catalog_residuals(reference, *catalogs_of(reference, inputs))
    folder.mkdir(parents=True, exist_ok=True)
    name = reference_path(*where, f"{reference.version}.html").rsplit("/", 1)[-1]
    path = folder / name
    path.write_text(report_page(reference, residuals), encoding="utf-8")
    return path
