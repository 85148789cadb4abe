"""The option --secret. A value comes from a file, and never from the command line, which every user of the machine can
read. No message shows what was typed, as it may be a value by mistake."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.cli import UsageError
from app.core import hosts as patterns

HTTPS = 443
_FILE_BYTES = 64 * 1024  # the service takes less
_FORM = "--secret: write NAME=@FILE:HOST, or NAME:HOST for one of the operator's; several hosts are HOST,HOST"


@dataclass(frozen=True, slots=True)
class TypedSecret:
    """`body`: what the request has for it."""

    variable: str
    hosts: tuple[str, ...]
    body: dict[str, Any] = field(repr=False)


def typed_secret(text: str) -> TypedSecret:
    """Raises UsageError."""
    what, colon, tail = text.rpartition(":")
    hosts = tuple(host.strip() for host in tail.split(","))
    variable, equals, file = what.partition("=")
    if not colon or not variable or not all(hosts) or (equals and not file.startswith("@")):
        raise UsageError(_FORM)
    source = {"value": _content(file[1:])} if equals else {"from": variable}
    return TypedSecret(variable, hosts, {**source, "hosts": list(hosts)})


def _content(name: str) -> str:
    """Without the line end that editors put there."""
    try:
        with Path(name).open("rb") as file:
            content = file.read(_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--secret: {name} cannot be read: {error.strerror}") from None
    if len(content) > _FILE_BYTES:
        raise UsageError(f"--secret: {name} has more than {_FILE_BYTES} bytes")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError(f"--secret: {name} is not UTF-8") from None


def allow_secrets(allow: Sequence[str], secrets: Sequence[TypedSecret]) -> list[str | dict[str, Any]]:
    """The rules of --allow, where those for hosts of secrets have requests read, and port 443 of each such host."""
    hosts = {host.lower(): None for secret in secrets for host in secret.hosts}
    return read_rules(dict.fromkeys((*allow, *(f"{host}:{HTTPS}" for host in hosts))), hosts)


def read_rules(allow: Iterable[str], hosts: Iterable[str]) -> list[str | dict[str, Any]]:
    """The rules of --allow, where those that fit one of these hosts have requests read, also `*` and `*.NAME`."""
    names = [name for name in map(_normal, hosts) if name]
    rules: list[str | dict[str, Any]] = []
    for text in allow:
        host, _, port = text.rpartition(":")
        wide = _normal(host)
        is_read = port.isascii() and port.isdigit() and any(wide and patterns.covers(wide, name) for name in names)
        rules.append({"host": host, "ports": [int(port)], "http": [{}]} if is_read else text)
    return rules


def _normal(host: str) -> str:
    """Returns "" for what is no host, which the service says."""
    try:
        return patterns.normal_host(host)
    except ValueError:
        return ""
