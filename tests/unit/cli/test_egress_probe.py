"""What `bulkhead probe` says of an egress process that is a service of its own."""

from __future__ import annotations

import socket
from pathlib import Path

from app.cli.egress_probe import probe_egress


def test_without_a_socket_there_is_nothing_to_say() -> None:
    assert probe_egress(None) == []


def test_process_that_listens_is_available_and_one_that_has_ended_is_not(tmp_path: Path) -> None:
    path = tmp_path / "egress.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        (layer,) = probe_egress(path)
        assert (layer.layer, layer.available, layer.detail) == ("egress_process", True, f"listens on {path}")
    for why in ("Connection refused", "No such file or directory"):
        (layer,) = probe_egress(path)
        assert (layer.available, layer.needed) == (False, False)
        assert layer.detail == f"no sandbox can have a network of the mode proxy: {path}: {why}"
        assert layer.cure is not None
        path.unlink(missing_ok=True)
