"""The gateway's end of the launcher's socket: requests with descriptors go out, answers come in. It has no privilege
and carries no data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.core.errors import BackendTimeout, BackendUnavailable
from app.launcher.protocol import HELLO, LOST, NETWORK, OK, REPLY, VERSION, ProtocolError, Reader, Writer
from app.launcher.protocol.packets import receive, send

RUNTIME = "process"
_ANSWER_SECONDS = 30.0


class LauncherRefused(Exception):
    """The launcher refused. It has the step, the kernel's errno and a sentence."""

    def __init__(self, step: str, number: int, detail: str) -> None:
        self.step, self.errno, self.detail = step, number, detail
        super().__init__(f"{step}: {detail}")


@dataclass(frozen=True, slots=True)
class LauncherReply:
    """The launcher's answer to one request, and the descriptors that came with it. Whoever takes the descriptors closes
    them."""

    source: Reader
    descriptors: Sequence[int] = ()


def receive_packet(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Returns the packet that is there. Raises BlockingIOError when none is, OSError, ProtocolError."""
    return receive(connection, socket.MSG_DONTWAIT)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _copies(descriptors: Sequence[int]) -> list[int]:
    """The caller closes its own when it likes, so what waits has others. Raises OSError; then there is none."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))
    except OSError:
        close_all(copies)
        raise
    return copies


class LauncherLink:
    """Connects when it is needed, and again after a loss. It calls `on_lost(sandbox_id, status)` for a sandbox that
    ended by itself, and `on_gone()` when the launcher is gone and every sandbox with it. It calls `on_network(uid,
    descriptor)` with a netlink socket in the namespace of the sandbox that has or will have this host uid. That
    callback must close the socket."""

    def __init__(
        self,
        path: Path,
        on_lost: Callable[[str, int], None],
        on_gone: Callable[[], None],
        on_network: Callable[[int, int], None],
    ) -> None:
        self._path, self._on_lost, self._on_gone, self._on_network = path, on_lost, on_gone, on_network
        self._socket: socket.socket | None = None
        self._greeted = False
        self._connecting = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[LauncherReply]] = {}
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._next = 0
        self.about: dict[str, str] = {}

    # --- the connection

    async def connect(self) -> None:
        """Returns when the launcher has described itself (`about`). Raises BackendUnavailable, BackendTimeout."""
        if self._greeted:
            return
        async with self._connecting:
            if not self._greeted:
                await self.greet()

    async def greet(self) -> None:
        """Asks the launcher to describe itself again, which also shows that it is alive. Raises BackendUnavailable,
        BackendTimeout."""
        if self._socket is None:
            self._open()
        answer = await self._ask(Writer(HELLO), ())
        try:
            facts = [item.decode().partition("=") for item in answer.source.many(64)]
        except (ProtocolError, UnicodeDecodeError):
            facts = []
        self.about = {name: value for name, _, value in facts}
        if self.about.get("protocol") != str(VERSION):
            self._lose()
            raise BackendUnavailable(RUNTIME, "the launcher speaks another version of the protocol")
        self._greeted = True

    def _open(self) -> None:
        with contextlib.ExitStack() as failed:
            try:
                connection = failed.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                connection.setblocking(False)
                connection.connect(str(self._path))
            except OSError as error:
                raise BackendUnavailable(RUNTIME, f"the launcher does not answer: {error.strerror}") from error
            failed.pop_all()
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection.fileno(), self._readable)

    def close(self) -> None:
        if self._socket is not None:
            self._lose()

    def _lose(self) -> None:
        connection, self._socket = self._socket, None
        self._greeted = False
        if connection is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection.fileno())
        loop.remove_writer(connection.fileno())
        connection.close()
        for _, descriptors in self._unsent:
            close_all(descriptors)
        self._unsent.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(BackendUnavailable(RUNTIME, "the launcher ended"))
                future.exception()  # a request that nobody waits for any more is no news
        self._on_gone()

    # --- requests

    async def request(
        self, kind: int, body: bytes = b"", descriptors: Sequence[int] = (), *, due: int = 0
    ) -> LauncherReply:
        """`due`: how many descriptors come with the answer, which the caller has to close. Raises LauncherRefused,
        BackendUnavailable when the launcher is gone or goes away, or gives another number than is due, and
        BackendTimeout when it is silent: then it may still carry out the request."""
        await self.connect()
        answer = await self._ask(Writer(kind), descriptors, body)
        given = len(answer.descriptors)
        if given != due:
            close_all(answer.descriptors)
            if due:
                raise BackendUnavailable(RUNTIME, f"the launcher gave {given} descriptors and not {due}")
        return answer

    async def _ask(self, writer: Writer, descriptors: Sequence[int], body: bytes = b"") -> LauncherReply:
        number, future = self.post(writer, body, descriptors)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                close_all(future.result().descriptors)  # it came when nobody waited any more
            if not isinstance(error, TimeoutError):
                raise
            raise BackendTimeout(RUNTIME, f"the launcher did not answer within {_ANSWER_SECONDS:g} seconds") from None
        finally:
            self._waiting.pop(number, None)

    def post(
        self, writer: Writer, body: bytes, descriptors: Sequence[int]
    ) -> tuple[int, asyncio.Future[LauncherReply]]:
        """Sends at once, in the order of the calls. Call `forget` with the number if the answer is not needed. Raises
        BackendUnavailable, and then nothing waits to be sent."""
        if self._socket is None:
            raise BackendUnavailable(RUNTIME, "the launcher is gone")
        self._next = number = (self._next + 1) & 0xFFFFFFFF
        future: asyncio.Future[LauncherReply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        packet = bytes(writer.u32(number).data) + body
        if self._unsent or not self._send(packet, descriptors):
            try:
                self._unsent.append((packet, _copies(descriptors)))
            except OSError as error:
                del self._waiting[number]
                raise BackendUnavailable(RUNTIME, f"no descriptors are left to wait with: {error.strerror}") from error
            asyncio.get_running_loop().add_writer(self._socket.fileno(), self._writable)
        return number, future

    def forget(self, number: int) -> None:
        self._waiting.pop(number, None)

    def _send(self, packet: bytes, descriptors: Sequence[int]) -> bool:
        """False when the socket has no room now."""
        if self._socket is None:
            raise BackendUnavailable(RUNTIME, "the launcher is gone")
        try:
            send(self._socket, packet, descriptors)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lose()
            raise BackendUnavailable(RUNTIME, f"the launcher is gone: {error.strerror}") from error
        return True

    def _writable(self) -> None:
        while self._unsent and self._socket is not None:
            packet, descriptors = self._unsent[0]
            try:
                if not self._send(packet, descriptors):
                    return
            except BackendUnavailable:
                return  # `_lose` told everybody
            self._unsent.popleft()
            close_all(descriptors)
        if self._socket is not None:
            asyncio.get_running_loop().remove_writer(self._socket.fileno())

    # --- answers

    def _readable(self) -> None:
        for _ in range(64):  # a busy launcher must not keep the loop from others
            if self._socket is None:
                return
            try:
                data, descriptors = receive_packet(self._socket)
            except BlockingIOError:
                return
            except (OSError, ProtocolError):
                return self._lose()
            if not data:
                return self._lose()
            try:
                self._dispatch(Reader(data), descriptors)
            except ProtocolError:
                return self._lose()
            finally:
                close_all(descriptors)
        return None

    def _dispatch(self, source: Reader, descriptors: list[int]) -> None:
        kind = source.u8()
        if kind == LOST:
            return self._on_lost(source.text(64), source.i32())
        if kind == NETWORK:
            if len(descriptors) != 1:
                raise ProtocolError("a network comes with one descriptor")
            return self._on_network(source.u32(), descriptors.pop())
        if kind != REPLY:
            raise ProtocolError("an unknown word from the launcher")
        number, status = source.u32(), source.u8()
        refused = None if status == OK else LauncherRefused(source.text(64), source.u32(), source.text(4096))
        future = self._waiting.pop(number, None)  # only now: who asked must hear of a record that cannot be read
        if future is None or future.done():
            return None
        if refused is None:
            future.set_result(LauncherReply(source, tuple(descriptors)))
            descriptors.clear()
        else:
            future.set_exception(refused)
        return None
