"""System calls that the standard library does not have. Each raises OSError with the kernel's errno.

`ctypes.PyDLL` keeps the interpreter lock: this program has one thread, and dropping the lock costs two atomic
operations a call. Numbers are those of x86_64 and aarch64 where both are the same, else a pair from which one is chosen
at import.
"""

from __future__ import annotations

import ctypes
import os

MACHINE = os.uname().machine
_X86 = MACHINE == "x86_64"

NR_MOUNT = 165 if _X86 else 40
NR_UMOUNT2 = 166 if _X86 else 39
NR_PIVOT_ROOT = 155 if _X86 else 41
NR_PRCTL = 157 if _X86 else 167
NR_UNSHARE = 272 if _X86 else 97
NR_SETNS = 308 if _X86 else 268
NR_CAPGET = 125 if _X86 else 90
NR_CAPSET = 126 if _X86 else 91
NR_SETHOSTNAME = 170 if _X86 else 161
NR_KEYCTL = 250 if _X86 else 219
NR_SECCOMP = 317 if _X86 else 277
NR_SETRESUID = 117 if _X86 else 147
NR_SETRESGID = 119 if _X86 else 149
NR_KCMP = 312 if _X86 else 272
NR_SIGNALFD4 = 289 if _X86 else 74
NR_FALLOCATE = 285 if _X86 else 47
NR_FSTATFS = 138 if _X86 else 44
NR_MOVE_MOUNT = 429
NR_FSOPEN = 430
NR_FSCONFIG = 431
NR_FSMOUNT = 432
NR_CLONE3 = 435
NR_CLOSE_RANGE = 436
NR_MOUNT_SETATTR = 442
NR_LANDLOCK_CREATE_RULESET = 444
NR_LANDLOCK_ADD_RULE = 445
NR_LANDLOCK_RESTRICT_SELF = 446
NR_PIDFD_SEND_SIGNAL = 424

CLONE_PIDFD = 0x1000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2

_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, 1, 4
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME = 1, 2, 4, 8, 15
PR_CAPBSET_DROP, PR_GET_SECUREBITS, PR_SET_SECUREBITS = 24, 27, 28
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECBIT_NO_SETUID_FIXUP = 4

_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
# Fixed types halve the cost of a call (1.8 us instead of 3.6, measured; a sandbox needs about 150). c_void_p takes
# integers, None, bytes and ctypes buffers; no call here has more than five arguments.
_syscall.argtypes = (ctypes.c_long, *(ctypes.c_void_p,) * 5)


def syscall(
    number: int, first: object = 0, second: object = 0, third: object = 0, fourth: object = 0, fifth: object = 0
) -> int:
    """Arguments are integers, None (NULL), bytes or ctypes buffers. Raises OSError."""
    result: int = _syscall(number, first, second, third, fourth, fifth)
    if result == -1:
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, os.strerror(number_of_error))
    return result


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    syscall(
        NR_MOUNT,
        source.encode(),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        flags,
        None if data is None else data.encode(),
    )


def mount_setattr(target: str, set_: int) -> None:
    """Sets attributes on a whole mount tree (Linux 5.12), mount_setattr(2)."""
    attr = (ctypes.c_uint64 * 4)(set_, 0, 0, 0)
    syscall(NR_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), AT_RECURSIVE, attr, ctypes.sizeof(attr))


def detached_mount(kind: str, options: dict[str, str], attributes: int) -> int:
    """A descriptor of a file system that is mounted nowhere yet (Linux 5.2), fsopen(2), fsmount(2). An option without a
    value has the value ""."""
    context = syscall(NR_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
    try:
        for name, value in options.items():
            if value:
                syscall(NR_FSCONFIG, context, _FSCONFIG_SET_STRING, name.encode(), value.encode(), 0)
            else:
                syscall(NR_FSCONFIG, context, _FSCONFIG_SET_FLAG, name.encode(), None, 0)
        syscall(NR_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall(NR_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def attach_mount(descriptor: int, target: str) -> None:
    """Mounts it at `target`, move_mount(2)."""
    syscall(NR_MOVE_MOUNT, descriptor, b"", AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)


def allocate(descriptor: int, size: int) -> None:
    """Reserves the first `size` bytes of a file on its file system, fallocate(2). Unlike posix_fallocate(3) it never
    writes them where the file system cannot reserve."""
    syscall(NR_FALLOCATE, descriptor, 0, 0, size)


def file_system_type(descriptor: int) -> int:
    """The magic number of the file system that a file is on, fstatfs(2)."""
    found = (ctypes.c_long * 32)()
    syscall(NR_FSTATFS, descriptor, found)
    return int(found[0])


def umount(target: str, flags: int = 0) -> None:
    syscall(NR_UMOUNT2, os.fsencode(target), flags)


def pivot_root(new: str, old: str) -> None:
    syscall(NR_PIVOT_ROOT, os.fsencode(new), os.fsencode(old))


def prctl(option: int, *args: object) -> int:
    return syscall(NR_PRCTL, option, *args)


def unshare(flags: int) -> None:
    syscall(NR_UNSHARE, flags)


def setns(descriptor: int, kind: int) -> None:
    syscall(NR_SETNS, descriptor, kind)


def sethostname(name: bytes) -> None:
    syscall(NR_SETHOSTNAME, name, len(name))


def close_range(first: int, last: int) -> None:
    syscall(NR_CLOSE_RANGE, first, last, 0)


def set_user_ids(uid: int) -> None:
    """Sets the ids of the calling thread, which is the only one. libc's wrapper would also signal other threads."""
    syscall(NR_SETRESUID, uid, uid, uid)


def set_effective_uid(uid: int) -> None:
    """Sets the effective uid of the calling thread. The real and the saved uid stay, so this can be undone."""
    syscall(NR_SETRESUID, -1, uid, -1)


def parent_death_signal() -> int:
    """The signal that the caller gets when its parent ends. 0 for none."""
    number = ctypes.c_int()
    prctl(PR_GET_PDEATHSIG, ctypes.byref(number))
    return number.value


def set_group_ids(gid: int) -> None:
    syscall(NR_SETRESGID, gid, gid, gid)


def kill_by_pidfd(pidfd: int, signal_number: int) -> None:
    syscall(NR_PIDFD_SEND_SIGNAL, pidfd, signal_number, None, 0)


def signalfd(signal_number: int) -> int:
    """A descriptor that is readable while that signal, which has to be blocked, is pending; signalfd(2)."""
    mask = (1 << (signal_number - 1)).to_bytes(8, "little")
    return syscall(NR_SIGNALFD4, -1, mask, len(mask), os.O_CLOEXEC | os.O_NONBLOCK)


_CAPABILITY_HEADER = (0x20080522).to_bytes(4, "little") + bytes(4)  # version 3, of the caller


def permitted_capabilities() -> int:
    """The caller's permitted set, as bits, capget(2)."""
    data = (ctypes.c_uint32 * 6)()
    syscall(NR_CAPGET, ctypes.create_string_buffer(_CAPABILITY_HEADER, 8), data)
    return int(data[1]) | int(data[4]) << 32


def set_capabilities(bits: int) -> None:
    """The caller's effective and permitted sets; the inheritable one becomes empty, capset(2)."""
    low, high = (bits & 0xFFFFFFFF).to_bytes(4, "little"), (bits >> 32).to_bytes(4, "little")
    syscall(NR_CAPSET, _CAPABILITY_HEADER, low + low + bytes(4) + high + high + bytes(4))


def clone3(flags: int) -> tuple[int, int]:
    """Clones this process into new namespaces. Returns (0, -1) in the clone and (pid, pidfd) here. It returns twice
    without the interpreter's fork hooks. This is safe only in this program: it has one thread, holds no lock and has no
    buffered stream. `os.fork` with `unshare` would take 0.2 ms more (measured), as it copies the page tables twice.
    """
    pidfd = ctypes.c_int(-1)
    args = (ctypes.c_uint64 * 11)()
    args[0] = flags | CLONE_PIDFD
    args[1] = ctypes.addressof(pidfd)
    args[4] = 17  # SIGCHLD
    pid = syscall(NR_CLONE3, args, ctypes.sizeof(args))
    return pid, pidfd.value
