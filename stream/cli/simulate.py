"""``ztf-stream simulate``: nights of raw packets, catalogues and truth tables from a sky that is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stream.core.camera import Camera
    from stream.simulate import Effects, NightPlan

FILTERS = {"g": 1, "r": 2, "i": 3, "zg": 1, "zr": 2, "zi": 3, "1": 1, "2": 2, "3": 3}
NIGHT, SURVEY, SKY, MOVING, CAMERA, OUTPUT = (
    "The night", "A survey of several fields and nights", "Sky", "What moves", "Camera and its effects", "Output",
)  # fmt: skip


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


def filter_numbers(text: str) -> tuple[int, ...]:
    """Filters such as ``gr``, ``g,r,i`` or ``zg``, as 1 to 3."""
    from stream.core.errors import UsageError

    names = text.split(",") if "," in text or text in FILTERS else list(text)
    unknown = [name for name in names if name not in FILTERS]
    if unknown:
        raise UsageError(f"filter {unknown[0]!r}: want g, r or i")
    return tuple(FILTERS[name] for name in names)


def effects_of(without: str | None, with_: str | None) -> Effects:
    """The default effects, less those that are switched off, and with those that are switched on."""
    from stream.simulate import Effects

    effects = Effects()
    for text, switch in ((without, Effects.without), (with_, Effects.including)):
        if text == "all":
            effects = Effects.none() if switch is Effects.without else effects.including(*Effects.names())
        elif text:
            effects = switch(effects, *(name.strip() for name in text.split(",")))
    return effects


def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if absent.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the sky and the instrument.")] = 1,
    noise_seed: Annotated[
        int | None, typer.Option(min=0, help="Of the noise; the sky's by default. Another one: same sky, other noise.")
    ] = None,
    exposures: Annotated[
        int | None,
        typer.Option(
            min=0, help="Science exposures, 2 by default; of a survey: most in a night.", rich_help_panel=NIGHT
        ),
    ] = None,
    references: Annotated[
        int,
        typer.Option(
            min=0,
            help="Exposures of earlier nights to build references of (of each field and filter).",
            rich_help_panel=NIGHT,
        ),
    ] = 0,
    calibrations: Annotated[
        int, typer.Option(min=0, help="Bias frames, and as many dome flats.", rich_help_panel=NIGHT)
    ] = 5,
    field: Annotated[int, typer.Option(help="Field of the survey's grid.", rich_help_panel=NIGHT)] = 448,
    filter_: Annotated[str, typer.Option("--filter", help="g, r or i.", rich_help_panel=NIGHT)] = "r",
    night: Annotated[
        str, typer.Option(help="UT date of the (first) science exposures, YYYYMMDD.", rich_help_panel=NIGHT)
    ] = "20201005",
    cadence: Annotated[
        float, typer.Option(help="Seconds between the starts of science exposures.", rich_help_panel=NIGHT)
    ] = 1800.0,
    programid: Annotated[int, typer.Option(help="1 public, 2 partnership, 3 Caltech.", rich_help_panel=NIGHT)] = 1,
    seeing: Annotated[tuple[float, float], typer.Option(help="Range of the FWHM, px.", rich_help_panel=NIGHT)] = (
        1.6,
        3.0,
    ),
    sky: Annotated[
        float | None,
        typer.Option(help="Dark sky, DN a pixel in 30 s; by default that of the filter.", rich_help_panel=NIGHT),
    ] = None,
    cloud: Annotated[
        float, typer.Option(help="Depth of cloud, mag; in a survey it comes in spells.", rich_help_panel=NIGHT)
    ] = 0.0,
    survey: Annotated[
        bool,
        typer.Option(
            help="Schedule fields as the survey does: visible, away from the moon, with its twilight, slews, filter "
            "changes, weather and programs.",
            rich_help_panel=SURVEY,
        ),
    ] = False,
    nights: Annotated[int, typer.Option(min=1, help="Nights in a row.", rich_help_panel=SURVEY)] = 1,
    every: Annotated[int, typer.Option(min=1, help="Days from one night to the next.", rich_help_panel=SURVEY)] = 1,
    fields: Annotated[
        int | None,
        typer.Option(
            min=1, help="Neighbouring fields; by default as many as there is time for.", rich_help_panel=SURVEY
        ),
    ] = None,
    field_list: Annotated[
        str | None, typer.Option(help="These fields instead, such as 448,449.", rich_help_panel=SURVEY)
    ] = None,
    visits: Annotated[int, typer.Option(min=1, help="Of a field in a night.", rich_help_panel=SURVEY)] = 2,
    gap: Annotated[float, typer.Option(help="Minutes between visits, at least.", rich_help_panel=SURVEY)] = 30.0,
    filters: Annotated[str, typer.Option(help="In turn from visit to visit.", rich_help_panel=SURVEY)] = "gr",
    density: Annotated[
        float | None,
        typer.Option(
            help="Star density; 1 is 5,000 stars on a full quadrant, 150 a million a square degree; by default that "
            "of the field's place in the Galaxy.",
            rich_help_panel=SKY,
        ),
    ] = None,
    galaxy_density: Annotated[float, typer.Option(min=0, help="Galaxies over real counts.", rich_help_panel=SKY)] = 1.0,
    variables: Annotated[
        float, typer.Option(min=0, max=1, help="Share of periodic variables among stars.", rich_help_panel=SKY)
    ] = 0.012,
    transients: Annotated[
        int | None, typer.Option(help="Per quadrant; 40 full, 8 small by default.", rich_help_panel=SKY)
    ] = None,
    eruptive: Annotated[
        int | None, typer.Option(help="Flares and dwarf novae a quadrant; 4 and 1.", rich_help_panel=SKY)
    ] = None,
    faders: Annotated[
        int | None,
        typer.Option(help="Sources a quadrant that faded since the references; 6 and 1.", rich_help_panel=SKY),
    ] = None,
    bright_stars: Annotated[
        int, typer.Option(min=0, help="Naked-eye stars per CCD beside the sky's own.", rich_help_panel=SKY)
    ] = 0,
    source_list: Annotated[
        Path | None,
        typer.Option(help="A survey reference PSF catalogue to paint instead of random stars.", rich_help_panel=SKY),
    ] = None,
    asteroids: Annotated[
        int | None, typer.Option(help="Per quadrant; 4 full, 2 small by default.", rich_help_panel=MOVING)
    ] = None,
    streaks: Annotated[
        int | None,
        typer.Option(help="Trailed near-Earth objects a quadrant; 2 full, 1 small.", rich_help_panel=MOVING),
    ] = None,
    comets: Annotated[int, typer.Option(min=0, help="Per CCD.", rich_help_panel=MOVING)] = 0,
    satellite: Annotated[
        bool, typer.Option(help="A satellite's trail through the first quadrant.", rich_help_panel=MOVING)
    ] = True,
    satellites: Annotated[
        float, typer.Option(min=0, help="Across the camera in an exposure, in the mean.", rich_help_panel=MOVING)
    ] = 0.0,
    aircraft: Annotated[float, typer.Option(min=0, help="The same of aircraft.", rich_help_panel=MOVING)] = 0.0,
    ccds: Annotated[str, typer.Option(help="CCDs, such as 1,2,5-7, or all.", rich_help_panel=CAMERA)] = "1",
    quadrants: Annotated[
        str, typer.Option(help="That see the sky, of 1,2,3,4; the others get its light only.", rich_help_panel=CAMERA)
    ] = "1,2,3,4",
    camera: Annotated[
        str, typer.Option(help="full (3072 x 3080 px) or small (512 x 512 px).", rich_help_panel=CAMERA)
    ] = "full",
    without: Annotated[
        str | None,
        typer.Option(help="Effects to switch off, such as ghosts,crosstalk, or all.", rich_help_panel=CAMERA),
    ] = None,
    with_: Annotated[
        str | None,
        typer.Option("--with", help="Effects to switch on (after --without).", rich_help_panel=CAMERA),
    ] = None,
    compress: Annotated[
        bool, typer.Option(help="Rice-compressed .fits.fz, or plain .fits.", rich_help_panel=OUTPUT)
    ] = True,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one a core by default.", rich_help_panel=OUTPUT)
    ] = None,
    look: Annotated[
        bool, typer.Option("--look", help="Draw a page of what was made, OUT/look.png.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object that lists what was written.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Make a night: raw packets in the survey's format, calibration frames, catalogues, and the truth about all.

    Packets go to OUT/raw/cal, OUT/raw/ref and OUT/raw/sci; gaia.parquet, ps1.parquet, bright.parquet, MPCORB.DAT and
    CometEls.txt lie in OUT, truth tables in OUT/truth. The same options give the same bytes, whatever the number of
    workers.

    A focal plane: --ccds all. A night of one quadrant: --survey --filters gri --visits 3 --quadrants 1. Three nights
    for moving objects: --survey --nights 3 --fields 2 --visits 3.
    """
    from stream.core.errors import UsageError
    from stream.simulate import NightPlan, Survey

    plan_survey = None
    if not survey and (nights > 1 or fields is not None or field_list is not None):
        raise UsageError("several nights or fields are a survey: add --survey")
    if survey:
        listed = numbers(field_list, "field list") if field_list else ()
        plan_survey = Survey(
            nights=nights, every=every, n_fields=fields, fields=listed, visits=visits, gap=gap,
            filters=filter_numbers(filters), limit=exposures,
        )  # fmt: skip
    plan = NightPlan(
        seed=seed,
        noise_seed=seed if noise_seed is None else noise_seed,
        camera=_camera(camera),
        ccds=numbers(ccds, "ccds"),
        qids=numbers(quadrants, "quadrants"),
        field=field,
        fid=filter_numbers(filter_)[0],
        night=night,
        n_science=2 if exposures is None else exposures,
        n_reference=references,
        n_bias=calibrations,
        n_flat=calibrations,
        cadence=cadence,
        programid=programid,
        transients=transients,
        asteroids=asteroids,
        streaks=streaks,
        eruptive=eruptive,
        faders=faders,
        comets=comets,
        satellite=satellite,
        satellites=satellites,
        aircraft=aircraft,
        variables=variables,
        star_density=density,
        galaxy_density=galaxy_density,
        seeing=seeing,
        sky=sky,
        cloud=cloud,
        bright_stars=bright_stars,
        compress=compress,
        source_list=source_list,
        effects=effects_of(without, with_),
        survey=plan_survey,
    )
    _run(plan, out, workers, look, as_json)


def _camera(name: str) -> Camera:
    from stream.core.camera import camera_named

    return camera_named(name)


def _run(plan: NightPlan, out: Path, workers: int | None, look: bool, as_json: bool) -> None:
    """Simulate, draw the page if it is wanted, and say what there is."""
    from rich.console import Console

    from stream.cli.common import cores, print_json, progress_bar
    from stream.simulate import simulate_night

    with progress_bar() as report:
        summary = simulate_night(
            out, plan, lambda done, total: report(done, total, "packets"), workers=workers or cores()
        )
    page = None
    if look:
        from stream.simulate.look import draw_page

        page = draw_page(out)
    if as_json:
        print_json(summary.as_dict() | ({"look": str(page)} if page else {}))
        return
    Console().print(
        f"{summary.n_packets} packets ({len(summary.calibration)} calibration, {len(summary.reference)} reference, "
        f"{len(summary.science)} science), {summary.n_bytes / 1e6:.0f} MB, in {out}/raw; catalogues in {out}, truth in "
        f"{out}/truth" + (f"; a picture of it all in {page}" if page else ""),
        soft_wrap=True,
    )
