"""What is typed, the operator's side: these run on the service's own machine and ask no service."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.cli import FAILED
from app.cli import options as o
from app.cli.show import put, put_json, put_table, say

Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="The data folder [BULKHEAD_DATA].")]
keys = typer.Typer(
    help="Keys that clients show to the service.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def add_to(app: typer.Typer) -> None:
    app.command()(serve)
    app.add_typer(keys, name="key")
    app.command()(probe)


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on [BULKHEAD_HOST].")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="[BULKHEAD_PORT]")] = None,
    data: Data = None,
) -> int:
    """Run the service: the launcher, and the gateway that listens."""
    import gc

    from app.supervisor import serve as serve_until_stopped

    gc.enable()  # main() turned it off; a service lives long
    return serve_until_stopped(host=host, port=port, data=data)


@keys.command("new")
def new_key(name: Annotated[str, typer.Argument(metavar="NAME")], data: Data = None) -> int:
    """Make a key and print it, once: only its hash is kept."""
    from app.keys import KeysError
    from app.keys import new_key as make
    from app.settings import SettingsError, load_settings

    try:
        put(make(data or load_settings().data, name))
    except (KeysError, SettingsError) as error:
        say(str(error))
        return FAILED
    return 0


def probe(as_json: o.AsJson = False) -> int:
    """Show what this host offers, layer by layer, with the cure for each that is missing. Status 1 if one is."""
    from app.backends.process.host import probe_host

    layers = probe_host()
    if as_json:
        put_json([asdict(layer) for layer in layers])
    else:
        rows = [[x.layer, "yes" if x.available else "no", x.detail, x.cure or ""] for x in layers]
        put_table(["LAYER", "THERE", "DETAIL", "CURE"], rows)
    return 0 if all(layer.available for layer in layers) else 1
