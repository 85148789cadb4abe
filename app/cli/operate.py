"""The operator's commands: these run on the service's own machine and ask no service."""

from __future__ import annotations

import gc
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from app.cli import FAILED
from app.cli.show import put, put_json, put_table, say


def serve(typed: Namespace) -> int:
    from app.supervisor import serve as serve_until_stopped

    gc.enable()  # main() turned it off; a service lives long
    return serve_until_stopped(host=typed.host, port=typed.port, data=typed.data and Path(typed.data))


def new_key(typed: Namespace) -> int:
    """The key is printed once: only its hash is kept."""
    from app.keys import KeysError
    from app.keys import new_key as make
    from app.settings import SettingsError, load_settings

    try:
        put(make(Path(typed.data) if typed.data else load_settings().data, typed.name))
    except (KeysError, SettingsError) as error:
        say(str(error))
        return FAILED
    return 0


def probe(typed: Namespace) -> int:
    from app.cli.host import probe_host

    layers = probe_host()
    if typed.json:
        put_json([asdict(layer) for layer in layers])
    else:
        rows = [[x.layer, "yes" if x.available else "no", x.detail, x.cure or ""] for x in layers]
        put_table(["LAYER", "THERE", "DETAIL", "CURE"], rows)
    return 0 if all(layer.available for layer in layers) else 1
