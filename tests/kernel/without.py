"""`python -m tests.kernel.without LAYER COMMAND…`: runs a command as on a host that lacks a layer of isolation.

An outer seccomp filter answers for a kernel without the call; a mount namespace without the mount stands for one that
was never mounted. Both are inherited and cannot be undone from inside.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path

from app.launcher.daemon import cgroup_mounts
from app.launcher.kernel import bpf, seccomp
from app.launcher.kernel.syscall_table import NUMBERS
from app.launcher.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MNT_DETACH,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    PR_CAPBSET_DROP,
    mount,
    prctl,
    umount,
    unshare,
)

CAP_MKNOD = 27
CALLS = NUMBERS[os.uname().machine]


def answer(name: str, node: bpf.Node) -> None:
    """The system call of that name is decided by the node, every other one is allowed."""
    test: bpf.Node = (bpf.EQUAL, CALLS[name], node, bpf.ALLOW)
    seccomp.load(bpf.assemble(bpf.looking_at(bpf.NUMBER, test)))


def own_mounts() -> None:
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def no_landlock() -> None:
    answer("landlock_create_ruleset", bpf.refuse(errno.ENOSYS))


def no_user_namespace() -> None:
    """The kernel refuses one to a process whose root is not its mount namespace's, user_namespaces(7)."""
    own_mounts()
    root = Path(tempfile.gettempdir(), "bulkhead-without")
    root.mkdir(exist_ok=True)
    mount("/", str(root), None, MS_BIND | MS_REC)
    here = Path.cwd()
    os.chroot(root)
    os.chdir(here)


def no_controller(name: str) -> None:
    own_mounts()
    text = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    _, places = cgroup_mounts.locate(*text)
    folder = next(folder for names, folder in places if name in names)
    targets = [line.split()[4] for line in text[0].splitlines() if " - cgroup " in line]
    umount(next(target for target in targets if (folder + "/").startswith(target + "/")), MNT_DETACH)


def no_cgroups() -> None:
    own_mounts()
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if " - cgroup" in line:
            umount(line.split()[4], MNT_DETACH)


def no_loop_nodes() -> None:
    """A /dev of its own, as in a container. Nodes may still be made."""
    own_mounts()
    kept = os.open("/dev", os.O_PATH | os.O_CLOEXEC)
    mount("tmpfs", "/dev", "tmpfs", 0, "mode=755")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        Path("/dev", name).touch()
        mount(f"/proc/self/fd/{kept}/{name}", f"/dev/{name}", None, MS_BIND)
    for name in ("pts", "shm"):
        Path("/dev", name).mkdir()
        mount(f"/proc/self/fd/{kept}/{name}", f"/dev/{name}", None, MS_BIND | MS_REC)


def no_loop_devices() -> None:
    """And none may be made."""
    no_loop_nodes()
    prctl(PR_CAPBSET_DROP, CAP_MKNOD)


def no_mke2fs() -> None:
    own_mounts()
    for path in ("/usr/sbin/mke2fs", "/sbin/mke2fs"):
        mount("/dev/null", os.path.realpath(path), None, MS_BIND)


def no_network_namespace() -> None:
    answer("unshare", bpf.when_any_bit(0, CLONE_NEWNET, bpf.refuse(errno.EPERM), bpf.ALLOW))


def no_seccomp() -> None:
    answer("seccomp", bpf.refuse(errno.ENOSYS))


LACKING = {
    "landlock": no_landlock,
    "user_namespace": no_user_namespace,
    "cgroup_memory": lambda: no_controller("memory"),
    "cgroup_pids": lambda: no_controller("pids"),
    "cgroup_cpu": lambda: no_controller("cpu"),
    "cgroup_cpuset": lambda: no_controller("cpuset"),
    "cgroup_freezer": lambda: no_controller("freezer"),
    "cgroups": no_cgroups,
    "loop_nodes": no_loop_nodes,
    "mke2fs": no_mke2fs,
    "loop_storage": no_loop_devices,
    "network_namespace": no_network_namespace,
    "seccomp": no_seccomp,
}


def prefix(layer: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.kernel.without", layer)


if __name__ == "__main__":
    LACKING[sys.argv[1]]()
    os.execvp(sys.argv[2], sys.argv[2:])
