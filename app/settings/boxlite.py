"""The BoxLite server, and what its boxes may be."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from app.core.direct_rules import check_rule
from app.settings.part import Part, split


class ImageSource(Part):
    """Either a directory on the BoxLite server (an OCI layout), or a reference that it pulls."""

    rootfs_path: PurePosixPath | None = None
    reference: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.rootfs_path is None) == (self.reference is None):
            raise ValueError("needs either rootfs_path or reference")
        if self.rootfs_path is not None and (not self.rootfs_path.is_absolute() or ".." in self.rootfs_path.parts):
            raise ValueError("rootfs_path must be an absolute path on the BoxLite server, without ..")
        return self


def _has_host_and_port(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:  # a port that is none, or a name that the domain name system cannot have
        return False


class BoxliteSettings(Part):
    enabled: bool = Field(True, description="false: requests for this runtime are refused")
    url: str | None = Field(None, description="address of the BoxLite server, such as http://127.0.0.1:8100")
    api_key: SecretStr | None = Field(None, description="the key that the server was started with")
    path_prefix: str | None = Field(
        None, description="part of the path between /v1/ and /boxes; absent: ask the server"
    )
    images: dict[str, ImageSource] = Field(
        default_factory=dict, description='JSON object: names, each with {"rootfs_path": ...} or {"reference": ...}'
    )
    default_image: str | None = Field(None, description="image of a create that names none")
    image_patterns: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
        ("docker.io/*",), description="references that clients may name beside the table; `*` stands for anything"
    )
    direct_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="hosts that a box may reach by the network mode `direct`; empty: no such mode"
    )
    boots: int = Field(4, ge=1, description="boots at one time; the server gives each guest 30 seconds")
    boot_seconds: float = Field(
        300, ge=30, allow_inf_nan=False, description="time for a boot with the download of its image"
    )
    grace_seconds: float = Field(
        60, ge=0, allow_inf_nan=False, description="how long the server may be away before its sandboxes are failed"
    )
    stdin_mib: int = Field(64, ge=1, description="stdin of one plain execution; the server keeps it in memory")

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s?#]*)?", url) or not _has_host_and_port(url):
            raise ValueError("must be http://host[:port] or https://…, without user name, query or spaces")
        return url

    @field_validator("direct_allow")
    @classmethod
    def _are_rules(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_rule(rule) for rule in rules)

    @field_validator("path_prefix")
    @classmethod
    def _is_prefix(cls, prefix: str | None) -> str | None:
        if prefix and (not re.fullmatch(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*", prefix) or ".." in prefix.split("/")):
            raise ValueError("must be path segments of letters, digits and ._~-")
        return prefix

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.api_key is not None and not re.fullmatch(r"[!-~]*", self.api_key.get_secret_value()):
            raise ValueError("api_key: must be printable ASCII without spaces")
        return self

    @property
    def in_use(self) -> bool:
        return self.enabled and self.url is not None
