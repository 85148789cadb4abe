"""Whatever a client asks for, what is enforced is contained in the operator's profile, or the refusal names a field."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.context import ApplicationContext
from app.api.schemas.requests import CreateSandbox
from app.api.schemas.specs import sandbox_spec
from app.backends.boxlite.network import narrowed
from app.backends.process.plan import create_plan
from app.core.capabilities import Capability
from app.core.errors import (
    InvalidRequest,
    LimitTooHigh,
    PolicyNotSupported,
    PolicyTooBroad,
    UnknownProfile,
)
from app.core.limits import LIMITS, MIB
from app.core.models import SandboxSpec, Storage
from app.core.storage import LEAST_DISK_MIB
from tests.unit.api.service import PROFILES, Service, kernel

SERVICE = Service([kernel(Capability.NETWORK_DIRECT, Capability.NETWORK_PROXY)])
CONTEXT: ApplicationContext = SERVICE.app.state.context
CEILINGS = {name: CONTEXT.ranges[name].ceiling for name in LIMITS}

part = st.sampled_from(
    ["usr", "usr2", "etc", "tmp", "workspace", "dev", "shm", "lib", "..", ".", "", "us", "usr ", "é"]
)
path = st.builds(
    lambda lead, parts: lead + "/".join(parts), st.sampled_from(["/", "", "//"]), st.lists(part, max_size=4)
)
paths = st.none() | st.lists(path, max_size=3)
host = st.sampled_from(["example.org", "*.example.org", "10.0.0.0/8", "127.0.0.1", "localhost", "0.0.0.0/0", "ü"])
rule = st.builds("{}:{}".format, host, st.sampled_from([80, 443, 22, 53, 0])) | st.builds(
    lambda name, ports, raw: {"host": name, "ports": ports, "raw": raw},
    host,
    st.lists(st.sampled_from([80, 443, 22]), min_size=1, max_size=3),
    st.booleans(),
)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


policies = optional(
    profile=st.sampled_from([*PROFILES, "loopback", "wide"]),
    filesystem=st.none() | optional(read_only=paths, read_write=paths),
    network=st.none()
    | optional(mode=st.sampled_from(["none", "direct", "proxy"]), allow=st.lists(host | rule, max_size=3)),
    syscalls=st.none() | optional(profile=st.just("default")),
)
number = st.integers(-1, 2**53 - 1) | st.sampled_from([*CEILINGS.values(), *(c + 1 for c in CEILINGS.values())])
limits = optional(**{name: st.none() | number.map(int) for name in LIMITS})


def spec_of(body: dict[str, Any]) -> SandboxSpec:
    return asyncio.run(sandbox_spec(CreateSandbox.model_validate_json(json.dumps(body)), CONTEXT))


def inside(path: str, roots: tuple[str, ...]) -> bool:
    """By components, unlike the code under test."""
    parts = path.split("/")[1:] if path != "/" else []
    return any(parts[: len(own)] == own for own in ([p for p in root.split("/") if p] for root in roots))


@given(policies)
@example({"filesystem": {"read_write": ["/usr"]}})
@example({"filesystem": {"read_only": ["/"]}})
@example({"profile": "narrow", "filesystem": {"read_only": ["/etc"]}})
@example({"network": {"mode": "proxy", "allow": ["*.example.org:443", {"host": "example.org", "ports": [80, 443]}]}})
def test_a_policy_is_never_wider_than_its_profile(asked: dict[str, Any]) -> None:
    try:
        spec = spec_of({"policy": asked})
    except (InvalidRequest, PolicyTooBroad, PolicyNotSupported) as refusal:
        pointers = [e.pointer for e in refusal.errors] if isinstance(refusal, InvalidRequest) else [refusal.pointer]
        assert pointers
        assert all("policy" in pointer for pointer in pointers)
        return
    except UnknownProfile as refusal:
        assert asked["profile"] not in refusal.known
        return
    profile, policy = PROFILES[asked.get("profile", "default")], spec.policy
    plan = create_plan("sandbox", spec)
    assert all(inside(name, profile.filesystem.read_write) for name in plan.read_write)
    readable = (*profile.filesystem.read_only, *profile.filesystem.read_write)
    assert all(inside(name, readable) for name in plan.read_only)
    assert (plan.loopback_tcp, policy.loopback_tcp) == (profile.loopback_tcp, profile.loopback_tcp)
    assert plan.filter_name == ("loopback" if profile.loopback_tcp else profile.syscalls.profile)
    assert policy.syscalls == profile.syscalls
    network = asked.get("network") or {}
    assert policy.network.mode == network.get("mode", "none")
    assert set(policy.network.allow) <= {asked for asked in network.get("allow", ()) if isinstance(asked, str)}
    assert (plan.ports == []) == (policy.network.mode != "proxy")
    assert set(plan.ports) <= {80, 443}, "what the operator of a new installation permits"
    assert not any(rule.raw or rule.is_net for rule in policy.network.rules)


@given(
    limits,
    st.none() | st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    st.none() | st.sampled_from(Storage),
)
@example({"memory_mib": 64, "disk_mib": 65}, None, None)
@example({"memory_mib": 64, "disk_mib": 65}, None, Storage.DISK)
@example({"disk_mib": 15}, None, Storage.DISK)
def test_limits_and_lifetimes_are_never_above_the_ceilings(
    asked: dict[str, Any], ttl: float | None, storage: Storage | None
) -> None:
    within = {k: v for k, v in asked.items() if v is None or v >= LIMITS[k].floor}
    try:
        spec = spec_of({"limits": within, "ttl_seconds": ttl, "storage": storage})
    except InvalidRequest as refusal:
        assert [e.pointer for e in refusal.errors] == ["/limits/disk_mib"]
        assert storage is Storage.DISK
        assert within["disk_mib"] < LEAST_DISK_MIB
        return
    except LimitTooHigh as refusal:
        given: dict[str, Any] = {**asked, "ttl_seconds": ttl}
        assert given[refusal.pointer.rpartition("/")[2]] > refusal.ceiling
        return
    plan = create_plan("sandbox", spec)
    enforced = {
        "cpus": plan.cpu_millis / 1000,
        "memory_mib": plan.memory_bytes / MIB,
        "disk_mib": plan.disk_bytes / MIB,
        "processes": plan.processes,
        "output_bytes": spec.limits.output_bytes,
        "wall_seconds": spec.limits.wall_seconds,
    }
    assert all(0 < enforced[name] <= CEILINGS[name] for name in LIMITS), enforced
    assert plan.on_disk == (storage is Storage.DISK)
    assert plan.disk_bytes >= LEAST_DISK_MIB * MIB if plan.on_disk else plan.disk_bytes <= plan.memory_bytes
    assert 0 < spec.ttl_seconds <= CONTEXT.ttl_ceiling_seconds


# --- hosts that may be reached

PERMITTED = ("example.org", "*.api.example.org", "10.1.0.0/16", "192.0.2.7")
label = st.sampled_from(["a", "api", "example", "org", "*", "evil", "xapi"])
name = st.lists(label, min_size=1, max_size=5).map(".".join)
net = st.builds(
    lambda address, bits: f"{ipaddress.IPv4Address(address)}/{bits}",
    st.sampled_from([0x0A010000, 0x0A01FF01, 0x0A020000, 0xC0000207, 0x7F000001, 0]) | st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


def reaches_only_permitted(rule: str) -> bool:
    """Of nets first and last address, of names one that the rule lets through."""
    try:
        found = ipaddress.IPv4Network(rule)
    except ValueError:
        asked = rule.replace("*", "any.thing")
        return asked == "example.org" or asked.endswith(".api.example.org")
    nets = [ipaddress.IPv4Network(permitted) for permitted in ("10.1.0.0/16", "192.0.2.7/32")]
    return any(found[0] in own and found[-1] in own for own in nets)


@given(st.lists(name | net | st.sampled_from(PERMITTED) | st.text(max_size=8), min_size=1, max_size=3))
@example(["*.example.org"])
@example(["xapi.example.org"])
@example(["10.0.0.0/8"])
def test_no_host_is_reached_that_the_operator_did_not_permit(asked: list[str]) -> None:
    try:
        rules = narrowed(tuple(asked), PERMITTED)
    except InvalidRequest as refusal:
        assert all(e.pointer.startswith("/policy/network/allow") for e in refusal.errors)
    except PolicyTooBroad as refusal:
        assert refusal.pointer == "/policy/network/allow"
    else:
        assert rules
        assert all(reaches_only_permitted(rule) for rule in rules), rules


@pytest.mark.parametrize("rule", PERMITTED)
def test_what_is_permitted_can_be_asked_for(rule: str) -> None:
    assert narrowed((rule,), PERMITTED) == (rule,)
