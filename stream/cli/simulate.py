"""``ztf-stream simulate``: a night of raw packets, catalogues and truth tables from a sky that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FILTERS = {"g": 1, "r": 2, "i": 3, "zg": 1, "zr": 2, "zi": 3, "1": 1, "2": 2, "3": 3}


def numbers(text: str, what: str) -> tuple[int, ...]:
    """Numbers of a list such as ``1,2,5-7`` or ``all`` (1 to 16)."""
    from stream.core.errors import UsageError

    if text.strip() == "all":
        return tuple(range(1, 17))
    out: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            out += range(int(first), int(last or first) + 1)
    except ValueError:
        raise UsageError(f"{what} {text!r}: want numbers such as 1,2,5-7") from None
    return tuple(out)


def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if absent.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the sky and the instrument.")] = 1,
    noise_seed: Annotated[
        int | None, typer.Option(min=0, help="Of the noise; the sky's by default. Another one: same sky, other noise.")
    ] = None,
    exposures: Annotated[int, typer.Option(min=0, help="Science exposures.")] = 2,
    references: Annotated[int, typer.Option(min=0, help="Exposures of earlier nights to build references of.")] = 0,
    calibrations: Annotated[int, typer.Option(min=0, help="Bias frames, and as many dome flats.")] = 5,
    ccds: Annotated[str, typer.Option(help="CCDs, such as 1,2,5-7, or all.")] = "1",
    camera: Annotated[str, typer.Option(help="full (3072 x 3080 px) or small (512 x 512 px).")] = "full",
    field: Annotated[int, typer.Option(help="Field of the survey's grid.")] = 448,
    filter_: Annotated[str, typer.Option("--filter", help="g, r or i.")] = "r",
    night: Annotated[str, typer.Option(help="UT date of the science exposures, YYYYMMDD.")] = "20201005",
    cadence: Annotated[float, typer.Option(help="Seconds between the starts of science exposures.")] = 1800.0,
    transients: Annotated[int | None, typer.Option(help="Per quadrant; 40 full, 8 small by default.")] = None,
    asteroids: Annotated[int | None, typer.Option(help="Per quadrant; 4 full, 2 small by default.")] = None,
    streaks: Annotated[
        int | None, typer.Option(help="Near-Earth objects a quadrant; 2 full, 1 small by default.")
    ] = None,
    satellite: Annotated[bool, typer.Option(help="A satellite's trail across one quadrant.")] = True,
    bright_stars: Annotated[int, typer.Option(min=0, help="Naked-eye stars with halos, per CCD.")] = 0,
    density: Annotated[float | None, typer.Option(help="Star density; 1 is 5,000 stars on a full quadrant.")] = None,
    seeing: Annotated[tuple[float, float], typer.Option(help="Range of the FWHM, px.")] = (1.6, 3.0),
    sky: Annotated[float | None, typer.Option(help="Sky, DN a pixel in 30 s; dark sky by default.")] = None,
    source_list: Annotated[
        Path | None, typer.Option(help="A survey reference PSF catalogue to paint instead of random stars.")
    ] = None,
    programid: Annotated[int, typer.Option(help="1 public, 2 partnership, 3 Caltech.")] = 1,
    compress: Annotated[bool, typer.Option(help="Rice-compressed .fits.fz, or plain .fits.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object that lists what was written.")] = False,
) -> None:
    """Make a night: raw packets in the survey's format, calibration frames, catalogues, and the truth about all.

    Packets go to OUT/raw/cal, OUT/raw/ref and OUT/raw/sci; gaia.parquet, ps1.parquet, bright.parquet and MPCORB.DAT
    lie in OUT, truth tables in OUT/truth. The same options give the same bytes, whatever the number of workers.
    """
    from rich.console import Console

    from stream.cli.common import cores, print_json, progress_bar
    from stream.core.camera import camera_named
    from stream.core.errors import UsageError
    from stream.simulate import NightPlan, simulate_night

    if filter_ not in FILTERS:
        raise UsageError(f"filter {filter_!r}: want g, r or i")
    plan = NightPlan(
        seed=seed,
        noise_seed=seed if noise_seed is None else noise_seed,
        camera=camera_named(camera),
        ccds=numbers(ccds, "ccds"),
        field=field,
        fid=FILTERS[filter_],
        night=night,
        n_science=exposures,
        n_reference=references,
        n_bias=calibrations,
        n_flat=calibrations,
        cadence=cadence,
        programid=programid,
        transients=transients,
        asteroids=asteroids,
        streaks=streaks,
        satellite=satellite,
        star_density=density,
        seeing=seeing,
        sky=sky,
        bright_stars=bright_stars,
        compress=compress,
        source_list=source_list,
    )
    with progress_bar() as report:
        summary = simulate_night(
            out, plan, lambda done, total: report(done, total, "packets"), workers=workers or cores()
        )
    if as_json:
        print_json(summary.as_dict())
        return
    Console().print(
        f"{summary.n_packets} packets ({len(summary.calibration)} calibration, {len(summary.reference)} reference, "
        f"{len(summary.science)} science), {summary.n_bytes / 1e6:.0f} MB, in {out}/raw; catalogues in {out}, truth in "
        f"{out}/truth",
        soft_wrap=True,
    )
