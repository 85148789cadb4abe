"""All sandboxes of the service: those that live, and records of those that have ended, within the operator's limits."""

from __future__ import annotations

from collections.abc import Iterator

from app.core.backend import RuntimeInfo
from app.core.budget import Budget
from app.core.commands import spec_bytes
from app.core.disk_room import DiskRoom
from app.core.errors import CapacityExceeded, NotFound
from app.core.models import SandboxSpec
from app.core.resources import Resources
from app.core.retention import Retention
from app.core.sandbox import Sandbox


class Records:
    """Oldest first."""

    def __init__(self, resources: Resources, *, shared: bool = False) -> None:
        """With `shared` there are several clients."""
        self._capacity = resources.capacity
        self._living = Budget("sandboxes", self._capacity.sandboxes, "client", shared=shared)
        self._disks = DiskRoom(shared=shared)
        self._records: dict[str, Sandbox] = {}
        self._alive: list[Sandbox] = []  # all that are not over, and some that are
        self._retired = Retention[str](self._capacity.records)
        self._retired_bytes = Retention[str](resources.commands.size)

    def __iter__(self) -> Iterator[Sandbox]:
        return iter(tuple(self._records.values()))

    def __contains__(self, sandbox: Sandbox) -> bool:
        return self._records.get(sandbox.id) is sandbox

    def find(self, sandbox_id: str) -> Sandbox | None:
        return self._records.get(sandbox_id)

    def get(self, sandbox_id: str) -> Sandbox:
        """Raises NotFound."""
        sandbox = self._records.get(sandbox_id)
        if sandbox is None:
            raise NotFound("sandbox", sandbox_id)
        return sandbox

    def admit(self, client: str, spec: SandboxSpec, info: RuntimeInfo) -> None:
        """Makes room for one more sandbox of this client. Raises CapacityExceeded, LimitTooHigh, DiskFull."""
        # Looked through only then: records of what is over are many more.
        if not (self._living.fits(client) and self._disks.fits(client, spec, info)):
            for sandbox in self._alive:
                if sandbox.over:
                    self._living.give_back(sandbox.client)
                    self._disks.give_back(sandbox.client, sandbox)
            self._alive = [sandbox for sandbox in self._alive if not sandbox.over]
            self._living.check(client)
            self._disks.check(client, spec, info)
        if len(self._records) >= self._capacity.records:
            self.forget(self._next_to_go())

    def _next_to_go(self) -> Sandbox:
        """The next record of an ended sandbox to be dropped. Raises CapacityExceeded when there is none."""
        known = self._retired.next_to_go()
        if known is not None:
            return self._records[known]
        lost = next((sandbox for sandbox in self._records.values() if sandbox.over), None)  # and not destroyed yet
        if lost is None:
            raise CapacityExceeded("sandbox records", self._capacity.records)
        return lost

    def add(self, sandbox: Sandbox, info: RuntimeInfo) -> None:
        """`info` is that of its runtime. Raises CapacityExceeded."""
        sandbox.commands.take(spec_bytes(sandbox.spec))
        self._living.take(sandbox.client)
        self._disks.take(sandbox.client, sandbox, sandbox.spec, info)
        self._records[sandbox.id] = sandbox
        self._alive.append(sandbox)

    def retire(self, sandbox: Sandbox) -> None:
        """Keeps the record of a destroyed sandbox. Such records may have as much memory as those of living sandboxes.
        To make room, the client that has the most loses its oldest."""
        if sandbox not in self:
            return
        if sandbox.ephemeral:
            self.forget(sandbox)
            return
        self._retired.add(sandbox.client, sandbox.id, 1)
        self._retired_bytes.add(sandbox.client, sandbox.id, sandbox.commands.close())
        while self._retired_bytes.full and (oldest := self._retired_bytes.next_to_go()):
            self.forget(self._records[oldest])
        if sandbox in self:
            sandbox.forget_later(self.forget)

    def forget(self, sandbox: Sandbox) -> None:
        sandbox.forgotten()
        if sandbox in self:
            del self._records[sandbox.id]
            self._retired.remove(sandbox.client, sandbox.id)
            self._retired_bytes.remove(sandbox.client, sandbox.id)
