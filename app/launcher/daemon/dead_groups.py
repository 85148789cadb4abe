"""Memory groups that were removed and stay, because the kernel still keeps a page for them.

A page of a file of the host is charged to the group whose process read it first. A removed group lives on until its
last page is dropped. It takes 0.3 MiB, and a host has room for 65,535 groups. Such pages are mostly those that the next
sandbox reads too, so a few groups may stay. When there are more, the launcher tells the kernel to drop what it can of
all its groups, dead ones included. That takes 1 to 3 ms for 400 dead groups, and longer where living ones have read
much, so a child does it.
"""

from __future__ import annotations

import os
import time

from app.launcher.daemon.cgroup import CgroupTree
from app.launcher.kernel.syscalls import PR_SET_PDEATHSIG, close_range, prctl

MOST = 128
_LOOK_EVERY = 32  # removed groups
_SECONDS = 5.0


class DeadGroups:
    """The dead groups of this service. Call `go_on` in every turn of the loop, and soon again while `reclaiming`."""

    def __init__(self, tree: CgroupTree) -> None:
        self._tree, self._memory = tree, tree.hierarchy("memory")
        self._others = 0  # memory groups of the host that are not ours, or that nothing helps against
        if tree.counts_all_dead:
            self._others = self._number()
        self._looked_at = 0
        self._child, self._deadline = 0, 0.0

    @property
    def reclaiming(self) -> bool:
        return self._child > 0

    def go_on(self) -> None:
        if self._child:
            self._await_child()
        elif self._tree.removed_groups - self._looked_at >= _LOOK_EVERY:
            self._looked_at = self._tree.removed_groups
            self._others += min(0, self._number())
            if self._memory is not None and self._number() > MOST:
                self._reclaim(self._memory.parent)

    def _number(self) -> int:
        """How many of ours are dead and there."""
        return 0 if self._memory is None else self._tree.dead_groups() - self._others

    def _reclaim(self, at: int) -> None:
        try:
            self._child = os.fork()
        except OSError:
            return  # the next look tries again
        if self._child == 0:
            try:
                self._drop_pages(at)
            finally:
                os._exit(0)
        self._deadline = time.monotonic() + _SECONDS

    def _drop_pages(self, at: int) -> None:
        """In the child. Never to swap: `make_workers_group` and each payload forbid it."""
        prctl(PR_SET_PDEATHSIG, 9)
        os.nice(19)
        for first, last in ((3, at - 1), (at + 1, 0xFFFFFFFF)):
            if first <= last:
                close_range(first, last)  # the end of a socket that we kept would not be noticed at the other one
        self._tree.drop_pages(at)

    def _await_child(self) -> None:
        if time.monotonic() > self._deadline:
            os.kill(self._child, 9)
        if os.waitpid(self._child, os.WNOHANG)[0]:
            self._child = 0
            # What stays now is not to be tried again at every look; the kernel may still be about to free the others.
            if self._tree.counts_all_dead:
                self._others += max(0, self._number() - MOST)
