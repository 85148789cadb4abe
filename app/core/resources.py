"""What all sandboxes of the service share: the operator's limits, the budgets, and the observer of events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.core.budget import Budget
from app.core.limits import MIB
from app.core.output import SandboxSpill
from app.core.retention import EndedOutput
from app.core.tasks import Tasks

HELD_EXECUTIONS = "executions that run or have left processes behind"


@dataclass(frozen=True, slots=True)
class Capacity:
    """The operator's limits for the whole service. At a limit a request gets CapacityExceeded, so that the service does
    not get slow."""

    sandboxes: int = 1000
    executions: int = 2048
    executions_running: int = 256
    executions_kept: int = 10_000
    viewers: int = 256
    streams: int = 1024
    tickets: int = 4096
    waits: int = 1024
    connections: int = 3072
    strangers: int = 512
    ended_output_mib: int = 64
    commands_mib: int = 256
    transfers: int = 256
    archives: int = 16
    records: int = 10_000
    record_seconds: float = 3600
    creating_seconds: float = 3600  # until it runs; only then its ttl begins
    stream_end_seconds: float = 10


class Observer(Protocol):
    """Gets reports of what happened. Its methods must not raise. Every sandbox and every execution ends once."""

    def sandbox_created(self, runtime: str, seconds: float) -> None: ...
    def sandbox_ended(self, runtime: str, reason: str) -> None: ...
    def execution_started(self, runtime: str, seconds: float) -> None: ...
    def execution_ended(self, runtime: str, reason: str, output_bytes: int) -> None: ...


class Resources:
    """`commands`: bytes of what is kept of the requests of sandboxes whose record is not retired. `executions`: those
    that run, and ended ones whose output something still holds. `spill_of`: where a sandbox stores its output."""

    def __init__(
        self,
        capacity: Capacity,
        observer: Observer,
        tasks: Tasks,
        spill_of: Callable[[str], SandboxSpill] | None = None,
    ) -> None:
        self.capacity = capacity
        self.observer = observer
        self.tasks = tasks
        self.spill_of = spill_of
        self.ended_output = EndedOutput(capacity.ended_output_mib * MIB)
        self.commands = Budget("MiB of stored commands", capacity.commands_mib * MIB, "sandbox", unit=MIB)
        self._sequence = 0
        self.executions = Budget(HELD_EXECUTIONS, capacity.executions, "sandbox")

    def next_sequence(self) -> int:
        """Of sandboxes and executions, in the order in which they begin."""
        self._sequence += 1
        return self._sequence
