"""What clients get, as schemas for the documents. `views.py` builds the answers."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.api.schemas.receipts import Isolation
from app.core.capabilities import Capability
from app.core.limits import LIMITS
from app.core.models import ExecutionState, ExitReason, IdleCounts, OutputMode, SandboxState, Storage
from app.core.network_log import EventKind, NetworkVerdict


class AnswerSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class StreamTicket(AnswerSchema):
    ticket: str = Field(description="use it once, as `?ticket=` of the stream")
    expires_at: datetime


class Limits(AnswerSchema):
    """The limits in force; null where the runtime cannot enforce one."""

    cpus: float | None = Field(description=LIMITS["cpus"].meaning)
    memory_mib: int | None = Field(description=LIMITS["memory_mib"].meaning)
    processes: int | None = Field(description=LIMITS["processes"].meaning)
    disk_mib: int | None = Field(description=LIMITS["disk_mib"].meaning)
    output_bytes: int = Field(description=LIMITS["output_bytes"].meaning)
    wall_seconds: float = Field(description=LIMITS["wall_seconds"].meaning)


class Filesystem(AnswerSchema):
    """The paths that may be read and written. Everything else is refused."""

    read_only: list[str]
    read_write: list[str]


class HttpRule(AnswerSchema):
    """Requests that are permitted. Null: all methods, all paths."""

    methods: list[str] | None
    paths: list[str] | None


class NetworkRule(AnswerSchema):
    """A host with the ports at which it can be reached. With `raw`: by any protocol. `http`: the requests that are
    permitted; null: the bytes pass unread."""

    host: str
    ports: list[int]
    raw: bool
    http: list[HttpRule] | None


class Network(AnswerSchema):
    mode: str
    allow: list[str | NetworkRule] = Field(description="rules of `proxy`, as objects; hosts of `direct`, as strings")


class Syscalls(AnswerSchema):
    profile: str


class Policy(AnswerSchema):
    """The policy in force; null for a part that the runtime does not enforce."""

    profile: str
    filesystem: Filesystem | None
    network: Network
    syscalls: Syscalls | None
    loopback_tcp: bool | None = Field(description="programs may use TCP on the sandbox's own loopback")


class ExecutionCounts(AnswerSchema):
    running: int
    total: int


class Secret(AnswerSchema):
    """A secret of a sandbox, without its value."""

    hosts: list[str] = Field(description="the only hosts that it is sent to")
    source: str | None = Field(alias="from", description="its name in the operator's file; null: the client's own")


class Sandbox(AnswerSchema):
    id: str
    runtime: str
    runtime_reason: str | None = Field(description="why `auto` chose this runtime; null if the request named it")
    image: str | None = Field(description="null: the sandbox has the host's own system directories")
    storage: Storage = Field(description="where its files are: part of its memory, or on a disk of their own")
    state: SandboxState
    state_reason: str | None
    created_at: datetime
    expires_at: datetime
    idle_seconds: float | None
    idle_counts: IdleCounts
    last_active_at: datetime
    labels: dict[str, str]
    secrets: dict[str, Secret] = Field(description="by the variable that has the placeholder")
    limits: Limits
    policy: Policy
    isolation: Isolation | None = Field(
        description="the receipt: what was measured to be in force; null while `creating` and after the end"
    )
    executions: ExecutionCounts


class SandboxList(AnswerSchema):
    items: list[Sandbox]
    next_cursor: str | None = Field(description="the `cursor` of the next page; null on the last page")


class RefusedHost(AnswerSchema):
    """A host that was refused."""

    name: str | None = Field(description="null for a literal address")
    address: str | None = Field(description="of a literal address")
    port: int | None = Field(description="null for a name that was only looked up")
    reason: str | None = Field(description="a word, such as `name`: no rule permits it")
    count: int = Field(description="how often")


class NetworkEvent(AnswerSchema):
    """A connection, once at its end; or a name or a request that was refused."""

    at: datetime
    kind: EventKind
    execution_id: str | None = Field(
        description="null where the sandbox has had more than one: nobody knows then which it was"
    )
    name: str | None = Field(description="the name that the program asked for")
    address: str | None = Field(description="the address that was dialled, or that the program asked for")
    port: int | None
    method: str | None = Field(description="of a request that was refused, cut to 32 characters")
    path: str | None = Field(
        description="of a request that was refused: as it was sent, without the query, cut to 256 characters"
    )
    verdict: NetworkVerdict
    rule: str | None = Field(description="the rule that permitted it")
    reason: str | None = Field(description="a word: why it was refused, failed or was cut")
    bytes_sent: int = Field(description="by the program")
    bytes_received: int = Field(description="by the program")
    duration_seconds: float


class NetworkEventList(AnswerSchema):
    items: list[NetworkEvent]
    next_cursor: str | None
    dropped: int = Field(description="older events, which are no longer kept")


class NetworkGap(AnswerSchema):
    """Events between two others of a stream that are no longer kept."""

    dropped: int


class NetworkEnd(AnswerSchema):
    """The last event of a stream: the sandbox has ended, or has no such network."""

    total: int = Field(description="events of the sandbox")


NETWORK_EVENTS: tuple[type[BaseModel], ...] = (NetworkGap, NetworkEnd)


class Exit(AnswerSchema):
    reason: ExitReason
    code: int | None = Field(description="exit code of the first process; only for `exited`")
    signal: str | None = Field(description="the signal that ended the first process, such as SIGSEGV")
    detail: str | None = Field(description="a sentence for people")
    duration_seconds: float | None = Field(description="wall time from the start to the end of the first process")
    cpu_seconds: float | None = Field(description="processor time of all processes of the execution")
    max_memory_bytes: int | None = Field(
        description="peak of all processes of the execution, with the pages of files that they wrote"
    )


class ChannelCounts(AnswerSchema):
    bytes: int
    dropped_bytes: int | None = Field(
        description="bytes that are no longer stored; null where the runtime may lose output unnoticed"
    )


class ResourceUsage(AnswerSchema):
    """What a sandbox or an execution uses; null where nobody knows."""

    memory_bytes: int | None = Field(description="now; pages of files are included")
    memory_peak_bytes: int | None
    cpu_seconds: float | None
    processes: int | None = Field(description="processes and threads now")
    disk_bytes: int | None = Field(description="what `disk_mib` limits; null for an execution")
    open_files: int | None = Field(description="open descriptors of all processes now")


class Output(AnswerSchema):
    stdout: ChannelCounts
    stderr: ChannelCounts


class Execution(AnswerSchema):
    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    id: str
    sandbox_id: str
    command: list[str]
    tty: bool = Field(description="it runs on a terminal")
    state: ExecutionState
    started_at: datetime
    ended_at: datetime | None
    exit: Exit | SkipJsonSchema[None] = Field(default_factory=lambda: None, description="absent while it runs")
    output_mode: OutputMode = Field(description="`plain`: output may be lost unnoticed")
    output: Output


class ExecutionList(AnswerSchema):
    items: list[Execution]
    next_cursor: str | None


class Range(AnswerSchema):
    default: float | None
    ceiling: float


class Runtime(AnswerSchema):
    name: str
    aliases: list[str]
    enabled: bool
    available: bool
    reason: str | None = Field(description="why it is not available, or what it cannot do now although it is")
    version: str
    tier: str
    capabilities: list[Capability]
    limits: dict[str, Range]


class RuntimeList(AnswerSchema):
    items: list[Runtime]


class Health(AnswerSchema):
    status: Literal["alive"]


class RuntimeReady(AnswerSchema):
    name: str
    ready: bool
    reason: str | None = Field(description="why it is not ready, or what it cannot do now although it is")


class Ready(AnswerSchema):
    default: str
    runtimes: list[RuntimeReady]
