"""Turns what was typed into bodies of requests. A body has only what was typed, and the service chooses the rest."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from app.cli import UsageError, terminal
from app.cli.pipes import wanted

if TYPE_CHECKING:
    from app.cli.secrets import TypedSecret

TTL_SECONDS = WALL_SECONDS = 3600.0  # the service's defaults
SLACK_SECONDS = 60.0  # a sandbox must outlive its command: creating, starting and reading the rest take time
LIMITS = ("cpus", "memory_mib", "processes", "disk_mib", "output_bytes", "wall_seconds")


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _pairs(found: list[tuple[str, str]] | None) -> dict[str, str] | None:
    return dict(found) if found else None


def _secrets(typed: Namespace) -> list[TypedSecret]:
    if not typed.secret:
        return []
    if typed.network != "proxy":
        raise UsageError("--secret needs --network proxy")
    from app.cli.secrets import typed_secrets

    return typed_secrets(typed.secret)


def _rules(typed: Namespace) -> list[Any]:
    """In the order of `cli.options`: of --allow, --allow-http and --allow-raw."""
    return [
        *(typed.allow or ()),
        *map(_http_rule, typed.allow_http or ()),
        *map(_raw_rule, typed.allow_raw or ()),
    ]


def _network(typed: Namespace, secrets: list[TypedSecret]) -> dict[str, Any] | None:
    if typed.allow and typed.network not in {"proxy", "direct"}:
        raise UsageError("--allow needs --network proxy (or direct)")
    for option, rules in (("--allow-http", typed.allow_http), ("--allow-raw", typed.allow_raw)):
        if rules and typed.network != "proxy":
            raise UsageError(f"{option} needs --network proxy")
    if typed.network == "proxy":
        _check_allow(typed)
    allow = _rules(typed)
    if secrets:
        from app.cli.secrets import allow_secrets

        allow = allow_secrets(allow, secrets)
    return {"mode": typed.network, **_said({"allow": allow or None})} if typed.network is not None else None


def rules_body(typed: Namespace) -> dict[str, Any] | None:
    """The body of `PATCH /sandboxes/{id}` with other rules. None if there are no rules to set. Raises UsageError."""
    _check_allow(typed)
    rules = _rules(typed)
    if rules and typed.allow_none:
        raise UsageError("use either --allow-none or rules")
    return {"policy": {"network": {"allow": rules}}} if rules or typed.allow_none else None


def _check_allow(typed: Namespace) -> None:
    for text in typed.allow or ():
        if "://" in text:
            raise UsageError(
                f"--allow {text}: write HOST:PORT, without http:// and without a path (--allow-http takes paths)"
            )
        if ":" in (host := text.rpartition(":")[0]) or (host and not host.strip("0123456789./")):
            raise UsageError(f"--allow {text}: addresses need --allow-raw")


def _http_rule(text: str) -> dict[str, Any]:
    """`HOST:PORT [METHOD,METHOD] [PATH ...]`. What is left out permits all."""
    place, *words = text.split() or [""]
    host, port = _host_and_port(place)
    methods = words.pop(0).split(",") if words and not words[0].startswith("/") else None
    if not host or "/" in host or not all(word.startswith("/") for word in words):
        example = "such as 'api.example.com:443 GET,POST /v1/**'; without METHODS or PATH all are permitted"
        raise UsageError(f"--allow-http '{text}': write 'HOST:PORT METHODS PATH', {example}")
    return {"host": host, "ports": [port], "http": [_said({"methods": methods, "paths": words or None})]}


def _host_and_port(text: str) -> tuple[str, int]:
    """The host is empty where the text is not HOST:PORT."""
    host, _, port = text.rpartition(":")
    return (host, int(port)) if port.isascii() and port.isdigit() else ("", 0)


def _raw_rule(text: str) -> dict[str, Any]:
    host, port = _host_and_port(text)
    if not host:
        raise UsageError(f"--allow-raw {text}: write HOST:PORT; an IPv6 address is [ADDRESS]:PORT")
    return {"host": host.removeprefix("[").removesuffix("]"), "ports": [port], "raw": True}


def _terminal(typed: Namespace) -> terminal.Size:
    if typed.json:
        raise UsageError("use either --tty or --json")
    if not terminal.there():
        raise UsageError("--tty needs a terminal on stdin")
    return terminal.size()


def _limits(typed: Namespace) -> dict[str, Any]:
    limits = _said({name: getattr(typed, name) for name in LIMITS})
    timeout = getattr(typed, "timeout", None) or 0.0
    return {"wall_seconds": timeout, **limits} if timeout > WALL_SECONDS else limits


def sandbox_body(typed: Namespace) -> dict[str, Any]:
    """The body of `POST /sandboxes`. Raises UsageError."""
    runtime = typed.runtime or os.environ.get("BULKHEAD_RUNTIME") or os.environ.get("OPENSHELL_RUNTIME") or None
    secrets = _secrets(typed)
    longest = max(getattr(typed, "timeout", None) or 0.0, typed.wall_seconds or 0.0) + SLACK_SECONDS
    return _said(
        {
            "id": typed.id,
            "runtime": runtime,
            "env": _pairs(typed.env),
            "secrets": {secret.variable: secret.body for secret in secrets} or None,
            "image": typed.image,
            "isolation_min": typed.isolation_min,
            "storage": typed.storage,
            "requires": typed.requires,
            "workdir": typed.workdir,
            "policy": _said({"profile": typed.profile, "network": _network(typed, secrets)}) or None,
            "labels": _pairs(typed.label),
            "limits": _limits(typed) or None,
            "ttl_seconds": typed.ttl if typed.ttl is not None or longest <= TTL_SECONDS else longest,
            "idle_seconds": typed.idle,
            "idle_counts": typed.idle_counts,
        }
    )


def _execution_limits(typed: Namespace, *, in_own_sandbox: bool) -> dict[str, Any]:
    """`--memory-mib` is the sandbox's when the command has one of its own."""
    names = ("cpu_seconds", "stack_mib", "open_files", "file_mib", *(() if in_own_sandbox else ("memory_mib",)))
    return _said({name: getattr(typed, name) for name in names})


def execution_body(typed: Namespace, *, in_own_sandbox: bool) -> dict[str, Any]:
    """The body of `POST /sandboxes/{id}/executions`. Id, variables and directory belong to the sandbox when the
    command has one of its own. Raises UsageError."""
    command = typed.command[1:] if typed.command[:1] == ["--"] else typed.command
    if not command:
        form = "bulkhead run -- COMMAND" if in_own_sandbox else "bulkhead exec SANDBOX -- COMMAND"
        raise UsageError(f"there is no command to run; write {form}")
    for number, argument in enumerate(command, 1):
        try:
            argument.encode()
        except UnicodeEncodeError as error:  # the API speaks Unicode: what is no text cannot be passed on as it is
            raise UsageError(f"argument {number} of the command is not valid UTF-8") from error
    env = _pairs(None if in_own_sandbox else typed.env) or {}
    if typed.tty and "TERM" in os.environ and "TERM" not in dict(typed.env or ()):
        env["TERM"] = os.environ["TERM"]  # a program must know what draws on our terminal
    return _said(
        {
            "command": command,
            "stdin": "open" if typed.tty or typed.interactive or wanted() else "none",
            "tty": _terminal(typed) if typed.tty else None,
            "timeout_seconds": typed.timeout,
            "on_output_limit": typed.on_output_limit,
            "stderr": typed.stderr,
            "limits": _execution_limits(typed, in_own_sandbox=in_own_sandbox) or None,
            "id": None if in_own_sandbox else typed.id,
            "env": env or None,
            "workdir": None if in_own_sandbox else typed.workdir,
        }
    )
