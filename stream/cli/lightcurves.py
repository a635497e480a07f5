"""``ztf-stream lightcurves``: light curves of a field's stars out of the store's catalogues."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from stream.lightcurves import LightCurves


def lightcurves(
    field: Annotated[int, typer.Option(help="Field.")],
    rcid: Annotated[int, typer.Option(help="Readout channel 0..63.", min=0, max=63)],
    filtercode: Annotated[str, typer.Option("--filter", help="g, r or i.")],
    first: Annotated[str, typer.Option(help="First night, YYYYMMDD.")] = "00000000",
    last: Annotated[str, typer.Option(help="Last night, YYYYMMDD.")] = "99999999",
    relative: Annotated[
        bool, typer.Option("--relative", help="Take off what the zero points of the exposures are wrong by together.")
    ] = False,
    degree: Annotated[
        int, typer.Option(help="With --relative: of each exposure's surface; 0: its zero point only.", min=0, max=3)
    ] = 1,
    place: Annotated[
        tuple[float, float] | None, typer.Option(help="RA and Dec (deg): show the points of the stars there.")
    ] = None,
    radius: Annotated[float, typer.Option(help="With --place: arcsec.", min=0.1)] = 2.0,
    out: Annotated[Path | None, typer.Option(help="Write all points to this Parquet file.")] = None,
    store: Annotated[str | None, typer.Option(help="Product store (folder or URL).", envvar="ZTF_STORE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: the figures, then the points shown.")] = False,
) -> None:
    """Magnitudes of the reference's stars in every exposure of a field, filter and channel, from their catalogues.

    Absolute magnitudes stand on each exposure's own zero point and map. With `--relative` the stars that exposures
    have in common tell what their zero points are wrong by; bright stars then repeat to a few thousandths of a
    magnitude. Magnitudes are at colour 0; errors are those of the fluxes.
    """
    from stream.archive import ProductStore
    from stream.cli.common import print_json, progress_bar
    from stream.cli.reference import fid_of
    from stream.core.errors import UsageError
    from stream.engine.config import load_settings
    from stream.lightcurves import describe, light_curves, near, parquet

    where = field, fid_of(filtercode), rcid
    with progress_bar() as report:
        found = light_curves(
            ProductStore(load_settings(store=store).store), where, (first, last), degree if relative else None, report
        )
    if out is not None:
        try:
            out.write_bytes(parquet(found))
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror}") from error
    points = near(found.points, *place, radius) if place else found.points[:0]
    rows = [_row(found, point) for point in points]
    if as_json:
        print_json(describe(found) | ({"out": str(out)} if out else {}))
        for row in rows:
            print_json(row)
        return
    _show(found, rows)


def _row(found: LightCurves, point: Any) -> dict[str, Any]:
    row = {name: point[name].item() for name in point.dtype.names}
    return row | {"exposure": found.exposures[row["exposure"]]}


def _show(found: LightCurves, rows: list[dict[str, Any]]) -> None:
    console = Console()
    value, bright = found.repeatability()
    console.print(f"{len(found.points)} points of {found.n_stars} stars in {len(found.exposures)} exposures")
    if bright:
        console.print(f"bright stars ({bright}) repeat to {1000 * value:.1f} mmag")
    for why in found.left_out:
        console.print(f"left out: {why}")
    if found.relative is not None:
        table = Table("exposure", "zero point off [mmag]", "+-", "scatter [sigma]")
        solution = found.relative
        for k, name in enumerate(found.exposures):
            table.add_row(
                name, f"{1000 * solution.zero[k]:+.1f}", f"{1000 * solution.zero_sigma[k]:.1f}",
                f"{solution.scatter[k]:.2f}",
            )  # fmt: skip
        console.print(table)
    if rows:
        table = Table("JD", "mag", "+-", "RA", "Dec", "exposure")
        for row in rows:
            table.add_row(
                f"{row['jd']:.6f}", f"{row['mag']:.4f}", f"{row['sigmag']:.4f}", f"{row['ra']:.6f}",
                f"{row['dec']:+.6f}", row["exposure"],
            )  # fmt: skip
        console.print(table)
