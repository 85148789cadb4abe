"""What a sandbox may do. The operator sets it, and the client may narrow it.

Narrowing is a pure function: `narrow(profile, request)` returns a policy that is contained in the profile, or raises.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.core.addresses import forbidden_net
from app.core.errors import InvalidRequest, PolicyTooBroad
from app.core.hosts import IPNetwork, net_of
from app.core.network_rules import (
    METHODS,
    PATHS,
    PORTS,
    NetworkRule,
    covers,
    methods_of,
    parse_rule,
    paths_of,
    ports_of,
)
from app.core.text import byte_length


@dataclass(frozen=True, slots=True)
class Filesystem:
    """Paths inside the sandbox. Those of `read_only` may be read and executed. Those of `read_write` may also be
    written. Everything else is refused."""

    read_only: tuple[str, ...] = ("/usr", "/etc")
    read_write: tuple[str, ...] = ("/workspace", "/tmp", "/dev/shm")  # noqa: S108 - paths of the sandbox's own


@dataclass(frozen=True, slots=True)
class Network:
    """With `direct` the hosts of `allow` can be reached: names, `*.name`, IPv4 addresses or networks. With `proxy` what
    `rules` permit."""

    mode: str = "none"
    allow: tuple[str, ...] = ()
    rules: tuple[NetworkRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Syscalls:
    profile: str = "default"


@dataclass(frozen=True, slots=True)
class Policy:
    """A profile, possibly narrowed. `loopback_tcp`: programs may use TCP on the sandbox's own loopback. `permitted`:
    the widest rules that the profile has for a network of the mode `proxy`; None: what the operator permits to all."""

    profile: str = "default"
    filesystem: Filesystem = Filesystem()
    network: Network = Network()
    syscalls: Syscalls = Syscalls()
    loopback_tcp: bool = False
    permitted: tuple[NetworkRule, ...] | None = None

    @property
    def may_read_http(self) -> bool:
        """Whether requests inside TLS are read: a rule in force has `http`, or one of the profile does, which may come
        into force later."""
        rules = (*self.network.rules, *(self.permitted or ()))
        return self.network.mode == "proxy" and any(rule.http for rule in rules)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What any client may ask for with the network mode `proxy`. `permit_nets` are networks that may be reached
    although they are not public."""

    allow: tuple[NetworkRule, ...] = ()
    permit_nets: tuple[IPNetwork, ...] = ()


DEFAULT_PROFILES: Mapping[str, Policy] = {
    "default": Policy(),
    "loopback": Policy(profile="loopback", loopback_tcp=True),
}


@dataclass(frozen=True, slots=True)
class FilesystemRequest:
    """The client's narrowing: None keeps the profile's list."""

    read_only: Sequence[str] | None = None
    read_write: Sequence[str] | None = None


def check_path(path: str, pointer: str) -> str:
    """Returns the normalised path, which must be absolute and without `.` and `..`. InvalidRequest names the field."""
    if not path.startswith("/"):
        raise InvalidRequest.at(pointer, "must be an absolute path")
    size = byte_length(path)
    if "\0" in path or size is None:
        raise InvalidRequest.at(pointer, "must not contain a NUL byte or half a surrogate pair")
    if size >= 4096:
        raise InvalidRequest.at(pointer, "is longer than the kernel's 4095 bytes")
    if any(part in {".", ".."} for part in path.split("/")):
        raise InvalidRequest.at(pointer, "must not contain . or .. as a component")
    return "/" + posixpath.normpath(path).lstrip("/")


def _inside(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def _narrow_list(
    kind: str, wanted: Sequence[str] | None, allowed: Sequence[str], ceiling: Sequence[str]
) -> tuple[str, ...]:
    if wanted is None:
        return tuple(allowed)
    paths: list[str] = []
    for index, raw in enumerate(wanted):
        path = check_path(raw, f"/policy/filesystem/{kind}/{index}")
        if not _inside(path, ceiling):
            raise PolicyTooBroad(
                f"/policy/filesystem/{kind}",
                ", ".join(ceiling),
                f"{path} is outside what the profile allows for {kind}: {', '.join(ceiling) or 'nothing'}",
            )
        if path not in paths:
            paths.append(path)
    return tuple(paths)


def narrow(profile: Policy, request: FilesystemRequest | None) -> Policy:
    """Returns the narrowed profile. A path that is writable in the profile may be asked for as read-only.

    Raises PolicyTooBroad for a path outside the profile's lists, InvalidRequest for one that is no clean path.
    """
    if request is None:
        return profile
    allowed = profile.filesystem
    return replace(
        profile,
        filesystem=Filesystem(
            read_only=_narrow_list(
                "read_only", request.read_only, allowed.read_only, (*allowed.read_only, *allowed.read_write)
            ),
            read_write=_narrow_list("read_write", request.read_write, allowed.read_write, allowed.read_write),
        ),
    )


_ALLOW = "/policy/network/allow"


def narrow_network(profile: Policy, asked: Sequence[object], operators: EgressPolicy) -> Network:
    """Returns a network of the mode `proxy` whose rules lie within those of the profile and of the operator.

    Raises InvalidRequest for what is no rule, and PolicyTooBroad. Both name the first wrong rule.
    """
    if not asked:
        raise InvalidRequest.at(_ALLOW, "must name the hosts that may be reached")
    return Network("proxy", rules=narrow_rules(profile, asked, operators))


def narrow_rules(profile: Policy, asked: Sequence[object], operators: EgressPolicy) -> tuple[NetworkRule, ...]:
    """Like `narrow_network`, and no rule is possible too."""
    rules: dict[NetworkRule, None] = {}
    for place, value in enumerate(asked):
        pointer = f"{_ALLOW}/{place}"
        try:
            rule = parse_rule(value)
        except ValueError as error:
            raise InvalidRequest.at(pointer, str(error)) from None
        _check_permitted(rule, pointer, profile.permitted, f"what the profile {profile.profile!r} permits")
        _check_permitted(rule, pointer, operators.allow, "what the operator permits (BULKHEAD_EGRESS__ALLOW)")
        _check_addresses(rule, pointer, operators.permit_nets)
        rules[rule] = None
    if (count := len(ports_of(rules))) > PORTS:
        raise InvalidRequest.at(_ALLOW, f"has {count} different ports; at most {PORTS} are possible")
    if (count := paths_of(rules)) > PATHS:
        raise InvalidRequest.at(_ALLOW, f"has {count} paths; at most {PATHS} are possible")
    if (count := methods_of(rules)) > METHODS:
        raise InvalidRequest.at(_ALLOW, f"has {count} methods; at most {METHODS} are possible")
    return tuple(rules)


def _check_permitted(rule: NetworkRule, pointer: str, wide: Sequence[NetworkRule] | None, what: str) -> None:
    if wide is None or covers(wide, rule):
        return
    ceiling = ", ".join(map(str, wide)) or "nothing"
    hint = "; the operator permits no raw rules" if rule.raw and not any(own.raw for own in wide) else ""
    raise PolicyTooBroad(pointer, ceiling, f"{rule} is outside {what}: {ceiling}{hint}")


def _check_addresses(rule: NetworkRule, pointer: str, permit_nets: Sequence[IPNetwork]) -> None:
    net = net_of(rule.host)
    reason = None if net is None else forbidden_net(net, permit_nets)
    if reason is not None:
        ceiling = ", ".join(map(str, permit_nets)) or "nothing"
        raise PolicyTooBroad(
            pointer,
            ceiling,
            f"{rule.host} is not public ({reason}); beside public addresses the operator permits "
            f"(BULKHEAD_EGRESS__PERMIT_NETS): {ceiling}",
        )
