"""`bulkhead probe`: whether the egress process is there, if it is a service of its own."""

from __future__ import annotations

import socket
from pathlib import Path

from app.cli.host import LayerReport

_SECONDS = 3.0


def probe_egress(path: Path | None) -> list[LayerReport]:
    """`path` is its socket. None: it is no service of its own, so `bulkhead serve` starts it."""
    if path is None:
        return []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(str(path))
    except OSError as error:
        detail = f"no sandbox can have a network of the mode proxy: {path}: {error.strerror or error}"
        cure = "start the egress process (`bulkhead egress`), and ask as root or as the gateway's user"
        return [LayerReport("egress_process", False, detail, cure, needed=False)]
    return [LayerReport("egress_process", True, f"listens on {path}", needed=False)]
