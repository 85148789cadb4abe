"""A gateway that was taken over: it asks the launcher for everything, and reaches nothing of the host."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.launcher.protocol import (
    CREATE,
    DESTROY,
    EXECUTE,
    FINISH,
    HELLO,
    KILL,
    LISTEN,
    RECORD,
    START_FAILED,
    TERMINAL,
    USAGE,
    Writer,
)
from tests.kernel import host
from tests.kernel.direct import SPARE, Gateway, Gone, Launched, Refused, command, listening, name, plan, sandboxes_of


def test_a_flood_without_reading_ends_that_connection_only(launched: Launched, hostile: Gateway) -> None:
    before = host.resident_mib(launched[1].pid)
    with pytest.raises(Gone):
        for _ in range(100_000):
            hostile.post(FINISH, name("nobody") + bytes(4))
    assert host.resident_mib(launched[1].pid) - before < 16


def test_answers_that_had_no_room_come_when_there_is_room_again(hostile: Gateway) -> None:
    """Nothing else happens on the launcher meanwhile: it has to wake up for the payload."""
    numbers = [hostile.post(FINISH, name("nobody") + bytes(4)) for _ in range(2000)]
    for number in numbers:
        with pytest.raises(Refused):
            hostile.answer(number)


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff", bytes((HELLO,)), bytes((HELLO, 0, 0, 0)), bytes((99, 1, 0, 0, 0)), bytes((HELLO, 1, 0, 0, 0, 7)),
        bytes((CREATE, 1, 0, 0, 0)), bytes((CREATE, 1, 0, 0, 0)) + b"\xff" * 64, bytes((EXECUTE, 1, 0, 0, 0, 255)),
        bytes((DESTROY, 1, 0, 0, 0)) + bytes(Writer(0).text("a" * 65).data[1:]), bytes(60_000), b"\x01" * 69_000,
    ],
    ids=lambda packet: f"{packet[:6].hex()}-{len(packet)}",
)  # fmt: skip
def test_a_packet_that_is_no_request_ends_that_connection(hostile: Gateway, packet: bytes) -> None:
    hostile.send(packet)
    with pytest.raises(Gone):
        hostile.receive()


def test_random_packets_end_at_most_their_connection(launched: Launched, honest: Gateway) -> None:
    chance, fds = random.Random(5), os.pipe()
    good = bytes(Writer(CREATE).u32(1).data) + bytes(plan("fuzz").write(Writer(0)).data[1:])
    before = len(host.descriptors(launched[1].pid))
    for _ in range(300):
        with Gateway(launched[0].socket) as gateway:
            packet = bytearray(good[: chance.randrange(1, len(good) + 1)])
            for _ in range(chance.randrange(4)):
                packet[chance.randrange(len(packet))] = chance.randrange(256)
            gateway.send(bytes(packet), chance.choices(fds, k=chance.choice((0, 1, 1, 2, 16, 17, 200))))
    for end in fds:
        os.close(end)
    honest.hello()
    host.until(lambda: len(host.descriptors(launched[1].pid)) <= before + SPARE, "no descriptor stays")


@pytest.mark.parametrize("count", [0, 1, 2, 4, 16, 17, 250])
def test_a_command_with_the_wrong_number_of_descriptors_ends_the_connection(hostile: Gateway, count: int) -> None:
    owner = hostile.create()
    with Path(os.devnull).open("rb") as null:
        hostile.post(EXECUTE, command(1, ["true"]), [null.fileno()] * count)
    with pytest.raises(Gone):
        hostile.receive()
    owner.close()


def test_another_connections_sandbox_is_out_of_reach(hostile: Gateway) -> None:
    with Path(os.devnull).open("r+b") as null:
        for kind, body, fds in (
            (EXECUTE, command(1, ["true"], "honest"), [null.fileno()] * 3),
            (FINISH, name("honest") + bytes(4), []),
            (KILL, name("honest") + bytes(4), []),
            (USAGE, name("honest") + bytes(4), []),
            (USAGE, name("honest") + (1).to_bytes(4, "little"), []),
            (TERMINAL, name("honest"), []),
            (LISTEN, listening([80], "honest"), []),
            (DESTROY, name("honest"), []),
        ):
            with pytest.raises(Refused) as error:
                hostile.ask(kind, body, fds)
            assert (error.value.step, error.value.errno) == ("plan", errno.ENOENT)


def test_terminals_that_nobody_takes_are_bounded_and_go_with_the_sandbox(launched: Launched, hostile: Gateway) -> None:
    before = len(host.descriptors(launched[1].pid))
    owner = hostile.create()
    numbers = [hostile.post(TERMINAL, name("one")) for _ in range(100)]
    refusals = []
    for number in numbers:
        try:
            hostile.answer(number)
        except Refused as refused:
            refusals.append((refused.step, refused.errno))
    assert set(refusals) <= {("open_terminal", errno.ENOSPC)}
    hostile.destroy()
    owner.close()
    host.until(lambda: len(host.descriptors(launched[1].pid)) <= before + SPARE, "no descriptor stays")


def test_an_execution_number_is_used_once(hostile: Gateway) -> None:
    with hostile.create() as owner, Path(os.devnull).open("r+b") as null:
        assert hostile.run(owner, 7, "echo", "one") == (b"one\n", 0)
        for number in (7, 6, 0):
            with pytest.raises(Refused) as error:
                hostile.ask(EXECUTE, command(number, ["true"]), [null.fileno()] * 3)
            assert error.value.errno == errno.EEXIST
        assert hostile.run(owner, 2**32 - 1, "echo", "two") == (b"two\n", 0)


def test_descriptors_that_are_no_pipes_are_the_commands_own_affair(hostile: Gateway, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    with hostile.create() as owner, target.open("wb") as file, Path(os.devnull).open("rb") as null:
        folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        leave = "echo hello; cd /proc/self/fd/0 && ls -A ..; "
        leave += 'for p in 0 2; do [ -e "/proc/self/fd/$p/../target" ] && echo out; done'
        hostile.post(EXECUTE, command(1, ["sh", "-c", leave]), [folder, file.fileno(), null.fileno()])
        owner.recv(4096), owner.recv(4096)
        os.close(folder)
    assert target.read_bytes() == b"hello\n", "a folder that the gateway could open anyway is no way out of it"


@pytest.mark.parametrize("kind", ["pipe", "folder", "empty", "garbage", "huge", "zeros"])
def test_a_memfd_that_is_none_ends_at_most_the_sandbox(hostile: Gateway, kind: str) -> None:
    with hostile.create() as owner, Path(os.devnull).open("r+b") as null:
        fds = list(os.pipe()) if kind == "pipe" else []
        memory = fds[0] if fds else os.open("/", os.O_RDONLY) if kind == "folder" else os.memfd_create("command")
        if kind == "garbage":
            os.write(memory, os.urandom(1000))
        elif kind == "huge":
            os.truncate(memory, 1 << 40)
        elif kind == "zeros":
            os.truncate(memory, 13)
        hostile.post(EXECUTE, command(1, [], in_memfd=1), [*[null.fileno()] * 3, memory])
        said = owner.recv(4096)
        assert said == b"" or RECORD.unpack(said)[:2] == (START_FAILED, 1)
        for descriptor in {memory, *fds}:
            os.close(descriptor)


@pytest.mark.parametrize("kind", ["pipe", "file", "listener", "stream", "closed"])
def test_an_owner_socket_that_is_none_ends_at_most_the_sandbox(hostile: Gateway, kind: str, tmp_path: Path) -> None:
    fds = list(os.pipe()) if kind in ("pipe", "closed") else []
    if kind == "file":
        fds = [os.open(tmp_path, os.O_RDONLY)]
    elif kind == "listener":
        server = socket.socket(socket.AF_INET)
        server.bind(("127.0.0.1", 0))
        server.listen()
        fds = [server.detach()]
    elif kind == "stream":
        fds = [end.detach() for end in socket.socketpair()]
    number = hostile.post(CREATE, bytes(plan().write(Writer(0)).data[1:]), [fds[0]])
    for descriptor in fds:
        os.close(descriptor)
    with contextlib.suppress(Refused, Gone):  # it ended before it was ready, or after; nothing but it did
        hostile.answer(number)
        hostile.destroy()


def test_a_foreign_user_is_disconnected(launched: Launched, honest: Gateway) -> None:
    """SO_PEERCRED decides, though the file's mode would do."""
    config, _ = launched
    mode = Path(config.socket).stat()
    assert (mode.st_mode & 0o777, mode.st_uid) == (0o600, config.gateway_uid)
    connect = (
        "import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\ntry:\n s.connect(sys.argv[1])\n"
        " s.send(bytes((1, 1, 0, 0, 0)))\n print('answered' if s.recv(100) else 'hung up')\n"
        "except OSError as error: print(type(error).__name__)"
    )

    def try_as(uid: int) -> str:
        done = subprocess.run(
            [sys.executable, "-I", "-c", connect, config.socket],
            user=uid,
            group=uid,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    assert try_as(config.gateway_uid) in ("answered", "PermissionError")  # a run folder below a private one
    assert try_as(config.gateway_uid + 1) == "PermissionError"
    Path(config.socket).chmod(0o666)
    try:
        assert try_as(config.gateway_uid + 1) in (
            "hung up",
            "ConnectionResetError",
            "BrokenPipeError",
            "PermissionError",
        )
    finally:
        Path(config.socket).chmod(0o600)


def test_a_connection_that_ends_at_any_point_takes_its_sandboxes_with_it(launched: Launched, honest: Gateway) -> None:
    chance, (config, child) = random.Random(3), launched
    before, own = len(host.descriptors(child.pid)), sandboxes_of(launched)
    assert len(own) == 1
    for n in range(40):
        host.until(lambda: len(sandboxes_of(launched)) < 15, "there is room for one: a slow host ends them later")
        with Gateway(config.socket) as gateway, Path(os.devnull).open("r+b") as null:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            number = gateway.post(CREATE, bytes(plan(f"r{n}").write(Writer(0)).data[1:]), [theirs.fileno()])
            theirs.close()
            if chance.random() < 0.6:
                gateway.answer(number)
                for execution in range(1, chance.randrange(1, 4)):
                    gateway.post(EXECUTE, command(execution, ["sleep", "1000"], f"r{n}"), [null.fileno()] * 3)
                if chance.random() < 0.5:
                    gateway.post(chance.choice((KILL, FINISH)), name(f"r{n}") + (1).to_bytes(4, "little"))
                if chance.random() < 0.3:
                    gateway.post(DESTROY, name(f"r{n}"))
            if chance.random() < 0.5:
                gateway.socket.close()
            ours.close()
    host.until(lambda: sandboxes_of(launched) == own, "only the honest sandbox is left")
    host.until(lambda: len(host.descriptors(child.pid)) <= before + SPARE, "and no descriptor")


def test_many_idle_connections_do_not_keep_others_out(launched: Launched, honest: Gateway) -> None:
    idle = []
    for _ in range(300):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(launched[0].socket)
        idle.append(connection)
    honest.hello()
    assert len(host.descriptors(launched[1].pid)) < 150, "a gateway needs one"
    for connection in idle:
        connection.close()

    def welcome() -> bool:
        """Once the launcher has noticed that the others are gone."""
        with contextlib.suppress(Gone), Gateway(launched[0].socket) as fresh:
            fresh.hello()
            return True
        return False

    host.until(welcome, "a new connection is served")
