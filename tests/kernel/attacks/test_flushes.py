"""A sandbox flushes no disk of the host: the counter of the disk that holds /usr is the witness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.require import require
from tests.service import Service

CALLS = 2000
FLUSH = """
import mmap, os, sys
file = os.open("/usr/bin/env", os.O_RDONLY)
mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ)
for _ in range(int(sys.argv[1])):
    os.fsync(file)
    os.fdatasync(file)
    mapped.flush()  # msync with MS_SYNC
os.sync()
"""


def flushes(path: str) -> int:
    """How often the disk of the file was flushed since the machine started (Documentation/block/stat.rst, field 16)."""
    device = Path(path).stat().st_dev
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    require("flushes", folder.exists(), f"{path} is on no disk")
    if (folder / "partition").exists():
        folder = folder.resolve().parent
    return int((folder / "stat").read_text().split()[15])


@pytest.fixture
def disk() -> str:
    """A file whose fsync is a flush of its disk, as the control run shows."""
    path, enough = "/usr/bin/env", 20
    before = flushes(path)
    subprocess.run([sys.executable, "-c", FLUSH, str(enough)], check=True)
    require("flushes", flushes(path) - before >= enough, "no fsync of a file of /usr flushes a disk of this host")
    return path


def test_no_call_of_a_sandbox_flushes_the_disk_of_usr(service: Service, sandbox: str, disk: str) -> None:
    before = flushes(disk)
    done = service.run(sandbox, "python3", "-c", FLUSH, str(CALLS))
    assert done["exit"]["code"] == 0, done
    assert flushes(disk) - before < CALLS // 4  # what others on the host flush meanwhile
