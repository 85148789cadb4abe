"""/proc/meminfo of a sandbox, proc_meminfo(5): its own memory instead of the host's.

It is a small file of the sandbox. Commands see it read-only, and the worker writes it through a descriptor that it has
from before. The numbers come from the memory group of the sandbox.
"""

from __future__ import annotations

import errno
import os
import time

from app.launcher.sandbox.own_groups import GroupMount

PLACE = "/proc/meminfo"
# So much time may pass between two looks while something runs. Programs may read what is a second old.
PERIOD_SECONDS = 0.9
FILE_BYTES = os.sysconf("SC_PAGESIZE")  # that it takes of the tmpfs, on top of what the sandbox may have
_FIRST_LINE = 28  # bytes
_STAT_BYTES = 16_384  # more than memory.stat has
_MOST_KIB = 99_999_999  # eight digits
# The first line has 28 bytes and each other one 32, so every number of eight digits is at a multiple of eight. A copy
# moves eight aligned bytes at once, so nobody reads half a number while the file is written.
_FORM = b"""\
MemTotal:       %8d kB
MemFree:            %8d kB
MemAvailable:       %8d kB
Buffers:                   0 kB
Cached:             %8d kB
SwapCached:                0 kB
Active:             %8d kB
Inactive:           %8d kB
Active(anon):       %8d kB
Inactive(anon):     %8d kB
Active(file):       %8d kB
Inactive(file):     %8d kB
Unevictable:        %8d kB
Mlocked:                   0 kB
SwapTotal:                 0 kB
SwapFree:                  0 kB
Dirty:              %8d kB
Writeback:          %8d kB
AnonPages:          %8d kB
Mapped:             %8d kB
Shmem:              %8d kB
KReclaimable:       %8d kB
Slab:               %8d kB
SReclaimable:       %8d kB
SUnreclaim:         %8d kB
Hugepagesize:           2048 kB
"""


class OwnMemory:
    """`limit` in bytes."""

    __slots__ = ("_file", "_group", "_limit", "_looked", "_seen", "_stat", "_usage")

    def __init__(self, file: int, group: GroupMount, limit: int) -> None:
        """Writes the limit, and nothing is used yet. Raises OSError. `file`: /proc/meminfo, open for writing."""
        self._file, self._limit, self._group = file, limit, group
        self._usage = self._stat = -1  # not before the first command: a create takes 0.05 ms less
        self._looked, self._seen = 0.0, (-1, b"")
        os.pwrite(file, text_of(limit, 0, {}), 0)

    @property
    def seconds_left(self) -> float:
        """Until the next look is due; not above zero when it is."""
        return self._looked + PERIOD_SECONDS - time.monotonic()

    def has(self, size: int) -> bool:
        """Whether so many bytes can be had without a kill."""
        free = self._limit - self._used()
        if free >= size:
            return True
        return free + _reclaimable(self._fields_of(os.pread(self._stat, _STAT_BYTES, 0))) >= size

    def refresh(self) -> None:
        """Looks if the last look was PERIOD_SECONDS ago, and writes what has changed. Raises OSError."""
        if self.seconds_left <= 0:
            used = self._used()
            stat = os.pread(self._stat, _STAT_BYTES, 0)
            # The size alone does not do: at the limit it stays the same while processes take the room of cached files.
            if (used, stat) != self._seen:
                os.pwrite(self._file, text_of(self._limit, used, self._fields_of(stat)), 0)
                self._seen = used, stat
            self._looked = time.monotonic()

    def _used(self) -> int:
        if self._usage < 0:
            names = "memory.usage_in_bytes" if self._group.names else "memory.current", "memory.stat"
            self._usage, self._stat = [
                os.open(f"{self._group.path}/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names
            ]
        return int(os.pread(self._usage, 32, 0))

    def _fields_of(self, stat: bytes) -> dict[bytes, int]:
        """Those of memory.stat under the names of version 2, in bytes."""
        pairs = [line.split() for line in stat.splitlines()]
        if not self._group.names:
            return {name: int(value) for name, value in pairs}
        # Those of the whole tree begin with total_.
        found = {name[6:]: int(value) for name, value in pairs if name.startswith(b"total_")}
        found[b"file"], found[b"anon"] = found.get(b"cache", 0), found.get(b"rss", 0)
        found[b"file_mapped"], found[b"file_dirty"] = found.get(b"mapped_file", 0), found.get(b"dirty", 0)
        found[b"file_writeback"] = found.get(b"writeback", 0)
        return found


def _reclaimable(stats: dict[bytes, int]) -> int:
    """Cached pages of files; those of a tmpfs are not among them."""
    return stats.get(b"inactive_file", 0) + stats.get(b"active_file", 0) + stats.get(b"slab_reclaimable", 0)


def text_of(limit: int, used: int, stats: dict[bytes, int]) -> bytes:
    """Sizes in bytes. What the kernel holds for the group and does not list is in `Slab`."""
    of = stats.get
    free = max(0, limit - used)
    anon, file = of(b"anon", 0), of(b"file", 0)
    active_anon, inactive_anon = of(b"active_anon", 0), of(b"inactive_anon", 0)
    active_file, inactive_file = of(b"active_file", 0), of(b"inactive_file", 0)
    slab = max(0, used - anon - file)
    reclaimable = min(slab, of(b"slab_reclaimable", 0))
    sizes = (
        limit,
        free,
        min(limit, free + _reclaimable(stats)),
        file,
        active_anon + active_file,
        inactive_anon + inactive_file,
        active_anon,
        inactive_anon,
        active_file,
        inactive_file,
        of(b"unevictable", 0),
        of(b"file_dirty", 0),
        of(b"file_writeback", 0),
        anon,
        of(b"file_mapped", 0),
        of(b"shmem", 0),
        reclaimable,
        slab,
        reclaimable,
        slab - reclaimable,
    )
    return _FORM % tuple([min(size >> 10, _MOST_KIB) for size in sizes])


def prove(limit: int) -> None:
    """Raises OSError unless this limit is what is read there."""
    descriptor = os.open(PLACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.read(descriptor, _FIRST_LINE)
    finally:
        os.close(descriptor)
    if found != text_of(limit, limit, {})[:_FIRST_LINE]:
        raise OSError(errno.ENOTSUP, f"{PLACE} has another limit")
