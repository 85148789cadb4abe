"""Sandboxes take turns: however many sockets of one are ready, the others wait for a small piece of its work at most.

All sockets of a sandbox are in an epoll of their own, and the event loop sees one descriptor per sandbox. In each run
through the loop a sandbox gets one turn: at most EVENTS of its sockets, and only one if that takes long. The kernel
moves a socket that it has told of to the end of its list, so the sockets of one sandbox take turns as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable

EVENTS = 4
LONG = 0.0001  # seconds of processor time. A quarter of a mebibyte takes 0.0003 to move
SECONDS = 0.001  # of processor time, for tasks that have much to do and nothing to wait for


class SandboxTurns:
    """The sockets of one sandbox. Must be closed. Sockets are non-blocking, and forgotten before they are closed."""

    def __init__(self) -> None:
        """Raises OSError when there are no descriptors left."""
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._until = 0.0
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._readers.clear()
        self._writers.clear()

    # --- callbacks

    def read(self, fd: int, call: Callable[[], None] | None) -> None:
        """Calls `call` whenever `fd` can be read, or has failed. With None it ends."""
        self._set(self._readers, fd, call)

    def write(self, fd: int, call: Callable[[], None] | None) -> None:
        self._set(self._writers, fd, call)

    def forget(self, fd: int) -> None:
        if self._readers.pop(fd, None) or self._writers.pop(fd, None):
            self._writers.pop(fd, None)
            self._epoll.unregister(fd)

    def _set(self, calls: dict[int, Callable[[], None]], fd: int, call: Callable[[], None] | None) -> None:
        before = self._mask(fd)
        if call is None:
            calls.pop(fd, None)
        else:
            calls[fd] = call
        after = self._mask(fd)
        if before == after:
            return
        if not before:
            self._epoll.register(fd, after)
        elif after:
            self._epoll.modify(fd, after)
        else:
            # With an empty mask the kernel would still tell of an error, in every turn anew.
            self._epoll.unregister(fd)

    def _mask(self, fd: int) -> int:
        return select.EPOLLIN * (fd in self._readers) | select.EPOLLOUT * (fd in self._writers)

    def _turn(self) -> None:
        now = time.thread_time()
        until = now + LONG
        if not self._waiting:  # what these sockets wake up has the slice of this turn
            self._until = now + SECONDS
        for _ in range(EVENTS):
            for fd, events in self._epoll.poll(0, 1):
                self._serve(fd, events)
                break
            else:
                return
            if self._epoll.closed or time.thread_time() >= until:
                return

    def _serve(self, fd: int, events: int) -> None:
        failed = events & (select.EPOLLERR | select.EPOLLHUP)
        if (events & select.EPOLLIN or failed) and (call := self._readers.get(fd)):
            call()
        if (events & select.EPOLLOUT or failed) and (call := self._writers.get(fd)):
            call()

    # --- for tasks

    async def readable(self, fd: int) -> None:
        await self._once(self._readers, fd)

    async def writable(self, fd: int) -> None:
        await self._once(self._writers, fd)

    async def _once(self, calls: dict[int, Callable[[], None]], fd: int) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()

        def call() -> None:
            self._set(calls, fd, None)
            if not ready.done():
                ready.set_result(None)

        self._set(calls, fd, call)
        try:
            await ready
        finally:
            if calls.get(fd) is call:
                self._set(calls, fd, None)

    async def receive(self, connection: socket.socket, most: int) -> bytes:
        """Returns b"" at the end. Raises OSError."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return connection.recv(most)
            await self.readable(connection.fileno())

    async def send(self, connection: socket.socket, data: bytes) -> None:
        """Raises OSError."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[connection.send(rest) :]
            except BlockingIOError:
                await self.writable(connection.fileno())

    @property
    def over(self) -> bool:
        """Whether a task has worked for so long that it should let others go first: `await next()`."""
        return time.thread_time() >= self._until

    async def next(self) -> None:
        """Waits for a slice of processor time. In each run through the loop one task of a sandbox gets one."""
        begin: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(begin)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._begin_slice)
        await begin
        self._until = time.thread_time() + SECONDS

    def _begin_slice(self) -> None:
        begin = self._waiting.popleft()
        if not begin.done():
            begin.set_result(None)
        if self._waiting:
            self._loop.call_soon(self._begin_slice)
