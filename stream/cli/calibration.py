"""``ztf-stream calibration build|measure|list|show|veto|pin|ghosts|persistent|distortion``."""

from __future__ import annotations

import datetime as dt
import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stream.cli.build import AsJson, CameraName, Files, Store, Workers, prepare, show
from stream.cli.learn import distortion, ghosts, learn, persistent
from stream.core.errors import UsageError
from stream.core.identity import FILTER_CODES

if TYPE_CHECKING:
    from stream.archive.shelf import CalibrationShelf, Decision, Version
    from stream.core.errors import PacketError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Bias, flats, pixel masks and what is measured about the camera."
)

Kind = Annotated[str | None, typer.Option(help="bias, hifreqflat, loflat, fringe, shutter, pmask or instrument.")]
Rcid = Annotated[int | None, typer.Option(help="Readout channel 0..63.", min=0, max=63)]
Night = Annotated[str | None, typer.Option(help="UT date, YYYYMMDD.")]
Calid = Annotated[str, typer.Argument(help="Identifier as `calibration list` shows it.")]
Who = Annotated[str | None, typer.Option(help="Who says so; the login name by default.")]
Remove = Annotated[bool, typer.Option("--remove", help="Take it back.")]


@app.command("build")
def build(
    raw: Files = None,
    loflat: Annotated[bool, typer.Option("--loflat", help="Low-frequency flat from exposures on sky.")] = False,
    fringe: Annotated[bool, typer.Option("--fringe", help="Fringe frame from exposures in i.")] = False,
    shutter: Annotated[bool, typer.Option("--shutter", help="Shutter map from short and long flats.")] = False,
    starflat: Annotated[
        bool, typer.Option("--starflat", help="Low-frequency flat corrected by the calibrators of the store's images.")
    ] = False,
    rcid: Rcid = None,
    store: Store = None,
    camera: CameraName = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Make the night's bias, flats and pixel masks from raw `b`, `d`, `f` packets.

    With `--loflat` or `--fringe` exposures on sky (`o` packets, of one or more nights) make a low-frequency flat or a
    fringe frame, with `--shutter` flats of two exposure times the shutter's map; these are calibrated with the store's
    bias and flats first.

    With `--starflat` no packets are named: what Pan-STARRS1 says of the stars in the store's science images, by
    detector position, corrects the low-frequency flat that they were reduced with; later nights use it. `--rcid` does
    one channel.
    """
    from stream.cli.common import progress_bar
    from stream.offline_calibration import build_calibrations, build_skies, build_starflats

    kinds = (("loflat", loflat), ("fringe", fringe), ("shutter", shutter), ("starflat", starflat))
    chosen = [kind for kind, on in kinds if on]
    if len(chosen) > 1:
        raise UsageError(f"one of {', '.join('--' + kind for kind in chosen)} at a time")
    if starflat and raw:
        raise UsageError("--starflat reads the store's science images: name no packets")
    paths, job, count = prepare(raw, store, camera, workers)
    errors: list[PacketError] = []
    with progress_bar() as report:
        if starflat:
            built = build_starflats(job, count, report, rcid=rcid)
        elif chosen:
            built, errors = build_skies(paths, chosen[0], job, count, report)
        else:
            built, errors = build_calibrations(paths, job, count, report)
    show(built, [str(e) for e in errors], as_json, "calibration products")


@app.command("measure")
def measure(
    raw: Files = None, store: Store = None, camera: CameraName = None, workers: Workers = None, as_json: AsJson = False
) -> None:
    """Measure gain, read noise, saturation and cross-talk of every CCD from raw `b`, `f` and `o` packets.

    Two flats and two biases give gain and read noise (checked against the headers'), some twenty exposures on sky with
    bright stars the cross-talk matrix and the level at which pixels saturate.
    """
    from stream.cli.common import progress_bar
    from stream.offline_calibration import measure_instruments

    paths, job, count = prepare(raw, store, camera, workers)
    with progress_bar() as report:
        built, errors = measure_instruments(paths, job, count, report)
    show(built, [str(e) for e in errors], as_json, "instrument")


@app.command("list")
def list_versions(
    kind: Kind = None, rcid: Rcid = None, night: Night = None, store: Store = None, as_json: AsJson = False
) -> None:
    """Which products there are, newest night first, with vetoes and pins."""
    from stream.cli.common import print_json

    shelf = _shelf(store)
    table = Table("calid", "kind", "night", "filter", "rcid", "said", title="calibration products")
    for version in shelf.versions(kind, rcid, night):
        said = _said(shelf, version)
        words = [f"{d.action} by {d.who}: {d.why}" for d in said]
        row = {"calid": version.calid, "kind": version.kind, "night": version.night, "fid": version.fid,
               "rcid": version.rcid, "path": version.path, "decisions": said}  # fmt: skip
        if as_json:
            print_json(row)
        else:
            code = FILTER_CODES.get(version.fid, "")
            table.add_row(version.calid, version.kind, version.night, code, str(version.rcid), "; ".join(words))
    if as_json:
        return
    if table.row_count:
        Console().print(table)
    else:
        print("no such calibration products in the store: `ztf-stream calibration build RAW...` makes them")


@app.command("show")
def show_version(calid: Calid, store: Store = None, as_json: AsJson = False) -> None:
    """Everything known about one version: frames used and left out, figures, what a person said."""
    from stream.cli.common import print_json

    shelf = _shelf(store)
    version = _find(shelf, calid)
    product = shelf.read(version)
    if product is None:
        raise UsageError(f"{version.path} went away: list again")
    facts: dict[str, Any] = {
        "calid": version.calid, "kind": version.kind, "night": version.night, "fid": version.fid, "rcid": version.rcid,
        "n_frames": product.n_frames, **product.qa, "path": version.path, "decisions": _said(shelf, version),
    }  # fmt: skip
    if version.kind == "instrument":
        facts |= {"channels": product.channels, "crosstalk": product.crosstalk, "crosstalk_unc": product.crosstalk_unc}  # type: ignore[union-attr]
    if as_json:
        print_json(facts)
        return
    table = Table("figure", "value", title=f"{version.kind} {version.calid}")
    for key, value in facts.items():
        table.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
    Console().print(table)


@app.command("veto")
def veto(
    calid: Calid,
    why: Annotated[str, typer.Option(help="The reason, for those who come after.")] = "",
    who: Who = None,
    remove: Remove = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Say that a version must not be used: workers take the next older one from the next quadrant on."""
    _decide("veto", calid, why, who, remove, store, as_json)


@app.command("pin")
def pin(
    calid: Calid,
    why: Annotated[str, typer.Option(help="The reason, for those who come after.")] = "",
    who: Who = None,
    remove: Remove = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Say that a version is to be used instead of newer ones, for every exposure after its frames."""
    _decide("pin", calid, why, who, remove, store, as_json)


app.command("ghosts")(ghosts)
app.command("persistent")(persistent)
app.command("distortion")(distortion)
app.command("learn")(learn)


def _decide(action: str, calid: str, why: str, who: str | None, remove: bool, store: str | None, as_json: bool) -> None:
    from stream.archive.shelf import Decision
    from stream.cli.common import print_json

    shelf = _shelf(store)
    version = _find(shelf, calid)
    if not remove and not why.strip():
        raise UsageError(f"a {action} needs a reason: --why 'lamp flickered'")
    when = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    decision = Decision(
        action, version.kind, calid, version.night, version.fid, version.rcid, who or getpass.getuser(), why, when
    )
    if remove:
        known = shelf.vetoed(version) if action == "veto" else shelf.pinned(version.kind, version.fid, version.rcid)
        if known is None or known.calid != calid:
            raise UsageError(f"there is no {action} of {calid}")
        shelf.take_back(known)
        word = f"{action} of {version.kind} {calid} taken back"
    else:
        shelf.decide(decision)
        word = f"{version.kind} {calid} of {version.night}: {action} by {decision.who}"
    if as_json:
        print_json({"decision": decision, "removed": remove})
    else:
        print(word)


def _shelf(store: str | None) -> CalibrationShelf:
    from stream.archive import ProductStore
    from stream.archive.shelf import CalibrationShelf
    from stream.engine.config import load_settings

    return CalibrationShelf(ProductStore(load_settings(store=store).store))


def _find(shelf: CalibrationShelf, calid: str) -> Version:
    """The version of an identifier, of which the night, channel, filter and kind follow."""
    from stream.archive.shelf import version_of

    found = version_of(calid)
    version = shelf.version(*found) if found is not None else None
    if version is None:
        raise UsageError(f"no calibration product {calid!r} in the store: `ztf-stream calibration list` shows them")
    return version


def _said(shelf: CalibrationShelf, version: Version) -> list[Decision]:
    """What persons said about a version."""
    pinned = shelf.pinned(version.kind, version.fid, version.rcid)
    words = [shelf.vetoed(version), pinned if pinned is not None and pinned.calid == version.calid else None]
    return [word for word in words if word is not None]
