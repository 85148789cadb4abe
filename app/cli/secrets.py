"""The option --secret. A value comes from a file, and never from the command line, which every user of the machine can
read. No message shows what was typed, as it may be a value by mistake."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.cli import UsageError
from app.core import hosts as patterns

HTTP, HTTPS = 80, 443
_FILE_BYTES = 64 * 1024  # the service takes less
Rule = str | dict[str, Any]  # as in a request
_FORM = "--secret: write NAME=@FILE:HOST, or NAME:HOST for one of the operator's; several hosts are HOST,HOST"


@dataclass(frozen=True, slots=True)
class TypedSecret:
    """`body`: what the request has for it."""

    variable: str
    hosts: tuple[str, ...]
    body: dict[str, Any] = field(repr=False)


def typed_secrets(texts: Iterable[str]) -> list[TypedSecret]:
    """Raises UsageError."""
    secrets = list(map(_typed_secret, texts))
    if len({secret.variable for secret in secrets}) < len(secrets):
        raise UsageError("--secret: a NAME is given twice; several hosts are HOST,HOST")
    return secrets


def _typed_secret(text: str) -> TypedSecret:
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


def allow_secrets(rules: Sequence[Rule], secrets: Sequence[TypedSecret]) -> list[Rule]:
    """The rules that were typed, where those for hosts of secrets have requests read. After them port 443 of each such
    host for which no rule says which requests it is for."""
    hosts = dict.fromkeys(host.lower() for secret in secrets for host in secret.hosts)
    own = [f"{host}:{HTTPS}" for host in hosts if not _says_requests(rules, host)]
    return read_rules([*rules, *(rule for rule in own if rule not in rules)], hosts)


def _says_requests(rules: Iterable[Rule], host: str) -> bool:
    """Whether a rule with `http` is for this host. On port 80 there are no secrets."""
    name = _normal(host)
    objects = [rule for rule in rules if not isinstance(rule, str) and "http" in rule and rule["ports"] != [HTTP]]
    return bool(name) and any(wide and patterns.covers(wide, name) for wide in (_normal(r["host"]) for r in objects))


def read_rules(rules: Iterable[Rule], hosts: Iterable[str]) -> list[Rule]:
    """The rules, where those of --allow that fit one of these hosts have requests read, also `*` and `*.NAME`."""
    names = [name for name in map(_normal, hosts) if name]
    return [_read_rule(rule, names) if isinstance(rule, str) else rule for rule in rules]


def _read_rule(text: str, names: Iterable[str]) -> Rule:
    host, _, port = text.rpartition(":")
    wide = _normal(host)
    is_read = port.isascii() and port.isdigit() and any(wide and patterns.covers(wide, name) for name in names)
    return {"host": host, "ports": [int(port)], "http": [{}]} if is_read else text


def _normal(host: str) -> str:
    """Returns "" for what is no host, which the service says."""
    try:
        return patterns.normal_host(host)
    except ValueError:
        return ""
