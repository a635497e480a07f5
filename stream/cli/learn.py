"""``ztf-stream calibration ghosts|persistent|distortion|learn``: what a channel's own images teach about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream.archive import ProductStore
    from stream.offline_learned import Lesson, Progress

Channels = Annotated[
    list[int] | None,
    typer.Option(
        "--rcid", help="Readout channel 0..63, may be given again; by default all in the store.", min=0, max=63
    ),
]
First = Annotated[str, typer.Option(help="First night, YYYYMMDD.")]
Last = Annotated[str, typer.Option(help="Last night, YYYYMMDD.")]
Store = Annotated[str | None, typer.Option(help="Product store (folder or URL).", envvar="ZTF_STORE")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON line a channel.")]


def ghosts(
    rcid: Channels = None,
    first: First = "00000000",
    last: Last = "99999999",
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate where the ghosts of bright stars fall, from the science images in the store.

    Wants exposures of several fields with stars of V < 6 opposite to the channel. The masks of later images use it.
    Exit status 1 where a channel had too few.
    """
    from stream.offline_learned import learn_ghosts

    _learn(learn_ghosts, rcid, first, last, store, as_json)


def persistent(
    rcid: Channels = None,
    first: First = "00000000",
    last: Last = "99999999",
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Learn which pixels make the same artefact night after night, from the candidates in the store.

    Wants many exposures over several nights with a dither of some arcseconds; the mask of every later image uses it.
    """
    from stream.offline_learned import learn_artefacts

    _learn(learn_artefacts, rcid, first, last, store, as_json)


def distortion(
    rcid: Channels = None,
    first: First = "00000000",
    last: Last = "99999999",
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Learn the optics' distortion in every filter from the solutions of the science images in the store.

    Wants five exposures or more of fields with 400 Gaia stars. Every later image's solution leans on it, the more the
    fewer stars it has; run it after a night, again and again.
    """
    from stream.offline_learned import learn_optics

    _learn(learn_optics, rcid, first, last, store, as_json)


def learn(
    night: Annotated[str, typer.Option("--night", help="UT date, YYYYMMDD.")],
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a lesson.")] = False,
) -> None:
    """Learn what a night's images teach about their channels: `distortion` and `persistent`, looking back from it.

    The nights worker runs it for every night that it closes (ZTF_LEARN_CAMERA). A channel with too few exposures yet
    says so, which is no failure.
    """
    from stream.archive import ProductStore
    from stream.cli.common import progress_bar
    from stream.engine.config import load_settings
    from stream.offline_learned import learn_night

    with progress_bar() as report:
        lessons = learn_night(ProductStore(load_settings(store=store).store), night, report)
    if lessons or as_json:
        _show(lessons, as_json)
    else:
        print(f"the store has no science images of {night}: nothing to learn")


def _learn(
    lesson: Callable[[ProductStore, int, str, str, Progress], Lesson],
    channels: list[int] | None,
    first: str,
    last: str,
    store: str | None,
    as_json: bool,
) -> None:
    from stream.archive import ProductStore
    from stream.archive.learned import channels_of
    from stream.cli.common import progress_bar
    from stream.core.errors import UsageError
    from stream.engine.config import load_settings

    root = ProductStore(load_settings(store=store).store)
    chosen = sorted(set(channels or channels_of(root, first, last)))
    if not chosen:
        raise UsageError(f"no science images from {first} to {last} in {root.url}: run `ztf-stream process` first")
    with progress_bar() as report:
        lessons = [lesson(root, rcid, first, last, report) for rcid in chosen]
    _show(lessons, as_json)
    if any(one.error for one in lessons):
        raise typer.Exit(1)


def _show(lessons: list[Lesson], as_json: bool) -> None:
    """One line a lesson."""
    from stream.cli.common import print_json

    table = Table("channel", "of", "exposures", "learned")
    for one in lessons:
        if as_json:
            print_json(one)
        words = [
            f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}" for key, value in one.figures.items()
        ]
        table.add_row(str(one.rcid), one.kind, str(one.n_exposures), one.error or ", ".join(words))
    if not as_json:
        Console().print(table)
