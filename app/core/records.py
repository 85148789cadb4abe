"""What the service remembers: one record per sandbox, within the operator's numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from app.core.backend import SandboxHandle
from app.core.budget import Budget
from app.core.commands import spec_bytes
from app.core.errors import BulkheadError, CapacityExceeded, NotFound
from app.core.executions import Execution
from app.core.models import SandboxSpec, SandboxState, now
from app.core.output import SandboxSpill
from app.core.retention import Retention

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Capacity:
    """The operator's numbers; reaching one answers CapacityExceeded, never a slow death."""

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
    """Told about what happened; must not raise. Every sandbox and every execution ends once."""

    def sandbox_created(self, runtime: str, seconds: float) -> None: ...
    def sandbox_ended(self, runtime: str, reason: str) -> None: ...
    def execution_started(self, runtime: str, seconds: float) -> None: ...
    def execution_ended(self, runtime: str, reason: str, output_bytes: int) -> None: ...


class Sandbox:
    """One sandbox's record. Made by `Sandboxes.create`, kept for a while after its end."""

    def __init__(self, sandbox_id: str, sequence: int, spec: SandboxSpec, *, named: bool, client: str = "") -> None:
        self.id = sandbox_id
        self.client = client
        self.sequence = sequence
        self.spec = spec
        self.named = named
        self.fleeting = False  # no record of it is kept after its end
        self.spill: SandboxSpill | None = None
        self.labels = dict(spec.labels)
        self.ttl_seconds, self.idle_seconds = spec.ttl_seconds, spec.idle_seconds
        self.created_at = self.last_active_at = now()
        self.expires_at: datetime = self.created_at + timedelta(seconds=spec.ttl_seconds)
        self.state = SandboxState.CREATING
        self.state_reason: str | None = None
        self.failure: BulkheadError | None = None
        self.handle: SandboxHandle | None = None
        self.executions: dict[str, Execution] = {}
        self.running = 0  # executions; counted, as thousands of ended ones may be kept
        self.transfers: set[asyncio.Timeout] = set()  # operations on its files; each with what ends it
        self.settled = asyncio.Event()  # no longer `creating`
        self.change = asyncio.Lock()  # one pause or resume at a time, in the order of the calls
        self.boot: asyncio.Task[None] | None = None
        self.watch: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.forgotten_at: datetime | None = None  # when the record of a sandbox that is over goes

    @property
    def over(self) -> bool:
        """Nothing of it is left but this record."""
        return self.state is SandboxState.DESTROYED or (self.state is SandboxState.FAILED and self.handle is None)

    def touch(self) -> None:
        self.last_active_at = now()

    def end_transfers(self) -> None:
        at_once = asyncio.get_running_loop().time()
        for transfer in tuple(self.transfers):
            if not transfer.expired():
                transfer.reschedule(at_once)

    def describe(self) -> str:
        if self.ending is not None and self.state is not SandboxState.DESTROYED:
            return "being destroyed"
        return f"{self.state}: {self.state_reason}" if self.state_reason else str(self.state)


class Records:
    """All sandboxes, oldest first. `commands`: bytes of what is kept of the requests of those that live."""

    def __init__(self, capacity: Capacity, *, shared: bool = False) -> None:
        """`shared`: there are several clients."""
        self._capacity = capacity
        self.commands = Budget("MiB of commands that are kept", capacity.commands_mib * MIB, "sandbox", unit=MIB)
        self._living = Budget("sandboxes", capacity.sandboxes, "client", shared=shared)
        self._records: dict[str, Sandbox] = {}
        self._alive: list[Sandbox] = []  # all that are not over, and some that are
        self._retired = Retention[str](capacity.records)
        self._retired_bytes = Retention[str](self.commands.size)

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

    def admit(self, client: str) -> None:
        """Makes room for one more of this client. Raises CapacityExceeded."""
        if not self._living.fits(client):  # looked through only then: records of what is over are many more
            for sandbox in self._alive:
                if sandbox.over:
                    self._living.give_back(sandbox.client)
            self._alive = [sandbox for sandbox in self._alive if not sandbox.over]
            self._living.check(client)
        if len(self._records) >= self._capacity.records:
            self.forget(self._next_to_go())

    def _next_to_go(self) -> Sandbox:
        """Of those that are over. Raises CapacityExceeded when there are none."""
        known = self._retired.next_to_go()
        if known is not None:
            return self._records[known]
        lost = next((sandbox for sandbox in self._records.values() if sandbox.over), None)  # and not destroyed yet
        if lost is None:
            raise CapacityExceeded("sandbox records", self._capacity.records)
        return lost

    def add(self, sandbox: Sandbox) -> None:
        """Raises CapacityExceeded."""
        self.commands.take(sandbox.id, spec_bytes(sandbox.spec))
        self._living.take(sandbox.client)
        self._records[sandbox.id] = sandbox
        self._alive.append(sandbox)

    def retire(self, sandbox: Sandbox) -> None:
        """It is over, and its record stays. Such records may have as much memory as those that live; the oldest of the
        client that has the most makes room."""
        if sandbox not in self:
            return
        kept = self.commands.held(sandbox.id)
        self.commands.give_back(sandbox.id, kept)
        self._retired.add(sandbox.client, sandbox.id, 1)
        self._retired_bytes.add(sandbox.client, sandbox.id, kept)
        while self._retired_bytes.full and (oldest := self._retired_bytes.next_to_go()):
            self.forget(self._records[oldest])

    def release(self, sandbox: Sandbox, count: int) -> None:
        """Of `commands`, for what is not kept any more of a sandbox that lives."""
        if sandbox in self and sandbox.id not in self._retired:
            self.commands.give_back(sandbox.id, count)

    def forget(self, sandbox: Sandbox) -> None:
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        if sandbox in self:
            del self._records[sandbox.id]
            self._retired.remove(sandbox.client, sandbox.id)
            self._retired_bytes.remove(sandbox.client, sandbox.id)
            self.commands.give_back(sandbox.id, self.commands.held(sandbox.id))
