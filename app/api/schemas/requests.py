"""What clients send, as schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, SecretStr, Tag
from pydantic_core import PydanticCustomError

from app.api.schemas.limits import ExecutionLimitsRequest, LimitsRequest
from app.api.schemas.strict import (
    WHOLE,
    Arguments,
    Directory,
    Environment,
    Host,
    Id,
    Labels,
    Paths,
    Seconds,
    Strict,
    documented,
    needs_text,
    spelled,
)
from app.core.capabilities import Capability
from app.core.http_rules import HTTP_RULES, METHODS
from app.core.http_rules import PATHS as RULE_PATHS
from app.core.models import ID_PATTERN, IdleCounts, OnOutputLimit, OutputMode, Stderr, Stdin, Storage, Tier
from app.core.network_rules import PORTS, RULES
from app.core.path_patterns import PATTERN_BYTES
from app.core.secrets import HOSTS, SECRETS, VALUE_BYTES


class FilesystemRequest(Strict):
    """A list that is absent or null is the profile's. A path outside of the profile's list is refused."""

    read_only: Paths | None = None
    read_write: Paths | None = None


class HttpRuleRequest(Strict):
    """Requests that are permitted. What is absent or null is not judged: `{}` permits every request."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"methods": ["GET", "POST"], "paths": ["/v1/**"]}]})

    methods: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=32)]],
            Field(min_length=1, max_length=METHODS, fail_fast=True),
        ]
        | None
    ) = Field(
        None,
        description="in capital letters; GET admits HEAD; CONNECT, TRACE and TRACK are never passed on. At most 256 in "
        "all rules",
    )
    paths: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=PATTERN_BYTES)]],
            Field(min_length=1, max_length=RULE_PATHS, fail_fast=True),
        ]
        | None
    ) = Field(
        None,
        description="compared with the decoded path without its query. `*`: any characters of a segment; `**`: any "
        "segments; `/v1/**` is all below /v1, and not /v1. At most 32 in a rule, 128 in all rules",
    )


class NetworkRuleRequest(Strict):
    """A host with the ports at which it can be reached, by TLS or HTTP that names the host. With `raw`: by anything.
    With `http`: TLS ends at the egress process, and each request is judged."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"host": "*.example.net", "ports": [443, 8443]},
                {"host": "api.example.com", "ports": [443], "http": [{"methods": ["POST"], "paths": ["/v1/**"]}]},
            ]
        }
    )

    host: Host = Field(description="a name; `*.name` for every name below it; `*` for every name; address or network")
    ports: Annotated[
        list[Annotated[int, Field(ge=1, le=65_535), WHOLE]], Field(min_length=1, max_length=PORTS, fail_fast=True)
    ] = Field(description="at most 16 different ones in all rules; not 53")
    raw: bool = Field(False, description="true is needed for addresses and networks, and for programs like databases")
    http: Annotated[list[HttpRuleRequest], Field(min_length=1, max_length=HTTP_RULES, fail_fast=True)] | None = Field(
        None, description="permitted requests; null: the bytes pass unread. Not with `raw`, nor for addresses"
    )


def _form(value: Any) -> str | None:
    return "[text]" if isinstance(value, str) else "[rule]" if isinstance(value, dict | NetworkRuleRequest) else None


RuleText = Annotated[str, Field(min_length=1, max_length=261)]  # a DNS name has 253 characters at most
AllowedHost = Annotated[
    Annotated[RuleText, Tag("[text]")] | Annotated[NetworkRuleRequest, Tag("[rule]")],
    Discriminator(
        _form,
        custom_error_type="needs_rule",
        custom_error_message='must be a string such as "example.org:443", or an object with host and ports',
    ),
]


class NetworkRequest(Strict):
    """`none`: only the sandbox's own loopback. `proxy`: also what the rules of `allow` permit, through a proxy that
    programs need not know. `direct`: also the hosts of `allow`. The operator's list must cover each rule and host."""

    mode: Literal["none", "direct", "proxy"] = "none"
    allow: Annotated[list[AllowedHost], Field(max_length=RULES, fail_fast=True)] = Field(
        [],
        description='for `proxy`: `"HOST:PORT"`, or an object; for `direct`: host names, *.name, IPv4 addresses or '
        "networks, without ports",
    )


class SyscallsRequest(Strict):
    profile: Literal["default"] = "default"


class PolicyRequest(Strict):
    """An operator's profile, which the request may narrow."""

    profile: str = Field("default", description="name of an operator's profile")
    filesystem: FilesystemRequest | None = None
    network: NetworkRequest | None = None
    syscalls: SyscallsRequest | None = None


class SecretRequest(Strict):
    """A secret with exactly one of `value` and `from`. Programs find a placeholder in the variable. Requests to its
    hosts over TLS have the value instead, in their headers. Nothing inside the sandbox ever has it."""

    value: SecretStr | None = Field(
        None, description=f"at most {VALUE_BYTES} bytes, without line ends; no answer has it"
    )
    source: str | None = Field(None, alias="from", description="name of one of the operator's secrets")
    hosts: Annotated[list[Host], Field(min_length=1, max_length=HOSTS, fail_fast=True)] | None = Field(
        None,
        description="names of the only hosts that it is sent to; each needs rules with `http`. For one of the "
        "operator's: absent: all of its hosts",
    )


def _few_secrets(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > SECRETS:
        counts = {"count": len(value), "most": SECRETS}
        raise PydanticCustomError("too_many", "has {count} secrets; at most {most} are allowed", counts)
    return value


Secrets = Annotated[
    dict[str, SecretRequest],
    Field(max_length=SECRETS),
    BeforeValidator(_few_secrets),
    documented(propertyNames={"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"}),
]


class SandboxFields(Strict):
    """The fields of a new sandbox, for POST /sandboxes and POST /run."""

    runtime: str | None = Field(
        None,
        description="name or alias of a runtime (default: the operator's choice); `auto`: the cheapest available "
        "runtime that can do what the request needs",
    )
    isolation_min: Tier | None = Field(None, description="weakest wall to accept")
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        None, description="root file system: a name of the operator's table, or a reference that the operator permits"
    )
    storage: Storage | None = Field(
        None,
        description="where the sandbox's files are (default: the operator's choice). `memory`: they count towards "
        "`memory_mib`. `disk`: a file system of their own of `disk_mib`, which takes no memory of the sandbox",
    )
    requires: Annotated[list[Capability], Field(max_length=64, fail_fast=True)] = Field(
        [], description="capabilities that the runtime must have"
    )
    env: Environment = Field({}, description="environment of every execution")
    secrets: Secrets = Field({}, description="by the variable that has the placeholder; they need the mode `proxy`")
    workdir: Directory = Field("/workspace", description="working directory of every execution")
    limits: LimitsRequest = LimitsRequest()
    policy: PolicyRequest = PolicyRequest()
    ttl_seconds: Seconds | None = Field(None, description="the sandbox is destroyed after this time; 3600 by default")
    idle_seconds: Seconds | None = Field(
        None,
        description="the sandbox is destroyed after this time without a running execution and without a request to it",
    )
    idle_counts: IdleCounts = Field(
        IdleCounts.EXECUTIONS, description="what keeps it from being idle: running executions, or any process of it"
    )
    labels: Labels = Field({}, description="labels to find and group sandboxes")


class CreateSandbox(SandboxFields):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"runtime": "process"},
                {"runtime": "auto", "isolation_min": "vm", "image": "python"},
                {"id": "build-7", "env": {"LANG": "C.UTF-8"}, "limits": {"memory_mib": 1024}, "labels": {"team": "ci"}},
            ]
        }
    )

    id: Id | None = Field(None, description="chosen by the client; makes the create repeatable")


class UpdateNetworkRequest(Strict):
    allow: Annotated[list[AllowedHost], Field(max_length=RULES, fail_fast=True)] = Field(
        description='replaces all rules: `"HOST:PORT"`, or an object; an empty list permits nothing'
    )


class UpdatePolicyRequest(Strict):
    """The part of a policy that can be changed: the rules of a network of the mode `proxy`."""

    network: UpdateNetworkRequest


class UpdateSandbox(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"ttl_seconds": 7200},
                {"idle_seconds": None},
                {"policy": {"network": {"allow": ["index.example.org:443"]}}},
            ]
        }
    )

    ttl_seconds: Seconds | None = Field(None, description="counts anew from now; null: the default; absent: unchanged")
    idle_seconds: Seconds | None = Field(None, description="null removes it; absent: unchanged")
    idle_counts: IdleCounts | None = Field(None, description="absent or null: unchanged")
    labels: Labels = Field(default_factory=dict, description="replaces all labels; absent: unchanged")
    policy: UpdatePolicyRequest = Field(
        default_factory=lambda: UpdatePolicyRequest(network=UpdateNetworkRequest(allow=[])),
        description="absent: unchanged",
    )


class Terminal(Strict):
    """The size of a terminal, in characters."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rows": 40, "cols": 120}]})

    rows: Annotated[int, Field(ge=1, le=65_535), WHOLE]
    cols: Annotated[int, Field(ge=1, le=65_535), WHOLE]


def _usual_size(value: Any) -> Any:
    if isinstance(value, bool):
        return {"rows": 24, "cols": 80} if value else None
    return value


def _or_boolean(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(1, {"type": "boolean"})


Tty = Annotated[
    Terminal | None,
    BeforeValidator(_usual_size),
    Field(
        description="run the command on a terminal of this size; true: 24 rows and 80 columns",
        json_schema_extra=_or_boolean,
    ),
]


OUTPUT_MODE = (
    "`exact`: every byte as it was written, and the program waits when it is ahead; refused where that cannot be. "
    "`plain`: as the runtime's server passes it on. Absent: exact where that can be"
)
_STREAM = f"/sandboxes/{ID_PATTERN}/executions/{ID_PATTERN}/stream"


class CreateStreamTicket(Strict):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"path": "/sandboxes/demo/executions/hello/stream", "stdin": True}]}
    )

    path: Annotated[
        str,
        spelled(_STREAM, "must be the path of a stream without a query: /sandboxes/…/executions/…/stream"),
        documented(pattern=f"^{_STREAM}$"),
    ] = Field(description="path of the stream, without a query")
    stdin: bool = Field(
        False, description="whether the stream may hold stdin, also by `take`, and send signals and sizes"
    )


STDERR = "`stdout`: into the pipe of stdout, in the order of writing"


class CreateExecution(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"command": ["python3", "-c", "print(1 + 1)"], "timeout_seconds": 10},
                {"command": ["bash", "-i"], "tty": {"rows": 40, "cols": 120}},
            ]
        }
    )

    command: Arguments = Field(description="the exact argv; it is not a shell line")
    env: Environment = Field({}, description="more variables, which replace those of the sandbox")
    workdir: Directory | None = Field(None, description="working directory (default: that of the sandbox)")
    timeout_seconds: Seconds | None = Field(None, description="at most, and by default, the limit wall_seconds")
    stdin: Stdin = Field(Stdin.NONE, description="always `open` with `tty`")
    tty: Tty = None
    stderr: Stderr = Field(Stderr.SEPARATE, description=STDERR)
    on_output_limit: OnOutputLimit = OnOutputLimit.DROP_OLDEST
    output_mode: OutputMode | None = Field(None, description=OUTPUT_MODE)
    limits: ExecutionLimitsRequest = ExecutionLimitsRequest()
    id: Id | None = Field(None, description="chosen by the client; makes the start repeatable")


class SignalExecution(Strict):
    model_config = ConfigDict(json_schema_extra={"examples": [{"signal": "SIGINT"}]})

    signal: Annotated[str, needs_text("SIGINT")] = Field(description="a name such as SIGINT or INT")
