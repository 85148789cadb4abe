"""What a process has loaded lies on huge pages, where the kernel can do that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.huge_pages import HUGE, huge_ranges
from tests.huge_pages import can_collapse

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
import os
from app.huge_pages import collapse
from tests.huge_pages import huge_bytes
kept = [object() for _ in range(1_000_000)]
print(collapse(), huge_bytes(os.getpid()))
"""


@pytest.mark.skipif(not can_collapse(), reason="this kernel cannot collapse memory to huge pages")
def test_what_is_collapsed_lies_on_huge_pages() -> None:
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    collapsed, after = map(int, run.stdout.split())
    assert collapsed >= HUGE
    assert after >= collapsed, "pages that were huge before count too"
