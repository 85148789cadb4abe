"""Landlock: an unprivileged, irrevocable list of what a process may access. Facts: landlock(7) and the kernel's own
docs."""

from __future__ import annotations

import ctypes
import os

from app.launcher.kernel.syscalls import (
    NR_LANDLOCK_ADD_RULE,
    NR_LANDLOCK_CREATE_RULESET,
    NR_LANDLOCK_RESTRICT_SELF,
    syscall,
)

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 1 << 0, 1 << 1
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2  # the second from ABI 4

READ = EXECUTE | READ_FILE | READ_DIR
LOOK = READ_FILE | READ_DIR
NODE = READ_FILE | WRITE_FILE | TRUNCATE  # a device file: no execution, no ioctl
TERMINAL = NODE | IOCTL_DEV  # which ioctls, the filter says

# Names in the order of their bits, for the receipt.
FS_NAMES = (
    "execute", "write_file", "read_file", "read_dir", "remove_dir", "remove_file", "make_char", "make_dir",
    "make_reg", "make_sock", "make_fifo", "make_block", "make_sym", "refer", "truncate", "ioctl_dev",
)  # fmt: skip
NET_NAMES = ("bind_tcp", "connect_tcp")
SCOPE_NAMES = ("abstract_unix_socket", "signal")

# Handled file rights by ABI: REFER came with 2, TRUNCATE with 3, IOCTL_DEV with 5.
_FS_BY_ABI = (0, 0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF)


def abi() -> int:
    """The highest version that the kernel has. 0 when it has none, does not list it in `lsm=`, or hides it."""
    try:
        return syscall(NR_LANDLOCK_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def handled_files(version: int) -> int:
    return _FS_BY_ABI[min(version, len(_FS_BY_ABI) - 1)]


def handled_network(version: int) -> int:
    return BIND_TCP | CONNECT_TCP if version >= 4 else 0


def handled_scopes(version: int) -> int:
    return SCOPE_ABSTRACT_UNIX | SCOPE_SIGNAL if version >= 6 else 0


def names(table: tuple[str, ...], bits: int) -> str:
    return ",".join([name for index, name in enumerate(table) if bits >> index & 1])


def read_write(version: int) -> int:
    """All rights but making device nodes, which needs a capability anyway."""
    return handled_files(version) & ~(MAKE_CHAR | MAKE_BLOCK)


class Ruleset:
    """Collects rules, until `enforce` applies them to the caller for ever. Raises OSError. It can be used once."""

    def __init__(self, version: int, *, files: int, network: int, scopes: int) -> None:
        attr = (ctypes.c_uint64 * 3)(files, network, scopes)
        size = 8 if version < 4 else 16 if version < 6 else 24
        self._files = files
        self._fd = syscall(NR_LANDLOCK_CREATE_RULESET, attr, size, 0)

    def allow(self, path: str, rights: int) -> None:
        """Allows everything beneath `path` as it is now. A rule binds to the inode, so it does not cover what is
        mounted over it later. Rights that only directories have are left out for a file, as the kernel refuses them
        (EINVAL)."""
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            is_directory = os.fstat(descriptor).st_mode & 0o170000 == 0o040000
            rights &= self._files if is_directory else self._files & ON_FILES
            packed = rights.to_bytes(8, "little") + descriptor.to_bytes(4, "little")  # 12 bytes, packed
            syscall(NR_LANDLOCK_ADD_RULE, self._fd, _RULE_PATH_BENEATH, packed, 0)
        finally:
            os.close(descriptor)

    def allow_connect(self, port: int) -> None:
        """Allows TCP connections to this port of any address. The rule set has to handle CONNECT_TCP."""
        syscall(NR_LANDLOCK_ADD_RULE, self._fd, _RULE_NET_PORT, (ctypes.c_uint64 * 2)(CONNECT_TCP, port), 0)

    def close(self) -> None:
        """Closes a rule set that is not enforced."""
        os.close(self._fd)

    def enforce(self) -> None:
        """Needs no_new_privs. After it every mount call is EPERM, for root too."""
        syscall(NR_LANDLOCK_RESTRICT_SELF, self._fd, 0)
        os.close(self._fd)
