"""What one service on a host has for itself: a number, and from it host uids, control groups and a run folder.

Two services never collide: the number is held by a lock, for as long as any process of the service lives. The lowest
free one is taken, so what a killed service left behind (empty groups) is found by the next start under its own name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

RUN = Path("/run/bulkhead")
UIDS = 4096


class NoSlot(Exception):
    """`str(error)` is a sentence for people."""


@dataclass(frozen=True, slots=True)
class Slot:
    number: int
    lock: int
    uid_first: int
    uid_count: int

    @property
    def gateway_uid(self) -> int:
        """The first of the slot's uids; the others are for sandboxes."""
        return self.uid_first

    @property
    def folder(self) -> Path:
        return RUN / str(self.number)

    @property
    def cgroup(self) -> str:
        return f"bulkhead/{self.number}"

    @property
    def launcher_socket(self) -> Path:
        return self.folder / "launcher.sock"


def take_slot(uid_base: int, uid_count: int, run: Path = RUN) -> Slot:
    """Raises NoSlot."""
    per_slot = min(UIDS, uid_count)
    try:
        run.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise NoSlot(f"{run} cannot be made: {error.strerror}") from error
    for number in range(uid_count // per_slot):
        first = uid_base + number * per_slot
        # The lock is on the uids, not on the number: services with other ranges must not share one either.
        descriptor = os.open(run / f"uids-{first}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        slot = Slot(number, descriptor, first, per_slot)
        slot.folder.mkdir(mode=0o755, exist_ok=True)
        return slot
    raise NoSlot(f"all {uid_count // per_slot} ranges of host uids are in use by other services of this host")


def release(slot: Slot) -> None:
    """Takes the run folder away, as far as it is empty, and gives the lock back."""
    with contextlib.suppress(OSError):
        slot.launcher_socket.unlink(missing_ok=True)
        (slot.folder / "root").rmdir()
        slot.folder.rmdir()
    os.close(slot.lock)
