"""`python -m tests.kernel.counted OWNER`: each counter used up in a sandbox's namespaces, and who notices.

A user namespace stands for the host, so that nothing of the real one is used up: its root makes two clones as the
launcher does (OWNER is `user`), or with user namespaces that belong to its root (`root`: the control). The first clone
takes as much as it can. Prints for each counter how many it got, its errno, and the errno that the host's root and the
second clone then get for one more (0: none).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

from app.launcher.daemon.cloning import clone_owned_by
from app.launcher.kernel.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    clone3,
    mount,
    prctl,
    set_group_ids,
    set_user_ids,
)
from tests.kernel.counters import TAKE, take

HOST = 1_895_000_000  # of nobody, and outside of any service's range; that many ids are the host's in here
IDS = 100
MOST = 24  # of each in /proc/sys/user; two clones hold four namespaces of some kinds already
LIMITS = {
    "timers": (resource.RLIMIT_SIGPENDING, 16),
    "queued_signals": (resource.RLIMIT_SIGPENDING, 16),
    "message_queues": (resource.RLIMIT_MSGQUEUE, 400_000),
    "locked_segments": (resource.RLIMIT_MEMLOCK, 65_536),
    "processes": (resource.RLIMIT_NPROC, 24),
}
COPY = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS


def clone(flags: int, owner: int | None, ids: tuple[int, int, int]) -> tuple[int, int]:
    """What `clone3` returns, in a clone with these ids: the first one inside, the same one outside, and how many."""
    ready, go = os.pipe(), os.pipe()
    pid, pidfd = clone3(flags) if owner is None else clone_owned_by(owner, flags)
    if pid == 0:
        prctl(PR_SET_DUMPABLE, 1)  # else its files in /proc belong to root of the real host, whoever made it
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        set_group_ids(ids[0])
        set_user_ids(ids[0])
    else:
        os.read(ready[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("{} {} {}".format(*ids))
        os.write(go[1], b"x")
    for descriptor in (*ready, *go):
        os.close(descriptor)
    return pid, pidfd


def sandbox(owned: bool, uid: int, counter: str, most: int) -> tuple[int, int]:
    """(how many it got, its errno). It stays, and so does what it took."""
    read, write = os.pipe()
    try:
        pid, _ = clone(COPY, uid if owned else None, (1000, uid, 1))
    except OSError as error:
        return 0, error.errno or 255
    if pid == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.write(write, json.dumps(take(counter, most)).encode())
        signal.pause()
    count, number = json.loads(os.read(read, 100))
    return count, number


def host(owned: bool, counter: str) -> dict[str, object]:
    mount("tmp", tempfile.gettempdir(), "tmpfs", 0)
    if counter in LIMITS:
        kind, most = LIMITS[counter]
        resource.setrlimit(kind, (most, most))
    else:
        Path(f"/proc/sys/user/max_{counter}").write_text(str(MOST))
    count, number = sandbox(owned, 1, counter, 1000)
    return {"count": count, "errno": number, "root": take(counter, 1)[1], "neighbour": sandbox(owned, 2, counter, 1)[1]}


def main(owner: str) -> None:
    for counter in TAKE:
        pid, _ = clone(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC, HOST, (0, HOST, IDS))
        if pid == 0:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            print(json.dumps({"counter": counter} | host(owner == "user", counter)), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
