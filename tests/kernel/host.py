"""Looking at the host from outside of every sandbox: what of a service is there, and what of it was left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from app.launcher.daemon import cgroup_mounts
from app.serving.slot import RUN, UIDS, NoSlot, Slot, release, take_slot
from tests.service import Service

Found = list[str]
WORKERS = "/_workers"  # the group that all workers share, outside of their sandboxes' limits


def uids_of(pid: int) -> tuple[int, ...]:
    """Real, effective, saved and file system uid; empty when the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(int(word) for word in status.partition("\nUid:")[2].partition("\n")[0].split())


def state_of(pid: int) -> str:
    """The kernel's letter (R, S, D, T, Z); empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cpu_ns(pid: int) -> int:
    """Processor time of its first thread so far, proc_pid_schedstat: exact, where /proc/PID/stat counts ticks."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def groups_of(service: Service, uid: int) -> Found:
    """The folders of the sandbox with this host uid: its own, its worker's, and those of its executions."""
    return [folder for folder in group_folders(first_uid(service)) if f"s-{uid}" in Path(folder).parts]


def describe(pid: int) -> str:
    """Its pid, name, state and parent."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid} (gone)"
    return f"{name}) {' '.join(rest.split()[:2])}"


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def processes_of(*uids: int) -> list[int]:
    """Every process, zombies too, under one of these host uids."""
    return [pid for pid in pids() if set(uids) & set(uids_of(pid))]


def living_of(*uids: int) -> list[int]:
    """Those of them that are no zombies: a process that was killed is one until its parent was told."""
    return [pid for pid in processes_of(*uids) if state_of(pid) not in ("Z", "")]


def processes_in(first: int) -> list[int]:
    """Every process under any uid of the service whose uids begin with `first`."""
    return [pid for pid in pids() if any(first <= uid < first + UIDS for uid in uids_of(pid))]


def sandbox_processes(first: int) -> list[int]:
    """The same without its gateway and egress process."""
    return [pid for pid in processes_in(first) if not {first, first + 1} & set(uids_of(pid))]


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def host_uid(service: Service, sandbox: str) -> int:
    return int(service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["host_uid"])


def worker_of(service: Service, sandbox: str) -> int:
    """PID 1 of the sandbox, as the host numbers it."""
    uid = host_uid(service, sandbox)
    found = [pid for pid in children_of(service.children()["launcher"]) if uid in uids_of(pid)]
    assert len(found) == 1, found
    return found[0]


def first_uid(service: Service) -> int:
    """The service's range of host uids begins with the gateway's."""
    return uids_of(service.children()["gateway"])[0]


def descriptors(pid: int) -> Found:
    """What each open descriptor of a process leads to, in order, numbers of sockets and pipes left out."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()).partition(":[")[0])
    return sorted(found)


def own_descriptors() -> Found:
    """The numbers of this process's."""
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - pathlib would open one more


def group_folders(first: int, parent: str = "bulkhead") -> Found:
    """Every control group below the one of the service whose uids begin with `first`."""
    text = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    found: Found = []
    for _, folder in cgroup_mounts.locate(*text)[1]:
        root = Path(folder, parent, str(first))
        found += [f"{at}/{name}" for at, names, _ in os.walk(root) for name in names]
    return sorted(found)


def sandbox_groups(launcher: int, first: int, parent: str = "bulkhead") -> Found:
    """Those of them that belong to sandboxes. The one clone that is made ahead has groups without limits."""
    folders = [Path(folder) for folder in group_folders(first, parent) if not folder.endswith(WORKERS)]
    limited = {folder.name for folder in folders if _has_limits(folder)}
    names = {f"s-{uid}" for pid in children_of(launcher) for uid in uids_of(pid)}
    ahead = names & {part for folder in folders for part in folder.parts} - limited
    return [str(folder) for folder in folders if len(ahead) > 1 or not ahead & set(folder.parts)]


def _has_limits(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # it has no such file, or has just been removed
        return (folder / "pids.max").read_text() != "max\n"
    return False


def namespaces(*, of: str = "mnt") -> set[int]:
    """The inodes of all namespaces of a kind that any process is in."""
    found = set()
    for pid in pids():
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}/ns/{of}").stat().st_ino)
    return found


def mounts_of(pid: int) -> Found:
    """In its mount namespace: where each is."""
    return [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]


def left_of(first: int) -> Found:
    """What of a service that has ended is still there. Its uids begin with `first`."""
    # A zombie whose parent has ended is the host's init's to reap, in its own time.
    left = [f"process {found}" for pid in processes_in(first) if not (found := describe(pid)).endswith(") Z 1")]
    left += [f"group {folder}" for folder in group_folders(first)]
    left += [
        f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{RUN}/{first}" in line
    ]
    left += [f"file {path}" for path in (RUN / str(first)).rglob("*")]
    return left


def has_in_memory(pid: int, text: bytes) -> bool:
    """Whether memory that the process may write has this text. A mapping that goes meanwhile has none (EIO)."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, access, *_ = line.split()
            begin, end = (int(number, 16) for number in place.split("-"))
            if "w" in access:
                with contextlib.suppress(OSError):
                    memory.seek(begin)
                    if text in memory.read(end - begin):
                        return True
    return False


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nVmRSS:")[2].split()[0]) / 1024


def until(true: Callable[[], object], what: str, seconds: float = 100, every: float = 0.005) -> None:
    """For what the kernel does by itself and tells nobody about. `every`: seconds between two looks.

    A busy or emulated machine may take many seconds for what takes milliseconds elsewhere."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every)


@contextlib.contextmanager
def kept(first: int) -> Iterator[None]:
    """Takes the uids as soon as the dead service has let go of them: else another one on this host might."""
    slots: list[Slot] = []

    def take() -> bool:
        with contextlib.suppress(NoSlot):
            slots.append(take_slot(first, UIDS))
        return bool(slots)

    until(take, "the lock on the uids is free")
    try:
        yield
    finally:
        release(slots[0])
