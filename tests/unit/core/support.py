"""A core with a NullBackend in it, and what must be true when a test leaves it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from app.core.executions import Execution
from app.core.limits import Limits
from app.core.models import Channel, Command, OnOutputLimit, SandboxSpec, Stdin
from app.core.output import SandboxSpill
from app.core.policy import Policy
from app.core.registry import Registry
from app.core.sandboxes import Capacity, Sandbox, Sandboxes
from tests.null_backend import NullBackend, NullExecution

SPEC = SandboxSpec("process", Limits(), Policy())


def spec(**changes: Any) -> SandboxSpec:
    return replace(SPEC, **changes)


def command(*argv: str, stdin: bool = False, kill: bool = False, **changes: Any) -> Command:
    return Command(
        argv,
        stdin=Stdin.OPEN if stdin else Stdin.NONE,
        on_output_limit=OnOutputLimit.KILL if kill else OnOutputLimit.DROP_OLDEST,
        **changes,
    )


@dataclass
class Notes:
    """An Observer that remembers."""

    sandboxes: list[str] = field(default_factory=list)
    executions: list[str] = field(default_factory=list)

    def sandbox_created(self, runtime: str, seconds: float) -> None:
        self.sandboxes.append("created")

    def sandbox_ended(self, runtime: str, reason: str) -> None:
        self.sandboxes.append(reason)

    def execution_started(self, runtime: str, seconds: float) -> None:
        self.executions.append("started")

    def execution_ended(self, runtime: str, reason: str, output_bytes: int) -> None:
        self.executions.append(f"{reason} {output_bytes}")


class Core:
    """`async with Core() as core`: at the end everything is closed, and nothing may be left."""

    def __init__(
        self,
        spill_of: Callable[[str], SandboxSpill] | None = None,
        *,
        backend: NullBackend | None = None,
        **numbers: Any,
    ) -> None:
        self.backend = backend or NullBackend()
        self.notes = Notes()
        registry = Registry([self.backend], default="process")
        self.sandboxes = Sandboxes(registry, Capacity(**numbers), self.notes, spill_of)

    async def __aenter__(self) -> Core:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is None:
            await self.close()

    async def close(self) -> None:
        await self.sandboxes.aclose()
        assert self.backend.alive == []
        await no_tasks_left()
        assert timers() == []

    async def create(self, wanted: SandboxSpec = SPEC, sandbox_id: str | None = None) -> Sandbox:
        sandbox, _ = self.sandboxes.create(wanted, sandbox_id)
        await self.sandboxes.wait_created(sandbox, 60)
        return sandbox

    async def start(self, sandbox: Sandbox, *argv: str, **options: Any) -> Execution:
        execution, _ = await sandbox.execute(command(*argv, **options))
        return execution

    def program(self, execution: Execution) -> NullExecution:
        return self.backend.sandboxes[execution.sandbox_id].executions[execution.id]


def timers() -> list[str]:
    """What the sandboxes and their records still have in the loop's clock; it has no public list of them."""
    handles = getattr(asyncio.get_running_loop(), "_scheduled")  # noqa: B009 - not in the type either
    names = [getattr(handle._callback, "__qualname__", "") for handle in handles if not handle.cancelled()]
    return [name for name in names if name.startswith(("Sandbox.", "Records"))]


async def no_tasks_left() -> None:
    await steps(5)  # cancelled tasks end in the next turns of the loop
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


async def steps(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Turns the loop until it is so; for what has no event of its own. Turns are not counted: until a thread has
    done its work there are as many as the machine likes."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


async def cancelled_after(turns: int, call: Awaitable[Any]) -> bool:
    """Runs `call` and cancels it after so many turns of the loop; True when it was cut short."""
    task = asyncio.ensure_future(call)
    await steps(turns)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


def text(execution: Execution, channel: Channel = Channel.STDOUT) -> bytes:
    log = execution.logs[channel]
    return log.read(log.start, 2**20)
