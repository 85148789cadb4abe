"""The program's own stdin, stdout and stderr. Each may block for hours (a pager, a terminal, a silent pipe). O_NONBLOCK
would affect every program that shares the descriptor. So a thread waits, and the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import queue
import stat
import threading
from collections.abc import Awaitable, Callable
from typing import Self

from app.cli.show import SHOWN, message

PIECE = 64 * 1024
DESCRIPTORS = {"stdout": 1, "stderr": 2}
WINDOW = 1024 * 1024  # bytes that may wait for a slow reader before the stream is read no further


class OutputClosed(Exception):
    """Nobody reads the output any more. `error` says why."""

    def __init__(self, descriptor: int, error: OSError) -> None:
        self.descriptor = descriptor
        self.error = error
        # A reader that left (`| head`) is no failure, and EBADF is what `>&-` asks for.
        self.quiet = error.errno in {errno.EPIPE, errno.EBADF}
        super().__init__(f"{'stdout' if descriptor == 1 else 'stderr'}: {error.strerror}")


class Sink:
    """Writes to descriptors in the order of the calls. A block of `async with Sink()` is left with OutputClosed as soon
    as a write fails. When the block is left in another way, except by cancellation, everything was written."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[int, bytes, bool] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._written = asyncio.Event()
        self._failure: OutputClosed | None = None
        self._cancelled = False
        self._thread: threading.Thread | None = None
        self._owner: asyncio.Task[object] | None = None  # to be cancelled by a failure

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        owner, self._owner = self._owner, None
        try:
            if kind is None or not issubclass(kind, asyncio.CancelledError):
                await self.drain()
        finally:
            self._queue.put(None)
        if self._failure is not None:
            if self._cancelled and owner is not None:
                owner.uncancel()
            raise self._failure

    async def write(self, descriptor: int, data: bytes) -> None:
        """Returns at once while less than the window waits."""
        self.put(descriptor, data)
        await self._until_below(WINDOW)

    async def say(self, text: str, end: str = "\n") -> None:
        """A message of our own, on stderr, behind what was written before it."""
        self._put(2, message(text, end), is_message=True)
        await self._until_below(WINDOW)

    def put(self, descriptor: int, data: bytes) -> None:
        self._put(descriptor, data, is_message=False)

    def _put(self, descriptor: int, data: bytes, *, is_message: bool) -> None:
        if self._thread is None:
            # A daemon: a blocked write must not keep us from ending.
            self._thread = threading.Thread(target=self._work, name="sink", daemon=True)
            self._thread.start()
        self._waiting += len(data)
        self._queue.put((descriptor, data, is_message))

    async def drain(self) -> None:
        """Returns when everything is written or nothing more can be."""
        await self._until_below(1)

    async def _until_below(self, size: int) -> None:
        while self._waiting >= size and self._failure is None:
            self._written.clear()
            await self._written.wait()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            descriptor, data, is_message = item
            try:
                shown = SHOWN.own_line(data) if is_message else data
                view = memoryview(shown)
                while view:
                    view = view[os.write(descriptor, view) :]
                SHOWN.note(descriptor, shown)
            except OSError as error:
                self._tell(functools.partial(self._fail, OutputClosed(descriptor, error)))
                return
            self._tell(functools.partial(self._done, len(data)))

    def _tell(self, what: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what)

    def _done(self, size: int) -> None:
        self._waiting -= size
        self._written.set()

    def _fail(self, failure: OutputClosed) -> None:
        self._failure = failure
        self._written.set()
        if self._owner is not None:
            self._cancelled = self._owner.cancel()


def wanted() -> bool:
    """Whether stdin is for the program: it is not a terminal (except with --tty) and not /dev/null."""
    try:
        status = os.fstat(0)
    except OSError:
        return False
    return not os.isatty(0) and not (stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3))


async def pour(write: Callable[[bytes], Awaitable[None]]) -> None:
    """Passes stdin on in pieces until its end. It reads no piece before the one before it was written."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    more = threading.Semaphore()

    def read() -> None:
        data = b"more"
        while data:
            more.acquire()
            try:
                data = os.read(0, PIECE)
            except OSError:  # EIO, EISDIR, EBADF: there is nothing to be had from it
                data = b""
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, data)
            except RuntimeError:  # the loop is closed
                return

    # A daemon: a blocked read must not keep us from ending.
    threading.Thread(target=read, name="stdin", daemon=True).start()
    while data := await pieces.get():
        await write(data)
        more.release()
