"""What `bulkhead show` tells of one sandbox: what it was asked to be, and the main facts of its receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from app.cli.show import short_time, size
from app.core.limits import MIB
from app.core.network_rules import parse_rule

_DIGEST = 12  # characters, as of an abbreviated commit; `--json` has all 64
_LIMITS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "cpus": ("cpus", lambda count: f"{count:g}"),
    "memory_mib": ("memory", lambda mib: size(mib * MIB)),
    "processes": ("processes", str),
    "output_bytes": ("output", size),
    "wall_seconds": ("time", lambda seconds: f"{seconds:g} s"),
}


def facts_of(sandbox: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a name and a text. `sandbox` is an answer of the API."""
    rows = [*_asked(sandbox), *_measured(sandbox.get("isolation"))]
    return [[name, text] for name, text in rows if text]


def _asked(sandbox: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    limits, policy = sandbox.get("limits") or {}, sandbox.get("policy") or {}
    executions = sandbox.get("executions") or {}
    reason, disk_mib = sandbox.get("state_reason"), limits.get("disk_mib")
    yield "id", sandbox["id"]
    yield "state", sandbox["state"] + (f": {reason}" if reason else "")
    yield "runtime", _list([sandbox["runtime"], sandbox.get("image") and f"image {sandbox['image']}"])
    yield "chosen", sandbox.get("runtime_reason") or ""
    yield "created", short_time(sandbox.get("created_at"))
    if sandbox["state"] != "destroyed":
        yield "expires", _list([short_time(sandbox.get("expires_at")), _idle(sandbox)], "; ")
    yield "executions", f"{executions.get('running', 0)} of {executions.get('total', 0)} running"
    yield "labels", _list(f"{name}={value}" for name, value in (sandbox.get("labels") or {}).items())
    yield (
        "limits",
        _list(f"{word} {show(limits[name])}" for name, (word, show) in _LIMITS.items() if limits.get(name) is not None),
    )
    yield "storage", _list([sandbox.get("storage"), disk_mib is not None and size(disk_mib * MIB)])
    yield "policy", _policy(policy)
    yield "secrets", _list(map(_secret, (sandbox.get("secrets") or {}).items()), "; ")


def _secret(named: tuple[str, Mapping[str, Any]]) -> str:
    name, secret = named
    source = f" (the operator's {secret['from']})" if secret.get("from") else ""
    return f"{name} for {_list(secret.get('hosts') or ())}{source}"


def _idle(sandbox: Mapping[str, Any]) -> str:
    seconds = sandbox.get("idle_seconds")
    return "" if seconds is None else f"or after {seconds:g} s without {sandbox.get('idle_counts', 'use')}"


def _policy(policy: Mapping[str, Any]) -> str:
    network = policy.get("network") or {}
    hosts = _list(rule if isinstance(rule, str) else str(parse_rule(rule)) for rule in network.get("allow") or ())
    if network.get("mode") == "proxy" and not hosts:
        hosts = "nothing"  # its rules were taken away
    return _list(
        [
            policy.get("profile") and f"profile {policy['profile']}",
            network.get("mode") and f"network {network['mode']}" + (f" to {hosts}" if hosts else ""),
        ]
    )


def _measured(receipt: Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    """The members depend on the runtime."""
    if receipt is None:
        yield "isolation", "no receipt: there is one while the sandbox runs"
        return
    yield "isolation", f"{receipt.get('tier')}, measured when the sandbox was made:"
    yield "namespaces", _list(receipt.get("namespaces") or ())
    yield "user", _user(receipt)
    yield "landlock", _landlock(receipt.get("landlock"))
    yield "seccomp", _seccomp(receipt.get("seccomp"))
    yield "cgroup", _cgroup(receipt.get("cgroup"))
    yield "box", _box(receipt)
    yield "files", _files(receipt.get("storage") or {})
    yield "network", _network(receipt.get("network") or {})
    yield "missing", _list(receipt.get("missing_layers") or ()) or "no layer"
    yield "claimed", _list(receipt.get("claimed") or ())
    yield "notes", _list(receipt.get("notes") or (), "; ")


def _user(receipt: Mapping[str, Any]) -> str:
    if "host_uid" not in receipt:
        return ""
    held = {name: mask for name, mask in (receipt.get("capabilities") or {}).items() if mask}
    capabilities = _list(f"{name} {mask:#x}" for name, mask in held.items())
    return _list(
        [
            f"uid {receipt['host_uid']} of the host",
            f"capabilities {capabilities}" if held else "no capabilities",
            "no_new_privs" if receipt.get("no_new_privs") else "may gain privileges",
        ]
    )


def _landlock(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if not found.get("abi"):
        return "none"
    files = f"{len(found.get('files') or ())} kinds of access to files"
    return f"ABI {found['abi']}: {_list([files, *(found.get('tcp') or ()), *(found.get('scopes') or ())])}"


def _seccomp(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    digest = str(found.get("sha256", ""))[:_DIGEST]
    return f"{found.get('mode')} {found.get('profile')}, sha256 {digest}…"


def _cgroup(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""

    def limit(name: str, word: str, show: Callable[[Any], str] = str) -> str:
        value = found.get(name)
        return f"{word} {'not limited' if value is None else show(value)}"

    return f"version {found.get('version')}: " + _list(
        [
            limit("cpus", "cpus", lambda count: f"{count:g}"),
            found.get("cpuset_cpus") and f"processors {found['cpuset_cpus']} of the host",
            limit("memory_bytes", "memory", size),
            limit("processes", "processes"),
            f"swap {found.get('swap')}",
        ]
    )


def _box(receipt: Mapping[str, Any]) -> str:
    measured = receipt.get("measured")
    if measured is None:
        return ""
    kernel, cpus, memory = measured.get("kernel"), measured.get("cpus"), measured.get("memory_bytes")
    has = f"kernel {kernel}, cpus {cpus}, memory {'-' if memory is None else size(memory)}"
    return f"{receipt.get('box_id')}, booted in {receipt.get('boot_seconds', 0):g} s: {has}"


def _files(storage: Mapping[str, Any]) -> str:
    room = storage.get("bytes")
    return "" if room is None else f"{storage.get('file_system')} with room for {size(room)}"


def _network(network: Mapping[str, Any]) -> str:
    if not network:
        return ""
    links = _list(f"{link['name']}{'' if link.get('up') else ' (down)'}" for link in network.get("links") or ())
    outside = network.get("routes_to_outside")
    routes = "unknown" if outside is None or outside < 0 else outside or "none"
    return f"{network.get('mode')}; links: {links or 'none'}; routes to outside: {routes}"


def _list(items: Iterable[Any], between: str = ", ") -> str:
    return between.join(str(item) for item in items if item)
