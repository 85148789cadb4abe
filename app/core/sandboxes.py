"""All sandboxes: to create, to find and to end them. What happens to one is in `sandbox.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

from app.core.errors import CapabilityMissing, Conflict, NotFound, ServiceStopping
from app.core.executions import Execution
from app.core.models import SandboxSpec, new_id
from app.core.output import SandboxSpill
from app.core.records import Records
from app.core.registry import Registry
from app.core.resources import Capacity, Observer, Resources
from app.core.sandbox import Sandbox
from app.core.tasks import Tasks
from app.core.transfers import Transfers

__all__ = ["Capacity", "Observer", "Sandbox", "Sandboxes"]


class Sandboxes:
    def __init__(
        self,
        registry: Registry,
        capacity: Capacity,
        observer: Observer,
        spill_of: Callable[[str], SandboxSpill] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """`shared`: there are several clients, and each has a share of what all may have."""
        self.registry = registry
        self.capacity = capacity
        self._tasks = Tasks()
        self._resources = Resources(capacity, observer, self._tasks, spill_of)
        self._records = Records(self._resources, shared=shared)
        self.transfers = Transfers(registry, capacity, self._records)
        self._closing = False

    # --- create

    def create(
        self, spec: SandboxSpec, sandbox_id: str | None = None, client: str = "", *, ephemeral: bool = False
    ) -> tuple[Sandbox, bool]:
        """Begins a sandbox. Returns True when it is new. For an id that is taken it returns the existing sandbox if the
        spec is the same. `ephemeral`: no record of it is kept after its end.

        Raises CapabilityMissing, Conflict, CapacityExceeded, BoundExceeded, LimitTooHigh, DiskFull, ServiceStopping;
        errors of the boot come from `wait_created`.
        """
        backend = self.registry.get(spec.runtime)
        missing = spec.requires - backend.info.capabilities
        if missing:
            raise CapabilityMissing(missing, backend.info.name)
        known = self._records.find(sandbox_id) if sandbox_id else None
        if known is not None:
            if known.ends:
                raise Conflict(f"the id {known.id!r} is taken by a destroyed sandbox; {_when_free(known)}")
            if known.spec != spec:
                raise Conflict(f"the id {known.id!r} is taken by a sandbox that was made by a different request")
            return known, False
        if self._closing:
            raise ServiceStopping
        self._records.admit(client, spec, backend.info)
        sandbox = Sandbox(
            sandbox_id or new_id("sbx_"),
            replace(spec, client=client),
            backend,
            self._resources,
            self._records.retire,
            named=sandbox_id is not None,
            ephemeral=ephemeral,
        )
        self._records.add(sandbox, backend.info)
        sandbox.begin()
        return sandbox, True

    async def wait_created(self, sandbox: Sandbox, seconds: float) -> None:
        """Returns when it runs, was destroyed, or `seconds` passed. Raises the error of the boot, and then no record of
        it is left."""
        await sandbox.wait(seconds)
        if sandbox.failure is not None:
            self._records.forget(sandbox)
            raise sandbox.failure

    # --- find

    def get(self, sandbox_id: str) -> Sandbox:
        """Raises NotFound."""
        return self._records.get(sandbox_id)

    def find(self, sandbox_id: str) -> Sandbox | None:
        return self._records.find(sandbox_id)

    def use(self, sandbox_id: str) -> Sandbox:
        """Like `get`, and counts as activity."""
        sandbox = self.get(sandbox_id)
        sandbox.touch()
        return sandbox

    def __iter__(self) -> Iterator[Sandbox]:
        """Oldest first."""
        return iter(self._records)

    def execution(self, sandbox_id: str, execution_id: str) -> Execution:
        """Raises NotFound."""
        execution = self.use(sandbox_id).executions.get(execution_id)
        if execution is None:
            raise NotFound("execution", execution_id)
        return execution

    # --- the end

    async def aclose(self) -> None:
        """Destroys all sandboxes, and waits for their end."""
        self._closing = True
        for _ in range(2):  # an attempt that was under way may fail for a reason that is over
            await asyncio.gather(
                *(sandbox.destroy("the service is stopping") for sandbox in self), return_exceptions=True
            )
        for sandbox in self:
            self._records.forget(sandbox)
        await self._tasks.aclose()


def _when_free(sandbox: Sandbox) -> str:
    if sandbox.free_at is None:
        return "the id becomes free some time after the sandbox has ended"
    return f"the id becomes free at {sandbox.free_at:%Y-%m-%dT%H:%M:%SZ}"
