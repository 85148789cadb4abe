"""The contract between the core and a runtime: three protocols, as a backend, a sandbox and an execution live for
different times.

Every rule in these docstrings has a test in `tests/contract/test_backend.py`, which runs against every backend. A
backend raises only errors of `core/errors.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.core.capabilities import Capability
from app.core.files import Files
from app.core.models import Command, Exit, OutputMode, ResourceUsage, SandboxSpec
from app.core.network_log import NetworkLog
from app.core.network_rules import NetworkRule
from app.core.output import OutputLog


@dataclass(frozen=True, slots=True)
class CommandLimits:
    """A runtime's own limits on a command, in bytes and counts. The core refuses a command beyond them before anything
    starts.

    For Linux: one string is at most MAX_ARG_STRLEN (128 KiB with its NUL), execve(2).
    """

    argument_bytes: int = 131_071
    arguments: int = 65_536
    variables: int = 4_096
    total_bytes: int = 1_900_000
    reserved: frozenset[str] = frozenset()  # names of variables that mean something to the runtime itself


@dataclass(frozen=True, slots=True)
class Logs:
    """Where an execution's output goes. The backend appends; the core closes."""

    stdout: OutputLog
    stderr: OutputLog

    @property
    def mode(self) -> OutputMode:
        return OutputMode.EXACT if self.stdout.exact and self.stderr.exact else OutputMode.PLAIN

    def mark_inexact(self) -> None:
        """Of this command the runtime may lose output unnoticed, although it has EXACT_OUTPUT: said before any
        output comes."""
        self.stdout.mark_inexact()
        self.stderr.mark_inexact()


class ExecutionHandle(Protocol):
    """One command, from its start to its end."""

    async def write(self, data: bytes) -> bool:
        """Feeds stdin. Returns when less than the runtime's buffer (1 MiB) is waiting. Bytes that come after the
        program closed its stdin, or ended, are discarded, and the call returns: False, where the runtime knows."""

    async def close_stdin(self) -> None:
        """Closes stdin after everything that was written. Idempotent."""

    async def resize(self, rows: int, cols: int) -> None:
        """Sets the size of the terminal. Raises WrongState after the end of the first process."""

    async def signal(self, number: int) -> None:
        """Sends a signal to the execution's process group. Raises WrongState after the end of the first process."""

    async def kill(self) -> None:
        """Ends everything that the execution started, daemons too. Returns when all of it is gone. Idempotent, also
        after the sandbox's end. Without KILL_TREE it ends what it can reach, and the Exit's `detail` says what may live
        on."""

    async def usage(self) -> ResourceUsage:
        """Now. After the end that of what it left behind, and when that is gone the final figures."""

    async def wait(self) -> Exit:
        """Returns how the first process ended, as the kernel reports it. When it returns, all output of that process is
        in the logs. A command that could not be started is an Exit too. Several tasks may await it, and each may be
        cancelled."""

    async def output_ended(self) -> None:
        """Returns when nothing is held for the execution any more. This is after `wait`. If a process that was left
        behind still has the output open, it is when that process is gone or has closed it. It is at the sandbox's end
        at the latest."""


class SandboxHandle(Protocol):
    """One sandbox of a runtime."""

    @property
    def receipt(self) -> Mapping[str, Any]:
        """What is in force, measured, as JSON (docs/api.md)."""

    @property
    def files(self) -> Files:
        """The files of the sandbox. Only a runtime with FILES needs to have it."""

    @property
    def network_log(self) -> NetworkLog | None:
        """Where the runtime adds what the sandbox does with a network of the mode `proxy`; None without one. It is
        complete when `destroy` returns. The core closes it."""

    async def execute(self, execution_id: str, command: Command, logs: Logs) -> ExecutionHandle:
        """Starts a command. Returns when it runs or could not be started (then `wait` says start_failed). Makes the
        working directory if it is below /workspace. Raises WrongState after the end of the sandbox, also when the
        sandbox ends during the call, and CapacityExceeded when the host has no terminal for it."""

    async def usage(self) -> ResourceUsage:
        """Now, also of a paused one. Raises WrongState after the end of the sandbox, a BackendFailure."""

    async def pause(self) -> None:
        """Stops every process of the sandbox. None runs when this returns. Idempotent. From the call on `execute`
        raises WrongState. Commands that were started before are paused. Signals are kept for the processes, and stdin
        and output stay as they are. `kill` and `destroy` end what is paused without letting it run. Raises
        UnsupportedByRuntime without PAUSE (`resume` too), WrongState after the end of the sandbox, and a BackendFailure
        when the pause failed: then the sandbox runs as before."""

    async def resume(self) -> None:
        """Lets everything run again, and allows `execute`. Idempotent, also on a sandbox that was never paused. Raises
        as `pause`."""

    async def change_network(self, rules: Sequence[NetworkRule]) -> None:
        """Replaces the rules of a network of the mode `proxy`, also of a paused sandbox. There may be none. When this
        returns, no connection is open that the new rules do not permit, and the receipt has them. The core calls it for
        such a network only, and for one change at a time. Raises Conflict for rules that this sandbox cannot have any
        more, UnsupportedByRuntime, WrongState after the end of the sandbox, a BackendFailure: then nothing has changed.
        Raises BackendTimeout when nothing confirms that connections were cut: then the new rules hold all the same."""

    async def destroy(self) -> None:
        """Ends the sandbox. Idempotent. When it returns no process, mount or cgroup of it exists, every execution's
        `wait` has an answer, and nothing of the sandbox is held any more. Raises a BackendFailure when nothing confirms
        this. Then, and after it was cancelled, it can be called again."""

    async def lost(self) -> str:
        """Resolves with a sentence when the sandbox ended without `destroy`. Its executions then end as `lost`. Several
        tasks may await it. It never resolves after `destroy`. The core calls `destroy` after a loss too."""


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What `GET /runtimes` says about a runtime. `ceilings`: the runtime's own, by name of the limit, where they are
    below the operator's. `no_direct`, `no_proxy`: what follows its name in the sentence that refuses a request for a
    network of this mode. `disk_bytes`: what the disks of all sandboxes together can hold, as of the last `ready`. None:
    it is not known. `limitation`: a sentence about what does not work although the runtime does, as of the last
    `ready`; "": nothing."""

    name: str
    tier: str
    version: str
    capabilities: frozenset[Capability]
    aliases: tuple[str, ...] = ()
    command_limits: CommandLimits = field(default_factory=CommandLimits)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    no_direct: str = "has no network of the mode direct"
    no_proxy: str = "has no network of the mode proxy"
    disk_bytes: int | None = None
    limitation: str = ""


class Backend(Protocol):
    """One runtime, for the life of the service."""

    @property
    def info(self) -> RuntimeInfo: ...

    def open(self) -> None:
        """Called once, in the running loop, before anything else."""

    def fit(self, spec: SandboxSpec) -> SandboxSpec:
        """Returns the spec that a create would really make, with limits rounded to what the runtime can enforce, and
        its default image. Raises a Refused or InvalidRequest for what the runtime cannot do. Begins nothing."""

    async def ready(self) -> None:
        """Raises a BackendFailure (unavailable, too slow, isolation not in force) when a create could not succeed."""

    async def create(self, sandbox_id: str, spec: SandboxSpec) -> SandboxHandle:
        """Returns a running sandbox, empty except for the directory of its commands (`workdirs.py`). If it raises or is
        cancelled at any await, nothing of the sandbox is left."""

    async def aclose(self) -> None:
        """Ends everything that the backend started. Idempotent."""


async def settle(task: asyncio.Future[Any]) -> None:
    """Waits for a task even if the waiter is cancelled. Does not read its result."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
