"""The host's kernel memory, and how much of it control groups were charged for. Bytes.

Others work on the host too, so what is charged to any group is subtracted, and not only the sandbox's part; a test
makes sure that the difference is not somebody else's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
_STEADY_BYTES, _STEADY_SECONDS, _READINGS = 1 << 20, 0.02, 150


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


def charged_beside(room: Path) -> int:
    """To all other groups together."""
    top = room
    while (top.parent / "memory.kmem.usage_in_bytes").exists():
        top = top.parent
    return _kernel_part(top) - _kernel_part(room)


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
    def take(cls, room: Path | None) -> Reading:
        """Once the kernel has given back what it gives back later: two readings in a row are alike."""
        last = of_kernel()
        for _ in range(_READINGS):
            time.sleep(_STEADY_SECONDS)
            now = of_kernel()
            if abs(now - last) < _STEADY_BYTES:
                break
            last = now
        charged = (charged_to(room), charged_beside(room)) if room else (0, 0)
        return cls(of_kernel(), *charged, files_open())

    def uncharged_since(self, earlier: Reading) -> int:
        charged = self.charged + self.beside - earlier.charged - earlier.beside
        return self.grown_since(earlier) - charged

    def grown_since(self, earlier: Reading) -> int:
        return self.kernel - earlier.kernel
