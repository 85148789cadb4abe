"""What the supervisor does for the egress process: its socket, its configuration, its start."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from app.egress.config import EgressConfig
from app.serving.egress_process import egress_config, listen_for_gateway, start_egress
from app.settings import load_settings
from tests.service import PROJECT


def test_egress_process_is_told_what_the_operator_allows() -> None:
    settings = load_settings(
        host="127.0.0.1",
        port=8123,
        boxlite={"url": "http://127.0.0.2:8124"},
        egress={
            "permit_nets": "10.1.0.0/16,fd00:1::/32",
            "own_nets": "198.51.100.7",
            "resolver": "192.0.2.53:53",
            "connections": 7,
            "connections_per_sandbox": 6,
            "connections_per_second": 5,
            "bytes_per_sandbox": 4,
        },
    )
    assert egress_config(settings, 5000) == EgressConfig(
        5000,
        permit_nets=("10.1.0.0/16", "fd00:1::/32"),
        own_nets=("198.51.100.7/32",),
        resolver="192.0.2.53:53",
        service=("127.0.0.1:8123", "127.0.0.2:8124"),
        connections=7,
        connections_per_sandbox=6,
        connections_per_second=5,
        bytes_per_sandbox=4,
    )


def test_socket_is_for_the_gateway_alone_and_replaces_a_dead_services(tmp_path: Path) -> None:
    path = tmp_path / "egress.sock"
    path.touch()
    uid = os.getuid()
    with listen_for_gateway(path, uid):
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (uid, uid, 0o600)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(path))


def test_egress_process_that_cannot_start_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with listen_for_gateway(tmp_path / "egress.sock", os.getuid()) as listener:
        config = EgressConfig(os.getuid(), permit_nets=("no network",))
        assert start_egress(str(PROJECT), listener, -1, config).wait(60) != 0
    said = capfd.readouterr().err
    assert said.startswith("bulkhead: ")
    assert "no network" in said
