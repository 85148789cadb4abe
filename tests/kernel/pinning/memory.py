"""The host's kernel memory, and how much of it control groups were charged for. Bytes.

Others work on the host too, so what is charged to any group is subtracted, and not only the sandbox's part. What is
charged to the service's own groups (launcher, gateway, workers) is not: a sandbox must not make the service pay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PAGE = 4096
_STEADY_BYTES, _STEADY_SECONDS, _READINGS = 1 << 20, 0.02, 150
_WATCH_SECONDS = 0.02


def of_kernel() -> int:
    """All that is neither free, nor a program's own, nor a file's: slabs, page tables, stacks, pipes and sockets. Free
    pages that a processor keeps for itself are free."""
    found = {name: int(value.split()[0]) * 1024 for name, value in _pairs(Path("/proc/meminfo").read_text(), ":")}
    kept = sum(int(value) for name, value in _pairs(Path("/proc/zoneinfo").read_text(), ":") if name == "count")
    users = found["MemFree"] + found["Buffers"] + found["Cached"] + found["AnonPages"]
    return found["MemTotal"] - users - kept * PAGE


def files_open() -> int:
    return int(Path("/proc/sys/fs/file-nr").read_text().split()[0])


def charged_to(room: Path) -> int:
    """Of the kernel's memory, to a memory group of version 1. Buffers of UDP and TCP have a limit of their own."""
    sockets = int((room / "memory.kmem.tcp.usage_in_bytes").read_text())
    return _kernel_part(room) + _pages_of_nobody(room) + sockets


def charged_beside(room: Path, service: Iterable[Path]) -> int:
    """To all other groups together, but not to the service's own."""
    return _kernel_part(_top(room)) - _kernel_part(room) - sum(_own_part(group) for group in service)


def groups_of(room: Path, pids: Iterable[int]) -> set[Path]:
    """The memory groups of these processes, found beside that of a sandbox."""
    texts = [Path(f"/proc/{pid}/cgroup").read_text() for pid in pids]
    lines = [line.split(":", 2) for text in texts for line in text.splitlines()]
    return {_top(room) / path.lstrip("/") for _, names, path in lines if "memory" in names.split(",")}


def _top(room: Path) -> Path:
    while (room.parent / "memory.kmem.usage_in_bytes").exists():
        room = room.parent
    return room


def _own_part(group: Path) -> int:
    """Without that of the groups below it."""
    return _kernel_part(group) - sum(_kernel_part(child) for child in group.iterdir() if child.is_dir())


def _kernel_part(group: Path) -> int:
    return int((group / "memory.kmem.usage_in_bytes").read_text())


def _pages_of_nobody(room: Path) -> int:
    """Those that were a program's and are in a pipe now."""
    numbers = {name: int(value) for name, value in _pairs((room / "memory.stat").read_text(), " ")}
    usage = int((room / "memory.usage_in_bytes").read_text())
    return usage - numbers["total_rss"] - numbers["total_cache"] - _kernel_part(room)


def _pairs(text: str, between: str) -> list[tuple[str, str]]:
    return [
        (name.strip(), value) for name, _, value in (line.partition(between) for line in text.splitlines()) if value
    ]


@dataclass(frozen=True)
class Reading:
    kernel: int
    charged: int
    beside: int
    files: int

    @classmethod
    def now(cls, room: Path | None, service: Iterable[Path] = ()) -> Reading:
        charged = (charged_to(room), charged_beside(room, service)) if room else (0, 0)
        return cls(of_kernel(), *charged, files_open())

    @classmethod
    def take(cls, room: Path | None, service: Iterable[Path] = ()) -> Reading:
        """Once the kernel has given back what it gives back later: two readings in a row are alike."""
        last = of_kernel()
        for _ in range(_READINGS):
            time.sleep(_STEADY_SECONDS)
            now = of_kernel()
            if abs(now - last) < _STEADY_BYTES:
                break
            last = now
        return cls.now(room, service)

    def uncharged_since(self, earlier: Reading) -> int:
        charged = self.charged + self.beside - earlier.charged - earlier.beside
        return self.grown_since(earlier) - charged

    def grown_since(self, earlier: Reading) -> int:
        return self.kernel - earlier.kernel


class Watch:
    """Reads again and again in a thread of its own: what was taken by a probe that was ended is seen nowhere else."""

    def __init__(self, room: Path, service: Iterable[Path]) -> None:
        self._room, self._service = room, tuple(service)
        self._thread, self._done = threading.Thread(target=self._read), threading.Event()
        self.readings: list[Reading] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._done.wait(_WATCH_SECONDS):
            self.readings.append(Reading.now(self._room, self._service))
