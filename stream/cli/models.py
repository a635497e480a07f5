"""``ztf-stream models``: train the real-bogus classifiers on simulated nights, measure them, show what is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from models.dataset import Examples
    from models.manifest import Manifest

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, measure and list the real-bogus classifiers: a forest on figures (rb), a network on stamps (drb).",
)

Nights = Annotated[
    list[Path], typer.Argument(help="Simulated nights that were processed: folders with `truth` and a store in them.")
]
StoreName = Annotated[str, typer.Option(help="Name of the store's folder inside each night.")]
Packets = Annotated[
    Path | None, typer.Option(help="Folder of the survey's alert packets with drb, to compare the scores with.")
]
Folder = Annotated[Path | None, typer.Option("--folder", help="Folder of weights; the shipped ones by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]


@app.command()
def train(
    nights: Nights,
    out: Annotated[
        Path | None, typer.Option(help="Where weights and manifests go; the shipped ones are replaced by default.")
    ] = None,
    held_out: Annotated[
        list[Path] | None, typer.Option(help="A night that is only measured on; may be given several times.")
    ] = None,
    packets: Packets = None,
    seed: Annotated[int, typer.Option(help="Of both trainings.")] = 42,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes of the network over the examples.")] = None,
    store: StoreName = "store",
    as_json: AsJson = False,
) -> None:
    """Train both classifiers on the alerts of simulated nights, labelled by the truth tables.

    A night is made ready with `simulate --out NIGHT`, the catalogue, calibration and reference commands and
    `process NIGHT/raw/sci --store NIGHT/store --no-score`; `ops/bench/train_models.py WORK` does it all. A tenth of
    the objects is kept for the figures in the manifests, another tenth chooses the network's epoch.
    """
    from models.manifest import WEIGHTS
    from models.train import Yardsticks, train_models

    console = Console(stderr=True)
    examples = _read(nights, store, console)
    yardsticks = Yardsticks(_read(held_out, store, console) if held_out else None, _scored_packets(packets))
    manifests = train_models(examples, out or WEIGHTS, seed, epochs, console.print, yardsticks)
    _show(manifests, as_json)


@app.command()
def evaluate(
    nights: Nights,
    folder: Folder = None,
    packets: Packets = None,
    store: StoreName = "store",
    as_json: AsJson = False,
) -> None:
    """Measure classifiers on simulated nights, all of whose candidates are used: name nights not trained on."""
    from models import forest, network
    from models.manifest import FOREST, NETWORK, WEIGHTS, read_manifest
    from models.train import Yardsticks, forest_figures, network_figures
    from stream.cli.common import print_json

    where = folder or WEIGHTS
    manifests = [read_manifest(name, where) for name in (FOREST, NETWORK)]
    examples = _read(nights, store, Console(stderr=True))
    yardsticks = Yardsticks(None, _scored_packets(packets))
    network.single_threaded()
    found = {
        manifests[0].version: forest_figures(forest.load_forest(manifests[0], where), examples, yardsticks),
        manifests[1].version: network_figures(
            network.load_network(where / manifests[1].file), examples, yardsticks
        ),
    }  # fmt: skip
    if as_json:
        print_json({"n_real": int(examples.labels.sum()), "n_bogus": int((~examples.labels).sum()), "figures": found})
        return
    _figures_table(found)


@app.command("list")
def list_models(folder: Folder = None, as_json: AsJson = False) -> None:
    """Show the classifiers: version, examples, and figures on objects and nights that were held out."""
    from models.manifest import FOREST, NETWORK, WEIGHTS, read_manifest

    _show([read_manifest(name, folder or WEIGHTS) for name in (FOREST, NETWORK)], as_json)


def _read(nights: Sequence[Path], store: str, console: Console) -> Examples:
    """Labelled candidates of processed nights."""
    from models.dataset import concatenate, make_examples
    from stream.archive import ProductStore, iterate_alerts
    from stream.simulate import read_truth

    parts = []
    for night in nights:
        parts.append(make_examples(iterate_alerts(ProductStore(str(night / store))), read_truth(night)))
        real = int(parts[-1].labels.sum())
        console.print(f"{night}: {real} real, {len(parts[-1]) - real} bogus candidates")
    return concatenate(parts)


def _scored_packets(folder: Path | None) -> list[dict[str, Any]]:
    """Packets of a folder (searched throughout) that carry a published network score."""
    from stream.alert import read_packets
    from stream.core.errors import UsageError

    if folder is None:
        return []
    files = sorted(folder.rglob("*.avro"))
    found = [packet for path in files for packet in read_packets(path.read_bytes())]
    scored = [packet for packet in found if packet["candidate"].get("drb") is not None]
    if not scored:
        raise UsageError(f"{folder}: none of the packets in {len(files)} .avro files has drb")
    return scored


def _show(manifests: Sequence[Manifest], as_json: bool) -> None:
    from rich.table import Table

    from stream.cli.common import print_json

    if as_json:
        print_json([asdict(manifest) for manifest in manifests])
        return
    table = Table("model", "version", "real / bogus", "data")
    for m in manifests:
        table.add_row(m.name, m.version, f"{m.n_real} / {m.n_bogus}", m.data_sha256[:12])
    Console().print(table)
    _figures_table({m.version: m.figures for m in manifests})


def _figures_table(found: dict[str, dict[str, float]]) -> None:
    from rich.table import Table

    table = Table("figure", *found)
    for name in dict.fromkeys(name for figures in found.values() for name in figures):
        table.add_row(name, *(f"{figures[name]:g}" if name in figures else "" for figures in found.values()))
    Console().print(table)
