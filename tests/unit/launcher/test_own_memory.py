"""/proc/meminfo of a sandbox: what is in it, for which versions, and what it costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.launcher.sandbox import own_memory
from app.launcher.sandbox.own_groups import GroupMount
from app.launcher.sandbox.own_memory import OwnMemory, text_of
from tests.processor_time import cost

MIB = 1 << 20
STAT_1 = "cache 1\nrss 1\ntotal_cache {file}\ntotal_rss {anon}\ntotal_shmem 4096\ntotal_inactive_file {cold}\n"
STAT_2 = "anon {anon}\nfile {file}\nshmem 4096\ninactive_file {cold}\nslab_reclaimable 8192\n"
# Of procps, libuv, the JVM and psutil, as their sources name them.
ASKED_FOR = {
    "MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapCached", "Active", "Inactive", "SwapTotal",
    "SwapFree", "Dirty", "Writeback", "AnonPages", "Mapped", "Shmem", "KReclaimable", "Slab", "SReclaimable",
    "SUnreclaim", "Hugepagesize",
}  # fmt: skip


@pytest.fixture(params=[1, 2])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> OwnMemory:
    """Of a sandbox of 64 MiB that uses 40: 20 in processes, 16 in files of which 10 can be had back."""
    version = request.param
    group = GroupMount(0, "memory" if version == 1 else "", "tasks", has_memory=True)
    group.path = str(tmp_path)
    numbers = {"anon": 20 * MIB, "file": 16 * MIB, "cold": 10 * MIB}
    (tmp_path / "memory.stat").write_text((STAT_1 if version == 1 else STAT_2).format(**numbers))
    (tmp_path / ("memory.usage_in_bytes" if version == 1 else "memory.current")).write_text(f"{40 * MIB}\n")
    file = os.open(tmp_path / "meminfo", os.O_CREAT | os.O_WRONLY)
    return OwnMemory(file, group, 64 * MIB)


def fields(text: str) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()}


def test_both_versions_tell_the_same(own: OwnMemory, tmp_path: Path) -> None:
    own.refresh()
    found = fields((tmp_path / "meminfo").read_text())
    assert set(found) >= ASKED_FOR
    assert (found["MemTotal"], found["MemFree"], found["Cached"]) == (64 * 1024, 24 * 1024, 16 * 1024)
    assert 34 * 1024 <= found["MemAvailable"] <= 34 * 1024 + 8
    assert (found["AnonPages"], found["Shmem"], found["Slab"]) == (20 * 1024, 4, 4 * 1024)


def test_room_is_what_is_free_and_what_can_be_had_back(own: OwnMemory) -> None:
    assert own.has(24 * MIB)
    assert own.has(34 * MIB)
    assert not own.has(35 * MIB)


def test_it_is_due_after_the_period_and_not_before(own: OwnMemory, tmp_path: Path) -> None:
    own.refresh()
    usage = next(path for path in tmp_path.iterdir() if path.name in ("memory.usage_in_bytes", "memory.current"))
    usage.write_text(f"{50 * MIB}\n")
    assert 0 < own.seconds_left <= own_memory.PERIOD_SECONDS < 1
    own.refresh()
    assert fields((tmp_path / "meminfo").read_text())["MemFree"] == 24 * 1024
    own._looked -= own_memory.PERIOD_SECONDS
    own.refresh()
    assert fields((tmp_path / "meminfo").read_text())["MemFree"] == 14 * 1024


def test_cached_files_that_give_way_to_processes_are_no_longer_available(own: OwnMemory, tmp_path: Path) -> None:
    """At its limit a sandbox uses as much as before."""
    own.refresh()
    before = fields((tmp_path / "meminfo").read_text())
    version_1 = (tmp_path / "memory.usage_in_bytes").exists()
    numbers = {"anon": 28 * MIB, "file": 8 * MIB, "cold": 2 * MIB}
    (tmp_path / "memory.stat").write_text((STAT_1 if version_1 else STAT_2).format(**numbers))
    own._looked -= own_memory.PERIOD_SECONDS
    own.refresh()
    found = fields((tmp_path / "meminfo").read_text())
    assert found["MemFree"] == before["MemFree"]
    assert found["MemAvailable"] == before["MemAvailable"] - 8 * 1024
    assert (found["AnonPages"], found["Cached"]) == (28 * 1024, 8 * 1024)


def test_what_uses_its_memory_as_before_is_not_written_again(own: OwnMemory, tmp_path: Path) -> None:
    own.refresh()
    (tmp_path / "meminfo").write_text("")
    own._looked -= own_memory.PERIOD_SECONDS
    own.refresh()
    assert (tmp_path / "meminfo").read_text() == ""
    assert own.seconds_left > 0


def test_a_refresh_costs_a_thousand_sandboxes_a_fraction_of_a_processor(own: OwnMemory) -> None:
    def refresh() -> None:
        for _ in range(1000):
            own._looked, own._seen = 0.0, (-1, b"")
            own.refresh()

    assert cost(refresh, 2) / own_memory.PERIOD_SECONDS < 0.5  # 0.03 measured


def test_length_and_places_of_numbers_never_change() -> None:
    small, large = text_of(16 * MIB, 16 * MIB, {}), text_of(1 << 50, 0, {b"file": 1 << 50})
    assert len(small) == len(large) < 4096
    assert b" 99999999 kB\n" in large
    for text in (small, large):
        for found in re.finditer(rb" {1,}(\d+) kB\n", text):
            assert (found.end(1) % 8, len(found[1]) <= 8) == (0, True)


READ = """
import os, sys
descriptor, seen = os.open(sys.argv[1], os.O_RDONLY), set()
print("up", flush=True)
for _ in range(200_000):
    seen |= set(os.pread(descriptor, 4096, 0).split()) - {b"kB"}
print(sorted(word.decode() for word in seen if word.isdigit()))
"""


def test_a_number_is_never_read_half_written(tmp_path: Path) -> None:
    """In a tmpfs, as in a sandbox; writers and readers share no lock there."""
    path = Path("/dev/shm", f"bulkhead-{os.getpid()}")
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        lines = [b"%-20s%8d kB\n" % (b"x:", number) for number in (11_111_111, 22_222_222)]
        texts = [b"MemTotal:       %8d kB\n" % 33_333_333 + line * 24 for line in lines]
        os.pwrite(descriptor, texts[0], 0)
        reader = subprocess.Popen([sys.executable, "-c", READ, path], stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "up\n"
        while reader.poll() is None:
            for text in texts:
                os.pwrite(descriptor, text, 0)
        assert reader.stdout.read() == "['11111111', '22222222', '33333333']\n"
        reader.stdout.close()
    finally:
        os.close(descriptor)
        path.unlink()
