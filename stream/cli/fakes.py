"""``ztf-stream fakes``: how complete and how pure the search is, from the sources that were injected into copies."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

_GROUPS = (
    ("by_kind", "kind"),
    ("by_snr", "true S/N"),
    ("by_magnitude", "mag from the local limit"),
    ("by_host", "host [mag]"),
    ("by_rcid", "readout channel"),
)


def fakes(
    store: Annotated[str, typer.Option(help="Product store; by default the configured one.")] = "",
    first: Annotated[str, typer.Option(help="First night, YYYYMMDD.")] = "",
    last: Annotated[str, typer.Option(help="Last night, YYYYMMDD.")] = "99999999",
    rcid: Annotated[int | None, typer.Option(min=0, max=63, help="One readout channel only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")] = False,
) -> None:
    """Completeness by kind, S/N, magnitude, host and channel; depth, fluxes and purity.

    Read from the `fakes.parquet` products, which every quadrant writes as it is done: asked again, it is up to date.
    Exit status 1 where there are none (`ZTF_FAKES_SHARE=0` switches them off).
    """
    from stream.archive import ProductStore
    from stream.archive.catalogs import read_rows
    from stream.archive.products import science_files
    from stream.cli.common import complain, print_json
    from stream.engine.config import load_settings
    from stream.fakes.summary import summarise

    where = ProductStore(store or load_settings().store)
    rows: list[dict[str, Any]] = []
    for _, path in science_files(where, "_fakes.parquet", first, last):
        rows += [row for row in read_rows(where.read(path)) if rcid is None or row["rcid"] == rcid]
    if not rows:
        complain(["no fakes in the store for these nights: were they switched off (fakes_share)?"])
        raise typer.Exit(1)
    figures = summarise(rows)
    if as_json:
        print_json(figures)
    else:
        _show(figures)


def _show(figures: dict[str, Any]) -> None:
    console = Console()
    console.print(f"{figures['n']} fakes in {figures['quadrants']} quadrants")
    for key, title in _GROUPS:
        table = Table(title, "fakes", "found", "sent", box=None)
        for line in figures[key]:
            table.add_row(str(line["what"]), str(line["n"]), _percent(line["found"]), _percent(line["sent"]))
        console.print(table)
    for name, text, unit in (
        ("limit_offset", "half of the isolated points are sent this much below the local 5-sigma limit", "mag"),
        ("flux_bias", "measured over true flux, less 1", ""),
        ("flux_pull", "spread of the flux errors' pulls", ""),
        ("others_per_sq_deg", "sent candidates that are no fakes, a square degree", ""),
        ("purity", "fakes among what was sent", ""),
    ):
        value = figures[name]
        console.print(f"{text}: {'not known yet' if value is None else f'{value:.3f} {unit}'.strip()}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
