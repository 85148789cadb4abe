"""The operator's commands. They run on the service's own machine and ask no service."""

from __future__ import annotations

import gc
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli import FAILED
from app.cli.show import put, put_json, put_table, say

if TYPE_CHECKING:
    from app.cli.host import LayerReport


def serve(typed: Namespace) -> int:
    from app.serving.serve import serve as serve_until_stopped

    gc.enable()  # main() turned it off; a service lives long
    return serve_until_stopped(host=typed.host, port=typed.port, data=typed.data and Path(typed.data))


def launcher(typed: Namespace) -> int:
    socket = typed.socket and Path(typed.socket)
    if typed.check:
        from app.serving.health_checks import check_launcher

        return check_launcher(socket)
    from app.serving.standalone import run_launcher

    gc.enable()
    return run_launcher(socket, typed.gateway_uid)


def egress(typed: Namespace) -> int:
    socket = typed.socket and Path(typed.socket)
    if typed.check:
        from app.serving.health_checks import check_egress

        return check_egress(socket)
    from app.serving.standalone import become_egress

    return become_egress(socket, typed.gateway_uid)


def new_key(typed: Namespace) -> int:
    """The key is printed once: only its hash is kept."""
    from app.keys import KeysError
    from app.keys import new_key as make
    from app.settings import SettingsError, load_settings

    try:
        put(make(Path(typed.data) if typed.data else load_settings().data, typed.name))
        say("restart a running service: it reads keys when it starts")
    except (KeysError, SettingsError) as error:
        say(str(error))
        return FAILED
    return 0


def probe(typed: Namespace) -> int:
    from app.cli.boxlite import probe_boxlite
    from app.cli.egress_probe import probe_egress
    from app.cli.host import probe_host
    from app.core.models import Storage
    from app.settings import SettingsError, load_settings, storage_folder

    try:
        settings = load_settings()
    except SettingsError as error:
        say(str(error))
        return FAILED
    accepted: set[str] = set(settings.process.accept_missing)
    disks_needed = settings.process.enabled and settings.storage is Storage.DISK
    layers = [
        *probe_host(storage_folder(settings), disks_needed=disks_needed),
        *probe_egress(settings.egress.socket),
        *probe_boxlite(settings.boxlite),
    ]
    if typed.json:
        put_json([asdict(layer) for layer in layers])
    else:
        rows = [
            [layer.runtime, layer.layer, _availability(layer, accepted), layer.detail, layer.cure or ""]
            for layer in layers
        ]
        put_table(["RUNTIME", "LAYER", "AVAILABLE", "DETAIL", "CURE"], rows, wrapped=["DETAIL", "CURE"])
    return 0 if all(layer.available or not layer.needed or layer.layer in accepted for layer in layers) else 1


def _availability(layer: LayerReport, accepted: set[str]) -> str:
    if layer.available:
        return "yes"
    return "accepted" if layer.layer in accepted else "no"
