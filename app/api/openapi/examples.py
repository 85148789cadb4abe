"""One example of each answer, for the documents. A test checks them against their schemas."""

from __future__ import annotations

from typing import Any

_EXECUTION = "exe_06fa2c8q9m4v0n7r1x3t5z8b2d"
_SANDBOX = "sbx_06fa2c8q0gsbsd9e2y5k8w1m3c"
_CREATED, _LATER = "2026-01-31T12:00:00.000000Z", "2026-01-31T13:00:00.000000Z"
_DIGEST = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"

_receipt: dict[str, Any] = {
    "tier": "kernel",
    "namespaces": ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"],
    "host_uid": 2000000,
    "root": "host",
    "no_new_privs": True,
    "capabilities": {"amb": 0, "bnd": 0, "eff": 0, "inh": 0, "prm": 0},
    "landlock": {
        "abi": 6,
        "files": ["execute", "read_file", "write_file"],
        "tcp": ["bind_tcp", "connect_tcp"],
        "connect_ports": [],
        "scopes": ["abstract_unix_socket", "signal"],
    },
    "seccomp": {"mode": "filter", "profile": "default", "sha256": _DIGEST},
    "cgroup": {
        "version": 2,
        "memory_bytes": 536870912,
        "processes": 128,
        "cpus": 1.0,
        "cpuset_cpus": "3",
        "swap": "none",
    },
    "storage": {"kind": "memory", "file_system": "tmpfs", "bytes": 532676608},
    "network": {
        "mode": "none",
        "links": [{"name": "lo", "up": True}],
        "addresses": ["127.0.0.1/8", "::1/128"],
        "routes": 5,
        "routes_to_outside": 0,
        "any_address_routes": [],
        "ports": [],
        "rules": 5,
    },
    "missing_layers": [],
    "notes": ["files in /workspace, /tmp and /dev/shm count as memory: memory_bytes is the limit of both together"],
}

_sandbox: dict[str, Any] = {
    "id": _SANDBOX,
    "runtime": "process",
    "runtime_reason": None,
    "image": None,
    "storage": "memory",
    "state": "running",
    "state_reason": None,
    "created_at": _CREATED,
    "expires_at": _LATER,
    "idle_seconds": None,
    "idle_counts": "executions",
    "last_active_at": _CREATED,
    "labels": {"team": "ci"},
    "secrets": {"API_KEY": {"hosts": ["api.example.com"], "from": None}},
    "limits": {
        "cpus": 1.0,
        "memory_mib": 512,
        "processes": 128,
        "disk_mib": 512,
        "output_bytes": 67108864,
        "wall_seconds": 3600.0,
    },
    "policy": {
        "profile": "default",
        "filesystem": {"read_only": ["/usr", "/etc"], "read_write": ["/workspace", "/tmp", "/dev/shm"]},  # noqa: S108 - paths inside
        "network": {"mode": "none", "allow": []},
        "syscalls": {"profile": "default"},
        "loopback_tcp": False,
    },
    "isolation": _receipt,
    "executions": {"running": 0, "total": 1},
}

_exit: dict[str, Any] = {
    "reason": "exited",
    "code": 0,
    "signal": None,
    "detail": None,
    "duration_seconds": 0.021,
    "cpu_seconds": 0.018,
    "max_memory_bytes": 9437184,
}

_execution: dict[str, Any] = {
    "id": _EXECUTION,
    "sandbox_id": _SANDBOX,
    "command": ["echo", "hello"],
    "tty": False,
    "state": "ended",
    "started_at": _CREATED,
    "ended_at": "2026-01-31T12:00:00.021000Z",
    "exit": _exit,
    "output_mode": "exact",
    "output": {"stdout": {"bytes": 6, "dropped_bytes": 0}, "stderr": {"bytes": 0, "dropped_bytes": 0}},
}

_empty = {"bytes": 0, "dropped_bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}

_refused: dict[str, Any] = {
    "name": "telemetry.example.net",
    "address": None,
    "port": None,
    "reason": "name",
    "count": 2,
}
_network_event: dict[str, Any] = {
    "at": _CREATED,
    "kind": "connection",
    "execution_id": None,
    "name": "index.example.org",
    "address": "203.0.113.7",
    "port": 443,
    "method": None,
    "path": None,
    "verdict": "allowed",
    "rule": "index.example.org:443",
    "reason": None,
    "bytes_sent": 812,
    "bytes_received": 40_213,
    "duration_seconds": 0.184,
}

_outputs: dict[str, Any] = {
    "exit": _exit,
    "stdout": "2\n",
    "stderr": "",
    "output_mode": "exact",
    "stdout_truncated": False,
    "stderr_truncated": False,
    "encoding": "utf-8",
    "network": {"refused": []},
}
_collected: list[dict[str, Any]] = [
    {"path": "out/log.txt", "content_base64": "ZG9uZQo="},
    {"path": "out/*.png", "error": "nothing matches"},
]
_usage: dict[str, Any] = {
    "memory_bytes": 9_437_184,
    "memory_peak_bytes": 41_943_040,
    "cpu_seconds": 0.173,
    "processes": 2,
    "disk_bytes": 4096,
    "open_files": 11,
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "Sandbox": _sandbox,
    "SandboxList": {"items": [_sandbox], "next_cursor": "MTAw"},
    "Execution": _execution,
    "RunResult": {
        "sandbox_id": _SANDBOX,
        "runtime": "process",
        **_outputs,
        "network": {"refused": [_refused]},
        "collected": [],
    },
    "RunInSandboxResult": {"sandbox_id": _SANDBOX, "execution_id": _EXECUTION, **_outputs, "collected": _collected},
    "ResourceUsage": _usage,
    "NetworkEventList": {"items": [_network_event], "next_cursor": None, "dropped": 0},
    "NetworkGap": {"dropped": 12},
    "NetworkEnd": {"total": 41},
    "ExecutionList": {"items": [_execution], "next_cursor": None},
    "Directory": {
        "items": [
            {
                "name": "caf\ufffd.txt",
                "name_base64": "Y2Fm6S50eHQ=",
                "type": "file",
                "size": 5,
                "mode": "0644",
                "modified_at": _CREATED,
                "target": None,
            },
            {
                "name": "latest",
                "type": "symlink",
                "size": 9,
                "mode": "0777",
                "modified_at": _CREATED,
                "target": "build/7/a",
            },
        ],
        "next_cursor": "bGF0ZXN0",
    },
    "RuntimeList": {
        "items": [
            {
                "name": "process",
                "aliases": ["kernel", "linux"],
                "enabled": True,
                "available": False,
                "reason": "the launcher is not reachable",
                "version": "0.1.0",
                "tier": "kernel",
                "capabilities": ["kill_tree", "signals", "stdin"],
                "limits": {
                    "memory_mib": {"default": 512, "ceiling": 4096},
                    "argument_bytes": {"default": None, "ceiling": 131071},
                },
            },
            {
                "name": "boxlite",
                "aliases": ["microvm", "vm"],
                "enabled": True,
                "available": True,
                "reason": None,
                "version": "0.1.0",
                "tier": "vm",
                "capabilities": ["images", "pty", "stdin"],
                "limits": {
                    "memory_mib": {"default": 512, "ceiling": 4096},
                    "argument_bytes": {"default": None, "ceiling": 131071},
                },
            },
        ]
    },
    "Health": {"status": "alive"},
    "Ready": {"default": "process", "runtimes": [{"name": "process", "ready": True, "reason": None}]},
    "StreamTicket": {"ticket": "Qw8mW1cV0bKX3n2hXy5t7f9uJr4aLzEd", "expires_at": "2026-07-01T12:00:30Z"},
    "StreamStart": {"type": "start", "stdout_offset": 0, "stderr_offset": 0, "stdin_bytes": 0, "state": "running"},
    "StreamOutput": {"channel": "stdout", "offset": 0, "base64": "aGVsbG8K"},
    "StreamGap": {"type": "gap", "channel": "stdout", "from": 0, "to": 4096},
    "StreamExit": {
        "type": "exit",
        "exit_code": 0,
        "exit": _exit,
        "stdout": {"bytes": 6, "dropped_bytes": 0, "sha256": _DIGEST},
        "stderr": _empty,
    },
    "StreamStdinEof": {"type": "stdin_eof"},
    "StreamSignal": {"type": "signal", "signal": "SIGINT"},
    "StreamResize": {"type": "resize", "rows": 40, "cols": 120},
}

# Of operations whose answer is not what the schema's own example shows.
OF_OPERATIONS: dict[str, dict[str, Any]] = {"get_execution_usage": _usage | {"disk_bytes": None}}
