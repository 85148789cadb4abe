"""The machine of one running box: the guest as a process, and the questions that the double asks it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GUEST = Path(__file__).parents[1] / "guest" / "__main__.py"
LARGEST = 4 << 20
Reply = tuple[dict[str, Any], list[int]]


class NoGuest(Exception):
    """Boxes cannot be made on this host: its kernel refuses the namespaces or a mount."""


class GuestLost(Exception):
    """The machine is gone; what was asked may or may not have been done."""


class CannotStart(Exception):
    """The guest could not start a command: `missing`, `denied PATH`, `cwd`, `user NAME`, `ending` or `broken ...`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.kind, _, self.detail = reason.partition(" ")


class NoSuchProcess(Exception):
    """The process to be signalled has ended."""


@dataclass(frozen=True)
class Program:
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str = "/"
    user: str = "0:0"
    tty: bool = False


@dataclass
class Process:
    """A started command. `outputs` are what it prints to, stdout first; a terminal is both of its ends at once."""

    pid: int
    stdin: int
    outputs: tuple[int, ...]
    terminal: bool
    exited: asyncio.Future[int] = field(repr=False)


class Machine:
    def __init__(self, child: asyncio.subprocess.Process, channel: socket.socket) -> None:
        self._child = child
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._replies: dict[int, asyncio.Future[Reply]] = {0: self._loop.create_future()}
        self._processes: dict[int, asyncio.Future[int]] = {}
        self._lost = False
        self._loop.add_reader(channel.fileno(), self._receive)

    @classmethod
    async def boot(cls, root: Path, *, shares_network: bool = False) -> Machine:
        """Namespaces and root are there afterwards, and no process yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", str(GUEST), str(theirs.fileno()), str(root)),
                *(["shares-network"] if shares_network else []),
                pass_fds=[theirs.fileno()],
            )
        finally:
            theirs.close()
        machine = cls(child, ours)
        try:
            message, _ = await machine._replies[0]
            if "error" in message:
                raise NoGuest(message["error"])
        except BaseException:
            await machine.power_off()
            raise
        return machine

    @property
    def pid(self) -> int:
        return self._child.pid

    async def prepare(self, program: Program) -> Process:
        """PID 1, complete up to its exec, which waits for `run`."""
        return await self._start("boot", program)

    async def run(self) -> None:
        message, _ = await self._ask({"op": "run"})
        if "error" in message:
            raise CannotStart(message["error"])

    async def spawn(self, program: Program) -> Process:
        return await self._start("spawn", program)

    async def signal(self, process: Process, number: int) -> None:
        if process.exited.done():
            raise NoSuchProcess
        message, _ = await self._ask({"op": "signal", "pid": process.pid, "signal": number})
        if "error" in message:
            raise NoSuchProcess

    @property
    def lost(self) -> bool:
        return self._lost

    def cut_off(self) -> None:
        """The power cord: nothing is heard any more, and everything in the box is killed a moment later."""
        self._lose()

    async def power_off(self) -> None:
        """Ends everything in the box and returns when it has ended."""
        self._lose()
        await self._child.wait()

    async def _start(self, op: str, program: Program) -> Process:
        pipes = [] if program.tty else [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]] if pipes else []
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]] if pipes else []
        request = {
            "op": op,
            "argv": list(program.argv),
            "env": dict(program.env),
            "cwd": program.cwd,
            "user": program.user,
            "tty": program.tty,
        }
        try:
            message, received = await self._ask(request, theirs)
            if "error" in message:
                raise CannotStart(message["error"])
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        ours += received
        for descriptor in ours:
            os.set_inheritable(descriptor, False)
            os.set_blocking(descriptor, False)
        exited = self._processes[message["pid"]]
        return Process(message["pid"], ours[0], tuple(ours[1:] or ours), program.tty, exited)

    async def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        if self._lost:
            raise GuestLost
        self._number += 1
        number = self._number
        reply: asyncio.Future[Reply] = self._loop.create_future()
        self._replies[number] = reply
        data = json.dumps(request | {"id": number}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        try:
            socket.send_fds(self._channel, [data], list(descriptors))
        except BrokenPipeError:
            self._lose()
        return await reply

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, LARGEST, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            data, descriptors = b"", []
        if not data:
            self._lose()
            return
        message = json.loads(data)
        if "exit" in message:
            self._processes.pop(message["exit"]).set_result(message["code"])
            return
        if "pid" in message:  # before the reply is read by its task, the process may have ended
            self._processes[message["pid"]] = self._loop.create_future()
        reply = self._replies.pop(message["reply"])
        if reply.cancelled():
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            reply.set_result((message, descriptors))

    def _lose(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(GuestLost())
        for exited in self._processes.values():
            exited.set_exception(GuestLost())
            exited.exception()  # not everybody asks how the processes of a lost machine ended


async def namespaces_refused() -> str | None:
    """Why boxes cannot be made on this host; None where they can."""
    with tempfile.TemporaryDirectory(prefix="boxlite-double-") as folder:
        try:
            machine = await Machine.boot(Path(folder))
        except NoGuest as error:
            return str(error)
        try:
            process = await machine.prepare(Program(["true"], {"PATH": "/usr/bin:/bin"}))
            for descriptor in {process.stdin, *process.outputs}:
                os.close(descriptor)
        except CannotStart as error:
            return str(error)
        finally:
            await machine.power_off()
    return None
