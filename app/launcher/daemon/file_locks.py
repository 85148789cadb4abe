"""Finds who holds too many file locks. The kernel charges their memory (192 bytes each) to nobody, and has no limit on
them.

The launcher samples how many there are on the host, which takes 1 us. It looks for the holder only when there are many
more than before: /proc/PID/fdinfo lists the locks of each descriptor. A child does that, as it may take a second: the
kernel writes the whole list of a file before a reader gets the first byte. A sandbox can make the list of a descriptor
expensive. So each sandbox has a budget of processor time. An execution that could not be counted within it is treated
as if it held too many.
"""

from __future__ import annotations

import _signal
import os
import select
import time

from app.launcher.daemon.groups import Groups
from app.launcher.daemon.watch import Verdict
from app.launcher.kernel.syscalls import NR_KCMP, PR_SET_PDEATHSIG, prctl, syscall

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from app.launcher.daemon.sandbox_process import SandboxProcess

LOCK_BYTES = 192
_COUNTER = "/sys/kernel/slab/file_lock_cache/total_objects"
_KCMP_FILES = 2
_PIECE = 1 << 16
SECONDS = 3.0  # one search
# The child's processor seconds for one sandbox. A sandbox can make each descriptor take milliseconds: an inotify with
# 10,000 watches. Nobody samples during a search, and 150 MiB of locks can be added in a second.
BUDGET = 0.5
_LOOKS, _HOLDS, _HIDES, _END = "looks", "holds", "hides", "end"  # what the child says


def open_counter() -> int:
    """Call it while /sys is visible. Returns -1 where the kernel does not report the number (no SLUB_DEBUG, or an older
    allocator)."""
    try:
        return os.open(_COUNTER, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def on_host(counter: int) -> int:
    """The number of file locks, with the few other objects that the kernel keeps in the same cache. Without a counter
    it takes all kernel memory that cannot be reclaimed as locks. A sandbox could then hide locks behind memory that it
    frees."""
    if counter >= 0:
        return int(os.pread(counter, 64, 0).split()[0])
    with open("/proc/meminfo") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("SUnreclaim:"))
    return kib * 1024 // LOCK_BYTES


class Uncountable(Exception):
    """The budget of the sandbox is used up."""


class LockHolders:
    """`most` is how many locks one sandbox may hold. `counter` comes from `open_counter` and stays open. A search
    registers itself with `poll`. Its child keeps the descriptors `keep`, which lead into the control groups. The
    launcher never waits for the child: `take` reads what is there, and `go_on` ends a search after `SECONDS`."""

    def __init__(self, most: int, counter: int, poll: select.poll, keep: list[int]) -> None:
        self._most, self._counter, self._poll, self._keep = most, counter, poll, keep
        self._known = on_host(counter)  # at the last search that was completed, or fewer since
        self._seen = self._known  # at the search that is under way
        self._searched: dict[str, SandboxProcess] = {}
        self._began = self._rests_until = 0.0  # monotonic seconds
        self._child = 0
        self._killed = self._complete = False  # of the search under way
        self._unread = b""  # the begin of a line
        self._looking: tuple[str, int, float] | None = None  # sandbox, execution, the child's processor time before it
        self._last = ""  # the sandbox that used up the time of a search; the next one looks at it last
        self.descriptor = -1  # readable when the search under way has something to say

    @property
    def searching(self) -> bool:
        return self._child > 0

    @property
    def ending(self) -> bool:
        """The child has reported everything and has to be reaped: call `go_on` again soon."""
        return self._child > 0 and self.descriptor < 0

    @property
    def milliseconds_left(self) -> int | None:
        """Time until `go_on` has to end the search. None without a search, or when it has ended it."""
        if not self._child or self._killed:
            return None
        return max(0, int((self._began + SECONDS - time.monotonic()) * 1000) + 1)

    def sample(self, sandboxes: list[SandboxProcess]) -> list[Verdict]:
        """A rule. It begins a search when there are many more locks than before. The verdicts come later, from
        `take`."""
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

    def _search(self, sandboxes: list[SandboxProcess]) -> None:
        """Raises OSError."""
        at = next((at for at, sandbox in enumerate(sandboxes, 1) if sandbox.id == self._last), 0)
        sandboxes = sandboxes[at:] + sandboxes[:at]
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(read, False)
            child = os.fork()
        except OSError:
            os.close(read)
            os.close(write)
            raise
        if child == 0:
            _report(sandboxes, self._most, write, [*self._keep, write])
        os.close(write)
        self._child, self.descriptor, self._began = child, read, time.monotonic()
        self._killed, self._complete, self._unread, self._looking = False, False, b"", None
        self._searched = {sandbox.id: sandbox for sandbox in sandboxes}
        self._poll.register(read, select.POLLIN)

    def take(self) -> list[Verdict]:
        """Returns what the search has found by now. Call it when `descriptor` is readable. It never waits."""
        try:
            piece = os.read(self.descriptor, 65_536)
        except BlockingIOError:
            return []
        if not piece:
            self._poll.unregister(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1
            return []
        *lines, self._unread = (self._unread + piece).split(b"\n")
        return [verdict for line in lines for verdict in self._understand(line.decode().split())]

    def _understand(self, words: list[str]) -> list[Verdict]:
        if words[0] == _LOOKS:
            self._looking = words[1], int(words[2]), float(words[3])
            return []
        if words[0] == _END:
            self._complete = words[1] == "0"  # a sandbox that could not be counted may hold any number
            return []
        if words[0] == _HIDES:
            return [self._hides(words[1], int(words[2]))]
        setting = f"{self._most} file locks (BULKHEAD_PROCESS__MAX_FILE_LOCKS)"
        detail = f"its sandbox held more than {setting}; this execution held {words[3]}"
        return [Verdict(self._searched[words[1]], int(words[2]), "resource_limit", detail)]

    def _hides(self, sandbox_id: str, number: int) -> Verdict:
        setting = f"more than {self._most} file locks (BULKHEAD_PROCESS__MAX_FILE_LOCKS)"
        detail = f"its file locks could not be counted in {BUDGET} s of processor time; its sandbox may hold {setting}"
        return Verdict(self._searched[sandbox_id], number, "resource_limit", detail)

    def go_on(self) -> list[Verdict]:
        """Ends a search that takes too long, and reaps one that has ended. Call it in every turn of the loop."""
        if not self._child:
            return []
        if not self._killed and time.monotonic() > self._began + SECONDS:
            os.kill(self._child, 9)
            self._killed = True
        if self.descriptor >= 0:
            return []
        pid, _, usage = os.wait4(self._child, os.WNOHANG)
        return self._conclude(usage.ru_utime + usage.ru_stime) if pid else []

    def _conclude(self, cpu_seconds: float) -> list[Verdict]:
        found: list[Verdict] = []
        if self._complete:
            self._known, self._last = self._seen, ""
        elif self._killed and self._looking is not None:
            self._last, number, before = self._looking
            if cpu_seconds - before > BUDGET:  # one read took all that time, so the child could not say it
                found.append(self._hides(self._last, number))
        self._searched, self._child = {}, 0
        # It rests as long as it worked: sandboxes that make us search take half a processor, and no more.
        self._rests_until = 2 * time.monotonic() - self._began
        return found


def _report(sandboxes: list[SandboxProcess], most: int, write: int, keep: list[int]) -> None:
    """In the child. Never returns."""
    try:
        prctl(PR_SET_PDEATHSIG, 9)
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in keep:
                _close(int(name))
        uncounted = sum(_look(sandbox, most, write) for sandbox in sandboxes)
        _tell(write, _END, uncounted)
    finally:
        os._exit(0)


def _tell(write: int, *words: object) -> None:
    os.write(write, (" ".join(str(word) for word in words) + "\n").encode())


def _look(sandbox: SandboxProcess, most: int, write: int) -> int:
    """How many of its executions hide their locks: its budget was used up before they were counted. The smallest are
    counted first, so that one with many descriptors ends no other."""
    began = time.process_time()
    held: list[tuple[int, int]] = []
    hidden = 0
    for number in sorted(sandbox.running, key=lambda number: len(sandbox.groups.alive(number))):
        _tell(write, _LOOKS, sandbox.id, number, time.process_time())
        try:
            held.append((count(sandbox.groups, number, most, began + BUDGET), number))
        except Uncountable:
            hidden += 1
            _tell(write, _HIDES, sandbox.id, number)
    for locks, number in beyond(held, most):
        _tell(write, _HOLDS, sandbox.id, number, locks)
    return hidden


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return  # it was the one that lists


def beyond(held: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Returns which of one sandbox's (locks, execution) have to end so that the others hold no more than `most`."""
    left, ending = sum(locks for locks, _ in held), []
    for locks, number in sorted(held, reverse=True):
        if left <= most:
            break
        left -= locks
        ending.append((locks, number))
    return ending


def count(groups: Groups, number: int, most: int, until: float = float("inf")) -> int:
    """Returns how many locks an execution's processes hold. It may stop at any number above `most`. `until` is this
    process's processor time in seconds. Raises Uncountable when that has passed."""
    tables: list[int] = []  # threads, each with a descriptor table that no other one here uses; in the kernel's order
    locks = 0
    for pid in groups.alive(number):
        for thread in _listed(f"/proc/{pid}/task"):
            if _is_new(tables, int(thread)):
                locks += _count_table(f"/proc/{pid}/task/{thread}/fdinfo", most - locks, until)
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


def _count_table(folder: str, most: int, until: float) -> int:
    """Raises Uncountable."""
    locks = 0
    for name in _listed(folder):
        if time.process_time() > until:
            raise Uncountable
        try:
            file = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # closed meanwhile
        try:
            locks += _count_file(file, most - locks)
        finally:
            os.close(file)
        if locks > most:
            break
    return locks


def _count_file(fdinfo: int, most: int) -> int:
    """The kernel lists the locks before what is special about a file (all that an inotify watches, for example), so a
    piece without one is the last that matters."""
    locks = 0
    try:
        while locks <= most and (found := os.read(fdinfo, _PIECE).count(b"\nlock:")):
            locks += found
    except OSError:
        return locks  # closed meanwhile
    return locks


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []  # it ended meanwhile
