"""Ports that a sandbox gets after its start: the launcher makes their listeners, whatever runs in the sandbox and
whoever asks."""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.launcher.protocol import DESTROY, LISTEN, PAUSE, RESUME
from tests.kernel import host
from tests.kernel.direct import SPARE, Gateway, Gone, Launched, Refused, listening, name, plan
from tests.kernel.test_any_address import FILL, PROFILES, Room
from tests.kernel.test_start import status_of
from tests.service import PATIENCE

ANY = "93.184.216.34"


class Growing(Room):
    """A sandbox of the profile `loopback`, and its gateway."""

    def __init__(self, gateway: Gateway, ports: list[int]) -> None:
        super().__init__(gateway, {"ports": ports, **PROFILES["loopback"]})
        self.gateway = gateway

    def listen(self, *ports: int, ended: tuple[socket.socket, ...] = ()) -> list[socket.socket]:
        made = self.gateway.listen(ports, [each.fileno() for each in ended])
        self.sockets += made
        return made

    def connect(self, *ports: int) -> list[str]:
        return self.run("".join(f"say({port}, lambda: connect('{ANY}', {port}))\n" for port in ports))

    def refusal(self, *ports: int, ended: tuple[socket.socket, ...] = ()) -> Refused:
        with pytest.raises(Refused) as error:
            self.listen(*ports, ended=ended)
        assert error.value.step in ("listen", "plan")
        return error.value


@contextmanager
def growing(gateway: Gateway, ports: tuple[int, ...] = (443,)) -> Iterator[Growing]:
    made = Growing(gateway, list(ports))
    try:
        yield made
    finally:
        gateway.destroy()
        made.close()


@pytest.fixture
def made(launched: Launched) -> Iterator[Growing]:
    """With the port 443."""
    with Gateway(launched[0].socket) as gateway, growing(gateway) as room:
        yield room


def test_new_port_is_accepted_outside_at_every_address(made: Growing) -> None:
    assert made.connect(80, 8443) == ["80 ECONNREFUSED", "8443 ECONNREFUSED"], "control"
    new = made.listen(80, 8443)
    assert [each.getsockname()[1] for each in new] == [80, 8443]
    assert made.connect(80, 8443) == ["80 connected", "8443 connected"]
    with new[1].accept()[0] as accepted:
        assert (accepted.getsockname()[:2], accepted.recv(100)) == ((f"::ffff:{ANY}", 8443), ANY.encode())


def test_port_that_ends_is_refused_at_once_whoever_still_holds_its_listener(made: Growing) -> None:
    assert made.connect(443) == ["443 connected"], "control"
    assert made.listen(ended=(made.sockets[1],)) == []
    assert made.connect(443) == ["443 ECONNREFUSED"]
    (again,) = made.listen(443)
    assert made.connect(443) == ["443 connected"]
    assert select.select([again], [], [], PATIENCE)[0]


def test_connection_that_waits_at_a_port_that_ends_is_reset(made: Growing) -> None:
    made.listen(8443)
    script = f"waits = open('{ANY}')\nsay('waits', lambda: (waits.connect(('{ANY}', 8443)), waits.recv(9)))"
    listener = made.sockets[2]

    def end() -> None:
        select.select([listener], [], [], PATIENCE)
        made.gateway.send(bytes((LISTEN, 0, 0, 0, 0)) + listening([]), [listener.fileno()])

    thread = threading.Thread(target=end)
    thread.start()
    assert made.run(script) == ["waits ECONNRESET"]
    thread.join()


def test_connections_that_have_just_ended_do_not_keep_the_port(made: Growing) -> None:
    """The side that closes first keeps the port for a minute (TIME_WAIT). Here that is the listener's."""
    (listener,) = made.listen(8443)
    thread = threading.Thread(target=lambda: listener.accept()[0].close())
    thread.start()
    read = f"with open('{ANY}') as s:\n s.connect(('{ANY}', 8443))\n print(s.recv(9))"
    assert made.run(read) == ["b''"]
    thread.join()
    made.listen(ended=(listener,))
    assert made.run("say('bind', lambda: bind('0.0.0.0', 8443))") == ["bind EADDRINUSE"], "control"
    made.listen(8443)
    assert made.connect(8443) == ["8443 connected"]


HOLD = """
import os, time
held = open({0!r})
held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
held.bind(({0!r}, 8443))
held.listen()
if os.fork() == 0:
    for number in 0, 1, 2:
        os.close(number)
    time.sleep(1000)
"""


@pytest.mark.parametrize("address", ["127.0.0.1", ANY, "::1", "::"])
def test_port_that_a_program_holds_is_named_and_nothing_changes(made: Growing, address: str) -> None:
    made.run(HOLD.format(address))
    error = made.refusal(80, 8443, ended=(made.sockets[1],))
    assert (error.errno, error.detail) == (errno.EADDRINUSE, "a program of the sandbox holds port 8443")
    assert made.connect(80, 443) == ["80 ECONNREFUSED", "443 connected"]
    assert len(made.listen(80, ended=(made.sockets[1],))) == 1


def test_program_cannot_listen_at_a_new_port_that_it_has_bound_before(made: Growing) -> None:
    """With SO_REUSEADDR it may have bound the port while nobody listened. Then only one of both can listen."""
    made.listen(8443)
    reuse = "socket.SO_REUSEADDR, socket.SO_REUSEPORT"
    assert made.run(f"say('bind', lambda: bind('{ANY}', 8443, {reuse}))") == ["bind EADDRINUSE"]


def test_all_ports_share_one_backlog(made: Growing) -> None:
    made.listen(*range(2001, 2016))
    assert made.run(FILL.format(2001)) == ["9"]


def test_paused_sandbox_gets_a_port(made: Growing) -> None:
    made.gateway.ask(PAUSE, name("one"))
    made.listen(80)
    made.gateway.ask(RESUME, name("one"))
    assert made.connect(80) == ["80 connected"]


def test_launcher_is_root_in_its_own_namespace_afterwards(launched: Launched, made: Growing) -> None:
    pid = launched[1].pid

    def identity() -> tuple[object, ...]:
        status = status_of(pid)
        return Path(f"/proc/{pid}/ns/net").stat().st_ino, status["Uid"], status["CapEff"], status["CapPrm"]

    before = identity()
    made.listen(80)
    made.refusal(80)
    assert identity() == before
    assert before[1] == "0\t0\t0\t0"


# --- a gateway that was taken over


@pytest.mark.parametrize(
    ("ports", "number"),
    [
        ((0,), errno.ERANGE),
        ((53,), errno.ERANGE),
        ((65_536,), errno.ERANGE),
        ((2**32 - 1,), errno.ERANGE),
        ((80, 80), errno.EINVAL),
        ((81, 80), errno.EINVAL),
        (tuple(range(2001, 2017)), errno.ERANGE),
        (tuple(range(2001, 2018)), errno.ERANGE),
        ((443,), errno.EADDRINUSE),
    ],
)
def test_ports_out_of_bounds_are_refused(hostile: Gateway, ports: tuple[int, ...], number: int) -> None:
    with growing(hostile) as made:
        assert made.refusal(*ports).errno == number
        made.listen(*range(2001, 2016))


def test_sandbox_without_a_network_gets_no_port(hostile: Gateway) -> None:
    with hostile.create(), pytest.raises(Refused) as error:
        hostile.listen([443])
    assert (error.value.step, error.value.errno) == ("listen", errno.ENOENT)
    hostile.destroy()


ENDS = ["file", "pipe", "local", "unix", "datagram", "twice", "neighbour", "accepted", "closed"]


@pytest.mark.parametrize("kind", ENDS)
def test_only_a_listener_of_the_sandbox_makes_room_for_another_one(hostile: Gateway, kind: str, tmp_path: Path) -> None:
    with growing(hostile, tuple(range(2001, 2017))) as made, contextmanager(neighbour)(hostile) as other:
        near, far = socket.socketpair()
        accepted, closed = connection_of(made), connection_of(made)
        closed.shutdown(socket.SHUT_RDWR)
        host.until(lambda: not is_connected(closed), "the program has acknowledged the end")
        with (
            near,
            far,
            accepted,
            closed,
            socket.create_server(("127.0.0.1", 0)) as local,
            (tmp_path / "file").open("w") as file,
        ):
            ends = {
                "file": [file.fileno()],
                "pipe": [file.fileno()],
                "local": [local.fileno()],
                "unix": [near.fileno()],
                "datagram": [made.sockets[0].fileno()],
                "twice": [made.sockets[1].fileno()] * 2,
                "neighbour": [other[1].fileno()],
                "accepted": [accepted.fileno()],
                "closed": [closed.fileno()],
            }[kind]
            with pytest.raises(Refused) as error:
                hostile.listen([80], ends)
        assert error.value.errno == (errno.ENOTSOCK if kind in ("file", "pipe") else errno.EINVAL)
        assert made.refusal(80).errno == errno.ERANGE
        assert made.connect(2001) == ["2001 connected"]


def connection_of(made: Growing) -> socket.socket:
    """What is accepted at the port 2001. The program has ended its direction."""
    assert made.connect(2001) == ["2001 connected"]
    return made.sockets[1].accept()[0]


def is_connected(accepted: socket.socket) -> bool:
    try:
        accepted.getpeername()
    except OSError as error:
        assert error.errno == errno.ENOTCONN
        return False
    return True


def neighbour(gateway: Gateway) -> Iterator[list[socket.socket]]:
    """Another sandbox's sockets, of a port that both have."""
    owner, sockets = gateway.create_with_sockets(plan("two", ports=[2001]))
    yield sockets
    gateway.destroy("two")
    for each in (owner, *sockets):
        each.close()


def test_listeners_that_nobody_takes_are_bounded(launched: Launched, hostile: Gateway) -> None:
    """A listener is in an answer that is not read yet, or the gateway has to show it."""
    with growing(hostile) as made:
        before = len(host.descriptors(launched[1].pid))
        numbers = [hostile.post(LISTEN, listening([port])) for port in range(2001, 2101)]
        hostile.post(LISTEN, listening([]), [made.sockets[1].fileno()])
        refusals = 0
        for number in numbers:
            try:
                hostile.answer(number)
            except Refused as error:
                assert error.errno == errno.ERANGE
                refusals += 1
        assert refusals == 85
        assert len(host.descriptors(launched[1].pid)) <= before + SPARE


def test_answer_that_was_lost_keeps_no_port(hostile: Gateway) -> None:
    """Whoever asked closes what comes late. The port is free then, and can be asked for again."""
    with growing(hostile, tuple(range(2001, 2016))) as made:
        hostile.answer(hostile.post(LISTEN, listening([80])))
        assert made.refusal(81).errno == errno.ERANGE
        assert made.connect(80) == ["80 ECONNREFUSED"]
        made.listen(80)
        assert made.connect(80) == ["80 connected"]


def test_end_whose_answer_was_lost_can_be_said_again(hostile: Gateway) -> None:
    """Whoever asked has the listener still, and sends it with each change that leaves out its port."""
    with growing(hostile, (80, 443)) as made:
        hostile.answer(hostile.post(LISTEN, listening([]), [made.sockets[1].fileno()]))
        assert made.connect(80) == ["80 ECONNREFUSED"]
        (new,) = made.listen(8443, ended=(made.sockets[1],))
        assert new.getsockname()[1] == 8443
        assert made.connect(80, 443, 8443) == ["80 ECONNREFUSED", "443 connected", "8443 connected"]
        assert made.refusal(*range(2001, 2016)).errno == errno.ERANGE, "it has made room once"
        made.listen(*range(2001, 2015))


@pytest.mark.parametrize("packet", [b"", listening([80]) + b"\0", listening([80])[:-1], listening([80])[:-5]])
def test_packet_that_is_no_request_ends_the_connection(hostile: Gateway, packet: bytes) -> None:
    hostile.post(LISTEN, packet)
    with pytest.raises(Gone):
        hostile.receive()


# --- a sandbox that ends


def test_sandbox_that_ends_meanwhile_keeps_no_listener(hostile: Gateway) -> None:
    """The fixture counts the launcher's descriptors at the end."""
    for _ in range(10):
        owner, sockets = hostile.create_with_sockets(plan(ports=[443]))
        end = hostile.post(DESTROY, name("one"))
        for number in [hostile.post(LISTEN, listening([port])) for port in range(2001, 2005)]:
            try:
                hostile.answer(number)
            except Refused as error:
                assert (error.step, error.errno) in (("listen", errno.ENOENT), ("plan", errno.ENOENT))
        hostile.answer(end)
        for each in (owner, *sockets):
            each.close()
