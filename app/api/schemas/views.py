"""From the core's objects to the answers of `answers.py`, as plain dicts, since validating our own answers would cost
time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from app.core.capabilities import Capability
from app.core.executions import Execution
from app.core.models import Channel, Exit, ResourceUsage
from app.core.network_log import NetworkEvent, RefusedHost
from app.core.sandboxes import Sandbox
from app.core.timeslices import TimeSlices

Body = dict[str, Any]


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(body), status, headers, "application/json")


async def json_page(items: Iterable[Body], next_cursor: str | None, **more: Any) -> Response:
    """`items` are made one by one, as a page of 1,000 could hold the event loop for too long. `more`: members beside
    the usual two."""
    slices = TimeSlices.of_loop()
    pieces: list[bytes] = []
    for item in items:
        pieces.append(to_json(item))
        if slices.over:
            await slices.next()
    body = b'{"items":[%b],%b' % (b",".join(pieces), to_json({"next_cursor": next_cursor, **more})[1:])
    return Response(body, media_type="application/json")


def sandbox_body(sandbox: Sandbox, capabilities: frozenset[Capability]) -> Body:
    spec, policy = sandbox.spec, sandbox.spec.policy
    return {
        "id": sandbox.id,
        "runtime": spec.runtime,
        "runtime_reason": spec.runtime_reason,
        "image": spec.image,
        "storage": spec.storage,
        "state": sandbox.state,
        "state_reason": sandbox.state_reason,
        "created_at": sandbox.created_at,
        "expires_at": sandbox.expires_at,
        "idle_seconds": sandbox.idle_seconds,
        "idle_counts": sandbox.idle_counts,
        "last_active_at": sandbox.last_active_at,
        "labels": sandbox.labels,
        "secrets": {secret.variable: {"hosts": secret.hosts, "from": secret.source} for secret in spec.secrets},
        "limits": spec.limits.enforced(capabilities),
        "policy": {
            "profile": policy.profile,
            "filesystem": {
                "read_only": policy.filesystem.read_only,
                "read_write": policy.filesystem.read_write,
            }
            if Capability.FILESYSTEM_POLICY in capabilities
            else None,
            "network": {
                "mode": sandbox.network.mode,
                "allow": sandbox.network.allow or [rule.as_dict() for rule in sandbox.network.rules],
            },
            "syscalls": {"profile": policy.syscalls.profile} if Capability.SYSCALL_PROFILES in capabilities else None,
            "loopback_tcp": policy.loopback_tcp if Capability.FILESYSTEM_POLICY in capabilities else None,
        },
        "isolation": None if sandbox.receipt is None else dict(sandbox.receipt),
        "executions": {"running": sandbox.running, "total": len(sandbox.executions)},
    }


REFUSED_BYTES = 2048 + 256
_LAST_SECOND = 253_402_300_799  # of the year 9999


def network_event_body(event: NetworkEvent) -> Body:
    return {
        "at": datetime.fromtimestamp(min(event.at, _LAST_SECOND), UTC),
        "kind": event.kind,
        "execution_id": event.execution_id,
        "name": _shown(event.name),
        "address": _shown(event.address),
        "port": event.port,
        "method": _shown(event.method),
        "path": _shown(event.path),
        "verdict": event.verdict,
        "rule": _shown(event.rule),
        "reason": _shown(event.reason),
        "bytes_sent": event.bytes_sent,
        "bytes_received": event.bytes_received,
        "duration_seconds": event.duration_seconds,
    }


def refused_body(refused: Iterable[RefusedHost]) -> Body:
    """At most REFUSED_BYTES of JSON for each."""
    return {
        "refused": [
            {
                "name": _shown(host.name),
                "address": _shown(host.address, 64),
                "port": host.port,
                "reason": _shown(host.reason, 64),
                "count": host.count,
            }
            for host in refused
        ]
    }


def _shown(text: str | None, most: int = 400) -> str | None:
    """Programs choose the names that they ask for, and a question may have any bytes: nothing that a terminal obeys, or
    that JSON cannot have, is passed on."""
    return text if text is None else (text if text.isprintable() else ascii(text)[1:-1])[:most]


def execution_body(execution: Execution) -> Body:
    stdout, stderr = execution.logs[Channel.STDOUT], execution.logs[Channel.STDERR]
    body: Body = {
        "id": execution.id,
        "sandbox_id": execution.sandbox_id,
        "command": execution.command.argv,
        "tty": execution.command.tty is not None,
        "state": execution.state,
        "started_at": execution.started_at,
        "ended_at": execution.ended_at,
        "output_mode": execution.outputs.mode,
        "output": {
            "stdout": {"bytes": stdout.total, "dropped_bytes": stdout.dropped},
            "stderr": {"bytes": stderr.total, "dropped_bytes": stderr.dropped},
        },
    }
    if execution.exit is not None:
        body["exit"] = exit_body(execution.exit)
    return body


def usage_body(usage: ResourceUsage) -> Body:
    return asdict(usage)


def exit_body(exit_: Exit) -> Body:
    return {
        "reason": exit_.reason,
        "code": exit_.code,
        "signal": exit_.signal,
        "detail": exit_.detail,
        "duration_seconds": exit_.duration_seconds,
        "cpu_seconds": exit_.cpu_seconds,
        "max_memory_bytes": exit_.max_memory_bytes,
    }
