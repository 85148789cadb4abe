"""Policy and command, translated into what the launcher takes. Pure functions."""

from __future__ import annotations

import os
from collections.abc import Mapping

from app.core.limits import MIB
from app.core.models import Command, ExecutionLimits, SandboxSpec, Storage
from app.core.network_rules import ports_of
from app.core.policy import Network
from app.launcher.protocol import CreatePlan, ExecutionPlan, pack_command

# A command's environment is built from nothing, not from ours.
BASE_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/workspace",
    "USER": "sandbox",
    "LOGNAME": "sandbox",
    "SHELL": "/bin/sh",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
}


def create_plan(sandbox_id: str, spec: SandboxSpec, authority: str = "") -> CreatePlan:
    """`authority`: the certificate of the one that its programs trust, in PEM; empty for none."""
    limits, filesystem = spec.limits, spec.policy.filesystem
    return CreatePlan(
        sandbox_id,
        "host",
        filter_name(spec),
        cpu_millis=max(1, round(limits.cpus * 1000)),
        memory_bytes=limits.memory_mib * MIB,
        disk_bytes=limits.disk_mib * MIB,
        processes=limits.processes,
        loopback_tcp=spec.policy.loopback_tcp,
        on_disk=spec.storage is Storage.DISK,
        read_only=list(filesystem.read_only),
        read_write=list(filesystem.read_write),
        ports=network_ports(spec.policy.network),
        authority=authority.encode(),
    )


def network_ports(network: Network) -> list[int]:
    """The ports of all rules, rising: those of a sandbox whose connections are proxied. Others have none."""
    return list(ports_of(network.rules)) if network.mode == "proxy" else []


def filter_name(spec: SandboxSpec) -> str:
    """The name of the system-call filter. A sandbox that may use its loopback may also ask for its addresses."""
    return "loopback" if spec.policy.loopback_tcp else spec.policy.syscalls.profile


def execution_plan(limits: ExecutionLimits) -> ExecutionPlan:
    return ExecutionPlan(
        cpu_ns=round((limits.cpu_seconds or 0) * 1e9),
        memory_bytes=(limits.memory_mib or 0) * MIB,
        stack_bytes=(limits.stack_mib or 0) * MIB,
        open_files=limits.open_files or 0,
        file_bytes=(limits.file_mib or 0) * MIB,
    )


def trust_environment(facts: Mapping[str, str]) -> dict[str, str]:
    """For programs that do not read the host's trust stores, by what the launcher has told of a sandbox: those that
    bring certificates of their own, as Node, Python's requests and httpx, and uv."""
    if "trust_bundle" not in facts:
        return {}
    bundle = facts["trust_bundle"]
    certificate = facts["trust_stores"].partition(",")[0]
    return {"SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle, "NODE_EXTRA_CA_CERTS": certificate}


def command_body(command: Command) -> bytes:
    env = {**BASE_ENVIRONMENT, **command.env}
    return pack_command(
        [os.fsencode(argument) for argument in command.argv],
        [os.fsencode(f"{name}={value}") for name, value in env.items()],
        os.fsencode(command.workdir),
    )
