"""``ztf-stream models``: train the real-bogus classifiers on simulated nights, and show what is shipped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train and inspect the real-bogus classifiers.")


@app.command()
def train(
    nights: Annotated[list[Path], typer.Argument(help="Folders made by `simulate`, each with a `store` inside it.")],
    out: Annotated[
        Path | None, typer.Option(help="Where weights go; the shipped ones are replaced by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of both trainings.")] = 42,
    epochs: Annotated[int | None, typer.Option(help="Upper limit for the network.")] = None,
    store: Annotated[str, typer.Option(help="Name of the store folder inside each night.")] = "store",
) -> None:
    """Train both classifiers on the alerts of processed simulated nights, labelled by the truth tables.

    A night is made ready with `ztf-stream simulate --out NIGHT`, the catalogue, calibration and reference commands
    and `ztf-stream process NIGHT/raw/sci/* --store NIGHT/store`; `ops/bench/train_models.sh` does it all.
    """
    from rich.console import Console

    from models.dataset import concatenate, make_examples
    from models.manifest import WEIGHTS
    from models.train import train_models
    from stream.archive import ProductStore, iterate_alerts
    from stream.simulate import read_truth

    console = Console()
    parts = []
    for night in nights:
        packets = iterate_alerts(ProductStore(str(night / store)))
        parts.append(make_examples(packets, read_truth(night)))
        console.print(f"{night}: {len(parts[-1])} candidates, {int(parts[-1].labels.sum())} real")
    train_models(concatenate(parts), out or WEIGHTS, seed, epochs, console.print)


@app.command("list")
def list_models(
    folder: Annotated[Path | None, typer.Option(help="Folder of weights; the shipped one by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show the classifiers: version, training data, figures on held-out objects."""
    from rich.console import Console
    from rich.table import Table

    from models.manifest import FOREST, NETWORK, WEIGHTS, read_manifest

    manifests = [read_manifest(name, folder or WEIGHTS) for name in (FOREST, NETWORK)]
    if as_json:
        print(json.dumps([asdict(m) for m in manifests], sort_keys=True))
        return
    table = Table("model", "version", "real", "bogus", "equal error", "FNR / FPR at 0.5", "95 % pure at", "data")
    for m in manifests:
        f = m.figures
        table.add_row(
            m.name, m.version, str(m.n_real), str(m.n_bogus), f"{f['equal_error']:.2%}",
            f"{f['fnr_0.5']:.2%} / {f['fpr_0.5']:.2%}", f"{f['completeness_at_95_purity']:.1%} complete",
            m.data_sha256[:12],
        )  # fmt: skip
    Console().print(table)
