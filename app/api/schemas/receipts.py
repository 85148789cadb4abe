"""The isolation receipt as a schema for the documents. The runtime measures it, and nothing here checks it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.core.models import Storage


class Receipt(BaseModel):
    model_config = ConfigDict(extra="allow")


class LandlockReceipt(Receipt):
    abi: int
    files: list[str] = Field(description="kinds of access to files that Landlock controls")
    tcp: list[str] = Field(description="kinds of use of TCP that Landlock controls")
    connect_ports: list[int] = Field(
        default_factory=list, description="TCP ports that Landlock lets programs connect to; it lets them bind none"
    )
    scopes: list[str]


class SeccompReceipt(Receipt):
    mode: str
    profile: str
    sha256: str = Field(description="digest of the filter's program")


class CgroupReceipt(Receipt):
    """The limits as read back from the kernel; null where there is none."""

    version: int
    memory_bytes: int | None = Field(description="the hard limit of memory, `memory_mib`")
    processes: int | None
    cpus: float | None
    cpuset_cpus: str | None = Field(description="the host's processors that it may use, such as `0-3,8`")
    swap: str


class StorageReceipt(Receipt):
    """What is mounted at /workspace, as measured from outside; null where only the runtime's server knows."""

    kind: Storage
    file_system: str | None
    bytes: int | None = Field(description="room for files when the sandbox was made")


class LinkReceipt(Receipt):
    name: str
    up: bool


class AllowedHttpReceipt(Receipt):
    methods: list[str] | None = Field(description="null: all")
    paths: list[str] | None = Field(description="null: all")


class AllowedReceipt(Receipt):
    host: str
    ports: list[int]
    raw: bool
    http: list[AllowedHttpReceipt] | None = Field(description="permitted requests; null: the bytes pass unread")


class AuthorityReceipt(Receipt):
    """The sandbox's own authority, which signs certificates for hosts whose rules have `http`."""

    sha256: str = Field(description="fingerprint of its certificate")
    trusted_in: list[str] = Field(description="files of the sandbox that have its certificate, as measured")


class NetworkReceipt(Receipt):
    mode: str
    allow: list[AllowedReceipt] = Field(default_factory=list, description="the rules of `proxy` in force")
    links: list[LinkReceipt] = Field(default_factory=list)
    addresses: list[str] = Field(default_factory=list)
    routes: int = Field(default_factory=int)
    routes_to_outside: int = Field(default_factory=int)
    any_address_routes: list[str] = Field(
        default_factory=list,
        description="networks of which every address is the sandbox's own, with the mode `proxy`: nothing leaves it",
    )
    ports: list[int] = Field(
        default_factory=list, description="TCP ports on which connections to any address are taken and judged"
    )
    rules: int = Field(default_factory=int)
    authority: AuthorityReceipt | SkipJsonSchema[None] = Field(
        default_factory=lambda: None, description="only where requests inside TLS may be read"
    )


class MeasuredReceipt(Receipt):
    """Measured inside, by programs of the image, before any command ran."""

    kernel: str
    cpus: int
    memory_bytes: int


class Isolation(Receipt):
    """The receipt: what was measured to be in force. The members depend on the runtime: `process` has those from
    `namespaces` to `cgroup`, `boxlite` has those from `box_id` to `claimed`."""

    tier: str
    box_id: str = Field(default_factory=str, description="the server's id of the box")
    server_version: str | None = Field(None, description="null if the server does not report it")
    boot_seconds: float = Field(default_factory=float, description="time of the boot, with the download of the image")
    measured: MeasuredReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    reported: dict[str, Any] = Field(default_factory=dict, description="what the server reports about the box")
    claimed: list[str] = Field(
        default_factory=list, description="what only the server can know; Bulkhead did not verify it"
    )
    namespaces: list[str] = Field(default_factory=list)
    host_uid: int = Field(default_factory=int, description="uid of the sandbox's user on the host")
    root: str = Field(default_factory=str, description="where /usr and the other system directories come from")
    no_new_privs: bool = Field(default_factory=bool)
    capabilities: dict[str, int] = Field(default_factory=dict, description="each set as a bit mask; 0: none")
    landlock: LandlockReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    seccomp: SeccompReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    cgroup: CgroupReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    storage: StorageReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    network: NetworkReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    missing_layers: list[str] = Field(default_factory=list, description="layers that the operator accepted as missing")
    output_mode: str = Field(default_factory=str, description="`exact`, or `plain` where the image cannot do it")
    output_detail: str | None = Field(None, description="why not")
    notes: list[str] = Field(default_factory=list)
