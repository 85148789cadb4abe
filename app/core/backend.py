"""The contract between the core and a runtime: three protocols, as a backend, a sandbox and an execution live for
different times.

Every rule in these docstrings has a test in `tests/contract/test_backend.py`, which runs against every backend. A
backend raises only errors of `core/errors.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from app.core.files import Files
from app.core.models import Command, Exit, SandboxSpec
from app.core.output import OutputLog


class Capability(StrEnum):
    """The closed list of what a runtime may promise (docs/api.md)."""

    STDIN = "stdin"
    SIGNALS = "signals"
    SIGNAL_GROUP = "signal_group"
    PTY = "pty"
    KILL_TREE = "kill_tree"
    PROMPT_EXIT = "prompt_exit"
    EXACT_OUTPUT = "exact_output"
    MERGED_OUTPUT = "merged_output"
    OOM_EVIDENCE = "oom_evidence"
    USAGE = "usage"
    LIMIT_CPUS = "limit_cpus"
    LIMIT_MEMORY = "limit_memory"
    LIMIT_DISK = "limit_disk"
    LIMIT_PROCESSES = "limit_processes"
    FILESYSTEM_POLICY = "filesystem_policy"
    SYSCALL_PROFILES = "syscall_profiles"
    FILES = "files"
    IMAGES = "images"
    PAUSE = "pause"
    NETWORK_DIRECT = "network_direct"
    NETWORK_PROXY = "network_proxy"


@dataclass(frozen=True, slots=True)
class CommandLimits:
    """A runtime's own limits on a command, in bytes and counts; beyond them the core refuses before anything starts.

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


class ExecutionHandle(Protocol):
    """One command, from its start to its end."""

    async def write(self, data: bytes) -> bool:
        """Feeds stdin; returns when less than the runtime's buffer (1 MiB) is waiting. What comes after the program
        closed its stdin, or ended, is discarded, and whoever waits then is let go: False, where the runtime knows."""

    async def close_stdin(self) -> None:
        """End of file after what was written. Idempotent."""

    async def resize(self, rows: int, cols: int) -> None:
        """The terminal's new size, for an execution that has one. WrongState once the first process has ended."""

    async def signal(self, number: int) -> None:
        """To the execution's process group. WrongState once the first process has ended."""

    async def kill(self) -> None:
        """Ends everything that the execution started, daemons too. Idempotent, also after the sandbox's end; returns
        when all of it is gone. Without KILL_TREE: what it can reach, and the Exit's `detail` says what may live on."""

    async def wait(self) -> Exit:
        """The kernel's word on how the first process ended. When it returns, all output of that process is in the
        logs. A command that could not be started is an Exit too. May be awaited by many, and cancelled by any."""

    async def output_ended(self) -> None:
        """Returns when nothing is held for the execution any more: after `wait`, and where something that was left
        behind still has its output open, when that is gone or has closed it. At the sandbox's end at the latest."""


class SandboxHandle(Protocol):
    """One isolated room."""

    @property
    def receipt(self) -> Mapping[str, Any]:
        """What is in force, measured, as JSON (docs/api.md)."""

    @property
    def files(self) -> Files:
        """Of a runtime with FILES; others need not have it."""

    async def execute(self, execution_id: str, command: Command, logs: Logs) -> ExecutionHandle:
        """Starts a command; returns when it runs or could not be started (then `wait` says start_failed). A directory
        below /workspace that it is to start in is made. Raises WrongState after the end of the sandbox, which also
        answers an execute that is under way."""

    async def pause(self) -> None:
        """Stops every process of the sandbox where it is; none runs when this returns. Idempotent. `execute` raises
        WrongState from the call on, what it began before is there. Signals are kept for the processes, stdin and output
        are as they were; `kill` and `destroy` end what is paused, without letting anything run on. Raises
        UnsupportedByRuntime without PAUSE (`resume` too), WrongState after the end of the sandbox, a BackendFailure
        when it could not be done: then it runs as before."""

    async def resume(self) -> None:
        """Lets everything go on, and `execute`. Idempotent, also on one that was never paused. Raises as `pause`."""

    async def destroy(self) -> None:
        """Ends the sandbox. Idempotent. When it returns no process, mount or cgroup of it exists, every execution's
        `wait` has an answer, and nothing of the sandbox is held any more. Raises a BackendFailure when nobody says so.
        Then, and when it was cancelled, it can be called again."""

    async def lost(self) -> str:
        """Resolves, with a sentence, when the sandbox ended without us; its executions then end as `lost`. May be
        awaited by many. Never resolves after `destroy`, which is still due after a loss."""


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What `GET /runtimes` says about a runtime. `ceilings`: of its own, by name of the limit, below the operator's.
    `no_network`: why it has no network to offer, for a request that asks for one."""

    name: str
    tier: str
    version: str
    capabilities: frozenset[Capability]
    aliases: tuple[str, ...] = ()
    command_limits: CommandLimits = field(default_factory=CommandLimits)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    no_network: str = "it has no network"


class Backend(Protocol):
    """One runtime, for the life of the service."""

    @property
    def info(self) -> RuntimeInfo: ...

    def open(self) -> None:
        """Called once, in the running loop, before anything else."""

    def fit(self, spec: SandboxSpec) -> SandboxSpec:
        """What a create of this would really make: limits rounded to what the runtime can enforce, its default image.
        Raises a Refused or InvalidRequest for what it cannot, and begins nothing."""

    async def ready(self) -> None:
        """Raises a BackendFailure (unavailable, too slow, isolation not in force) when a create could not succeed."""

    async def create(self, sandbox_id: str, spec: SandboxSpec) -> SandboxHandle:
        """A running sandbox, empty but for the directory of its commands (`workdirs.py`), or an error and nothing of it
        is left: also when cancelled at any await."""

    async def aclose(self) -> None:
        """Ends everything that the backend started. Idempotent."""


async def settle(task: asyncio.Future[Any]) -> None:
    """Waits for a task whatever becomes of the waiter, and leaves its result where it is."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
