"""Finds out what the host offers, and measures what a sandbox really got."""

from __future__ import annotations

import _socket
import fcntl
import os

from app.launcher.config import OPTIONAL_LAYERS
from app.launcher.daemon.cgroup import CgroupTree
from app.launcher.daemon.cloning import clone_owned_by
from app.launcher.kernel import landlock
from app.launcher.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    NR_CLONE3,
    clone3,
    file_system_type,
    setns,
    syscall,
)

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")

# What the launcher works with, and its number in linux/capability.h. docker-compose.yml has the reason for each.
CAPABILITIES = {
    "CHOWN": 0,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
}
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
_NS_GET_OWNER_UID = 0xB704
_STORAGE = {0x01021994: ("memory", "tmpfs"), 0xEF53: ("disk", "ext4")}  # linux/magic.h
_STATUS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "NSpid")


def missing_capabilities() -> list[str]:
    """Names of the Linux capabilities that this process needs as the launcher and does not have."""
    effective = int(status_of(os.getpid())["CapEff"], 16)
    return [f"CAP_{name}" for name, number in CAPABILITIES.items() if not effective & 1 << number]


def can_make_user_namespaces(owner: int) -> bool:
    """Finds out by trying and not from sysctls, as AppArmor, a limit or an outer filter may forbid it. Root tries it as
    the uid `owner`, as the launcher does. Other users can only make their own."""
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID
    try:
        pid, pidfd = clone_owned_by(owner, flags) if os.geteuid() == 0 else clone3(flags)
    except OSError:
        return False
    if pid == 0:
        os._exit(0)
    os.close(pidfd)
    os.waitpid(pid, 0)
    return True


def knows_clone3() -> bool:
    """The control for `prove_filter`: without a filter, a clone3 without arguments is EINVAL."""
    try:
        syscall(NR_CLONE3, None, 0)
    except OSError as error:
        return error.errno == 22
    return True


def available_layers(tree: CgroupTree, owner: int) -> set[str]:
    """`owner` is a host uid of sandboxes."""
    version = landlock.abi()
    found = tree.layers
    if version >= 1:
        found.add("landlock")
    if landlock.handled_network(version):
        found.add("landlock_tcp")
    if landlock.handled_scopes(version):
        found.add("landlock_scopes")
    if can_make_user_namespaces(owner):
        found.add("user_namespace")
    return found


def missing_layers(available: set[str], accepted: list[str]) -> list[str]:
    """Optional layers that the host lacks and that were not accepted as missing, in their fixed order."""
    return [layer for layer in OPTIONAL_LAYERS if layer not in available and layer not in accepted]


def status_of(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status about privileges."""
    lines = [line.partition(":") for line in _text_of(f"/proc/{pid}/status").splitlines()]
    return {name: value.strip() for name, _, value in lines if name in _STATUS}


def groups_of(pid: int) -> dict[str, str]:
    """Controller -> path of the control group, of version 2 under the name "", proc_pid_cgroup(5)."""
    lines = [line.split(":", 2) for line in _text_of(f"/proc/{pid}/cgroup").splitlines()]
    return {name: path for _, names, path in lines for name in names.split(",")}


def descriptors_of(pid: int) -> int:
    """How many a process has. 0 before Linux 6.2, where only a list of them tells: that takes 70 us, and this 5."""
    return os.stat(f"/proc/{pid}/fd").st_size


def _text_of(path: str) -> str:
    """A text file object costs 50 us more."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 16_384).decode()
    finally:
        os.close(descriptor)


def namespaces_of(pid: int | str) -> dict[str, int]:
    """Name -> inode of the namespace."""
    found: dict[str, int] = {}
    for name in NAMESPACES:
        found[name] = os.stat(f"/proc/{pid}/ns/{name}").st_ino
    return found


def owner_of_user_namespace(pid: int) -> int:
    """The host uid that owns the user namespace, whose counts its processes use up too, ioctl_ns(2). Raises OSError."""
    owner = bytearray(4)
    descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _NS_GET_OWNER_UID, owner)
    finally:
        os.close(descriptor)
    return int.from_bytes(owner, "little")


def storage_of(pid: int) -> dict[str, str]:
    """Where the files of the sandbox of worker `pid` are: what is mounted at its /workspace, and how many bytes it has
    room for. Raises OSError."""
    descriptor = os.open(f"/proc/{pid}/root/workspace", os.O_PATH | os.O_CLOEXEC)
    try:
        kind, name = _STORAGE.get(file_system_type(descriptor), ("unknown", "unknown"))
        found = os.fstatvfs(descriptor)
    finally:
        os.close(descriptor)
    return {"storage": kind, "storage_file_system": name, "storage_bytes": str(found.f_bavail * found.f_frsize)}


def covered(pid: int, paths: list[str]) -> list[str]:
    """Those of the files of the template that worker `pid` sees another file in place of, on a file system that nobody
    can write to. Raises OSError."""
    inside = [(path, f"/proc/{pid}/root{path}") for path in paths if os.path.exists(path)]
    return [
        path
        for path, seen in inside
        if os.stat(seen).st_dev != os.stat(path).st_dev and os.statvfs(seen).f_flag & os.ST_RDONLY
    ]


def in_network(pid: int, own_network: int, call: Callable[[], Result]) -> Result:
    """Calls `call` in the network namespace of `pid`, and returns to the launcher's own. Ends the process if it cannot
    return: nothing may go on in a sandbox's namespace. The two changes take 6 us, measured. Raises OSError, and what
    `call` raises."""
    inside = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(inside, CLONE_NEWNET)
        try:
            return call()
        finally:
            _return_to(own_network)
    finally:
        os.close(inside)


def _return_to(network: int) -> None:
    try:
        setns(network, CLONE_NEWNET)
    except OSError:
        os._exit(1)


def open_netlink(pid: int, own_network: int) -> int:
    """Opens a route socket in the network namespace of `pid`. Its holder can read that namespace and cannot change it.
    Raises OSError."""
    return in_network(pid, own_network, _netlink)


def _netlink() -> int:
    return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0).detach()


def shortcomings(status: dict[str, str], entered: list[str], wanted: list[str]) -> list[str]:
    """What is not in force for a worker and must be. Empty when everything is."""
    wrong = [f"namespace {name} was not entered" for name in wanted if name not in entered]
    wrong += [f"{name} is {status.get(name)}" for name in _STATUS if name.startswith("Cap") and int(status[name], 16)]
    if status.get("NoNewPrivs") != "1":
        wrong.append("no_new_privs is not set")
    if status.get("Seccomp") != "2":
        wrong.append("no system call filter is in force")
    if "0" in status["Uid"].split() or "0" in status["Gid"].split():
        wrong.append("it runs as root of the host")
    return wrong
