"""Who holds too many file locks. The kernel charges their memory (192 bytes each) to nobody, and has no limit on them.

The launcher samples how many there are on the host, which takes 1 us. Only when there are many more than before does it
look for the holder: /proc/PID/fdinfo lists the locks of each descriptor. A child of its own does that, as it may take a
second: the kernel writes the whole list of a file before a reader gets the first byte.
"""

from __future__ import annotations

import _signal
import os
import select
import time

from app.launcher.groups import Groups
from app.launcher.syscalls import NR_KCMP, PR_SET_PDEATHSIG, prctl, syscall
from app.launcher.watch import Verdict

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from app.launcher.held import HeldSandbox

LOCK_BYTES = 192
_COUNTER = "/sys/kernel/slab/file_lock_cache/total_objects"
_KCMP_FILES = 2
_PIECE = 1 << 20


def open_counter() -> int:
    """To be called while /sys is in sight. -1 where the kernel does not tell (no SLUB_DEBUG, or an older allocator)."""
    try:
        return os.open(_COUNTER, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def on_host(counter: int) -> int:
    """File locks, and the few other objects that the kernel keeps in the same cache. Without a counter: all of the
    kernel's memory that cannot be reclaimed, as if it were locks; a sandbox could hide locks behind what it frees."""
    if counter >= 0:
        return int(os.pread(counter, 64, 0).split()[0])
    with open("/proc/meminfo") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("SUnreclaim:"))
    return kib * 1024 // LOCK_BYTES


class LockHolders:
    """`most`: how many one sandbox may hold. `counter` is `open_counter`'s and stays open. A search registers itself
    with `poll`; its child keeps the descriptors `keep`, which lead into the control groups."""

    def __init__(self, most: int, counter: int, poll: select.poll, keep: list[int]) -> None:
        self._most, self._counter, self._poll, self._keep = most, counter, poll, keep
        self._known = on_host(counter)  # at the last search that was completed, or fewer since
        self._seen = self._known  # at the search that is under way
        self._searched: dict[str, HeldSandbox] = {}
        self._began = self._rests_until = 0.0  # monotonic seconds
        self._child = 0
        self.descriptor = -1  # readable when the search under way has ended

    def sample(self, sandboxes: list[HeldSandbox]) -> list[Verdict]:
        """A rule. Its verdicts come later, from `take`: it begins a search when there are many more than before."""
        if self._child or time.monotonic() < self._rests_until:
            return []
        self._seen = on_host(self._counter)
        self._known = min(self._known, self._seen)
        if self._seen - self._known > self._most // 2:
            try:
                self._search(sandboxes)
            except OSError:
                return []  # no process or descriptor is left for it: the next sample tries again
        return []

    def _search(self, sandboxes: list[HeldSandbox]) -> None:
        """Raises OSError."""
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            child = os.fork()
        except OSError:
            os.close(read)
            os.close(write)
            raise
        if child == 0:
            _report(sandboxes, self._most, write, [*self._keep, write])
        os.close(write)
        self._child, self.descriptor, self._began = child, read, time.monotonic()
        self._searched = {sandbox.id: sandbox for sandbox in sandboxes}
        self._poll.register(read, select.POLLIN)

    def take(self) -> list[Verdict]:
        """What the search found. To be called when `descriptor` is readable."""
        text = b""
        while piece := os.read(self.descriptor, 65_536):
            text += piece
        self._poll.unregister(self.descriptor)
        os.close(self.descriptor)
        os.waitpid(self._child, 0)
        searched, self._searched = self._searched, {}
        self._child, self.descriptor = 0, -1
        # It rests as long as it worked: a sandbox that makes us search takes half a processor, and no more.
        self._rests_until = 2 * time.monotonic() - self._began
        lines = text.decode().split("\n")
        if lines.pop() != "end":
            return []  # the child was killed; the next sample asks again
        self._known = self._seen
        return [_verdict(searched, self._most, *line.split()) for line in lines]


def _verdict(searched: dict[str, HeldSandbox], most: int, sandbox_id: str, number: str, locks: str) -> Verdict:
    detail = f"its sandbox held more than {most} file locks (BULKHEAD_PROCESS__MAX_FILE_LOCKS), this execution {locks}"
    return Verdict(searched[sandbox_id], int(number), "resource_limit", detail)


def _report(sandboxes: list[HeldSandbox], most: int, write: int, keep: list[int]) -> None:
    """In the child. Never returns."""
    try:
        prctl(PR_SET_PDEATHSIG, 9)
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in keep:
                _close(int(name))
        for sandbox in sandboxes:
            held = [(count(sandbox.groups, number, most), number) for number in sandbox.running]
            for locks, number in beyond(held, most):
                os.write(write, f"{sandbox.id} {number} {locks}\n".encode())
        os.write(write, b"end")
    finally:
        os._exit(0)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return  # it was the one that lists


def beyond(held: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Of one sandbox's (locks, execution), those that have to end so that the others hold no more than `most`."""
    left, ending = sum(locks for locks, _ in held), []
    for locks, number in sorted(held, reverse=True):
        if left <= most:
            break
        left -= locks
        ending.append((locks, number))
    return ending


def count(groups: Groups, number: int, most: int) -> int:
    """The locks that an execution's processes hold, or more than `most`."""
    tables: list[int] = []  # threads, each with a descriptor table that no other one here uses; in the kernel's order
    locks = 0
    for pid in groups.alive(number):
        for thread in _listed(f"/proc/{pid}/task"):
            if _is_new(tables, int(thread)):
                locks += _count_table(f"/proc/{pid}/task/{thread}/fdinfo", most - locks)
                if locks > most:
                    return locks
    return locks


def _is_new(tables: list[int], thread: int) -> bool:
    """Notes it. Threads mostly share one table, whose locks must count once. kcmp(2) tells their order."""
    low, high = 0, len(tables)
    while low < high:
        middle = (low + high) // 2
        try:
            order = syscall(NR_KCMP, thread, tables[middle], _KCMP_FILES, 0, 0)
        except OSError:
            return True  # it ended, or this kernel has no kcmp: better twice than never
        if order == 0:
            return False
        low, high = (low, middle) if order == 1 else (middle + 1, high)
    tables.insert(low, thread)
    return True


def _count_table(folder: str, most: int) -> int:
    locks = 0
    for name in _listed(folder):
        try:
            file = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # closed meanwhile
        try:
            while locks <= most and (piece := os.read(file, _PIECE)):
                locks += piece.count(b"\nlock:")
        except OSError:
            pass
        finally:
            os.close(file)
    return locks


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []  # it ended meanwhile
