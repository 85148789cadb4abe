"""The values of the core: specs, commands, exits, states and ids. They are plain, and checked where they are made."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.core.limits import Limits
    from app.core.policy import Policy
    from app.core.secrets import Secret

ID_PATTERN = r"[a-z0-9][a-z0-9_-]{0,62}"
_ID = re.compile(ID_PATTERN)
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's alphabet: its order is the order of ASCII
_PAIRS = [first + second for first in _BASE32 for second in _BASE32]


class _Clock:
    """Makes numbers of 48 bits of milliseconds and 80 random bits. Within one millisecond, or when the clock went back,
    a number is the last one plus a random step. So a later number is always greater."""

    def __init__(self, time_ns: Callable[[], int] = time.time_ns) -> None:
        self._time_ns = time_ns
        self._last = 0

    def next(self) -> int:
        number = (self._time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
        if number >> 80 <= self._last >> 80:
            number = self._last + 1 + int.from_bytes(os.urandom(8), "big")
        self._last = number
        return number


_clock = _Clock()


def new_id(prefix: str) -> str:
    """Returns `prefix` and 26 characters that sort by creation."""
    number = _clock.next()
    return prefix + "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def now() -> datetime:
    return datetime.now(UTC)


class Channel(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


class Stdin(StrEnum):
    NONE = "none"
    OPEN = "open"


class Stderr(StrEnum):
    """Where a command's stderr goes: to a channel of its own, or into the pipe of its stdout."""

    SEPARATE = "separate"
    STDOUT = "stdout"


class IdleCounts(StrEnum):
    """What keeps a sandbox from being idle, beside requests to it."""

    EXECUTIONS = "executions"
    PROCESSES = "processes"


class OnOutputLimit(StrEnum):
    DROP_OLDEST = "drop_oldest"
    KILL = "kill"


class OutputMode(StrEnum):
    """`exact`: every byte as it was written, and the program waits when it is ahead. `plain`: as the runtime's server
    passes it on."""

    EXACT = "exact"
    PLAIN = "plain"


class Storage(StrEnum):
    """Where the files of a sandbox are. `memory`: they are part of its memory. `disk`: on a file system of their own,
    which takes none of it."""

    MEMORY = "memory"
    DISK = "disk"


class SandboxState(StrEnum):
    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"
    DESTROYED = "destroyed"


class Tier(StrEnum):
    """The kind of the wall between code and host: the kernel's own walls, or hardware. Ordered, weakest first."""

    KERNEL = "kernel"
    VM = "vm"


class ExecutionState(StrEnum):
    RUNNING = "running"
    ENDED = "ended"


class ExitReason(StrEnum):
    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    OOM = "oom"
    RESOURCE_LIMIT = "resource_limit"
    KILLED = "killed"
    OUTPUT_LIMIT = "output_limit"
    CPU_LIMIT = "cpu_limit"
    START_FAILED = "start_failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What `POST /sandboxes` asks for, after defaults, aliases, ceilings and narrowing. `image` as the client named it,
    or the runtime's default. Two fields do not belong to the request: `runtime_reason` says why `auto` chose this
    runtime, and `client` is whose sandbox it is, for a runtime that gives each client a share of something.
    """

    runtime: str
    limits: Limits
    policy: Policy
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/workspace"
    requires: frozenset[str] = frozenset()
    ttl_seconds: float = 3600
    idle_seconds: float | None = None
    idle_counts: IdleCounts = IdleCounts.EXECUTIONS
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    storage: Storage = Storage.MEMORY
    secrets: tuple[Secret, ...] = ()
    runtime_reason: str | None = field(default=None, compare=False)
    client: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Terminal:
    """The size of a terminal, in characters."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class ExecutionLimits:
    """Limits of one execution, below those of its sandbox. None: none of its own. `cpu_seconds` and `memory_mib` are of
    all its processes together, the others of each."""

    cpu_seconds: float | None = None
    stack_mib: int | None = None
    open_files: int | None = None
    file_mib: int | None = None
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """One command: an exact argv (no shell), and its environment, which replaces what the runtime itself sets (HOME,
    PATH). With `tty` it runs on a terminal, which is its stdin, stdout and stderr: everything that it prints is stdout.
    `output_bytes`: how much of each channel is kept, if that is less than the sandbox's limit."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/workspace"
    timeout_seconds: float = 3600
    stdin: Stdin = Stdin.NONE
    on_output_limit: OnOutputLimit = OnOutputLimit.DROP_OLDEST
    tty: Terminal | None = None
    output_bytes: int | None = None
    stderr: Stderr = Stderr.SEPARATE
    output_mode: OutputMode | None = None  # None: exact where that can be
    limits: ExecutionLimits = ExecutionLimits()


@dataclass(frozen=True, slots=True)
class Exit:
    """How an execution ended. Nothing is guessed: a value that the runtime cannot know is None.

    `code` only for `exited`; `signal` is a name such as SIGSEGV; `detail` is a sentence for people; durations in
    seconds, memory in bytes. `not_found` tells a missing program (127) from any other `start_failed` (126).
    `unprompted`: the first process ended before the runtime was asked to kill it, so a kill was not the cause.
    """

    reason: ExitReason
    code: int | None = None
    signal: str | None = None
    detail: str | None = None
    duration_seconds: float | None = None
    cpu_seconds: float | None = None
    max_memory_bytes: int | None = None
    not_found: bool = False
    unprompted: bool = False


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """What a sandbox or an execution uses; None where nobody knows. Pages of files count as memory too.
    `processes`: threads too. `disk_bytes`: of the sandbox as a whole only."""

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    cpu_seconds: float | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    open_files: int | None = None


def exit_code_for_shells(exit_: Exit, signal_number: int | None) -> int:
    """The one integer of the stream's exit frame: the code, minus the signal, 127 or 126 for a failed start, -1."""
    if signal_number is not None:
        return -signal_number
    if exit_.reason is ExitReason.START_FAILED:
        return 127 if exit_.not_found else 126
    return -1 if exit_.code is None else exit_.code
