"""``ztf-stream run`` and ``ztf-stream worker``: the whole system on this machine, or one process of it."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    store: Annotated[str | None, typer.Option(help="Product store (folder or URL).")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the embedded broker and Redis.")] = None,
    camera: Annotated[str | None, typer.Option(help="full or small.")] = None,
    pixel_workers: Annotated[int | None, typer.Option(help="Quadrant workers; one a core.")] = None,
) -> None:
    """Start everything that is not running yet: broker, Redis (unless addresses are given), and all workers.

    Runs until Ctrl-C, which ends what it started and nothing else. Meanwhile, in another terminal: `ztf-stream ingest`,
    `ztf-stream status`, `ztf-stream alerts tail`.
    """
    from rich.console import Console

    from stream.engine import logs
    from stream.engine.access import make_ready
    from stream.engine.config import load_settings
    from stream.engine.embedded import services
    from stream.engine.rebuild import ensure_state
    from stream.engine.state import connect
    from stream.engine.supervise import Supervisor
    from stream.engine.workers import children

    console = Console(stderr=True)
    settings = load_settings(store=store, data_dir=data_dir, camera=camera, pixel_workers=pixel_workers)
    with services(settings) as located:
        make_ready(located)
        logs.configure(located, worker="run")
        made = ensure_state(located, connect(located))
        if made is not None and made.newest_jd:
            console.print(f"Redis was emptied, its state is made anew: {made.as_dict()}")
        console.print(f"Kafka {located.bootstrap}, Redis {located.redis_url}, store {located.store}")
        Supervisor(children(located)).run()


def worker(
    kind: Annotated[str, typer.Argument(help="pixels, score, enrich, link, monitor, emit, archive or nights.")],
    index: Annotated[int, typer.Option(help="Which worker of its kind on this machine: 0, 1, ...")] = 0,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Load everything, then wait on standard input to be told which worker.")
    ] = False,
) -> None:
    """Be one worker, until SIGTERM: for process managers and clusters. Configured by ZTF_* variables."""
    from stream.engine.config import load_settings
    from stream.engine.embedded import located
    from stream.engine.workers import stand_by, work

    settings = located(load_settings())
    raise typer.Exit(stand_by(kind, settings) if stand_in else work(kind, index, settings))
