"""`bulkhead probe`: whether the egress process is there, if it is a service of its own."""

from __future__ import annotations

from pathlib import Path

from app.cli.host import LayerReport
from app.serving.health_checks import connect_to_egress


def probe_egress(path: Path | None) -> list[LayerReport]:
    """`path` is its socket. None: it is no service of its own, so `bulkhead serve` starts it."""
    if path is None:
        return []
    try:
        connect_to_egress(path).close()
    except OSError as error:
        detail = f"no sandbox can have a network of the mode proxy: {path}: {error.strerror or error}"
        cure = "start the egress process (`bulkhead egress`), and ask as root or as the gateway's user"
        return [LayerReport("egress_process", False, detail, cure, needed=False)]
    return [LayerReport("egress_process", True, f"listens on {path}", needed=False)]
