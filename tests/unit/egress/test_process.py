"""The egress process as a whole: what the supervisor starts, and what the gateway says to it."""

from __future__ import annotations

import base64
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import dns.message
import pytest

from app.core.network_rules import NetworkRule, parse_rule
from app.egress import protocol
from app.egress.__main__ import NO_MEMORY
from app.egress.config import EgressConfig
from app.egress.connect_proxy import SELF
from app.egress.protocol import (
    ChangeNetwork,
    CloseNetwork,
    Hello,
    KnownRules,
    NameGiven,
    NetworkChanged,
    NetworkClosed,
    NetworkEventTold,
    NetworkNotChanged,
    NetworkNotOpened,
    NetworkOpened,
    NetworkSetup,
    OpenNetwork,
    Order,
    Report,
)
from app.huge_pages import HUGE
from tests.huge_pages import can_collapse, huge_bytes
from tests.kernel import host

ROOT = Path(__file__).resolve().parents[3]
NAME, GIVEN = "index.example.org", "127.77.0.2"


class Process:
    """A started egress process, and the gateway's end of its socket."""

    def __init__(
        self, folder: Path, stack: ExitStack, *, uid: int = -1, limit: int | None = None, **config: Any
    ) -> None:
        self.path, self._stack = str(folder / "egress.sock"), stack
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.listener.bind(self.path)
        self.listener.listen()
        self._config = EgressConfig(**{"gateway_uid": os.getuid(), "permit_nets": ("127.0.0.0/8",), **config})
        self._uid, self._limit = uid, limit
        self.start()

    def start(self) -> None:
        read, write = os.pipe()
        os.write(write, self._config.dump())
        os.close(write)
        limit = self._limit
        self.child = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "app.egress",
                str(os.getpid()),
                str(self._uid),
                str(self.listener.fileno()),
                str(read),
            ],
            pass_fds=(self.listener.fileno(), read, *([self._config.proxy] if self._config.proxy >= 0 else [])),
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
        peer.settimeout(60)
        peer.connect(self.path)
        return peer

    def greeted(self) -> socket.socket:
        peer = self.connect()
        assert report(peer) == Hello()
        return peer


def report(peer: socket.socket) -> Report:
    return protocol.decode_report(peer.recv(protocol.MAX_PACKET))


def order(
    peer: socket.socket, what: Order, descriptors: list[int] | None = None, setup: NetworkSetup | None = None
) -> None:
    packets = [protocol.encode(what)]
    if isinstance(what, OpenNetwork):
        packets = protocol.open_packets(what.sandbox, what.ports, setup or NetworkSetup(), what.client, what.moved)
    elif isinstance(what, ChangeNetwork):
        packets = protocol.change_packets(what.sandbox, what.ports, setup.rules if setup else ())
    for packet in packets[:-1]:
        protocol.send(peer, packet)
    protocol.send(peer, packets[-1], descriptors or [])


class Sockets:
    """What a sandbox hands over: a resolver's socket and a listener."""

    def __init__(self, stack: ExitStack, address: str = GIVEN) -> None:
        self.resolver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.resolver.bind((address, 0))
        with socket.create_server((address, 0), reuse_port=True) as free:
            # By its number, as the launcher does it: else the socket would get another port when it listens again.
            self.port = free.getsockname()[1]
            self.listener = stack.enter_context(socket.create_server((address, self.port), reuse_port=True))
        self.descriptors = [self.resolver.fileno(), self.listener.fileno()]

    def open(self, peer: socket.socket, host: str = GIVEN) -> None:
        rule = parse_rule({"host": host, "ports": [self.port], "raw": True})
        order(peer, OpenNetwork("a", (self.port,)), self.descriptors, NetworkSetup((rule,)))
        assert report(peer) == NetworkOpened("a")

    def ask(self) -> bytes:
        with socket.create_connection((GIVEN, self.port), 20) as program:
            program.sendall(b"hello")
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
    with pytest.raises(ConnectionError):
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
    with pytest.raises(ConnectionError):
        sockets.ask()


def test_memory_has_a_limit_that_follows_from_the_bounds(start: Callable[..., Process]) -> None:
    process = start(connections=100, sandboxes=10)
    process.greeted()
    expected = (256 + 50 + 20) * 2**20
    assert resource.prlimit(process.child.pid, resource.RLIMIT_DATA) == (expected, expected)


def test_process_without_memory_ends_and_the_next_one_serves(
    start: Callable[..., Process], stack: ExitStack, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would stay as it was in the middle of what it did."""
    process = start()
    peer = process.greeted()
    sockets = Sockets(stack)
    sockets.open(peer)
    used = int(Path(f"/proc/{process.child.pid}/statm").read_text().split()[5]) * resource.getpagesize()
    resource.prlimit(process.child.pid, resource.RLIMIT_DATA, (used + 2**20, used + 2**20))
    names = {f"{number:04}.{'x' * 240}": str(IPv4Address("198.18.0.1") + number) for number in range(4096)}
    with pytest.raises(OSError):
        for number in range(20):
            order(peer, OpenNetwork(f"s{number}", ()), [sockets.resolver.fileno()], NetworkSetup((), names))
            if not peer.recv(protocol.MAX_PACKET):
                raise ConnectionResetError
    assert process.child.wait(60) == NO_MEMORY
    assert "it has used the memory that it may have" in capfd.readouterr().err
    process.start()
    Sockets(stack).open(process.greeted())


def test_bytes_count_on_in_the_next_process(start: Callable[..., Process], stack: ExitStack) -> None:
    sockets = Sockets(stack)
    rule = parse_rule({"host": GIVEN, "ports": [sockets.port], "raw": True})
    for moved, reason in ((99, "own"), (100, "bytes")):
        process = start(permit_nets=(), bytes_per_sandbox=100)
        peer = process.greeted()
        order(peer, OpenNetwork("a", (sockets.port,), moved=moved), sockets.descriptors, NetworkSetup((rule,)))
        assert report(peer) == NetworkOpened("a")
        with pytest.raises(ConnectionError):
            sockets.ask()
        told = report(peer)
        assert isinstance(told, NetworkEventTold)
        assert told.event["reason"] == reason
        process.stop(process.child)
        Path(process.path).unlink()


def test_process_that_ended_while_it_did_not_listen_leaves_that_to_the_next(
    start: Callable[..., Process], stack: ExitStack
) -> None:
    sockets = Sockets(stack)
    sockets.listener.shutdown(socket.SHUT_RD)
    with pytest.raises(ConnectionRefusedError):
        sockets.ask()
    sockets.open(start(permit_nets=()).greeted())
    with pytest.raises(ConnectionResetError):
        sockets.ask()


def descriptors(process: Process) -> int:
    return len(list(Path(f"/proc/{process.child.pid}/fd").iterdir()))


def refused(sockets: Sockets) -> None:
    with pytest.raises(ConnectionError):
        sockets.ask()


def told(peer: socket.socket, reason: str) -> None:
    event = report(peer)
    assert isinstance(event, NetworkEventTold)
    assert event.event["reason"] == reason


def status(process: Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.child.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


# --- what it is


def test_process_has_no_new_privileges_and_leaves_no_core(start: Callable[..., Process]) -> None:
    process = start()
    process.greeted()
    assert status(process)["NoNewPrivs"] == "1"
    assert resource.prlimit(process.child.pid, resource.RLIMIT_CORE) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not can_collapse(), reason="this kernel cannot collapse memory to huge pages")
def test_what_the_process_has_loaded_lies_on_huge_pages(start: Callable[..., Process]) -> None:
    process = start()
    process.greeted()
    assert huge_bytes(process.child.pid) >= HUGE


def test_process_that_was_root_is_another_user_without_any_privilege(start: Callable[..., Process]) -> None:
    process = start(uid=54_321)
    process.greeted()
    found = status(process)
    assert (found["Uid"], found["Gid"]) == ("\t".join(["54321"] * 4),) * 2
    assert found["Groups"].strip() == ""
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert Path(f"/proc/{process.child.pid}/environ").stat().st_uid == 0  # not dumpable: proc(5)


def test_process_ends_in_order_and_says_nothing(start: Callable[..., Process], stack: ExitStack) -> None:
    process = start(permit_nets=())
    peer = process.greeted()
    Sockets(stack).open(peer)
    process.child.send_signal(signal.SIGTERM)
    assert process.child.wait(60) == 0
    assert peer.recv(1) == b""


@pytest.mark.parametrize(
    "config",
    [{"permit_nets": ("nonsense",)}, {"own_nets": ("nonsense",)}, {"resolver": "nonsense"}, {"service": ("::1",)}],
)
def test_configuration_that_is_none_ends_it(start: Callable[..., Process], config: dict[str, Any]) -> None:
    assert start(**config).child.wait(60) == 2


# --- who may speak to it


def test_other_user_is_not_served(start: Callable[..., Process]) -> None:
    assert start(gateway_uid=os.getuid() + 1).connect().recv(1) == b""


def test_second_gateway_waits_for_the_end_of_the_first(start: Callable[..., Process]) -> None:
    process = start()
    first, early, second = process.greeted(), process.connect(), process.connect()
    assert early.recv(1) == b""  # one may wait: the latest
    second.settimeout(0.1)
    with pytest.raises(TimeoutError):
        second.recv(1)
    first.close()
    second.settimeout(60)
    assert report(second) == Hello()


@pytest.mark.parametrize(
    "packet", [b"nonsense", b"{}", b'{"kind":"hello","version":1}', b"x" * (protocol.MAX_PACKET + 1)]
)
def test_gateway_that_sends_nonsense_is_hung_up_on_and_the_next_is_served(
    start: Callable[..., Process], stack: ExitStack, packet: bytes
) -> None:
    process = start(permit_nets=())
    peer = process.greeted()
    idle = descriptors(process)
    Sockets(stack).open(peer)
    protocol.send(peer, packet, [0, 1, 2])
    assert peer.recv(1) == b""
    Sockets(stack).open(process.greeted())
    assert descriptors(process) == idle + 3  # a sandbox's two sockets and its epoll


def test_gateway_that_hangs_up_takes_its_sandboxes_with_it(start: Callable[..., Process], stack: ExitStack) -> None:
    process = start(permit_nets=())
    peer = process.greeted()
    idle = descriptors(process)
    sockets = Sockets(stack)
    sockets.open(peer)
    sockets.listener.close()
    peer.close()
    process.greeted()
    # The next gateway may be greeted before the last socket is closed.
    host.until(lambda: descriptors(process) == idle, "nothing of the sandbox is left")
    with pytest.raises(ConnectionRefusedError):
        sockets.ask()


# --- orders


def test_names_of_an_earlier_process_keep_their_addresses(start: Callable[..., Process], stack: ExitStack) -> None:
    peer = start().greeted()
    sockets = Sockets(stack)
    names = {f"{n}.example.net": f"198.18.{n // 256}.{n % 256}" for n in range(1, 1001)}
    rules = (NetworkRule("*.example.net", (sockets.port,)),)
    order(peer, OpenNetwork("a", (sockets.port,)), sockets.descriptors, NetworkSetup(rules, names))
    assert report(peer) == NetworkOpened("a")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.settimeout(60)
        program.connect(sockets.resolver.getsockname())
        for name, address in (("1000.example.net", "198.18.3.232"), ("new.example.net", "198.18.3.233")):
            program.send(dns.message.make_query(name, "A").to_wire())
            [records] = dns.message.from_wire(program.recv(512)).answer
            assert [str(record) for record in records] == [address]
    assert report(peer) == NameGiven("a", "new.example.net", "198.18.3.233")


def asks(proxy: socket.socket, password: str) -> int:
    """The status of the proxy's answer to who asks with this password of sandbox `a`."""
    basic = base64.b64encode(f"a:{password}".encode()).decode()
    lines = (f"GET http://{SELF}/ HTTP/1.1", f"Host: {SELF}", f"Proxy-Authorization: Basic {basic}", "", "")
    with socket.create_connection(proxy.getsockname(), 20) as program:
        program.sendall("\r\n".join(lines).encode())
        return int(program.recv(100).split()[1])


def test_sandbox_with_a_credential_is_found_by_it_in_every_process(
    start: Callable[..., Process], stack: ExitStack
) -> None:
    proxy = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    process = start(proxy=proxy.fileno())
    for _ in range(2):
        peer = process.greeted()
        idle = descriptors(process)
        order(peer, OpenNetwork("a", ()), setup=NetworkSetup(credential="a password"))
        assert report(peer) == NetworkOpened("a")
        assert descriptors(process) == idle + 1  # its epoll
        assert (asks(proxy, "a password"), asks(proxy, "another")) == (200, 407)
        process.stop(process.child)
        process.start()
    peer = process.greeted()
    idle = descriptors(process)
    order(peer, OpenNetwork("a", ()), setup=NetworkSetup(credential="a password"))
    assert report(peer) == NetworkOpened("a")
    order(peer, CloseNetwork("a"))
    assert report(peer) == NetworkClosed("a")
    assert descriptors(process) == idle
    assert asks(proxy, "a password") == 407


def connects(proxy: socket.socket, sandbox: str, stack: ExitStack) -> int:
    """The status of the proxy's answer to CONNECT. The connection stays open."""
    basic = base64.b64encode(f"{sandbox}:a password".encode()).decode()
    lines = (f"CONNECT {NAME}:443 HTTP/1.1", f"Host: {NAME}:443", f"Proxy-Authorization: Basic {basic}", "", "")
    program = stack.enter_context(socket.create_connection(proxy.getsockname(), 20))
    program.sendall("\r\n".join(lines).encode())
    return int(program.recv(100).split()[1])


@pytest.mark.parametrize(
    ("clients", "statuses", "reason"),
    [
        (("", "", ""), [200, 200, 403], "connections"),
        (("one", "one", "two"), [200, 403, 200], "connections_per_client"),
    ],
)
def test_sandboxes_share_what_their_client_may_have(
    start: Callable[..., Process],
    stack: ExitStack,
    clients: tuple[str, ...],
    statuses: list[int],
    reason: str,
) -> None:
    proxy = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    peer = start(proxy=proxy.fileno(), connections=2).greeted()
    setup = NetworkSetup((parse_rule(f"{NAME}:443"),), credential="a password")
    for sandbox, client in zip("abc", clients, strict=True):
        order(peer, OpenNetwork(sandbox, (), client), setup=setup)
        assert report(peer) == NetworkOpened(sandbox)
    assert [connects(proxy, sandbox, stack) for sandbox in "abc"] == statuses
    told(peer, reason)


def test_sandbox_with_a_credential_has_no_sockets_and_needs_the_proxy(
    start: Callable[..., Process], stack: ExitStack
) -> None:
    process = start()
    peer = process.greeted()
    idle = descriptors(process)
    sockets = Sockets(stack)
    order(peer, OpenNetwork("a", ()), setup=NetworkSetup(credential="a password"))
    assert report(peer) == NetworkNotOpened("a", "it has no proxy")
    process.stop(process.child)
    proxy = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    process._config = replace(process._config, proxy=proxy.fileno())
    process.start()
    peer = process.greeted()
    order(peer, OpenNetwork("a", (sockets.port,)), sockets.descriptors, NetworkSetup(credential="a password"))
    assert report(peer) == NetworkNotOpened("a", "a sandbox with a credential has no sockets")
    assert descriptors(process) == idle + 2  # the proxy's listener and its epoll
    assert asks(proxy, "a password") == 407


def test_sandbox_with_a_credential_is_not_opened_without_descriptors(
    start: Callable[..., Process], stack: ExitStack
) -> None:
    proxy = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    peer = start(proxy=proxy.fileno(), limit=64).greeted()
    opened = 0
    while True:
        order(peer, OpenNetwork(f"s{opened}", ()), setup=NetworkSetup(credential="a password"))
        answer = report(peer)
        if answer != NetworkOpened(f"s{opened}"):
            break
        opened += 1
    assert answer == NetworkNotOpened(f"s{opened}", "Too many open files")
    assert 0 < opened < 64
    order(peer, CloseNetwork("s0"))
    assert report(peer) == NetworkClosed("s0")
    order(peer, OpenNetwork("a", ()), setup=NetworkSetup(credential="a password"))
    assert report(peer) == NetworkOpened("a")


@pytest.mark.parametrize("what", ["none", "too few", "too many", "not sockets", "a pipe", "another port", "swapped"])
def test_sandbox_without_its_sockets_is_not_opened(start: Callable[..., Process], stack: ExitStack, what: str) -> None:
    process = start()
    peer = process.greeted()
    idle = descriptors(process)
    sockets, other = Sockets(stack), Sockets(stack)
    resolver, listener = sockets.descriptors
    given = {
        "none": [],
        "too few": [resolver],
        "too many": [resolver, listener, listener],
        "not sockets": [0, listener],
        "a pipe": [resolver, process.listener.fileno()],
        "another port": [resolver, other.listener.fileno()],
        "swapped": [listener, resolver],
    }[what]
    order(peer, OpenNetwork("a", (sockets.port,)), given)
    answer = report(peer)
    assert isinstance(answer, NetworkNotOpened)
    assert answer.reason
    assert descriptors(process) == idle
    sockets.open(peer)


def test_sandbox_that_is_open_is_not_opened_again_and_goes_on(start: Callable[..., Process], stack: ExitStack) -> None:
    peer = start(permit_nets=()).greeted()
    sockets = Sockets(stack)
    sockets.open(peer)
    order(peer, OpenNetwork("a", (sockets.port,)), sockets.descriptors)
    assert report(peer) == NetworkNotOpened("a", "it is open already")
    refused(sockets)
    told(peer, "own")


def test_closed_sandbox_leaves_nothing_and_may_be_closed_twice(start: Callable[..., Process], stack: ExitStack) -> None:
    process = start(permit_nets=())
    peer = process.greeted()
    idle = descriptors(process)
    for _ in range(3):
        sockets = Sockets(stack)
        sockets.open(peer)
        refused(sockets)
        told(peer, "own")
        order(peer, CloseNetwork("a"))
        assert report(peer) == NetworkClosed("a")
        assert descriptors(process) == idle
    order(peer, CloseNetwork("a"))
    assert report(peer) == NetworkClosed("a")


def test_sandbox_is_not_opened_when_no_descriptors_are_left_and_others_go_on(
    start: Callable[..., Process], stack: ExitStack
) -> None:
    process = start(permit_nets=(), limit=40)
    peer = process.greeted()
    first, number = Sockets(stack), 0
    first.open(peer)
    while True:
        number += 1
        sockets = Sockets(stack)
        order(peer, OpenNetwork(str(number), (sockets.port,)), sockets.descriptors)
        if (answer := report(peer)) != NetworkOpened(str(number)):
            break
    assert isinstance(answer, NetworkNotOpened)
    assert "descriptors" in answer.reason or "open files" in answer.reason
    refused(first)
    waiting = {process.connect() for _ in range(4)}
    while len(waiting) > 1:  # one may wait; the others are hung up on, with or without a descriptor for them
        for ended in select.select(waiting, [], [], 60)[0]:
            assert ended.recv(1) == b""
            waiting.remove(ended)
    order(peer, CloseNetwork("1"))
    while report(peer) != NetworkClosed("1"):
        pass
    refused(first)


# --- other rules


def raw_rule(port: int) -> NetworkRule:
    return parse_rule({"host": GIVEN, "ports": [port], "raw": True})


def test_change_takes_new_listeners_and_closes_those_of_dropped_ports(
    start: Callable[..., Process], stack: ExitStack
) -> None:
    process = start()
    peer, old, new = process.greeted(), Sockets(stack), Sockets(stack)
    old.open(peer)
    before = descriptors(process)
    order(peer, ChangeNetwork("a", (new.port,)), [new.listener.fileno()], NetworkSetup((raw_rule(new.port),)))
    assert report(peer) == NetworkChanged("a")
    assert descriptors(process) == before
    order(peer, ChangeNetwork("a", ()))
    assert report(peer) == NetworkChanged("a")
    assert descriptors(process) == before - 1


@pytest.mark.parametrize("what", ["not open", "none", "too many", "not a listener", "another port"])
def test_network_that_cannot_be_changed_is_closed_and_never_goes_on_by_the_old_rules(
    start: Callable[..., Process], stack: ExitStack, what: str
) -> None:
    process = start()
    peer = process.greeted()
    idle = descriptors(process)
    old, new = Sockets(stack), Sockets(stack)
    if what != "not open":
        old.open(peer)
    given = {
        "not open": [new.listener.fileno()],
        "none": [],
        "too many": [new.listener.fileno()] * 2,
        "not a listener": [new.resolver.fileno()],
        "another port": [old.listener.fileno()],
    }[what]
    order(peer, ChangeNetwork("a", (new.port,)), given, NetworkSetup((raw_rule(new.port),)))
    assert isinstance(report(peer), NetworkNotChanged)
    assert descriptors(process) == idle
    old.open(peer)  # the gateway may open it again


def test_rules_of_a_change_that_never_came_are_not_those_of_the_next_opening(
    start: Callable[..., Process], stack: ExitStack
) -> None:
    process = start()
    peer, sockets = process.greeted(), Sockets(stack)
    sockets.open(peer)
    order(peer, KnownRules("a", (raw_rule(sockets.port),)))
    order(peer, CloseNetwork("a"))
    assert report(peer) == NetworkClosed("a")
    order(peer, OpenNetwork("a", (sockets.port,)), sockets.descriptors, NetworkSetup(()))
    assert report(peer) == NetworkOpened("a")
    refused(sockets)
    told(peer, "rule")
