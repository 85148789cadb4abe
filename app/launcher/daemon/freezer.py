"""Stops everything in a sandbox but its worker: the kernel freezes the sandbox's control group.

The worker lives outside of that group on both versions, and stays awake. It reaps what is killed during the pause and
reports it, takes signals (the kernel keeps them for frozen processes), and ends with its owner.

On version 2 (cgroup.freeze) a kill ends a frozen process. On version 1 (freezer.state) a kill takes effect only after a
thaw. So SIGKILL is always sent before the thaw: a killed process runs not one more instruction.
"""

from __future__ import annotations

from app.launcher.daemon.cgroup import CgroupTree


class Freezer:
    """The freezer of one sandbox, whose payload's group is called `name`."""

    __slots__ = ("_name", "_tree", "frozen")

    def __init__(self, tree: CgroupTree, name: str) -> None:
        self._tree, self._name = tree, name
        self.frozen = False  # asked for and not taken back, whether or not all have stopped yet

    @property
    def available(self) -> bool:
        return self._tree.freezer is not None

    def freeze(self) -> None:
        """Begins to freeze: each process stops at its next return from the kernel. Raises OSError."""
        self._tree.freeze(self._name)
        self.frozen = True

    def thaw(self) -> None:
        """Thaws the payload. Does nothing if it is not frozen. Raises OSError."""
        if self.frozen:
            self._tree.thaw(self._name)
            self.frozen = False

    @property
    def settled(self) -> bool:
        """Whether all processes have stopped, so that none can run or fork. Raises OSError."""
        return self.frozen and self._tree.is_frozen(self._name)

    def kill_frozen(self) -> None:
        """Sends SIGKILL to all that is frozen, before a thaw. Raises OSError."""
        if self.frozen:
            self._tree.kill_frozen(self._name)

    def release(self, killed: list[int]) -> None:
        """Lets some killed processes end while the others stay frozen. Raises OSError."""
        self._tree.release(killed)
