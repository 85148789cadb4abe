"""The launcher without a gateway: the test speaks its protocol, well or badly, over its own socket."""

from __future__ import annotations

import array
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.backends.process.receipt import read_network
from app.launcher.config import Config
from app.launcher.protocol import (
    CREATE,
    DESTROY,
    EXECUTE,
    HELLO,
    LISTEN,
    LOST,
    NETWORK,
    OK,
    RECORD,
    REPLY,
    CreatePlan,
    Reader,
    Writer,
    pack_command,
)
from app.serving.slot import release, take_slot
from app.serving.supervisor import remove_groups, start_launcher
from tests.kernel import host
from tests.service import PATIENCE

MIB = 1 << 20
UID_BASE = 1_700_000_000  # far from the ranges of the services that other tests start

SPARE = 4  # descriptors of the clone that is made ahead: it is there or not
Launched = tuple[Config, subprocess.Popen[bytes]]


@contextmanager
def launcher(**settings: int | str) -> Iterator[tuple[Config, subprocess.Popen[bytes]]]:
    """A running launcher whose gateway is uid `config.gateway_uid`; root may connect too."""
    slot = take_slot(UID_BASE, 65_536)
    config = Config()
    config.socket, config.run_dir = str(slot.launcher_socket), str(slot.folder)
    config.gateway_uid = config.gateway_gid = slot.gateway_uid
    config.uid_first, config.uid_count = slot.uid_first + 1, 200
    config.cgroup_parent, config.max_sandboxes = f"bulkhead-direct/{slot.uid_first}", 20
    config.root_paths, config.etc_paths = ["/usr"], ["/etc/ld.so.cache"]
    for name, value in settings.items():
        setattr(config, name, value)
    child = start_launcher(config, (slot.lock,))
    try:
        yield config, child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait(PATIENCE)
        assert child.stdout is not None
        child.stdout.close()
        remove_groups(config.cgroup_parent)
        release(slot)


def sandboxes_of(launched: Launched) -> set[str]:
    """The names of their control groups."""
    parent, _, first = launched[0].cgroup_parent.partition("/")
    folders = [Path(folder) for folder in host.sandbox_groups(launched[1].pid, int(first), parent)]
    return {name for folder in folders for name in folder.parts if name.startswith("s-")}


def plan(sandbox_id: str = "one", **changes: object) -> CreatePlan:
    made = CreatePlan(
        sandbox_id, "host", "default", 500, 64 * MIB, 16 * MIB, 32, False, ["/usr", "/etc"], ["/workspace", "/tmp"]
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


class Refused(Exception):
    def __init__(self, step: str, number: int, detail: str) -> None:
        self.step, self.errno, self.detail = step, number, detail
        super().__init__(step, number, detail)


class Gone(Exception):
    """The launcher hung up."""


class Gateway:
    """One connection. Answers to other requests than the one that is waited for are kept."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(path)
        self.socket.settimeout(PATIENCE)
        self.number = 0
        self.answers: dict[int, Reader] = {}
        self.lost: dict[str, int] = {}
        self.keep: dict[int, list[int]] = {}  # the descriptors of these answers are the caller's
        self.networks: list[dict[str, Any]] = []

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self.socket.sendmsg([packet], rights)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def post(self, kind: int, body: bytes = b"", descriptors: Sequence[int] = ()) -> int:
        self.number += 1
        self.send(bytes(Writer(kind).u32(self.number).data) + body, descriptors)
        return self.number

    def receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 70_000, 32)
        except ConnectionResetError:
            raise Gone from None
        try:
            self._take(data, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take(self, data: bytes, descriptors: list[int]) -> None:
        if not data:
            raise Gone
        source = Reader(data)
        kind = source.u8()
        if kind == LOST:
            sandbox_id = source.text(64)
            self.lost[sandbox_id] = source.i32()
        elif kind == REPLY:
            number = source.u32()
            self.answers[number] = source
            if number in self.keep:
                self.keep[number] += descriptors
                descriptors.clear()
        else:
            assert kind == NETWORK
            self.networks.append(read_network(descriptors.pop()))

    def answer(self, number: int) -> Reader:
        while number not in self.answers:
            self.receive()
        source = self.answers.pop(number)
        if source.u8() == OK:
            return source
        raise Refused(source.text(), source.u32(), source.text())

    def ask(self, kind: int, body: bytes = b"", descriptors: Sequence[int] = ()) -> Reader:
        return self.answer(self.post(kind, body, descriptors))

    def hello(self) -> None:
        self.ask(HELLO)

    # --- sandboxes

    def create(self, wanted: CreatePlan | None = None) -> socket.socket:
        """The gateway's end of the owner socket."""
        return self.create_with_sockets(wanted or plan())[0]

    def create_with_sockets(self, wanted: CreatePlan) -> tuple[socket.socket, list[socket.socket]]:
        """The same, and the sockets that came with the answer, which the caller closes."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE)
        body = bytes(wanted.write(Writer(0)).data[1:])
        with theirs:
            number = self.post(CREATE, body, [theirs.fileno()])
        self.keep[number] = []
        try:
            self.answer(number)
        except BaseException:
            ours.close()
            raise
        return ours, self._sockets_of(number)

    def listen(self, ports: Sequence[int], ended: Sequence[int] = (), sandbox_id: str = "one") -> list[socket.socket]:
        """Sockets for more ports, which the caller closes. `ended`: descriptors of those that are to stop."""
        number = self.post(LISTEN, listening(ports, sandbox_id), ended)
        self.keep[number] = []
        self.answer(number)
        return self._sockets_of(number)

    def _sockets_of(self, number: int) -> list[socket.socket]:
        sockets = [socket.socket(fileno=descriptor) for descriptor in self.keep.pop(number)]
        for each in sockets:
            each.settimeout(PATIENCE)
        return sockets

    def destroy(self, sandbox_id: str = "one") -> None:
        self.ask(DESTROY, name(sandbox_id))

    def run(self, owner: socket.socket, number: int, *argv: str, sandbox_id: str = "one") -> tuple[bytes, int]:
        """(stdout, wait status) of a command that is run to its end."""
        read, write = os.pipe2(os.O_CLOEXEC)
        with Path(os.devnull).open("r+b") as null, os.fdopen(read, "rb") as out:
            self.post(EXECUTE, command(number, argv, sandbox_id), [null.fileno(), write, null.fileno()])
            os.close(write)
            started = RECORD.unpack(owner.recv(4096))
            data = out.read()
            ended = RECORD.unpack(owner.recv(4096))
        assert started[1] == ended[1] == number
        return data, ended[2]


def name(sandbox_id: str) -> bytes:
    return bytes(Writer(0).text(sandbox_id).data[1:])


def listening(ports: Sequence[int], sandbox_id: str = "one") -> bytes:
    """The body of LISTEN."""
    packet = Writer(0).text(sandbox_id).u8(len(ports))
    for port in ports:
        packet.u32(port)
    return bytes(packet.data[1:])


def command(number: int, argv: Sequence[str], sandbox_id: str = "one", *, in_memfd: int = 0) -> bytes:
    body = pack_command([word.encode() for word in argv], [b"PATH=/usr/bin:/bin"], b"/workspace")
    return bytes(Writer(0).text(sandbox_id).u32(number).u8(in_memfd).u8(0).data[1:]) + (b"" if in_memfd else body)
