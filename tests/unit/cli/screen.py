"""A real terminal with the command in its foreground, and a test at its keyboard."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.unit.cli.typed import begin


class Screen:
    """`shown` is everything that was drawn."""

    def __init__(self, master: int, slave: int) -> None:
        self.master, self.slave = master, slave
        self.shown = b""
        self._drawn = asyncio.Event()

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def resize(self, rows: int, cols: int) -> None:
        """The foreground gets SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def is_raw(self) -> bool:
        """No echo, no lines, no keys with a meaning, no line ends of its own."""
        _, output, _, local, *_ = self.modes()
        return not output & termios.OPOST and not local & (termios.ECHO | termios.ICANON | termios.ISIG)

    async def until(self, text: bytes) -> None:
        while text not in self.shown:
            self._drawn.clear()
            await self._drawn.wait()

    def read(self) -> None:
        self.shown += os.read(self.master, 65536)
        self._drawn.set()

    async def begin(self, url: str, *arguments: str, **more: Any) -> Process:
        descriptors = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        take = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # noqa: E731 - a statement would be no preexec_fn
        return await begin(url, *arguments, **{**descriptors, "start_new_session": True, "preexec_fn": take, **more})


@asynccontextmanager
async def screen(rows: int = 33, cols: int = 99) -> AsyncIterator[Screen]:
    master, slave = os.openpty()
    found = Screen(master, slave)
    found.resize(rows, cols)
    loop = asyncio.get_running_loop()
    loop.add_reader(master, found.read)
    try:
        yield found
    finally:
        loop.remove_reader(master)
        os.close(master)
        os.close(slave)
