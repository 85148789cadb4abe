"""What the runtime `process` may use of its host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from app.settings.part import AbsolutePath, Part, split

MissingLayer = Literal[
    "landlock",
    "landlock_tcp",
    "landlock_scopes",
    "user_namespace",
    "cgroup_memory",
    "cgroup_pids",
    "cgroup_cpu",
    "cgroup_cpuset",
    "swap_limit",
]


class ProcessSettings(Part):
    enabled: bool = True
    uid_base: int = Field(1_900_000_000, ge=1, description="first host uid for sandboxes")
    uid_count: int = Field(
        65_536, ge=3, description="number of host uids: one for the gateway, one for the egress process, then sandboxes"
    )
    cgroup_parent: str | None = Field(None, description="path below the cgroup mounts; absent: the service finds one")
    accept_missing: Annotated[tuple[MissingLayer, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="isolation layers that this host may lack"
    )
    root_paths: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="more read-only host directories for every sandbox"
    )
    max_file_locks: int = Field(
        100_000, ge=0, le=2**31, description="file locks that one sandbox may hold at once; 0: any number"
    )
    max_terminals: int = Field(
        2048, ge=1, le=2**20, description="terminals of the host that may be in use when a sandbox gets one more"
    )
    storage_dir: AbsolutePath | None = Field(
        None,
        description="folder of root for the disks of sandboxes, on ext4 or xfs; absent: `storage` in the data folder",
    )
    storage_reserve_mib: int = Field(
        1024,
        ge=0,
        le=2**31,
        description="room that the disks of sandboxes leave free in the file system of that folder",
    )
    launcher_socket: AbsolutePath | None = Field(None, description="socket of a launcher that is a service of its own")
    gateway_uid: int | None = Field(
        None, ge=1, description="uid of the gateway that may connect to services of their own"
    )

    @field_validator("root_paths")
    @classmethod
    def _absolute(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in paths:
            if not path.is_absolute() or ".." in path.parts or path == Path("/"):
                raise ValueError(f"{path} must be an absolute directory below /, without ..")
        return paths

    @model_validator(mode="after")
    def _uids_exist(self) -> Self:
        if self.uid_base + self.uid_count > 2**32 - 1:
            raise ValueError("uid_base + uid_count is beyond the kernel's last uid")
        if self.gateway_uid is not None and self.uid_base <= self.gateway_uid < self.uid_base + self.uid_count:
            raise ValueError(f"gateway_uid {self.gateway_uid} is among the uids of sandboxes: choose one outside")
        return self
