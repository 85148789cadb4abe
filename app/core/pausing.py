"""Pausing and resuming: one change of a sandbox at a time, each carried to its end whatever becomes of its client.

Neither clock of the sandbox stops, nor that of its executions: each ends what is paused as it would what runs. An
execution that is paused counts as running, so that its sandbox is not idle.
"""

from __future__ import annotations

import asyncio

from app.core.backend import Capability, SandboxHandle
from app.core.errors import UnsupportedByRuntime, WrongState
from app.core.models import SandboxState
from app.core.records import Sandbox
from app.core.registry import Registry
from app.core.tasks import Tasks

_ALIVE = frozenset({SandboxState.RUNNING, SandboxState.PAUSED})


class Pausing:
    def __init__(self, registry: Registry, tasks: Tasks) -> None:
        self._registry = registry
        self._tasks = tasks

    async def pause(self, sandbox: Sandbox) -> None:
        """No process of it runs when this returns. Idempotent.

        Raises UnsupportedByRuntime, WrongState (it is still created, or has ended), or what the runtime raised: then
        it runs as before.
        """
        await self._change(sandbox, SandboxState.PAUSED)

    async def resume(self, sandbox: Sandbox) -> None:
        """Idempotent. Raises as `pause`."""
        await self._change(sandbox, SandboxState.RUNNING)

    async def _change(self, sandbox: Sandbox, wanted: SandboxState) -> None:
        info = self._registry.get(sandbox.spec.runtime).info
        if Capability.PAUSE not in info.capabilities:
            raise UnsupportedByRuntime(Capability.PAUSE, info.name)
        await asyncio.shield(self._tasks.spawn(self._carry_out(sandbox, wanted)))

    async def _carry_out(self, sandbox: Sandbox, wanted: SandboxState) -> None:
        """The runtime is asked even when the record has the state already: it may have done what it did not confirm."""
        async with sandbox.change:
            handle = _living(sandbox)
            await (handle.pause() if wanted is SandboxState.PAUSED else handle.resume())
            _living(sandbox)  # its end does not wait for this
            sandbox.state = wanted


def _living(sandbox: Sandbox) -> SandboxHandle:
    if sandbox.state not in _ALIVE or sandbox.handle is None or sandbox.ending is not None:
        raise WrongState(sandbox.state, f"the sandbox is {sandbox.describe()}")
    return sandbox.handle
