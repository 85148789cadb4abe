"""The network of a plan with ports: every address answers on a listed port, through a socket that came out of the
sandbox, and nothing else is reached. The test is whoever holds these sockets."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import host
from tests.kernel.direct import Gateway, Launched, Refused, plan

PORTS = [80, 443, 5432]
PROFILES: dict[str, dict[str, object]] = {"default": {}, "loopback": {"loopback_tcp": True, "filter_name": "loopback"}}
ADDRESSES = ["93.184.216.34", "169.254.169.254", "127.0.0.1", "10.0.0.1", "255.255.255.254", "2606:2800::1", "fd00::1"]
# Prints what each line of the script says: `word` or the name of the errno.
PRELUDE = """
import errno, socket
def say(what, attempt):
    try:
        word = attempt()
    except OSError as error:
        word = errno.errorcode.get(error.errno, str(error.errno))
    print(what, word)
def open(address, kind=socket.SOCK_STREAM, protocol=0):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind, protocol)
    made.settimeout(200)
    return made
def connect(address, port):
    with open(address) as s:
        s.connect((address, port))
        s.sendall(address.encode())
    return "connected"
def ask(address, port):
    with open(address, socket.SOCK_DGRAM) as s:
        s.connect((address, port))
        s.send(b"x")
        return s.recv(512).decode()
def bind(address, port, *options):
    with open(address) as s:
        for option in options:
            s.setsockopt(socket.SOL_SOCKET, option, 1)
        s.bind((address, port))
    return "bound"
"""


class Room:
    """A sandbox, and the sockets that came out of it."""

    def __init__(self, gateway: Gateway, changes: dict[str, object]) -> None:
        self._gateway, self._number = gateway, 0
        self.owner, self.sockets = gateway.create_with_sockets(plan(**changes))  # type: ignore[arg-type]

    def run(self, script: str) -> list[str]:
        self._number += 1
        out, status = self._gateway.run(self.owner, self._number, "python3", "-c", PRELUDE + script)
        assert status == 0, out
        return out.decode().splitlines()

    def close(self) -> None:
        for each in (*self.sockets, self.owner):
            each.close()


@contextmanager
def room(launched: Launched, profile: str = "default", ports: list[int] = PORTS) -> Iterator[Room]:
    with Gateway(launched[0].socket) as gateway:
        made = Room(gateway, {"ports": ports, **PROFILES[profile]})
        try:
            yield made
        finally:
            gateway.destroy()  # first: without its owner it ends by itself, and is not there any more
            made.close()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_address_is_accepted_on_a_listed_port_and_told(launched: Launched, profile: str) -> None:
    with room(launched, profile) as made:
        said = made.run("".join(f"say('{a}', lambda: connect('{a}', 443))\n" for a in ADDRESSES))
        assert said == [f"{address} connected" for address in ADDRESSES]
        for address in ADDRESSES:
            accepted, _ = made.sockets[2].accept()
            with accepted:
                assert accepted.getsockname()[:2] == (address if ":" in address else f"::ffff:{address}", 443)
                assert accepted.recv(100).decode() == address


def test_sockets_come_in_the_order_of_the_ports(launched: Launched) -> None:
    with room(launched, ports=list(range(1001, 1017))) as made:
        assert made.sockets[0].getsockname() == ("127.0.0.53", 53)
        assert [each.getsockname()[1] for each in made.sockets[1:]] == list(range(1001, 1017))


@pytest.mark.parametrize(("profile", "refused"), [("default", "EACCES"), ("loopback", "ECONNREFUSED")])
def test_port_that_is_not_listed_is_refused(launched: Launched, profile: str, refused: str) -> None:
    ports = (1, 53, 79, 81, 444, 8080, 65_535)
    with room(launched, profile) as made:
        script = "".join(f"say({port}, lambda: connect('93.184.216.34', {port}))\n" for port in ports)
        assert made.run(script) == [f"{port} {refused}" for port in ports]


@pytest.mark.parametrize("profile", PROFILES)
def test_no_datagram_reaches_anything_but_the_resolver(launched: Launched, profile: str) -> None:
    elsewhere = [("93.184.216.34", 53), ("127.0.0.1", 53), ("8.8.8.8", 443), ("2606:2800::1", 53), ("127.0.0.53", 443)]
    with room(launched, profile) as made:
        script = "".join(f"say('{a}', lambda: ask('{a}', {port}))\n" for a, port in elsewhere)
        assert made.run(script) == [f"{address} ECONNREFUSED" for address, _ in elsewhere]
        assert not is_readable(made.sockets[0])
        with answering(made.sockets[0], lambda _: b"answer"):
            assert made.run("say('resolver', lambda: ask('127.0.0.53', 53))") == ["resolver answer"]


@pytest.mark.parametrize(
    ("profile", "high", "low"), [("default", "EACCES", "EACCES"), ("loopback", "EADDRINUSE", "EACCES")]
)
def test_listed_port_cannot_be_bound(launched: Launched, profile: str, high: str, low: str) -> None:
    """Not on one address, and whatever the program sets: else it would take connections that are not its own. Ports
    below 1024 need a capability."""
    reuse = ("", ", socket.SO_REUSEADDR", ", socket.SO_REUSEADDR, socket.SO_REUSEPORT")
    cases = [(address, options) for address in ("0.0.0.0", "93.184.216.34", "::1") for options in reuse]
    with room(launched, profile) as made:
        script = "".join(f"say('{a}', lambda: bind('{a}', 5432{options}))\n" for a, options in cases)
        assert made.run(script) == [f"{address} {high}" for address, _ in cases]
        assert made.run("say('low', lambda: bind('0.0.0.0', 443, socket.SO_REUSEADDR))") == [f"low {low}"]


def test_port_is_nobody_elses_while_its_owner_does_not_listen(launched: Launched) -> None:
    """Who holds the socket may stop listening, and begin again beside a connection that is open."""
    connect = "say('connect', lambda: connect('10.0.0.1', 5432))"
    with room(launched, "loopback", [5432]) as made:
        listener = made.sockets[1]
        assert made.run(connect) == ["connect connected"]
        with listener.accept()[0]:
            listener.shutdown(socket.SHUT_RD)
            reuse = "socket.SO_REUSEADDR, socket.SO_REUSEPORT"
            bind = f"say('bind', lambda: bind('0.0.0.0', 5432, {reuse}))\n"
            assert made.run(bind + connect) == ["bind EADDRINUSE", "connect ECONNREFUSED"]
            listener.listen()
            assert made.run(connect) == ["connect connected"]


def test_control_another_port_can_be_bound_on_any_address_in_profile_loopback(launched: Launched) -> None:
    with room(launched, "loopback") as made:
        assert made.run("say('other', lambda: bind('93.184.216.34', 5433))") == ["other bound"]


# What Landlock does not see, or what the namespace has no use for.
KINDS = {
    "raw": ("open('1.2.3.4', socket.SOCK_RAW, 255)", "EPERM"),
    "ICMP": ("open('1.2.3.4', socket.SOCK_RAW, 1)", "EPERM"),
    "ping": ("open('1.2.3.4', socket.SOCK_DGRAM, 1)", "EPERM"),
    "SCTP": ("open('1.2.3.4', socket.SOCK_STREAM, 132)", "EPERM"),
    "MPTCP": ("open('1.2.3.4', socket.SOCK_STREAM, 262)", "EPERM"),
    "packet": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EAFNOSUPPORT"),
    "fast open": ("open('1.2.3.4').sendto(b'x', socket.MSG_FASTOPEN, ('1.2.3.4', 444))", "EPERM"),
    "fast open, set": ("open('1.2.3.4').setsockopt(6, 30, 1)", "ENOPROTOOPT"),
}


@pytest.mark.parametrize("profile", PROFILES)
def test_no_other_kind_of_socket_is_to_be_had(launched: Launched, profile: str) -> None:
    with room(launched, profile) as made:
        script = "".join(f"say('{name}', lambda: {attempt})\n" for name, (attempt, _) in KINDS.items())
        assert made.run(script) == [f"{name} {refused}" for name, (_, refused) in KINDS.items()]


# Begins many connections, and prints how many were answered.
FILL = """
made = []
for _ in range(200):
    s = open("198.18.0.1")
    s.setblocking(False)
    s.connect_ex(("198.18.0.1", {0}))
    made.append(s)
print(sum(s.connect_ex(("198.18.0.1", {0})) in (0, errno.EISCONN) for s in made))
"""


@pytest.mark.parametrize("count", [1, 16])
def test_connections_that_nobody_accepts_are_few_for_all_ports_together(launched: Launched, count: int) -> None:
    """What they send is charged to nobody. The kernel takes one more for each port than was asked for."""
    ports = list(range(2001, 2001 + count))
    with room(launched, ports=ports) as made:
        taken = [int(made.run(FILL.format(port))[0]) for port in ports]
        assert taken == [128 // count + 1] * count
        with made.sockets[1].accept()[0]:
            assert made.run(FILL.format(ports[0])) == ["1"], "there is room for one more"


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_can_be_connected_when_nobody_outside_holds_the_sockets(launched: Launched, profile: str) -> None:
    with room(launched, profile) as made:
        assert made.run("say('held', lambda: connect('93.184.216.34', 443))") == ["held connected"]
        for each in made.sockets:
            each.close()
        script = "".join(f"say({port}, lambda: connect('93.184.216.34', {port}))\n" for port in PORTS)
        assert made.run(script) == [f"{port} ECONNREFUSED" for port in PORTS]
        assert made.run("say('names', lambda: ask('127.0.0.53', 53))") == ["names ECONNREFUSED"]


@pytest.mark.parametrize(("profile", "tcp"), [("default", "EACCES"), ("loopback", "ENETUNREACH")])
def test_without_ports_there_is_no_address_but_the_loopbacks(launched: Launched, profile: str, tcp: str) -> None:
    with room(launched, profile, []) as made:
        assert made.sockets == []
        script = "say('tcp', lambda: connect('93.184.216.34', 443))\nsay('udp', lambda: ask('93.184.216.34', 443))\n"
        assert made.run(script) == [f"tcp {tcp}", "udp ENETUNREACH"]
        assert made.run("say('names', lambda: ask('127.0.0.53', 53))") == ["names ECONNREFUSED"]


def open_files_of(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):  # it has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(entry.readlink()))
    return found


def holders_of(sockets: list[socket.socket]) -> list[list[int]]:
    """For each socket every process of the host that has it open."""
    links = {pid: open_files_of(pid) for pid in host.pids()}
    names = [f"socket:[{os.fstat(each.fileno()).st_ino}]" for each in sockets]
    return [[pid for pid, opened in links.items() if name in opened] for name in names]


def test_nobody_but_the_gateway_holds_the_sockets(launched: Launched) -> None:
    with room(launched) as made:
        assert len({os.fstat(each.fileno()).st_ino for each in made.sockets}) == 4
        # The launcher closes its own a moment after it has sent them.
        host.until(lambda: holders_of(made.sockets) == [[os.getpid()]] * 4, "nobody else holds them", every=0.1)


def test_network_is_shown_again_with_its_routes_before_the_answer(launched: Launched) -> None:
    with Gateway(launched[0].socket) as gateway:
        owner, sockets = gateway.create_with_sockets(plan(ports=[443]))
        assert len(gateway.networks) == 2
        after = gateway.networks[-1]
        gateway.destroy()
        for each in (owner, *sockets):
            each.close()
    with Gateway(launched[0].socket) as gateway:
        gateway.create(plan()).close()
        without = gateway.networks[-1]
        gateway.destroy()
    assert (without["routes_to_outside"], without["any_address_routes"]) == (0, [])
    assert after == without | {
        "addresses": sorted([*without["addresses"], "127.0.0.53/32"]),
        "routes": without["routes"] + 3,
        "any_address_routes": ["0.0.0.0/0", "::/0"],
    }
    assert [link["name"] for link in after["links"]] == ["lo"]


def test_create_that_fails_afterwards_leaves_no_socket(launched: Launched) -> None:
    """The fixture counts the launcher's descriptors at the end."""
    with Gateway(launched[0].socket) as gateway:
        for _ in range(3):
            with pytest.raises(Refused) as error:
                gateway.create(plan(ports=PORTS, read_only=["/nowhere"]))
            assert error.value.step == "restrict_files"


# --- names


def is_readable(listening: socket.socket) -> bool:
    return bool(select.select([listening], [], [], 0)[0])


@contextmanager
def answering(resolver: socket.socket, answer: Any) -> Iterator[list[bytes]]:
    """Answers every question that comes, until the end of the block."""
    asked: list[bytes] = []
    stop, stopped = socket.socketpair()

    def loop() -> None:
        while resolver in select.select([resolver, stopped], [], [])[0]:
            question, sender = resolver.recvfrom(512)
            asked.append(question)
            resolver.sendto(answer(question), sender)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield asked
    finally:
        stop.close()
        thread.join()
        stopped.close()


def address_of(question: bytes) -> bytes:
    """198.18.0.1 for an A question, nothing for another (RFC 1035, 4.1)."""
    name_end = question.index(b"\0", 12) + 5
    asked = question[12:name_end]
    is_a = asked[-4:-2] == b"\0\x01"
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04" + bytes((198, 18, 0, 1)) if is_a else b""
    return question[:2] + b"\x81\x80\0\x01" + bytes((0, is_a)) + bytes(4) + asked + record


LOOK_UP = "say('{0}', lambda: sorted({{i[4][0] for i in socket.getaddrinfo('{0}', 443, {1})}}))\n"


@pytest.mark.parametrize("profile", PROFILES)
def test_libc_finds_names_with_the_resolver_of_the_sandbox(launched: Launched, profile: str) -> None:
    """Both questions in one call (sendmmsg), with IP_RECVERR, which the filter pretends."""
    with room(launched, profile) as made, answering(made.sockets[0], address_of) as asked:
        said = made.run(LOOK_UP.format("index.example.org", "0") + LOOK_UP.format("localhost", "socket.AF_INET"))
        assert said == ["index.example.org ['198.18.0.1']", "localhost ['127.0.0.1']"]
        questions = dict.fromkeys(asked)  # a busy machine may be asked the same again
        assert [question[12:-4] for question in questions] == [b"\x05index\x07example\x03org\0"] * 2


@pytest.mark.parametrize("family", ["AF_UNSPEC", "AF_INET"])
@pytest.mark.parametrize("profile", PROFILES)
def test_libc_finds_names_for_the_addresses_that_it_has(launched: Launched, profile: str, family: str) -> None:
    """In profile loopback it asks netlink which ones these are."""
    with room(launched, profile) as made, answering(made.sockets[0], address_of):
        said = made.run(LOOK_UP.format("index.example.org", f"socket.{family}, flags=socket.AI_ADDRCONFIG"))
        assert said == ["index.example.org ['198.18.0.1']"]


def test_names_are_not_found_where_nothing_listens(launched: Launched) -> None:
    script = "try: socket.getaddrinfo('index.example.org', 443)\nexcept socket.gaierror as error: print(error.args[0])"
    with room(launched, ports=[]) as made:
        assert made.run(script) == [str(socket.EAI_AGAIN)]


def test_files_that_say_how_to_find_names_are_ours(launched: Launched) -> None:
    with room(launched) as made:
        script = "import pathlib\nfor n in 'resolv.conf', 'nsswitch.conf': print(pathlib.Path('/etc', n).read_text())"
        said = made.run(script)
    assert said[:2] == ["nameserver 127.0.0.53", "options timeout:2 attempts:2"]
    assert "hosts: files dns" in said
