"""``ztf-stream reference build|update|list|pin|report``."""

from __future__ import annotations

import datetime as dt
import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stream.cli.build import AsJson, CameraName, Files, Store, Workers, prepare, show
from stream.core.errors import UsageError
from stream.core.identity import FILTER_CODES, FILTER_IDS, jd_of

if TYPE_CHECKING:
    from stream.archive.reference_shelf import ReferenceShelf, Where
    from stream.offline_reference import Updated
    from stream.reference import EpochConfig

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Build, renew, list, pin and look at reference images."
)

Field = Annotated[int | None, typer.Option(help="Field.")]
Rcid = Annotated[int | None, typer.Option(help="Readout channel 0..63.")]
Filter = Annotated[str | None, typer.Option("--filter", help="g, r or i.")]
# The rules for epochs, by default those of the independent reprocessing ZUDS and the survey's cloud rules.
Seeing = Annotated[tuple[float, float], typer.Option(help="Least and largest seeing, arcsec.")]
Maglim = Annotated[tuple[float, float], typer.Option(help="Least and largest MAGLIM, as if of 30 s.")]
Throughput = Annotated[float, typer.Option(help="Largest loss of zero point against the median, mag.")]
Least = Annotated[int, typer.Option("--min-epochs", help="Exposures wished for; else the least bad others are added.")]
Most = Annotated[int, typer.Option("--max-epochs", help="The deepest so many are used.")]
Strict = Annotated[bool, typer.Option("--strict", help="Use only what passes every rule.")]
Since = Annotated[str | None, typer.Option(help="First night (YYYYMMDD) of exposures to use.")]
Until = Annotated[str | None, typer.Option(help="Last night (YYYYMMDD) of exposures to use.")]


@app.callback()
def _references() -> None:
    """Build, renew, list, pin and look at reference images."""


@app.command("build")
def build_reference(
    raw: Files = None,
    field: Annotated[int | None, typer.Option(help="Field, for references from science products in the store.")] = None,
    rcid: Annotated[int | None, typer.Option(help="Readout channel 0..63; all of the field's by default.")] = None,
    filtercode: Filter = None,
    seeing: Seeing = (1.7, 2.5),
    maglim: Maglim = (19.2, 22.0),
    throughput: Throughput = 0.3,
    minimum: Least = 14,
    maximum: Most = 50,
    strict: Strict = False,
    since: Since = None,
    until: Until = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the raw packets' science products in the store.")] = False,
    store: Store = None,
    camera: CameraName = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Make references from raw packets, or (`--field --rcid --filter`) from science products in the store.

    The reference in use so far is kept under its version.
    """
    from stream.cli.common import progress_bar
    from stream.offline_reference import build_references, build_references_from_store

    epochs = _epochs(seeing, maglim, throughput, (minimum, maximum), strict, (since, until))
    if raw:
        paths, job, count = prepare(raw, store, camera, workers)
        with progress_bar() as report:
            built, errors = build_references(paths, job, count, report, epochs, keep=keep)
        show(built, [str(e) for e in errors], as_json, "references")
        return
    fid = _fid(filtercode)
    if field is None or fid is None:
        raise UsageError("name raw packets, or give --field and --filter (and --rcid) to use the store's products")
    _, job, count = prepare(None, store, camera, workers)
    with progress_bar() as report:
        built = build_references_from_store(field, rcid, fid, job, count, report, epochs)
    show(built, [], as_json, "references")


@app.command("update")
def update(
    field: Field = None,
    rcid: Rcid = None,
    filtercode: Filter = None,
    night: Annotated[str | None, typer.Option(help="Look only at what was observed in this night (YYYYMMDD).")] = None,
    gain: Annotated[float, typer.Option(help="Depth (mag) that is worth a new reference.")] = 0.1,
    sharper: Annotated[float, typer.Option(help="So is a median seeing that falls by this share.")] = 0.1,
    new: Annotated[int, typer.Option(help="Least number of exposures that the one in use does not have.")] = 3,
    quarantine: Annotated[
        float, typer.Option(help="Days before the newest exposure that do not enter a renewed reference.")
    ] = 30.0,
    seeing: Seeing = (1.7, 2.5),
    maglim: Maglim = (19.2, 22.0),
    throughput: Throughput = 0.3,
    minimum: Least = 14,
    maximum: Most = 50,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, do not build.")] = False,
    store: Store = None,
    camera: CameraName = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Make references anew where enough better exposures are in the store, and make those that are missing.

    What is replaced is kept under its version; what is pinned is left alone. For a nightly job: `--night` of the night
    that ended.
    """
    from stream.cli.common import print_json, progress_bar
    from stream.offline_reference import Scope, update_references
    from stream.reference import UpdateConfig

    epochs = _epochs(seeing, maglim, throughput, (minimum, maximum), strict=False, nights=(None, None))
    config = UpdateConfig(epochs, gain, sharper, new)
    _, job, count = prepare(None, store, camera, workers)
    scope = Scope(field, _fid(filtercode), rcid, night)
    with progress_bar() as report:
        done = update_references(job, count, config, scope, report, quarantine=quarantine, dry_run=dry_run)
    if as_json:
        for one in done:
            print_json(one)
    else:
        _show_updates(done)
    if any(one.built is not None and one.built.error is not None for one in done):
        raise typer.Exit(1)


def _show_updates(done: list[Updated]) -> None:
    table = Table("field", "filter", "rcid", "in use", "decision", "new", title="references")
    for one in done:
        built = one.built
        new = "" if built is None else built.error or f"{built.figures['version']}, {built.n_inputs} exposures"
        word = "rebuild" if one.rebuild else "leave"
        code = FILTER_CODES[one.fid]
        table.add_row(str(one.field), code, str(one.rcid), one.before or "", f"{word}: {one.reason}", new)
    Console().print(table)


@app.command("list")
def list_references(
    field: Field = None, rcid: Rcid = None, filtercode: Filter = None, store: Store = None, as_json: AsJson = False
) -> None:
    """Every version of the references: which is in use, which is pinned, of how many exposures, how deep."""
    from stream.cli.common import print_json

    shelf = _shelf(store)
    table = Table(
        "field", "filter", "rcid", "version", "", "inputs", "from", "to", "MAGLIM", "FWHM", title="references"
    )
    for where in shelf.places(field, _fid(filtercode), rcid):
        for one in shelf.versions(where):
            names = sorted(one.log["inputs"])
            nights = [name[4:12] for name in names[:1] + names[-1:]] or ["", ""]
            qa = one.log["qa"]
            if as_json:
                row = {"field": one.field, "fid": one.fid, "rcid": one.rcid, "version": one.version}
                row |= {"in_use": one.in_use, "pinned": one.pinned, "inputs": names}
                print_json(row | {"qa": {k: v for k, v in qa.items() if k != "epochs"}})
                continue
            word = ("in use" if one.in_use else "") + (", pinned" if one.pinned else "")
            figures = [f"{qa[k]:.2f}" if qa.get(k) is not None else "" for k in ("maglim", "fwhm")]
            table.add_row(
                str(one.field), FILTER_CODES[one.fid], str(one.rcid), one.version, word, str(len(names)), *nights,
                *figures,
            )  # fmt: skip
    if not as_json:
        Console().print(table)


@app.command("pin")
def pin(
    version: Annotated[str, typer.Argument(help="Version, as `reference list` shows it.")],
    field: Annotated[int, typer.Option(help="Field.")],
    rcid: Annotated[int, typer.Option(help="Readout channel 0..63.")],
    filtercode: Annotated[str, typer.Option("--filter", help="g, r or i.")],
    why: Annotated[str, typer.Option(help="The reason, for those who come after.")] = "",
    who: Annotated[str | None, typer.Option(help="Who says so; the user by default.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the pin back; the version stays in use.")] = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Put a version in use and hold it there: `update` leaves a pinned reference alone."""
    from stream.archive.reference_shelf import ReferencePin
    from stream.cli.common import print_json

    shelf, where = _shelf(store), _where(field, rcid, filtercode)
    if remove:
        known = shelf.pinned(where)
        if known is None or known.version != version:
            raise UsageError(f"{version} is not pinned for field {field}, rcid {rcid}, filter {filtercode}")
        shelf.unpin(where)
        word: dict[str, Any] = {"unpinned": version}
    else:
        if not why.strip():
            raise UsageError("a pin needs a reason: --why 'a supernova is in the new one'")
        shelf.pin(where, ReferencePin(version, who or getpass.getuser(), why))
        word = {"pinned": version, "why": why}
    if as_json:
        print_json({"field": field, "rcid": rcid, "fid": where[1], **word})
    else:
        print(
            f"field {field}, rcid {rcid}, {FILTER_CODES[where[1]]}: " + ", ".join(f"{k} {v}" for k, v in word.items())
        )


@app.command("report")
def report(
    out: Annotated[Path, typer.Argument(help="Folder for the pages, one HTML file a reference.")],
    field: Field = None,
    rcid: Rcid = None,
    filtercode: Filter = None,
    version: Annotated[str | None, typer.Option(help="An older version; the one in use by default.")] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """A page to look at per reference: image, coverage, PSF, depth, residuals on Gaia and PS1, inputs and why not."""
    from stream.archive import ProductStore, StoreInputs
    from stream.cli.common import print_json, progress_bar
    from stream.engine.config import load_settings
    from stream.offline_reference import write_report

    products = ProductStore(load_settings(store=store).store)
    places = list(_shelf(store).places(field, _fid(filtercode), rcid))
    if not places:
        raise UsageError("the store has no such reference: `ztf-stream reference list` shows which there are")
    inputs, written = StoreInputs(products), []
    with progress_bar() as progress:
        for done, where in enumerate(places, 1):
            written.append(write_report(products, inputs, where, version, out))
            progress(done, len(places), "pages")
    for path in written:
        if as_json:
            print_json({"path": str(path)})
        else:
            print(path)


def _epochs(
    seeing: tuple[float, float],
    maglim: tuple[float, float],
    throughput: float,
    numbers: tuple[int, int],
    strict: bool,
    nights: tuple[str | None, str | None],
) -> EpochConfig:
    from stream.reference import EpochConfig

    first, last = (_jd(night) for night in nights)
    return EpochConfig(
        *seeing,
        *maglim,
        throughput,
        jd_min=float("-inf") if first is None else first,
        jd_max=float("inf") if last is None else last + 1.0,
        minimum=numbers[0],
        maximum=numbers[1],
        relax=not strict,
    )


def _jd(night: str | None) -> float | None:
    if night is None:
        return None
    try:
        day = dt.datetime.strptime(night, "%Y%m%d").replace(tzinfo=dt.UTC)
    except ValueError:
        raise UsageError(f"{night!r} is no night: YYYYMMDD") from None
    return jd_of(day)


def _fid(filtercode: str | None) -> int | None:
    return None if filtercode is None else fid_of(filtercode)


def fid_of(filtercode: str) -> int:
    """The number of a filter that a person named (``r`` or ``zr``); ``UsageError`` where there is none."""
    code = filtercode if filtercode in FILTER_IDS else f"z{filtercode}"
    if code not in FILTER_IDS:
        raise UsageError(f"no filter {filtercode!r}: g, r or i")
    return FILTER_IDS[code]


def _where(field: int, rcid: int, filtercode: str) -> Where:
    return field, fid_of(filtercode), rcid


def _shelf(store: str | None) -> ReferenceShelf:
    from stream.archive import ProductStore
    from stream.archive.reference_shelf import ReferenceShelf
    from stream.engine.config import load_settings

    return ReferenceShelf(ProductStore(load_settings(store=store).store))
