"""The template: the root that all sandboxes share.

The launcher itself lives in the template. Its root is already the sandbox's root, read-only. A sandbox gets a clone of
it with its mount namespace, and never sees a host mount. To build the root anew for each sandbox would cost 0.78 ms
(measured).
"""

from __future__ import annotations

import os

from app.launcher.config import Config
from app.launcher.kernel.syscalls import (
    CLONE_NEWNS,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    mount_setattr,
    pivot_root,
    umount,
    unshare,
)
from app.launcher.protocol import RESOLVER_ADDRESS
from app.launcher.sandbox import trust
from app.launcher.sandbox.mounts import CANARY, CONSTANTS, MASKED_FILES, MASKED_FOLDERS, OWN, SYSTEM_LINKS
from app.launcher.sandbox.own_groups import GroupMount, make_mount_points

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_ETC = {
    "passwd": "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
    "sandbox:x:1000:1000:sandbox:/workspace:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n",
    "hostname": "{hostname}\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    # Of every sandbox. Without a network nothing listens there, and a question is refused at once (ECONNREFUSED).
    "resolv.conf": f"nameserver {RESOLVER_ADDRESS[0]}\noptions timeout:2 attempts:2\n",
}


def enter_template(config: Config, groups: list[GroupMount]) -> trust.TrustStores:
    """Builds the template in a new mount namespace and makes it the launcher's root. `groups`: what a sandbox will see
    of its control groups. Returns its trust stores. Raises OSError."""
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = config.run_dir + "/root"
    os.makedirs(root, mode=0o755, exist_ok=True)
    mount("bulkhead", root, "tmpfs", MS_NOSUID, "mode=0755,size=32m,nr_inodes=16k")
    for name in ("proc", "dev", "dev/pts", "dev/shm", "etc", "workspace", "tmp", "var", "run", OWN.strip("/")):
        os.mkdir(f"{root}/{name}", 0o755)
    make_mount_points(root, groups)
    os.symlink("../tmp", f"{root}/var/tmp")  # noqa: S108 - the sandbox's own
    for path in config.root_paths:
        _bind_read_only(path, root + path)
    for name in SYSTEM_LINKS:
        _system_folder(name, root)
    _write_etc(config, root)
    _make_devices(root)
    _write_own(root)
    # Unmasked, and covered in every sandbox by one of its own: without a fully visible /proc in the mount namespace
    # the kernel refuses to mount another in a child with a user namespace (EPERM).
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.chdir(root)
    pivot_root(".", ".")
    umount(".", MNT_DETACH)
    os.chdir("/")
    stores = trust.make_template(config.root_paths)  # here, where links lead to files of the template
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
    return stores


def _bind_read_only(source: str, target: str) -> None:
    """A folder or file of the host with what is mounted below it, never writable, no set-id, no devices."""
    if os.path.isdir(source):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    mount(source, target, None, MS_BIND | MS_REC)
    mount_setattr(target, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)


def _system_folder(name: str, root: str) -> None:
    path = f"/{name}"
    if os.path.islink(path):
        os.symlink(os.readlink(path), root + path)
    elif os.path.isdir(path):
        _bind_read_only(path, root + path)


def _copy(source: str, target: str) -> None:
    """A file, a link or a folder of them, as they are now. Copies, not mounts: every mount of the template is paid for
    by every sandbox, at its clone and at its end. Nothing that the host keeps from its own users."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    elif os.path.isdir(source) and os.stat(source).st_mode & 0o005 == 0o005:
        os.makedirs(target, mode=0o755, exist_ok=True)
        for name in os.listdir(source):
            _copy(f"{source}/{name}", f"{target}/{name}")
    elif os.path.isfile(source) and os.stat(source).st_mode & 0o004:
        with open(source, "rb") as original, open(target, "wb") as copy:
            copy.write(original.read())


def _write_etc(config: Config, root: str) -> None:
    for path in config.etc_paths:
        if os.path.lexists(path):
            os.makedirs(os.path.dirname(root + path), mode=0o755, exist_ok=True)
            _copy(path, root + path)
    for name, text in _ETC.items():
        with open(f"{root}/etc/{name}", "w") as file:
            file.write(text.replace("{hostname}", config.hostname))


def _make_device(original: str, target: str) -> None:
    """A node of its own, or where that is not allowed (a container without CAP_MKNOD) the host's, mounted read-only:
    a device takes writes all the same, but its inode is the host's, and `touch` would change it."""
    try:
        os.mknod(target, 0o20666, os.stat(original).st_rdev)
        os.chmod(target, 0o666)  # noqa: S103 - as every Linux has it; what is written to it goes nowhere
    except PermissionError:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        mount(original, target, None, MS_BIND)
        mount_setattr(target, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)


def _make_devices(root: str) -> None:
    for name in DEVICES:
        _make_device(f"/dev/{name}", f"{root}/dev/{name}")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"{root}/dev/{name}")
    os.symlink("pts/ptmx", f"{root}/dev/ptmx")


def _write_own(root: str) -> None:
    with open(root + CANARY, "w") as file:
        file.write("only Landlock keeps this file from being read\n")
    os.chmod(root + CANARY, 0o644)
    os.close(os.open(f"{root}{OWN}/empty", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0))
    os.mkdir(f"{root}{OWN}/void", 0)
    for name, text in (("cgroups", _groups_of_all()), ("membership", _membership())):
        with open(f"{root}{OWN}/{name}", "w") as file:
            file.write(text)
        os.chmod(f"{root}{OWN}/{name}", 0o444)


def _groups_of_all() -> str:
    """/proc/cgroups as of a host with one group in each hierarchy, cgroups(7)."""
    with open("/proc/cgroups") as file:
        rows = [line.split("\t") for line in file.read().splitlines()]
    return "".join("\t".join(row if row[0].startswith("#") else [*row[:2], "1", *row[3:]]) + "\n" for row in rows)


def _membership() -> str:
    """/proc/PID/cgroup of a process in the root of every hierarchy."""
    with open("/proc/self/cgroup") as file:
        return "".join(":".join([*line.split(":")[:2], "/\n"]) for line in file)


def masks() -> list[tuple[str, str]]:
    """Pairs (what covers, what is covered) for this kernel's /proc. The launcher looks them up once."""
    files = [(OWN + "/empty", f"/proc/{name}") for name in MASKED_FILES]
    folders = [(OWN + "/void", f"/proc/{name}") for name in MASKED_FOLDERS]
    constants = [(f"{OWN}/{name}", f"/proc/{target}") for target, name in CONSTANTS.items()]
    return [pair for pair in files + folders + constants if os.path.exists(pair[1])]
