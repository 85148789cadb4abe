"""Random histories: clients that do anything at any time, hang up at any moment, and a runtime that fails now and then.

Whatever happened: everything comes to an end, every ending is told once, and nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import BackendUnavailable, BulkheadError, LaunchFailed
from app.core.executions import Execution
from app.core.models import ExecutionState, ExitReason, SandboxState
from app.core.sandboxes import Sandbox
from tests.unit.core.support import Core, command, no_tasks_left, spec, steps, timers

GONE = BackendUnavailable("process", "the launcher is not there")
REFUSED = LaunchFailed("mount_proc", "EPERM", "step mount_proc failed: EPERM")
ARGVS = [
    ("echo", "x"),
    ("sleep",),
    ("daemon", "sleep"),
    ("missing",),
    ("cat",),
    ("print", "200000"),
    ("oom",),
    ("spew",),
]
NAMES = ["a", "b", "c"]

ACTIONS = ["create", "execute", "execute", "kill", "signal", "feed", "destroy", "lose", "abandon", "cancel", "update"]
ACTIONS += ["pause", "resume"]
ACTIONS += ["fail", "heal"]  # the runtime breaks, and works again

actions = st.tuples(
    st.sampled_from(ACTIONS),
    st.integers(0, 7),
    st.integers(0, 6),  # turns of the loop until the next one
)


class History:
    def __init__(self) -> None:
        self.core = Core(sandboxes=4)
        self.calls: list[asyncio.Task[Any]] = []
        self.sandboxes: list[Sandbox] = []
        self.executions: set[Execution] = set()

    def call(self, work: Coroutine[Any, Any, Any]) -> None:
        self.calls.append(asyncio.ensure_future(work))

    def sandbox(self, number: int) -> Sandbox | None:
        return self.sandboxes[number % len(self.sandboxes)] if self.sandboxes else None

    def execution(self, number: int) -> Execution | None:
        known = [e for sandbox in self.sandboxes for e in sandbox.executions.values()]
        return known[number % len(known)] if known else None

    async def step(self, action: str, number: int) -> None:
        core, backend = self.core, self.core.backend
        sandbox, execution = self.sandbox(number), self.execution(number)
        if action == "create":
            name = NAMES[number] if number < len(NAMES) else None
            made, _ = core.sandboxes.create(spec(), name)
            self.sandboxes.append(made)
            self.call(core.sandboxes.wait_created(made, 60))
        elif action == "execute" and sandbox is not None:
            wanted = command(*ARGVS[number], stdin=number % 2 == 0, kill=number % 3 == 0)
            self.call(sandbox.execute(wanted, f"e{number}" if number < 2 else None))
        elif action == "kill" and execution is not None:
            self.call(execution.kill())
        elif action == "signal" and execution is not None:
            self.call(execution.signal(15))
        elif action == "feed" and execution is not None:
            self.call(execution.feed(bytes(300_000)))
        elif action == "destroy" and sandbox is not None:
            self.call(sandbox.destroy())
        elif action == "abandon" and sandbox is not None:
            self.call(sandbox.abandon())
        elif action == "lose" and sandbox is not None and sandbox.id in backend.sandboxes:
            await backend.lose(sandbox.id)
        elif action == "update" and sandbox is not None:
            sandbox.update(ttl_seconds=1000, idle_seconds=number * 0.001, set_idle=True)
        elif action in {"pause", "resume"} and sandbox is not None:
            self.call(getattr(sandbox, action)())
        elif action == "cancel" and self.calls:
            self.calls[number % len(self.calls)].cancel()
        elif action == "fail":
            errors = [f"{what}_error" for what in ("create", "execute", "kill", "destroy", "pause")]
            setattr(backend, errors[number % 5], REFUSED if number % 5 == 0 else GONE)
        elif action == "heal":
            self.heal()

    def heal(self) -> None:
        backend = self.core.backend
        backend.create_error = backend.execute_error = backend.kill_error = None
        backend.destroy_error = backend.pause_error = None

    async def play(self, script: list[tuple[str, int, int]]) -> None:
        for action, number, turns in script:
            with contextlib.suppress(BulkheadError):
                await self.step(action, number)
            self.note()
            await steps(turns)
            self.note()
        self.heal()
        await self.core.sandboxes.aclose()
        self.note()
        results = await asyncio.gather(*self.calls, return_exceptions=True)
        wrong = [r for r in results if isinstance(r, BaseException) and not isinstance(r, BulkheadError)]
        assert [r for r in wrong if not isinstance(r, asyncio.CancelledError)] == []
        self.check()
        await self.core.backend.aclose()
        await no_tasks_left()
        assert timers() == []

    def note(self) -> None:
        self.executions |= {e for sandbox in self.sandboxes for e in sandbox.executions.values()}

    def check(self) -> None:
        assert self.core.backend.alive == []
        for sandbox in self.sandboxes:
            assert sandbox.state in {SandboxState.DESTROYED, SandboxState.FAILED}
            assert sandbox._handle is None
            assert sandbox.running == 0
            assert sandbox._settled.is_set()
        for execution in self.executions:
            assert execution.state is ExecutionState.ENDED
            assert execution.exit is not None
            assert (execution.exit.code is not None) is (execution.exit.reason is ExitReason.EXITED)
            assert all(log.closed and not log._wakers for log in execution.logs.values())
            assert len(execution._tasks) == 0
        notes = self.core.notes
        ended = [note for note in notes.sandboxes if note != "created"]
        assert len(ended) == len({id(sandbox) for sandbox in self.sandboxes})
        assert notes.sandboxes.count("created") <= len(ended)
        started = notes.executions.count("started")
        assert started == len(notes.executions) - started


@settings(max_examples=300)
@given(st.lists(actions, min_size=5, max_size=60))
def test_any_history_comes_to_an_end_with_nothing_left(script: list[tuple[str, int, int]]) -> None:
    failures: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(repr(context.get("exception") or context)))
        await History().play(script)

    asyncio.run(main())
    assert not failures
