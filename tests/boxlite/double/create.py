"""The body of POST /v1/boxes: what the server checks, which is little, and what it makes of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.boxlite.double import fields
from tests.boxlite.double.http import Failure, Request, json_body

FIELDS: dict[str, fields.Check] = {
    "name": fields.STRING,
    "image": fields.STRING,
    "rootfs_path": fields.STRING,
    "cpus": fields.U8,
    "memory_mib": fields.U32,
    "disk_size_gb": fields.U64,
    "working_dir": fields.STRING,
    "env": fields.ENVIRONMENT,
    "entrypoint": fields.STRINGS,
    "cmd": fields.STRINGS,
    "user": fields.STRING,
    "tty": fields.BOOL,
    "advanced": fields.ANYTHING,
    "network": fields.ANYTHING,
    "auto_stop": fields.U64,
    "auto_delete": fields.U64,
    "auto_resume": fields.BOOL,
    "detach": fields.BOOL,
    "secrets": fields.OBJECTS,
    "volumes": fields.OBJECTS,
}
LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
RULE = re.compile(rf"(\*\.)?{LABEL}(\.{LABEL})*|\d+(\.\d+){{3}}(/\d+)?")
CAPABILITY = re.compile(r"[A-Za-z0-9_]+")


def open_network() -> dict[str, Any]:
    return {"outbound": {"mode": "enabled", "allow_net": []}, "inbound": {"mode": "disabled", "allow_net": []}}


@dataclass
class Options:
    name: str | None = None
    image: str = "alpine:latest"
    rootfs_path: str | None = None
    cpus: int = 1
    memory_mib: int = 1024
    disk_size_gb: int | None = None
    working_dir: str = "/"
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    user: str = ""  # empty: as the image says
    tty: bool = False
    auto_stop: int = 0
    auto_delete: int = 0
    auto_resume: bool = True
    detach: bool = True
    network: dict[str, Any] = field(default_factory=open_network)

    @property
    def has_main_command(self) -> bool:
        """Present at all, even empty, is enough."""
        return self.cmd is not None or self.entrypoint is not None

    @property
    def main_command(self) -> list[str]:
        """What the image would run, /bin/sh, where nothing is given; a given entrypoint drops it."""
        return [*(self.entrypoint or []), *(self.cmd or [])] or ["/bin/sh"]


def direction(value: Any, name: str) -> dict[str, Any]:
    mode = value.get("mode")
    if mode not in {"enabled", "disabled"}:
        text = f'invalid network mode {json.dumps(mode)}. Expected "enabled" or "disabled".'
        raise Failure("invalid_argument", f"invalid argument: {text}")
    rules = value.get("allow_net") or []
    for rule in rules:
        if not RULE.fullmatch(rule):
            text = f'invalid allow_net rule: "{rule}"; expected a hostname, wildcard hostname, IPv4 or IPv4 CIDR'
            raise Failure("invalid_argument", f"invalid argument: {text}")
    if rules and name == "inbound":
        raise Failure("invalid_argument", "invalid argument: network.inbound.allow_net is not supported")
    if rules and mode == "disabled":
        text = f'network.{name}.mode="disabled" is incompatible with allow_net. Remove allow_net or use mode="enabled".'
        raise Failure("invalid_argument", f"invalid argument: {text}")
    return {"mode": mode, "allow_net": rules}


def network(given: dict[str, Any] | None) -> dict[str, Any]:
    """Flat or nested, never both; what is left out is open to the outside and closed from there."""
    if given is None:
        return open_network()
    flat, nested = {"mode", "allow_net"} & set(given), {"outbound", "inbound"} & set(given)
    if flat and nested:
        text = "network must use either nested outbound/inbound fields or legacy flat fields, not both"
        raise Failure("invalid_argument", f"invalid argument: {text}")
    found = open_network()
    for name in nested:
        found[name] = direction(given[name] or {}, name)
    if flat:
        found["outbound"] = direction(given, "outbound")
    return found


def options(request: Request) -> Options:
    given = fields.take(json_body(request), request.body, FIELDS, strict=True)
    if given.pop("volumes", None):
        raise Failure("invalid_argument", "invalid argument: managed volumes are not supported by boxlite serve")
    for secret in given.pop("secrets", []):
        if not secret.get("name") or not secret.get("value"):
            raise Failure("invalid_argument", "invalid argument: secret name and value must be non-empty")
    capabilities = given.pop("advanced", {}).get("capabilities") or {}
    for kind in ("add", "drop"):
        for name in capabilities.get(kind) or []:
            if not CAPABILITY.fullmatch(name):
                text = f"malformed Linux capability in advanced.capabilities.{kind}: {name}"
                raise Failure("invalid_argument", f"invalid argument: {text}")
    given["network"] = network(given.get("network"))
    made = Options(**given)
    if made.auto_stop and 0 < made.auto_delete <= made.auto_stop:
        raise Failure("invalid_argument", "configuration error: auto_delete must be greater than auto_stop")
    return made
