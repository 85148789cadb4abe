"""Whether the kernel of this host can put memory on huge pages, and how much of a process lies on some."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from app.huge_pages import HUGE


def can_collapse() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, *[ctypes.c_size_t] * 5)
    place = libc.mmap(None, 2 * HUGE, 3, 0x22, -1, 0)  # two, so that one is aligned
    aligned = -(-place // HUGE) * HUGE
    ctypes.memset(aligned, 1, HUGE)
    can = bool(libc.madvise(ctypes.c_void_p(aligned), ctypes.c_size_t(HUGE), 25) == 0)
    libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(2 * HUGE))
    return can


def huge_bytes(pid: int) -> int:
    found = re.search(r"AnonHugePages: *([0-9]+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) * 1024
