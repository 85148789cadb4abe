"""The egress process as a whole: what the supervisor starts, and what the gateway says to it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.core.network_rules import parse_rule
from app.egress import protocol
from app.egress.config import EgressConfig
from app.egress.protocol import (
    CloseNetwork,
    Hello,
    NetworkClosed,
    NetworkEventTold,
    NetworkOpened,
    OpenNetwork,
    Order,
    Report,
)

ROOT = Path(__file__).resolve().parents[3]
NAME, GIVEN = "index.example.org", "127.77.0.2"


class Process:
    """A started egress process, and the gateway's end of its socket."""

    def __init__(self, folder: Path, stack: ExitStack, limit: int | None = None, **config: Any) -> None:
        self.path, self._stack = str(folder / "egress.sock"), stack
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.listener.bind(self.path)
        self.listener.listen()
        self._config = EgressConfig(**{"gateway_uid": os.getuid(), "permit_nets": ("127.0.0.0/8",), **config})
        self._limit = limit
        self.start()

    def start(self) -> None:
        read, write = os.pipe()
        os.write(write, self._config.dump())
        os.close(write)
        limit = self._limit
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.egress", str(os.getpid()), "-1", str(self.listener.fileno()), str(read)],
            pass_fds=(self.listener.fileno(), read),
            env={"PYTHONPATH": str(ROOT)},
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))) if limit else None,
        )
        os.close(read)
        self._stack.callback(self.stop, self.child)

    @staticmethod
    def stop(child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()

    def connect(self) -> socket.socket:
        peer = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        peer.settimeout(20)
        peer.connect(self.path)
        return peer

    def greeted(self) -> socket.socket:
        peer = self.connect()
        assert report(peer) == Hello()
        return peer


def report(peer: socket.socket) -> Report:
    return protocol.decode_report(peer.recv(protocol.MAX_PACKET))


def order(peer: socket.socket, what: Order, descriptors: list[int] | None = None) -> None:
    packets = protocol.open_packets(what) if isinstance(what, OpenNetwork) else [protocol.encode(what)]
    for packet in packets[:-1]:
        protocol.send(peer, packet)
    protocol.send(peer, packets[-1], descriptors or [])


class Sockets:
    """What a sandbox hands over: a resolver's socket and a listener."""

    def __init__(self, stack: ExitStack, address: str = GIVEN) -> None:
        self.resolver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.resolver.bind((address, 0))
        self.listener = stack.enter_context(socket.create_server((address, 0)))
        self.port = self.listener.getsockname()[1]
        self.descriptors = [self.resolver.fileno(), self.listener.fileno()]

    def open(self, peer: socket.socket, host: str = GIVEN) -> None:
        rule = parse_rule({"host": host, "ports": [self.port], "raw": True})
        order(peer, OpenNetwork("a", (rule,), (self.port,)), self.descriptors)
        assert report(peer) == NetworkOpened("a")

    def ask(self) -> bytes:
        with socket.create_connection((GIVEN, self.port), 20) as program:
            program.sendall(b"hello")
            program.shutdown(socket.SHUT_WR)
            return program.recv(100)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def start(stack: ExitStack, tmp_path: Path) -> Callable[..., Process]:
    return lambda **config: Process(tmp_path, stack, **config)


def test_refused_connection_is_reset_and_told_to_the_gateway(start: Callable[..., Process], stack: ExitStack) -> None:
    """The listener is its own upstream here, which is an address of this machine, and not permitted."""
    peer = start(permit_nets=()).greeted()
    sockets = Sockets(stack)
    sockets.open(peer)
    with pytest.raises(ConnectionResetError):
        sockets.ask()
    told = report(peer)
    assert isinstance(told, NetworkEventTold)
    assert (told.event["reason"], told.event["address"]) == ("own", GIVEN)
    order(peer, CloseNetwork("a"))
    assert report(peer) == NetworkClosed("a")


def test_sandbox_works_again_after_the_process_was_killed(start: Callable[..., Process], stack: ExitStack) -> None:
    process = start(permit_nets=())
    sockets = Sockets(stack)
    sockets.open(process.greeted())
    process.stop(process.child)
    process.start()
    sockets.open(process.greeted())
    with pytest.raises(ConnectionResetError):
        sockets.ask()
