"""``ztf-stream schemas``: the schemas as files, as a page, and as a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The schemas of everything that travels.")

PAGE = Path("docs/schema.md")


@app.command("list")
def list_schemas(as_json: Annotated[bool, typer.Option("--json", help="One JSON line a schema.")] = False) -> None:
    """Every record, its versions and their identifiers in the registry."""
    from stream.alert.wire import subjects
    from stream.cli.common import print_json

    for versions in subjects().values():
        for one in versions:
            row = {"subject": one.subject, "version": one.version, "folder": one.folder, "id": one.id}
            if as_json:
                print_json(row)
            else:
                print(f"{one.subject:34} {one.version:>2}  {one.folder:10} {one.id}")


@app.command()
def page(
    out: Annotated[Path, typer.Option(help="File to write.")] = PAGE,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where the file is not current.")] = False,
) -> None:
    """The page that explains every field: unit, meaning of null, source, example, versions."""
    from stream.alert.schema_page import page as made
    from stream.core.errors import UsageError

    text = made()
    if check:
        if not out.is_file() or out.read_text("utf-8") != text:
            raise UsageError(f"{out} is not what the schemas say: run `ztf-stream schemas page --out {out}`")
        return
    try:
        out.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from error
    print(out)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535)] = 8081,
) -> None:
    """Answer as a Confluent Schema Registry, read-only, until Ctrl-C."""
    from stream.engine.registry_server import make_server

    with make_server(host, port) as server:
        print(f"http://{host}:{server.server_port}", flush=True)
        server.serve_forever()
