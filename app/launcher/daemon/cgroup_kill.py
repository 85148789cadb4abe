"""Kills the processes that a control group lists, one by one, and never a process of another group."""

from __future__ import annotations

import os

from app.launcher.kernel.syscalls import kill_by_pidfd

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Callable

_AT_ONCE = 128  # descriptors


def kill_each(pids: list[int], listed: Callable[[], list[int]]) -> None:
    """Kills a process only if its pid is still listed after its pidfd was opened. Without this check root could kill a
    stranger's process that got the same number meanwhile."""
    for begin in range(0, len(pids), _AT_ONCE):
        _kill_some(pids[begin : begin + _AT_ONCE], listed)


def _kill_some(pids: list[int], listed: Callable[[], list[int]]) -> None:
    victims: list[tuple[int, int]] = []
    try:
        for pid in pids:
            try:
                victims.append((pid, os.pidfd_open(pid)))
            except ProcessLookupError:
                continue
        still = set(listed()) if victims else set()
        for pid, pidfd in victims:
            if pid in still:
                try:
                    kill_by_pidfd(pidfd, 9)
                except ProcessLookupError:
                    continue
    finally:
        for _, pidfd in victims:
            os.close(pidfd)
