"""Each client's share of the room that a runtime has for disks."""

from __future__ import annotations

from collections.abc import Hashable

from app.core.backend import RuntimeInfo
from app.core.budget import Budget
from app.core.errors import BoundExceeded, DiskFull, LimitTooHigh
from app.core.limits import MIB
from app.core.models import SandboxSpec, Storage


def no_room(disk_mib: int) -> DiskFull:
    """The refusal of a disk of this size."""
    detail = (
        f"the operator's disk has no room for one of {disk_mib} MiB above its reserve: ask for less, or try again later"
    )
    return DiskFull(disk_mib * MIB, detail)


class DiskRoom:
    """One client alone may have all, and the runtime refuses what does not fit. With several (`shared`), each may have
    half of what the others leave, as of everything else."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._budgets: dict[str, Budget] = {}  # by runtime
        self._taken: dict[Hashable, tuple[Budget, int]] = {}  # by sandbox

    def check(self, client: str, spec: SandboxSpec, info: RuntimeInfo) -> None:
        """Raises CapacityExceeded; DiskFull for more than all the room, and LimitTooHigh for more of it than any client
        may have."""
        budget, disk_mib = self._budget(spec, info), spec.limits.disk_mib
        if budget is None:
            return
        if disk_mib * MIB > budget.size:
            raise no_room(disk_mib)
        try:
            budget.check(client, disk_mib * MIB)
        except BoundExceeded as error:
            way_out = "no client may have more of the room for disks"
            raise LimitTooHigh("/limits/disk_mib", disk_mib, error.limit // MIB, way_out) from error

    def fits(self, client: str, spec: SandboxSpec, info: RuntimeInfo) -> bool:
        budget = self._budget(spec, info)
        return budget is None or budget.fits(client, spec.limits.disk_mib * MIB)

    def take(self, client: str, sandbox: Hashable, spec: SandboxSpec, info: RuntimeInfo) -> None:
        """For the life of the sandbox. Raises what `check` raises."""
        self.check(client, spec, info)
        if (budget := self._budget(spec, info)) is not None:
            size = spec.limits.disk_mib * MIB
            budget.take(client, size)
            self._taken[sandbox] = budget, size

    def give_back(self, client: str, sandbox: Hashable) -> None:
        """What the sandbox has, if it has any."""
        budget, size = self._taken.pop(sandbox, (None, 0))
        if budget is not None:
            budget.give_back(client, size)

    def _budget(self, spec: SandboxSpec, info: RuntimeInfo) -> Budget | None:
        """None: nobody shares, or the room is not known. The room changes with what else is on the operator's disk."""
        if not self._shared or spec.storage is not Storage.DISK or info.disk_bytes is None:
            return None
        budget = self._budgets.setdefault(info.name, Budget("MiB of disks", 0, "client", unit=MIB))
        budget.resize(info.disk_bytes)
        return budget
