"""From request bodies to the core's specs: defaults, aliases, ceilings and narrowing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.api.context import ApplicationContext
from app.api.schemas import requests
from app.api.schemas.limits import LimitsRequest, ProcessLimitsRequest
from app.api.schemas.requests import (
    CreateExecution,
    NetworkRequest,
    NetworkRuleRequest,
    PolicyRequest,
    SandboxFields,
    UpdatePolicyRequest,
)
from app.api.schemas.secret_specs import check_changed_rules, secrets_of
from app.core.backend import Backend
from app.core.capabilities import Capability
from app.core.choice import RuntimeRequest, choose
from app.core.commands import check_environment, check_idle_counts
from app.core.errors import (
    CapabilityMissing,
    InvalidRequest,
    LimitTooHigh,
    PolicyNotSupported,
    UnknownProfile,
    plain_number,
)
from app.core.execution_limits import check_execution_limits
from app.core.limits import LIMITS, Limits, choose_limits, lower
from app.core.models import Command, ExecutionLimits, IdleCounts, SandboxSpec, Stdin, Storage, Terminal
from app.core.network_rules import NetworkRule
from app.core.policy import FilesystemRequest, Network, Policy, check_path, narrow, narrow_network, narrow_rules
from app.core.sandboxes import Sandbox
from app.core.storage import choose_storage, fit_disk, storage_needs

DEFAULT_PROFILE = "default"
DEFAULT_TTL_SECONDS = 3600.0
_NETWORKS = {"direct": Capability.NETWORK_DIRECT, "proxy": Capability.NETWORK_PROXY}


async def sandbox_spec(
    asked: SandboxFields,
    context: ApplicationContext,
    sandbox_id: str | None = None,
    more: frozenset[Capability] = frozenset(),
) -> SandboxSpec:
    """Raises the refusals of a create. Begins nothing. `more` are capabilities that `auto` must look for beside those
    of the fields."""
    known = context.sandboxes.find(sandbox_id) if sandbox_id else None
    runtime = context.registry.default if asked.runtime is None else asked.runtime
    backend, reason = await choose(
        RuntimeRequest(runtime, asked.isolation_min, needs_of(asked, context.storage) | more),
        context.registry,
        context.readiness.of,
        settled_on=None if known is None else known.spec.runtime,
    )
    check_idle_counts(asked.idle_counts, backend.info)
    wrong = check_environment(asked.env, backend.info.command_limits)
    if wrong:
        raise InvalidRequest(wrong)
    if (asked.storage or context.storage) is Storage.DISK:
        await context.readiness.of(backend)  # then it knows what its disks can hold
    storage = choose_storage(asked.storage, context.storage, backend.info)
    policy = _policy(asked.policy, backend, context)
    spec = backend.fit(
        SandboxSpec(
            runtime=backend.info.name,
            limits=_limits(asked.limits, storage, backend, context),
            policy=policy,
            env=asked.env,
            workdir=check_path(asked.workdir, "/workdir"),
            requires=frozenset(asked.requires),
            ttl_seconds=ttl_of(asked.ttl_seconds, context),
            idle_seconds=lifetime("idle_seconds", asked.idle_seconds, context),
            idle_counts=asked.idle_counts,
            labels=asked.labels,
            image=_image(asked.image, backend),
            storage=storage,
            secrets=secrets_of(asked.secrets, asked.env, policy.network, backend.info, context.secrets),
            runtime_reason=reason,
        )
    )
    for name, limit in context.ranges.items():  # what a runtime rounds up must not be more than the operator gives
        if getattr(spec.limits, name) > limit.ceiling:
            raise LimitTooHigh(f"/limits/{name}", getattr(spec.limits, name), limit.ceiling)
    return spec


def needs_of(asked: SandboxFields, default_storage: Storage) -> frozenset[Capability]:
    """The capabilities that the runtime must have: those that are required by name, and those that each field needs."""
    needs = set(asked.requires) | storage_needs(asked.storage, default_storage)
    limits = [row for row in LIMITS.values() if getattr(asked.limits, row.name) is not None]
    needs |= {row.capability for row in limits if row.capability is not None}
    if asked.image is not None:
        needs.add(Capability.IMAGES)
    if asked.idle_counts is IdleCounts.PROCESSES:
        needs.add(Capability.USAGE)
    if asked.policy.filesystem is not None or asked.policy.profile != DEFAULT_PROFILE:
        needs.add(Capability.FILESYSTEM_POLICY)
    if asked.policy.syscalls is not None:
        needs.add(Capability.SYSCALL_PROFILES)
    if asked.policy.network is not None and (capability := _NETWORKS.get(asked.policy.network.mode)):
        needs.add(capability)
    if asked.secrets:
        needs.add(Capability.SECRETS)
    return frozenset(needs)


def _image(asked: str | None, backend: Backend) -> str | None:
    if asked is not None and Capability.IMAGES not in backend.info.capabilities:
        raise CapabilityMissing([Capability.IMAGES], backend.info.name)
    return asked


def ttl_of(asked: float | None, context: ApplicationContext) -> float:
    """Returns the default for None. Raises LimitTooHigh."""
    if asked is None:
        return min(DEFAULT_TTL_SECONDS, context.ttl_ceiling_seconds)
    lifetime("ttl_seconds", asked, context)
    return asked


def lifetime(field: str, seconds: float | None, context: ApplicationContext) -> float | None:
    """Raises LimitTooHigh above the operator's ceiling."""
    if seconds is not None and seconds > context.ttl_ceiling_seconds:
        raise LimitTooHigh(f"/{field}", seconds, context.ttl_ceiling_seconds)
    return seconds


def _limits(asked: LimitsRequest, storage: Storage, backend: Backend, context: ApplicationContext) -> Limits:
    values: dict[str, float | None] = {name: getattr(asked, name) for name in context.ranges}
    for name, row in LIMITS.items():
        if values[name] is not None and not row.is_enforced(backend.info.capabilities):
            raise PolicyNotSupported(
                f"/limits/{name}", backend.info.name, f"the runtime {backend.info.name!r} cannot limit {name}"
            )
    ranges = lower(context.ranges, backend.info.ceilings)
    return fit_disk(choose_limits(values, ranges), storage, asked.disk_mib, ranges["disk_mib"].ceiling)


def _policy(asked: PolicyRequest, backend: Backend, context: ApplicationContext) -> Policy:
    profile = context.profiles.get(asked.profile)
    if profile is None:
        raise UnknownProfile(asked.profile[:64], context.profiles)
    _check_enforced(asked, backend)
    if asked.network is not None:
        profile = replace(profile, network=_network(asked.network, profile, context))
    if asked.filesystem is None:
        return profile
    return narrow(profile, FilesystemRequest(asked.filesystem.read_only, asked.filesystem.read_write))


def _check_enforced(asked: PolicyRequest, backend: Backend) -> None:
    """Raises for parts of a policy that the runtime does not enforce. A profile consists of its filesystem and its
    system calls. Where neither is enforced, its name would mean nothing."""
    name, capabilities = backend.info.name, backend.info.capabilities
    mode = "none" if asked.network is None else asked.network.mode
    parts = (
        ("profile", asked.profile != DEFAULT_PROFILE, Capability.FILESYSTEM_POLICY, "enforces no profile"),
        ("filesystem", asked.filesystem is not None, Capability.FILESYSTEM_POLICY, "has no filesystem policy"),
        ("syscalls", asked.syscalls is not None, Capability.SYSCALL_PROFILES, "has no system call profiles"),
        ("network/mode", mode == "direct", Capability.NETWORK_DIRECT, backend.info.no_direct),
        ("network/mode", mode == "proxy", Capability.NETWORK_PROXY, backend.info.no_proxy),
    )
    for part, is_asked, capability, lack in parts:
        if is_asked and capability not in capabilities:
            raise PolicyNotSupported(f"/policy/{part}", name, f"the runtime {name!r} {lack}")


def changed_rules(asked: UpdatePolicyRequest, sandbox: Sandbox, context: ApplicationContext) -> tuple[NetworkRule, ...]:
    """Raises InvalidRequest, PolicyTooBroad."""
    rules = narrow_rules(sandbox.spec.policy, _rules(asked.network.allow), context.egress)
    check_changed_rules(sandbox.spec.secrets, rules)
    return rules


def _rules(allow: Sequence[str | NetworkRuleRequest]) -> list[object]:
    return [rule if isinstance(rule, str) else rule.model_dump() for rule in allow]


def _network(asked: NetworkRequest, profile: Policy, context: ApplicationContext) -> Network:
    if asked.mode == "proxy":
        return narrow_network(profile, _rules(asked.allow), context.egress)
    if asked.mode == "none" and asked.allow:
        raise InvalidRequest.at("/policy/network/allow", "needs the mode `proxy` or `direct`")
    if asked.mode == "direct" and not asked.allow:
        raise InvalidRequest.at("/policy/network/allow", "must name the hosts that may be reached")
    hosts = [host for host in asked.allow if isinstance(host, str)]
    for place, host in enumerate(asked.allow):
        if not isinstance(host, str):
            raise InvalidRequest.at(f"/policy/network/allow/{place}", "must be a string: `direct` has no ports")
    return Network(asked.mode, tuple(hosts))


def timeout_of(asked: float | None, spec: SandboxSpec, context: ApplicationContext) -> float:
    """Raises LimitTooHigh above the sandbox's wall time."""
    wall = spec.limits.wall_seconds
    if asked is None:
        return wall
    if asked > wall:
        most = lower(context.ranges, context.registry.get(spec.runtime).info.ceilings)["wall_seconds"].ceiling
        way_out = (
            f"create the sandbox with a higher limits.wall_seconds (up to {plain_number(most)})" if most > wall else ""
        )
        raise LimitTooHigh("/timeout_seconds", asked, wall, way_out)
    return asked


def terminal_of(asked: requests.Terminal | None) -> Terminal | None:
    return None if asked is None else Terminal(asked.rows, asked.cols)


def execution_limits_of(
    asked: ProcessLimitsRequest, spec: SandboxSpec, context: ApplicationContext, memory_mib: int | None = None
) -> ExecutionLimits:
    """Raises PolicyNotSupported, LimitTooHigh."""
    limits = ExecutionLimits(asked.cpu_seconds, asked.stack_mib, asked.open_files, asked.file_mib, memory_mib)
    check_execution_limits(limits, spec.limits, context.registry.get(spec.runtime).info)
    return limits


def workdir_of(asked: str | None, spec: SandboxSpec) -> str:
    """The working directory of an execution. Raises InvalidRequest."""
    return spec.workdir if asked is None else check_path(asked, "/workdir")


def command_of(asked: CreateExecution, sandbox: Sandbox, context: ApplicationContext) -> Command:
    """The core checks argv and environment against the runtime's own limits."""
    timeout = timeout_of(asked.timeout_seconds, sandbox.spec, context)
    terminal = terminal_of(asked.tty)
    return Command(
        argv=tuple(asked.command),
        env=asked.env,
        workdir=workdir_of(asked.workdir, sandbox.spec),
        timeout_seconds=timeout,
        stdin=asked.stdin if terminal is None else Stdin.OPEN,
        stderr=asked.stderr,
        on_output_limit=asked.on_output_limit,
        output_mode=asked.output_mode,
        tty=terminal,
        limits=execution_limits_of(asked.limits, sandbox.spec, context, asked.limits.memory_mib),
    )
