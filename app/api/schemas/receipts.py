"""The isolation receipt as a schema, for the documents: the runtime measures it, and nothing here checks it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema


class Receipt(BaseModel):
    model_config = ConfigDict(extra="allow")


class LandlockReceipt(Receipt):
    abi: int
    files: list[str] = Field(description="kinds of access to files that are governed")
    tcp: list[str] = Field(description="kinds of use of TCP that are governed")
    scopes: list[str]


class SeccompReceipt(Receipt):
    mode: str
    profile: str
    sha256: str = Field(description="of the filter's program")


class CgroupReceipt(Receipt):
    """As the kernel gives the limits back; null where there is none."""

    version: int
    memory_bytes: int | None = Field(description="memory and disk together")
    processes: int | None
    cpus: float | None
    swap: str


class LinkReceipt(Receipt):
    name: str
    up: bool


class NetworkReceipt(Receipt):
    mode: str
    links: list[LinkReceipt] = Field(default_factory=list)
    addresses: list[str] = Field(default_factory=list)
    routes: int = Field(default_factory=int)
    routes_to_outside: int = Field(default_factory=int)
    rules: int = Field(default_factory=int)


class MeasuredReceipt(Receipt):
    """Read from inside, by programs of the image, before any command ran."""

    kernel: str
    cpus: int
    memory_bytes: int


class Isolation(Receipt):
    """The receipt: what is in force, measured. Which members there are depends on the runtime: those from
    `namespaces` to `cgroup` are told by `process`, those from `box_id` to `claimed` by `boxlite`."""

    tier: str
    box_id: str = Field(default_factory=str, description="the server's id of the box")
    server_version: str | None = Field(None, description="null: the server does not tell it")
    boot_seconds: float = Field(default_factory=float, description="of the boot, its image's download included")
    measured: MeasuredReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    reported: dict[str, Any] = Field(default_factory=dict, description="what the server says of the box")
    claimed: list[str] = Field(default_factory=list, description="what is only the server's word")
    namespaces: list[str] = Field(default_factory=list)
    host_uid: int = Field(default_factory=int, description="the sandbox's user, as the host sees it")
    root: str = Field(default_factory=str, description="where /usr and the like come from")
    no_new_privs: bool = Field(default_factory=bool)
    capabilities: dict[str, int] = Field(default_factory=dict, description="each set as a bit mask; 0: none")
    landlock: LandlockReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    seccomp: SeccompReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    cgroup: CgroupReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    network: NetworkReceipt | SkipJsonSchema[None] = Field(default_factory=lambda: None)
    missing_layers: list[str] = Field(default_factory=list, description="given up by the operator, by name")
    notes: list[str] = Field(default_factory=list)
