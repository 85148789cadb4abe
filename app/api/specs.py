"""From request bodies to the core's specs: defaults, aliases, ceilings and narrowing."""

from __future__ import annotations

from app.api.deps import Edge
from app.api.limits import LimitsRequest
from app.api.schemas import CreateExecution, CreateSandbox, PolicyRequest
from app.api.views import ENFORCED_BY
from app.core.backend import Backend, Capability
from app.core.commands import check_environment
from app.core.errors import InvalidRequest, LimitTooHigh, PolicyNotSupported, UnknownProfile
from app.core.models import Command, SandboxSpec
from app.core.policy import FilesystemRequest, Limits, Policy, check_path, choose_limits, narrow
from app.core.sandboxes import Sandbox

DEFAULT_TTL_SECONDS = 3600.0


def sandbox_spec(asked: CreateSandbox, edge: Edge) -> SandboxSpec:
    """Raises what section 9 of the API lists for a create; nothing is begun."""
    backend = edge.registry.get(edge.registry.default if asked.runtime is None else asked.runtime)
    wrong = check_environment(asked.env, backend.info.command_limits)
    if wrong:
        raise InvalidRequest(wrong)
    return SandboxSpec(
        runtime=backend.info.name,
        limits=_limits(asked.limits, backend, edge),
        policy=_policy(asked.policy, backend, edge),
        env=asked.env,
        workdir=check_path(asked.workdir, "/workdir"),
        requires=frozenset(asked.requires),
        ttl_seconds=_ttl(asked.ttl_seconds, edge),
        idle_seconds=lifetime("idle_seconds", asked.idle_seconds, edge),
        labels=asked.labels,
    )


def _ttl(asked: float | None, edge: Edge) -> float:
    if asked is None:
        return min(DEFAULT_TTL_SECONDS, edge.ttl_ceiling_seconds)
    lifetime("ttl_seconds", asked, edge)
    return asked


def lifetime(field: str, seconds: float | None, edge: Edge) -> float | None:
    """Raises LimitTooHigh above the operator's ceiling."""
    if seconds is not None and seconds > edge.ttl_ceiling_seconds:
        raise LimitTooHigh(field, seconds, edge.ttl_ceiling_seconds)
    return seconds


def _limits(asked: LimitsRequest, backend: Backend, edge: Edge) -> Limits:
    values: dict[str, float | None] = {name: getattr(asked, name) for name in edge.ranges}
    for name, capability in ENFORCED_BY.items():
        if values[name] is not None and capability not in backend.info.capabilities:
            raise PolicyNotSupported(
                f"limits.{name}", backend.info.name, f"the runtime {backend.info.name!r} cannot limit {name}"
            )
    return choose_limits(values, edge.ranges)


def _policy(asked: PolicyRequest, backend: Backend, edge: Edge) -> Policy:
    profile = edge.profiles.get(asked.profile)
    if profile is None:
        raise UnknownProfile(asked.profile[:64], edge.profiles)
    if asked.filesystem is None:
        return profile
    if Capability.FILESYSTEM_POLICY not in backend.info.capabilities:
        raise PolicyNotSupported(
            "policy.filesystem", backend.info.name, f"the runtime {backend.info.name!r} has no filesystem policy"
        )
    return narrow(profile, FilesystemRequest(asked.filesystem.read_only, asked.filesystem.read_write))


def command_of(asked: CreateExecution, sandbox: Sandbox) -> Command:
    """The core checks argv and environment against the runtime's own limits."""
    wall = sandbox.spec.limits.wall_seconds
    timeout = wall if asked.timeout_seconds is None else asked.timeout_seconds
    if timeout > wall:
        raise LimitTooHigh("timeout_seconds", timeout, wall)
    return Command(
        argv=tuple(asked.command),
        env=asked.env,
        workdir=sandbox.spec.workdir if asked.workdir is None else check_path(asked.workdir, "/workdir"),
        timeout_seconds=timeout,
        stdin=asked.stdin,
        on_output_limit=asked.on_output_limit,
    )
