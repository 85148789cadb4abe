"""The slot of one service on a host: a range of host uids, and control groups and a run folder that are named after the
first uid.

Two services never have the same uids. The uids are locked as bytes of one file, while any process of the service lives,
whatever ranges the services were given. A service takes the lowest free range. So the next start finds what a killed
service left behind (empty groups) under its own name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

RUN = Path("/run/bulkhead")
UIDS = 4096


class NoSlot(Exception):
    """`str(error)` is a sentence for people."""


@dataclass(frozen=True, slots=True)
class Slot:
    lock: int
    uid_first: int
    uid_count: int
    run: Path

    @property
    def gateway_uid(self) -> int:
        """The first of the slot's uids."""
        return self.uid_first

    @property
    def egress_uid(self) -> int:
        return self.uid_first + 1

    @property
    def sandbox_uids(self) -> range:
        """All others."""
        return range(self.uid_first + 2, self.uid_first + self.uid_count)

    @property
    def folder(self) -> Path:
        return self.run / str(self.uid_first)

    @property
    def cgroup(self) -> str:
        return f"bulkhead/{self.uid_first}"

    @property
    def launcher_socket(self) -> Path:
        return self.folder / "launcher.sock"

    @property
    def egress_socket(self) -> Path:
        return self.folder / "egress.sock"


def take_slot(uid_base: int, uid_count: int, run: Path = RUN) -> Slot:
    """Raises NoSlot."""
    per_slot = min(UIDS, uid_count)
    try:
        _make_folder(run)
    except OSError as error:
        raise NoSlot(f"{run} cannot be made: {error.strerror}") from error
    descriptor = os.open(run / "uids.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for first in range(uid_base, uid_base + uid_count - per_slot + 1, per_slot):
        # An open-file-description lock, fcntl(2): it belongs to the descriptor, so the launcher that inherits it holds
        # the uids even if this process is killed before its sandboxes are.
        lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, first, per_slot, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                continue
            os.close(descriptor)
            raise NoSlot(f"{run} cannot be locked: {error.strerror}") from error
        slot = Slot(descriptor, first, per_slot, run)
        _make_folder(slot.folder)
        return slot
    os.close(descriptor)
    raise NoSlot(f"all {uid_count // per_slot} ranges of host uids are in use by other services of this host")


def _make_folder(folder: Path) -> None:
    """Raises OSError. Gateway and egress process pass through it as other users, whatever the umask."""
    before = os.umask(0o022)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    finally:
        os.umask(before)


def release(slot: Slot) -> None:
    """Removes the run folder if it is empty, and releases the lock."""
    for path in (slot.launcher_socket, slot.egress_socket):
        path.unlink(missing_ok=True)
    for folder in (slot.folder / "root", slot.folder):
        with contextlib.suppress(OSError):
            folder.rmdir()
    os.close(slot.lock)
