"""What the gateway has loaded lies on huge pages, where the kernel can do that."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from app.serving.huge_pages import HUGE, huge_ranges

MAPS = """\
00400000-00a00000 r-xp 00000000 fe:00 1 /usr/bin/python3.11
00a00000-00e00000 rw-p 00600000 fe:00 1 /usr/bin/python3.11
01100000-01900000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
7f0000500000-7f0000700000 rw-p 00000000 00:00 0 
7f0000800000-7f0000c00000 rw-s 00000000 00:01 2 /dev/zero (deleted)
7f0001000000-7f0001400000 ---p 00000000 00:00 0 
7ffd00000000-7ffd00400000 rw-p 00000000 00:00 0 [stack]
"""  # noqa: W291 - as the kernel writes it


def test_private_memory_without_a_file_is_cut_to_whole_huge_pages() -> None:
    assert list(huge_ranges(MAPS.splitlines())) == [(0x1200000, 3 * HUGE), (0x7F0000000000, 2 * HUGE)]


PROGRAM = """
import re
from app.serving.huge_pages import collapse
kept = [object() for _ in range(1_000_000)]
def huge():
    return int(re.search(r"AnonHugePages: *([0-9]+) kB", open("/proc/self/smaps_rollup").read())[1]) * 1024
print(collapse(), huge())
"""


def test_what_is_collapsed_lies_on_huge_pages() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, *[ctypes.c_size_t] * 5)
    place = libc.mmap(None, 2 * HUGE, 3, 0x22, -1, 0)  # two, so that one is aligned
    aligned = -(-place // HUGE) * HUGE
    ctypes.memset(aligned, 1, HUGE)
    can = libc.madvise(ctypes.c_void_p(aligned), ctypes.c_size_t(HUGE), 25) == 0
    libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(2 * HUGE))
    if not can:
        pytest.skip("this kernel cannot collapse memory to huge pages")
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    collapsed, after = map(int, run.stdout.split())
    assert collapsed >= HUGE
    assert after >= collapsed, "pages that were huge before count too"
