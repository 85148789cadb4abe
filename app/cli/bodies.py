"""What was typed, as the bodies of requests: only what was said, the rest is the service's to choose."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from app.cli import UsageError
from app.cli.pipes import wanted

TTL_SECONDS = 3600.0  # the service's default
SLACK_SECONDS = 60.0  # a sandbox must outlive its command: creating, starting and reading the rest take time
LIMITS = ("cpus", "memory_mib", "processes", "disk_mib", "output_bytes", "wall_seconds")


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _pairs(found: list[tuple[str, str]] | None) -> dict[str, str] | None:
    return dict(found) if found else None


def sandbox_body(typed: Namespace) -> dict[str, Any]:
    """The body of `POST /sandboxes`."""
    runtime = typed.runtime or os.environ.get("BULKHEAD_RUNTIME") or os.environ.get("OPENSHELL_RUNTIME") or None
    longest = max(getattr(typed, "timeout", None) or 0.0, typed.wall_seconds or 0.0) + SLACK_SECONDS
    return _said(
        {
            "id": typed.id,
            "runtime": runtime,
            "env": _pairs(typed.env),
            "workdir": typed.workdir,
            "policy": {"profile": typed.profile} if typed.profile is not None else None,
            "labels": _pairs(typed.label),
            "limits": _said({name: getattr(typed, name) for name in LIMITS}) or None,
            "ttl_seconds": typed.ttl if typed.ttl is not None or longest <= TTL_SECONDS else longest,
            "idle_seconds": typed.idle,
        }
    )


def execution_body(typed: Namespace, *, in_own_sandbox: bool) -> dict[str, Any]:
    """The body of `POST /sandboxes/{id}/executions`. Id, variables and directory belong to the sandbox when the
    command has one of its own. Raises UsageError."""
    command = typed.command[1:] if typed.command[:1] == ["--"] else typed.command
    if not command:
        raise UsageError("there is no command to run")
    for number, argument in enumerate(command, 1):
        try:
            argument.encode()
        except UnicodeEncodeError as error:  # the API speaks Unicode: what is no text cannot be passed on as it is
            raise UsageError(f"argument {number} of the command is not valid UTF-8") from error
    return _said(
        {
            "command": command,
            "stdin": "open" if wanted() else "none",
            "timeout_seconds": typed.timeout,
            "on_output_limit": typed.on_output_limit,
            "id": None if in_own_sandbox else typed.id,
            "env": None if in_own_sandbox else _pairs(typed.env),
            "workdir": None if in_own_sandbox else typed.workdir,
        }
    )
